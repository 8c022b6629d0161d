//! Which backends of a pool may have this request at all. Health and configuration decide here; load decides in the policy.
//! Never admits a drained backend or one that this request has tried.
//!
//! Hot path: one pass over the pool, writes into a buffer that the caller keeps; no allocation once it has grown.

use std::time::Duration;

use serde::Serialize;

use super::candidate::Candidate;
use super::decision::Scope;
use super::facts::{ArmIndex, RequestFacts};
use crate::clock::Time;
use crate::units::BackendId;

/// Out within so long of the one that is out longest counts as out for as long: probes that fail together are jittered, and
/// a pool in panic should not put all of its requests on one backend.
pub const PANIC_SPREAD: Duration = Duration::from_secs(5);

/// The standing of a backend: whether it takes requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// It does.
    In,
    /// It failed its probes.
    Out {
        /// Moment since which it is so.
        since: Time,
    },
    /// It is not what the config says it is.
    Misconfigured {
        /// Moment since which it is so.
        since: Time,
    },
    /// The operator lets it finish what it has.
    Drained,
}

/// A member of a pool as eligibility sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seat {
    /// The backend.
    pub id: BackendId,
    /// The arm that it belongs to.
    pub arm: ArmIndex,
    /// Its standing: whether it takes requests.
    pub standing: Standing,
}

/// Writes the places of the admitted backends to `admitted` (cleared first) and says by which rule; `None` if there are none.
///
/// The pinned backend alone if the request has one; else the assigned arm; else, where `cross_arm`, the others; else, if
/// everything within reach is out, those out longest. Full or backing off is not out: such an arm keeps its requests, or an
/// overload would void the comparison of arms.
pub fn admit(
    seats: &[Seat],
    facts: &RequestFacts,
    tried: &[BackendId],
    cross_arm: bool,
    admitted: &mut Vec<u16>,
) -> Option<Scope> {
    if let Some(pinned) = facts.pinned {
        // The state that it refers to is there or nowhere, so being out is no reason to ask nobody.
        fill(seats, admitted, |seat| {
            seat.id == pinned && seat.standing != Standing::Drained && !tried.contains(&seat.id)
        });
        return (!admitted.is_empty()).then_some(Scope::Pinned);
    }
    // A backend that failed this request is not tried again, even if its arm has no other.
    let free = |seat: &Seat| matches!(seat.standing, Standing::In) && !tried.contains(&seat.id);
    fill(seats, admitted, |seat| seat.arm == facts.arm && free(seat));
    if !admitted.is_empty() {
        return Some(Scope::Assigned);
    }
    if cross_arm {
        fill(seats, admitted, free);
        if !admitted.is_empty() {
            return Some(Scope::Crossed);
        }
    }
    panic_mode(seats, facts, tried, cross_arm, admitted)
}

fn fill(seats: &[Seat], admitted: &mut Vec<u16>, admits: impl Fn(&Seat) -> bool) {
    admitted.clear();
    admitted.extend((0_u16..).zip(seats).filter(|(_, seat)| admits(seat)).map(|(place, _)| place));
}

/// Every backend within reach is out: those out longest are tried rather than failing unseen, misconfigured ones last, since
/// they are known to refuse.
fn panic_mode(
    seats: &[Seat],
    facts: &RequestFacts,
    tried: &[BackendId],
    cross_arm: bool,
    admitted: &mut Vec<u16>,
) -> Option<Scope> {
    let reach = |seat: &Seat| cross_arm || seat.arm == facts.arm;
    // Some backend is in but was tried: the fleet is well, and it is this request that fails. It ends instead of
    // spreading.
    if seats.iter().any(|seat| reach(seat) && seat.standing == Standing::In) {
        return None;
    }
    let out_since = |seat: &Seat| match seat.standing {
        _ if !reach(seat) || tried.contains(&seat.id) => None,
        // An operator's drain holds in a panic too: that backend may be switched off at any moment.
        Standing::In | Standing::Drained => None,
        // Pairs compare by their first member, so that every misconfigured backend comes after every other one.
        Standing::Out { since } => Some((false, since)),
        Standing::Misconfigured { since } => Some((true, since)),
    };
    // Those that went out at about the same time share the requests; the longest out alone would get all of them.
    let (misconfigured, longest) = seats.iter().filter_map(out_since).min()?;
    fill(seats, admitted, |seat| {
        out_since(seat).is_some_and(|(kind, since)| kind == misconfigured && since <= longest + PANIC_SPREAD)
    });
    Some(Scope::Panic)
}

