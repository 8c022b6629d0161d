//! Backends that a source names: they join, are drained, leave after their last request, and outlast a reload. Errors take none away.

use super::*;
use crate::config::model::{ArmConfig, Discover, DiscoverySource, DnsName};
use crate::membership::roster::Found;
use crate::source::Source;
use crate::telemetry::labels::DiscoveryFailure;
use std::time::Duration;

fn discover(host: &str) -> Discover {
    let source =
        DiscoverySource::Dns { name: DnsName { host: host.to_owned(), port: 8000 }, interval: Duration::from_secs(5) };
    Discover { source, https: false, max_backends: 8, key: None, gpus_each: true }
}

fn by_name(host: &str) -> model::PoolConfig {
    pool(vec![ArmConfig { discover: Some(discover(host)), ..arm("default", &[]) }])
}

fn found(ports: &[u16]) -> Vec<Found> {
    ports.iter().map(|&port| Found::ready(url(port))).collect()
}

fn not_ready(port: u16) -> Found {
    Found { drained: Some("it is not Ready"), ..Found::ready(url(port)) }
}

fn source(controller: &Controller) -> Arc<Source> {
    the_pool(controller).arms()[0].source.clone().unwrap()
}

fn take(controller: &Controller, found: Vec<Found>, now: Time) -> bool {
    controller.found(MODEL, "default", &source(controller), found, now)
}

/// Ports and states.
fn states(controller: &Controller) -> Vec<(u16, &'static str)> {
    the_pool(controller).members().iter().map(|member| (member.backend.url.port(), member.state.label())).collect()
}

#[test]
fn a_pool_is_empty_until_its_source_answers_and_refuses_meanwhile() {
    let controller = controller(by_name("vllm"));
    assert!(the_pool(&controller).is_up_nowhere());
    let refused = dispatch(&controller, &[], at(0)).map(|dispatched| dispatched.decision);
    assert_eq!(refused, Err(Refusal::NoBackend(MODEL.to_owned())));
    let view = source(&controller).view(at(10));
    assert_eq!((view.age_seconds, view.found, view.kind, view.target.as_str()), (None, 0, "dns", "vllm:8000"));
    assert!(take(&controller, found(&[1, 2]), at(10)));
    assert!(!take(&controller, found(&[2, 1]), at(20)), "nothing new");
    assert!(dispatch(&controller, &[], at(20)).is_ok());
    let shown = FleetView::new(&controller.fleet().snapshot(), at(30)).pools[0].arms[0].clone();
    let view = shown.source.unwrap();
    assert_eq!((view.age_seconds, view.found, shown.gpus), (Some(0.01), 2, 2));
}

#[test]
fn a_backend_keeps_its_identity_while_others_come_and_go() {
    let controller = controller(by_name("vllm"));
    take(&controller, found(&[1, 2]), at(0));
    let kept = id(&controller, 2);
    take(&controller, found(&[2, 3]), at(1));
    assert_eq!(states(&controller), [(1, "drained"), (2, "healthy"), (3, "healthy")]);
    assert!(controller.retire(at(2)), "it had nothing to do");
    assert_eq!(states(&controller), [(2, "healthy"), (3, "healthy")]);
    assert_eq!(id(&controller, 2), kept);
    assert!(!controller.retire(at(3)));
}

#[test]
fn one_that_is_gone_stays_until_its_last_request_ends() {
    let controller = controller(by_name("vllm"));
    take(&controller, found(&[1]), at(0));
    let ticket = dispatch(&controller, &[], at(1)).unwrap().ticket;
    take(&controller, found(&[2]), at(2));
    for ms in 3..20 {
        assert!(!controller.retire(at(ms)));
        assert_eq!(dispatch(&controller, &[], at(ms)).unwrap().decision.backend, id(&controller, 2));
    }
    assert_eq!(the_pool(&controller).members()[0].state.reason(), Some("its source no longer names it"));
    drop(ticket);
    assert!(controller.retire(at(21)));
    assert_eq!(states(&controller), [(2, "healthy")]);
}

