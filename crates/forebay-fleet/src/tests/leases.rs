//! No path loses a ticket or counts one twice: any interleaving of lives, and snapshots that change meanwhile.

use super::*;
use proptest::prelude::*;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Leads a ticket through one of the lives that it may have.
fn live(mut ticket: Ticket, life: u8, now: Time) {
    if life & 1 != 0 {
        ticket.first_token(now);
        ticket.event(now, life & 2 != 0);
    }
    match life >> 2 & 3 {
        0 => ticket.finish(AttemptOutcome::Success, now),
        1 => ticket.finish(AttemptOutcome::Neutral, now),
        2 => ticket.finish(AttemptOutcome::Failed(Failure::Truncated), now),
        _ => drop(ticket),
    }
}

proptest! {
    #[test]
    fn in_flight_returns_to_zero_after_any_interleaving(
        steps in prop::collection::vec((any::<bool>(), any::<u8>(), any::<prop::sample::Index>(), 0_u64..2000), 0..150),
    ) {
        let controller = controller(pool(vec![arm("a", &[1, 2]), arm("b", &[3])]));
        let (mut open, mut now) = (Vec::new(), at(0));
        for (enter, life, which, ms) in steps {
            now = now + Duration::from_millis(ms);
            if enter || open.is_empty() {
                let kind = [Kind::Stream, Kind::Unary, Kind::NoDecode, Kind::Light][usize::from(life >> 6)];
                let facts = RequestFacts { kind, sequences: 1 + u32::from(life & 3), ..facts() };
                let mut rng = fastrand::Rng::with_seed(u64::from(life));
                open.push(the_pool(&controller).dispatch(&facts, &[], now, &mut rng).unwrap().ticket);
            } else {
                live(open.swap_remove(which.index(open.len())), life, now);
            }
        }
        drop(open);
        for backend in controller.fleet().snapshot().backends() {
            let view = backend.load.view(now);
            prop_assert_eq!((view.open_attempts, view.prefilling, view.decoding), (0, 0, 0));
            prop_assert_eq!((view.queued_prompt_tokens, view.kv_tokens), (0, 0));
        }
    }
}

#[test]
fn swapping_snapshots_under_concurrent_dispatch_never_loses_a_ticket() {
    let controller = Arc::new(controller(pool(vec![arm("a", &[1, 2]), arm("b", &[3, 4])])));
    let loads: std::sync::Mutex<Vec<Arc<Load>>> = std::sync::Mutex::default();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..4_u64)
            .map(|seed| {
                let controller = Arc::clone(&controller);
                let loads = &loads;
                scope.spawn(move || {
                    let (mut rng, mut open) = (fastrand::Rng::with_seed(seed), Vec::new());
                    for ms in 0..5000 {
                        let facts = RequestFacts { arm: ArmIndex(rng.u16(..2)), ..facts() };
                        if let Ok(dispatched) = the_pool(&controller).dispatch(&facts, &[], at(ms), &mut rng) {
                            open.push(dispatched.ticket);
                        }
                        if open.len() > 20 {
                            live(open.swap_remove(rng.usize(..open.len())), rng.u8(..), at(ms));
                        }
                    }
                    let mut seen: Vec<_> = open.iter().map(|ticket| Arc::clone(&ticket.backend().load)).collect();
                    drop(open);
                    locked(loads).append(&mut seen);
                })
            })
            .collect();
        scope.spawn(|| {
            let mut ports = fastrand::Rng::with_seed(99);
            for ms in 0.. {
                if done.load(Ordering::Relaxed) {
                    break;
                }
                let second = 3 + ports.u16(..4);
                controller.apply(&[pool(vec![arm("a", &[1, 2]), arm("b", &[second])])], at(ms));
                let first = id(&controller, 1);
                let verdict = if ports.bool() { Ok(()) } else { Err("no".to_owned()) };
                controller.health(first, verdict, at(ms));
                locked(&loads)
                    .extend(controller.fleet().snapshot().backends().map(|backend| Arc::clone(&backend.load)));
                std::thread::yield_now();
            }
        });
        for worker in workers {
            worker.join().unwrap();
        }
        done.store(true, Ordering::Relaxed);
    });
    let loads = loads.into_inner().unwrap();
    assert!(loads.len() > 4);
    for load in loads {
        let view = load.view(at(9999));
        assert_eq!((view.open_attempts, view.prefilling, view.decoding, view.queued_prompt_tokens), (0, 0, 0, 0));
    }
}

proptest! {
    /// Rows are kept from one decision to the next; whatever happens between, they must say what the loads say.
    #[test]
    fn a_decision_sees_the_loads_as_they_are_now(
        steps in prop::collection::vec((0_u8..6, any::<u8>(), any::<prop::sample::Index>(), 0_u64..4), 1..200),
    ) {
        let config = pool(vec![arm("a", &[1, 2, 3]), arm("b", &[4, 5])]);
        let controller = controller(config.clone());
        let (mut open, mut now) = (Vec::new(), at(0));
        for (step, life, which, ms) in steps {
            now = now + Duration::from_millis(ms);
            match step {
                0 if !open.is_empty() => live(open.swap_remove(which.index(open.len())), life, now),
                1 => controller.apply(std::slice::from_ref(&config), now),
                _ => {
                    let marks = Marks::session(u64::from(life % 4));
                    let facts = RequestFacts { arm: ArmIndex(u16::from(life & 1)), marks, ..facts() };
                    let snapshot = controller.fleet().snapshot();
                    let shown = |id| {
                        let view = snapshot.backend(id).unwrap().load.view(now);
                        (view.prefilling, view.decoding, view.queued_prompt_tokens, view.open_for_seconds)
                    };
                    let before: Vec<_> = snapshot.backends().map(|backend| (backend.id, shown(backend.id))).collect();
                    let mut trace = Trace::default();
                    let mut rng = fastrand::Rng::with_seed(u64::from(life));
                    let mut ticket = the_pool(&controller).dispatch_traced(&facts, &[], now, &mut rng, &mut trace).unwrap().ticket;
                    for row in &trace.rows {
                        let wanted = before.iter().find(|(id, _)| *id == row.backend).unwrap().1;
                        prop_assert_eq!((row.prefilling, row.decoding, row.queued_tokens, row.open_for), wanted);
                    }
                    if life & 4 != 0 {
                        ticket.first_token(now);
                    }
                    open.push(ticket);
                }
            }
        }
    }
}
