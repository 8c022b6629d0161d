//! The order in which requests wait for a backend with room: clients (by key) of the highest priority first, those of one priority
//! in turn, the sessions of a client in turn, first come first served within a session. So a client gains nothing by naming new
//! sessions. Bounded: a full room gives up the last of the longest line to one that has less, so that a noisy client or session can
//! neither starve the others of its priority nor keep them out. Knows nothing of backends: whether a waiter can be served is its
//! caller's to say.
//!
//! Hot path: none. Nothing here runs while no request waits.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};

/// Returns whether a backend with `in_flight` sequences may have `sequences` more. What never reaches the engine always may; what is
/// larger than the limit may if it has the backend for itself, or it would wait for ever.
#[must_use]
#[inline]
pub fn fits(in_flight: u32, sequences: u32, limit: u32) -> bool {
    sequences == 0 || in_flight == 0 || in_flight.saturating_add(sequences) <= limit
}

/// The rank of a client among those that wait: a higher one is served first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
pub struct Priority(pub u8);

impl Default for Priority {
    /// In the middle, so that there is room above and below.
    fn default() -> Priority {
        Priority(50)
    }
}

/// The key of a lane, whose requests take turns with those of other lanes. Two that collide share their turns, no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LaneKey {
    client: ClientKey,
    session: u64,
}

/// The key of a client. Another priority makes another client, so that those of its requests that wait keep theirs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct ClientKey {
    priority: Priority,
    name: u64,
}

/// The turn of a client: the first is served next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Turn {
    priority: Reverse<Priority>,
    number: u64,
}

impl LaneKey {
    /// The lane of a session of a client. Without keys all are one client; requests without a session share a lane of their client.
    #[must_use]
    pub fn of(session: Option<&str>, client: Option<&str>) -> LaneKey {
        // Only a hash is kept: clients choose these texts, which may be long.
        let hash = |name: Option<&str>| {
            let mut hasher = DefaultHasher::new();
            name.hash(&mut hasher);
            hasher.finish()
        };
        let client = ClientKey { priority: Priority::default(), name: hash(client) };
        LaneKey { client, session: hash(session) }
    }

    /// Returns the lane with this priority of its client.
    #[must_use]
    pub fn ranked(self, priority: Priority) -> LaneKey {
        LaneKey { client: ClientKey { priority, ..self.client }, ..self }
    }
}

/// The place of a waiter, for when it leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    lane: LaneKey,
    number: i64,
}

/// The verdict on one waiter on a round through the room.
#[derive(Debug)]
pub enum Step<R> {
    /// It is served, and leaves with this.
    Serve(R),
    /// It stays, and the next is looked at.
    Pass,
    /// There is nothing for any of those behind it.
    Stop,
}

/// The standing of a newcomer.
#[derive(Debug, PartialEq, Eq)]
pub enum Entered<T> {
    /// It waits; one of a longer line may have had to leave for it.
    At(Place, Option<T>),
    /// The room is full, and no line is longer than its own.
    Full(T),
}

/// The waiters.
#[derive(Debug)]
pub struct WaitRoom<T> {
    clients: HashMap<ClientKey, Client<T>>,
    /// The clients by turn: the first is served next.
    turns: BTreeMap<Turn, ClientKey>,
    next_turn: u64,
    /// Numbers rise within a lane: those that wait again get falling ones, and so stand in front.
    next_back: i64,
    next_front: i64,
    len: usize,
}

#[derive(Debug)]
struct Client<T> {
    turn: Turn,
    lanes: HashMap<u64, Lane<T>>,
    /// The lanes by turn.
    turns: BTreeMap<u64, u64>,
    /// Lanes with an earlier turn were passed on this round.
    from: u64,
    len: usize,
}

#[derive(Debug)]
struct Lane<T> {
    turn: u64,
    line: VecDeque<(i64, T)>,
}

impl<T> Default for WaitRoom<T> {
    fn default() -> WaitRoom<T> {
        WaitRoom { clients: HashMap::new(), turns: BTreeMap::new(), next_turn: 0, next_back: 0, next_front: -1, len: 0 }
    }
}

impl<T> WaitRoom<T> {
    /// Nobody waits.
    #[must_use]
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns how many wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Lanes with a waiter in them.
    #[must_use]
    pub fn lanes(&self) -> usize {
        self.clients.values().map(|client| client.lanes.len()).sum()
    }

