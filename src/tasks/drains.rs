//! Ends the drains by hand whose time is over. Reads memory only.

use std::sync::Arc;
use std::time::Duration;

use forebay_core::clock::Clock;
use forebay_fleet::membership::controller::Controller;

/// The time between two looks, by which a drain may last longer.
const LOOK: Duration = Duration::from_millis(500);

/// Ends drains until it is dropped.
pub async fn end_drains(controller: Arc<Controller>, clock: Clock) {
    loop {
        tokio::time::sleep(LOOK).await;
        controller.end_drains(clock.now());
    }
}
