//! Figures and verdicts in words, the same in every report. Pure.

use std::collections::BTreeMap;

use super::figure::Figure;
use super::model::{Cell, Comparison, Gravity, Point, Throughput, Warning};
use super::verdict::{
    Bounds, Crossing, Crossover, LoadAxis, Method, Pair, PlannedUnit, Ratio, Scope, Unjudged, Unshown, Verdict,
};
use crate::diagnosis::Cause;
use crate::rows::row_file::Offered;

/// A load, after what happened at it: "at 4 requests/s".
#[must_use]
pub fn load(offered: Option<Offered>) -> String {
    match offered {
        Some(Offered::Unlimited) => "with all requests at once".to_owned(),
        Some(Offered::Rate(rate)) => format!("at {rate} requests/s"),
        Some(Offered::Concurrency(count)) => format!("with {count} requests under way"),
        Some(Offered::Trace(speedup)) => format!("at {speedup} times the speed of the trace"),
        Some(Offered::Traffic) => "under the traffic of the access log".to_owned(),
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
    let burst = point.burstiness.map_or_else(String::new, |burst| format!(", burstiness {burst}"));
    let limit = point.max_concurrency.map_or_else(String::new, |limit| format!(", at most {limit} under way"));
    let dataset = point.dataset.as_ref().map_or_else(String::new, |dataset| format!(", {dataset}"));
    format!("{}{burst}{limit}{lengths}{dataset}{kind}", load(point.offered))
}

/// Returns a text with a capital letter first, for the begin of a sentence or a heading.
#[must_use]
pub fn sentence_case(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

/// Lists the loads that each arm was run at.
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
        Figure::SloAttainment | Figure::SloMisses => percent(value),
        Figure::OutputTokensPerDollar => format!("{value:.0}"),
        _ => format!("{value:.2}"),
    }
}

/// A share, with a digit more where it is near none or all.
fn percent(share: f64) -> String {
    let near = share.min(1.0 - share) < 0.02;
    if near { format!("{:.2} %", share * 100.0) } else { format!("{:.1} %", share * 100.0) }
}

/// A chance.
#[must_use]
pub fn p(p: f64) -> String {
    if p < 0.0001 { "< 0.0001".to_owned() } else { format!("{p:.4}") }
}

/// "1.45 (1.41 to 1.49)"; without an interval "1.45 (no interval)".
#[must_use]
pub fn ratio(ratio: f64, interval: Option<Bounds>) -> String {
    match interval {
        Some(interval) => format!("{ratio:.3} ({:.3} to {:.3})", interval.low, interval.high),
        None => format!("{ratio:.3} (no interval)"),
    }
}

/// A ratio of a sentence, with two digits, or as many as keep it from reading as 1.
fn short(ratio: f64, interval: Bounds) -> (String, String, String) {
    // "1.00 to 1.00" beside "is better" would contradict itself.
    let digits = [ratio, interval.low, interval.high]
        .iter()
        .map(|value| (2..5).find(|digits| (value - 1.0).abs() >= 0.5 * 0.1_f64.powi(*digits)).unwrap_or(2))
        .max()
        .unwrap_or(2) as usize;
    (format!("{ratio:.digits$}"), format!("{:.digits$}", interval.low), format!("{:.digits$}", interval.high))
}

