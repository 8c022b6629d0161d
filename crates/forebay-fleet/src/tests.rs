//! The fleet as its callers see it: configurations in, tickets out.

use super::membership::controller::{Controller, Settings};
use super::view::FleetView;
use super::*;
use crate::config::model::{self, BackendUrl, Config};
use forebay_core::clock::Time;
use forebay_core::error::{Failure, Refusal};
use forebay_core::routing::affinity::Marks;
use forebay_core::routing::decision::{Reason, Scope, Trace};
use forebay_core::routing::facts::{ArmIndex, Kind, RequestFacts};
use forebay_core::routing::policy::PolicyName;
use forebay_core::sample::Sample;
use forebay_core::units::BackendId;
use std::collections::HashSet;
use std::sync::Arc;

mod affinity;
mod discovery;
mod ejection;
mod explain;
mod leases;
mod replicas;
mod wait_room;

const MODEL: &str = "m";

fn at(ms: u64) -> Time {
    Time::from_micros(1_000_000_000 + ms * 1000)
}

fn url(port: u16) -> BackendUrl {
    format!("http://10.0.0.1:{port}").parse().unwrap()
}

fn backend(port: u16) -> model::BackendConfig {
    model::BackendConfig::of(url(port))
}

fn arm(name: &str, ports: &[u16]) -> model::ArmConfig {
    let backends = ports.iter().map(|&port| backend(port)).collect();
    model::ArmConfig { gpus: 1, ..model::ArmConfig::of(name, backends) }
}

fn pool(arms: Vec<model::ArmConfig>) -> model::PoolConfig {
    model::PoolConfig {
        model: MODEL.to_owned(),
        aliases: vec!["alias".to_owned()],
        policy: PolicyName::PredictedTtft,
        affinity: model::Affinity::Session,
        session: model::SessionKey::Header("x-session-id".to_owned()),
        split_salt: String::new(),
        cross_arm: true,
        arms,
        ..model::PoolConfig::default()
    }
}

fn controller(pool: model::PoolConfig) -> Controller {
    let controller = Controller::new(Settings::from(&Config::default()), Arc::new(crate::telemetry::Telemetry::new()));
    controller.apply(&[pool], at(0));
    controller
}

fn facts() -> RequestFacts {
    RequestFacts {
        est_tokens: 500,
        sequences: 1,
        kind: Kind::Stream,
        arm: ArmIndex(0),
        pinned: None,
        marks: Marks::NONE,
    }
}

fn the_pool(controller: &Controller) -> Arc<Pool> {
    Arc::clone(controller.fleet().snapshot().pool("alias").unwrap())
}

fn dispatch(controller: &Controller, tried: &[BackendId], now: Time) -> Result<Dispatched, Refusal> {
    the_pool(controller).dispatch(&facts(), tried, now, &mut fastrand::Rng::with_seed(now.as_micros()))
}

fn in_flight(controller: &Controller, now: Time) -> u32 {
    controller.fleet().snapshot().backends().map(|backend| backend.load.view(now).open_attempts).sum()
}

fn id(controller: &Controller, port: u16) -> BackendId {
    let snapshot = controller.fleet().snapshot();
    snapshot.backends().find(|backend| backend.url == url(port)).unwrap().id
}

#[test]
fn simultaneous_requests_spread_because_each_pick_sees_the_last() {
    let controller = controller(pool(vec![arm("default", &[1, 2, 3, 4])]));
    let tickets: Vec<_> = (0..40).map(|_| dispatch(&controller, &[], at(5)).unwrap().ticket).collect();
    for backend in controller.fleet().snapshot().backends() {
        assert_eq!(backend.load.view(at(5)).prefilling, 10);
    }
    drop(tickets);
    assert_eq!(in_flight(&controller, at(6)), 0);
}

#[test]
fn three_hundred_at_once_on_two_backends_split_evenly() {
    let controller = controller(pool(vec![arm("default", &[1, 2])]));
    let pool = the_pool(&controller);
    let mut rng = fastrand::Rng::with_seed(9);
    let tickets: Vec<_> = (0..300)
        .map(|_| {
            let facts = RequestFacts { est_tokens: rng.u32(90..110), ..facts() };
            pool.dispatch(&facts, &[], at(0), &mut rng).unwrap().ticket
        })
        .collect();
    for backend in controller.fleet().snapshot().backends() {
        assert!((146..=154).contains(&backend.load.view(at(0)).prefilling));
    }
    drop(tickets);
}

