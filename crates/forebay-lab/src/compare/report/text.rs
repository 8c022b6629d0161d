//! A comparison on a terminal: failed checks first, then verdicts, then what bounds them, then tables. Pure.

use crate::compare::figure::Figure;
use crate::compare::format;
use crate::compare::model::{Cell, Comparison, Gravity, Point, Throughput};
use crate::rows::table::{aligned, benchmark_rows};

/// The report.
#[must_use]
pub fn text(comparison: &Comparison) -> String {
    let mut out = String::new();
    let (failed, other): (Vec<_>, Vec<_>) =
        comparison.warnings.iter().partition(|warning| warning.gravity == Gravity::FailedCheck);
    for lines in [
        failed.into_iter().map(format::warning).collect(),
        format::verdicts(comparison),
        other.into_iter().map(format::warning).collect(),
    ] {
        let lines: Vec<String> = lines;
        if !lines.is_empty() {
            out.push_str(&format!("{}{}\n", if out.is_empty() { "" } else { "\n" }, lines.join("\n")));
        }
    }
    for point in &comparison.points {
        out.push_str(&format!("\n{}\n\n", format::sentence_case(&format::heading(point))));
        out.push_str(&aligned(&figures(point)));
        for line in diagnoses(point) {
            out.push_str(&format!("\n{line}\n"));
        }
        let compared = ratios(point);
        if compared.len() > 1 {
            out.push('\n');
            out.push_str(&aligned(&compared));
        }
        notes(point, &mut out);
    }
    if !comparison.crossovers.is_empty() {
        out.push_str("\nCrossover\n\n");
        for crossover in &comparison.crossovers {
            out.push_str(&format!("  {}\n", format::crossover(crossover)));
        }
    }
    out
}

/// The benchmark's fourteen rows of all requests of each arm, and then what it lacks, over epochs.
pub(super) fn figures(point: &Point) -> Vec<Vec<String>> {
    let mut rows = vec![heads(point)];
    // A median of all requests and a mean of the epochs' medians are two figures: each part of the table says which it has.
    let part = |of: &str| [of.to_owned()].into_iter().chain(point.cells.iter().map(|_| String::new())).collect();
    rows.push(part("of all requests together"));
    rows.extend(of_all_requests(point));
    let all = rows.len();
    for figure in Figure::ALL.into_iter().filter(|figure| beyond_seed(*figure)) {
        let values: Vec<Option<String>> = point.cells.iter().map(|cell| measured(cell, figure)).collect();
        if values.iter().any(Option::is_some) {
            let mut cells = vec![figure.name().to_owned()];
            cells.extend(values.into_iter().map(|value| value.unwrap_or_else(|| "-".to_owned())));
            rows.push(cells);
        }
    }
    if rows.len() > all {
        rows.insert(all, part("means of epochs"));
    }
    rows
}

/// The benchmark's rows of throughput.
const OF_THE_LOAD: [&str; 4] = ["requests/s", "input tokens/s", "output tokens/s", "total tokens/s"];

/// Returns the heads of the arms' columns.
pub(super) fn heads(point: &Point) -> Vec<String> {
    let head = |cell: &Cell| match cell.epochs.len() {
        1 => format!("{} (1 epoch)", cell.arm),
        epochs => format!("{} ({epochs} epochs)", cell.arm),
    };
    [String::new()].into_iter().chain(point.cells.iter().map(head)).collect()
}

/// The benchmark's fourteen rows.
pub(super) fn of_all_requests(point: &Point) -> Vec<Vec<String>> {
    let mut rows = Vec::new();
    let columns: Vec<_> = point.cells.iter().map(|cell| benchmark_rows(&cell.pooled)).collect();
    for row in 0..columns.first().map_or(0, |rows| rows.len()) {
        let mut cells = vec![columns[0][row].0.to_owned()];
        for (column, cell) in columns.iter().zip(&point.cells) {
            // Of 500 requests five are beyond a P99.
            let few = column[row].0.starts_with("P99") && cell.pooled.requests < 500;
            // Not a figure of the arm, and so not shown as one.
            let own = cell.throughput == Throughput::OfTheArm || !OF_THE_LOAD.contains(&column[row].0);
            let value = if own { column[row].1.as_str() } else { "the load's" };
            cells.push(format!("{value}{}", if few { "*" } else { "" }));
        }
        rows.push(cells);
    }
    rows
}

