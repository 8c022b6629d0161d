//! What a client can make Forebay hold is bounded and counted: its words in errors and logs, its sessions, heads and forms.

use std::thread;
use std::time::{Duration, Instant};

use crate::client::{Conn, post};
use crate::harness::{Forebay, Harness, eventually, ms};
use crate::mock::{DONE, Gate, Mock, Step, answer, chunk, last_chunk, stream_head, token};

const PATH: &str = "/v1/chat/completions";
const STREAM: &str = r#"{"model":"tiny","stream":true,"messages":[]}"#;
const UNARY: &str = r#"{"model":"tiny","messages":[]}"#;
/// What is freed goes back at once: what is left is held.
const MALLOC: (&str, &str) = ("_RJEM_MALLOC_CONF", "dirty_decay_ms:0,muzzy_decay_ms:0");

#[test]
fn a_clients_words_come_back_cut_in_errors_and_logs() {
    let mock = Mock::replying(|_| answer(404, &[], "{}"));
    let forebay = Harness::new().pool_with("tiny", "unknown_models = \"refuse\"", &[&mock]).start();
    let long = "x".repeat(4 << 20);
    let path = format!("/v1/{}", "y".repeat(40_000));
    let asked = [
        (PATH.to_owned(), format!(r#"{{"model":"{long}","messages":[]}}"#)),
        (PATH.to_owned(), format!(r#"{{"model":"tiny","stream":"{long}","messages":[]}}"#)),
        ("/v1/responses".to_owned(), format!(r#"{{"model":"tiny","input":"a","previous_response_id":"{long}"}}"#)),
        (path, UNARY.to_owned()),
    ];
    for ((path, body), status) in asked.into_iter().zip([404, 400, 404, 404]) {
        let answer = forebay.post(&path, &body);
        assert_eq!(answer.status, status);
        assert!(answer.body.len() < 5000, "{} bytes come back", answer.body.len());
        let record = forebay.record(answer.header("x-request-id").unwrap());
        assert!(record.to_string().len() < 2000, "{record}");
    }
}

#[test]
fn words_that_are_refused_or_name_a_session_are_not_held() {
    const REQUESTS: usize = 40;
    let gate = Gate::new();
    let held = gate.clone();
    let mock = Mock::replying(move |_| {
        vec![stream_head(), chunk(token("Hi")), Step::Hold(held.clone()), chunk(DONE), last_chunk()]
    });
    let forebay = Harness::new()
        .config("[limits]\nbody = \"8MiB\"\nbodies_in_memory = \"16MiB\"")
        .pool_with("tiny", "session = { body = \"user\" }", &[&mock])
        .env(MALLOC.0, MALLOC.1)
        .start();
    let long = "x".repeat(4 << 20);
    let ask = |body: String| {
        let mut client = Conn::open_narrow(forebay.address);
        client.send(&post(PATH, &[], body.as_bytes()));
        client
    };
    // The first ones allocate what is there once.
    let mut open: Vec<Conn> = Vec::new();
    let mut ask_both = || {
        let mut stream = ask(format!(r#"{{"model":"tiny","user":"{long}","stream":true,"messages":[]}}"#));
        stream.until("Hi");
        let mut refused = ask(format!(r#"{{"model":"{long}","messages":[]}}"#));
        assert!(refused.has_something());
        open.extend([stream, refused]);
    };
    ask_both();
    let before = forebay.rss_kib();
    for _ in 1..REQUESTS {
        ask_both();
    }
    let grown = forebay.rss_kib().saturating_sub(before);
    assert!(grown < 40 << 10, "{REQUESTS} sessions and models of 4 MiB hold {grown} KiB");
    gate.open();
}

#[test]
fn a_form_of_very_many_empty_parts_stops_no_stream() {
    let mock = Mock::replying(|seen| {
        if seen.target.contains("audio") {
            return answer(400, &[], "{}");
        }
        let mut script = vec![stream_head()];
        for _ in 0..300 {
            script.extend([chunk(token("more")), Step::Pause(ms(10))]);
        }
        script.extend([chunk(DONE), last_chunk()]);
        script
    });
    let forebay = Harness::new().pool("tiny", &[&mock]).start();
    let part = "--X\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\n\r\n";
    let many = part.repeat((40 << 20) / part.len());
    let one = part.replace("\r\n\r\n\r\n", &format!("\r\n\r\n{}\r\n", "a".repeat(many.len())));
    // What the bytes themselves cost on this machine, as busy as it is.
    let (usual, longest) = (longest_gap_beside(&forebay, &one), longest_gap_beside(&forebay, &many));
    println!("the longest gap of a stream: {longest:?} beside 40 MiB of empty parts, {usual:?} beside one part");
    assert!(longest < usual * 3 + ms(400), "a stream stood still for {longest:?}, and {usual:?} beside one part");
}

/// The longest gap of a stream while this form is sent and read.
fn longest_gap_beside(forebay: &Forebay, parts: &str) -> Duration {
    let form = format!("{parts}--X--\r\n");
    let multipart = [("content-type", "multipart/form-data; boundary=X")];
    let request = post("/v1/audio/transcriptions", &multipart, form.as_bytes());
    let mut stream = forebay.open();
    stream.send(&post(PATH, &[], STREAM.as_bytes()));
    let head = stream.head();
    assert_eq!(head.status, 200);
    let address = forebay.address;
    let upload = thread::spawn(move || Conn::open_patient(address).ask(&request).status);
    let (mut last, mut longest) = (Instant::now(), Duration::ZERO);
    while stream.chunk().is_some_and(|chunk| !chunk.is_empty()) {
        longest = longest.max(last.elapsed());
        last = Instant::now();
    }
    let status = upload.join().unwrap();
    assert!((400..500).contains(&status), "{status}");
    longest
}

#[test]
fn heads_count_as_memory_that_clients_hold() {
    let mock = Mock::start();
    let forebay =
        Harness::new().config("[limits]\nbody = \"1MiB\"\nbodies_in_memory = \"2MiB\"").pool("tiny", &[&mock]).start();
    let filler = "x".repeat(50_000);
    let head = format!("POST {PATH} HTTP/1.1\r\nhost: f\r\ncontent-length: 2\r\nx-filler: {filler}\r\n\r\n");
    let mut clients: Vec<Conn> = (0..100)
        .map(|_| {
            let mut client = forebay.open();
            client.send(head.as_bytes());
            client
        })
        .collect();
    let refused = eventually("one is refused", || clients.iter_mut().position(|client| !client.is_quiet_for(ms(1))));
    let answer = clients[refused].answer();
    assert_eq!(answer.status, 503);
    assert!(answer.text().contains("forebay_bodies_full"), "{}", answer.text());
}
