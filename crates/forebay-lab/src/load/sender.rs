//! Sends a load and times it. One task for each request or conversation; the only thing between the socket and the clock is
//! the parser of events. Says how late it noted what had come, because a generator that lags measures itself.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinHandle;

use forebay_core::clock::Time;

use super::client::{Client, Progress, Run, Sending, Target};
use super::exchange::Exchange;
use super::lag::Lag;
use super::workload::Workload;
use crate::load::dataset::conversations::{History, Script};
use crate::load::dataset::supply::Supply;
use crate::load::dataset::trace::Replay;
use crate::rows::record::Record;

/// Bodies of a trace that are made before their time: they bound the memory of a run. One of 130,000 tokens has 0.8 MB.
const AHEAD: usize = 32;

impl Client {
    /// Sends a load, each request at its time and in turn to each target, and waits for all answers.
    ///
    /// # Panics
    /// There is no target.
    pub async fn run(
        &self,
        targets: &[Target],
        workload: &Workload,
        supply: &Supply,
        sending: &Sending,
        progress: &Arc<Progress>,
    ) -> Run {
        self.run_from(self.clock.now(), targets, workload, supply, sending, progress).await
    }

    /// Sends a load, whose records count their times from `begin`, and waits for all answers.
    ///
    /// # Panics
    /// There is no target.
    pub(super) async fn run_from(
        &self,
        begin: Time,
        targets: &[Target],
        workload: &Workload,
        supply: &Supply,
        sending: &Sending,
        progress: &Arc<Progress>,
    ) -> Run {
        // For the whole run, since a generator that lags only while all requests start has still measured itself.
        let lag = Lag::watch(self.clock.clone());
        let arrivals = supply.arrivals(workload);
        let sender = Sender { client: self, targets, workload, sending, progress, begin };
        // The kinds of supply differ in when a body exists: before the run, just in time, or only once an answer is there.
        let mut records = match supply {
            Supply::Ready(bodies) => sender.send(Bodies::Ready(bodies.iter()), &arrivals).await,
            Supply::Replay(replay) => sender.send(Bodies::ahead(replay.clone()), &arrivals).await,
            Supply::Conversations(script) => sender.converse(script, &arrivals).await,
        };
        // Answers end in any order, and rows are read by people.
        records.sort_by_key(|record| record.id);
        Run { records, lag_p99: lag.p99() }
    }
}

/// The source of the next body.
enum Bodies<'a> {
    Ready(std::slice::Iter<'a, Bytes>),
    Made(mpsc::Receiver<Bytes>),
}

impl Bodies<'_> {
    /// Makes bodies on a thread of its own, since the thread that times answers has no time for it.
    fn ahead(replay: Replay) -> Bodies<'static> {
        let (give, take) = mpsc::channel(AHEAD);
        tokio::task::spawn_blocking(move || {
            for index in 0..replay.len() {
                // The run is over, and nobody takes the rest.
                if give.blocking_send(replay.body(index)).is_err() {
                    break;
                }
            }
        });
        Bodies::Made(take)
    }

    async fn next(&mut self) -> Option<Bytes> {
        match self {
            Bodies::Ready(bodies) => bodies.next().cloned(),
            Bodies::Made(bodies) => bodies.recv().await,
        }
    }
}

struct Sender<'a> {
    client: &'a Client,
    targets: &'a [Target],
    workload: &'a Workload,
    sending: &'a Sending,
    progress: &'a Arc<Progress>,
    begin: Time,
}

