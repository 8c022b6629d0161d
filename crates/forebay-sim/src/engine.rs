//! The simulated inference engine: continuous batching as vLLM V1 does it, in virtual time. Each step takes the running
//! sequences first, then waiting ones, with prompts cut into chunks; memory is counted in blocks, and where it runs out the
//! sequence admitted last gives its blocks back and is computed again later. Pure: no clock, no I/O, no globals. The same
//! calls with the same seed give the same events, and a clone goes on as the original would.
//!
//! The order is that of vLLM 0.32.0's scheduler under its default policy: running sequences first, in the order of their
//! admission, the last admitted preempted where one needs a block and there is none; nothing new in a step that preempted;
//! else the head of the queue, preempted ones before new ones, once there is room for all of its tokens so far (not only
//! for the first chunk). A test compares each step of three loads with a recording of that scheduler. Left out: asynchronous
//! scheduling (a slot is free one step earlier here), the null block (one block more here), speculative decoding, priorities,
//! and attention that costs more for each token of a long prompt.
//!
//! Call [`Engine::step`] with the present time before [`Engine::submit`] or [`Engine::abort`], so that what was due before
//! them has happened.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use forebay_core::clock::Time;

use kv::{Hold, KvPool};

mod interface;
pub mod kv;

pub use interface::{Counters, EngineConfig, Event, ITERATION_EDGES, RequestId, StepCost, Submission, SubmitError};

#[derive(Clone, Debug)]
struct Sequence {
    id: RequestId,
    choice: u32,
    prompt: u32,
    target: u32,
    generated: u32,
    computed: u32,
    scheduled: u32,
    published: u32,
    hold: Hold,
    hashes: Arc<[u64]>,
    submitted: Time,
    started: Option<Time>,
    cached_tokens: u32,
    preemptions: u32,
}

impl Sequence {
    fn known(&self) -> u32 {
        self.prompt + self.generated
    }

    fn decoding(&self) -> bool {
        self.generated > 0 && self.computed + 1 == self.known()
    }
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    /// Nothing to do.
    Idle,
    /// Work came; the next step begins then.
    Wake(Time),
    /// A step is under way: it began, and it ends.
    Step(Time, Time),
}

/// The engine. See the module's header for the order of calls.
#[derive(Clone, Debug)]
pub struct Engine {
    config: EngineConfig,
    kv: KvPool,
    running: Vec<Sequence>,
    waiting: VecDeque<Sequence>,
    phase: Phase,
    step_tokens: u32,
    counters: Counters,
    rng: fastrand::Rng,
    slowdown: f64,
}

impl Engine {
    /// An idle engine with empty memory.
    #[must_use]
    pub fn new(config: EngineConfig) -> Engine {
        Engine {
            config,
            kv: KvPool::new(config.num_blocks, config.prefix_caching),
            running: Vec::new(),
            waiting: VecDeque::new(),
            phase: Phase::Idle,
            step_tokens: 0,
            counters: Counters::default(),
            rng: fastrand::Rng::with_seed(config.seed),
            slowdown: 1.0,
        }
    }

    /// Takes a request; its sequences wait for the next step that has room.
    ///
    /// # Errors
    /// It asks for nothing, or would not fit into the memory even alone.
    pub fn submit(&mut self, now: Time, request: &Submission) -> Result<(), SubmitError> {
        if request.prompt_tokens == 0 || request.output_tokens == 0 || request.sequences == 0 {
            return Err(SubmitError::Empty);
        }
        let tokens = request.prompt_tokens.saturating_add(request.output_tokens);
        // It would be preempted for its own growth, again and again.
        if tokens.div_ceil(self.config.block_size) > self.config.num_blocks {
            let capacity = self.config.num_blocks.saturating_mul(self.config.block_size);
            return Err(SubmitError::TooLong { tokens, capacity });
        }
        self.waiting.extend((0..request.sequences).map(|choice| Sequence {
            id: request.id,
            choice,
            prompt: request.prompt_tokens,
            target: request.output_tokens,
            generated: 0,
            computed: 0,
            scheduled: 0,
            published: 0,
            hold: Hold::default(),
            hashes: Arc::clone(&request.block_hashes),
            submitted: now,
            started: None,
            cached_tokens: 0,
            preemptions: 0,
        }));
        // A step under way is not lengthened by what comes in. The newcomer waits for the next one, as in vLLM.
        if matches!(self.phase, Phase::Idle) {
            self.phase = Phase::Wake(now);
        }
        Ok(())
    }

