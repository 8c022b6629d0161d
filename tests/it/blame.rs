//! Whose doing a failure is: the request's where all backends fail alike, a client's where it invents sessions, nobody's where an
//! engine sleeps.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use sha2::{Digest, Sha256};

use crate::client::{Conn, post};
use crate::harness::{Forebay, Harness, eventually, eventually_within, ms};
use crate::mock::{CHAT, DONE, Gate, Mock, Script, Seen, Step, answer, stream};

const PATH: &str = "/v1/chat/completions";
const STREAM: &str = r#"{"model":"tiny","stream":true,"messages":[]}"#;
const UNARY: &str = r#"{"model":"tiny","messages":[]}"#;

fn error_event() -> Script {
    let event = r#"data: {"error":{"message":"boom","type":"InternalServerError","param":null,"code":500}}"#;
    stream(&[format!("{event}\n\n"), DONE.to_owned()])
}

/// What a backend does with a request.
type Play = fn() -> Script;

fn ejections(forebay: &Forebay) -> f64 {
    forebay.metric("forebay_ejections_total", &["reason=\"failures\""])
}

#[test]
fn the_same_server_error_from_all_ejects_none_however_it_is_told() {
    let played: [(&str, Play); 2] = [("a status", || answer(500, &[], "{}")), ("an event", error_event)];
    for (what, play) in played {
        for retry in ["attempts = 3", "attempts = 1", "budget = { burst = 1, ratio = 0, per_second = 0 }"] {
            let mocks = [0, 1, 2].map(|_| {
                Mock::replying(
                    move |seen: &Seen| if seen.text().contains("bad") { play() } else { answer(200, &[], CHAT) },
                )
            });
            let forebay = Harness::new().config(&format!("[retry]\n{retry}")).pool("tiny", &mocks.each_ref()).start();
            for _ in 0..12 {
                let bad = r#"{"model":"tiny","stream":true,"messages":[{"role":"user","content":"bad"}]}"#;
                assert_eq!(forebay.post(PATH, bad).status, 500, "{what}, {retry}");
            }
            for mock in &mocks {
                assert_eq!(forebay.backend(mock)["state"], "healthy", "{what}, {retry}");
            }
            assert_eq!(ejections(&forebay), 0.0, "{what}, {retry}");
            assert_eq!(forebay.post(PATH, UNARY).status, 200);
        }
    }
}

#[test]
fn one_that_fails_where_the_others_serve_is_ejected() {
    let played: [(&str, Play); 2] = [("a status", || answer(500, &[], "{}")), ("an event", error_event)];
    for (what, play) in played {
        let mocks = [Mock::replying(move |_: &Seen| play()), Mock::start(), Mock::start()];
        let forebay = Harness::new().pool("tiny", &mocks.each_ref()).start();
        eventually(&format!("it is ejected: {what}"), || {
            assert_eq!(forebay.post(PATH, STREAM).status, 200);
            (ejections(&forebay) > 0.0).then_some(())
        });
        assert_eq!(forebay.backend(&mocks[1])["state"], "healthy");
        assert_eq!(forebay.backend(&mocks[2])["state"], "healthy");
    }
}

#[test]
fn a_client_that_is_told_to_wait_keeps_no_backend_from_others() {
    let mocks = [Mock::start(), Mock::start()];
    for mock in &mocks {
        // As a server behind a gateway with a limit for each key does.
        mock.reply(|seen| match seen.header("authorization") {
            Some("Bearer greedy") => answer(429, &[("retry-after", "30")], "{}"),
            _ => answer(200, &[], CHAT),
        });
    }
    let forebay = Harness::new().config("[retry]\nattempts = 1").pool("tiny", &mocks.each_ref()).start();
    for round in 1..=4 {
        let greedy = post(PATH, &[("authorization", "Bearer greedy")], UNARY.as_bytes());
        assert_eq!(forebay.open().ask(&greedy).status, 429);
        let before = mocks.each_ref().map(|mock| mock.seen().len());
        eventually_within(ms(3000), &format!("both serve others again, round {round}"), || {
            assert_eq!(forebay.post(PATH, UNARY).status, 200);
            std::iter::zip(&mocks, before).all(|(mock, before)| mock.seen().len() > before).then_some(())
        });
    }
}

#[test]
fn requests_for_adapters_pay_into_the_retry_budget() {
    let lists = r#"{"data":[{"id":"tiny"},{"id":"adapter"}]}"#;
    let mocks = [Mock::start(), Mock::start(), Mock::start()];
    let fails = Arc::new(AtomicBool::new(false));
    for mock in &mocks[..2] {
        mock.probes(move |target| (target == "/v1/models").then(|| answer(200, &[], lists)));
        let fails = Arc::clone(&fails);
        // Every other attempt fails, so that a request has one retry.
        mock.reply(move |_| {
            if fails.fetch_xor(true, Ordering::SeqCst) {
                answer(503, &[("retry-after", "0")], "{}")
            } else {
                answer(200, &[], CHAT)
            }
        });
    }
    // The third does not serve the adapter.
    let config = "[retry]\nbudget = { burst = 2, ratio = 1, per_second = 0 }";
    let known = "unknown_models = \"refuse\"";
    let forebay = Harness::new().config(config).pool_with("tiny", known, &mocks.each_ref()).start();
    let body = r#"{"model":"adapter","messages":[]}"#;
    eventually("the adapter is known", || (forebay.post(PATH, body).status == 200).then_some(()));
    for request in 0..20 {
        assert_eq!(forebay.post(PATH, body).status, 200, "request {request}");
    }
    assert!(mocks[2].seen().is_empty());
}

