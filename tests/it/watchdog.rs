//! Engines that hang: what runs on them is moved or told, they go out, and what only looks like a hang is none.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::client::{End, post};
use crate::harness::{Forebay, Harness, eventually};
use crate::mock::{DONE, Gate, Mock, Script, Step, answer, chunk, last_chunk, like_vllm, stream_head, token};

const PATH: &str = "/v1/chat/completions";
const STREAM: &str = r#"{"model":"tiny","stream":true,"messages":[]}"#;
const UNARY: &str = r#"{"model":"tiny","messages":[]}"#;
/// The stall is short beside what a test waits for and long beside a scrape.
const CONFIG: &str = "[scrape]\ninterval = \"50ms\"\ntimeout = \"50ms\"\nstale_after = \"2s\"\n\
                      [health]\ninterval = \"250ms\"\ntimeout = \"250ms\"\nstall_timeout = \"600ms\"\n\
                      ejection = { base = \"100ms\", max = \"200ms\" }";
/// Scrapes that are together far longer than the stall.
const MANY_SCRAPES: usize = 60;

/// Answers scrapes as an engine that has a request and shows these figures; counts them.
fn busy(mock: &Mock, kv_usage: impl Fn(usize) -> f64 + Send + Sync + 'static) -> Arc<AtomicUsize> {
    let scrapes = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&scrapes);
    mock.probes(move |target| {
        let turn = (target == "/metrics").then(|| counted.fetch_add(1, Ordering::Relaxed))?;
        Some(answer(
            200,
            &[],
            &format!(
                "vllm:num_requests_running 1\nvllm:num_requests_waiting 0\nvllm:iteration_tokens_total_count 7\n\
                 vllm:kv_cache_usage_perc {}\n",
                kv_usage(turn)
            ),
        ))
    });
    scrapes
}

/// An engine that has hung: `/health` is good, the figures stand still, an answer begins as this and never goes on.
fn hung(begin: Script) -> Mock {
    let mock = Mock::replying(move |_| [begin.clone(), vec![Step::AwaitClose]].concat());
    busy(&mock, |_| 0.5);
    mock
}

fn ejections(forebay: &Forebay) -> f64 {
    forebay.metric("forebay_ejections_total", &["reason=\"watchdog\""])
}

fn after_many(scrapes: &AtomicUsize) {
    let until = scrapes.load(Ordering::Relaxed) + MANY_SCRAPES;
    eventually("many scrapes", || (scrapes.load(Ordering::Relaxed) >= until).then_some(()));
}

#[test]
fn what_has_no_token_is_moved_and_the_client_notices_nothing() {
    for (begin, body) in [(vec![stream_head()], STREAM), (vec![], STREAM), (vec![], UNARY)] {
        let (stuck, well) = (hung(begin), Mock::start());
        let forebay = Harness::new().config(CONFIG).pool("tiny", &[&stuck, &well]).start();
        let answers: Vec<_> = (0..2).map(|_| forebay.post(PATH, body)).collect();
        assert!(answers.iter().all(|answer| answer.status == 200 && answer.end == End::Whole));
        assert_eq!(stuck.seen().len(), 1);
        stuck.await_closes(1);
        assert_eq!(ejections(&forebay), 1.0);
        let shown = forebay.backend(&stuck);
        assert!(shown["state"] != "healthy" && shown["reason"].as_str().unwrap().contains("no progress"), "{shown}");
        assert_eq!(forebay.metric("forebay_retries_total", &["reason=\"stalled\""]), 1.0);
        stuck.reply(like_vllm);
        forebay.await_state(&stuck, "healthy");
    }
}

#[test]
fn what_has_tokens_is_told_and_cut() {
    let stuck = hung(vec![stream_head(), chunk(token("Hi"))]);
    let forebay = Harness::new().config(CONFIG).pool("tiny", &[&stuck]).start();
    let answer = forebay.post(PATH, STREAM);
    assert_eq!(answer.status, 200);
    assert_eq!(answer.end, End::Cut);
    assert!(answer.text().contains("Hi") && answer.text().contains("forebay_stream_cut"), "{}", answer.text());
    assert_eq!(ejections(&forebay), 1.0);
}

