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
            if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} answers, {msg} events, {elapsed}") {
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
                    eprintln!("{done} of {total} answers, {tokens} events");
                }
            }
            bar.finish_and_clear();
        };
        Shown { end, thread: Some(std::thread::spawn(show)) }
    }
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
