//! A client's numbers are claims: what a request says it makes of sequences counts where its API has such a number, and takes no
//! more from other clients than one backend at a time.

use crate::client::{Conn, post};
use crate::harness::{Forebay, Harness, eventually};
use crate::mock::{CHAT, Gate, Mock, Script, Step, answer, like_vllm};

const CHAT_PATH: &str = "/v1/chat/completions";
const SMALL: &str = r#"{"model":"tiny","messages":[]}"#;

/// An answer that comes when the test says so.
fn held(gate: &Gate) -> Script {
    let mut script = vec![Step::Hold(gate.clone())];
    script.extend(answer(200, &[], CHAT));
    script
}

fn send(forebay: &Forebay, path: &str, body: &str) -> Conn {
    let mut conn = forebay.open();
    conn.send(&post(path, &[], body.as_bytes()));
    conn
}

fn sequences(forebay: &Forebay, mock: &Mock) -> u64 {
    let load = &forebay.backend(mock)["load"];
    load["prefilling"].as_u64().unwrap() + load["decoding"].as_u64().unwrap()
}

#[test]
fn a_number_that_the_api_does_not_have_counts_for_nothing() {
    let claims = [
        ("/v1/responses", r#"{"model":"tiny","input":"x","n":16384,"best_of":16384}"#),
        ("/v1/responses", r#"{"model":"tiny","input":["a","b","c"]}"#),
        ("/v1/messages", r#"{"model":"tiny","messages":[],"max_tokens":1,"n":16384,"best_of":16384}"#),
        ("/v1/embeddings", r#"{"model":"tiny","input":"x","n":16384,"best_of":16384}"#),
        ("/pooling", r#"{"model":"tiny","input":"x","n":16384}"#),
        ("/v1/rerank", r#"{"model":"tiny","query":"x","documents":["a"],"n":16384}"#),
        (CHAT_PATH, r#"{"model":"tiny","messages":[],"best_of":16384,"prompt":["a","b","c"]}"#),
        ("/v1/completions", r#"{"model":"tiny","prompt":"x","best_of":16384,"input":["a","b","c"]}"#),
    ];
    for (path, body) in claims {
        let (mock, gate) = (Mock::start(), Gate::new());
        mock.next(held(&gate));
        let forebay = Harness::new().pool_with("tiny", "backend_max_in_flight = 2", &[&mock]).start();
        let mut first = send(&forebay, path, body);
        mock.await_requests(1);
        assert_eq!(sequences(&forebay, &mock), 1, "{path} {body}");
        // Another fits beside it.
        assert_eq!(forebay.post(CHAT_PATH, SMALL).status, 200, "{path} {body}");
        gate.open();
        assert_eq!(first.answer().status, 200);
        eventually("nothing is left", || (sequences(&forebay, &mock) == 0).then_some(()));
    }
}

#[test]
fn what_the_engine_makes_requests_of_counts_each() {
    let claims = [
        (CHAT_PATH, r#"{"model":"tiny","messages":[],"n":3}"#, 3),
        ("/v1/completions", r#"{"model":"tiny","prompt":["a","b"],"n":3}"#, 6),
        ("/v1/embeddings", r#"{"model":"tiny","input":["a","b","c"]}"#, 3),
        ("/v1/rerank", r#"{"model":"tiny","query":"q","documents":["a","b","c"]}"#, 3),
        (
            "/rerank",
            r#"{"model":"tiny","query":"q","documents":[{"content":[{"type":"text","text":"a, b"}]},{"content":[]}]}"#,
            2,
        ),
        ("/v2/rerank", r#"{"model":"tiny","query":"q","documents":"a"}"#, 1),
        ("/v1/score", r#"{"model":"tiny","text_1":"q","text_2":["a","b"]}"#, 2),
        ("/score", r#"{"model":"tiny","queries":["q","r"],"documents":["a","b"]}"#, 2),
        ("/score", r#"{"model":"tiny","queries":"q","items":["a","b","c","d"]}"#, 4),
    ];
    for (path, body, count) in claims {
        let (mock, gate) = (Mock::start(), Gate::new());
        mock.next(held(&gate));
        let forebay = Harness::new().pool("tiny", &[&mock]).start();
        let mut first = send(&forebay, path, body);
        mock.await_requests(1);
        assert_eq!(sequences(&forebay, &mock), count, "{path} {body}");
        gate.open();
        assert_eq!(first.answer().status, 200);
    }
}

#[test]
fn a_request_counts_for_no_more_sequences_than_an_engine_runs_at_once() {
    let body = r#"{"model":"tiny","messages":[],"n":16384}"#;
    // What vLLM runs unless it is told otherwise, and what this one was seen to stop at.
    for (running, counted) in [(0, 256), (8, 8)] {
        let (mock, gate) = (Mock::start(), Gate::new());
        mock.probes(move |target| {
            let waiting = running.min(1);
            let figures = format!(
                "vllm:num_requests_running {running}\nvllm:num_requests_waiting {waiting}\nvllm:kv_cache_usage_perc 0.1\n"
            );
            (target == "/metrics").then(|| answer(200, &[], &figures))
        });
        mock.next(held(&gate));
        let forebay =
            Harness::new().config("[scrape]\ninterval = \"100ms\"\ntimeout = \"100ms\"").pool("tiny", &[&mock]).start();
        if running > 0 {
            eventually("the limit is known", || {
                (forebay.backend(&mock)["load"]["running_limit"] == running).then_some(())
            });
        }
        let mut large = send(&forebay, CHAT_PATH, body);
        mock.await_requests(1);
        assert_eq!(sequences(&forebay, &mock), counted);
        gate.open();
        assert_eq!(large.answer().status, 200);
        eventually("nothing is left", || (sequences(&forebay, &mock) == 0).then_some(()));
    }
}

#[test]
fn requests_over_the_limit_take_one_backend_at_a_time_from_the_others() {
    let (gate, mocks) = (Gate::new(), [Mock::start(), Mock::start(), Mock::start()]);
    for mock in &mocks {
        let gate = gate.clone();
        mock.reply(move |seen| if seen.text().contains("16384") { held(&gate) } else { like_vllm(seen) });
    }
    let forebay = Harness::new().pool_with("tiny", "backend_max_in_flight = 4", &mocks.each_ref()).start();
    let oversized = r#"{"model":"tiny","messages":[],"n":16384}"#;
    let mut large: Vec<Conn> = (0..6).map(|_| send(&forebay, CHAT_PATH, oversized)).collect();
    let busy = || mocks.iter().map(|mock| sequences(&forebay, mock)).collect::<Vec<_>>();
    eventually("one runs and five wait", || {
        let counts = busy();
        (counts.iter().sum::<u64>() == 4 && forebay.metric("forebay_waiting", &[]) == 5.0).then_some(())
    });
    for _ in 0..30 {
        assert_eq!(forebay.post(CHAT_PATH, SMALL).status, 200);
    }
    assert_eq!(busy().iter().filter(|count| **count > 0).count(), 1, "it counts at most the limit, on one backend");
    gate.open();
    for conn in &mut large {
        assert_eq!(conn.answer().status, 200, "each has its turn");
    }
}
