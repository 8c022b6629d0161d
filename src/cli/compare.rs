//! `forebay compare`: which arm is better, from the rows of their runs; an experiment is run first.

use std::fs::File;
use std::io::{BufReader, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use super::experiment;
use forebay_lab::compare::model::Comparison;
use forebay_lab::compare::report::html::{Made, html};
use forebay_lab::compare::report::markdown::markdown;
use forebay_lab::compare::report::text::{Shown, shown};
use forebay_lab::compare::{Options, compare};
use forebay_lab::rows::access_log::LogError;
use forebay_lab::rows::either::{self, Content, ContentError};
use forebay_lab::rows::row_file::{RowError, RunRows};
use forebay_lab::rows::slo::Slo;

/// The arguments of `forebay compare`.
#[derive(Debug, clap::Args)]
#[command(
    about = "Compare arms: from the rows of their runs, or by running an experiment",
    long_about = "Say which arm is better, with the interval of the ratio, from the rows that `forebay bench` writes, or from an \
        experiment.toml: that starts each arm's servers, sends them the load in turn, stops them, and goes on from the last whole \
        turn when it is called again.\n\n\
        A start of an arm's servers is the unit: runs of one start resemble each other. A winner is named where each arm has three \
        starts or more, the arms took turns, no check failed, there are as many starts or runs as planned, the 95 % interval of the ratio \
        excludes 1, the difference is more than 2 %, and all of it holds after an adjustment for the number of verdicts. Otherwise the \
        report says what is missing. One figure decides: output tokens/s per GPU where all requests are sent at once \
        or in a closed loop; at an offered rate the share that missed --slo, or without one P95 TTFT.\n\n\
        A file whose runs tell no arm is an arm of its file's name. A run whose requests each tell theirs (both arms at once \
        behind `forebay serve`) is cut into epochs of --block. So is an access log, by the arms that its requests were assigned to; \
        lines of other kinds may stand in it.",
    after_help = "Exit codes: 0 compared, whatever the verdict; 1 a file cannot be read or written; 2 wrong usage, or rows that \
        cannot be compared. Of an experiment also: 1 a server did not come up or a warm-up failed; 75 the time of --stop-after is \
        over, the same command goes on; 130 interrupted, likewise.\n\n\
        Examples:\n  \
        forebay compare tp2.jsonl tp1x2.jsonl --slo ttft=500ms,tpot=50ms --price tp2=4.2 --price tp1x2=4.2\n  \
        forebay compare config/experiments/sim-two-gpus.toml --html report.html"
)]
pub struct Args {
    /// Row files of `forebay bench`, access logs of `forebay serve --access-log json`, or one experiment (TOML)
    #[arg(required = true, value_name = "ROWS.jsonl|ACCESS.log|EXPERIMENT.toml")]
    files: Vec<PathBuf>,
    /// The arm that the others are compared with; without it each arm is compared with each other one [default: the first in the files]
    #[arg(long, value_name = "ARM")]
    baseline: Option<String>,
    /// Limits that a request must all meet to count as served well; of ttft, tpot and e2e
    #[arg(long, value_name = "ttft=500ms,tpot=50ms")]
    slo: Option<Slo>,
    /// GPUs of an arm, where its rows do not tell
    #[arg(long, value_name = "ARM=N", value_parser = named::<u32>)]
    gpus: Vec<(String, u32)>,
    /// The price of an arm for an hour
    #[arg(long, value_name = "ARM=PRICE", value_parser = named::<f64>)]
    price: Vec<(String, f64)>,
    /// The share of the sessions that an arm of a live split was to get [default: the same for each]
    #[arg(long, value_name = "ARM=SHARE", value_parser = named::<f64>)]
    share: Vec<(String, f64)>,
    /// The pool of an access log whose arms are compared, where several have arms: its model
    #[arg(long, value_name = "MODEL")]
    pool: Option<String>,
    /// Each file is of another start of the servers: say so of access logs, which do not tell it
    #[arg(long)]
    start_per_file: bool,
    /// The least length of an epoch of a live split
    #[arg(long, default_value = "5m", value_name = "TIME", value_parser = block)]
    block: Duration,
    /// The number of starts of each arm's servers that were planned before the first report was read: with fewer, or more, no winner
    /// is named. It takes the place of a plan in the rows
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    planned_starts: Option<u32>,
    /// Seed of the bootstrap intervals
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Print every figure; else five of each pair
    #[arg(long, conflicts_with = "json")]
    full: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Write the report as Markdown, too
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// Write the report as one HTML file with plots, too: it fetches nothing and runs nothing
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// The options for running an experiment.
    #[command(flatten, next_help_heading = "Of an experiment")]
    experiment: experiment::Args,
    /// The origin of the report, as the HTML states it.
    #[arg(skip)]
    made: Made,
}

