//! The course of an experiment: starts servers, lets arms take their turns, and stops the servers, within the time that it is
//! given. Every whole turn is kept at once, so that it can end at any point and go on from there.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::journal::{self, Journal, JournalError};
use super::plan::{self, PlannedEpoch, Start};
use super::processes::{machine, process};
use super::spec::Experiment;
use super::turn::{TurnError, TurnTaker, load_of};
use crate::experiment::processes::servers::{self, Running, StartError};
use crate::rows::row_file::Offered;
use forebay_core::clock::{Clock, Time};

/// The part of the time that is kept back for the end, beside what servers may take to stop.
const RESERVE: Duration = Duration::from_secs(3);

/// The options of the runner.
#[derive(Clone, Debug)]
pub struct ExperimentOptions {
    /// The binary that is `forebay`.
    pub binary: PathBuf,
    /// Ends after so long, to be gone on with later.
    pub stop_after: Option<Duration>,
}

/// The way in which a call of the runner ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExperimentEnd {
    /// Every turn was taken.
    Complete,
    /// The time is over.
    OutOfTime {
        /// Turns taken so far, in all calls.
        done: usize,
        /// Of so many.
        all: usize,
    },
}

/// The reason why an experiment did not go on.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct ExperimentError(#[from] Why);

#[derive(Debug, thiserror::Error)]
enum Why {
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error(transparent)]
    Start(#[from] StartError),
    #[error(transparent)]
    Turn(#[from] TurnError),
    #[error("{0}")]
    Dead(String),
    #[error("the row file cannot be written: {0}")]
    Write(io::Error),
    #[error("{} holds turns of another experiment ({what}): name another folder with --out, or move it away", path.display())]
    Other { path: PathBuf, what: String },
}

/// The function by which the runner tells what it does: lines for whoever watches.
pub type Say<'a> = &'a (dyn Fn(&str) + Sync);

struct Runner<'a> {
    experiment: &'a Experiment,
    journal: Journal,
    turns: TurnTaker<'a>,
    clock: Clock,
    deadline: Option<Time>,
    say: Say<'a>,
}

/// Runs what is left of an experiment.
///
/// # Errors
/// A server does not come up or dies, the folder cannot be used, or a warm-up fails. What was measured until then is kept.
pub async fn run(
    experiment: &Experiment,
    options: &ExperimentOptions,
    say: Say<'_>,
) -> Result<ExperimentEnd, ExperimentError> {
    let clock = Clock::system();
    let out = &experiment.out;
    let journal = Journal::open(out).map_err(Why::from)?;
    if journal.was_cut_off() {
        say("a turn that was cut off is taken again; its rows are in cut-off.jsonl");
    }
    // Before anything is started: servers that a killed call left behind hold the GPUs' memory and the ports.
    let left_over = process::end_left_overs(&out.join("running"));
    if left_over > 0 {
        say(&format!("ended {left_over} processes that an earlier call left behind"));
    }
    let plan = plan::plan(experiment);
    check_heads(experiment, &journal, &plan)?;
    let stopping = experiment.servers.iter().map(|server| server.stop_timeout).max().unwrap_or_default();
    // The slowest server's stop is taken off, so that a call that is cut from outside at its limit leaves nothing running.
    let deadline = options.stop_after.map(|limit| clock.now() + limit.saturating_sub(stopping + RESERVE));
    if !out.join("machine.txt").exists() {
        machine::record(&experiment.record, out).await.map_err(Why::Write)?;
    }
    let turns = TurnTaker::of(experiment, &options.binary);
    let mut runner = Runner { experiment, journal, turns, clock, deadline, say };
    for start in &plan {
        // In the plan's order, whatever was done before: a later call takes the same turns that a single one would have taken.
        if !runner.start(start, &plan).await? {
            let (done, all) = runner.progress(&plan);
            return Ok(ExperimentEnd::OutOfTime { done, all });
        }
    }
    Ok(ExperimentEnd::Complete)
}

/// Refuses a folder whose turns are not of this plan.
fn check_heads(experiment: &Experiment, journal: &Journal, plan: &[Start]) -> Result<(), Why> {
    for head in journal.heads() {
        let planned = plan.iter().flat_map(|start| &start.epochs).any(|epoch| is_of(experiment, head, epoch));
        if !planned {
            let arm = head.arm.as_deref().unwrap_or("no arm");
            let what = format!("{arm}, block {}, {:?}", head.block.unwrap_or_default(), head.load);
            return Err(Why::Other { path: journal::rows_in(&experiment.out), what });
        }
    }
    Ok(())
}

fn is_of(experiment: &Experiment, head: &crate::rows::row_file::RunHead, epoch: &PlannedEpoch) -> bool {
    head.arm.as_ref() == Some(&experiment.arms[epoch.arm].name)
        && head.block == Some(epoch.block)
        && head.load == load_of(experiment, epoch)
}

