//! One run from its description to its rows: prompts, warm-up, looks at the servers, the load. What `forebay bench`, an
//! experiment and the demo call.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::SystemTime;

use super::client::{Client, ClientError, Progress, Sending, Target};
use super::dataset::Dataset;
use super::prompts::Prepared;
use super::sampler::{Sampler, Scraped};
use super::workload::{Rate, Workload};
use crate::rows::record::Record;
use crate::rows::row_file::{self, RunEnd, RunHead, RunRows, Sample};

/// Keeps the prompts of warm-ups away from those of loads: a prefix cache would know them.
const WARM_UP_SEED: u64 = 1 << 48;

/// Requests that are sent first, as many at once as the load's limit allows, and not counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WarmUp {
    /// The number of requests; none: no warm-up.
    pub num_prompts: u32,
    /// Tokens of each answer, at most; none: as those of the load.
    pub output_len: Option<u32>,
}

/// A run.
#[derive(Clone, Debug)]
pub struct RunSpec {
    /// The targets of requests, in turn; at least one.
    pub targets: Vec<Target>,
    /// The base URL of the server that counts the tokens of prompts.
    pub tokenizer: String,
    /// The load; where `time_scale` is not 1, in simulated time.
    pub workload: Workload,
    /// The source of prompts.
    pub dataset: Dataset,
    /// The warm-up that is sent before it.
    pub warm_up: WarmUp,
    /// The way in which it is sent.
    pub sending: Sending,
    /// The servers to look at meanwhile.
    pub scrape: Vec<Scraped>,
    /// The head that its rows begin with.
    pub head: RunHead,
    /// Simulated seconds in one of the clock; 1 for real servers. Rows are in simulated time.
    pub time_scale: f64,
}

/// The prompts of a run. Runs whose loads are equal but for rate and arm may share them.
#[derive(Clone, Debug)]
pub struct Prompts {
    /// Of the load.
    pub load: Prepared,
    /// Of the warm-up.
    pub warm_up: Prepared,
}

/// The reason why a run has no rows. Requests of the load that failed are rows.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// No prompts of the wanted length.
    #[error("cannot make prompts: {0}")]
    Prompts(#[from] ClientError),
    /// The server does not answer as it should, so nothing after it would mean anything.
    #[error("{failed} of {sent} requests of the warm-up failed, the first with: {first}")]
    WarmUp {
        /// The number that failed.
        failed: usize,
        /// Of how many.
        sent: usize,
        /// The message of the first failure.
        first: String,
    },
    /// The system refused.
    #[error("cannot look at the servers' metrics: {0}")]
    Sampler(#[from] io::Error),
}

impl RunSpec {
    fn warm_up_load(&self) -> Workload {
        let load = &self.workload;
        Workload {
            num_prompts: self.warm_up.num_prompts,
            output_len: self.warm_up.output_len.unwrap_or(load.output_len).min(load.output_len),
            rate: Rate::Unlimited,
            seed: load.seed.wrapping_add(WARM_UP_SEED),
            ..load.clone()
        }
    }

    /// Its limit holds for the warm-up as well, as with `vllm bench serve`: a server may not stand more. Sessions are the load's.
    fn warm_up_sending(&self) -> Sending {
        Sending { session_header: None, ..self.sending.clone() }
    }

    /// The load by the clock.
    fn paced(&self) -> Workload {
        let scale = self.time_scale;
        let rate = match self.workload.rate {
            Rate::Unlimited => Rate::Unlimited,
            // Simulated servers that run ten times as fast need ten times the arrivals for the same load on them.
            Rate::PerSecond(rate) => Rate::PerSecond(rate * scale),
            Rate::Gamma { per_second, burstiness } => Rate::Gamma { per_second: per_second * scale, burstiness },
            Rate::OfTrace { speedup } => Rate::OfTrace { speedup: speedup * scale },
        };
        Workload { rate, ..self.workload.clone() }
    }
}

/// Makes the prompts of a run.
///
/// # Errors
/// The server does not answer, or does not know the model.
pub async fn prepare(client: &Client, spec: &RunSpec) -> Result<Prompts, RunError> {
    let load = client.prepare(&spec.tokenizer, &spec.workload, &spec.dataset).await?;
    let warm_up = client.prepare(&spec.tokenizer, &spec.warm_up_load(), &spec.dataset.of_warm_up()).await?;
    Ok(Prompts { load, warm_up })
}

/// Warms up, sends the load and gives its rows. `progress` counts the requests of the load, not those of the warm-up.
///
/// # Errors
/// A request of the warm-up failed, or there is no thread to look at the servers.
///
/// # Panics
/// There is no target.
pub async fn run(
    client: &Client,
    spec: &RunSpec,
    prompts: &Prompts,
    progress: &Arc<Progress>,
) -> Result<RunRows, RunError> {
    let (load, sending) = (spec.warm_up_load(), spec.warm_up_sending());
    let warm = client.run(&spec.targets, &load, &prompts.warm_up.supply, &sending, &Arc::default()).await;
    // A server that refuses its warm-up would give rows of refusals, which look like a run.
    all_served(&warm.records)?;
    // Both clocks at one moment: rows count from here, and Unix time orders runs of other hosts.
    let begin = client.clock().now();
    let began_ms = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).ok().map(|since| since.as_millis() as u64);
    let sampler = match spec.scrape.is_empty() {
        true => None,
        false => Some(Sampler::start(spec.scrape.clone(), client.clock().clone(), begin)?),
    };
    let supply = prompts.load.supply.clone().paced(spec.time_scale);
    let run = client.run_from(begin, &spec.targets, &spec.paced(), &supply, &spec.sending, progress).await;
    // After the load, since its last steps are part of what bound it.
    let samples = match sampler {
        Some(sampler) => sampler.end().await,
        None => Vec::new(),
    };
    // Simulated servers may run faster than the clock. Rows are in the time that they stand for.
    let scale = spec.time_scale;
    let scaled = |micros: u64| (micros as f64 * scale).round() as u64;
    Ok(RunRows {
        head: Some(RunHead { began_ms, host: spec.head.host.clone().or_else(host), ..spec.head.clone() }),
        records: run.records.iter().map(|record| record.scaled(scale)).collect(),
        samples: samples.into_iter().map(|one| Sample { at_us: scaled(one.at_us), ..one }).collect(),
        // A run that was told to end has no end in its file: it may lack its slowest requests, and is not compared.
        end: (!progress.is_stopped())
            .then(|| RunEnd { lag_p99_us: scaled(u64::try_from(run.lag_p99.as_micros()).unwrap_or(u64::MAX)) }),
    })
}

