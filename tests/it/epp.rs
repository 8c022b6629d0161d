//! The endpoint picker behind a real Envoy: what it picks is where requests go, what it refuses is what clients read, and what it sees
//! of an answer is what its metrics say.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::client::{Answer, End, post};
use crate::gateway::{Envoy, Gateway, picker};
use crate::harness::{Forebay, Harness, eventually, ms, time_passes};
use crate::mock::{CHAT, DONE, Gate, Mock, Script, Step, answer, chunk, last_chunk, stream, stream_head, token};

const PATH: &str = "/v1/chat/completions";
const STREAM: &str = r#"{"model":"tiny","stream":true,"messages":[{"role":"user","content":"hello"}]}"#;
const UNARY: &str = r#"{"model":"tiny","messages":[{"role":"user","content":"hello"}]}"#;
const ENVOY: &str = "envoy.yaml";
/// The response's mode in the shipped configuration, and the one in which Envoy gives pieces away.
const KEPT: &str = "response_body_mode: STREAMED\n                response_trailer_mode: SKIP";
const GIVEN: &str = "response_body_mode: FULL_DUPLEX_STREAMED\n                response_trailer_mode: SEND";
/// Sets the metadata of a request from its headers, as a gateway's own filters do.
const SUBSET: &str = "          http_filters:\n          - name: envoy.filters.http.header_to_metadata
            typed_config:
              \"@type\": type.googleapis.com/envoy.extensions.filters.http.header_to_metadata.v3.Config
              request_rules:
              - header: test-subset
                on_header_present: { metadata_namespace: envoy.lb.subset_hint, key: x-gateway-destination-endpoint-subset, type: STRING }
                remove: true";

/// A picker and an Envoy before it. `keys`: more of `[epp]`.
fn between(gateway: Gateway, harness: Harness, mocks: &[&Mock]) -> (Forebay, Envoy) {
    let forebay = picker(harness);
    let envoy = gateway.start(forebay.address, mocks);
    (forebay, envoy)
}

fn streams(mocks: &[&Mock], keys: &str) -> Harness {
    Harness::new().config(&format!("[epp]\n{keys}")).pool("tiny", mocks)
}

fn is_whole(answer: &Answer) {
    assert_eq!((answer.status, answer.end), (200, End::Whole), "{}", answer.text());
    assert!(answer.text().ends_with(DONE), "{}", answer.text());
}

#[test]
fn what_is_picked_is_where_requests_go() {
    let Some(gateway) = Gateway::of(ENVOY) else { return };
    let (one, other) = (Mock::start(), Mock::start());
    let (forebay, envoy) = between(gateway, streams(&[&one, &other], ""), &[&one, &other]);
    for turn in 0..6 {
        let answer = envoy.post(PATH, &[], STREAM);
        is_whole(&answer);
        let backend = answer.header("x-forebay-backend").unwrap();
        let picked = [&one, &other].into_iter().find(|mock| mock.authority() == backend).unwrap();
        // Its last request names the first of the list, and it is this one.
        let list = picked.last().header("x-gateway-destination-endpoint").unwrap().to_owned();
        assert!(list.starts_with(backend) && list.split(',').count() == 2, "{turn}: {list}");
    }
    assert_eq!((one.seen().len(), other.seen().len()), (3, 3), "round robin");
    eventually("TTFTs by backend", || {
        (forebay.metric("forebay_ttft_seconds_count", &["arm=\"default\""]) == 6.0).then_some(())
    });
    let ended = ["api=\"chat\"", "outcome=\"success\""];
    eventually("outcomes", || (forebay.metric("forebay_requests_total", &ended) == 6.0).then_some(()));
    eventually("nothing in flight", || (forebay.metric("forebay_in_flight", &[]) == 0.0).then_some(()));
}

#[test]
fn the_files_that_are_shipped_work_together() {
    let Some(gateway) = Gateway::of(ENVOY) else { return };
    let (one, other) = (Mock::start(), Mock::start());
    let file = std::fs::read_to_string("config/gateway/forebay.toml").unwrap();
    let ours = file.replace("Qwen/Qwen2.5-7B-Instruct", "tiny").replace("address = \"127.0.0.1:9002\"", "");
    let ours = ours.replace("127.0.0.1:8001", &one.authority()).replace("127.0.0.1:8002", &other.authority());
    let (_forebay, envoy) = between(gateway, Harness::new().pools(&ours), &[&one, &other]);
    for _ in 0..4 {
        is_whole(&envoy.post(PATH, &[], STREAM));
    }
    assert_eq!(one.seen().len() + other.seen().len(), 4, "each was asked for once");
}

