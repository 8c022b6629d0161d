//! The wait room, one fact a test: who waits, who is served when, and who is told that there is nothing to wait for.

use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::*;
use forebay_core::clock::{Clock, ManualClock};
use forebay_core::routing::candidate::Candidate;
use forebay_core::routing::decision::Choice;
use forebay_core::routing::policy::Policy;
use forebay_core::routing::wait_room::LaneKey;

mod any_order;

fn limited(limit: u32, arms: Vec<model::ArmConfig>) -> model::PoolConfig {
    model::PoolConfig { backend_max_in_flight: Some(limit), ..pool(arms) }
}

fn sequences(count: u32) -> RequestFacts {
    RequestFacts { sequences: count, ..facts() }
}

/// A request of no session that has tried nothing.
fn sessionless<'a>(facts: &'a RequestFacts, clock: &'a Clock) -> Ask<'a> {
    let lane = LaneKey::of(None, None);
    Ask { facts, tried: &[], first: true, session: None, lane, explain: false, again: false, trial: None, clock }
}

fn ask_as(controller: &Controller, session: &str, facts: &RequestFacts, clock: &Clock) -> Result<Admission, Refusal> {
    let (pool, mut rng) = (the_pool(controller), fastrand::Rng::with_seed(clock.now().as_micros()));
    let (kept, lane) = (pool.session_of(session), LaneKey::of(Some(session), None));
    let ask = Ask { session: Some(&kept), lane, ..sessionless(facts, clock) };
    pool.dispatch_or_wait(ask, &mut rng)
}

fn ask(controller: &Controller, facts: &RequestFacts, clock: &Clock) -> Admission {
    ask_as(controller, "s", facts, clock).unwrap()
}

fn ticket(admission: Admission) -> Ticket {
    match admission {
        Admission::Placed(placed) => placed.dispatched.ticket,
        Admission::Waiting(_) => panic!("it waits"),
    }
}

fn waiting(admission: Admission) -> Waiting {
    match admission {
        Admission::Waiting(waiting) => waiting,
        Admission::Placed(placed) => panic!("it does not wait: {:?}", placed.dispatched.decision),
    }
}

fn poll(waiting: &mut Waiting) -> Option<Result<Placed, Refusal>> {
    match pin!(waiting.placed()).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(answer) => Some(answer),
        Poll::Pending => None,
    }
}

fn served(waiting: &mut Waiting) -> Ticket {
    poll(waiting).expect("it is served").unwrap().dispatched.ticket
}

fn room(controller: &Controller) -> u32 {
    FleetView::new(&controller.fleet().snapshot(), at(0)).pools[0].wait_room.waiting
}

fn sequences_on(backend: &Backend) -> u32 {
    let view = backend.load.view(at(0));
    view.prefilling + view.decoding
}

#[test]
fn a_request_waits_while_every_backend_is_full_and_is_bound_to_the_first_with_room() {
    let clock = ManualClock::default().clock();
    let controller = controller(limited(2, vec![arm("default", &[1, 2])]));
    let mut tickets: Vec<_> = (0..4).map(|_| ticket(ask(&controller, &facts(), &clock))).collect();
    let mut one = waiting(ask(&controller, &facts(), &clock));
    let mut two = waiting(ask(&controller, &facts(), &clock));
    assert_eq!((room(&controller), poll(&mut one).is_none()), (2, true));
    let freed = tickets.pop().unwrap();
    let backend = freed.backend().id;
    drop(freed);
    assert!(poll(&mut two).is_none(), "as many as there is room for");
    assert_eq!(served(&mut one).backend().id, backend);
    let tokenize = RequestFacts { kind: Kind::Light, est_tokens: 0, ..facts() };
    drop(ticket(ask(&controller, &tokenize, &clock)));
    drop((tickets, one, two));
    assert_eq!((room(&controller), in_flight(&controller, at(1))), (0, 0));
}

#[test]
fn without_a_limit_nobody_waits() {
    let clock = ManualClock::default().clock();
    let controller = controller(pool(vec![arm("default", &[1])]));
    let tickets: Vec<_> = (0..1000).map(|_| ticket(ask(&controller, &facts(), &clock))).collect();
    assert_eq!(in_flight(&controller, at(1)), 1000);
    drop(tickets);
}

