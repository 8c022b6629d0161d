//! A backend on a raw socket that plays a script for each request and remembers the request's bytes. It answers probes
//! (`/health`, `/v1/models`, `/metrics`) like a vLLM at rest, apart from the scripts.

use std::collections::{HashMap, VecDeque};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use socket2::SockRef;

use crate::harness::{DEADLINE, eventually};

/// A request as it came.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) method: String,
    /// Path and query.
    pub(crate) target: String,
    /// Names in lower case.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// Which of the backend's connections it came on, from 0.
    pub(crate) connection: usize,
    /// How many requests came before it on that connection.
    pub(crate) before: usize,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    pub(crate) fn sha256(&self) -> [u8; 32] {
        Sha256::digest(&self.body).into()
    }
}

/// Something that a script waits for, or that a test learns from one.
#[derive(Clone, Default)]
pub(crate) struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    pub(crate) fn new() -> Gate {
        Gate::default()
    }

    pub(crate) fn open(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_all();
    }

    /// Waits until it is open; panics after the deadline.
    pub(crate) fn pass(&self) {
        assert!(self.wait(DEADLINE), "a gate stayed shut for {DEADLINE:?}");
    }

    fn wait(&self, limit: Duration) -> bool {
        let shut = self.0.0.lock().unwrap();
        *self.0.1.wait_timeout_while(shut, limit, |open| !*open).unwrap().0
    }
}

/// A step of a script. A script that ends leaves the connection open for the next request.
#[derive(Clone)]
pub(crate) enum Step {
    /// Bytes in one write.
    Send(Vec<u8>),
    /// Bytes in writes of one byte each.
    Trickle(Vec<u8>),
    /// Takes this long: the backend's own pace.
    Pause(Duration),
    /// Waits for the test.
    Wait(Gate),
    /// Waits for the test, for as long as one that does many things takes.
    Hold(Gate),
    /// Tells the test.
    Tell(Gate),
    /// Closes with FIN.
    Close,
    /// Closes with a reset.
    Reset,
    /// Waits until the peer closes, which [`Mock::closes`] then knows.
    AwaitClose,
    /// The same bytes again and again until the peer closes or takes no more for the deadline; then as `AwaitClose`.
    Flood(Vec<u8>),
}

/// What is played for one request.
pub(crate) type Script = Vec<Step>;

/// A whole answer with a length.
pub(crate) fn answer(status: u16, headers: &[(&str, &str)], body: &str) -> Script {
    let mut head = format!("HTTP/1.1 {status} Mock\r\ncontent-length: {}\r\n", body.len());
    if !headers.iter().any(|(name, _)| *name == "content-type") {
        head.push_str("content-type: application/json\r\n");
    }
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    vec![Step::Send(format!("{head}\r\n{body}").into_bytes())]
}

/// The head of a stream of events, as vLLM sends it.
pub(crate) fn stream_head() -> Step {
    let head = "HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-type: text/event-stream; charset=utf-8\r\n\
                transfer-encoding: chunked\r\n\r\n";
    Step::Send(head.into())
}

/// One chunk.
pub(crate) fn chunk(text: impl AsRef<[u8]>) -> Step {
    let text = text.as_ref();
    let mut framed = format!("{:x}\r\n", text.len()).into_bytes();
    framed.extend(text);
    framed.extend(b"\r\n");
    Step::Send(framed)
}

/// The last chunk.
pub(crate) fn last_chunk() -> Step {
    Step::Send(b"0\r\n\r\n".to_vec())
}

/// A stream of these pieces, each a chunk, with a clean end.
pub(crate) fn stream<T: AsRef<[u8]>>(pieces: &[T]) -> Script {
    let mut script = vec![stream_head()];
    script.extend(pieces.iter().map(chunk));
    script.push(last_chunk());
    script
}

/// A chat event with this text.
pub(crate) fn token(text: &str) -> String {
    format!(
        "data: {{\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"tiny\",\
         \"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"{text}\"}},\"logprobs\":null,\"finish_reason\":null}}]}}\n\n"
    )
}

