//! The registry of clients: allowances, reloads, names in the metrics.

use std::time::Duration;

use super::*;
use crate::config::model::KeyConfig;
use forebay_core::error::{Over, Refusal};

fn at(seconds: u64) -> Time {
    Time::ZERO + Duration::from_secs(seconds)
}

fn key(name: &str, requests: u32, tokens: u32) -> ClientKey {
    let limit = |limit: u32| (limit > 0).then_some(limit);
    let config = KeyConfig {
        name: name.into(),
        requests_per_minute: limit(requests),
        tokens_per_minute: limit(tokens),
        concurrent_requests: Some(2),
        ..KeyConfig::default()
    };
    ClientKey::of(config, [0; 32])
}

fn clients(keys: &[ClientKey]) -> KnownClients {
    let clients = KnownClients::new(Arc::new(Telemetry::new()));
    clients.apply(Some(keys), at(0));
    clients
}

fn first(clients: &KnownClients) -> Arc<Client> {
    Arc::clone(&clients.list().unwrap()[0])
}

#[test]
fn a_lease_gives_its_place_back_and_a_refused_prompt_its_request() {
    let clients = clients(&[key("a", 600, 600)]);
    let client = first(&clients);
    let mut one = client.enter(60, at(0)).unwrap();
    one.charge(60, at(0)).unwrap();
    let mut two = client.enter(1, at(0)).unwrap();
    let refused = two.charge(5, at(0)).unwrap_err();
    assert_eq!((refused.status(), refused.retry_after()), (429, Some(1)));
    assert!(matches!(refused, Refusal::RateLimited { over: Over::Tokens, .. }));
    assert!(client.enter(1, at(0)).is_err(), "both places are taken");
    drop(two);
    let [requests, tokens] = client.standing(at(0)).map(Option::unwrap);
    assert_eq!((requests.remaining, tokens.remaining), (59, 0));
    one.correct(10, at(0));
    assert_eq!(client.standing(at(0))[1].unwrap().remaining, 50);
    drop(one);
    let view = clients.view(at(0)).unwrap();
    let shown = &view.shown[0];
    assert_eq!((shown.in_flight, shown.admitted, shown.limited, view.more), (0, 1, 2, 0));
}

#[test]
fn a_reload_keeps_what_was_used_by_name() {
    let clients = clients(&[key("a", 600, 0)]);
    let (client, mut allowances) = (first(&clients), Vec::new());
    allowances.push(client.enter(0, at(0)).unwrap());
    clients.apply(Some(&[key("b", 600, 0), key("a", 6000, 0)]), at(0));
    let list = clients.list().unwrap();
    let requests = |client: &Arc<Client>| {
        drop(client.enter(0, at(0)).unwrap());
        client.standing(at(0))[0].unwrap()
    };
    assert_eq!((requests(&list[0]).remaining, requests(&list[1]).remaining), (59, 58));
    assert_eq!(requests(&list[1]).limit, 6000);
    drop(allowances);
    clients.apply(None, at(0));
    assert!(clients.list().is_none() && clients.view(at(0)).is_none());
}

#[test]
fn names_in_the_metrics_are_bounded_and_leave_with_their_keys() {
    let keys: Vec<ClientKey> = (0..NAMED + 20).map(|n| key(&format!("k{n}"), 0, 0)).collect();
    let clients = clients(&keys);
    let series = || {
        let text = clients.telemetry.render(&[], &[]);
        text.lines().filter(|line| line.starts_with("forebay_client_requests_total")).count()
    };
    assert_eq!(series(), NAMED + 1);
    for client in clients.list().unwrap().iter() {
        client.enter(0, at(0)).unwrap().charge(0, at(0)).unwrap();
    }
    let text = clients.telemetry.render(&[], &[]);
    assert!(text.contains("forebay_client_requests_total{client=\"k3\"} 1\n"));
    assert!(text.contains("forebay_client_requests_total{client=\"other\"} 20\n"), "{text}");
    clients.apply(Some(&keys[..1]), at(0));
    assert_eq!(series(), 1);
    clients.apply(None, at(0));
    assert_eq!(series(), 0);
}
