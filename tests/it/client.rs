//! Clients on sockets: HTTP/1.1 byte for byte, so that a test sees what was on the wire and how it ended; h2 through hyper.

use std::convert::Infallible;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::harness::{DEADLINE, ms};

/// How an answer's body ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// By its length, its last chunk or, with neither, by the close that must end it.
    Whole,
    /// By a close before that.
    Cut,
}

/// The head of an answer.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
}

/// An answer, read to its end.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Names in lower case.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    pub(crate) end: End,
}

fn find_header<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
}

impl Head {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        find_header(&self.headers, name)
    }
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        find_header(&self.headers, name)
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }
}

/// A POST of JSON with a length.
pub(crate) fn post(path: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut request = format!("POST {path} HTTP/1.1\r\nhost: forebay\r\ncontent-length: {}\r\n", body.len());
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-type")) {
        request.push_str("content-type: application/json\r\n");
    }
    for (name, value) in headers {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    request.push_str("\r\n");
    [request.as_bytes(), body].concat()
}

/// The same chunked, in pieces of this size.
pub(crate) fn post_chunked(path: &str, body: &[u8], piece: usize) -> Vec<u8> {
    let head = "host: forebay\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";
    let mut request = format!("POST {path} HTTP/1.1\r\n{head}").into_bytes();
    request.extend(chunked(body, piece));
    request
}

/// A body in chunks of this size, with the last one.
pub(crate) fn chunked(body: &[u8], piece: usize) -> Vec<u8> {
    let mut framed = Vec::with_capacity(body.len() + body.len() / piece * 8 + 16);
    for piece in body.chunks(piece) {
        framed.extend(format!("{:x}\r\n", piece.len()).bytes());
        framed.extend(piece);
        framed.extend(b"\r\n");
    }
    framed.extend(b"0\r\n\r\n");
    framed
}

/// An HTTP/1.1 connection.
pub(crate) struct Conn {
    stream: TcpStream,
    buffer: Vec<u8>,
    ended: bool,
}

impl Conn {
    pub(crate) fn open(address: SocketAddr) -> Conn {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.set_write_timeout(Some(DEADLINE)).unwrap();
        Conn { stream, buffer: Vec::new(), ended: false }
    }

    /// A connection whose answers may take as long as a server is blocked.
    pub(crate) fn open_patient(address: SocketAddr) -> Conn {
        let conn = Conn::open(address);
        conn.stream.set_read_timeout(Some(DEADLINE * 4)).unwrap();
        conn
    }

    /// A connection that can hold little: a client that stops reading is noticed soon.
    pub(crate) fn open_narrow(address: SocketAddr) -> Conn {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        socket.connect(&address.into()).unwrap();
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        Conn { stream, buffer: Vec::new(), ended: false }
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// Sends as far as the peer takes it; whether all was taken.
    pub(crate) fn try_send(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).is_ok()
    }

    /// No more requests: FIN, the answer is still read.
    pub(crate) fn half_close(&self) {
        self.stream.shutdown(Shutdown::Write).unwrap();
    }

    /// Leaves with a reset.
    pub(crate) fn reset(self) {
        SockRef::from(&self.stream).set_linger(Some(Duration::ZERO)).unwrap();
    }

    /// Sends a request and reads its answer.
    pub(crate) fn ask(&mut self, request: &[u8]) -> Answer {
        self.send(request);
        self.answer()
    }

    /// Reads once; false at the end, by FIN or reset.
    fn fill(&mut self) -> bool {
        if self.ended {
            return false;
        }
        let mut piece = [0; 64 << 10];
        match self.stream.read(&mut piece) {
            Ok(0) => self.ended = true,
            Ok(read) => self.buffer.extend_from_slice(&piece[..read]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                panic!("nothing came within {DEADLINE:?}; read so far: {}", String::from_utf8_lossy(&self.buffer));
            }
            Err(_) => self.ended = true,
        }
        !self.ended
    }

    /// Reads until the bytes received and not yet taken contain `wanted`; panics if the connection ends before.
    pub(crate) fn until(&mut self, wanted: &str) {
        while memchr::memmem::find(&self.buffer, wanted.as_bytes()).is_none() {
            assert!(self.fill(), "the end came before {wanted:?}: {}", String::from_utf8_lossy(&self.buffer));
        }
    }

