//! Simulated runs whose cause is known, in virtual time: setups drawn within each cause, run on the simulator's engines, and
//! labelled by what would have helped: the same run again with twice of one thing.

use forebay_core::clock::Time;
use forebay_lab::diagnosis::Cause;
use forebay_lab::rows::record::{Outcome, Record};
use forebay_lab::rows::row_file::{Load, Offered, RunEnd, RunHead, RunRows, Sample};
use forebay_sim::engine::{Engine, EngineConfig, Event, RequestId, StepCost, Submission};

/// A run to make.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    pub(crate) engine: EngineConfig,
    pub(crate) replicas: u32,
    pub(crate) requests: u32,
    pub(crate) prompt: u32,
    /// The longest answer, and how much longer answers would be that end by themselves.
    pub(crate) limit: u32,
    pub(crate) longest: f64,
    /// Requests a second; none: all at once.
    pub(crate) rate: Option<f64>,
    /// What the client needs for each event.
    pub(crate) client_us: f64,
    /// Between two looks at the servers, in seconds.
    pub(crate) look_s: f64,
    pub(crate) seed: u64,
}

const BLOCK: u32 = 16;

fn between(rng: &mut fastrand::Rng, from: f64, to: f64) -> f64 {
    from + (to - from) * rng.f64()
}

fn log_between(rng: &mut fastrand::Rng, from: f64, to: f64) -> f64 {
    between(rng, from.ln(), to.ln()).exp()
}

/// A server with room for everything and a load that it takes at once.
fn roomy(rng: &mut fastrand::Rng) -> Setup {
    let base_us = log_between(rng, 4e3, 30e3);
    let decode_us = base_us / log_between(rng, 120.0, 400.0);
    let requests = between(rng, 120.0, 400.0) as u32;
    let limit = log_between(rng, 80.0, 500.0) as u32;
    Setup {
        engine: EngineConfig {
            cost: StepCost {
                base_us,
                decode_us,
                prefill_us: base_us / log_between(rng, 120.0, 450.0),
                kv_us: decode_us * between(rng, 0.0, 0.5) / 400.0,
                jitter: between(rng, 0.0, 0.15),
                ..StepCost::default()
            },
            max_num_seqs: 512,
            max_num_batched_tokens: 2048,
            block_size: BLOCK,
            num_blocks: 60_000,
            prefix_caching: true,
            seed: rng.u64(..),
        },
        replicas: 1 + u32::from(rng.f64() < 0.3),
        requests,
        prompt: (f64::from(limit) * log_between(rng, 0.1, 1.0)).max(30.0) as u32,
        limit,
        // From answers that all go up to the limit to such that all end by themselves.
        longest: f64::from(limit) * if rng.bool() { between(rng, 1.0, 6.0) } else { 1e6 },
        rate: None,
        client_us: 0.0,
        look_s: between(rng, 0.2, 1.0),
        seed: rng.u64(..),
    }
}

/// A setup of the kind that a cause makes; whether the cause is true of it, [`truth`] says.
pub(crate) fn draw(cause: Cause, rng: &mut fastrand::Rng) -> Setup {
    let mut setup = roomy(rng);
    let each = f64::from(setup.requests / setup.replicas);
    match cause {
        Cause::KvRoom => {
            let at_once = log_between(rng, 8.0, 0.5 * each);
            let tokens = at_once * f64::from(setup.prompt + setup.limit / 2);
            let longest = setup.prompt + setup.limit;
            setup.engine.num_blocks = (tokens / f64::from(BLOCK)) as u32 + longest.div_ceil(BLOCK);
            setup.engine.max_num_seqs = [256, 512][rng.usize(..2)];
        }
        Cause::CapOnRunning => setup.engine.max_num_seqs = log_between(rng, 4.0, 0.5 * each) as u32,
        Cause::Prefill => {
            setup.prompt = log_between(rng, 1000.0, 6000.0) as u32;
            setup.limit = log_between(rng, 4.0, 64.0) as u32;
            setup.longest = 1e6;
        }
        Cause::Arrival => {
            let most = f64::from(setup.requests) / run(&setup).duration;
            setup.rate = Some(most * between(rng, 0.1, 0.6));
            setup.requests = 300;
            setup.engine.max_num_seqs = [64, 256][rng.usize(..2)];
        }
        Cause::SlowClient => {
            if rng.bool() {
                setup = draw([Cause::KvRoom, Cause::CapOnRunning, Cause::Prefill][rng.usize(..3)], rng);
            }
            let run = run(&setup);
            setup.client_us = 1e6 * run.duration / run.events as f64 * between(rng, 1.3, 3.0);
        }
        Cause::StepTime | Cause::Concurrency | Cause::HttpSide | Cause::Undecided => {}
    }
    // A handful of looks at a short run are few metrics, of which nothing is named.
    setup.look_s = setup.look_s.min(run(&setup).duration / 12.0);
    setup
}

