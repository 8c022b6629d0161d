//! Where the better use of two RTX 4090 changes with the load, by simulation: one TP=2 instance (S2) against two TP=1 replicas
//! (S4) and against one alone (S1), over a sweep of rates. Profiles fitted to a benchmark at one load say least about others,
//! so this is a prediction; what is tested is that the comparison finds the same change whatever the seed.

use forebay_lab::compare::figure::Figure;
use forebay_lab::compare::model::Comparison;
use forebay_lab::compare::verdict::Crossing;
use forebay_lab::compare::{Options, compare, format};
use forebay_lab::rows::row_file::RunRows;
use forebay_sim::profile::Profile;

use super::world::{Setup, run};

/// The sweep: requests a second. A step is from one to the next.
const RATES: [f64; 12] = [0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0];
/// Engines are slow without optimisation, so that a debug build makes fewer sweeps, of less.
const SMALL: bool = cfg!(debug_assertions);
const SEEDS: u64 = if SMALL { 2 } else { 5 };
const MODELS: &[&str] = if SMALL { &["qwen7b"] } else { &["qwen7b", "llama8b"] };
const EPOCHS: u32 = 6;
const REQUESTS: u32 = if SMALL { 150 } else { 300 };
const FIGURES: [Figure; 5] =
    [Figure::TpotMedian, Figure::E2eMedian, Figure::TtftMedian, Figure::TtftP95, Figure::OutputTokensPerGpu];

const ARMS: &[(&str, &str, u32)] = if SMALL { ALL.split_at(2).0 } else { &ALL };
const ALL: [(&str, &str, u32); 3] = [("S2", "rtx4090-tp2", 1), ("S4", "rtx4090-tp1", 2), ("S1", "rtx4090-tp1", 1)];

fn rows(arm: (&str, &str, u32), model: &str, rate: f64, epoch: u32, seed: u64) -> RunRows {
    let (name, kind, replicas) = arm;
    let profile = Profile::load(&format!("{kind}-{model}")).unwrap();
    let seed = seed * 1000 + u64::from(epoch);
    let setup = Setup {
        engine: profile.engine(seed),
        replicas,
        requests: REQUESTS,
        prompt: 100,
        limit: 600,
        longest: f64::from(profile.answers.longest),
        rate: Some(rate),
        client_us: 0.0,
        look_s: 5.0,
        seed,
    };
    let mut rows = run(&setup).rows;
    let head = rows.head.as_mut().unwrap();
    (head.arm, head.gpus) = (Some(name.to_owned()), Some(profile.gpus * replicas));
    // The arms in turns, each run on a start of its own.
    let turn = epoch * ALL.len() as u32 + ALL.iter().position(|one| one.0 == name).unwrap() as u32;
    (head.epoch, head.start) = (turn, Some(turn));
    for record in &mut rows.records {
        record.epoch = epoch;
    }
    rows
}

fn sweep(model: &str, seed: u64) -> Comparison {
    let mut runs = Vec::new();
    for arm in ARMS {
        for rate in RATES {
            runs.extend((0..EPOCHS).map(|epoch| rows(*arm, model, rate, epoch, seed)));
        }
    }
    compare(&runs, &Options { seed, ..Options::default() }).unwrap()
}

/// The place in the sweep of a load: 1.5 is half way from the second rate to the third.
fn place(load: f64) -> f64 {
    let above = RATES.partition_point(|rate| *rate < load).clamp(1, RATES.len() - 1);
    (above - 1) as f64 + (load - RATES[above - 1]) / (RATES[above] - RATES[above - 1])
}

#[test]
fn the_load_at_which_the_better_of_two_arms_changes_is_the_same_over_five_seeds() {
    for model in MODELS {
        let sweeps: Vec<Comparison> = (1..=SEEDS).map(|seed| sweep(model, seed)).collect();
        for (arm, ..) in &ARMS[1..] {
            for figure in FIGURES {
                println!("{model}, {arm} beside S2, {}:", figure.name());
                let mut places = Vec::new();
                for comparison in &sweeps {
                    let found = comparison.crossovers.iter().filter(|one| one.figure == figure && one.arm == **arm);
                    for crossover in found {
                        println!("  {}", format::crossover(crossover));
                        if let Crossing::At { load, .. } = &crossover.found {
                            places.push(place(*load));
                        }
                    }
                }
                // The change that the question is about: which answers sooner once it has begun, and which is done sooner.
                if *arm == "S4" && [Figure::TpotMedian, Figure::E2eMedian].contains(&figure) {
                    places.sort_by(f64::total_cmp);
                    let spread = places.last().unwrap() - places[0];
                    println!("  at steps {places:.1?} of the sweep, over {SEEDS} seeds");
                    assert_eq!(places.len(), SEEDS as usize, "{model}: found once for each seed");
                    let middle = places[places.len() / 2];
                    assert!(places.iter().all(|place| (place - middle).abs() <= 1.0), "{model}: {spread} steps apart");
                }
            }
        }
    }
}
