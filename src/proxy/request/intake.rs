//! Reading a request's body before a backend is chosen: within the limit of one body and of all together, in time, and
//! never trusting a declared length. Memory is taken from the common limit in steps as bytes arrive; when it is full only
//! the oldest unfinished body may grow and others are refused at once, since waiting while holding would be an easy attack.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH};
use http_body::Body;
use http_body_util::BodyExt;

use forebay_core::error::Refusal;

/// Memory is taken from the common limit in steps of this many bytes.
const STEP: u64 = 64 << 10;
/// The longest time between two pieces of a body.
const PIECE_TIMEOUT: Duration = Duration::from_secs(10);
/// Of a body that is refused unread, so much is read and thrown away, so that the client sees the answer and no reset.
const DRAIN_BYTES: u64 = 1 << 20;
const DRAIN_TIME: Duration = Duration::from_secs(2);

/// The memory that all request bodies share.
pub(crate) struct BodyMemory {
    used: AtomicU64,
    unfinished: Mutex<BTreeSet<u64>>,
    next: AtomicU64,
}

impl BodyMemory {
    pub(crate) fn new() -> Arc<BodyMemory> {
        Arc::new(BodyMemory { used: AtomicU64::new(0), unfinished: Mutex::default(), next: AtomicU64::new(0) })
    }

    /// Bytes held at present.
    #[cfg(test)]
    pub(crate) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    fn enter(self: &Arc<Self>) -> Held {
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        self.unfinished.lock().unwrap_or_else(PoisonError::into_inner).insert(turn);
        Held { memory: Arc::clone(self), turn, bytes: 0, finished: false }
    }
}

/// One body's part of the common memory, given back when dropped.
pub(crate) struct Held {
    memory: Arc<BodyMemory>,
    turn: u64,
    bytes: u64,
    finished: bool,
}

impl Held {
    /// Makes room for `total` bytes in all.
    fn grow(&mut self, total: u64, limit: u64) -> Result<(), Refusal> {
        if total <= self.bytes {
            return Ok(());
        }
        let step = (total - self.bytes).div_ceil(STEP) * STEP;
        let before = self.memory.used.fetch_add(step, Ordering::Relaxed);
        self.bytes += step;
        if before + step > limit && !self.is_oldest() {
            return Err(Refusal::BodiesFull);
        }
        Ok(())
    }

    fn is_oldest(&self) -> bool {
        let unfinished = self.memory.unfinished.lock().unwrap_or_else(PoisonError::into_inner);
        unfinished.first() == Some(&self.turn)
    }

