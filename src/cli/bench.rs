//! `forebay bench`: sends a load to a server, times it, and says what came of it.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use http::{HeaderName, HeaderValue};
use tokio::signal::unix::{SignalKind, signal};

use forebay_lab::load::client::{Client, Progress, Sending, Target};
use forebay_lab::load::counting::Counted;
use forebay_lab::load::run::{self, RunSpec, WarmUp};
use forebay_lab::load::sampler::Scraped;
use forebay_lab::load::workload::{Endpoint, Length, Rate, Workload};
use forebay_lab::rows::results;
use forebay_lab::rows::row_file::{Load, Offered, RunHead, RunRows};
use forebay_lab::rows::slo::Slo;

mod headers;
mod interrupt;
mod load;
mod next;
mod output;
mod progress;
mod servers;

use headers::headers;
use interrupt::{INTERRUPTED, interrupted, until_interrupt};
use load::{Chosen, DatasetArgs};
use output::{opened, written};
use progress::Shown;
use servers::{listed, scraped, told_start};

/// The arguments of `forebay bench`.
#[derive(Clone, Debug, clap::Args)]
#[command(
    about = "Send a load to a server and time it",
    long_about = "Send a load to Forebay, a vLLM or another server of the OpenAI API, and time it. Options are named as \
        those of `vllm bench serve`, and figures are defined as there, but for two: a stream with an error event or without [DONE] \
        counts as failed, and at a rate the duration begins with the first request.\n\n\
        One request is sent first and must be served. Random prompts have exactly --input-len tokens by the server's /tokenize \
        (a chat's template comes on top, as with `vllm bench serve`); without one they are token ids (completions) or words.\n\n\
        To measure prefix caching, choose prompts that begin alike: --random-prefix-len, or --dataset-name prefix_repetition, \
        trace or conversations. The table then shows how many prompt tokens were cached, if the server says it (vLLM and \
        `forebay sim`: --enable-prompt-tokens-details).",
    after_help = "Exit codes: 0 every request was served, 1 some were not or the server does not answer, 2 wrong usage, 130 \
        interrupted: Ctrl-C prints what was measured so far, a second one ends at once.\n\n\
        Examples:\n  \
        forebay bench http://127.0.0.1:8000 --sweep rate=1,2,4,8 --slo ttft=500ms,tpot=50ms --output run.jsonl\n  \
        forebay bench http://127.0.0.1:8000 --dataset-name trace --dataset-path conversation_trace.jsonl --trace-speedup 2\n  \
        forebay bench http://127.0.0.1:8000 --dataset-name conversations --request-rate 2 --conversations-think-time 2s"
)]
pub struct Args {
    /// The server: http://host:port
    #[arg(value_parser = |text: &str| Target::parse(text).map_err(|error| error.to_string()))]
    url: Target,
    /// The model to ask for [default: the first that the server lists]
    #[arg(long)]
    model: Option<String>,
    /// The API that requests use
    #[arg(long, default_value = "chat", value_parser = endpoint)]
    endpoint: Endpoint,
    /// Number of requests
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    num_prompts: u32,
    /// Requests a second; inf: all at once
    #[arg(long, default_value = "inf", value_parser = rate)]
    request_rate: f64,
    /// 1: a Poisson process; less: in bursts; more: more even
    #[arg(long, default_value = "1", value_parser = rate)]
    burstiness: f64,
    /// Requests under way at once, at most
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_concurrency: Option<u32>,
    /// A run for each value: rate=1,2,4,8 or concurrency=1,8,64
    #[arg(long, value_parser = sweep, conflicts_with_all = ["request_rate", "max_concurrency"])]
    sweep: Option<Sweep>,
    /// Let each answer go on up to --output-len
    #[arg(long)]
    ignore_eos: bool,
    /// Temperature of the sampling [default: the server's]
    #[arg(long)]
    temperature: Option<f64>,
    /// Seed of prompts and times; take another for each run, or the server's prefix cache knows the prompts
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Requests before the run that do not count, beside the one that tries the server
    #[arg(long, default_value_t = 0)]
    num_warmups: u32,
    /// Give each request a session of its own in this header
    #[arg(long, value_name = "NAME")]
    session_header: Option<HeaderName>,
    /// A header of every request
    #[arg(long, value_name = "K: V", value_parser = named)]
    header: Vec<(HeaderName, HeaderValue)>,
    /// A file with the API key [default: the environment's OPENAI_API_KEY, if any]
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    /// A vLLM server whose /metrics is scraped every second; once for each [default: the server itself, if it is a vLLM]
    #[arg(long, value_name = "URL", value_parser = |text: &str| Target::parse(text).map_err(|error| error.to_string()))]
    scrape: Vec<Target>,
    /// Scrape no /metrics: each scrape blocks vLLM's event loop for some milliseconds
    #[arg(long, conflicts_with = "scrape")]
    no_scrape: bool,
    /// Limits that a request served well meets: ttft=500ms,tpot=50ms,e2e=10s
    #[arg(long)]
    slo: Option<Slo>,
    /// The arm under test, for the rows
    #[arg(long)]
    arm: Option<String>,
    /// The number of this run of the arm, for the rows
    #[arg(long, default_value_t = 0)]
    epoch: u32,
    /// The start of its servers, for the rows: another number for each time that they were started [default: read from the
    /// /metrics of the servers that answered]
    #[arg(long, value_name = "N")]
    start: Option<u32>,
    /// The block that pairs it with the other arm's run, for the rows
    #[arg(long, value_name = "N")]
    block: Option<u32>,
    /// The number of starts of each arm that will be compared, for the rows: fix it before the first run
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    planned_starts: Option<u32>,
    /// GPUs that the arm occupies, for the rows
    #[arg(long)]
    gpus: Option<u32>,
    /// The --max-num-seqs that the arm's servers were started with, for the rows
    #[arg(long)]
    max_num_seqs: Option<u32>,
    /// Append every request to this file, from which `forebay compare` reads
    #[arg(long, value_name = "FILE.jsonl")]
    output: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Print every figure; else the five that matter most
    #[arg(long, conflicts_with = "json")]
    full: bool,
    // Last: its heading would stand above whatever follows.
    #[command(flatten)]
    dataset: DatasetArgs,
}