#[test]
fn a_gateway_closes_an_idle_connection_before_vllm_does() {
    for file in [ENVOY, "envoy-repeat.yaml"] {
        let Some(gateway) = Gateway::of(file) else { return };
        let mock = Mock::start();
        let mut script = stream(&[token("a"), DONE.to_owned()]);
        script.push(Step::AwaitClose);
        mock.next(script);
        let (_forebay, envoy) = between(gateway, streams(&[&mock], ""), &[&mock]);
        is_whole(&envoy.post(PATH, &[], STREAM));
        let served = Instant::now();
        let idle = mock.await_closes(1).saturating_duration_since(served);
        // uvicorn's limit, which is vLLM's, is 5 s.
        assert!(idle < ms(4500), "{file}: {idle:?}");
    }
}

#[test]
fn header_and_metadata_say_the_same() {
    let metadata = "            - metadata: { key: envoy.lb, path: [ { key: x-gateway-destination-endpoint } ] }\n";
    let header = "            - header: x-gateway-destination-endpoint\n";
    for left_out in [metadata, header] {
        let Some(gateway) = Gateway::of(ENVOY) else { return };
        let (one, other) = (Mock::start(), Mock::start());
        let (_forebay, envoy) = between(gateway.with(left_out, ""), streams(&[&one, &other], ""), &[&one, &other]);
        for _ in 0..4 {
            let answer = envoy.post(PATH, &[], UNARY);
            let backend = answer.header("x-forebay-backend").unwrap().to_owned();
            assert_eq!(answer.status, 200);
            let picked = [&one, &other].into_iter().find(|mock| mock.authority() == backend).unwrap();
            assert!(picked.last().header("x-gateway-destination-endpoint").unwrap().starts_with(&backend));
        }
        assert_eq!((one.seen().len(), other.seen().len()), (2, 2), "without {left_out}");
    }
}

#[test]
fn a_list_whose_first_is_dead_is_walked_and_the_served_one_is_read_back() {
    let Some(gateway) = Gateway::of(ENVOY) else { return };
    let (dead, other) = (Mock::start(), Mock::start());
    let keys = "[health]\ninterval = \"1h\"\n[scrape]\ninterval = \"1h\"\nstale_after = \"3h\"\n[epp]\n";
    let harness = Harness::new().config(keys).pool("tiny", &[&dead, &other]);
    let (forebay, envoy) = between(gateway, harness, &[&dead, &other]);
    dead.refuse();
    let mut walked = None;
    for _ in 0..3 {
        let answer = envoy.post(PATH, &[], STREAM);
        is_whole(&answer);
        assert_eq!(answer.header("x-forebay-backend"), Some(other.authority().as_str()));
        let list = other.last().header("x-gateway-destination-endpoint").unwrap().to_owned();
        if list.starts_with(&dead.authority()) {
            walked = Some((list, answer));
            break;
        }
    }
    let (list, answer) = walked.expect("round robin comes to the dead one");
    assert_eq!(list, format!("{},{}", dead.authority(), other.authority()));
    assert_eq!(answer.header("x-forebay-attempts"), Some("2"));
    let of_dead = format!("backend=\"{}\"", dead.authority());
    eventually("the dead one is counted", || {
        (forebay.metric("forebay_retries_total", &[&of_dead, "reason=\"unreachable\""]) == 1.0).then_some(())
    });
    eventually("nothing in flight", || (forebay.metric("forebay_in_flight", &[]) == 0.0).then_some(()));
}

#[test]
fn a_backend_that_sheds_is_left_alone_and_stays_in_its_pool() {
    let Some(gateway) = Gateway::of(ENVOY) else { return };
    let (full, other) = (Mock::start(), Mock::start());
    let harness = Harness::new().config("[health]\nfailures = 1\n[epp]").pool("tiny", &[&full, &other]);
    let (forebay, envoy) = between(gateway, harness, &[&full, &other]);
    full.reply(|_| answer(503, &[("retry-after", "1")], "{}"));
    let of_full = format!("backend=\"{}\"", full.authority());
    eventually("it sheds, and again after its pause", || {
        is_whole(&envoy.post(PATH, &[], STREAM));
        (full.seen().len() >= 2).then_some(())
    });
    assert!(forebay.metric("forebay_retries_total", &[&of_full, "reason=\"unreachable\""]) >= 2.0);
    assert_eq!(forebay.metric("forebay_ejections_total", &[&of_full]), 0.0);
    // It is asked again, once it has a place.
    full.reply(|_| stream(&[token("a"), DONE.to_owned()]));
    eventually("it serves again", || {
        let served = envoy.post(PATH, &[], STREAM);
        is_whole(&served);
        (served.header("x-forebay-backend") == Some(full.authority().as_str())).then_some(())
    });
}

