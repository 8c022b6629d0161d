//! What may bound an arm, and what a diagnosis says of it. Pure data.

use serde::Serialize;

/// The cause that bound an arm: the resource of which more would have helped most.
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
    /// The client's concurrency: a closed loop is a load, and the servers would have taken more of it.
    Concurrency,
    /// The server's HTTP side: the engine was done with tokens long before they were sent on.
    HttpSide,
    /// The load generator or its machine: answers were ready before they were read.
    SlowClient,
    /// Not told by what is known.
    Undecided,
}

impl Cause {
    /// Every cause that a diagnosis may name, and last the word for none.
    pub const ALL: [Cause; 9] = [
        Cause::KvRoom,
        Cause::CapOnRunning,
        Cause::StepTime,
        Cause::Prefill,
        Cause::Arrival,
        Cause::Concurrency,
        Cause::HttpSide,
        Cause::SlowClient,
        Cause::Undecided,
    ];

    /// Its name in a sentence.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Cause::KvRoom => "KV-cache capacity",
            Cause::CapOnRunning => "a cap on running sequences",
            Cause::StepTime => "step time",
            Cause::Prefill => "prefill",
            Cause::Arrival => "the load offered",
            Cause::Concurrency => "the client's concurrency",
            Cause::HttpSide => "the server's HTTP side",
            Cause::SlowClient => "a slow client",
            Cause::Undecided => "undecided",
        }
    }
}

/// The cause that bound an arm, and why one may believe it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Diagnosis {
    /// The cause.
    pub cause: Cause,
    /// The cause alone; where undecided, what it may be, likeliest first.
    pub candidates: Vec<Cause>,
    /// One sentence with its figures.
    pub sentence: String,
    /// The grounds that it rests on, a line each.
    pub evidence: Vec<String>,
    /// The measurements that would tell where it is undecided, a line each.
    pub would_tell: Vec<String>,
}
