//! A fleet that was written down decides as the live one did: the same rows, scores and choice.

use super::*;
use crate::recorded::Recorded;
use forebay_core::sample::Sample;

/// The fleet as `/api/fleet` answers it, read back.
fn recorded(controller: &Controller, now: Time) -> Recorded {
    let text = serde_json::to_string(&FleetView::new(&controller.fleet().snapshot(), now)).unwrap();
    serde_json::from_str(&text).unwrap()
}

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
            0..=2 => ticket.finish(Outcome::Success, now),
            3 => ticket.finish(Outcome::Failed(Failure::Died), now),
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
fn a_recorded_fleet_decides_as_the_live_one() {
    let (mut placed, mut refused) = (0, 0);
    for seed in 0..400 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let (controller, tickets, now) = any_fleet(&mut rng);
        let facts = RequestFacts { est_tokens: rng.u32(..9000), arm: ArmIndex(rng.u16(..2)), ..facts() };
        let fleet = recorded(&controller, now);
        let explained = fleet.pool(Some("alias")).unwrap().explain(
            Some("alias"),
            &facts,
            &[],
            fleet.now,
            &mut fastrand::Rng::with_seed(seed),
        );
        let mut trace = Trace::default();
        let live =
            the_pool(&controller).dispatch_traced(&facts, &[], now, &mut fastrand::Rng::with_seed(seed), &mut trace);
        assert_eq!(explained.trace, trace, "seed {seed}");
        match live {
            Ok(dispatched) => {
                assert_eq!(explained.decision, Some(dispatched.decision), "seed {seed}");
                assert_eq!(explained.trace.why(&dispatched.decision), trace.why(&dispatched.decision));
                placed += 1;
            }
            Err(_) => {
                assert_eq!(explained.decision, None, "seed {seed}");
                refused += 1;
            }
        }
        assert_eq!(explained.members.len(), 5);
        drop(tickets);
    }
    assert!(placed > 200 && refused > 5, "{placed} placed, {refused} refused");
}

#[test]
fn a_session_s_arm_and_a_pool_are_found_as_the_live_fleet_finds_them() {
    let mut config = pool(vec![arm("x", &[1]), arm("y", &[2])]);
    config.split_salt = "week-1".to_owned();
    let controller = controller(config);
    let fleet = recorded(&controller, at(5));
    let mut rng = fastrand::Rng::with_seed(1);
    for session in 0..200 {
        let session = format!("s-{session}");
        let live = the_pool(&controller).assign(Some(&session), &mut rng);
        assert_eq!(fleet.pool(None).unwrap().assign(Some(&session), &mut rng), live);
    }
    assert!(fleet.pool(Some("no-such")).unwrap_err().contains("served are m"));
}

#[test]
fn tokens_that_are_supposed_to_be_cached_count() {
    let controller = controller(pool(vec![arm("default", &[1, 2])]));
    let fleet = recorded(&controller, at(0));
    let (facts, second) = (RequestFacts { est_tokens: 3000, ..facts() }, id(&controller, 2));
    let pool = fleet.pool(None).unwrap();
    let explained = pool.explain(None, &facts, &[(second, 2900)], fleet.now, &mut fastrand::Rng::with_seed(1));
    assert_eq!(explained.decision.unwrap().backend, second);
}
