//! `forebay compare experiment.toml`: measures the arms of an experiment, in as many calls as it takes.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use super::check::print_report;
use forebay_core::clock::Clock;
use forebay_core::units::parse_duration;
use forebay_lab::experiment::{self, ExperimentEnd, ExperimentOptions};

/// The time is over and turns are left: `EX_TEMPFAIL`, "try again later".
const OUT_OF_TIME: u8 = 75;
/// 128 + SIGINT, as shells say it.
const INTERRUPTED: u8 = 130;

/// The options for running an experiment.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args)]
#[group(skip)]
pub struct Args {
    /// End after so long, servers included, and leave the rest to the next call (exit code 75)
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub stop_after: Option<Duration>,
    /// Show servers, arms and the order of their turns, and start nothing
    #[arg(long)]
    pub dry_run: bool,
    /// The folder for rows and logs, in which they are looked for to go on [default: the file's `out`, or experiments/NAME]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}

impl Args {
    /// Returns whether nothing of an experiment was asked for.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Args::default()
    }
}

/// An experiment of which every turn was taken.
pub struct Measured {
    /// Its description.
    pub experiment: experiment::spec::Experiment,
    /// The text of its file.
    pub text: String,
    /// Its rows.
    pub rows: PathBuf,
    /// The record of the machine, if there is one.
    pub machine: Option<String>,
}

/// Runs what is left of the experiment in `file`.
///
/// # Errors
/// The exit code of a call that has nothing to compare: what is wrong was printed.
pub fn measure(file: &Path, args: &Args) -> Result<Measured, ExitCode> {
    let fail = |message: String| {
        eprintln!("forebay compare: {message}");
        ExitCode::FAILURE
    };
    let binary = std::env::current_exe().map_err(|error| fail(format!("cannot find the own binary: {error}")))?;
    let text = std::fs::read_to_string(file).map_err(|error| {
        eprintln!("forebay compare: cannot read {}: {error}", file.display());
        ExitCode::from(2)
    })?;
    let own = binary.display().to_string();
    let env = |name: &str| std::env::var(name).ok().or_else(|| (name == "FOREBAY").then(|| own.clone()));
    let mut experiment = experiment::read(file, &text, &env).map_err(|report| {
        print_report(&report);
        ExitCode::from(2)
    })?;
    if let Some(out) = &args.out {
        experiment.out.clone_from(out);
    }
    if args.dry_run {
        // a reader that has left needs no answer
        _ = std::io::stdout().write_all(experiment::outline(&experiment).as_bytes());
        return Err(ExitCode::SUCCESS);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| fail(format!("cannot start threads: {error}")))?;
    let outcome =
        runtime.block_on(until_signal(&experiment, &ExperimentOptions { binary, stop_after: args.stop_after }));
    runtime.shutdown_timeout(Duration::from_secs(1));
    match outcome {
        None => {
            eprintln!("forebay compare: interrupted; the same command goes on from here");
            Err(ExitCode::from(INTERRUPTED))
        }
        Some(Err(error)) => Err(fail(error)),
        Some(Ok(ExperimentEnd::OutOfTime { done, all })) => {
            eprintln!("forebay compare: {done} of {all} turns are taken; the same command goes on from here");
            Err(ExitCode::from(OUT_OF_TIME))
        }
        Some(Ok(ExperimentEnd::Complete)) => Ok(Measured {
            text,
            rows: experiment::rows_in(&experiment.out),
            machine: std::fs::read_to_string(experiment::machine_in(&experiment.out)).ok(),
            experiment,
        }),
    }
}

/// Runs the experiment; none if a signal came first. Its servers are stopped in any case.
async fn until_signal(
    experiment: &experiment::spec::Experiment,
    options: &ExperimentOptions,
) -> Option<Result<ExperimentEnd, String>> {
    use tokio::signal::unix::{SignalKind, signal};
    let clock = Clock::system();
    let begun = clock.now();
    let say = |line: &str| eprintln!("[{:4.0} s] {line}", clock.now().secs_since(begun));
    let caught = |kind| signal(kind).map_err(|error| format!("cannot catch signals: {error}"));
    let (mut interrupt, mut terminate, mut hang_up) =
        match (caught(SignalKind::interrupt()), caught(SignalKind::terminate()), caught(SignalKind::hangup())) {
            (Ok(interrupt), Ok(terminate), Ok(hang_up)) => (interrupt, terminate, hang_up),
            (Err(error), ..) | (_, Err(error), _) | (.., Err(error)) => return Some(Err(error)),
        };
    tokio::select! {
        outcome = experiment::run(experiment, options, &say) => Some(outcome.map_err(|error| error.to_string())),
        _ = interrupt.recv() => None,
        _ = terminate.recv() => None,
        _ = hang_up.recv() => None,
    }
}