#[test]
fn every_policy_dispatches_and_names_itself() {
    for &policy in PolicyName::ALL {
        let controller = controller(model::PoolConfig { policy, ..pool(vec![arm("default", &[1, 2, 3])]) });
        let chosen: HashSet<_> =
            (0..300).map(|ms| dispatch(&controller, &[], at(ms)).unwrap().decision.backend).collect();
        assert_eq!(chosen.len(), 3, "{policy}");
        assert_eq!(dispatch(&controller, &[], at(0)).unwrap().decision.policy, policy);
    }
}

#[test]
fn a_tried_backend_is_not_tried_again_and_an_exhausted_pool_refuses() {
    let controller = controller(pool(vec![arm("default", &[1, 2])]));
    let first = dispatch(&controller, &[], at(0)).unwrap().decision.backend;
    let second = dispatch(&controller, &[first], at(0)).unwrap().decision.backend;
    assert_ne!(first, second);
    let refused = dispatch(&controller, &[first, second], at(0)).map(|dispatched| dispatched.decision);
    assert_eq!(refused, Err(Refusal::NoBackend(MODEL.to_owned())));
}

#[test]
fn a_request_crosses_to_another_arm_only_when_its_own_has_none_and_is_counted_once() {
    let controller = controller(pool(vec![arm("a", &[1]), arm("b", &[2, 3])]));
    let (one, two) = (id(&controller, 1), id(&controller, 2));
    let assigned = dispatch(&controller, &[], at(0)).unwrap().decision;
    assert_eq!((assigned.backend, assigned.scope, assigned.crossed()), (one, Scope::Assigned, false));
    let crossed = dispatch(&controller, &[one], at(0)).unwrap().decision;
    assert_eq!((crossed.scope, crossed.crossed(), crossed.arm), (Scope::Crossed, true, ArmIndex(1)));
    let again = dispatch(&controller, &[one, two], at(0)).unwrap().decision;
    assert!(again.crossed());
    let pool = the_pool(&controller);
    assert_eq!((pool.arms()[0].crossed(), pool.arms()[1].crossed()), (1, 0));
}

#[test]
fn an_arm_that_only_backs_off_keeps_its_requests() {
    let controller = controller(pool(vec![arm("a", &[1]), arm("b", &[2])]));
    let busy = Failure::Busy { status: 503, retry_after: None };
    dispatch(&controller, &[], at(0)).unwrap().ticket.finish(AttemptOutcome::Failed(busy), at(1));
    let next = dispatch(&controller, &[], at(2)).unwrap().decision;
    assert_eq!((next.arm, next.all_backing_off), (ArmIndex(0), true));
}

#[test]
fn a_black_hole_gets_one_probe_at_a_time_and_its_share_back_after_a_success() {
    let controller = controller(pool(vec![arm("default", &[1, 2])]));
    let bad = dispatch(&controller, &[], at(0)).unwrap();
    let hole = bad.decision.backend;
    bad.ticket.finish(AttemptOutcome::Failed(Failure::Connect), at(1));
    let mut held = Vec::new();
    for ms in 2..52 {
        held.push(dispatch(&controller, &[], at(ms)).unwrap());
    }
    assert!(held.iter().all(|dispatched| dispatched.decision.backend != hole), "left alone for a second");
    for ms in 1100..1150 {
        held.push(dispatch(&controller, &[], at(ms)).unwrap());
    }
    let probes: Vec<usize> = (0..held.len()).filter(|&index| held[index].decision.backend == hole).collect();
    assert_eq!(probes.len(), 1, "half-open");
    held.remove(probes[0]).ticket.finish(AttemptOutcome::Success, at(1200));
    let after = dispatch(&controller, &[], at(1201)).unwrap();
    assert_eq!(after.decision.backend, hole);
    assert_eq!(after.decision.considered, 2);
}