    /// The waiters, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        let lanes = self.clients.values().flat_map(|client| client.lanes.values());
        lanes.flat_map(|lane| lane.line.iter().map(|(_, waiter)| waiter))
    }

    /// Returns all that wait, in order, to be changed.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        let lanes = self.clients.values_mut().flat_map(|client| client.lanes.values_mut());
        lanes.flat_map(|lane| lane.line.iter_mut().map(|(_, waiter)| waiter))
    }

    /// A newcomer joins the end of its lane in a room of `size`; one that waited before (`again`) its front.
    pub fn enter(&mut self, lane: LaneKey, waiter: T, again: bool, size: usize) -> Entered<T> {
        // A room of no size is the way to say that nobody shall wait.
        let mut displaced = None;
        if size == 0 {
            return Entered::Full(waiter);
        }
        if self.len >= size {
            match self.last_of_a_lower_or_longer_line(lane) {
                Some(place) => displaced = self.leave(place),
                None => return Entered::Full(waiter),
            }
        }
        let client = self.clients.entry(lane.client).or_insert_with(|| {
            // Behind all that wait: a client gains no earlier turn by leaving and coming back.
            let turn = Turn { priority: Reverse(lane.client.priority), number: next(&mut self.next_turn) };
            self.turns.insert(turn, lane.client);
            Client { turn, lanes: HashMap::new(), turns: BTreeMap::new(), from: 0, len: 0 }
        });
        let entry = client.lanes.entry(lane.session).or_insert_with(|| {
            let turn = next(&mut self.next_turn);
            client.turns.insert(turn, lane.session);
            Lane { turn, line: VecDeque::new() }
        });
        let number = if again {
            // Numbers in a line only grow towards its back, so that a waiter is found by bisection. The front goes
            // below zero.
            self.next_front -= 1;
            entry.line.push_front((self.next_front, waiter));
            self.next_front
        } else {
            self.next_back += 1;
            entry.line.push_back((self.next_back, waiter));
            self.next_back
        };
        client.len += 1;
        self.len += 1;
        Entered::At(Place { lane, number }, displaced)
    }

    /// The place that a newcomer to a full room takes over. Of clients of a lower priority, the longest lane of the lowest gives up its
    /// last place. Else the client of the newcomer's priority with most waiters does, if it has over one more than the newcomer's; else
    /// the longest lane of the newcomer's own client, on the same terms: what the newcomer's line gains, no other must then have less
    /// than.
    fn last_of_a_lower_or_longer_line(&self, newcomer: LaneKey) -> Option<Place> {
        // Ties go by turn, not by the order of the map: of equals, the one that would be served last gives up a place.
        let by_length = |(_, client): &(&ClientKey, &Client<T>)| (client.len, client.turn);
        let priority = newcomer.client.priority;
        // The last turn is one of the lowest priority that waits.
        let lowest = self.turns.last_key_value().map(|(turn, _)| turn.priority.0)?;
        if lowest < priority {
            let (key, most) = self.clients.iter().filter(|(key, _)| key.priority == lowest).max_by_key(by_length)?;
            return most.last_place(*key, 0);
        }
        let own = self.clients.get(&newcomer.client);
        let (key, most) = self.clients.iter().filter(|(key, _)| key.priority == priority).max_by_key(by_length)?;
        if most.len > own.map_or(0, |client| client.len) + 1 {
            return most.last_place(*key, 0);
        }
        // No other client has enough more, so the newcomer's own one makes room by its longest lane, or not at all.
        let own = own?;
        let lane = own.lanes.get(&newcomer.session).map_or(0, |lane| lane.line.len());
        own.last_place(newcomer.client, lane + 1)
    }

    /// A waiter leaves unserved; `None` if it is not there any more.
    pub fn leave(&mut self, place: Place) -> Option<T> {
        let client = self.clients.get_mut(&place.lane.client)?;
        let lane = client.lanes.get_mut(&place.lane.session)?;
        let at = lane.line.binary_search_by_key(&place.number, |(number, _)| *number).ok()?;
        let (_, waiter) = lane.line.remove(at)?;
        self.len -= 1;
        client.len -= 1;
        // A lane and its turn go together: `serve` relies on a lane behind every turn.
        if lane.line.is_empty() {
            client.turns.remove(&lane.turn);
            client.lanes.remove(&place.lane.session);
        }
        if client.len == 0 {
            self.turns.remove(&client.turn);
            self.clients.remove(&place.lane.client);
        }
        Some(waiter)
    }

    /// Goes through the waiters in the order in which they are to be served, until `look` says stop or all were passed. A client
    /// that was served goes behind all others, and its lane behind its other lanes. Those served come back with what they were
    /// served with.
    pub fn serve<R>(&mut self, mut look: impl FnMut(&mut T) -> Step<R>) -> Vec<(T, R)> {
        let mut served = Vec::new();
        let mut from = Turn { priority: Reverse(Priority(u8::MAX)), number: 0 };
        // A lane that was passed is not looked at again in a round, however often its client's turn comes.
        for client in self.clients.values_mut() {
            client.from = 0;
        }
        while let Some((&turn, &key)) = self.turns.range(from..).next() {
            // A served lane gets a turn behind all others of its priority, which is past this point too: it is looked at
            // again in the same round.
            from = Turn { number: turn.number + 1, ..turn };
            let client = self.clients.get_mut(&key).expect("a turn is removed with its client");
            match client.serve_one(&mut look, &mut self.next_turn) {
                Step::Serve(one) => served.push(one),
                Step::Pass => continue,
                Step::Stop => return served,
            }
            self.len -= 1;
            self.turns.remove(&turn);
            if client.len == 0 {
                self.clients.remove(&key);
            } else {
                client.turn = Turn { number: next(&mut self.next_turn), ..turn };
                self.turns.insert(client.turn, key);
            }
        }
        served
    }
}

