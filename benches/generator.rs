//! What the load generator of `forebay bench` can time on one core: events a second, CPU for each event, how late it notes
//! them and how late it says that it is. Its client runs on one core, and on another a thread that writes the events of chat
//! streams as vLLM does, noting when: what lies between is the truth that the generator's own lag is held against.
//!
//!     cargo bench --bench generator           FOREBAY_SIZE=full: longer rounds
//!
//! Loopback only; about half a minute. Exit 1 where the target is missed: 30,000 events a second, one after the other, at a
//! lag below 1 ms (P99). Of a burst the last event waits until those before it are read.
//! Where other processes want the cores, their turns are in the figures, unless it runs before them:
//!
//!     CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER="chrt -f 1" cargo bench --bench generator

#![expect(clippy::disallowed_methods, reason = "a benchmark measures real time")]

use std::collections::HashMap;
use std::error::Error;
use std::fs;
use std::hint::black_box;
use std::io::{self, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use forebay_core::stream::Api;
use forebay_lab::load::answer::{AnswerEvent, AnswerReader};
use forebay_lab::load::client::{Client, Progress, Run, Sending, Target};
use forebay_lab::load::dataset::supply::Supply;
use forebay_lab::load::workload::{Endpoint, Length, Rate, Workload};
use forebay_lab::rows::record::Record;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

// As in the binary.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// One event of a chat stream as vLLM 0.32 writes it, in a chunk of its own.
const EVENT: &str = "data: {\"id\":\"chatcmpl-b382a3865df1be9c\",\"object\":\"chat.completion.chunk\",\"created\":1795429251,\
    \"model\":\"mock\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\" short\"},\"logprobs\":null,\"finish_reason\":null,\
    \"token_ids\":null}]}\n\n";
const HEAD: &str =
    "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n";
const SESSION: &str = "x-session-id";

/// As many sequences as vLLM runs at once unless told otherwise.
const STREAMS: u32 = 256;
const RATES: [u32; 5] = [10_000, 20_000, 30_000, 40_000, 60_000];
const TARGET_RATE: u32 = 30_000;
const TARGET_LAG: Duration = Duration::from_millis(1);

type Fallible<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// When the events of a step are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pattern {
    /// One after the other over the step, as many servers give them.
    Spread,
    /// All at its end, as one server gives them.
    Burst,
}

/// A load: `STREAMS` streams of so many events each.
#[derive(Clone, Copy, Debug)]
struct Load {
    pattern: Pattern,
    rate: u32,
    events: u32,
}

/// When each event was written, by stream.
type Written = HashMap<String, Vec<Instant>>;

fn main() -> ExitCode {
    match measure() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("generator: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure() -> Fallible<bool> {
    let full = std::env::var("FOREBAY_SIZE").is_ok_and(|size| size == "full");
    let seconds = if full { 10 } else { 3 };
    let cores = two_cores()?;
    pin(cores[0])?;
    println!("{STREAMS} streams, the generator on core {}, the server on core {}", cores[0], cores[1]);
    println!("reading an event of {} bytes: {} ns", EVENT.len(), reading().as_nanos());
    println!(
        "{:7} {:>8} {:>8} {:>9} {:>7} {:>10} {:>10} {:>10}",
        "", "asked/s", "noted/s", "CPU", "core", "late P50", "late P99", "lag P99"
    );
    let mut met = true;
    for pattern in [Pattern::Spread, Pattern::Burst] {
        for rate in RATES {
            let figures = round(Load { pattern, rate, events: rate * seconds / STREAMS }, cores[1])?;
            println!("{pattern:7?} {rate:>8} {figures}");
            if pattern == Pattern::Spread && rate == TARGET_RATE {
                met = figures.rate > 0.98 * f64::from(rate) && figures.lag < TARGET_LAG;
            }
        }
    }
    let verdict = if met { "met" } else { "MISSED" };
    println!("target, {TARGET_RATE} events/s, spread, at a lag P99 below {TARGET_LAG:?}: {verdict}");
    Ok(met)
}

fn two_cores() -> Fallible<[usize; 2]> {
    let allowed = sched_getaffinity(Pid::from_raw(0))?;
    let mut cores = (0..CpuSet::count()).filter(|core| allowed.is_set(*core).unwrap_or(false));
    match (cores.next(), cores.next()) {
        (Some(one), Some(other)) => Ok([one, other]),
        _ => Err("it needs two cores, one for the generator and one for the server".into()),
    }
}

/// Keeps this thread, and those that it starts, on one core.
fn pin(core: usize) -> Fallible<()> {
    let mut set = CpuSet::new();
    set.set(core)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &set)?)
}

