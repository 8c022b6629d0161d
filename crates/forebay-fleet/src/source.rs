//! The source of an arm's backends, and how it does: when it last answered, what it named, and what went wrong since. Shown by
//! `/api/fleet` and `/metrics`; asked by a task, which knows the network.

use std::sync::Mutex;

use serde::Serialize;

use crate::config::model::Discover;
use crate::locked;
use crate::telemetry::labels::DiscoveryFailure;
use forebay_core::clock::Time;
use forebay_core::kubernetes::GatewayCondition;

/// The longest text of an error that is kept.
const LONGEST: usize = 300;

/// The source of one arm's backends.
#[derive(Debug)]
pub struct Source {
    /// The one to ask, and the way in which the backends are met.
    pub discover: Discover,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    answered: Option<Time>,
    taken: Taken,
    /// The last error since the last good answer.
    fault: Option<String>,
    /// The conditions that gateways wrote about an InferencePool.
    gateways: Vec<GatewayCondition>,
    errors: [u64; DiscoveryFailure::ALL.len()],
}

/// The changes that one answer of a source made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// Backends that take requests.
    pub ready: usize,
    /// Backends that the source names and that shall get none.
    pub unready: usize,
    /// Backends beyond `max_backends`.
    pub left_out: usize,
    /// URLs that are new.
    pub joined: Vec<String>,
    /// URLs that the source no longer names.
    pub gone: Vec<String>,
    /// True if anything is other than before.
    pub changed: bool,
}

/// The source of one arm's backends at one moment.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SourceView {
    /// `dns`, `kubernetes` or `inference_pool`.
    pub kind: &'static str,
    /// The thing that it is asked for, in words.
    pub target: String,
    /// Seconds since the last good answer; none: there was none yet.
    pub age_seconds: Option<f64>,
    /// Backends that it named then and that take requests.
    pub found: usize,
    /// Backends that it named then and that shall get no requests.
    pub unready: usize,
    /// Backends that it named then and that are beyond `max_backends`.
    pub left_out: usize,
    /// The last error since then.
    pub error: Option<String>,
    /// The conditions that gateways wrote about an InferencePool, such as `Accepted`; none of any other source.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gateways: Option<Vec<GatewayCondition>>,
    /// Questions that went wrong since the source was configured, by reason.
    #[serde(skip)]
    pub errors: Vec<(&'static str, u64)>,
}

impl Source {
    /// A source that was not asked yet.
    #[must_use]
    pub fn new(discover: Discover) -> Source {
        Source { discover, state: Mutex::default() }
    }

    /// It answered that nothing changed.
    pub fn confirmed(&self, now: Time) {
        let mut state = locked(&self.state);
        (state.answered, state.fault) = (Some(now), None);
    }

    /// Takes over what gateways say of its InferencePool.
    pub fn told(&self, conditions: Vec<GatewayCondition>) {
        locked(&self.state).gateways = conditions;
    }

    /// It could not be asked, or its answer could not be used. Returns whether that is news.
    pub fn failed(&self, failure: DiscoveryFailure, reason: &str) -> bool {
        let mut state = locked(&self.state);
        state.errors[failure as usize] += 1;
        // Another server wrote parts of it: it goes to a log and to a page.
        let reason: String = reason.chars().filter(|c| !c.is_control()).take(LONGEST).collect();
        let news = state.fault.as_ref() != Some(&reason);
        state.fault = Some(reason);
        news
    }

    /// Returns whether it has answered once.
    #[must_use]
    pub fn has_answered(&self) -> bool {
        locked(&self.state).answered.is_some()
    }

    /// Returns how it does at `now`.
    #[must_use]
    pub fn view(&self, now: Time) -> SourceView {
        let state = locked(&self.state);
        SourceView {
            kind: self.discover.source.label(),
            target: self.discover.source.target(),
            age_seconds: state.answered.map(|at| now.secs_since(at)),
            found: state.taken.ready,
            unready: state.taken.unready,
            left_out: state.taken.left_out,
            error: state.fault.clone(),
            gateways: self.discover.is_of_pool().then(|| state.gateways.clone()),
            errors: DiscoveryFailure::ALL.iter().map(|one| (one.label(), state.errors[*one as usize])).collect(),
        }
    }

    /// Notes an answer. Returns whether more are left out than before.
    pub(crate) fn took(&self, taken: &Taken, now: Time) -> bool {
        let mut state = locked(&self.state);
        let cut = taken.left_out > 0 && state.taken.left_out == 0;
        (state.answered, state.fault, state.taken) = (Some(now), None, taken.clone());
        cut
    }
}
