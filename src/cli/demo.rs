//! `forebay demo`: the benchmark's three arrangements of two GPUs, and the fourth that it lacks, as simulated servers behind the
//! real proxy; the benchmark's load through it over HTTP; its table beside what was measured, the verdict and the reasons. The
//! one place that composes server, simulator and load generator. Every figure is labelled as simulated or as measured.

use std::fs::File;
use std::io::{BufWriter, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::server::{self, Options, Serving, Source};
use forebay_core::clock::Clock;
use forebay_fleet::config::model::Config;
use forebay_lab::load::client::{Client, Progress, Sending, Target};
use forebay_lab::load::dataset::Dataset;
use forebay_lab::load::run::{self, RunSpec, WarmUp};
use forebay_lab::load::sampler::Scraped;
use forebay_lab::load::workload::{Endpoint, Length, Rate, Workload};
use forebay_lab::rows::published_benchmark::LOAD;
use forebay_lab::rows::row_file::{Load, Offered, RunHead, RunRows};

mod fleet;
mod live;
mod report;

use fleet::{Fleet, Running, SimArm};
use report::Report;

/// The time within which the proxy must find its backends.
const READY: Duration = Duration::from_secs(15);

/// The model of the benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Model {
    /// DeepSeek-R1-Distill-Qwen-7B
    Qwen7b,
    /// DeepSeek-R1-Distill-Llama-8B
    Llama8b,
}

impl Model {
    fn name(self) -> &'static str {
        match self {
            Model::Qwen7b => "qwen7b",
            Model::Llama8b => "llama8b",
        }
    }

    /// Returns the speed relative to real GPUs, so that the whole takes about a minute: S3 of Qwen-7B takes 107 s, of Llama-8B 191.
    fn time_scale(self) -> f64 {
        match self {
            Model::Qwen7b => 2.0,
            Model::Llama8b => 3.5,
        }
    }
}

/// Show what two GPUs are best used for, on simulated servers behind the real proxy. Needs no GPU.
///
/// Sends the load of a public benchmark (300 requests at once, 100 tokens in, up to 600 out) to its three layouts (S1: one
/// GPU, S3: TP=1 on a host with two, S2: both as one TP=2 instance) and to the one that it lacks (S4: two TP=1 replicas), and
/// prints the simulated figures beside the measured ones, the verdict, and what limited each.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The model of the benchmark
    #[arg(long, value_enum, default_value = "qwen7b")]
    pub model: Model,
    /// Requests for each layout, all sent at once
    #[arg(long, default_value_t = LOAD.0, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub requests: u32,
    /// Speed relative to real GPUs; less, if the machine lags [default: 2, or 3.5 for llama8b]
    #[arg(long, value_parser = super::sim::positive)]
    pub time_scale: Option<f64>,
    /// Seed of prompts, answers and sessions
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Print one JSON object instead of tables
    #[arg(long)]
    pub json: bool,
    /// Write the rows of all four to a file, for `forebay compare`
    #[arg(long, value_name = "FILE.jsonl")]
    pub output: Option<PathBuf>,
    /// Then go on with light traffic on two arms, and the live page, until interrupted
    #[arg(long)]
    pub live: bool,
}

impl Args {
    fn scale(&self) -> f64 {
        self.time_scale.unwrap_or(self.model.time_scale())
    }
}

/// The targets of an arm, by its name.
type Targets = Box<dyn Fn(&str) -> Vec<Target>>;

/// A proxy that was started: the targets of requests, and the address of its page.
struct StartedProxy {
    targets: Targets,
    page: Option<String>,
}

/// Starts the proxy on threads of its own, to be called outside of any runtime. It serves until the process ends.
fn start_proxy(config: Config) -> Result<StartedProxy, String> {
    let options = Options { config, source: Source::Fixed, signals: false, upgrade: false, front: Serving::Clients };
    let handle = server::start(options).map_err(|error| error.to_string())?;
    let base = format!("http://{}", handle.data);
    let page = Some(format!("http://{}/dashboard", handle.admin));
    Ok(StartedProxy { targets: Box::new(move |_| vec![Target::of(base.clone())]), page })
}