impl Sender<'_> {
    /// Sends one request after the other, each at its time.
    async fn send(&self, mut bodies: Bodies<'_>, arrivals: &[Duration]) -> Vec<Record> {
        let room = self.room();
        let mut tasks = Vec::with_capacity(arrivals.len());
        for (index, at) in arrivals.iter().enumerate() {
            // The body first: making it must not take from the time at which it is due.
            let Some(body) = bodies.next().await else { break };
            // Waiting here delays all later requests, as with `vllm bench serve`: a limit makes a closed loop of the rest.
            let Some(permit) = self.turn(*at, room.as_ref()).await else { break };
            let exchange = Exchange { body, ..self.exchange(index, false) };
            let blank = Record::unsent(index as u32, self.sending.epoch);
            let progress = Arc::clone(self.progress);
            tasks.push(tokio::spawn(async move {
                // A request that was cut off by the one who measures has neither failed nor been served.
                tokio::select! {
                    // The place is given back with the last byte, not with the task's end.
                    (record, _) = exchange.run(blank) => { drop(permit); vec![record] }
                    () = progress.stopped() => Vec::new(),
                }
            }));
        }
        all(tasks).await
    }

    /// Holds conversations, each from its time on.
    async fn converse(&self, script: &Script, arrivals: &[Duration]) -> Vec<Record> {
        let room = self.room();
        let script = Arc::new(script.clone());
        let mut tasks = Vec::with_capacity(arrivals.len());
        for (index, at) in arrivals.iter().enumerate() {
            let Some(permit) = self.turn(*at, room.as_ref()).await else { break };
            let (script, pattern, epoch) = (Arc::clone(&script), self.exchange(index, true), self.sending.epoch);
            tasks.push(tokio::spawn(async move {
                let records = conversation(&script, index as u32, &pattern, epoch).await;
                drop(permit);
                records
            }));
        }
        all(tasks).await
    }

    /// Waits until a request is due and has a place; none where the run was told to end first.
    async fn turn(&self, at: Duration, room: Option<&Arc<Semaphore>>) -> Option<Option<OwnedSemaphorePermit>> {
        tokio::select! {
            biased;
            () = self.progress.stopped() => None,
            permit = async { self.wait_until(at).await; enter(room).await } => Some(permit),
        }
    }

    fn room(&self) -> Option<Arc<Semaphore>> {
        self.sending.max_concurrency.map(|limit| Arc::new(Semaphore::new(limit)))
    }

    async fn wait_until(&self, at: Duration) {
        // From the begin of the run and not from the last request: delays of this loop must not add up to a lower rate.
        let wait = (self.begin + at).since(self.client.clock.now());
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }

    /// Returns the exchange of a request, or of a conversation's turns, without a body.
    fn exchange(&self, index: usize, keep_text: bool) -> Exchange {
        let name = self.sending.session_header.clone();
        Exchange {
            http: self.client.http.clone(),
            clock: self.client.clock.clone(),
            headers: self.client.headers.clone(),
            // In turn and not at random: arms of direct servers get equal numbers, and the same request goes to the same server
            // again.
            target: self.targets[index % self.targets.len()].clone(),
            endpoint: self.workload.endpoint,
            body: Bytes::new(),
            // The seed tells sessions of two runs apart, which a proxy that remembers sessions would otherwise take for one.
            session: name.map(|name| (name, format!("{:x}-{index}", self.workload.seed))),
            begin: self.begin,
            progress: Arc::clone(self.progress),
            keep_text,
        }
    }
}

async fn enter(room: Option<&Arc<Semaphore>>) -> Option<OwnedSemaphorePermit> {
    match room {
        Some(room) => Arc::clone(room).acquire_owned().await.ok(),
        None => None,
    }
}

async fn all(tasks: Vec<JoinHandle<Vec<Record>>>) -> Vec<Record> {
    let mut records = Vec::with_capacity(tasks.len());
    for task in tasks {
        records.extend(task.await.expect("a request's task neither panics nor is aborted"));
    }
    records
}

/// Holds one conversation. It ends with a turn that fails: what comes next would need the answer.
async fn conversation(script: &Script, number: u32, pattern: &Exchange, epoch: u32) -> Vec<Record> {
    let turns = script.shape.turns;
    let mut history = History::of(script.workload.endpoint);
    let mut records = Vec::with_capacity(turns as usize);
    for turn in 0..turns {
        // Nobody thinks before the first prompt: its time is the conversation's own.
        if turn > 0 {
            tokio::select! {
                () = tokio::time::sleep(script.think(number, turn)) => {}
                () = pattern.progress.stopped() => break,
            }
        }
        history.ask(&script.prompt(number, turn));
        let id = number * turns + turn;
        let blank = Record { conversation: Some(number), turn: Some(turn), ..Record::unsent(id, epoch) };
        let exchange = Exchange { body: history.body(&script.workload), ..pattern.clone() };
        let (record, answer) = tokio::select! {
            ended = exchange.run(blank) => ended,
            () = pattern.progress.stopped() => break,
        };
        let over = !record.succeeded();
        records.push(record);
        if over {
            break;
        }
        // The server's own words, so that its prefix cache has the whole history.
        history.answer(&answer);
    }
    records
}

#[cfg(test)]
mod tests;