#[test]
fn without_any_figures_it_takes_longer_and_is_found_too() {
    let stuck = hung(vec![stream_head()]);
    stuck.probes(|target| (target == "/metrics").then(|| answer(404, &[], "{}")));
    let well = Mock::start();
    let forebay = Harness::new().config(CONFIG).pool("tiny", &[&stuck, &well]).start();
    for _ in 0..2 {
        assert_eq!(forebay.post(PATH, STREAM).status, 200);
    }
    assert_eq!(ejections(&forebay), 1.0);
}

#[test]
fn a_long_prompt_that_only_moves_the_kv_cache_is_no_hang() {
    let gate = Gate::new();
    let done = gate.clone();
    let mock = Mock::replying(move |_| {
        vec![stream_head(), Step::Wait(done.clone()), chunk(token("Hi")), chunk(DONE), last_chunk()]
    });
    let scrapes = busy(&mock, |turn| turn as f64 * 1e-4);
    let forebay = Harness::new().config(CONFIG).pool("tiny", &[&mock]).start();
    let mut client = forebay.open();
    client.send(&post(PATH, &[], STREAM.as_bytes()));
    mock.await_requests(1);
    after_many(&scrapes);
    gate.open();
    client.until("[DONE]");
    assert_eq!((ejections(&forebay), forebay.backend(&mock)["state"].as_str()), (0.0, Some("healthy")));
}

#[test]
fn a_client_that_does_not_read_is_no_hang() {
    let flood =
        [vec![stream_head(), chunk(token("Hi"))], vec![Step::Flood(as_chunk(&token("more").repeat(500)))]].concat();
    let mock = Mock::replying(move |_| flood.clone());
    let scrapes = busy(&mock, |_| 0.5);
    let forebay = Harness::new().config(CONFIG).pool("tiny", &[&mock]).start();
    let mut client = forebay.open();
    client.send(&post(PATH, &[], STREAM.as_bytes()));
    client.until("Hi");
    // Buffers fill, and then nothing moves any more.
    after_many(&scrapes);
    after_many(&scrapes);
    assert_eq!((ejections(&forebay), forebay.backend(&mock)["state"].as_str()), (0.0, Some("healthy")));
    drop(client);
    mock.await_closes(1);
}

fn as_chunk(text: &str) -> Vec<u8> {
    match chunk(text) {
        Step::Send(bytes) => bytes,
        _ => unreachable!("a chunk is sent"),
    }
}

#[test]
fn what_the_api_server_answers_by_itself_is_no_sign_of_a_hang() {
    let gate = Gate::new();
    let late = gate.clone();
    let mock = Mock::replying(move |_| [vec![Step::Wait(late.clone())], answer(200, &[], "{}")].concat());
    let scrapes = busy(&mock, |_| 0.5);
    let forebay = Harness::new().config(CONFIG).pool("tiny", &[&mock]).start();
    let mut client = forebay.open();
    client.send(&post("/tokenize", &[], br#"{"model":"tiny","prompt":"a"}"#));
    mock.await_requests(1);
    after_many(&scrapes);
    assert_eq!(ejections(&forebay), 0.0);
    gate.open();
}

#[test]
fn off_is_off() {
    let stuck = hung(vec![stream_head()]);
    let scrapes = busy(&stuck, |_| 0.5);
    let config = CONFIG.replace("stall_timeout = \"600ms\"", "stall_timeout = \"off\"");
    let forebay = Harness::new().config(&config).pool("tiny", &[&stuck]).start();
    let mut client = forebay.open();
    client.send(&post(PATH, &[], STREAM.as_bytes()));
    stuck.await_requests(1);
    after_many(&scrapes);
    assert_eq!(ejections(&forebay), 0.0);
}

#[test]
fn a_server_whose_port_is_closed_ends_the_streams_that_it_leaves_hanging() {
    let going = Mock::playing(vec![stream_head(), chunk(token("Hi")), Step::AwaitClose]);
    let config = CONFIG.replace("600ms", "20s");
    let well = Mock::start();
    let forebay = Harness::new().config(&config).pool("tiny", &[&going, &well]).start();
    let mut client = forebay.open();
    client.send(&post(PATH, &[], STREAM.as_bytes()));
    client.until("Hi");
    going.stop_listening();
    let answer = client.answer();
    assert!(answer.text().contains("listener_gone"), "{}", answer.text());
    assert_eq!(answer.end, End::Cut);
    forebay.await_state(&going, "ejected");
}
