//! What `config/sim/h200-tp1-qwen7b.toml` gives beside what a real vLLM gave on that GPU. The engine runs in virtual time. The
//! figures to read: `cargo test --release --test h200_profile -- --nocapture`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use forebay_core::clock::Time;
use forebay_lab::rows::record::Record;
use forebay_lab::rows::summary::Summary;
use forebay_lab::rows::table::{aligned, number};
use forebay_sim::engine::{Engine, Event, RequestId, Submission};
use forebay_sim::profile::Profile;

#[path = "published_benchmark/records.rs"]
mod records;

use records::note;

/// A load: so many requests, so many of them at a time on each engine, the next when one ends.
#[derive(Clone, Copy)]
struct Load {
    engines: usize,
    at_a_time: u32,
    requests: u32,
    input: u32,
    output: u32,
    max_num_seqs: Option<u32>,
    kv_tokens: Option<u32>,
}

/// 300 at once, 100 tokens in, 600 out.
const BURST: Load =
    Load { engines: 1, at_a_time: 300, requests: 300, input: 100, output: 600, max_num_seqs: None, kv_tokens: None };

const fn alone(input: u32) -> Load {
    Load { at_a_time: 1, requests: 1, input, output: 16, ..BURST }
}

const fn at_a_time(number: u32) -> Load {
    Load { at_a_time: number, requests: 3 * number, output: 256, ..BURST }
}

