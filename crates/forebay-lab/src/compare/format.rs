//! Figures and verdicts in words, the same in every report. Pure.

use std::collections::BTreeMap;

use super::figure::Figure;
use super::model::{Comparison, Gravity, Point, Warning};
use super::verdict::{Bounds, Crossing, Crossover, LoadAxis, Pair, Ratio, Scope, Unjudged, Unshown, Verdict};
use crate::rows::row_file::Offered;

/// A load, after what happened at it: "at 4 requests/s".
#[must_use]
pub fn load(offered: Option<Offered>) -> String {
    match offered {
        Some(Offered::Unlimited) => "with all requests at once".to_owned(),
        Some(Offered::Rate(rate)) => format!("at {rate} requests/s"),
        Some(Offered::Concurrency(count)) => format!("with {count} requests under way"),
        Some(Offered::Trace(speedup)) => format!("at {speedup} times the speed of the trace"),
        None => "at the recorded load".to_owned(),
    }
}

/// A load with its lengths, as a heading.
#[must_use]
pub fn heading(point: &Point) -> String {
    let lengths = match (point.input_len, point.output_len) {
        (Some(input), Some(output)) => format!(", {input} tokens in, up to {output} out"),
        _ => String::new(),
    };
    let kind = if point.live_split { ", a live split" } else { "" };
    let dataset = point.dataset.as_ref().map_or_else(String::new, |dataset| format!(", {dataset}"));
    format!("{}{lengths}{dataset}{kind}", load(point.offered))
}

/// The same as the begin of a sentence, or a heading.
#[must_use]
pub fn sentence_case(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

/// Which arm was run at which loads.
pub(super) fn loads_by_arm(points: &[Point]) -> String {
    let mut by_arm: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for point in points {
        for cell in &point.cells {
            by_arm.entry(&cell.arm).or_default().push(heading(point));
        }
    }
    let arms: Vec<String> = by_arm.iter().map(|(arm, loads)| format!("{arm} ran {}", loads.join(" and "))).collect();
    arms.join("; ")
}

/// A figure's value, with as many digits as it deserves.
#[must_use]
pub fn value(figure: Figure, value: f64) -> String {
    match figure {
        Figure::SloAttainment => format!("{:.1} %", value * 100.0),
        Figure::OutputTokensPerDollar => format!("{value:.0}"),
        _ => format!("{value:.2}"),
    }
}

/// A chance.
#[must_use]
pub fn p(p: f64) -> String {
    if p < 0.0001 { "< 0.0001".to_owned() } else { format!("{p:.4}") }
}

/// "1.45 (1.41 to 1.49)".
#[must_use]
pub fn ratio(ratio: f64, interval: Bounds) -> String {
    format!("{ratio:.3} ({:.3} to {:.3})", interval.low, interval.high)
}

/// What a pair's verdict says, in one sentence with its figures.
#[must_use]
pub fn verdict(pair: &Pair, point: &Point) -> String {
    let at = load(point.offered);
    let (baseline, arm) = (&pair.baseline, &pair.arm);
    match &pair.verdict {
        Verdict::Winner { arm, over, figure, ratio, interval, scope } => format!(
            "{arm} is better than {over} {at}: it has {ratio:.2} times {over}'s {} (95 % interval {:.2} to {:.2}){}.",
            figure.noun(),
            interval.low,
            interval.high,
            reach(*scope)
        ),
        Verdict::NoDifference { figure, ratio, interval, detectable, because, scope } => {
            let smallest = match because {
                Unshown::TooSmall => "a difference of up to 2 % names no winner".to_owned(),
                Unshown::ManyVerdicts => "one of so many verdicts is expected to look like this by chance".to_owned(),
                Unshown::IncludesOne => format!(
                    "the smallest difference that this design could have shown (in 4 of 5 such experiments) is {:.0} %",
                    ((detectable - 1.0) * 100.0).ceil()
                ),
            };
            format!(
                "No difference shown between {baseline} and {arm} {at}: {arm} has {ratio:.2} times {baseline}'s {} (95 % \
                 interval {:.2} to {:.2}){}; {smallest}.",
                figure.noun(),
                interval.low,
                interval.high,
                reach(*scope)
            )
        }
        Verdict::NotJudged { because } => not_judged(pair, *because, &at),
    }
}

fn not_judged(pair: &Pair, because: Unjudged, at: &str) -> String {
    let (baseline, arm) = (&pair.baseline, &pair.arm);
    match because {
        Unjudged::FewEpochs { baseline: a, arm: b } => {
            let within = pair.ratios.first().filter(|ratio| ratio.primary).map(|ratio| within(ratio, pair));
            format!(
                "{baseline} and {arm} {at} are not judged: {a} and {b} epochs, where three of each show the \
                 spread between runs.{}",
                within.unwrap_or_default()
            )
        }
        Unjudged::NoFigure { figure } => format!(
            "{baseline} and {arm} {at} are not judged: some epoch has no {}, since none of its requests got a whole answer.",
            figure.noun()
        ),
    }
}

fn within(ratio: &Ratio, pair: &Pair) -> String {
    format!(
        " Within one run only, {} has {:.2} times {}'s {} ({:.2} to {:.2}).",
        pair.arm,
        ratio.ratio,
        pair.baseline,
        ratio.figure.noun(),
        ratio.interval.low,
        ratio.interval.high
    )
}

fn reach(scope: Scope) -> &'static str {
    match scope {
        Scope::AnyStart => "",
        Scope::TheseStarts => ", within these starts of the servers",
        Scope::OneRun => ", within one run only",
    }
}

