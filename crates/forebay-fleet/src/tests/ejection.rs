//! Ejection as callers see it: what attempts end with, and where the next ones go.

use std::time::Duration;

use super::*;
use crate::membership::drains::{DrainByHand, DrainRequest};
use crate::telemetry::labels::BackendState;

fn state(controller: &Controller, port: u16) -> BackendState {
    let snapshot = controller.fleet().snapshot();
    let members = snapshot.pools.iter().flat_map(|pool| pool.members());
    members.into_iter().find(|member| member.backend.url == url(port)).unwrap().state.kind()
}

/// An attempt on this backend, whatever the back-off says.
fn attempt_on(controller: &Controller, port: u16, now: Time) -> Ticket {
    let pinned = RequestFacts { pinned: Some(id(controller, port)), ..facts() };
    the_pool(controller).dispatch(&pinned, &[], now, &mut fastrand::Rng::with_seed(1)).unwrap().ticket
}

fn fail(controller: &Controller, port: u16, failure: Failure, now: Time) {
    attempt_on(controller, port, now).finish(AttemptOutcome::Failed(failure), now);
}

#[test]
fn three_blamed_failures_in_a_row_eject_and_the_fourth_request_goes_elsewhere() {
    let controller = controller(pool(vec![arm("default", &[1, 2])]));
    for ms in 0..2 {
        fail(&controller, 1, Failure::Died, at(ms));
    }
    assert_eq!(state(&controller, 1), BackendState::Healthy);
    fail(&controller, 1, Failure::Truncated, at(2));
    assert_eq!(state(&controller, 1), BackendState::Ejected);
    let out = id(&controller, 1);
    assert!((3..500).all(|ms| dispatch(&controller, &[], at(ms)).unwrap().decision.backend != out));
    let view = FleetView::new(&controller.fleet().snapshot(), at(1002));
    let shown = &view.pools[0].arms[0].backends[0];
    assert_eq!(shown.reason.as_deref(), Some("3 failed in a row; the last: truncated"));
    assert!((shown.state_for_seconds - 1.0).abs() < 1e-9);
}

#[test]
fn what_is_not_the_backend_s_doing_ejects_nobody() {
    let controller = controller(pool(vec![arm("default", &[1])]));
    let busy = |status| Failure::Busy { status, retry_after: None };
    for ms in 0..50 {
        for failure in [busy(503), busy(429), Failure::ClientLeft, Failure::Deadline, Failure::Idle, Failure::Reused] {
            fail(&controller, 1, failure, at(ms));
        }
        attempt_on(&controller, 1, at(ms)).finish(AttemptOutcome::Neutral, at(ms));
        drop(attempt_on(&controller, 1, at(ms)));
    }
    assert_eq!(state(&controller, 1), BackendState::Healthy);
}

#[test]
fn a_row_is_broken_only_by_the_success_of_an_attempt_sent_after_the_last_failure() {
    let controller = controller(pool(vec![arm("default", &[1])]));
    let old: Vec<Ticket> = (0..3).map(|ms| attempt_on(&controller, 1, at(ms))).collect();
    for (ms, old) in (10..).zip(old) {
        fail(&controller, 1, Failure::ServerError(500), at(ms));
        old.finish(AttemptOutcome::Success, at(ms));
    }
    assert_eq!(state(&controller, 1), BackendState::Ejected, "old streams end well on a server that drains");

    let controller = super::controller(pool(vec![arm("default", &[1])]));
    for ms in 0..20 {
        fail(&controller, 1, Failure::Died, at(10 * ms));
        fail(&controller, 1, Failure::Died, at(10 * ms + 1));
        attempt_on(&controller, 1, at(10 * ms + 2)).finish(AttemptOutcome::Success, at(10 * ms + 3));
    }
    assert_eq!(state(&controller, 1), BackendState::Healthy);
}

#[test]
fn a_suspicion_holds_the_backend_off_at_once_and_counts_unless_it_is_withdrawn() {
    let controller = controller(pool(vec![arm("default", &[1, 2])]));
    let error = Failure::ServerError(500);
    for ms in 0..10 {
        let suspicion = attempt_on(&controller, 1, at(ms)).suspect(error, at(ms));
        let elsewhere = dispatch(&controller, &[], at(ms)).unwrap().decision.backend;
        assert_eq!(elsewhere, id(&controller, 2));
        suspicion.withdraw();
    }
    assert_eq!(state(&controller, 1), BackendState::Healthy, "every backend answers this request with 500");
    for ms in 20..23 {
        drop(attempt_on(&controller, 1, at(ms)).suspect(error, at(ms)));
    }
    assert_eq!(state(&controller, 1), BackendState::Ejected);
}