#[test]
fn a_subset_limits_the_choice_in_both_forms_and_an_empty_one_gets_a_503() {
    let Some(gateway) = Gateway::of(ENVOY) else { return };
    let (one, other) = (Mock::start(), Mock::start());
    let gateway = gateway.with("          http_filters:", SUBSET);
    let (_forebay, envoy) = between(gateway, streams(&[&one, &other], ""), &[&one, &other]);
    for mock in [&one, &one, &other, &other] {
        // One pod may have several ports, so that the port counts.
        let subset = format!("{}, 10.1.2.3:8000", mock.authority());
        let answer = envoy.post(PATH, &[("test-subset", &subset)], STREAM);
        is_whole(&answer);
        assert_eq!(answer.header("x-forebay-backend"), Some(mock.authority().as_str()));
        assert_eq!(mock.last().header("x-gateway-destination-endpoint"), Some(mock.authority().as_str()));
    }
    let nobody = envoy.post(PATH, &[("test-subset", "10.1.2.3:8000")], STREAM);
    assert_eq!((nobody.status, nobody.header("retry-after")), (503, Some("1")));
    assert_eq!(nobody.json()["error"]["type"], "forebay_no_backend");
    for (list, status) in
        [(format!("[\"{}\"]", other.authority()), 200), ("[\"10.1.2.3:8000\"]".to_owned(), 503), ("[]".to_owned(), 503)]
    {
        let filter = format!(
            "          http_filters:\n          - name: envoy.filters.http.set_metadata\n            typed_config:\n              \
             \"@type\": type.googleapis.com/envoy.extensions.filters.http.set_metadata.v3.Config\n              metadata:\n              \
             - metadata_namespace: envoy.lb.subset_hint\n                value: {{ x-gateway-destination-endpoint-subset: {list} }}"
        );
        let Some(gateway) = Gateway::of(ENVOY) else { return };
        let gateway = gateway.with("          http_filters:", &filter);
        let (_forebay, envoy) = between(gateway, streams(&[&one, &other], ""), &[&one, &other]);
        for _ in 0..2 {
            let answer = envoy.post(PATH, &[], STREAM);
            assert_eq!(answer.status, status, "{list}: {}", answer.text());
            if status == 200 {
                assert_eq!(answer.header("x-forebay-backend"), Some(other.authority().as_str()));
            }
        }
    }
}

/// A stream whose first token waits for the test.
fn waiting(gate: &Gate) -> Script {
    let mut script = vec![stream_head(), chunk(": hello\n\n"), Step::Wait(gate.clone())];
    script.extend([chunk(token("a")), chunk(DONE), last_chunk()]);
    script
}

/// A picker before a backend that takes one request at a time, with this wait room.
fn one_place(gateway: Gateway, mock: &Mock, wait_room: &str) -> (Forebay, Envoy) {
    let pool = format!("backend_max_in_flight = 1\nwait_room = {{ {wait_room} }}");
    let harness = Harness::new().config("[epp]\nobserve = \"stream\"").pool_with("tiny", &pool, &[mock]);
    between(gateway, harness, &[mock])
}

#[test]
fn fairness_ids_take_turns_in_the_wait_room() {
    let Some(gateway) = Gateway::of(ENVOY) else { return };
    let (mock, gate) = (Mock::start(), Gate::new());
    let (forebay, envoy) = one_place(gateway, &mock, "size = 3, timeout = \"10s\"");
    mock.next(waiting(&gate));
    let ask = |id: &str| {
        let mut conn = envoy.open();
        conn.send(&post(PATH, &[("x-gateway-inference-fairness-id", id), ("x-who", id)], STREAM.as_bytes()));
        conn
    };
    let mut all = vec![ask("loud")];
    mock.await_requests(1);
    for (count, id) in [(1.0, "loud"), (2.0, "loud"), (3.0, "quiet")] {
        all.push(ask(id));
        eventually("requests wait", || (forebay.metric("forebay_waiting", &[]) == count).then_some(()));
    }
    gate.open();
    for mut conn in all {
        is_whole(&conn.answer());
    }
    let order: Vec<String> = mock.seen().iter().map(|seen| seen.header("x-who").unwrap().to_owned()).collect();
    let quiet = order.iter().position(|who| who == "quiet").unwrap();
    assert!(quiet < 3, "the quiet one does not wait for all of the loud one's: {order:?}");
}

