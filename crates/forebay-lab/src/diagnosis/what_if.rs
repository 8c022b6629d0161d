//! What twice of one thing would have gained: the run is made again in thought ([`super::replay`]) with costs that were fitted to
//! it. Where that does not give the run as it was, its answers count for nothing. Pure.

use std::collections::BTreeMap;

use serde::Serialize;

use super::cause::Cause;
use super::costs::Costs;
use super::replay::{Replayed, Request, World, replay};
use super::seen::Seen;
use super::servers::Servers;
use crate::rows::record::Record;
use crate::rows::row_file::Offered;

/// A replay that takes longer or shorter than the run by more than this is of another run.
const ALIKE: f64 = 0.15;
/// Its running sequences are known less well: gauges are read now and then, and requests that end together may drift apart.
const RUNNING_ALIKE: f64 = 0.36;
/// vLLM's usual values of `--max-num-batched-tokens`.
const BUDGETS: [f64; 3] = [2048.0, 8192.0, 16384.0];
/// A token of a sequence takes so much of the KV cache at least, since prompts share blocks; and at most a block more in all.
const LEAST_OF_KV: f64 = 0.1;
const BLOCK: f64 = 32.0;
const KV_ROUNDS: u32 = 3;

/// The gain from twice of one thing: the run's time over that of the run with it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Gain {
    /// The thing.
    pub cause: Cause,
    /// By the costs that fit best.
    pub likely: f64,
    /// The least, over all costs that are possible.
    pub least: f64,
    /// The most.
    pub most: f64,
}

/// The gains from twice of each thing.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct WhatIf {
    /// The gains, the largest first.
    pub gains: Vec<Gain>,
    /// The likeness of the replay.
    pub alike: Alike,
    /// The network's round trip, in milliseconds.
    pub round_trip_ms: f64,
    /// The share of the open requests that neither servers nor network had.
    pub unread: f64,
    /// Between two events of one server, in microseconds; none where events do not tell.
    pub event_us: Option<f64>,
}

impl WhatIf {
    /// Returns the gain from twice of this.
    #[must_use]
    pub fn gain(&self, cause: Cause) -> Option<Gain> {
        self.gains.iter().copied().find(|gain| gain.cause == cause)
    }
}

/// The facts that the replay needs beside the requests.
pub(super) struct Known<'a> {
    pub(super) seen: &'a Seen,
    pub(super) fits: &'a [Costs],
    pub(super) offered: Option<Offered>,
    /// Requests open at once, at most, as the client had it.
    pub(super) gate: Option<u32>,
    /// `--max-num-seqs`, if it was told.
    pub(super) cap: Option<f64>,
    /// The load generator's lag accounts for the time that answers were unread.
    pub(super) slow_client: bool,
    pub(super) servers: &'a Servers,
    /// Sequences that decoded on average, as the client saw it.
    pub(super) decoding: f64,
    pub(super) took_us: f64,
}

