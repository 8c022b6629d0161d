//! What Forebay says of requests: the latencies of streams with several sequences are those of one, and the APIs are told apart.

use std::time::Duration;

use serde_json::Value;

use crate::client::post;
use crate::harness::{Forebay, Harness, eventually, ms};
use crate::mock::{DONE, Mock, Script, Seen, Step, answer, chunk, last_chunk, stream_head};

const STEP: Duration = ms(60);
const TOKENS: usize = 6;

fn event(api: &str, index: usize, text: &str, finish: &str) -> String {
    let choice = match api {
        "chat" => format!("{{\"index\":{index},\"delta\":{{\"content\":\"{text}\"}},\"finish_reason\":{finish}}}"),
        _ => format!("{{\"index\":{index},\"text\":\"{text}\",\"finish_reason\":{finish}}}"),
    };
    format!("data: {{\"id\":\"x\",\"object\":\"x\",\"choices\":[{choice}]}}\n\n")
}

/// A stream of `n` sequences, each a token every [`STEP`], of which sequence `i` ends after `lengths[i]` tokens.
fn steps(api: &str, lengths: &[usize], usage: Option<usize>) -> Script {
    let mut script = vec![stream_head()];
    for token in 0..*lengths.iter().max().unwrap() {
        if token > 0 {
            script.push(Step::Pause(STEP));
        }
        for (index, length) in lengths.iter().enumerate().filter(|(_, length)| token < **length) {
            let finish = if token + 1 == *length { "\"length\"" } else { "null" };
            script.push(chunk(event(api, index, "a", finish)));
        }
    }
    if let Some(tokens) = usage {
        script.push(chunk(format!(
            "data: {{\"id\":\"x\",\"object\":\"x\",\"choices\":[],\"usage\":{{\"prompt_tokens\":3,\"completion_tokens\":{tokens}}}}}\n\n"
        )));
    }
    script.extend([chunk(DONE), last_chunk()]);
    script
}

/// Plays it for a request with these members, and returns its line of the access log.
fn record(forebay: &Forebay, path: &str, members: &str) -> Value {
    let body = format!("{{\"model\":\"tiny\",\"stream\":true,{members}}}");
    let answer = forebay.open().ask(&post(path, &[], body.as_bytes()));
    assert_eq!(answer.status, 200, "{}", answer.text());
    forebay.record(answer.header("x-request-id").unwrap())
}

fn assert_step(tpot_ms: &Value, what: &str) {
    let tpot = tpot_ms.as_f64().unwrap_or_else(|| panic!("{what}: no TPOT"));
    // A busy machine sleeps longer, never shorter.
    assert!((55.0..240.0).contains(&tpot), "{what}: {tpot} ms a token");
}

#[test]
fn the_tpot_and_gaps_of_several_sequences_are_those_of_one() {
    for (api, path, prompt) in
        [("chat", "/v1/chat/completions", "\"messages\":[]"), ("text", "/v1/completions", "\"prompt\":\"x\"")]
    {
        for lengths in [&[TOKENS; 4][..], &[2, TOKENS], &[TOKENS]] {
            let tokens: usize = lengths.iter().sum();
            let mock = Mock::playing(steps(api, lengths, Some(tokens)));
            let config = "[slo]\nttft = \"10s\"\ntpot = \"30ms\"";
            let forebay = Harness::new().config(config).pool("tiny", &[&mock]).start();
            let what = format!("{api} {lengths:?}");
            let record = record(&forebay, path, &format!("\"n\":{},{prompt}", lengths.len()));
            assert_step(&record["tpot_ms"], &what);
            assert_eq!(record["output_tokens"], tokens, "{what}");
            assert_eq!(forebay.metric("forebay_slo_total", &["met=\"false\""]), 1.0, "{what}: 60 ms are over 30 ms");
            let gaps = forebay.metric("forebay_itl_seconds_count", &[]);
            assert_eq!(gaps, (tokens - lengths.len()) as f64, "{what}");
            let mean = forebay.metric("forebay_itl_seconds_sum", &[]) / gaps;
            assert!((0.055..0.240).contains(&mean), "{what}: gaps of {mean} s");
        }
    }
}

#[test]
fn several_prompts_are_several_sequences() {
    let mock = Mock::playing(steps("text", &[4, 4], Some(8)));
    let forebay = Harness::new().pool("tiny", &[&mock]).start();
    assert_step(&record(&forebay, "/v1/completions", "\"prompt\":[\"a\",\"b\"]")["tpot_ms"], "two prompts");
}

#[test]
fn a_tpot_that_cannot_be_told_is_absent() {
    // The second sequence never shows.
    let mock = Mock::playing(steps("chat", &[4], Some(8)));
    let forebay = Harness::new().pool("tiny", &[&mock]).start();
    assert_eq!(record(&forebay, "/v1/chat/completions", "\"n\":2,\"messages\":[]")["tpot_ms"], Value::Null);
}

#[test]
fn the_counter_of_requests_tells_the_apis_apart() {
    let mock = Mock::replying(|_: &Seen| answer(200, &[], "{}"));
    let forebay = Harness::new().pool_with("tiny", "unknown_models = \"refuse\"", &[&mock]).start();
    for (path, api) in [
        ("/v1/chat/completions", "chat"),
        ("/v1/completions", "completions"),
        ("/v1/responses", "responses"),
        ("/v1/messages", "messages"),
        ("/tokenize", "other"),
        ("/v1/embeddings", "other"),
        ("/v1/chat/completions/", "chat"),
    ] {
        let count = || forebay.metric("forebay_requests_total", &["outcome=\"success\"", &format!("api=\"{api}\"")]);
        let before = count();
        assert_eq!(forebay.post(path, "{\"model\":\"tiny\"}").status, 200, "{path}");
        eventually(&format!("{path} is counted as {api}"), || (count() == before + 1.0).then_some(()));
    }
    assert_eq!(forebay.post("/v1/messages", "{\"model\":\"nope\"}").status, 404);
    let refused = ["api=\"messages\"", "outcome=\"forebay_unknown_model\""];
    eventually("the refusal is counted", || (forebay.metric("forebay_requests_total", &refused) == 1.0).then_some(()));
}