/// Loads to offer one after the other.
#[derive(Clone, Debug, PartialEq)]
enum Sweep {
    Rate(Vec<f64>),
    Concurrency(Vec<u32>),
}

/// The reason why there is nothing to show.
enum BenchError {
    Usage(String),
    Run(String),
    Interrupted,
}

fn endpoint(text: &str) -> Result<Endpoint, String> {
    match text {
        "chat" => Ok(Endpoint::Chat),
        "completions" => Ok(Endpoint::Completions),
        _ => Err("it is chat or completions".to_owned()),
    }
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number > 0.0 => Ok(number),
        _ => Err("it is a number above 0, or inf".to_owned()),
    }
}

fn sweep(text: &str) -> Result<Sweep, String> {
    let form = || "it is rate=1,2,4,8 or concurrency=1,8,64".to_owned();
    let (what, values) = text.split_once('=').ok_or_else(form)?;
    match what {
        "rate" => Ok(Sweep::Rate(values.split(',').map(rate).collect::<Result<_, _>>()?)),
        "concurrency" => {
            let limit = |text: &str| text.parse().ok().filter(|limit| *limit > 0).ok_or_else(form);
            Ok(Sweep::Concurrency(values.split(',').map(limit).collect::<Result<_, _>>()?))
        }
        _ => Err(form()),
    }
}

fn named(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let form = || "it is `name: value`".to_owned();
    let (name, value) = text.split_once(':').ok_or_else(form)?;
    let name = name.trim().parse().map_err(|_| form())?;
    Ok((name, HeaderValue::from_str(value.trim()).map_err(|_| form())?))
}

