//! The shipped binary beside Debian's nginx, in one run: CPU per SSE chunk, CPU per small unary request, memory per idle
//! stream. Same mock backends (a child process of this binary, so that their CPU is not counted), same client, one worker
//! each, interleaved rounds; what counts is the ratio.
//!
//!     cargo bench --bench vs_nginx            FOREBAY_SIZE=full: more and longer rounds
//!
//! `FOREBAY_BIN` names another binary, `NGINX_BIN` another nginx. `FOREBAY_BASE` names an earlier Forebay that takes part in
//! the same rounds: what a change costs. Loopback only. Exit 1 where a target is missed.

#![expect(clippy::disallowed_methods, reason = "a benchmark measures real time")]

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::error::Error;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body, Bytes, Frame, Incoming};
use hyper::client::conn::http1::SendRequest;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Interval, MissedTickBehavior};

/// One event of a chat stream as vLLM 0.32 writes it.
const EVENT: &str = "data: {\"id\":\"chatcmpl-b382a3865df1be9c\",\"object\":\"chat.completion.chunk\",\"created\":1795429251,\
    \"model\":\"mock\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\" short\"},\"logprobs\":null,\"finish_reason\":null,\
    \"token_ids\":null}]}\n\n";

/// A short unary chat answer, members as vLLM 0.32 writes them.
const ANSWER: &str = "{\"id\":\"chatcmpl-b382a3865df1be9c\",\"object\":\"chat.completion\",\"created\":1795429251,\"model\":\"mock\",\
    \"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"A short answer.\",\"refusal\":null,\"tool_calls\":[]},\
    \"logprobs\":null,\"finish_reason\":\"stop\",\"stop_reason\":null}],\"service_tier\":null,\"usage\":{\"prompt_tokens\":31,\
    \"total_tokens\":35,\"completion_tokens\":4,\"prompt_tokens_details\":null},\"prompt_logprobs\":null}";

const STREAMS: usize = 64;
const PACE: Duration = Duration::from_millis(10);
const UNARY_CONNECTIONS: usize = 16;
const IDLE_STREAMS: usize = 2000;
const ROLE: &str = "FOREBAY_BENCH_ROLE";
const FOREBAY: &str = "forebay";
const NGINX: &str = "nginx";
const BASE: &str = "base";

type Fallible<T> = Result<T, Box<dyn Error + Send + Sync>>;

fn main() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a tokio runtime");
    let done = if std::env::var_os(ROLE).is_some() { runtime.block_on(mock()) } else { runtime.block_on(compare()) };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("vs_nginx: {error}");
            ExitCode::FAILURE
        }
    }
}

// ---- the mock of two vLLM servers ----------------------------------------------------------------------------------

/// Serves two ports, prints them, and ends when its standard input does.
async fn mock() -> Fallible<bool> {
    for _ in 0..2 {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        println!("{}", listener.local_addr()?.port());
        tokio::spawn(async move {
            loop {
                if let Ok((stream, _)) = listener.accept().await {
                    let _ = stream.set_nodelay(true);
                    let mut http = hyper::server::conn::http1::Builder::new();
                    http.timer(TokioTimer::new());
                    tokio::spawn(http.serve_connection(TokioIo::new(stream), service_fn(answer)));
                }
            }
        });
    }
    let (gone, ended) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        let _ = gone.send(());
    });
    let _ = ended.await;
    Ok(true)
}

