//! A second engine, written for these tests and apart from the simulator's: continuous batching step by step, blocks with a
//! prefix cache, an API server in front, a network, a client. In virtual time; what comes out are the rows of a run.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};

use forebay_lab::rows::record::{Outcome, Record};
use forebay_lab::rows::row_file::{Load, Offered, RunEnd, RunHead, RunRows, Sample};

use super::server::{Ask, BLOCK, Counters, Sequence, Server};
use super::setup::{Failing, Scrapes, Setup};

#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
enum Happens {
    Send(u32),
    Arrive(u32),
    StepEnds(usize, u32),
    Goes(usize),
    Scrape,
}

/// What came of a run.
pub(crate) struct Ran {
    pub(crate) rows: RunRows,
}

impl Ran {
    pub(crate) fn seconds(&self) -> f64 {
        let end = self.rows.records.iter().map(|record| record.sent_us + record.end_us).max().unwrap_or(0);
        end as f64 / 1e6
    }

    /// Tokens a second of whole answers.
    pub(crate) fn throughput(&self) -> f64 {
        let good = self.rows.records.iter().filter(|record| record.succeeded());
        good.map(|record| record.output_tokens).sum::<u64>() as f64 / self.seconds()
    }
}

struct World<'a> {
    setup: &'a Setup,
    asks: Vec<Ask>,
    servers: Vec<Server>,
    queue: BinaryHeap<Reverse<(At, u64)>>,
    happens: Vec<Happens>,
    records: Vec<Record>,
    last: Vec<f64>,
    client_free: f64,
    lags: Vec<f64>,
    next: u32,
    open: u32,
    samples: Vec<Sample>,
    rng: fastrand::Rng,
}

/// A time that can be ordered.
#[derive(Clone, Copy, Debug, PartialEq)]
struct At(f64);
impl Eq for At {}
impl PartialOrd for At {
    fn partial_cmp(&self, other: &At) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for At {
    fn cmp(&self, other: &At) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}

/// Makes a run.
pub(crate) fn run(setup: &Setup) -> Ran {
    let mut rng = fastrand::Rng::with_seed(setup.seed);
    let asks = (0..setup.requests).map(|_| ask(setup, &mut rng)).collect();
    let server = || Server {
        waiting: VecDeque::new(),
        running: Vec::new(),
        prefixes: BTreeMap::new(),
        free: setup.blocks,
        stepping: false,
        api_free: 0.0,
        gone_until: 0.0,
        life: 0,
        counters: Counters::default(),
    };
    let mut world = World {
        setup,
        asks,
        servers: (0..setup.servers).map(|_| server()).collect(),
        queue: BinaryHeap::new(),
        happens: Vec::new(),
        records: (0..setup.requests).map(|id| Record::unsent(id, 0)).collect(),
        last: vec![0.0; setup.requests as usize],
        client_free: 0.0,
        lags: Vec::new(),
        next: 0,
        open: 0,
        samples: Vec::new(),
        rng,
    };
    world.begin();
    while let Some(Reverse((At(now), number))) = world.queue.pop() {
        world.happen(now, world.happens[number as usize]);
    }
    world.end()
}

fn ask(setup: &Setup, rng: &mut fastrand::Rng) -> Ask {
    let factor = setup.prompt_spread.powf(2.0 * rng.f64() - 1.0);
    let own = setup.ends_at.map_or(f64::INFINITY, |mean| 1.0 - mean * (1.0 - rng.f64()).ln());
    let group = rng.u32(..setup.groups);
    let fails = matches!(setup.failing, Failing::Errors(share) if rng.f64() < share);
    let prompt = ((f64::from(setup.prompt) * factor) as u32).max(setup.shared + 4);
    Ask { prompt, answer: (own as u32).clamp(1, setup.answer), group, fails }
}

impl World<'_> {
    fn at(&mut self, time: f64, what: Happens) {
        self.queue.push(Reverse((At(time), self.happens.len() as u64)));
        self.happens.push(what);
    }

    fn begin(&mut self) {
        let count = self.setup.requests;
        match self.setup.offered {
            Offered::Rate(rate) => {
                let mut at = 0.0;
                for id in 0..count {
                    self.at(at, Happens::Send(id));
                    at += -(1.0 - self.rng.f64()).ln() / rate * 1e6;
                }
                self.next = count;
            }
            Offered::Concurrency(most) => (0..most.min(count)).for_each(|id| self.send_next(f64::from(id))),
            _ => (0..count).for_each(|id| self.send_next(f64::from(id))),
        }
        if let Failing::Gone(from, _) = self.setup.failing {
            self.at(from * 1e6, Happens::Goes(self.servers.len() - 1));
        }
        if self.setup.scrapes != Scrapes::None {
            self.at(0.0, Happens::Scrape);
        }
        self.open = count;
    }

