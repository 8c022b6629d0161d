//! Virtual time: clients, the real dispatchers and simulated engines, and the events between them in their order. A request is
//! dispatched and submitted at the moment at which it comes (network time is 0); tokens reach its ticket when the engine
//! makes them; scrapes come each second, each backend at its own phase.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::time::Duration;

use forebay_core::clock::Time;
use forebay_core::error::Failure;
use forebay_core::routing::affinity;
use forebay_core::routing::candidate::Candidate;
use forebay_core::routing::facts::{ArmIndex, RequestFacts};
use forebay_core::routing::policy::PolicyName;
use forebay_core::routing::policy::{Policy, PredictedTtft};
use forebay_core::sample::Sample;
use forebay_core::units::BackendId;
use forebay_fleet::config::model::{ArmConfig, BackendConfig, Config, PoolConfig, Replicas};
use forebay_fleet::membership::controller::{Controller, Settings};
use forebay_fleet::telemetry::Telemetry;
use forebay_fleet::{AttemptOutcome, Probed, Ticket};
use forebay_sim::engine::{Engine, EngineConfig, Event, RequestId, Submission};

use crate::engines::slowed;
use crate::oracle::Oracle;
use crate::peers::{Load, Peer, Seen};
use crate::traffic::{Request, To};

const MODEL: &str = "m";
const SCRAPE: Duration = Duration::from_secs(1);
/// Virtual seconds after which what is not served counts as served then.
const END: Time = Time::from_micros(2_000_000_000);

/// Who chooses the backend.
#[derive(Clone, Copy)]
pub(crate) enum Chooser<'a> {
    /// The pool's own policy.
    Named(PolicyName),
    /// Another one, on rows of which something was taken away.
    Trial(&'a dyn Policy, fn(&mut [Candidate])),
    /// The default policy with exact knowledge of the prefix caches, as KV events would give it.
    Exact,
    /// The rule of another router.
    Peer(fn() -> Box<dyn Peer>),
    /// The clairvoyant one.
    Oracle,
}

impl Chooser<'_> {
    fn policy(self) -> PolicyName {
        match self {
            Chooser::Named(policy) => policy,
            Chooser::Trial(..) | Chooser::Exact | Chooser::Peer(_) | Chooser::Oracle => PolicyName::PredictedTtft,
        }
    }
}

/// What happens to a backend during a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Incident {
    /// Its steps take so many times as long as at first.
    Slow(f64),
    /// It is this many times as slow for so many steps from its first one on: kernels are compiled when first used.
    Cold(f64, u64),
    /// It joins the pool; before, it was not configured.
    Join,
    /// Every attempt fails at once with a 500, or no longer does.
    Fails(bool),
    /// Its probes fail and it is out, or they succeed again.
    Out(bool),
    /// Its engine starts anew with an empty cache. It must be idle.
    Restart,
}

/// What a run is made of beside its requests.
pub(crate) struct Fleet {
    pub(crate) engines: Vec<EngineConfig>,
    /// The operator's priors, where there are any; else 1.
    pub(crate) speeds: Vec<f64>,
    /// What happens when, to which backend; in the order of time.
    pub(crate) incidents: Vec<(Time, usize, Incident)>,
    /// Proxies that share nothing but the backends.
    pub(crate) proxies: usize,
    /// Replicas that each proxy is told of; 1: it does as if it were alone. Scrapes are so many times as rare.
    pub(crate) told: u32,
    /// All engines share one GPU: a step takes as many times as long as engines have work.
    pub(crate) one_gpu: bool,
    /// The proxies scrape the backends' metrics.
    pub(crate) metrics: bool,
    /// Answers say how many tokens of their prompts were cached.
    pub(crate) usage: bool,
}

