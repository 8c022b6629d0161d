//! One clock for all who watch: once a second the page's JSON is made, once, and every stream sends those same bytes. It ticks
//! while somebody watches and not else. A client that reads slowly misses ticks: there is only ever the latest one to send.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::{Body, Bytes};
use forebay_fleet::lock::locked;
use futures_util::stream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::MissedTickBehavior;

/// The time between two updates of the page.
const EVERY: Duration = Duration::from_secs(1);
/// Streams at a time.
pub(super) const MAX_CLIENTS: usize = 32;

/// Runs for as long as somebody watches: makes the JSON of one tick at each call.
pub type Ticks = Box<dyn FnMut() -> String + Send>;

/// The source of the page's event streams. Cheap to clone.
#[derive(Clone)]
pub(super) struct Hub(Arc<Inner>);

struct Inner {
    begin: Arc<dyn Fn() -> Ticks + Send + Sync>,
    places: Arc<Semaphore>,
    /// The clock that runs, if one does.
    clock: Mutex<watch::Sender<Bytes>>,
}

impl Hub {
    pub(super) fn new(begin: Arc<dyn Fn() -> Ticks + Send + Sync>) -> Hub {
        let clock = Mutex::new(watch::Sender::default());
        Hub(Arc::new(Inner { begin, places: Arc::new(Semaphore::new(MAX_CLIENTS)), clock }))
    }

    /// One tick, for who asks once.
    pub(super) fn once(&self) -> String {
        (self.0.begin)()()
    }

    /// A stream of server-sent events, a tick a second; none while [`MAX_CLIENTS`] watch.
    pub(super) fn subscribe(&self) -> Option<Body> {
        let place = Arc::clone(&self.0.places).try_acquire_owned().ok()?;
        Some(Body::from_stream(stream::unfold((self.receiver(), place), next)))
    }

    /// The running clock's ticks; starts one if none runs.
    fn receiver(&self) -> watch::Receiver<Bytes> {
        let mut clock = locked(&self.0.clock);
        // Looked at and joined under one lock, and left under it too: a clock that was joined does not end.
        if clock.receiver_count() == 0 {
            *clock = watch::Sender::default();
            let receiver = clock.subscribe();
            tokio::spawn(run(Arc::clone(&self.0), clock.clone()));
            return receiver;
        }
        let mut receiver = clock.subscribe();
        if !receiver.borrow().is_empty() {
            receiver.mark_changed();
        }
        receiver
    }
}

async fn next(
    (mut ticks, place): (watch::Receiver<Bytes>, OwnedSemaphorePermit),
) -> Option<(Result<Bytes, Infallible>, (watch::Receiver<Bytes>, OwnedSemaphorePermit))> {
    ticks.changed().await.ok()?;
    let tick = ticks.borrow_and_update().clone();
    Some((Ok(tick), (ticks, place)))
}

async fn run(hub: Arc<Inner>, clock: watch::Sender<Bytes>) {
    let mut make = (hub.begin)();
    let mut interval = tokio::time::interval(EVERY);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = interval.tick() => {}
            // Another one takes over as soon as somebody watches again.
            () = clock.closed() => return,
        }
        clock.send_replace(Bytes::from(format!("event: tick\ndata: {}\n\n", make())));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use http_body_util::BodyExt;

    use super::*;

    fn counting() -> (Hub, Arc<AtomicUsize>) {
        let made = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&made);
        let begin = move || {
            let count = Arc::clone(&count);
            Box::new(move || count.fetch_add(1, Ordering::Relaxed).to_string()) as Ticks
        };
        (Hub::new(Arc::new(begin)), made)
    }

    async fn tick(body: &mut Body) -> String {
        let bytes = body.frame().await.unwrap().unwrap().into_data().unwrap();
        String::from_utf8(bytes.to_vec()).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_tick_is_made_once_for_all_who_watch() {
        let (hub, made) = counting();
        let mut streams: Vec<Body> = (0..8).map(|_| hub.subscribe().unwrap()).collect();
        for number in 0..5 {
            for stream in &mut streams {
                assert_eq!(tick(stream).await, format!("event: tick\ndata: {number}\n\n"));
            }
        }
        assert_eq!(made.load(Ordering::Relaxed), 5);
    }

    #[tokio::test(start_paused = true)]
    async fn who_comes_later_has_the_last_tick_at_once_and_who_reads_slowly_the_latest() {
        let (hub, _) = counting();
        let (mut first, mut slow) = (hub.subscribe().unwrap(), hub.subscribe().unwrap());
        for _ in 0..4 {
            tick(&mut first).await;
        }
        assert_eq!(tick(&mut hub.subscribe().unwrap()).await, "event: tick\ndata: 3\n\n");
        assert_eq!(tick(&mut slow).await, "event: tick\ndata: 3\n\n");
        assert_eq!(tick(&mut slow).await, "event: tick\ndata: 4\n\n");
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_made_while_nobody_watches() {
        let (hub, made) = counting();
        let mut stream = hub.subscribe().unwrap();
        tick(&mut stream).await;
        drop(stream);
        tokio::time::sleep(EVERY * 10).await;
        assert_eq!(made.load(Ordering::Relaxed), 1);
        assert_eq!(tick(&mut hub.subscribe().unwrap()).await, "event: tick\ndata: 1\n\n");
    }

    #[tokio::test(start_paused = true)]
    async fn so_many_watch_and_no_more() {
        let (hub, _) = counting();
        let mut all: Vec<Body> = (0..MAX_CLIENTS).map(|_| hub.subscribe().unwrap()).collect();
        assert!(hub.subscribe().is_none());
        all.pop();
        assert!(hub.subscribe().is_some());
    }
}
