//! The truth of a run, by experiment: the same run again with twice of one thing.

use forebay_lab::diagnosis::Cause;
use forebay_lab::rows::row_file::Offered;

use super::engine::run;
use super::setup::Setup;

/// The causes that an experiment can try.
pub(crate) const TRIED: [Cause; 8] = [
    Cause::KvRoom,
    Cause::CapOnRunning,
    Cause::StepTime,
    Cause::Prefill,
    Cause::Arrival,
    Cause::Concurrency,
    Cause::HttpSide,
    Cause::SlowClient,
];

/// The setting with twice of one thing.
fn twice(setup: &Setup, cause: Cause) -> Setup {
    let mut other = setup.clone();
    match cause {
        Cause::KvRoom => other.blocks *= 2,
        Cause::CapOnRunning => other.max_num_seqs *= 2,
        Cause::StepTime => {
            other.step_us /= 2.0;
            other.sequence_us /= 2.0;
            other.context_us /= 2.0;
        }
        Cause::Prefill => other.prompt_us /= 2.0,
        Cause::HttpSide => other.event_us /= 2.0,
        Cause::SlowClient => other.client_us /= 2.0,
        Cause::Arrival | Cause::Concurrency => {
            other.offered = match other.offered {
                Offered::Rate(rate) => Offered::Rate(2.0 * rate),
                Offered::Concurrency(most) => Offered::Concurrency(2 * most),
                same => same,
            };
        }
        Cause::Undecided => {}
    }
    other
}

/// Tokens a second with twice of one thing, over those without.
pub(crate) fn gain(setup: &Setup, cause: Cause) -> f64 {
    run(&twice(setup, cause)).throughput() / run(setup).throughput()
}

/// Whether naming this cause was wrong: doing something about it gains little, or of step time something else gains more.
pub(crate) fn wrong(setup: &Setup, named: Cause) -> Option<String> {
    let own = gain(setup, named);
    if own < 1.12 {
        return Some(format!("twice of {} gains {own:.2}", named.name()));
    }
    if named != Cause::StepTime {
        return None;
    }
    let others = TRIED.iter().filter(|cause| **cause != Cause::StepTime);
    let better = others.map(|cause| (gain(setup, *cause), *cause)).find(|(gain, _)| *gain >= 1.2)?;
    Some(format!("twice of {} gains {:.2}", better.1.name(), better.0))
}
