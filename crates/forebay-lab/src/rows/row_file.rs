//! Row files: what all reports are made from, whether the run was live, simulated or recorded. JSON lines; a run is a head
//! (`{"run": …}`), its requests (a [`Record`] each) and looks at its servers (`{"sample": …}`) in any order, and an end
//! (`{"end": …}`) that a run which was cut off lacks. Files may be joined by `cat`. Requests before any head are runs without
//! one, by arm and epoch.

use std::io::{self, BufRead, Write};

use serde::{Deserialize, Serialize};

use super::record::Record;

/// The way in which requests are offered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Offered {
    /// All at once.
    #[default]
    Unlimited,
    /// A number of requests a second on average.
    Rate(f64),
    /// A number of requests under way at any time (a closed loop).
    Concurrency(u32),
    /// At the times of a trace, so many times as fast.
    Trace(f64),
    /// By real clients, in their own time.
    Traffic,
}

/// The place where the times of a run were taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// The load generator.
    #[default]
    Generator,
    /// The proxy, which wrote them into its access log: no gaps between tokens, no looks at servers, no lag.
    AccessLog,
}

impl Source {
    /// Returns whether the load generator took the times.
    #[must_use]
    pub fn is_generator(&self) -> bool {
        *self == Source::Generator
    }
}

/// The load of a run.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
pub struct Load {
    /// The way in which requests are offered, and how fast.
    pub offered: Offered,
    /// The evenness of a rate's gaps: 1 is a Poisson process, which none stands for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burstiness: Option<f64>,
    /// Requests under way at once, at most, beside a rate; none: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_concurrency: Option<u32>,
    /// The number of requests.
    pub num_prompts: u32,
    /// The dataset and what shapes it, in words that are equal where it is; none: random prompts that share nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dataset: Option<String>,
    /// Tokens of each prompt; none: the dataset's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input_len: Option<u32>,
    /// Tokens of each answer, at most; none: the dataset's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_len: Option<u32>,
    /// For prompts and times.
    pub seed: u64,
}

/// A run's circumstances: its first line.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
pub struct RunHead {
    /// The arm under test; none where both run at once behind the proxy and each answer tells its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arm: Option<String>,
    /// Its epoch in the experiment, from 0; the unit of the statistics.
    pub epoch: u32,
    /// Epochs of one block are compared as a pair (A-B-B-A is two blocks).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block: Option<u32>,
    /// Epochs with the same number shared a start of the servers; none: not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<u32>,
    /// The time at which it began, in milliseconds of Unix time; none: not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub began_ms: Option<u64>,
    /// Starts of the arm's servers that were planned before the first run; none: no plan.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub planned_starts: Option<u32>,
    /// Runs of the arm with this load that were planned before the first one; none: no such plan.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub planned_runs: Option<u32>,
    /// The load.
    pub load: Load,
    /// The model asked for.
    pub model: String,
    /// GPUs that the arm occupies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpus: Option<u32>,
    /// Servers of the arm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicas: Option<u32>,
    /// `--max-num-seqs` of each server, where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_num_seqs: Option<u32>,
    /// True if the servers were simulated: said wherever a figure is shown.
    #[serde(default)]
    pub simulated: bool,
    /// The name of the host that measured; none: not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// The command that made it, as a shell takes it: what a report tells to run again. None where it may hold a secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
    /// The place where its times were taken.
    #[serde(default, skip_serializing_if = "Source::is_generator")]
    pub source: Source,
}

/// A look at one server during a run: its gauges, and its counters as they stood.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
pub struct Sample {
    /// The server.
    pub backend: String,
    /// The time of the look, from the begin of the run, in microseconds.
    pub at_us: u64,
    /// Sequences in the running batch (`vllm:num_requests_running`).
    pub running: Option<f64>,
    /// Sequences that wait (`vllm:num_requests_waiting`).
    pub waiting: Option<f64>,
    /// Share of the KV blocks in use, 0 to 1 (`vllm:kv_cache_usage_perc`).
    pub kv_usage: Option<f64>,
    /// Preemptions so far (`vllm:num_preemptions_total`).
    pub preemptions: Option<f64>,
    /// Prompt tokens looked up in the prefix cache so far.
    pub prefix_queries: Option<f64>,
    /// Of these, found.
    pub prefix_hits: Option<f64>,
    /// Prompt tokens so far (`vllm:prompt_tokens_total`).
    pub prompt_tokens: Option<f64>,
    /// Tokens generated so far (`vllm:generation_tokens_total`).
    pub generation_tokens: Option<f64>,
    /// Engine steps so far (`vllm:iteration_tokens_total_count`).
    pub steps: Option<f64>,
    /// Tokens that its KV blocks hold (`vllm:cache_config_info`: blocks × block size).
    pub kv_tokens: Option<f64>,
}

