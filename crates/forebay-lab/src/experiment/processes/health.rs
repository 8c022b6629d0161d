//! Whether a starting server is ready, and whether it will ever be. What is known of vLLM here: an engine that failed can leave
//! its server hanging without a word, so a log that has an exception in it and then falls silent is an end.

use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use http::StatusCode;

use forebay_core::clock::Time;
use forebay_fleet::config::model::BackendUrl;
use forebay_fleet::probe::ProbeClient;

const ANSWER: Duration = Duration::from_secs(2);
const CONNECT: Duration = Duration::from_millis(500);
const MOST_BYTES: usize = 1 << 20;
/// Silence after an engine said that it failed.
const SILENCE_FAILED: Duration = Duration::from_secs(20);
/// Silence after some exception; a compilation, too, is silent for a while.
const SILENCE_EXCEPTION: Duration = Duration::from_secs(80);

/// Returns whether a path answers 200.
pub(super) async fn answers(client: &ProbeClient, url: &BackendUrl, path: &str) -> bool {
    let Ok(uri) = format!("{url}{path}").parse() else { return false };
    matches!(client.get(uri, None, ANSWER, MOST_BYTES).await, Ok((StatusCode::OK, _)))
}

/// Returns whether somebody listens there already.
pub(super) fn is_taken(url: &BackendUrl) -> bool {
    let uri = url.uri();
    let (Some(host), port) = (uri.host(), uri.port_u16().unwrap_or(80)) else { return false };
    let addresses = (host.trim_matches(['[', ']']), port).to_socket_addrs();
    addresses.into_iter().flatten().any(|address| TcpStream::connect_timeout(&address, CONNECT).is_ok())
}

/// Watches a log for the silence after an exception.
#[derive(Debug)]
pub(super) struct Silence {
    length: u64,
    since: Time,
}

impl Silence {
    /// From now on.
    pub(super) fn since(now: Time) -> Silence {
        Silence { length: 0, since: now }
    }

    /// Returns whether a server whose log is so long hangs; `read` gives its end.
    pub(super) fn is_final(&mut self, length: u64, read: impl FnOnce() -> String, now: Time) -> bool {
        // By the log's length and not its text: vLLM writes while it loads and compiles, for minutes, and the file may be large.
        if length != self.length {
            *self = Silence { length, since: now };
            return false;
        }
        let silent = now.since(self.since);
        if silent <= SILENCE_FAILED {
            return false;
        }
        let log = read();
        let failed = |line: &str| {
            // The lines of an engine that died while the API server waits for it. Other tracebacks may be warnings.
            (line.contains("WorkerProc") || line.contains("EngineCore"))
                && (line.contains("exception") || line.contains("failed"))
        };
        log.lines().any(failed)
            || log.contains("Exception in thread")
            || silent > SILENCE_EXCEPTION && log.contains("Traceback (most recent call last)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_after_an_exception_is_final_and_silence_alone_is_not() {
        let at = |seconds: u64| Time::from_micros(seconds * 1_000_000);
        let final_after = |log: &str, seconds: u64| {
            let mut silence = Silence::since(at(0));
            let length = log.len() as u64;
            assert!(!silence.is_final(length, || log.to_owned(), at(1)), "it has just spoken");
            silence.is_final(length, || log.to_owned(), at(1 + seconds))
        };
        assert!(!final_after("compiling", 600));
        assert!(final_after("(EngineCore pid=1) ERROR EngineCore failed to start.", 21));
        assert!(!final_after("(EngineCore pid=1) ERROR EngineCore failed to start.", 19));
        assert!(final_after("Traceback (most recent call last):", 81));
        assert!(!final_after("Traceback (most recent call last):", 60));
    }
}
