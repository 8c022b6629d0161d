//! Facts that this module must hold.

use std::net::SocketAddr;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;
use crate::load::workload::{Endpoint, Length, Rate};
use crate::rows::record::Outcome;

/// Answers every request on `answers`, in turn, with one of these bytes, and closes.
async fn canned(answers: &'static [&'static str]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        for answer in answers.iter().cycle() {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut seen = Vec::new();
            while !seen.ends_with(b"}") {
                let mut buffer = [0; 4096];
                let count = socket.read(&mut buffer).await.unwrap();
                seen.extend_from_slice(&buffer[..count]);
            }
            socket.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    address
}

const GOOD: &str = concat!(
    "HTTP/1.1 200 OK\r\nconnection: close\r\nx-forebay-arm: tp2\r\nx-forebay-assigned-arm: tp1\r\nx-forebay-backend: b1\r\n\r\n",
    "data: {\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n",
    "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"a\"}}]}\n\n",
    "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":3}}\n\ndata: [DONE]\n\n",
);
const CUT: &str = concat!(
    "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n",
    "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"a\"}}]}\n\n",
);
const ERROR: &str = concat!(
    "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n",
    "data: {\"error\": {\"message\": \"dead\", \"code\": 500}}\n\ndata: [DONE]\n\n",
);
const REFUSED: &str = "HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\ncontent-length: 4\r\n\r\nbusy";

fn workload(num_prompts: u32) -> Workload {
    Workload {
        model: "m".to_owned(),
        endpoint: Endpoint::Chat,
        num_prompts,
        input_len: 10,
        output_len: 3,
        length: Length::Whole,
        ignore_eos: false,
        temperature: None,
        rate: Rate::Unlimited,
        seed: 1,
    }
}

#[tokio::test]
async fn each_way_to_end_is_told_apart() {
    let address = canned(&[GOOD, CUT, ERROR, REFUSED]).await;
    let load = workload(4);
    let bodies = Supply::Ready((0..4).map(|id| Bytes::from(load.body(&load.words(id, 5)))).collect());
    let sending = Sending { max_concurrency: Some(1), session_header: Some("x-session-id".to_owned()), epoch: 2 };
    let target = Target { arm: Some("given".to_owned()), ..Target::of(format!("http://{address}")) };
    let run = Client::default().run(&[target], &load, &bodies, &sending, &Arc::default()).await;
    let outcomes: Vec<Outcome> = run.records.iter().map(|record| record.outcome).collect();
    assert_eq!(outcomes, [Outcome::Success, Outcome::Truncated, Outcome::ErrorEvent, Outcome::Status]);
    let good = &run.records[0];
    assert_eq!((good.arm.as_deref(), good.backend.as_deref(), good.epoch), (Some("tp2"), Some("b1"), 2));
    assert_eq!(good.assigned.as_deref(), Some("tp1"));
    assert_eq!((good.prompt_tokens, good.output_tokens, good.gaps_us.len()), (9, 3, 1));
    assert!(good.first_event_us <= good.first_token_us && good.first_token_us.unwrap() <= good.end_us);
    assert_eq!((run.records[3].status, run.records[3].error.as_deref()), (Some(503), Some("busy")));
    assert_eq!(run.records[3].arm.as_deref(), Some("given"));
}

#[tokio::test]
async fn a_server_that_is_not_there_is_a_record_and_an_error() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let load = workload(1);
    let client = Client::default();
    let bodies = Supply::Ready(vec![Bytes::from_static(b"{}")]);
    let run = client.run(&[Target::of(base.as_str())], &load, &bodies, &Sending::default(), &Arc::default()).await;
    assert_eq!(run.records[0].outcome, Outcome::Connect);
    assert!(client.bodies(&base, &load, None).await.unwrap_err().to_string().contains("cannot reach"));
}