async fn answer(request: Request<Incoming>) -> Result<Response<UnsyncBoxBody<Bytes, Infallible>>, hyper::Error> {
    let path = request.uri().path().to_owned();
    let body = request.into_body().collect().await?.to_bytes();
    let has = |text: &str| body.windows(text.len()).any(|window| window == text.as_bytes());
    let (kind, body) = match path.as_str() {
        "/v1/chat/completions" if has("\"stream\":true") || has("\"stream\": true") => {
            ("text/event-stream; charset=utf-8", Events::new(!has("say nothing more")).boxed_unsync())
        }
        "/v1/chat/completions" => ("application/json", text(ANSWER.to_owned())),
        "/v1/models" => {
            ("application/json", text(r#"{"object":"list","data":[{"id":"mock","object":"model"}]}"#.to_owned()))
        }
        "/metrics" => ("text/plain; version=1.0.0; charset=utf-8", text(metrics())),
        "/health" | "/version" => ("application/json", text(String::new())),
        _ => {
            let mut missing = Response::new(text("{\"detail\":\"Not Found\"}".to_owned()));
            *missing.status_mut() = StatusCode::NOT_FOUND;
            return Ok(missing);
        }
    };
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    Ok(response)
}

fn text(text: String) -> UnsyncBoxBody<Bytes, Infallible> {
    Full::new(Bytes::from(text)).boxed_unsync()
}

/// What a router reads; the step count grows at every scrape, so that a silent stream is no hung engine.
fn metrics() -> String {
    static STEPS: AtomicU64 = AtomicU64::new(0);
    let steps = STEPS.fetch_add(100, Ordering::Relaxed);
    let label = "{engine=\"0\",model_name=\"mock\"}";
    format!(
        "# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running{label} 1.0\n\
         # TYPE vllm:num_requests_waiting gauge\nvllm:num_requests_waiting{label} 0.0\n\
         # TYPE vllm:kv_cache_usage_perc gauge\nvllm:kv_cache_usage_perc{label} 0.1\n\
         # TYPE vllm:iteration_tokens_total histogram\nvllm:iteration_tokens_total_count{label} {steps}.0\n\
         # TYPE vllm:generation_tokens counter\nvllm:generation_tokens_total{label} {steps}.0\n"
    )
}

/// A stream: its first event at once, then one every `PACE` until the client leaves, or nothing more.
struct Events {
    pace: Option<Interval>,
    begun: bool,
}

impl Events {
    fn new(goes_on: bool) -> Events {
        static STARTED: AtomicU64 = AtomicU64::new(0);
        // Streams tick out of step with each other, as those of an engine's many clients would through a proxy.
        let phase = Duration::from_millis(STARTED.fetch_add(7, Ordering::Relaxed) % 10);
        let pace = goes_on.then(|| {
            let mut pace = tokio::time::interval_at(tokio::time::Instant::now() + PACE + phase, PACE);
            pace.set_missed_tick_behavior(MissedTickBehavior::Skip);
            pace
        });
        Events { pace, begun: false }
    }
}

impl Body for Events {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.begun {
            match &mut self.pace {
                Some(pace) => std::task::ready!(pace.poll_tick(cx)),
                None => return Poll::Pending,
            };
        }
        self.begun = true;
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(EVENT.as_bytes())))))
    }
}

// ---- processes -----------------------------------------------------------------------------------------------------

/// A child that is ended, by its pid, when this is dropped.
struct Process(Child);

impl Process {
    fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // TERM first: nginx's master ends its worker then, and would leave it behind if it were killed.
        let _ = Command::new("kill").args(["-TERM", &self.pid().to_string()]).status();
        for _ in 0..50 {
            if matches!(self.0.try_wait(), Ok(Some(_))) {
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A command whose process may open as many files as the hard limit allows.
fn with_many_files(program: &Path) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -n $(ulimit -Hn) && exec \"$0\" \"$@\""]).arg(program);
    command
}

fn free_port() -> Fallible<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// A proxy under test.
struct Side {
    name: &'static str,
    port: u16,
    /// The process whose CPU and memory count.
    pid: u32,
    _process: Process,
}

struct Paths {
    forebay: PathBuf,
    base: Option<PathBuf>,
    nginx: PathBuf,
    dir: PathBuf,
}

async fn start_forebay(name: &'static str, binary: &Path, dir: &Path, backends: [u16; 2]) -> Fallible<Side> {
    let (port, admin) = (free_port()?, free_port()?);
    let log_file = dir.join(name).with_extension("log");
    let log = fs::File::create(&log_file)?;
    let mut command = with_many_files(binary);
    command.arg("serve");
    for backend in backends {
        command.args(["--backend", &format!("http://127.0.0.1:{backend}")]);
    }
    command.args(["--listen", &format!("127.0.0.1:{port}"), "--admin", &format!("127.0.0.1:{admin}")]);
    command.args(["--threads", "1"]).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    let process = Process(command.spawn()?);
    ready(name, port, &log_file).await?;
    Ok(Side { name, port, pid: process.pid(), _process: process })
}

