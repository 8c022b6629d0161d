//! How long a thread of Forebay did not return to its loop: what a build with `--cfg tokio_unstable` says of the polls of its tasks.

use std::collections::BTreeMap;

use super::Fallible;
use super::client::{Connection, get};
use super::contenders::Contender;

/// The runtime whose threads serve requests.
const REQUESTS: &str = "requests";

/// What the metrics of a Forebay say at one moment.
#[derive(Default)]
pub(super) struct Told {
    /// Polls by runtime and by the microseconds that they took at most.
    polls: BTreeMap<(String, u64), f64>,
    /// Configurations that were put into force.
    pub(super) reloads: f64,
}

/// The longest polls of a time, in milliseconds, to 50 µs.
#[derive(Clone, Copy, Default)]
pub(super) struct Longest {
    /// On a thread that serves requests.
    pub(super) requests: Option<f64>,
    /// On a thread of the admin API, or of the tasks.
    pub(super) others: Option<f64>,
}

impl Told {
    /// Asks a contender. One without metrics tells nothing.
    pub(super) async fn by(contender: &Contender) -> Fallible<Told> {
        let Some(admin) = &contender.admin else { return Ok(Told::default()) };
        let page = Connection::open(admin).await?.exchange(get("/metrics")?).await?;
        Ok(Told::read(&String::from_utf8_lossy(&page)))
    }

    fn read(page: &str) -> Told {
        let mut told = Told::default();
        for line in page.lines() {
            let Some((series, value)) = line.rsplit_once(' ') else { continue };
            let Ok(value) = value.parse::<f64>() else { continue };
            if series == "forebay_config_reloads_total{result=\"applied\"}" {
                told.reloads = value;
            }
            let label =
                |name: &str| series.split_once(&format!("{name}=\"")).and_then(|(_, rest)| rest.split('"').next());
            if !series.starts_with("forebay_polls_total{") {
                continue;
            }
            if let (Some(runtime), Some(Ok(most))) = (label("runtime"), label("microseconds").map(str::parse)) {
                told.polls.insert((runtime.to_owned(), most), value);
            }
        }
        told
    }

    /// The longest polls between an earlier moment and this one; none from a build that does not count them.
    pub(super) fn longest_since(&self, earlier: &Told) -> Longest {
        let longest = |of_requests: bool| {
            let ended =
                self.polls.iter().filter(|(poll, count)| **count > earlier.polls.get(poll).copied().unwrap_or(0.0));
            let such = ended.filter(|((runtime, _), _)| (runtime == REQUESTS) == of_requests);
            such.map(|((_, micros), _)| *micros as f64 / 1e3).reduce(f64::max)
        };
        Longest { requests: longest(true), others: longest(false) }
    }
}
