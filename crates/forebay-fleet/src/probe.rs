//! A small HTTP client for what is asked of servers beside the requests of a load: a GET of `/metrics`, `/health`, `/v1/models`,
//! a POST of a document that a server counts or answers. It never waits past a deadline nor holds more than a limit, whatever
//! the server does. Probes have a client apart from the data plane's, since a connection lives on the runtime that opened it.

mod stream;

pub use stream::ProbeStream;

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::InvalidHeaderValue;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::obstacle::{mistrust, obstacle};
use crate::reach::{Endpoint, Socket, Wire};
use crate::telemetry::labels::ProbeFailure;
use forebay_core::error::{Failure, with_causes};

/// Time for which a connection is kept without a request. vLLM closes it after 5 s, and no request should meet that.
pub const POOL_IDLE: Duration = Duration::from_secs(4);

/// The reason for the failure of an exchange.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct ProbeError {
    /// The metric label.
    pub failure: ProbeFailure,
    /// For the log.
    pub detail: String,
    /// The port refused the connection: nobody listens there.
    pub refused: bool,
}

impl ProbeError {
    /// An error of this kind, in these words.
    #[must_use]
    pub fn new(failure: ProbeFailure, detail: impl Into<String>) -> ProbeError {
        ProbeError { failure, detail: detail.into(), refused: false }
    }
}

/// Returns the value of an `authorization` header that carries a key. Debug output does not show it.
///
/// # Errors
/// The key has characters that no header may have. The error does not show them.
pub fn bearer(key: &str) -> Result<HeaderValue, InvalidHeaderValue> {
    let mut value = HeaderValue::from_str(&format!("Bearer {key}"))?;
    // Also keeps it out of HTTP/2's tables of headers.
    value.set_sensitive(true);
    Ok(value)
}

/// The client. Clones share its connections.
#[derive(Clone, Debug)]
pub struct ProbeClient {
    http: Client<Connector, Full<Bytes>>,
    connector: Connector,
    idle: usize,
    /// The headers that each request has beside its own.
    headers: HeaderMap,
}

impl ProbeClient {
    /// A client that gives up connecting after so long.
    #[must_use]
    pub fn new(connect_timeout: Duration) -> ProbeClient {
        ProbeClient::keeping(connect_timeout, 2)
    }

    /// Returns a client that opens a connection for each exchange, which so shows whether anybody listens.
    #[must_use]
    pub fn knocking(connect_timeout: Duration) -> ProbeClient {
        ProbeClient::keeping(connect_timeout, 0)
    }

    /// Returns a client that keeps up to `idle` connections to a server between requests.
    #[must_use]
    pub fn keeping(connect_timeout: Duration, idle: usize) -> ProbeClient {
        ProbeClient::over(Connector { endpoint: None, limit: connect_timeout }, idle)
    }

    fn over(connector: Connector, idle: usize) -> ProbeClient {
        let http = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(POOL_IDLE)
            .pool_max_idle_per_host(idle)
            .build(connector.clone());
        ProbeClient { http, connector, idle, headers: HeaderMap::new() }
    }

    /// Turns to this endpoint, whatever host the URIs name. Nothing changes where it is the one that the client has.
    pub fn turn_to(&mut self, endpoint: &Arc<Endpoint>) {
        if self.connector.endpoint.as_ref().is_some_and(|own| Arc::ptr_eq(own, endpoint)) {
            return;
        }
        let connector = Connector { endpoint: Some(Arc::clone(endpoint)), ..self.connector.clone() };
        let headers = std::mem::take(&mut self.headers);
        *self = ProbeClient { headers, ..ProbeClient::over(connector, self.idle) };
    }

    /// Adds headers to each request, in place of its own of these names.
    #[must_use]
    pub fn with_headers(mut self, headers: HeaderMap) -> ProbeClient {
        self.headers.extend(headers);
        self
    }

    /// The status and the body, whole. Any status is an answer.
    ///
    /// # Errors
    /// No answer before `deadline`, one larger than `max_bytes`, or a broken connection.
    pub async fn get(
        &self,
        uri: Uri,
        key: Option<&str>,
        deadline: Duration,
        max_bytes: usize,
    ) -> Result<(StatusCode, Bytes), ProbeError> {
        let what = uri.path().to_owned();
        let answer = self.exchange(request(uri, key), max_bytes);
        within(deadline, &what, answer).await
    }