    fn finish(&mut self) {
        if !self.finished {
            self.finished = true;
            self.memory.unfinished.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.turn);
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.finish();
        self.memory.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Limits of reading one body.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BodyLimits {
    /// Bytes of one body.
    pub(crate) one: u64,
    /// Bytes of all bodies together.
    pub(crate) all: u64,
    /// Time for the whole body; `None` is no limit.
    pub(crate) timeout: Option<Duration>,
}

/// Refuses what need not be read to be refused: a declared length over the limit, an encoded JSON body.
pub(crate) fn check_head(headers: &HeaderMap, json: bool, limit: u64) -> Result<(), Refusal> {
    let declared = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if declared.is_some_and(|bytes| bytes > limit) {
        return Err(Refusal::TooLarge(limit));
    }
    match headers.get(CONTENT_ENCODING) {
        Some(encoding) if json && encoding != "identity" => {
            Err(Refusal::Encoded(String::from_utf8_lossy(encoding.as_bytes()).into_owned()))
        }
        _ => Ok(()),
    }
}

/// Reads a body to its end.
pub(crate) async fn read<B>(body: B, memory: &Arc<BodyMemory>, limits: BodyLimits) -> Result<(Bytes, Held), Refusal>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Display,
{
    let mut held = memory.enter();
    let reading = read_pieces(body, &mut held, limits);
    let bytes = match limits.timeout {
        None => reading.await?,
        Some(limit) => {
            tokio::time::timeout(limit, reading).await.map_err(|_| Refusal::BodyTimeout("listen.body_timeout"))??
        }
    };
    held.finish();
    Ok((bytes, held))
}

async fn read_pieces<B>(mut body: B, held: &mut Held, limits: BodyLimits) -> Result<Bytes, Refusal>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Display,
{
    let mut first = Bytes::new();
    let mut rest = BytesMut::new();
    loop {
        // A limit on the whole alone would let a client hold memory for minutes with a byte each.
        let frame = match tokio::time::timeout(PIECE_TIMEOUT, body.frame()).await {
            Err(_) => return Err(Refusal::BodyTimeout("10 s between two pieces")),
            Ok(None) => break,
            Ok(Some(Err(error))) => return Err(Refusal::BadRequest(format!("it could not be read: {error}"))),
            Ok(Some(Ok(frame))) => frame,
        };
        let Ok(data) = frame.into_data() else { continue };
        let total = (first.len() + rest.len() + data.len()) as u64;
        // Before the memory is taken: a body that is too large must not push others out.
        if total > limits.one {
            return Err(Refusal::TooLarge(limits.one));
        }
        held.grow(total, limits.all)?;
        // Most bodies come in one piece, which is kept without a copy.
        if first.is_empty() && rest.is_empty() {
            first = data;
        } else {
            if rest.is_empty() {
                rest.extend_from_slice(&std::mem::take(&mut first));
            }
            rest.extend_from_slice(&data);
        }
    }
    Ok(if rest.is_empty() { first } else { rest.freeze() })
}

/// Reads a bounded part of a refused body in the background, so that the client, still sending, sees our answer.
pub(crate) fn drain<B>(body: B)
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Send,
{
    // Nothing is left to be read.
    if body.is_end_stream() {
        return;
    }
    tokio::spawn(tokio::time::timeout(DRAIN_TIME, async move {
        let mut body = body;
        let mut read = 0;
        while let Some(Ok(frame)) = body.frame().await {
            read += frame.data_ref().map_or(0, |data| data.len() as u64);
            if read > DRAIN_BYTES {
                break;
            }
        }
    }));
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::{Full, StreamBody};

    const LIMITS: BodyLimits = BodyLimits { one: 1 << 20, all: 2 << 20, timeout: None };

    #[tokio::test]
    async fn a_body_over_the_limit_is_refused_and_its_memory_given_back() {
        let memory = BodyMemory::new();
        let body = Full::new(Bytes::from(vec![0; (1 << 20) + 1]));
        assert_eq!(read(body, &memory, LIMITS).await.err(), Some(Refusal::TooLarge(1 << 20)));
        assert_eq!(memory.used(), 0);
    }

    #[tokio::test]
    async fn pieces_become_one_body() {
        let memory = BodyMemory::new();
        let pieces = ["ab", "", "c", "def"].map(|piece| Ok::<_, String>(http_body::Frame::data(Bytes::from(piece))));
        let body = StreamBody::new(futures_util::stream::iter(pieces));
        let (bytes, held) = read(body, &memory, LIMITS).await.unwrap();
        assert_eq!(bytes, "abcdef");
        assert_eq!(memory.used(), STEP);
        drop(held);
        assert_eq!(memory.used(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_stops_coming_is_refused_in_time() {
        let memory = BodyMemory::new();
        let body = StreamBody::new(futures_util::stream::pending::<Result<http_body::Frame<Bytes>, String>>());
        assert!(matches!(read(body, &memory, LIMITS).await.err(), Some(Refusal::BodyTimeout(_))));
    }

    #[test]
    fn when_memory_is_full_only_the_oldest_unfinished_body_grows() {
        let memory = BodyMemory::new();
        let (mut oldest, mut younger) = (memory.enter(), memory.enter());
        assert_eq!(oldest.grow(STEP, 2 * STEP), Ok(()));
        assert_eq!(younger.grow(STEP, 2 * STEP), Ok(()));
        assert_eq!(oldest.grow(2 * STEP, 2 * STEP), Ok(()));
        assert_eq!(younger.grow(2 * STEP, 2 * STEP), Err(Refusal::BodiesFull));
        drop(younger);
        oldest.finish();
        drop(oldest);
        assert_eq!(memory.used(), 0);
    }

    #[test]
    fn an_encoded_json_body_is_refused_unread() {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_ENCODING, http::HeaderValue::from_static("gzip"));
        assert_eq!(check_head(&headers, true, 10), Err(Refusal::Encoded("gzip".into())));
        assert_eq!(check_head(&headers, false, 10), Ok(()));
        headers.insert(CONTENT_LENGTH, http::HeaderValue::from_static("11"));
        assert_eq!(check_head(&headers, false, 10), Err(Refusal::TooLarge(10)));
    }
}
