//! What `forebay bench` says of its runs: the fourteen rows, what they lack, by arm and by backend where answers told, what
//! failed and why, and how far to trust it. Pure.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::Serialize;
use serde_json::{Value, json};

use super::record::{Outcome, Record};
use super::row_file::{Offered, RunRows};
use super::slo::Slo;
use super::summary::{Latency, Summary};
use super::table::{benchmark_rows, fitting, number, wrapped};

/// Above this lateness of the generator's own, figures are said to be too long by it.
pub const LAG_US: u64 = 1000;
/// Kinds of failures that are told apart.
const KINDS: usize = 5;

/// The figures of a part of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Part {
    /// `all`, an arm, or a backend.
    pub name: String,
    /// The figures as `vllm bench serve` defines them.
    #[serde(flatten)]
    pub summary: Summary,
    /// Tokens of answers a second.
    pub output_tokens_per_second: f64,
    /// Requests a second that met the SLO, if there is one.
    pub goodput: Option<f64>,
}

/// Requests that failed alike.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Failures {
    /// The number of requests.
    pub count: usize,
    /// The way in which they ended.
    pub outcome: Outcome,
    /// The status of the answers, if there were any.
    pub status: Option<u16>,
    /// The message of the first of them.
    pub error: String,
}

/// A run's parts: all of it, then arms and backends, where there is more than one.
#[must_use]
pub fn parts(run: &RunRows, slo: Option<&Slo>) -> Vec<Part> {
    let mut parts = vec![part("all", run.records.iter().collect(), slo)];
    let arm = |record: &Record| record.assigned.clone().or(record.arm.clone());
    parts.extend(split(&run.records, slo, arm));
    parts.extend(split(&run.records, slo, |record| record.backend.clone()));
    parts
}

fn split(records: &[Record], slo: Option<&Slo>, by: impl Fn(&Record) -> Option<String>) -> Vec<Part> {
    let mut groups: BTreeMap<String, Vec<&Record>> = BTreeMap::new();
    for record in records {
        if let Some(name) = by(record) {
            groups.entry(name).or_default().push(record);
        }
    }
    // One group would repeat the column of all.
    if groups.len() < 2 {
        return Vec::new();
    }
    groups.into_iter().map(|(name, records)| part(&name, records, slo)).collect()
}

fn part(name: &str, records: Vec<&Record>, slo: Option<&Slo>) -> Part {
    let summary = Summary::of(records.iter().copied());
    let met = slo.map(|slo| records.iter().filter(|record| slo.met(record)).count() as f64);
    Part {
        name: name.to_owned(),
        summary,
        output_tokens_per_second: summary.output_tokens_per_second(),
        goodput: met.filter(|_| summary.duration_s > 0.0).map(|met| met / summary.duration_s),
    }
}

/// Groups the requests that failed, the most frequent failure first.
#[must_use]
pub fn failures(records: &[Record]) -> Vec<Failures> {
    let mut found: Vec<Failures> = Vec::new();
    for record in records.iter().filter(|record| !record.succeeded()) {
        let error = record.error.clone().unwrap_or_default();
        match found.iter_mut().find(|one| (one.outcome, one.status) == (record.outcome, record.status)) {
            Some(one) => one.count += 1,
            None => found.push(Failures { count: 1, outcome: record.outcome, status: record.status, error }),
        }
    }
    found.sort_by_key(|one| std::cmp::Reverse(one.count));
    found
}

/// A load in words.
#[must_use]
pub fn offered(run: &RunRows) -> String {
    let whole = run.records.iter().any(|record| record.turn.is_some());
    match run.head.as_ref().map(|head| head.load.offered) {
        Some(Offered::Rate(rate)) if whole => format!("{rate} conversations/s"),
        Some(Offered::Rate(rate)) => format!("{rate} requests/s"),
        Some(Offered::Concurrency(limit)) if whole => format!("{limit} conversations at a time"),
        Some(Offered::Concurrency(limit)) => format!("{limit} at a time"),
        Some(Offered::Trace(speedup)) => format!("{speedup} times as fast as the trace"),
        Some(Offered::Traffic) => "real traffic".to_owned(),
        Some(Offered::Unlimited) | None => "all at once".to_owned(),
    }
}

