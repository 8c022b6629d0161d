//! A comparison on a terminal: tables, then what bounds the arms, then failed checks, verdicts and what to do next. Pure.

use crate::compare::figure::Figure;
use crate::compare::format;
use crate::compare::model::{Cell, Comparison, Gravity, Point, Step, Throughput};
use crate::compare::verdict::{Ratio, Verdict};
use crate::rows::command::broken;
use crate::rows::table::{WIDTH, aligned, benchmark_rows, cut, fitting, wrapped};
use anstyle::{AnsiColor, Style};

/// The note on the asterisk.
const FEW: &str = "* a P99 of fewer than 500 requests in an epoch or in all: the few slowest decide it.";

/// The way in which a report is shown on a terminal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shown {
    /// True if every figure is printed, else five of each pair.
    pub full: bool,
    /// True if verdicts have colours and a bold face.
    pub colours: bool,
    /// True if sentences are broken to fit a terminal.
    pub wrap: bool,
}

impl Shown {
    fn fit(self, text: &str) -> String {
        if self.wrap { wrapped(text) } else { text.to_owned() }
    }
}

/// The whole report without colours, each sentence on one line.
#[must_use]
pub fn text(comparison: &Comparison) -> String {
    shown(comparison, Shown { full: true, ..Shown::default() })
}

/// The report: tables first, since the last lines are what a terminal shows. They have the verdicts, or which check failed, and what to
/// do next.
#[must_use]
pub fn shown(comparison: &Comparison, shown: Shown) -> String {
    let mut out = String::new();
    for point in &comparison.points {
        out.push_str(&format!("\n{}\n\n", shown.fit(&format::sentence_case(&format::heading(point)))));
        if shown.full {
            out.push_str(&fitting(&figures(point)));
        }
        pairs(point, shown, &mut out);
        for line in diagnoses(point) {
            out.push_str(&format!("\n{}\n", shown.fit(&line)));
        }
        if shown.full {
            notes(point, shown, &mut out);
        }
    }
    if !comparison.crossovers.is_empty() && shown.full {
        out.push_str("\nCrossover\n\n");
        for crossover in &comparison.crossovers {
            out.push_str(&format!("{}\n", shown.fit(&format!("  {}", format::crossover(crossover)))));
        }
    }
    if !shown.full {
        out.push_str("\n--full prints every figure, and how intervals were made.\n");
    }
    conclusion(comparison, shown, &mut out);
    // The empty line between the parts is not for the first one.
    out.trim_start_matches('\n').to_owned()
}

/// The colour of a conclusion: what may be done with it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Light {
    /// It may be relied on.
    Green,
    /// It may be relied on as far as the notes go.
    Amber,
    /// There is none.
    Red,
}

impl Light {
    /// The words before a sentence. Colours only repeat what they say.
    fn words(self) -> &'static str {
        match self {
            Light::Green => "VERDICT",
            Light::Amber => "VERDICT, amber",
            Light::Red => "NO VERDICT",
        }
    }

    fn paint(self, text: &str, shown: Shown) -> String {
        let colour = match self {
            Light::Green => AnsiColor::Green,
            Light::Amber => AnsiColor::Yellow,
            Light::Red => AnsiColor::Red,
        };
        let style = if shown.colours { Style::new().bold().fg_color(Some(colour.into())) } else { Style::new() };
        // Line by line, so that a terminal that reads one line has whole colours.
        let lines: Vec<String> = text.lines().map(|line| format!("{style}{line}{style:#}")).collect();
        lines.join("\n")
    }
}