#[test]
fn a_full_wait_room_sheds_with_retry_after() {
    let Some(gateway) = Gateway::of(ENVOY) else { return };
    let (mock, gate) = (Mock::start(), Gate::new());
    let (forebay, envoy) = one_place(gateway, &mock, "size = 0");
    mock.next(waiting(&gate));
    let mut first = envoy.open();
    first.send(&post(PATH, &[], STREAM.as_bytes()));
    mock.await_requests(1);
    let shed = envoy.post(PATH, &[], STREAM);
    assert_eq!((shed.status, shed.header("retry-after")), (429, Some("1")), "{}", shed.text());
    assert_eq!(shed.json()["error"]["type"], "forebay_wait_room_full");
    assert_eq!(forebay.metric("forebay_requests_total", &["outcome=\"forebay_wait_room_full\""]), 1.0);
    gate.open();
    is_whole(&first.answer());
    eventually("the place is free", || (forebay.metric("forebay_in_flight", &[]) == 0.0).then_some(()));
    is_whole(&envoy.post(PATH, &[], STREAM));
}

#[test]
fn an_alias_is_rewritten_in_body_and_header() {
    let Some(gateway) = Gateway::of(ENVOY) else { return };
    let mock = Mock::start();
    let keys = "aliases = [\"small\"]\nunknown_models = \"refuse\"";
    let harness = Harness::new().config("[epp]").pool_with("tiny", keys, &[&mock]);
    let (_forebay, envoy) = between(gateway, harness, &[&mock]);
    is_whole(&envoy.post(PATH, &[], &STREAM.replace("tiny", "small")));
    assert_eq!(mock.only().json()["model"], "tiny");
    assert_eq!(mock.only().header("x-gateway-model-name-rewrite"), Some("tiny"));
    let unknown = envoy.post(PATH, &[], &STREAM.replace("tiny", "other"));
    assert_eq!((unknown.status, mock.seen().len()), (404, 1));
    assert_eq!(unknown.json()["error"]["type"], "NotFoundError");
}

#[test]
fn bodies_of_every_size_arrive_whole_and_one_over_the_limit_is_refused() {
    let Some(gateway) = Gateway::of(ENVOY) else { return };
    let mock = Mock::start();
    let harness = Harness::new().config("[epp]\n[limits]\nbody = \"5MiB\"").pool("tiny", &[&mock]);
    let (_forebay, envoy) = between(gateway, harness, &[&mock]);
    for size in [0, 61_999, 62_000, 125_000, 4 << 20] {
        let body = UNARY.replace("hello", &"x".repeat(size));
        let answer = envoy.post(PATH, &[], &body);
        assert_eq!(answer.status, 200, "{size}: {}", answer.text());
        assert_eq!(mock.last().body, body.as_bytes(), "{size}");
    }
    let large = envoy.post(PATH, &[], &UNARY.replace("hello", &"x".repeat(6 << 20)));
    assert_eq!(large.status, 413, "{}", large.text());
    let mut conn = envoy.open();
    let list = conn.ask(b"GET /v1/models HTTP/1.1\r\nhost: gateway\r\n\r\n");
    assert_eq!((list.status, list.json()["data"][0]["id"].as_str()), (200, Some("tiny")));
    let version = conn.ask(b"GET /version HTTP/1.1\r\nhost: gateway\r\nx-client: 1\r\n\r\n");
    assert_eq!((version.status, mock.last().target.as_str()), (200, "/version"));
    let nowhere = conn.ask(b"GET /secret HTTP/1.1\r\nhost: gateway\r\n\r\n");
    assert_eq!(nowhere.status, 404);
}

#[test]
fn a_head_is_held_until_the_first_token() {
    for mode in [KEPT, GIVEN] {
        for observe in ["first_token", "stream"] {
            let Some(gateway) = Gateway::of(ENVOY) else { return };
            let (mock, gate) = (Mock::start(), Gate::new());
            let keys = format!("observe = \"{observe}\"");
            let (forebay, envoy) = between(gateway.with(KEPT, mode), streams(&[&mock], &keys), &[&mock]);
            mock.next(waiting(&gate));
            let mut conn = envoy.open();
            conn.send(&post(PATH, &[], STREAM.as_bytes()));
            mock.await_requests(1);
            assert!(conn.is_quiet_for(ms(300)), "{mode} {observe}");
            gate.open();
            let answer = conn.answer();
            is_whole(&answer);
            assert!(answer.text().starts_with(": hello\n\n"), "{}", answer.text());
            eventually("TTFT", || (forebay.metric("forebay_ttft_seconds_count", &[]) == 1.0).then_some(()));
            assert!(forebay.metric("forebay_ttft_seconds_sum", &[]) > 0.3, "{mode} {observe}: the true one");
        }
    }
}

