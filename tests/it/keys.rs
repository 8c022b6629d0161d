//! Client keys with limits on the wire: what is refused, what is told, what costs whom.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use sha2::{Digest, Sha256};

use crate::client::{Answer, Conn, End, post};
use crate::harness::{Forebay, Harness, eventually, ms};
use crate::mock::{CHAT, DONE, Gate, Mock, Step, USAGE, answer, chunk, last_chunk, stream, stream_head, token};

const PATH: &str = "/v1/chat/completions";
const UNARY: &str = r#"{"model":"tiny","messages":[]}"#;
const STREAM: &str = r#"{"model":"tiny","stream":true,"messages":[]}"#;

/// The lines of a keys file: the key of `a` is `key-a`.
fn keys_file(names: &[&str]) -> String {
    let line = |name: &&str| {
        let hash: String = Sha256::digest(format!("key-{name}")).iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{name} = {hash}\n")
    };
    names.iter().map(line).collect()
}

/// A Forebay before these backends whose keys are `names`, with these tables.
fn keyed(names: &[&str], tables: &str, keys: &str, backends: &[&Mock]) -> Forebay {
    Harness::new()
        .config(&format!("[clients]\nkeys_file = \"keys\"\n{tables}"))
        .file("keys", &keys_file(names))
        .pool_with("tiny", keys, backends)
        .start()
}

fn as_client(conn: &mut Conn, name: &str, body: &str) -> Answer {
    conn.ask(&request(name, body))
}

fn request(name: &str, body: &str) -> Vec<u8> {
    post(PATH, &[("authorization", &format!("Bearer key-{name}"))], body.as_bytes())
}

fn get(forebay: &Forebay, name: &str, path: &str) -> Answer {
    let head = format!("GET {path} HTTP/1.1\r\nhost: forebay\r\nauthorization: Bearer key-{name}\r\n\r\n");
    forebay.open().ask(head.as_bytes())
}

fn left(answer: &Answer, of: &str) -> u32 {
    let name = format!("x-ratelimit-remaining-{of}");
    answer.header(&name).unwrap_or_else(|| panic!("{:?}", answer.headers)).parse().unwrap()
}

#[test]
fn a_client_over_its_requests_is_told_when_to_come_again_and_passes_then() {
    let mock = Mock::start();
    let limits = "[[clients.keys]]\nname = \"a\"\nrequests_per_minute = 60\nrequests_burst = 2";
    let forebay = keyed(&["a", "b"], limits, "", &[&mock]);
    let mut conn = forebay.open();
    for remaining in [1, 0] {
        let answer = as_client(&mut conn, "a", UNARY);
        assert_eq!((answer.status, left(&answer, "requests")), (200, remaining), "{}", answer.text());
        assert_eq!(answer.header("x-ratelimit-limit-requests"), Some("60"));
        assert!(answer.header("x-ratelimit-reset-requests").unwrap().ends_with('s'));
        assert_eq!(answer.header("x-ratelimit-limit-tokens"), None, "no such limit");
    }
    let refused = as_client(&mut conn, "a", UNARY);
    assert_eq!((refused.status, refused.header("retry-after")), (429, Some("1")));
    assert_eq!(refused.json()["error"]["type"], "forebay_rate_limited");
    assert_eq!((refused.header("x-forebay-error"), left(&refused, "requests")), (Some("forebay_rate_limited"), 0));
    assert!(refused.text().contains("requests a minute"), "{}", refused.text());
    let anthropic = conn.ask(&post("/v1/messages", &[("x-api-key", "key-a")], UNARY.as_bytes()));
    assert_eq!((anthropic.status, anthropic.json()["type"].as_str()), (429, Some("error")));
    // Another key is not held to it, and has no such headers.
    let other = as_client(&mut conn, "b", UNARY);
    assert_eq!((other.status, other.header("x-ratelimit-limit-requests")), (200, None));
    let refused_at = Instant::now();
    eventually("a second has passed", || (refused_at.elapsed() >= ms(1000)).then_some(()));
    assert_eq!(as_client(&mut conn, "a", UNARY).status, 200);
    assert_eq!(mock.seen().len(), 4);
    let limited = ["client=\"a\"", "limit=\"requests\""];
    assert_eq!(forebay.metric("forebay_client_limited_total", &limited), 2.0);
    assert_eq!(forebay.metric("forebay_client_requests_total", &["client=\"a\""]), 3.0);
    let counted = || forebay.metric("forebay_client_tokens_total", &["client=\"a\"", "kind=\"prompt\""]) == 21.0;
    eventually("usage is counted by client", || counted().then_some(()));
}

