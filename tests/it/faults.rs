//! The fault rig: three hundred streams, thirty at once, on two backends of which one turns bad while connections to it are kept
//! alive. No client may notice, and the bad one must be left alone. Every kind of badness is a row of a table that is printed.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::client::{Answer, End, post};
use crate::harness::{Forebay, Harness, eventually};
use crate::mock::{DONE, Mock, Script, Seen, Step, answer, chunk, last_chunk, stream, stream_head, token};

const PATH: &str = "/v1/chat/completions";
const STREAM: &str = r#"{"model":"tiny","stream":true,"messages":[{"role":"user","content":"hello"}]}"#;
const STREAMS: usize = 300;
const AT_ONCE: usize = 30;
/// Rows that run side by side: each mostly waits.
const ROWS_AT_ONCE: usize = 4;
/// How long a good backend takes for a stream.
const STREAM_TAKES: Duration = Duration::from_millis(150);

/// A kind of badness.
struct Row {
    name: &'static str,
    config: &'static str,
    turn_bad: fn(&Mock),
    /// The most that the bad one may get of the last third, in parts of it. A backend that is left alone is tried again by the
    /// clock, so where a busy machine serves fewer streams than `AT_ONCE` of `STREAM_TAKES`, the parts are of those that it
    /// would have served in that time.
    share: f64,
}

/// What a good backend does.
fn well(_: &Seen) -> Script {
    let pause = Step::Pause(STREAM_TAKES / 2);
    let (first, second) = (chunk(token("Hel")), chunk(token("lo")));
    vec![pause.clone(), stream_head(), first, pause, second, chunk(DONE), last_chunk()]
}

const NO_TOKEN: &str = "[stream]\nfirst_token_timeout = \"1s\"";
const WATCHDOG: &str = "[health]\nstall_timeout = \"2s\"";

/// Scrapes say that the engine has requests, and that none of its figures moves.
fn stands_still(mock: &Mock) {
    mock.probes(|target| {
        let figures = "vllm:num_requests_running 15\nvllm:num_requests_waiting 0\nvllm:kv_cache_usage_perc 0.5\n\
                       vllm:iteration_tokens_total_count 7\n";
        (target == "/metrics").then(|| answer(200, &[], figures))
    });
}

fn late_head(seen: &Seen) -> Script {
    [vec![Step::Pause(Duration::from_secs(10))], well(seen)].concat()
}

fn no_token(_: &Seen) -> Script {
    vec![stream_head(), Step::AwaitClose]
}

fn rows() -> Vec<Row> {
    fn always(mock: &Mock, script: Script) {
        mock.reply(move |_| script.clone());
    }
    fn error(message: &str) -> String {
        let error = serde_json::json!({"error": {"message": message, "type": "InternalServerError", "param": null,
            "code": 500}});
        error.to_string()
    }
    let row = |name, turn_bad| Row { name, config: "", turn_bad, share: 0.02 };
    vec![
        row("refused", Mock::refuse),
        row("accept and close", Mock::hang_up),
        row("reset after request", |mock| always(mock, vec![Step::Reset])),
        row("200 and EOF", |mock| always(mock, vec![stream_head(), Step::Close])),
        row("200, then error event", |mock| {
            always(mock, stream(&[&format!("data: {}\n\n", error("boom")), DONE]));
        }),
        row("500", |mock| always(mock, answer(500, &[], &error("boom")))),
        Row { share: 0.05, ..row("503", |mock| always(mock, answer(503, &[], "{}"))) },
        row("draining", |mock| {
            always(mock, answer(500, &[], &error("cannot schedule new futures after shutdown")));
        }),
        row("malformed head", |mock| always(mock, vec![Step::Send(b"HTTP/9 what\r\n\r\n".to_vec()), Step::Close])),
        Row { config: NO_TOKEN, ..row("head after 10 s", |mock| mock.reply(late_head)) },
        Row { config: NO_TOKEN, ..row("200, never a token", |mock| mock.reply(no_token)) },
        Row {
            config: WATCHDOG,
            ..row("head after 10 s, watchdog", |mock| {
                stands_still(mock);
                mock.reply(late_head);
            })
        },
        Row {
            config: WATCHDOG,
            ..row("never a token, watchdog", |mock| {
                stands_still(mock);
                mock.reply(no_token);
            })
        },
    ]
}

/// How a row went.
struct Played {
    failures: Vec<String>,
    /// Attempts on the bad one among the last third of the requests.
    late: usize,
    attempts: usize,
    took: Duration,
    /// From the start of the last third on.
    late_took: Duration,
}

impl Played {
    /// The streams of the last third, or those that its time had room for.
    fn room(&self) -> f64 {
        let by_time = AT_ONCE as f64 * self.late_took.as_secs_f64() / STREAM_TAKES.as_secs_f64();
        by_time.max((STREAMS / 3) as f64)
    }
}