/// The name of this host, which a report has in its title.
fn host() -> Option<String> {
    let name = nix::unistd::gethostname().ok()?.into_string().ok()?;
    (!name.is_empty()).then_some(name)
}

fn all_served(records: &[Record]) -> Result<(), RunError> {
    let mut failed = records.iter().filter(|record| !record.succeeded()).peekable();
    let Some(first) = failed.peek() else { return Ok(()) };
    let status = first.status.map_or_else(String::new, |status| format!("{status} "));
    let first = format!("{status}{}", first.error.as_deref().unwrap_or("no reason given"));
    Err(RunError::WarmUp { failed: failed.count(), sent: records.len(), first })
}

/// Writes a run as it goes into a row file: head, looks, requests, and the end last, without which it is not whole.
///
/// # Errors
/// The system refused.
pub fn write(out: &mut impl Write, run: &RunRows) -> io::Result<()> {
    if let Some(head) = &run.head {
        row_file::write_head(out, head)?;
    }
    for sample in &run.samples {
        row_file::write_sample(out, sample)?;
    }
    for record in &run.records {
        row_file::write_record(out, record)?;
    }
    match run.end {
        Some(end) => row_file::write_end(out, end),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::workload::tests::workload;
    use crate::rows::record::{Outcome, tests::record};
    use crate::rows::row_file::{Load, Offered};

    #[test]
    fn a_run_is_written_with_its_end_last() {
        let run = RunRows {
            head: None,
            records: vec![record(0)],
            samples: vec![Sample::default()],
            end: Some(RunEnd { lag_p99_us: 4 }),
        };
        let mut text = Vec::new();
        write(&mut text, &run).unwrap();
        assert!(String::from_utf8_lossy(&text).ends_with("{\"end\":{\"lag_p99_us\":4}}\n"));
    }

    #[test]
    fn a_warm_up_keeps_to_the_limit_of_the_load() {
        let load = Load {
            offered: Offered::Concurrency(2),
            num_prompts: 2000,
            dataset: None,
            input_len: None,
            output_len: None,
            seed: 7,
            ..Load::default()
        };
        let spec = RunSpec {
            targets: vec![Target::of("http://127.0.0.1:1")],
            tokenizer: "http://127.0.0.1:1".to_owned(),
            workload: workload(Rate::PerSecond(5.0)),
            dataset: Dataset::Random,
            warm_up: WarmUp { num_prompts: 9, output_len: Some(3) },
            sending: Sending { max_concurrency: Some(2), session_header: Some("x-session-id".to_owned()), epoch: 4 },
            scrape: vec![],
            head: RunHead {
                arm: None,
                epoch: 4,
                block: None,
                start: None,
                load,
                model: "m".to_owned(),
                gpus: None,
                replicas: None,
                max_num_seqs: None,
                simulated: false,
                ..RunHead::default()
            },
            time_scale: 1.0,
        };
        let (load, sending) = (spec.warm_up_load(), spec.warm_up_sending());
        assert_eq!((load.num_prompts, load.output_len, load.rate), (9, 3, Rate::Unlimited));
        assert_eq!((sending.max_concurrency, sending.session_header, sending.epoch), (Some(2), None, 4));
    }

    #[test]
    fn a_warm_up_that_failed_says_with_what() {
        let refused = Record {
            outcome: Outcome::Status,
            status: Some(404),
            error: Some("no such model".to_owned()),
            ..record(1)
        };
        let said = all_served(&[record(0), refused]).unwrap_err().to_string();
        assert_eq!(said, "1 of 2 requests of the warm-up failed, the first with: 404 no such model");
        assert!(all_served(&[record(0)]).is_ok());
    }
}
