//! What a run found: tables for the terminal, Markdown and JSON, and whether Forebay's targets are met.

use std::fmt::Write as _;
use std::fs;

use serde_json::{Value, json};

use super::Fallible;
use super::figures::{Compared, Table};
use super::options::{Name, Options};
use super::works::{Against, Target};

/// The most that Forebay's figure may be times that of an earlier Forebay, where a figure has a target.
const TO_BASE: f64 = 1.05;

/// A run that is over.
pub(super) struct Report<'a> {
    pub(super) options: &'a Options,
    /// Rounds that were run.
    pub(super) rounds: u32,
    /// Who took part, with its version.
    pub(super) contenders: Vec<(Name, String)>,
    pub(super) tables: Vec<Table>,
    /// What failed, in words.
    pub(super) failed: Vec<String>,
}

/// A number with three significant digits.
pub(super) fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

/// The tables for a terminal.
pub(super) fn text(report: &Report<'_>) -> String {
    let mut out = String::new();
    for table in report.tables.iter().filter(|table| table.names().next().is_some()) {
        let _ = writeln!(out, "\n{}: {}", table.work, table.figure.what);
        for row in rows(table) {
            let [name, median, least, most, against, interval, base] = row;
            let _ = writeln!(out, "  {name:10} {median:>9} {least:>9} {most:>9}  {against:>9}  {interval:20} {base}");
        }
    }
    for verdict in verdicts(report) {
        let _ = writeln!(out, "{}", verdict.1);
    }
    for failed in &report.failed {
        let _ = writeln!(out, "failed: {failed}");
    }
    out
}

/// The header and the rows of one table.
fn rows(table: &Table) -> Vec<[String; 7]> {
    let (sign, other) = match (table.figure.against, table.spread(Name::Direct)) {
        (Against::Ratio, _) => ("÷", Name::Nginx),
        (Against::Difference, Some(_)) => ("−", Name::Direct),
        (Against::Difference, None) => ("−", Name::Nginx),
    };
    let titles = ["", "median", "least", "most", &format!("{sign} {other}"), "95 % interval", &format!("{sign} base")];
    let mut rows = vec![titles.map(str::to_owned)];
    if table.spread(Name::Base).is_none() {
        rows[0][6].clear();
    }
    for name in table.names() {
        let Some(spread) = table.spread(name) else { continue };
        let against = table.against(name, other).filter(|_| name != other);
        let base = table.against(name, Name::Base).filter(|_| name == Name::Forebay);
        rows.push([
            name.to_string(),
            number(spread.median),
            number(spread.least),
            number(spread.most),
            against.map_or_else(String::new, |compared| number(compared.middle)),
            against.and_then(interval).unwrap_or_default(),
            base.map_or_else(String::new, |base| {
                format!("{} {}", number(base.middle), interval(base).unwrap_or_default())
            }),
        ]);
    }
    rows
}

fn interval(compared: Compared) -> Option<String> {
    let (low, high) = compared.interval?;
    Some(format!("{} to {}", number(low), number(high)))
}

/// A figure of Forebay's against its target.
struct Held {
    what: &'static str,
    got: f64,
    most: f64,
    /// Whether it is met.
    met: bool,
    /// Whether the whole interval misses it. A busy machine moves the middle by more than a change of the code does.
    missed: bool,
}

impl Held {
    fn new(what: &'static str, most: f64, got: Compared) -> Held {
        let low = got.interval.map_or(got.middle, |(low, _)| low);
        Held { what, got: got.middle, most, met: got.middle <= most, missed: low > most }
    }

    /// What is added to a direct connection's figure, against what nginx adds.
    fn added(table: &Table, most: f64) -> Option<Held> {
        let added = |name| table.against(name, Name::Direct).map(|compared| compared.middle);
        let excess = Held::new("added ÷ added by nginx", 0.0, table.excess(Name::Forebay, Name::Nginx, most)?);
        Some(Held { got: added(Name::Forebay)? / added(Name::Nginx)?, most, ..excess })
    }
}

