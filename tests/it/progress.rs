//! Limits that see progress: an engine that works keeps its silent streams alive for a while, a document that is waited for proves no
//! hang, and a body that keeps coming has the time that it takes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use crate::client::{Answer, End, post};
use crate::harness::{Forebay, Harness, ms};
use crate::mock::{CHAT, DONE, Gate, Mock, Script, Step, answer, chunk, last_chunk, stream_head, token};

const PATH: &str = "/v1/chat/completions";
const STREAM: &str = r#"{"model":"tiny","stream":true,"messages":[]}"#;
const UNARY: &str = r#"{"model":"tiny","messages":[]}"#;
const SCRAPES: &str = "[scrape]\ninterval = \"50ms\"\ntimeout = \"50ms\"\nstale_after = \"1s\"\n";

/// Shows an engine with work whose count of steps rises at each scrape while `works` is set.
fn engine(mock: &Mock, works: &Arc<AtomicBool>) {
    let (works, steps) = (Arc::clone(works), AtomicUsize::new(0));
    mock.probes(move |target| {
        (target == "/metrics").then(|| {
            let step = steps.fetch_add(usize::from(works.load(Ordering::Relaxed)), Ordering::Relaxed);
            let figures = format!(
                "vllm:num_requests_running 1\nvllm:num_requests_waiting 0\nvllm:kv_cache_usage_perc 0.5\n\
                 vllm:iteration_tokens_total_count {step}\n"
            );
            answer(200, &[], &figures)
        })
    });
}

/// A stream that says nothing for this long in its middle.
fn held_back(pause: Step) -> Script {
    vec![stream_head(), chunk(token("Hi")), pause, chunk(token("arguments")), chunk(DONE), last_chunk()]
}

fn is_cut(answer: &Answer, reason: &str) -> bool {
    answer.end == End::Cut && answer.text().contains("forebay_stream_cut") && answer.text().contains(reason)
}

#[test]
fn a_stream_that_an_engine_at_work_holds_back_lives_past_idle_timeout() {
    let mock = Mock::playing(held_back(Step::Pause(ms(2500))));
    engine(&mock, &Arc::new(AtomicBool::new(true)));
    let forebay =
        Harness::new().config(&format!("{SCRAPES}[stream]\nidle_timeout = \"400ms\"")).pool("tiny", &[&mock]).start();
    let answer = forebay.post(PATH, STREAM);
    assert!(answer.end == End::Whole && answer.text().contains("arguments"), "{}", answer.text());
}

#[test]
fn a_silent_stream_ends_soon_after_its_engine_stops() {
    let works = Arc::new(AtomicBool::new(true));
    let mock = Mock::playing(held_back(Step::AwaitClose));
    engine(&mock, &works);
    let forebay = Harness::new()
        .config(&format!("{SCRAPES}[stream]\nidle_timeout = \"400ms\"\n[health]\nstall_timeout = \"off\""))
        .pool("tiny", &[&mock])
        .start();
    let mut client = forebay.open();
    client.send(&post(PATH, &[], STREAM.as_bytes()));
    let head = client.head();
    assert!(client.chunk().is_some_and(|chunk| !chunk.is_empty()));
    assert!(client.is_quiet_for(ms(1500)), "it lives while the engine works: {}", client.received());
    works.store(false, Ordering::Relaxed);
    let stopped = Instant::now();
    let (rest, end) = client.body(&head);
    let rest = String::from_utf8(rest).unwrap();
    assert!(end == End::Cut && rest.contains("forebay_stream_cut") && rest.contains("idle_timeout"), "{rest}");
    assert!(stopped.elapsed() < ms(3000), "{:?}", stopped.elapsed());
}

#[test]
fn an_engine_that_stands_still_or_shows_nothing_spares_no_stream() {
    for shows in [true, false] {
        let mock = Mock::playing(held_back(Step::AwaitClose));
        if shows {
            engine(&mock, &Arc::new(AtomicBool::new(false)));
        } else {
            mock.probes(|target| (target == "/metrics").then(|| answer(404, &[], "{}")));
        }
        let forebay = Harness::new()
            .config(&format!("{SCRAPES}[stream]\nidle_timeout = \"400ms\""))
            .pool("tiny", &[&mock])
            .start();
        let begun = Instant::now();
        let answer = forebay.post(PATH, STREAM);
        assert!(is_cut(&answer, "idle_timeout"), "{}", answer.text());
        assert!(begun.elapsed() < ms(3000), "{:?}", begun.elapsed());
    }
}

