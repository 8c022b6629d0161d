//! Traces of requests, in the form of OpenTelemetry. A request under way keeps its [`Trace`]. What is told at its end goes into a
//! bounded queue, and a task makes spans of it and sends them to a collector. No request ever waits for that: where the queue is
//! full, spans are dropped and counted.
//!
//! Hot path: without a collector, nothing. With one, what `context` and `told` say, and one push into the queue.

pub mod context;
mod export;
mod names;
pub mod told;
mod write;

use std::sync::{Arc, mpsc as blocking};
use std::time::{Duration, SystemTime};

use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Mutex as AsyncMutex, mpsc};

use export::Exporter;
use forebay_core::clock::{Clock, Time};
use forebay_fleet::config::model::Trace as Settings;
use forebay_fleet::telemetry::Telemetry;
use forebay_fleet::telemetry::labels::SpanEnd;
pub use told::{Told, Trace};

/// The most requests whose spans wait to be sent: some MiB.
const QUEUE: usize = 2048;

/// The time after which a flush looks again for room in the queue.
const LOOK: Duration = Duration::from_millis(5);

/// A moment of the clock, and what the wall clock showed then.
type Wall = (Time, SystemTime);

/// A message to the task.
#[derive(Debug)]
enum Item {
    /// A request that is over.
    Told(Box<Told>, Wall),
    /// The wish to be told once everything before it is sent.
    Flush(blocking::SyncSender<()>),
}

/// The way of spans to the collector. Clones share it.
#[derive(Clone, Debug)]
pub struct Spans(Arc<Pipeline>);

/// The queue and what empties it.
#[derive(Debug)]
struct Pipeline {
    queue: mpsc::Sender<Item>,
    /// The other end of it, for the task. A task that began anew takes over what the one before it left.
    told: AsyncMutex<mpsc::Receiver<Item>>,
    exporter: Exporter,
    telemetry: Arc<Telemetry>,
    clock: Clock,
}

impl Spans {
    /// The way to the collector that the settings or the environment name; `None` where neither names one. `env` looks a variable of
    /// the environment up.
    ///
    /// # Errors
    /// The environment has a setting that cannot be used.
    pub fn start(
        settings: &Settings,
        env: &dyn Fn(&str) -> Option<String>,
        telemetry: &Arc<Telemetry>,
        clock: &Clock,
    ) -> Result<Option<Spans>, String> {
        let Some(exporter) = Exporter::new(settings, env)? else { return Ok(None) };
        let (queue, told) = mpsc::channel(QUEUE);
        Ok(Some(Spans(Arc::new(Pipeline {
            queue,
            told: AsyncMutex::new(told),
            exporter,
            telemetry: Arc::clone(telemetry),
            clock: clock.clone(),
        }))))
    }

    /// Hands over what so many spans tell of a request. Never waits; where the queue is full, nothing is made of it.
    pub fn tell(&self, spans: u64, told: impl FnOnce() -> Box<Told>) {
        // The place first: what a full queue refuses is never put together.
        match self.0.queue.try_reserve() {
            Ok(place) => place.send(Item::Told(told(), (self.0.clock.now(), SystemTime::now()))),
            Err(_) => self.0.telemetry.process.spans(SpanEnd::QueueFull, spans),
        }
    }

    /// Waits until everything told so far was sent or dropped, but no longer than `limit`. For the end of the process; blocks the
    /// thread. False: the limit came first.
    #[must_use]
    pub fn flush(&self, limit: Duration) -> bool {
        let (done, told) = blocking::sync_channel(1);
        let (mut wish, began) = (Item::Flush(done), self.0.clock.now());
        while let Err(error) = self.0.queue.try_send(wish) {
            let TrySendError::Full(again) = error else { return false };
            if self.0.clock.now().since(began) >= limit {
                return false;
            }
            // A thread that ends the process calls this, not a worker that serves requests.
            std::thread::sleep(LOOK);
            wish = again;
        }
        told.recv_timeout(limit.saturating_sub(self.0.clock.now().since(began))).is_ok()
    }

    /// Sends what it is told, until it is dropped.
    pub async fn run(self) {
        let mut told = self.0.told.lock().await;
        export::run(&self.0, &mut told).await;
    }
}
