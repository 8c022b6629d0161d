//! What ends the attempts on one backend from outside, when their own connections say nothing: the watchdog's verdict that its
//! engine hangs, a listener that is gone, and a server of which nothing at all comes. Who finds out calls [`Alarm::stalled`],
//! [`Alarm::refused`], [`Alarm::answered`] and [`Alarm::silent`]; every attempt under way has a [`Watch`] and ends with the failure
//! that it gives: moved to another backend before its first token, after it told by an error event and an unclean end. Silence
//! alone moves what has no token, and ends nothing.
//!
//! Hot path: one store a piece that comes ([`Heard`]); a backend that is well wakes nobody.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::watch;

use forebay_core::clock::{Clock, Time};
use forebay_core::error::Failure;
use forebay_core::routing::facts::Kind;

/// Two refused connections this far apart mean that the listener is gone, and not that its queue was full for a moment.
pub const REFUSALS_APART: Duration = Duration::from_millis(100);
/// Time for which an attempt may go on in silence when the listener is gone. A server that ends well closes its listener first and
/// finishes its streams; one that got SIGTERM leaves them open, without a byte and without FIN.
pub const GRACE: Duration = Duration::from_secs(2);

/// The alarm of one backend; kept, as its load is, for as long as the backend is configured.
#[derive(Debug, Default)]
pub struct Alarm {
    states: watch::Sender<AlarmState>,
    /// The time of its server's last sign of life, tokens apart: the head of an answer, a scrape, `/health`.
    heard: Heard,
}

#[derive(Clone, Copy, Debug, Default)]
struct AlarmState {
    /// Counts the times that the engine was found to hang.
    stalls: u64,
    /// The first refused connection since the last one that was made.
    refused: Option<Time>,
    /// The time of a second refusal, which confirms the first.
    gone: Option<Time>,
    /// Nothing at all comes of the server: attempts that began before this may move.
    silent: Option<Time>,
}

impl Alarm {
    /// The engine hangs: all attempts under way end now with [`Failure::Stalled`], a death. Attempts that begin later are not
    /// concerned, nor are those that the API server answers by itself ([`Kind::Light`]).
    pub fn stalled(&self) {
        // Counted, not set: an attempt that begins later starts from the new count, and nothing need be taken back.
        self.states.send_modify(|state| state.stalls += 1);
    }

    /// A connection was refused (not: timed out). The second one, at least [`REFUSALS_APART`] after the first, means that the
    /// listener is gone: attempts of which nothing comes from the *first* one on end with [`Failure::ListenerGone`], a death,
    /// [`GRACE`] after it. Who was refused once does well to try again [`REFUSALS_APART`] later.
    pub fn refused(&self, now: Time) {
        self.states.send_if_modified(|state| {
            let first = *state.refused.get_or_insert(now);
            // One refusal may be a queue of connections that is full. Nobody is woken before the second.
            let confirmed = state.gone.is_none() && now.since(first) >= REFUSALS_APART;
            if confirmed {
                state.gone = Some(first);
            }
            confirmed
        });
    }

    /// A connection was made: whatever was refused before, there is a listener.
    pub fn answered(&self) {
        self.states.send_if_modified(|state| {
            state.refused = None;
            // Attempts are woken only if there was something to take back: this runs at each connection.
            state.gone.take().is_some()
        });
    }

    /// The server gave a sign of life.
    pub fn heard(&self, now: Time) {
        self.heard.note(now);
    }

    /// Returns the time of the server's last sign of life.
    #[must_use]
    pub fn last_heard(&self) -> Time {
        self.heard.last()
    }

    /// Neither `/health` nor a scrape nor any stream has had a byte of the server for a while, and a second look found the same:
    /// attempts without a token that began before `since` move to another backend, if one takes them. The server may live: a long
    /// prompt can block it for many seconds.
    pub fn silent(&self, since: Time) {
        self.states.send_modify(|state| state.silent = Some(since));
    }