    /// The status and the body of the answer to a JSON document, whole. Any status is an answer.
    ///
    /// # Errors
    /// As [`ProbeClient::get`].
    pub async fn post(
        &self,
        uri: Uri,
        key: Option<&str>,
        json: String,
        deadline: Duration,
        max_bytes: usize,
    ) -> Result<(StatusCode, Bytes), ProbeError> {
        let what = uri.path().to_owned();
        let request = request(uri, key).map(|mut request| {
            *request.method_mut() = Method::POST;
            request.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            *request.body_mut() = Full::from(json);
            request
        });
        within(deadline, &what, self.exchange(request, max_bytes)).await
    }

    /// Asks like [`ProbeClient::get`], but takes only a 2xx for an answer.
    ///
    /// # Errors
    /// As [`ProbeClient::get`], and any other status.
    pub async fn get_ok(
        &self,
        uri: Uri,
        key: Option<&str>,
        deadline: Duration,
        max_bytes: usize,
    ) -> Result<Bytes, ProbeError> {
        let (status, body) = self.get(uri, key, deadline, max_bytes).await?;
        if status.is_success() {
            return Ok(body);
        }
        Err(ProbeError::new(ProbeFailure::Status, format!("status {}", status.as_u16())))
    }

    /// The answer to a request as it is, with its head and whole. Any status is an answer.
    ///
    /// # Errors
    /// As [`ProbeClient::get`].
    pub async fn send(
        &self,
        request: Request<Bytes>,
        deadline: Duration,
        max_bytes: usize,
    ) -> Result<Response<Bytes>, ProbeError> {
        let what = request.uri().path().to_owned();
        within(deadline, &what, self.answer(request.map(Full::new), max_bytes)).await
    }

    async fn exchange(
        &self,
        request: Result<Request<Full<Bytes>>, ProbeError>,
        max: usize,
    ) -> Result<(StatusCode, Bytes), ProbeError> {
        let (head, body) = self.answer(request?, max).await?.into_parts();
        Ok((head.status, body))
    }

    async fn answer(&self, request: Request<Full<Bytes>>, max: usize) -> Result<Response<Bytes>, ProbeError> {
        let (head, incoming) = self.begin(request).await?.into_parts();
        Ok(Response::from_parts(head, body(incoming, max).await?))
    }

    /// The head of an answer, whose body is still to be read.
    async fn begin(&self, mut request: Request<Full<Bytes>>) -> Result<Response<Incoming>, ProbeError> {
        let plain = request.uri().scheme() == Some(&http::uri::Scheme::HTTP);
        request.headers_mut().extend(self.headers.clone());
        self.http.request(request).await.map_err(|error| {
            if let Some(why) = mistrust(&error) {
                return ProbeError::new(ProbeFailure::Tls, why);
            }
            let failure = match obstacle(&error) {
                Some(Failure::Shortage) => ProbeFailure::Shortage,
                Some(_) if error.is_connect() => ProbeFailure::Unreachable,
                _ if error.is_connect() => ProbeFailure::Connect,
                _ => ProbeFailure::Broken,
            };
            let mut detail = with_causes(&error);
            // Bytes that are no HTTP, or none: so a server that wanted a handshake of TLS ends a plain connection.
            if failure == ProbeFailure::Broken && plain && is_no_http(&error) {
                detail.push_str("; if the server speaks TLS, its URL begins with https://");
            }
            ProbeError { failure, detail, refused: error.is_connect() && is_refusal(&error) }
        })
    }
}

/// Opens connections: to one endpoint, or to whatever the URI names.
#[derive(Clone, Debug)]
struct Connector {
    endpoint: Option<Arc<Endpoint>>,
    limit: Duration,
}

impl tower::Service<Uri> for Connector {
    type Response = TokioIo<ProbeIo>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<TokioIo<ProbeIo>>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let Connector { endpoint, limit } = self.clone();
        Box::pin(async move {
            let wire = match endpoint {
                Some(endpoint) => endpoint.connect(limit, |socket| socket).await?,
                None => {
                    let https = uri.scheme() == Some(&http::uri::Scheme::HTTPS);
                    let port = uri.port_u16().unwrap_or(if https { 443 } else { 80 });
                    let endpoint = Endpoint::of_host(uri.host().unwrap_or_default(), port, https);
                    endpoint.connect(limit, |socket| socket).await?
                }
            };
            Ok(TokioIo::new(ProbeIo(wire)))
        })
    }
}

/// A connection to a server.
struct ProbeIo(Wire<Socket>);