impl Fleet {
    /// These engines behind one proxy that scrapes them, and nothing happens.
    pub(crate) fn of(engines: &[EngineConfig]) -> Fleet {
        Fleet {
            engines: engines.to_vec(),
            speeds: Vec::new(),
            incidents: Vec::new(),
            proxies: 1,
            told: 1,
            one_gpu: false,
            metrics: true,
            usage: false,
        }
    }
}

/// One request as it was served.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Served {
    pub(crate) arrived: Time,
    pub(crate) first: Time,
    pub(crate) ended: Time,
    pub(crate) prompt: u32,
    pub(crate) output: u32,
    pub(crate) backend: usize,
}

/// What came of a run.
#[derive(Debug, Default)]
pub(crate) struct Run {
    /// Requests through proxies, by arrival.
    pub(crate) served: Vec<Served>,
    /// First attempts that failed.
    pub(crate) lost: u32,
    /// Prompt tokens looked up in prefix caches, and found.
    pub(crate) looked_up: u64,
    pub(crate) found: u64,
    /// Sequences that lost their memory.
    pub(crate) preemptions: u64,
    /// Requests that were never served.
    pub(crate) starved: u32,
}

struct Proxy {
    controller: Controller,
    places: Vec<(BackendId, usize)>,
    rng: fastrand::Rng,
}

struct Live {
    ticket: Option<Ticket>,
    served: Served,
    uncached: u32,
    done: bool,
}

struct World<'a> {
    fleet: &'a Fleet,
    requests: &'a [Request],
    chooser: Chooser<'a>,
    engines: Vec<Engine>,
    up: Vec<bool>,
    failing: Vec<bool>,
    /// The step from which a cold engine is warm; 0: it is.
    cold: Vec<u64>,
    proxies: Vec<Proxy>,
    arrivals: BinaryHeap<Reverse<(Time, usize)>>,
    live: Vec<Option<Live>>,
    scrapes: Vec<Time>,
    oracle: Oracle,
    peer: Option<Box<dyn Peer>>,
    /// What each backend has to do, exactly, for peers.
    loads: Vec<Load>,
    rng: fastrand::Rng,
    out: Run,
    open: usize,
}

/// Runs the requests to their end.
pub(crate) fn run(fleet: &Fleet, requests: &[Request], chooser: Chooser<'_>, seed: u64) -> Run {
    let mut world = World::new(fleet, requests, chooser, seed);
    world.play();
    world.finish()
}

