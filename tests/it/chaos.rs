//! Thousands of requests of every kind against backends that fail in every way, with clients that leave in every way, all drawn
//! from one seed: at the end nothing is held, nothing is lost and everything is counted once.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use serde_json::Value;

use crate::client::{Answer, Conn, End, post};
use crate::harness::{Forebay, Harness, eventually, ms};
use crate::mock::{DONE, Mock, Script, Seen, Step, answer, chunk, last_chunk, like_vllm, stream, stream_head, token};

const SEED: u64 = 7;
/// How much more memory may be resident at the end than after a fifth of the requests.
const RSS_GROWTH: f64 = 1.1;
/// Clients at once.
const CLIENTS: u64 = 64;
/// What a backend does, and on which of the backends, stands in this header: all three, or one of them.
const PLAY: &str = "x-play";
const CHAT_PATH: &str = "/v1/chat/completions";

fn requests() -> u64 {
    if std::env::var("FOREBAY_SIZE").is_ok_and(|size| size == "full") { 100_000 } else { 2_000 }
}

/// What comes of a request whose client stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    /// A whole answer: a stream to its end mark, or a document.
    Whole,
    /// A stream that is cut after a token, with a word that says so.
    Cut,
    /// An error answer of this status.
    Status(u16),
}

/// Ways in which a backend fails, and what comes of each where every backend does it.
const FAILURES: [(&str, Expected); 13] = [
    ("500", Expected::Status(500)),
    ("503", Expected::Status(503)),
    ("429", Expected::Status(429)),
    ("close", Expected::Status(502)),
    ("reset", Expected::Status(502)),
    ("head-then-close", Expected::Status(502)),
    ("comment-then-reset", Expected::Status(502)),
    ("error-event", Expected::Status(500)),
    ("502", Expected::Status(502)),
    ("504", Expected::Status(504)),
    ("draining", Expected::Status(500)),
    ("garbage", Expected::Status(502)),
    ("engine-dead", Expected::Status(502)),
];
/// The same for what happens after a token.
const CUTS: [&str; 4] = ["token-then-reset", "token-then-close", "token-then-end", "token-then-silence"];