/// A figure of a run: its name, what it is, and how far the simulated one may be off as a share.
type Figure = (&'static str, fn(&Summary) -> Option<f64>, f64);

// The shares were set after the fit: a guard against drift, and no claim. Turns of the same server differed by up to 1.6 times.
const TOKENS_PER_S: Figure = ("output tokens/s", |run| Some(run.output_tokens_per_second()), 0.25);
const MEAN_TPOT: Figure = ("mean TPOT ms", |run| run.tpot_ms.mean, 0.25);
const MEDIAN_ITL: Figure = ("median ITL ms", |run| run.itl_ms.p50, 0.25);
const P99_TTFT: Figure = ("P99 TTFT ms", |run| run.ttft_ms.p99, 0.25);
// The server's HTTP process is not simulated: it takes 10 ms for one request and 0.1 to 0.5 s for 300 at once.
const MEDIAN_TTFT: Figure = ("median TTFT ms", |run| run.ttft_ms.p50, 0.6);

/// A load in words and in numbers, and what was measured under it.
type Row = (&'static str, Load, &'static [(Figure, f64)]);

/// What was measured. Bursts on one and on two servers: six and eighteen turns through Forebay, whose rows are in
/// `benches/results/two-h200`; their TPOT is the median over requests, which all have the same length. The rest: one turn, or the mean
/// of two, straight to one server by `vllm bench serve`, on another day and sampled by top-p; those rows were not kept. Four such
/// bursts gave 13,219 to 21,918 output tokens/s, where the six turns here gave 15,780.
#[rustfmt::skip]
const MEASURED: [Row; 15] = [
    ("100 in, 256 out, 1 at a time", at_a_time(1), &[(MEAN_TPOT, 4.79)]),
    ("8 at a time", at_a_time(8), &[(MEAN_TPOT, 5.07)]),
    ("32", at_a_time(32), &[(MEAN_TPOT, 5.27)]),
    ("64", at_a_time(64), &[(MEAN_TPOT, 5.59)]),
    ("128", at_a_time(128), &[(MEAN_TPOT, 6.44)]),
    ("256", at_a_time(256), &[(MEAN_TPOT, 11.5)]),
    ("alone, 100 in", alone(100), &[(MEDIAN_TTFT, 17.0)]),
    ("512", alone(512), &[(MEDIAN_TTFT, 21.4)]),
    ("2048", alone(2048), &[(MEDIAN_TTFT, 60.0)]),
    ("8192", alone(8192), &[(MEDIAN_TTFT, 228.0)]),
    ("300 at once, 600 out", BURST, &[(TOKENS_PER_S, 15780.0), (MEDIAN_TTFT, 608.0), (P99_TTFT, 892.0), (MEAN_TPOT, 18.2)]),
    ("two servers, half each", Load { engines: 2, ..BURST }, &[(TOKENS_PER_S, 29262.0), (MEDIAN_TTFT, 376.0), (P99_TTFT, 514.0), (MEAN_TPOT, 9.29)]),
    ("KV room for 80,000", Load { kv_tokens: Some(80_000), ..BURST }, &[(TOKENS_PER_S, 14496.0), (MEDIAN_TTFT, 916.0), (P99_TTFT, 1017.0), (MEAN_TPOT, 13.9), (MEDIAN_ITL, 8.7)]),
    ("KV room for 25,600", Load { kv_tokens: Some(25_600), ..BURST }, &[(TOKENS_PER_S, 8366.0), (MEDIAN_TTFT, 777.0), (P99_TTFT, 15050.0), (MEAN_TPOT, 14.75), (MEDIAN_ITL, 5.85)]),
    ("--max-num-seqs 50", Load { max_num_seqs: Some(50), ..BURST }, &[(TOKENS_PER_S, 7063.0), (MEDIAN_TTFT, 11555.0), (P99_TTFT, 21420.0), (MEAN_TPOT, 6.8), (MEDIAN_ITL, 6.1)]),
];

const MEDIAN_TPOT: Figure = ("median TPOT ms", |run| run.tpot_ms.p50, 0.25);

/// Measured after the fit and not in it, printed only: means of twelve, three and three turns on another such machine
/// (`benches/results/one-h200`). Between its own turns and within them, a server there was up to 1.5 times slower than itself.
#[rustfmt::skip]
const AFTERWARDS: [Row; 3] = [
    ("afterwards: 300 at once", BURST, &[(TOKENS_PER_S, 14278.0), (MEDIAN_TTFT, 634.5), (P99_TTFT, 868.2), (MEDIAN_TPOT, 19.9), (MEDIAN_ITL, 19.5)]),
    ("afterwards: KV room for 25,600", Load { kv_tokens: Some(25_600), ..BURST }, &[(TOKENS_PER_S, 8608.0), (MEDIAN_TTFT, 597.0), (P99_TTFT, 14885.0), (MEDIAN_TPOT, 12.1), (MEDIAN_ITL, 5.38)]),
    ("afterwards: --max-num-seqs 50", Load { max_num_seqs: Some(50), ..BURST }, &[(TOKENS_PER_S, 5644.0), (MEDIAN_TTFT, 13605.0), (P99_TTFT, 26775.0), (MEDIAN_TPOT, 8.48), (MEDIAN_ITL, 8.71)]),
];

fn run(mut profile: Profile, load: Load) -> Summary {
    profile.scheduler.max_num_seqs = load.max_num_seqs.unwrap_or(profile.scheduler.max_num_seqs);
    profile.kv.tokens = load.kv_tokens.unwrap_or(profile.kv.tokens);
    let mut records: Vec<Record> = (0..load.requests).map(|id| Record::unsent(id, 0)).collect();
    for part in 0..load.engines {
        let mut engine = Engine::new(profile.engine(part as u64));
        let mut waiting = (0..load.requests).skip(part).step_by(load.engines);
        let mut submit = |engine: &mut Engine, records: &mut [Record], now: Time| {
            let Some(id) = waiting.next() else { return };
            records[id as usize].sent_us = now.as_micros();
            // No two begin alike, but a preempted one may find blocks of its own.
            let blocks = (load.input + load.output) / 16;
            let block_hashes = (0..u64::from(blocks)).map(|block| u64::from(id) << 32 | block).collect();
            let id = RequestId(u64::from(id));
            let (prompt_tokens, output_tokens) = (load.input, load.output);
            engine.submit(now, &Submission { id, prompt_tokens, output_tokens, sequences: 1, block_hashes }).unwrap();
        };
        for _ in 0..load.at_a_time {
            submit(&mut engine, &mut records, Time::ZERO);
        }
        let mut events: Vec<Event> = Vec::new();
        while let Some(now) = engine.next_step_at() {
            engine.step(now, &mut events);
            for event in events.drain(..) {
                note(&mut records[event.id.0 as usize], &event);
                if event.finished {
                    submit(&mut engine, &mut records, event.at);
                }
            }
        }
    }
    Summary::of(&records)
}

#[test]
fn the_profile_gives_what_was_measured() {
    let profile = Profile::load("h200-tp1-qwen7b").unwrap();
    let mut table = vec![["load", "figure", "measured", "simulated", "off"].map(str::to_owned).to_vec()];
    let mut wrong = Vec::new();
    let rows = MEASURED.iter().map(|row| (row, true)).chain(AFTERWARDS.iter().map(|row| (row, false)));
    for ((what, load, figures), held) in rows {
        let run = run(profile.clone(), *load);
        for ((name, of, tolerance), measured) in *figures {
            let simulated = of(&run).unwrap();
            let off = simulated / measured - 1.0;
            table.push(vec![
                (*what).to_owned(),
                (*name).to_owned(),
                number(Some(*measured), 2),
                number(Some(simulated), 2),
                format!("{:+.0} %", off * 100.0),
            ]);
            if held && off.abs() > *tolerance {
                wrong.push(format!("{what}: {name} is {:+.0} % off", off * 100.0));
            }
        }
    }
    println!("{}", aligned(&table));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
