//! A `forebay serve` of its own for each test: own ports, own files, killed by its pid when the test ends. Waiting is always
//! [`eventually`], with a deadline; no test sleeps and hopes (`tests/tidy.rs` sees to it).

use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::client::{Answer, Conn, post};
use crate::mock::Mock;
use crate::names::Names;

/// Whatever should happen happens well before this.
pub(crate) const DEADLINE: Duration = Duration::from_secs(15);

/// Milliseconds.
pub(crate) const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Waits until `look` finds something.
pub(crate) fn eventually<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    eventually_within(DEADLINE, what, look)
}

/// [`eventually`] with a deadline of its own.
pub(crate) fn eventually_within<T>(limit: Duration, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(started.elapsed() < limit, "not within {limit:?}: {what}");
        std::thread::sleep(ms(2));
    }
}

/// [`eventually`] for a test that must not block its own h2 connection, which has the deadline (`client::on_h2`).
pub(crate) async fn awaited<T>(mut look: impl FnMut() -> Option<T>) -> T {
    loop {
        if let Some(found) = look() {
            return found;
        }
        tokio::time::sleep(ms(1)).await;
    }
}

/// Waits until a figure has stopped growing, which is so when it has not risen in 20 looks, 20 ms apart. Returns the highest.
pub(crate) fn settled(limit: Duration, what: &str, mut figure: impl FnMut() -> u64) -> u64 {
    let (started, mut highest, mut same) = (Instant::now(), figure(), 0);
    while same < 20 {
        assert!(started.elapsed() < limit, "not within {limit:?}: {what}");
        std::thread::sleep(ms(20));
        let now = figure();
        same = if now > highest { 0 } else { same + 1 };
        highest = highest.max(now);
    }
    highest
}

