//! From rows to epochs: runs by load and arm, live splits cut into blocks, copies and runs that were cut off left out. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::model::{Gravity, Warning};
use super::options::{CompareError, Options};
use crate::rows::record::Record;
use crate::rows::row_file::{Offered, RunHead, RunRows, Sample};

/// An epoch with its requests.
#[derive(Clone, Debug)]
pub(super) struct Trial<'a> {
    pub(super) arm: String,
    pub(super) epoch: u32,
    pub(super) block: Option<u32>,
    pub(super) start: Option<u32>,
    /// The time at which its run began, in milliseconds of Unix time.
    pub(super) began_ms: Option<u64>,
    pub(super) records: Vec<&'a Record>,
    /// Requests of this arm that another arm served: they say nothing of either, and are in no figure.
    pub(super) crossed: Vec<&'a Record>,
    pub(super) samples: &'a [Sample],
    pub(super) run: &'a RunRows,
    /// The circumstances of its run, where the rows have them.
    pub(super) head: Option<&'a RunHead>,
    /// The length of a block of a live split; of a run its requests say it.
    pub(super) seconds: Option<f64>,
}

/// The epochs of one load.
#[derive(Debug)]
pub(super) struct Group<'a> {
    pub(super) load: LoadKey,
    pub(super) live: bool,
    pub(super) trials: Vec<Trial<'a>>,
}

/// The circumstances that make two loads the same.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct LoadKey {
    pub(super) offered: Option<Offered>,
    pub(super) burstiness: Option<f64>,
    pub(super) max_concurrency: Option<u32>,
    pub(super) dataset: Option<String>,
    pub(super) input_len: Option<u32>,
    pub(super) output_len: Option<u32>,
}

impl LoadKey {
    fn of(head: Option<&RunHead>) -> LoadKey {
        let load = head.map(|head| &head.load);
        LoadKey {
            offered: load.map(|load| load.offered),
            // A Poisson process is what rows without a word on it had.
            burstiness: load.and_then(|load| load.burstiness).filter(|burstiness| *burstiness != 1.0),
            max_concurrency: load.and_then(|load| load.max_concurrency),
            dataset: load.and_then(|load| load.dataset.clone()),
            input_len: load.and_then(|load| load.input_len),
            output_len: load.and_then(|load| load.output_len),
        }
    }

    /// Rates by their size, then concurrency by its, then unlimited.
    fn rank(&self) -> (u8, f64, u32, u32, u32) {
        let (kind, size) = match self.offered {
            None => (0, 0.0),
            Some(Offered::Rate(rate)) => (1, rate),
            Some(Offered::Concurrency(count)) => (2, f64::from(count)),
            Some(Offered::Unlimited) => (3, 0.0),
            Some(Offered::Trace(speedup)) => (4, speedup),
            Some(Offered::Traffic) => (5, 0.0),
        };
        let limit = self.max_concurrency.unwrap_or(u32::MAX);
        (kind, size, self.input_len.unwrap_or(0), self.output_len.unwrap_or(0), limit)
    }
}

/// The arm that a request belongs to: the assigned one, whoever served it.
pub(super) fn arm_of(record: &Record) -> Option<&str> {
    record.assigned.as_deref().or(record.arm.as_deref())
}

/// Returns whether another arm than its own served it.
fn left_its_arm(record: &Record) -> bool {
    matches!((&record.assigned, &record.arm), (Some(assigned), Some(arm)) if assigned != arm)
}

/// The epochs of all runs by load, lightest first, and what was left out.
pub(super) fn gather<'a>(
    runs: &'a [RunRows],
    options: &Options,
    warnings: &mut Vec<Warning>,
) -> Result<Vec<Group<'a>>, CompareError> {
    let mut groups: Vec<Group> = Vec::new();
    let mut blocks = 0;
    for run in runs {
        let head = run.head.as_ref();
        // The end is written last. A run without one may lack its slowest requests, which would make it look fast.
        if head.is_some() && run.end.is_none() || run.records.is_empty() {
            warnings.push(left_out(run));
            continue;
        }
        let live = head.is_some_and(|head| head.arm.is_none());
        let trials = if live { cut(run, options, &mut blocks, warnings) } else { vec![whole(run)?] };
        let load = LoadKey::of(head);
        // A live split at some rate is not the load of a run at that rate: its arms shared it.
        match groups.iter_mut().find(|group| group.load == load && group.live == live) {
            Some(group) => group.trials.extend(trials),
            None => groups.push(Group { load, live, trials }),
        }
    }
    for group in &mut groups {
        drop_copies(&mut group.trials, warnings);
    }
    // By load and not by file, since a crossover follows the loads from light to heavy.
    groups.sort_by(|a, b| a.load.rank().partial_cmp(&b.load.rank()).unwrap_or(std::cmp::Ordering::Equal));
    Ok(groups)
}

fn whole(run: &RunRows) -> Result<Trial<'_>, CompareError> {
    let head = run.head.as_ref();
    let named = || run.records.iter().find_map(arm_of);
    let arm = head.and_then(|head| head.arm.as_deref()).or_else(named).ok_or(CompareError::NoArm)?;
    let (crossed, records) = run.records.iter().partition(|record| left_its_arm(record));
    Ok(Trial {
        arm: arm.to_owned(),
        epoch: head.map_or_else(|| run.records[0].epoch, |head| head.epoch),
        block: head.and_then(|head| head.block),
        start: head.and_then(|head| head.start),
        began_ms: head.and_then(|head| head.began_ms),
        records,
        crossed,
        samples: &run.samples,
        run,
        head,
        seconds: None,
    })
}