/// A run's last line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize, Serialize)]
pub struct RunEnd {
    /// The delay with which the load generator noted what had come, at the 99th percentile, in microseconds.
    pub lag_p99_us: u64,
}

/// A run as read from a file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RunRows {
    /// Its circumstances; none where the file has none.
    pub head: Option<RunHead>,
    /// Its requests.
    pub records: Vec<Record>,
    /// Looks at its servers, oldest first.
    pub samples: Vec<Sample>,
    /// Its end; none for a run that was cut off, and one without a head.
    pub end: Option<RunEnd>,
}

/// A file that is no row file.
#[derive(Debug, thiserror::Error)]
pub enum RowError {
    /// The system refused.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// A line that is no row.
    #[error("line {line} is no row of `forebay bench`: {reason}")]
    Line {
        /// Its number, from 1.
        line: usize,
        /// The reason.
        reason: serde_json::Error,
    },
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
enum Mark<H, S> {
    Run(H),
    Sample(S),
    End(RunEnd),
}

/// The beginnings of the lines of a row file.
pub const ROWS: [&str; 4] = ["{\"id\"", "{\"run\"", "{\"sample\"", "{\"end\""];

/// Writes a run's head.
///
/// # Errors
/// The system refused.
pub fn write_head(out: &mut impl Write, head: &RunHead) -> io::Result<()> {
    line(out, &Mark::<_, ()>::Run(head))
}

/// Writes a request.
///
/// # Errors
/// The system refused.
pub fn write_record(out: &mut impl Write, record: &Record) -> io::Result<()> {
    line(out, record)
}

/// Writes a look at a server.
///
/// # Errors
/// The system refused.
pub fn write_sample(out: &mut impl Write, sample: &Sample) -> io::Result<()> {
    line(out, &Mark::<(), _>::Sample(sample))
}

/// Writes a run's end: what makes it whole.
///
/// # Errors
/// The system refused.
pub fn write_end(out: &mut impl Write, end: RunEnd) -> io::Result<()> {
    line(out, &Mark::<(), ()>::End(end))
}

fn line(out: &mut impl Write, row: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *out, row)?;
    out.write_all(b"\n")
}

/// Reads a row file. A last line without its line feed is the trace of a crash, and left out.
///
/// # Errors
/// The system refused, or a line is no row.
pub fn read(mut from: impl BufRead) -> Result<Vec<RunRows>, RowError> {
    let mut runs: Vec<RunRows> = Vec::new();
    let mut text = String::new();
    for number in 1.. {
        text.clear();
        if from.read_line(&mut text)? == 0 || !text.ends_with('\n') {
            break;
        }
        let wrong = |reason| RowError::Line { line: number, reason };
        let row = text.trim();
        if row.is_empty() {
            continue;
        }
        // Requests are nearly all lines. They are told by their first key, without a look at what else a line could be.
        if row.starts_with("{\"id\"") {
            let record: Record = serde_json::from_str(row).map_err(wrong)?;
            home(&mut runs, &record).records.push(record);
            continue;
        }
        match serde_json::from_str::<Mark<RunHead, Sample>>(row).map_err(wrong)? {
            Mark::Run(head) => runs.push(RunRows { head: Some(head), ..RunRows::default() }),
            Mark::Sample(sample) => last(&mut runs).samples.push(sample),
            Mark::End(end) => last(&mut runs).end = Some(end),
        }
    }
    for run in &mut runs {
        run.samples.sort_by_key(|sample| sample.at_us);
    }
    Ok(runs)
}