/// What a backend plays. `index` says which of them it is.
fn play(index: usize, seen: &Seen) -> Script {
    let (what, at) =
        seen.header(PLAY).unwrap_or("well").split_once('@').unwrap_or((seen.header(PLAY).unwrap_or("well"), ""));
    if !at.is_empty() && at != index.to_string() {
        return like_vllm(seen);
    }
    let begun = |rest: Vec<Step>| [vec![stream_head(), chunk(token("one"))], rest].concat();
    match what {
        "500" => answer(500, &[], r#"{"error":{"message":"no","type":"InternalServerError","param":null,"code":500}}"#),
        "503" => answer(503, &[], "{}"),
        "429" => answer(429, &[("retry-after", "1")], "{}"),
        "502" | "504" => answer(what.parse().unwrap(), &[], "{}"),
        "draining" => answer(500, &[], &error("cannot schedule new futures after shutdown")),
        "garbage" => vec![Step::Send(b"HTTP/9 what\r\n\r\n".to_vec()), Step::Close],
        "engine-dead" => stream(&[format!("data: {}\n\n", error("EngineCore encountered an issue.")), DONE.to_owned()]),
        "never-a-token" => vec![stream_head(), Step::AwaitClose],
        "400" => answer(400, &[], "{}"),
        "close" => vec![Step::Close],
        "reset" => vec![Step::Reset],
        "head-then-close" => vec![stream_head(), Step::Close],
        "comment-then-reset" => vec![stream_head(), chunk(": keep-alive\n\n"), Step::Reset],
        "error-event" => vec![
            stream_head(),
            chunk("data: {\"error\":{\"message\":\"no\",\"type\":\"InternalServerError\",\"code\":500}}\n\n"),
            chunk(DONE),
            last_chunk(),
        ],
        "token-then-reset" => begun(vec![Step::Reset]),
        "token-then-close" => begun(vec![Step::Close]),
        "token-then-end" => begun(vec![last_chunk()]),
        "slow" => slowly(like_vllm(seen)),
        "hang" => vec![Step::AwaitClose],
        "token-then-hang" | "token-then-silence" => begun(vec![Step::AwaitClose]),
        _ => like_vllm(seen),
    }
}

fn error(message: &str) -> String {
    format!(r#"{{"error":{{"message":"{message}","type":"InternalServerError","param":null,"code":500}}}}"#)
}

/// Returns a script with a pause before each step.
fn slowly(script: Script) -> Script {
    script.into_iter().flat_map(|step| [Step::Pause(ms(5)), step]).collect()
}

/// What a client does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leaves {
    /// Reads its answer to the end.
    Never,
    /// With FIN as soon as all is sent.
    AfterSending,
    /// With a reset as soon as all is sent.
    ByReset,
    /// With FIN behind a byte that follows the request.
    WithMoreInThePipe,
    /// With a reset once the first token is there.
    AfterToken,
    /// With FIN in the middle of its own body.
    WhileSending,
}

/// One request, drawn.
#[derive(Clone, Debug)]
struct Plan {
    play: String,
    streamed: bool,
    leaves: Leaves,
    expected: Expected,
    /// On the connection of the client's last request, if that is still there.
    keeps: bool,
}

impl Plan {
    fn draw(rng: &mut fastrand::Rng) -> Plan {
        let streamed = rng.bool();
        let plan = |play: &str, expected| Plan {
            play: play.to_owned(),
            streamed,
            leaves: Leaves::Never,
            expected,
            keeps: true,
        };
        match rng.u32(..100) {
            0..34 => plan("well", Expected::Whole),
            34 if rng.u32(..4) == 0 => {
                Plan { streamed: true, ..plan(&format!("never-a-token@{}", rng.u32(..3)), Expected::Whole) }
            }
            34 => plan("400", Expected::Status(400)),
            35..45 => plan("slow", Expected::Whole),
            45..60 => {
                let (what, _) = FAILURES[rng.usize(..FAILURES.len())];
                plan(&format!("{what}@{}", rng.u32(..3)), Expected::Whole)
            }
            60..70 => {
                let (what, expected) = FAILURES[rng.usize(..FAILURES.len())];
                plan(what, expected)
            }
            70..78 => Plan { streamed: true, ..plan(CUTS[rng.usize(..CUTS.len())], Expected::Cut) },
            78..80 => Plan { leaves: Leaves::AfterSending, ..plan("hang", Expected::Whole) },
            80..82 => Plan { leaves: Leaves::ByReset, ..plan("hang", Expected::Whole) },
            82..85 => Plan { leaves: Leaves::WithMoreInThePipe, ..plan("hang", Expected::Whole) },
            85..92 => Plan { leaves: Leaves::AfterToken, streamed: true, ..plan("token-then-hang", Expected::Whole) },
            92..96 => Plan { leaves: Leaves::WhileSending, ..plan("well", Expected::Whole) },
            _ => Plan { keeps: false, ..plan("well", Expected::Whole) },
        }
    }

    fn request(&self, id: &str) -> Vec<u8> {
        let body = format!(
            r#"{{"model":"tiny","stream":{},"messages":[{{"role":"user","content":"{id}"}}],"user":"u"}}"#,
            self.streamed
        );
        post(CHAT_PATH, &[("x-request-id", id), (PLAY, &self.play)], body.as_bytes())
    }

    fn check(&self, id: &str, answer: &Answer) {
        let seen = format!("{id} {self:?}: {} {:?} {}", answer.status, answer.end, answer.text());
        assert_eq!(answer.header("x-request-id"), Some(id), "{seen}");
        match self.expected {
            Expected::Whole => {
                assert_eq!((answer.status, answer.end), (200, End::Whole), "{seen}");
                let end = if self.streamed { DONE } else { "}" };
                assert!(answer.text().ends_with(end) && !answer.text().contains("error"), "{seen}");
            }
            Expected::Cut => {
                assert_eq!((answer.status, answer.end), (200, End::Cut), "{seen}");
                assert!(answer.text().contains("forebay_stream_cut"), "{seen}");
            }
            Expected::Status(status) => assert_eq!((answer.status, answer.end), (status, End::Whole), "{seen}"),
        }
    }
}

/// How requests went, by kind.
#[derive(Debug, Default)]
struct Tally {
    answered: u64,
    cut: u64,
    left: u64,
    /// Every request by its id.
    sent: Vec<(String, Plan)>,
}

/// One client: a request after another, most on one connection.
fn client(forebay: &Forebay, seed: u64, number: u64, next: &AtomicU64, requests: u64) -> Tally {
    let mut rng = fastrand::Rng::with_seed(SEED.wrapping_mul(1000) + seed * CLIENTS + number);
    let (mut tally, mut kept) = (Tally::default(), None);
    while next.fetch_add(1, Ordering::Relaxed) < requests {
        let plan = Plan::draw(&mut rng);
        let id = format!("s{seed}c{number}-{}", tally.answered + tally.cut + tally.left);
        let mut conn: Conn = kept.take().unwrap_or_else(|| forebay.open());
        let request = plan.request(&id);
        tally.sent.push((id.clone(), plan.clone()));
        match plan.leaves {
            Leaves::WhileSending => {
                conn.send(&request[..request.len() - 3]);
                conn.half_close();
                let _ = conn.closed();
                tally.left += 1;
            }
            Leaves::AfterSending => {
                conn.send(&request);
                conn.half_close();
                let _ = conn.closed();
                tally.left += 1;
            }
            Leaves::ByReset => {
                conn.send(&request);
                conn.reset();
                tally.left += 1;
            }
            Leaves::WithMoreInThePipe => {
                conn.send(&[&request, b"\r\n".as_slice()].concat());
                drop(conn);
                tally.left += 1;
            }
            Leaves::AfterToken => {
                conn.send(&request);
                conn.until("one");
                conn.reset();
                tally.left += 1;
            }
            Leaves::Never => {
                let answer = conn.ask(&request);
                plan.check(&id, &answer);
                if answer.end == End::Whole {
                    tally.answered += 1;
                    kept = plan.keeps.then_some(conn);
                } else {
                    tally.cut += 1;
                }
            }
        }
    }
    tally
}

fn descriptors(forebay: &Forebay) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", forebay.pid())).unwrap().count()
}

