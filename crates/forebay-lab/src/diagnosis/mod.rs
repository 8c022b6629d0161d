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

use serde::Serialize;

mod contrast;
mod evidence;
mod judge;
mod plain;
mod servers;
mod shares;
mod words;

pub use contrast::{Contrast, contrast};
pub use evidence::{Evidence, Seen};
pub use servers::Servers;
pub use shares::Shares;

/// What bound an arm: the resource of which more would have helped most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// Memory for keys and values: sequences waited for blocks, or lost theirs and were computed again.
    KvRoom,
    /// A cap on running sequences (`max_num_seqs`), with memory to spare.
    CapOnRunning,
    /// Nothing waited for room: the steps themselves took the time.
    StepTime,
    /// The computing of prompts.
    Prefill,
    /// The load: the arm kept up with what was offered.
    Arrival,
    /// The load generator or its machine: answers were ready before they were read.
    SlowClient,
    /// What is known does not tell.
    Undecided,
}

impl Cause {
    /// Every cause that a diagnosis may name, and last the word for none.
    pub const ALL: [Cause; 7] = [
        Cause::KvRoom,
        Cause::CapOnRunning,
        Cause::StepTime,
        Cause::Prefill,
        Cause::Arrival,
        Cause::SlowClient,
        Cause::Undecided,
    ];

    /// Its name in a sentence.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Cause::KvRoom => "KV room",
            Cause::CapOnRunning => "a cap on running sequences",
            Cause::StepTime => "step time",
            Cause::Prefill => "prefill",
            Cause::Arrival => "the load offered",
            Cause::SlowClient => "a slow client",
            Cause::Undecided => "undecided",
        }
    }
}

/// What bound an arm, and why one may believe it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Diagnosis {
    /// The cause.
    pub cause: Cause,
    /// Where undecided: what it may be, likeliest first. Otherwise the cause alone.
    pub candidates: Vec<Cause>,
    /// One sentence with its figures.
    pub sentence: String,
    /// What it rests on, a line each.
    pub evidence: Vec<String>,
    /// Where undecided: what would tell, a line each.
    pub would_tell: Vec<String>,
}

/// What bound the arm.
#[must_use]
pub fn diagnose(evidence: &Evidence) -> Diagnosis {
    let found = judge::judge(evidence);
    words::diagnosis(evidence, &found)
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
