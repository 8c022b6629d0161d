//! The memory of streams that are open and silent.

use std::time::Duration;

use super::super::Fallible;
use super::super::client::open_streams as open;
use super::super::contenders::Contender;
use super::super::process::file_limit;
use super::super::upstream::Mode;

/// Streams that are opened and closed first, so that what a process takes once does not count.
const WARM_UP: usize = 32;

/// KiB of memory for an open stream that has had its first event. The contender's process must be fresh.
pub(super) async fn open_streams(contender: &Contender, number: usize) -> Fallible<Vec<f64>> {
    // A proxy has two connections for a stream, and files of its own.
    let needed = 2 * number as u64 + 500;
    if file_limit() < needed {
        return Err(format!("{number} streams need {needed} open files, and `ulimit -Hn` is {}", file_limit()).into());
    }
    drop(open(&contender.at, Mode::Silent, WARM_UP).await?);
    tokio::time::sleep(Duration::from_millis(300)).await;
    let before = contender.memory()?;
    let streams = open(&contender.at, Mode::Silent, number).await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let after = contender.memory()?;
    drop(streams);
    Ok(vec![(after - before) / number as f64])
}