/// The usage event of chat.
pub(crate) const USAGE: &str = "data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1,\
    \"model\":\"tiny\",\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"total_tokens\":9,\"completion_tokens\":2}}\n\n";
/// The end of a stream of chat.
pub(crate) const DONE: &str = "data: [DONE]\n\n";
/// A unary answer of chat.
pub(crate) const CHAT: &str = "{\"id\":\"chatcmpl-1\",\"object\":\"chat.completion\",\"model\":\"tiny\",\"choices\":[{\"index\":0,\
    \"message\":{\"role\":\"assistant\",\"content\":\"ok\"},\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":7,\
    \"total_tokens\":8,\"completion_tokens\":1}}";

/// What a vLLM would do in short: a short stream if one is asked for, with usage if that is, else a unary answer.
pub(crate) fn like_vllm(seen: &Seen) -> Script {
    let body: serde_json::Value = serde_json::from_slice(&seen.body).unwrap_or_default();
    if body["stream"] != true {
        return answer(200, &[], CHAT);
    }
    let mut pieces = vec![token("Hel"), token("lo")];
    if body["stream_options"]["include_usage"] == true {
        pieces.push(USAGE.to_owned());
    }
    pieces.push(DONE.to_owned());
    stream(&pieces)
}

type Handler = dyn Fn(&Seen) -> Script + Send + Sync;

struct Shared {
    address: SocketAddr,
    stopped: AtomicBool,
    model: Mutex<String>,
    handler: Mutex<Arc<Handler>>,
    scripts: Mutex<VecDeque<Script>>,
    seen: Mutex<Vec<Arc<Seen>>>,
    closes: Mutex<Vec<Instant>>,
    connections: AtomicUsize,
    /// Connections are closed as soon as they are made.
    hangs_up: AtomicBool,
    /// The open ones, to be closed when the listener goes.
    open: Mutex<HashMap<usize, TcpStream>>,
    trials: Mutex<Vec<Arc<Seen>>>,
    probes: Mutex<Option<Arc<Probes>>>,
}

type Probes = dyn Fn(&str) -> Option<Script> + Send + Sync;

/// A backend.
pub(crate) struct Mock {
    shared: Arc<Shared>,
    listening: Mutex<Option<JoinHandle<()>>>,
}

impl Mock {
    /// One that serves `tiny` as [`like_vllm`].
    pub(crate) fn start() -> Mock {
        Mock::at("127.0.0.1:0".parse().unwrap())
    }

    /// The same at an address of loopback.
    pub(crate) fn at(address: SocketAddr) -> Mock {
        let listener = TcpListener::bind(address).unwrap();
        let shared = Arc::new(Shared {
            address: listener.local_addr().unwrap(),
            stopped: AtomicBool::new(false),
            model: Mutex::new("tiny".to_owned()),
            handler: Mutex::new(Arc::new(like_vllm)),
            scripts: Mutex::default(),
            seen: Mutex::default(),
            closes: Mutex::default(),
            connections: AtomicUsize::new(0),
            hangs_up: AtomicBool::new(false),
            open: Mutex::default(),
            trials: Mutex::default(),
            probes: Mutex::default(),
        });
        let listening = listen(&shared, listener);
        Mock { shared, listening: Mutex::new(Some(listening)) }
    }

    /// One that answers every request like this.
    pub(crate) fn replying(handler: impl Fn(&Seen) -> Script + Send + Sync + 'static) -> Mock {
        let mock = Mock::start();
        mock.reply(handler);
        mock
    }

    /// One that plays this script for every request.
    pub(crate) fn playing(script: Script) -> Mock {
        Mock::replying(move |_| script.clone())
    }

    /// Another model, for its list.
    pub(crate) fn serving(self, model: &str) -> Mock {
        model.clone_into(&mut self.shared.model.lock().unwrap());
        self
    }