#[tokio::test]
async fn a_server_that_does_not_count_gets_token_ids_or_words() {
    use crate::load::counting::Counted;
    use crate::load::dataset::Dataset;
    let absent = "HTTP/1.1 404 Not Found\r\nconnection: close\r\ncontent-length: 22\r\n\r\n{\"detail\":\"Not Found\"}";
    let base = format!("http://{}", canned(Box::leak(Box::new([absent]))).await);
    let client = Client::default();
    let ids = Workload { endpoint: Endpoint::Completions, ..workload(3) };
    let made = client.prepare(&base, &ids, &Dataset::Random).await.unwrap();
    let Supply::Ready(bodies) = &made.supply else { panic!("random prompts are ready") };
    let body: Value = serde_json::from_slice(&bodies[2]).unwrap();
    assert_eq!((made.counted, body["prompt"].as_array().unwrap().len()), (Counted::TokenIds, 10));
    let made = client.prepare(&base, &workload(1), &Dataset::Random).await.unwrap();
    assert_eq!(
        (made.counted, matches!(made.supply, Supply::Ready(bodies) if bodies.len() == 1)),
        (Counted::Words, true)
    );
}

/// Answers with `ANSWERS`, in turn, and gives the bodies that were asked with.
async fn overheard(answers: &'static [&'static str]) -> (SocketAddr, tokio::sync::mpsc::UnboundedReceiver<Value>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (tell, told) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        for answer in answers {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut seen = Vec::new();
            let body = loop {
                let mut buffer = [0; 4096];
                let count = socket.read(&mut buffer).await.unwrap();
                seen.extend_from_slice(&buffer[..count]);
                let head = seen.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4);
                if let Some(body) = head.and_then(|at| serde_json::from_slice(&seen[at..]).ok()) {
                    break body;
                }
            };
            tell.send(body).unwrap();
            socket.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    (address, told)
}

#[tokio::test]
async fn a_conversation_repeats_the_answers_received_and_ends_with_a_turn_that_fails() {
    use crate::load::dataset::conversations::{Conversations, Script, Think};
    use crate::load::dataset::vocabulary::Vocabulary;
    let (address, mut told) = overheard(&[GOOD, GOOD, REFUSED]).await;
    let load = workload(4);
    let script = Script {
        shape: Conversations { turns: 4, common_prefix_len: 3, prefix_len: 2, input_len: 1, think: Think::default() },
        vocabulary: Vocabulary::of_all_words(),
        workload: load.clone(),
        time_scale: 1.0,
    };
    let supply = Supply::Conversations(script.clone());
    let sending = Sending { session_header: Some("x-session-id".to_owned()), ..Sending::default() };
    let run = Client::default()
        .run(&[Target::of(format!("http://{address}"))], &load, &supply, &sending, &Arc::default())
        .await;
    let turns: Vec<_> = run.records.iter().map(|one| (one.id, one.conversation, one.turn, one.succeeded())).collect();
    assert_eq!(turns, [(0, Some(0), Some(0), true), (1, Some(0), Some(1), true), (2, Some(0), Some(2), false)]);
    let mut said = Vec::new();
    while let Some(body) = told.recv().await {
        let messages = body["messages"].as_array().unwrap().clone();
        said = messages.iter().map(|one| one["content"].as_str().unwrap().to_owned()).collect();
    }
    assert_eq!(said, [&script.prompt(0, 0), "a", &script.prompt(0, 1), "a", &script.prompt(0, 2)].map(str::to_owned));
}

#[tokio::test]
async fn a_trace_is_sent_at_its_times() {
    use crate::load::dataset::trace::{Form, Replay, read};
    use crate::load::dataset::vocabulary::Vocabulary;
    let address = canned(&[GOOD]).await;
    let line = |at| format!("{{\"timestamp\": {at}, \"input_length\": 9, \"output_length\": 3, \"hash_ids\": [1]}}\n");
    let text: String = [5, 35, 65].map(line).concat();
    let trace = Arc::new(read(text.as_bytes(), Form::MOONCAKE, 10).unwrap());
    let load = Workload { rate: Rate::OfTrace { speedup: 1.0 }, ..workload(3) };
    let replay = Replay { trace, vocabulary: Vocabulary::of_all_words(), workload: load.clone() };
    let target = Target::of(format!("http://{address}"));
    let supply = Supply::Replay(replay);
    let run = Client::default().run(&[target], &load, &supply, &Sending::default(), &Arc::default()).await;
    let sent: Vec<u64> = run.records.iter().map(|record| record.sent_us).collect();
    assert!(sent.len() == 3 && sent[1] >= 30_000 && sent[2] >= 60_000, "{sent:?}");
    assert!(run.records.iter().all(Record::succeeded));
}