/// What came of a run.
pub(crate) struct Ran {
    pub(crate) rows: RunRows,
    pub(crate) duration: f64,
    pub(crate) events: usize,
}

/// Makes the run: arrivals, looks and steps in the order of their times.
pub(crate) fn run(setup: &Setup) -> Ran {
    let mut rng = fastrand::Rng::with_seed(setup.seed);
    let mut engines: Vec<Engine> = (0..setup.replicas)
        .map(|index| Engine::new(EngineConfig { seed: setup.engine.seed + u64::from(index), ..setup.engine }))
        .collect();
    let mut at = 0.0;
    let mut sent = Vec::new();
    let (mut events, mut samples): (Vec<(usize, Event)>, Vec<Sample>) = (Vec::new(), Vec::new());
    let mut looked = 0.0;
    let mut made = Vec::new();
    for id in 0..setup.requests {
        while looked < at {
            look(&mut engines, looked, &mut events, &mut made, &mut samples);
            looked += setup.look_s;
        }
        let now = Time::from_micros((at * 1e6) as u64);
        let index = (id % setup.replicas) as usize;
        engines[index].step(now, &mut made);
        events.extend(made.drain(..).map(|event| (index, event)));
        let own = 8.0 + rng.f64() * setup.longest;
        let submission = Submission {
            id: RequestId(u64::from(id)),
            prompt_tokens: setup.prompt,
            output_tokens: (own as u32).min(setup.limit),
            sequences: 1,
            block_hashes: (0..u64::from((setup.prompt + setup.limit) / BLOCK))
                .map(|block| u64::from(id) << 32 | block)
                .collect(),
        };
        engines[index].submit(now, &submission).unwrap();
        sent.push(now.as_micros());
        if let Some(rate) = setup.rate {
            at += -(1.0 - rng.f64()).ln() / rate;
        }
    }
    while engines.iter().any(|engine| engine.next_step_at().is_some()) {
        look(&mut engines, looked, &mut events, &mut made, &mut samples);
        looked += setup.look_s;
    }
    look(&mut engines, looked, &mut events, &mut made, &mut samples);
    events.sort_by_key(|(_, event)| event.at);
    let (records, lag_p99_us) = read(setup, &sent, &events);
    let duration = records.iter().map(|record| record.sent_us + record.end_us).max().unwrap() as f64 / 1e6;
    // A client that is still reading goes on looking.
    while looked < duration {
        looked += setup.look_s;
        look(&mut engines, looked, &mut events, &mut made, &mut samples);
    }
    let events = events.len();
    let rows = RunRows { head: Some(head(setup)), records, samples, end: Some(RunEnd { lag_p99_us }) };
    Ran { rows, duration, events }
}

fn head(setup: &Setup) -> RunHead {
    RunHead {
        arm: Some("arm".to_owned()),
        epoch: 0,
        block: None,
        start: None,
        load: Load {
            offered: setup.rate.map_or(Offered::Unlimited, Offered::Rate),
            num_prompts: setup.requests,
            dataset: None,
            input_len: Some(setup.prompt),
            output_len: Some(setup.limit),
            seed: setup.seed,
            ..Load::default()
        },
        model: "simulated".to_owned(),
        gpus: Some(setup.replicas),
        replicas: Some(setup.replicas),
        max_num_seqs: Some(setup.engine.max_num_seqs),
        simulated: true,
        ..RunHead::default()
    }
}

fn look(
    engines: &mut [Engine],
    at: f64,
    events: &mut Vec<(usize, Event)>,
    made: &mut Vec<Event>,
    samples: &mut Vec<Sample>,
) {
    let now = Time::from_micros((at * 1e6) as u64);
    for (index, engine) in engines.iter_mut().enumerate() {
        engine.step(now, made);
        events.extend(made.drain(..).map(|event| (index, event)));
        let sums = engine.counters();
        samples.push(Sample {
            backend: format!("server-{index}"),
            at_us: now.as_micros(),
            running: Some(engine.running() as f64),
            waiting: Some(engine.waiting() as f64),
            kv_usage: Some(engine.kv_usage()),
            preemptions: Some(sums.preemptions as f64),
            prefix_queries: Some(sums.prefix_queries as f64),
            prefix_hits: Some(sums.prefix_hits as f64),
            prompt_tokens: Some(sums.prompt_tokens as f64),
            generation_tokens: Some(sums.generation_tokens as f64),
            steps: Some(sums.steps as f64),
            kv_tokens: Some(f64::from(engine.config().num_blocks * engine.config().block_size)),
        });
    }
}

