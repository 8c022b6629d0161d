//! The works: what load each is, and which figures it gives.

mod disturbance;
mod growth;
mod latency;
mod memory;
mod streams;
mod threads;
mod unary;

use std::borrow::Cow;

use super::Fallible;
use super::contenders::{Contender, Field};
use super::options::{Name, Options, Work};

/// One figure of a work.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Figure {
    /// What it is, with its unit.
    pub(super) what: Cow<'static, str>,
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
    /// Of the figure against nginx's, as the two are compared. The ratio to an earlier Forebay may be at most 1.05.
    ToNginx(f64),
    /// Of the figure itself.
    Itself(f64),
    /// Of what is added to the figure of a direct connection, as a ratio to what nginx adds.
    AddedToNginx(f64),
}

impl Figure {
    fn new(what: impl Into<Cow<'static, str>>, against: Against, target: Option<Target>) -> Figure {
        Figure { what: what.into(), against, target }
    }
}

fn ratio(what: impl Into<Cow<'static, str>>) -> Figure {
    Figure::new(what, Against::Ratio, None)
}

fn difference(what: impl Into<Cow<'static, str>>) -> Figure {
    Figure::new(what, Against::Difference, None)
}

fn limited(what: impl Into<Cow<'static, str>>, target: Target) -> Figure {
    Figure::new(what, Against::Ratio, Some(target))
}

/// The most that a paced event with TLS may cost, as a ratio to nginx with TLS.
const PACED_TLS: f64 = 1.2;

/// The figures of a work, in the order in which [`standing`] and [`apart`] return them.
pub(super) fn figures(work: Work, options: &Options) -> Vec<Figure> {
    let plain = match work {
        Work::Paced => vec![limited("CPU time for an event, µs", Target::ToNginx(2.0))],
        Work::Unpaced => vec![ratio("CPU time for an event, µs"), ratio("events/s (more is better)")],
        Work::Unary => {
            vec![limited("CPU time for a request, µs", Target::ToNginx(3.2)), ratio("requests/s (more is better)")]
        }
        Work::Prompts => vec![ratio("CPU time for a request, µs"), ratio("requests/s (more is better)")],
        Work::Memory => vec![limited("memory for an open stream, KiB", Target::Itself(60.0))],
        Work::Latency => vec![
            difference("TTFT, median, ms"),
            Figure::new("TTFT, P99, ms", Against::Difference, Some(Target::AddedToNginx(1.2))),
            difference("delay of an event, median, ms"),
            difference("delay of an event, P99, ms"),
            difference("gap between events, P99, ms"),
        ],
        Work::Growth => growth::figures(options),
        Work::Threads => threads::figures(options),
        Work::Disturbance => disturbance::figures(options),
    };
    if !options.tls {
        return plain;
    }
    // Encryption costs each proxy the same, so that what is left of a ratio is smaller.
    let target = (work == Work::Paced).then_some(Target::ToNginx(PACED_TLS));
    plain.into_iter().map(|figure| Figure { target, ..figure }).collect()
}

/// Runs a work for one round on a contender that serves others, too.
pub(super) async fn standing(work: Work, contender: &Contender, options: &Options) -> Fallible<Vec<f64>> {
    let window = options.window();
    match work {
        Work::Paced => streams::paced(contender, window).await,
        Work::Unpaced => streams::unpaced(contender, window).await,
        Work::Unary => unary::small(contender, window).await,
        Work::Prompts => unary::prompts(contender, window).await,
        Work::Latency => latency::turns(contender, window).await,
        Work::Memory | Work::Growth | Work::Threads | Work::Disturbance => Err("it needs a process of its own".into()),
    }
}

/// Runs a work for one round on processes that it starts itself. A figure may be one that the contender does not have.
pub(super) async fn apart(work: Work, field: &Field, name: Name, options: &Options) -> Fallible<Vec<Option<f64>>> {
    let values = match work {
        Work::Memory => {
            let contender = field.start(name, &field.setup()).await?;
            vec![memory::open_streams(&contender, options.memory_streams as usize).await?]
        }
        Work::Growth => growth::measure(field, name, options).await?,
        Work::Threads => threads::measure(field, name, options).await?,
        Work::Disturbance => return disturbance::measure(field, name, options).await,
        Work::Paced | Work::Unpaced | Work::Unary | Work::Prompts | Work::Latency => {
            return Err("it needs a process that stands".into());
        }
    };
    Ok(values.into_iter().map(Some).collect())
}
