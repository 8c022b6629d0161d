//! One place of the index: the keys that share it, and who was sent the block of each.
//!
//! Hot path: plain arrays, no allocation.

/// Backends remembered for a block. A block that so many hold is taken to be everywhere.
pub const HOLDERS: usize = 8;

/// Keys in a place.
pub(super) const WAYS: usize = 4;

/// Keys that share a place, with their holders. 256 bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Set {
    pub(super) keys: [u64; WAYS],
    /// Time at which each was last sent, in dispatches; 0: never.
    pub(super) used: [u32; WAYS],
    /// Tokens that a session's last prompt had.
    pub(super) tokens: [u32; WAYS],
    /// Slots of the backends that hold each.
    pub(super) slots: [[u16; HOLDERS]; WAYS],
    /// The epochs in which they were sent it; 0: nobody.
    pub(super) epochs: [[u32; HOLDERS]; WAYS],
}

/// A place without keys.
pub(super) const EMPTY: Set = Set {
    keys: [0; WAYS],
    used: [0; WAYS],
    tokens: [0; WAYS],
    slots: [[0; HOLDERS]; WAYS],
    epochs: [[0; HOLDERS]; WAYS],
};

/// The backends that were sent a block, and the epochs of their caches in which they were.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Holders {
    pub(super) slots: [u16; HOLDERS],
    pub(super) epochs: [u32; HOLDERS],
}

impl Holders {
    pub(super) const NOBODY: Holders = Holders { slots: [0; HOLDERS], epochs: [0; HOLDERS] };
}

impl Set {
    /// The way whose key was sent the longest ago.
    pub(super) fn longest_unused(&self, now: u32) -> usize {
        let idle = |way: &usize| if self.used[*way] == 0 { u32::MAX } else { now.wrapping_sub(self.used[*way]) };
        (0..WAYS).max_by_key(idle).unwrap_or(0)
    }
}
