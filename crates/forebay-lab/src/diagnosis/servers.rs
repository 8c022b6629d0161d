//! What looks at an arm's servers tell of a run: how much ran and waited, and for what. Pure.
//!
//! Why a request waits follows from the scheduler: it starts the head of its queue unless the batch is at its cap, its blocks
//! are not free, or the step's prompt tokens are used up. So each look with a queue is one of the three.

use serde::Serialize;

use super::seen::by_backend;
use crate::rows::row_file::Sample;

/// A batch is at its cap from here on: a gauge may be read between an end and a start.
const AT_CAP: f64 = 0.97;
/// Without `--max-num-seqs`, a batch of one size in this share of the looks with a queue is a cap's doing.
const PLATEAU: f64 = 0.6;
/// And a queue so many times what ends in a step.
const LONGER: f64 = 3.0;
/// KV blocks in use from which on memory is short whatever the next prompt needs.
const KV_FULL: f64 = 0.97;

/// Looks with work on each server from which on they are enough.
const FEWEST: u32 = 4;

/// An arm's servers over a run; shares are of the steps that they made (of the looks, where steps are not counted).
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Servers {
    /// Servers.
    pub count: u32,
    /// Sequences running on average over the run, all servers together.
    pub running: f64,
    /// Sequences waiting on average over the run, all servers together.
    pub waiting: f64,
    /// The most that ran at once on one server.
    pub running_peak: f64,
    /// Sequences running on average on one server while some waited there for room.
    pub running_full: Option<f64>,
    /// Share of the steps in which requests waited with the batch at its cap and memory to spare.
    pub at_cap: f64,
    /// Share of the steps in which requests waited for KV blocks and the batch was below its cap.
    pub kv_full: f64,
    /// Share of the steps in which requests waited with the batch at its cap and no memory to spare.
    pub both: f64,
    /// Share of the steps in which requests waited for neither: for the computing of prompts before them.
    pub in_prefill: f64,
    /// The highest share of KV blocks in use.
    pub kv_peak: Option<f64>,
    /// Tokens that the KV blocks of one server hold.
    pub kv_tokens: Option<f64>,
    /// Sequences that lost their blocks.
    pub preemptions: Option<f64>,
    /// Share of prompt tokens found in the prefix cache.
    pub prefix_hits: Option<f64>,
    /// Steps made.
    pub steps: Option<f64>,
    /// Between two looks, in seconds: how exactly the others are known.
    pub look_s: f64,
    /// Looks with work on one server, the fewest over the servers.
    pub looks: u32,
    /// The cap that the looks show, where nobody told one.
    pub cap_seen: Option<f64>,
    /// Tokens of the KV cache that a running sequence held, on average.
    pub held: Option<f64>,
    /// The time of the last token, from the begin of the run, in seconds; none where tokens are not counted.
    pub last_token_s: Option<f64>,
}

/// The reason why requests wait.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wait {
    Cap,
    Kv,
    Both,
    Prefill,
}

impl Servers {
    /// Sums up these looks; `cap`: `--max-num-seqs`; `prompt` and `answer`: their tokens on average. None of fewer than two looks.
    pub(super) fn of(samples: &[&Sample], cap: Option<u32>, prompt: f64, answer: f64) -> Option<Servers> {
        let mut by_server = by_backend(samples);
        // One look has no span: no counter can have grown, and nothing weighs it.
        by_server.retain(|_, looks| looks.len() > 1);
        let looks: Vec<Vec<&Sample>> = by_server.into_values().collect();
        if looks.is_empty() {
            return None;
        }
        let mut sums = Sums::default();
        let mut servers = Servers { count: looks.len() as u32, ..Servers::default() };
        servers.looks = u32::MAX;
        for looks in &looks {
            let busy = looks.iter().filter(|look| look.running.unwrap_or(0.0) > 0.0).count();
            // The least of all servers: where one was hardly seen working, the arm was not.
            servers.looks = servers.looks.min(busy as u32);
            servers.gauges(looks);
            let seen = plateau(looks, answer);
            servers.cap_seen = servers.cap_seen.or(seen);
            sums.add(looks, cap.map(f64::from).or(seen), prompt);
        }
        servers.counters(&looks);
        servers.look_s = looks.iter().filter_map(|looks| between(looks)).fold(0.0, f64::max);
        let share = |weight: f64| if sums.all > 0.0 { weight / sums.all } else { 0.0 };
        servers.at_cap = share(sums.cap);
        servers.kv_full = share(sums.kv);
        servers.both = share(sums.both);
        servers.in_prefill = share(sums.prefill);
        let full = sums.cap + sums.kv + sums.both;
        servers.running_full = (full > 0.0).then(|| sums.running / full);
        Some(servers)
    }