/// The blocks of a live split: of equal length, as many as are at least so long; each is an epoch of every arm.
fn cut<'a>(run: &'a RunRows, options: &Options, blocks: &mut u32, warnings: &mut Vec<Warning>) -> Vec<Trial<'a>> {
    let sent = || run.records.iter().map(|record| record.sent_us);
    let (first, last) = (sent().min().unwrap_or(0), sent().max().unwrap_or(0));
    let span = (last - first) as f64 / 1e6;
    // Equal blocks, the last not a remainder: a short one would have a spread of its own.
    let count = ((span / options.block.as_secs_f64()).floor() as u64).max(1);
    let length = span / count as f64;
    let mut parts: BTreeMap<(u64, &str), Vec<&Record>> = BTreeMap::new();
    let mut lost = 0;
    for record in &run.records {
        let place = if length > 0.0 { ((record.sent_us - first) as f64 / 1e6 / length) as u64 } else { 0 };
        match arm_of(record) {
            Some(arm) => parts.entry((place.min(count - 1), arm)).or_default().push(record),
            None => lost += 1,
        }
    }
    if lost > 0 {
        let text = format!("{lost} requests of a live split had no answer that names their arm; they count for none");
        warnings.push(Warning { gravity: Gravity::Note, check: "no_arm", text });
    }
    // Blocks of another file are other blocks.
    let base = *blocks;
    *blocks += count as u32;
    let head = run.head.as_ref();
    let trial = |((place, arm), records): ((u64, &str), Vec<&'a Record>)| {
        let (crossed, records) = records.into_iter().partition(|record| left_its_arm(record));
        Trial {
            arm: arm.to_owned(),
            epoch: base + place as u32,
            block: Some(base + place as u32),
            start: head.and_then(|head| head.start),
            began_ms: None,
            records,
            crossed,
            samples: &[],
            run,
            head,
            seconds: (length > 0.0).then_some(length),
        }
    };
    parts.into_iter().map(trial).collect()
}

fn left_out(run: &RunRows) -> Warning {
    let head = run.head.as_ref();
    let of = head.and_then(|head| head.arm.as_deref()).map(|arm| format!(" of {arm}")).unwrap_or_default();
    let epoch = head.map_or(0, |head| head.epoch);
    let why = if run.records.is_empty() { "has no request" } else { "was cut off" };
    let text = format!("epoch {epoch}{of} {why} and is left out");
    Warning { gravity: Gravity::Note, check: "left_out", text }
}

/// Drops copies: rows that are there twice are one epoch, and a copy adds no evidence.
fn drop_copies(trials: &mut Vec<Trial>, warnings: &mut Vec<Warning>) {
    let mut index = 0;
    while index < trials.len() {
        let (before, rest) = trials.split_at(index);
        let trial = &rest[0];
        // By the rows themselves: a file that was joined twice has the numbers of the first, or new ones.
        let twin = before.iter().find(|other| other.arm == trial.arm && other.records == trial.records);
        if let Some(twin) = twin {
            let text = format!(
                "epoch {} of {} has the very rows of epoch {}: a copy is no evidence and is left out",
                trial.epoch, trial.arm, twin.epoch
            );
            warnings.push(Warning { gravity: Gravity::FailedCheck, check: "copy", text });
            trials.remove(index);
        } else {
            index += 1;
        }
    }
}

/// The arms in the order of the rows, or with the baseline first.
pub(super) fn arms(groups: &[Group], runs: &[RunRows], options: &Options) -> Result<Vec<String>, CompareError> {
    let present: BTreeSet<&str> =
        groups.iter().flat_map(|group| &group.trials).map(|trial| trial.arm.as_str()).collect();
    let mut names: Vec<String> = Vec::new();
    let of_run = |run: &RunRows| match run.head.as_ref().and_then(|head| head.arm.clone()) {
        Some(arm) => vec![arm],
        None => run.records.iter().filter_map(arm_of).map(str::to_owned).collect(),
    };
    // In the order in which they first come, so that the baseline is the arm that was measured first, and not the first by
    // the alphabet.
    for name in runs.iter().flat_map(of_run) {
        if present.contains(name.as_str()) && !names.contains(&name) {
            names.push(name);
        }
    }
    let known = || names.join(", ");
    let given = options.baseline.iter().map(|name| ("--baseline", name));
    let given = given.chain(options.gpus.keys().map(|name| ("--gpus", name)));
    let given = given.chain(options.prices.keys().map(|name| ("--price", name)));
    for (flag, name) in given.chain(options.shares.keys().map(|name| ("--share", name))) {
        if !names.contains(name) {
            return Err(CompareError::UnknownArm { flag, name: name.clone(), known: known() });
        }
    }
    if let Some(place) = options.baseline.as_ref().and_then(|name| names.iter().position(|other| other == name)) {
        let baseline = names.remove(place);
        names.insert(0, baseline);
    }
    match names.len() {
        0 => Err(CompareError::NoRows),
        1 => Err(CompareError::OneArm(names.remove(0))),
        _ => Ok(names),
    }
}
