//! The CPU time of an event by the number of worker threads: before backends that send each event by itself, and before ones that send
//! an event of every stream at once, as a simulated engine's step does.

use super::super::Fallible;
use super::super::contenders::{Field, Setup};
use super::super::options::{Name, Options};
use super::super::rhythm::Rhythm;
use super::super::upstream::Mode;
use super::{Figure, Target, limited, ratio, streams};

/// Streams at once.
const STREAMS: usize = 300;
/// The two ways in which the events come, with their rate in all.
const RHYTHMS: [(Rhythm, &str); 2] =
    [(Rhythm::Alone(18_000), "sent by itself"), (Rhythm::Together(18_000), "sent with those of all streams")];
/// The most that an event may cost with the most threads, as a ratio to the least.
const MOST: f64 = 1.2;

/// The figures, in the order of [`measure`].
pub(super) fn figures(options: &Options) -> Vec<Figure> {
    let counts = &options.thread_counts;
    let mut all = Vec::new();
    for (_, way) in RHYTHMS {
        let of = |what: &str, threads: &u32| ratio(format!("{what} for an event {way}, worker threads: {threads}"));
        all.extend(counts.iter().map(|threads| of("µs of CPU time", threads)));
        all.extend(counts.iter().map(|threads| of("context switches", threads)));
        let growth = |threads| format!("CPU time for an event {way}, {threads} threads ÷ {}", counts[0]);
        all.extend(counts.iter().skip(1).map(|threads| limited(growth(threads), Target::Itself(MOST))));
    }
    all
}

/// The figures of one round.
pub(super) async fn measure(field: &Field, name: Name, options: &Options) -> Fallible<Vec<f64>> {
    let mut costs = RHYTHMS.map(|_| Vec::new());
    for threads in &options.thread_counts {
        let contender = field.start(name, &Setup { threads: *threads, ..field.setup() }).await?;
        for ((rhythm, _), costs) in RHYTHMS.iter().zip(&mut costs) {
            let load = (Mode::Shared(*rhythm), STREAMS);
            costs.push(streams::event_cost(&contender, load, f64::from(rhythm.rate()), options.window()).await?);
        }
    }
    let mut all = Vec::new();
    for costs in &costs {
        all.extend(costs.iter().map(|cost| cost.cpu));
        all.extend(costs.iter().map(|cost| cost.switches));
        all.extend(costs.iter().skip(1).map(|cost| cost.cpu / costs[0].cpu));
    }
    Ok(all)
}