    /// Answers requests like this from now on.
    pub(crate) fn reply(&self, handler: impl Fn(&Seen) -> Script + Send + Sync + 'static) {
        *self.shared.handler.lock().unwrap() = Arc::new(handler);
    }

    /// Plays this for the next request that has no script yet.
    pub(crate) fn next(&self, script: Script) {
        self.shared.scripts.lock().unwrap().push_back(script);
    }

    /// As a server whose process was killed: connections are refused, and those that are open end.
    pub(crate) fn refuse(&self) {
        self.stop_listening();
        for (_, stream) in self.shared.open.lock().unwrap().drain() {
            drop(stream.shutdown(Shutdown::Both));
        }
    }

    /// As one that was told to end at once: connections are refused, and those that are open stay open and silent.
    pub(crate) fn stop_listening(&self) {
        let Some(listening) = self.listening.lock().unwrap().take() else { return };
        self.shared.stopped.store(true, Ordering::Release);
        drop(TcpStream::connect(self.shared.address));
        drop(listening.join());
    }

    /// Listens again, on the same address.
    pub(crate) fn listen_again(&self) {
        self.shared.stopped.store(false, Ordering::Release);
        let listener = eventually("the address is free", || TcpListener::bind(self.shared.address).ok());
        *self.listening.lock().unwrap() = Some(listen(&self.shared, listener));
    }

    /// Closes each connection as soon as it is made, and those that are open.
    pub(crate) fn hang_up(&self) {
        self.shared.hangs_up.store(true, Ordering::Release);
        for (_, stream) in self.shared.open.lock().unwrap().drain() {
            drop(stream.shutdown(Shutdown::Both));
        }
    }

    /// Answers probes (`/health`, `/metrics`, `/v1/models`) like this from now on; `None`: like a vLLM at rest.
    pub(crate) fn probes(&self, answer: impl Fn(&str) -> Option<Script> + Send + Sync + 'static) {
        *self.shared.probes.lock().unwrap() = Some(Arc::new(answer));
    }

    /// The requests of Forebay's own so far, by which it finds out whether this backend is back.
    pub(crate) fn trials(&self) -> Vec<Arc<Seen>> {
        self.shared.trials.lock().unwrap().clone()
    }

    /// `http://…`
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.shared.address)
    }

    /// Host and port, as in `x-forebay-backend`.
    pub(crate) fn authority(&self) -> String {
        self.shared.address.to_string()
    }

    /// Its requests so far, probes left out.
    pub(crate) fn seen(&self) -> Vec<Arc<Seen>> {
        self.shared.seen.lock().unwrap().clone()
    }

    /// Its only request so far.
    pub(crate) fn only(&self) -> Arc<Seen> {
        let seen = self.seen();
        assert_eq!(seen.len(), 1, "requests at this backend");
        Arc::clone(&seen[0])
    }

    /// Its latest request.
    pub(crate) fn last(&self) -> Arc<Seen> {
        Arc::clone(self.seen().last().expect("a request came"))
    }

    /// When peers closed while a script waited for that, or was still sending.
    pub(crate) fn closes(&self) -> Vec<Instant> {
        self.shared.closes.lock().unwrap().clone()
    }

    /// Waits for so many closes in all, and says when the last one was.
    pub(crate) fn await_closes(&self, count: usize) -> Instant {
        eventually(&format!("{count} closes at the backend"), || self.closes().get(count - 1).copied())
    }

    /// Waits until a script waits for so many requests in all.
    pub(crate) fn await_requests(&self, count: usize) {
        eventually(&format!("{count} requests at the backend"), || (self.seen().len() >= count).then_some(()));
    }
}

impl Drop for Mock {
    fn drop(&mut self) {
        self.stop_listening();
    }
}