    fn send_next(&mut self, at: f64) {
        if self.next < self.setup.requests {
            self.at(at, Happens::Send(self.next));
            self.next += 1;
        }
    }

    fn happen(&mut self, now: f64, what: Happens) {
        match what {
            Happens::Send(id) => {
                let server = id % self.setup.servers;
                let record = &mut self.records[id as usize];
                (record.sent_us, record.backend) = (now as u64, Some(format!("server-{server}")));
                self.at(now + self.setup.round_trip_us / 2.0, Happens::Arrive(id));
            }
            Happens::Arrive(id) => self.arrive(now, id),
            Happens::StepEnds(server, life) if life == self.servers[server].life => self.step_ends(now, server),
            Happens::StepEnds(..) => {}
            Happens::Goes(server) => self.goes(now, server),
            Happens::Scrape => self.scrape(now),
        }
    }

    fn arrive(&mut self, now: f64, id: u32) {
        let index = (id % self.setup.servers) as usize;
        let ask = self.asks[id as usize];
        if ask.fails || now < self.servers[index].gone_until {
            self.fail(now, id, if ask.fails { Outcome::Status } else { Outcome::Connect });
            return;
        }
        let sequence = Sequence { id, goal: ask.prompt, held: 0, blocks: 0, shared: 0, made: 0, counted: false };
        self.servers[index].waiting.push_back(sequence);
        if !self.servers[index].stepping {
            self.step(now, index);
        }
    }

    fn fail(&mut self, now: f64, id: u32, outcome: Outcome) {
        let at = now + self.setup.round_trip_us / 2.0;
        let record = &mut self.records[id as usize];
        record.outcome = outcome;
        record.end_us = at as u64 - record.sent_us;
        self.open -= 1;
        if matches!(self.setup.offered, Offered::Concurrency(_)) {
            self.send_next(at);
        }
    }

    fn goes(&mut self, now: f64, index: usize) {
        let Failing::Gone(_, until) = self.setup.failing else { return };
        let server = &mut self.servers[index];
        (server.gone_until, server.stepping, server.free) = (until * 1e6, false, self.setup.blocks);
        server.life += 1;
        server.prefixes.clear();
        let lost: Vec<u32> = server.waiting.drain(..).chain(server.running.drain(..)).map(|one| one.id).collect();
        (server.counters.running, server.counters.waiting, server.counters.usage) = (0, 0, 0.0);
        for id in lost {
            self.fail(now, id, Outcome::Truncated);
        }
    }

    /// Schedules a step as vLLM does, those that run first, and says when it ends.
    fn step(&mut self, now: f64, index: usize) {
        let setup = self.setup;
        let server = &mut self.servers[index];
        server.stepping = false;
        let (mut left, mut computed, mut decoding, mut context) = (setup.budget, 0, 0_u32, 0_u64);
        let mut lost = false;
        let mut place = 0;
        while place < server.running.len() && left > 0 {
            let one = server.running[place];
            let tokens = (one.goal - one.held).max(1).min(left);
            let more = (one.held + tokens).div_ceil(BLOCK).saturating_sub(one.blocks);
            if !server.room(more) {
                let last = server.running.pop().unwrap();
                server.preempt(last, self.asks[last.id as usize].group, now);
                lost = true;
                continue;
            }
            server.free -= more;
            let one = &mut server.running[place];
            one.blocks += more;
            if one.held < one.goal {
                computed += tokens;
            } else {
                decoding += 1;
                context += u64::from(one.held);
            }
            one.held += tokens;
            left -= tokens;
            place += 1;
        }
        while !lost && left > 0 && server.running.len() < setup.max_num_seqs as usize {
            let Some(one) = server.waiting.front().copied() else { break };
            let Some((started, tokens)) = server.admit(one, self.asks[one.id as usize], setup.shared, left) else {
                break;
            };
            server.waiting.pop_front();
            computed += tokens;
            left -= tokens;
            if setup.tells_cached && one.made == 0 {
                self.records[one.id as usize].cached_tokens = Some(u64::from(started.held - tokens));
            }
            server.running.push(started);
        }
        if server.running.is_empty() {
            return;
        }
        server.stepping = true;
        let cost = setup.step_us
            + setup.sequence_us * f64::from(decoding)
            + setup.prompt_us * f64::from(computed)
            + setup.context_us * context as f64 / 1000.0;
        let chance = 1.0 + setup.jitter * (self.rng.f64() + self.rng.f64() - 1.0);
        let life = self.servers[index].life;
        self.at(now + cost * chance, Happens::StepEnds(index, life));
    }