async fn start_nginx(paths: &Paths, [a, b]: [u16; 2]) -> Fallible<Side> {
    let port = free_port()?;
    let conf = include_str!("nginx.conf")
        .replace("@DIR@", &paths.dir.display().to_string())
        .replace("@PORT@", &port.to_string())
        .replace("@BACKEND_A@", &a.to_string())
        .replace("@BACKEND_B@", &b.to_string());
    let file = paths.dir.join("nginx.conf");
    fs::write(&file, conf)?;
    let mut command = with_many_files(&paths.nginx);
    command.arg("-e").arg(paths.dir.join("nginx.log")).arg("-c").arg(&file).stdin(Stdio::null());
    let process = Process(command.spawn()?);
    ready("nginx", port, &paths.dir.join("nginx.log")).await?;
    let pid = child_of(process.pid()).ok_or("nginx has no worker")?;
    Ok(Side { name: NGINX, port, pid, _process: process })
}

/// Forebay, nginx and, where one is named, the earlier Forebay.
async fn start_all(paths: &Paths, backends: [u16; 2]) -> Fallible<Vec<Side>> {
    let mut sides =
        vec![start_forebay(FOREBAY, &paths.forebay, &paths.dir, backends).await?, start_nginx(paths, backends).await?];
    if let Some(base) = &paths.base {
        sides.push(start_forebay(BASE, base, &paths.dir, backends).await?);
    }
    Ok(sides)
}

/// Waits until a unary request is answered through the proxy.
async fn ready(name: &str, port: u16, log: &Path) -> Fallible<()> {
    for _ in 0..300 {
        if let Ok(mut client) = connect(port).await
            && let Ok(response) = client.send_request(request("Are you there?", false)?).await
            && response.status() == StatusCode::OK
        {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Err(format!("{name} did not answer in 30 s; its log:\n{}", fs::read_to_string(log).unwrap_or_default()).into())
}

/// The first process whose parent is `parent`.
fn child_of(parent: u32) -> Option<u32> {
    fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        let after_name = stat.rsplit_once(')')?.1;
        (after_name.split_whitespace().nth(1)?.parse() == Ok(parent)).then_some(pid)
    })
}

/// CPU time of all threads of a process, user and system. From schedstat, in nanoseconds: stat counts in ticks of 10 ms.
fn cpu(pid: u32) -> Fallible<Duration> {
    let mut nanos = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))?.flatten() {
        let line = fs::read_to_string(task.path().join("schedstat"))?;
        nanos += line.split_whitespace().next().ok_or("an empty schedstat")?.parse::<u64>()?;
    }
    Ok(Duration::from_nanos(nanos))
}

/// Resident memory of a process in KiB.
fn resident(pid: u32) -> Fallible<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

// ---- the client ----------------------------------------------------------------------------------------------------

async fn connect(port: u16) -> Fallible<SendRequest<Full<Bytes>>> {
    let stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.set_nodelay(true)?;
    let (client, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    Ok(client)
}

/// A chat request of about 300 bytes.
fn request(text: &str, stream: bool) -> Fallible<Request<Full<Bytes>>> {
    let body = format!(
        "{{\"model\":\"mock\",\"stream\":{stream},\"max_tokens\":256,\"temperature\":0.7,\"messages\":[{{\"role\":\"system\",\
         \"content\":\"You are a careful assistant who answers in one short sentence and says so where you are not sure.\"}},\
         {{\"role\":\"user\",\"content\":\"{text} Please keep to one sentence, and name your source.\"}}]}}"
    );
    Ok(Request::builder()
        .method(Method::POST)
        .uri("/v1/chat/completions")
        .header(header::HOST, "bench")
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(body)))?)
}

/// Opens a stream and waits for its first event. The connection lives as long as the body.
async fn open(port: u16, text: &str) -> Fallible<(SendRequest<Full<Bytes>>, Incoming)> {
    let mut client = connect(port).await?;
    let response = client.send_request(request(text, true)?).await?;
    if response.status() != StatusCode::OK {
        return Err(format!("a stream got {}", response.status()).into());
    }
    let mut body = response.into_body();
    body.frame().await.ok_or("a stream ended at once")??;
    Ok((client, body))
}

async fn open_many(
    port: u16,
    text: &'static str,
    number: usize,
) -> Fallible<Vec<(SendRequest<Full<Bytes>>, Incoming)>> {
    let mut streams = Vec::with_capacity(number);
    while streams.len() < number {
        let batch = (number - streams.len()).min(64);
        let opening: Vec<_> = (0..batch).map(|_| tokio::spawn(open(port, text))).collect();
        for stream in opening {
            streams.push(tokio::time::timeout(Duration::from_secs(30), stream).await???);
        }
    }
    Ok(streams)
}

