//! Whether the comparison was what it was meant to be: each check with its figures, also those that were passed. Pure.

use maud::{Markup, html};

use crate::compare::checks::LATE_MS;
use crate::compare::format;
use crate::compare::model::{Comparison, Gravity, Point, Warning};
use crate::compare::verdict::{Balance, Balanced, Scope};

/// The result of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CheckResult {
    Passed,
    Failed,
    /// The verdict reaches less far than one may think.
    Limits,
    Unknown,
}

impl CheckResult {
    fn of(passed: bool) -> CheckResult {
        if passed { CheckResult::Passed } else { CheckResult::Failed }
    }

    /// A class of style.css, and the word that says the same without colour.
    fn shown(self) -> (&'static str, &'static str) {
        match self {
            CheckResult::Passed => ("good", "passed"),
            CheckResult::Failed => ("bad", "FAILED"),
            CheckResult::Limits => ("warn", "limits the verdict"),
            CheckResult::Unknown => ("quiet", "not known"),
        }
    }
}

struct Check {
    name: &'static str,
    outcome: CheckResult,
    figures: String,
}

/// Renders the warnings that head the report, gravest first.
pub(super) fn warnings(comparison: &Comparison, failed: bool) -> Markup {
    let wanted = |warning: &&Warning| (warning.gravity == Gravity::FailedCheck) == failed;
    let warnings: Vec<&Warning> = comparison.warnings.iter().filter(wanted).collect();
    let shown = |warning: &Warning| match warning.gravity {
        Gravity::FailedCheck => ("bad", "Failed check: "),
        Gravity::Scope => ("warn", "Scope: "),
        Gravity::Note => ("quiet", "Note: "),
    };
    html! {
        @if !warnings.is_empty() {
            ul.warnings {
                @for warning in warnings {
                    @let (class, label) = shown(warning);
                    li class=(class) { strong { (label) } (format::sentence_case(&warning.text)) "." }
                }
            }
        }
    }
}

/// All checks as a table.
pub(super) fn table(comparison: &Comparison) -> Markup {
    let mut checks = vec![lag(comparison), starts(comparison), failures(comparison)];
    checks.extend(same_load(comparison));
    checks.extend(sample_ratio(comparison));
    checks
        .extend([Balanced::PromptTokens, Balanced::OutputTokens].into_iter().filter_map(|of| balance(comparison, of)));
    html! {
        div.scroll tabindex="0" role="region" aria-label="Checks" {
            table.checks {
                caption { "Checks" }
                thead { tr { th scope="col" { "check" } th scope="col" { "outcome" } th scope="col" { "figures" } } }
                tbody {
                    @for check in &checks {
                        @let (class, word) = check.outcome.shown();
                        tr { th scope="row" { (check.name) } td { strong class=(class) { (word) } } td { (check.figures) } }
                    }
                }
            }
        }
    }
}

fn lag(comparison: &Comparison) -> Check {
    let (outcome, figures) = match comparison.lag_p99_ms {
        Some(late) => (
            CheckResult::of(!has_failed(comparison, "lag")),
            format!(
                "its timers were at most {late:.2} ms late at P99 in the worst run; up to {LATE_MS:.0} ms passes, and so does 2 % of what \
                 the figure that decides is made of"
            ),
        ),
        None => (CheckResult::Unknown, "the rows do not tell how late its timers were".to_owned()),
    };
    Check { name: "load generator on time", outcome, figures }
}

fn starts(comparison: &Comparison) -> Check {
    let of_arm = |name: &str| {
        let cells = comparison.points.iter().flat_map(|point| &point.cells).filter(|cell| cell.arm == name);
        let epochs: Vec<Option<u32>> = cells.flat_map(|cell| &cell.epochs).map(|epoch| epoch.start).collect();
        let known: std::collections::BTreeSet<u32> = epochs.iter().flatten().copied().collect();
        match known.len() {
            0 => format!("{name}: {} epochs, starts not known", epochs.len()),
            starts => format!("{name}: {} epochs on {starts} starts", epochs.len()),
        }
    };
    let arms: Vec<String> = comparison.arms.iter().map(|arm| of_arm(&arm.name)).collect();
    let (outcome, rest) = match comparison.scope {
        Scope::AnyStart => (CheckResult::Passed, "the spread from start to start is in the intervals"),
        Scope::TheseStarts => (CheckResult::Limits, "how much another start would change is not in the intervals"),
        Scope::OneRun => (CheckResult::Limits, "how much other runs would change is not known"),
    };
    Check { name: "epochs and starts of servers", outcome, figures: format!("{}; {rest}", arms.join("; ")) }
}