impl Known<'_> {
    /// The caps that are possible.
    fn caps(&self) -> Vec<f64> {
        match self.cap {
            Some(cap) => vec![cap],
            None => vec![f64::INFINITY, self.servers.running_peak.max(1.0)],
        }
    }

    /// The servers as they are known, at these costs.
    fn world(&self, costs: Costs) -> World {
        let event = |pace: Option<f64>| pace.unwrap_or(0.0) * self.seen.events_per_token;
        World {
            servers: self.servers.count as usize,
            costs,
            budget: BUDGETS[0],
            cap: f64::INFINITY,
            kv_tokens: self.servers.kv_tokens.unwrap_or(f64::INFINITY),
            kv_factor: 1.0,
            round_trip: self.seen.round_trip_us,
            event: if self.slow_client { 0.0 } else { event(self.seen.event_us) },
            client: if self.slow_client { event(self.seen.any_event_us) } else { 0.0 },
            gate: self.gate.map_or(usize::MAX, |gate| gate as usize),
        }
    }

    /// The worlds that nobody told apart, those that give the run as it was, the likest first; the likest alone if none does.
    fn worlds(&self, costs: Costs, requests: &[Request]) -> Vec<(World, Alike)> {
        let mut worlds: Vec<(World, Alike)> = Vec::new();
        for cap in self.caps() {
            for budget in BUDGETS {
                let bare = World { cap, budget, ..self.world(costs) };
                // Which sequences run depends on their room, and their room on which of them run.
                let mut world = World { kv_tokens: f64::INFINITY, ..bare };
                let mut tried: Vec<(World, Alike)> = Vec::new();
                for _ in 0..KV_ROUNDS {
                    let there = replay(&world, requests).held.max(1.0);
                    let kv_factor = self.servers.held.map_or(1.0, |held| held / there);
                    world = World { kv_factor: kv_factor.clamp(LEAST_OF_KV, 1.0 + BLOCK / there), ..bare };
                    tried.push((world, self.alike(replay(&world, requests))));
                }
                worlds.extend(tried.into_iter().min_by(|a, b| a.1.off().total_cmp(&b.1.off())));
            }
        }
        worlds.sort_by(|a, b| a.1.off().total_cmp(&b.1.off()));
        let likest = worlds[0].1.off();
        worlds.retain(|(_, alike)| alike.holds() || alike.off() == likest);
        // The budget is worth nothing but likeness.
        let mut caps: Vec<f64> = Vec::new();
        worlds.retain(|(world, _)| {
            !caps.contains(&world.cap) && {
                caps.push(world.cap);
                true
            }
        });
        worlds
    }

    fn alike(&self, replayed: Replayed) -> Alike {
        let running = replayed.running / self.servers.running.max(1e-3);
        let decoding = replayed.decoding / self.decoding.max(1e-3);
        // Gauges say little where many requests end in one step, and decoding little where the answers lay unread.
        let nearer = if running.ln().abs() < decoding.ln().abs() { running } else { decoding };
        Alike { took: replayed.took / self.took_us, running: nearer }
    }
}

/// A replay's figures over the run's.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Alike {
    /// The time.
    pub took: f64,
    /// Sequences running, or decoding, on average: the one that is nearer.
    pub running: f64,
}

impl Alike {
    fn off(&self) -> f64 {
        self.took.ln().abs() / ALIKE + self.running.ln().abs() / RUNNING_ALIKE
    }

    /// Returns whether the replay gave the run as it was.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.took.ln().abs() <= ALIKE && self.running.ln().abs() <= RUNNING_ALIKE
    }
}

/// Predicts the gains; none where there is nothing to replay.
pub(super) fn what_if(records: &[&Record], known: &Known<'_>) -> Option<WhatIf> {
    let requests = requests(records, known);
    let first = *known.fits.first()?;
    if requests.is_empty() || known.took_us <= 0.0 {
        return None;
    }
    let worlds = known.worlds(first, &requests);
    let alike = worlds.first()?.1;
    let mut gains: Vec<Gain> = Vec::new();
    for (world, _) in worlds {
        for costs in known.fits {
            let world = World { costs: *costs, ..world };
            let base = replay(&world, &requests);
            // Other costs that do not give the run either are not possible after all.
            if *costs != first && !known.alike(base).holds() {
                continue;
            }
            for (cause, gain) in each(&world, &requests, base, known) {
                match gains.iter_mut().find(|one| one.cause == cause) {
                    Some(one) => (one.least, one.most) = (one.least.min(gain), one.most.max(gain)),
                    None => gains.push(Gain { cause, likely: gain, least: gain, most: gain }),
                }
            }
        }
    }
    gains.sort_by(|a, b| b.likely.total_cmp(&a.likely));
    Some(WhatIf {
        gains,
        alike,
        round_trip_ms: known.seen.round_trip_us / 1e3,
        unread: known.seen.unread,
        event_us: known.seen.event_us,
    })
}