#[test]
fn what_is_answered_here_takes_no_request() {
    let mock = Mock::start();
    let limits = "[[clients.keys]]\nname = \"a\"\nrequests_per_minute = 1";
    let forebay = keyed(&["a"], limits, "", &[&mock]);
    for _ in 0..3 {
        assert_eq!(get(&forebay, "a", "/v1/models").status, 200);
    }
    assert_eq!(as_client(&mut forebay.open(), "a", UNARY).status, 200);
    let refused = as_client(&mut forebay.open(), "a", UNARY);
    assert_eq!(refused.status, 429);
    let after: u32 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((58..=60).contains(&after), "{after}");
}

#[test]
fn a_prompt_is_charged_by_its_estimate_and_corrected_by_usage() {
    let mock = Mock::start();
    // Thirty thousand tokens at once, and 5,000 a second.
    let limits = "[[clients.keys]]\nname = \"a\"\ntokens_per_minute = 3000\ntokens_burst = 30000";
    let forebay = keyed(&["a"], limits, "", &[&mock]);
    let prompt =
        format!("{{\"model\":\"tiny\",\"messages\":[{{\"role\":\"user\",\"content\":\"{}\"}}]}}", "word ".repeat(4000));
    let usage = |prompt: u32, output: u32| {
        CHAT.replace("\"prompt_tokens\":7", &format!("\"prompt_tokens\":{prompt}"))
            .replace("\"completion_tokens\":1", &format!("\"completion_tokens\":{output}"))
    };
    mock.next(answer(200, &[], &usage(1000, 200)));
    let first = as_client(&mut forebay.open(), "a", &prompt);
    // At the door the estimate is taken: some 4,000 to 7,000 tokens.
    let at_the_door = left(&first, "tokens");
    assert!((22_000..27_000).contains(&at_the_door), "{at_the_door}");
    // Then what was used: 1,200. A request of a token or two shows what is left.
    let now_left = || {
        let shown = get(&forebay, "a", "/v1/models");
        left(&shown, "tokens")
    };
    eventually("usage is what counts", || (28_790..=28_990).contains(&now_left()).then_some(()));
    // A failure before the first token gives all of it back.
    mock.next(answer(400, &[], "{}"));
    assert_eq!(as_client(&mut forebay.open(), "a", &prompt).status, 400);
    eventually("it is given back", || (now_left() >= 28_790).then_some(()));
    // An answer that costs more than there is leaves a debt.
    mock.next(answer(200, &[], &usage(1000, 40_000)));
    assert_eq!(as_client(&mut forebay.open(), "a", UNARY).status, 200);
    eventually("a debt", || (now_left() == 0).then_some(()));
    let refused = as_client(&mut forebay.open(), "a", UNARY);
    let after: u32 = refused.header("retry-after").unwrap().parse().unwrap();
    // A debt of 12,000 to 12,210 at fifty a second.
    assert_eq!((refused.status, (235..=246).contains(&after)), (429, true), "{after}");
    assert!(refused.text().contains("tokens a minute"), "{}", refused.text());
}

#[test]
fn a_stream_is_charged_by_its_usage_and_one_that_ends_before_its_first_token_costs_nothing() {
    let mock = Mock::start();
    let limits = "[[clients.keys]]\nname = \"a\"\ntokens_per_minute = 60\ntokens_burst = 1000";
    let forebay = keyed(&["a"], limits, "", &[&mock]);
    let now_left = || left(&get(&forebay, "a", "/v1/models"), "tokens");
    mock.next(stream(&[token("Hel"), USAGE.replace(":7", ":500").replace(":2}", ":100}"), DONE.to_owned()]));
    assert_eq!(as_client(&mut forebay.open(), "a", STREAM).end, End::Whole);
    eventually("its usage", || (400..=430).contains(&now_left()).then_some(()));
    // The backend dies with it, and there is no other.
    mock.next(vec![stream_head(), Step::Close]);
    let failed = as_client(&mut forebay.open(), "a", STREAM);
    assert!(failed.status >= 500);
    eventually("nothing", || (now_left() >= 400).then_some(()));
}

#[test]
fn places_are_counted_and_free_again_however_a_request_ends() {
    let (gate, mock) = (Gate::new(), Mock::start());
    let limits = "[[clients.keys]]\nname = \"a\"\nconcurrent_requests = 2";
    let forebay = keyed(&["a", "b"], limits, "", &[&mock]);
    let held =
        |gate: &Gate| vec![stream_head(), chunk(token("Hi")), Step::Wait(gate.clone()), chunk(DONE), last_chunk()];
    mock.next(held(&gate));
    mock.next(held(&gate));
    let mut conns: Vec<Conn> = (0..2).map(|_| forebay.open()).collect();
    for conn in &mut conns {
        conn.send(&request("a", STREAM));
        conn.until("Hi");
    }
    assert_eq!(forebay.metric("forebay_client_in_flight", &["client=\"a\""]), 2.0);
    let refused = as_client(&mut forebay.open(), "a", STREAM);
    assert_eq!((refused.status, refused.header("retry-after")), (429, Some("1")));
    assert!(refused.text().contains("requests at once"), "{}", refused.text());
    assert_eq!(as_client(&mut forebay.open(), "b", STREAM).status, 200, "no client's excess costs another");
    // One client leaves, the other request ends well.
    conns.pop().unwrap().reset();
    eventually("a place is free", || (as_client(&mut forebay.open(), "a", UNARY).status == 200).then_some(()));
    gate.open();
    assert_eq!(conns[0].answer().end, End::Whole);
    eventually("all are", || (forebay.metric("forebay_client_in_flight", &["client=\"a\""]) == 0.0).then_some(()));
}

