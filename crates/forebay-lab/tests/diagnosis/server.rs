//! A server of the tests' engine: its sequences, its blocks, and the leading blocks that prompts share.

use std::collections::{BTreeMap, VecDeque};

pub(crate) const BLOCK: u32 = 16;

/// A request as it is asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ask {
    pub(crate) prompt: u32,
    pub(crate) answer: u32,
    pub(crate) group: u32,
    pub(crate) fails: bool,
}

/// A sequence on a server.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sequence {
    pub(crate) id: u32,
    /// Tokens to hold before the next one can be made: the prompt, and after a preemption what was made of the answer.
    pub(crate) goal: u32,
    pub(crate) held: u32,
    pub(crate) blocks: u32,
    /// Leading blocks that belong to its group.
    pub(crate) shared: u32,
    pub(crate) made: u32,
    pub(crate) counted: bool,
}

/// A group's leading blocks on one server.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Prefix {
    pub(crate) blocks: u32,
    pub(crate) users: u32,
    pub(crate) used_at: f64,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Counters {
    pub(crate) preemptions: u64,
    pub(crate) queries: u64,
    pub(crate) hits: u64,
    pub(crate) prompts: u64,
    pub(crate) generated: u64,
    pub(crate) steps: u64,
    pub(crate) running: usize,
    pub(crate) waiting: usize,
    pub(crate) usage: f64,
}

pub(crate) struct Server {
    pub(crate) waiting: VecDeque<Sequence>,
    pub(crate) running: Vec<Sequence>,
    pub(crate) prefixes: BTreeMap<u32, Prefix>,
    pub(crate) free: u32,
    pub(crate) stepping: bool,
    pub(crate) api_free: f64,
    pub(crate) gone_until: f64,
    /// Steps of a server that went away mean nothing.
    pub(crate) life: u32,
    pub(crate) counters: Counters,
}

impl Server {
    /// Returns whether so many blocks are free, or become it by dropping what no sequence uses; oldest first.
    pub(crate) fn room(&mut self, blocks: u32) -> bool {
        while self.free < blocks {
            let unused = self.prefixes.values_mut().filter(|prefix| prefix.users == 0 && prefix.blocks > 0);
            let Some(oldest) = unused.min_by(|a, b| a.used_at.total_cmp(&b.used_at)) else { return false };
            self.free += std::mem::take(&mut oldest.blocks);
        }
        true
    }

    /// Starts a sequence if its first chunk fits; with the tokens that it computes in this step.
    pub(crate) fn admit(&mut self, mut one: Sequence, ask: Ask, shared: u32, left: u32) -> Option<(Sequence, u32)> {
        let whole = shared / BLOCK;
        let prefix = self.prefixes.entry(ask.group).or_default();
        let hit = prefix.blocks.min(whole).min((one.goal - 1) / BLOCK);
        let tokens = (one.goal - hit * BLOCK).min(left);
        let more = (hit * BLOCK + tokens).div_ceil(BLOCK) - hit;
        prefix.users += 1;
        let fits = self.room(more);
        let prefix = self.prefixes.get_mut(&ask.group).unwrap();
        if !fits {
            prefix.users -= 1;
            return None;
        }
        self.free -= more;
        (one.held, one.blocks) = (hit * BLOCK + tokens, hit + more);
        one.shared = whole.min(one.held / BLOCK);
        // What another one has registered meanwhile stays this one's own.
        if one.shared > prefix.blocks {
            prefix.blocks = one.shared
        } else {
            one.shared = hit
        }
        if one.made == 0 {
            self.counters.queries += u64::from(one.goal);
            self.counters.hits += u64::from(hit * BLOCK);
        }
        Some((one, tokens))
    }

    pub(crate) fn give_back(&mut self, one: Sequence, group: u32, now: f64) {
        self.free += one.blocks - one.shared;
        let prefix = self.prefixes.get_mut(&group).unwrap();
        prefix.users -= 1;
        prefix.used_at = now;
    }

    pub(crate) fn preempt(&mut self, one: Sequence, group: u32, now: f64) {
        self.give_back(one, group, now);
        self.counters.preemptions += 1;
        let goal = one.goal.max(one.held + u32::from(one.made > 0));
        self.waiting.push_front(Sequence { goal, held: 0, blocks: 0, shared: 0, ..one });
    }
}
