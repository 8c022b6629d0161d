//! The six columns of the public benchmark that this project answers, beside what the profiles of `config/sim/` give under the
//! same load: 300 requests at once, 100 tokens in, up to 600 out. The engine runs in virtual time. The figures to read:
//! `cargo test --release --test seed_columns -- --nocapture`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use forebay::bench::record::{Outcome, Record};
use forebay::bench::summary::{Distribution, Summary};
use forebay::bench::table::{aligned, number, seed_rows};
use forebay::clock::{Clock, Time};
use forebay::sim::engine::{Engine, Event, RequestId, Submission};
use forebay::sim::profile::Profile;

const REQUESTS: u32 = 300;
const INPUT: u32 = 100;
const LIMIT: u32 = 600;
/// A measured column is one run; the simulated one is the median of so many, the answers in another order in each.
const SEEDS: u64 = 5;

/// A column as measured: the fourteen rows in the order of `forebay bench`.
struct Column {
    profile: &'static str,
    head: &'static str,
    measured: [f64; 14],
}

#[rustfmt::skip]
const COLUMNS: [Column; 6] = [
    Column { profile: "rtx4090-tp1-qwen7b", head: "S1: 1 GPU", measured: [
        300.0, 48.35, 30000.0, 161719.0, 6.21, 620.52, 3344.91, 3965.41, 1818.40, 34395.81, 48.38, 91.12, 20.70, 10.97] },
    Column { profile: "rtx4090x2-tp1-qwen7b", head: "S3: 2 GPUs, TP1", measured: [
        300.0, 106.97, 30000.0, 162207.0, 2.80, 280.46, 1516.37, 1796.83, 34768.42, 88093.83, 32.72, 86.83, 30.56, 11.50] },
    Column { profile: "rtx4090-tp2-qwen7b", head: "S2: 2 GPUs, TP2", measured: [
        300.0, 35.08, 30000.0, 162191.0, 8.55, 855.28, 4623.98, 5479.26, 2226.99, 3921.81, 54.67, 109.14, 18.29, 9.16] },
    Column { profile: "rtx4090-tp1-llama8b", head: "S1: 1 GPU", measured: [
        300.0, 72.42, 30000.0, 165500.0, 4.14, 414.28, 2285.44, 2699.72, 1934.14, 43966.05, 63.14, 144.73, 15.83, 6.91] },
    Column { profile: "rtx4090x2-tp1-llama8b", head: "S3: 2 GPUs, TP1", measured: [
        300.0, 190.69, 30000.0, 166019.0, 1.57, 157.32, 870.61, 1027.93, 80444.02, 178349.91, 33.33, 96.93, 30.00, 10.31] },
    Column { profile: "rtx4090-tp2-llama8b", head: "S2: 2 GPUs, TP2", measured: [
        300.0, 49.22, 30000.0, 164855.0, 6.10, 609.55, 3349.59, 3959.14, 2450.92, 4586.66, 64.61, 121.51, 15.48, 8.23] },
];

/// How far each row may be off, as a share: throughput and duration 5 %, medians 15 %, P99 30 %.
const TOLERANCE: [f64; 14] = [0.0, 0.05, 0.0, 0.02, 0.05, 0.05, 0.05, 0.05, 0.15, 0.30, 0.15, 0.30, 0.15, 0.30];

/// Rows for which the table also has the least and the most of the simulated runs: duration, output tokens/s, TTFT, TPOT.
const SPREAD_SHOWN: [usize; 6] = [1, 6, 8, 9, 10, 11];

/// Figures that the engine does not give with any sensible profile: profile, row, why. Each must still be off. There are none.
const EXCEPTIONS: &[(&str, &str, &str)] = &[];

/// Runs the load on equal engines, requests dealt to them in turn, and says what a client would have seen.
fn run(profile: &Profile, engines: u64, seed: u64) -> Summary {
    let mut rng = fastrand::Rng::with_seed(seed);
    // Each three-hundredth of the range once: five runs are few, and P99 hangs on the three shortest answers.
    let mut places: Vec<u32> = (0..REQUESTS).collect();
    rng.shuffle(&mut places);
    let mut fleet: Vec<Engine> = (0..engines).map(|index| Engine::new(profile.engine(seed + index))).collect();
    for (id, place) in places.into_iter().enumerate() {
        let drawn = (f64::from(place) + rng.f64()) / f64::from(REQUESTS);
        let request = Submission {
            id: RequestId(id as u64),
            prompt_tokens: INPUT,
            output_tokens: profile.answer_tokens(drawn).min(LIMIT),
            sequences: 1,
            // No two begin alike, but a preempted one may find blocks of its own.
            block_hashes: (0..u64::from((INPUT + LIMIT) / 16)).map(|block| (id as u64) << 32 | block).collect(),
        };
        fleet[id % engines as usize].submit(Time::ZERO, &request).unwrap();
    }
    let mut events = Vec::new();
    for engine in &mut fleet {
        engine.step(Time::from_micros(u64::MAX), &mut events);
    }
    Summary::of(&records(&events))
}

fn records(events: &[Event]) -> Vec<Record> {
    let mut records: Vec<Record> = (0..REQUESTS).map(|id| Record::unsent(id, 0)).collect();
    for event in events {
        let record = &mut records[event.id.0 as usize];
        let at = event.at.as_micros();
        match record.first_event_us {
            None => record.first_event_us = Some(at),
            Some(_) => record.gaps_us.push(at - record.end_us),
        }
        record.end_us = at;
        record.prompt_tokens = u64::from(INPUT);
        record.output_tokens = u64::from(event.tokens);
        if event.finished {
            record.outcome = Outcome::Success;
        }
    }
    records
}

