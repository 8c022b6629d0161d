//! The ticks of the proxies that are watched: one task a proxy reads its stream, and tries again when it is lost.

use std::sync::mpsc::Sender;
use std::time::Duration;

use http::{StatusCode, Uri};

use super::super::admin::{uri_of, wants_token};
use super::tick::Tick;
use forebay_fleet::probe::ProbeClient;

/// A proxy that does not answer is asked again after so long.
const AGAIN: Duration = Duration::from_secs(2);
/// A tick comes each second; later than this the stream is lost.
const SILENCE: Duration = Duration::from_secs(6);
/// A tick of a pool of a thousand backends has 2 MiB.
const MAX_TICK: usize = 64 << 20;

/// One thing that the screen is told.
#[derive(Debug)]
pub(super) enum News {
    /// The latest of the proxy with this number.
    Tick(usize, Box<Tick>),
    /// It cannot be watched now, and why.
    Lost(usize, String),
    /// A signal ends the command.
    End,
}

/// One proxy to be watched.
#[derive(Clone, Debug)]
pub(super) struct AdminStream {
    /// Its admin address, as it was written.
    pub(super) url: String,
    /// The stream of its ticks.
    pub(super) stream: Uri,
    /// Its token.
    pub(super) token: Option<String>,
}

impl AdminStream {
    /// Reads a URL of the command line.
    pub(super) fn parse(url: &str, token: Option<String>) -> Result<AdminStream, String> {
        let stream = uri_of(url, "/api/live/stream").map_err(|why| format!("--admin {why}"))?;
        Ok(AdminStream { url: url.trim_end_matches('/').to_owned(), stream, token })
    }

    /// Tells ticks until nobody listens; `number` says whose they are.
    pub(super) async fn follow(self, number: usize, tell: Sender<News>) {
        let client = ProbeClient::knocking(Duration::from_secs(3));
        loop {
            let why = self.read(&client, number, &tell).await;
            if tell.send(News::Lost(number, why)).is_err() {
                return;
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// Reads the stream to its end, and returns why it ended.
    async fn read(&self, client: &ProbeClient, number: usize, tell: &Sender<News>) -> String {
        let mut unlike = None;
        let each = |data: &str| match serde_json::from_str::<Tick>(data) {
            Ok(tick) => tell.send(News::Tick(number, Box::new(tick))).is_ok(),
            Err(error) => {
                unlike = Some(format!("it answers unlike this version: {error}"));
                false
            }
        };
        let ended = client.events(self.stream.clone(), self.token.as_deref(), SILENCE, MAX_TICK, each).await;
        if let Some(unlike) = unlike {
            return unlike;
        }
        match ended {
            Ok(None) => "the stream ended".to_owned(),
            Ok(Some((StatusCode::UNAUTHORIZED, _))) => format!("it {}", wants_token(self.token.is_some())),
            Ok(Some((status, body))) => {
                let answer: Option<serde_json::Value> = serde_json::from_slice(&body).ok();
                let words = answer.and_then(|answer| answer["error"]["message"].as_str().map(str::to_owned));
                format!("it answered {status}{}", words.map(|words| format!(": {words}")).unwrap_or_default())
            }
            Err(error) => format!("{error}; is this the admin address of a running proxy?"),
        }
    }
}
