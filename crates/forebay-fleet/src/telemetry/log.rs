//! The access log: one line for each request, JSON or text, written by a thread of its own. It must never make a request
//! wait: a record that finds the queue full (its reader is stuck) is dropped and counted. Strings that a client chose are cut
//! to a length and have their control characters escaped, so that no request can forge a line or drive a terminal.
//!
//! Hot path: `AccessLog::write` is one push under a mutex that the writer holds for a swap only; formatting and the system
//! call happen in the writer, at most 50 times a second.

use std::fmt::Write as _;
use std::io::Write;
use std::net::SocketAddr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use ::metrics::Counter;

use super::labels::{Outcome, TokenSource};

/// Records that wait for the writer; more are dropped. About 16 MiB at worst.
const CAPACITY: usize = 16_384;
/// The writer gathers for so long before it writes, so that a busy proxy is not woken for every request.
const LINGER: Duration = Duration::from_millis(20);
/// Characters of a string that a client chose.
const CLIENT_TEXT: usize = 256;

/// The format of lines, here and in the trace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// For people: `key=value`.
    #[default]
    Text,
    /// For machines: one JSON object a line.
    Json,
}

impl std::str::FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Format, String> {
        match text {
            "text" => Ok(Format::Text),
            "json" => Ok(Format::Json),
            other => Err(format!("`{other}` is no log format; write \"text\" or \"json\"")),
        }
    }
}

/// The facts about one request. Absent figures are left out of the line.
#[derive(Clone, Debug)]
pub struct AccessRecord {
    /// `x-request-id`, taken or made.
    pub request_id: Arc<str>,
    /// The peer of the connection.
    pub client: Option<SocketAddr>,
    /// The name of the client's key, never the key.
    pub client_key: Option<Arc<str>>,
    /// HTTP method.
    pub method: Arc<str>,
    /// Path without its query.
    pub path: Arc<str>,
    /// The model that the client named.
    pub model: Option<Arc<str>>,
    /// The pool that served it.
    pub pool: Option<Arc<str>>,
    /// The arm that served it.
    pub arm: Option<Arc<str>>,
    /// The arm that it was assigned to.
    pub assigned_arm: Option<Arc<str>>,
    /// The backend that served it.
    pub backend: Option<Arc<str>>,
    /// The status sent to the client; 499 if it left before one was.
    pub status: u16,
    /// The way in which it ended.
    pub outcome: Outcome,
    /// Attempts made on backends.
    pub attempts: u32,
    /// A stream was asked for.
    pub stream: bool,
    /// Time in the wait room, if it was there.
    pub wait: Option<Duration>,
    /// Arrival to first token.
    pub ttft: Option<Duration>,
    /// Time per output token after the first.
    pub tpot: Option<Duration>,
    /// Arrival to end.
    pub e2e: Duration,
    /// Prompt tokens, from usage.
    pub prompt_tokens: Option<u64>,
    /// Output tokens, and what counted them.
    pub output_tokens: Option<(u64, TokenSource)>,
}

enum Value<'a> {
    Word(&'a str),
    Number(u64),
    Millis(Duration),
    Flag(bool),
}

impl AccessRecord {
    /// The line as JSON, with its line feed. `at` is the wall time of the end.
    #[must_use]
    pub fn to_json_line(&self, at: SystemTime) -> String {
        let mut line = format!("{{\"time\":\"{}\"", humantime::format_rfc3339_millis(at));
        self.fields(&mut |key, value| {
            let _ = write!(line, ",\"{key}\":");
            match value {
                Value::Word(word) => push_quoted(&mut line, word),
                value => push_plain(&mut line, &value),
            }
        });
        line.push_str("}\n");
        line
    }

    /// The line as text, with its line feed.
    #[must_use]
    pub fn to_text_line(&self, at: SystemTime) -> String {
        let mut line = humantime::format_rfc3339_millis(at).to_string();
        self.fields(&mut |key, value| {
            let _ = write!(line, " {key}=");
            match value {
                Value::Word(word) if needs_quotes(word) => push_quoted(&mut line, word),
                value => push_plain(&mut line, &value),
            }
        });
        line.push('\n');
        line
    }

