//! A panic is a bug, and costs the one thing that it happened in: it is caught there and counted. What the panicking code held
//! is given back by its own drops, as anywhere.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::task::Poll;

use super::Telemetry;
use super::labels::Panicked;

/// The future's value; `None` if it panicked, which is counted. The panic hook has told the log.
pub async fn caught<T>(telemetry: &Telemetry, place: Panicked, future: impl Future<Output = T>) -> Option<T> {
    let mut future = std::pin::pin!(future);
    std::future::poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx))) {
        Ok(polled) => polled.map(Some),
        // A future that panicked must not be polled again: ready, it never is.
        Err(_) => {
            telemetry.process.panicked(place);
            Poll::Ready(None)
        }
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_counted_and_what_was_held_is_given_back() {
        let (telemetry, held) = (Telemetry::new(), std::sync::Arc::new(()));
        let inside = std::sync::Arc::clone(&held);
        let panics = async move {
            tokio::task::yield_now().await;
            assert!(std::sync::Arc::strong_count(&inside) > 9, "a bug");
        };
        assert_eq!(caught(&telemetry, Panicked::Task, panics).await, None);
        assert_eq!(std::sync::Arc::strong_count(&held), 1);
        assert_eq!(caught(&telemetry, Panicked::Task, async { 7 }).await, Some(7));
        let text = telemetry.render(&[], &[]);
        assert!(text.contains("forebay_panics_total{where=\"task\"} 1"), "{text}");
        assert!(text.contains("forebay_panics_total{where=\"request\"} 0"), "{text}");
    }
}
