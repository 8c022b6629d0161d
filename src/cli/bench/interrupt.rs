//! Ctrl-C during a run: what was measured so far is kept.

use tokio::signal::unix::Signal;

use forebay_lab::load::client::Progress;
use forebay_lab::rows::row_file::RunRows;

use super::BenchError;

/// 128 + SIGINT, as shells say it.
pub(super) const INTERRUPTED: u8 = 130;

/// Waits for a run, which an interrupt ends: its rows are those of the requests that had ended. A second one ends the process.
pub(super) async fn until_interrupt<T>(
    run: impl Future<Output = T>,
    progress: &Progress,
    interrupts: &mut Signal,
) -> T {
    tokio::pin!(run);
    loop {
        tokio::select! {
            rows = &mut run => return rows,
            _ = interrupts.recv() => {
                if progress.is_stopped() {
                    std::process::exit(i32::from(INTERRUPTED));
                }
                progress.stop();
            }
        }
    }
}

/// Gives what was measured before an interrupt, if anything was.
pub(super) fn interrupted(runs: Vec<RunRows>) -> Result<Vec<RunRows>, BenchError> {
    let sent: usize = runs.iter().map(|run| run.records.len()).sum();
    if sent == 0 {
        return Err(BenchError::Interrupted);
    }
    eprintln!(
        "interrupted: the figures are of the {sent} requests that had ended, and `forebay compare` leaves that run out"
    );
    Ok(runs)
}