fn failures(comparison: &Comparison) -> Check {
    let of_arm = |name: &str| {
        let cells = || comparison.points.iter().flat_map(|point| &point.cells).filter(|cell| cell.arm == name);
        let failed: u64 = cells().map(|cell| cell.pooled.failed).sum();
        let good: u64 = cells().map(|cell| cell.pooled.requests).sum();
        format!("{name}: {failed} of {} failed", failed + good)
    };
    let arms: Vec<String> = comparison.arms.iter().map(|arm| of_arm(&arm.name)).collect();
    Check {
        name: "requests answered",
        outcome: CheckResult::of(!has_failed(comparison, "failed")),
        figures: arms.join("; "),
    }
}

fn has_failed(comparison: &Comparison, check: &str) -> bool {
    comparison.warnings.iter().any(|warning| warning.check == check && warning.gravity == Gravity::FailedCheck)
}

/// Of arms that ran in turn.
fn same_load(comparison: &Comparison) -> Option<Check> {
    let mut sizes = Vec::new();
    for point in comparison.points.iter().filter(|point| !point.live_split) {
        let epochs = point.cells.iter().flat_map(|cell| &cell.epochs);
        sizes.extend(epochs.map(|epoch| epoch.summary.requests + epoch.summary.failed));
    }
    let (least, most) = (sizes.iter().min()?, sizes.iter().max()?);
    let figures = if least == most { format!("{least} requests each") } else { format!("{least} to {most} requests") };
    Some(Check { name: "epochs of one size", outcome: CheckResult::of(!has_failed(comparison, "same_load")), figures })
}

/// The load whose split is the least likely by chance.
fn sample_ratio(comparison: &Comparison) -> Option<Check> {
    let ratios = comparison.points.iter().filter_map(|point| point.sample_ratio.as_ref());
    let worst = ratios.min_by(|a, b| a.p.total_cmp(&b.p))?;
    let arms: Vec<String> =
        worst.arms.iter().map(|(name, count, due)| format!("{name} {count} (expected {due:.0})")).collect();
    let figures = format!("sessions of {}; p {}", arms.join(", "), format::p(worst.p));
    Some(Check { name: "sample ratio", outcome: CheckResult::of(worst.passed), figures })
}

/// The load and arm whose means are furthest apart, a failed one first.
fn balance(comparison: &Comparison, of: Balanced) -> Option<Check> {
    let all = comparison.points.iter().flat_map(|point| point.balance.iter().map(move |one| (point, one)));
    let apart = |one: &Balance| (one.arm_mean / one.baseline_mean).ln().abs();
    let rank = |one: &Balance| (!one.passed, apart(one));
    let of_kind: Vec<(&Point, &Balance)> = all.filter(|(_, one)| one.of == of).collect();
    let (point, worst) = of_kind.iter().max_by(|(_, a), (_, b)| {
        let (a, b) = (rank(a), rank(b));
        a.0.cmp(&b.0).then(a.1.total_cmp(&b.1))
    })?;
    let at = if of_kind.len() > 1 { format!(", {}", format::load(point.offered)) } else { String::new() };
    let figures = format!(
        "{:.1} tokens on average in {}, {:.1} in {}{at}; p {}",
        worst.arm_mean,
        worst.arm,
        worst.baseline_mean,
        comparison.baseline,
        format::p(worst.p)
    );
    let name = match of {
        Balanced::PromptTokens => "prompts of one length",
        Balanced::OutputTokens => "answers of one length",
    };
    Some(Check { name, outcome: CheckResult::of(worst.passed), figures })
}
