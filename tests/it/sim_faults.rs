//! The faults of `forebay sim`: each, as a client meets it on the wire, is what the recordings of a real vLLM show.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use serde_json::Value;

use crate::client::{A_WHILE, Answer, Conn, End, post};
use crate::harness::{DEADLINE, eventually, ms};

const CHAT: &str = "/v1/chat/completions";
const UNARY: &str =
    r#"{"model":"tiny","messages":[{"role":"user","content":"Hello"}],"max_tokens":5,"ignore_eos":true}"#;
const STREAM: &str =
    r#"{"model":"tiny","messages":[{"role":"user","content":"Hello"}],"max_tokens":5,"ignore_eos":true,"stream":true}"#;
/// Tokens enough for the whole of a test at [`SLOWLY`].
const LONG: &str = r#"{"model":"tiny","messages":[{"role":"user","content":"Hello"}],"max_tokens":3000,"ignore_eos":true,"stream":true}"#;
/// A token every 20 ms.
const SLOWLY: &[&str] = &["--time-scale", "0.05"];

/// A simulated server that is a process of its own, killed by its pid when the test ends.
pub(crate) struct Sim {
    pub(crate) child: Child,
    pub(crate) address: SocketAddr,
    faults: SocketAddr,
}

impl Sim {
    pub(crate) fn start(more: &[&str]) -> Sim {
        let mut child = Command::new(env!("CARGO_BIN_EXE_forebay"))
            .args(["sim", "--served-model-name", "tiny", "--port", "0", "--fault-port", "0"])
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        let mut address = || {
            let line = lines.next().unwrap();
            line.split("http://").nth(1).unwrap().split(['/', ',']).next().unwrap().parse().unwrap()
        };
        let (address, faults) = (address(), address());
        Sim { child, address, faults }
    }

    fn open(&self) -> Conn {
        Conn::open(self.address)
    }

    fn ask(&self, body: &str) -> Answer {
        self.open().ask(&post(CHAT, &[], body.as_bytes()))
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        self.open().ask(format!("GET {path} HTTP/1.1\r\nhost: sim\r\n\r\n").as_bytes())
    }

    /// Orders a fault, by the port that none closes.
    fn order(&self, fault: &str) -> Value {
        let answer = Conn::open(self.faults).ask(&post("/sim/fault", &[], fault.as_bytes()));
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()
    }

    /// A stream that has its first token.
    fn running(&self) -> Conn {
        let mut stream = self.open();
        stream.send(&post(CHAT, &[], LONG.as_bytes()));
        stream.until("\"content\":\" ");
        stream
    }

    fn refuses(&self) -> bool {
        TcpStream::connect(self.address).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
    }
}

