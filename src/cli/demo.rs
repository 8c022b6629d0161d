//! `forebay demo`: two arms of simulated servers behind the real proxy, the benchmark's load through it, and a table by arm
//! and by backend. The one place that composes server, simulator and load generator. Every figure is labelled as simulated.

use std::io::{IsTerminal, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::bench::client::{Client, Progress, Run, Sending, Target};
use crate::bench::workload::{Endpoint, Length, Rate, Workload};
use crate::config::model::{Admin, Arm, Backend, Config, Listen, Pool};
use crate::server::{self, AccessLogFormat, Options, Source};
use crate::sim::http::{Sim, SimOptions, listen, serve_sim};
use crate::sim::profile::Profile;

mod report;

use report::Report;

/// The header that makes a request a session of its own.
const SESSION: &str = "x-session-id";
/// How long the proxy may take to find its backends.
const READY: Duration = Duration::from_secs(15);
/// Tokens of each prompt and, at most, of each answer: the benchmark's.
const INPUT_LEN: u32 = 100;
const OUTPUT_LEN: u32 = 600;

/// Show two simulated TP=1 replicas against one simulated TP=2 instance, behind the real proxy. Needs no GPU.
///
/// Sends the load of a public benchmark (300 requests at once, 100 tokens in, up to 600 out), half of the sessions to each
/// arm, and prints what each arm and each backend made of it.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Requests, all sent at once
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub requests: u32,
    /// How many times as fast as real GPUs; less, if the machine lags
    #[arg(long, default_value_t = 2.0, value_parser = super::sim::positive)]
    pub time_scale: f64,
    /// For prompts, answers and sessions
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Print one JSON object instead of tables
    #[arg(long)]
    pub json: bool,
}

/// An arm of simulated servers.
#[derive(Clone, Debug)]
struct SimArm {
    name: &'static str,
    profile: &'static str,
    replicas: u32,
}

/// The question: the same two GPUs (each arm has two of its own here) as two replicas, or as one instance.
const ARMS: [SimArm; 2] = [
    SimArm { name: "tp1x2", profile: "rtx4090-tp1-qwen7b", replicas: 2 },
    SimArm { name: "tp2", profile: "rtx4090-tp2-qwen7b", replicas: 1 },
];

struct Running {
    name: String,
    gpus: u32,
    backends: Vec<(SocketAddr, Arc<Sim>)>,
}

/// Starts the proxy on threads of its own, to be called outside of any runtime. It serves until the process ends.
fn start_proxy(config: Config) -> Result<Vec<Target>, String> {
    let access_log = AccessLogFormat::Off;
    let options = Options { config, source: Source::Fixed, access_log, signals: false, upgrade: false };
    let handle = server::start(options).map_err(|error| error.to_string())?;
    Ok(vec![Target::of(format!("http://{}", handle.data))])
}

/// Runs the demo.
#[must_use]
pub fn run(args: Args) -> ExitCode {
    match perform(&args, &ARMS, OUTPUT_LEN, start_proxy) {
        Ok(report) if args.json => {
            println!("{}", report.json());
            exit(&report)
        }
        Ok(report) => {
            print!("{}", report.text());
            exit(&report)
        }
        Err(error) => {
            eprintln!("forebay demo: {error}");
            ExitCode::FAILURE
        }
    }
}

fn exit(report: &Report) -> ExitCode {
    if report.failed() == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn perform(
    args: &Args,
    arms: &[SimArm],
    output_len: u32,
    start_proxy: impl FnOnce(Config) -> Result<Vec<Target>, String>,
) -> Result<Report, String> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start threads: {error}"))?;
    let profile = |arm: &SimArm| Profile::load(arm.profile).map_err(|error| error.to_string());
    let first = arms.first().ok_or("no arm to show")?;
    let model = profile(first)?.model;
    let mut running = Vec::new();
    for arm in arms {
        let profile = profile(arm)?;
        let mut backends = Vec::new();
        for replica in 0..arm.replicas {
            let options = SimOptions {
                served_model_names: vec![model.clone()],
                time_scale: args.time_scale,
                seed: args.seed.wrapping_add(u64::from(replica)),
                ..SimOptions::of(profile.clone())
            };
            backends.push(runtime.block_on(start_sim(options))?);
        }
        running.push(Running { name: arm.name.to_owned(), gpus: profile.gpus * arm.replicas, backends });
    }
    say(
        args,
        &format!("{} simulated servers of {model}, {} times as fast as real ones", count(&running), args.time_scale),
    );
    let targets = start_proxy(config(&model, &running)?)?;
    let workload = Workload {
        model,
        endpoint: Endpoint::Chat,
        num_prompts: args.requests,
        input_len: INPUT_LEN,
        output_len,
        length: Length::Whole,
        ignore_eos: false,
        temperature: Some(0.0),
        rate: Rate::Unlimited,
        seed: args.seed,
    };
    let run = runtime.block_on(send(args, &targets, &workload, &running))?;
    let lag = running.iter().flat_map(|arm| &arm.backends).map(|(_, sim)| sim.pacer().lag().p99).max();
    let gpus = running.iter().map(|arm| (arm.name.clone(), arm.gpus)).collect();
    let report = Report::of(&run, args, &workload, gpus, lag.unwrap_or_default().max(run.lag_p99));
    runtime.shutdown_timeout(Duration::from_secs(1));
    Ok(report)
}

