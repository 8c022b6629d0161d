//! One arm's turn: prompts, a Forebay of its own, warm-up, the load, and the rows of it. Only a turn that ended is written.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::front::{self, Front, FrontError};
use super::plan::Epoch;
use super::spec::{Arm, Experiment, LoadSpec, Route};
use crate::bench::client::{Client, ClientError, Progress, Sending, Target};
use crate::bench::record::Record;
use crate::bench::rows::{self, Load, Offered, RunEnd, RunHead, Sample};
use crate::bench::summary::Summary;
use crate::bench::workload::{Rate, Workload};

/// Keeps the seeds of warm-ups away from those of epochs.
const WARM_UP_SEED: u64 = 1 << 48;

/// Why a turn has no rows.
#[derive(Debug, thiserror::Error)]
pub(super) enum TurnError {
    /// No Forebay before the arm.
    #[error(transparent)]
    Front(#[from] FrontError),
    /// No prompts of the wanted length.
    #[error("cannot make prompts: {0}")]
    Prompts(#[from] ClientError),
    /// The servers do not answer as they should, so nothing after it would mean anything.
    #[error("{failed} of {sent} requests of the warm-up of {arm} failed, the first with: {first}")]
    WarmUp {
        /// The arm.
        arm: String,
        /// How many failed.
        failed: usize,
        /// Of how many.
        sent: usize,
        /// What the first failure was.
        first: String,
    },
}

/// What a turn gave.
pub(super) struct Turn {
    /// Its head.
    pub(super) head: RunHead,
    /// The whole run as it goes into the row file.
    pub(super) text: Vec<u8>,
    /// Its figures, in a line.
    pub(super) line: String,
}

/// Takes turns. Bodies of requests are kept as long as another arm of the block may use them.
pub(super) struct Turns<'a> {
    experiment: &'a Experiment,
    binary: &'a Path,
    client: Client,
    bodies: HashMap<u64, Vec<Bytes>>,
    block: u32,
}

impl<'a> Turns<'a> {
    /// Of that experiment, with Forebays of that binary.
    pub(super) fn of(experiment: &'a Experiment, binary: &'a Path) -> Turns<'a> {
        Turns { experiment, binary, client: Client::default(), bodies: HashMap::new(), block: 0 }
    }

    /// Takes one turn, with servers that started as number `start`.
    pub(super) async fn take(&mut self, epoch: &Epoch, start: u32) -> Result<Turn, TurnError> {
        let experiment = self.experiment;
        let (arm, load) = (&experiment.arms[epoch.arm], &experiment.loads[epoch.load]);
        let workload = self.workload(load, epoch.seed);
        let warm_up = Workload {
            num_prompts: experiment.warm_up.num_prompts,
            output_len: experiment.warm_up.output_len.min(load.output_len),
            rate: Rate::Unlimited,
            ..self.workload(load, epoch.seed.wrapping_add(WARM_UP_SEED))
        };
        if self.block != epoch.block {
            self.bodies.clear();
            self.block = epoch.block;
        }
        let bodies = self.bodies_of(arm, &workload).await?;
        let warm_bodies = self.bodies_of(arm, &warm_up).await?;
        let front = match arm.route {
            Route::Direct => None,
            Route::Forebay(policy) => Some(front::start(experiment, arm, policy, self.binary, &self.client).await?),
        };
        let target = [target(experiment, arm, front.as_ref())];
        let progress = Arc::new(Progress::default());
        let all_at_once = Sending::default();
        let warm = self.client.run(&target, &warm_up, &warm_bodies, &all_at_once, &progress).await;
        whole(arm, &warm.records)?;
        let sending = Sending {
            max_concurrency: load.max_concurrency.map(|limit| limit as usize),
            epoch: epoch.number,
            ..Sending::default()
        };
        let run = self.client.run(&target, &workload, &bodies, &sending, &progress).await;
        drop(front);
        let scale = experiment.time_scale.unwrap_or(1.0);
        let records: Vec<Record> = run.records.iter().map(|record| record.scaled(scale)).collect();
        let end = RunEnd { lag_p99_us: (run.lag_p99.as_secs_f64() * 1e6 * scale) as u64 };
        let head = head(experiment, epoch, start);
        let text = written(&head, &records, &[], end).expect("writing to memory cannot fail");
        Ok(Turn { line: line(&Summary::of(&records)), head, text })
    }