impl<T> Client<T> {
    /// The last place of the longest lane, if that is longer than `over`.
    fn last_place(&self, client: ClientKey, over: usize) -> Option<Place> {
        let (session, longest) = self.lanes.iter().max_by_key(|(_, lane)| (lane.line.len(), lane.turn))?;
        let (number, _) = longest.line.back().filter(|_| longest.line.len() > over)?;
        Some(Place { lane: LaneKey { client, session: *session }, number: *number })
    }

    /// Serves the first that `look` serves, lane by lane.
    fn serve_one<R>(&mut self, look: &mut impl FnMut(&mut T) -> Step<R>, next_turn: &mut u64) -> Step<(T, R)> {
        while let Some((&turn, &key)) = self.turns.range(self.from..).next() {
            self.from = turn + 1;
            let lane = self.lanes.get_mut(&key).expect("a turn is removed with its lane");
            let mut found = None;
            for (at, (_, waiter)) in lane.line.iter_mut().enumerate() {
                match look(waiter) {
                    Step::Serve(with) => {
                        found = Some((at, with));
                        break;
                    }
                    // Passed, not stopped: what the first cannot have, a smaller request behind it may.
                    Step::Pass => {}
                    Step::Stop => return Step::Stop,
                }
            }
            let Some((at, with)) = found else { continue };
            let (_, waiter) = lane.line.remove(at).expect("it was just looked at");
            self.len -= 1;
            self.turns.remove(&turn);
            if lane.line.is_empty() {
                self.lanes.remove(&key);
            } else {
                lane.turn = next(next_turn);
                self.turns.insert(lane.turn, key);
            }
            return Step::Serve((waiter, with));
        }
        Step::Pass
    }
}

