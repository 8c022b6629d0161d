//! Load that disturbs. It is a process of its own, so that it takes no time from the client whose events are measured, and it goes to
//! upstream servers of a process of their own.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hyper::body::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpSocket;
use tokio::task::JoinSet;

use super::Fallible;
use super::client::{Connection, OTHER_MODEL, chat, get, post};
use super::process::Process;
use super::tls::At;
use super::upstream::{Mode, parent_gone};

/// Bytes that a slow reader takes at once, and the time between two times: about 90 events a second, of a stream that has no end of them.
const SIP: usize = 1_000;
const BETWEEN_SIPS: Duration = Duration::from_millis(50);
/// What the kernel may keep for a slow reader, so that the proxy's writes block soon.
const RECEIVE_BUFFER: u32 = 4_096;
/// The time between two scrapes.
const BETWEEN_SCRAPES: Duration = Duration::from_secs(1);
/// The time in which a disturbance must be under way.
const PATIENCE: Duration = Duration::from_secs(30);

/// One kind of disturbance.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    /// Unary requests with so many bytes, one at a time.
    Bodies(usize),
    /// So many clients that read slowly what comes fast.
    Readers(usize),
    /// Scrapes of `/metrics`, one each second.
    Scrapes,
}

impl Kind {
    fn word(self) -> (&'static str, usize) {
        match self {
            Kind::Bodies(size) => ("bodies", size),
            Kind::Readers(number) => ("readers", number),
            Kind::Scrapes => ("scrapes", 0),
        }
    }
}

/// A disturbance that is under way. Dropping it ends it.
pub(super) struct Disturbance {
    process: Process,
    done: Arc<AtomicU64>,
}

impl Disturbance {
    /// Starts a disturbance, and waits until it has done something.
    pub(super) async fn start(kind: Kind, port: u16) -> Fallible<Disturbance> {
        let (word, size) = kind.word();
        let mut command = Command::new(std::env::current_exe()?);
        command.env(super::ROLE, format!("disturb {word} {size} {port}")).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = Process::start(&mut command)?;
        let (lines, done) = (BufReader::new(process.stdout()?).lines(), Arc::new(AtomicU64::new(0)));
        let counted = Arc::clone(&done);
        std::thread::spawn(move || {
            for _ in lines.map_while(Result::ok) {
                counted.fetch_add(1, Ordering::Relaxed);
            }
        });
        let mut disturbance = Disturbance { process, done };
        let began = Instant::now();
        while disturbance.done() == 0 {
            disturbance.goes_on()?;
            if began.elapsed() > PATIENCE {
                return Err(format!("no disturbance by {word} in 30 s").into());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(disturbance)
    }

    /// How often it has done what it does.
    pub(super) fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Fails if it has ended by itself.
    pub(super) fn goes_on(&mut self) -> Fallible<()> {
        if self.process.is_over() { Err("what was to disturb has ended; see above".into()) } else { Ok(()) }
    }
}

/// Disturbs as `role` says: `disturb KIND SIZE PORT`. Prints a line for each thing that is done.
pub(super) async fn run(role: &str) -> Fallible<()> {
    let words: Vec<&str> = role.split_whitespace().collect();
    let [_, kind, size, port] = words.as_slice() else { return Err(format!("{role:?} is no disturbance").into()) };
    let (size, at) = (size.parse()?, At { port: port.parse()?, tls: None });
    let disturbing = async {
        match *kind {
            "bodies" => bodies(&at, size).await,
            "readers" => readers(&at, size).await,
            _ => scrapes(&at).await,
        }
    };
    tokio::select! {
        result = disturbing => result,
        () = parent_gone() => Ok(()),
    }
}

async fn bodies(at: &At, size: usize) -> Fallible<()> {
    let text = "Queues grow where work comes faster than it is done. ";
    let body = chat(OTHER_MODEL, Mode::Unary, &text.repeat(size / text.len()));
    let mut connection = Connection::open(at).await?;
    loop {
        connection.exchange(post(OTHER_MODEL, body.clone())?).await?;
        println!("a body was sent and answered");
    }
}

async fn scrapes(at: &At) -> Fallible<()> {
    let mut connection = Connection::open(at).await?;
    let mut due = tokio::time::interval(BETWEEN_SCRAPES);
    loop {
        due.tick().await;
        connection.exchange(get("/metrics")?).await?;
        println!("scraped");
    }
}

async fn readers(at: &At, number: usize) -> Fallible<()> {
    let body = chat(OTHER_MODEL, Mode::Endless, "Tell me of queues, without an end.");
    let mut readers = JoinSet::new();
    for _ in 0..number {
        readers.spawn(slow_reader(at.port, body.clone()));
    }
    // Until then what the kernel keeps of each stream fills, as fast as the upstream can send.
    tokio::time::sleep(BETWEEN_SIPS * 20).await;
    println!("all are reading");
    match readers.join_next().await {
        Some(ended) => ended?,
        None => Ok(()),
    }
}

async fn slow_reader(port: u16, body: Bytes) -> Fallible<()> {
    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
    let mut stream = socket.connect(([127, 0, 0, 1], port).into()).await?;
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: {OTHER_MODEL}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(&body).await?;
    let mut sip = [0; SIP];
    loop {
        if stream.read(&mut sip).await? == 0 {
            return Err("the stream of a slow reader has ended".into());
        }
        tokio::time::sleep(BETWEEN_SIPS).await;
    }
}