#[test]
fn a_backend_whose_health_is_bad_is_out_and_says_why() {
    let controller = controller(pool(vec![arm("default", &[1, 2])]));
    let out = id(&controller, 1);
    for _ in 0..3 {
        controller.health(out, Err("timed out".to_owned()), at(10));
    }
    assert!((0..50).all(|ms| dispatch(&controller, &[], at(20 + ms)).unwrap().decision.backend != out));
    let view = FleetView::new(&controller.fleet().snapshot(), at(2010));
    let shown = &view.pools[0].arms[0].backends[0];
    assert_eq!((shown.state, shown.reason.as_deref(), shown.state_for_seconds), ("ejected", Some("timed out"), 2.0));
    controller.health(out, Ok(()), at(9000));
    assert!(controller.wants_probe(out, at(9000)));
    controller.probed(out, Probed::Passed, at(9000));
    assert!((0..50).any(|ms| dispatch(&controller, &[], at(9100 + ms)).unwrap().decision.backend == out));
}

#[test]
fn a_pool_that_is_all_out_is_tried_rather_than_failed_unseen() {
    let controller = controller(pool(vec![arm("default", &[1, 2])]));
    for (port, ms) in [(2, 0), (1, 60_000)] {
        for _ in 0..3 {
            controller.health(id(&controller, port), Err("refused".to_owned()), at(ms));
        }
    }
    let first = dispatch(&controller, &[], at(70_000)).unwrap().decision;
    assert_eq!((first.scope, first.backend), (Scope::Panic, id(&controller, 2)));
    let second = dispatch(&controller, &[first.backend], at(70_000)).unwrap().decision;
    assert_eq!((second.scope, second.backend), (Scope::Panic, id(&controller, 1)));
}

#[test]
fn a_drained_backend_gets_nothing_even_alone() {
    let mut config = pool(vec![arm("default", &[1])]);
    config.arms[0].backends[0].drain = true;
    let controller = controller(config);
    assert!(dispatch(&controller, &[], at(0)).is_err());
}

#[test]
fn a_misconfigured_backend_is_out_until_it_is_configured_or_its_key_changes() {
    let controller = controller(pool(vec![arm("default", &[1, 2])]));
    let wrong = id(&controller, 1);
    let goes_there =
        |ms: u64| (0..50).any(|more| dispatch(&controller, &[], at(ms + more)).unwrap().decision.backend == wrong);
    controller.misconfigured(wrong, "404 for `m`", at(0));
    controller.health(wrong, Ok(()), at(1));
    assert!(!goes_there(100));
    controller.configured(wrong, at(200));
    assert!(goes_there(300));
    controller.misconfigured(wrong, "401", at(400));
    assert!(!goes_there(500));
    let mut config = pool(vec![arm("default", &[1, 2])]);
    config.arms[0].backends[0].key = Some(model::Secret::new("new"));
    controller.apply(&[config], at(600));
    assert!(goes_there(700));
}

#[test]
fn an_unchanged_backend_keeps_its_identity_and_load_and_one_that_returns_is_another() {
    let controller = controller(pool(vec![arm("default", &[1, 2])]));
    let (kept, gone) = (id(&controller, 1), id(&controller, 2));
    let held =
        (0..).map(|ms| dispatch(&controller, &[], at(ms)).unwrap()).find(|d| d.decision.backend == gone).unwrap();
    let mut changed = pool(vec![arm("default", &[1])]);
    changed.arms[0].backends[0].speed = 2.0;
    controller.apply(&[changed], at(100));
    assert_eq!(id(&controller, 1), kept);
    assert_eq!(controller.fleet().snapshot().backend(gone).map(|backend| backend.id), None);
    controller.apply(&[pool(vec![arm("default", &[1, 2])])], at(200));
    let back = id(&controller, 2);
    assert!(back != gone && id(&controller, 1) == kept);
    assert_eq!(in_flight(&controller, at(200)), 0, "the old ticket counts on the old load");
    held.ticket.finish(AttemptOutcome::Success, at(300));
    assert_eq!(in_flight(&controller, at(300)), 0);
}

#[test]
fn an_arm_or_pool_of_another_name_is_another_backend() {
    let controller = controller(pool(vec![arm("a", &[1])]));
    let before = id(&controller, 1);
    controller.apply(&[pool(vec![arm("b", &[1])])], at(1));
    assert_ne!(before, id(&controller, 1));
}

#[test]
fn sessions_stick_to_their_arm_over_snapshots() {
    let controller = controller(pool(vec![arm("a", &[1]), arm("b", &[2])]));
    let mut rng = fastrand::Rng::with_seed(1);
    let mut arms = |pool: &Pool| -> Vec<ArmIndex> {
        (0..500).map(|session| pool.assign(Some(&session.to_string()), &mut rng)).collect()
    };
    let before = arms(&the_pool(&controller));
    controller.apply(&[pool(vec![arm("a", &[1, 3]), arm("b", &[2])])], at(1));
    assert_eq!(before, arms(&the_pool(&controller)));
    assert!(before.contains(&ArmIndex(0)) && before.contains(&ArmIndex(1)));
}