#[test]
fn a_key_sees_and_uses_the_models_it_may() {
    let (mock, other) = (Mock::start(), Mock::start().serving("big"));
    let tables =
        "[[clients.keys]]\nname = \"a\"\nmodels = [\"small\"]\n[[clients.keys]]\nname = \"c\"\nmodels = [\"gone\"]";
    let pools = format!(
        "[[pools]]\nmodel = \"tiny\"\naliases = [\"small\"]\nbackends = [{{ url = \"{}\" }}]\n\
         [[pools]]\nmodel = \"big\"\nbackends = [{{ url = \"{}\" }}]",
        mock.url(),
        other.url()
    );
    let forebay = Harness::new()
        .config(&format!("[clients]\nkeys_file = \"keys\"\n{tables}"))
        .file("keys", &keys_file(&["a", "b", "c"]))
        .pools(&pools)
        .start();
    let ids = |name: &str| {
        let list = get(&forebay, name, "/v1/models").json();
        let mut ids: Vec<String> =
            list["data"].as_array().unwrap().iter().map(|card| card["id"].as_str().unwrap().to_owned()).collect();
        ids.sort();
        ids
    };
    eventually("the backends list", || (ids("b") == ["big", "small", "tiny"]).then_some(()));
    assert_eq!((ids("a"), ids("c")), (vec!["small".to_owned(), "tiny".to_owned()], Vec::new()));
    let ask = |name: &str, model: &str| {
        as_client(&mut forebay.open(), name, &format!("{{\"model\":\"{model}\",\"messages\":[]}}"))
    };
    assert_eq!((ask("a", "small").status, ask("a", "tiny").status, ask("b", "big").status), (200, 200, 200));
    // One that it may not use looks like one that there is not.
    for model in ["big", "nothing"] {
        let refused = ask("a", model);
        let error = &refused.json()["error"];
        assert_eq!(
            (refused.status, error["type"].as_str(), error["param"].as_str()),
            (404, Some("NotFoundError"), Some("model"))
        );
        assert_eq!(refused.header("x-forebay-error"), Some("forebay_model_not_allowed"));
        let message = error["message"].as_str().unwrap();
        assert!(message.contains("tiny, small") && !message.ends_with("big"), "{message}");
    }
    assert_eq!(
        (get(&forebay, "a", "/v1/models/big").status, get(&forebay, "a", "/v1/models/small").status),
        (404, 200)
    );
    assert_eq!(get(&forebay, "c", "/v1/responses/resp_1").status, 503, "no backend may have it for this key");
    mock.next(answer(404, &[], "{}"));
    assert_eq!(get(&forebay, "a", "/v1/responses/resp_1").status, 404);
    assert!(other.seen().iter().all(|seen| !seen.target.contains("resp_1")), "no backend of another model is asked");
    assert_eq!(other.seen().len(), 1);
}

#[test]
fn keys_and_limits_are_reloaded_and_a_key_may_be_in_the_environment() {
    let mock = Mock::start();
    let table = |limit: u32| {
        format!(
            "[[clients.keys]]\nname = \"e\"\nkey_env = \"A_KEY\"\nrequests_per_minute = {limit}\nrequests_burst = 1"
        )
    };
    let forebay = Harness::new()
        .config(&format!("[clients]\nkeys_file = \"keys\"\n{}", table(1)))
        .file("keys", &keys_file(&["a"]))
        .env("A_KEY", "key-e")
        .pool("tiny", &[&mock])
        .start();
    let status = |name: &str| as_client(&mut forebay.open(), name, UNARY).status;
    assert_eq!((status("a"), status("b"), status("e"), status("e")), (200, 401, 200, 429));
    // The key is in no answer of the admin API, and its name is.
    let config = Conn::open(forebay.admin).ask(b"GET /api/config HTTP/1.1\r\nhost: admin\r\n\r\n").text();
    assert!(config.contains("\"name\":\"e\"") && !config.contains("key-e"), "{config}");
    let text = std::fs::read_to_string(&forebay.config).unwrap();
    std::fs::write(&forebay.config, text.replace(&table(1), &table(6000))).unwrap();
    std::fs::write(forebay.config.with_file_name("keys"), keys_file(&["b"])).unwrap();
    forebay.signal("HUP");
    eventually("the new keys hold", || (status("b") == 200).then_some(()));
    assert_eq!(status("a"), 401);
    eventually("so does the new limit", || (status("e") == 200).then_some(()));
}

