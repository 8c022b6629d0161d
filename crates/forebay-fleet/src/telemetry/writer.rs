//! Lines on their way out of the process, for the access log and for the log of the process: a queue that is bounded in bytes, and a
//! thread that writes it. It must never make the thread that logs wait: what finds the queue full (the reader is stuck) is dropped,
//! counted, and told once the reader reads again.
//!
//! Hot path: [`LineWriter::push`] is one push under a mutex that the thread holds for a swap only; lines are formatted and written by
//! the thread.

use std::io::Write;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ::metrics::Counter;

use super::throttle::Throttle;
use crate::lock::locked;
use forebay_core::clock::Clock;

/// Bytes that wait for the thread or for the reader; further lines are dropped.
pub(crate) const CAPACITY: usize = 16 << 20;
/// Bytes that are formatted for one write.
const BATCH: usize = 64 << 10;

/// An entry that becomes a line.
pub(crate) trait Line: Send + 'static {
    /// About how many bytes it holds, and its line has.
    fn size(&self) -> usize;
    /// Appends the line, with its line feed.
    fn append_to(&self, text: &mut Vec<u8>);
}

/// The settings of a writer.
pub(crate) struct Manner {
    /// The thread's name.
    pub(crate) name: &'static str,
    /// The thread gathers for so long before it writes, so that a busy proxy does not wake it for every line.
    pub(crate) linger: Duration,
    /// Counts the lines lost to a full queue or to a sink that fails.
    pub(crate) lost: Counter,
    /// Tells how many were lost, once lines can be written again; now and then at most.
    pub(crate) tell: fn(u64),
}

/// The way to a thread that writes lines. Clones share it; it ends with the last of them.
#[derive(Debug)]
pub(crate) struct LineWriter<L>(Arc<Open<L>>);

#[derive(Debug)]
struct Open<L> {
    shared: Arc<Shared<L>>,
    lost: Counter,
}

#[derive(Debug)]
struct Shared<L> {
    queue: Mutex<Queue<L>>,
    /// For the thread: there are lines, or someone flushes or closes.
    work: Condvar,
    /// For flushers: everything taken is written.
    idle: Condvar,
}

#[derive(Debug)]
struct Queue<L> {
    lines: Vec<L>,
    /// Bytes of these and of those that the thread has taken and not written yet.
    bytes: usize,
    /// Lines dropped for want of room.
    dropped: u64,
    /// Someone waits: do not linger.
    hurry: bool,
    /// The sink is to be flushed, though there may be no line.
    poked: bool,
    closed: bool,
}

impl<L> Shared<L> {
    fn wait<'a>(
        &self,
        queue: MutexGuard<'a, Queue<L>>,
        limit: Option<Duration>,
        condition: impl FnMut(&mut Queue<L>) -> bool,
    ) -> MutexGuard<'a, Queue<L>> {
        match limit {
            None => self.work.wait_while(queue, condition).unwrap_or_else(PoisonError::into_inner),
            Some(limit) => {
                let waited = self.work.wait_timeout_while(queue, limit, condition);
                waited.unwrap_or_else(PoisonError::into_inner).0
            }
        }
    }
}

impl<L> Clone for LineWriter<L> {
    fn clone(&self) -> LineWriter<L> {
        LineWriter(Arc::clone(&self.0))
    }
}

impl<L: Line> LineWriter<L> {
    /// Starts the thread.
    ///
    /// # Errors
    /// It could not be started.
    pub(crate) fn start(sink: Box<dyn Write + Send>, manner: Manner) -> std::io::Result<LineWriter<L>> {
        let queue = Queue { lines: Vec::new(), bytes: 0, dropped: 0, hurry: false, poked: false, closed: false };
        let shared = Arc::new(Shared { queue: Mutex::new(queue), work: Condvar::new(), idle: Condvar::new() });
        let (theirs, lost) = (Arc::clone(&shared), manner.lost.clone());
        std::thread::Builder::new().name(manner.name.to_owned()).spawn(move || write_all(&theirs, sink, &manner))?;
        Ok(LineWriter(Arc::new(Open { shared, lost })))
    }

    /// Takes a line. Never waits for the sink.
    pub(crate) fn push(&self, line: L) {
        let size = line.size();
        let mut queue = locked(&self.0.shared.queue);
        // Dropped and not waited for: a reader that stands still must hold up no request.
        if queue.bytes + size > CAPACITY {
            queue.dropped += 1;
            drop(queue);
            self.0.lost.increment(1);
            return;
        }
        queue.bytes += size;
        queue.lines.push(line);
        // Only the first line wakes the thread, which takes all that there are when it comes.
        let first = queue.lines.len() == 1;
        drop(queue);
        if first {
            self.0.shared.work.notify_one();
        }
    }

    /// Has the thread flush the sink, also if no line comes. Waits for nothing.
    pub(crate) fn poke(&self) {
        locked(&self.0.shared.queue).poked = true;
        self.0.shared.work.notify_one();
    }

