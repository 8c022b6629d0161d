//! A client that leaves stops the backend's work, in every phase of a request and however it leaves; and everything that
//! its request held is given back. Delays are printed, not judged: only a close that does not come at all is a failure.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use http_body_util::BodyExt;

use crate::client::{Conn, H2, on_h2, post};
use crate::harness::{Forebay, Harness, awaited, eventually};
use crate::mock::{Mock, Script, Step, chunk, stream_head, token};

const STREAM: &str = r#"{"model":"tiny","stream":true,"messages":[{"role":"user","content":"hello"}]}"#;
const UNARY: &str = r#"{"model":"tiny","messages":[{"role":"user","content":"hello"}]}"#;
const CHAT_PATH: &str = "/v1/chat/completions";

/// Clients that leave, in each phase and each way.
fn leavers() -> usize {
    if std::env::var("FOREBAY_SIZE").is_ok_and(|size| size == "full") { 200 } else { 50 }
}

/// When the client leaves.
#[derive(Clone, Copy, Debug)]
enum Phase {
    /// The backend has the request and says nothing.
    BeforeHead,
    /// The backend has sent 200, its head and a comment, but no token.
    BeforeFirstToken,
    /// Tokens flow.
    MidStream,
    /// A unary request of which the backend says nothing yet.
    UnaryBeforeHead,
    /// A small unary answer is half there.
    UnarySmall,
    /// A large unary answer is half there, and half at the client.
    UnaryLarge,
}

impl Phase {
    const ALL: [Phase; 6] = [
        Phase::BeforeHead,
        Phase::BeforeFirstToken,
        Phase::MidStream,
        Phase::UnaryBeforeHead,
        Phase::UnarySmall,
        Phase::UnaryLarge,
    ];

    fn body(self) -> &'static str {
        match self {
            Phase::BeforeHead | Phase::BeforeFirstToken | Phase::MidStream => STREAM,
            Phase::UnaryBeforeHead | Phase::UnarySmall | Phase::UnaryLarge => UNARY,
        }
    }

    /// What the backend does, until the peer closes.
    fn script(self) -> Script {
        let unary = |length: usize, there: usize| {
            let head = format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n");
            Step::Send([head.as_bytes(), vec![b' '; there].as_slice()].concat())
        };
        let mut script = match self {
            Phase::BeforeHead | Phase::UnaryBeforeHead => vec![],
            Phase::BeforeFirstToken => vec![stream_head(), chunk(": keep-alive\n\n")],
            Phase::MidStream => vec![stream_head(), chunk(token("one")), chunk(token("two"))],
            Phase::UnarySmall => vec![unary(1000, 500)],
            Phase::UnaryLarge => vec![unary(200_000, 100_000)],
        };
        script.push(Step::AwaitClose);
        script
    }

    /// Bytes after which the client knows that its phase has come; nothing where it gets none.
    fn sign(self) -> Option<&'static str> {
        match self {
            Phase::MidStream => Some("two"),
            Phase::UnaryLarge => Some("\r\n\r\n"),
            Phase::BeforeHead | Phase::BeforeFirstToken | Phase::UnaryBeforeHead | Phase::UnarySmall => None,
        }
    }

    /// Whether the backend has sent the head of its answer.
    fn has_head(self) -> bool {
        !matches!(self, Phase::BeforeHead | Phase::UnaryBeforeHead)
    }

    /// The `phase` label of `forebay_aborts_total`.
    fn label(self) -> &'static str {
        match self {
            Phase::BeforeHead | Phase::UnaryBeforeHead => "phase=\"before_head\"",
            Phase::BeforeFirstToken => "phase=\"before_first_token\"",
            Phase::MidStream => "phase=\"mid_stream\"",
            Phase::UnarySmall | Phase::UnaryLarge => "phase=\"unary\"",
        }
    }
}

/// The backend's side of a phase: plays its script, and waits until so many have come.
struct Stage {
    forebay: Forebay,
    mock: Mock,
}

impl Stage {
    fn new() -> Stage {
        let mock = Mock::start();
        let log = "--log-level=info,forebay::proxy::attempt=debug";
        let forebay = Harness::new().pool("tiny", &[&mock]).arg(log).start();
        Stage { forebay, mock }
    }

    /// Heads of answers that Forebay has read; a client cannot see those that are held back.
    fn heads(&self) -> usize {
        self.forebay.logged("the head of an answer came")
    }