    /// Whether nothing at all comes for this long: the one way to see that something is held back.
    pub(crate) fn is_quiet_for(&mut self, time: Duration) -> bool {
        self.stream.set_read_timeout(Some(time)).unwrap();
        let mut byte = [0; 1];
        let read = self.stream.peek(&mut byte);
        self.stream.set_read_timeout(Some(DEADLINE)).unwrap();
        self.buffer.is_empty()
            && read.is_err_and(|error| matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut))
    }

    /// Waits for the first byte of what comes next; false where that is the end.
    pub(crate) fn has_something(&mut self) -> bool {
        !self.buffer.is_empty() || self.fill()
    }

    /// Reads to the end of the connection and says how long that took.
    pub(crate) fn closed(&mut self) -> Duration {
        let started = Instant::now();
        while self.fill() {}
        started.elapsed()
    }

    /// Everything received and not yet taken.
    pub(crate) fn received(&self) -> String {
        String::from_utf8_lossy(&self.buffer).into_owned()
    }

    /// The next head; panics if none comes. `100 Continue` is one, too.
    pub(crate) fn head(&mut self) -> Head {
        self.until("\r\n\r\n");
        let end = memchr::memmem::find(&self.buffer, b"\r\n\r\n").unwrap();
        let text = String::from_utf8(self.buffer.drain(..end + 4).collect()).unwrap();
        let (status, headers) = text.trim_end().split_once("\r\n").unwrap_or((text.trim_end(), ""));
        let headers = headers.lines().filter_map(|line| line.split_once(':'));
        Head {
            status: status.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap(),
            headers: headers.map(|(name, value)| (name.to_lowercase(), value.trim().to_owned())).collect(),
        }
    }

    /// The next answer.
    pub(crate) fn answer(&mut self) -> Answer {
        let head = self.head();
        let (body, end) = self.body(&head);
        Answer { status: head.status, headers: head.headers, body, end }
    }

    /// The body that follows a head.
    pub(crate) fn body(&mut self, head: &Head) -> (Vec<u8>, End) {
        if matches!(head.status, 100 | 204 | 304) {
            return (Vec::new(), End::Whole);
        }
        if let Some(length) = head.header("content-length") {
            return self.exactly(length.parse().unwrap());
        }
        if head.header("transfer-encoding") == Some("chunked") {
            return self.chunks();
        }
        while self.fill() {}
        (std::mem::take(&mut self.buffer), End::Whole)
    }

    fn exactly(&mut self, length: usize) -> (Vec<u8>, End) {
        while self.buffer.len() < length {
            if !self.fill() {
                return (std::mem::take(&mut self.buffer), End::Cut);
            }
        }
        (self.buffer.drain(..length).collect(), End::Whole)
    }

    fn line(&mut self) -> Option<String> {
        loop {
            if let Some(end) = memchr::memmem::find(&self.buffer, b"\r\n") {
                let line = String::from_utf8(self.buffer[..end].to_vec()).unwrap();
                self.buffer.drain(..end + 2);
                return Some(line);
            }
            if !self.fill() {
                return None;
            }
        }
    }

    /// The next chunk of a chunked body; empty for the last one, `None` where the connection ended instead.
    pub(crate) fn chunk(&mut self) -> Option<Vec<u8>> {
        let size = usize::from_str_radix(&self.line()?, 16).unwrap();
        if size == 0 {
            while !self.line()?.is_empty() {}
            return Some(Vec::new());
        }
        let (chunk, end) = self.exactly(size);
        if end == End::Cut {
            return None;
        }
        assert_eq!(self.line()?, "");
        Some(chunk)
    }

    /// Reads a chunked body as a slow reader does: after every `bytes` it reads nothing for this long. Returns how much it read.
    pub(crate) fn read_slowly(&mut self, bytes: usize, pause: Duration) -> usize {
        let mut read = 0;
        while let Some(chunk) = self.chunk().filter(|chunk| !chunk.is_empty()) {
            read += chunk.len();
            if read % bytes < chunk.len() {
                std::thread::sleep(pause);
            }
        }
        read
    }

    fn chunks(&mut self) -> (Vec<u8>, End) {
        let mut body = Vec::new();
        loop {
            match self.chunk() {
                None => return (body, End::Cut),
                Some(chunk) if chunk.is_empty() => return (body, End::Whole),
                Some(chunk) => body.extend(chunk),
            }
        }
    }
}

/// A request body over h2.
pub(crate) type H2Body = BoxBody<Bytes, Infallible>;

/// An h2 connection.
pub(crate) struct H2 {
    sender: SendRequest<H2Body>,
}

/// Runs a test on an h2 connection of its own (h2c, prior knowledge) with stream windows of this size, within the deadline.
pub(crate) fn on_h2<T>(address: SocketAddr, window: u32, test: impl AsyncFnOnce(H2) -> T) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { h2_on(tokio::net::TcpStream::connect(address).await.unwrap(), window, test).await })
}

/// Runs a test on an h2 connection over this stream, within the deadline.
pub(crate) async fn h2_on<T>(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    window: u32,
    test: impl AsyncFnOnce(H2) -> T,
) -> T {
    let (sender, connection) = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .initial_stream_window_size(window)
        .initial_connection_window_size(16 << 20)
        .handshake(TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    tokio::time::timeout(DEADLINE * 2, test(H2 { sender })).await.expect("the h2 test ends in time")
}

impl H2 {
    /// A JSON request.
    pub(crate) async fn post(&mut self, path: &str, body: impl Into<Bytes>) -> http::Response<Incoming> {
        self.send(path, Full::new(body.into()).boxed()).await
    }

    /// A request with any body.
    pub(crate) async fn send(&mut self, path: &str, body: H2Body) -> http::Response<Incoming> {
        let request = http::Request::post(format!("http://forebay{path}"));
        self.request(request.header("content-type", "application/json").body(body).unwrap()).await
    }

    /// Any request.
    pub(crate) async fn request(&mut self, request: http::Request<H2Body>) -> http::Response<Incoming> {
        self.sender.ready().await.unwrap();
        self.sender.send_request(request).await.unwrap()
    }
}

/// A body read to its end; the error says how it was cut.
pub(crate) async fn read_h2(mut body: Incoming) -> (Vec<u8>, Result<(), String>) {
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(frame) => bytes.extend(frame.into_data().unwrap_or_default()),
            Err(error) => return (bytes, Err(format!("{error:?}"))),
        }
    }
    (bytes, Ok(()))
}

/// A short wait for something that must *not* happen.
pub(crate) const A_WHILE: Duration = ms(150);