    /// Waits until everything taken so far is written, but no longer than `limit`. For the end of the process; blocks the
    /// thread. False: the limit came first.
    #[must_use]
    pub(crate) fn flush(&self, limit: Duration) -> bool {
        let shared = &self.0.shared;
        let mut queue = locked(&shared.queue);
        queue.hurry = true;
        shared.work.notify_one();
        // Bytes, not lines: what the thread has taken is not written yet.
        let waited = shared.idle.wait_timeout_while(queue, limit, |queue| queue.bytes > 0);
        let (mut queue, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        queue.hurry = false;
        !timeout.timed_out()
    }
}

impl<L> Drop for Open<L> {
    fn drop(&mut self) {
        locked(&self.shared.queue).closed = true;
        self.shared.work.notify_one();
    }
}

/// The thread. Ends when the writer is closed and everything is written.
fn write_all<L: Line>(shared: &Shared<L>, mut sink: Box<dyn Write + Send>, manner: &Manner) {
    let (mut text, clock, told) = (Vec::new(), Clock::system(), Throttle::new());
    let mut untold = 0;
    loop {
        let queue =
            shared.wait(locked(&shared.queue), None, |queue| queue.lines.is_empty() && !queue.closed && !queue.poked);
        // To linger on with a queue that is half full would risk lines.
        let early = |queue: &mut Queue<L>| !queue.hurry && !queue.closed && !queue.poked && queue.bytes < CAPACITY / 2;
        let mut queue = shared.wait(queue, Some(manner.linger), early);
        let lines = std::mem::take(&mut queue.lines);
        let (closed, poked) = (queue.closed, std::mem::take(&mut queue.poked));
        drop(queue);
        if poked {
            // Before the lines: those that follow a rotation belong into the new file. What it does is its own to tell of.
            _ = sink.flush();
        }
        let mut lines = lines.into_iter().peekable();
        while lines.peek().is_some() {
            text.clear();
            let (mut count, mut bytes) = (0, 0);
            // In batches, so that a full queue is not held as text once more.
            while text.len() < BATCH
                && let Some(line) = lines.next()
            {
                line.append_to(&mut text);
                (count, bytes) = (count + 1, bytes + line.size());
            }
            // A reader that has gone is no reason to stop the proxy.
            if sink.write_all(&text).and_then(|()| sink.flush()).is_err() {
                manner.lost.increment(count);
                untold += count;
            }
            // Given back once it is written: until then it takes memory, and `flush` waits for it.
            locked(&shared.queue).bytes -= bytes;
        }
        let mut queue = locked(&shared.queue);
        untold += std::mem::take(&mut queue.dropped);
        if queue.bytes == 0 {
            shared.idle.notify_all();
        }
        if closed && queue.lines.is_empty() {
            return;
        }
        drop(queue);
        // By a log that this thread may be the writer of.
        if untold > 0 && told.pass(clock.now()).is_some() {
            (manner.tell)(std::mem::take(&mut untold));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::sync::mpsc;

    use super::*;
    use crate::telemetry::recorder::{Def, Kind, Registry, Text};

    struct Word(String);

    impl Line for Word {
        fn size(&self) -> usize {
            self.0.len() + 1
        }

        fn append_to(&self, text: &mut Vec<u8>) {
            text.extend_from_slice(self.0.as_bytes());
            text.push(b'\n');
        }
    }

    /// A sink that hands on what it got, or is stuck until it is let go.
    struct Sink(mpsc::Sender<Vec<u8>>, Option<mpsc::Receiver<()>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            if let Some(gate) = self.1.take() {
                let _ = gate.recv();
            }
            let _ = self.0.send(bytes.to_vec());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn manner(lost: Counter, tell: fn(u64)) -> Manner {
        Manner { name: "test", linger: Duration::from_millis(20), lost, tell }
    }

    #[test]
    fn flush_waits_for_what_was_taken() {
        let (tx, rx) = mpsc::channel();
        let log = LineWriter::start(Box::new(Sink(tx, None)), manner(Counter::noop(), |_| {})).unwrap();
        log.push(Word("one".to_owned()));
        log.push(Word("two".to_owned()));
        assert!(log.flush(Duration::from_secs(10)));
        let text: Vec<u8> = rx.try_iter().flatten().collect();
        assert_eq!(text, b"one\ntwo\n");
    }

    #[test]
    fn a_stuck_reader_costs_lines_by_their_bytes_and_is_told_of_them() {
        static LOST: Def = Def { name: "lost_total", help: "Lost.", kind: Kind::Counter };
        static DEFS: &[&Def] = &[&LOST];
        static TOLD: AtomicU64 = AtomicU64::new(0);
        let registry = Registry::new(DEFS);
        let (tx, rx) = mpsc::channel();
        let (release, gate) = mpsc::channel();
        let tell = |lost| TOLD.store(lost, Ordering::Relaxed);
        let lost = registry.counter(&LOST, &[]);
        let log = LineWriter::start(Box::new(Sink(tx, Some(gate))), manner(lost, tell)).unwrap();
        let (long, count) = ("x".repeat(999_999), 50);
        for _ in 0..count {
            log.push(Word(long.clone()));
        }
        assert!(!log.flush(Duration::ZERO));
        let mut text = Text::default();
        registry.render(&mut text, |_| true);
        let lost: u64 = text.finish().trim_end().rsplit(' ').next().unwrap().parse().unwrap();
        assert_eq!(lost, count - 16, "16 of a megabyte fit into 16 MiB");
        release.send(()).unwrap();
        assert!(log.flush(Duration::from_secs(10)));
        drop(log);
        let written: usize = rx.iter().map(|bytes| bytes.iter().filter(|byte| **byte == b'\n').count()).sum();
        assert_eq!(written as u64 + lost, count);
        assert_eq!(TOLD.load(Ordering::Relaxed), lost);
    }
}
