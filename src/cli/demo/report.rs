//! What the demo prints: by arm, by backend, how far to trust it, and what to do with real GPUs. Pure.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use serde::Serialize;
use serde_json::json;

use crate::bench::client::Run;
use crate::bench::record::Record;
use crate::bench::summary::Summary;
use crate::bench::table::{aligned, number};
use crate::bench::workload::Workload;

use super::Args;

/// Above this, lateness shows in the figures. Timers are late by a millisecond or so in any case.
const LAG: Duration = Duration::from_millis(5);

/// Above this many tokens in one event, some part of this machine did not keep up: the simulated servers send each token by
/// itself as long as it is taken from them in time.
const CROWDED: f64 = 1.1;

/// The figures of a part of the requests.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Part {
    /// The arm, or the backend.
    name: String,
    /// The arm of a backend.
    arm: String,
    /// GPUs of an arm.
    gpus: Option<u32>,
    /// In simulated time.
    #[serde(flatten)]
    summary: Summary,
    output_tokens_per_second: f64,
    output_tokens_per_second_per_gpu: Option<f64>,
}

/// All that is shown.
#[derive(Clone, Debug)]
pub(super) struct Report {
    arms: Vec<Part>,
    backends: Vec<Part>,
    failed: u64,
    first_error: Option<String>,
    lag: Duration,
    tokens_per_event: f64,
    time_scale: f64,
    seed: u64,
    model: String,
}

fn part(name: &str, arm: &str, gpus: Option<u32>, records: &[&Record]) -> Part {
    let summary = Summary::of(records.iter().copied());
    let rate = summary.output_tokens_per_second();
    Part {
        name: name.to_owned(),
        arm: arm.to_owned(),
        gpus,
        summary,
        output_tokens_per_second: rate,
        output_tokens_per_second_per_gpu: gpus.map(|gpus| rate / f64::from(gpus.max(1))),
    }
}

/// The first event of a chat, a role, is no token, so that there are as many gaps as events with tokens.
fn tokens_per_event(records: &[Record]) -> f64 {
    let good = || records.iter().filter(|record| record.succeeded());
    let events: usize = good().map(|record| record.gaps_us.len()).sum();
    good().map(|record| record.output_tokens).sum::<u64>() as f64 / events.max(1) as f64
}

impl Report {
    /// The figures of a run in simulated time; `gpus` of each arm; `lag`: the worst lateness, at the 99th percentile.
    pub(super) fn of(run: &Run, args: &Args, workload: &Workload, gpus: Vec<(String, u32)>, lag: Duration) -> Report {
        let records: Vec<Record> = run.records.iter().map(|record| record.scaled(args.time_scale)).collect();
        let mut by_arm: BTreeMap<&str, Vec<&Record>> = BTreeMap::new();
        let mut by_backend: BTreeMap<(&str, &str), Vec<&Record>> = BTreeMap::new();
        for record in &records {
            let arm = record.arm.as_deref().unwrap_or("(none)");
            by_arm.entry(arm).or_default().push(record);
            by_backend.entry((arm, record.backend.as_deref().unwrap_or("(none)"))).or_default().push(record);
        }
        let gpus_of = |arm: &str| gpus.iter().find(|(name, _)| name == arm).map(|(_, gpus)| *gpus);
        Report {
            arms: by_arm.iter().map(|(arm, records)| part(arm, arm, gpus_of(arm), records)).collect(),
            backends: by_backend.iter().map(|((arm, name), records)| part(name, arm, None, records)).collect(),
            failed: records.iter().filter(|record| !record.succeeded()).count() as u64,
            first_error: records.iter().find_map(|record| record.error.clone()),
            lag,
            tokens_per_event: tokens_per_event(&records),
            time_scale: args.time_scale,
            seed: args.seed,
            model: workload.model.clone(),
        }
    }

    /// Requests without a whole answer.
    pub(super) fn failed(&self) -> u64 {
        self.failed
    }

    fn lagged(&self) -> bool {
        self.lag > LAG || self.tokens_per_event > CROWDED
    }

    /// One JSON object; times in simulated time.
    pub(super) fn json(&self) -> String {
        json!({
            "simulated": true, "model": self.model, "time_scale": self.time_scale, "seed": self.seed,
            "arms": self.arms, "backends": self.backends, "failed": self.failed, "error": self.first_error,
            "lag_p99_ms": self.lag.as_secs_f64() * 1e3, "tokens_per_event": self.tokens_per_event, "lagged": self.lagged(),
        })
        .to_string()
    }

    /// Tables and what to make of them.
    pub(super) fn text(&self) -> String {
        let mut out = String::new();
        let head = "SIMULATED: no GPU was used. Times are those of the simulated GPUs";
        let _ = writeln!(out, "\n{head} ({} x the wall clock's), as the client saw them.\n", self.time_scale);
        out.push_str(&aligned(&rows("arm", &self.arms)));
        out.push('\n');
        out.push_str(&aligned(&rows("backend", &self.backends)));
        if self.failed > 0 {
            let error = self.first_error.as_deref().unwrap_or("no reason given");
            let _ = writeln!(out, "\n{} requests failed; the first: {error}", self.failed);
        }
        if self.lagged() {
            out.push_str(&self.lag_note());
        }
        out.push_str(&self.next());
        out
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

    fn next(&self) -> String {
        let model = &self.model;
        format!(
            "
Each arm had GPUs of its own here and half of the sessions. With real ones:
  CUDA_VISIBLE_DEVICES=0   vllm serve {model} --port 8001
  CUDA_VISIBLE_DEVICES=1   vllm serve {model} --port 8002
  forebay serve --backend http://127.0.0.1:8001 --backend http://127.0.0.1:8002
and for a split like this one, a third server on two more GPUs
  CUDA_VISIBLE_DEVICES=2,3 vllm serve {model} --tensor-parallel-size 2 --port 8003
and two [[pools.arms]] in a file: forebay serve --config forebay.toml
"
        )
    }
}

fn rows(what: &str, parts: &[Part]) -> Vec<Vec<String>> {
    let arms = what == "arm";
    let mut head = vec![what.to_owned()];
    head.extend(if arms { ["GPUs", "requests"] } else { ["arm", "requests"] }.map(str::to_owned));
    head.push("tok/s".to_owned());
    if arms {
        head.push("tok/s/GPU".to_owned());
    }
    head.extend(["TTFT p50 ms", "p99", "TPOT p50 ms", "p99", "E2E p50 s"].map(str::to_owned));
    let mut rows = vec![head];
    for part in parts {
        let Summary { requests, ttft_ms, tpot_ms, e2e_ms, .. } = part.summary;
        let second = if arms { number(part.gpus.map(f64::from), 0) } else { part.arm.clone() };
        let mut row = vec![part.name.clone(), second, requests.to_string()];
        row.push(number(Some(part.output_tokens_per_second), 0));
        if arms {
            row.push(number(part.output_tokens_per_second_per_gpu, 0));
        }
        row.extend([
            number(ttft_ms.p50, 0),
            number(ttft_ms.p99, 0),
            number(tpot_ms.p50, 1),
            number(tpot_ms.p99, 1),
            number(e2e_ms.p50.map(|ms| ms / 1e3), 1),
        ]);
        rows.push(row);
    }
    rows
}