    /// Every field that is there, in the order of the line.
    fn fields(&self, visit: &mut dyn FnMut(&'static str, Value<'_>)) {
        let client = self.client.map(|client| client.to_string());
        visit("status", Value::Number(u64::from(self.status)));
        visit("outcome", Value::Word(self.outcome.label()));
        visit("method", Value::Word(&self.method));
        visit("path", Value::Word(&self.path));
        let words = [
            ("client", client.as_deref()),
            ("client_key", self.client_key.as_deref()),
            ("model", self.model.as_deref()),
            ("pool", self.pool.as_deref()),
            ("arm", self.arm.as_deref()),
            ("assigned_arm", self.assigned_arm.as_deref()),
            ("backend", self.backend.as_deref()),
        ];
        for (key, word) in words {
            if let Some(word) = word {
                visit(key, Value::Word(word));
            }
        }
        visit("attempts", Value::Number(u64::from(self.attempts)));
        visit("stream", Value::Flag(self.stream));
        let times =
            [("wait_ms", self.wait), ("ttft_ms", self.ttft), ("tpot_ms", self.tpot), ("e2e_ms", Some(self.e2e))];
        for (key, time) in times {
            if let Some(time) = time {
                visit(key, Value::Millis(time));
            }
        }
        if let Some(tokens) = self.prompt_tokens {
            visit("prompt_tokens", Value::Number(tokens));
        }
        if let Some((tokens, source)) = self.output_tokens {
            visit("output_tokens", Value::Number(tokens));
            visit("token_source", Value::Word(source.label()));
        }
        visit("request_id", Value::Word(&self.request_id));
    }
}

// Writing into a String does not fail.
fn push_plain(line: &mut String, value: &Value<'_>) {
    let _ = match value {
        Value::Word(word) => write!(line, "{word}"),
        Value::Number(number) => write!(line, "{number}"),
        Value::Millis(time) => write!(line, "{:.3}", time.as_secs_f64() * 1e3),
        Value::Flag(flag) => write!(line, "{flag}"),
    };
}

fn needs_quotes(word: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\\' | b'=');
    word.is_empty() || word.len() > CLIENT_TEXT || !word.bytes().all(plain)
}

/// Appends `word` as a JSON string, which text lines use too, cut after [`CLIENT_TEXT`] characters.
///
/// Written by hand because serde_json leaves C1 controls (a terminal obeys U+009B), line separators and bidi marks as they are.
fn push_quoted(line: &mut String, word: &str) {
    line.push('"');
    for (i, c) in word.chars().enumerate() {
        match c {
            _ if i == CLIENT_TEXT => {
                line.push('…');
                break;
            }
            '"' => line.push_str("\\\""),
            '\\' => line.push_str("\\\\"),
            c if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}') => {
                let _ = write!(line, "\\u{:04x}", u32::from(c));
            }
            c => line.push(c),
        }
    }
    line.push('"');
}

/// A sink for access records. Clones share one writer, which ends with the last of them.
#[derive(Clone, Debug)]
pub struct AccessLog(Option<Arc<Open>>);