/// Median, least and most of each row over the seeds.
struct Simulated {
    median: [f64; 14],
    least: [f64; 14],
    most: [f64; 14],
}

fn simulate(profile: &Profile, engines: u64) -> Simulated {
    let rows: Vec<[f64; 14]> = (1..=SEEDS)
        .map(|seed| seed_rows(&run(profile, engines, seed)).map(|(_, figure)| figure.parse().unwrap()))
        .collect();
    let at = |share: f64| {
        std::array::from_fn(|row| {
            rows.iter().map(|figures| figures[row]).collect::<Distribution>().quantile(share).unwrap()
        })
    };
    Simulated { median: at(0.5), least: at(0.0), most: at(1.0) }
}

/// Sequences that decoded at once, by Little's law; with the median of TPOT, for the measured table has no mean.
fn decoding(rows: &[f64; 14]) -> String {
    number(Some(rows[6] * rows[10] / 1e3), 0)
}

fn names() -> [&'static str; 14] {
    seed_rows(&Summary::default()).map(|(name, _)| name)
}

fn off(simulated: f64, measured: f64) -> f64 {
    simulated / measured - 1.0
}

/// A model's columns, measured and simulated, and what S4 (two S1 side by side) would give.
fn print(model: &str, columns: &[(&Column, Simulated)], s4: &Simulated) {
    let mut table = vec![vec![model.to_owned()]];
    for (column, _) in columns {
        table[0].extend([column.head.to_owned(), "simulated".to_owned(), "of runs".to_owned()]);
    }
    table[0].push("S4: 2 GPUs, two TP1, simulated".to_owned());
    for (row, name) in names().into_iter().enumerate() {
        let digits = if [0, 2, 3].contains(&row) { 0 } else { 2 };
        let figure = |value: f64| number(Some(value), digits);
        let mut line = vec![name.to_owned()];
        for (column, simulated) in columns {
            let percent = off(simulated.median[row], column.measured[row]) * 100.0;
            let range = format!("{:.0} to {:.0}", simulated.least[row], simulated.most[row]);
            let spread = if SPREAD_SHOWN.contains(&row) { range } else { String::new() };
            line.extend([
                figure(column.measured[row]),
                format!("{} ({percent:+.0} %)", figure(simulated.median[row])),
                spread,
            ]);
        }
        line.push(figure(s4.median[row]));
        table.push(line);
    }
    let mut line = vec!["decoding at once".to_owned()];
    for (column, simulated) in columns {
        line.extend([decoding(&column.measured), decoding(&simulated.median), String::new()]);
    }
    line.push(decoding(&s4.median));
    table.push(line);
    println!("{}", aligned(&table));
}

#[test]
fn each_profile_gives_its_column() {
    let clock = Clock::system();
    let (began, mut virtual_time) = (clock.now(), 0.0);
    let mut wrong = Vec::new();
    for columns in COLUMNS.chunks_exact(3) {
        let profiles: Vec<Profile> = columns.iter().map(|column| Profile::load(column.profile).unwrap()).collect();
        let simulated: Vec<(&Column, Simulated)> =
            columns.iter().zip(&profiles).map(|(column, profile)| (column, simulate(profile, 1))).collect();
        let s4 = simulate(&profiles[0], 2);
        print(&profiles[0].model, &simulated, &s4);
        for (column, simulated) in &simulated {
            virtual_time += simulated.median[1] * SEEDS as f64;
            for (row, name) in names().into_iter().enumerate() {
                let off = off(simulated.median[row], column.measured[row]);
                let excepted = EXCEPTIONS.iter().any(|(profile, row, _)| *profile == column.profile && *row == name);
                if (off.abs() > TOLERANCE[row]) != excepted {
                    wrong.push(format!(
                        "{}: {name} is {:+.1} % off, excepted: {excepted}",
                        column.profile,
                        off * 100.0
                    ));
                }
            }
        }
        virtual_time += s4.median[1] * SEEDS as f64;
    }
    let wall = clock.now().secs_since(began);
    println!("virtual time: {virtual_time:.0} s in {wall:.2} s, {:.0} × as fast as real", virtual_time / wall);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What the profiles of S3 say of themselves: why they have little memory, and not only a limit on sequences.
#[test]
fn a_limit_on_sequences_alone_does_not_give_the_p99_of_tpot_of_s3() {
    for (index, one, limit) in [(1, 0, 50), (4, 3, 29)] {
        let mut profile = Profile::load(COLUMNS[index].profile).unwrap();
        profile.scheduler.max_num_seqs = limit;
        profile.kv = Profile::load(COLUMNS[one].profile).unwrap().kv;
        let simulated = simulate(&profile, 1);
        let off = |row: usize| off(simulated.median[row], COLUMNS[index].measured[row]);
        println!(
            "{} with max_num_seqs {limit} and the memory of S1: duration {:+.0} %, median TTFT {:+.0} %, P99 TTFT {:+.0} %, \
             median TPOT {:+.0} %, P99 TPOT {:+.0} %",
            COLUMNS[index].profile,
            off(1) * 100.0,
            off(8) * 100.0,
            off(9) * 100.0,
            off(10) * 100.0,
            off(11) * 100.0
        );
        assert!(off(1).abs() < 0.2 && off(9).abs() < 0.2, "waves of that many are about as long as measured");
        assert!(off(11) < -0.5, "no sequence is slow enough");
    }
}
