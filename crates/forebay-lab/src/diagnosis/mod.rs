//! Why an arm was not faster: what bound it under one load, in one sentence with its figures. A run's time is shared out
//! among what could have shortened it; a cause is named where its share leads, and otherwise what would tell the causes
//! apart. From rows with looks at the servers ([`Evidence::of`]), or from the fourteen rows of a table alone
//! ([`Evidence::of_table`]), which knows less and says so. Pure.
//!
//! Every step of an engine costs so much whatever is in it (above all: reading the weights), so much for each sequence that
//! decodes in it, and so much for each prompt token. While requests wait for room (KV blocks, or a place under
//! `max_num_seqs`), more room would spread the first of these over more sequences: that share of the time is the room's.
//! Prompt tokens are prefill's share. Faster steps shorten any run; so step time is named where neither of the others has a share
//! worth naming: then only faster steps would have helped.

mod cause;
mod contrast;
mod evidence;
mod explanation;
mod finding;
mod judge;
mod servers;
mod shares;
mod table_diagnosis;

pub use cause::{Cause, Diagnosis};
pub use contrast::{Contrast, contrast};
pub use evidence::{Evidence, RequestFigures};
pub use servers::Servers;
pub use shares::Shares;

/// Finds what bound the arm.
#[must_use]
pub fn diagnose(evidence: &Evidence) -> Diagnosis {
    let found = judge::judge(evidence);
    explanation::diagnosis(evidence, &found)
}

/// One word on several runs of an arm under the same load: the first diagnosis of the cause that they agree on; undecided
/// where they do not. None of no runs.
#[must_use]
pub fn agreed(of_runs: &[Diagnosis]) -> Option<Diagnosis> {
    let first = of_runs.first()?;
    if of_runs.iter().all(|one| one.cause == first.cause) {
        return Some(first.clone());
    }
    let counts = Cause::ALL.map(|cause| (cause, of_runs.iter().filter(|one| one.cause == cause).count()));
    let said: Vec<String> = counts
        .iter()
        .filter(|(_, count)| *count > 0)
        .map(|(cause, count)| format!("{} in {count}", cause.name()))
        .collect();
    let mut candidates: Vec<Cause> = of_runs.iter().flat_map(|one| one.candidates.clone()).collect();
    candidates.sort_unstable();
    candidates.dedup();
    Some(Diagnosis {
        cause: Cause::Undecided,
        candidates,
        sentence: format!("Undecided: the {} runs do not agree ({}).", of_runs.len(), said.join(", ")),
        evidence: of_runs.iter().map(|one| one.sentence.clone()).collect(),
        would_tell: vec!["More runs; and what differed between these.".to_owned()],
    })
}

#[cfg(test)]
mod tests;
