//! What the demo prints: the benchmark's table, measured and simulated, how the arrangements compare and why, how far to trust
//! it, and what to do with real GPUs. Pure.

use std::fmt::Write;
use std::time::Duration;

use serde_json::json;

use forebay_lab::compare::{Options, compare, format, model::Comparison};
use forebay_lab::diagnosis::{Contrast, Diagnosis, Evidence, contrast, diagnose};
use forebay_lab::rows::published_benchmark::{Column, LOAD, MEASURED};
use forebay_lab::rows::record::Record;
use forebay_lab::rows::row_file::{Offered, RunRows};
use forebay_lab::rows::summary::Summary;
use forebay_lab::rows::table::{aligned, benchmark_rows, number};

use super::Args;

/// Above this, lateness shows in the figures. Timers are late by a millisecond or so in any case.
const LAG: Duration = Duration::from_millis(5);

/// Above this many tokens in one event, some part of this machine did not keep up: the simulated servers send each token by
/// itself as long as it is taken from them in time.
const CROWDED: f64 = 1.1;

/// The arrangement that the others are compared with: what the benchmark recommends.
const BASELINE: &str = "S2";

/// An arrangement: simulated, and measured where the benchmark has it.
struct Part {
    name: String,
    summary: Summary,
    evidence: Evidence,
    found: Diagnosis,
    /// The arrangement in words: as the benchmark has it, whichever load is simulated.
    what: &'static str,
    measured: Option<(&'static Column, Evidence, Diagnosis)>,
}

/// All that is shown.
pub(super) struct Report {
    parts: Vec<Part>,
    comparison: Comparison,
    failed: u64,
    first_error: Option<String>,
    lag: Duration,
    tokens_per_event: f64,
    time_scale: f64,
    seed: u64,
    model: &'static str,
}

/// The first event of a chat, a role, is no token, so that there are as many gaps as events with tokens.
fn tokens_per_event(records: &[&Record]) -> f64 {
    let good = || records.iter().filter(|record| record.succeeded());
    let events: usize = good().map(|record| record.gaps_us.len()).sum();
    good().map(|record| record.output_tokens).sum::<u64>() as f64 / events.max(1) as f64
}

/// An arrangement beside the benchmark's columns; `same`: whether it had the benchmark's load, so that they may be compared.
fn part(rows: &RunRows, columns: &'static [Column], same: bool) -> Part {
    let evidence = Evidence::of(rows, None);
    let name = evidence.arm.clone();
    let column = columns.iter().find(|column| column.arm == name);
    let measured = column.filter(|_| same).map(|column| {
        let evidence = Evidence::of_table(column.arm, Some(Offered::Unlimited), &column.rows);
        let found = diagnose(&evidence);
        (column, evidence, found)
    });
    let what = column.map_or("two GPUs, two TP=1 replicas; not measured there", |column| column.what);
    Part { name, summary: evidence.figures, found: diagnose(&evidence), evidence, what, measured }
}

impl Report {
    /// The figures of these runs, which are in simulated time; `lag`: the servers' worst lateness by the clock.
    pub(super) fn of(args: &Args, runs: Vec<RunRows>, lag: Duration) -> Result<Report, String> {
        let scale = args.scale();
        let client = runs.iter().filter_map(|run| run.end).map(|end| end.lag_p99_us as f64 / scale).fold(0.0, f64::max);
        let model = args.model.name();
        // What was measured is that load, and no other. The names of the arrangements hold for any.
        let same = args.requests == LOAD.0;
        let columns = MEASURED.iter().find(|measured| measured.model == model).map_or(&[][..], |one| &one.columns);
        let baseline = runs.iter().filter_map(|run| run.head.as_ref()?.arm.clone()).find(|arm| arm == BASELINE);
        let options = Options { baseline, seed: args.seed, ..Options::default() };
        let records: Vec<&Record> = runs.iter().flat_map(|run| &run.records).collect();
        Ok(Report {
            parts: runs.iter().map(|rows| part(rows, columns, same)).collect(),
            failed: records.iter().filter(|record| !record.succeeded()).count() as u64,
            first_error: records.iter().find_map(|record| record.error.clone()),
            lag: lag.max(Duration::from_secs_f64(client / 1e6)),
            tokens_per_event: tokens_per_event(&records),
            comparison: compare(&runs, &options).map_err(|error| error.to_string())?,
            time_scale: scale,
            seed: args.seed,
            model,
        })
    }

    /// Requests without a whole answer.
    pub(super) fn failed(&self) -> u64 {
        self.failed
    }

    fn lagged(&self) -> bool {
        self.lag > LAG || self.tokens_per_event > CROWDED
    }

    /// The arrangements beside the first, as measured and as simulated.
    fn contrasts(&self) -> (Vec<Contrast>, Vec<Contrast>) {
        let measured: Vec<Evidence> = self
            .parts
            .iter()
            .filter_map(|part| part.measured.as_ref())
            .map(|(_, evidence, _)| evidence.clone())
            .collect();
        let mut simulated: Vec<Evidence> = self.parts.iter().map(|part| part.evidence.clone()).collect();
        // Of these the last, which was not measured, beside what the benchmark recommends.
        simulated.retain(|evidence| evidence.arm == BASELINE || !measured.iter().any(|one| one.arm == evidence.arm));
        (contrast(&measured), contrast(&simulated))
    }