#[test]
fn the_wait_room_serves_a_higher_priority_first() {
    let (gate, mock) = (Gate::new(), Mock::start());
    let tables = "[[clients.keys]]\nname = \"low\"\npriority = 10\n[[clients.keys]]\nname = \"high\"\npriority = 90";
    let forebay = keyed(&["low", "mid", "high"], tables, "backend_max_in_flight = 1", &[&mock]);
    mock.next(vec![stream_head(), chunk(token("Hi")), Step::Wait(gate.clone()), chunk(DONE), last_chunk()]);
    let mut first = forebay.open();
    first.send(&request("mid", STREAM));
    first.until("Hi");
    let waiting = |count: u64| {
        let fleet = Conn::open(forebay.admin).ask(b"GET /api/fleet HTTP/1.1\r\nhost: admin\r\n\r\n").json();
        (fleet["pools"][0]["wait_room"]["waiting"] == count).then_some(())
    };
    let mut conns: Vec<Conn> = Vec::new();
    for (at, name) in ["low", "mid", "high"].iter().enumerate() {
        let mut conn = forebay.open();
        let headers = [("authorization", &*format!("Bearer key-{name}")), ("x-request-id", *name)];
        conn.send(&post(PATH, &headers, UNARY.as_bytes()));
        eventually("it waits", || waiting(at as u64 + 1));
        conns.push(conn);
    }
    gate.open();
    for conn in &mut conns {
        assert_eq!(conn.answer().status, 200);
    }
    let order: Vec<String> =
        mock.seen()[1..].iter().map(|seen| seen.header("x-request-id").unwrap().to_owned()).collect();
    assert_eq!(order, ["high", "mid", "low"]);
}

/// Sixteen clients, each at three times its limit: each gets its rate and one bucket, and nothing of another's. The policy is tested
/// over three minutes in virtual time (`rate_limit` in the core); here are real processes, for eight seconds.
#[test]
fn sixteen_clients_at_three_times_their_limits_get_them() {
    const NAMES: [&str; 16] =
        ["c0", "c1", "c2", "c3", "c4", "c5", "c6", "c7", "c8", "c9", "c10", "c11", "c12", "c13", "c14", "c15"];
    const SECONDS: f64 = 8.0;
    let mock = Mock::start();
    let limit = |client: usize| 150 + 10 * client;
    let tables: String = NAMES
        .iter()
        .enumerate()
        .map(|(at, name)| format!("[[clients.keys]]\nname = \"{name}\"\nrequests_per_minute = {}\n", limit(at)))
        .collect();
    let forebay = Arc::new(keyed(&NAMES, &tables, "", &[&mock]));
    let passed: Arc<Vec<AtomicUsize>> = Arc::new(NAMES.iter().map(|_| AtomicUsize::new(0)).collect());
    let begun = Instant::now();
    let threads = NAMES.iter().enumerate().map(|(at, name)| {
        let (forebay, passed) = (Arc::clone(&forebay), Arc::clone(&passed));
        std::thread::spawn(move || {
            let (mut conn, mut first) = (forebay.open(), None);
            let gap = 60.0 / (3.0 * limit(at) as f64);
            for number in 0.. {
                let due = f64::from(number) * gap;
                if due > SECONDS {
                    return first.map_or(0.0, |first: Instant| first.elapsed().as_secs_f64());
                }
                // At its own pace, and behind it never faster: what is asked is about three times the limit.
                eventually("its turn", || (begun.elapsed().as_secs_f64() >= due).then_some(()));
                let status = as_client(&mut conn, name, UNARY).status;
                first.get_or_insert_with(Instant::now);
                assert!(status == 200 || status == 429, "{status}");
                passed[at].fetch_add(usize::from(status == 200), Ordering::Relaxed);
            }
            unreachable!("it ends in time")
        })
    });
    let took: Vec<f64> = threads.collect::<Vec<_>>().into_iter().map(|thread| thread.join().unwrap()).collect();
    for (at, took) in took.iter().enumerate() {
        let (got, limit) = (passed[at].load(Ordering::Relaxed) as f64, limit(at) as f64);
        let expected = limit / 60.0 * took + limit / 10.0;
        // Two requests, for the two ends: one is 3 % of what the smallest of these limits gives.
        assert!((got - expected).abs() <= expected * 0.02 + 2.0, "{}: {got} of {expected}", NAMES[at]);
    }
}
