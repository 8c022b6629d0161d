//! Which arm a session belongs to: by share, sticky, the same in every replica of the proxy. A change of shares moves only
//! the sessions that it must.
//!
//! Weighted rendezvous: each arm draws an exponential time with its share as the rate, from a salted SHA-256 of session and
//! arm *name*; the earliest wins. The order and number of the arms do not matter, and an arm's draw does not depend on the
//! others, so a session moves only to an arm whose share grew or from one whose share shrank.
//!
//! Hot path: one SHA-256 of a short text for each arm, where there are several; no allocation.

use std::fmt;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::facts::ArmIndex;

/// The split of one pool's sessions over its arms.
#[derive(Clone, Debug)]
pub struct Split {
    salted: Sha256,
    arms: Vec<Share>,
    total: f64,
    /// The one arm that takes everything, where it is so.
    single: Option<ArmIndex>,
}

#[derive(Clone, Debug)]
struct Share {
    name: String,
    share: f64,
}

impl Split {
    /// A split by `shares` (name, weight). Weights need not sum to anything; one that is not positive gets no session, and if
    /// none is, the first arm takes all.
    #[must_use]
    pub fn new(salt: &str, shares: impl IntoIterator<Item = (String, f64)>) -> Split {
        let arms: Vec<Share> = shares
            .into_iter()
            .map(|(name, share)| Share { name, share: if share.is_finite() { share.max(0.0) } else { 0.0 } })
            .collect();
        // One arm with a share needs no hash, and a pool without arms has just that.
        let mut served = (0_u16..).zip(&arms).filter(|(_, arm)| arm.share > 0.0).map(|(place, _)| ArmIndex(place));
        let single = match (served.next(), served.next()) {
            (None, _) => Some(ArmIndex(0)),
            (one, None) => one,
            _ => None,
        };
        let total = arms.iter().map(|arm| arm.share).sum();
        Split { salted: salted(salt), arms, total, single }
    }

    /// The arm of this session; of a request without one, an arm drawn by share.
    #[must_use]
    pub fn assign(&self, session: Option<&str>, rng: &mut fastrand::Rng) -> ArmIndex {
        match (self.single, session) {
            (Some(arm), _) => arm,
            (None, Some(session)) => self.of_session(&self.hashed(session)),
            (None, None) => self.drawn(rng),
        }
    }

    /// The session as it is kept: its hash under this split's salt.
    #[must_use]
    pub fn session(&self, session: &str) -> Session {
        Session(Arc::new(self.hashed(session)))
    }

    /// Returns the arm of a session that was kept; of a request without one, an arm drawn by share.
    #[must_use]
    pub fn assign_kept(&self, session: Option<&Session>, rng: &mut fastrand::Rng) -> ArmIndex {
        match (self.single, session) {
            (Some(arm), _) => arm,
            (None, Some(session)) => self.of_session(&session.0),
            (None, None) => self.drawn(rng),
        }
    }

    fn hashed(&self, session: &str) -> Sha256 {
        // The length goes first, or a session and an arm's name could read like another pair of them.
        self.salted.clone().chain_update((session.len() as u64).to_le_bytes()).chain_update(session)
    }

    fn of_session(&self, keyed: &Sha256) -> ArmIndex {
        let mut earliest = (f64::INFINITY, ArmIndex(0));
        for (place, arm) in (0_u16..).zip(&self.arms).filter(|(_, arm)| arm.share > 0.0) {
            // An exponential time for each arm, and the earliest wins: an arm wins in proportion to its share. A
            // changed share moves only the sessions that it has to. A point on a circle of ranges would move others
            // as well.
            let time = -unit(keyed.clone().chain_update(&arm.name)).ln() / arm.share;
            if time < earliest.0 {
                earliest = (time, ArmIndex(place));
            }
        }
        earliest.1
    }

    fn drawn(&self, rng: &mut fastrand::Rng) -> ArmIndex {
        let mut left = rng.f64() * self.total;
        let mut last = ArmIndex(0);
        for (place, arm) in (0_u16..).zip(&self.arms).filter(|(_, arm)| arm.share > 0.0) {
            // Rounding may leave a rest after the last arm, which then has it.
            last = ArmIndex(place);
            left -= arm.share;
            if left < 0.0 {
                break;
            }
        }
        last
    }
}

/// A session as it is kept for as long as its request lasts: a keyed hash, the same after a restart and in every replica with
/// the same `split_salt`. Clients choose sessions, so these may be long, and may be names.
#[derive(Clone)]
pub struct Session(Arc<Sha256>);

impl fmt::Display for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digest = Sha256::clone(&self.0).finalize();
        digest[..8].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Session({self})")
    }
}