const DEAD: &str = "data: {\"error\":{\"message\":\"EngineCore encountered an issue\",\"type\":\"InternalServerError\",\"code\":500}}\n\n";

#[test]
fn an_engine_that_fails_before_its_first_token_becomes_an_honest_503_and_the_second_death_a_502() {
    for mode in [KEPT, GIVEN] {
        let Some(gateway) = Gateway::of(ENVOY) else { return };
        let (one, other) = (Mock::playing(stream(&[DEAD])), Mock::playing(stream(&[DEAD])));
        let (forebay, envoy) = between(gateway.with(KEPT, mode), streams(&[&one, &other], ""), &[&one, &other]);
        let id = [("x-request-id", "of-death")];
        let first = envoy.post(PATH, &id, STREAM);
        assert_eq!((first.status, first.header("x-should-retry")), (503, Some("true")), "{mode}: {}", first.text());
        let second = envoy.post(PATH, &id, STREAM);
        assert_eq!((second.status, second.header("x-should-retry")), (502, Some("false")), "{mode}: {}", second.text());
        assert_eq!((one.seen().len(), other.seen().len()), (1, 1), "each backend dies once of a request");
        let third = envoy.post(PATH, &id, STREAM);
        assert_eq!((third.status, third.header("x-should-retry")), (502, Some("false")));
        assert_eq!(one.seen().len() + other.seen().len(), 2, "no third engine sees it");
        let left = forebay.metric("forebay_in_flight", &[]);
        assert_eq!(left, 0.0);
    }
}

#[test]
fn a_picker_that_is_killed_breaks_no_stream_that_it_left() {
    let Some(gateway) = Gateway::of(ENVOY) else { return };
    let (mock, gate) = (Mock::start(), Gate::new());
    let (forebay, envoy) = between(gateway, streams(&[&mock], ""), &[&mock]);
    let mut script = vec![stream_head(), chunk(token("a")), Step::Wait(gate.clone())];
    script.extend([chunk(token("b")), chunk(DONE), last_chunk()]);
    mock.next(script);
    let mut conn = envoy.open();
    conn.send(&post(PATH, &[], STREAM.as_bytes()));
    conn.until("\"a\"");
    eventually("the picker has left", || {
        (forebay.metric("forebay_requests_total", &["outcome=\"success\""]) == 1.0).then_some(())
    });
    forebay.signal("KILL");
    drop(forebay);
    gate.open();
    is_whole(&conn.answer());
}

#[test]
fn every_token_arrives_in_order_though_the_picker_leaves() {
    let Some(gateway) = Gateway::of(ENVOY) else { return };
    let mock = Mock::start();
    let texts: Vec<String> = (0..40).map(|number| token(&format!("t{number};"))).collect();
    let whole = texts.concat() + DONE;
    let mut script = vec![stream_head()];
    script.extend(texts.iter().map(chunk));
    script.extend([chunk(DONE), last_chunk()]);
    mock.reply(move |_| script.clone());
    let (_forebay, envoy) = between(gateway, streams(&[&mock], ""), &[&mock]);
    for turn in 0..200 {
        let answer = envoy.post(PATH, &[], STREAM);
        assert_eq!((answer.end, answer.text()), (End::Whole, whole.clone()), "{turn}");
    }
}

#[test]
fn a_stream_that_is_watched_to_its_end_has_all_its_figures() {
    for mode in [KEPT, GIVEN] {
        let Some(gateway) = Gateway::of(ENVOY) else { return };
        let mock = Mock::start();
        let harness = streams(&[&mock], "observe = \"stream\"");
        let (forebay, envoy) = between(gateway.with(KEPT, mode), harness, &[&mock]);
        let gate = Gate::new();
        let mut script = vec![stream_head(), chunk(token("a")), Step::Wait(gate.clone())];
        script.extend([chunk(token("b")), chunk(DONE), last_chunk()]);
        mock.next(script);
        let mut conn = envoy.open();
        conn.send(&post(PATH, &[], STREAM.as_bytes()));
        conn.until("\"a\"");
        gate.open();
        is_whole(&conn.answer());
        let with_usage =
            STREAM.replace("\"stream\":true", "\"stream\":true,\"stream_options\":{\"include_usage\":true}");
        is_whole(&envoy.post(PATH, &[], &with_usage));
        let unary = envoy.post(PATH, &[], UNARY);
        assert_eq!(unary.text(), CHAT);
        let arm = "arm=\"default\"";
        eventually("three ends", || (forebay.metric("forebay_e2e_seconds_count", &[arm]) == 3.0).then_some(()));
        assert_eq!(forebay.metric("forebay_tpot_seconds_count", &[arm]), 2.0, "{mode}");
        // Tokens that come with the first one have no gap, and those of the second stream may all do so.
        assert!((1.0..=2.0).contains(&forebay.metric("forebay_itl_seconds_count", &[arm])), "{mode}");
        assert_eq!(forebay.metric("forebay_prompt_tokens_total", &[arm]), 14.0, "{mode}");
        assert_eq!(forebay.metric("forebay_output_tokens_total", &[arm, "source=\"usage\""]), 3.0, "{mode}");
        assert_eq!(forebay.metric("forebay_output_tokens_total", &[arm, "source=\"events\""]), 2.0, "{mode}");
    }
}

