//! The paths of vLLM's API: those that serve are served, with what routing can know of a request; all others are closed.

use crate::client::post;
use crate::harness::{Forebay, Harness, eventually};
use crate::mock::{Gate, Mock, Step, answer};

fn one(mock: &Mock, more: &str) -> Forebay {
    Harness::new().config(more).pool("tiny", &[mock]).start()
}

/// A body of each path, and the sequences that it makes.
const BODIES: &[(&str, &str, u64)] = &[
    ("/v1/chat/completions", r#"{"messages":[],"n":3}"#, 3),
    ("/v1/completions", r#"{"prompt":["a","b"],"n":2}"#, 4),
    ("/v1/responses", r#"{"input":"a"}"#, 1),
    ("/v1/messages", r#"{"messages":[]}"#, 1),
    ("/v1/chat/completions/batch", r#"{"messages":[[{"role":"user","content":"a"}],[],[]]}"#, 3),
    ("/v1/embeddings", r#"{"input":["a","b"]}"#, 2),
    ("/v2/embed", r#"{"texts":["a","b","c"],"input_type":"x"}"#, 3),
    ("/v2/embed", r#"{"images":["data:,AAAA","data:,BBBB"]}"#, 2),
    ("/v2/embed", r#"{"inputs":[{"content":[{"type":"text","text":"a"}]}]}"#, 1),
    ("/pooling", r#"{"input":["a","b"]}"#, 2),
    ("/classify", r#"{"input":["a"]}"#, 1),
    ("/v1/score", r#"{"text_1":"q","text_2":["a","b"]}"#, 2),
    ("/v2/rerank", r#"{"query":"q","documents":["a","b","c"]}"#, 3),
    ("/generative_scoring", r#"{"query":"q","items":["a","b"],"label_token_ids":[1,2]}"#, 2),
    ("/v1/systemone", r#"{"state":"s","questions":{"a":{"question":"x"}}}"#, 1),
    ("/cohere/v2/chat", r#"{"messages":[{"role":"user","content":"a"}]}"#, 1),
    ("/inference/v1/generate", r#"{"token_ids":[1,2,3],"sampling_params":{}}"#, 1),
    ("/invocations", r#"{"messages":[],"n":2}"#, 2),
    ("/invocations", r#"{"prompt":["a","b"]}"#, 2),
    ("/invocations", r#"{"input":["a","b","c"]}"#, 3),
    ("/invocations", r#"{"query":"q","documents":["a","b"]}"#, 2),
];

/// What the API server answers by itself.
const LIGHT: &[&str] = &[
    "/tokenize",
    "/detokenize",
    "/v1/messages/count_tokens",
    "/v1/chat/completions/render",
    "/v1/chat/completions/derender",
    "/v1/completions/render",
    "/v1/completions/derender",
    "/v1/responses/render",
    "/v1/messages/render",
    "/cohere/v2/chat/render",
];

fn in_flight(forebay: &Forebay) -> f64 {
    forebay.metric("forebay_in_flight", &[])
}

#[test]
fn every_serving_path_reaches_a_backend_with_its_sequences_counted() {
    let mock = Mock::start();
    let forebay = one(&mock, "");
    let light = LIGHT.iter().map(|path| (*path, r#"{"prompt":"a"}"#, 0));
    for (path, body, sequences) in BODIES.iter().copied().chain(light) {
        let (came, gate) = (Gate::new(), Gate::new());
        mock.next([vec![Step::Tell(came.clone()), Step::Wait(gate.clone())], answer(200, &[], "{}")].concat());
        let mut conn = forebay.open();
        let body = body.replacen('{', r#"{"model":"tiny","#, 1);
        conn.send(&post(path, &[], body.as_bytes()));
        came.pass();
        eventually(&format!("{sequences} of {path} {body}"), || {
            (in_flight(&forebay) == sequences as f64).then_some(())
        });
        gate.open();
        assert_eq!(conn.answer().status, 200, "{path}");
        assert_eq!((mock.last().target.as_str(), mock.last().text()), (path, body));
        eventually("it is over", || (in_flight(&forebay) == 0.0).then_some(()));
    }
    for path in ["/version", "/tokenizer_info"] {
        assert_eq!((forebay.get(path).status, mock.last().target.as_str()), (200, path));
    }
}

#[test]
fn each_names_its_model_and_an_unknown_one_is_refused() {
    let mock = Mock::start();
    let forebay = Harness::new().pool_with("tiny", "unknown_models = \"refuse\"", &[&mock]).start();
    for (path, body, _) in BODIES {
        let refused = forebay.post(path, &body.replacen('{', r#"{"model":"nope","#, 1));
        assert_eq!((refused.status, refused.header("x-forebay-error")), (404, Some("forebay_unknown_model")), "{path}");
    }
    assert!(mock.seen().is_empty());
}

#[test]
fn invocations_are_the_api_that_their_members_say() {
    let mock = Mock::start();
    let forebay = one(&mock, "");
    // A stream of chat: usage is asked for, taken out again, and counted.
    let streamed = forebay.post("/invocations", r#"{"model":"tiny","stream":true,"messages":[]}"#);
    assert!(streamed.text().ends_with("data: [DONE]\n\n") && !streamed.text().contains("usage"), "{}", streamed.text());
    assert_eq!(mock.last().json()["stream_options"]["include_usage"], true);
    let counted = ["api=\"chat\"", "outcome=\"success\""];
    eventually("as chat", || (forebay.metric("forebay_requests_total", &counted) == 1.0).then_some(()));
    assert_eq!(forebay.metric("forebay_ttft_seconds_count", &[]), 1.0);
}

#[test]
fn ping_says_whether_forebay_is_ready() {
    let mock = Mock::start();
    let forebay = one(&mock, "");
    for request in
        ["GET /ping HTTP/1.1\r\nhost: f\r\n\r\n", "POST /ping HTTP/1.1\r\nhost: f\r\ncontent-length: 0\r\n\r\n"]
    {
        let answer = forebay.open().ask(request.as_bytes());
        assert_eq!((answer.status, answer.text().as_str()), (200, ""));
    }
    mock.refuse();
    eventually("no backend is left", || (forebay.get("/ping").status == 503).then_some(()));
    assert!(mock.seen().is_empty());
}

#[test]
fn management_and_what_speaks_of_one_server_is_closed_in_every_spelling() {
    let mock = Mock::start();
    let forebay = one(&mock, "");
    for path in [
        "/load",
        "/metrics",
        "/kv_event_sources",
        "/scale_elastic_ep",
        "/is_scaling_elastic_ep",
        "/server_info",
        "/openapi.json",
        "/sleep",
        "/wake_up",
        "/pause",
        "/reset_prefix_cache",
        "/collective_rpc",
        "/abort_requests",
        "/start_profile",
        "/inference/v1/abort_requests",
        "/v1/load_lora_adapter",
        "/v1/unload_lora_adapter",
        "/fault_tolerance/apply",
        "/update_weights",
        "/v1/realtime",
    ] {
        let encoded = format!("/%{:02x}{}", path.as_bytes()[1], &path[2..]);
        for spelling in [path.to_owned(), encoded, format!("{path}/"), format!("/v1/..{path}"), format!("/{path}")] {
            for method in ["GET", "POST", "OPTIONS"] {
                let request = format!("{method} {spelling} HTTP/1.1\r\nhost: f\r\ncontent-length: 0\r\n\r\n");
                assert_eq!(forebay.open().ask(request.as_bytes()).status, 404, "{method} {spelling}");
            }
        }
    }
    assert!(mock.seen().is_empty());
}

#[test]
fn an_added_path_goes_to_a_backend_with_whatever_it_takes() {
    let (mock, other) = (Mock::start(), Mock::start().serving("big"));
    let pools = format!(
        "[[pools]]\nmodel = \"tiny\"\nbackends = [{{ url = \"{}\" }}]\n[[pools]]\nmodel = \"big\"\nbackends = [{{ url = \"{}\" }}]",
        mock.url(),
        other.url()
    );
    let forebay = Harness::new().config("[paths]\nallow = [\"/v1/files\"]").pools(&pools).start();
    for (method, headers, body, status) in [
        ("POST", "content-type: application/json\r\n", r#"{"model":"big","a":1}"#, 200),
        ("POST", "content-type: application/json\r\n", r#"{"model":"nope"}"#, 404),
        ("POST", "content-type: text/plain\r\n", "no JSON", 400),
        ("DELETE", "", "", 200),
        ("GET", "", "", 200),
        ("TRACE", "", "", 405),
    ] {
        let request = format!(
            "{method} /v1/files?a=b HTTP/1.1\r\nhost: f\r\n{headers}content-length: {}\r\n\r\n{body}",
            body.len()
        );
        let answer = forebay.open().ask(request.as_bytes());
        assert_eq!(answer.status, status, "{method} {body}: {}", answer.text());
    }
    assert_eq!(
        (other.only().text().as_str(), other.only().target.as_str()),
        (r#"{"model":"big","a":1}"#, "/v1/files?a=b")
    );
    assert_eq!(mock.seen().len(), 2);
    assert_eq!(forebay.get("/v1/files/1").status, 404);
    let text = std::fs::read_to_string(&forebay.config).unwrap();
    std::fs::write(&forebay.config, text.replace("allow = [\"/v1/files\"]", "")).unwrap();
    forebay.signal("HUP");
    eventually("it is closed again", || (forebay.get("/v1/files").status == 404).then_some(()));
}