#[test]
fn an_error_takes_nothing_away_and_is_news_once() {
    let controller = controller(by_name("vllm"));
    take(&controller, found(&[1, 2]), at(0));
    let source = source(&controller);
    assert!(source.failed(DiscoveryFailure::Unresolved, "no such name"));
    assert!(!source.failed(DiscoveryFailure::Unresolved, "no such name"));
    assert!(!controller.retire(at(5000)));
    assert_eq!(states(&controller), [(1, "healthy"), (2, "healthy")]);
    let view = source.view(at(5000));
    assert_eq!((view.age_seconds, view.found, view.error.as_deref()), (Some(5.0), 2, Some("no such name")));
    assert!(view.errors.contains(&("unresolved", 2)));
    source.confirmed(at(6000));
    assert_eq!((source.view(at(6000)).age_seconds, source.view(at(6000)).error), (Some(0.0), None));
}

#[test]
fn one_that_is_ready_again_is_asked_at_once_however_long_it_was_put_out_for() {
    let controller = controller(by_name("vllm"));
    take(&controller, found(&[1, 2]), at(0));
    let one = id(&controller, 1);
    take(&controller, vec![not_ready(1), Found::ready(url(2))], at(1));
    assert_eq!(states(&controller), [(1, "drained"), (2, "healthy")]);
    controller.gone(one, at(2));
    controller.health(one, Ok(()), at(3));
    take(&controller, found(&[1, 2]), at(4));
    assert_eq!(states(&controller), [(1, "ejected"), (2, "healthy")]);
    assert!(controller.wants_probe(one, at(4)));
    controller.probed(one, Probed::Passed, at(5));
    assert_eq!(states(&controller), [(1, "healthy"), (2, "healthy")]);
}

#[test]
fn a_reload_keeps_what_was_found_and_an_answer_of_the_old_source_counts_for_nothing() {
    let controller = controller(by_name("vllm"));
    take(&controller, found(&[1, 2]), at(0));
    let (old, kept) = (source(&controller), id(&controller, 1));
    let other_policy = model::PoolConfig { policy: PolicyName::P2c, ..by_name("vllm") };
    controller.apply(&[other_policy], at(1));
    assert!(Arc::ptr_eq(&old, &source(&controller)) && id(&controller, 1) == kept);
    controller.apply(&[by_name("elsewhere")], at(2));
    assert_eq!(states(&controller), [(1, "healthy"), (2, "healthy")], "until the new source answers");
    assert!(!controller.found(MODEL, "default", &old, found(&[7]), at(3)));
    take(&controller, found(&[2, 3]), at(4));
    assert_eq!(states(&controller), [(1, "drained"), (2, "healthy"), (3, "healthy")]);
}

#[test]
fn an_arm_that_gets_a_source_serves_by_its_list_until_the_source_answers() {
    let controller = controller(pool(vec![arm("default", &[1, 2])]));
    let kept = id(&controller, 2);
    controller.apply(&[by_name("vllm")], at(1));
    assert_eq!(states(&controller), [(1, "healthy"), (2, "healthy")]);
    take(&controller, found(&[2]), at(2));
    controller.retire(at(3));
    assert_eq!((states(&controller), id(&controller, 2)), (vec![(2, "healthy")], kept));
    controller.apply(&[pool(vec![arm("default", &[2, 5])])], at(4));
    assert_eq!((states(&controller).len(), id(&controller, 2)), (2, kept), "and back to a list");
    assert!(the_pool(&controller).arms()[0].source.is_none());
}

#[test]
fn the_series_of_a_source_are_there_and_bounded() {
    let controller = controller(by_name("vllm"));
    let text = |now: Time| {
        let (backends, arms) = FleetView::new(&controller.fleet().snapshot(), now).gauges();
        crate::telemetry::Telemetry::new().render(&backends, &arms)
    };
    let arm = r#"pool="m",arm="default""#;
    assert!(!text(at(0)).contains("forebay_discovered_backends{"), "not known is not zero");
    take(&controller, (1..20).map(|port| Found::ready(url(port))).collect(), at(0));
    source(&controller).failed(DiscoveryFailure::Empty, "no address");
    let text = text(at(2000));
    for line in [
        format!("forebay_discovered_backends{{{arm},source=\"dns\"}} 8\n"),
        format!("forebay_discovery_age_seconds{{{arm},source=\"dns\"}} 2\n"),
        format!("forebay_discovery_errors_total{{{arm},reason=\"empty\"}} 1\n"),
        format!("forebay_discovery_errors_total{{{arm},reason=\"refused\"}} 0\n"),
    ] {
        assert!(text.contains(&line), "{line} is not in\n{text}");
    }
    assert_eq!(the_pool(&controller).members().len(), 8);
}
