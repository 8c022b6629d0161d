//! Facts that this module must hold.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;

async fn start(options: SimOptions) -> (SocketAddr, Arc<Sim>) {
    let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = listener.local_addr().unwrap();
    let sim = Sim::new(options);
    tokio::spawn(serve_sim(listener, Arc::clone(&sim), std::future::pending()));
    (address, sim)
}

fn fast() -> SimOptions {
    SimOptions {
        served_model_names: vec!["tiny".to_owned()],
        time_scale: 5.0,
        ..SimOptions::of(Profile::load("fast").unwrap())
    }
}

fn post_text(path: &str, body: &str, more: &str) -> String {
    let length = body.len();
    format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n{more}content-length: {length}\r\n\r\n{body}"
    )
}

async fn exchange(address: SocketAddr, request: &str) -> (String, String) {
    let mut socket = TcpStream::connect(address).await.unwrap();
    let request = request.replacen("host: x", "host: x\r\nconnection: close", 1);
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut bytes = Vec::new();
    socket.read_to_end(&mut bytes).await.unwrap();
    let text = String::from_utf8(bytes).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    if !head.contains("chunked") {
        return (head.to_owned(), body.to_owned());
    }
    let (mut whole, mut rest) = (String::new(), body);
    while let Some((size, after)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap();
        whole.push_str(&after[..size]);
        rest = &after[size + 2..];
    }
    (head.to_owned(), whole)
}

async fn send(address: SocketAddr, path: &str, body: &str) -> (String, String) {
    exchange(address, &post_text(path, body, "")).await
}

fn events(body: &str) -> Vec<Value> {
    assert!(body.ends_with("\n\ndata: [DONE]\n\n"), "{body}");
    let events = body.split_terminator("\n\n").filter_map(|event| event.strip_prefix("data: "));
    events.filter(|event| *event != "[DONE]").map(|event| serde_json::from_str(event).unwrap()).collect()
}

const CHAT: &str = r#""model": "tiny", "messages": [{"role": "user", "content": "Hello, how are you today?"}]"#;