/// The reason why there is no report.
enum CompareError {
    /// The system refused.
    System(String),
    /// The question makes no sense.
    Question(String),
}

/// Runs the command.
#[must_use]
pub fn run(mut args: Args) -> ExitCode {
    args.made.command = command_line();
    if let Err(code) = measure_first(&mut args) {
        return code;
    }
    match perform(&args) {
        Ok(report) => printed(&report),
        Err(CompareError::System(message)) => {
            eprintln!("forebay compare: {message}");
            ExitCode::FAILURE
        }
        Err(CompareError::Question(message)) => {
            eprintln!("forebay compare: {message}");
            ExitCode::from(2)
        }
    }
}

fn printed(report: &str) -> ExitCode {
    match std::io::stdout().write_all(report.as_bytes()) {
        // a reader that has left needs no answer
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            eprintln!("forebay compare: cannot write the report: {error}");
            ExitCode::FAILURE
        }
        _ => ExitCode::SUCCESS,
    }
}

/// Runs the experiment, if that is what was named: its rows take its place, and what it says of prices and limits holds unless
/// the command line says otherwise.
fn measure_first(args: &mut Args) -> Result<(), ExitCode> {
    let is_experiment = |file: &PathBuf| file.extension().is_some_and(|extension| extension == "toml");
    let wrong = |message: &str| {
        eprintln!("forebay compare: {message}");
        ExitCode::from(2)
    };
    match &args.files[..] {
        [file] if is_experiment(file) => {
            let measured = experiment::measure(file, &args.experiment)?;
            args.files = vec![measured.rows];
            args.made.name = Some(measured.experiment.name);
            args.made.experiment = Some(measured.text);
            args.made.machine = measured.machine;
            args.slo = args.slo.or(measured.experiment.slo);
            for arm in measured.experiment.arms {
                // A price of the command line wins: prices change, files stay.
                if let Some(price) = arm.price.filter(|_| args.price.iter().all(|(name, _)| *name != arm.name)) {
                    args.price.push((arm.name, price));
                }
            }
            Ok(())
        }
        files if files.iter().any(is_experiment) => Err(wrong("an experiment is compared alone: name one file")),
        _ if !args.experiment.is_default() => {
            Err(wrong("--stop-after, --dry-run and --out are of an experiment: name an experiment.toml"))
        }
        _ => Ok(()),
    }
}

fn perform(args: &Args) -> Result<String, CompareError> {
    let mut runs = Vec::new();
    let mut notes = Vec::new();
    for (number, file) in (0..).zip(&args.files) {
        let start = args.start_per_file.then_some(number);
        runs.extend(read(file, args.pool.as_deref(), start, &mut notes)?);
    }
    // Of an experiment, which goes on by itself, there is nothing to be run by hand.
    let is_rows = args.made.experiment.is_none();
    let options = Options {
        baseline: args.baseline.clone(),
        slo: args.slo,
        gpus: args.gpus.iter().cloned().collect(),
        prices: args.price.iter().cloned().collect(),
        shares: args.share.iter().cloned().collect(),
        block: args.block,
        planned_starts: args.planned_starts,
        seed: args.seed,
        command: is_rows.then_some(args.made.command.clone()),
        notes,
    };
    let comparison = compare(&runs, &options).map_err(|error| CompareError::Question(error.to_string()))?;
    report(&comparison, args)
}

