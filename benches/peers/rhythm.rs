//! The clock of streams that share a rate. Their number then changes what each of them gets, and not what all of them cost. tokio's
//! timers have a resolution of 1 ms, in which a dozen events would be due at once; this clock has a thread, and some microseconds.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::mpsc::{Receiver, Sender, channel};

/// Events of one stream that may be due and not sent. More are left out: a machine that is too slow is not given more to do.
const BEHIND: usize = 8;
/// The time after which a clock without a stream looks again.
const IDLE: Duration = Duration::from_millis(1);
/// The most that the clock makes up for after a pause of its thread.
const LATE: Duration = Duration::from_millis(5);

/// A rate in events a second over all streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rhythm {
    /// Evenly, one event of one stream after the other, in turns.
    Alone(u32),
    /// An event of each stream in the same moment, as the step of an engine gives them.
    Together(u32),
}

impl Rhythm {
    /// Events a second.
    pub(super) fn rate(self) -> u32 {
        match self {
            Rhythm::Alone(rate) | Rhythm::Together(rate) => rate,
        }
    }
}

impl fmt::Display for Rhythm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Rhythm::Alone(rate) => write!(f, "alone-{rate}"),
            Rhythm::Together(rate) => write!(f, "together-{rate}"),
        }
    }
}

impl FromStr for Rhythm {
    type Err = ();

    fn from_str(text: &str) -> Result<Rhythm, ()> {
        let (word, rate) = text.split_once('-').ok_or(())?;
        let rate = rate.parse().ok().filter(|rate| *rate > 0).ok_or(())?;
        match word {
            "alone" => Ok(Rhythm::Alone(rate)),
            "together" => Ok(Rhythm::Together(rate)),
            _ => Err(()),
        }
    }
}

/// The streams of one rhythm, the one whose turn is next in front.
type Streams = Arc<Mutex<VecDeque<Sender<()>>>>;

/// Makes a stream one of a rhythm. It receives something for each event that is due.
pub(super) fn join(rhythm: Rhythm) -> Receiver<()> {
    static ALL: Mutex<BTreeMap<Rhythm, Streams>> = Mutex::new(BTreeMap::new());
    let (due, events) = channel(BEHIND);
    let mut all = ALL.lock().unwrap_or_else(PoisonError::into_inner);
    let streams = all.entry(rhythm).or_insert_with(|| {
        let streams = Streams::default();
        let ticked = Arc::clone(&streams);
        std::thread::spawn(move || tick(rhythm, &ticked));
        streams
    });
    streams.lock().unwrap_or_else(PoisonError::into_inner).push_back(due);
    events
}

fn tick(rhythm: Rhythm, streams: &Streams) {
    // Linux lets a sleep last 50 µs longer than was asked for, unless it is told otherwise. Some rates have an event in that time.
    let _ = nix::sys::prctl::set_timerslack(1);
    let between = Duration::from_secs(1) / rhythm.rate();
    let mut next = Instant::now();
    loop {
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
        let told = {
            let mut streams = streams.lock().unwrap_or_else(PoisonError::into_inner);
            let turns = match rhythm {
                Rhythm::Alone(_) => 1,
                Rhythm::Together(_) => streams.len(),
            };
            (0..turns).filter(|_| tell_next(&mut streams)).count()
        };
        next += if told == 0 { IDLE } else { between * u32::try_from(told).unwrap_or(u32::MAX) };
        next = next.max(Instant::now().checked_sub(LATE).unwrap_or(next));
    }
}

/// Tells the stream in front that an event is due, and puts it at the end. Those whose client has left drop out.
fn tell_next(streams: &mut VecDeque<Sender<()>>) -> bool {
    while let Some(stream) = streams.pop_front() {
        if !matches!(stream.try_send(()), Err(TrySendError::Closed(()))) {
            streams.push_back(stream);
            return true;
        }
    }
    false
}