fn listen(shared: &Arc<Shared>, listener: TcpListener) -> JoinHandle<()> {
    let shared = Arc::clone(shared);
    std::thread::spawn(move || accept(&listener, &shared))
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for stream in listener.incoming().map_while(Result::ok) {
        if shared.stopped.load(Ordering::Acquire) {
            return;
        }
        if shared.hangs_up.load(Ordering::Acquire) {
            continue;
        }
        let shared = Arc::clone(shared);
        let number = shared.connections.fetch_add(1, Ordering::Relaxed);
        std::thread::Builder::new()
            .stack_size(256 << 10)
            .spawn(move || {
                if let Ok(handle) = stream.try_clone() {
                    shared.open.lock().unwrap().insert(number, handle);
                }
                let served = serve(&shared, &stream, number);
                // Before the last handle goes: a reset is due with it.
                shared.open.lock().unwrap().remove(&number);
                drop((served, stream));
            })
            .expect("the machine has a thread for a connection");
    }
}

/// Serves one connection until the peer or a script ends it.
fn serve(shared: &Shared, mut stream: &TcpStream, connection: usize) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = Vec::new();
    let mut before = 0;
    while let Some(mut seen) = read_request(&mut stream, &mut buffer)? {
        (seen.connection, seen.before) = (connection, before);
        before += 1;
        let script = match probe(shared, &seen) {
            Some(script) => script,
            None => script_for(shared, seen),
        };
        for step in script {
            if !play(shared, stream, step)? {
                return Ok(());
            }
        }
    }
    Ok(())
}

fn script_for(shared: &Shared, seen: Seen) -> Script {
    // Forebay's own request, which shows whether a backend is back: played as any other, and no request of the test's.
    if seen.header("user-agent").is_some_and(|agent| agent.starts_with("forebay/")) {
        let handler = Arc::clone(&shared.handler.lock().unwrap());
        let script = handler(&seen);
        shared.trials.lock().unwrap().push(Arc::new(seen));
        return script;
    }
    let seen = Arc::new(seen);
    shared.seen.lock().unwrap().push(Arc::clone(&seen));
    let scripted = shared.scripts.lock().unwrap().pop_front();
    let handler = Arc::clone(&shared.handler.lock().unwrap());
    scripted.unwrap_or_else(|| handler(&seen))
}

fn probe(shared: &Shared, seen: &Seen) -> Option<Script> {
    // What a client asks for is no probe.
    if seen.method != "GET" || seen.header("x-client").is_some() {
        return None;
    }
    let scripted = shared.probes.lock().unwrap().clone();
    if let Some(script) = scripted.and_then(|answer| answer(&seen.target)) {
        return Some(script);
    }
    let model = shared.model.lock().unwrap().clone();
    match seen.target.as_str() {
        "/health" => Some(answer(200, &[], "")),
        "/v1/models" => {
            let card = serde_json::json!({"id": model, "object": "model", "created": 1, "owned_by": "vllm",
                "root": model, "parent": null, "max_model_len": 2048});
            Some(answer(200, &[], &serde_json::json!({"object": "list", "data": [card]}).to_string()))
        }
        "/metrics" => {
            let label = format!("{{engine=\"0\",model_name=\"{model}\"}}");
            let text = format!(
                "# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running{label} 0.0\n\
                 # TYPE vllm:num_requests_waiting gauge\nvllm:num_requests_waiting{label} 0.0\n\
                 # TYPE vllm:kv_cache_usage_perc gauge\nvllm:kv_cache_usage_perc{label} 0.0\n"
            );
            Some(answer(200, &[("content-type", "text/plain; version=0.0.4")], &text))
        }
        // Of vLLM's development mode.
        "/is_sleeping" | "/is_paused" => Some(answer(404, &[], "{\"detail\":\"Not Found\"}")),
        _ => None,
    }
}