    /// Forgets a request and frees its memory at once; a step under way still takes its time. Sequences that were alive.
    pub fn abort(&mut self, id: RequestId) -> u32 {
        let before = self.running.len() + self.waiting.len();
        let kv = &mut self.kv;
        self.running.retain_mut(|sequence| {
            let stays = sequence.id != id;
            if !stays {
                kv.release(std::mem::take(&mut sequence.hold));
            }
            stays
        });
        self.waiting.retain(|sequence| sequence.id != id);
        let gone = (before - self.running.len() - self.waiting.len()) as u32;
        self.counters.aborted += u64::from(gone);
        // Woken for nothing: a step without sequences would still take its base time.
        if matches!(self.phase, Phase::Wake(_)) && self.waiting.is_empty() {
            self.phase = Phase::Idle;
        }
        gone
    }

    /// Returns when [`Engine::step`] has something to do next; none while idle.
    #[must_use]
    pub fn next_step_at(&self) -> Option<Time> {
        match self.phase {
            Phase::Idle => None,
            Phase::Wake(at) | Phase::Step(_, at) => Some(at),
        }
    }

    /// Does all that is due at or before `now`, in order, and appends what came of it.
    pub fn step(&mut self, now: Time, events: &mut Vec<Event>) {
        loop {
            match self.phase {
                // Each step begins at the moment at which it could, not at `now`: late calls must not make the engine
                // slower.
                Phase::Wake(at) if at <= now => self.begin(at),
                Phase::Step(began, ends) if ends <= now => {
                    self.complete(began, ends, events);
                    if self.running.is_empty() && self.waiting.is_empty() {
                        self.phase = Phase::Idle;
                    } else {
                        self.begin(ends);
                    }
                }
                Phase::Idle | Phase::Wake(_) | Phase::Step(..) => return,
            }
        }
    }

    /// Makes steps that begin from now on take `factor` times as long; 1 is as configured.
    pub fn slow_down(&mut self, factor: f64) {
        self.slowdown = factor.max(0.0);
    }

    /// Sequences in the batch, as `vllm:num_requests_running`.
    #[must_use]
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Sequences that wait, as `vllm:num_requests_waiting`.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Tokens of a prompt with these blocks that a request would find in the prefix cache now: at most all but the last.
    #[must_use]
    pub fn cached_tokens(&self, hashes: &[u64], prompt_tokens: u32) -> u32 {
        let whole_blocks = prompt_tokens.saturating_sub(1) / self.config.block_size;
        self.kv.matched(hashes, whole_blocks) * self.config.block_size
    }

    /// Share of the memory in use, 0 to 1.
    #[must_use]
    pub fn kv_usage(&self) -> f64 {
        f64::from(self.kv.in_use()) / f64::from(self.kv.capacity().max(1))
    }

    /// Blocks of memory in use.
    #[must_use]
    pub fn kv_blocks_in_use(&self) -> u32 {
        self.kv.in_use()
    }

    /// Sums since the start.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Returns what it was made of.
    #[must_use]
    pub fn config(&self) -> &EngineConfig {
        &self.config
    }

    /// Steps cost so much from the next one on: a GPU that throttles, or recovers.
    pub fn set_cost(&mut self, cost: StepCost) {
        self.config.cost = cost;
    }

    fn blocks_for(&self, tokens: u32) -> u32 {
        tokens.div_ceil(self.config.block_size)
    }

    fn begin(&mut self, now: Time) {
        let mut budget = self.config.max_num_batched_tokens;
        // Running sequences first: a decode is one token, and must not wait for somebody's prompt.
        let room = self.schedule_running(&mut budget);
        if room {
            self.schedule_waiting(now, &mut budget);
        }
        let cost = self.config.cost;
        let (mut decoding, mut prefill, mut context) = (0_u32, 0_u32, 0_u64);
        for sequence in self.running.iter().filter(|sequence| sequence.scheduled > 0) {
            context += u64::from(sequence.computed + sequence.scheduled);
            // A sequence that was preempted computes its own answer again like a prompt, so it is no decode until it
            // has caught up.
            if sequence.decoding() { decoding += 1 } else { prefill += sequence.scheduled }
        }
        self.step_tokens = decoding + prefill;
        self.counters.prefill_tokens += u64::from(prefill);
        let mut micros = cost.step_us(decoding, prefill, context) * self.slowdown;
        // No random number without jitter, so that a profile without it gives the same events whatever its seed.
        if cost.jitter > 0.0 {
            micros *= 1.0 + cost.jitter * (2.0 * self.rng.f64() - 1.0);
        }
        // A step of no length would let `step` go on for ever at one moment.
        let length = Duration::from_micros(micros.max(1.0).round() as u64);
        self.phase = Phase::Step(now, now + length);
    }