/// The backends' parts of `/api/fleet`.
fn loads(forebay: &Forebay) -> Vec<Value> {
    let fleet = Conn::open(forebay.admin).ask(b"GET /api/fleet HTTP/1.1\r\nhost: admin\r\n\r\n").json();
    let backends = fleet["pools"][0]["arms"][0]["backends"].as_array().unwrap();
    backends.iter().map(|backend| backend["load"].clone()).collect()
}

/// Everything that a backend has of ours, in one line.
fn held(load: &Value) -> BTreeMap<&'static str, f64> {
    ["open_attempts", "prefilling", "decoding", "queued_prompt_tokens", "kv_tokens"]
        .into_iter()
        .map(|name| (name, load[name].as_f64().unwrap_or_else(|| panic!("{name} in {load}"))))
        .collect()
}

/// What a Forebay holds when nothing is under way.
#[derive(Debug)]
struct AtRest {
    threads: usize,
    rss_kib: u64,
}

/// Waits until nothing is held and no more descriptors are open than these, and says what is left.
fn at_rest(forebay: &Forebay, most: usize) -> AtRest {
    eventually("nothing is in flight", || (forebay.metric("forebay_in_flight", &[]) == 0.0).then_some(()));
    for load in loads(forebay) {
        assert!(held(&load).values().all(|value| *value == 0.0), "held at the end: {load}");
    }
    // Connections that are kept alive are let go after 4 s.
    eventually(&format!("at most {most} descriptors are open"), || (descriptors(forebay) <= most).then_some(()));
    let threads = std::fs::read_dir(format!("/proc/{}/task", forebay.pid())).unwrap().count();
    AtRest { threads, rss_kib: forebay.rss_kib() }
}

