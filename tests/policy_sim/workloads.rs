//! The workloads: fleets, incidents and traffic. Loads are shares of the capacity that the engines show on a closed backlog
//! of the same mix. 140 s of arrivals, of which the first 20 s are not counted.

use forebay_sim::engine::{EngineConfig, StepCost};

use crate::engines::{HALF, TP1, TP2_FAST, TP2_PCIE, capacity};
use crate::traffic::{Mix, Request, To, at, poisson, session};
use crate::world::{Fleet, Incident};

/// A workload.
pub(crate) struct Workload {
    pub(crate) name: &'static str,
    pub(crate) fleet: Fleet,
    pub(crate) traffic: Traffic,
    /// Offered requests over what the fleet can serve.
    pub(crate) load: f64,
    /// Seconds of arrivals, and of these how many are not counted.
    pub(crate) seconds: f64,
    pub(crate) warm_up: f64,
    /// A hash of the session in front of the proxies sends whole sessions to one of them.
    pub(crate) pinned: bool,
}

/// How requests come.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Traffic {
    /// One by one, at random times.
    Open(Mix),
    /// Sessions of eight turns, begun at random times.
    Sessions,
    /// So many at once.
    AtOnce(usize, Mix),
    /// 60 s of open traffic at half load, 60 s of nothing, then so many at once.
    AfterIdle(usize),
    /// So many short ones at once, a pause until a minute after the start, then thirty tiny requests at once.
    Storm(usize),
    /// So many short questions with long answers, one every so many seconds.
    Paced(usize, f64),
    /// Open, in tides: 8 s of 1.6 times the mean rate, 12 s of 0.6 times.
    Tides(Mix),
    /// Open, and other clients' traffic straight to the first backends: to so many of them, this share of their capacity.
    Foreign(Mix, usize, f64),
}

impl Workload {
    fn new(name: &'static str, engines: &[EngineConfig], traffic: Traffic) -> Workload {
        let fleet = Fleet::of(engines);
        Workload { name, fleet, traffic, load: 0.75, seconds: 140.0, warm_up: 20.0, pinned: false }
    }

    fn incidents(mut self, incidents: &[(f64, usize, Incident)]) -> Workload {
        self.fleet.incidents = incidents.iter().map(|&(when, place, what)| (at(when), place, what)).collect();
        self
    }

    /// The same at another load.
    pub(crate) fn at_load(self, load: f64) -> Workload {
        Workload { load, ..self }
    }

    /// The same through so many proxies.
    pub(crate) fn through(mut self, proxies: usize) -> Workload {
        self.fleet.proxies = proxies;
        self
    }

    /// The same behind a hash of the session.
    pub(crate) fn behind_a_session_hash(self) -> Workload {
        Workload { pinned: true, ..self }
    }

    /// The same, and each proxy knows how many there are.
    pub(crate) fn told_of_each_other(mut self) -> Workload {
        self.fleet.told = self.fleet.proxies as u32;
        self
    }

    /// Every request, in the order of their numbers.
    pub(crate) fn requests(&self, seed: u64) -> Vec<Request> {
        let mut rng = fastrand::Rng::with_seed(seed);
        let capacity = |mix| self.fleet.engines.iter().map(|&engine| known_capacity(engine, mix)).sum::<f64>();
        let mut requests = Vec::new();
        let open = |mix: Mix, rate: f64, from: f64, to: f64, rng: &mut fastrand::Rng, out: &mut Vec<Request>| {
            for time in poisson(rate, from, to, rng) {
                out.push(Request::new(at(time), mix, rng));
            }
        };
        match self.traffic {
            Traffic::Open(mix) => open(mix, self.load * capacity(mix), 0.0, self.seconds, &mut rng, &mut requests),
            Traffic::Tides(mix) => {
                let mean = self.load * capacity(mix);
                for tide in 0..(self.seconds / 20.0).ceil() as u32 {
                    let from = 20.0 * f64::from(tide);
                    open(mix, 1.6 * mean, from, from + 8.0, &mut rng, &mut requests);
                    open(mix, 0.6 * mean, from + 8.0, from + 20.0, &mut rng, &mut requests);
                }
            }
            Traffic::Sessions => {
                let rate = self.load * capacity(Mix::Turn) / 8.0;
                for (id, time) in (0..).zip(poisson(rate, 0.0, self.seconds, &mut rng)) {
                    session(id, time, &mut rng, &mut requests);
                }
            }
            Traffic::AtOnce(count, mix) => at_once(count, mix, 0.0, &mut rng, &mut requests),
            Traffic::Storm(count) => requests = storm_of(count, &mut rng),
            Traffic::Paced(count, gap) => requests = paced(count, gap, &mut rng),
            Traffic::AfterIdle(count) => {
                open(Mix::Chat, 0.5 * capacity(Mix::Chat), 0.0, 60.0, &mut rng, &mut requests);
                at_once(count, Mix::Benchmark, 120.0, &mut rng, &mut requests);
            }
            Traffic::Foreign(mix, places, share) => {
                let foreign: Vec<f64> =
                    (0..places).map(|place| share * known_capacity(self.fleet.engines[place], mix)).collect();
                let rate = self.load * capacity(mix) - foreign.iter().sum::<f64>();
                open(mix, rate, 0.0, self.seconds, &mut rng, &mut requests);
                for (place, rate) in foreign.into_iter().enumerate() {
                    let first = requests.len();
                    open(mix, rate, 0.0, self.seconds, &mut rng, &mut requests);
                    requests[first..].iter_mut().for_each(|request| request.to = To::Backend(place));
                }
            }
        }
        if self.pinned {
            let one = |request: &Request| request.marks.session.unwrap_or_default() as usize % self.fleet.proxies;
            requests.iter_mut().for_each(|request| request.to = To::Proxy(one(request)));
        } else if self.fleet.proxies > 1 {
            for request in requests.iter_mut().filter(|request| matches!(request.to, To::Proxy(_))) {
                request.to = To::Proxy(rng.usize(..self.fleet.proxies));
            }
        }
        requests
    }
}