#[test]
fn a_full_room_refuses_and_a_request_of_a_quiet_session_takes_the_place_of_a_noisy_ones_last() {
    let clock = ManualClock::default().clock();
    let mut config = limited(1, vec![arm("default", &[1])]);
    config.wait_room.size = 3;
    let controller = controller(config);
    let first = ticket(ask(&controller, &facts(), &clock));
    let mut noisy: Vec<_> = (0..3).map(|_| waiting(ask_as(&controller, "noisy", &facts(), &clock).unwrap())).collect();
    let full = Refusal::WaitRoomFull(MODEL.to_owned());
    assert_eq!(ask_as(&controller, "noisy", &facts(), &clock).err(), Some(full.clone()));
    let mut quiet = waiting(ask_as(&controller, "quiet", &facts(), &clock).unwrap());
    assert_eq!(poll(&mut noisy[2]).unwrap().err(), Some(full));
    drop(first);
    drop(served(&mut noisy[0]));
    drop(served(&mut quiet));
    drop(served(&mut noisy[1]));
    assert_eq!(room(&controller), 0);
}

#[test]
fn a_waiter_that_leaves_makes_no_room_and_one_that_leaves_as_it_is_served_gives_its_place_on() {
    let clock = ManualClock::default().clock();
    let controller = controller(limited(1, vec![arm("default", &[1])]));
    let first = ticket(ask(&controller, &facts(), &clock));
    let [gone, late, mut next] = [0; 3].map(|_| waiting(ask(&controller, &facts(), &clock)));
    drop(gone);
    assert_eq!((room(&controller), in_flight(&controller, at(1))), (2, 1));
    drop(first);
    assert!(poll(&mut next).is_none(), "`late` was served, though it does not know yet");
    drop(late);
    assert_eq!(served(&mut next).backend().url, url(1));
    assert_eq!(in_flight(&controller, at(1)), 0);
}

#[test]
fn a_full_arm_keeps_its_requests_while_another_has_room() {
    let clock = ManualClock::default().clock();
    let controller = controller(limited(1, vec![arm("a", &[1]), arm("b", &[2])]));
    let on_a = ticket(ask(&controller, &facts(), &clock));
    let mut waits = waiting(ask(&controller, &facts(), &clock));
    let on_b = ticket(ask(&controller, &RequestFacts { arm: ArmIndex(1), ..facts() }, &clock));
    drop(on_b);
    assert!(poll(&mut waits).is_none(), "room in another arm is none");
    let view = FleetView::new(&controller.fleet().snapshot(), at(0));
    assert_eq!((view.pools[0].arms[0].waiting, view.pools[0].arms[1].waiting), (1, 0));
    // An arm that can take nothing at all is another matter.
    controller.health(id(&controller, 1), Err("down".to_owned()), at(1));
    for _ in 0..2 {
        controller.health(id(&controller, 1), Err("down".to_owned()), at(1));
    }
    let crossed = poll(&mut waits).unwrap().unwrap().dispatched.decision;
    assert_eq!((crossed.scope, crossed.assigned, crossed.arm), (Scope::Crossed, ArmIndex(0), ArmIndex(1)));
    assert_eq!(the_pool(&controller).arms()[0].crossed(), 1);
    drop(on_a);
}

#[test]
fn a_change_of_the_limit_or_of_the_backends_serves_who_waits() {
    let clock = ManualClock::default().clock();
    let arms = || vec![arm("a", &[1]), arm("b", &[9])];
    let controller = controller(limited(1, arms()));
    let held = ticket(ask(&controller, &facts(), &clock));
    let [mut one, mut two, mut three, mut four] = [0; 4].map(|_| waiting(ask(&controller, &facts(), &clock)));
    controller.apply(&[limited(2, arms())], at(1));
    let second = served(&mut one);
    assert!(poll(&mut two).is_none());
    // The arms change places, and `a` gets a backend more.
    controller.apply(&[limited(2, vec![arm("b", &[9]), arm("a", &[1, 2])])], at(2));
    let placed = poll(&mut two).unwrap().unwrap();
    assert_eq!((placed.dispatched.ticket.backend().url.clone(), placed.dispatched.decision.crossed()), (url(2), false));
    assert_eq!(placed.dispatched.decision.assigned, ArmIndex(1), "counted by the pool that decided");
    let third = served(&mut three);
    assert!(poll(&mut four).is_none());
    controller.apply(&[model::PoolConfig { backend_max_in_flight: None, ..limited(1, arms()) }], at(3));
    let fourth = served(&mut four);
    drop((held, second, placed, third, fourth));
    assert_eq!((room(&controller), in_flight(&controller, at(4))), (0, 0));
}