/// What each target says of Forebay: whether it is met, and in words. A target is missed where the whole 95 % interval is above it.
fn verdicts(report: &Report<'_>) -> Vec<(bool, String)> {
    let mut all = Vec::new();
    for table in &report.tables {
        let Some(target) = table.figure.target else { continue };
        let to = |other| table.against(Name::Forebay, other);
        let ratio = table.figure.against == Against::Ratio;
        let own = match target {
            Target::ToNginx(most) => {
                to(Name::Nginx).map(|nginx| Held::new(if ratio { "÷ nginx" } else { "− nginx" }, most, nginx))
            }
            Target::Itself(most) => table
                .spread(Name::Forebay)
                .map(|own| Held::new("itself", most, Compared { middle: own.median, interval: None })),
            Target::AddedToNginx(most) => Held::added(table, most),
        };
        // A difference to an earlier Forebay has no limit, as it has no unit in common with others.
        let to_base = to(Name::Base).filter(|_| ratio).map(|base| Held::new("÷ base", TO_BASE, base));
        for Held { what, got, most, met, missed } in own.into_iter().chain(to_base) {
            let word = match (met, missed) {
                (true, _) => "met",
                (false, false) => "not shown; more rounds would tell",
                (false, true) => "MISSED",
            };
            let (work, figure, got) = (table.work, &table.figure.what, number(got));
            all.push((!missed, format!("target: {work}: {figure}, {what}: {got} of at most {most}: {word}")));
        }
    }
    all
}

/// Whether Forebay met every target that can be told.
pub(super) fn targets_met(report: &Report<'_>) -> bool {
    verdicts(report).into_iter().all(|(met, _)| met)
}

/// Writes the files that the options name.
pub(super) fn write(report: &Report<'_>) -> Fallible<()> {
    if let Some(path) = &report.options.json {
        fs::write(path, serde_json::to_string_pretty(&as_json(report))? + "\n")?;
        println!("figures of every round: {}", path.display());
    }
    if let Some(path) = &report.options.markdown {
        fs::write(path, markdown(report))?;
        println!("tables: {}", path.display());
    }
    Ok(())
}

fn markdown(report: &Report<'_>) -> String {
    let mut out = String::from("# Forebay beside its peers\n\n");
    let options = report.options;
    let _ = writeln!(
        out,
        "{} rounds, {} s for each contender and work, worker threads: {}.\n",
        report.rounds, options.window, options.threads
    );
    for (name, version) in &report.contenders {
        let _ = writeln!(out, "- {name}: {version}");
    }
    for table in report.tables.iter().filter(|table| table.names().next().is_some()) {
        let _ = writeln!(out, "\n## {}: {}\n", table.work, table.figure.what);
        for (number, row) in rows(table).iter().enumerate() {
            let _ = writeln!(out, "| {} |", row.join(" | "));
            if number == 0 {
                let _ = writeln!(out, "|{}", "---|".repeat(row.len()));
            }
        }
    }
    for failed in &report.failed {
        let _ = writeln!(out, "\nFailed: {failed}");
    }
    out
}

fn as_json(report: &Report<'_>) -> Value {
    let contenders: Vec<Value> =
        report.contenders.iter().map(|(name, version)| json!({ "name": name.text(), "version": version })).collect();
    let tables: Vec<Value> = report.tables.iter().map(table_json).collect();
    json!({
        "rounds": report.rounds,
        "window_seconds": report.options.window,
        "threads": report.options.threads,
        "contenders": contenders,
        "figures": tables,
        "failed": report.failed,
    })
}

fn table_json(table: &Table) -> Value {
    let contenders = table.names().map(|name| {
        json!({
            "name": name.text(),
            "rounds": table.rounds(name),
            "spread": table.spread(name),
            "to_nginx": table.against(name, Name::Nginx),
            "to_base": table.against(name, Name::Base),
            "to_direct": table.against(name, Name::Direct),
        })
    });
    json!({
        "work": table.work.to_string(),
        "what": table.figure.what,
        "compared_by": match table.figure.against { Against::Ratio => "ratio", Against::Difference => "difference" },
        "contenders": contenders.collect::<Vec<_>>(),
    })
}
