//! The memory of streams that are open and silent.

use std::time::Duration;

use super::super::Fallible;
use super::super::client::open_streams as open;
use super::super::contenders::Contender;
use super::super::process::{file_limit, files_for};
use super::super::upstream::Mode;

/// Streams that are opened and closed first, so that what a process takes once does not count.
const WARM_UP: usize = 32;
/// Time in which connections that were let go of are closed.
const SETTLE: Duration = Duration::from_millis(300);

/// KiB of memory for an open stream that has had its first event. The contender's process must be fresh.
pub(super) async fn open_streams(contender: &Contender, number: usize) -> Fallible<f64> {
    let (needed, limit) = (files_for(u32::try_from(number)?), file_limit());
    if limit < needed {
        return Err(format!("{number} streams need {needed} open files, and `ulimit -Hn` is {limit}").into());
    }
    drop(open(&contender.at, Mode::Silent, WARM_UP).await?);
    tokio::time::sleep(SETTLE).await;
    let before = contender.memory()?;
    let streams = open(&contender.at, Mode::Silent, number).await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let after = contender.memory()?;
    drop(streams);
    // The contender is ended next, and would wait for streams that this process has had no time to close.
    tokio::time::sleep(SETTLE).await;
    Ok((after - before) / number as f64)
}