    /// The silence is over.
    pub fn speaks(&self) {
        self.states.send_if_modified(|state| state.silent.take().is_some());
    }

    /// Returns whether nothing comes of the server.
    #[must_use]
    pub fn is_silent(&self) -> bool {
        self.states.borrow().silent.is_some()
    }

    /// Returns whether the listener is gone.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.states.borrow().gone.is_some()
    }

    /// An ear for an attempt of this kind that begins now.
    #[must_use]
    pub(crate) fn watch(&self, kind: Kind, begun: Time) -> Watch {
        let states = self.states.subscribe();
        // A light request needs no engine, so that one that hangs is no reason to end it.
        let stalls = (kind != Kind::Light).then(|| states.borrow().stalls);
        Watch { states, stalls, begun, heard: Heard::default(), may_move: false, stayed: Time::ZERO }
    }
}

/// Time at which something last came from the backend, shared by an attempt and its [`Watch`].
#[derive(Clone, Debug, Default)]
pub struct Heard(Arc<AtomicU64>);

impl Heard {
    /// A piece came.
    pub fn note(&self, now: Time) {
        // Relaxed is enough: no other memory depends on this time.
        self.0.store(now.as_micros(), Ordering::Relaxed);
    }

    fn last(&self) -> Time {
        Time::from_micros(self.0.load(Ordering::Relaxed))
    }
}

/// One attempt's ear.
#[derive(Debug)]
pub struct Watch {
    states: watch::Receiver<AlarmState>,
    /// The count when it began; none for what needs no engine.
    stalls: Option<u64>,
    begun: Time,
    heard: Heard,
    /// A silent server ends it, too: it may go elsewhere.
    may_move: bool,
    /// The finding of a silent server that it could not follow, as it had nowhere to go.
    stayed: Time,
}

impl Watch {
    /// From now on a server of which nothing comes ends the attempt with [`Failure::Silent`], or no longer.
    pub fn may_move(&mut self, may: bool) {
        self.may_move = may;
    }

    /// It has nowhere to go at present: until the server is found silent again, that does not end it.
    pub fn stays(&mut self) {
        self.stayed = self.states.borrow().silent.unwrap_or(self.stayed);
    }

    /// Returns the place where the attempt notes that something came.
    #[must_use]
    pub fn heard(&self) -> Heard {
        self.heard.clone()
    }

