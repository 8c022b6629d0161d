//! Replicas of Forebay: each has its part of what all have together, and the part follows their number.

use super::*;
use crate::config::model::{BackendUrl as Url, Kubernetes, Whom};
use crate::source::Source;
use crate::view::PoolView;
use forebay_core::kubernetes::Port;
use std::time::Duration;

fn config(count: u32, service: Option<&str>) -> Config {
    let api: Url = "http://10.0.0.9:8001".parse().unwrap();
    let kubernetes = service.map(|service| Kubernetes {
        whom: Whom::Service(service.to_owned()),
        namespace: Some("n".to_owned()),
        ports: vec![Port::Any],
        api: Some(api),
        token_file: None,
        ca: None,
    });
    Config { replicas: model::Replicas { count, service: service.map(str::to_owned), kubernetes }, ..Config::default() }
}

fn replica(count: u32, service: Option<&str>) -> Controller {
    let settings = Settings::from(&config(count, service));
    let controller = Controller::new(settings, Arc::new(crate::telemetry::Telemetry::new()));
    let limited = pool(vec![arm("default", &[1, 2])]);
    let wait_room = model::WaitRoom { size: 90, ..limited.wait_room };
    controller.apply(&[model::PoolConfig { backend_max_in_flight: Some(16), wait_room, ..limited }], at(0));
    controller
}

fn source(controller: &Controller) -> Arc<Source> {
    controller.fleet().snapshot().replication.source.clone().unwrap()
}

fn count(controller: &Controller) -> u32 {
    controller.fleet().snapshot().replication.count.get()
}

fn shown(controller: &Controller, now: Time) -> PoolView {
    FleetView::new(&controller.fleet().snapshot(), now).pools.remove(0)
}

/// The limit on a backend, the size of the wait room and the retries that are left, in whole numbers.
fn parts(controller: &Controller, now: Time) -> (Option<u32>, usize, u32) {
    let pool = shown(controller, now);
    (pool.backend_max_in_flight, pool.wait_room.size, pool.retry_budget.round() as u32)
}

#[test]
fn limits_and_intervals_follow_the_number_that_the_service_has() {
    let controller = replica(2, Some("forebay"));
    assert_eq!(
        (count(&controller), parts(&controller, at(0))),
        (2, (Some(8), 45, 50)),
        "what is configured, until it is known"
    );
    assert!(controller.counted(&source(&controller), 4, at(10)));
    assert_eq!((count(&controller), parts(&controller, at(10))), (4, (Some(4), 23, 25)));
    let interval = controller.fleet().snapshot().replication.count.stretch(Duration::from_secs(1));
    assert_eq!(interval, Duration::from_secs(4));
    assert!(!controller.counted(&source(&controller), 4, at(20)), "nothing new");
    assert!(controller.counted(&source(&controller), 1, at(30)));
    assert_eq!(parts(&controller, at(30)), (Some(16), 90, 100));
    let view = FleetView::new(&controller.fleet().snapshot(), at(40)).replicas;
    let source = view.source.unwrap();
    assert_eq!((view.count.get(), source.found, source.age_seconds), (1, 1, Some(0.01)));
    assert_eq!((source.kind, source.target.as_str()), ("kubernetes", "endpoints of forebay in n"));
}

#[test]
fn a_retry_budget_stays_as_full_as_it_was_when_replicas_come_and_go() {
    let controller = replica(1, Some("forebay"));
    let pool = the_pool(&controller);
    let mut spent = 0;
    while spent < 60 && pool.retry(at(0)) {
        spent += 1;
    }
    assert_eq!((spent, parts(&controller, at(0)).2), (60, 40));
    controller.counted(&source(&controller), 4, at(0));
    assert_eq!(parts(&controller, at(0)).2, 10);
    controller.counted(&source(&controller), 1, at(0));
    assert_eq!(parts(&controller, at(0)).2, 40, "replicas that come and go bring no retries");
}

#[test]
fn a_reload_keeps_what_was_counted_for_as_long_as_somebody_counts() {
    let controller = replica(2, Some("forebay"));
    let old = source(&controller);
    controller.counted(&old, 5, at(0));
    let reload = |count, service| {
        controller.configure(Settings::from(&config(count, service)), at(10));
        controller.apply(&[pool(vec![arm("default", &[1])])], at(10));
    };
    reload(3, Some("forebay"));
    assert!(Arc::ptr_eq(&old, &source(&controller)), "the same source goes on");
    assert_eq!(count(&controller), 5);
    reload(3, Some("other"));
    assert_eq!(count(&controller), 5);
    assert!(!controller.counted(&old, 7, at(20)), "it is asked no more");
    assert!(controller.counted(&source(&controller), 6, at(20)));
    reload(3, None);
    assert_eq!((count(&controller), controller.fleet().snapshot().replication.source.is_none()), (3, true));
}

#[test]
fn what_is_counted_has_a_limit_and_is_never_none() {
    let controller = replica(2, Some("forebay"));
    controller.counted(&source(&controller), 5_000, at(0));
    assert_eq!((count(&controller), source(&controller).view(at(0)).left_out), (1_000, 4_000));
    controller.counted(&source(&controller), 0, at(0));
    assert_eq!(count(&controller), 1);
}
