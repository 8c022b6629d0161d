//! What becomes of a request on its way: paths, models, keys, ids, headers, and the stored responses that bind one to a
//! backend.

use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::client::post;
use crate::harness::{Forebay, Harness, eventually};
use crate::mock::{CHAT, Mock, answer, like_vllm, stream, token};

const PATH: &str = "/v1/chat/completions";
const STREAM: &str = r#"{"model":"tiny","stream":true,"messages":[]}"#;
const UNARY: &str = r#"{"model":"tiny","messages":[]}"#;

fn one(mock: &Mock) -> Forebay {
    Harness::new().pool("tiny", &[mock]).start()
}

// ---- paths and models ----------------------------------------------------------------------------------------------

#[test]
fn only_paths_on_the_list_reach_a_backend() {
    let mock = Mock::start();
    let forebay = one(&mock);
    for path in ["/pause", "/metrics", "/load", "//v1/chat/completions", "/v1/nothing", "/"] {
        let answer = forebay.post(path, UNARY);
        assert_eq!(answer.status, 404, "{path}");
        assert_eq!(answer.json()["error"]["type"], "forebay_path_not_allowed", "{path}");
        assert!(answer.header("x-request-id").is_some());
    }
    for (path, status) in [("/metrics", 404), (PATH, 405), ("/health", 200)] {
        assert_eq!(forebay.get(path).status, status, "{path}");
    }
    assert!(mock.seen().is_empty());
}

#[test]
fn every_path_on_the_list_reaches_a_backend_with_its_query() {
    let mock = Mock::playing(answer(200, &[], "{}"));
    let forebay = one(&mock);
    let paths = [
        "/v1/completions",
        "/v1/messages",
        "/v1/messages/count_tokens",
        "/v1/embeddings",
        "/v1/rerank",
        "/rerank",
        "/v2/rerank",
        "/v1/score",
        "/score",
        "/pooling",
        "/classify",
        "/tokenize",
        "/detokenize",
        "/v1/responses",
    ];
    for path in paths {
        let target = format!("{path}?beta=1&x=%20y");
        assert_eq!(forebay.post(&target, UNARY).status, 200, "{path}");
        let seen = mock.last();
        assert_eq!((seen.target.as_str(), seen.text().as_str()), (target.as_str(), UNARY));
    }
    assert_eq!(forebay.get("/version").status, 200);
    assert_eq!(mock.last().target, "/version");
}

#[test]
fn readiness_is_ours_and_says_that_a_backend_takes_requests() {
    let mock = Mock::start();
    let forebay = one(&mock);
    assert_eq!(forebay.get("/ready").status, 200);
    assert_eq!(forebay.get("/health").status, 200);
    assert!(mock.seen().is_empty());
}

