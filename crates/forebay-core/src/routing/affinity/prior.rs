//! What a replica presumes of a prompt that it has not seen: another replica may have, and would have sent it to the same place.
//! Rendezvous hashing gives that place, the prompt's home (Thaler and Ravishankar, "A Name-Based Mapping Scheme for Rendezvous", 1996):
//! each backend draws a number from its identity and the hash of the first part of the prompt that is not known here, and the
//! highest draw wins. Replicas with the same `split_salt` draw the same numbers, so they agree without a word.
//!
//! Elsewhere than at home the request is presumed to do work that home need not do. That is the redundancy of the score, so a
//! presumption yields to load as a claim does, and it changes neither a predicted TTFT nor what is learned from it.
//!
//! A prefix that is known to be elsewhere is drawn home: the other replicas' requests went there. Without that, each replica returns for
//! good to where its first request happened to find room, and the copies evict one another.
//!
//! Hot path: a few operations for each backend, and only where there are replicas and some part of the prompt is new.

use crate::routing::candidate::Candidate;
use crate::routing::facts::RequestFacts;
use crate::units::BackendId;

/// Requests over which a replica goes from presuming that everything comes again to what it has seen come again.
const PATIENCE: f64 = 200.0;
/// Weight of a copy elsewhere, for each other replica, none of which would look for it there. Over sessions and shared prefixes
/// through four replicas half costs 15 to 25 % of P99 TTFT, and double up to 35 %.
const ASTRAY: f64 = 1.5;
/// Weight of a known copy elsewhere than at home. With 1 the home costs as much as the copy, and less with more. In a first
/// form of the rule, over shared prefixes through four replicas, 1 to 2.5 differed by less than 5 % of P99 TTFT.
const HOMEWARD: f64 = 1.5;

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

    /// Writes to the rows what other replicas would do with the prompt whose home is that of `key`. `reuse` is the share of prompt
    /// tokens that this replica has seen come again, 0 to 1. Returns whether a row was written to.
    pub(super) fn presume(
        &self,
        key: u64,
        facts: &RequestFacts,
        reuse: f64,
        rows: &mut [Candidate],
        row_of: impl Fn(u16) -> usize,
    ) -> bool {
        let Some(home) = self.home(key, rows, row_of) else { return false };
        // A session that is known has no key here. One that is not is more than the prefix that it begins with.
        if facts.marks.session.is_none() {
            self.gather(home, reuse, rows);
        }
        self.expect(home, facts.est_tokens, reuse, rows);
        true
    }

    /// Returns the row of the home of `key`, if any replica would look for it.
    fn home(&self, key: u64, rows: &[Candidate], row_of: impl Fn(u16) -> usize) -> Option<usize> {
        if self.replicas <= 1 {
            return None;
        }
        let mut home: Option<(u64, usize)> = None;
        for (slot, &(backend, identity)) in (0_u16..).zip(&self.identities) {
            let row = row_of(slot);
            // A slot whose backend may not have the request has no row, or another backend's.
            if rows.get(row).is_some_and(|row| row.id == backend) {
                home = home.max(Some((draw(key, identity), row)));
            }
        }
        home.map(|(_, row)| row)
    }

    /// Returns the expected share of prompt tokens that come again, of which this replica has seen `reuse`, 0 to 1.
    fn again(&self, reuse: f64) -> f64 {
        reuse.max(PATIENCE / (PATIENCE + self.sent))
    }

    /// Presumes that `home` has what nobody is known to have of a prompt of so many tokens. `reuse` is the share of prompt tokens that
    /// this replica has seen come again, 0 to 1.
    fn expect(&self, home: usize, tokens: u32, reuse: f64, rows: &mut [Candidate]) {
        let known = rows.iter().map(|row| row.matched).max().unwrap_or(0);
        let others = f64::from(self.replicas - 1);
        let presumed = (ASTRAY * others * self.again(reuse) * f64::from(tokens.saturating_sub(known))) as u32;
        for (index, row) in rows.iter_mut().enumerate() {
            if index != home {
                row.redundant = row.redundant.saturating_add(presumed);
            }
        }
    }

    /// Presumes that `home` also has what other backends are known to have: nothing is redundant there, and what
    /// another has beyond all of them is as if it were computed anew.
    fn gather(&self, home: usize, reuse: f64, rows: &mut [Candidate]) {
        let again = self.again(reuse);
        let common = rows.iter().map(|row| row.matched).min().unwrap_or(0);
        for (index, row) in rows.iter_mut().enumerate() {
            if index == home {
                row.redundant = (f64::from(row.redundant) * (1.0 - again)) as u32;
            } else {
                let pull = (HOMEWARD * again * f64::from(row.matched - common)) as u32;
                row.redundant = row.redundant.saturating_add(pull);
            }
        }
    }
}

