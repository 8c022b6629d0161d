//! The times for which threads do not return to their loop, for measurements: tokio's own histogram of how long each poll of a task
//! takes, by runtime. It exists only in builds with `--cfg tokio_unstable`. No release is one, since it costs two clock reads a poll.
//!
//! It shows what a task does between two awaits, and what a busy machine adds. It does not show the loop's own work: events of the
//! kernel, timers, and tasks that are dropped. What runs on threads for blocking work is not in it, either.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use pingora::server::configuration::ServerConf;
use tokio::runtime::{Handle, RuntimeMetrics};

/// The width of a bucket, in microseconds.
const WIDTH: u64 = 50;
/// The number of buckets. What takes longer than 51 ms is in the last.
const BUCKETS: usize = 1_024;

/// The runtimes of the process's services.
static RUNTIMES: Mutex<Vec<(&'static str, RuntimeMetrics)>> = Mutex::new(Vec::new());

/// Lets each runtime of a server count.
pub(super) fn counted(conf: ServerConf) -> ServerConf {
    ServerConf {
        runtime_metrics_poll_time_histogram: true,
        runtime_metrics_poll_time_histogram_resolution_micros: Some(WIDTH),
        runtime_metrics_poll_time_histogram_buckets: Some(BUCKETS),
        ..conf
    }
}

/// Shows the runtime that this is called on, under a name.
pub(super) fn watch(name: &'static str) {
    RUNTIMES.lock().unwrap_or_else(PoisonError::into_inner).push((name, Handle::current().metrics()));
}

/// The lines of `/metrics`: for each runtime, how many polls took at most so many microseconds and more than a bucket's width less.
pub(super) fn render() -> String {
    let mut polls: BTreeMap<(&str, usize), u64> = BTreeMap::new();
    for (name, metrics) in RUNTIMES.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        for bucket in 0..metrics.poll_time_histogram_num_buckets() {
            let of_worker = |worker| metrics.poll_time_histogram_bucket_count(worker, bucket);
            *polls.entry((name, bucket)).or_default() += (0..metrics.num_workers()).map(of_worker).sum::<u64>();
        }
    }
    let mut text = "# HELP forebay_polls_total Polls of tasks, by runtime and by the time that they took at most.\n\
                    # TYPE forebay_polls_total counter\n"
        .to_owned();
    // A thousand buckets are nearly all empty.
    for ((name, bucket), count) in polls.into_iter().filter(|(_, count)| *count > 0) {
        let most = (bucket as u64 + 1) * WIDTH;
        text += &format!("forebay_polls_total{{runtime=\"{name}\",microseconds=\"{most}\"}} {count}\n");
    }
    text
}
