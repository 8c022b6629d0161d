//! Servers of which nothing at all comes: what has no token moves soon, once, and nothing is lost with a server that was only busy.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::client::{Answer, Conn, End, post};
use crate::harness::{Forebay, Harness, ms, time_passes};
use crate::mock::{DONE, Gate, Mock, Script, Seen, Step, chunk, last_chunk, like_vllm, stream_head, token};

const PATH: &str = "/v1/chat/completions";
const STREAM: &str = r#"{"model":"tiny","stream":true,"messages":[]}"#;
const UNARY: &str = r#"{"model":"tiny","messages":[]}"#;
/// What a busy API server may take for one prompt of 1 MB.
const BLOCKED: Duration = Duration::from_secs(8);

/// A server whose one event loop can be stopped: it still accepts connections, as its kernel does, and answers nothing.
#[derive(Clone, Default)]
struct Loop {
    stopped: Arc<AtomicBool>,
    goes_on: Gate,
}

impl Loop {
    /// What the loop does with an answer while it is stopped: it waits.
    fn behind(&self, script: Script) -> Script {
        if self.stopped.load(Ordering::SeqCst) {
            [vec![Step::Hold(self.goes_on.clone())], script].concat()
        } else {
            script
        }
    }

    fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
    }

    fn go_on(&self) {
        self.stopped.store(false, Ordering::SeqCst);
        self.goes_on.open();
    }

    /// A server on it.
    fn serve(&self, reply: impl Fn(&Loop, &Seen) -> Script + Send + Sync + 'static) -> Mock {
        let (of_requests, of_probes) = (self.clone(), self.clone());
        let mock = Mock::replying(move |seen| reply(&of_requests, seen));
        mock.probes(move |_| {
            let stopped = of_probes.stopped.load(Ordering::SeqCst);
            stopped.then(|| vec![Step::Hold(of_probes.goes_on.clone()), Step::Close])
        });
        mock
    }
}

fn asked(forebay: &Forebay, request: Vec<u8>) -> thread::JoinHandle<(Answer, Duration)> {
    let address = forebay.address;
    thread::spawn(move || {
        let (mut client, begun) = (Conn::open_patient(address), Instant::now());
        (client.ask(&request), begun.elapsed())
    })
}

#[test]
fn what_has_no_token_leaves_a_stopped_server_within_ten_seconds_at_the_default_settings() {
    let event_loop = Loop::default();
    let stopped = event_loop.serve(|event_loop, seen| match seen.json()["stream"] == true {
        // The head was there before it stopped.
        true => [vec![stream_head()], event_loop.behind(vec![chunk(token("Hi")), chunk(DONE), last_chunk()])].concat(),
        false => event_loop.behind(like_vllm(seen)),
    });
    let well = Mock::start();
    let forebay = Harness::new().pool("tiny", &[&stopped, &well]).start();
    event_loop.stop();
    let light = br#"{"model":"tiny","prompt":"a"}"#;
    let requests =
        || [post(PATH, &[], STREAM.as_bytes()), post(PATH, &[], UNARY.as_bytes()), post("/tokenize", &[], light)];
    let asked: Vec<_> = (0..4).flat_map(|_| requests()).map(|request| asked(&forebay, request)).collect();
    for (answer, took) in asked.into_iter().map(|asked| asked.join().unwrap()) {
        assert_eq!((answer.status, answer.end), (200, End::Whole), "{}", answer.text());
        assert!(took < Duration::from_secs(10), "{took:?}");
    }
    assert!(!stopped.seen().is_empty(), "some were on it");
    assert_eq!(forebay.metric("forebay_retries_total", &["reason=\"silent\""]), stopped.seen().len() as f64);
    event_loop.go_on();
    forebay.await_state(&stopped, "healthy");
}

#[test]
fn a_server_that_a_long_prompt_blocks_loses_nothing_and_the_prompt_goes_to_two_at_most() {
    let block = |event_loop: &Loop, seen: &Seen| {
        if seen.body.len() > 1_000_000 && !event_loop.stopped.load(Ordering::SeqCst) {
            event_loop.stop();
            let event_loop = event_loop.clone();
            thread::spawn(move || {
                time_passes(BLOCKED);
                event_loop.go_on();
            });
        }
        event_loop.behind(like_vllm(seen))
    };
    let loops: Vec<Loop> = (0..3).map(|_| Loop::default()).collect();
    let mocks: Vec<Mock> = loops.iter().map(|event_loop| event_loop.serve(block)).collect();
    let forebay = Harness::new().pool("tiny", &mocks.iter().collect::<Vec<_>>()).start();
    let prompt = format!(
        r#"{{"model":"tiny","stream":true,"messages":[{{"role":"user","content":"{}"}}]}}"#,
        "a ".repeat(600_000)
    );
    let long = asked(&forebay, post(PATH, &[], prompt.as_bytes()));
    let others: Vec<_> = (0..12)
        .map(|_| {
            time_passes(ms(100));
            asked(&forebay, post(PATH, &[], STREAM.as_bytes()))
        })
        .collect();
    for (answer, _) in others.into_iter().chain([long]).map(|asked| asked.join().unwrap()) {
        assert_eq!((answer.status, answer.end), (200, End::Whole), "{}", answer.text());
    }
    let prompts: usize =
        mocks.iter().map(|mock| mock.seen().iter().filter(|seen| seen.body.len() > 1_000_000).count()).sum();
    assert!((1..=2).contains(&prompts), "the prompt was sent {prompts} times");
    assert_eq!(forebay.metric("forebay_ejections_total", &["reason=\"failures\""]), 0.0);
}

#[test]
fn with_nowhere_to_go_a_request_stays_and_a_stream_with_tokens_goes_on() {
    let event_loop = Loop::default();
    let mock = event_loop.serve(|event_loop, seen| {
        if seen.text().contains("first") {
            let wait = Step::Hold(event_loop.goes_on.clone());
            return vec![stream_head(), chunk(token("Hi")), wait, chunk(token("there")), chunk(DONE), last_chunk()];
        }
        event_loop.behind(like_vllm(seen))
    });
    let other = Mock::start();
    let pool = format!(
        "[[pools]]\nmodel = \"tiny\"\nbackends = [{{ url = \"{}\" }}, {{ url = \"{}\", drain = true }}]",
        mock.url(),
        other.url()
    );
    let forebay = Harness::new().pools(&pool).start();
    let mut stream = Conn::open_patient(forebay.address);
    stream.send(&post(PATH, &[], br#"{"model":"tiny","stream":true,"messages":["first"]}"#));
    stream.until("Hi");
    event_loop.stop();
    let waits = asked(&forebay, post(PATH, &[], UNARY.as_bytes()));
    time_passes(BLOCKED);
    event_loop.go_on();
    let (answer, took) = waits.join().unwrap();
    assert_eq!((answer.status, answer.header("x-forebay-attempts")), (200, Some("1")), "{}", answer.text());
    assert!(took >= BLOCKED);
    let answer = stream.answer();
    assert!(answer.end == End::Whole && answer.text().contains("there"), "{}", answer.text());
    assert!(other.seen().is_empty());
}