/// What a sweep says of a figure, in one sentence.
#[must_use]
pub fn crossover(crossover: &Crossover) -> String {
    let unit = match crossover.axis {
        LoadAxis::Rate => "requests/s",
        LoadAxis::Concurrency => "requests under way",
    };
    let noun = crossover.figure.noun();
    match &crossover.found {
        Crossing::At { below, above, load, low, high } => {
            let end = |end: Option<f64>, beyond: &str| end.map_or_else(|| beyond.to_owned(), |end| format!("{end:.2}"));
            format!(
                "{noun}: {below} is better below, {above} above {load:.2} {unit} (95 % interval {} to {}).",
                end(*low, "below the lightest load"),
                end(*high, "above the heaviest load")
            )
        }
        Crossing::Never { better, from, to } if from == to => {
            format!("{noun}: {better} is better at {from} {unit}; no other load shows a difference.")
        }
        Crossing::Never { better, from, to } => {
            format!("{noun}: {better} is better wherever a difference shows, from {from} to {to} {unit}.")
        }
        Crossing::Unshown => format!("{noun}: no load shows a difference."),
    }
}

/// The verdicts of all pairs at all loads, in order.
#[must_use]
pub fn verdicts(comparison: &Comparison) -> Vec<String> {
    let of_point = |point: &Point| point.pairs.iter().map(|pair| verdict(pair, point)).collect::<Vec<_>>();
    comparison.points.iter().flat_map(of_point).collect()
}

/// A warning after its gravity.
#[must_use]
pub fn warning(warning: &Warning) -> String {
    let gravity = match warning.gravity {
        Gravity::FailedCheck => "FAILED CHECK",
        Gravity::Scope => "scope",
        Gravity::Note => "note",
    };
    format!("{gravity}: {}", warning.text)
}

/// An interval's method, for a note below a table.
#[must_use]
pub fn method(ratio: &Ratio) -> String {
    use super::verdict::Method;
    match ratio.method {
        Method::Welch { df } => format!("Welch's t on log epochs, {df:.1} degrees of freedom"),
        Method::Paired { blocks, .. } => format!("paired t on log epochs of {blocks} blocks"),
        Method::Clustered { baseline_starts, arm_starts, .. } => {
            format!("t on means of starts, {baseline_starts} and {arm_starts} starts")
        }
        Method::Bootstrap { draws } => format!("bootstrap over requests, {draws} draws"),
    }
}
