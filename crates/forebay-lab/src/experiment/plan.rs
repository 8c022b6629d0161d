//! The order of an experiment: which servers are up when, and whose turn it is. Arms alternate, A-B then B-A, so that what
//! drifts (heat, clocks, a neighbour) meets both alike. Pure: the same file gives the same plan, which is how a cut-off one
//! goes on.

use super::spec::Experiment;

/// Servers that are up together, and the turns until they are stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Start {
    /// The stage.
    pub stage: String,
    /// The number of its start, from 0.
    pub index: u32,
    /// The turns, in their order.
    pub epochs: Vec<PlannedEpoch>,
}

/// One arm's turn with one load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlannedEpoch {
    /// Its number in the experiment, from 0.
    pub number: u32,
    /// The arm.
    pub arm: usize,
    /// The load.
    pub load: usize,
    /// Turns of one block are compared as a pair.
    pub block: u32,
    /// For prompts and times: the same for the arms of a block, unless they share a server, whose prefix cache would know the
    /// prompts then.
    pub seed: u64,
}

/// The whole plan.
#[must_use]
pub fn plan(experiment: &Experiment) -> Vec<Start> {
    let mut starts = Vec::new();
    let mut number = 0;
    for index in 0..experiment.starts {
        let mut stages = experiment.stages();
        if index % 2 == 1 {
            stages.reverse();
        }
        for stage in stages {
            let epochs = turns(experiment, stage, index, &mut number);
            if !epochs.is_empty() {
                starts.push(Start { stage: stage.to_owned(), index, epochs });
            }
        }
    }
    starts
}

fn turns(experiment: &Experiment, stage: &str, index: u32, number: &mut u32) -> Vec<PlannedEpoch> {
    let mut epochs = Vec::new();
    for turn in 0..experiment.blocks {
        let block = index * experiment.blocks + turn;
        let mut arms: Vec<usize> = (0..experiment.arms.len())
            .filter(|arm| {
                let arm = &experiment.arms[*arm];
                arm.stage == stage && arm.starts + index >= experiment.starts && arm.blocks > turn
            })
            .collect();
        if block % 2 == 1 {
            arms.reverse();
        }
        for load in 0..experiment.loads.len() {
            for &arm in &arms {
                let seed = seed(experiment, arm, load, block);
                epochs.push(PlannedEpoch { number: *number, arm, load, block, seed });
                *number += 1;
            }
            arms.reverse();
        }
    }
    epochs
}

/// A seed that stays the same when arms or loads are added to the file later.
fn seed(experiment: &Experiment, arm: usize, load: usize, block: u32) -> u64 {
    let servers = &experiment.arms[arm].servers;
    let sharing = experiment.arms[..arm].iter().filter(|other| other.servers.iter().any(|one| servers.contains(one)));
    let turn = (u64::from(block) * 1000 + load as u64) * 100 + sharing.count() as u64;
    experiment.loads[load].seed.wrapping_add(turn)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::experiment::read;

    fn experiment(keys: &str, arms: &str) -> Experiment {
        let text = format!(
            "name = \"x\"\nmodel = \"m\"\n{keys}\n[load]\nnum_prompts = 4\nrequest_rate = \"inf\"\n\
             input_len = 8\noutput_len = 8\nsweep = {{ request_rate = [1, 2] }}\n\
             [[servers]]\nname = \"one\"\nurl = \"http://127.0.0.1:1001\"\ncommand = \"true\"\n\
             [[servers]]\nname = \"two\"\nurl = \"http://127.0.0.1:1002\"\ncommand = \"true\"\n{arms}"
        );
        read(std::path::Path::new("x.toml"), &text, &|_| None).unwrap()
    }

    const ARMS: &str = "[[arms]]\nname = \"a\"\nservers = [\"one\"]\n\
                        [[arms]]\nname = \"b\"\nservers = [\"two\"]\n\
                        [[arms]]\nname = \"c\"\nservers = [\"two\"]\nstarts = 1\nblocks = 1\n";

    fn order(plan: &[Start]) -> Vec<String> {
        let arm = |epoch: &PlannedEpoch| format!("{}{}", ["a", "b", "c"][epoch.arm], epoch.load);
        plan.iter().map(|start| start.epochs.iter().map(arm).collect::<Vec<_>>().join(" ")).collect()
    }

    #[test]
    fn arms_that_are_up_together_alternate() {
        let plan = plan(&experiment("together = true\nstarts = 2\nblocks = 2", ARMS));
        assert_eq!(order(&plan), ["a0 b0 b1 a1 b0 a0 a1 b1", "a0 b0 c0 c1 b1 a1 b0 a0 a1 b1"]);
        let numbers: Vec<u32> = plan.iter().flat_map(|start| &start.epochs).map(|epoch| epoch.number).collect();
        assert_eq!(numbers, (0..18).collect::<Vec<_>>());
        assert_eq!(plan[1].epochs.iter().map(|epoch| epoch.block).max(), Some(3));
    }

    #[test]
    fn arms_in_turn_have_their_own_starts_and_the_same_blocks() {
        let plan = plan(&experiment("starts = 2\nblocks = 1", ARMS));
        assert_eq!(order(&plan), ["a0 a1", "b0 b1", "c0 c1", "b0 b1", "a0 a1"]);
        assert_eq!((plan[0].epochs[0].block, plan[1].epochs[0].block, plan[4].epochs[0].block), (0, 0, 1));
    }

    #[test]
    fn arms_of_a_block_get_the_same_prompts_unless_they_share_a_server() {
        let plan = plan(&experiment("together = true", ARMS));
        let seed = |arm| plan[0].epochs.iter().find(|epoch| (epoch.arm, epoch.load) == (arm, 0)).unwrap().seed;
        assert_eq!(seed(0), seed(1));
        assert_ne!(seed(1), seed(2));
        let mut all: Vec<u64> = plan[0].epochs.iter().filter(|epoch| epoch.arm > 0).map(|epoch| epoch.seed).collect();
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count, "no server sees a prompt twice");
    }
}
