//! What a replica presumes of a prompt that it has not seen: another replica may have, and would have sent it to the same place.
//! Rendezvous hashing gives that place, the prompt's home (Thaler and Ravishankar, "A Name-Based Mapping Scheme for Rendezvous", 1996):
//! each backend draws a number from its identity and the hash of the first part of the prompt that is not known here, and the
//! highest draw wins. Replicas with the same `split_salt` draw the same numbers, so they agree without a word.
//!
//! Elsewhere than at home the request is presumed to do work that home need not do. That is the redundancy of the score, so a
//! presumption yields to load as a claim does, and it changes neither a predicted TTFT nor what is learned from it.
//!
//! Hot path: a few operations for each backend, and only where there are replicas and some part of the prompt is new.

use crate::routing::candidate::Candidate;
use crate::units::BackendId;

/// Requests over which a replica goes from presuming that everything comes again to what it has seen come again.
const PATIENCE: f64 = 200.0;

/// The presumption, and the identities of the backends that it goes by.
#[derive(Debug, Default)]
pub(super) struct Prior {
    /// 0 and 1: alone, and nothing is presumed.
    replicas: u32,
    /// By slot.
    identities: Vec<(BackendId, u64)>,
    /// Requests sent so far.
    sent: f64,
}

impl Prior {
    pub(super) fn set_replicas(&mut self, replicas: u32) {
        self.replicas = replicas;
    }

    pub(super) fn identify(&mut self, slot: usize, backend: BackendId, identity: u64) {
        if self.identities.len() <= slot {
            self.identities.resize(slot + 1, (BackendId(u32::MAX), 0));
        }
        self.identities[slot] = (backend, identity);
    }

    pub(super) fn count(&mut self) {
        self.sent += 1.0;
    }

    /// Presumes that the home of `key` has what nobody is known to have of a prompt of so many tokens. `reuse` is the share of prompt
    /// tokens that this replica has seen come again, 0 to 1. Returns whether a row was written to.
    pub(super) fn expect(
        &self,
        key: u64,
        tokens: u32,
        reuse: f64,
        rows: &mut [Candidate],
        row_of: impl Fn(u16) -> usize,
    ) -> bool {
        if self.replicas <= 1 {
            return false;
        }
        let mut home: Option<(u64, usize)> = None;
        for (slot, &(backend, identity)) in (0_u16..).zip(&self.identities) {
            let row = row_of(slot);
            // A slot whose backend may not have the request has no row, or another backend's.
            if rows.get(row).is_some_and(|row| row.id == backend) {
                home = home.max(Some((draw(key, identity), row)));
            }
        }
        let Some((_, home)) = home else { return false };
        let known = rows.iter().map(|row| row.matched).max().unwrap_or(0);
        // With N replicas it was another one, with this chance, that saw the prompt before.
        let elsewhere = 1.0 - 1.0 / f64::from(self.replicas);
        let again = reuse.max(PATIENCE / (PATIENCE + self.sent));
        let presumed = (elsewhere * again * f64::from(tokens.saturating_sub(known))) as u32;
        for (index, row) in rows.iter_mut().enumerate() {
            if index != home {
                row.redundant += presumed;
            }
        }
        true
    }
}

/// Returns a backend's draw for a key: both are hashes already, and the product's halves mix them.
#[inline]
fn draw(key: u64, identity: u64) -> u64 {
    let product = u128::from(key ^ 0x9E37_79B9_7F4A_7C15) * u128::from(identity | 1);
    let mixed = (product >> 64) as u64 ^ product as u64;
    mixed.wrapping_mul(0xD6E8_FEB8_6659_FD93) ^ (mixed >> 32)
}
