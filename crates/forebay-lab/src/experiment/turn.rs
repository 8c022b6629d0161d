//! One arm's turn: a Forebay of its own, and a run as `forebay bench` makes it. Only a turn that ended is written.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::plan::{PlannedEpoch, plan};
use super::spec::{ArmSpec, Experiment, LoadSpec, Route};
use crate::experiment::processes::front::{self, Front, FrontError};
use crate::load::client::{Client, Progress, Sending, Target};
use crate::load::dataset::Dataset;
use crate::load::run::{self, Prompts, RunError, RunSpec};
use crate::load::sampler::Scraped;
use crate::load::workload::{Length, Rate, Workload};
use crate::rows::row_file::{Load, Offered, RunHead};
use crate::rows::summary::Summary;

/// The reason why a turn has no rows.
#[derive(Debug, thiserror::Error)]
pub(super) enum TurnError {
    /// No Forebay before the arm.
    #[error(transparent)]
    Front(#[from] FrontError),
    /// No prompts, or servers that do not answer as they should.
    #[error("{arm}: {error}")]
    Run {
        /// The arm.
        arm: String,
        /// The reason.
        error: RunError,
    },
}

/// The rows of a turn and their figures.
pub(super) struct FinishedTurn {
    /// Its head.
    pub(super) head: RunHead,
    /// The whole run as it goes into the row file.
    pub(super) text: Vec<u8>,
    /// Its figures, in a line.
    pub(super) line: String,
}

/// Takes turns. Prompts are kept for the next turn, which often has the same.
pub(super) struct TurnTaker<'a> {
    experiment: &'a Experiment,
    binary: &'a Path,
    client: Client,
    prompts: Option<(PlannedEpoch, Prompts)>,
}

impl<'a> TurnTaker<'a> {
    /// Of that experiment, with Forebays of that binary.
    pub(super) fn of(experiment: &'a Experiment, binary: &'a Path) -> TurnTaker<'a> {
        TurnTaker { experiment, binary, client: Client::default(), prompts: None }
    }

    /// Takes one turn, with servers that started as number `start`.
    pub(super) async fn take(&mut self, epoch: &PlannedEpoch, start: u32) -> Result<FinishedTurn, TurnError> {
        let (experiment, arm) = (self.experiment, &self.experiment.arms[epoch.arm]);
        let wrong = |error| TurnError::Run { arm: arm.name.clone(), error };
        let mut spec = spec(experiment, epoch, start);
        let prompts = match self.prompts.take() {
            // The arms of a block have one seed, so the second takes the first one's prompts. To count them anew takes a minute
            // of the GPUs' time.
            Some((last, prompts)) if (last.load, last.seed) == (epoch.load, epoch.seed) => prompts,
            _ => run::prepare(&self.client, &spec).await.map_err(wrong)?,
        };
        let front = match arm.route {
            Route::Direct => None,
            Route::Forebay(policy) => Some(front::start(experiment, arm, policy, self.binary, &self.client).await?),
        };
        spec.targets = vec![target(experiment, arm, front.as_ref())];
        let run = run::run(&self.client, &spec, &prompts, &Arc::new(Progress::default())).await.map_err(wrong)?;
        let kept = match &front {
            // Before it is stopped: its counters end with it, and its CPU time is among them.
            Some(front) => front.keep_metrics(&metrics_file(experiment, arm, epoch)).await,
            None => Ok(()),
        };
        drop(front);
        self.prompts = Some((*epoch, prompts));
        let mut text = Vec::new();
        run::write(&mut text, &run).expect("writing to memory cannot fail");
        let mut line = line(&Summary::of(&run.records));
        if let Err(reason) = kept {
            line.push_str(&format!("; Forebay's metrics were not kept: {reason}"));
        }
        Ok(FinishedTurn { line, head: spec.head, text })
    }
}

fn metrics_file(experiment: &Experiment, arm: &ArmSpec, epoch: &PlannedEpoch) -> PathBuf {
    experiment.out.join("logs").join(format!("forebay-{}-{}.prom", arm.name, epoch.number))
}

