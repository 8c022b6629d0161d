//! What a proxy adds to TTFT and to the times of events, at 500 streams that end and begin anew.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use http_body_util::BodyExt as _;
use tokio::task::LocalSet;

use super::super::Fallible;
use super::super::client::{Connection, Events, open_connections, request};
use super::super::contenders::Contender;
use super::super::figures::quantile;
use super::super::upstream::{Mode, TURN, TURN_PACE};

const STREAMS: usize = 500;

/// The times of one round, in seconds.
#[derive(Default)]
struct Times {
    measuring: bool,
    over: bool,
    ttft: Vec<f64>,
    delay: Vec<f64>,
    gap: Vec<f64>,
}

/// Milliseconds: TTFT (median, P99), the delay of an event from the upstream to the client (median, P99), and the gap between events
/// (P99). The client's own delay is in all of them, and in those of a direct connection too.
pub(super) async fn turns(contender: &Contender, window: Duration) -> Fallible<Vec<f64>> {
    let times = Rc::new(RefCell::new(Times::default()));
    let connections = open_connections(&contender.at, STREAMS).await?;
    let local = LocalSet::new();
    let turn = TURN_PACE * TURN;
    // Streams begin evenly over the length of one, so that as many begin at any moment.
    let begin = |at: usize| turn * u32::try_from(at).unwrap_or(u32::MAX) / STREAMS as u32;
    let loops: Vec<_> = connections
        .into_iter()
        .enumerate()
        .map(|(at, connection)| local.spawn_local(one_after_another(connection, begin(at), Rc::clone(&times))))
        .collect();
    local
        .run_until(async {
            tokio::time::sleep(turn + Duration::from_millis(200)).await;
            times.borrow_mut().measuring = true;
            tokio::time::sleep(window).await;
            times.borrow_mut().measuring = false;
            times.borrow_mut().over = true;
            for one in loops {
                one.await??;
            }
            Fallible::Ok(())
        })
        .await?;
    let Times { mut ttft, mut delay, mut gap, .. } = times.take();
    let figures = [quantile(&mut ttft, 0.5), quantile(&mut ttft, 0.99), quantile(&mut delay, 0.5)];
    let figures = figures.into_iter().chain([quantile(&mut delay, 0.99), quantile(&mut gap, 0.99)]);
    figures.map(|figure| figure.map(|seconds| seconds * 1e3).ok_or_else(|| "no event came".into())).collect()
}

async fn one_after_another(mut connection: Connection, begin: Duration, times: Rc<RefCell<Times>>) -> Fallible<()> {
    tokio::time::sleep(begin).await;
    while !times.borrow().over {
        let sent = Instant::now();
        let mut body = connection.send(request(Mode::Turn, "Tell me of queues, at length.")?).await?.into_body();
        let (mut events, mut last) = (Events::default(), None::<Instant>);
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame?.into_data() else { continue };
            let now = Instant::now();
            let mut times = times.borrow_mut();
            events.read(&data, |delay| {
                if times.measuring {
                    times.delay.push(delay.as_secs_f64());
                    match last {
                        None => times.ttft.push((now - sent).as_secs_f64()),
                        Some(last) => times.gap.push((now - last).as_secs_f64()),
                    }
                }
                last = Some(now);
            });
        }
    }
    Ok(())
}