#[test]
fn a_picker_that_watches_nothing_leaves_with_the_decision() {
    let Some(gateway) = Gateway::of(ENVOY) else { return };
    let (mock, gate) = (Mock::start(), Gate::new());
    let (forebay, envoy) = between(gateway, streams(&[&mock], "observe = \"none\""), &[&mock]);
    mock.next(waiting(&gate));
    let mut conn = envoy.open();
    conn.send(&post(PATH, &[], STREAM.as_bytes()));
    conn.until(": hello");
    assert_eq!(forebay.metric("forebay_requests_total", &["outcome=\"success\""]), 1.0);
    assert_eq!(forebay.metric("forebay_ttft_seconds_count", &[]), 0.0);
    drop(forebay);
    gate.open();
    is_whole(&conn.answer());
}

#[test]
fn a_client_that_leaves_stops_the_backend_and_gives_everything_back() {
    for (observe, early) in [("first_token", true), ("stream", false), ("stream", true), ("none", false)] {
        let Some(gateway) = Gateway::of(ENVOY) else { return };
        let mock = Mock::start();
        let (forebay, envoy) = between(gateway, streams(&[&mock], &format!("observe = \"{observe}\"")), &[&mock]);
        let mut script = vec![stream_head()];
        if !early {
            script.push(chunk(token("a")));
        }
        script.push(Step::AwaitClose);
        mock.reply(move |_| script.clone());
        let mut slowest = Duration::ZERO;
        for turn in 1..=20 {
            let mut conn = envoy.open();
            conn.send(&post(PATH, &[], STREAM.as_bytes()));
            mock.await_requests(turn);
            if !early {
                conn.until("\"a\"");
            }
            let left = Instant::now();
            conn.reset();
            slowest = slowest.max(mock.await_closes(turn).saturating_duration_since(left));
        }
        println!("{observe}, early {early}: the backend's connection was closed after {slowest:?} at most");
        eventually("nothing in flight", || (forebay.metric("forebay_in_flight", &[]) == 0.0).then_some(()));
        if observe == "stream" || early {
            let aborted = ["outcome=\"client_left\""];
            eventually("all were counted", || {
                (forebay.metric("forebay_requests_total", &aborted) == 20.0).then_some(())
            });
        }
    }
}

#[test]
fn health_has_three_names_and_a_drain_is_told_before_it_begins() {
    const OWN: &str = "service_name: envoy.service.ext_proc.v3.ExternalProcessor";
    let mock = Mock::start();
    let drain = "[listen]\ndrain = { ready_delay = \"5s\", limit = \"10s\" }\n[epp]";
    let mut forebay = picker(Harness::new().config(drain).pool("tiny", &[&mock]));
    let mut envoys = Vec::new();
    for name in [OWN, "service_name: readiness", "service_name: liveness"] {
        let Some(gateway) = Gateway::of(ENVOY) else { return };
        // It starts once the picker is healthy by that name.
        envoys.push(gateway.with(OWN, name).start(forebay.address, &[&mock]));
    }
    is_whole(&envoys[0].post(PATH, &[], STREAM));
    forebay.signal("TERM");
    let health = |envoy: &Envoy| {
        let clusters = envoy.figures("/clusters").unwrap();
        let line = clusters.lines().find(|line| line.starts_with("picker::") && line.contains("health_flags")).unwrap();
        line.rsplit("::").next().unwrap().to_owned()
    };
    for envoy in &envoys[..2] {
        eventually("a drain is told", || health(envoy).contains("failed_active_hc").then_some(()));
    }
    assert_eq!(health(&envoys[2]), "healthy");
    // The gateway that does not look at readiness is served on.
    is_whole(&envoys[2].post(PATH, &[], STREAM));
    assert!(forebay.exit(Duration::from_secs(30)).success());
}