fn at_once(count: usize, mix: Mix, when: f64, rng: &mut fastrand::Rng, requests: &mut Vec<Request>) {
    requests.extend((0..count).map(|_| Request::new(at(when), mix, rng)));
}

/// So many short answers at once, and thirty tiny prompts a minute later.
fn storm_of(count: usize, rng: &mut fastrand::Rng) -> Vec<Request> {
    let mut requests = Vec::new();
    at_once(count, Mix::Benchmark, 0.0, rng, &mut requests);
    requests.iter_mut().for_each(|request| request.output = 50);
    at_once(30, Mix::Benchmark, 60.0, rng, &mut requests);
    requests[count..].iter_mut().for_each(|tiny| (tiny.prompt, tiny.estimate) = (10, 10));
    requests
}

/// Short prompts with answers of 400 tokens, one every so many seconds.
fn paced(count: usize, gap: f64, rng: &mut fastrand::Rng) -> Vec<Request> {
    let new = |place| Request::new(at(gap * place as f64), Mix::Chat, rng);
    let requests = (0..count).map(new);
    requests.map(|request| Request { prompt: 50, estimate: 50, output: 400, ..request }).collect()
}

/// Capacities are asked for often and cost a second each.
fn known_capacity(engine: EngineConfig, mix: Mix) -> f64 {
    use std::sync::Mutex;
    static KNOWN: Mutex<Vec<(EngineConfig, Mix, f64)>> = Mutex::new(Vec::new());
    let mut known = KNOWN.lock().unwrap();
    if let Some(&(.., rate)) = known.iter().find(|(e, m, _)| *e == engine && *m == mix) {
        return rate;
    }
    let rate = capacity(engine, mix);
    known.push((engine, mix, rate));
    rate
}

/// Two equal backends.
pub(crate) fn w1() -> Workload {
    Workload::new("w1", &[TP1; 2], Traffic::Open(Mix::Chat))
}

/// Eight equal backends.
pub(crate) fn w2() -> Workload {
    Workload::new("w2", &[TP1; 8], Traffic::Open(Mix::Chat))
}

/// Mixed speeds: 1.4, 1, 1, 0.5.
pub(crate) fn w3() -> Workload {
    Workload::new("w3", &[TP2_FAST, TP1, TP1, HALF], Traffic::Open(Mix::Chat))
}

/// The benchmark's host: TP=2 over PCIe beside two TP=1.
pub(crate) fn w3b() -> Workload {
    Workload::new("w3b", &[TP2_PCIE, TP1, TP1], Traffic::Open(Mix::Chat))
}

/// 1.5 % of prompts have 16k to 32k tokens. (With 1 %, p99 stands on the cliff between light and heavy.)
pub(crate) fn w4() -> Workload {
    Workload::new("w4", &[TP1; 4], Traffic::Open(Mix::Heavy(0.015)))
}

/// Sessions of eight turns that share their beginning, at 1.25 times what could be served if nothing were cached.
pub(crate) fn w5() -> Workload {
    Workload::new("w5", &[TP1; 4], Traffic::Sessions).at_load(1.25)
}

/// One of four is five times as slow from 50 s to 80 s.
pub(crate) fn w6() -> Workload {
    Workload::new("w6", &[TP1; 4], Traffic::Open(Mix::Chat))
        .incidents(&[(50.0, 0, Incident::Slow(5.0)), (80.0, 0, Incident::Slow(1.0))])
}

