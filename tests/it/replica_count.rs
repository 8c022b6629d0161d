//! The number of replicas as a Service of Forebay's own has it: limits and intervals follow it, and no error changes it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::apiserver::{ApiServer, Trouble};
use crate::client::Conn;
use crate::harness::{Forebay, Harness, eventually};
use crate::mock::Mock;

/// A Forebay that counts its replicas, with these further keys in its sections.
fn start(api: &ApiServer, mock: &Mock, more: &str) -> Forebay {
    let replicas =
        format!("[replicas]\ncount = 2\nservice = \"forebay\"\nkubernetes = {{ {} }}\n{more}\n", api.cluster());
    Harness::new()
        .file("token", &format!("{}\n", ApiServer::token()))
        .config(&replicas)
        .pool_with("tiny", "split_salt = \"s\"\nbackend_max_in_flight = 12\nwait_room = { size = 60 }", &[mock])
        .start()
}

fn fleet(forebay: &Forebay) -> Value {
    Conn::open(forebay.admin).ask(b"GET /api/fleet HTTP/1.1\r\nhost: admin\r\n\r\n").json()
}

fn await_count(forebay: &Forebay, count: u64) {
    eventually(&format!("{count} replicas"), || (fleet(forebay)["replicas"]["count"] == count).then_some(()));
    assert_eq!(forebay.metric("forebay_replicas", &[]), count as f64);
}

/// The limit on the backend and the size of the wait room that are in force.
fn limits(forebay: &Forebay) -> (u64, u64) {
    let pool = fleet(forebay)["pools"][0].clone();
    (pool["backend_max_in_flight"].as_u64().unwrap(), pool["wait_room"]["size"].as_u64().unwrap())
}

#[test]
fn limits_follow_the_ready_endpoints_of_the_service() {
    let (api, mock) = (ApiServer::start(), Mock::start());
    api.put_replicas(&[true, true, false, true]);
    let forebay = start(&api, &mock, "");
    await_count(&forebay, 3);
    assert_eq!(limits(&forebay), (4, 20));
    let source = fleet(&forebay)["replicas"]["source"].clone();
    assert_eq!((&source["target"], &source["error"]), (&"endpoints of forebay in inference".into(), &Value::Null));
    let wanted = "/apis/discovery.k8s.io/v1/namespaces/inference/endpointslices?labelSelector=kubernetes.io%2Fservice-name%3Dforebay&";
    assert!(api.paths().iter().all(|path| path.starts_with(wanted)), "{:?}", api.paths());
    // Scaled up, and down again.
    api.await_watch_after(0);
    api.put_replicas(&[true; 6]);
    await_count(&forebay, 6);
    assert_eq!(limits(&forebay), (2, 10));
    api.put_replicas(&[true]);
    await_count(&forebay, 1);
    assert_eq!(limits(&forebay), (12, 60));
}

#[test]
fn neither_an_error_nor_a_service_without_a_ready_endpoint_changes_the_number() {
    let (api, mock) = (ApiServer::start(), Mock::start());
    let forebay = start(&api, &mock, "");
    assert_eq!(fleet(&forebay)["replicas"]["count"], 2, "what is configured, until the Service has endpoints");
    api.put_replicas(&[true; 4]);
    await_count(&forebay, 4);
    let watches = api.asked().1;
    api.put_replicas(&[false; 4]);
    api.end_watches();
    // A list that names nobody came before it.
    api.await_watch_after(watches);
    assert_eq!(fleet(&forebay)["replicas"]["count"], 4);
    api.trouble(Some(Trouble::Forbidden));
    let error = || fleet(&forebay)["replicas"]["source"]["error"].as_str().map(str::to_owned);
    let error = eventually("an error", error);
    assert!(error.contains("answered 403"), "{error}");
    assert_eq!(forebay.tells("replicas of Forebay cannot be counted"), 1, "{}", forebay.log());
    api.kill();
    eventually("another error", || {
        fleet(&forebay)["replicas"]["source"]["error"].as_str().filter(|now| **now != error).map(drop)
    });
    await_count(&forebay, 4);
    assert_eq!(limits(&forebay), (3, 15));
    api.trouble(None);
    api.put_replicas(&[true; 5]);
    api.start_again();
    await_count(&forebay, 5);
}

#[test]
fn probes_and_scrapes_become_rarer_as_replicas_come() {
    let (api, mock) = (ApiServer::start(), Mock::start());
    let asked = [(); 2].map(|()| Arc::new(AtomicUsize::new(0)));
    let seen = asked.clone();
    mock.probes(move |path| {
        let which = ["/health", "/metrics"].iter().position(|one| *one == path);
        if let Some(which) = which {
            seen[which].fetch_add(1, Ordering::Relaxed);
        }
        None
    });
    let quick = "[health]\ninterval = \"10ms\"\ntimeout = \"10ms\"\n[scrape]\ninterval = \"10ms\"\ntimeout = \"10ms\"";
    api.put_replicas(&[true]);
    let forebay = start(&api, &mock, quick);
    await_count(&forebay, 1);
    api.await_watch_after(0);
    api.put_replicas(&[true; 100]);
    await_count(&forebay, 100);
    for (asked, what) in asked.iter().zip(["probe", "scrape"]) {
        // From one question to the next but one: the first may have been under way.
        let next = || {
            let before = asked.load(Ordering::Relaxed);
            eventually(what, || (asked.load(Ordering::Relaxed) > before).then_some(()));
        };
        next();
        next();
        let begun = Instant::now();
        next();
        // A second, and a tenth less by chance; one replica asks again after ten milliseconds.
        assert!(begun.elapsed() > Duration::from_millis(500), "{what}: {:?}", begun.elapsed());
    }
}