/// A backend with one place, which its first request holds until the gate opens.
fn held(gate: &Gate) -> Mock {
    let gate = gate.clone();
    Mock::replying(move |seen: &Seen| {
        let served = answer(200, &[], CHAT);
        if seen.text().contains("hold") { [vec![Step::Hold(gate.clone())], served].concat() } else { served }
    })
}

fn keys(names: &[&str]) -> String {
    let line = |name: &&str| {
        let hash: String = Sha256::digest(name.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{name} = {hash}\n")
    };
    names.iter().map(line).collect()
}

fn ask_later(forebay: &Forebay, key: &str, session: &str, content: &str) -> Conn {
    let mut conn = forebay.open();
    let key = format!("Bearer {key}");
    let body = format!(r#"{{"model":"tiny","messages":[{{"role":"user","content":"{content}"}}]}}"#);
    conn.send(&post(PATH, &[("authorization", &key), ("x-session-id", session)], body.as_bytes()));
    conn
}

#[test]
fn a_key_with_new_sessions_does_not_starve_another_key() {
    let gate = Gate::new();
    let mock = held(&gate);
    let forebay = Harness::new()
        .config("[clients]\nkeys_file = \"keys\"")
        .file("keys", &keys(&["noisy", "quiet"]))
        .pool_with("tiny", "backend_max_in_flight = 1\nwait_room = { size = 100, timeout = \"60s\" }", &[&mock])
        .start();
    let waiting = |count: f64| {
        eventually(&format!("{count} wait"), || (forebay.metric("forebay_waiting", &[]) == count).then_some(()));
    };
    let mut first = ask_later(&forebay, "noisy", "s", "hold");
    mock.await_requests(1);
    let mut noisy: Vec<Conn> = (0..12_u32)
        .map(|n| {
            let conn = ask_later(&forebay, "noisy", &format!("invented-{n}"), "noisy");
            waiting(f64::from(n + 1));
            conn
        })
        .collect();
    let mut quiet: Vec<Conn> = (0..3_u32)
        .map(|n| {
            let conn = ask_later(&forebay, "quiet", "mine", "quiet");
            waiting(f64::from(n + 13));
            conn
        })
        .collect();
    gate.open();
    for conn in quiet.iter_mut().chain(&mut noisy).chain([&mut first]) {
        assert_eq!(conn.answer().status, 200);
    }
    let order: Vec<bool> = mock.seen()[1..].iter().map(|seen| seen.text().contains("quiet")).collect();
    let last = order.iter().rposition(|quiet| *quiet).unwrap();
    assert!(last < 6, "the keys take turns: {order:?}");
}

#[test]
fn an_engine_that_sleeps_or_is_paused_is_drained_until_it_wakes() {
    for (path, member) in [("/is_sleeping", "is_sleeping"), ("/is_paused", "is_paused")] {
        let mocks = [Mock::start(), Mock::start()];
        let rests = Arc::new(AtomicBool::new(false));
        let says = Arc::clone(&rests);
        mocks[0].probes(move |target| {
            matches!(target, "/is_sleeping" | "/is_paused").then(|| {
                let rests = target == path && says.load(Ordering::SeqCst);
                let member = target.trim_start_matches('/');
                answer(200, &[], &format!("{{\"{member}\":{rests}}}"))
            })
        });
        let forebay = Harness::new()
            .config("[health]\ninterval = \"250ms\"\ntimeout = \"250ms\"")
            .pool("tiny", &mocks.each_ref())
            .start();
        eventually("both serve", || {
            assert_eq!(forebay.post(PATH, UNARY).status, 200);
            mocks.iter().all(|mock| !mock.seen().is_empty()).then_some(())
        });
        rests.store(true, Ordering::SeqCst);
        // What is sent there now would wait for ever.
        mocks[0].reply(|_| vec![Step::AwaitClose]);
        forebay.await_state(&mocks[0], "drained");
        let reason = forebay.backend(&mocks[0])["reason"].as_str().unwrap_or_default().to_owned();
        assert!(reason.contains(if member == "is_sleeping" { "sleeps" } else { "paused" }), "{reason}");
        for _ in 0..6 {
            assert_eq!(forebay.post(PATH, UNARY).status, 200);
        }
        rests.store(false, Ordering::SeqCst);
        mocks[0].reply(|_| answer(200, &[], CHAT));
        forebay.await_state(&mocks[0], "healthy");
        let before = mocks[0].seen().len();
        eventually("it serves again", || {
            assert_eq!(forebay.post(PATH, UNARY).status, 200);
            (mocks[0].seen().len() > before).then_some(())
        });
    }
}

#[test]
fn where_all_engines_sleep_a_request_does_not_wait() {
    let mock = Mock::playing(vec![Step::AwaitClose]);
    mock.probes(|target| (target == "/is_sleeping").then(|| answer(200, &[], "{\"is_sleeping\":true}")));
    let forebay = Harness::new().pool("tiny", &[&mock]).start();
    forebay.await_state(&mock, "drained");
    let started = std::time::Instant::now();
    let answer = forebay.post(PATH, UNARY);
    assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")));
    assert!(started.elapsed() < ms(5000));
}
