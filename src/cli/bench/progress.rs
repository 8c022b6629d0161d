//! How far a run of `forebay bench` is: a bar on a terminal, a line now and then elsewhere; on standard error in both cases.

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use forebay_lab::load::client::Progress;

const LOOK: Duration = Duration::from_millis(200);
/// Looks between two lines where there is no terminal.
const LINE_EVERY: u32 = 25;

/// Shows how far a run is, until it is dropped: from a thread of its own, since a terminal may be slow.
pub(super) struct Shown {
    end: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Shown {
    pub(super) fn start(total: u32, progress: Arc<Progress>) -> Shown {
        let end = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&end);
        let show = move || {
            let terminal = std::io::stderr().is_terminal();
            let bar = if terminal { ProgressBar::new(u64::from(total)) } else { ProgressBar::hidden() };
            if let Ok(style) =
                ProgressStyle::with_template("{bar:20} {pos}/{len} answers, {msg} events, {elapsed}, {eta} left")
            {
                bar.set_style(style);
            }
            for look in 1_u32.. {
                if ended.load(Ordering::Relaxed) {
                    break;
                }
                std::thread::park_timeout(LOOK);
                let (done, tokens) = (progress.done.load(Ordering::Relaxed), progress.tokens.load(Ordering::Relaxed));
                bar.set_position(done);
                bar.set_message(tokens.to_string());
                if !terminal && look % LINE_EVERY == 0 {
                    let left = left(LOOK * look, done, u64::from(total));
                    eprintln!("{done} of {total} answers, {tokens} events{left}");
                }
            }
            bar.finish_and_clear();
        };
        Shown { end, thread: Some(std::thread::spawn(show)) }
    }
}

/// The time that the rest takes if it goes on like this; nothing before the first answer.
fn left(passed: Duration, done: u64, total: u64) -> String {
    if done == 0 || done >= total {
        return String::new();
    }
    let left = passed.as_secs_f64() * (total - done) as f64 / done as f64;
    format!(", about {:.0} s left", left.ceil())
}

impl Drop for Shown {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // It has nothing to give; a panic in it has been told.
            drop(thread.join());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rest_takes_as_long_for_each_answer_as_what_is_done() {
        assert_eq!(left(Duration::from_secs(10), 25, 100), ", about 30 s left");
        assert_eq!(
            (left(Duration::from_secs(10), 0, 100), left(Duration::from_secs(10), 100, 100)),
            Default::default()
        );
    }
}
