//! One request of a load: sent, read to its end, timed. Notes the time of each piece of the answer before it looks at it.

use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client as HyperClient;
use hyper_util::client::legacy::connect::HttpConnector;

use forebay_core::clock::{Clock, Time};
use forebay_core::error::with_causes;

use super::answer::{AnswerEvent, AnswerReader};
use super::client::{ERROR_BYTES, Progress, Target};
use super::workload::Endpoint;
use crate::rows::record::{Outcome, Record};

/// A request to be sent.
#[derive(Clone)]
pub(super) struct Exchange {
    pub(super) http: HyperClient<HttpConnector, Full<Bytes>>,
    pub(super) clock: Clock,
    pub(super) headers: HeaderMap,
    pub(super) target: Target,
    pub(super) endpoint: Endpoint,
    pub(super) body: Bytes,
    pub(super) session: Option<(String, String)>,
    pub(super) begin: Time,
    pub(super) progress: Arc<Progress>,
    /// True if the text of the answer is wanted.
    pub(super) keep_text: bool,
}

/// The times and counts that are seen of a stream while it comes.
#[derive(Default)]
struct StreamTimes {
    first: Option<Time>,
    last: Option<Time>,
    token_events: u64,
    done: bool,
    error: Option<String>,
}

impl StreamTimes {
    fn note(&mut self, event: AnswerEvent, now: Time, sent: Time, record: &mut Record) {
        match event {
            AnswerEvent::Choice { token } => {
                match self.last {
                    // Of events and not of tokens: an event may hold several tokens, and nothing here knows when each was made.
                    Some(last) => record.gaps_us.push(micros(now, last)),
                    None => {
                        self.first = Some(now);
                        record.first_event_us = Some(micros(now, sent));
                    }
                }
                self.last = Some(now);
                if token {
                    self.token_events += 1;
                    // A first event may be the role alone. `vllm bench serve` counts it as the first token, so rows keep both
                    // times.
                    record.first_token_us.get_or_insert(micros(now, sent));
                }
            }
            AnswerEvent::Error(error) => self.error = Some(error),
            AnswerEvent::Done => self.done = true,
            AnswerEvent::Usage => {}
        }
    }
}

fn micros(now: Time, earlier: Time) -> u64 {
    now.as_micros().saturating_sub(earlier.as_micros())
}

/// A session as rows have it: its own value may tell more than which requests are of one.
fn hashed(session: &str) -> String {
    let mut hasher = std::hash::DefaultHasher::new();
    session.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

fn label(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
}

impl Exchange {
    /// Sends it, and returns its record filled in and the text of the answer, if that is wanted.
    pub(super) async fn run(mut self, mut record: Record) -> (Record, String) {
        let sent = self.clock.now();
        record.sent_us = micros(sent, self.begin);
        // What the caller said stands until an answer says better: a request that fails to connect has no headers, and still has
        // an arm.
        record.arm.clone_from(&self.target.arm);
        record.backend.clone_from(&self.target.backend);
        let mut reader = match self.keep_text {
            true => AnswerReader::keeping_text(self.endpoint.api()),
            false => AnswerReader::new(self.endpoint.api()),
        };
        if let Err((outcome, error)) = self.exchange(sent, &mut record, &mut reader).await {
            record.outcome = outcome;
            record.error = Some(error);
        }
        record.end_us = micros(self.clock.now(), sent);
        record.session = self.session.as_ref().map(|(_, value)| hashed(value));
        self.progress.done.fetch_add(1, Ordering::Relaxed);
        (record, reader.into_text())
    }

    /// Gives the body away: a prompt of a trace may be long, and its answer takes a while.
    fn request(&mut self) -> Result<Request<Full<Bytes>>, http::Error> {
        let uri = format!("{}{}", self.target.base, self.endpoint.path());
        let mut request =
            Request::builder().method(Method::POST).uri(uri).body(Full::new(std::mem::take(&mut self.body)))?;
        request.headers_mut().clone_from(&self.headers);
        if let Some((name, value)) = &self.session {
            request.headers_mut().insert(HeaderName::from_bytes(name.as_bytes())?, HeaderValue::from_str(value)?);
        }
        Ok(request)
    }

    async fn exchange(
        &mut self,
        sent: Time,
        record: &mut Record,
        reader: &mut AnswerReader,
    ) -> Result<(), (Outcome, String)> {
        let request = self.request().map_err(|error| (Outcome::Connect, error.to_string()))?;
        let response = self.http.request(request).await.map_err(|error| (Outcome::Connect, with_causes(&error)))?;
        record.status = Some(response.status().as_u16());
        // Who answered, which may be another than whom the request was meant for. Rows note the second only where the two
        // differ.
        record.arm = label(response.headers(), "x-forebay-arm").or(record.arm.take());
        record.assigned =
            label(response.headers(), "x-forebay-assigned-arm").filter(|arm| record.arm.as_ref() != Some(arm));
        record.backend = label(response.headers(), "x-forebay-backend").or(record.backend.take());
        let failed = !response.status().is_success();
        let mut body = response.into_body();
        let mut seen = StreamTimes::default();
        let mut text = Vec::new();
        while let Some(frame) = body.frame().await {
            // Before anything is parsed: what the parser costs would otherwise be a part of the server's latency.
            let now = self.clock.now();
            let frame = frame.map_err(|error| (Outcome::Truncated, with_causes(&error)))?;
            let Ok(data) = frame.into_data() else { continue };
            if failed {
                text.extend_from_slice(&data[..data.len().min(ERROR_BYTES - text.len())]);
                continue;
            }
            let before = seen.token_events;
            // All events of one read have one time. They were in the kernel together, and nothing tells them apart.
            reader.push(data, |event| seen.note(event, now, sent, record));
            self.progress.tokens.fetch_add(seen.token_events - before, Ordering::Relaxed);
        }
        if failed {
            return Err((Outcome::Status, String::from_utf8_lossy(&text).into_owned()));
        }
        let usage = reader.usage();
        record.cached_tokens = usage.and_then(|usage| usage.cached_tokens);
        record.prompt_tokens = usage.map_or(0, |usage| usage.prompt_tokens);
        // The server's count where it gives one: an event may hold several tokens, or none that can be shown yet.
        record.output_tokens = usage.map_or(seen.token_events, |usage| usage.completion_tokens);
        // vLLM ends a stream with an error event and a normal end marker. By the status alone it would be a success.
        if let Some(error) = seen.error {
            return Err((Outcome::ErrorEvent, error));
        }
        if !seen.done || seen.first.is_none() {
            return Err((Outcome::Truncated, "the stream ended without its end marker or without a choice".to_owned()));
        }
        record.outcome = Outcome::Success;
        Ok(())
    }
}