/// Tables of some runs: for each its parts side by side, and for several all of them. `full`: every figure, else the five that matter
/// most and those that were asked for.
#[must_use]
pub fn text(runs: &[RunRows], slo: Option<&Slo>, full: bool) -> String {
    let mut out = String::new();
    for run in runs {
        let simulated = if run.head.as_ref().is_some_and(|head| head.simulated) { "SIMULATED. " } else { "" };
        let _ = writeln!(out, "\n{simulated}{}:\n", offered(run));
        let parts = parts(run, slo);
        out.push_str(&table(&parts, run.head.as_ref().and_then(|head| head.gpus), full));
        out.push_str(&wrapped(&notes(run)));
    }
    if runs.len() > 1 {
        let points: Vec<Part> =
            runs.iter().map(|run| Part { name: offered(run), ..part("", run.records.iter().collect(), slo) }).collect();
        let _ =
            writeln!(out, "\nThe sweep:\n\n{}", table(&points, runs[0].head.as_ref().and_then(|head| head.gpus), full));
    }
    if !full {
        out.push_str("--full prints every figure.\n");
    }
    out
}

/// The rows of a short table: what failed, how much, how soon, how fast; and those that an option or the server has asked for.
const SHORT: [&str; 8] = [
    "requests",
    "failed",
    "output tokens/s",
    "median TTFT ms",
    "P99 TTFT ms",
    "median TPOT ms",
    "goodput requests/s",
    "cached prompt tokens %",
];

fn table(parts: &[Part], gpus: Option<u32>, full: bool) -> String {
    let told = parts.iter().any(|part| part.summary.cached_share.is_some());
    let columns: Vec<Vec<(String, String)>> = parts.iter().map(|part| column(part, gpus, told)).collect();
    let mut rows = vec![["figure".to_owned()].into_iter().chain(parts.iter().map(|part| part.name.clone())).collect()];
    for (index, (name, _)) in columns[0].iter().enumerate() {
        // Nothing that failed is worth no line.
        let none_failed = name == "failed" && columns.iter().all(|column| column[index].1 == "0");
        if !full && (none_failed || !SHORT.contains(&name.as_str())) {
            continue;
        }
        let cells = columns.iter().map(|column| column[index].1.clone());
        rows.push([name.clone()].into_iter().chain(cells).collect::<Vec<_>>());
    }
    fitting(&rows)
}

/// The rows of a part; `cached`: some part of the table knows how many prompt tokens were cached.
fn column(part: &Part, gpus: Option<u32>, cached: bool) -> Vec<(String, String)> {
    let summary = &part.summary;
    let mut rows: Vec<(String, String)> =
        benchmark_rows(summary).into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    rows.push(("failed".to_owned(), summary.failed.to_string()));
    if cached {
        rows.push(("cached prompt tokens %".to_owned(), number(summary.cached_share.map(|share| share * 100.0), 1)));
    }
    let Latency { mean, p95, .. } = summary.ttft_ms;
    rows.push(("mean TTFT ms".to_owned(), number(mean, 2)));
    rows.push(("P95 TTFT ms".to_owned(), number(p95, 2)));
    rows.push(("mean TPOT ms".to_owned(), number(summary.tpot_ms.mean, 2)));
    rows.push(("P95 TPOT ms".to_owned(), number(summary.tpot_ms.p95, 2)));
    for (name, latency) in [("ITL", summary.itl_ms), ("E2E", summary.e2e_ms)] {
        rows.push((format!("median {name} ms"), number(latency.p50, 2)));
        rows.push((format!("P95 {name} ms"), number(latency.p95, 2)));
        rows.push((format!("P99 {name} ms"), number(latency.p99, 2)));
    }
    if let Some(goodput) = part.goodput {
        rows.push(("goodput requests/s".to_owned(), number(Some(goodput), 2)));
    }
    // GPUs are the arm's, and a backend has some of them.
    if let Some(gpus) = gpus.filter(|gpus| *gpus > 0) {
        let each =
            (part.name == "all" || part.name.contains(' ')).then(|| part.output_tokens_per_second / f64::from(gpus));
        rows.push(("output tokens/s/GPU".to_owned(), number(each, 2)));
    }
    rows
}

/// Notes what failed, prompts of another length than asked, and the generator's own lag.
fn notes(run: &RunRows) -> String {
    let mut out = String::new();
    for one in failures(&run.records).iter().take(KINDS) {
        let status = one.status.map_or_else(String::new, |status| format!(" {status}"));
        let kind = match one.outcome {
            Outcome::Success => "whole",
            Outcome::Status => "refused with",
            Outcome::ErrorEvent => "an error in the stream",
            Outcome::Connect => "no connection, or it broke before an answer",
            Outcome::Truncated => "the answer was cut",
        };
        // Of other outcomes the status is that of the head, which was 200.
        let shown = if one.outcome == Outcome::Status { status.as_str() } else { "" };
        let _ = writeln!(out, "{} failed: {kind}{shown}: {}", one.count, one.error.trim());
    }
    let planned = run.head.as_ref().map_or(0, |head| head.load.num_prompts as usize);
    let sent = run.records.len();
    if sent < planned && run.records.iter().any(|record| record.turn.is_some()) {
        let _ = writeln!(
            out,
            "{} of {planned} prompts were not sent, because an earlier turn of their conversation failed",
            planned - sent
        );
    }
    // A tokenizer that the server does not share makes other lengths, and then the load is not the one that was asked for.
    let asked = run.head.as_ref().and_then(|head| head.load.input_len).map(u64::from);
    let counted = || run.records.iter().filter(|record| record.succeeded()).map(|record| record.prompt_tokens);
    if let (Some(asked), Some(least), Some(most)) = (asked, counted().min(), counted().max())
        && (least, most) != (asked, asked)
    {
        let _ = writeln!(out, "prompts of {asked} tokens were asked for; the server counted {least} to {most} in each");
    }
    if let Some(end) = run.end.filter(|end| end.lag_p99_us > LAG_US) {
        let late = end.lag_p99_us as f64 / 1e3;
        let _ = writeln!(
            out,
            "WARNING: this generator noted answers up to {late:.1} ms late (P99): latencies are too long by that. Give it a core \
             of its own, or send less from one process"
        );
    }
    out
}

