//! The works: what load each is, and which figures it gives.

mod latency;
mod memory;
mod streams;
mod unary;

use super::Fallible;
use super::contenders::Contender;
use super::options::{Options, Work};

/// One figure of a work.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Figure {
    /// What it is, with its unit.
    pub(super) what: &'static str,
    /// How a contender's figure is held against another's.
    pub(super) against: Against,
    /// The most that Forebay's may be, where there is a target.
    pub(super) target: Option<Target>,
}

/// How two contenders' figures of one round are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Against {
    /// One divided by the other.
    Ratio,
    /// One less the other: for figures that may be near 0.
    Difference,
}

/// A limit for Forebay.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Target {
    /// Of the ratio to nginx. The ratio to an earlier Forebay may be at most 1.05.
    ToNginx(f64),
    /// Of the figure itself.
    Itself(f64),
}

const fn ratio(what: &'static str) -> Figure {
    Figure { what, against: Against::Ratio, target: None }
}

const fn difference(what: &'static str) -> Figure {
    Figure { what, against: Against::Difference, target: None }
}

const fn limited(what: &'static str, target: Target) -> Figure {
    Figure { what, against: Against::Ratio, target: Some(target) }
}

/// The most that a paced event with TLS may cost, as a ratio to nginx with TLS.
const PACED_TLS: f64 = 1.2;

/// The figures of a work, in the order in which [`measure`] returns them. `tls`: clients speak it.
pub(super) fn figures(work: Work, tls: bool) -> Vec<Figure> {
    const PACED: [Figure; 1] = [limited("CPU time for an event, µs", Target::ToNginx(2.0))];
    const UNPACED: [Figure; 2] = [ratio("CPU time for an event, µs"), ratio("events/s (more is better)")];
    const UNARY: [Figure; 2] =
        [limited("CPU time for a request, µs", Target::ToNginx(3.2)), ratio("requests/s (more is better)")];
    const PROMPTS: [Figure; 2] = [ratio("CPU time for a request, µs"), ratio("requests/s (more is better)")];
    const MEMORY: [Figure; 1] = [limited("memory for an open stream, KiB", Target::Itself(60.0))];
    const LATENCY: [Figure; 5] = [
        difference("TTFT, median, ms"),
        difference("TTFT, P99, ms"),
        difference("delay of an event, median, ms"),
        difference("delay of an event, P99, ms"),
        difference("gap between events, P99, ms"),
    ];
    let plain: &[Figure] = match work {
        Work::Paced => &PACED,
        Work::Unpaced => &UNPACED,
        Work::Unary => &UNARY,
        Work::Prompts => &PROMPTS,
        Work::Memory => &MEMORY,
        Work::Latency => &LATENCY,
    };
    if !tls {
        return plain.to_vec();
    }
    // Encryption costs each proxy the same, so that what is left of a ratio is smaller.
    let target = (work == Work::Paced).then_some(Target::ToNginx(PACED_TLS));
    plain.iter().map(|figure| Figure { target, ..*figure }).collect()
}

/// Runs a work on one contender for one round.
pub(super) async fn measure(work: Work, contender: &Contender, options: &Options) -> Fallible<Vec<f64>> {
    let window = options.window();
    match work {
        Work::Paced => streams::paced(contender, window).await,
        Work::Unpaced => streams::unpaced(contender, window).await,
        Work::Unary => unary::small(contender, window).await,
        Work::Prompts => unary::prompts(contender, window).await,
        Work::Memory => memory::open_streams(contender, options.memory_streams as usize).await,
        Work::Latency => latency::turns(contender, window).await,
    }
}