/// Words a pair's verdict, in a sentence or two with its figures.
#[must_use]
pub fn verdict(pair: &Pair, point: &Point) -> String {
    let at = load(point.offered);
    let (baseline, arm) = (&pair.baseline, &pair.arm);
    match &pair.verdict {
        Verdict::Winner { arm, over, figure, ratio, interval, scope } => {
            let (ratio, low, high) = short(*ratio, *interval);
            let (noun, reach) = (noun(*figure, pair, point), reach(*scope));
            format!(
                "{arm} is better than {over} {at}: it has {ratio} times {over}'s {noun} (95 % interval {low} to {high}){reach}."
            )
        }
        Verdict::NoDifference { figure, ratio, interval, detectable, because, scope } => {
            let smallest = match because {
                Unshown::TooSmall => "a difference of up to 2 % names no winner".to_owned(),
                Unshown::MeansDisagree => {
                    "the plain means of the epochs say the opposite, so a trend or a few odd epochs decide".to_owned()
                }
                Unshown::ManyVerdicts => "one of so many verdicts is expected to look like this by chance".to_owned(),
                Unshown::IncludesOne => format!(
                    "the smallest difference that this design could have shown (in 4 of 5 such experiments) is {:.0} %",
                    ((detectable - 1.0) * 100.0).ceil()
                ),
            };
            let (ratio, low, high) = short(*ratio, *interval);
            let (noun, reach) = (noun(*figure, pair, point), reach(*scope));
            format!(
                "No difference shown between {baseline} and {arm} {at}: {arm} has {ratio} times {baseline}'s {noun} (95 % \
                 interval {low} to {high}){reach}; {smallest}."
            )
        }
        Verdict::NotJudged { because } => {
            format!("{baseline} and {arm} {at} are not judged: {}{}", why_not(*because), not_judged(pair, point))
        }
    }
}

/// A figure in a sentence. Where requests failed, what that means for a time to the first token stands beside it.
fn noun(figure: Figure, pair: &Pair, point: &Point) -> String {
    // Failures of a third arm are nothing to these two.
    let own = |cell: &&Cell| [&pair.baseline, &pair.arm].contains(&&cell.arm);
    let failed = point.cells.iter().filter(own).any(|cell| cell.pooled.failed > 0);
    let note = if failed && figure.is_ttft() { ", failed requests counted as infinite," } else { "" };
    format!("{}{note}", figure.noun())
}

/// Says why there is no verdict, and what would give one.
fn why_not(because: Unjudged) -> String {
    match because {
        Unjudged::FewEpochs { baseline, arm } => format!(
            "{baseline} and {arm} epochs do not show the spread between runs. Run each arm on three starts of its servers or more, in \
             turns."
        ),
        Unjudged::FewStarts { baseline, arm } => format!(
            "{baseline} and {arm} starts of the servers, where three of each show how much another start changes. Start the servers \
             anew between runs."
        ),
        Unjudged::StartsUnknown => {
            "the rows do not tell which start of the servers each run had. `forebay bench` reads it from the \
             servers' /metrics, or takes --start N."
                .to_owned()
        }
        Unjudged::NotAlternating => {
            "the rows do not show that the arms took turns, so that a drift of the machine would look like a \
             difference. Run them A, B, B, A, A, B."
                .to_owned()
        }
        Unjudged::Uneven { baseline, arm } => format!(
            "{} starts beside {} are too few to know their spread. Give both arms as many, or at least five.",
            baseline.min(arm),
            baseline.max(arm)
        ),
        Unjudged::Interim { of, done, planned } => format!(
            "{done} of {planned} planned {} of each arm are here. To stop at the first report that names a winner would name false ones.",
            planned_noun(of)
        ),
        Unjudged::BeyondPlan { of, done, planned } => format!(
            "{done} {} of an arm are here and {planned} were planned. To go on until a report names a winner would name false ones. \
             Plan anew, and compare only what you run then.",
            planned_noun(of)
        ),
        Unjudged::FailedCheck { check } => format!("the check `{check}` failed. Mend that and measure again."),
        Unjudged::SessionsUnknown => {
            "the rows of this live split do not tell the sessions, or too few for this figure (a P95 takes 200 of each arm), so that \
             what of it is chance is not known."
                .to_owned()
        }
        Unjudged::NoFigure { figure } => {
            format!("some epoch has no {}, since too many of its requests got no whole answer.", figure.noun())
        }
    }
}