/// Counts up.
fn next(turn: &mut u64) -> u64 {
    *turn += 1;
    *turn - 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn lane(session: &str) -> LaneKey {
        LaneKey::of(Some(session), None)
    }

    fn room(waiters: &[(&str, u32)]) -> WaitRoom<u32> {
        let mut room = WaitRoom::default();
        for &(session, id) in waiters {
            assert!(matches!(room.enter(lane(session), id, false, usize::MAX), Entered::At(_, None)));
        }
        room
    }

    fn serve(room: &mut WaitRoom<u32>, count: usize) -> Vec<u32> {
        let mut left = count;
        let served = room.serve(|_| {
            if left == 0 {
                return Step::Stop;
            }
            left -= 1;
            Step::Serve(())
        });
        served.into_iter().map(|(id, ())| id).collect()
    }

    #[test]
    fn lanes_take_turns_and_within_one_the_first_is_first() {
        let mut room = room(&[("noisy", 1), ("noisy", 2), ("noisy", 3), ("quiet", 10), ("calm", 20), ("quiet", 11)]);
        assert_eq!(serve(&mut room, 1), [1]);
        assert_eq!(serve(&mut room, 4), [10, 20, 2, 11], "also from one round to the next");
        assert_eq!((room.len(), room.lanes()), (1, 1));
        assert_eq!(serve(&mut room, 9), [3]);
        assert!(room.is_empty() && room.turns.is_empty());
    }

    #[test]
    fn who_cannot_be_served_holds_up_nobody_and_keeps_its_turn() {
        let mut room = room(&[("a", 1), ("a", 2), ("b", 10)]);
        let mut budget = 1;
        let served = room.serve(|id| {
            if *id == 1 || budget == 0 {
                return Step::Pass;
            }
            budget -= 1;
            Step::Serve(())
        });
        assert_eq!(served, [(2, ())]);
        assert_eq!(serve(&mut room, 2), [10, 1]);
    }

    #[test]
    fn who_waits_again_stands_in_front_of_its_lane() {
        let mut room = room(&[("a", 1), ("a", 2), ("b", 10)]);
        for id in [5, 6] {
            assert!(matches!(room.enter(lane("a"), id, true, 99), Entered::At(_, None)));
        }
        assert_eq!(serve(&mut room, 9), [6, 10, 5, 1, 2]);
    }

    #[test]
    fn a_full_room_makes_place_for_a_lane_that_has_less() {
        let mut room = room(&[("noisy", 1), ("noisy", 2), ("noisy", 3)]);
        assert_eq!(room.enter(lane("noisy"), 4, false, 3), Entered::Full(4));
        let Entered::At(_, displaced) = room.enter(lane("quiet"), 10, false, 3) else { panic!("no place") };
        assert_eq!(displaced, Some(3), "the last of the longest lane");
        assert_eq!(room.enter(lane("quiet"), 11, false, 3), Entered::Full(11), "two to one is as even as it gets");
        assert_eq!(room.enter(lane("calm"), 20, false, 0), Entered::Full(20), "unless there is no room at all");
        assert_eq!(serve(&mut room, 9), [1, 10, 2]);
    }

    #[test]
    fn a_place_is_left_once() {
        let mut room = WaitRoom::default();
        let Entered::At(place, _) = room.enter(lane("a"), 1, false, 9) else { panic!("no place") };
        assert_eq!((room.leave(place), room.leave(place)), (Some(1), None));
        assert!(room.clients.is_empty() && room.turns.is_empty());
    }

    #[test]
    fn a_limit_lets_no_more_in_but_one_that_is_larger_alone() {
        assert!(fits(3, 1, 4) && !fits(4, 1, 4) && !fits(3, 2, 4));
        assert!(fits(0, 9, 4) && !fits(1, 9, 4));
        assert!(fits(u32::MAX, 0, 1) && !fits(u32::MAX, 2, 1));
    }

    #[test]
    fn a_session_and_a_key_of_one_name_are_two_lanes() {
        assert_ne!(LaneKey::of(Some("x"), None), LaneKey::of(None, Some("x")));
        assert_ne!(LaneKey::of(Some("x"), Some("a")), LaneKey::of(Some("x"), Some("b")));
    }

    #[test]
    fn a_client_with_many_sessions_has_no_more_turns_than_another() {
        let of = |session: &str, client: &str| LaneKey::of(Some(session), Some(client));
        let mut room = WaitRoom::default();
        for id in 0..6 {
            _ = room.enter(of(&id.to_string(), "many"), id, false, 99);
        }
        _ = room.enter(of("x", "one"), 10, false, 99);
        _ = room.enter(of("x", "one"), 11, false, 99);
        _ = room.enter(LaneKey::of(None, Some("two")), 20, false, 99);
        assert_eq!(serve(&mut room, 9), [0, 10, 20, 1, 11, 2, 3, 4, 5]);
        for id in 0..4 {
            _ = room.enter(of(&id.to_string(), "many"), id, false, 4);
        }
        let Entered::At(_, displaced) = room.enter(of("x", "one"), 10, false, 4) else { panic!("no place") };
        assert_eq!(displaced, Some(3), "the last lane of the client with most waiters");
    }

    #[test]
    fn a_higher_priority_is_served_first_and_within_one_all_take_turns() {
        let of = |client: &str, priority: u8| LaneKey::of(None, Some(client)).ranked(Priority(priority));
        let mut room = WaitRoom::default();
        for (client, priority, id) in
            [("low", 10, 1), ("mid", 50, 2), ("mid", 50, 3), ("other", 50, 4), ("high", 90, 5), ("high", 90, 6)]
        {
            assert!(matches!(room.enter(of(client, priority), id, false, 99), Entered::At(_, None)));
        }
        assert_eq!(serve(&mut room, 2), [5, 6]);
        // One that comes later goes before all of a lower priority, and those that wait keep their turns.
        assert!(matches!(room.enter(of("high", 90), 7, false, 99), Entered::At(_, None)));
        assert_eq!(serve(&mut room, 9), [7, 2, 4, 3, 1]);
    }

    #[test]
    fn a_full_room_gives_up_the_last_of_the_lowest_priority_and_none_of_a_higher() {
        let of = |client: &str, priority: u8| LaneKey::of(None, Some(client)).ranked(Priority(priority));
        let mut room = WaitRoom::default();
        for id in 0..3 {
            _ = room.enter(of("low", 10), id, false, 4);
        }
        _ = room.enter(of("mid", 50), 10, false, 4);
        let displaced = |entered: Entered<u32>| match entered {
            Entered::At(_, displaced) => displaced,
            Entered::Full(_) => None,
        };
        assert_eq!(displaced(room.enter(of("high", 90), 20, false, 4)), Some(2));
        assert_eq!(displaced(room.enter(of("mid", 50), 11, false, 4)), Some(1), "also by one that has more than it");
        assert_eq!(displaced(room.enter(of("mid", 50), 12, false, 4)), Some(0));
        assert_eq!(room.enter(of("low", 10), 3, false, 4), Entered::Full(3));
        assert_eq!(displaced(room.enter(of("other", 50), 30, false, 4)), Some(12), "of equals, of who has more");
        assert_eq!(serve(&mut room, 9), [20, 10, 30, 11]);
    }

    proptest! {
        #[test]
        fn nobody_is_lost_and_nobody_is_served_twice(
            steps in prop::collection::vec((0_u8..4, 0_u8..5, any::<prop::sample::Index>()), 0..200),
        ) {
            let mut room = WaitRoom::default();
            let mut there: Vec<(u32, Place)> = Vec::new();
            for (id, (step, session, which)) in (0_u32..).zip(steps) {
                match step {
                    0 | 1 => match room.enter(LaneKey::of(Some(&session.to_string()), (session > 2).then_some("k")).ranked(Priority(session / 2)), id, step == 1, 12) {
                        Entered::At(place, displaced) => {
                            there.retain(|(id, _)| Some(*id) != displaced);
                            there.push((id, place));
                        }
                        Entered::Full(back) => prop_assert_eq!((back, there.len()), (id, 12)),
                    },
                    2 if !there.is_empty() => {
                        let (id, place) = there.swap_remove(which.index(there.len()));
                        prop_assert_eq!(room.leave(place), Some(id));
                    }
                    _ => {
                        let served = room.serve(|id| if *id % 3 == 0 { Step::Serve(()) } else { Step::Pass });
                        for (id, ()) in served {
                            let at = there.iter().position(|(known, _)| *known == id);
                            prop_assert!(at.is_some());
                            there.swap_remove(at.unwrap());
                        }
                        prop_assert!(there.iter().all(|(id, _)| id % 3 != 0));
                        let ranks: Vec<u8> = room.turns.keys().map(|turn| turn.priority.0.0).collect();
                        prop_assert!(ranks.is_sorted_by(|one, next| one >= next));
                    }
                }
                prop_assert_eq!(room.len(), there.len());
                prop_assert_eq!(room.iter().count(), there.len());
                prop_assert_eq!(room.turns.len(), room.clients.len());
                for client in room.clients.values() {
                    prop_assert_eq!(client.turns.len(), client.lanes.len());
                    prop_assert_eq!(client.lanes.values().map(|lane| lane.line.len()).sum::<usize>(), client.len);
                }
            }
        }

        #[test]
        fn every_lane_waits_for_at_most_one_of_each_other(counts in prop::collection::vec(1_usize..30, 2..6)) {
            let mut room = WaitRoom::default();
            for (session, count) in counts.iter().enumerate() {
                for _ in 0..*count {
                    let id = u32::try_from(session).unwrap();
                    _ = room.enter(lane(&session.to_string()), id, false, usize::MAX);
                }
            }
            let order = serve(&mut room, usize::MAX);
            let (rounds, lanes) = (*counts.iter().min().unwrap(), counts.len());
            for round in order[..rounds * lanes].chunks(lanes) {
                let mut seen = round.to_vec();
                seen.sort_unstable();
                seen.dedup();
                prop_assert_eq!(seen.len(), lanes, "each lane once a round");
            }
        }
    }
}
