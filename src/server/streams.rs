//! HTTP/2 streams whose client takes nothing of an answer, and clients that only open streams to reset them. hyper sends each answer
//! in a task of its own and waits there for the stream's window, for as long as the connection lives; it polls no body meanwhile.
//! So the task is watched from outside, and learns from the body whether it waits for the backend or for the client.
//!
//! Hot path: two writes of a thread-local cell a poll; the timer exists only while a stream waits for its client.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use hyper::rt::Executor;
use tokio::time::Sleep;

/// A piece of an answer. A client that takes one has made progress.
const PIECE: usize = 64 << 10;
/// A piece over this has its last byte sent apart, and so has the last one of an answer whose end is known.
const APART: usize = 1 << 10;

/// The answer of a body when its stream's task polled it last.
#[derive(Clone, Copy)]
enum Said {
    /// It was not asked.
    Nothing,
    /// It waits for more of the answer.
    Waits,
    /// It gave a piece.
    Gave,
}

thread_local! {
    static SAID: Cell<Said> = const { Cell::new(Said::Nothing) };
}

/// Runs the tasks of hyper's streams, and ends one whose client takes nothing for too long: the stream is reset, and its answer
/// freed.
#[derive(Clone, Copy, Debug)]
pub(super) struct StreamExecutor {
    /// `limits.write_stall`; `None` is no limit.
    pub(super) stall: Option<Duration>,
}

impl<F> Executor<F> for StreamExecutor
where
    F: Future<Output: Send> + Send + 'static,
{
    fn execute(&self, stream: F) {
        let Some(stall) = self.stall else {
            drop(tokio::spawn(stream));
            return;
        };
        drop(tokio::spawn(async move {
            let mut stream = pin!(stream);
            let mut blocked: Option<Pin<Box<Sleep>>> = None;
            poll_fn(|cx| {
                SAID.set(Said::Nothing);
                if stream.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(());
                }
                match SAID.get() {
                    Said::Nothing => {}
                    Said::Waits => blocked = None,
                    Said::Gave => blocked = Some(Box::pin(tokio::time::sleep(stall))),
                }
                // Dropping the task resets the stream.
                blocked.as_mut().map_or(Poll::Pending, |timer| timer.as_mut().poll(cx))
            })
            .await;
        }));
    }
}

/// The rest of a piece that is sent in several. The last byte of a larger piece goes apart: hyper is done with an answer once it
/// has given the last piece to h2, which takes it whole as soon as the window is open by one byte, and holds it. A small piece of a
/// stream goes whole, since most are: then h2 may hold the last of them, up to [`APART`], until the connection ends.
#[derive(Debug, Default)]
pub(super) struct Rest {
    bytes: Bytes,
    /// The largest part that goes whole.
    whole: usize,
}

impl Rest {
    /// Takes a piece, which may be the answer's last, and gives the first part of it.
    pub(super) fn split(&mut self, piece: Bytes, is_last: bool) -> Bytes {
        *self = Rest { bytes: piece, whole: if is_last { 1 } else { APART } };
        self.next().unwrap_or_default()
    }

    /// The next part.
    pub(super) fn next(&mut self) -> Option<Bytes> {
        let part = match self.bytes.len() {
            0 => return None,
            long if long > PIECE => PIECE,
            long if long > self.whole => long - 1,
            short => short,
        };
        gave();
        Some(self.bytes.split_to(part))
    }

    /// Bytes that are left.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }
}

/// The body whose task is polled gave a piece.
fn gave() {
    SAID.set(Said::Gave);
}

/// The body whose task is polled waits for more of its answer.
pub(super) fn waits() {
    SAID.set(Said::Waits);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_piece_goes_in_parts_and_its_last_byte_apart() {
        let parts = |bytes: usize, is_last| {
            let mut rest = Rest::default();
            let first = rest.split(vec![7; bytes].into(), is_last).len();
            let mut parts = vec![first];
            while let Some(part) = rest.next() {
                parts.push(part.len());
            }
            parts
        };
        assert_eq!(parts(10, false), [10]);
        assert_eq!(parts(APART, false), [APART]);
        for is_last in [false, true] {
            assert_eq!(parts(APART + 1, is_last), [APART, 1]);
            assert_eq!(parts(2 * PIECE, is_last), [PIECE, PIECE - 1, 1]);
        }
        assert_eq!(parts(2 * PIECE + 5, false), [PIECE, PIECE, 5]);
        assert_eq!(parts(2 * PIECE + 5, true), [PIECE, PIECE, 4, 1]);
        assert_eq!(parts(10, true), [9, 1]);
        assert_eq!(parts(1, true), [1]);
    }
}
