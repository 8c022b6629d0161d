//! What a row says of a prompt in its backend's cache: the tokens that are claimed, their worth, and what is redundant elsewhere.
//!
//! Hot path: plain arithmetic.

use crate::routing::candidate::Candidate;

/// Writes to each row what it would compute although another row's backend has it.
pub fn compare(rows: &mut [Candidate]) {
    let most = rows.iter().map(|row| row.matched).max().unwrap_or(0);
    for row in rows {
        row.redundant = most - row.matched;
    }
}

impl Candidate {
    /// Raises the claim to this share of so many tokens, after which `depth` others were used.
    #[inline]
    pub(super) fn claim(&mut self, tokens: u32, (kept, depth): (f32, f64)) {
        let claimed = self.whole_blocks((f64::from(tokens) * f64::from(kept)) as u32);
        if claimed > self.claimed {
            (self.claimed, self.depth) = (claimed, depth);
        }
    }

    #[inline]
    pub(super) fn whole_blocks(&self, tokens: u32) -> u32 {
        tokens - tokens % self.block_tokens.max(1)
    }

    /// Tokens that a claim is worth here: 0 to `tokens`.
    #[inline]
    pub(in crate::routing) fn priced(&self, tokens: u32) -> u32 {
        (f64::from(tokens) * self.worth.clamp(0.0, 1.0)) as u32
    }
}
