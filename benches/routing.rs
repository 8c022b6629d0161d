//! What one routing decision takes, from facts to a ticket (the gate, a row for every backend, the pick, the dispatch and the
//! ticket's end). `pick` is the policy alone, on rows that are there; `affinity` has a known prompt. Figures of one machine
//! mean little elsewhere: compare with another checkout's binary in turns.

#![expect(clippy::disallowed_methods, reason = "a bench measures real time")]

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion};
use forebay::proxy::request::peek::peek;
use forebay_core::clock::Time;
use forebay_core::routing::affinity::{BLOCK_ENDS, HOLDERS, Index, Mark, Marks, Sent};
use forebay_core::routing::candidate::{Candidate, PoolRatios};
use forebay_core::routing::estimate::{DecayedRatio, TTFT_TAU};
use forebay_core::routing::facts::{ArmIndex, Kind, RequestFacts};
use forebay_core::routing::policy::PolicyName;
use forebay_core::routing::policy::{LeastTokens, Policy, PredictedTtft};
use forebay_core::sample::Sample;
use forebay_core::units::BackendId;
use forebay_fleet::config::model::{Affinity, ArmConfig, BackendConfig, Config, PoolConfig, SessionKey};
use forebay_fleet::membership::controller::{Controller, Settings};
use forebay_fleet::telemetry::Telemetry;
use forebay_fleet::{AttemptOutcome, Pool};
use hdrhistogram::Histogram;

const SIZES: [u16; 4] = [2, 16, 128, 512];
const FACTS: RequestFacts = RequestFacts {
    est_tokens: 500,
    sequences: 1,
    kind: Kind::Stream,
    arm: ArmIndex(0),
    pinned: None,
    marks: Marks::NONE,
};

/// A pool in which every backend has work, samples and a fresh scrape, so that every term of the formula is computed.
fn busy_pool(size: u16, policy: PolicyName) -> (Controller, Arc<Pool>) {
    let backends = (0..size)
        .map(|place| BackendConfig::of(format!("http://10.0.0.1:{}", 1000 + place).parse().expect("a valid URL")))
        .collect();
    let pool = PoolConfig {
        model: "m".to_owned(),
        aliases: Vec::new(),
        policy,
        affinity: Affinity::Session,
        session: SessionKey::Header("x-session-id".to_owned()),
        split_salt: String::new(),
        cross_arm: true,
        arms: vec![ArmConfig { gpus: 1, ..ArmConfig::of("default", backends) }],
        ..PoolConfig::default()
    };
    let controller = Controller::new(Settings::from(&Config::default()), Arc::new(Telemetry::new()));
    controller.apply(&[pool], Time::ZERO);
    let snapshot = controller.fleet().snapshot();
    for backend in snapshot.backends() {
        let sample = Sample {
            running: Some(4.0),
            waiting: Some(1.0),
            kv_usage: Some(0.3),
            kv_capacity_tokens: Some(100_000),
            ..Sample::default()
        };
        backend.load.set_sample(sample, Time::ZERO);
    }
    let pool = Arc::clone(snapshot.pool("m").expect("just applied"));
    let mut rng = fastrand::Rng::with_seed(1);
    let mut now = Time::ZERO;
    for request in 0..u64::from(size) * 8 {
        now = Time::from_micros(request * 100);
        let mut ticket = pool.dispatch(&FACTS, &[], now, &mut rng).expect("nothing is out").ticket;
        if request % 8 < 6 {
            ticket.first_token(now + Duration::from_millis(40));
            ticket.event(now + Duration::from_millis(60), false);
        }
        if request % 2 == 0 {
            ticket.finish(AttemptOutcome::Success, now + Duration::from_millis(80));
        } else {
            std::mem::forget(ticket); // stays in flight for the whole measurement
        }
    }
    black_box(now);
    (controller, pool)
}

fn dispatch(c: &mut Criterion) {
    let mut group = c.benchmark_group("dispatch");
    for policy in [PolicyName::PredictedTtft, PolicyName::LeastTokens] {
        for size in SIZES {
            let (_controller, pool) = busy_pool(size, policy);
            let mut rng = fastrand::Rng::with_seed(7);
            let now = Time::from_micros(900_000);
            group.bench_function(BenchmarkId::new(policy.to_string(), size), |b| {
                b.iter(|| {
                    let dispatched = pool.dispatch(black_box(&FACTS), &[], now, &mut rng).expect("nothing is out");
                    dispatched.ticket.finish(AttemptOutcome::Neutral, now);
                });
            });
        }
    }
    group.finish();
}

