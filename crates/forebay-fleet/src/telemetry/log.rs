//! The access log: one line for each request, JSON or text, through a `LineWriter`, so that it never makes a request wait.
//! Strings that a client chose are cut to a length and have their control characters escaped, so that no request can forge a
//! line or drive a terminal.
//!
//! Hot path: `AccessLog::write` is one push; formatting and the system call happen in the writer, at most 50 times a second.

use std::fmt::Write as _;
use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ::metrics::Counter;

use super::labels::{Outcome, TokenSource};
use super::writer::{Line, LineWriter, Manner};
use forebay_core::routing::split::Session;

/// The writer gathers for so long before it writes, so that a busy proxy is not woken for every request.
const LINGER: Duration = Duration::from_millis(20);
/// Characters of a string that a client chose.
const CLIENT_TEXT: usize = 256;

/// The format of lines, here and in the trace.
pub use crate::config::model::LogFormat as Format;

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
    /// Its session, as the salted hash by which arms are assigned: equal for requests of one session, and telling nothing else.
    pub session: Option<Session>,
    /// The status sent to the client; 499 if it left.
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
        let session = self.session.as_ref().map(Session::to_string);
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
            ("session", session.as_deref()),
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
    // A space or `=` in a client's text would read as the next field of the line.
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

/// A record and the wall time of its end.
#[derive(Debug)]
struct Entry {
    at: SystemTime,
    record: Box<AccessRecord>,
    format: Format,
}

impl Line for Entry {
    fn size(&self) -> usize {
        let words = [&self.record.model, &self.record.client_key].into_iter().flatten();
        let chosen: usize = words.map(|word| word.len()).sum();
        // The other words are the operator's.
        512 + chosen + self.record.request_id.len() + self.record.path.len() + self.record.method.len()
    }

    fn append_to(&self, text: &mut Vec<u8>) {
        let line = match self.format {
            Format::Text => self.record.to_text_line(self.at),
            Format::Json => self.record.to_json_line(self.at),
        };
        text.extend_from_slice(line.as_bytes());
    }
}

/// The way of access records to their writer. Clones share one writer, which ends with the last of them.
#[derive(Clone, Debug)]
pub struct AccessLog(Option<(LineWriter<Entry>, Format)>);

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
        let tell = |lost| tracing::warn!(lost, "lines of the access log are lost: its reader does not keep up");
        let manner = Manner { name: "access-log", linger: LINGER, lost: dropped, tell };
        Ok(AccessLog(Some((LineWriter::start(sink, manner)?, format))))
    }

    /// Returns whether records are written at all, so that none need be made.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Takes a record. Never waits for the sink.
    pub fn write(&self, record: AccessRecord) {
        if let Some((writer, format)) = &self.0 {
            // The time is taken here, since the thread may write the line much later.
            writer.push(Entry { at: SystemTime::now(), record: Box::new(record), format: *format });
        }
    }

    /// Lets the writer open its file again, also if no line comes.
    pub fn reopen(&self) {
        if let Some((writer, _)) = &self.0 {
            writer.poke();
        }
    }

    /// Waits until everything taken so far is written, but no longer than `limit`. For the end of the process; blocks the
    /// thread. False: the limit came first.
    #[must_use]
    pub fn flush(&self, limit: Duration) -> bool {
        self.0.as_ref().is_none_or(|(writer, _)| writer.flush(limit))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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
            session: None,
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
    fn every_field_is_in_the_document_and_so_is_whether_it_can_be_absent() {
        let whole = AccessRecord {
            client_key: Some("team".into()),
            session: Some(forebay_core::routing::split::Split::new("s", [("tp2".to_owned(), 1.0)]).session("alice")),
            tpot: Some(Duration::from_millis(20)),
            ..record("m")
        };
        let bare = AccessRecord {
            client: None,
            client_key: None,
            model: None,
            pool: None,
            arm: None,
            assigned_arm: None,
            backend: None,
            session: None,
            wait: None,
            ttft: None,
            tpot: None,
            prompt_tokens: None,
            output_tokens: None,
            ..record("m")
        };
        let keys = |record: &AccessRecord| {
            let mut keys = vec!["time"];
            record.fields(&mut |key, _| keys.push(key));
            keys
        };
        let document = include_str!("../../../../docs/operations.md");
        let section = document.split_once("### Fields of the access log\n").unwrap().1.split_once("\n### ").unwrap().0;
        let rows: Vec<Vec<&str>> = section
            .lines()
            .filter(|line| line.starts_with("| `"))
            .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
            .collect();
        let names: Vec<&str> = rows.iter().map(|row| row[0].trim_matches('`')).collect();
        assert_eq!(names, keys(&whole), "the fields of a line, in their order");
        let never: Vec<&str> =
            rows.iter().filter(|row| row[3] == "never").map(|row| row[0].trim_matches('`')).collect();
        assert_eq!(never, keys(&bare), "the fields that every line has");
        assert!(rows.iter().all(|row| row.len() == 4 && !row[1].is_empty() && !row[3].is_empty()), "{rows:?}");
    }

    #[test]
    fn a_session_is_a_hash_that_is_the_same_for_its_requests_and_another_with_another_salt() {
        let line = |salt: &str, session: &str| {
            let split = forebay_core::routing::split::Split::new(salt, [("tp2".to_owned(), 1.0)]);
            let record = AccessRecord { session: Some(split.session(session)), ..record("m") };
            let json: serde_json::Value = serde_json::from_str(&record.to_json_line(SystemTime::UNIX_EPOCH)).unwrap();
            json["session"].as_str().unwrap().to_owned()
        };
        let alice = line("salt", "alice");
        assert!(alice.len() == 16 && alice.bytes().all(|byte| byte.is_ascii_hexdigit()), "{alice}");
        assert_eq!(line("salt", "alice"), alice);
        assert!(line("salt", "bob") != alice && line("pepper", "alice") != alice);
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
    fn a_log_that_is_off_takes_records() {
        AccessLog::off().write(record("m"));
        assert!(AccessLog::off().flush(Duration::ZERO));
    }
}