#[test]
fn who_has_nothing_left_to_wait_for_is_told() {
    let clock = ManualClock::default().clock();
    let controller = controller(limited(1, vec![arm("a", &[1])]));
    let held = ticket(ask(&controller, &facts(), &clock));
    let mut waits = waiting(ask(&controller, &facts(), &clock));
    let mut drained = limited(1, vec![arm("a", &[1])]);
    drained.arms[0].backends[0].drain = true;
    controller.apply(&[drained], at(1));
    let refused = Some(Refusal::NoBackend(MODEL.to_owned()));
    assert_eq!(poll(&mut waits).unwrap().err(), refused);
    controller.apply(&[limited(1, vec![arm("a", &[1])])], at(2));
    let mut waits = waiting(ask(&controller, &facts(), &clock));
    let old = the_pool(&controller);
    controller.apply(&[], at(3));
    assert_eq!(poll(&mut waits).unwrap().err(), refused, "the pool is gone");
    let (facts, mut rng) = (facts(), fastrand::Rng::with_seed(1));
    let ask = sessionless(&facts, &clock);
    assert_eq!(old.dispatch_or_wait(ask, &mut rng).err(), refused, "also for who comes late");
    drop(held);
}

#[test]
fn a_request_that_comes_with_an_old_snapshot_is_decided_by_the_pool_as_it_is() {
    let clock = ManualClock::default().clock();
    let controller = controller(pool(vec![arm("a", &[1]), arm("b", &[2])]));
    let old = the_pool(&controller);
    controller.apply(&[limited(1, vec![arm("b", &[2]), arm("a", &[3])])], at(1));
    let (facts, mut rng) = (facts(), fastrand::Rng::with_seed(1));
    let ask = sessionless(&facts, &clock);
    let Admission::Placed(placed) = old.dispatch_or_wait(ask, &mut rng).unwrap() else { panic!("it waits") };
    assert_eq!(placed.dispatched.ticket.backend().url, url(3));
    assert_eq!(placed.dispatched.decision.assigned, ArmIndex(1));
    assert!(Arc::ptr_eq(&placed.pool.unwrap(), &the_pool(&controller)));
}

#[test]
fn a_backend_that_backs_off_is_waited_for_until_time_or_a_success_makes_it_good() {
    let hand = ManualClock::default();
    let clock = hand.clock();
    let controller = controller(limited(2, vec![arm("a", &[1, 2])]));
    let bad = ticket(ask(&controller, &facts(), &clock));
    let hole = bad.backend().id;
    bad.finish(AttemptOutcome::Failed(Failure::Connect), clock.now());
    let held = [0; 2].map(|_| ticket(ask(&controller, &facts(), &clock)));
    assert!(held.iter().all(|ticket| ticket.backend().id != hole));
    let [mut one, mut two, mut three] = [0; 3].map(|_| waiting(ask(&controller, &facts(), &clock)));
    hand.advance(Duration::from_millis(999));
    one.look(clock.now());
    assert!(poll(&mut one).is_none());
    hand.advance(Duration::from_millis(1));
    two.look(clock.now());
    let mut probe = served(&mut one);
    assert_eq!((probe.backend().id, poll(&mut two).is_none()), (hole, true), "half-open");
    probe.first_token(clock.now());
    let second = served(&mut two);
    assert_eq!((second.backend().id, poll(&mut three).is_none()), (hole, true));
    drop((probe, second, held));
    drop(served(&mut three));
}

#[test]
fn a_newcomer_does_not_overtake_who_waited_for_a_back_off_to_end() {
    let hand = ManualClock::default();
    let clock = hand.clock();
    let controller = controller(limited(1, vec![arm("a", &[1, 2])]));
    let bad = ticket(ask(&controller, &facts(), &clock));
    bad.finish(AttemptOutcome::Failed(Failure::Connect), clock.now());
    let held = ticket(ask(&controller, &facts(), &clock));
    let mut first = waiting(ask(&controller, &facts(), &clock));
    hand.advance(Duration::from_secs(1));
    let newcomer = waiting(ask_as(&controller, "other", &facts(), &clock).unwrap());
    drop((served(&mut first), newcomer, held));
}