fn is_whole(answer: &Answer) -> bool {
    let text = answer.text();
    answer.status == 200 && answer.end == End::Whole && text.ends_with(DONE) && !text.contains("error")
}

/// Clients one after another on each of the connections; the answers in the order of the requests.
fn load(forebay: &Forebay, streams: usize) -> Vec<Answer> {
    timed_load(forebay, streams).into_iter().map(|(_, answer)| answer).collect()
}

/// As `load`, each answer with the time at which its request began.
fn timed_load(forebay: &Forebay, streams: usize) -> Vec<(Instant, Answer)> {
    let next = AtomicUsize::new(0);
    let request = post(PATH, &[], STREAM.as_bytes());
    let client = || {
        let (mut kept, mut answers) = (None, Vec::new());
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= streams {
                return answers;
            }
            let mut conn = kept.take().unwrap_or_else(|| forebay.open());
            let began = Instant::now();
            let answer = conn.ask(&request);
            if answer.end == End::Whole {
                kept = Some(conn);
            }
            answers.push((number, (began, answer)));
        }
    };
    let mut all: Vec<(usize, (Instant, Answer))> = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(client)).collect();
        clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
    });
    all.sort_by_key(|(number, _)| *number);
    all.into_iter().map(|(_, answer)| answer).collect()
}

fn play(row: &Row) -> Played {
    let (good, bad) = (Mock::replying(well), Mock::replying(well));
    let policy = "policy = \"predicted_ttft\"";
    let forebay = Harness::new().config(row.config).pool_with("tiny", policy, &[&good, &bad]).start();
    // Both have connections kept alive then.
    assert!(load(&forebay, AT_ONCE).iter().all(is_whole), "{}: before it turns bad", row.name);
    assert!(!bad.seen().is_empty(), "{}: it was in use", row.name);
    (row.turn_bad)(&bad);

    let started = Instant::now();
    let (began, answers): (Vec<_>, Vec<_>) = timed_load(&forebay, STREAMS).into_iter().unzip();
    let (took, late_took) = (started.elapsed(), began[STREAMS * 2 / 3].elapsed());
    let attempts = |answer: &Answer| answer.header("x-forebay-attempts").map_or(0, |text| text.parse().unwrap());
    let moved = |answers: &[Answer]| answers.iter().map(|answer| attempts(answer) - 1_usize).sum();
    let failures: Vec<String> = answers
        .iter()
        .filter(|answer| !is_whole(answer))
        .map(|answer| format!("{} {:?} {}", answer.status, answer.end, answer.text()))
        .collect();
    let (late, attempts) = match failures.is_empty() {
        true => (moved(&answers[STREAMS * 2 / 3..]), moved(&answers)),
        false => (0, 0),
    };
    Played { failures, late, attempts, took, late_took }
}

#[test]
fn no_client_notices_a_bad_backend_and_it_is_left_alone() {
    let rows = rows();
    let mut table = Vec::new();
    for some in rows.chunks(ROWS_AT_ONCE) {
        table.extend(std::thread::scope(|scope| {
            let running: Vec<_> = some.iter().map(|row| (row, scope.spawn(|| play(row)))).collect();
            running.into_iter().map(|(row, running)| (row, running.join().unwrap())).collect::<Vec<_>>()
        }));
    }
    println!("{STREAMS} streams, {AT_ONCE} at once, two backends, one of them bad:");
    println!(
        "  {:26} {:>8} {:>22} {:>18} {:>7}",
        "the bad one", "failures", "attempts on it in all", "in the last third", "time"
    );
    for (row, played) in &table {
        let Played { failures, late, attempts, took, .. } = played;
        let share = *late as f64 / played.room() * 100.0;
        println!(
            "  {:26} {:>8} {attempts:>22} {share:>16.0} % {:>5.1} s",
            row.name,
            failures.len(),
            took.as_secs_f64()
        );
    }
    for (row, played) in &table {
        let Played { failures, late, late_took, .. } = played;
        assert!(failures.is_empty(), "{}: {} failures, the first: {}", row.name, failures.len(), failures[0]);
        let room = played.room();
        assert!((*late as f64) < row.share * room, "{}: {late} of {room:.0} in the last {late_took:?}", row.name);
    }
}

#[test]
fn a_backend_that_comes_back_is_in_use_again() {
    let (good, bad) = (Mock::start(), Mock::start());
    let forebay = Harness::new().pool("tiny", &[&good, &bad]).start();
    assert!(load(&forebay, AT_ONCE).iter().all(is_whole));
    bad.refuse();
    assert!(load(&forebay, AT_ONCE).iter().all(is_whole));
    let before = bad.seen().len();
    bad.listen_again();
    eventually("it serves again", || {
        assert!(is_whole(&forebay.post(PATH, STREAM)));
        (bad.seen().len() > before).then_some(())
    });
}