#[test]
fn a_gateway_repeats_what_failed_before_its_first_token_and_stops_after_two_deaths() {
    let Some(gateway) = Gateway::of("envoy-repeat.yaml") else { return };
    let (one, other) = (Mock::start(), Mock::start());
    let (_forebay, envoy) = between(gateway, streams(&[&one, &other], ""), &[&one, &other]);
    // Whichever comes first fails, and the other one serves: the client sees one good answer.
    one.next(stream(&[DEAD]));
    other.next(stream(&[token("a"), DONE.to_owned()]));
    let both = || one.seen().len() + other.seen().len();
    let answer = envoy.post(PATH, &[], STREAM);
    is_whole(&answer);
    if one.seen().len() == 1 {
        assert_eq!(both(), 2);
        let id = |mock: &Mock| mock.last().header("x-request-id").unwrap().to_owned();
        assert_eq!(id(&one), id(&other), "the repetition has the id of the first");
    }
    for mock in [&one, &other] {
        mock.reply(|_| stream(&[DEAD]));
    }
    let (before, dead) = (both(), envoy.post(PATH, &[], STREAM));
    assert_eq!((dead.status, dead.header("x-should-retry")), (502, Some("false")), "{}", dead.text());
    assert!(both() - before <= 2, "two engines at most");
}

/// Sends requests one after the other from so many clients until told to stop; returns the statuses of those that failed, and how many
/// there were.
fn under_load(envoy: &Envoy, clients: usize, meanwhile: impl FnOnce()) -> (Vec<u16>, usize) {
    let stop = AtomicBool::new(false);
    // Also if `meanwhile` panics: the scope waits for its clients.
    struct Stopping<'a>(&'a AtomicBool);
    impl Drop for Stopping<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    std::thread::scope(|scope| {
        let stopping = Stopping(&stop);
        let clients: Vec<_> = (0..clients)
            .map(|_| {
                scope.spawn(|| {
                    let (mut failed, mut sent) = (Vec::new(), 0);
                    while !stop.load(Ordering::Relaxed) {
                        let answer = envoy.post(PATH, &[], STREAM);
                        sent += 1;
                        if answer.status != 200 || answer.end != End::Whole || !answer.text().ends_with(DONE) {
                            failed.push(answer.status);
                        }
                    }
                    (failed, sent)
                })
            })
            .collect();
        meanwhile();
        drop(stopping);
        let all: Vec<_> = clients.into_iter().map(|client| client.join().unwrap()).collect();
        (all.iter().flat_map(|(failed, _)| failed.clone()).collect(), all.iter().map(|(_, sent)| sent).sum())
    })
}

fn two_pickers(mock: &Mock) -> Option<([Forebay; 2], Envoy)> {
    let gateway = Gateway::of(ENVOY)?;
    let keys = "[listen]\ndrain = { ready_delay = \"3s\", limit = \"10s\" }\n[epp]";
    let pickers = [(); 2].map(|()| picker(Harness::new().config(keys).pool("tiny", &[mock])));
    let envoy = gateway.and_picker(pickers[1].address).start(pickers[0].address, &[mock]);
    Some((pickers, envoy))
}

#[test]
fn a_picker_that_is_told_to_end_under_load_costs_no_request() {
    let mock = Mock::start();
    let Some(([mut one, other], envoy)) = two_pickers(&mock) else { return };
    let picked = |forebay: &Forebay| forebay.metric("forebay_requests_total", &["outcome=\"success\""]);
    let (failed, sent) = under_load(&envoy, 4, || {
        eventually("both pick", || (picked(&one) > 20.0 && picked(&other) > 20.0).then_some(()));
        one.signal("TERM");
        assert!(one.exit(Duration::from_secs(30)).success());
        let before = picked(&other);
        eventually("the other one picks on", || (picked(&other) > before + 20.0).then_some(()));
    });
    assert_eq!(failed, [0; 0], "of {sent}");
}

#[test]
fn a_picker_that_is_killed_costs_what_it_has_not_decided_and_no_stream() {
    let (mock, gate) = (Mock::start(), Gate::new());
    let Some(([one, other], envoy)) = two_pickers(&mock) else { return };
    let picked = |forebay: &Forebay| forebay.metric("forebay_requests_total", &["outcome=\"success\""]);
    let mut script = vec![stream_head(), chunk(token("a")), Step::Hold(gate.clone())];
    script.extend([chunk(token("b")), chunk(DONE), last_chunk()]);
    let mut streams = Vec::new();
    for count in 1..=10 {
        mock.next(script.clone());
        let mut conn = envoy.open();
        conn.send(&post(PATH, &[], STREAM.as_bytes()));
        conn.until("\"a\"");
        eventually("the pickers have left", || (picked(&one) + picked(&other) == f64::from(count)).then_some(()));
        streams.push(conn);
    }
    const CLIENTS: usize = 4;
    let (failed, sent) = under_load(&envoy, CLIENTS, || {
        eventually("both pick", || (picked(&one) > 20.0 && picked(&other) > 20.0).then_some(()));
        one.signal("KILL");
        let before = picked(&other);
        eventually("the other one picks on", || (picked(&other) > before + 200.0).then_some(()));
    });
    println!("{} of {sent} requests failed: {failed:?}", failed.len());
    gate.open();
    for mut stream in streams {
        is_whole(&stream.answer());
    }
    assert!(failed.len() <= CLIENTS, "{failed:?} of {sent}");
}