fn spec(experiment: &Experiment, epoch: &PlannedEpoch, start: u32) -> RunSpec {
    let (arm, load) = (&experiment.arms[epoch.arm], &experiment.loads[epoch.load]);
    let bases = || arm.servers.iter().map(|index| experiment.servers[*index].url.to_string());
    RunSpec {
        targets: Vec::new(),
        tokenizer: bases().next().unwrap_or_default(),
        workload: workload(experiment, load, epoch.seed),
        dataset: load.prefixes.map_or(Dataset::Random, Dataset::Prefixes),
        warm_up: experiment.warm_up,
        sending: Sending {
            max_concurrency: load.max_concurrency.map(|limit| limit as usize),
            epoch: epoch.number,
            ..Sending::default()
        },
        scrape: bases().map(|base| Scraped::of(&base)).collect(),
        head: head(experiment, epoch, start),
        time_scale: experiment.time_scale.unwrap_or(1.0),
    }
}

fn workload(experiment: &Experiment, load: &LoadSpec, seed: u64) -> Workload {
    Workload {
        model: experiment.model.clone(),
        endpoint: load.endpoint,
        num_prompts: load.num_prompts,
        input_len: load.input_len,
        length: Length::Whole,
        output_len: load.output_len,
        ignore_eos: load.ignore_eos,
        temperature: load.temperature,
        rate: match load.offered {
            Offered::Rate(rate) => Rate::PerSecond(rate),
            Offered::Unlimited | Offered::Concurrency(_) | Offered::Traffic => Rate::Unlimited,
            Offered::Trace(speedup) => Rate::OfTrace { speedup },
        },
        seed,
    }
}

/// Returns the target of an arm's requests; Forebay's answers tell their backend themselves.
fn target(experiment: &Experiment, arm: &ArmSpec, front: Option<&Front>) -> Target {
    let arm_name = Some(arm.name.clone());
    match front {
        Some(front) => Target { arm: arm_name, ..Target::of(front.base.clone()) },
        None => {
            let server = Target::of(experiment.servers[arm.servers[0]].url.to_string());
            Target { arm: arm_name, backend: Some(server.authority().to_owned()), ..server }
        }
    }
}

/// The load of an epoch as its head has it.
pub(super) fn load_of(experiment: &Experiment, epoch: &PlannedEpoch) -> Load {
    let load = &experiment.loads[epoch.load];
    Load {
        offered: load.offered,
        max_concurrency: load.max_concurrency.filter(|_| !matches!(load.offered, Offered::Concurrency(_))),
        num_prompts: load.num_prompts,
        dataset: load.prefixes.map(|prefixes| prefixes.to_string()),
        input_len: Some(load.input_len.saturating_add(load.prefixes.map_or(0, |prefixes| prefixes.len))),
        output_len: Some(load.output_len),
        seed: epoch.seed,
        ..Load::default()
    }
}

/// Returns the number of runs that the plan has for an arm with this load, however often the file names the load.
fn planned_runs(experiment: &Experiment, epoch: &PlannedEpoch) -> usize {
    let of = |epoch: &PlannedEpoch| (epoch.arm, Load { seed: 0, ..load_of(experiment, epoch) });
    let all = plan(experiment);
    all.iter().flat_map(|start| &start.epochs).filter(|other| of(other) == of(epoch)).count()
}

fn head(experiment: &Experiment, epoch: &PlannedEpoch, start: u32) -> RunHead {
    let arm = &experiment.arms[epoch.arm];
    RunHead {
        arm: Some(arm.name.clone()),
        epoch: epoch.number,
        block: Some(epoch.block),
        start: Some(start),
        planned_starts: Some(arm.starts),
        planned_runs: u32::try_from(planned_runs(experiment, epoch)).ok(),
        load: load_of(experiment, epoch),
        model: experiment.model.clone(),
        gpus: Some(arm.gpus),
        replicas: u32::try_from(arm.servers.len()).ok(),
        max_num_seqs: arm.max_num_seqs,
        simulated: experiment.time_scale.is_some(),
        ..RunHead::default()
    }
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