/// The benchmark's 300 at once, on two equal backends that nothing is known of.
pub(crate) fn w9() -> Workload {
    Workload { warm_up: 0.0, ..Workload::new("w9", &[TP1; 2], Traffic::AtOnce(300, Mix::Benchmark)) }
}

/// The same on two unequal ones.
pub(crate) fn w9h() -> Workload {
    Workload { warm_up: 0.0, ..Workload::new("w9h", &[TP2_FAST, TP1], Traffic::AtOnce(300, Mix::Benchmark)) }
}

/// The same after a minute of traffic and a minute of none.
pub(crate) fn w9i() -> Workload {
    Workload { warm_up: 119.0, ..Workload::new("w9i", &[TP2_FAST, TP1], Traffic::AfterIdle(300)) }
}

/// Another client takes 40 % of two of the four backends.
pub(crate) fn w10() -> Workload {
    Workload::new("w10", &[TP1; 4], Traffic::Foreign(Mix::Chat, 2, 0.4))
}

/// One of four fails every request at once from 50 s to 90 s.
pub(crate) fn w11() -> Workload {
    Workload::new("w11", &[TP1; 4], Traffic::Open(Mix::Chat))
        .incidents(&[(50.0, 0, Incident::Fails(true)), (90.0, 0, Incident::Fails(false))])
        .at_load(0.5)
}

/// One of four joins at 50 s and is ten times as slow for its first 100 steps, which come when it has work.
pub(crate) fn w12() -> Workload {
    Workload::new("w12", &[TP1; 4], Traffic::Open(Mix::Chat))
        .incidents(&[(0.0, 3, Incident::Cold(10.0, 100)), (50.0, 3, Incident::Join)])
        .at_load(0.6)
}

/// Long answers.
pub(crate) fn w13() -> Workload {
    Workload::new("w13", &[TP2_PCIE, TP1, TP1], Traffic::Open(Mix::Long))
}

/// One of four is ejected from 50 s to 80 s.
pub(crate) fn ejected() -> Workload {
    Workload::new("ejected", &[TP1; 4], Traffic::Open(Mix::Chat))
        .incidents(&[(50.0, 0, Incident::Out(true)), (80.0, 0, Incident::Out(false))])
        .at_load(0.6)
}

/// 139 requests on four equal engines whose steps take 4 ms whatever is in them.
pub(crate) fn flat() -> Workload {
    let cost = StepCost { base_us: 4_000.0, ..StepCost::default() };
    let engine = EngineConfig { cost, ..TP1 };
    Workload { warm_up: 0.0, ..Workload::new("flat", &[engine; 4], Traffic::Paced(139, 0.1)) }
}

/// Two hundred at once on two equal engines, the second of which is half as fast until they have left; then thirty small ones.
pub(crate) fn storm() -> Workload {
    let slow = [(0.0, 1, Incident::Slow(2.0)), (50.0, 1, Incident::Slow(1.0))];
    let storm = Workload { warm_up: 0.0, ..Workload::new("storm", &[HALF; 2], Traffic::Storm(200)) };
    storm.incidents(&slow)
}

/// Two equal engines, one of which runs at most 32 sequences.
pub(crate) fn capped() -> Workload {
    let capped = EngineConfig { max_num_seqs: 32, ..TP1 };
    Workload::new("capped", &[TP1, capped], Traffic::Open(Mix::Benchmark)).at_load(0.8)
}

/// Nothing streamed, on backends of mixed speed.
pub(crate) fn unstreamed() -> Workload {
    Workload::new("unstreamed", &[TP2_FAST, TP1, TP1, HALF], Traffic::Open(Mix::Unstreamed))
}

// Three that the policy was not tuned on: written down before it was run on them.

/// Tides of chat on three single GPUs and a pair.
pub(crate) fn tides() -> Workload {
    Workload::new("tides", &[TP1, TP1, TP1, TP2_PCIE], Traffic::Tides(Mix::Chat)).at_load(0.65)
}

/// Six equal backends, of which each in turn is half as fast for 20 s.
pub(crate) fn throttle() -> Workload {
    let turns: Vec<_> = (0..6_u8)
        .flat_map(|turn| {
            let (from, place) = (20.0 + 20.0 * f64::from(turn), usize::from(turn));
            [(from, place, Incident::Slow(2.0)), (from + 20.0, place, Incident::Slow(1.0))]
        })
        .collect();
    Workload::new("throttle", &[TP1; 6], Traffic::Open(Mix::Chat)).incidents(&turns).at_load(0.65)
}

/// Documents and long chats, a third of them not streamed, on three backends of different speed.
pub(crate) fn documents() -> Workload {
    Workload::new("documents", &[HALF, TP1, TP2_FAST], Traffic::Open(Mix::Documents)).at_load(0.6)
}
