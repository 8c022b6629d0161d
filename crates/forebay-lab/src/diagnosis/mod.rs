//! Why an arm was not faster: what bound it under one load, in one sentence with its figures. From rows with looks at the servers
//! ([`Evidence::of`]), or from the fourteen rows of a table alone ([`Evidence::of_table`]), which knows less and says so. Pure.
//!
//! What a step costs is fitted to the run (`costs.rs`): so much whatever is in it, above all reading the weights, so much for each
//! sequence that decodes in it, and so much for each prompt token that is computed. With these costs the run is made again in
//! thought (`replay.rs`), and then with twice of one thing (`what_if.rs`): the cause is what gains. It is named where it would gain by
//! all costs that the run allows, where the replay gives the run as it was, and where the servers' metrics were scraped. Otherwise
//! it is a guess, and said to be one.

use std::collections::BTreeMap;

mod cause;
mod contrast;
mod costs;
mod evidence;
mod explanation;
mod finding;
mod judge;
mod replay;
mod seen;
mod servers;
mod shares;
mod table_diagnosis;
mod what_if;

pub use cause::{Cause, Diagnosis};
pub use contrast::{Contrast, contrast};
pub use evidence::{Evidence, RequestFigures};
pub use servers::Servers;
pub use shares::Shares;
pub use what_if::{Gain, WhatIf};

/// Finds what bound the arm.
#[must_use]
pub fn diagnose(evidence: &Evidence) -> Diagnosis {
    let found = judge::judge(evidence);
    explanation::diagnosis(evidence, &found)
}

/// One word on several runs of an arm under the same load: the first diagnosis of what they agree on; undecided where they do not.
/// None of no runs.
#[must_use]
pub fn agreed(of_runs: &[Diagnosis]) -> Option<Diagnosis> {
    let first = of_runs.first()?;
    if of_runs.iter().all(|one| (one.cause, &one.candidates) == (first.cause, &first.candidates)) {
        return Some(first.clone());
    }
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for one in of_runs {
        let word = match (one.cause, one.candidates.as_slice()) {
            (Cause::Undecided, []) => Cause::Undecided.name().to_owned(),
            (Cause::Undecided, candidates) => format!("perhaps {}", explanation::listed(candidates)),
            (cause, _) => cause.name().to_owned(),
        };
        *counts.entry(word).or_default() += 1;
    }
    let said: Vec<String> = counts.into_iter().map(|(word, count)| format!("{word} in {count}")).collect();
    let mut candidates: Vec<Cause> = of_runs.iter().flat_map(|one| one.candidates.clone()).collect();
    candidates.sort_unstable();
    candidates.dedup();
    let mut would_tell = vec!["More runs; and what differed between these.".to_owned()];
    for line in of_runs.iter().flat_map(|one| &one.would_tell) {
        if !would_tell.contains(line) {
            would_tell.push(line.clone());
        }
    }
    Some(Diagnosis {
        cause: Cause::Undecided,
        candidates,
        sentence: format!("Undecided: the {} runs do not agree ({}).", of_runs.len(), said.join(", ")),
        evidence: of_runs.iter().map(|one| one.sentence.clone()).collect(),
        would_tell,
    })
}

#[cfg(test)]
mod tests;
