//! A drain by hand over time: over reloads that move the backend or leave it out, to its own end, and for whom it may be asked.

use serde_json::Value;

use crate::client::{Answer, Conn};
use crate::harness::{Forebay, Harness, eventually};
use crate::mock::Mock;

/// A POST as `curl -X POST` sends it, with these headers.
fn ask(forebay: &Forebay, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
    let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let (host, length) = (forebay.admin, body.len());
    let text = format!("POST {path} HTTP/1.1\r\nhost: {host}\r\ncontent-length: {length}\r\n{headers}\r\n{body}");
    Conn::open(forebay.admin).ask(text.as_bytes())
}

fn drains(forebay: &Forebay) -> Vec<Value> {
    let answer = Conn::open(forebay.admin).ask(b"GET /api/drains HTTP/1.1\r\nhost: admin\r\n\r\n");
    serde_json::from_str(&answer.text()).unwrap()
}

/// Writes the config anew and waits until it holds.
fn reload(forebay: &Forebay, pools: &str) {
    let before = forebay.metric("forebay_config_reloads_total", &[]);
    std::fs::write(&forebay.config, pools).unwrap();
    forebay.signal("HUP");
    eventually("the reload", || {
        let now = forebay.metric("forebay_config_reloads_total", &[]);
        (now > before).then_some(())
    });
}

#[test]
fn a_drain_by_hand_survives_reloads_that_move_the_backend_or_leave_it_out() {
    let (a, b) = (Mock::start(), Mock::start());
    let arms = |one: &str, other: &str| {
        format!(
            "[[pools]]\nmodel = \"tiny\"\n[[pools.arms]]\nname = \"x\"\nbackends = [{one}]\n\
             [[pools.arms]]\nname = \"y\"\nbackends = [{other}]\n"
        )
    };
    let item = |mock: &Mock| format!("{{ url = \"{}\" }}", mock.url());
    let forebay = Harness::new().pools(&arms(&item(&a), &item(&b))).start();
    assert_eq!(ask(&forebay, &format!("/api/backends/{}/drain", a.authority()), &[], "").status, 200);
    forebay.await_state(&a, "drained");
    reload(&forebay, &arms(&item(&b), &item(&a)));
    forebay.await_state(&a, "drained");
    reload(&forebay, &format!("[[pools]]\nmodel = \"tiny\"\nbackends = [{}]\n", item(&b)));
    eventually("it is gone", || forebay.metrics().contains(&a.authority()).then_some(()).map_or(Some(()), |()| None));
    assert_eq!(drains(&forebay)[0]["backend"], a.authority());
    reload(&forebay, &arms(&item(&b), &item(&a)));
    forebay.await_state(&a, "drained");
    assert_eq!(ask(&forebay, &format!("/api/backends/{}/undrain", a.authority()), &[], "").status, 200);
    forebay.await_state(&a, "healthy");
    assert!(drains(&forebay).is_empty());
}

#[test]
fn a_drain_for_a_time_ends_by_itself() {
    let (a, b) = (Mock::start(), Mock::start());
    let forebay = Harness::new().pool("tiny", &[&a, &b]).start();
    let json = [("content-type", "application/json")];
    let path = format!("/api/backends/{}/drain", a.authority());
    assert_eq!(ask(&forebay, &path, &json, r#"{"by": "ada", "for": "1500ms"}"#).status, 200);
    let drain = &drains(&forebay)[0];
    assert!(
        drain["left_seconds"].as_f64().unwrap() <= 1.5 && drain["words"].as_str().unwrap().contains("by ada until ")
    );
    assert_eq!(forebay.backend(&a)["state"], "drained");
    forebay.await_state(&a, "healthy");
    assert!(drains(&forebay).is_empty());
    assert_eq!(forebay.tells("the time of a drain by hand is over"), 1);
}

#[test]
fn curl_may_drain_and_a_browser_may_not() {
    let mock = Mock::start();
    let forebay = Harness::new().pool("tiny", &[&mock]).start();
    let (drain, undrain) = ("/api/backends/b0/drain", "/api/backends/b0/undrain");
    for path in [drain, undrain] {
        for (headers, status) in [
            (&[("content-type", "application/x-www-form-urlencoded")][..], 415),
            (&[("content-type", "multipart/form-data; boundary=x")], 415),
            (&[("content-type", "text/plain")], 415),
            (&[("origin", "https://evil.example")], 403),
            (&[("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "no-cors")], 403),
            (&[("sec-fetch-site", "same-site")], 403),
        ] {
            assert_eq!(ask(&forebay, path, headers, "").status, status, "{path} {headers:?}");
        }
        // A name that a page pointed here.
        let rebound = format!(
            "POST {path} HTTP/1.1\r\nhost: evil.example\r\norigin: http://evil.example\r\n\
                               sec-fetch-site: same-origin\r\ncontent-length: 0\r\n\r\n"
        );
        assert_eq!(Conn::open(forebay.admin).ask(rebound.as_bytes()).status, 403);
    }
    assert_eq!(forebay.backend(&mock)["state"], "healthy");
    let curl = [("user-agent", "curl/8.5.0"), ("accept", "*/*")];
    assert_eq!(ask(&forebay, drain, &curl, "").status, 200);
    assert_eq!(forebay.backend(&mock)["state"], "drained");
    let own = format!("http://{}", forebay.admin);
    let page = [("origin", own.as_str()), ("sec-fetch-site", "same-origin"), ("content-type", "application/json")];
    assert_eq!(ask(&forebay, undrain, &page, "").status, 200);
    assert_eq!(forebay.backend(&mock)["state"], "healthy");
}