    /// Waits until the attempt is to end, and says how. Dropped without harm, and may be asked again.
    pub async fn ended(&mut self, clock: &Clock) -> Failure {
        loop {
            // Marked as seen before it is judged: a change during the judgement wakes the wait below.
            let state = *self.states.borrow_and_update();
            if self.stalls.is_some_and(|stalls| stalls != state.stalls) {
                return Failure::Stalled;
            }
            // It moves only if it began and last heard something before the silence. After `stays` only a newer finding
            // moves it, or an attempt with nowhere to go would end at once when it is asked again.
            let is_moved = |since: Time| self.begun < since && self.heard.last() < since && self.stayed < since;
            if self.may_move && state.silent.is_some_and(is_moved) {
                return Failure::Silent;
            }
            // A piece since the first refusal shows a server that finishes its streams, as one does that ends well.
            let silent_since = state.gone.filter(|since| self.heard.last() < *since);
            // What began after the first refusal has its time, too.
            let left = silent_since.map(|since| (since.max(self.begun) + GRACE).since(clock.now()));
            // The alarm lives as long as its backend, which the attempt's ticket holds: `changed` does not fail.
            match left {
                Some(Duration::ZERO) => return Failure::ListenerGone,
                // The state may change before the time is up, such as when the listener is there again.
                Some(left) => drop(tokio::time::timeout(left, self.states.changed()).await),
                None if self.states.changed().await.is_err() => std::future::pending().await,
                None => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use forebay_core::clock::ManualClock;

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    /// Returns how the attempt ends, if it does so within a day.
    async fn ending(watch: &mut Watch, hand: &ManualClock) -> Option<Failure> {
        let clock = hand.clock();
        let mut ended = std::pin::pin!(watch.ended(&clock));
        for _ in 0..24 * 60 {
            tokio::select! {
                biased;
                failure = &mut ended => return Some(failure),
                () = tokio::time::sleep(ms(100)) => hand.advance(ms(100)),
            }
        }
        None
    }

    #[tokio::test(start_paused = true)]
    async fn a_stall_ends_what_is_under_way_and_nothing_later() {
        let (alarm, hand) = (Alarm::default(), ManualClock::default());
        let mut before = alarm.watch(Kind::Stream, hand.clock().now());
        let mut light = alarm.watch(Kind::Light, hand.clock().now());
        alarm.stalled();
        let mut after = alarm.watch(Kind::Stream, hand.clock().now());
        assert_eq!(ending(&mut before, &hand).await, Some(Failure::Stalled));
        assert_eq!(ending(&mut light, &hand).await, None, "a tokenizer needs no engine");
        assert_eq!(ending(&mut after, &hand).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn one_refusal_and_two_at_once_end_nothing() {
        let (alarm, hand) = (Alarm::default(), ManualClock::default());
        let mut watch = alarm.watch(Kind::Stream, hand.clock().now());
        alarm.refused(hand.clock().now());
        alarm.refused(hand.clock().now());
        assert_eq!(ending(&mut watch, &hand).await, None);
        alarm.answered();
        hand.advance(ms(200));
        alarm.refused(hand.clock().now());
        assert!(!alarm.is_gone(), "a connection in between begins the count anew");
    }

    #[tokio::test(start_paused = true)]
    async fn a_gone_listener_ends_the_silent_after_a_grace_and_leaves_those_that_deliver() {
        let (alarm, hand) = (Alarm::default(), ManualClock::default());
        let clock = hand.clock();
        let (mut silent, mut delivering) =
            (alarm.watch(Kind::Stream, clock.now()), alarm.watch(Kind::Unary, clock.now()));
        silent.heard().note(clock.now());
        hand.advance(ms(1000));
        alarm.refused(clock.now());
        hand.advance(ms(100));
        alarm.refused(clock.now());
        delivering.heard().note(clock.now());
        assert_eq!(ending(&mut silent, &hand).await, Some(Failure::ListenerGone));
        assert_eq!(clock.now().since(Time::ZERO), ms(3000));
        assert_eq!(ending(&mut delivering, &hand).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_server_moves_what_may_move_and_was_there_before() {
        let (alarm, hand) = (Alarm::default(), ManualClock::default());
        let clock = hand.clock();
        let (mut moves, mut stays) = (alarm.watch(Kind::Light, clock.now()), alarm.watch(Kind::Stream, clock.now()));
        moves.may_move(true);
        hand.advance(ms(1000));
        alarm.silent(clock.now());
        let mut later = alarm.watch(Kind::Stream, clock.now());
        later.may_move(true);
        assert_eq!(ending(&mut moves, &hand).await, Some(Failure::Silent));
        assert_eq!(ending(&mut stays, &hand).await, None);
        assert_eq!(ending(&mut later, &hand).await, None);
        hand.advance(ms(1000));
        alarm.silent(clock.now());
        assert_eq!(ending(&mut later, &hand).await, Some(Failure::Silent), "the next look finds it");
        alarm.speaks();
        assert!(!alarm.is_silent());
        assert_eq!(ending(&mut later, &hand).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_listener_that_is_back_within_the_grace_ends_nothing() {
        let (alarm, hand) = (Alarm::default(), ManualClock::default());
        let clock = hand.clock();
        let mut watch = alarm.watch(Kind::Stream, clock.now());
        alarm.refused(clock.now());
        hand.advance(ms(100));
        alarm.refused(clock.now());
        alarm.answered();
        assert_eq!(ending(&mut watch, &hand).await, None);
    }
}
