//! `forebay status`: the pools, arms and backends of a running proxy on one screen. Reads what the live page shows (`/api/live`),
//! and says by its exit code whether something is out.

mod screen;

use std::io::IsTerminal;
use std::process::ExitCode;

use serde::{Deserialize, Serialize};

use super::admin::{AdminClient, AdminError, Proxies};

/// The arguments of `forebay status`.
#[derive(Debug, clap::Args)]
#[command(
    about = "Show pools, arms and backends of a running proxy on one screen",
    long_about = "Show pools, arms and backends of a running proxy on one screen: each backend with its state and the reason, what \
        is in flight and waits, and its time to first token over the last five minutes.",
    after_help = "Exit codes: 0 all is well, 1 a backend is ejected, probing or misconfigured, an arm has none, or a proxy is not ready or cannot be \
        asked, 2 wrong usage. A drained backend is out because somebody wanted it, which is well.\n\n\
        Examples:\n  \
        forebay status\n  \
        forebay status --admin http://proxy-1:8081 --admin http://proxy-2:8081\n  \
        watch -n 2 forebay status"
)]
pub struct Args {
    #[command(flatten)]
    proxies: Proxies,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// The state of all proxies that were asked.
#[derive(Debug, Serialize)]
struct StatusReport {
    /// True if nothing is out.
    ok: bool,
    proxies: Vec<AskedProxy>,
}

/// One proxy: what it says, or why it says nothing.
#[derive(Debug, Serialize)]
struct AskedProxy {
    admin: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(flatten)]
    live: Option<ProxyStatus>,
}

/// The part of `/api/live` that is shown.
#[derive(Debug, Deserialize, Serialize)]
struct ProxyStatus {
    version: String,
    uptime_seconds: f64,
    listen: String,
    not_ready: Option<String>,
    pools: Vec<Pool>,
}

#[derive(Debug, Deserialize, Serialize)]
struct Pool {
    model: String,
    policy: String,
    wait_room: WaitRoom,
    arms: Vec<Arm>,
}

#[derive(Debug, Deserialize, Serialize)]
struct WaitRoom {
    waiting: u32,
    size: usize,
}

#[derive(Debug, Deserialize, Serialize)]
struct Arm {
    name: String,
    share: f64,
    gpus: u32,
    waiting: u32,
    figures: Windows,
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<BackendSource>,
    backends: Vec<Backend>,
}

/// The source of an arm's backends.
#[derive(Debug, Deserialize, Serialize)]
struct BackendSource {
    kind: String,
    target: String,
    age_seconds: Option<f64>,
    found: usize,
    error: Option<String>,
}

impl Arm {
    /// Returns why it serves nothing although none of its backends is out: it has none.
    fn lacks_backends(&self) -> Option<String> {
        if !self.backends.is_empty() {
            return None;
        }
        let Some(source) = &self.source else { return Some("no backend".to_owned()) };
        let why = match (&source.error, source.age_seconds) {
            (Some(error), _) => error.as_str(),
            (None, Some(_)) => "it names none",
            (None, None) => "it has not answered yet",
        };
        Some(format!("no backend from {} {}: {why}", source.kind, source.target))
    }
}

#[derive(Debug, Deserialize, Serialize)]
struct Backend {
    url: String,
    state: String,
    reason: Option<String>,
    state_for_seconds: f64,
    prefilling: u32,
    decoding: u32,
    queue_depth: Option<f64>,
    figures: Windows,
}

impl Backend {
    /// Returns whether it takes no requests although nobody wants that.
    fn is_out(&self) -> bool {
        !matches!(self.state.as_str(), "healthy" | "drained")
    }
}

/// The figures of the window that is shown.
#[derive(Debug, Deserialize, Serialize)]
struct Windows {
    #[serde(rename = "5m")]
    five_minutes: Figures,
}

#[derive(Debug, Deserialize, Serialize)]
struct Figures {
    requests: u64,
    failed: u64,
    ttft: Spread,
}

#[derive(Debug, Deserialize, Serialize)]
struct Spread {
    p50_seconds: Option<f64>,
    p95_seconds: Option<f64>,
}

impl AskedProxy {
    fn ask(client: &AdminClient<'_>) -> AskedProxy {
        let admin = client.url().to_owned();
        // Proxies of two versions run side by side during an upgrade.
        let unlike = |error| AdminError::Proxy(format!("{admin} answers unlike this version: {error}"));
        match client.get("/api/live").and_then(|text| serde_json::from_slice(&text).map_err(unlike)) {
            Ok(live) => AskedProxy { admin, error: None, live: Some(live) },
            Err(error) => AskedProxy { admin, error: Some(error.words()), live: None },
        }
    }

    fn is_well(&self) -> bool {
        let well = |live: &ProxyStatus| {
            let empty = live.arms().any(|arm| arm.lacks_backends().is_some());
            live.not_ready.is_none() && !empty && !live.backends().any(Backend::is_out)
        };
        self.live.as_ref().is_some_and(well)
    }
}

impl ProxyStatus {
    fn arms(&self) -> impl Iterator<Item = &Arm> {
        self.pools.iter().flat_map(|pool| &pool.arms)
    }

    fn backends(&self) -> impl Iterator<Item = &Backend> {
        self.arms().flat_map(|arm| &arm.backends)
    }
}

/// Runs the command.
#[must_use]
pub fn run(args: &Args) -> ExitCode {
    let clients = match args.proxies.clients() {
        Ok(clients) => clients,
        Err(error) => {
            eprintln!("forebay status: {}", error.words());
            return ExitCode::from(2);
        }
    };
    // One after the other: a proxy that does not answer costs ten seconds, and the others are shown all the same.
    let proxies: Vec<AskedProxy> = clients.iter().map(AskedProxy::ask).collect();
    let report = StatusReport { ok: proxies.iter().all(AskedProxy::is_well), proxies };
    if args.json {
        println!("{:#}", serde_json::to_value(&report).expect("plain structs with string keys are JSON"));
    } else {
        let colour = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|no| no.is_empty());
        print!("{}", screen::text(&report, colour));
    }
    if report.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