    fn step_ends(&mut self, now: f64, index: usize) {
        let mut events = Vec::new();
        let server = &mut self.servers[index];
        server.counters.steps += 1;
        let asks = &self.asks;
        for one in &mut server.running {
            if one.held < one.goal {
                continue;
            }
            if !one.counted {
                one.counted = true;
                server.counters.prompts += u64::from(asks[one.id as usize].prompt);
            }
            one.made += 1;
            server.counters.generated += 1;
            // What was made is not held before the next step.
            one.goal = one.held;
            events.push((one.id, one.made == asks[one.id as usize].answer));
        }
        let ended: Vec<Sequence> = {
            let done = |one: &Sequence| one.made == asks[one.id as usize].answer;
            let ended = server.running.iter().copied().filter(done).collect();
            server.running.retain(|one| !done(one));
            ended
        };
        for one in ended {
            server.give_back(one, asks[one.id as usize].group, now);
        }
        let idle: u32 = server.prefixes.values().filter(|prefix| prefix.users == 0).map(|prefix| prefix.blocks).sum();
        server.counters.usage = 1.0 - f64::from(server.free + idle) / f64::from(self.setup.blocks);
        (server.counters.running, server.counters.waiting) = (server.running.len(), server.waiting.len());
        for (id, last) in events {
            self.event(now, index, id, last);
        }
        self.step(now, index);
    }

    /// A token on its way: through the API server, over the network, to the client.
    fn event(&mut self, now: f64, index: usize, id: u32, last: bool) {
        let server = &mut self.servers[index];
        server.api_free = server.api_free.max(now) + self.setup.event_us;
        let there = server.api_free + self.setup.round_trip_us / 2.0;
        self.client_free = self.client_free.max(there) + self.setup.client_us;
        let read = self.client_free;
        self.lags.push(read - there);
        let ask = self.asks[id as usize];
        let record = &mut self.records[id as usize];
        if record.first_event_us.is_none() {
            record.first_event_us = Some(read as u64 - record.sent_us);
            record.first_token_us = record.first_event_us;
            record.prompt_tokens = u64::from(ask.prompt);
        } else {
            record.gaps_us.push(read as u64 - self.last[id as usize] as u64);
        }
        self.last[id as usize] = read;
        record.output_tokens += 1;
        record.end_us = read as u64 - record.sent_us;
        if last {
            record.outcome = Outcome::Success;
            record.status = Some(200);
            self.open -= 1;
            if matches!(self.setup.offered, Offered::Concurrency(_)) {
                self.send_next(read);
            }
        }
    }

    fn scrape(&mut self, now: f64) {
        let (every, whole) = match self.setup.scrapes {
            Scrapes::Whole(every) => (every, true),
            Scrapes::Few(every) => (every, false),
            Scrapes::None => return,
        };
        for (index, server) in self.servers.iter().enumerate() {
            if now < server.gone_until {
                continue;
            }
            let seen = &server.counters;
            let some = |value: f64| whole.then_some(value);
            self.samples.push(Sample {
                backend: format!("server-{index}"),
                at_us: now as u64,
                running: Some(seen.running as f64),
                waiting: Some(seen.waiting as f64),
                kv_usage: some(seen.usage),
                preemptions: some(seen.preemptions as f64),
                prefix_queries: some(seen.queries as f64),
                prefix_hits: some(seen.hits as f64),
                prompt_tokens: some(seen.prompts as f64),
                generation_tokens: some(seen.generated as f64),
                steps: some(seen.steps as f64),
                kv_tokens: some(f64::from(self.setup.blocks * BLOCK)),
            });
        }
        // The client looks until it has read everything.
        if self.open > 0 || now < self.client_free {
            self.at(now + every * 1e6, Happens::Scrape);
        }
    }

    fn end(mut self) -> Ran {
        let setup = self.setup;
        self.lags.sort_by(f64::total_cmp);
        let lag = self.lags.get(self.lags.len() * 99 / 100).copied().unwrap_or(0.0);
        let head = RunHead {
            arm: Some("arm".to_owned()),
            load: Load {
                offered: setup.offered,
                num_prompts: setup.requests,
                input_len: Some(setup.prompt),
                output_len: Some(setup.answer),
                seed: setup.seed,
                ..Load::default()
            },
            model: "m".to_owned(),
            gpus: Some(setup.servers),
            replicas: Some(setup.servers),
            max_num_seqs: setup.tells_cap.then_some(setup.max_num_seqs),
            ..RunHead::default()
        };
        let rows = RunRows {
            head: Some(head),
            records: self.records,
            samples: self.samples,
            end: Some(RunEnd { lag_p99_us: 150 + lag as u64 }),
        };
        Ran { rows }
    }
}