    /// One JSON object; times in simulated time.
    pub(super) fn json(&self) -> String {
        let arm = |part: &Part| {
            json!({
                "name": part.name, "simulated": part.summary, "diagnosis": part.found,
                "output_tokens_per_second": part.summary.output_tokens_per_second(),
                "decoding_at_once": part.evidence.decoding(),
                "measured": part.measured.as_ref().map(|(column, _, found)| json!({
                    "what": column.what, "rows": column.rows, "diagnosis": found,
                })),
            })
        };
        let (measured, simulated) = self.contrasts();
        json!({
            "simulated": true, "model": self.model, "time_scale": self.time_scale, "seed": self.seed,
            "arms": self.parts.iter().map(arm).collect::<Vec<_>>(),
            "contrasts": {"measured": measured, "simulated": simulated},
            "comparison": self.comparison, "failed": self.failed, "error": self.first_error,
            "lag_p99_ms": self.lag.as_secs_f64() * 1e3, "tokens_per_event": self.tokens_per_event, "lagged": self.lagged(),
        })
        .to_string()
    }

    /// Tables and what to make of them.
    pub(super) fn text(&self) -> String {
        let mut out = String::new();
        let head = "SIMULATED: no GPU was used. Columns named `sim` are of simulated GPUs, in their time";
        let _ = writeln!(out, "\n{head} ({} x the wall clock's), as the client", self.time_scale);
        out.push_str("saw them through the proxy. ");
        // With another number of requests there is no column of the benchmark's to point at.
        out.push_str(&if self.parts.iter().any(|part| part.measured.is_some()) {
            "The others are a public benchmark, measured on two RTX 4090 (PCIe, SYS).\n".to_owned()
        } else {
            format!("The benchmark's figures are of {} requests, so they are not shown.\n", LOAD.0)
        });
        for part in &self.parts {
            let _ = writeln!(out, "  {}: {}", part.name, part.what);
        }
        out.push('\n');
        out.push_str(&aligned(&self.table()));
        if self.failed > 0 {
            let error = self.first_error.as_deref().unwrap_or("no reason given");
            let _ = writeln!(out, "\n{} requests failed; the first: {error}", self.failed);
        }
        self.why(&mut out);
        if self.lagged() {
            out.push_str(&self.lag_note());
        }
        out.push_str(&next());
        out
    }

    fn table(&self) -> Vec<Vec<String>> {
        let mut table = vec![vec![self.model.to_owned()]];
        for part in &self.parts {
            table[0].extend(part.measured.iter().map(|_| part.name.clone()));
            table[0].push(format!("{} sim", part.name));
        }
        for (row, (name, _)) in benchmark_rows(&Summary::default()).into_iter().enumerate() {
            let digits = if [0, 2, 3].contains(&row) { 0 } else { 2 };
            let mut line = vec![name.to_owned()];
            for part in &self.parts {
                line.extend(part.measured.iter().map(|(column, ..)| number(Some(column.rows[row]), digits)));
                line.push(benchmark_rows(&part.summary)[row].1.clone());
            }
            table.push(line);
        }
        let mut line = vec!["decoding at once".to_owned()];
        for part in &self.parts {
            line.extend(part.measured.iter().map(|(_, evidence, _)| number(evidence.decoding(), 0)));
            line.push(number(part.evidence.decoding(), 0));
        }
        table.push(line);
        table
    }

    /// The verdicts, and the reasons.
    fn why(&self, out: &mut String) {
        out.push_str("\nSimulated, beside S2, which the benchmark recommends:\n");
        for verdict in format::verdicts(&self.comparison) {
            let _ = writeln!(out, "  {verdict}");
        }
        // That it is simulated heads the report, and what lagged closes it, servers included and by the clock.
        let said = |check: &str| ["simulated", "lag"].contains(&check);
        for warning in self.comparison.warnings.iter().filter(|warning| !said(warning.check)) {
            let _ = writeln!(out, "  {}", format::warning(warning));
        }
        let (measured, simulated) = self.contrasts();
        let found: Vec<&Diagnosis> = self.parts.iter().filter_map(|part| Some(&part.measured.as_ref()?.2)).collect();
        if !found.is_empty() {
            out.push_str("\nWhy, by the benchmark's table alone:\n");
            let lines = found.iter().map(|found| &found.sentence).chain(measured.iter().map(|one| &one.sentence));
            lines.for_each(|line| _ = writeln!(out, "  {line}"));
            let mut tell: Vec<&String> = found.iter().flat_map(|found| &found.would_tell).collect();
            tell.sort();
            tell.dedup();
            out.push_str("What would tell:\n");
            tell.iter().for_each(|line| _ = writeln!(out, "  {line}"));
        }
        out.push_str("\nWhy, of the simulated servers, which were looked at:\n");
        let lines = self.parts.iter().map(|part| &part.found.sentence).chain(simulated.iter().map(|one| &one.sentence));
        lines.for_each(|line| _ = writeln!(out, "  {line}"));
    }

    fn lag_note(&self) -> String {
        let build = if cfg!(debug_assertions) { " a release build (cargo run --release -- demo), or" } else { "" };
        format!(
            "\nThis machine lagged: timers were up to {:.0} ms late (P99), and an event carried {:.1} tokens. Latencies are too \
             long by {} x the lateness;\ntry{build} --time-scale {}.\n",
            self.lag.as_secs_f64() * 1e3,
            self.tokens_per_event,
            self.time_scale,
            (self.time_scale / 2.0).max(0.5),
        )
    }
}

fn next() -> String {
    "
S4 is a prediction. With real GPUs:
  forebay plan --model-config DIR       how your GPUs are wired, what fits, the launch lines, an experiment.toml
  forebay compare experiment.toml       starts the arms in turn on the same GPUs, and says which is better, and why
or, for traffic of your own, both arms at once behind `forebay serve` (README, \"Configure\").
"
    .to_owned()
}