#[derive(Debug)]
struct Open {
    shared: Arc<Shared>,
    dropped: Counter,
}

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    /// For the writer: there are records, or someone flushes or closes.
    work: Condvar,
    /// For flushers: everything taken is written.
    idle: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    records: Vec<(SystemTime, Box<AccessRecord>)>,
    /// The writer has taken records that it has not written yet.
    writing: bool,
    /// Someone waits: do not linger.
    hurry: bool,
    closed: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AccessLog {
    /// A log that writes nothing.
    #[must_use]
    pub const fn off() -> AccessLog {
        AccessLog(None)
    }

    /// Starts the writer thread. `dropped` counts the lines lost to a full queue or to a sink that fails.
    ///
    /// # Errors
    /// The thread could not be started.
    pub fn start(format: Format, sink: Box<dyn Write + Send>, dropped: Counter) -> std::io::Result<AccessLog> {
        let shared = Arc::new(Shared::default());
        let (theirs, lost) = (Arc::clone(&shared), dropped.clone());
        let body = move || write_all(&theirs, format, sink, &lost);
        std::thread::Builder::new().name("access-log".into()).spawn(body)?;
        Ok(AccessLog(Some(Arc::new(Open { shared, dropped }))))
    }

    /// Returns whether records are written at all, so that none need be made.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Takes a record. Never waits for the sink.
    pub fn write(&self, record: AccessRecord) {
        let Some(open) = &self.0 else { return };
        // The time of the end, not of the writing, which may be later. Boxed: the queue moves a pointer under the lock.
        let record = (SystemTime::now(), Box::new(record));
        let mut queue = open.shared.lock();
        // A reader that does not keep up costs lines and never a request.
        if queue.records.len() >= CAPACITY {
            drop(queue);
            open.dropped.increment(1);
            return;
        }
        queue.records.push(record);
        // The writer is woken once for a batch, not for each line.
        let first = queue.records.len() == 1;
        drop(queue);
        if first {
            open.shared.work.notify_one();
        }
    }

    /// Waits until everything taken so far is written, but no longer than `limit`. For the end of the process; blocks the
    /// thread. False: the limit came first.
    #[must_use]
    pub fn flush(&self, limit: Duration) -> bool {
        let Some(open) = &self.0 else { return true };
        let mut queue = open.shared.lock();
        // The writer waits a moment for more. Nobody who flushes should wait with it.
        queue.hurry = true;
        open.shared.work.notify_one();
        let busy = |queue: &mut Queue| queue.writing || !queue.records.is_empty();
        let waited = open.shared.idle.wait_timeout_while(queue, limit, busy);
        let (mut queue, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        queue.hurry = false;
        !timeout.timed_out()
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.work.notify_one();
    }
}

/// The writer thread. Ends when the log is closed and everything is written.
fn write_all(shared: &Shared, format: Format, mut sink: Box<dyn Write + Send>, lost: &Counter) {
    let mut text = Vec::new();
    loop {
        let queue = shared.lock();
        let idle = |queue: &mut Queue| queue.records.is_empty() && !queue.closed;
        let queue = shared.work.wait_while(queue, idle).unwrap_or_else(PoisonError::into_inner);
        // One write for many lines, since a system call costs more than a line.
        let early = |queue: &mut Queue| !queue.hurry && !queue.closed && queue.records.len() < CAPACITY / 2;
        let waited = shared.work.wait_timeout_while(queue, LINGER, early);
        let (mut queue, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let records = std::mem::take(&mut queue.records);
        // The records are out of the queue and not written yet: a flush must wait for them as well.
        queue.writing = true;
        let closed = queue.closed;
        drop(queue);
        for batch in records.chunks(256) {
            text.clear();
            for (at, record) in batch {
                let line = match format {
                    Format::Text => record.to_text_line(*at),
                    Format::Json => record.to_json_line(*at),
                };
                text.extend_from_slice(line.as_bytes());
            }
            // A reader that has gone is no reason to stop the proxy.
            if sink.write_all(&text).and_then(|()| sink.flush()).is_err() {
                lost.increment(batch.len() as u64);
            }
        }
        let mut queue = shared.lock();
        queue.writing = false;
        shared.idle.notify_all();
        if closed && queue.records.is_empty() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::telemetry::recorder::{Def, Kind, Registry, Text};
    use forebay_core::error::Failure;

    fn record(model: &str) -> AccessRecord {
        AccessRecord {
            request_id: "r-1".into(),
            client: Some(SocketAddr::from(([127, 0, 0, 1], 5000))),
            client_key: None,
            method: "POST".into(),
            path: "/v1/chat/completions".into(),
            model: Some(model.into()),
            pool: Some("m".into()),
            arm: Some("tp2".into()),
            assigned_arm: Some("tp1x2".into()),
            backend: Some("127.0.0.1:8001".into()),
            status: 200,
            outcome: Outcome::Success,
            attempts: 1,
            stream: true,
            wait: Some(Duration::from_millis(30)),
            ttft: Some(Duration::from_micros(41_250)),
            tpot: None,
            e2e: Duration::from_secs(2),
            prompt_tokens: Some(7),
            output_tokens: Some((16, TokenSource::Usage)),
        }
    }

    /// A sink that hands on what it got, or is stuck until it is let go.
    struct Sink(mpsc::Sender<Vec<u8>>, Option<mpsc::Receiver<()>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            if let Some(gate) = self.1.take() {
                let _ = gate.recv();
            }
            let _ = self.0.send(bytes.to_vec());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_have_their_fields_in_order() {
        let at = SystemTime::UNIX_EPOCH + Duration::from_millis(1500);
        assert_eq!(
            record("m").to_text_line(at),
            "1970-01-01T00:00:01.500Z status=200 outcome=success method=POST path=/v1/chat/completions \
             client=127.0.0.1:5000 model=m pool=m arm=tp2 assigned_arm=tp1x2 backend=127.0.0.1:8001 attempts=1 stream=true \
             wait_ms=30.000 ttft_ms=41.250 e2e_ms=2000.000 prompt_tokens=7 output_tokens=16 token_source=usage request_id=r-1\n"
        );
        assert_eq!(
            record("m\n\u{9b}\"").to_json_line(at),
            "{\"time\":\"1970-01-01T00:00:01.500Z\",\"status\":200,\"outcome\":\"success\",\"method\":\"POST\",\
             \"path\":\"/v1/chat/completions\",\"client\":\"127.0.0.1:5000\",\"model\":\"m\\u000a\\u009b\\\"\",\"pool\":\"m\",\
             \"arm\":\"tp2\",\"assigned_arm\":\"tp1x2\",\"backend\":\"127.0.0.1:8001\",\"attempts\":1,\"stream\":true,\
             \"wait_ms\":30.000,\"ttft_ms\":41.250,\"e2e_ms\":2000.000,\"prompt_tokens\":7,\"output_tokens\":16,\
             \"token_source\":\"usage\",\"request_id\":\"r-1\"}\n"
        );
        let json: serde_json::Value = serde_json::from_str(&record("m").to_json_line(at)).unwrap();
        assert_eq!(json["ttft_ms"], 41.25);
        assert_eq!(json["assigned_arm"], "tp1x2");
        assert_eq!(json["time"], "1970-01-01T00:00:01.500Z");
        assert!(json.get("tpot_ms").is_none());
    }

    #[test]
    fn a_client_s_words_cannot_forge_a_line() {
        let evil = "x\" status=500\n2026 \u{1b}[31m\u{9b}2J\u{202e}\\ é";
        for line in
            [record(evil).to_text_line(SystemTime::UNIX_EPOCH), record(evil).to_json_line(SystemTime::UNIX_EPOCH)]
        {
            assert_eq!(line.matches('\n').count(), 1);
            assert!(!line.trim_end().chars().any(|c| c.is_control() || c == '\u{202e}'), "{line}");
        }
        let json: serde_json::Value = serde_json::from_str(&record(evil).to_json_line(SystemTime::UNIX_EPOCH)).unwrap();
        assert_eq!(json["model"], evil);
    }

    #[test]
    fn a_long_word_is_cut() {
        let line = record(&"é".repeat(100_000)).to_json_line(SystemTime::UNIX_EPOCH);
        assert!(line.len() < 1500, "{}", line.len());
        assert!(line.contains('…'));
    }

    #[test]
    fn outcomes_have_the_words_of_the_metrics() {
        let mut left = record("m");
        left.outcome = Outcome::Failed(Failure::ClientLeft);
        assert!(left.to_text_line(SystemTime::UNIX_EPOCH).contains("outcome=client_left"));
    }

    #[test]
    fn flush_waits_for_what_was_taken() {
        let (tx, rx) = mpsc::channel();
        let log = AccessLog::start(Format::Text, Box::new(Sink(tx, None)), Counter::noop()).unwrap();
        log.write(record("one"));
        log.write(record("two"));
        assert!(log.flush(Duration::from_secs(10)));
        let text: Vec<u8> = rx.try_iter().flatten().collect();
        let text = String::from_utf8(text).unwrap();
        assert_eq!((text.lines().count(), text.contains("model=two")), (2, true));
    }

    #[test]
    fn a_stuck_reader_costs_lines_and_never_a_request() {
        static LOST: Def = Def { name: "lost_total", help: "Lost.", kind: Kind::Counter };
        static DEFS: &[&Def] = &[&LOST];
        let registry = Registry::new(DEFS);
        let (tx, rx) = mpsc::channel();
        let (release, gate) = mpsc::channel();
        let log = AccessLog::start(Format::Text, Box::new(Sink(tx, Some(gate))), registry.counter(&LOST, &[])).unwrap();
        for _ in 0..2 * CAPACITY + 10 {
            log.write(record("m"));
        }
        assert!(!log.flush(Duration::ZERO));
        let mut text = Text::default();
        registry.render(&mut text, |_| true);
        let lost: u64 = text.finish().trim_end().rsplit(' ').next().unwrap().parse().unwrap();
        assert!((10..=CAPACITY as u64 + 10).contains(&lost), "{lost}");
        release.send(()).unwrap();
        drop(log);
        let written: usize = rx.iter().map(|bytes| bytes.iter().filter(|byte| **byte == b'\n').count()).sum();
        assert_eq!(written as u64 + lost, 2 * CAPACITY as u64 + 10);
    }

    #[test]
    fn a_log_that_is_off_takes_records() {
        AccessLog::off().write(record("m"));
        assert!(AccessLog::off().flush(Duration::ZERO));
        assert_eq!("json".parse(), Ok(Format::Json));
        assert!("xml".parse::<Format>().unwrap_err().contains("xml"));
    }
}