    /// Gives every running sequence its next tokens; false if some had to be preempted, so that nothing new may start.
    fn schedule_running(&mut self, budget: &mut u32) -> bool {
        let mut whole = true;
        let mut index = 0;
        'sequences: while index < self.running.len() {
            let sequence = &self.running[index];
            let want = (sequence.known() - sequence.computed).min(*budget);
            // The budget is used up, or the sequence waits for nothing. It keeps its place, and may get tokens in the
            // next step.
            if want == 0 {
                index += 1;
                continue;
            }
            let blocks = self.blocks_for(self.running[index].computed + want);
            // The last admitted gives way, until there is room or it is this one itself: those in front lose nothing.
            while !self.kv.grow(&mut self.running[index].hold, blocks) {
                whole = false;
                self.preempt_last();
                // It was itself the last, and is gone. Nothing stands behind it.
                if self.running.len() == index {
                    break 'sequences;
                }
            }
            self.running[index].scheduled = want;
            *budget -= want;
            index += 1;
        }
        whole
    }

    fn preempt_last(&mut self) {
        let Some(mut last) = self.running.pop() else { return };
        self.kv.release(std::mem::take(&mut last.hold));
        // vLLM keeps nothing of a preempted sequence but its tokens. What of it is still in the prefix cache is found
        // again when it is admitted.
        last.computed = 0;
        last.scheduled = 0;
        last.published = 0;
        last.preemptions += 1;
        self.counters.preemptions += 1;
        // To the front, before new ones: it was admitted once, and its client has waited since.
        self.waiting.push_front(last);
    }

    fn schedule_waiting(&mut self, now: Time, budget: &mut u32) {
        while *budget > 0 && self.running.len() < self.config.max_num_seqs as usize {
            let Some(next) = self.waiting.front() else { return };
            // The last token is computed in any case: its logits give the next one.
            let whole_blocks = (next.known() - 1) / self.config.block_size;
            let hits = self.kv.matched(&next.hashes, whole_blocks);
            let found = hits * self.config.block_size;
            let want = (next.known() - found).min(*budget);
            // Its first chunk alone may fit; admitted so, it would be preempted before its prompt is through.
            if !self.kv.fits(&next.hashes[..hits as usize], self.blocks_for(next.known())) {
                return;
            }
            // Only the first chunk's blocks are taken. The rest is there now, and is taken when it is computed.
            let Some(hold) = self.kv.admit(&next.hashes[..hits as usize], self.blocks_for(found + want)) else {
                return;
            };
            let Some(mut sequence) = self.waiting.pop_front() else { return };
            // A second admission finds the sequence's own blocks. vLLM does not count those as hits either.
            if sequence.preemptions == 0 && self.config.prefix_caching {
                self.counters.prefix_queries += u64::from(sequence.prompt);
                self.counters.prefix_hits += u64::from(found);
            }
            sequence.hold = hold;
            sequence.computed = found;
            sequence.published = hits;
            sequence.scheduled = want;
            sequence.cached_tokens = found.min(sequence.prompt);
            // Time in the queue ends with the first admission; a preemption does not begin it anew.
            sequence.started.get_or_insert(now);
            *budget -= want;
            self.running.push(sequence);
        }
    }

    fn complete(&mut self, began: Time, ended: Time, events: &mut Vec<Event>) {
        let block_size = self.config.block_size;
        let (kv, counters) = (&mut self.kv, &mut self.counters);
        self.running.retain_mut(|sequence| {
            sequence.computed += std::mem::take(&mut sequence.scheduled);
            // Only whole blocks can be shared, and only once they are computed: a second request of the same prompt
            // in this step found nothing.
            while (sequence.published + 1) * block_size <= sequence.computed {
                let Some(hash) = sequence.hashes.get(sequence.published as usize) else { break };
                kv.publish(&mut sequence.hold, *hash);
                sequence.published += 1;
            }
            // A chunk in the middle of a prompt gives no token.
            if sequence.computed < sequence.known() {
                return true;
            }
            sequence.generated += 1;
            counters.generation_tokens += 1;
            // Counted with the first token, and once: a preempted prompt is computed twice, but was asked for once.
            if sequence.generated == 1 {
                counters.prompt_tokens += u64::from(sequence.prompt);
            }
            let finished = sequence.generated == sequence.target;
            events.push(Event {
                id: sequence.id,
                choice: sequence.choice,
                at: ended,
                tokens: sequence.generated,
                finished,
                queued: sequence.started.unwrap_or(ended).since(sequence.submitted),
                cached_tokens: sequence.cached_tokens,
                preemptions: sequence.preemptions,
            });
            if finished {
                counters.finished += 1;
                kv.release(std::mem::take(&mut sequence.hold));
            }
            !finished
        });
        counters.steps += 1;
        counters.busy_us += u64::try_from(ended.since(began).as_micros()).unwrap_or(u64::MAX);
        let bucket = ITERATION_EDGES.partition_point(|edge| *edge < f64::from(self.step_tokens));
        counters.iteration_tokens[bucket] += 1;
        counters.iteration_tokens_sum += u64::from(self.step_tokens);
    }
}

#[cfg(test)]
mod tests;
