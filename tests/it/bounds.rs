//! What a client can make Forebay hold is bounded and counted: its words in errors and logs, heads, forms, answers that it does not
//! take over HTTP/2, and lines of log whose reader stands still.

use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::client::{Conn, on_h2, post};
use crate::frames::{Frames, HEADERS, RST_STREAM};
use crate::harness::{Forebay, Harness, binary, eventually, eventually_within, free_port, ms};
use crate::mock::{CHAT, DONE, Gate, Mock, Step, answer, chunk, last_chunk, stream_head, token};

const PATH: &str = "/v1/chat/completions";
const STREAM: &str = r#"{"model":"tiny","stream":true,"messages":[]}"#;
const UNARY: &str = r#"{"model":"tiny","messages":[]}"#;
/// What is freed goes back at once: what is left is held.
const MALLOC: (&str, &str) = ("_RJEM_MALLOC_CONF", "dirty_decay_ms:0,muzzy_decay_ms:0");

// ---- words ---------------------------------------------------------------------------------------------------------

#[test]
fn a_clients_words_come_back_cut_in_errors_and_logs() {
    let mock = Mock::start();
    let forebay = Harness::new().pool("tiny", &[&mock]).start();
    let long = "x".repeat(4 << 20);
    let path = format!("/v1/{}", "y".repeat(40_000));
    let asked = [
        (PATH.to_owned(), format!(r#"{{"model":"{long}","messages":[]}}"#)),
        (PATH.to_owned(), format!(r#"{{"model":"tiny","stream":"{long}","messages":[]}}"#)),
        ("/v1/responses".to_owned(), format!(r#"{{"model":"tiny","input":"a","previous_response_id":"{long}"}}"#)),
        (path, UNARY.to_owned()),
    ];
    for (path, body) in asked {
        let answer = forebay.post(&path, &body);
        assert!((400..500).contains(&answer.status), "{}", answer.status);
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

// ---- forms ---------------------------------------------------------------------------------------------------------

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
    let form = format!("{}--X--\r\n", part.repeat((20 << 20) / part.len()));
    let request = post("/v1/audio/transcriptions", &[("content-type", "multipart/form-data; boundary=X")], form.as_bytes());
    let mut stream = forebay.open();
    stream.send(&post(PATH, &[], STREAM.as_bytes()));
    stream.until("more");
    let upload = thread::spawn({
        let address = forebay.address;
        move || Conn::open(address).ask(&request).status
    });
    let (mut last, mut longest) = (Instant::now(), Duration::ZERO);
    let head = stream.head();
    assert_eq!(head.status, 200);
    while let Some(chunk) = stream.chunk().filter(|chunk| !chunk.is_empty()) {
        drop(chunk);
        longest = longest.max(last.elapsed());
        last = Instant::now();
    }
    let status = upload.join().unwrap();
    assert!((400..500).contains(&status), "{status}");
    println!("the longest gap of a stream beside 20 MiB of empty parts: {longest:?}");
    assert!(longest < ms(400), "a stream stood still for {longest:?}");
}

// ---- HTTP/2 --------------------------------------------------------------------------------------------------------

/// A JSON request's header block and body, as frames of one stream.
fn ask(frames: &mut Frames, stream: u32, path: &str, body: &str) {
    frames.request(stream, path, body.as_bytes());
}

#[test]
fn answers_of_every_form_that_a_stream_takes_nothing_of_are_given_up() {
    let mock = Mock::replying(|seen| {
        if seen.json()["stream"] == true {
            return vec![stream_head(), chunk(token(&"x".repeat(30_000))), chunk(DONE), last_chunk()];
        }
        answer(200, &[], &CHAT.replace("ok", &"x".repeat(30_000)))
    });
    let mut forebay = Harness::new().config("[limits]\nwrite_stall = \"700ms\"").pool("tiny", &[&mock]).start();
    // One with a window of nothing, and one with a byte, after which hyper hands h2 all the rest.
    for window in [0, 1] {
        let mut frames = Frames::open(forebay.address, window);
        for (at, body) in [UNARY, STREAM, r#"{"model":"no such model","messages":[]}"#].into_iter().enumerate() {
            ask(&mut frames, 1 + 2 * u32::try_from(at).unwrap(), PATH, body);
        }
        let mut reset: Vec<u32> = (0..3).map(|_| frames.until(RST_STREAM).stream).collect();
        reset.sort_unstable();
        assert_eq!(reset, [1, 3, 5], "window {window}");
        // The connection is good for more.
        frames.window = 1 << 20;
        frames.settings();
        ask(&mut frames, 7, PATH, UNARY);
        assert_eq!(frames.until(HEADERS).stream, 7);
    }
    forebay.signal("TERM");
    assert!(forebay.exit(ms(10_000)).success(), "a drain waits for none of them");
}

#[test]
fn a_client_that_resets_most_of_its_requests_at_once_is_closed() {
    let gate = Gate::new();
    let held = gate.clone();
    let mock = Mock::replying(move |_| vec![Step::Hold(held.clone())]);
    let forebay = Harness::new().pool("tiny", &[&mock]).start();
    let mut frames = Frames::open(forebay.address, 1 << 16);
    let sent = (0..5000_u32).take_while(|at| frames.request_and_reset(1 + 2 * at, PATH)).count();
    assert!(frames.is_closed(), "{sent} requests were reset, and it is still open");
    eventually("nothing is in flight", || (forebay.metric("forebay_in_flight", &[]) == 0.0).then_some(()));
    assert_eq!(forebay.logged("resets most of its requests"), 1, "{}", forebay.log());
    gate.open();
}

#[test]
fn heads_count_as_memory_that_clients_hold() {
    let mock = Mock::start();
    let forebay = Harness::new()
        .config("[limits]\nbody = \"1MiB\"\nbodies_in_memory = \"2MiB\"")
        .pool("tiny", &[&mock])
        .start();
    let filler = "x".repeat(50_000);
    let head = format!("POST {PATH} HTTP/1.1\r\nhost: f\r\ncontent-length: 2\r\nx-filler: {filler}\r\n\r\n{{");
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

#[test]
fn an_idle_h2_connection_is_told_twice_that_it_ends_and_serves_what_comes_between() {
    let mock = Mock::start();
    let forebay = Harness::new().config("[listen]\nkeep_alive = \"500ms\"").pool("tiny", &[&mock]).start();
    let mut frames = Frames::open(forebay.address, 1 << 20);
    ask(&mut frames, 1, PATH, UNARY);
    assert_eq!(frames.until(HEADERS).stream, 1);
    let first = frames.goaway_unanswered();
    assert_eq!(first, (1 << 31) - 1, "the first names no last stream");
    ask(&mut frames, 3, PATH, UNARY);
    assert_eq!(frames.until(HEADERS).stream, 3, "a request that was on its way is served");
    frames.pong();
    assert_eq!(frames.goaway(), 3, "the second names the last that is served");
    assert!(frames.is_closed());
    assert_eq!(mock.seen().len(), 2);
}

// ---- logs ----------------------------------------------------------------------------------------------------------

/// A Forebay whose logs are read by nobody.
struct Unread {
    child: Child,
    address: std::net::SocketAddr,
    admin: std::net::SocketAddr,
}

impl Unread {
    fn start(mock: &Mock, dir: &tempfile::TempDir) -> Unread {
        let config = dir.path().join("forebay.toml");
        let text = format!(
            "[listen]\nmax_connections = 8\n[[pools]]\nmodel = \"tiny\"\nbackends = [{{ url = \"{}\" }}]",
            mock.url()
        );
        std::fs::write(&config, text).unwrap();
        let address = |port| std::net::SocketAddr::from(([127, 0, 0, 1], port));
        let (address, admin) = (address(free_port()), address(free_port()));
        // A debug log soon fills the pipes that nobody reads.
        let child = Command::new(binary())
            .args(["serve", "--config", &config.display().to_string(), "--threads", "1", "--access-log", "json"])
            .args(["--listen", &address.to_string(), "--admin", &admin.to_string(), "--log-level", "debug"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let unread = Unread { child, address, admin };
        eventually("it serves", || std::net::TcpStream::connect(unread.address).ok());
        unread
    }
}

impl Drop for Unread {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[test]
fn a_log_that_nobody_reads_stops_nothing_and_its_lost_lines_are_counted() {
    let (mock, dir) = (Mock::start(), tempfile::tempdir().unwrap());
    let unread = Unread::start(&mock, &dir);
    let mut client = Conn::open(unread.address);
    let request = post(PATH, &[("x-filler", &"x".repeat(2000))], UNARY.as_bytes());
    // Far more lines than two pipes hold.
    for _ in 0..2000 {
        assert_eq!(client.ask(&request).status, 200);
    }
    // Connections over the limit, each of which could be worth a warning.
    let crowd: Vec<Conn> = (0..200).map(|_| Conn::open(unread.address)).collect();
    assert_eq!(client.ask(&request).status, 200);
    drop(crowd);
    let health = Conn::open(unread.admin).ask(b"GET /health HTTP/1.1\r\nhost: admin\r\n\r\n");
    assert_eq!(health.status, 200);
}

#[test]
fn connections_over_the_limit_are_warned_of_now_and_then() {
    let mock = Mock::start();
    let forebay = Harness::new().config("[listen]\nmax_connections = 2").pool("tiny", &[&mock]).start();
    let _held: Vec<Conn> = (0..2).map(|_| forebay.open()).collect();
    for _ in 0..50 {
        let mut client = forebay.open();
        eventually_within(ms(5000), "an end", || (!client.is_quiet_for(ms(1))).then_some(()));
    }
    eventually("a warning", || (forebay.logged("connection refused") > 0).then_some(()));
    assert!(forebay.logged("connection refused") <= 2, "{}", forebay.log());
}

#[test]
fn the_last_lines_of_the_log_are_written_before_the_process_ends() {
    let mock = Mock::start();
    for _ in 0..5 {
        let mut forebay = Harness::new().pool("tiny", &[&mock]).start();
        let id = forebay.post(PATH, UNARY).header("x-request-id").unwrap().to_owned();
        forebay.signal("TERM");
        assert!(forebay.exit(ms(10_000)).success());
        eventually("the last word", || (forebay.logged("drained") == 1).then_some(()));
        drop(forebay.record(&id));
    }
}

/// Unused by itself: the other tests over h2 go through hyper's client.
#[test]
fn a_stream_that_takes_its_answer_slowly_is_served_whole() {
    let text = "x".repeat(300_000);
    let body = CHAT.replace("ok", &text);
    let mock = Mock::replying(move |_| answer(200, &[], &body));
    let forebay: Forebay =
        Harness::new().config("[limits]\nwrite_stall = \"2s\"").pool("tiny", &[&mock]).start();
    let bytes = on_h2(forebay.address, 20_000, async |mut h2| {
        let answer = h2.post(PATH, UNARY).await;
        crate::client::read_h2(answer.into_body()).await.0.len()
    });
    assert!(bytes > 300_000);
}