/// Words what the figures say where no winner may be named.
fn not_judged(pair: &Pair, point: &Point) -> String {
    let Some(ratio) = pair.ratios.first().filter(|ratio| ratio.primary) else { return String::new() };
    let (noun, arm, baseline) = (noun(ratio.figure, pair, point), &pair.arm, &pair.baseline);
    match (ratio.interval, &pair.verdict) {
        (Some(interval), verdict) => {
            let (value, low, high) = short(ratio.ratio, interval);
            let few =
                matches!(verdict, Verdict::NotJudged { because: Unjudged::FewStarts { .. } | Unjudged::StartsUnknown });
            let reach = if few { ", within these starts of the servers" } else { "" };
            format!(" {arm} has {value} times {baseline}'s {noun} (95 % interval {low} to {high}){reach}.")
        }
        (None, _) => format!(" In these runs {arm} has {:.2} times {baseline}'s {noun}.", ratio.ratio),
    }
}

fn planned_noun(of: PlannedUnit) -> &'static str {
    match of {
        PlannedUnit::Starts => "starts",
        PlannedUnit::Runs => "runs",
    }
}

fn reach(scope: Scope) -> &'static str {
    match scope {
        Scope::AnyStart => "",
        Scope::TheseStarts => ", within these starts of the servers",
        Scope::OneRun => ", within these runs only",
    }
}

/// Returns the note that takes the place of throughput where it is not the arm's; none where it is.
#[must_use]
pub fn whose_throughput(point: &Point) -> Option<&'static str> {
    let is = |whose| point.cells.iter().any(|cell| cell.throughput == whose);
    if is(Throughput::OfTheLoad) {
        Some(
            "Throughput follows the load here: an arm that keeps up answers as many requests as it is sent, so it is not compared.",
        )
    } else if is(Throughput::Unclear) {
        Some(
            "Whether the arms kept up with the load is not known, so throughput, which may be the load's, is not compared.",
        )
    } else {
        None
    }
}

/// Says that the two tests of the figure that decides disagree; none where they do not.
#[must_use]
pub fn disagreement(pair: &Pair) -> Option<String> {
    let first = pair.ratios.first().filter(|ratio| ratio.primary)?;
    let (t, rank) = (first.p_t?, first.p_rank?);
    let sure = |chance: f64| chance < 0.05;
    (sure(t) != sure(rank)).then(|| {
        format!(
            "{} / {}: the two tests of {} disagree, t {} and ranks {}: {}.",
            pair.arm,
            pair.baseline,
            first.figure.noun(),
            p(t),
            p(rank),
            if sure(rank) { "a few odd epochs widen the spread" } else { "a few epochs make the difference" }
        )
    })
}

/// Words what a sweep says of a figure, in one sentence.
#[must_use]
pub fn crossover(crossover: &Crossover) -> String {
    let unit = match crossover.axis {
        LoadAxis::Rate => "requests/s",
        LoadAxis::Concurrency => "requests under way",
    };
    let noun = crossover.figure.noun();
    // With three arms a line is of one of three pairs.
    let beside = format!(" ({} beside {})", crossover.baseline, crossover.arm);
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
            format!("{noun}: {better} is better at {from} {unit}{beside}; no other load shows a difference.")
        }
        Crossing::Never { better, from, to } => {
            format!("{noun}: {better} is better wherever a difference shows, from {from} to {to} {unit}{beside}.")
        }
        Crossing::Unshown => format!("{noun}: no load shows a difference{beside}."),
    }
}

/// The verdicts of all pairs at all loads, in order, and where there are three arms or more which of them is best, if one is.
#[must_use]
pub fn verdicts(comparison: &Comparison) -> Vec<String> {
    let of_point = |point: &Point| {
        let pairs = point.pairs.iter().map(|pair| verdict(pair, point));
        pairs.chain(best(point)).collect::<Vec<_>>()
    };
    comparison.points.iter().flat_map(of_point).collect()
}