impl Connection for ProbeIo {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl AsyncRead for ProbeIo {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for ProbeIo {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

async fn within<T>(
    deadline: Duration,
    what: &str,
    answer: impl Future<Output = Result<T, ProbeError>>,
) -> Result<T, ProbeError> {
    let late = |_| ProbeError::new(ProbeFailure::Timeout, format!("{what} gave no answer within {deadline:?}"));
    tokio::time::timeout(deadline, answer).await.map_err(late)?
}

fn request(uri: Uri, key: Option<&str>) -> Result<Request<Full<Bytes>>, ProbeError> {
    let unusable = |error: http::Error| ProbeError::new(ProbeFailure::Unreadable, error.to_string());
    let mut request = Request::get(uri)
        .header(header::USER_AGENT, concat!("forebay/", env!("CARGO_PKG_VERSION")))
        .body(Full::default())
        .map_err(unusable)?;
    if let Some(key) = key {
        // Not said what is wrong with it: it is a secret.
        let value = bearer(key)
            .map_err(|_| ProbeError::new(ProbeFailure::Unreadable, "the backend's key cannot be sent in a header"))?;
        request.headers_mut().insert(header::AUTHORIZATION, value);
    }
    Ok(request)
}

async fn body(mut body: Incoming, max: usize) -> Result<Bytes, ProbeError> {
    let too_large = || ProbeError::new(ProbeFailure::TooLarge, format!("the answer is larger than {max} bytes"));
    // Refused before a byte is read, where the answer tells its length.
    if http_body::Body::size_hint(&body).lower() > max as u64 {
        return Err(too_large());
    }
    let mut whole = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| ProbeError::new(ProbeFailure::Broken, with_causes(&error)))?;
        let Ok(data) = frame.into_data() else { continue };
        // A chunked answer tells no length, and a backend may be anything.
        if whole.len() + data.len() > max {
            return Err(too_large());
        }
        whole.extend_from_slice(&data);
    }
    Ok(whole.freeze())
}

/// Returns whether what came was no answer of HTTP, or nothing at all.
fn is_no_http(error: &(dyn std::error::Error + 'static)) -> bool {
    let source = error.source().and_then(|source| source.downcast_ref::<hyper::Error>());
    source.is_some_and(|error| error.is_parse() || error.is_incomplete_message())
}

/// Returns whether a refused connection is among the causes.
fn is_refusal(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = error.source();
    while let Some(error) = cause {
        // Of a Unix socket: there is no file.
        let is_nobody = |kind| matches!(kind, io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound);
        if error.downcast_ref::<io::Error>().is_some_and(|io| is_nobody(io.kind())) {
            return true;
        }
        cause = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// A server that reads a request head, hands it back, and says `answer`; it keeps the connection open if told to.
    async fn server(answer: &'static [u8], hold: bool) -> (Uri, tokio::task::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let uri = format!("http://{}/metrics", listener.local_addr().unwrap()).parse().unwrap();
        let task = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            stream.write_all(answer).await.unwrap();
            if hold {
                std::future::pending::<()>().await;
            }
            String::from_utf8(head).unwrap()
        });
        (uri, task)
    }

    fn client() -> ProbeClient {
        ProbeClient::new(Duration::from_secs(5))
    }

    const LONG: Duration = Duration::from_secs(10);

    async fn failure(answer: &'static [u8], hold: bool, deadline: Duration, max: usize) -> ProbeFailure {
        let (uri, _task) = server(answer, hold).await;
        client().get_ok(uri, None, deadline, max).await.unwrap_err().failure
    }

    #[tokio::test]
    async fn the_body_comes_whole_and_the_key_is_sent() {
        let (uri, task) = server(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello", false).await;
        let answer = client().get(uri, Some("sk-1"), LONG, 5).await.unwrap();
        assert_eq!(answer, (StatusCode::OK, Bytes::from_static(b"hello")));
        let head = task.await.unwrap();
        assert!(head.starts_with("GET /metrics HTTP/1.1\r\n"), "{head}");
        assert!(head.contains("authorization: Bearer sk-1\r\n"), "{head}");
        assert!(!head.contains("accept-encoding"), "{head}");
    }

    #[tokio::test]
    async fn a_document_is_posted_as_json() {
        let (uri, task) = server(b"HTTP/1.1 404 No\r\ncontent-length: 2\r\n\r\nno", false).await;
        let answer = client().post(uri, None, "{}".to_owned(), LONG, 5).await.unwrap();
        assert_eq!(answer, (StatusCode::NOT_FOUND, Bytes::from_static(b"no")));
        let head = task.await.unwrap();
        assert!(head.starts_with("POST ") && head.contains("content-type: application/json\r\n"), "{head}");
        assert!(head.contains("content-length: 2\r\n"), "{head}");
    }

    #[tokio::test]
    async fn events_come_whole_wherever_the_bytes_are_cut_until_nobody_wants_more() {
        const HEAD: &str = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
        const CUT: &str =
            "a\r\ndata: one\n\r\n15\r\n\nevent: x\ndata: two\n\n\r\n11\r\n: note\n\ndata: 3\n\n\r\n0\r\n\r\n";
        let answer: &'static [u8] = [HEAD, CUT].concat().leak().as_bytes();
        for (wanted, expected) in [(usize::MAX, vec!["one", "two", "3"]), (2, vec!["one", "two"])] {
            let (uri, _task) = server(answer, true).await;
            let mut seen = Vec::new();
            let each = |data: &str| {
                seen.push(data.to_owned());
                seen.len() < wanted
            };
            assert_eq!(client().events(uri, None, LONG, 100, each).await, Ok(None));
            assert_eq!(seen, expected);
        }
        let (uri, _task) = server(answer, true).await;
        assert_eq!(client().events(uri, None, LONG, 5, |_| true).await.unwrap_err().failure, ProbeFailure::TooLarge);
        let (uri, _task) = server(b"HTTP/1.1 401 No\r\ncontent-length: 2\r\n\r\nno", false).await;
        let refused = client().events(uri, None, LONG, 100, |_| true).await;
        assert_eq!(refused, Ok(Some((StatusCode::UNAUTHORIZED, Bytes::from_static(b"no")))));
        let (uri, _task) = server(HEAD.as_bytes(), true).await;
        let silent = client().events(uri, None, Duration::from_millis(50), 100, |_| true).await;
        assert_eq!(silent.unwrap_err().failure, ProbeFailure::Timeout);
    }

    #[tokio::test]
    async fn headers_of_the_client_are_in_each_request() {
        let (uri, task) = server(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}", false).await;
        let headers = HeaderMap::from_iter([(header::AUTHORIZATION, bearer("sk-2").unwrap())]);
        client().with_headers(headers).post(uri, Some("sk-1"), "{}".to_owned(), LONG, 5).await.unwrap();
        let head = task.await.unwrap();
        assert!(head.contains("authorization: Bearer sk-2\r\n") && !head.contains("sk-1"), "{head}");
        assert!(head.contains("content-type: application/json\r\n"), "{head}");
        assert!(!format!("{:?}", bearer("sk-2")).contains("sk-2"));
    }

    #[tokio::test]
    async fn a_server_that_says_nothing_is_left_at_the_deadline() {
        assert_eq!(failure(b"", true, Duration::from_millis(50), 100).await, ProbeFailure::Timeout);
        let half = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhe";
        assert_eq!(failure(half, true, Duration::from_millis(50), 100).await, ProbeFailure::Timeout);
    }

    #[tokio::test]
    async fn a_large_answer_is_not_taken() {
        let declared = b"HTTP/1.1 200 OK\r\ncontent-length: 500000\r\n\r\n";
        assert_eq!(failure(declared, true, LONG, 100).await, ProbeFailure::TooLarge);
        let chunked = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n5\r\nhello\r\n";
        assert_eq!(failure(chunked, true, LONG, 9).await, ProbeFailure::TooLarge);
    }

    #[tokio::test]
    async fn other_failures_have_their_reason() {
        assert_eq!(
            failure(b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n", false, LONG, 9).await,
            ProbeFailure::Status
        );
        assert_eq!(
            failure(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhe", false, LONG, 9).await,
            ProbeFailure::Broken
        );
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let error = client().get_ok(format!("http://{closed}/").parse().unwrap(), None, LONG, 9).await.unwrap_err();
        assert_eq!(error.failure, ProbeFailure::Connect);
        assert!(error.detail.contains("refused") && error.refused, "{error}");
    }

    #[tokio::test]
    async fn a_key_that_is_no_header_is_not_shown() {
        let uri = Uri::from_static("http://127.0.0.1:1/");
        let error = client().get(uri, Some("sk\nsecret"), LONG, 9).await.unwrap_err();
        assert!(!format!("{error:?}").contains("secret"));
    }
}