#[test]
fn a_pinned_request_goes_to_its_backend_whatever_the_arm() {
    let controller = controller(pool(vec![arm("a", &[1]), arm("b", &[2])]));
    let pinned = RequestFacts { pinned: Some(id(&controller, 2)), ..facts() };
    let pool = the_pool(&controller);
    let decision = pool.dispatch(&pinned, &[], at(0), &mut fastrand::Rng::with_seed(1)).unwrap().decision;
    assert_eq!((decision.backend, decision.scope, decision.reason), (id(&controller, 2), Scope::Pinned, Reason::Only));
}

#[test]
fn a_trace_keeps_every_row_that_was_considered() {
    let controller = controller(pool(vec![arm("default", &[1, 2, 3])]));
    let mut trace = Trace::default();
    let mut rng = fastrand::Rng::with_seed(3);
    let dispatched = the_pool(&controller).dispatch_traced(&facts(), &[], at(0), &mut rng, &mut trace).unwrap();
    assert_eq!(trace.rows.len(), 3);
    assert!(trace.line(&dispatched.decision, 1024).contains("tie of 3 by predicted_ttft"));
    let predicted = dispatched.ticket.predicted_ttft().unwrap().as_secs_f64();
    assert!((predicted - dispatched.decision.terms.ttft()).abs() < 1e-6);
}

#[test]
fn only_a_stream_has_a_predicted_ttft() {
    let controller = controller(pool(vec![arm("default", &[1])]));
    for kind in [Kind::Unary, Kind::NoDecode, Kind::Light] {
        let facts = RequestFacts { kind, ..facts() };
        let dispatched = the_pool(&controller).dispatch(&facts, &[], at(0), &mut fastrand::Rng::with_seed(1)).unwrap();
        assert_eq!(dispatched.ticket.predicted_ttft(), None);
    }
}

#[test]
fn retries_are_paid_for_by_requests_and_time() {
    let controller = controller(pool(vec![arm("default", &[1])]));
    let pool = the_pool(&controller);
    assert!((0..100).all(|_| pool.retry(at(0))));
    assert!(!pool.retry(at(0)));
    for _ in 0..5 {
        drop(dispatch(&controller, &[], at(0)));
    }
    assert!(pool.retry(at(0)) && !pool.retry(at(0)));
    assert!(pool.retry(at(100)) && !pool.retry(at(100)));
}

#[test]
fn the_view_is_json_with_every_number_and_no_secret() {
    let mut config = pool(vec![arm("default", &[1])]);
    config.arms[0].backends[0].key = Some(model::Secret::new("hush"));
    let controller = controller(config);
    let snapshot = controller.fleet().snapshot();
    let only = snapshot.backends().next().unwrap();
    let sample = Sample {
        running: Some(3.0),
        waiting: Some(2.0),
        kv_usage: Some(0.25),
        kv_capacity_tokens: Some(1000),
        ..Sample::default()
    };
    only.load.set_sample(sample, at(0));
    let ticket = dispatch(&controller, &[], at(400)).unwrap().ticket;
    let text = serde_json::to_string(&FleetView::new(&snapshot, at(500))).unwrap();
    assert!(!text.contains("hush"));
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let shown = &json["pools"][0]["arms"][0]["backends"][0];
    assert_eq!(shown["state"], "healthy");
    assert_eq!(shown["load"]["prefilling"], 1);
    assert_eq!(shown["load"]["scrape"]["queue_depth"], 2.0);
    assert_eq!(shown["load"]["scrape"]["age_seconds"], 0.5);
    assert_eq!(shown["load"]["scrape"]["sample"]["kv_usage"], 0.25);
    let terms = &shown["terms"];
    let sum: f64 =
        ["step", "queue", "prompt", "kv_wait", "slot_wait"].iter().map(|term| terms[term].as_f64().unwrap()).sum();
    assert!((sum - shown["predicted_ttft_seconds"].as_f64().unwrap()).abs() < 1e-9);
    ticket.finish(AttemptOutcome::Success, at(600));
}