/// The last lines: failed checks, verdicts, notes below them, and what to do next.
fn conclusion(comparison: &Comparison, shown: Shown, out: &mut String) {
    let of = |gravity: Gravity| comparison.warnings.iter().filter(move |warning| warning.gravity == gravity);
    let mut line = |text: String| out.push_str(&format!("{text}\n"));
    line(String::new());
    for warning in of(Gravity::FailedCheck) {
        line(Light::Red.paint(&shown.fit(&format::warning(warning)), shown));
    }
    for warning in of(Gravity::Scope) {
        line(shown.fit(&format::warning(warning)));
    }
    let noted = of(Gravity::Note).next().is_some();
    for point in &comparison.points {
        for pair in &point.pairs {
            let light = match &pair.verdict {
                Verdict::NotJudged { .. } => Light::Red,
                _ if noted => Light::Amber,
                _ => Light::Green,
            };
            line(light.paint(&shown.fit(&format!("{}: {}", light.words(), format::verdict(pair, point))), shown));
        }
        if let Some(best) = format::best(point) {
            line(shown.fit(&best));
        }
    }
    for warning in of(Gravity::Note) {
        line(shown.fit(&format!("  {}", format::warning(warning))));
    }
    if !comparison.next.is_empty() {
        line("NEXT".to_owned());
    }
    for step in &comparison.next {
        line(match step {
            Step::Say(text) => shown.fit(text),
            // Two spaces before a command are none of it.
            Step::Run(command) => format!("  {}", broken(command, WIDTH - 2)),
        });
    }
}

/// The figures of a short table beside the one that decides.
const SHORT: [Figure; 5] =
    [Figure::OutputTokensPerSecond, Figure::TtftMedian, Figure::TtftP99, Figure::TpotMedian, Figure::E2eMedian];
/// The rows of a short table.
const ROWS: usize = 5;
/// Characters of an arm's name in the head of a table.
const NAME: usize = 14;

/// A table for each pair of arms: the figure that decides, and others beside it.
fn pairs(point: &Point, shown: Shown, out: &mut String) {
    for pair in &point.pairs {
        let mut rows = vec![vec![
            "over epochs".to_owned(),
            cut(&pair.baseline, NAME),
            cut(&pair.arm, NAME),
            "ratio (95 % interval)".to_owned(),
        ]];
        let mut surely = vec![["", "p, adjusted", "shown from"].map(str::to_owned).to_vec()];
        // The figure that decides comes first in each pair.
        let wanted = pair.ratios.iter().filter(|one| shown.full || one.primary || SHORT.contains(&one.figure));
        for ratio in wanted.take(if shown.full { usize::MAX } else { ROWS }) {
            let few = if ratio.few_requests { "*" } else { "" };
            rows.push(vec![
                ratio.figure.name().to_owned(),
                format!("{}{few}", format::value(ratio.figure, ratio.baseline)),
                format!("{}{few}", format::value(ratio.figure, ratio.arm)),
                format::ratio(ratio.ratio, ratio.interval),
            ]);
            surely.push(vec![ratio.figure.name().to_owned(), chance(ratio), least(ratio)]);
        }
        if rows.len() < 2 {
            continue;
        }
        out.push_str(&format!("{}{}", if out.ends_with("\n\n") { "" } else { "\n" }, aligned(&rows)));
        if pair.ratios.first().is_some_and(|first| first.primary) {
            out.push_str("The first line decides.\n");
        }
        if shown.full {
            out.push_str(&format!("\n{}", aligned(&surely)));
        } else if rows.iter().flatten().any(|cell| cell.ends_with('*')) {
            out.push_str(&format!("{}\n", shown.fit(FEW)));
        }
    }
}

fn chance(ratio: &Ratio) -> String {
    ratio.p_adjusted.map_or_else(|| "-".to_owned(), format::p)
}

fn least(ratio: &Ratio) -> String {
    ratio.detectable.map_or_else(|| "-".to_owned(), |least| format!("{:.1} %", (least - 1.0) * 100.0))
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
                chance(ratio),
                least(ratio),
            ]);
        }
    }
    rows
}

/// Says what limited each arm, and where undecided what would tell.
pub(super) fn diagnoses(point: &Point) -> Vec<String> {
    let said = |cell: &Cell| {
        let diagnosis = cell.diagnosis.as_ref()?;
        let rest = diagnosis.would_tell.join(" ");
        let said = diagnosis.sentence.strip_prefix("What limited ").unwrap_or(&diagnosis.sentence);
        let named = said.starts_with(&cell.arm);
        let whose = if named { String::new() } else { format!("{}: ", cell.arm) };
        Some(format!("{whose}{} {rest}", diagnosis.sentence).trim_end().to_owned())
    };
    point.cells.iter().filter_map(said).collect()
}

/// Explains a table's marks.
fn notes(point: &Point, shown: Shown, out: &mut String) {
    out.push('\n');
    for note in footnotes(point) {
        out.push_str(&format!("{}\n", shown.fit(&note)));
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
        notes.push(FEW.to_owned());
    }
    notes
}