/// Drops the rows that back off, unless all do. Returns whether all do.
pub fn skip_backing_off(rows: &mut Vec<Candidate>) -> bool {
    if rows.iter().all(Candidate::backing_off) {
        return !rows.is_empty();
    }
    rows.retain(|row| !row.backing_off());
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::routing::affinity::Marks;
    use crate::routing::facts::Kind;

    fn facts(arm: u16) -> RequestFacts {
        RequestFacts {
            est_tokens: 100,
            sequences: 1,
            kind: Kind::Stream,
            arm: ArmIndex(arm),
            pinned: None,
            marks: Marks::NONE,
        }
    }

    fn seat(id: u32, arm: u16, standing: Standing) -> Seat {
        Seat { id: BackendId(id), arm: ArmIndex(arm), standing }
    }

    fn out(seconds: u64) -> Standing {
        Standing::Out { since: Time::from_micros(seconds * 1_000_000) }
    }

    fn admitted(seats: &[Seat], facts: &RequestFacts, tried: &[u32], cross: bool) -> (Option<Scope>, Vec<u32>) {
        let tried: Vec<BackendId> = tried.iter().copied().map(BackendId).collect();
        let mut places = vec![7; 3];
        let scope = admit(seats, facts, &tried, cross, &mut places);
        (scope, places.iter().map(|&place| seats[usize::from(place)].id.0).collect())
    }

    #[test]
    fn the_assigned_arm_comes_first_and_others_only_when_it_has_none() {
        let seats = [seat(0, 0, Standing::In), seat(1, 0, Standing::In), seat(2, 1, Standing::In)];
        assert_eq!(admitted(&seats, &facts(0), &[], true), (Some(Scope::Assigned), vec![0, 1]));
        assert_eq!(admitted(&seats, &facts(0), &[0], true), (Some(Scope::Assigned), vec![1]));
        assert_eq!(admitted(&seats, &facts(0), &[0, 1], true), (Some(Scope::Crossed), vec![2]));
        assert_eq!(admitted(&seats, &facts(0), &[0, 1], false), (None, vec![]));
        assert_eq!(admitted(&seats, &facts(0), &[0, 1, 2], true), (None, vec![]));
    }

    #[test]
    fn ejected_misconfigured_and_drained_backends_get_nothing_while_another_is_in() {
        let misconfigured = Standing::Misconfigured { since: Time::ZERO };
        let seats =
            [seat(0, 0, out(1)), seat(1, 0, misconfigured), seat(2, 0, Standing::Drained), seat(3, 0, Standing::In)];
        assert_eq!(admitted(&seats, &facts(0), &[], true), (Some(Scope::Assigned), vec![3]));
        assert_eq!(admitted(&seats, &facts(0), &[3], true), (None, vec![]), "no panic while one is in");
    }

    #[test]
    fn a_pool_that_is_all_out_tries_those_out_longest_each_once_and_never_a_drained_one() {
        let misconfigured = Standing::Misconfigured { since: Time::ZERO };
        let seats = [
            seat(0, 0, out(100)),
            seat(1, 1, out(20)),
            seat(2, 0, Standing::Drained),
            seat(3, 0, misconfigured),
            seat(4, 0, out(23)),
        ];
        assert_eq!(admitted(&seats, &facts(0), &[], true), (Some(Scope::Panic), vec![1, 4]));
        assert_eq!(admitted(&seats, &facts(0), &[1, 4], true), (Some(Scope::Panic), vec![0]));
        assert_eq!(admitted(&seats, &facts(0), &[0, 1, 4], true), (Some(Scope::Panic), vec![3]));
        assert_eq!(admitted(&seats, &facts(0), &[0, 1, 3, 4], true), (None, vec![]));
        assert_eq!(admitted(&[seat(2, 0, Standing::Drained)], &facts(0), &[], true), (None, vec![]));
    }

    #[test]
    fn without_crossing_an_arm_that_is_all_out_panics_alone() {
        let seats = [seat(0, 0, out(1)), seat(1, 1, Standing::In)];
        assert_eq!(admitted(&seats, &facts(0), &[], false), (Some(Scope::Panic), vec![0]));
        assert_eq!(admitted(&seats, &facts(0), &[], true), (Some(Scope::Crossed), vec![1]));
    }

    #[test]
    fn a_pinned_request_goes_to_its_backend_or_nowhere() {
        let seats = [seat(0, 0, Standing::In), seat(1, 1, out(3)), seat(2, 1, Standing::Drained)];
        let pinned = |id| RequestFacts { pinned: Some(BackendId(id)), ..facts(0) };
        assert_eq!(admitted(&seats, &pinned(1), &[], false), (Some(Scope::Pinned), vec![1]));
        assert_eq!(admitted(&seats, &pinned(1), &[1], true), (None, vec![]));
        assert_eq!(admitted(&seats, &pinned(2), &[], true), (None, vec![]));
        assert_eq!(admitted(&seats, &pinned(9), &[], true), (None, vec![]));
    }

    #[test]
    fn a_backend_that_backs_off_is_skipped_unless_all_do() {
        let open = |id| Candidate { open_for: Duration::from_secs(1), ..Candidate::idle(BackendId(id), 0) };
        let mut rows = vec![open(0), Candidate::idle(BackendId(1), 1)];
        assert!(!skip_backing_off(&mut rows));
        assert_eq!(rows.iter().map(|row| row.id.0).collect::<Vec<_>>(), [1]);
        let mut all = vec![open(0), open(1)];
        assert!(skip_backing_off(&mut all));
        assert_eq!(all.len(), 2);
    }
}