    fn gauges(&mut self, looks: &[&Sample]) {
        let (mut running, mut waiting, mut span) = (0.0, 0.0, 0.0);
        for pair in looks.windows(2) {
            // The mean over time by trapezoids. Looks come late under load, so a plain mean would leave out the busiest moments.
            let length = (pair[1].at_us - pair[0].at_us) as f64;
            let mid = |of: fn(&Sample) -> Option<f64>| {
                (of(pair[0]).unwrap_or(0.0) + of(pair[1]).unwrap_or(0.0)) / 2.0 * length
            };
            running += mid(|sample| sample.running);
            waiting += mid(|sample| sample.waiting);
            span += length;
        }
        self.running += running / f64::max(span, 1.0);
        self.waiting += waiting / f64::max(span, 1.0);
        self.running_peak = looks.iter().filter_map(|look| look.running).fold(self.running_peak, f64::max);
        self.kv_peak = looks.iter().filter_map(|look| look.kv_usage).chain(self.kv_peak).reduce(f64::max);
        self.kv_tokens = looks.iter().find_map(|look| look.kv_tokens).or(self.kv_tokens);
        let held = |look: &&Sample| Some((look.kv_usage? * look.kv_tokens?, look.running?));
        let (tokens, sequences) =
            looks.iter().filter_map(held).fold((0.0, 0.0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
        self.held = (sequences > 0.0 && tokens > 0.0).then(|| tokens / sequences).or(self.held);
    }

    fn counters(&mut self, looks: &[Vec<&Sample>]) {
        let grown = |of: fn(&Sample) -> Option<f64>| {
            let each = looks.iter().filter_map(|looks| Some(of(looks.last()?)? - of(looks.first()?)?));
            each.reduce(|a, b| a + b)
        };
        self.preemptions = grown(|sample| sample.preemptions);
        self.steps = grown(|sample| sample.steps);
        let (queries, hits) = (grown(|sample| sample.prefix_queries), grown(|sample| sample.prefix_hits));
        self.prefix_hits =
            queries.zip(hits).filter(|(queries, _)| *queries > 0.0).map(|(queries, hits)| hits / queries);
        let pairs = looks.iter().flat_map(|looks| looks.windows(2));
        self.last_token_s = pairs
            .filter(|pair| pair[1].generation_tokens > pair[0].generation_tokens)
            .map(|pair| pair[1].at_us as f64 / 1e6)
            .reduce(f64::max);
    }

    /// Returns what the scrapes lack for a diagnosis, in words; empty where they are whole.
    #[must_use]
    pub fn lacks(&self) -> Vec<&'static str> {
        let lacks = [
            (self.looks < FEWEST, "enough scrapes with work in them"),
            (self.kv_peak.is_none(), "vllm:kv_cache_usage_perc"),
            (self.kv_tokens.is_none(), "vllm:cache_config_info"),
            (self.steps.is_none(), "vllm:iteration_tokens_total"),
            (self.last_token_s.is_none(), "vllm:generation_tokens_total"),
            (self.preemptions.is_none(), "vllm:num_preemptions_total"),
        ];
        lacks.into_iter().filter(|(lacks, _)| *lacks).map(|(_, what)| what).collect()
    }

    /// Share of the steps in which requests waited for room of either kind.
    #[must_use]
    pub fn room(&self) -> f64 {
        self.at_cap + self.kv_full + self.both
    }
}

/// Seconds between two looks on average.
fn between(looks: &[&Sample]) -> Option<f64> {
    let span = looks.last()?.at_us - looks.first()?.at_us;
    Some(span as f64 / 1e6 / (looks.len() - 1) as f64)
}

#[derive(Default)]
struct Sums {
    all: f64,
    cap: f64,
    kv: f64,
    both: f64,
    prefill: f64,
    running: f64,
}

impl Sums {
    fn add(&mut self, looks: &[&Sample], cap: Option<f64>, prompt: f64) {
        for pair in looks.windows(2) {
            let (before, now) = (pair[0], pair[1]);
            let steps = now.steps.zip(before.steps).map(|(now, before)| now - before);
            let some = |look: &Sample| look.running.unwrap_or(0.0) + look.waiting.unwrap_or(0.0) > 0.0;
            // By steps: a look is worth the work that was done around it. An idle tail of scrapes is worth nothing.
            let weight = steps.unwrap_or(if some(before) { 1.0 } else { 0.0 }).max(0.0);
            self.all += weight;
            // Half of the interval each: what was found at its begin, and what was found at its end.
            let lost = now.preemptions > before.preemptions;
            for look in [before, now] {
                let half = weight / 2.0;
                let Some(wait) = why(look, cap, prompt, lost) else { continue };
                match wait {
                    Wait::Cap => self.cap += half,
                    Wait::Kv => self.kv += half,
                    Wait::Both => self.both += half,
                    Wait::Prefill => self.prefill += half,
                }
                if wait != Wait::Prefill {
                    self.running += half * look.running.unwrap_or(0.0);
                }
            }
        }
    }
}

/// Tells why requests waited at a look; none where none did. `lost`: sequences lost their blocks about then.
fn why(look: &Sample, cap: Option<f64>, prompt: f64, lost: bool) -> Option<Wait> {
    if look.waiting.unwrap_or(0.0) < 1.0 {
        return None;
    }
    // vLLM starts the head of its queue in each step unless something forbids it. So a queue is itself the sign that
    // something did.
    let running = look.running.unwrap_or(0.0);
    let capped = cap.is_some_and(|cap| running >= AT_CAP * cap);
    let usage = look.kv_usage.unwrap_or(0.0);
    // The next prompt does not fit, or no running sequence may take another block.
    let tight = look.kv_tokens.is_some_and(|tokens| (1.0 - usage) * tokens < prompt + 16.0);
    Some(match (capped, usage >= KV_FULL || tight || lost) {
        (true, true) => Wait::Both,
        (true, false) => Wait::Cap,
        (false, true) => Wait::Kv,
        (false, false) => Wait::Prefill,
    })
}

/// The cap that the looks themselves show: the largest batch, where most looks with a queue found just that, and a queue too long
/// for the next step to take. (In a closed loop what ended in one step waits for the next, before a batch that is no cap.)
fn plateau(looks: &[&Sample], answer: f64) -> Option<f64> {
    let queued: Vec<&&Sample> = looks.iter().filter(|look| look.waiting.unwrap_or(0.0) >= 1.0).collect();
    let most = queued.iter().filter_map(|look| look.running).reduce(f64::max)?;
    // The gauge is read after a step's ends and before others take their places.
    let least = (AT_CAP * most).min(most - 1.0 - 2.0 * most / answer.max(1.0));
    let there = queued.iter().filter(|look| look.running.unwrap_or(0.0) >= least);
    let mut waiting: Vec<f64> = there.filter_map(|look| look.waiting).collect();
    waiting.sort_by(f64::total_cmp);
    let stands = queued.len() > 2 && waiting.len() as f64 >= PLATEAU * queued.len() as f64;
    let passing = LONGER * most / answer.max(1.0) + 1.0;
    (stands && waiting[waiting.len() / 2] > passing).then_some(most)
}