/// A request of 4,000 tokens (62 blocks), all of which its session and its prefix are known by.
fn known() -> RequestFacts {
    let block = |end: u32| Mark { key: u64::from(end).wrapping_mul(0x9E37_79B9_7F4A_7C15), tokens: end };
    let prefix: Vec<Mark> = BLOCK_ENDS.iter().filter(|end| **end <= 4_000).map(|end| block(*end)).collect();
    let mut marks = Marks::of(&prefix);
    marks.session = Some(1);
    RequestFacts { est_tokens: 4_000, marks, ..FACTS }
}

/// The dispatch of a request that was sent before to as many backends as are remembered, and the index alone: claiming it,
/// claiming one that is not known, weighing what it evicts, and noting it.
fn affinity(c: &mut Criterion) {
    let mut group = c.benchmark_group("affinity");
    let facts = known();
    for size in [2, 16, 128] {
        let (_controller, pool) = busy_pool(size, PolicyName::PredictedTtft);
        let mut rng = fastrand::Rng::with_seed(7);
        let now = Time::from_micros(900_000);
        let ids: Vec<BackendId> = pool.members().iter().map(|member| member.backend.id).collect();
        for id in ids.iter().take(HOLDERS) {
            let others: Vec<BackendId> = ids.iter().copied().filter(|other| other != id).collect();
            drop(pool.dispatch(&facts, &others, now, &mut rng).expect("nothing is out"));
        }
        group.bench_function(BenchmarkId::new("dispatch", size), |b| {
            b.iter(|| {
                let dispatched = pool.dispatch(black_box(&facts), &[], now, &mut rng).expect("nothing is out");
                dispatched.ticket.finish(AttemptOutcome::Neutral, now);
            });
        });
        let mut rows: Vec<Candidate> =
            (0..size).map(|place| Candidate::idle(BackendId(u32::from(place)), place)).collect();
        let mut index = Index::default();
        index.reserve(usize::from(size));
        let sent = |slot: u16| Sent { backend: BackendId(u32::from(slot)), slot, generated: 0, matched: 0, now };
        for holder in 0..size.min(HOLDERS as u16) {
            index.note(&facts, sent(holder));
        }
        let strange = RequestFacts { marks: facts.marks.clone().within(0xABCD), ..facts.clone() };
        for (name, facts) in [("claim", &facts), ("claim_unknown", &strange)] {
            group.bench_function(BenchmarkId::new(name, size), |b| {
                b.iter(|| index.claim(black_box(facts), black_box(&mut rows), usize::from));
            });
        }
        group.bench_function(BenchmarkId::new("weigh_evictions", size), |b| {
            b.iter(|| index.weigh_evictions(black_box(&facts), black_box(&mut rows), now, usize::from));
        });
        group.bench_function(BenchmarkId::new("note", size), |b| {
            b.iter(|| index.note(black_box(&facts), sent(1)));
        });
        for tokens in [100_000, 2_000_000] {
            (0..usize::from(size)).for_each(|slot| index.set_capacity(slot, tokens));
            let (bytes, keys) = (index.bytes() as f64 / 1e6, index.capacity());
            println!("the index of {size} backends of {tokens} tokens takes {bytes:.1} MB for {keys} keys");
        }
    }
    group.finish();
}

/// A chat request of 16 KB (4,000 tokens) that is read with and without hashing its prompt.
fn hashing(c: &mut Criterion) {
    let words = "one two\\nthree ".repeat((16 << 10) / 15);
    let body = format!(
        "{{\"model\": \"tiny\", \"messages\": [{{\"role\": \"user\", \"content\": \"{words}\"}}], \"max_tokens\": 8, \
         \"stream\": true}}"
    );
    for (name, seed) in [("affinity/peek_16_kb_without_hashing", None), ("affinity/peek_16_kb_with_hashing", Some(1))] {
        c.bench_function(name, |b| b.iter(|| peek(black_box(body.as_bytes()), Some("user"), seed)));
    }
}