// ---- what is measured ----------------------------------------------------------------------------------------------

/// Microseconds of CPU per SSE chunk, with `STREAMS` streams at a fixed pace.
async fn cpu_per_chunk(side: &Side, window: Duration) -> Fallible<f64> {
    let bytes = Arc::new(AtomicU64::new(0));
    let mut readers = Vec::new();
    for (client, mut body) in open_many(side.port, "Tell me of queues, at length.", STREAMS).await? {
        let bytes = Arc::clone(&bytes);
        readers.push(tokio::spawn(async move {
            while let Some(Ok(frame)) = body.frame().await {
                bytes.fetch_add(frame.data_ref().map_or(0, |data| data.len() as u64), Ordering::Relaxed);
            }
            drop(client);
        }));
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    let (cpu_before, bytes_before) = (cpu(side.pid)?, bytes.load(Ordering::Relaxed));
    tokio::time::sleep(window).await;
    let (cpu_after, bytes_after) = (cpu(side.pid)?, bytes.load(Ordering::Relaxed));
    let ended = readers.iter().filter(|reader| reader.is_finished()).count();
    for reader in &readers {
        reader.abort();
    }
    let chunks = (bytes_after - bytes_before) as f64 / EVENT.len() as f64;
    let due = STREAMS as f64 * window.as_secs_f64() / PACE.as_secs_f64();
    if ended > 0 {
        return Err(format!("{}: {ended} of {STREAMS} streams ended by themselves", side.name).into());
    }
    if chunks < 0.8 * due {
        println!("  note: {}: {chunks:.0} chunks where {due:.0} were due; the machine is too busy", side.name);
    }
    Ok((cpu_after - cpu_before).as_secs_f64() * 1e6 / chunks)
}

/// Microseconds of CPU per small unary request, `UNARY_CONNECTIONS` kept-alive connections in a closed loop.
async fn cpu_per_request(side: &Side, window: Duration) -> Fallible<f64> {
    let (done, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let mut loops = Vec::new();
    for _ in 0..UNARY_CONNECTIONS {
        let mut client = connect(side.port).await?;
        let (done, stop) = (Arc::clone(&done), Arc::clone(&stop));
        loops.push(tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                client.ready().await?;
                let response = client.send_request(request("What is a queue?", false)?).await?;
                if response.status() != StatusCode::OK {
                    return Err(format!("a request got {}", response.status()).into());
                }
                response.into_body().collect().await?;
                done.fetch_add(1, Ordering::Relaxed);
            }
            Fallible::Ok(())
        }));
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    let (cpu_before, done_before, at) = (cpu(side.pid)?, done.load(Ordering::Relaxed), Instant::now());
    tokio::time::sleep(window).await;
    let (cpu_after, done_after, took) = (cpu(side.pid)?, done.load(Ordering::Relaxed), at.elapsed());
    stop.store(true, Ordering::Relaxed);
    for one in loops {
        one.await??;
    }
    let requests = (done_after - done_before) as f64;
    println!("  {:8} {:.0} unary requests/s", side.name, requests / took.as_secs_f64());
    Ok((cpu_after - cpu_before).as_secs_f64() * 1e6 / requests)
}

/// KiB of resident memory per open stream that has had its first token and is silent. The process must be fresh.
async fn memory_per_stream(side: &Side) -> Fallible<f64> {
    drop(open_many(side.port, "Warm up, then say nothing more.", 32).await?);
    tokio::time::sleep(Duration::from_millis(300)).await;
    let before = resident(side.pid)?;
    let streams = open_many(side.port, "Say one word, then say nothing more.", IDLE_STREAMS).await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let after = resident(side.pid)?;
    drop(streams);
    Ok((after - before) / IDLE_STREAMS as f64)
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len().is_multiple_of(2) { (sorted[middle - 1] + sorted[middle]) / 2.0 } else { sorted[middle] }
}