/// CPU time of all threads of this process but the server's, and those that end while it is read.
fn cpu() -> Fallible<Duration> {
    let mut nanos = 0;
    for task in fs::read_dir("/proc/self/task")?.flatten() {
        let read = |file| fs::read_to_string(task.path().join(file));
        let (Ok(name), Ok(line)) = (read("comm"), read("schedstat")) else { continue };
        if name.trim_end() != SERVER {
            nanos += line.split_whitespace().next().ok_or("an empty schedstat")?.parse::<u64>()?;
        }
    }
    Ok(Duration::from_nanos(nanos))
}

/// What the parser takes for an event, of all that an event takes.
fn reading() -> Duration {
    const EVENTS: u32 = 200_000;
    let (mut reader, mut read) = (AnswerReader::new(Api::Chat), 0);
    let begin = Instant::now();
    for _ in 0..EVENTS {
        reader.push(black_box(Bytes::from_static(EVENT.as_bytes())), |event| {
            read += u32::from(event == AnswerEvent::Choice { token: true });
        });
    }
    assert_eq!(read, EVENTS, "each is a token event");
    begin.elapsed() / EVENTS
}

// ---- the server ----------------------------------------------------------------------------------------------------

const SERVER: &str = "server";

/// Takes a request on each of the streams, then writes their events, and says when.
fn serve(listener: &TcpListener, load: Load) -> io::Result<Written> {
    let mut streams = Vec::new();
    for _ in 0..STREAMS {
        let (mut socket, _) = listener.accept()?;
        socket.set_nodelay(true)?;
        let session = session(&mut socket)?;
        socket.write_all(HEAD.as_bytes())?;
        streams.push((session, socket, Vec::with_capacity(load.events as usize)));
    }
    let event = chunk(EVENT);
    let begin = Instant::now();
    let nanos = |events: u64| Duration::from_nanos(events * 1_000_000_000 / u64::from(load.rate));
    for step in 0..u64::from(load.events) {
        for (at, (_, socket, written)) in streams.iter_mut().enumerate() {
            let due = match load.pattern {
                Pattern::Spread => step * u64::from(STREAMS) + at as u64,
                Pattern::Burst => (step + 1) * u64::from(STREAMS),
            };
            let early = (begin + nanos(due)).saturating_duration_since(Instant::now());
            if !early.is_zero() {
                thread::sleep(early);
            }
            written.push(Instant::now());
            socket.write_all(event.as_bytes())?;
        }
    }
    let usage = format!(
        "data: {{\"choices\":[],\"usage\":{{\"prompt_tokens\":9,\"total_tokens\":9,\"completion_tokens\":{}}}}}\n\n",
        load.events
    );
    let end = chunk(&usage) + &chunk("data: [DONE]\n\n") + "0\r\n\r\n";
    for (_, socket, _) in &mut streams {
        socket.write_all(end.as_bytes())?;
    }
    Ok(streams.into_iter().map(|(session, _, written)| (session, written)).collect())
}

fn chunk(data: &str) -> String {
    format!("{:x}\r\n{data}\r\n", data.len())
}

/// Reads a request to the end of its body, which is JSON, and gives its session.
fn session(socket: &mut TcpStream) -> io::Result<String> {
    let (mut request, mut buffer) = (Vec::new(), [0; 4096]);
    while !request.ends_with(b"}") {
        match socket.read(&mut buffer)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => request.extend_from_slice(&buffer[..count]),
        }
    }
    let text = String::from_utf8_lossy(&request).into_owned();
    let value = text.lines().find_map(|line| line.strip_prefix(SESSION)?.strip_prefix(": "));
    value.map(str::to_owned).ok_or_else(|| io::Error::other("a request without a session"))
}

