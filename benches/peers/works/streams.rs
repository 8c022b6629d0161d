//! Streams: at a fixed pace, where the cost is waking up for one event, and without one, where events queue.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use http_body_util::BodyExt as _;
use tokio::task::JoinSet;

use super::super::Fallible;
use super::super::client::{Connection, open_connections, open_streams, request};
use super::super::contenders::Contender;
use super::super::upstream::{BURST, EVENT_BYTES, Mode, PACE};

/// Streams at a fixed pace.
const PACED: usize = 64;
/// Streams that start at once.
const UNPACED: usize = 128;
/// Time from the first event of the last stream to the measurement.
const SETTLE: Duration = Duration::from_millis(500);
/// Time after which a batch of streams without pace has failed.
const PATIENCE: Duration = Duration::from_secs(30);

/// Microseconds of CPU time for an event of 64 streams at a fixed pace.
pub(super) async fn paced(contender: &Contender, window: Duration) -> Fallible<Vec<f64>> {
    let rate = PACED as f64 / PACE.as_secs_f64();
    Ok(vec![event_cost(contender, (Mode::Paced, PACED), rate, window).await?.cpu])
}

/// What an event costs a contender.
pub(super) struct EventCost {
    /// Microseconds of CPU time.
    pub(super) cpu: f64,
    /// Context switches.
    pub(super) switches: f64,
}

/// Measures what an event costs of so many streams, whose events come at `rate` a second in all.
pub(super) async fn event_cost(
    contender: &Contender,
    (mode, streams): (Mode, usize),
    rate: f64,
    window: Duration,
) -> Fallible<EventCost> {
    let bytes = Arc::new(AtomicU64::new(0));
    let mut readers = JoinSet::new();
    for (connection, mut body) in open_streams(&contender.at, mode, streams).await? {
        let bytes = Arc::clone(&bytes);
        readers.spawn(async move {
            while let Some(Ok(frame)) = body.frame().await {
                bytes.fetch_add(frame.data_ref().map_or(0, |data| data.len() as u64), Ordering::Relaxed);
            }
            drop(connection);
        });
    }
    tokio::time::sleep(SETTLE).await;
    let look = || Fallible::Ok((contender.cpu()?, contender.switches()?, bytes.load(Ordering::Relaxed)));
    let (cpu_before, switches_before, bytes_before) = look()?;
    tokio::time::sleep(window).await;
    let (cpu_after, switches_after, bytes_after) = look()?;
    if let Some(ended) = readers.try_join_next() {
        return Err(format!("a paced stream ended by itself: {ended:?}").into());
    }
    end(readers).await;
    let (events, due) = ((bytes_after - bytes_before) as f64 / EVENT_BYTES as f64, rate * window.as_secs_f64());
    if events < 0.8 * due {
        println!("  note: {}: {events:.0} events came of {due:.0} that were due; the machine is busy", contender.name);
    }
    let cpu = (cpu_after - cpu_before).as_secs_f64() * 1e6 / events;
    Ok(EventCost { cpu, switches: switches_after.saturating_sub(switches_before) as f64 / events })
}

/// Ends streams, and closes their connections: a contender that is ended next would wait for them.
pub(super) async fn end(mut readers: JoinSet<()>) {
    readers.shutdown().await;
    tokio::time::sleep(SETTLE / 2).await;
}

/// Microseconds of CPU time for an event, and events a second, of batches of 128 streams that start together.
pub(super) async fn unpaced(contender: &Contender, window: Duration) -> Fallible<Vec<f64>> {
    let mut connections = open_connections(&contender.at, UNPACED).await?;
    connections = batch(connections).await?;
    let (cpu_before, started) = (contender.cpu()?, Instant::now());
    let mut batches = 0;
    while started.elapsed() < window {
        connections = batch(connections).await?;
        batches += 1;
    }
    let (cpu, took) = (contender.cpu()? - cpu_before, started.elapsed());
    let events = f64::from(batches) * UNPACED as f64 * f64::from(BURST);
    Ok(vec![cpu.as_secs_f64() * 1e6 / events, events / took.as_secs_f64()])
}

/// One stream on each connection, all at once, to their ends.
async fn batch(connections: Vec<Connection>) -> Fallible<Vec<Connection>> {
    let mut streams = JoinSet::new();
    for mut connection in connections {
        streams.spawn(async move {
            let bytes = connection.exchange(request(Mode::Burst, "Tell me of queues, at once.")?).await?;
            if bytes.len() < BURST as usize * EVENT_BYTES {
                return Err(format!("a stream was cut: {} bytes", bytes.len()).into());
            }
            Fallible::Ok(connection)
        });
    }
    let mut back = Vec::with_capacity(streams.len());
    let collecting = async {
        while let Some(stream) = streams.join_next().await {
            back.push(stream??);
        }
        Fallible::Ok(())
    };
    tokio::time::timeout(PATIENCE, collecting).await.map_err(|_| "streams without pace took over 30 s")??;
    Ok(back)
}
