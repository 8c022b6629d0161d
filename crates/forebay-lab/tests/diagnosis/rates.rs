//! How often a cause is named, and how often wrongly, of runs whose settings are drawn by seed.

use std::collections::BTreeMap;
use std::thread;

use forebay_lab::diagnosis::{Cause, Diagnosis, Evidence, diagnose};
use forebay_lab::rows::table::aligned;

use super::engine::run;
use super::setup::{KINDS, Kind, Setup};
use super::truth::{gain, wrong};

fn full() -> bool {
    std::env::var("FOREBAY_SIZE").is_ok_and(|size| size == "full")
}

/// Runs of each kind of load.
fn runs() -> usize {
    if full() { 2000 } else { 300 }
}

fn seed() -> u64 {
    std::env::var("FOREBAY_SEED").map_or(20_261_130, |seed| seed.parse().unwrap())
}

struct Judged {
    named: Cause,
    wrong: Option<String>,
}

fn judge(setup: &Setup, say: bool) -> (Diagnosis, Judged) {
    let found = diagnose(&Evidence::of(&run(setup).rows, None));
    let wrong = (found.cause != Cause::Undecided).then(|| wrong(setup, found.cause)).flatten();
    if say && let Some(why) = &wrong {
        println!("{}: {why}\n  {setup:?}\n  {found:#?}", found.cause.name());
    }
    if say && found.cause == Cause::Undecided && std::env::var_os("FOREBAY_OPEN").is_some() {
        let mut text = format!("OPEN {setup:?}\n  {found:#?}\n");
        for cause in super::truth::TRIED {
            text.push_str(&format!("    {}: {:.2}\n", cause.name(), gain(setup, cause)));
        }
        print!("{text}");
    }
    let judged = Judged { named: found.cause, wrong };
    (found, judged)
}

fn kind(kind: Kind, say: bool) -> Vec<Judged> {
    let threads = 2;
    let part = |thread: usize| {
        let mut rng = fastrand::Rng::with_seed(seed() ^ ((kind as u64) << 40) ^ ((thread as u64) << 32));
        (0..runs() / threads).map(|_| judge(&Setup::draw(kind, &mut rng), say).1).collect::<Vec<_>>()
    };
    thread::scope(|scope| {
        let started: Vec<_> = (0..threads).map(|thread| scope.spawn(move || part(thread))).collect();
        started.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    })
}

#[test]
fn of_what_is_named_at_most_one_in_fifty_would_not_have_helped() {
    let say = std::env::var_os("FOREBAY_SEED").is_some();
    let mut table = vec![["load", "cause", "named", "wrong"].map(str::to_owned).to_vec()];
    let mut failures = Vec::new();
    for one in KINDS {
        let judged = kind(one, say);
        let mut by_cause: BTreeMap<Cause, (usize, usize)> = BTreeMap::new();
        for judged in &judged {
            let row = by_cause.entry(judged.named).or_default();
            row.0 += 1;
            row.1 += usize::from(judged.wrong.is_some());
        }
        for (cause, (named, wrong)) in &by_cause {
            table.push(vec![format!("{one:?}"), cause.name().to_owned(), named.to_string(), wrong.to_string()]);
        }
        let named = judged.iter().filter(|judged| judged.named != Cause::Undecided).count();
        let wrong = judged.iter().filter(|judged| judged.wrong.is_some()).count();
        table.push(vec![
            format!("{one:?}"),
            "all".to_owned(),
            format!("{named} of {}", judged.len()),
            wrong.to_string(),
        ]);
        if named * 100 < 60 * judged.len() || named < 150 || wrong * 100 > 2 * named {
            failures.push(format!("{one:?}: {named} named of {}, {wrong} of them wrong", judged.len()));
        }
    }
    println!("{}", aligned(&table));
    assert!(failures.is_empty(), "{failures:?}");
}