/// Plays a step; false where the connection is over.
fn play(shared: &Shared, mut stream: &TcpStream, step: Step) -> std::io::Result<bool> {
    let sent = match step {
        Step::Send(bytes) => stream.write_all(&bytes),
        Step::Trickle(bytes) => bytes.chunks(1).try_for_each(|byte| stream.write_all(byte)),
        Step::Pause(time) => {
            std::thread::sleep(time);
            return Ok(true);
        }
        Step::Wait(gate) => return Ok(gate.wait(DEADLINE)),
        Step::Hold(gate) => return Ok(gate.wait(DEADLINE * 8)),
        Step::Tell(gate) => {
            gate.open();
            return Ok(true);
        }
        Step::Close => return Ok(false),
        Step::Reset => {
            SockRef::from(stream).set_linger(Some(Duration::ZERO))?;
            return Ok(false);
        }
        Step::AwaitClose => Err(std::io::ErrorKind::Other.into()),
        Step::Flood(bytes) => {
            stream.set_write_timeout(Some(DEADLINE))?;
            loop {
                if let Err(error) = stream.write_all(&bytes) {
                    if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) {
                        return Err(error);
                    }
                    break Err(error);
                }
            }
        }
    };
    if sent.is_ok() {
        return Ok(true);
    }
    let mut rest = [0; 4096];
    while stream.read(&mut rest).is_ok_and(|read| read > 0) {}
    shared.closes.lock().unwrap().push(Instant::now());
    Ok(false)
}

fn read_request(stream: &mut &TcpStream, buffer: &mut Vec<u8>) -> std::io::Result<Option<Seen>> {
    let head_end = loop {
        if let Some(at) = memchr::memmem::find(buffer, b"\r\n\r\n") {
            break at;
        }
        if !fill(stream, buffer)? {
            return Ok(None);
        }
    };
    let head = String::from_utf8_lossy(&buffer[..head_end]).into_owned();
    let (line, headers) = head.split_once("\r\n").unwrap_or((&head, ""));
    let mut words = line.split(' ').map(str::to_owned);
    let headers: Vec<(String, String)> = headers
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_lowercase(), value.trim().to_owned()))
        .collect();
    let header = |wanted: &str| headers.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.as_str());
    let body = if header("transfer-encoding").is_some() {
        // Forebay itself sends a length. An Envoy that has the body changed on its way cannot know it.
        assert!(header("x-gateway-destination-endpoint").is_some(), "a body is sent with its length:\n{head}");
        buffer.drain(..head_end + 4);
        read_chunks(stream, buffer)?
    } else {
        let total = head_end + 4 + header("content-length").map_or(0, |value| value.parse().unwrap());
        buffer.reserve(total.saturating_sub(buffer.len()));
        while buffer.len() < total {
            if !fill(stream, buffer)? {
                return Ok(None);
            }
        }
        let rest = buffer.split_off(total);
        Some(std::mem::replace(buffer, rest).split_off(head_end + 4))
    };
    let Some(body) = body else { return Ok(None) };
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    Ok(Some(Seen { method, target, headers, body, connection: 0, before: 0 }))
}

/// The body of a chunked request; `None` where the connection ended within it.
fn read_chunks(stream: &mut &TcpStream, buffer: &mut Vec<u8>) -> std::io::Result<Option<Vec<u8>>> {
    let mut body = Vec::new();
    loop {
        let Some(line) = memchr::memmem::find(buffer, b"\r\n") else {
            if !fill(stream, buffer)? {
                return Ok(None);
            }
            continue;
        };
        let size = usize::from_str_radix(std::str::from_utf8(&buffer[..line]).unwrap(), 16).unwrap();
        let end = line + 2 + size + 2;
        while buffer.len() < end {
            if !fill(stream, buffer)? {
                return Ok(None);
            }
        }
        body.extend_from_slice(&buffer[line + 2..line + 2 + size]);
        buffer.drain(..end);
        if size == 0 {
            return Ok(Some(body));
        }
    }
}

fn fill(stream: &mut &TcpStream, buffer: &mut Vec<u8>) -> std::io::Result<bool> {
    let mut piece = [0; 64 << 10];
    let read = stream.read(&mut piece)?;
    buffer.extend_from_slice(&piece[..read]);
    Ok(read > 0)
}