    fn workload(&self, load: &LoadSpec, seed: u64) -> Workload {
        let scale = self.experiment.time_scale.unwrap_or(1.0);
        Workload {
            model: self.experiment.model.clone(),
            endpoint: load.endpoint,
            num_prompts: load.num_prompts,
            input_len: load.input_len,
            output_len: load.output_len,
            ignore_eos: load.ignore_eos,
            rate: match load.offered {
                Offered::Rate(rate) => Rate::PerSecond(rate * scale),
                Offered::Unlimited | Offered::Concurrency(_) => Rate::Unlimited,
            },
            seed,
        }
    }

    async fn bodies_of(&mut self, arm: &Arm, workload: &Workload) -> Result<Vec<Bytes>, ClientError> {
        if let Some(bodies) = self.bodies.get(&workload.seed) {
            return Ok(bodies.clone());
        }
        let base = self.experiment.servers[arm.servers[0]].url.to_string();
        let bodies = self.client.bodies(&base, workload).await?;
        self.bodies.insert(workload.seed, bodies.clone());
        Ok(bodies)
    }
}

/// Where an arm's requests go; Forebay's answers tell their backend themselves.
fn target(experiment: &Experiment, arm: &Arm, front: Option<&Front>) -> Target {
    match front {
        Some(front) => Target { arm: Some(arm.name.clone()), ..Target::of(front.base.clone()) },
        None => {
            let url = &experiment.servers[arm.servers[0]].url;
            let backend = url.to_string().trim_start_matches("http://").to_owned();
            Target { base: url.to_string(), arm: Some(arm.name.clone()), backend: Some(backend) }
        }
    }
}

fn whole(arm: &Arm, records: &[Record]) -> Result<(), TurnError> {
    let mut failed = records.iter().filter(|record| !record.succeeded()).peekable();
    let Some(first) = failed.peek() else { return Ok(()) };
    let first = first.error.clone().unwrap_or_else(|| format!("{:?}", first.outcome));
    Err(TurnError::WarmUp { arm: arm.name.clone(), failed: failed.count(), sent: records.len(), first })
}

/// The load of an epoch as its head has it.
pub(super) fn load_of(experiment: &Experiment, epoch: &Epoch) -> Load {
    let load = &experiment.loads[epoch.load];
    Load {
        offered: load.offered,
        num_prompts: load.num_prompts,
        input_len: Some(load.input_len),
        output_len: Some(load.output_len),
        seed: epoch.seed,
    }
}

fn head(experiment: &Experiment, epoch: &Epoch, start: u32) -> RunHead {
    let arm = &experiment.arms[epoch.arm];
    RunHead {
        arm: Some(arm.name.clone()),
        epoch: epoch.number,
        block: Some(epoch.block),
        start: Some(start),
        load: load_of(experiment, epoch),
        model: experiment.model.clone(),
        gpus: Some(arm.gpus),
        replicas: u32::try_from(arm.servers.len()).ok(),
        max_num_seqs: arm.max_num_seqs,
        simulated: experiment.time_scale.is_some(),
    }
}

fn written(head: &RunHead, records: &[Record], samples: &[Sample], end: RunEnd) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    rows::write_head(&mut text, head)?;
    for sample in samples {
        rows::write_sample(&mut text, sample)?;
    }
    for record in records {
        rows::write_record(&mut text, record)?;
    }
    rows::write_end(&mut text, end)?;
    Ok(text)
}

fn line(summary: &Summary) -> String {
    let ms = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), |value| format!("{value:.0} ms"));
    let failed = if summary.failed == 0 { String::new() } else { format!(", {} FAILED", summary.failed) };
    format!(
        "{} answers{failed} in {:.1} s, {:.0} output tokens/s, TTFT median {} P99 {}, TPOT median {}",
        summary.requests,
        summary.duration_s,
        summary.output_tokens as f64 / summary.duration_s.max(1e-9),
        ms(summary.ttft_ms.p50),
        ms(summary.ttft_ms.p99),
        ms(summary.tpot_ms.p50)
    )
}