#[test]
fn an_ejected_backend_comes_back_by_a_probe_with_nothing_held_against_it() {
    let controller = controller(pool(vec![arm("default", &[1, 2])])).seeded(1);
    let out = id(&controller, 1);
    for ms in 0..3 {
        fail(&controller, 1, Failure::Died, at(ms));
    }
    assert!(!controller.wants_probe(out, at(4000)));
    controller.health(out, Ok(()), at(5700));
    assert_eq!(state(&controller, 1), BackendState::Ejected);
    assert!(controller.wants_probe(out, at(5700)));
    assert!(dispatch(&controller, &[id(&controller, 2)], at(5701)).is_err(), "while another is in, no client pays");
    controller.probed(out, Probed::Passed, at(5800));
    let chosen: Vec<_> = (0..20).map(|ms| dispatch(&controller, &[], at(5900 + ms)).unwrap()).collect();
    let there = chosen.iter().filter(|dispatched| dispatched.decision.backend == out).count();
    assert_eq!(there, 10, "not half-open");
    fail(&controller, 1, Failure::Died, at(6000));
    assert_eq!(state(&controller, 1), BackendState::Healthy, "a new row");
}

#[test]
fn a_backend_that_cannot_be_probed_gets_one_client_s_request() {
    let controller = controller(pool(vec![arm("default", &[1, 2])])).seeded(1);
    let out = id(&controller, 1);
    controller.hung(out, "no progress", at(0));
    assert!(controller.wants_probe(out, at(5700)));
    controller.probed(out, Probed::NoSuchRequest, at(5800));
    let held: Vec<_> = (0..20).map(|ms| dispatch(&controller, &[], at(5900 + ms)).unwrap()).collect();
    let (mut trial, others): (Vec<_>, Vec<_>) = held.into_iter().partition(|held| held.decision.backend == out);
    assert_eq!((trial.len(), others.len()), (1, 19));
    assert_eq!(state(&controller, 1), BackendState::Probing);
    trial.remove(0).ticket.finish(AttemptOutcome::Success, at(6000));
    assert_eq!(state(&controller, 1), BackendState::Healthy);
}

#[test]
fn a_first_token_ends_a_trial_well_and_a_failure_ends_it_badly() {
    for well in [true, false] {
        let controller = controller(pool(vec![arm("default", &[1])])).seeded(1);
        let only = id(&controller, 1);
        controller.hung(only, "no progress", at(0));
        assert!(controller.wants_probe(only, at(5700)));
        controller.probed(only, Probed::NoSuchRequest, at(5800));
        let mut ticket = attempt_on(&controller, 1, at(5900));
        if well {
            ticket.first_token(at(6000));
            assert_eq!(state(&controller, 1), BackendState::Healthy);
        } else {
            ticket.finish(AttemptOutcome::Failed(Failure::FirstToken), at(6000));
            assert_eq!(state(&controller, 1), BackendState::Ejected);
        }
    }
}

#[test]
fn a_reload_that_keeps_a_backend_keeps_its_ejection_and_one_that_returns_starts_well() {
    let both = || pool(vec![arm("default", &[1, 2])]);
    let controller = controller(both());
    controller.gone(id(&controller, 1), at(0));
    controller.apply(&[both()], at(10));
    assert_eq!(state(&controller, 1), BackendState::Ejected);
    controller.apply(&[pool(vec![arm("default", &[2])])], at(20));
    controller.apply(&[both()], at(30));
    assert_eq!(state(&controller, 1), BackendState::Healthy, "re-added under its old name it is another backend");
}

fn by_hand(words: &str, lasts: Option<Duration>) -> DrainRequest {
    DrainRequest { words: words.to_owned(), lasts }
}