/// Returns whether the benchmark's table has no row for it.
fn beyond_seed(figure: Figure) -> bool {
    use Figure::{OutputTokensPerSecond, RequestsPerSecond, TpotMedian, TpotP99, TtftMedian, TtftP99};
    !matches!(figure, OutputTokensPerSecond | RequestsPerSecond | TtftMedian | TtftP99 | TpotMedian | TpotP99)
}

pub(super) fn measured(cell: &Cell, figure: Figure) -> Option<String> {
    let found = cell.figures.iter().find(|measured| measured.figure == figure)?;
    let few = if found.few_requests { "*" } else { "" };
    Some(format!("{}{few}", format::value(figure, found.value)))
}

/// Each figure of each arm beside the baseline's.
pub(super) fn ratios(point: &Point) -> Vec<Vec<String>> {
    let (baseline, arm) = match &point.pairs[..] {
        [pair] => (pair.baseline.as_str(), pair.arm.as_str()),
        _ => ("baseline", "arm"),
    };
    let ratio = format!("{arm} / {baseline} (95 %)");
    let head = ["over epochs", baseline, arm, &ratio, "p, adjusted", "shown from"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for pair in &point.pairs {
        let several = if point.pairs.len() > 1 { format!("{}: ", pair.arm) } else { String::new() };
        for ratio in &pair.ratios {
            let mark = if ratio.primary { " (decides)" } else { "" };
            let few = if ratio.few_requests { "*" } else { "" };
            rows.push(vec![
                format!("{several}{}{mark}", ratio.figure.name()),
                format!("{}{few}", format::value(ratio.figure, ratio.baseline)),
                format!("{}{few}", format::value(ratio.figure, ratio.arm)),
                format::ratio(ratio.ratio, ratio.interval),
                ratio.p_adjusted.map_or_else(|| "-".to_owned(), format::p),
                ratio.detectable.map_or_else(|| "-".to_owned(), |least| format!("{:.1} %", (least - 1.0) * 100.0)),
            ]);
        }
    }
    rows
}

/// Says what bound each arm, and where undecided what would tell.
pub(super) fn diagnoses(point: &Point) -> Vec<String> {
    let said = |cell: &Cell| {
        let diagnosis = cell.diagnosis.as_ref()?;
        let rest = diagnosis.would_tell.join(" ");
        let named = diagnosis.sentence.starts_with(&cell.arm);
        let whose = if named { String::new() } else { format!("{}: ", cell.arm) };
        Some(format!("{whose}{} {rest}", diagnosis.sentence).trim_end().to_owned())
    };
    point.cells.iter().filter_map(said).collect()
}

/// Explains a table's marks.
fn notes(point: &Point, out: &mut String) {
    out.push('\n');
    for note in footnotes(point) {
        out.push_str(&format!("{note}\n"));
    }
}

/// Explains how intervals were made, and what the asterisk is.
pub(super) fn footnotes(point: &Point) -> Vec<String> {
    let mut notes: Vec<String> = format::whose_throughput(point).map(str::to_owned).into_iter().collect();
    for pair in &point.pairs {
        if let Some(first) = pair.ratios.first() {
            let interval = if first.interval.is_some() { " with its 95 % interval" } else { "" };
            notes.push(format!(
                "{} / {}: means of epochs, and {}{interval}, by {}; p adjusted after Holm, of the figure that decides over all verdicts, of \
                 the others over all of them; \"shown from\" is the smallest difference that 4 of 5 such experiments show so.",
                pair.arm,
                pair.baseline,
                format::whose_ratio(first),
                format::method(first)
            ));
        }
        notes.extend(format::disagreement(pair));
    }
    let few = |cell: &Cell| cell.pooled.requests < 500 || cell.figures.iter().any(|one| one.few_requests);
    if point.cells.iter().any(few) {
        notes.push("* a P99 of fewer than 500 requests in an epoch or in all: the few slowest decide it.".to_owned());
    }
    notes
}