/// Writes what was asked for into files, and gives what is to be printed.
fn report(comparison: &Comparison, args: &Args) -> Result<String, CompareError> {
    let write = |file: &Path, text: String| {
        let failed = |error| CompareError::System(format!("cannot write {}: {error}", file.display()));
        std::fs::write(file, text).map_err(failed)
    };
    if let Some(file) = &args.markdown {
        write(file, markdown(comparison))?;
    }
    if let Some(file) = &args.html {
        let text = html(comparison, &args.made)
            .map_err(|error| CompareError::System(format!("cannot draw the plots of {}: {error}", file.display())))?;
        write(file, text)?;
    }
    if !args.json {
        let colours = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|off| off.is_empty());
        let files: Vec<String> =
            [&args.html, &args.markdown].into_iter().flatten().map(|file| file.display().to_string()).collect();
        let last = match files[..] {
            [] => "Report: --html FILE writes it with plots.".to_owned(),
            _ => format!("Report: {}", files.join(", ")),
        };
        return Ok(format!("{}{last}\n", shown(comparison, Shown { full: args.full, colours, wrap: true })));
    }
    let json = serde_json::to_string_pretty(comparison)
        .map_err(|error| CompareError::System(format!("cannot write the report as JSON: {error}")))?;
    Ok(json + "\n")
}

/// The command as it may be given again.
fn command_line() -> String {
    let args = std::env::args_os().skip(1).map(|arg| arg.to_string_lossy().into_owned());
    forebay_lab::rows::command::shell_line(["forebay".to_owned()].into_iter().chain(args))
}

/// The runs of a file, each with its arm; `start`: the start of the servers that all of them had. What was left out of a log is added
/// to the notes.
fn read(
    file: &Path,
    pool: Option<&str>,
    start: Option<u32>,
    notes: &mut Vec<String>,
) -> Result<Vec<RunRows>, CompareError> {
    let system = |error: String| CompareError::System(format!("{}: {error}", file.display()));
    let from = File::open(file).map_err(|error| system(error.to_string()))?;
    let content = either::read(BufReader::new(from), pool).map_err(|error| match error {
        ContentError::Row(RowError::Io(error)) | ContentError::Log(LogError::Io(error)) => system(error.to_string()),
        other => CompareError::Question(format!("{}: {other}", file.display())),
    })?;
    let mut runs = match content {
        Content::Rows(runs) => runs,
        Content::Log(log) => {
            let name = file.file_name().unwrap_or(file.as_os_str()).display();
            notes.extend(log.notes.iter().map(|note| format!("left out of {name}: {note}")));
            vec![log.run]
        }
    };
    for head in runs.iter_mut().filter_map(|run| run.head.as_mut()) {
        // What the user says of a file wins over what its rows tell.
        head.start = start.or(head.start);
    }
    let stem = file.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    for run in &mut runs {
        name_arm(run, &stem);
    }
    Ok(runs)
}

/// Gives a run that tells no arm its file's name. One arm called `default` is a proxy without arms, which is to tell none.
fn name_arm(run: &mut RunRows, stem: &str) {
    let arms: std::collections::BTreeSet<&str> =
        run.records.iter().filter_map(|record| record.assigned.as_deref().or(record.arm.as_deref())).collect();
    let only = match arms.into_iter().collect::<Vec<_>>()[..] {
        [] | ["default"] => stem.to_owned(),
        [arm] => arm.to_owned(),
        _ => return,
    };
    match &mut run.head {
        Some(head) => head.arm = head.arm.take().or(Some(only)),
        None => {
            for record in &mut run.records {
                record.arm = Some(only.clone());
                record.assigned = None;
            }
        }
    }
}

/// `tp2=4.2`.
fn named<T: FromStr>(text: &str) -> Result<(String, T), String> {
    let parsed =
        text.split_once('=').and_then(|(arm, value)| Some((arm.trim().to_owned(), value.trim().parse().ok()?)));
    parsed.filter(|(arm, _)| !arm.is_empty()).ok_or_else(|| format!("`{text}` is not ARM=NUMBER, such as tp2=2"))
}

fn block(text: &str) -> Result<Duration, String> {
    let block = forebay_core::units::parse_duration(text)?;
    if block < Duration::from_secs(300) {
        return Err("requests closer than 5m are not independent; it must be at least 5m".to_owned());
    }
    Ok(block)
}