/// A port that nothing uses, below those that the system hands out by itself.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let base = 10_000 + u16::try_from(std::process::id() % 200).unwrap() * 100;
    loop {
        let port = base.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % 20_000 + 10_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// The binary under test: this checkout's, or another that `FOREBAY_BIN` names.
pub(crate) fn binary() -> OsString {
    std::env::var_os("FOREBAY_BIN").unwrap_or_else(|| env!("CARGO_BIN_EXE_forebay").into())
}

/// The command that runs it, under a limit or with names of its own if there are such.
fn command(ulimit: Option<&str>, names: Option<&Names>) -> Command {
    if let Some(names) = names {
        return names.command();
    }
    let Some(limit) = ulimit else { return Command::new(binary()) };
    let mut command = Command::new("sh");
    command.args(["-c", &format!("ulimit {limit} && exec \"$0\" \"$@\"")]).arg(binary());
    command
}

/// What a Forebay is started with.
pub(crate) struct Harness {
    sections: String,
    pools: String,
    files: Vec<(String, String)>,
    args: Vec<String>,
    env: Vec<(String, String)>,
    /// What its shell's `ulimit` is told.
    ulimit: Option<&'static str>,
    names: Option<Names>,
    /// The command that is run.
    command: &'static str,
    dir: TempDir,
}

impl Harness {
    pub(crate) fn new() -> Harness {
        Harness {
            sections: String::new(),
            pools: String::new(),
            files: Vec::new(),
            args: Vec::new(),
            env: Vec::new(),
            ulimit: None,
            names: None,
            command: "serve",
            dir: TempDir::new().unwrap(),
        }
    }

    /// A pool of one arm on these backends.
    pub(crate) fn pool(self, model: &str, backends: &[&Mock]) -> Harness {
        self.pool_with(model, "", backends)
    }

    /// The same with more keys of the pool. Round robin, unless these say otherwise: the first request goes anywhere, and
    /// none goes twice in a row to the same backend.
    pub(crate) fn pool_with(mut self, model: &str, keys: &str, backends: &[&Mock]) -> Harness {
        let urls: Vec<String> = backends.iter().map(|mock| format!("{{ url = \"{}\" }}", mock.url())).collect();
        let policy = if keys.contains("policy") { "" } else { "policy = \"round_robin\"\n" };
        writeln!(self.pools, "[[pools]]\nmodel = \"{model}\"\n{policy}{keys}\nbackends = [{}]\n", urls.join(", "))
            .unwrap();
        self
    }

    /// Sections of the config file, before its pools.
    pub(crate) fn config(mut self, toml: &str) -> Harness {
        writeln!(self.sections, "{toml}").unwrap();
        self
    }

    /// Pools as they are written.
    pub(crate) fn pools(mut self, toml: &str) -> Harness {
        writeln!(self.pools, "{toml}").unwrap();
        self
    }

    /// A file beside the config file.
    pub(crate) fn file(mut self, name: &str, text: &str) -> Harness {
        self.files.push((name.to_owned(), text.to_owned()));
        self
    }

    /// An argument of the command line.
    pub(crate) fn arg(mut self, arg: &str) -> Harness {
        self.args.push(arg.to_owned());
        self
    }

    /// A variable of the environment.
    pub(crate) fn env(mut self, name: &str, value: &str) -> Harness {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Starts it under a limit, such as `-n 256`: that many file descriptors.
    pub(crate) fn ulimit(mut self, limit: &'static str) -> Harness {
        self.ulimit = Some(limit);
        self
    }

    /// Starts it where host names are those of a test.
    pub(crate) fn names(mut self, names: &Names) -> Harness {
        self.names = Some(names.clone());
        self
    }

    /// Runs another command than `serve`, with the same arguments.
    #[cfg(feature = "epp")]
    pub(crate) fn command(mut self, command: &'static str) -> Harness {
        self.command = command;
        self
    }

    /// Starts it and waits until it listens.
    pub(crate) fn start(self) -> Forebay {
        let config = self.dir.path().join("forebay.toml");
        for (name, text) in &self.files {
            std::fs::write(self.dir.path().join(name), text).unwrap();
        }
        let mut args = vec![self.command.to_owned()];
        if !self.pools.is_empty() {
            std::fs::write(&config, format!("{}\n{}", self.sections, self.pools)).unwrap();
            args.extend(["--config".to_owned(), config.display().to_string()]);
        }
        args.extend(self.args);
        let dir = Arc::new(self.dir);
        for _ in 0..3 {
            let ports = [free_port(), free_port()];
            let mut forebay = Forebay::spawn(
                command(self.ulimit, self.names.as_ref()),
                args.clone(),
                &self.env,
                ports,
                Arc::clone(&dir),
                config.clone(),
            );
            if forebay.listens() {
                return forebay;
            }
            let log = forebay.log();
            assert!(log.contains("cannot listen"), "forebay did not start:\n{log}");
        }
        panic!("no free ports");
    }
}

/// Lets time pass where that is what a test is about, such as a server that stands still for so long. For what shows in a
/// condition there is [`eventually`].
pub(crate) fn time_passes(time: Duration) {
    std::thread::sleep(time);
}

/// A running Forebay.
pub(crate) struct Forebay {
    child: Child,
    /// Where requests go.
    pub(crate) address: SocketAddr,
    /// Where metrics are.
    pub(crate) admin: SocketAddr,
    /// Its config file, which a test may rewrite.
    pub(crate) config: PathBuf,
    args: Vec<String>,
    env: Vec<(String, String)>,
    log: Lines,
    access: Lines,
    dir: Arc<TempDir>,
}

type Lines = Arc<Mutex<Vec<String>>>;

fn collect(from: impl Read + Send + 'static) -> Lines {
    let lines = Lines::default();
    let into = Arc::clone(&lines);
    std::thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            into.lock().unwrap().push(line);
        }
    });
    lines
}

impl Forebay {
    fn spawn(
        mut command: Command,
        args: Vec<String>,
        env: &[(String, String)],
        ports: [u16; 2],
        dir: Arc<TempDir>,
        config: PathBuf,
    ) -> Forebay {
        let [address, admin] = ports.map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        let mut child = command
            .args(&args)
            .args(["--listen", &address.to_string(), "--admin", &admin.to_string(), "--threads", "1"])
            .args(["--access-log", "json"])
            .envs(env.iter().map(|(name, value)| (name, value)))
            .env_remove("FOREBAY_LOG")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = collect(child.stderr.take().unwrap());
        let access = collect(child.stdout.take().unwrap());
        Forebay { child, address, admin, config, args, env: env.to_vec(), log, access, dir }
    }

    /// Another process with the same arguments and these, on the same addresses.
    pub(crate) fn another(&self, more: &[&str]) -> Forebay {
        let mut args = self.args.clone();
        args.extend(more.iter().map(|arg| (*arg).to_owned()));
        let ports = [self.address.port(), self.admin.port()];
        let mut another =
            Forebay::spawn(command(None, None), args, &self.env, ports, Arc::clone(&self.dir), self.config.clone());
        another.args.clone_from(&self.args);
        another
    }