/// Runs the command.
#[must_use]
pub fn run(args: Args) -> ExitCode {
    // One thread: the lag of one event loop is the lag of all that it times.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("forebay bench: cannot start a runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let (message, code) = match runtime.block_on(perform(&args)) {
        Ok(runs) => {
            let slo = args.slo.as_ref();
            match args.json {
                true => println!("{}", results::json(&runs, slo)),
                false => print!("{}{}", results::text(&runs, slo, args.full), next::text(&args, &runs)),
            }
            if runs.iter().any(|run| run.head.is_some() && run.end.is_none()) {
                return ExitCode::from(INTERRUPTED);
            }
            let whole = runs.iter().flat_map(|run| &run.records).all(forebay_lab::rows::record::Record::succeeded);
            return if whole { ExitCode::SUCCESS } else { ExitCode::FAILURE };
        }
        Err(BenchError::Usage(message)) => (message, ExitCode::from(2)),
        Err(BenchError::Run(message)) => (message, ExitCode::FAILURE),
        Err(BenchError::Interrupted) => {
            ("interrupted before any request had ended".to_owned(), ExitCode::from(INTERRUPTED))
        }
    };
    eprintln!("forebay bench: {message}");
    code
}

async fn perform(args: &Args) -> Result<Vec<RunRows>, BenchError> {
    let client = Client::default().with_headers(headers(args).map_err(BenchError::Usage)?);
    let mut chosen = chosen(args).map_err(BenchError::Usage)?;
    // Opened before the load: a path that cannot be written must not cost an hour of GPUs.
    let mut output = match &args.output {
        Some(path) => Some(opened(path).map_err(BenchError::Usage)?),
        None => None,
    };
    let model = match &args.model {
        Some(model) => model.clone(),
        None => listed(&client, &args.url).await.map_err(BenchError::Run)?,
    };
    // Rows of a simulated server say so for good, whoever reads them later.
    let simulated = client
        .json(&format!("{}/version", args.url.base), None)
        .await
        .is_ok_and(|told| told["version"].as_str().is_some_and(|version| version.contains("forebay-sim")));
    if !args.json {
        eprintln!("counting the tokens of {} prompts by {}/tokenize, if it has that", args.num_prompts, args.url.base);
    }
    chosen.count(&client, &args.url.base, &model).await.map_err(BenchError::Run)?;
    if !args.json {
        chosen.notes.iter().for_each(|note| eprintln!("{note}"));
    }
    let caught = |error| BenchError::Run(format!("cannot catch signals: {error}"));
    let mut interrupts = signal(SignalKind::interrupt()).map_err(caught)?;
    let scrape = scraped(args).await;
    let mut runs = Vec::new();
    for (point, offered) in points(args, &chosen).into_iter().enumerate() {
        let spec = spec(args, &model, simulated, (point as u64, offered), &chosen, &scrape);
        let prompts = tokio::select! {
            prompts = run::prepare(&client, &spec) => prompts.map_err(|error| BenchError::Run(error.to_string()))?,
            _ = interrupts.recv() => return interrupted(runs),
        };
        if !args.json && prompts.load.counted == Counted::Words {
            eprintln!(
                "the server has no /tokenize, or too few short words are a token: prompts are words, and their tokens only near the wanted"
            );
        }
        let progress = Arc::new(Progress::default());
        let bar = (!args.json).then(|| Shown::start(chosen.num_prompts, Arc::clone(&progress)));
        let rows = until_interrupt(run::run(&client, &spec, &prompts, &progress), &progress, &mut interrupts).await;
        // Before any message: a line that is still drawn would overwrite it.
        drop(bar);
        let mut rows = rows.map_err(|error| BenchError::Run(error.to_string()))?;
        told_start(args, &mut rows, &scrape).await;
        if let Some(file) = &mut output {
            written(file, &rows).map_err(|error| BenchError::Run(format!("cannot write --output: {error}")))?;
        }
        runs.push(rows);
        if progress.is_stopped() {
            return interrupted(runs);
        }
    }
    Ok(runs)
}

/// Reads what the dataset needs, and checks what does not go together.
fn chosen(args: &Args) -> Result<Chosen, String> {
    let chosen = args.dataset.chosen(args.num_prompts, args.endpoint, args.seed)?;
    let paced = args.request_rate.is_finite() || args.sweep.is_some() || args.burstiness != 1.0;
    if chosen.speedup.is_some() && paced {
        return Err("--request-rate, --burstiness and --sweep do not go with a trace, which has times of its own; \
                    --no-self-timed ignores these"
            .to_owned());
    }
    Ok(chosen)
}