/// So many requests of all clients.
fn storm(forebay: &Forebay, seed: u64, requests: u64) -> Vec<Tally> {
    let next = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| (number, &next))
            .map(|(number, next)| scope.spawn(move || client(forebay, seed, number, next, requests)))
            .collect();
        clients.into_iter().map(|client| client.join().expect("a client found what it expected")).collect()
    })
}

#[test]
fn after_a_storm_of_failures_and_leaving_clients_nothing_is_held_and_all_is_counted_once() {
    let mocks = [0, 1, 2].map(|index| Mock::replying(move |seen| play(index, seen)));
    let forebay = Harness::new()
        .config("[retry]\nbudget = { burst = 1000000, ratio = 1, per_second = 1000000 }")
        .config("[health]\nfailures = 1000")
        .config("[stream]\nfirst_token_timeout = \"4s\"\nhead_after = \"3s\"\nidle_timeout = \"1500ms\"")
        .pool("tiny", &[&mocks[0], &mocks[1], &mocks[2]])
        .start();
    eventually("probes of every backend", || {
        loads(&forebay).iter().all(|load| load["scrape"].is_object()).then_some(())
    });
    // Probes and scrapes come and go all the time.
    let most = descriptors(&forebay) + 4;
    let started = Instant::now();
    // The first fifth fills pools, buffers and caches; memory is compared from there on.
    let mut tallies = storm(&forebay, 0, requests() / 5);
    let warm = at_rest(&forebay, most);
    tallies.extend(storm(&forebay, 1, requests() - requests() / 5));
    let took = started.elapsed();
    let end = at_rest(&forebay, most);

    counted_once(&forebay, &tallies);
    let log = forebay.log();
    assert!(!log.contains("panicked") && !log.contains("ERROR"), "{log}");
    let sum = |of: fn(&Tally) -> u64| tallies.iter().map(of).sum::<u64>();
    println!(
        "{} requests of {CLIENTS} clients in {took:.1?}: {} answered, {} cut, {} left; after a fifth of them {warm:?}, at the end {end:?}",
        requests(),
        sum(|tally| tally.answered),
        sum(|tally| tally.cut),
        sum(|tally| tally.left),
    );
    assert!(end.threads <= warm.threads, "{warm:?}, then {end:?}");
    assert!(end.rss_kib as f64 <= warm.rss_kib as f64 * RSS_GROWTH, "{warm:?}, then {end:?}");
}

/// The metrics, the access log and the clients agree on every request, and none is there twice.
fn counted_once(forebay: &Forebay, tallies: &[Tally]) {
    let records = eventually("the access log has every request", || {
        let records = forebay.access();
        let known: HashSet<&str> = records.iter().filter_map(|record| record["request_id"].as_str()).collect();
        let mut sent = tallies.iter().flat_map(|tally| &tally.sent);
        sent.all(|(id, _)| known.contains(id.as_str())).then_some(records)
    });
    assert_eq!(records.len() as u64, requests(), "lines of the access log");
    let counted = |name: &str| forebay.metric(name, &[]);
    eventually("the metrics have every request", || {
        (counted("forebay_requests_total") == requests() as f64).then_some(())
    });
    assert_eq!(counted("forebay_access_log_dropped_total"), 0.0);
    let left = records.iter().filter(|record| record["outcome"] == "client_left").count();
    assert_eq!(counted("forebay_aborts_total"), left as f64, "aborts by the metrics and by the log");
}