/// Length before text, so that no salt and session together read like another salt and session.
fn salted(salt: &str) -> Sha256 {
    Sha256::new().chain_update((salt.len() as u64).to_le_bytes()).chain_update(salt)
}

/// A number strictly between 0 and 1 from the first 53 bits of the hash.
fn unit(hash: Sha256) -> f64 {
    let digest = hash.finalize();
    let mut first = [0_u8; 8];
    first.copy_from_slice(&digest[..8]);
    // Half a step up, since the logarithm of zero is infinite.
    ((u64::from_be_bytes(first) >> 11) as f64 + 0.5) / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const SESSIONS: u32 = 100_000;

    fn split(salt: &str, shares: &[(&str, f64)]) -> Split {
        Split::new(salt, shares.iter().map(|&(name, share)| (name.to_owned(), share)))
    }

    fn arms(split: &Split) -> Vec<u16> {
        let mut rng = fastrand::Rng::with_seed(1);
        (0..SESSIONS).map(|id| split.assign(Some(&format!("session-{id}")), &mut rng).0).collect()
    }

    fn share(arms: &[u16], arm: u16) -> f64 {
        arms.iter().filter(|&&seen| seen == arm).count() as f64 / arms.len() as f64
    }

    #[test]
    fn a_session_keeps_its_arm_and_another_salt_splits_anew() {
        let (one, other) = (arms(&split("a", &[("x", 1.0), ("y", 1.0)])), arms(&split("b", &[("x", 1.0), ("y", 1.0)])));
        assert_eq!(one, arms(&split("a", &[("x", 50.0), ("y", 50.0)])), "only the proportion of shares counts");
        let same = one.iter().zip(&other).filter(|(a, b)| a == b).count() as f64 / f64::from(SESSIONS);
        assert!((same - 0.5).abs() < 0.01, "{same}");
    }

    #[test]
    fn a_session_that_was_kept_has_the_same_arm_and_is_the_same_in_every_replica() {
        let mut rng = fastrand::Rng::with_seed(1);
        let shares = [("x", 1.0), ("y", 1.0)];
        let (one, replica, other) = (split("a", &shares), split("a", &shares), split("b", &shares));
        for id in 0..100 {
            let session = format!("session-{id}");
            let kept = one.session(&session);
            assert_eq!(one.assign_kept(Some(&kept), &mut rng), one.assign(Some(&session), &mut rng));
            assert_eq!(kept.to_string(), replica.session(&session).to_string());
            assert_ne!(kept.to_string(), other.session(&session).to_string());
        }
        assert_eq!(one.session("session-1").to_string(), "e8f58d5c9d0329a9");
    }

    #[test]
    fn shares_are_met_within_a_point_with_and_without_sessions() {
        let split = split("", &[("a", 10.0), ("b", 30.0), ("c", 60.0)]);
        let mut rng = fastrand::Rng::with_seed(7);
        let drawn: Vec<u16> = (0..SESSIONS).map(|_| split.assign(None, &mut rng).0).collect();
        for seen in [arms(&split), drawn] {
            for (arm, want) in [(0, 0.1), (1, 0.3), (2, 0.6)] {
                assert!((share(&seen, arm) - want).abs() < 0.01, "arm {arm}: {}", share(&seen, arm));
            }
        }
    }

    #[test]
    fn a_change_of_shares_moves_only_what_it_must() {
        let before = arms(&split("", &[("a", 50.0), ("b", 50.0)]));
        let after = arms(&split("", &[("a", 60.0), ("b", 40.0)]));
        let moved: Vec<_> = before.iter().zip(&after).filter(|(a, b)| a != b).collect();
        assert!(moved.iter().all(|&(&from, &to)| (from, to) == (1, 0)), "only towards the arm that grew");
        assert!((moved.len() as f64 / f64::from(SESSIONS) - 0.1).abs() < 0.01);
    }

    #[test]
    fn a_new_arm_takes_its_share_and_moves_nothing_between_the_others() {
        let before = arms(&split("", &[("a", 1.0), ("b", 1.0)]));
        let after = arms(&split("", &[("new", 2.0), ("a", 1.0), ("b", 1.0)]));
        assert!(before.iter().zip(&after).all(|(&from, &to)| to == 0 || to == from + 1));
        assert!((share(&after, 0) - 0.5).abs() < 0.01);
    }

    #[test]
    fn an_arm_without_a_share_gets_no_session() {
        let split = split("", &[("off", 0.0), ("on", 3.0), ("broken", f64::NAN)]);
        let mut rng = fastrand::Rng::with_seed(3);
        assert!((0..100).all(|id| split.assign(Some(&id.to_string()), &mut rng) == ArmIndex(1)));
        assert!((0..100).all(|_| split.assign(None, &mut rng) == ArmIndex(1)));
    }
}