/// Says which of three arms or more is best: one that is better than each other one. One pair that differs makes no best arm.
#[must_use]
pub fn best(point: &Point) -> Option<String> {
    let arms: Vec<&str> = point.cells.iter().map(|cell| cell.arm.as_str()).collect();
    // With a baseline not all pairs are compared, and of arms that were not compared nothing is known.
    if arms.len() < 3 || point.pairs.len() < arms.len() * (arms.len() - 1) / 2 {
        return None;
    }
    let wins = |arm: &str| {
        let won = |pair: &&Pair| matches!(&pair.verdict, Verdict::Winner { arm: winner, .. } if winner == arm);
        point.pairs.iter().filter(won).count()
    };
    let at = load(point.offered);
    Some(match arms.iter().find(|arm| wins(arm) == arms.len() - 1) {
        Some(best) => format!("The best arm {at} is {best}: it wins each of its pairs."),
        None => format!("No arm is shown to be the best {at}: an arm is the best only if it wins each of its pairs."),
    })
}

/// Says in one sentence what limited the arms, and how long their tokens took; none where fewer than two arms are diagnosed.
#[must_use]
pub fn contrast(point: &Point) -> Option<String> {
    let known: Vec<(&Cell, Cause)> =
        point.cells.iter().filter_map(|cell| Some((cell, cell.diagnosis.as_ref()?.cause))).collect();
    let (first, rest) = known.split_first().filter(|(_, rest)| !rest.is_empty())?;
    let token = |cell: &Cell| cell.pooled.tpot_ms.p50.map(|ms| format!("{ms:.1} ms"));
    let part = |(cell, cause): &(&Cell, Cause)| {
        let why = match cause {
            Cause::Undecided => "by what the rows do not tell".to_owned(),
            cause => format!("by {}", cause.name()),
        };
        let token = token(cell).map_or_else(String::new, |ms| format!(" ({ms} a token)"));
        format!("{} {why}{token}", cell.arm)
    };
    if rest.iter().all(|(_, cause)| *cause == first.1) {
        let tokens: Vec<String> =
            known.iter().filter_map(|(cell, _)| Some(format!("{} in {}", token(cell)?, cell.arm))).collect();
        let tokens =
            if tokens.len() == known.len() { format!(": a token takes {}", tokens.join(", ")) } else { String::new() };
        let lead = match first.1 {
            Cause::Undecided => "The rows do not say for certain what limits the arms".to_owned(),
            cause => format!("{} limits each arm", sentence_case(cause.name())),
        };
        return Some(format!("{lead}{tokens}."));
    }
    let parts: Vec<String> = known.iter().map(part).collect();
    Some(format!("Different things limit the arms: {}.", parts.join(", ")))
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

/// The ratio that a table shows beside the means of the epochs, in words: it is not always that of the means.
pub(super) fn whose_ratio(ratio: &Ratio) -> &'static str {
    match ratio.method {
        _ if ratio.p_rank.is_some() => "the median ratio of starts or blocks",
        Method::Welch { trend: true, .. } | Method::Paired { trend: true, .. } => "their ratio without the trend",
        _ => "their ratio",
    }
}

/// An interval's method, for a note below a table.
#[must_use]
pub fn method(ratio: &Ratio) -> String {
    let ranks = if ratio.p_rank.is_some() { " and an exact rank test" } else { "" };
    let beside = |trend: bool| if trend { ", a linear trend over time taken out" } else { "" };
    match ratio.method {
        Method::Welch { baseline, arm, df, trend } => format!(
            "Welch's t{ranks} on the logarithms of {baseline} and {arm} starts or runs, {df:.1} degrees of freedom{}",
            beside(trend)
        ),
        Method::Paired { units, trend, .. } => {
            format!("paired t{ranks} on the logarithms of {units} starts or blocks{}", beside(trend))
        }
        Method::Sessions { baseline, arm } => format!("bootstrap over {baseline} and {arm} sessions"),
        Method::Nothing => "no method: nothing tells their error".to_owned(),
    }
}
