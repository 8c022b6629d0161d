//! An explanation is the decision that the dispatcher would make, and changes nothing.

use super::*;
use forebay_core::routing::explain::Fate;
use forebay_core::sample::Sample;

/// A fleet of two arms, some time after its last decision (rows are kept for a moment), with whatever load, health and limits the seed gives it.
fn any_fleet(rng: &mut fastrand::Rng) -> (Controller, Vec<Ticket>, Time) {
    let mut config = pool(vec![arm("x", &[1, 2, 3]), arm("y", &[4, 5])]);
    config.policy = PolicyName::ALL[rng.usize(..PolicyName::ALL.len())];
    config.cross_arm = rng.bool();
    config.backend_max_in_flight = rng.bool().then(|| rng.u32(1..12));
    config.arms[0].backends[0].speed = rng.f64() + 0.5;
    config.arms[1].backends[1].drain = rng.u8(..4) == 0;
    let controller = controller(config);
    let (mut tickets, mut now) = (Vec::new(), at(0));
    for step in 0..rng.u64(..120) {
        now = at(step * 17);
        let facts = RequestFacts {
            est_tokens: rng.u32(..4000),
            arm: ArmIndex(rng.u16(..2)),
            marks: Marks::session(rng.u64(..9)),
            ..facts()
        };
        let Ok(Dispatched { mut ticket, .. }) = the_pool(&controller).dispatch(&facts, &[], now, rng) else { continue };
        if rng.bool() {
            ticket.first_token(now + std::time::Duration::from_micros(rng.u64(..900_000)));
            ticket.event(now + std::time::Duration::from_micros(rng.u64(900_000..990_000)), false);
        }
        match rng.u8(..8) {
            0..=2 => ticket.finish(AttemptOutcome::Success, now),
            3 => ticket.finish(AttemptOutcome::Failed(Failure::Died), now),
            _ => tickets.push(ticket),
        }
        let snapshot = controller.fleet().snapshot();
        let backend = snapshot.backends().nth(rng.usize(..5)).unwrap();
        if rng.u8(..4) == 0 {
            let sample = Sample {
                running: Some(rng.f64() * 20.0),
                waiting: Some(rng.f64() * 9.0),
                kv_usage: Some(rng.f64()),
                kv_capacity_tokens: Some(rng.u64(1_000..100_000)),
                ..Sample::default()
            };
            backend.load.set_sample(sample, now);
        }
        if rng.u8(..20) == 0 {
            controller.misconfigured(backend.id, "for the test", now);
        }
    }
    (controller, tickets, now + std::time::Duration::from_micros(rng.u64(20_000..2_000_000)))
}

#[test]
fn an_explanation_says_what_the_dispatcher_then_does() {
    let (mut placed, mut refused) = (0, 0);
    for seed in 0..400 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let (controller, tickets, now) = any_fleet(&mut rng);
        let marks = if rng.bool() { Marks::session(rng.u64(..9)) } else { Marks::NONE };
        let facts = RequestFacts { est_tokens: rng.u32(..9000), arm: ArmIndex(rng.u16(..2)), marks, ..facts() };
        let pool = the_pool(&controller);
        let before = FleetView::new(&controller.fleet().snapshot(), now);
        let explained = pool.explain(&facts, &[], &[], now, &mut fastrand::Rng::with_seed(seed));
        let again = pool.explain(&facts, &[], &[], now, &mut fastrand::Rng::with_seed(seed));
        assert_eq!((&explained.trace, explained.decision), (&again.trace, again.decision), "seed {seed}");
        assert_eq!(FleetView::new(&controller.fleet().snapshot(), now), before, "seed {seed}");
        let mut trace = Trace::default();
        let live = pool.dispatch_traced(&facts, &[], now, &mut fastrand::Rng::with_seed(seed), &mut trace);
        assert_eq!(explained.trace, trace, "seed {seed}");
        match live {
            Ok(dispatched) => {
                assert_eq!(explained.decision, Some(dispatched.decision), "seed {seed}");
                placed += 1;
            }
            Err(_) => {
                assert_eq!(explained.decision, None, "seed {seed}");
                refused += 1;
            }
        }
        // Members of the other arm have their numbers too, and those that were compared have the same twice.
        assert_eq!(explained.members.len(), 5);
        for (fate, row) in explained.members.iter().filter(|(fate, _)| *fate == Fate::Compared) {
            let compared = trace.rows.iter().find(|one| one.backend == row.backend);
            assert!(compared.is_some_and(|one| one.matched == row.matched && one.terms.k == row.terms.k), "{fate:?}");
        }
        drop(tickets);
    }
    assert!(placed > 200 && refused > 5, "{placed} placed, {refused} refused");
}

#[test]
fn what_was_sent_before_is_expected_in_a_cache_and_what_is_supposed_counts_in_its_place() {
    let controller = controller(pool(vec![arm("default", &[1, 2])]));
    let (first, second) = (id(&controller, 1), id(&controller, 2));
    let facts = RequestFacts { est_tokens: 3000, marks: Marks::session(7), ..facts() };
    let mut rng = fastrand::Rng::with_seed(1);
    let pool = the_pool(&controller);
    let ticket = pool.dispatch(&facts, &[second], at(0), &mut rng).unwrap().ticket;
    ticket.finish(AttemptOutcome::Success, at(10));
    let expected = pool.explanation(&facts, &[], &[], at(1_000), &mut rng);
    assert_eq!(expected.decision.unwrap().backend, first);
    assert!(expected.backends[0].row.matched > 2000, "{:?}", expected.backends[0]);
    let supposed = pool.explanation(&facts, &[], &[(first, 0), (second, 2900)], at(1_000), &mut rng);
    assert_eq!(supposed.decision.unwrap().backend, second);
    assert_eq!((supposed.backends[0].row.matched, supposed.backends[1].row.matched), (0, 2900));
    assert_eq!(supposed.backends[1].verdict, Fate::Chosen);
}
