//! What `config/sim/h200-tp1-qwen7b.toml` gives beside what a real vLLM gave on that GPU. The engine runs in virtual time. The
//! figures to read: `cargo test --release --test h200_profile -- --nocapture`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use forebay::bench::table::{aligned, number};
use forebay::clock::Time;
use forebay::sim::engine::{Engine, Event, RequestId, Submission};
use forebay::sim::profile::Profile;

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

/// Figures of a run; milliseconds but for the throughput.
#[derive(Clone, Copy)]
enum Figure {
    OutputTokensPerSecond,
    MedianTtft,
    P99Ttft,
    MeanTpot,
    MedianItl,
}

impl Figure {
    /// How far it may be off, as a share, set after the fit: a guard against drift, and no claim. Turns of the same server differed by up to 1.6 times. The server's HTTP process is not
    /// simulated: it takes 10 ms for one request and 0.1 to 0.5 s for 300 at once, most of which is in the median of TTFT.
    fn tolerance(self) -> f64 {
        match self {
            MedianTtft => 0.6,
            OutputTokensPerSecond | P99Ttft | MeanTpot | MedianItl => 0.25,
        }
    }
}

use Figure::{MeanTpot, MedianItl, MedianTtft, OutputTokensPerSecond, P99Ttft};

/// A load in words and in numbers, and what was measured under it.
type Row = (&'static str, Load, &'static [(Figure, f64)]);

/// What was measured. Bursts on one and on two servers: six and eighteen turns through Forebay, whose rows are in
/// `benches/results/two-h200`; their TPOT is the median over requests, which all have the same length. The rest: one turn, or the mean
/// of two, straight to one server by `vllm bench serve`, on another day and sampled by top-p; those rows were not kept. Four such
/// bursts gave 13,219 to 21,918 output tokens/s, where the six turns here gave 15,780.
#[rustfmt::skip]
const MEASURED: [Row; 15] = [
    ("100 in, 256 out, 1 at a time", at_a_time(1), &[(MeanTpot, 4.79)]),
    ("8 at a time", at_a_time(8), &[(MeanTpot, 5.07)]),
    ("32", at_a_time(32), &[(MeanTpot, 5.27)]),
    ("64", at_a_time(64), &[(MeanTpot, 5.59)]),
    ("128", at_a_time(128), &[(MeanTpot, 6.44)]),
    ("256", at_a_time(256), &[(MeanTpot, 11.5)]),
    ("alone, 100 in", alone(100), &[(MedianTtft, 17.0)]),
    ("512", alone(512), &[(MedianTtft, 21.4)]),
    ("2048", alone(2048), &[(MedianTtft, 60.0)]),
    ("8192", alone(8192), &[(MedianTtft, 228.0)]),
    ("300 at once, 600 out", BURST, &[(OutputTokensPerSecond, 15780.0), (MedianTtft, 608.0), (P99Ttft, 892.0), (MeanTpot, 18.2)]),
    ("two servers, half each", Load { engines: 2, ..BURST }, &[(OutputTokensPerSecond, 29262.0), (MedianTtft, 376.0), (P99Ttft, 514.0), (MeanTpot, 9.29)]),
    ("KV room for 80,000", Load { kv_tokens: Some(80_000), ..BURST }, &[(OutputTokensPerSecond, 14496.0), (MedianTtft, 916.0), (P99Ttft, 1017.0), (MeanTpot, 13.9), (MedianItl, 8.7)]),
    ("KV room for 25,600", Load { kv_tokens: Some(25_600), ..BURST }, &[(OutputTokensPerSecond, 8366.0), (MedianTtft, 777.0), (P99Ttft, 15050.0), (MeanTpot, 14.75), (MedianItl, 5.85)]),
    ("--max-num-seqs 50", Load { max_num_seqs: Some(50), ..BURST }, &[(OutputTokensPerSecond, 7063.0), (MedianTtft, 11555.0), (P99Ttft, 21420.0), (MeanTpot, 6.8), (MedianItl, 6.1)]),
];