impl Drop for Sim {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// What a real vLLM said: status, content type, and the body with its chunks joined.
fn recorded(name: &str) -> (u16, Option<String>, String) {
    let text = std::fs::read_to_string(format!("tests/fixtures/vllm-0.32.0/http/{name}.response")).unwrap();
    let (head, mut rest) = text.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let kind = head.lines().find_map(|line| line.strip_prefix("content-type: ")).map(str::to_owned);
    if !head.contains("chunked") {
        return (status, kind, rest.to_owned());
    }
    let mut body = String::new();
    while let Some((size, after)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap();
        body.push_str(&after[..size]);
        rest = &after[size + 2..];
    }
    (status, kind, body)
}

fn same(answer: &Answer, recording: &str) {
    let (status, kind, body) = recorded(recording);
    assert_eq!((answer.status, answer.text(), answer.end), (status, body, End::Whole), "{recording}");
    let found = answer.headers.iter().find(|(name, _)| name == "content-type").map(|(_, kind)| kind.clone());
    assert_eq!(found, kind, "{recording}");
}

fn has(answer: &Answer, header: &str) -> bool {
    answer.headers.iter().any(|(name, _)| name == header)
}

#[test]
fn refusals_are_those_of_the_recordings_and_the_health_stays_good() {
    let sim = Sim::start(&[]);
    sim.order(r#"{"fault":"error_503"}"#);
    for body in [UNARY, STREAM] {
        let answer = sim.ask(body);
        same(&answer, "overflow-chat-503");
        assert!(!has(&answer, "retry-after"));
    }
    same(&sim.get("/health"), "overflow-health");
    sim.order(r#"{"fault":"error_event"}"#);
    same(&sim.ask(STREAM), "worker-killed-stream-second");
    same(&sim.ask(UNARY), "worker-killed-nonstream");
    sim.order(r#"{"fault":"error_500"}"#);
    let answer = sim.ask(STREAM);
    assert_eq!((answer.status, answer.json()["error"]["code"].clone()), (500, 500.into()));
    sim.order(r#"{"fault":"none"}"#);
    assert!(sim.ask(STREAM).text().ends_with("data: [DONE]\n\n"));
}

#[test]
fn a_draining_server_refuses_new_requests_and_ends_old_ones_well() {
    let sim = Sim::start(&["--time-scale", "0.1"]);
    let mut stream = sim.open();
    let body = LONG.replace("3000", "30");
    stream.send(&post(CHAT, &[], body.as_bytes()));
    stream.until("\"content\":\" ");
    sim.order(r#"{"fault":"draining"}"#);
    same(&sim.ask(UNARY), "drain-new-chat-500-1");
    same(&sim.ask(STREAM), "drain-new-chat-stream-500-1");
    assert_eq!(sim.get("/health").status, 200);
    let answer = stream.answer();
    assert_eq!(answer.end, End::Whole);
    assert!(answer.text().ends_with("data: [DONE]\n\n"));
}

#[test]
fn a_connection_is_refused_closed_reset_cut_or_answered_with_no_http() {
    let sim = Sim::start(SLOWLY);
    let raw = || {
        let mut stream = TcpStream::connect(sim.address).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        // Where the connection is closed at once, this may fail.
        let _ = stream.write_all(&post(CHAT, &[], STREAM.as_bytes()));
        let mut bytes = Vec::new();
        let read = stream.read_to_end(&mut bytes).map(drop).map_err(|error| error.kind());
        (String::from_utf8(bytes).unwrap(), read)
    };
    sim.order(r#"{"fault":"reset"}"#);
    assert_eq!(raw(), (String::new(), Err(ErrorKind::ConnectionReset)));
    sim.order(r#"{"fault":"eof"}"#);
    let (bytes, read) = raw();
    assert!(bytes.starts_with("HTTP/1.1 200 OK\r\n") && bytes.ends_with("chunked\r\n\r\n"), "{bytes}");
    assert_eq!(read, Ok(()), "a FIN, no reset");
    sim.order(r#"{"fault":"malformed_head"}"#);
    let (bytes, _) = raw();
    assert!(bytes.starts_with("HTTP/1.1 two hundred"), "{bytes}");
    assert_eq!(sim.get("/health").status, 200, "what is no request for tokens is served");
    sim.order(r#"{"fault":"accept_and_close","count":2}"#);
    assert_eq!((raw().0, raw().0), (String::new(), String::new()));
    let mut running = sim.running();
    sim.order(r#"{"fault":"refuse"}"#);
    eventually("the port is closed", || sim.refuses().then_some(()));
    running.head();
    assert!(!running.chunk().unwrap().is_empty(), "what is under way goes on");
    sim.order(r#"{"fault":"none"}"#);
    eventually("the port is open", || (!sim.refuses()).then_some(()));
    assert_eq!(sim.ask(UNARY).status, 200);
}

#[test]
fn a_hung_engine_answers_its_health_and_moves_nothing() {
    let sim = Sim::start(SLOWLY);
    let mut running = sim.running();
    running.head();
    sim.order(r#"{"fault":"hang"}"#);
    let mut fresh = sim.open();
    fresh.send(&post(CHAT, &[], STREAM.as_bytes()));
    assert_eq!(fresh.head().status, 200);
    let before = sim.get("/metrics").text();
    assert!(before.contains("vllm:num_requests_running{engine=\"0\",model_name=\"tiny\"} 1.0"), "{before}");
    // What was made before the engine stopped may yet be on its way.
    eventually("the stream is silent", || {
        while running.received().contains("\r\n") {
            running.chunk().unwrap();
        }
        running.is_quiet_for(ms(60)).then_some(())
    });
    assert!(running.is_quiet_for(A_WHILE) && fresh.is_quiet_for(A_WHILE));
    assert_eq!(sim.get("/health").status, 200);
    assert_eq!(sim.get("/metrics").text(), before, "not even the count of steps");
    sim.order(r#"{"fault":"none"}"#);
    assert!(!running.chunk().unwrap().is_empty());
    fresh.until("data: [DONE]");
}

#[test]
fn a_dead_engine_ends_its_streams_then_its_health_then_its_port() {
    let sim = Sim::start(SLOWLY);
    let (mut stream, mut unary, mut idle) = (sim.running(), sim.open(), sim.open());
    unary.send(&post(CHAT, &[], LONG.replace(",\"stream\":true", "").as_bytes()));
    assert_eq!(idle.ask(b"GET /health HTTP/1.1\r\nhost: sim\r\n\r\n").status, 200);
    sim.order(r#"{"fault":"engine_death"}"#);
    let head = stream.head();
    let (body, end) = stream.body(&head);
    let body = String::from_utf8(body).unwrap();
    assert_eq!((head.status, end), (200, End::Whole));
    let (_, _, recording) = recorded("worker-killed-stream-second");
    assert!(body.ends_with(&recording) && body.contains("\"content\""), "{body}");
    same(&unary.answer(), "engine-killed-nonstream");
    idle.closed();
    eventually("the port is closed", || sim.refuses().then_some(()));
    sim.order(r#"{"fault":"none"}"#);
    eventually("the server is back", || (!sim.refuses()).then_some(()));
    assert_eq!(sim.ask(STREAM).status, 200);
    let line = "vllm:generation_tokens_total{engine=\"0\",model_name=\"tiny\"} 5.0";
    assert!(sim.get("/metrics").text().contains(line), "it is another process, which counts from 0");
}

/// The steps of an engine's death are 60 ms long, which a busy machine may miss: as often as it takes.
#[test]
fn the_health_of_a_dead_engine_is_a_503_before_the_port_closes() {
    let sim = Sim::start(&[]);
    eventually("a 503 from /health", || {
        sim.order(r#"{"fault":"engine_death"}"#);
        let mut bad = None;
        while !sim.refuses() {
            let Ok(mut stream) = TcpStream::connect(sim.address) else { break };
            let mut text = String::new();
            let _ = stream.write_all(b"GET /health HTTP/1.1\r\nhost: sim\r\nconnection: close\r\n\r\n");
            let _ = stream.read_to_string(&mut text);
            bad = bad.or((text.starts_with("HTTP/1.1 503") && text.contains("content-length: 0")).then_some(()));
        }
        sim.order(r#"{"fault":"none"}"#);
        eventually("the server is back", || (!sim.refuses()).then_some(()));
        bad
    });
}

#[test]
fn sigterm_closes_the_port_and_leaves_its_streams_without_an_end() {
    let sim = Sim::start(SLOWLY);
    let mut running = sim.running();
    sim.order(r#"{"fault":"sigterm"}"#);
    eventually("the port is closed", || sim.refuses().then_some(()));
    running.head();
    eventually("the stream is silent", || {
        while running.received().contains("\r\n") {
            running.chunk().unwrap();
        }
        running.is_quiet_for(ms(60)).then_some(())
    });
    assert!(running.is_quiet_for(A_WHILE), "no byte and no FIN");
    sim.order(r#"{"fault":"none"}"#);
    running.closed();
    assert!(!running.received().contains("error"), "the process is gone, and says nothing");
    eventually("the server is back", || (!sim.refuses()).then_some(()));
}

#[test]
fn metrics_hang_are_huge_nan_negative_or_renamed() {
    let sim = Sim::start(&[]);
    let samples = || {
        let text = sim.get("/metrics").text();
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        lines
            .map(|line| line.rsplit_once(' ').unwrap())
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect()
    };
    let good: Vec<(String, String)> = samples();
    sim.order(r#"{"fault":"metrics_nan"}"#);
    let nan: Vec<(String, String)> = samples();
    assert!(nan.len() == good.len() && nan.iter().all(|(_, value)| value == "NaN"));
    sim.order(r#"{"fault":"metrics_negative"}"#);
    assert!(samples().iter().all(|(_, value): &(String, String)| value.parse::<f64>().unwrap() < 0.0));
    sim.order(r#"{"fault":"metrics_renamed"}"#);
    let renamed: Vec<(String, String)> = samples();
    assert!(renamed.len() == good.len() && renamed.iter().all(|sample| good.iter().all(|known| known.0 != sample.0)));
    sim.order(r#"{"fault":"metrics_huge"}"#);
    let huge = sim.get("/metrics");
    assert!(huge.end == End::Whole && huge.body.len() > 50_000_000, "{}", huge.body.len());
    sim.order(r#"{"fault":"metrics_hang"}"#);
    let mut hanging = sim.open();
    hanging.send(b"GET /metrics HTTP/1.1\r\nhost: sim\r\n\r\n");
    assert!(hanging.is_quiet_for(A_WHILE));
    assert_eq!((sim.get("/health").status, sim.ask(UNARY).status), (200, 200));
}

#[test]
fn a_slow_engine_and_a_late_head_take_their_time_and_a_health_flaps() {
    let sim = Sim::start(&[]);
    let took = |body: &str| {
        let started = Instant::now();
        assert_eq!(sim.ask(body).status, 200);
        started.elapsed()
    };
    sim.order(r#"{"fault":"slow","factor":100}"#);
    assert!(took(UNARY) > ms(500), "five steps of a millisecond, each a hundred times as long");
    sim.order(r#"{"fault":"head_delay","delay_ms":300,"count":1}"#);
    assert!(took(STREAM) > ms(300));
    assert_eq!(sim.get("/sim/fault").json()["fault"], "none", "one was all");
    sim.order(r#"{"fault":"health_flapping","period_ms":30}"#);
    for status in [503, 200, 503] {
        eventually("the health changes", || (sim.get("/health").status == status).then_some(()));
    }
}

#[test]
fn a_fault_is_shown_and_an_unknown_one_is_refused_with_the_list() {
    let sim = Sim::start(&[]);
    let shown = sim.order(r#"{"fault":"error_500","count":2}"#);
    assert_eq!((&shown["fault"], &shown["count"], &shown["struck"]), (&"error_500".into(), &2.into(), &0.into()));
    let statuses: Vec<u16> = (0..3).map(|_| sim.ask(UNARY).status).collect();
    assert_eq!(statuses, [500, 500, 200]);
    let refused = sim.open().ask(&post("/sim/fault", &[], br#"{"fault":"explode"}"#));
    assert_eq!(refused.status, 400);
    let error = refused.json()["error"].as_str().unwrap().to_owned();
    let listed = sim.get("/sim/fault").json();
    for name in listed["faults"].as_object().unwrap().keys() {
        assert!(error.contains(name.as_str()), "{name}: {error}");
    }
    sim.order(r#"{"fault":"refuse","for_ms":50}"#);
    let over = || Conn::open(sim.faults).ask(b"GET /sim/fault HTTP/1.1\r\nhost: sim\r\n\r\n").json()["fault"] == "none";
    eventually("the fault is over", || over().then_some(()));
    eventually("the port is open again", || (!sim.refuses()).then_some(()));
    assert_eq!(sim.ask(UNARY).status, 200);
}