#[test]
fn a_follower_takes_over_from_a_leader_that_drains_or_is_killed() {
    const CLIENTS: usize = 4;
    for (signal, most) in [("TERM", 0), ("KILL", CLIENTS)] {
        let Some(gateway) = Gateway::of(ENVOY) else { return };
        let mock = Mock::start();
        let keys = "[listen]\ndrain = { ready_delay = \"3s\", limit = \"10s\" }\n[epp]";
        let [mut leader, follower] = [(); 2].map(|()| picker(Harness::new().config(keys).pool("tiny", &[&mock])));
        let envoy = gateway.and_follower(follower.address).start(leader.address, &[&mock]);
        let picked = |forebay: &Forebay| forebay.metric("forebay_requests_total", &["outcome=\"success\""]);
        let (failed, sent) = under_load(&envoy, CLIENTS, || {
            eventually("the leader picks", || (picked(&leader) > 20.0).then_some(()));
            // On a busy machine a health check may be late, and the follower is asked for a moment. In turns it would have half.
            assert!(2.0 * picked(&follower) < picked(&leader), "the follower is not asked meanwhile");
            leader.signal(signal);
            assert_eq!(leader.exit(Duration::from_secs(30)).success(), signal == "TERM");
            eventually("the follower picks", || (picked(&follower) > 20.0).then_some(()));
        });
        assert!(failed.len() <= most, "{signal}: {failed:?} of {sent}");
    }
}

/// A quarter of these leaves at a random moment.
fn requests() -> usize {
    if std::env::var("FOREBAY_SIZE").is_ok_and(|size| size == "full") { 10_000 } else { 400 }
}

#[test]
fn nothing_is_left_after_many_requests_of_which_a_quarter_is_aborted() {
    for observe in ["first_token", "stream"] {
        let Some(gateway) = Gateway::of(ENVOY) else { return };
        let mocks = [Mock::start(), Mock::start()];
        for mock in &mocks {
            mock.reply(|_| {
                let mut script = vec![stream_head()];
                for text in ["a", "b", "c", "d"] {
                    script.extend([Step::Pause(ms(2)), chunk(token(text))]);
                }
                script.extend([chunk(DONE), last_chunk()]);
                script
            });
        }
        let keys = format!("observe = \"{observe}\"");
        let (forebay, envoy) = between(gateway, streams(&[&mocks[0], &mocks[1]], &keys), &[&mocks[0], &mocks[1]]);
        let mut memory = Vec::new();
        for half in 0..2 {
            std::thread::scope(|scope| {
                for client in 0..8 {
                    let envoy = &envoy;
                    scope.spawn(move || {
                        let mut rng = fastrand::Rng::with_seed(half * 8 + client);
                        for _ in 0..requests() / 16 {
                            if rng.u8(0..4) > 0 {
                                is_whole(&envoy.post(PATH, &[], STREAM));
                                continue;
                            }
                            let mut conn = envoy.open();
                            conn.send(&post(PATH, &[], STREAM.as_bytes()));
                            time_passes(Duration::from_micros(rng.u64(0..12_000)));
                            conn.reset();
                        }
                    });
                }
            });
            eventually("nothing in flight", || (forebay.metric("forebay_in_flight", &[]) == 0.0).then_some(()));
            memory.push(forebay.rss_kib());
        }
        let count = |name: &str| {
            envoy.figures("/stats").unwrap().lines().find(|line| line.starts_with(name)).map(str::to_owned)
        };
        eventually("no exchange is open", || {
            (count("cluster.picker.upstream_rq_active:")? == "cluster.picker.upstream_rq_active: 0").then_some(())
        });
        println!("{observe}: {memory:?} KiB after each half of {} requests", requests());
        if requests() >= 10_000 {
            assert!(memory[1] as f64 <= 1.05 * memory[0] as f64, "{memory:?}");
        }
    }
}
