//! By what a request is recognised: hashes only, so that no text is kept.

use std::sync::Arc;

/// Tokens of the smallest block: four of vLLM's own blocks.
const BLOCK: u32 = 64;
/// Blocks grow with their distance from the beginning, to this share of it. So a common beginning is known to 3 % or a block.
const SHARE: u32 = 32;
/// Blocks of a prompt that are told apart, at most: the last ends at 717,184 tokens.
const BLOCKS: usize = 240;
/// Positions where the blocks of a prompt end, in estimated tokens.
pub const BLOCK_ENDS: [u32; BLOCKS] = {
    let mut ends = [0; BLOCKS];
    let (mut i, mut end) = (0, 0);
    while i < BLOCKS {
        let share = end / SHARE / BLOCK * BLOCK;
        end += if share > BLOCK { share } else { BLOCK };
        ends[i] = end;
        i += 1;
    }
    ends
};

/// The end of one block of a prompt: the hash of all text before it, and the tokens of that text, estimated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    /// Hash of the prompt up to here.
    pub key: u64,
    /// Tokens up to here.
    pub tokens: u32,
}

/// A request's session and the blocks of its prompt. Cheap to clone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Marks {
    /// Hash of the session's key. It claims what the session's last prompt held, however long.
    pub session: Option<u64>,
    prefix: Option<Arc<[Mark]>>,
}

impl Marks {
    /// Nothing to be recognised by.
    pub const NONE: Marks = Marks { session: None, prefix: None };

    /// A session and nothing else.
    #[must_use]
    pub const fn session(key: u64) -> Marks {
        Marks { session: Some(key), prefix: None }
    }

    /// The blocks of a prompt, shortest first, and no session.
    #[must_use]
    pub fn of(prefix: &[Mark]) -> Marks {
        Marks { session: None, prefix: (!prefix.is_empty()).then(|| Arc::from(prefix)) }
    }

    /// The ends of the prompt's blocks, shortest first.
    #[must_use]
    #[inline]
    pub fn prefix(&self) -> &[Mark] {
        self.prefix.as_deref().unwrap_or_default()
    }

    /// Returns the blocks and the session in another namespace. An adapter's cache is not its base model's.
    #[must_use]
    pub fn within(self, salt: u64) -> Marks {
        let salted = |mark: &Mark| Mark { key: mark.key ^ salt, ..*mark };
        let prefix = self.prefix.map(|prefix| prefix.iter().map(salted).collect());
        Marks { session: self.session.map(|key| key ^ salt), prefix }
    }

    /// Returns whether there is nothing to look up.
    #[must_use]
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.prefix.is_none() && self.session.is_none()
    }
}