#[test]
fn one_dead_stream_among_ten_that_run_ends_at_the_second_limit() {
    let over = Gate::new();
    let ends = over.clone();
    let mock = Mock::replying(move |seen| {
        if seen.text().contains("dead") {
            return held_back(Step::AwaitClose);
        }
        let mut script = vec![stream_head()];
        for _ in 0..200 {
            script.extend([chunk(token("more")), Step::Pause(ms(50))]);
        }
        script.extend([Step::Tell(ends.clone()), chunk(DONE), last_chunk()]);
        script
    });
    engine(&mock, &Arc::new(AtomicBool::new(true)));
    let limits = "[stream]\nidle_timeout = \"400ms\"\nbusy_idle_timeout = \"2s\"";
    let forebay = Harness::new().config(&format!("{SCRAPES}{limits}")).pool("tiny", &[&mock]).start();
    let mut running: Vec<_> = (0..10).map(|_| forebay.open()).collect();
    for client in &mut running {
        client.send(&post(PATH, &[], STREAM.as_bytes()));
        client.until("more");
    }
    let begun = Instant::now();
    let dead = forebay.post(PATH, r#"{"model":"tiny","stream":true,"messages":["dead"]}"#);
    let lasted = begun.elapsed();
    assert!(is_cut(&dead, "idle_timeout"), "{}", dead.text());
    assert!((ms(1900)..ms(6000)).contains(&lasted), "{lasted:?}");
    for client in &mut running {
        assert!(!client.received().contains("forebay_stream_cut"));
        assert_eq!(client.answer().end, End::Whole, "those that run are not concerned");
    }
}

/// A hang is found in 200 ms, and in 600 ms without figures.
const IMPATIENT: &str = "[health]\ninterval = \"250ms\"\ntimeout = \"250ms\"\nstall_timeout = \"200ms\"";

fn nothing_was_held_against(forebay: &Forebay, mocks: &[&Mock]) {
    assert_eq!(forebay.metric("forebay_ejections_total", &[]), 0.0, "{}", forebay.log());
    for mock in mocks {
        assert_eq!(forebay.backend(mock)["state"], "healthy");
    }
}

#[test]
fn a_long_document_of_a_server_without_metrics_is_no_hang() {
    let form = "--X\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\ntiny\r\n--X\r\n\
                Content-Disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\n\r\nRIFF\r\n--X--\r\n";
    let multipart = [("content-type", "multipart/form-data; boundary=X")];
    let questions = [
        post(PATH, &[], UNARY.as_bytes()),
        post("/v1/completions", &[], br#"{"model":"tiny","prompt":"a"}"#),
        post("/v1/embeddings", &[], br#"{"model":"tiny","input":"a"}"#),
        post("/v1/audio/transcriptions", &multipart, form.as_bytes()),
    ];
    let without_metrics = || answer(404, &[], "{}");
    // Slower than the scrape's own limit.
    let slow_metrics = || [vec![Step::Pause(ms(300))], answer(200, &[], "vllm:num_requests_running 1\n")].concat();
    for metrics in [without_metrics as fn() -> Script, slow_metrics] {
        let mocks: Vec<Mock> = (0..2)
            .map(|_| {
                let mock = Mock::replying(|_| [vec![Step::Pause(ms(2500))], answer(200, &[], CHAT)].concat());
                mock.probes(move |target| (target == "/metrics").then(metrics));
                mock
            })
            .collect();
        let mocks: Vec<&Mock> = mocks.iter().collect();
        let forebay = Harness::new().config(&format!("{SCRAPES}{IMPATIENT}")).pool("tiny", &mocks).start();
        thread::scope(|scope| {
            let asked: Vec<_> = questions.iter().map(|question| scope.spawn(|| forebay.open().ask(question))).collect();
            for answer in asked.into_iter().map(|asked| asked.join().unwrap()) {
                assert_eq!((answer.status, answer.header("x-forebay-attempts")), (200, Some("1")), "{}", answer.text());
            }
        });
        nothing_was_held_against(&forebay, &mocks);
    }
}

#[test]
fn a_document_of_an_engine_whose_figures_stand_still_is_a_hang_all_the_same() {
    let stuck = Mock::playing(vec![Step::AwaitClose]);
    engine(&stuck, &Arc::new(AtomicBool::new(false)));
    let well = Mock::start();
    engine(&well, &Arc::new(AtomicBool::new(true)));
    let forebay = Harness::new()
        .config(&format!("{SCRAPES}{}", IMPATIENT.replace("200ms", "600ms")))
        .pool("tiny", &[&stuck, &well])
        .start();
    for _ in 0..2 {
        assert_eq!(forebay.post(PATH, UNARY).status, 200);
    }
    assert_eq!(forebay.metric("forebay_ejections_total", &["reason=\"watchdog\""]), 1.0);
}

#[test]
fn a_body_that_keeps_coming_has_the_time_that_it_takes() {
    let mock = Mock::start();
    let forebay = Harness::new().config("[listen]\nbody_timeout = \"300ms\"").pool("tiny", &[&mock]).start();
    let text = "a".repeat(400_000);
    let body = format!(r#"{{"model":"tiny","messages":[{{"role":"user","content":"{text}"}}]}}"#);
    let request = post(PATH, &[], body.as_bytes());
    let mut client = forebay.open();
    let begun = Instant::now();
    for piece in request.chunks(10_000) {
        assert!(client.is_quiet_for(ms(40)), "{}", client.received());
        assert!(client.try_send(piece));
    }
    assert!(begun.elapsed() > ms(1500));
    assert_eq!(client.answer().status, 200);
    assert_eq!(mock.only().body.len(), body.len());
}