fn count(running: &[Running]) -> usize {
    running.iter().map(|arm| arm.backends.len()).sum()
}

async fn start_sim(options: SimOptions) -> Result<(SocketAddr, Arc<Sim>), String> {
    let refused = |error: std::io::Error| format!("cannot listen on a loopback port: {error}");
    let listener = listen((Ipv4Addr::LOCALHOST, 0).into()).map_err(refused)?;
    let address = listener.local_addr().map_err(refused)?;
    let sim = Sim::new(options);
    tokio::spawn(serve_sim(listener, Arc::clone(&sim), std::future::pending()));
    Ok((address, sim))
}

/// The proxy's configuration: one pool, the arms with equal shares, free ports on loopback.
fn config(model: &str, running: &[Running]) -> Result<Config, String> {
    let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let mut arms = Vec::new();
    for arm in running {
        let mut backends = Vec::new();
        for (address, _) in &arm.backends {
            let url = format!("http://{address}");
            backends.push(Backend::of(url.parse().map_err(|error| format!("{url}: {error}"))?));
        }
        arms.push(Arm { gpus: arm.gpus, ..Arm::of(arm.name.clone(), backends) });
    }
    Ok(Config {
        listen: Listen { address: loopback, ..Listen::default() },
        admin: Admin { address: loopback, ..Admin::default() },
        pools: vec![Pool { model: model.to_owned(), arms, ..Pool::default() }],
        ..Config::default()
    })
}

async fn send(args: &Args, targets: &[Target], workload: &Workload, running: &[Running]) -> Result<Run, String> {
    let client = Client::default();
    wait_until_ready(&client, targets).await?;
    let (address, _) = running.iter().flat_map(|arm| &arm.backends).next().ok_or("no server to send to")?;
    let bodies = client.bodies(&format!("http://{address}"), workload).await.map_err(|error| error.to_string())?;
    let (requests, prompt, answer) = (args.requests, workload.input_len, workload.output_len);
    say(
        args,
        &format!("sending {requests} requests at once through the proxy, {prompt} tokens in, up to {answer} out"),
    );
    let progress = Arc::new(Progress::default());
    let sending = Sending { session_header: Some(SESSION.to_owned()), ..Sending::default() };
    let shown = show(args, Arc::clone(&progress));
    let run = client.run(targets, workload, &bodies, &sending, &progress);
    let run = tokio::select! {
        run = run => run,
        () = shown => return Err("the progress line ended before the load".to_owned()),
    };
    if !args.json && std::io::stderr().is_terminal() {
        eprintln!();
    }
    Ok(run)
}

/// Waits until each target lists its models.
async fn wait_until_ready(client: &Client, targets: &[Target]) -> Result<(), String> {
    for target in targets {
        let url = format!("{}/v1/models", target.base);
        let mut last = "no answer".to_owned();
        let listed = tokio::time::timeout(READY, async {
            loop {
                match client.json(&url, None).await {
                    Ok(list) if list["data"].as_array().is_some_and(|models| !models.is_empty()) => break,
                    Ok(list) => last = format!("it lists no model: {list}"),
                    Err(error) => last = error.to_string(),
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
        if listed.await.is_err() {
            return Err(format!("the proxy was not ready within {} s: {last}", READY.as_secs()));
        }
    }
    Ok(())
}

/// Shows how far the load is, once a second: one line that is overwritten on a terminal, plain lines elsewhere.
async fn show(args: &Args, progress: Arc<Progress>) {
    let mut every = tokio::time::interval(Duration::from_secs(1));
    every.tick().await;
    for seconds in 1_u64.. {
        every.tick().await;
        if args.json {
            continue;
        }
        let (done, tokens) = (progress.done.load(Ordering::Relaxed), progress.tokens.load(Ordering::Relaxed));
        let line = format!("{seconds:>4} s: {done} of {} answers complete, {tokens} events", args.requests);
        let mut out = std::io::stderr();
        let _ = if out.is_terminal() { write!(out, "\r\x1b[K{line}") } else { writeln!(out, "{line}") };
        let _ = out.flush();
    }
}

/// Tells what happens, to whoever watches and not into the figures.
fn say(args: &Args, line: &str) {
    if !args.json {
        eprintln!("{line}");
    }
}

#[cfg(test)]
mod tests;
