//! A hundred simulated runs a cause, each diagnosed twice: with looks at the servers, and from its table alone. The cause must be
//! named in 95 of 100, and what is not named must be undecided.

use std::fmt::Write;
use std::thread;

use forebay_lab::diagnosis::{Cause, Diagnosis, Evidence, diagnose};
use forebay_lab::rows::table::aligned;

use super::world::{anything, draw, gains, run, truth};

/// Runs a cause: engines are slow without optimisation, so that a debug build makes a few.
const RUNS: usize = if cfg!(debug_assertions) { 6 } else { 100 };
/// Draws for a run that is what it was drawn for, at most.
const DRAWS: usize = 60;

/// The causes that the simulator's engines can have: a closed loop and a server's HTTP side are not among them.
const DRAWN: [Cause; 6] =
    [Cause::KvRoom, Cause::CapOnRunning, Cause::StepTime, Cause::Prefill, Cause::Arrival, Cause::SlowClient];

/// What became of a cause's runs.
struct Row {
    cause: Cause,
    drawn: usize,
    looked: Vec<Diagnosis>,
    capless: Vec<Diagnosis>,
    table: Vec<Diagnosis>,
    bare: Vec<Diagnosis>,
    wrong: Vec<String>,
}

fn row(cause: Cause, seed: u64) -> Row {
    let mut row = Row {
        cause,
        drawn: 0,
        looked: Vec::new(),
        capless: Vec::new(),
        table: Vec::new(),
        bare: Vec::new(),
        wrong: Vec::new(),
    };
    let mut rng = fastrand::Rng::with_seed(seed ^ (cause as u64) << 32);
    while row.looked.len() < RUNS {
        assert!(row.drawn < RUNS * DRAWS, "{cause:?}: too few draws are what they were drawn for");
        row.drawn += 1;
        let setup = draw(cause, &mut rng);
        let named = truth(&setup);
        if named != Some(cause) {
            continue;
        }
        let mut rows = run(&setup).rows;
        let evidence = Evidence::of(&rows, None);
        if let Some(head) = &mut rows.head {
            head.max_num_seqs = None;
        }
        row.capless.push(diagnose(&Evidence::of(&rows, None)));
        let found = diagnose(&evidence);
        if found.cause != cause {
            let mut text = format!("{:?} instead of {cause:?}: {:?}\n", found.cause, found.candidates);
            let _ = writeln!(text, "  {setup:?}");
            for line in &found.evidence {
                let _ = writeln!(text, "  {line}");
            }
            row.wrong.push(text);
        }
        row.looked.push(found);
        let table = evidence.table_alone();
        row.table.push(diagnose(&table));
        row.bare.push(diagnose(&Evidence { lag_p99_ms: None, ..table }));
    }
    row
}

fn matrix(rows: &[Row], of: fn(&Row) -> &[Diagnosis]) -> String {
    let mut table = vec![
        ["of 100 runs".to_owned()]
            .into_iter()
            .chain(Cause::ALL.map(|cause| cause.name().to_owned()))
            .collect::<Vec<_>>(),
    ];
    table[0].push("undecided, the cause among the candidates".to_owned());
    for row in rows {
        let share = |count: usize| format!("{:.0}", count as f64 * 100.0 / of(row).len() as f64);
        let mut line = vec![row.cause.name().to_owned()];
        line.extend(Cause::ALL.map(|cause| share(of(row).iter().filter(|found| found.cause == cause).count())));
        let open = |found: &&Diagnosis| found.cause == Cause::Undecided && found.candidates.contains(&row.cause);
        line.push(share(of(row).iter().filter(open).count()));
        table.push(line);
    }
    aligned(&table)
}

#[test]
fn the_cause_of_a_simulated_run_is_named_and_not_another_one() {
    let seed = seed();
    let rows: Vec<Row> = thread::scope(|scope| {
        let started: Vec<_> = DRAWN.iter().map(|cause| scope.spawn(move || row(*cause, seed))).collect();
        started.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    for row in &rows {
        println!("{}: {} drawn for {RUNS} that are so by what would have helped", row.cause.name(), row.drawn);
        if std::env::var_os("FOREBAY_SEED").is_some() {
            row.wrong.iter().for_each(|text| print!("{text}"));
        }
    }
    println!("\nwith looks at the servers\n{}", matrix(&rows, |row| &row.looked));
    println!("with looks at the servers, --max-num-seqs not known\n{}", matrix(&rows, |row| &row.capless));
    println!("from the table and the load generator's lag\n{}", matrix(&rows, |row| &row.table));
    println!("from the table alone\n{}", matrix(&rows, |row| &row.bare));
    for row in &rows {
        for (what, found) in [("looks", &row.looked), ("looks without the cap", &row.capless)] {
            let right = found.iter().filter(|found| found.cause == row.cause).count();
            assert!(right * 100 >= 95 * RUNS, "{:?} by {what}: {right} of {RUNS}", row.cause);
        }
        for (what, found) in [("the table with lag", &row.table), ("the table", &row.bare)] {
            let honest = found.iter().filter(|found| found.candidates.contains(&row.cause)).count();
            assert!(honest * 100 >= 95 * RUNS, "{:?} by {what}: {honest} of {RUNS}", row.cause);
        }
    }
}

/// Setups of no kind, where several things may matter alike: what is named must be what helps most, or nearly so.
#[test]
fn of_any_run_what_is_named_helps_about_as_much_as_anything() {
    let mut rng = fastrand::Rng::with_seed(seed() ^ 0xa11);
    let (mut named, mut best, mut wrong) = (0, 0, Vec::new());
    for _ in 0..2 * RUNS {
        let setup = anything(&mut rng);
        let found = diagnose(&Evidence::of(&run(&setup).rows, None));
        if found.cause == Cause::Undecided {
            continue;
        }
        named += 1;
        let gains = gains(&setup);
        let most = gains.of[0];
        let of = gains.of.iter().find(|(cause, _)| *cause == found.cause).map(|(_, gain)| *gain);
        let right = of.map_or(most.1 < 1.25, |gain| gain >= most.1 - 0.08);
        best += usize::from(of.map_or(most.1 < 1.15, |gain| gain >= most.1));
        if !right {
            wrong.push(format!(
                "{:?}, of {:?} {:?}\n  {setup:?}\n  {:#?}",
                found.cause, gains.of, gains.steps, found.evidence
            ));
        }
    }
    let all = 2 * RUNS;
    println!(
        "of {all} runs of any kind a cause was named in {named}, the one that helps most in {best}, another in {}",
        wrong.len()
    );
    if std::env::var_os("FOREBAY_SEED").is_some() {
        wrong.iter().for_each(|text| println!("wrong: {text}"));
    }
    assert!(wrong.len() * 100 <= 5 * all, "{} of {all}", wrong.len());
}

fn seed() -> u64 {
    std::env::var("FOREBAY_SEED").map_or(20_261_124, |seed| seed.parse().unwrap())
}