fn points(args: &Args, chosen: &Chosen) -> Vec<Offered> {
    if let Some(speedup) = chosen.speedup {
        return vec![Offered::Trace(speedup)];
    }
    match &args.sweep {
        Some(Sweep::Rate(rates)) => rates.iter().map(|rate| of_rate(*rate)).collect(),
        Some(Sweep::Concurrency(limits)) => limits.iter().map(|limit| Offered::Concurrency(*limit)).collect(),
        None => match (args.request_rate.is_finite(), args.max_concurrency) {
            (false, Some(limit)) => vec![Offered::Concurrency(limit)],
            _ => vec![of_rate(args.request_rate)],
        },
    }
}

fn of_rate(rate: f64) -> Offered {
    if rate.is_finite() { Offered::Rate(rate) } else { Offered::Unlimited }
}

fn spec(
    args: &Args,
    model: &str,
    simulated: bool,
    (point, offered): (u64, Offered),
    chosen: &Chosen,
    scrape: &[Scraped],
) -> RunSpec {
    // Prompts of another point would be in the prefix cache.
    let seed = args.seed.wrapping_add(point << 32);
    let (rate, limit) = match offered {
        Offered::Rate(per_second) => (Rate::Gamma { per_second, burstiness: args.burstiness }, args.max_concurrency),
        Offered::Concurrency(limit) => (Rate::Unlimited, Some(limit)),
        Offered::Unlimited | Offered::Traffic => (Rate::Unlimited, None),
        Offered::Trace(speedup) => (Rate::OfTrace { speedup }, args.max_concurrency),
    };
    let load = Load {
        offered,
        burstiness: matches!(offered, Offered::Rate(_)).then_some(args.burstiness).filter(|burst| *burst != 1.0),
        max_concurrency: args.max_concurrency.filter(|_| !matches!(offered, Offered::Concurrency(_))),
        num_prompts: chosen.num_prompts,
        dataset: chosen.described.clone(),
        input_len: chosen.told_input_len,
        output_len: chosen.told_output_len,
        seed,
    };
    let backend = scrape.iter().any(|one| one.base == args.url.base).then(|| args.url.authority().to_owned());
    RunSpec {
        targets: vec![Target { arm: args.arm.clone(), backend, ..args.url.clone() }],
        tokenizer: args.url.base.clone(),
        workload: Workload {
            model: model.to_owned(),
            endpoint: args.endpoint,
            num_prompts: chosen.num_prompts,
            input_len: chosen.input_len,
            length: Length::Content,
            output_len: chosen.output_len,
            ignore_eos: args.ignore_eos,
            temperature: args.temperature,
            rate,
            seed,
        },
        dataset: chosen.dataset.clone(),
        warm_up: WarmUp { num_prompts: args.num_warmups.saturating_add(1), output_len: None },
        sending: Sending {
            max_concurrency: limit.map(|limit| limit as usize),
            session_header: args.session_header.as_ref().map(|name| name.as_str().to_owned()),
            epoch: args.epoch,
        },
        scrape: scrape.to_vec(),
        head: RunHead {
            arm: args.arm.clone(),
            epoch: args.epoch,
            block: args.block,
            start: args.start,
            planned_starts: args.planned_starts,
            load,
            model: model.to_owned(),
            gpus: args.gpus,
            replicas: None,
            max_num_seqs: args.max_num_seqs,
            simulated,
            command: next::command(args),
            ..RunHead::default()
        },
        time_scale: 1.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sweeps_are_read() {
        assert_eq!(sweep("rate=1,2.5"), Ok(Sweep::Rate(vec![1.0, 2.5])));
        assert_eq!(sweep("concurrency=1,8"), Ok(Sweep::Concurrency(vec![1, 8])));
        for wrong in ["rate", "rate=", "rate=0", "concurrency=0", "concurrency=a", "speed=1"] {
            assert!(sweep(wrong).is_err(), "{wrong}");
        }
    }
}