/// Runs the demo.
#[must_use]
pub fn run(args: Args) -> ExitCode {
    let arms = fleet::arms(args.model.name());
    let print = |report: &Report| {
        if args.json {
            println!("{}", report.json());
        } else {
            print!("{}", report.text());
        }
    };
    match perform(&args, &arms, LOAD.2, start_proxy, print) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("forebay demo: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Requests that got no whole answer.
fn perform(
    args: &Args,
    arms: &[SimArm],
    output_len: u32,
    start_proxy: impl FnOnce(Config) -> Result<StartedProxy, String>,
    print: impl FnOnce(&Report),
) -> Result<u64, String> {
    // Servers and load share it; the proxy has threads of its own, as if it ran elsewhere.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start threads: {error}"))?;
    let fleet = runtime.block_on(Fleet::start(arms, args.live, args.scale(), args.seed))?;
    say(args, &format!("{} simulated servers, {} times as fast as real ones", fleet.servers(), args.scale()));
    let front = start_proxy(fleet.config()?)?;
    let report = runtime.block_on(measure(args, &fleet, &front, output_len))?;
    print(&report);
    if args.live {
        runtime.block_on(live::go_on(&fleet, &front, args))?;
    }
    // Simulated servers serve for ever: what they still hold is dropped.
    runtime.shutdown_timeout(Duration::from_secs(1));
    Ok(report.failed())
}

async fn measure(args: &Args, fleet: &Fleet, front: &StartedProxy, output_len: u32) -> Result<Report, String> {
    let client = Client::default();
    for arm in fleet.all() {
        wait_until_ready(&client, &(front.targets)(&arm.name)).await?;
    }
    let specs: Vec<RunSpec> = fleet.arms.iter().map(|arm| spec(args, arm, front, output_len)).collect();
    let (prompt, answer) = (LOAD.1, output_len);
    say(
        args,
        &format!(
            "sending {} requests at once through the proxy to each of {}: {prompt} tokens in, up to {answer} out",
            args.requests,
            fleet.arms.iter().map(|arm| arm.name.as_str()).collect::<Vec<_>>().join(", ")
        ),
    );
    let progress = Arc::new(Progress::default());
    let shown = show(args, specs.len(), Arc::clone(&progress));
    // S3 makes few tokens for a long time; the others, in turn, take about as long together.
    let one = |index: usize| load(&client, &specs[index], &progress);
    let long = specs.iter().position(|spec| spec.head.arm.as_deref() == Some(fleet::LONGEST));
    let rest: Vec<usize> = (0..specs.len()).filter(|index| Some(*index) != long).collect();
    let in_turn = async {
        let mut rows = Vec::new();
        for index in rest {
            rows.push((index, one(index).await?));
        }
        Ok::<_, String>(rows)
    };
    let beside = async {
        match long {
            Some(index) => Ok(Some((index, one(index).await?))),
            None => Ok::<_, String>(None),
        }
    };
    let runs = tokio::select! {
        runs = async { tokio::try_join!(in_turn, beside) } => runs,
        () = shown => return Err("the progress line ended before the load".to_owned()),
    };
    let (mut runs, longest) = runs?;
    runs.extend(longest);
    // Back in the order of the arms: they ended in another.
    runs.sort_by_key(|(index, _)| *index);
    let runs: Vec<RunRows> = runs.into_iter().map(|(_, rows)| rows).collect();
    if !args.json && std::io::stderr().is_terminal() {
        eprintln!();
    }
    if let Some(path) = &args.output {
        write(path, &runs).map_err(|error| format!("cannot write --output {}: {error}", path.display()))?;
    }
    Report::of(args, runs, fleet.lag())
}

async fn load(client: &Client, spec: &RunSpec, progress: &Arc<Progress>) -> Result<RunRows, String> {
    let prompts = run::prepare(client, spec).await.map_err(|error| error.to_string())?;
    run::run(client, spec, &prompts, progress).await.map_err(|error| error.to_string())
}

fn write(path: &PathBuf, runs: &[RunRows]) -> std::io::Result<()> {
    let mut out = BufWriter::new(File::create(path)?);
    for rows in runs {
        run::write(&mut out, rows)?;
    }
    out.flush()
}

fn spec(args: &Args, arm: &Running, front: &StartedProxy, output_len: u32) -> RunSpec {
    let workload = workload(args, &arm.model, args.requests, output_len);
    RunSpec {
        targets: (front.targets)(&arm.name),
        tokenizer: arm.first(),
        dataset: Dataset::Random,
        warm_up: WarmUp::default(),
        sending: Sending::default(),
        scrape: arm.bases().map(|base| Scraped::of(&base)).collect(),
        head: RunHead {
            arm: Some(arm.name.clone()),
            epoch: 0,
            block: None,
            start: None,
            load: Load {
                offered: Offered::Unlimited,
                num_prompts: args.requests,
                dataset: None,
                input_len: Some(workload.input_len),
                output_len: Some(output_len),
                seed: args.seed,
                ..Load::default()
            },
            model: arm.serves.clone(),
            gpus: Some(arm.gpus),
            replicas: Some(arm.backends.len() as u32),
            max_num_seqs: Some(arm.max_num_seqs),
            simulated: true,
            ..RunHead::default()
        },
        workload,
        time_scale: args.scale(),
    }
}

fn workload(args: &Args, model: &str, num_prompts: u32, output_len: u32) -> Workload {
    Workload {
        model: model.to_owned(),
        endpoint: Endpoint::Chat,
        num_prompts,
        input_len: LOAD.1,
        length: Length::Whole,
        output_len,
        // As in the benchmark: "up to" 600 tokens, at no temperature.
        ignore_eos: false,
        temperature: Some(0.0),
        rate: Rate::Unlimited,
        seed: args.seed,
    }
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

/// Shows how far the load is, once a second: one line that is overwritten on a terminal, plain lines elsewhere, fewer.
async fn show(args: &Args, arms: usize, progress: Arc<Progress>) {
    let total = u64::from(args.requests) * arms as u64;
    let terminal = std::io::stderr().is_terminal();
    let mut every = tokio::time::interval(Duration::from_secs(if terminal { 1 } else { 5 }));
    let clock = Clock::system();
    let begin = clock.now();
    every.tick().await;
    loop {
        every.tick().await;
        // Runs on all the same: the load is awaited beside this future, whose end would be taken for a failure.
        if args.json {
            continue;
        }
        let (done, tokens) = (progress.done.load(Ordering::Relaxed), progress.tokens.load(Ordering::Relaxed));
        let line =
            format!("{:>4} s: {done} of {total} answers complete, {tokens} events", clock.now().since(begin).as_secs());
        let mut out = std::io::stderr();
        let _ = if terminal { write!(out, "\r\x1b[K{line}") } else { writeln!(out, "{line}") };
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