#[test]
fn an_unknown_model_that_is_refused_is_404_and_names_those_served() {
    let mock = Mock::start();
    let forebay = Harness::new().pool_with("tiny", "unknown_models = \"refuse\"", &[&mock]).start();
    let answer = forebay.post(PATH, r#"{"model":"other","messages":[]}"#);
    assert_eq!(answer.status, 404);
    assert_eq!(answer.header("x-forebay-error"), Some("forebay_unknown_model"));
    assert!(answer.text().contains("tiny"), "{}", answer.text());
}

#[test]
fn the_model_chooses_the_pool_and_without_one_several_pools_are_400() {
    let (tiny, big) = (Mock::start(), Mock::start().serving("big"));
    let forebay = Harness::new().pool("tiny", &[&tiny]).pool_with("big", "aliases = [\"large\"]", &[&big]).start();
    for (model, mock) in [("tiny", &tiny), ("big", &big), ("large", &big)] {
        let body = format!("{{\"messages\":[],\"model\":\"{model}\"}}");
        assert_eq!(forebay.post(PATH, &body).header("x-forebay-backend"), Some(mock.authority().as_str()));
    }
    let answer = forebay.post(PATH, r#"{"messages":[]}"#);
    assert_eq!(answer.status, 400);
    assert_eq!(answer.json()["error"]["type"], "forebay_no_model");
}

#[test]
fn an_alias_is_replaced_by_the_pools_model_and_nothing_else_changes() {
    let mock = Mock::start();
    let forebay = Harness::new().pool_with("tiny", "aliases = [\"nick\"]", &[&mock]).start();
    let body = r#"{ "messages" : [ {"role":"user","content":"nick \"model\":\"nick\""} ], "model" : "nick", "x":{"model":"nick"} }"#;
    assert_eq!(forebay.post(PATH, body).status, 200);
    assert_eq!(mock.only().text(), body.replace("\"model\" : \"nick\"", "\"model\" : \"tiny\""));
}

#[test]
fn a_name_that_the_backend_lists_passes_as_it_is() {
    let mock = Mock::start().serving("lora");
    let forebay = Harness::new().pool_with("tiny", "aliases = [\"lora\"]", &[&mock]).start();
    let body = r#"{"model":"lora","messages":[]}"#;
    eventually("the backend's list is known", || {
        assert_eq!(forebay.post(PATH, body).status, 200);
        (mock.last().text() == body).then_some(())
    });
}

#[test]
fn models_are_one_list_over_all_pools() {
    let (tiny, big) = (Mock::start(), Mock::start().serving("big"));
    let forebay = Harness::new().pool_with("tiny", "aliases = [\"nick\"]", &[&tiny]).pool("big", &[&big]).start();
    let list = eventually("both backends' lists are known", || {
        let list = forebay.get("/v1/models").json();
        let known = |card: &Value| card["max_model_len"] == 2048;
        list["data"].as_array().unwrap().iter().all(known).then_some(list)
    });
    let ids: Vec<&str> = list["data"].as_array().unwrap().iter().map(|card| card["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["tiny", "nick", "big"]);
    assert_eq!(list["object"], "list");
    assert_eq!(forebay.get("/v1/models/big").json()["id"], "big");
    assert_eq!(forebay.get("/v1/models/none").status, 404);
    assert!(tiny.seen().is_empty());
}

#[test]
fn without_a_file_the_backends_are_asked_what_they_serve() {
    let (one, other) = (Mock::start(), Mock::start().serving("big"));
    let forebay = Harness::new().arg("--backend").arg(&one.url()).arg("--backend").arg(&other.url()).start();
    for (model, mock) in [("tiny", &one), ("big", &other)] {
        let body = format!("{{\"messages\":[],\"model\":\"{model}\"}}");
        let answer = eventually("the model is discovered", || {
            Some(forebay.post(PATH, &body)).filter(|answer| answer.status == 200)
        });
        assert_eq!(answer.header("x-forebay-backend"), Some(mock.authority().as_str()));
    }
}

#[test]
fn a_form_with_a_file_passes_untouched_to_the_pool_that_it_names() {
    let (tiny, whisper) = (Mock::start(), Mock::start().serving("whisper"));
    let forebay = Harness::new().pool("tiny", &[&tiny]).pool("whisper", &[&whisper]).start();
    let mut form = b"--B\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\n\r\n".to_vec();
    form.extend((0..100_000_u32).map(|n| (n % 251) as u8));
    form.extend(b"\r\n--B\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nwhisper\r\n--B--\r\n");
    let kind = "multipart/form-data; boundary=B";
    let request = post("/v1/audio/transcriptions", &[("content-type", kind)], &form);
    assert_eq!(forebay.open().ask(&request).status, 200);
    let seen = whisper.only();
    assert!(seen.body == form);
    assert_eq!(seen.header("content-type"), Some(kind));
    assert!(tiny.seen().is_empty());
}

// ---- stored responses ----------------------------------------------------------------------------------------------

#[test]
fn a_stored_response_is_continued_and_returned_by_the_backend_that_made_it() {
    let (one, other) = (Mock::start(), Mock::start());
    for (mock, id) in [(&one, "resp_one"), (&other, "resp_other")] {
        mock.reply(move |seen| {
            if seen.text().contains("\"stream\":true") {
                let event = |name: &str| {
                    format!("event: {name}\ndata: {{\"type\":\"{name}\",\"response\":{{\"id\":\"{id}_stream\"}}}}\n\n")
                };
                return stream(&[event("response.created"), event("response.completed")]);
            }
            answer(200, &[], &format!("{{\"id\":\"{id}\",\"object\":\"response\"}}"))
        });
    }
    let forebay = Harness::new().pool("tiny", &[&one, &other]).start();
    for body in [r#"{"model":"tiny","input":"x"}"#, r#"{"model":"tiny","input":"x","stream":true}"#] {
        for _ in 0..4 {
            let made = forebay.post("/v1/responses", body);
            assert_eq!(made.status, 200, "{}", made.text());
            let home = made.header("x-forebay-backend").unwrap().to_owned();
            let text = made.text();
            let id = text.split("\"id\":\"").nth(1).unwrap().split('"').next().unwrap();
            for _ in 0..3 {
                let next = format!("{{\"model\":\"tiny\",\"input\":\"y\",\"previous_response_id\":\"{id}\"}}");
                let answer = forebay.post("/v1/responses", &next);
                assert_eq!((answer.status, answer.header("x-forebay-backend")), (200, Some(home.as_str())));
                let answer = forebay.get(&format!("/v1/responses/{id}?x=1"));
                assert_eq!((answer.status, answer.header("x-forebay-backend")), (200, Some(home.as_str())));
                let answer = forebay.post(&format!("/v1/responses/{id}/cancel"), "");
                assert_eq!((answer.status, answer.header("x-forebay-backend")), (200, Some(home.as_str())));
            }
        }
    }
    assert!(!one.seen().is_empty() && !other.seen().is_empty());
}

#[test]
fn an_unknown_stored_response_is_404_that_says_so() {
    let mock = Mock::playing(answer(404, &[], r#"{"error":{"message":"Response with id 'resp_never' not found."}}"#));
    let forebay = one(&mock);
    let body = r#"{"model":"tiny","input":"y","previous_response_id":"resp_never"}"#;
    for answer in [forebay.post("/v1/responses", body), forebay.get("/v1/responses/resp_never")] {
        assert_eq!(answer.status, 404);
        assert_eq!(answer.json()["error"]["type"], "forebay_unknown_response");
        assert!(answer.text().contains("no backend has the response `resp_never`"), "{}", answer.text());
    }
}

// ---- keys ----------------------------------------------------------------------------------------------------------

#[test]
fn without_client_keys_the_clients_key_passes() {
    let mock = Mock::start();
    let forebay = one(&mock);
    let request = post(PATH, &[("authorization", "Bearer theirs"), ("x-api-key", "also")], UNARY.as_bytes());
    assert_eq!(forebay.open().ask(&request).status, 200);
    assert_eq!(mock.only().header("authorization"), Some("Bearer theirs"));
    assert_eq!(mock.only().header("x-api-key"), Some("also"));
}

/// A Forebay with client keys and a key of its own towards the backend.
fn with_keys(mock: &Mock) -> Forebay {
    let hash: String = Sha256::digest("client-secret").iter().map(|byte| format!("{byte:02x}")).collect();
    let pool = format!(
        "[[pools]]\nmodel = \"tiny\"\nbackends = [{{ url = \"{}\", key_env = \"IT_VLLM_KEY\" }}]\n",
        mock.url()
    );
    Harness::new()
        .config("[clients]\nkeys_file = \"clients.keys\"")
        .file("clients.keys", &format!("team = {hash}\n"))
        .env("IT_VLLM_KEY", "backend-secret")
        .pools(&pool)
        .start()
}

#[test]
fn with_client_keys_the_clients_ends_here_and_the_backends_is_put_on() {
    let mock = Mock::start();
    let forebay = with_keys(&mock);
    for key in [("authorization", "Bearer client-secret"), ("x-api-key", "client-secret")] {
        let answer = forebay.open().ask(&post(PATH, &[key], UNARY.as_bytes()));
        assert_eq!(answer.status, 200, "{key:?}: {}", answer.text());
        let seen = mock.last();
        assert_eq!(seen.header("authorization"), Some("Bearer backend-secret"), "{key:?}");
        assert!(!format!("{:?}", seen.headers).contains("client-secret"), "{key:?}: the client's key got through");
        let record = forebay.record(answer.header("x-request-id").unwrap());
        assert_eq!(record["client_key"], "team");
        assert!(!record.to_string().contains("secret"));
    }
    for headers in [&[][..], &[("authorization", "Bearer wrong")], &[("authorization", "client-secret")]] {
        let answer = forebay.open().ask(&post(PATH, headers, UNARY.as_bytes()));
        assert_eq!(answer.status, 401, "{headers:?}");
        assert_eq!(answer.json()["error"]["type"], "forebay_unauthorized");
    }
    assert_eq!(mock.seen().len(), 2);
    assert_eq!(forebay.get("/health").status, 200);
    assert_eq!(forebay.get("/v1/models").status, 401);
    assert!(!forebay.log().contains("secret"));
}

#[test]
fn a_401_to_our_own_key_is_never_the_clients() {
    let mock = Mock::playing(answer(401, &[], "{\"error\":\"Unauthorized\"}"));
    let forebay = with_keys(&mock);
    let request = post(PATH, &[("authorization", "Bearer client-secret")], UNARY.as_bytes());
    let answer = forebay.open().ask(&request);
    assert_eq!(answer.status, 502, "{}", answer.text());
    assert!(answer.text().contains("misconfigured"), "{}", answer.text());
}

// ---- headers -------------------------------------------------------------------------------------------------------

#[test]
fn a_request_id_is_taken_or_made_and_goes_both_ways() {
    let mock = Mock::start();
    let forebay = one(&mock);
    for given in [Some("my-id-1"), None] {
        let header = given.map(|id| ("x-request-id", id));
        let answer = forebay.open().ask(&post(PATH, header.as_slice(), UNARY.as_bytes()));
        let id = answer.header("x-request-id").unwrap();
        assert_eq!(mock.last().header("x-request-id"), Some(id));
        assert!(given.is_none_or(|given| given == id));
        assert_eq!(forebay.record(id)["status"], 200);
    }
    let answer = forebay.open().ask(&post("/nothing", &[("x-request-id", "my-id-2")], b""));
    assert_eq!((answer.status, answer.header("x-request-id")), (404, Some("my-id-2")));
}

#[test]
fn hop_by_hop_headers_end_here_in_both_directions() {
    let mock = Mock::playing(answer(
        200,
        &[
            ("connection", "keep-alive, x-private"),
            ("keep-alive", "timeout=5"),
            ("x-private", "1"),
            ("proxy-authenticate", "Basic"),
            ("upgrade", "h2c"),
            ("x-public", "1"),
        ],
        CHAT,
    ));
    let forebay = one(&mock);
    let sent = [
        ("connection", "keep-alive, x-mine"),
        ("x-mine", "1"),
        ("te", "trailers"),
        ("proxy-authorization", "Basic x"),
        ("upgrade", "websocket"),
        ("x-theirs", "1"),
        ("user-agent", "it"),
    ];
    let answer = forebay.open().ask(&post(PATH, &sent, UNARY.as_bytes()));
    assert_eq!(answer.header("x-public"), Some("1"));
    for gone in ["x-private", "keep-alive", "proxy-authenticate", "upgrade"] {
        assert_eq!(answer.header(gone), None, "{gone}");
    }
    let seen = mock.only();
    assert_eq!((seen.header("x-theirs"), seen.header("user-agent")), (Some("1"), Some("it")));
    assert_eq!(seen.header("host"), Some(mock.authority().as_str()));
    for gone in ["x-mine", "te", "proxy-authorization", "upgrade", "connection"] {
        assert_eq!(seen.header(gone), None, "{gone}");
    }
}

#[test]
fn accept_encoding_goes_no_further_on_a_stream() {
    let mock = Mock::start();
    let forebay = one(&mock);
    for (body, expected) in [(STREAM, None), (UNARY, Some("gzip"))] {
        forebay.open().ask(&post(PATH, &[("accept-encoding", "gzip")], body.as_bytes()));
        assert_eq!(mock.last().header("accept-encoding"), expected, "{body}");
    }
}

#[test]
fn errors_on_messages_have_anthropics_shape() {
    let mock = Mock::start();
    let forebay = Harness::new().pool_with("tiny", "unknown_models = \"refuse\"", &[&mock]).start();
    for body in [r#"{"model":"other","messages":[]}"#, "nonsense"] {
        let error = forebay.post("/v1/messages", body).json();
        assert_eq!(error["type"], "error");
        assert!(error["error"]["message"].is_string() && error["error"]["type"].is_string());
    }
    assert!(forebay.post(PATH, "nonsense").json()["error"]["param"].is_null());
}

// ---- what is told --------------------------------------------------------------------------------------------------

#[test]
fn every_request_is_counted_once_by_its_outcome() {
    let mock = Mock::start();
    let forebay = one(&mock);
    for _ in 0..3 {
        forebay.post(PATH, STREAM);
    }
    forebay.post(PATH, UNARY);
    mock.next(answer(400, &[], "{}"));
    forebay.post(PATH, UNARY);
    forebay.post("/nothing", "");
    let requests = |labels: &[&str]| forebay.metric("forebay_requests_total", labels);
    eventually("all are counted", || (requests(&[]) >= 6.0).then_some(()));
    assert_eq!(requests(&["outcome=\"success\""]), 4.0);
    assert_eq!(requests(&["outcome=\"client_error\""]), 1.0);
    assert_eq!(requests(&["outcome=\"forebay_path_not_allowed\"", "backend=\"none\""]), 1.0);
    assert_eq!(forebay.metric("forebay_ttft_seconds_count", &["pool=\"tiny\""]), 3.0);
    assert_eq!(forebay.metric("forebay_output_tokens_total", &["source=\"usage\""]), 7.0);
    assert_eq!(forebay.metric("forebay_in_flight", &[]), 0.0);
}

#[test]
fn without_usage_the_events_are_counted_and_said_to_be_events() {
    let mock = Mock::playing(stream(&[&token("a"), &token("b"), &token("c"), crate::mock::DONE]));
    let forebay = one(&mock);
    let answer = forebay.post(PATH, STREAM);
    let record = forebay.record(answer.header("x-request-id").unwrap());
    assert_eq!((&record["output_tokens"], &record["token_source"]), (&3.into(), &"events".into()));
    mock.reply(like_vllm);
}

#[test]
fn an_adapter_is_asked_for_only_where_it_is_listed() {
    let (with, without) = (Mock::start().serving("my-lora"), Mock::start());
    let forebay = Harness::new().pool("tiny", &[&with, &without]).start();
    eventually("the list of models", || forebay.get("/v1/models").text().contains("my-lora").then_some(()));
    for _ in 0..4 {
        assert_eq!(forebay.post(PATH, r#"{"model":"my-lora","messages":[]}"#).status, 200);
    }
    assert!(without.seen().is_empty());
    assert!(with.seen().iter().all(|seen| seen.json()["model"] == "my-lora"));
}

// ---- sessions ------------------------------------------------------------------------------------------------------

#[test]
fn each_pool_has_the_session_key_that_it_names() {
    let mocks = [Mock::start(), Mock::start(), Mock::start(), Mock::start()];
    let arms = |mocks: &[Mock]| -> String {
        let arm = |(n, mock): (usize, &Mock)| {
            format!("[[pools.arms]]\nname = \"arm{n}\"\nbackends = [{{ url = \"{}\" }}]\n", mock.url())
        };
        mocks.iter().enumerate().map(arm).collect()
    };
    let pool = |model: &str, member: &str, mocks: &[Mock]| {
        format!("[[pools]]\nmodel = \"{model}\"\nsession = {{ body = \"{member}\" }}\n{}", arms(mocks))
    };
    let forebay = Harness::new()
        .pools(&pool("tiny", "user", &mocks[..2]))
        .pools(&pool("big", "conversation", &mocks[2..]))
        .start();
    for (model, member, other) in [("tiny", "user", "conversation"), ("big", "conversation", "user")] {
        let mut used = Vec::new();
        for session in 0..16 {
            let arm = |n: usize| {
                let body = serde_json::json!({"model": model, "messages": [], member: format!("s{session}"), other: format!("o{n}")});
                forebay.post(PATH, &body.to_string()).header("x-forebay-arm").unwrap().to_owned()
            };
            let first = arm(0);
            assert!((1..8).all(|n| arm(n) == first), "{model}: session {session} stays in its arm");
            used.push(first);
        }
        assert!(used.iter().any(|arm| *arm != used[0]), "{model}: sessions are split");
    }
}