fn pick(c: &mut Criterion) {
    let mut group = c.benchmark_group("pick");
    for size in SIZES {
        let mut rng = fastrand::Rng::with_seed(7);
        let mut rows: Vec<Candidate> = (0..size)
            .map(|place| Candidate {
                decoding: rng.u32(..40),
                prefilling: rng.u32(..4),
                queued_tokens: rng.u64(..3000),
                kv_capacity: Some(100_000),
                ..Candidate::idle(BackendId(u32::from(place)), place)
            })
            .collect();
        PoolRatios::of(&rows).fill(&mut rows);
        let policies: [(&str, &dyn Policy); 2] = [("predicted_ttft", &PredictedTtft), ("least_tokens", &LeastTokens)];
        for (name, policy) in policies {
            group.bench_function(BenchmarkId::new(name, size), |b| {
                b.iter(|| policy.pick(black_box(&rows), &FACTS, Time::ZERO, &mut rng));
            });
        }
    }
    group.finish();
}

/// One event of one stream, which takes its pool's mutex: alone, and while another thread's stream of the pool does nothing else.
fn event(c: &mut Criterion) {
    let (_controller, pool) = busy_pool(16, PolicyName::PredictedTtft);
    let mut rng = fastrand::Rng::with_seed(7);
    let mut now = Time::from_micros(900_000);
    let mut streaming = || {
        let mut ticket = pool.dispatch(&FACTS, &[], now, &mut rng).expect("nothing is out").ticket;
        ticket.first_token(now);
        ticket
    };
    let (mut ticket, mut other) = (streaming(), streaming());
    let mut one = |b: &mut criterion::Bencher<'_>| {
        b.iter(|| {
            now = now + Duration::from_micros(20);
            ticket.event(now, false);
        });
    };
    c.bench_function("event/alone", &mut one);
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                other.event(Time::from_micros(900_000), false);
            }
        });
        c.bench_function("event/against_another_thread", &mut one);
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}

/// Eight threads that do nothing but dispatch on one pool of 16: criterion's time is that of one decision (its inverse: decisions
/// a second of them all); the line before it says how long one takes with its wait for the pool's mutex in it.
fn contention(c: &mut Criterion) {
    for threads in [1_u64, 8] {
        let (_controller, pool) = busy_pool(16, PolicyName::PredictedTtft);
        let mut waits = Histogram::<u64>::new(3).expect("three digits are valid");
        c.bench_function(&format!("contention/{threads}_threads"), |b| {
            b.iter_custom(|decisions| {
                let started = Instant::now();
                let each: Vec<Histogram<u64>> = std::thread::scope(|scope| {
                    let running: Vec<_> = (0..threads)
                        .map(|seed| {
                            scope.spawn({
                                let pool = &pool;
                                move || decide(pool, seed, decisions.div_ceil(threads))
                            })
                        })
                        .collect();
                    running.into_iter().map(|thread| thread.join().expect("no decision panics")).collect()
                });
                let took = started.elapsed();
                each.iter().for_each(|one| waits.add(one).expect("made alike"));
                took
            });
        });
        let us = |quantile: f64| waits.value_at_quantile(quantile) as f64 / 1e3;
        println!(
            "one decision among {threads} threads: P50 {:.2} us, P99 {:.2} us, longest {:.0} us",
            us(0.5),
            us(0.99),
            us(1.0)
        );
    }
}

/// So many decisions, each with its end; how long each took, in nanoseconds.
fn decide(pool: &Pool, seed: u64, decisions: u64) -> Histogram<u64> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let now = Time::from_micros(900_000);
    let mut times = Histogram::new(3).expect("three digits are valid");
    for _ in 0..decisions {
        let started = Instant::now();
        let dispatched = pool.dispatch(&FACTS, &[], now, &mut rng).expect("nothing is out");
        times.record(started.elapsed().as_nanos() as u64).expect("it grows by itself");
        dispatched.ticket.finish(AttemptOutcome::Neutral, now);
    }
    times
}

/// One observation of an estimator, and its value as of a moment.
fn estimator(c: &mut Criterion) {
    let mut ratio = DecayedRatio::default();
    let mut now = Time::ZERO;
    c.bench_function("estimator/observe", |b| {
        b.iter(|| {
            now = now + Duration::from_millis(1);
            ratio.observe(black_box(0.2), 0.1, now, TTFT_TAU);
        });
    });
    c.bench_function("estimator/read", |b| b.iter(|| black_box(&ratio).read(now, TTFT_TAU).ratio(1.0, 1.0)));
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    dispatch(&mut criterion);
    affinity(&mut criterion);
    hashing(&mut criterion);
    pick(&mut criterion);
    event(&mut criterion);
    estimator(&mut criterion);
    contention(&mut criterion);
    criterion.final_summary();
}