/// The run that a request belongs to: the last with a head, else the one of its arm and epoch.
fn home<'a>(runs: &'a mut Vec<RunRows>, record: &Record) -> &'a mut RunRows {
    // Older files have no heads, and the requests of several runs in any order.
    let headed = runs.last().is_some_and(|run| run.head.is_some());
    let like = |run: &RunRows| {
        run.head.is_none()
            && run.records.first().is_some_and(|one| (&one.arm, one.epoch) == (&record.arm, record.epoch))
    };
    match runs.iter().position(like) {
        Some(index) if !headed => &mut runs[index],
        _ if headed => last(runs),
        _ => {
            runs.push(RunRows::default());
            last(runs)
        }
    }
}

fn last(runs: &mut Vec<RunRows>) -> &mut RunRows {
    if runs.is_empty() {
        runs.push(RunRows::default());
    }
    runs.last_mut().expect("one was just put in")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::rows::record::tests::record;

    pub(crate) fn head(arm: &str, epoch: u32) -> RunHead {
        let load = Load {
            offered: Offered::Rate(4.0),
            num_prompts: 2,
            dataset: None,
            input_len: Some(100),
            output_len: Some(600),
            seed: 0,
            ..Load::default()
        };
        RunHead {
            arm: Some(arm.to_owned()),
            epoch,
            block: Some(0),
            start: Some(1),
            load,
            model: "m".to_owned(),
            gpus: Some(2),
            simulated: true,
            ..RunHead::default()
        }
    }

    fn written() -> Vec<u8> {
        let mut out = Vec::new();
        write_head(&mut out, &head("a", 0)).unwrap();
        write_sample(&mut out, &Sample { at_us: 9, running: Some(2.0), ..Sample::default() }).unwrap();
        write_record(&mut out, &record(0)).unwrap();
        write_sample(&mut out, &Sample { at_us: 5, ..Sample::default() }).unwrap();
        write_end(&mut out, RunEnd { lag_p99_us: 7 }).unwrap();
        write_head(&mut out, &head("b", 1)).unwrap();
        write_record(&mut out, &record(0)).unwrap();
        out
    }

    #[test]
    fn runs_are_read_back_and_one_that_was_cut_off_has_no_end() {
        let runs = read(written().as_slice()).unwrap();
        assert_eq!(runs.len(), 2);
        assert_eq!((runs[0].head.as_ref(), runs[0].end), (Some(&head("a", 0)), Some(RunEnd { lag_p99_us: 7 })));
        assert_eq!(runs[0].samples.iter().map(|sample| sample.at_us).collect::<Vec<_>>(), [5, 9]);
        assert_eq!((runs[1].records.len(), runs[1].end), (1, None));
    }

    #[test]
    fn rows_from_before_datasets_had_names_are_read() {
        let old = r#"{"run":{"epoch":0,"load":{"offered":{"rate":10.0},"num_prompts":2,"seed":0},"model":"m","simulated":true}}
{"id":0,"arm":null,"backend":null,"epoch":0,"sent_us":1,"first_event_us":2,"first_token_us":2,"end_us":9,"prompt_tokens":5,"output_tokens":1,"outcome":"success","status":200}
"#;
        let run = &read(old.as_bytes()).unwrap()[0];
        assert_eq!((run.head.as_ref().unwrap().load.dataset.as_ref(), run.records[0].cached_tokens), (None, None));
    }

    #[test]
    fn half_a_line_at_the_end_is_left_out_and_one_in_the_middle_is_named() {
        let whole = written();
        assert_eq!(read(&whole[..whole.len() - 5]).unwrap()[1].records.len(), 0);
        let broken = [&whole[..10], b"\n", &whole[..]].concat();
        assert!(read(broken.as_slice()).unwrap_err().to_string().starts_with("line 1 is no row"));
    }

    #[test]
    fn requests_without_a_head_are_runs_by_arm_and_epoch() {
        let mut out = Vec::new();
        for (id, epoch) in [(0, 0), (1, 1), (2, 0)] {
            write_record(&mut out, &Record { epoch, ..record(id) }).unwrap();
        }
        let runs = read(out.as_slice()).unwrap();
        assert_eq!(runs.iter().map(|run| run.records.len()).collect::<Vec<_>>(), [2, 1]);
    }
}