impl<'a> World<'a> {
    fn new(fleet: &'a Fleet, requests: &'a [Request], chooser: Chooser<'a>, seed: u64) -> World<'a> {
        let count = fleet.engines.len();
        let joins = |place: usize| fleet.incidents.iter().any(|&(_, of, what)| of == place && what == Incident::Join);
        let up: Vec<bool> = (0..count).map(|place| !joins(place)).collect();
        let policy = chooser.policy();
        let proxies = (0..fleet.proxies)
            .map(|number| {
                let rng = fastrand::Rng::with_seed(seed.wrapping_mul(1000).wrapping_add(number as u64));
                let config =
                    Config { replicas: Replicas { count: fleet.told, ..Replicas::default() }, ..Config::default() };
                let settings = Settings::from(&config);
                let controller = Controller::new(settings, Arc::new(Telemetry::new())).seeded(rng.clone().u64(..));
                let mut proxy = Proxy { controller, places: Vec::new(), rng };
                proxy.apply(fleet, &up, policy, Time::ZERO);
                proxy
            })
            .collect();
        World {
            fleet,
            requests,
            chooser,
            engines: fleet.engines.iter().map(|&config| Engine::new(config)).collect(),
            failing: vec![false; count],
            cold: vec![0; count],
            up,
            proxies,
            arrivals: (0..).zip(requests).filter_map(|(index, r)| Some(Reverse((r.at?, index)))).collect(),
            live: requests.iter().map(|_| None).collect(),
            scrapes: (0..count).map(|place| Time::ZERO + SCRAPE * (place as u32 + 1) / (count as u32 + 1)).collect(),
            oracle: Oracle::default(),
            peer: match chooser {
                Chooser::Peer(make) => Some(make()),
                _ => None,
            },
            loads: vec![Load::default(); count],
            rng: fastrand::Rng::with_seed(seed),
            out: Run::default(),
            open: 0,
        }
    }

    fn play(&mut self) {
        let (mut events, mut incident) = (Vec::new(), 0);
        while !self.arrivals.is_empty() || self.open > 0 {
            let arrival = self.arrivals.peek().map(|Reverse((at, _))| *at);
            let step = self.engines.iter().filter_map(Engine::next_step_at).min();
            let scrape = self.scrapes.iter().min().copied();
            let due = self.fleet.incidents.get(incident).map(|&(at, ..)| at);
            let Some(now) = [arrival, step, scrape, due].into_iter().flatten().min().filter(|&now| now < END) else {
                return;
            };
            while let Some(&(at, place, what)) = self.fleet.incidents.get(incident).filter(|&&(at, ..)| at <= now) {
                self.happen(place, what, at);
                incident += 1;
            }
            for place in 0..self.engines.len() {
                if self.engines[place].next_step_at().is_some_and(|at| at <= now) {
                    if self.fleet.one_gpu {
                        let busy = self.engines.iter().filter(|engine| engine.next_step_at().is_some()).count();
                        self.engines[place].slow_down(busy as f64);
                    }
                    self.engines[place].step(now, &mut events);
                    self.warm(place);
                    for event in events.drain(..) {
                        self.token(event);
                    }
                }
            }
            self.scrape(now);
            while self.arrivals.peek().is_some_and(|Reverse((at, _))| *at <= now) {
                if let Some(Reverse((_, index))) = self.arrivals.pop() {
                    self.arrive(index, now);
                }
            }
        }
    }

    fn warm(&mut self, place: usize) {
        if self.cold[place] > 0 && self.engines[place].counters().steps >= self.cold[place] {
            self.cold[place] = 0;
            self.engines[place].set_cost(self.fleet.engines[place].cost);
        }
    }

    fn happen(&mut self, place: usize, what: Incident, now: Time) {
        match what {
            Incident::Slow(factor) => self.engines[place].set_cost(slowed(self.fleet.engines[place].cost, factor)),
            Incident::Cold(factor, steps) => {
                self.engines[place].set_cost(slowed(self.fleet.engines[place].cost, factor));
                self.cold[place] = steps;
            }
            Incident::Fails(fails) => self.failing[place] = fails,
            Incident::Join => {
                self.up[place] = true;
                let policy = self.chooser.policy();
                for proxy in &mut self.proxies {
                    proxy.apply(self.fleet, &self.up, policy, now);
                }
            }
            Incident::Restart => {
                assert!(self.engines[place].next_step_at().is_none(), "backend {place} restarts with work");
                self.engines[place] = Engine::new(self.fleet.engines[place]);
            }
            Incident::Out(out) => {
                self.up[place] = !out;
                for proxy in &self.proxies {
                    let id = proxy.id(place);
                    if out {
                        proxy.controller.gone(id, now);
                        continue;
                    }
                    proxy.controller.health(id, Ok(()), now);
                }
            }
        }
    }

    fn arrive(&mut self, index: usize, now: Time) {
        let request = &self.requests[index];
        let submission = Submission {
            id: RequestId(index as u64),
            prompt_tokens: request.prompt,
            output_tokens: request.output,
            sequences: 1,
            block_hashes: Arc::clone(&request.hashes),
        };
        let (backend, ticket) = match request.to {
            To::Backend(place) => (place, None),
            To::Proxy(proxy) => {
                let (place, ticket) = self.dispatch(proxy, request, &submission, now);
                (place, Some(ticket))
            }
        };
        let served =
            Served { arrived: now, first: END, ended: END, prompt: request.prompt, output: request.output, backend };
        let uncached =
            request.prompt - self.engines[backend].cached_tokens(&request.hashes, request.prompt).min(request.prompt);
        self.loads[backend].in_flight += 1;
        self.loads[backend].uncached += u64::from(uncached);
        self.engines[backend].submit(now, &submission).unwrap();
        self.live[index] = Some(Live { ticket, served, uncached, done: false });
        self.open += 1;
    }

    /// A ticket on a backend that takes the request: one that fails does so at once, and the next is tried.
    fn dispatch(&mut self, proxy: usize, request: &Request, submission: &Submission, now: Time) -> (usize, Ticket) {
        let mut facts = RequestFacts {
            est_tokens: request.estimate,
            sequences: 1,
            kind: request.kind,
            arm: ArmIndex(0),
            pinned: None,
            marks: request.marks.clone(),
        };
        let mut tried = Vec::new();
        loop {
            let pool = {
                let snapshot = self.proxies[proxy].controller.fleet().snapshot();
                Arc::clone(snapshot.pool(MODEL).unwrap())
            };
            let proxy = &mut self.proxies[proxy];
            let dispatched = match self.chooser {
                Chooser::Named(_) => pool.dispatch(&facts, &tried, now, &mut proxy.rng),
                Chooser::Trial(policy, alter) => {
                    pool.dispatch_trial(&facts, &tried, now, &mut proxy.rng, policy, alter)
                }
                Chooser::Exact => {
                    let (engines, places) = (&self.engines, &proxy.places);
                    let exact = |rows: &mut [Candidate]| {
                        for row in rows.iter_mut() {
                            let place = places.iter().find(|(id, _)| *id == row.id).unwrap().1;
                            let cached = engines[place].cached_tokens(&request.hashes, request.prompt);
                            row.matched =
                                (u64::from(cached) * u64::from(request.estimate) / u64::from(request.prompt)) as u32;
                        }
                        affinity::compare(rows);
                    };
                    pool.dispatch_trial(&facts, &tried, now, &mut proxy.rng, &PredictedTtft, exact)
                }
                Chooser::Peer(_) => {
                    let usable: Vec<bool> =
                        self.up.iter().zip(&self.failing).map(|(up, fails)| *up && !fails).collect();
                    let seen = Seen { engines: &self.engines, loads: &self.loads, usable: &usable, request };
                    let place = self.peer.as_mut().unwrap().choose(&seen, &mut self.rng);
                    facts.pinned = Some(proxy.id(place));
                    pool.dispatch(&facts, &tried, now, &mut proxy.rng)
                }
                Chooser::Oracle => {
                    let usable: Vec<bool> =
                        self.up.iter().zip(&self.failing).map(|(up, fails)| *up && !fails).collect();
                    facts.pinned = Some(proxy.id(self.oracle.choose(&self.engines, &usable, now, submission)));
                    pool.dispatch(&facts, &tried, now, &mut proxy.rng)
                }
            };
            let ticket = dispatched.unwrap().ticket;
            let id = ticket.backend().id;
            let place = proxy.place(id);
            assert!(self.up[place], "backend {place} is out and got a request");
            if !self.failing[place] {
                return (place, ticket);
            }
            self.out.lost += u32::from(tried.is_empty());
            ticket.finish(AttemptOutcome::Failed(Failure::ServerError(500)), now);
            tried.push(id);
        }
    }

    fn token(&mut self, event: Event) {
        let index = usize::try_from(event.id.0).unwrap();
        let request = &self.requests[index];
        let live = self.live[index].as_mut().unwrap();
        let now = event.at;
        if let Some(ticket) = &mut live.ticket {
            match event.tokens {
                1 => ticket.first_token(now),
                _ => ticket.event(now, false),
            }
        }
        let load = &mut self.loads[live.served.backend];
        if event.tokens == 1 && live.served.first == END {
            live.served.first = now;
            load.uncached -= u64::from(live.uncached);
        }
        if event.finished {
            load.in_flight -= 1;
            live.served.ended = now;
            live.done = true;
            if let Some(ticket) = live.ticket.take() {
                if self.fleet.usage {
                    ticket.cached(u64::from(request.prompt), u64::from(event.cached_tokens));
                }
                ticket.finish(AttemptOutcome::Success, now);
            }
            self.open -= 1;
            if let Some((next, think)) = request.next {
                self.arrivals.push(Reverse((now + think, next)));
            }
        }
    }

    fn scrape(&mut self, now: Time) {
        for (place, due) in self.scrapes.iter_mut().enumerate().filter(|(_, due)| **due <= now) {
            *due = *due + SCRAPE * self.fleet.told;
            if !self.up[place] || !self.fleet.metrics {
                continue;
            }
            let sample = sample(&self.engines[place]);
            for proxy in &self.proxies {
                let snapshot = proxy.controller.fleet().snapshot();
                let Some(backend) = snapshot.backend(proxy.id(place)) else { continue };
                backend.load.set_sample(sample, now);
                // What is out is asked whether it is back when its time is over.
                if proxy.controller.wants_probe(backend.id, now) {
                    let failing = self.failing[place];
                    let probed = if failing { Probed::Failed("status 500".to_owned()) } else { Probed::Passed };
                    proxy.controller.probed(backend.id, probed, now);
                }
            }
        }
    }

    fn finish(mut self) -> Run {
        for (request, live) in self.requests.iter().zip(&self.live) {
            let Some(live) = live.as_ref().filter(|_| matches!(request.to, To::Proxy(_))) else { continue };
            self.out.served.push(live.served);
            self.out.starved += u32::from(!live.done);
        }
        self.out.served.sort_by_key(|served| served.arrived);
        for engine in &self.engines {
            self.out.looked_up += engine.counters().prefix_queries;
            self.out.found += engine.counters().prefix_hits;
            self.out.preemptions += engine.counters().preemptions;
        }
        self.out
    }
}

impl Proxy {
    fn apply(&mut self, fleet: &Fleet, up: &[bool], policy: PolicyName, now: Time) {
        let backends = (0..fleet.engines.len())
            .filter(|&place| up[place])
            .map(|place| BackendConfig {
                speed: fleet.speeds.get(place).copied().unwrap_or(1.0),
                ..BackendConfig::of(format!("http://10.0.0.1:{}", 1000 + place).parse().unwrap())
            })
            .collect();
        let pool =
            PoolConfig { policy, arms: vec![ArmConfig::of("default", backends)], ..PoolConfig::of(MODEL, Vec::new()) };
        self.controller.apply(&[pool], now);
        let snapshot = self.controller.fleet().snapshot();
        self.places = snapshot
            .backends()
            .map(|backend| {
                let port: usize = backend.url.authority().rsplit(':').next().unwrap().parse().unwrap();
                (backend.id, port - 1000)
            })
            .collect();
    }

    fn id(&self, place: usize) -> BackendId {
        self.places.iter().find(|(_, of)| *of == place).unwrap().0
    }

    fn place(&self, id: BackendId) -> usize {
        self.places.iter().find(|(of, _)| *of == id).unwrap().1
    }
}

fn sample(engine: &Engine) -> Sample {
    let counters = engine.counters();
    let config = engine.config();
    Sample {
        running: Some(engine.running() as f64),
        waiting: Some(engine.waiting() as f64),
        kv_usage: Some(engine.kv_usage()),
        kv_capacity_tokens: Some(u64::from(config.num_blocks * config.block_size)),
        kv_block_tokens: Some(config.block_size),
        prefix_queries: Some(counters.prefix_queries as f64),
        prefix_hits: Some(counters.prefix_hits as f64),
        preemptions: Some(counters.preemptions as f64),
        generation_tokens: Some(counters.generation_tokens as f64),
        steps: Some(counters.steps as f64),
    }
}