#[test]
fn a_drain_by_hand_lasts_over_reloads_and_hides_no_other_trouble() {
    let both = || pool(vec![arm("default", &[1, 2])]);
    let controller = controller(both());
    let first = id(&controller, 1);
    let drain = by_hand("drained by alice:\n new kernel", None);
    assert_eq!(controller.drain("10.0.0.1:1", &drain, at(0)), Some(vec![first]));
    assert!((0..50).all(|ms| dispatch(&controller, &[], at(ms)).unwrap().decision.backend != first));
    controller.apply(&[both()], at(100));
    let view = FleetView::new(&controller.fleet().snapshot(), at(2000));
    let shown = &view.pools[0].arms[0].backends[0];
    assert_eq!((shown.state, shown.reason.as_deref()), ("drained", Some("drained by alice: new kernel")));
    assert!((shown.state_for_seconds - 2.0).abs() < 1e-9);
    controller.gone(first, at(2000));
    assert_eq!(state(&controller, 1), BackendState::Drained);
    assert_eq!(controller.undrain(&first.to_string(), at(3000)), Some(vec![first]));
    assert_eq!(state(&controller, 1), BackendState::Ejected, "what happened meanwhile counts");
    assert_eq!(controller.drain("b99", &drain, at(3000)), None);
    assert_eq!(controller.undrain("10.0.0.1:77", at(3000)), None);

    let mut by_file = both();
    by_file.arms[0].backends[1].drain = true;
    controller.apply(&[by_file], at(4000));
    controller.undrain("b1", at(4001));
    assert_eq!(state(&controller, 2), BackendState::Drained, "the file's word is the file's");
}

#[test]
fn a_drain_by_hand_follows_the_address_into_another_arm_and_over_a_time_outside_the_file() {
    let two = |one: &[u16], other: &[u16]| pool(vec![arm("a", one), arm("b", other)]);
    let controller = controller(two(&[1], &[2, 3]));
    controller.drain("10.0.0.1:1", &by_hand("x", None), at(0)).unwrap();
    controller.apply(&[two(&[3], &[2, 1])], at(10));
    assert_eq!(state(&controller, 1), BackendState::Drained, "in another arm");
    controller.apply(&[two(&[3], &[2])], at(20));
    let names = |controller: &Controller| -> Vec<String> {
        controller.drains(at(30)).into_iter().map(|drain| drain.backend).collect()
    };
    assert_eq!(names(&controller), ["10.0.0.1:1"]);
    controller.apply(&[two(&[3], &[2, 1])], at(30));
    assert_eq!(state(&controller, 1), BackendState::Drained, "back in the file");
    controller.apply(&[two(&[3], &[2])], at(40));
    assert_eq!(controller.undrain("10.0.0.1:1", at(50)), Some(vec![]), "let go of while it is outside");
    controller.apply(&[two(&[3], &[2, 1])], at(60));
    assert_eq!(state(&controller, 1), BackendState::Healthy);
}

#[test]
fn a_drain_by_hand_with_a_limit_ends_by_itself_and_a_second_one_takes_its_place() {
    let controller = controller(pool(vec![arm("default", &[1, 2])]));
    let limited = |seconds| by_hand("x", Some(Duration::from_secs(seconds)));
    controller.drain("10.0.0.1:1", &limited(2), at(0)).unwrap();
    controller.end_drains(at(1999));
    assert_eq!(state(&controller, 1), BackendState::Drained);
    controller.end_drains(at(2000));
    assert_eq!(state(&controller, 1), BackendState::Healthy);
    controller.drain("b0", &limited(2), at(3000)).unwrap();
    controller.drain("b0", &by_hand("y", None), at(3001)).unwrap();
    controller.end_drains(at(9_000_000));
    assert_eq!(state(&controller, 1), BackendState::Drained, "the second has no limit");
}

#[test]
fn the_next_process_takes_drains_over_with_the_time_that_is_left_also_for_backends_that_it_does_not_know_yet() {
    let old = controller(pool(vec![arm("default", &[1, 2, 3])]));
    old.drain("10.0.0.1:1", &by_hand("x", Some(Duration::from_secs(10))), at(0)).unwrap();
    old.drain("10.0.0.1:3", &by_hand("y", None), at(0)).unwrap();
    let told = old.drains(at(4000));
    assert_eq!(told.iter().map(|drain| drain.left_seconds).collect::<Vec<_>>(), [Some(6.0), None]);
    let next = controller(pool(vec![arm("default", &[1, 2])]));
    let odd = DrainByHand { left_seconds: Some(-1.0), backend: "10.0.0.1:2".to_owned(), ..told[0].clone() };
    next.take_drains(told.into_iter().chain([odd]).collect(), at(500));
    assert_eq!(state(&next, 1), BackendState::Drained);
    assert_eq!(state(&next, 2), BackendState::Healthy, "no time is left of a negative one");
    next.apply(&[pool(vec![arm("default", &[1, 2, 3])])], at(600));
    assert_eq!(state(&next, 3), BackendState::Drained);
    next.end_drains(at(6499));
    assert_eq!(state(&next, 1), BackendState::Drained);
    next.end_drains(at(6500));
    assert_eq!([state(&next, 1), state(&next, 3)], [BackendState::Healthy, BackendState::Drained]);
}
