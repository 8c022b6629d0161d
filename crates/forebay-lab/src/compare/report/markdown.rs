//! A comparison as Markdown, for an issue or a pull request. Pure.

use super::text;
use crate::compare::format;
use crate::compare::model::{Comparison, Gravity, Warning};

/// The report.
#[must_use]
pub fn markdown(comparison: &Comparison) -> String {
    let names: Vec<String> = comparison.arms.iter().map(|arm| escaped(&arm.name)).collect();
    let mut out = format!("# {}\n\n", names.join(" / "));
    let (failed, other): (Vec<_>, Vec<_>) =
        comparison.warnings.iter().partition(|warning| warning.gravity == Gravity::FailedCheck);
    warnings(&failed, &mut out);
    for sentence in format::verdicts(comparison) {
        out.push_str(&format!("**{}**\n\n", escaped(&sentence)));
    }
    warnings(&other, &mut out);
    for point in &comparison.points {
        out.push_str(&format!("\n## Load: {}\n\n", escaped(&format::heading(point))));
        table(&text::figures(point), &mut out);
        for line in text::diagnoses(point) {
            out.push_str(&format!("\n{}\n", escaped(&line)));
        }
        let ratios = text::ratios(point);
        if ratios.len() > 1 {
            out.push('\n');
            table(&ratios, &mut out);
        }
        for note in text::footnotes(point) {
            out.push_str(&format!("\n{}\n", escaped(&note)));
        }
    }
    if !comparison.crossovers.is_empty() {
        out.push_str("\n## Crossover\n\n");
        for crossover in &comparison.crossovers {
            out.push_str(&format!("- {}\n", escaped(&format::crossover(crossover))));
        }
    }
    out
}

fn warnings(warnings: &[&Warning], out: &mut String) {
    for warning in warnings {
        let label = match warning.gravity {
            Gravity::FailedCheck => "**Failed check:** ",
            Gravity::Scope => "**Scope:** ",
            Gravity::Note => "",
        };
        out.push_str(&format!("> {label}{}\n>\n", escaped(&warning.text)));
    }
    if !warnings.is_empty() {
        out.push('\n');
    }
}

/// Text that Markdown shows as it is, also in a table; names come from files.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for char in text.chars() {
        if matches!(char, '\\' | '`' | '*' | '_' | '[' | ']' | '<' | '>' | '|' | '#') {
            out.push('\\');
        }
        out.push(if char == '\n' { ' ' } else { char });
    }
    out
}

fn table(rows: &[Vec<String>], out: &mut String) {
    for (index, row) in rows.iter().enumerate() {
        let cells: Vec<String> = row.iter().map(|cell| escaped(cell)).collect();
        out.push_str(&format!("| {} |\n", cells.join(" | ")));
        if index == 0 {
            let rules: Vec<&str> =
                row.iter().enumerate().map(|(column, _)| if column == 0 { "---" } else { "---:" }).collect();
            out.push_str(&format!("|{}|\n", rules.join("|")));
        }
    }
}