/// The events as the client read them, one after the other, and how late it was at the 99th percentile.
fn read(setup: &Setup, sent: &[u64], events: &[(usize, Event)]) -> (Vec<Record>, u64) {
    let mut records: Vec<Record> = (0..setup.requests).map(|id| Record::unsent(id, 0)).collect();
    let mut last = vec![0_u64; records.len()];
    let mut free = 0.0_f64;
    let mut late = Vec::with_capacity(events.len());
    for (server, event) in events {
        free = free.max(event.at.as_micros() as f64) + setup.client_us;
        late.push(free as u64 - event.at.as_micros());
        let id = event.id.0 as usize;
        let (record, at) = (&mut records[id], free as u64);
        match record.first_event_us {
            None => {
                record.sent_us = sent[id];
                record.first_event_us = Some(at - sent[id]);
                record.first_token_us = record.first_event_us;
                record.backend = Some(format!("server-{server}"));
                record.prompt_tokens = u64::from(setup.prompt);
            }
            Some(_) => record.gaps_us.push(at - last[id]),
        }
        last[id] = at;
        record.end_us = at - sent[id];
        record.output_tokens = u64::from(event.tokens);
        if event.finished {
            record.outcome = Outcome::Success;
        }
    }
    late.sort_unstable();
    (records, 300 + late.get(late.len() * 99 / 100).copied().unwrap_or(0))
}

/// How much faster a run is with twice of one thing.
pub(crate) struct Gains {
    /// Of what may be named at all: KV room, cap, prefill; the largest first.
    pub(crate) of: [(Cause, f64); 3],
    pub(crate) steps: f64,
}

fn faster(setup: &Setup, change: &dyn Fn(&mut Setup)) -> f64 {
    let mut other = setup.clone();
    change(&mut other);
    run(setup).duration / run(&other).duration
}

pub(crate) fn gains(setup: &Setup) -> Gains {
    let mut of = [
        (Cause::KvRoom, faster(setup, &|setup| setup.engine.num_blocks *= 2)),
        (Cause::CapOnRunning, faster(setup, &|setup| setup.engine.max_num_seqs *= 2)),
        (Cause::Prefill, faster(setup, &|setup| setup.engine.cost.prefill_us /= 2.0)),
    ];
    of.sort_by(|a, b| b.1.total_cmp(&a.1));
    let steps = faster(setup, &|setup| {
        setup.engine.cost.base_us /= 2.0;
        setup.engine.cost.decode_us /= 2.0;
        setup.engine.cost.kv_us /= 2.0;
    });
    Gains { of, steps }
}

/// What limited a run, by what would have helped: none where no one thing stands out.
pub(crate) fn truth(setup: &Setup) -> Option<Cause> {
    if setup.client_us > 0.0 {
        return (faster(setup, &|setup| setup.client_us = 0.0) >= 1.25).then_some(Cause::SlowClient);
    }
    let Gains { of: [(cause, most), (_, second), _], steps } = gains(setup);
    if setup.rate.is_some() {
        let more = faster(setup, &|setup| setup.rate = setup.rate.map(|rate| rate * 2.0));
        return (most.max(steps) < 1.12 && more > 1.4).then_some(Cause::Arrival);
    }
    if most < 1.12 && steps > 1.5 {
        return Some(Cause::StepTime);
    }
    let stands_out = most >= 1.25 && most - second >= 0.1;
    (stands_out && (cause != Cause::Prefill || most > steps)).then_some(cause)
}

/// A setup of no kind: any lengths, any memory, any cap.
pub(crate) fn anything(rng: &mut fastrand::Rng) -> Setup {
    let mut setup = roomy(rng);
    setup.prompt = log_between(rng, 30.0, 3000.0) as u32;
    setup.limit = log_between(rng, 16.0, 500.0) as u32;
    let longest = (setup.prompt + setup.limit).div_ceil(BLOCK);
    setup.engine.num_blocks = log_between(rng, 4.0 * f64::from(longest), 60_000.0) as u32;
    setup.engine.max_num_seqs = log_between(rng, 4.0, 512.0) as u32;
    setup
}
