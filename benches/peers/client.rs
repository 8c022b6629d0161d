//! The client that all contenders have: HTTP/1.1 connections, chat requests, and a reader that finds the events of a stream however
//! its bytes are cut.

use std::time::Duration;

use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::SendRequest;
use hyper::{Method, Request, Response, StatusCode, header};

use super::Fallible;
use super::tls::At;
use super::upstream::{MOMENT, Mode, monotonic};

/// The model of all requests but those of a disturbance.
pub(super) const MODEL: &str = "mock";
/// The model of those, which has servers of its own.
pub(super) const OTHER_MODEL: &str = "other";
/// Connections that are opened at once.
const AT_ONCE: usize = 64;
/// Time for one answer's head, and for one connection.
const PATIENCE: Duration = Duration::from_secs(30);

/// One kept-alive connection.
pub(super) struct Connection(SendRequest<Full<Bytes>>);

impl Connection {
    /// Connects to a contender.
    pub(super) async fn open(at: &At) -> Fallible<Connection> {
        let stream = tokio::time::timeout(PATIENCE, at.connect()).await??;
        let (client, connection) = hyper::client::conn::http1::handshake(stream).await?;
        tokio::spawn(connection);
        Ok(Connection(client))
    }

    /// Sends a request and waits for the head of a good answer.
    pub(super) async fn send(&mut self, request: Request<Full<Bytes>>) -> Fallible<Response<Incoming>> {
        let sending = async {
            self.0.ready().await?;
            self.0.send_request(request).await
        };
        let response = tokio::time::timeout(PATIENCE, sending).await.map_err(|_| "no answer came in 30 s")??;
        match response.status() {
            StatusCode::OK => Ok(response),
            status => Err(format!("an answer has the status {status}").into()),
        }
    }

    /// Sends a request and reads its whole answer.
    pub(super) async fn exchange(&mut self, request: Request<Full<Bytes>>) -> Fallible<Bytes> {
        let body = self.send(request).await?.into_body();
        let whole = tokio::time::timeout(PATIENCE, body.collect()).await.map_err(|_| "no end came in 30 s")??;
        Ok(whole.to_bytes())
    }

    /// Opens a stream and waits for its first bytes.
    pub(super) async fn stream(&mut self, mode: Mode) -> Fallible<Incoming> {
        let mut body = self.send(request(mode, "Tell me of queues, at length.")?).await?.into_body();
        let first = tokio::time::timeout(PATIENCE, body.frame()).await.map_err(|_| "no event came in 30 s")?;
        first.ok_or("a stream ended at once")??;
        Ok(body)
    }
}

/// Opens so many connections, each with a stream that has had its first event.
pub(super) async fn open_streams(at: &At, mode: Mode, number: usize) -> Fallible<Vec<(Connection, Incoming)>> {
    let mut streams = Vec::with_capacity(number);
    while streams.len() < number {
        let batch = (number - streams.len()).min(AT_ONCE);
        let opening: Vec<_> = (0..batch)
            .map(|_| {
                let at = at.clone();
                tokio::spawn(async move {
                    let mut connection = Connection::open(&at).await?;
                    let body = connection.stream(mode).await?;
                    Fallible::Ok((connection, body))
                })
            })
            .collect();
        for stream in opening {
            streams.push(stream.await??);
        }
    }
    Ok(streams)
}

/// Opens so many connections.
pub(super) async fn open_connections(at: &At, number: usize) -> Fallible<Vec<Connection>> {
    let mut all = Vec::with_capacity(number);
    for _ in 0..number {
        all.push(Connection::open(at).await?);
    }
    Ok(all)
}

/// A chat request. `text` is what the user says, without characters that JSON escapes.
pub(super) fn request(mode: Mode, text: &str) -> Fallible<Request<Full<Bytes>>> {
    Ok(post(MODEL, chat(MODEL, mode, text))?)
}

/// The body of a chat request for a model.
pub(super) fn chat(model: &str, mode: Mode, text: &str) -> Bytes {
    let stream = mode != Mode::Unary;
    Bytes::from(format!(
        "{{\"user\":\"{}\",\"model\":\"{model}\",\"stream\":{stream},\"max_tokens\":256,\"temperature\":0.7,\"messages\":[\
         {{\"role\":\"system\",\"content\":\"You are a careful assistant who answers in one short sentence.\"}},\
         {{\"role\":\"user\",\"content\":\"{text} Please keep to one sentence, and name your source.\"}}]}}",
        mode.word()
    ))
}

/// A chat request with a body that is there already, so that a large one is not made anew each time. nginx knows a model by the
/// host.
pub(super) fn post(model: &str, body: Bytes) -> Result<Request<Full<Bytes>>, hyper::http::Error> {
    Request::builder()
        .method(Method::POST)
        .uri("/v1/chat/completions")
        .header(header::HOST, model)
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(body))
}

/// A request of a page.
pub(super) fn get(path: &str) -> Result<Request<Full<Bytes>>, hyper::http::Error> {
    Request::builder().uri(path).header(header::HOST, "localhost").body(Full::default())
}

/// Finds the events of one stream.
#[derive(Default)]
pub(super) struct Events {
    rest: Vec<u8>,
}

impl Events {
    /// Reads some bytes. Calls `seen` for each event that they complete, with how long it was on its way; the end marker is none.
    pub(super) fn read(&mut self, data: &[u8], mut seen: impl FnMut(Duration)) {
        let now = monotonic();
        self.rest.extend_from_slice(data);
        let mut done = 0;
        while let Some(length) = memchr::memmem::find(&self.rest[done..], b"\n\n") {
            let event = &self.rest[done..done + length];
            let moment = event.get(MOMENT).and_then(|digits| std::str::from_utf8(digits).ok());
            if let Some(sent) = moment.and_then(|digits| u64::from_str_radix(digits, 16).ok()) {
                seen(Duration::from_nanos(now.saturating_sub(sent)));
            }
            done += length + 2;
        }
        self.rest.drain(..done);
    }
}