// ---- what is measured ----------------------------------------------------------------------------------------------

/// What a round gave.
struct Figures {
    /// Events noted a second.
    rate: f64,
    /// CPU time for each.
    cpu: Duration,
    /// From writing to noting, at the median and the 99th percentile.
    late: [Duration; 2],
    /// What the generator says of itself, at the 99th percentile.
    lag: Duration,
}

impl std::fmt::Display for Figures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let core = self.rate * self.cpu.as_secs_f64() * 100.0;
        let micros = |time: Duration| time.as_nanos() as f64 / 1e3;
        let millis = |time: Duration| time.as_nanos() as f64 / 1e6;
        write!(f, "{:>8.0} {:>6.2} us {core:>5.1} %", self.rate, micros(self.cpu))?;
        [self.late[0], self.late[1], self.lag].iter().try_for_each(|time| write!(f, " {:>7.3} ms", millis(*time)))
    }
}

fn round(load: Load, core: usize) -> Fallible<Figures> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let base = format!("http://{}", listener.local_addr()?);
    let server = thread::Builder::new().name(SERVER.to_owned()).spawn(move || {
        pin(core)?;
        Fallible::Ok(serve(&listener, load)?)
    })?;
    // As in the command.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let before = cpu()?;
    let (begin, run) = runtime.block_on(send(&base, load));
    let spent = cpu()? - before;
    // Before the server is waited for: it may wait for a stream that never comes.
    if let Some(failed) = run.records.iter().find(|record| !record.succeeded()) {
        return Err(format!("a stream failed: {:?} {:?}", failed.outcome, failed.error).into());
    }
    let written = server.join().map_err(|_| "the server panicked")??;
    let mut late = Vec::new();
    let mut last = begin;
    for record in &run.records {
        let written = written.get(&session_of(record.id)).ok_or("a record without a stream")?;
        let noted = noted(record, begin);
        if noted.len() != written.len() {
            return Err(format!("of {} events {} were noted", written.len(), noted.len()).into());
        }
        last = last.max(noted[noted.len() - 1]);
        late.extend(noted.iter().zip(written).map(|(noted, written)| noted.saturating_duration_since(*written)));
    }
    late.sort_unstable();
    let first = written.values().filter_map(|times| times.first()).min().ok_or("no event")?;
    Ok(Figures {
        rate: late.len() as f64 / (last - *first).as_secs_f64(),
        cpu: spent / late.len() as u32,
        late: [late[late.len() / 2], late[late.len() * 99 / 100]],
        lag: run.lag_p99,
    })
}

const SEED: u64 = 1;

/// The session of a request, as the client numbers them.
fn session_of(id: u32) -> String {
    format!("{SEED:x}-{id}")
}

/// When each event of a record was noted.
fn noted(record: &Record, begin: Instant) -> Vec<Instant> {
    let mut at = begin + Duration::from_micros(record.sent_us);
    let gaps = record.first_event_us.iter().chain(&record.gaps_us);
    let times = gaps.map(|gap| {
        at += Duration::from_micros(*gap);
        at
    });
    times.collect()
}

/// Sends the load with the client of `forebay bench`; gives when it began as well.
async fn send(base: &str, load: Load) -> (Instant, Run) {
    let workload = Workload {
        model: "mock".to_owned(),
        endpoint: Endpoint::Chat,
        num_prompts: STREAMS,
        input_len: 9,
        output_len: load.events,
        length: Length::Whole,
        ignore_eos: true,
        temperature: None,
        rate: Rate::Unlimited,
        seed: SEED,
    };
    let body = |id| Bytes::from(workload.body(&workload.words(id, workload.input_len)));
    let bodies = Supply::Ready((0..STREAMS).map(body).collect());
    let sending = Sending { session_header: Some(SESSION.to_owned()), ..Sending::default() };
    let (client, progress) = (Client::default(), Arc::new(Progress::default()));
    let begin = Instant::now();
    let run = client.run(&[Target::of(base)], &workload, &bodies, &sending, &progress).await;
    (begin, run)
}