    /// After all have left: nothing is held, and each was counted where it left.
    fn check(&self, phase: Phase, counted: &mut Counts, left: usize) {
        eventually("nothing is in flight", || (self.forebay.metric("forebay_in_flight", &[]) == 0.0).then_some(()));
        let load = &self.fleet()["pools"][0]["arms"][0]["backends"][0]["load"];
        for name in ["open_attempts", "prefilling", "decoding", "queued_prompt_tokens", "kv_tokens"] {
            assert_eq!(load[name].as_f64(), Some(0.0), "{name} after {phase:?}: {load}");
        }
        counted.expect(phase, left);
        eventually(&format!("aborts are counted as {phase:?}"), || counted.hold(&self.forebay).then_some(()));
        assert!(!self.forebay.log().contains("panicked"));
    }

    fn fleet(&self) -> serde_json::Value {
        Conn::open(self.forebay.admin).ask(b"GET /api/fleet HTTP/1.1\r\nhost: admin\r\n\r\n").json()
    }
}

/// What `forebay_aborts_total` must say.
#[derive(Default)]
struct Counts(std::collections::BTreeMap<&'static str, usize>);

impl Counts {
    fn expect(&mut self, phase: Phase, left: usize) {
        *self.0.entry(phase.label()).or_default() += left;
    }

    fn hold(&self, forebay: &Forebay) -> bool {
        let total: usize = self.0.values().sum();
        self.0.iter().all(|(label, count)| forebay.metric("forebay_aborts_total", &[label]) == *count as f64)
            && forebay.metric("forebay_aborts_total", &[]) == total as f64
            && forebay.metric("forebay_requests_total", &["outcome=\"client_left\""]) == total as f64
    }
}

fn report(how: &str, phase: &str, mut delays: Vec<Duration>) {
    delays.sort_unstable();
    let at = |part: f64| delays[((delays.len() - 1) as f64 * part).round() as usize];
    println!(
        "client leaves by {how}, {phase}: {} of {} closes reached the backend; delay p50 {:.1?} p99 {:.1?}",
        delays.len(),
        delays.len(),
        at(0.5),
        at(0.99)
    );
}

/// All clients of a phase wait at once, with `behind` sent after their requests; then they leave one by one.
fn leave_by(how: &str, behind: &[u8], leave: impl Fn(Conn)) {
    let stage = Stage::new();
    let (mut requests, mut heads, mut closes, mut counted) = (0, 0, 0, Counts::default());
    for phase in Phase::ALL {
        stage.mock.reply(move |_| phase.script());
        let request = [&post(CHAT_PATH, &[], phase.body().as_bytes()), behind].concat();
        let mut waiting = Vec::new();
        for _ in 0..leavers() {
            let mut conn = stage.forebay.open();
            conn.send(&request);
            waiting.push(conn);
        }
        requests += leavers();
        stage.mock.await_requests(requests);
        for conn in &mut waiting {
            if let Some(sign) = phase.sign() {
                conn.until(sign);
            }
        }
        if phase.has_head() {
            heads += leavers();
        }
        eventually("the heads are read", || (stage.heads() >= heads).then_some(()));
        let mut delays = Vec::new();
        for conn in waiting {
            let left = Instant::now();
            leave(conn);
            closes += 1;
            delays.push(stage.mock.await_closes(closes).saturating_duration_since(left));
        }
        report(how, &format!("{phase:?}"), delays);
        stage.check(phase, &mut counted, leavers());
    }
}

#[test]
fn a_client_that_leaves_by_fin_stops_the_backend_in_every_phase() {
    leave_by("FIN", b"", drop);
}

#[test]
fn a_client_that_leaves_by_reset_stops_the_backend_in_every_phase() {
    leave_by("RST", b"", Conn::reset);
}

#[test]
fn a_client_that_closes_its_half_stops_the_backend_in_every_phase() {
    leave_by("half-close", b"", |mut conn| {
        conn.half_close();
        let _ = conn.closed();
    });
}

/// hyper stops looking for the end of a connection once bytes are there that follow the request.
#[test]
fn a_client_that_leaves_with_bytes_behind_its_request_stops_the_backend_in_every_phase() {
    leave_by("FIN behind a stray line end", b"\r\n", drop);
    let next = post(CHAT_PATH, &[], b"never served");
    leave_by("FIN behind the next request", &next, drop);
    leave_by("RST behind the next request", &next, Conn::reset);
}

/// The first attempt has failed, the second is under way: what a client that leaves then had before is not in its way.
#[test]
fn a_client_that_leaves_after_a_failed_attempt_stops_the_second_one() {
    let known = Arc::new(Mutex::new(HashSet::new()));
    let mocks = [0, 1].map(|_| {
        let known = Arc::clone(&known);
        Mock::replying(move |seen| {
            let first = known.lock().unwrap().insert(seen.header("x-request-id").unwrap().to_owned());
            vec![if first { Step::Close } else { Step::AwaitClose }]
        })
    });
    let config = "[retry]\nbudget = { burst = 1000, ratio = 1, per_second = 1000 }\n[health]\nfailures = 1000";
    let forebay = Harness::new().config(config).pool("tiny", &[&mocks[0], &mocks[1]]).start();
    let (mut requests, mut closes) = (0, 0);
    let sum = |of: fn(&Mock) -> usize| mocks.iter().map(of).sum::<usize>();
    for (how, body, leave) in [
        ("FIN", STREAM, drop as fn(Conn)),
        ("RST", STREAM, Conn::reset),
        ("FIN", UNARY, drop),
        ("RST", UNARY, Conn::reset),
    ] {
        let mut delays = Vec::new();
        for _ in 0..leavers() {
            let mut conn = forebay.open();
            conn.send(&post(CHAT_PATH, &[], body.as_bytes()));
            (requests, closes) = (requests + 2, closes + 1);
            eventually("both attempts were made", || (sum(|mock| mock.seen().len()) >= requests).then_some(()));
            let left = Instant::now();
            leave(conn);
            eventually("the second one is closed", || (sum(|mock| mock.closes().len()) >= closes).then_some(()));
            delays.push(left.elapsed());
        }
        report(how, &format!("in the second attempt, {}", if body == STREAM { "stream" } else { "unary" }), delays);
    }
    eventually("nothing is in flight", || (forebay.metric("forebay_in_flight", &[]) == 0.0).then_some(()));
    let counted = forebay.metric("forebay_requests_total", &["outcome=\"client_left\""]);
    assert_eq!(counted, (4 * leavers()) as f64);
}

#[test]
fn an_h2_stream_that_is_reset_stops_the_backend_in_every_phase_and_leaves_its_connection_alone() {
    let stage = Stage::new();
    let (mut requests, mut heads, mut closes, mut counted) = (0, 0, 0, Counts::default());
    for phase in Phase::ALL {
        stage.mock.reply(move |_| phase.script());
        let delays = on_h2(stage.forebay.address, 1 << 20, async |mut h2| {
            let mut delays = Vec::new();
            for _ in 0..leavers() {
                requests += 1;
                heads += usize::from(phase.has_head());
                closes += 1;
                let reached = || stage.mock.seen().len() >= requests && stage.heads() >= heads;
                let left = leave_h2(phase, reached, &mut h2).await;
                let closed = awaited(|| stage.mock.closes().get(closes - 1).copied()).await;
                delays.push(closed.saturating_duration_since(left));
            }
            // The connection lives on.
            let answer = h2.post("/tokenize", "{").await;
            assert_eq!(answer.status(), 400);
            delays
        });
        report("RST_STREAM", &format!("{phase:?}"), delays);
        stage.check(phase, &mut counted, leavers());
    }
}

/// A request that is dropped, with which hyper resets its stream, once its phase has come; says when.
async fn leave_h2(phase: Phase, reached: impl Fn() -> bool, h2: &mut H2) -> Instant {
    let reached = awaited(|| reached().then_some(()));
    if phase.sign().is_none() {
        tokio::select! {
            answer = h2.post(CHAT_PATH, phase.body()) => panic!("{phase:?} was answered: {answer:?}"),
            () = reached => {}
        }
        return Instant::now();
    }
    let mut body = h2.post(CHAT_PATH, phase.body()).await.into_body();
    drop(body.frame().await.unwrap().unwrap());
    drop(body);
    Instant::now()
}

/// The last step that matters: a client that leaves while its body is still under way was never given to a backend.
#[test]
fn a_client_that_leaves_while_it_sends_is_counted_and_reaches_no_backend() {
    let stage = Stage::new();
    let request = post(CHAT_PATH, &[], STREAM.as_bytes());
    for _ in 0..leavers() {
        let mut conn = stage.forebay.open();
        conn.send(&request[..request.len() - 5]);
        conn.half_close();
        let _ = conn.closed();
    }
    let requests = || stage.forebay.metric("forebay_requests_total", &[]);
    eventually("each is counted", || (requests() == leavers() as f64).then_some(()));
    assert!(stage.mock.seen().is_empty());
}