/// Returns a backend's draw for a key: both are hashes already, and the product's halves mix them.
#[inline]
fn draw(key: u64, identity: u64) -> u64 {
    let product = u128::from(key ^ 0x9E37_79B9_7F4A_7C15) * u128::from(identity | 1);
    let mixed = (product >> 64) as u64 ^ product as u64;
    mixed.wrapping_mul(0xD6E8_FEB8_6659_FD93) ^ (mixed >> 32)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A replica that knows these backends, of which the first has its own number as identity.
    fn replica(backends: &[u32]) -> (Prior, Vec<Candidate>) {
        let mut prior = Prior::default();
        prior.set_replicas(4);
        let rows = backends.iter().enumerate().map(|(slot, &backend)| {
            // What a replica calls a backend is its own; the identity is everybody's.
            let id = BackendId(slot as u32 + 100);
            prior.identify(slot, id, u64::from(backend).wrapping_mul(0x2545_F491_4F6C_DD1D));
            Candidate::idle(id, slot as u16)
        });
        let rows = rows.collect();
        (prior, rows)
    }

    /// Presumes what nobody is known to have of this prompt at its home. Returns whether it has one.
    fn expect(prior: &Prior, tokens: u32, reuse: f64, (key, rows): (u64, &mut [Candidate])) -> bool {
        prior.home(key, rows, usize::from).is_some_and(|home| {
            prior.expect(home, tokens, reuse, rows);
            true
        })
    }

    /// The backend that this replica presumes to have the prompt.
    fn home(backends: &[u32], key: u64) -> u32 {
        let (prior, mut rows) = replica(backends);
        assert!(expect(&prior, 1_000, 0.0, (key, &mut rows)));
        let at: Vec<usize> = (0..rows.len()).filter(|&row| rows[row].redundant == 0).collect();
        assert_eq!(at.len(), 1, "{rows:?}");
        backends[at[0]]
    }

    fn keys() -> impl Iterator<Item = u64> {
        let mut rng = fastrand::Rng::with_seed(1);
        (0..2_000).map(move |_| rng.u64(..))
    }

    #[test]
    fn replicas_agree_whatever_order_they_learned_the_backends_in() {
        for key in keys() {
            assert_eq!(home(&[1, 2, 3, 4, 5], key), home(&[4, 2, 5, 1, 3], key));
        }
    }

    #[test]
    fn a_backend_that_leaves_moves_its_own_prompts_alone_and_each_has_its_share() {
        let mut counts = [0_u32; 6];
        for key in keys() {
            let before = home(&[1, 2, 3, 4, 5], key);
            counts[before as usize] += 1;
            if before != 3 {
                assert_eq!(home(&[1, 2, 4, 5], key), before);
            }
        }
        assert!(counts[1..].iter().all(|&count| (320..=480).contains(&count)), "{counts:?}");
    }

    #[test]
    fn a_proxy_that_is_alone_presumes_nothing_and_draws_nothing_home() {
        let (mut prior, rows) = replica(&[1, 2]);
        assert!(prior.home(7, &rows, usize::from).is_some());
        prior.set_replicas(1);
        assert_eq!(prior.home(7, &rows, usize::from), None);
    }

    #[test]
    fn the_presumption_goes_to_what_is_seen_to_come_again_and_covers_what_nobody_is_known_to_have() {
        let presumed = |sent: u32, reuse: f64, matched: u32| {
            let (mut prior, mut rows) = replica(&[1, 2]);
            (0..sent).for_each(|_| prior.count());
            rows[0].matched = matched;
            assert!(expect(&prior, 1_000, reuse, (7, &mut rows)));
            rows.iter().map(|row| row.redundant).max().unwrap_or(0)
        };
        assert_eq!(presumed(0, 0.0, 0), 4_500);
        assert!(presumed(20_000, 0.0, 0) < 50);
        assert_eq!(presumed(20_000, 0.5, 0), 2_250);
        assert_eq!(presumed(0, 0.0, 600), 1_800);
        assert_eq!(presumed(0, 0.0, 1_000), 0);
    }

    /// The tokens redundant at home and at the other backend, of which this many tokens are known to be in the caches.
    fn gathered(home: u32, other: u32, reuse: f64) -> (u32, u32) {
        let (mut prior, mut rows) = replica(&[1, 2]);
        (0..20_000).for_each(|_| prior.count());
        let at = prior.home(7, &rows, usize::from).unwrap();
        (rows[at].matched, rows[1 - at].matched) = (home, other);
        crate::routing::affinity::compare(&mut rows);
        prior.gather(at, reuse, &mut rows);
        (rows[at].redundant, rows[1 - at].redundant)
    }

    #[test]
    fn a_known_prefix_is_drawn_home_as_far_as_prompts_come_again() {
        assert_eq!(gathered(0, 1_000, 1.0), (0, 1_500));
        assert_eq!(gathered(0, 1_000, 0.5), (500, 750));
        assert_eq!(gathered(1_000, 0, 1.0), (0, 1_000), "what is at home already stays there");
        assert_eq!(gathered(600, 1_000, 1.0), (0, 600), "beyond what all have");
        assert_eq!(gathered(1_000, 1_000, 1.0), (0, 0), "everywhere");
    }
}