#[test]
fn a_request_larger_than_the_limit_is_served_alone_and_is_not_overtaken_for_ever() {
    let clock = ManualClock::default().clock();
    let controller = controller(limited(4, vec![arm("a", &[1, 2])]));
    let mut open: Vec<_> = (0..8).map(|_| ticket(ask_as(&controller, "small", &facts(), &clock).unwrap())).collect();
    let mut small: Vec<_> = (0..20).map(|_| waiting(ask_as(&controller, "small", &facts(), &clock).unwrap())).collect();
    let mut large = waiting(ask_as(&controller, "large", &sequences(6), &clock).unwrap());
    let mut rng = fastrand::Rng::with_seed(3);
    let mut ends = 0;
    let placed = loop {
        drop(open.swap_remove(rng.usize(..open.len())));
        ends += 1;
        for at in (0..small.len()).rev() {
            if let Some(answer) = poll(&mut small[at]) {
                open.push(answer.unwrap().dispatched.ticket);
                drop(small.remove(at));
                small.push(waiting(ask_as(&controller, "small", &facts(), &clock).unwrap()));
            }
        }
        if let Some(answer) = poll(&mut large) {
            break answer.unwrap().dispatched.ticket;
        }
        assert!(ends < 50, "overtaken for ever");
    };
    assert_eq!(sequences_on(placed.backend()), 4, "alone, and it counts at most the limit");
    let other = controller.fleet().snapshot().backends().map(|backend| sequences_on(backend)).sum::<u32>() - 4;
    assert_eq!(other, 4, "the other backend was kept busy meanwhile");
    drop((placed, open));
}

#[test]
fn who_was_held_up_for_a_larger_request_goes_on_when_that_leaves() {
    let clock = ManualClock::default().clock();
    let controller = controller(limited(3, vec![arm("a", &[1])]));
    let held = ticket(ask(&controller, &sequences(2), &clock));
    let large = waiting(ask(&controller, &sequences(2), &clock));
    let mut small = waiting(ask(&controller, &facts(), &clock));
    assert!(poll(&mut small).is_none(), "there is room for one, kept for the larger");
    drop(large);
    drop((served(&mut small), held));
}

/// A policy with a bug.
#[derive(Debug)]
struct Panics;

impl Policy for Panics {
    fn pick(&self, _: &[Candidate], _: &RequestFacts, _: Time, _: &mut fastrand::Rng) -> Option<Choice> {
        panic!("a bug of a policy")
    }
}

#[test]
fn a_decision_that_panics_costs_one_waiter_its_place_and_the_next_is_served() {
    let clock = ManualClock::default().clock();
    let controller = controller(limited(1, vec![arm("a", &[1])]));
    let first = ticket(ask(&controller, &facts(), &clock));
    let facts = facts();
    let tried = Ask { trial: Some(&Panics), ..sessionless(&facts, &clock) };
    let mut one = waiting(the_pool(&controller).dispatch_or_wait(tried, &mut fastrand::Rng::with_seed(1)).unwrap());
    let mut two = waiting(ask(&controller, &facts, &clock));
    drop(first);
    assert_eq!(poll(&mut one).unwrap().err(), Some(Refusal::Internal));
    drop(served(&mut two));
    assert_eq!((room(&controller), in_flight(&controller, at(1))), (0, 0));
}

#[test]
fn a_thread_that_panics_gives_its_ticket_back_and_who_waits_is_served() {
    let clock = ManualClock::default().clock();
    let controller = controller(limited(1, vec![arm("a", &[1])]));
    let held = ticket(ask(&controller, &facts(), &clock));
    let mut waits = waiting(ask(&controller, &facts(), &clock));
    let panics = std::thread::spawn(move || {
        let _held = held;
        panic!("a bug");
    });
    assert!(panics.join().is_err());
    drop(served(&mut waits));
    assert_eq!((room(&controller), in_flight(&controller, at(1))), (0, 0));
}
