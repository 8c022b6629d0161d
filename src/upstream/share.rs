//! A task's share of its thread's time, by bytes. tokio lets a task go on for 128 operations, and an operation on a socket may carry
//! megabytes: where a body is large and the peer is quick, one poll would hold all other requests of the thread for tens of
//! milliseconds. So bytes count, too, and a poll ends after about 512 KiB.
//!
//! What ends so is polled again after the thread has looked at all sockets. hyper ends a poll, too, after 16 reads, but wakes the task
//! at once, and then the thread looks at sockets after 61 polls only. The share is less than 16 of hyper's reads, so that it comes first.
//!
//! Hot path: one comparison where few bytes are carried.

use std::io::IoSlice;
use std::task::{Context, Poll};

use tokio::task::coop;

/// The bytes that use up as much of the share as an operation does.
const OPERATION: usize = 4 << 10;
/// The most that one write carries: a socket whose peer keeps up takes some MiB at once.
const WRITE: usize = 256 << 10;
/// Of more buffers than a head and the slices of a body, the rest is for the next write.
const PARTS: usize = 8;

/// Takes the bytes that one operation carried off the share.
pub(super) fn spend(cx: &mut Context<'_>, bytes: usize) {
    for _ in 0..bytes / OPERATION {
        // Asked before, since to find that nothing is left wakes the task.
        if !coop::has_budget_remaining() {
            return;
        }
        if let Poll::Ready(operation) = coop::poll_proceed(cx) {
            operation.made_progress();
        }
    }
}

/// The part of a buffer that is written at once.
pub(super) fn at_once(buf: &[u8]) -> &[u8] {
    &buf[..buf.len().min(WRITE)]
}

/// The parts of several buffers that are written at once, where all of them are too many bytes.
pub(super) fn parts_at_once<'a>(bufs: &'a [IoSlice<'_>]) -> Option<[IoSlice<'a>; PARTS]> {
    if bufs.iter().map(|buf| buf.len()).sum::<usize>() <= WRITE {
        return None;
    }
    let (mut parts, mut room) = ([IoSlice::new(&[]); PARTS], WRITE);
    for (part, buf) in parts.iter_mut().zip(bufs.iter().filter(|buf| !buf.is_empty())) {
        *part = IoSlice::new(&buf[..buf.len().min(room)]);
        room -= part.len();
    }
    Some(parts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;

    /// Bytes carried in operations of `each` until the share of one poll is used up.
    async fn carried(each: usize) -> usize {
        let mut carried = 0;
        poll_fn(|cx| {
            while coop::has_budget_remaining() && carried < 1 << 30 {
                spend(cx, each);
                carried += each;
            }
            Poll::Ready(())
        })
        .await;
        carried
    }

    #[tokio::test]
    async fn a_share_is_the_same_however_it_is_carried_and_small_pieces_cost_none() {
        for each in [OPERATION, 16 << 10, 64 << 10, WRITE] {
            let bytes = tokio::spawn(carried(each)).await.unwrap();
            assert_eq!(bytes, 512 << 10, "{each}");
        }
        assert!(tokio::spawn(carried(OPERATION - 1)).await.unwrap() >= 1 << 30);
    }

    #[test]
    fn a_write_is_cut_and_a_small_one_is_not() {
        let (head, body) = (vec![b'h'; 200], vec![b'b'; 1 << 20]);
        assert_eq!((at_once(&head).len(), at_once(&body).len()), (200, WRITE));
        let slices = [IoSlice::new(&head), IoSlice::new(&[]), IoSlice::new(&body), IoSlice::new(&body)];
        let lengths = |slices: &[IoSlice<'_>]| parts_at_once(slices).unwrap().map(|part| part.len());
        assert_eq!(lengths(&slices)[..3], [200, WRITE - 200, 0]);
        assert_eq!(lengths(&slices[2..])[..2], [WRITE, 0]);
        assert!(parts_at_once(&slices[..2]).is_none());
        let many = [vec![IoSlice::new(&head); 20], vec![IoSlice::new(&body)]].concat();
        assert_eq!(lengths(&many), [200; PARTS]);
    }
}