#[tokio::test]
async fn a_chat_stream_is_a_role_event_tokens_usage_and_done() {
    let (address, _) = start(fast()).await;
    let options = r#""stream": true, "stream_options": {"include_usage": true}, "max_tokens": 8"#;
    let (head, body) = send(address, "/v1/chat/completions", &format!("{{{CHAT}, {options}}}")).await;
    assert!(head.starts_with("HTTP/1.1 200 OK") && head.contains("content-type: text/event-stream; charset=utf-8"));
    let events = events(&body);
    assert_eq!(events[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    assert_eq!(events[events.len() - 2]["choices"][0]["finish_reason"], "length");
    let last = &events[events.len() - 1];
    assert_eq!(last["choices"], json!([]));
    assert_eq!(last["usage"], json!({"prompt_tokens": 18, "total_tokens": 26, "completion_tokens": 8}));
    let text: String = events.iter().filter_map(|event| event["choices"][0]["delta"]["content"].as_str()).collect();
    let (_, whole) = send(address, "/v1/chat/completions", &format!(r#"{{{CHAT}, "max_tokens": 8}}"#)).await;
    let whole: Value = serde_json::from_str(&whole).unwrap();
    assert_eq!(whole["choices"][0]["message"]["content"], text, "streamed or not, the same answer");
    assert_eq!(whole["usage"]["completion_tokens"], 8);
}

#[tokio::test]
async fn a_stream_without_usage_has_none_and_with_continuous_usage_has_it_everywhere() {
    let (address, _) = start(fast()).await;
    let ask = |options: &str| format!(r#"{{{CHAT}, "stream": true, "max_tokens": 3{options}}}"#);
    let (_, body) = send(address, "/v1/chat/completions", &ask("")).await;
    assert!(!body.contains("usage"));
    let options = r#", "stream_options": {"include_usage": true, "continuous_usage_stats": true}"#;
    let (_, body) = send(address, "/v1/chat/completions", &ask(options)).await;
    let counts: Vec<i64> =
        events(&body).iter().map(|event| event["usage"]["completion_tokens"].as_i64().unwrap()).collect();
    assert_eq!((counts[0], counts[counts.len() - 2], counts[counts.len() - 1]), (0, 3, 3));
}

#[tokio::test]
async fn two_prompts_with_two_answers_are_four_choices() {
    let (address, _) = start(fast()).await;
    let options = r#""stream": true, "stream_options": {"include_usage": true}, "max_tokens": 3, "n": 2"#;
    let (_, body) = send(address, "/v1/completions", &format!(r#"{{"prompt": ["Hello", "Yes"], {options}}}"#)).await;
    let events = events(&body);
    for choice in 0..4 {
        let ends = events
            .iter()
            .filter(|event| event["choices"][0]["index"] == choice && event["choices"][0]["finish_reason"] == "length");
        assert_eq!(ends.count(), 1, "{body}");
    }
    let usage = &events[events.len() - 1]["usage"];
    assert_eq!(usage, &json!({"prompt_tokens": 2, "total_tokens": 14, "completion_tokens": 12}));
}

#[tokio::test]
async fn an_answer_is_found_in_the_prefix_cache_too() {
    let (address, _) = start(SimOptions { prompt_tokens_details: true, ..fast() }).await;
    let ask = async |prompt: &str| {
        let body = json!({"prompt": prompt, "max_tokens": 40, "ignore_eos": true}).to_string();
        serde_json::from_str::<Value>(&send(address, "/v1/completions", &body).await.1).unwrap()
    };
    let prompt = "Hello, how are you today?";
    let answer = ask(prompt).await["choices"][0]["text"].as_str().unwrap().to_owned();
    let again = ask(&format!("{prompt}{answer} Yes")).await;
    // 7 and 40 tokens fill two blocks; the last token of an answer is never computed.
    assert_eq!(again["usage"]["prompt_tokens_details"]["cached_tokens"], 32);
}

#[tokio::test]
async fn errors_are_plain_bodies_with_a_true_status_also_for_streams() {
    let (address, _) = start(fast()).await;
    let unknown = CHAT.replace("tiny", "nope");
    let (head, body) = send(address, "/v1/chat/completions", &format!(r#"{{{unknown}, "stream": true}}"#)).await;
    assert!(head.starts_with("HTTP/1.1 404") && head.contains("content-type: application/json"));
    assert!(body.contains("The model `nope` does not exist. Valid aliases: tiny."));
    let untyped = post_text("/v1/completions", "{}", "").replace("content-type: application/json\r\n", "");
    assert!(exchange(address, &untyped).await.1.contains("Unsupported Media Type"));
    let (head, body) = exchange(address, "GET /nothing HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 404") && body == r#"{"detail":"Not Found"}"#);
    let (head, body) = exchange(address, "GET /v1/completions HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 405") && body == r#"{"detail":"Method Not Allowed"}"#);
}

#[tokio::test]
async fn the_plain_routes_answer() {
    let (address, _) = start(fast()).await;
    let get = async |path: &str| exchange(address, &format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n")).await;
    assert!(get("/health").await.0.starts_with("HTTP/1.1 200"));
    assert_eq!(get("/load").await.1, r#"{"server_load":0}"#);
    assert!(get("/v1/models").await.1.contains(r#""id":"tiny""#));
    assert!(get("/version").await.1.contains("forebay-sim"));
    let body = r#"{"model": "tiny", "prompt": "Hello, how are you today?"}"#;
    assert!(send(address, "/tokenize", body).await.1.contains(r#""count":7,"#));
    assert!(send(address, "/tokenize", &format!("{{{CHAT}}}")).await.1.contains(r#""count":18,"#));
    send(address, "/v1/completions", r#"{"prompt": "Hello", "max_tokens": 4}"#).await;
    let metrics = get("/metrics").await.1;
    assert!(metrics.contains("vllm:generation_tokens_total{engine=\"0\",model_name=\"tiny\"} 4.0"), "{metrics}");
    assert!(
        metrics.contains("vllm:request_success_total{engine=\"0\",model_name=\"tiny\",finished_reason=\"length\"} 1.0")
    );
}

#[tokio::test]
async fn a_client_that_leaves_frees_the_engine_streamed_or_not() {
    let (address, sim) = start(SimOptions { time_scale: 0.01, ..fast() }).await;
    for stream in [true, false] {
        let mut socket = TcpStream::connect(address).await.unwrap();
        let body = format!(r#"{{{CHAT}, "stream": {stream}, "max_tokens": 2000, "ignore_eos": true}}"#);
        socket.write_all(post_text("/v1/chat/completions", &body, "").as_bytes()).await.unwrap();
        while sim.pacer().occupancy().0 == 0 {
            tokio::task::yield_now().await;
        }
        drop(socket);
        let gone = async {
            while sim.pacer().occupancy() != (0, 0, 0) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(5), gone).await.expect("the request is aborted");
        assert_eq!(sim.pacer().load(), 0);
    }
    assert_eq!(sim.pacer().counters().aborted, 2);
}

#[tokio::test]
async fn the_head_of_a_stream_comes_before_its_first_token() {
    let (address, sim) = start(SimOptions { time_scale: 1e-6, ..fast() }).await;
    let mut socket = TcpStream::connect(address).await.unwrap();
    let body = format!(r#"{{{CHAT}, "stream": true}}"#);
    socket.write_all(post_text("/v1/chat/completions", &body, "").as_bytes()).await.unwrap();
    let mut head = vec![0; 15];
    socket.read_exact(&mut head).await.unwrap();
    assert_eq!(head, b"HTTP/1.1 200 OK");
    assert_eq!(sim.pacer().counters().generation_tokens, 0);
}