    /// Waits until it listens; false if it ended instead.
    pub(crate) fn listens(&mut self) -> bool {
        eventually("forebay listens", || {
            if self.child.try_wait().unwrap().is_some() {
                return Some(false);
            }
            self.log().contains("forebay is listening").then_some(true)
        })
    }

    /// A connection to it.
    pub(crate) fn open(&self) -> Conn {
        Conn::open(self.address)
    }

    /// A JSON request on a connection of its own.
    pub(crate) fn post(&self, path: &str, body: &str) -> Answer {
        self.open().ask(&post(path, &[], body.as_bytes()))
    }

    /// A request without a body on a connection of its own.
    pub(crate) fn get(&self, path: &str) -> Answer {
        self.open().ask(format!("GET {path} HTTP/1.1\r\nhost: forebay\r\n\r\n").as_bytes())
    }

    /// What it has logged.
    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap().join("\n")
    }

    /// How many lines of its log say this, once one does: what it logs gets here later than what it shows elsewhere.
    pub(crate) fn tells(&self, text: &str) -> usize {
        eventually(&format!("a log line with: {text}"), || Some(self.logged(text)).filter(|lines| *lines > 0))
    }

    /// How many lines of its log say this by now.
    pub(crate) fn logged(&self, text: &str) -> usize {
        self.log.lock().unwrap().iter().filter(|line| line.contains(text)).count()
    }

    /// The lines of its access log.
    pub(crate) fn access(&self) -> Vec<Value> {
        self.access.lock().unwrap().iter().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// The access log's line of the request with this id.
    pub(crate) fn record(&self, request_id: &str) -> Value {
        eventually(&format!("an access log line of {request_id}"), || {
            self.access().into_iter().find(|record| record["request_id"] == request_id)
        })
    }

    /// The text of `/metrics`.
    pub(crate) fn metrics(&self) -> String {
        let answer = Conn::open(self.admin).ask(b"GET /metrics HTTP/1.1\r\nhost: admin\r\n\r\n");
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.text()
    }

    /// The sum over the series of a metric that have all these `label="value"` in them; 0 where there is none.
    pub(crate) fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let text = self.metrics();
        let series = text.lines().filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            let (labels_of, value) = match rest.strip_prefix('{') {
                Some(rest) => rest.rsplit_once("} ")?,
                None => ("", rest.strip_prefix(' ')?),
            };
            labels.iter().all(|label| labels_of.contains(label)).then(|| value.parse::<f64>().unwrap())
        });
        series.fold(0.0, |sum, value| sum + value)
    }

    /// What `/api/fleet` says of this backend.
    pub(crate) fn backend(&self, mock: &Mock) -> Value {
        let answer = Conn::open(self.admin).ask(b"GET /api/fleet HTTP/1.1\r\nhost: admin\r\n\r\n");
        let fleet: Value = serde_json::from_str(&answer.text()).unwrap();
        let arms = fleet["pools"].as_array().unwrap().iter().flat_map(|pool| pool["arms"].as_array().unwrap());
        let mut backends = arms.flat_map(|arm| arm["backends"].as_array().unwrap());
        backends.find(|backend| backend["url"] == mock.url()).unwrap_or_else(|| panic!("{fleet}")).clone()
    }

    /// Waits until this backend is in this state.
    pub(crate) fn await_state(&self, mock: &Mock, state: &str) {
        eventually(&format!("{} is {state}", mock.url()), || (self.backend(mock)["state"] == state).then_some(()));
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal, such as `TERM`.
    pub(crate) fn signal(&self, name: &str) {
        let sent = Command::new("kill").arg(format!("-{name}")).arg(self.pid().to_string()).status().unwrap();
        assert!(sent.success());
    }

    /// Waits for its end.
    pub(crate) fn exit(&mut self, limit: Duration) -> ExitStatus {
        eventually_within(limit, "forebay exits", || self.child.try_wait().unwrap())
    }

    /// Whether it has not ended yet.
    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Memory that it holds, in KiB.
    pub(crate) fn rss_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }
}

impl Drop for Forebay {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
        if std::thread::panicking() {
            let access = self.access.lock().unwrap();
            let latest = &access[access.len().saturating_sub(10)..];
            eprintln!("---- forebay said:\n{}\n{}", self.log(), latest.join("\n"));
        }
    }
}