impl Runner<'_> {
    fn is_done(&self, epoch: &PlannedEpoch) -> bool {
        self.journal.heads().iter().any(|head| is_of(self.experiment, head, epoch))
    }

    fn progress(&self, plan: &[Start]) -> (usize, usize) {
        let all = plan.iter().flat_map(|start| &start.epochs);
        (all.clone().filter(|epoch| self.is_done(epoch)).count(), all.count())
    }

    fn left(&self) -> Option<Duration> {
        self.deadline.map(|deadline| deadline.since(self.clock.now()))
    }

    fn fits(&self, need: Duration) -> bool {
        self.left().is_none_or(|left| left > need)
    }

    /// Takes the turns of a start that are left; no: the time is over.
    async fn start(&mut self, start: &Start, plan: &[Start]) -> Result<bool, Why> {
        let todo: Vec<PlannedEpoch> = start.epochs.iter().filter(|epoch| !self.is_done(epoch)).copied().collect();
        let Some(first) = todo.first() else { return Ok(true) };
        let which = self.which(&todo);
        // By the longest of earlier ones. The first of each kind has no estimate and is tried.
        let need = self.start_estimate(&which) + self.turn_estimate(first);
        if !self.fits(need) {
            // To start servers only to stop them again would cost a call most of its time, each time.
            (self.say)(&format!("the next start would take about {} s: too long for this call", need.as_secs()));
            return Ok(false);
        }
        let names: Vec<&str> = which.iter().map(|index| self.experiment.servers[*index].name.as_str()).collect();
        (self.say)(&format!("starting {}", names.join(", ")));
        let Some(mut running) = self.bring_up(&which).await? else { return Ok(false) };
        // A start that goes on after a cut is another start: its servers came up anew.
        let number = self.journal.next_start();
        for epoch in &todo {
            if !self.fits(self.turn_estimate(epoch)) || !self.take(epoch, number, &mut running, plan).await? {
                (self.say)("the time of this call is over");
                return Ok(false);
            }
        }
        (self.say)(&format!("stopping {}", names.join(", ")));
        drop(running);
        Ok(true)
    }

    /// The servers that these turns need.
    fn which(&self, todo: &[PlannedEpoch]) -> Vec<usize> {
        let mut which: Vec<usize> =
            todo.iter().flat_map(|epoch| self.experiment.arms[epoch.arm].servers.iter().copied()).collect();
        which.sort_unstable();
        which.dedup();
        which
    }

    async fn bring_up(&mut self, which: &[usize]) -> Result<Option<Running>, Why> {
        let left = self.left();
        let starting = servers::start(self.experiment, which, &mut self.journal, self.say);
        let running = match left {
            None => starting.await?,
            Some(left) => match tokio::time::timeout(left, starting).await {
                Ok(running) => running?,
                Err(_) => {
                    (self.say)("the servers were not ready within the time of this call");
                    return Ok(None);
                }
            },
        };
        Ok(Some(running))
    }

    /// Takes a turn and keeps it; no: the time was over first.
    async fn take(
        &mut self,
        epoch: &PlannedEpoch,
        start: u32,
        running: &mut Running,
        plan: &[Start],
    ) -> Result<bool, Why> {
        let begun = self.clock.now();
        let left = self.left();
        let taking = self.turns.take(epoch, start);
        let turn = match left {
            None => taking.await,
            // A turn that is cut lacks its slowest requests. So it is dropped and taken again whole.
            Some(left) => match tokio::time::timeout(left, taking).await {
                Ok(turn) => turn,
                Err(_) => return Ok(false),
            },
        };
        // Looked at before the rows are kept: a turn during which a server died is none.
        if let Some(dead) = running.dead() {
            return Err(Why::Dead(dead));
        }
        let turn = turn?;
        self.journal.add(turn.head, &turn.text).map_err(Why::Write)?;
        self.journal.note(self.turn_name(epoch), self.clock.now().since(begun), None);
        let (done, all) = self.progress(plan);
        let arm = &self.experiment.arms[epoch.arm].name;
        (self.say)(&format!("{done} of {all}: {arm}, block {}, start {start}: {}", epoch.block, turn.line));
        Ok(true)
    }

    fn turn_name(&self, epoch: &PlannedEpoch) -> String {
        journal::turn(&format!(
            "{} {}",
            self.experiment.arms[epoch.arm].name,
            offered(self.experiment.loads[epoch.load].offered)
        ))
    }

    fn turn_estimate(&self, epoch: &PlannedEpoch) -> Duration {
        self.journal.longest(&self.turn_name(epoch)).unwrap_or_default()
    }

    fn start_estimate(&self, which: &[usize]) -> Duration {
        which.iter().map(|index| start_estimate(self.experiment, &self.journal, *index)).max().unwrap_or_default()
    }
}

/// Estimates how long a server takes, with those that it waits for; nothing where it has not been started yet.
fn start_estimate(experiment: &Experiment, journal: &Journal, index: usize) -> Duration {
    let server = &experiment.servers[index];
    let before = server.after.iter().map(|index| start_estimate(experiment, journal, *index)).max();
    journal.longest(&journal::starting(&server.name)).unwrap_or_default() + before.unwrap_or_default()
}

fn offered(offered: Offered) -> String {
    match offered {
        Offered::Unlimited => "all at once".to_owned(),
        Offered::Rate(rate) => format!("{rate}/s"),
        Offered::Concurrency(limit) => format!("{limit} at a time"),
        Offered::Trace(speedup) => format!("{speedup} times as fast as the trace"),
        Offered::Traffic => "as real clients send".to_owned(),
    }
}
