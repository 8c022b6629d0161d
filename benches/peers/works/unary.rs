//! Unary requests in a closed loop on kept-alive connections: small ones, and ones with a prompt of 1 MB.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use hyper::body::Bytes;
use tokio::task::LocalSet;

use super::super::Fallible;
use super::super::client::{Connection, MODEL, chat, open_connections, post};
use super::super::contenders::Contender;
use super::super::upstream::Mode;

/// Connections of small requests.
const SMALL: usize = 16;
/// Connections of large prompts.
const LARGE: usize = 8;
/// Bytes of a large prompt.
const PROMPT: usize = 1_000_000;
/// Time before the measurement begins.
const WARM_UP: Duration = Duration::from_millis(300);

/// What a closed loop gave.
pub(super) struct Measured {
    /// CPU time of the contender.
    pub(super) cpu: Duration,
    /// Requests that were answered.
    pub(super) requests: f64,
    /// The time in which they were.
    pub(super) took: Duration,
}

impl Measured {
    /// Microseconds of CPU time for a request, and requests a second.
    fn figures(&self) -> Vec<f64> {
        vec![self.cpu.as_secs_f64() * 1e6 / self.requests, self.requests / self.took.as_secs_f64()]
    }
}

/// Microseconds of CPU time for a small request, and requests a second.
pub(super) async fn small(contender: &Contender, window: Duration) -> Fallible<Vec<f64>> {
    Ok(small_loop(contender, window).await?.figures())
}

/// Small requests for so long.
pub(super) async fn small_loop(contender: &Contender, window: Duration) -> Fallible<Measured> {
    closed_loop(contender, SMALL, chat(MODEL, Mode::Unary, "What is a queue?"), window).await
}

/// Microseconds of CPU time for a request with a large prompt, and requests a second.
pub(super) async fn prompts(contender: &Contender, window: Duration) -> Fallible<Vec<f64>> {
    let text = "Queues grow where work comes faster than it is done. ";
    let body = chat(MODEL, Mode::Unary, &text.repeat(PROMPT / text.len()));
    Ok(closed_loop(contender, LARGE, body, window).await?.figures())
}

async fn closed_loop(contender: &Contender, connections: usize, body: Bytes, window: Duration) -> Fallible<Measured> {
    let (done, stop) = (Rc::new(Cell::new(0_u32)), Rc::new(Cell::new(false)));
    let local = LocalSet::new();
    let loops: Vec<_> = open_connections(&contender.at, connections)
        .await?
        .into_iter()
        .map(|connection| local.spawn_local(one_loop(connection, body.clone(), Rc::clone(&done), Rc::clone(&stop))))
        .collect();
    let measured = local
        .run_until(async {
            tokio::time::sleep(WARM_UP).await;
            let (cpu_before, done_before, started) = (contender.cpu()?, done.get(), Instant::now());
            tokio::time::sleep(window).await;
            let cpu = contender.cpu()? - cpu_before;
            let measured = Measured { cpu, requests: f64::from(done.get() - done_before), took: started.elapsed() };
            stop.set(true);
            for one in loops {
                one.await??;
            }
            Fallible::Ok(measured)
        })
        .await?;
    if measured.requests == 0.0 {
        return Err("no request was answered in the whole window".into());
    }
    Ok(measured)
}

async fn one_loop(mut connection: Connection, body: Bytes, done: Rc<Cell<u32>>, stop: Rc<Cell<bool>>) -> Fallible<()> {
    while !stop.get() {
        connection.exchange(post(MODEL, body.clone())?).await?;
        done.set(done.get() + 1);
    }
    Ok(())
}