/// The gain from twice of each thing that this load may want.
fn each(world: &World, requests: &[Request], base: Replayed, known: &Known<'_>) -> Vec<(Cause, f64)> {
    let gain = |world: &World, requests: &[Request]| base.took / replay(world, requests).took.max(1.0);
    let with = |costs: Costs| World { costs, ..*world };
    let Costs { step, sequence, prompt_token } = world.costs;
    let mut gains = vec![
        (Cause::KvRoom, gain(&World { kv_tokens: 2.0 * world.kv_tokens, ..*world }, requests)),
        (Cause::CapOnRunning, gain(&World { cap: 2.0 * world.cap, ..*world }, requests)),
        // Both halves of a step's cost, as a GPU of twice the speed would have them. Prompts are a cause of their own.
        (Cause::StepTime, gain(&with(Costs { step: step / 2.0, sequence: sequence / 2.0, ..world.costs }), requests)),
        (Cause::Prefill, gain(&with(Costs { prompt_token: prompt_token / 2.0, ..world.costs }), requests)),
    ];
    if world.event > 0.0 {
        gains.push((Cause::HttpSide, gain(&World { event: world.event / 2.0, ..*world }, requests)));
    }
    if world.client > 0.0 {
        gains.push((Cause::SlowClient, gain(&World { client: world.client / 2.0, ..*world }, requests)));
    }
    if matches!(known.offered, Some(Offered::Rate(_) | Offered::Trace(_) | Offered::Traffic)) {
        // Twice the rate: the same requests in half of the time.
        let sooner: Vec<Request> = requests.iter().map(|one| Request { due: one.due / 2.0, ..*one }).collect();
        gains.push((Cause::Arrival, gain(world, &sooner)));
    }
    if world.gate != usize::MAX {
        gains.push((Cause::Concurrency, gain(&World { gate: world.gate.saturating_mul(2), ..*world }, requests)));
    }
    gains
}

/// The requests of a run: when each was due, and what it asked for.
fn requests(records: &[&Record], known: &Known<'_>) -> Vec<Request> {
    let mut servers: BTreeMap<&str, usize> = BTreeMap::new();
    let mut order: Vec<usize> = (0..records.len()).collect();
    order.sort_by_key(|place| records[*place].sent_us);
    let begin = order.first().map_or(0, |place| records[*place].sent_us);
    let good = || records.iter().filter(|record| record.succeeded());
    let count = good().count().max(1) as f64;
    // A request that failed is not known to have asked for less than others did.
    let mean = |of: fn(&Record) -> u64| good().map(|record| of(record)).sum::<u64>() as f64 / count;
    let (prompt, answer) = (mean(|record| record.prompt_tokens), mean(|record| record.output_tokens));
    let cached = known.servers.prefix_hits.unwrap_or(0.0);
    let at_once = !matches!(known.offered, Some(Offered::Rate(_) | Offered::Trace(_) | Offered::Traffic));
    let mut before: BTreeMap<u32, (usize, u64)> = BTreeMap::new();
    let mut made: Vec<Request> = Vec::with_capacity(records.len());
    for (number, place) in order.into_iter().enumerate() {
        let record = records[place];
        let server = match record.backend.as_deref() {
            Some(name) => {
                let next = servers.len();
                *servers.entry(name).or_insert(next)
            }
            // Answers that do not tell their server: dealt in turn, which is what an even balancer comes to.
            None => number % known.servers.count.max(1) as usize,
        };
        let sent = (record.sent_us - begin) as f64;
        let gone = record.first_event_us.is_none() && !record.succeeded();
        let found = record.cached_tokens.map_or(cached * record.prompt_tokens as f64, |tokens| tokens as f64);
        let chain = record.conversation.filter(|_| record.turn.is_some());
        let after = chain.and_then(|conversation| before.get(&conversation).copied());
        made.push(Request {
            server: server % known.servers.count.max(1) as usize,
            // In a closed loop the gate sets the times. To keep those that were seen would hide what more concurrency gains.
            due: if at_once && chain.is_none() { 0.0 } else { sent },
            after: after.map(|(before, end)| (before, record.sent_us.saturating_sub(end) as f64)),
            prompt: if record.prompt_tokens > 0 { record.prompt_tokens as f64 } else { prompt },
            computed: if record.prompt_tokens > 0 { record.prompt_tokens as f64 - found } else { prompt },
            answer: if record.output_tokens > 0 { record.output_tokens as f64 } else { answer }.max(1.0),
            fails_after: gone.then_some(record.end_us as f64),
        });
        if let Some(conversation) = chain {
            before.insert(conversation, (number, record.sent_us + record.end_us));
        }
    }
    made
}