struct Run {
    ttft_ms: Vec<f64>,
    tpot_ms: Vec<f64>,
    gaps_ms: Vec<f64>,
    tokens_per_s: f64,
}

fn run(mut profile: Profile, load: Load) -> Run {
    profile.scheduler.max_num_seqs = load.max_num_seqs.unwrap_or(profile.scheduler.max_num_seqs);
    profile.kv.tokens = load.kv_tokens.unwrap_or(profile.kv.tokens);
    let (mut times, mut ended) = (vec![Vec::<f64>::new(); load.requests as usize], 0.0_f64);
    let mut sent = vec![0.0; load.requests as usize];
    for part in 0..load.engines {
        let mut engine = Engine::new(profile.engine(part as u64));
        let mut waiting = (0..load.requests).skip(part).step_by(load.engines);
        let mut submit = |engine: &mut Engine, now: Time| {
            let Some(id) = waiting.next() else { return };
            sent[id as usize] = ms(now);
            // No two begin alike, but a preempted one may find blocks of its own.
            let blocks = (load.input + load.output) / 16;
            let block_hashes = (0..u64::from(blocks)).map(|block| u64::from(id) << 32 | block).collect();
            let id = RequestId(u64::from(id));
            let (prompt_tokens, output_tokens) = (load.input, load.output);
            engine.submit(now, &Submission { id, prompt_tokens, output_tokens, sequences: 1, block_hashes }).unwrap();
        };
        for _ in 0..load.at_a_time {
            submit(&mut engine, Time::ZERO);
        }
        let mut events: Vec<Event> = Vec::new();
        while let Some(now) = engine.next_step_at() {
            engine.step(now, &mut events);
            for event in events.drain(..) {
                times[event.id.0 as usize].push(ms(event.at));
                ended = ended.max(ms(event.at));
                if event.finished {
                    submit(&mut engine, event.at);
                }
            }
        }
    }
    let gaps = |times: &[f64]| times.windows(2).map(|pair| pair[1] - pair[0]).collect::<Vec<_>>();
    Run {
        ttft_ms: times.iter().zip(&sent).map(|(times, sent)| times[0] - sent).collect(),
        tpot_ms: times.iter().map(|times| (times[times.len() - 1] - times[0]) / (times.len() - 1) as f64).collect(),
        gaps_ms: times.iter().flat_map(|times| gaps(times)).collect(),
        tokens_per_s: f64::from(load.requests * load.output) / ended * 1e3,
    }
}

fn ms(at: Time) -> f64 {
    at.as_micros() as f64 / 1e3
}

fn quantile(mut values: Vec<f64>, share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    values[((values.len() - 1) as f64 * share).round() as usize]
}

#[test]
fn the_profile_gives_what_was_measured() {
    let profile = Profile::load("h200-tp1-qwen7b").unwrap();
    let mut table = vec![["load", "figure", "measured", "simulated", "off"].map(str::to_owned).to_vec()];
    let mut wrong = Vec::new();
    for (what, load, figures) in MEASURED {
        let run = run(profile.clone(), load);
        for (figure, measured) in figures {
            let (name, simulated) = match figure {
                OutputTokensPerSecond => ("output tokens/s", run.tokens_per_s),
                MedianTtft => ("median TTFT ms", quantile(run.ttft_ms.clone(), 0.5)),
                P99Ttft => ("P99 TTFT ms", quantile(run.ttft_ms.clone(), 0.99)),
                MeanTpot => ("mean TPOT ms", run.tpot_ms.iter().sum::<f64>() / run.tpot_ms.len() as f64),
                MedianItl => ("median ITL ms", quantile(run.gaps_ms.clone(), 0.5)),
            };
            let off = simulated / measured - 1.0;
            table.push(vec![
                what.to_owned(),
                name.to_owned(),
                number(Some(*measured), 2),
                number(Some(simulated), 2),
                format!("{:+.0} %", off * 100.0),
            ]);
            if off.abs() > figure.tolerance() {
                wrong.push(format!("{what}: {name} is {:+.0} % off", off * 100.0));
            }
        }
    }
    println!("{}", aligned(&table));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