/// Returns the results for a machine.
#[must_use]
pub fn json(runs: &[RunRows], slo: Option<&Slo>) -> Value {
    let one = |run: &RunRows| {
        json!({
            "run": run.head, "parts": parts(run, slo), "failures": failures(&run.records),
            "lag_p99_us": run.end.map(|end| end.lag_p99_us), "samples": run.samples.len(),
        })
    };
    json!({"slo": slo, "runs": runs.iter().map(one).collect::<Vec<_>>()})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::record::tests::record;
    use crate::rows::row_file::{Load, RunEnd, RunHead};

    fn run() -> RunRows {
        let arm = |id: u32, arm: &str| Record { arm: Some(arm.to_owned()), ..record(id) };
        let refused =
            |id| Record { outcome: Outcome::Status, status: Some(503), error: Some("busy".to_owned()), ..record(id) };
        let records = vec![arm(0, "tp2"), arm(1, "tp1x2"), refused(2), refused(3)];
        RunRows { head: None, records, samples: vec![], end: Some(RunEnd { lag_p99_us: 2500 }) }
    }

    #[test]
    fn the_table_is_as_it_was() {
        let slo = "ttft=500ms".parse().unwrap();
        let text = text(&[run()], Some(&slo), true);
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/bench.txt");
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(path, &text).unwrap();
        }
        assert_eq!(text, std::fs::read_to_string(path).unwrap());
    }

    #[test]
    fn five_rows_and_what_failed_are_the_short_table() {
        let text = text(&[run()], None, false);
        let names: Vec<&str> =
            text.lines().skip(5).take(6).map(|line| line.split("  ").next().unwrap().trim()).collect();
        let five = ["requests", "output tokens/s", "median TTFT ms", "P99 TTFT ms", "median TPOT ms", "failed"];
        assert_eq!(names, five, "{text}");
        assert!(
            text.contains("--full prints every figure") && text.lines().all(|line| line.chars().count() <= 80),
            "{text}"
        );
    }

    #[test]
    fn the_share_of_cached_prompt_tokens_is_told_where_it_is_known() {
        let cached = RunRows { records: vec![Record { cached_tokens: Some(25), ..record(0) }], ..RunRows::default() };
        let row = |run| text(&[run], None, false).lines().find(|line| line.starts_with("cached")).map(str::to_owned);
        assert!(row(cached).unwrap().ends_with(" 25.0"));
        assert_eq!(row(run()), None);
    }

    #[test]
    fn conversations_are_offered_whole_and_prompts_that_were_not_sent_are_said() {
        let turn = |id| Record { conversation: Some(0), turn: Some(id), ..record(id) };
        let cut = Record { outcome: Outcome::Truncated, ..turn(1) };
        let load = Load {
            offered: Offered::Rate(2.0),
            num_prompts: 5,
            dataset: Some("conversations".to_owned()),
            input_len: None,
            output_len: Some(6),
            seed: 0,
            ..Load::default()
        };
        let head = RunHead { load, ..crate::rows::row_file::tests::head("a", 0) };
        let run = RunRows { head: Some(head), records: vec![turn(0), cut], ..RunRows::default() };
        let text = text(&[run], None, true);
        assert!(text.contains("2 conversations/s:") && text.contains("3 of 5 prompts were not sent"), "{text}");
    }

    #[test]
    fn failures_are_counted_by_kind_and_the_assigned_arm_counts() {
        assert_eq!(failures(&run().records)[0].count, 2);
        let crossed = RunRows {
            records: vec![record(0), Record { assigned: Some("other".to_owned()), ..record(1) }],
            ..RunRows::default()
        };
        let names: Vec<String> = parts(&crossed, None).into_iter().map(|part| part.name).collect();
        assert_eq!(names, ["all", "other", "tp2"]);
    }
}
