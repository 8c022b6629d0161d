//! The last things before the process ends: spans and lines of the logs that are still to be written, within a limit.

use std::sync::Arc;
use std::time::Duration;

use super::lifecycle::DrainEnd;
use super::listener::Connections;
use super::parts::Common;
use forebay_fleet::telemetry::log::AccessLog;
use forebay_fleet::telemetry::trace;

/// The time within which what is buffered of a log must be written at the end.
const FLUSH_LIMIT: Duration = Duration::from_secs(2);

/// The service that ends the process once its last connection is gone, or the limit is over.
pub(super) fn drain_end(common: &Arc<Common>, connections: Connections, limit: Duration) -> DrainEnd {
    let flushed = Arc::clone(common);
    let before_exit = Box::new(move || {
        flush_spans(&flushed);
        flush(&flushed.access_log);
    });
    DrainEnd { connections, limit, look: common.look(), shutdown: common.shutdown.clone(), before_exit }
}

fn flush_spans(common: &Common) {
    if common.spans.as_ref().is_some_and(|spans| !spans.flush(FLUSH_LIMIT)) {
        tracing::warn!("the collector does not take spans in time: the last ones are lost");
    }
}

/// Writes what is left of both logs.
pub(super) fn flush(log: &AccessLog) {
    if !log.flush(FLUSH_LIMIT) {
        tracing::warn!("the access log's reader does not keep up: the last lines are lost");
    }
    // Nobody is left to be told of lines that are lost now.
    _ = trace::flush(FLUSH_LIMIT);
}
