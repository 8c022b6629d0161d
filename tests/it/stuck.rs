//! Peers that read nothing, or almost: what they cost is bounded, in memory and in time, and nobody else waits for them.

use std::io::{Read, Write};
use std::net::TcpListener;

use crate::client::{Conn, End, post};
use crate::harness::{Forebay, Harness, eventually, eventually_within, ms, settled};
use crate::mock::{CHAT, Mock, Step, answer, chunk, stream_head, token};

const PATH: &str = "/v1/chat/completions";
const STREAM: &str = r#"{"model":"tiny","stream":true,"messages":[]}"#;
const UNARY: &str = r#"{"model":"tiny","messages":[]}"#;

fn framed(text: &str) -> Vec<u8> {
    match chunk(text) {
        Step::Send(bytes) => bytes,
        _ => unreachable!("a chunk is bytes to send"),
    }
}

/// Memory once it no longer grows: everything between two stuck peers is full.
fn settled_kib(forebay: &Forebay) -> u64 {
    settled(ms(60_000), "its memory stays", || forebay.rss_kib())
}

#[test]
fn clients_that_read_nothing_of_fast_streams_cost_little_memory_and_nobodys_time() {
    const STUCK: usize = 40;
    /// Per client: both sockets' buffers in hyper, and the pieces between them.
    const EACH_KIB: u64 = 400;
    let mock = Mock::replying(|seen| {
        if seen.json()["stream"] == true {
            return vec![stream_head(), Step::Flood(framed(&token(&"x".repeat(60_000))))];
        }
        answer(200, &[], CHAT)
    });
    let forebay = Harness::new()
        .config("[limits]\nwrite_stall = \"2s\"")
        .pool("tiny", &[&mock])
        // What is freed goes back at once: what is left is held.
        .env("_RJEM_MALLOC_CONF", "dirty_decay_ms:0,muzzy_decay_ms:0")
        .start();
    assert_eq!(forebay.post(PATH, UNARY).status, 200);
    let before = forebay.rss_kib();
    let stuck: Vec<Conn> = (0..STUCK)
        .map(|_| {
            let mut conn = Conn::open_narrow(forebay.address);
            conn.send(&post(PATH, &[], STREAM.as_bytes()));
            conn
        })
        .collect();
    mock.await_requests(STUCK + 1);
    let full = settled_kib(&forebay);
    println!("{STUCK} clients that read nothing: {} KiB each", full.saturating_sub(before) / STUCK as u64);
    assert!(full < before + STUCK as u64 * EACH_KIB, "{before} KiB before, {full} KiB with {STUCK} stuck clients");
    assert_eq!(forebay.post(PATH, UNARY).status, 200, "another client is served meanwhile");
    eventually_within(ms(60_000), "all are cut", || (mock.closes().len() == STUCK).then_some(()));
    eventually("nothing is in flight", || (forebay.metric("forebay_in_flight", &[]) == 0.0).then_some(()));
    drop(stuck);
}

#[test]
fn a_client_that_stops_reading_a_document_is_cut_and_its_backend_closed() {
    let head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 1000000000\r\n\r\n".to_vec();
    let mock = Mock::playing(vec![Step::Send(head), Step::Flood(vec![b' '; 60_000])]);
    let forebay = Harness::new().config("[limits]\nwrite_stall = \"700ms\"").pool("tiny", &[&mock]).start();
    let mut client = Conn::open_narrow(forebay.address);
    client.send(&post(PATH, &[], UNARY.as_bytes()));
    mock.await_closes(1);
    let head = client.head();
    assert_eq!(client.body(&head).1, End::Cut);
}

/// A backend that answers probes and reads nothing of a body.
fn deaf() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let mut head = [0; 1024];
            if stream.read(&mut head).is_ok_and(|read| read > 0) && head.starts_with(b"GET") {
                drop(stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"));
            } else {
                std::mem::forget(stream);
            }
        }
    });
    url
}

#[test]
fn a_backend_that_reads_nothing_of_a_body_is_left_for_another() {
    let mock = Mock::start();
    let pool = format!(
        "[[pools]]\nmodel = \"tiny\"\npolicy = \"round_robin\"\nbackends = [{{ url = \"{}\" }}, {{ url = \"{}\" }}]\n",
        deaf(),
        mock.url()
    );
    let forebay = Harness::new().config("[limits]\nwrite_stall = \"500ms\"").pools(&pool).start();
    let body = format!("{{\"model\":\"tiny\",\"messages\":[],\"x\":\"{}\"}}", "x".repeat(20_000_000));
    let attempts: Vec<u32> = (0..2)
        .map(|_| {
            let got = forebay.open().ask(&post(PATH, &[], body.as_bytes()));
            assert_eq!((got.status, got.text().as_str()), (200, CHAT));
            got.header("x-forebay-attempts").unwrap().parse().unwrap()
        })
        .collect();
    assert!(attempts.contains(&2), "one of them met the deaf one first: {attempts:?}");
}