/// Figures of one kind, by side, round by round.
#[derive(Default)]
struct Figures(BTreeMap<&'static str, Vec<f64>>);

impl Figures {
    fn push(&mut self, side: &Side, value: f64) {
        self.0.entry(side.name).or_default().push(value);
    }

    /// The median of the rounds' ratios: what slows both in a round falls out.
    fn times(&self, other: &str) -> f64 {
        median(&self.0[FOREBAY].iter().zip(&self.0[other]).map(|(ours, theirs)| ours / theirs).collect::<Vec<_>>())
    }

    fn print(&self, what: &str, unit: &str) {
        println!("{what}, {unit}:");
        for (side, values) in &self.0 {
            let rounds = values.iter().map(|value| format!("{value:.1}")).collect::<Vec<_>>().join(" ");
            println!("  {side:8} {:.1} (rounds: {rounds})", median(values));
        }
    }

    /// Prints how many times nginx's and the earlier Forebay's figure ours is, and says whether the targets are met.
    fn compare(&self, what: &str, unit: &str, target: f64, goal: f64) -> bool {
        self.print(what, unit);
        let mut met = verdict(&format!("× {NGINX}"), self.times(NGINX), target, goal);
        if self.0.contains_key(BASE) {
            met &= verdict(&format!("× {BASE}"), self.times(BASE), 1.05, 1.0);
        }
        met
    }
}

fn verdict(what: &str, got: f64, target: f64, goal: f64) -> bool {
    let met = got <= target;
    println!("  {what}: {got:.2} (target {target}, goal {goal}): {}", if met { "met" } else { "MISSED" });
    met
}

async fn compare() -> Fallible<bool> {
    let full = std::env::var("FOREBAY_SIZE").is_ok_and(|size| size == "full");
    let (rounds, window) = if full { (7, Duration::from_secs(5)) } else { (5, Duration::from_secs(2)) };
    let dir = std::env::temp_dir().join(format!("forebay-vs-nginx-{}", std::process::id()));
    fs::create_dir_all(&dir)?;
    let set = |name: &str, default: &str| PathBuf::from(std::env::var_os(name).unwrap_or_else(|| default.into()));
    let built = option_env!("CARGO_BIN_EXE_forebay").unwrap_or("target/release/forebay");
    let base = std::env::var_os("FOREBAY_BASE").map(PathBuf::from);
    let paths = Paths { forebay: set("FOREBAY_BIN", built), base, nginx: set("NGINX_BIN", "nginx"), dir };
    println!("{} beside {}", paths.forebay.display(), paths.nginx.display());
    if let Some(base) = &paths.base {
        println!("base: {}", base.display());
    }
    let result = run(&paths, rounds, window).await;
    let _ = fs::remove_dir_all(&paths.dir);
    result
}

async fn run(paths: &Paths, rounds: usize, window: Duration) -> Fallible<bool> {
    let mut backend = with_many_files(&std::env::current_exe()?);
    let mut mock = Process(backend.env(ROLE, "mock").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?);
    let mut ports = BufReader::new(mock.0.stdout.take().ok_or("no stdout")?).lines();
    let mut port = || -> Fallible<u16> { Ok(ports.next().ok_or("the mock ended")??.parse()?) };
    let backends = [port()?, port()?];

    let (mut chunk, mut unary, mut memory) = (Figures::default(), Figures::default(), Figures::default());
    for round in 0..if rounds > 5 { 3 } else { 1 } {
        println!("memory, round {}: {IDLE_STREAMS} idle streams", round + 1);
        for side in start_all(paths, backends).await? {
            memory.push(&side, memory_per_stream(&side).await?);
        }
    }
    let sides = start_all(paths, backends).await?;
    for round in 0..rounds {
        println!("CPU, round {} of {rounds}", round + 1);
        // Who goes first changes, so that a drift of the machine favours nobody.
        for at in 0..sides.len() {
            let side = &sides[(round + at) % sides.len()];
            chunk.push(side, cpu_per_chunk(side, window).await?);
            unary.push(side, cpu_per_request(side, window).await?);
        }
    }
    println!("\n{STREAMS} streams, one chunk of {} bytes every {} ms each", EVENT.len(), PACE.as_millis());
    let mut met = chunk.compare("CPU per SSE chunk", "us", 2.0, 1.7);
    met &= unary.compare("CPU per unary request", "us", 3.2, 2.7);
    memory.print("memory per idle stream", "KiB");
    met &= verdict("KiB", median(&memory.0[FOREBAY]), 60.0, 60.0);
    Ok(met)
}
