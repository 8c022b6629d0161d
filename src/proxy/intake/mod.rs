//! Reading a request's body before a backend is chosen: within the limit of one body and of all together, in time, and
//! never trusting a declared length. Memory is taken from the common limit in steps as bytes arrive; when it is full only
//! the oldest unfinished body may grow and others are refused at once, since waiting while holding would be an easy attack.
//!
//! `decode` undoes compression within the same limits. `heads` bounds the heads that one connection makes Forebay hold.

pub(super) mod decode;
pub(super) mod heads;

use std::collections::VecDeque;
use std::fmt::Display;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http::header::CONTENT_LENGTH;
use http::request::Parts;
use http_body::{Body, Frame};
use http_body_util::BodyExt;
use tokio::runtime::Handle;
use tokio::time::{Instant, Sleep};

use crate::upstream::gate;
use forebay_core::error::Refusal;
use forebay_fleet::lock::locked;
use heads::HeadPlace;

/// Memory is taken from the common limit in steps of this many bytes.
const STEP: u64 = 64 << 10;
/// Room is made for so many times what came, where so much is declared.
const AHEAD: u64 = 16;
/// A buffer of so many bytes grows, and ends, off the event loop: to copy a MiB takes a third of a millisecond, and its memory goes back
/// to the kernel page by page.
const LARGE: usize = 1 << 20;
/// A body that comes at least this fast has all the time that it takes, in bytes a second: so many give it a second more.
const SLOWEST: u64 = 4 << 10;
/// The cost of a header beside its bytes.
const HEADER: usize = 64;
/// The longest time between two pieces of a body.
const PIECE_TIMEOUT: Duration = Duration::from_secs(10);
/// Of a body that is refused, so much is read and thrown away, so that a client which sends all of it before it reads sees the
/// answer and no reset. nginx lingers as long (`lingering_time`, `lingering_timeout`).
pub(crate) const DRAIN_BYTES: u64 = 1 << 30;
pub(crate) const DRAIN_TIME: Duration = Duration::from_secs(30);
/// The longest time between two pieces of it.
pub(crate) const DRAIN_PIECE: Duration = Duration::from_secs(5);

/// The memory that all request bodies share.
pub(crate) struct BodyMemory {
    used: AtomicU64,
    unfinished: Mutex<Unfinished>,
}

/// The bodies that are not whole yet.
#[derive(Default)]
struct Unfinished {
    /// Their turns, the oldest first. Nearly always few: a set would take memory for each body.
    turns: VecDeque<u64>,
    next: u64,
}

impl Unfinished {
    fn enter(&mut self) -> u64 {
        let turn = self.next;
        self.next += 1;
        self.turns.push_back(turn);
        turn
    }

    fn leave(&mut self, turn: u64) {
        if let Ok(place) = self.turns.binary_search(&turn) {
            self.turns.remove(place);
        }
    }
}

impl BodyMemory {
    pub(crate) fn new() -> Arc<BodyMemory> {
        Arc::new(BodyMemory { used: AtomicU64::new(0), unfinished: Mutex::default() })
    }

    /// Bytes held at present.
    #[cfg(test)]
    pub(crate) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    fn enter(self: &Arc<Self>) -> Held {
        let turn = locked(&self.unfinished).enter();
        Held { memory: Arc::clone(self), turn, bytes: 0, finished: false, head: None }
    }
}

/// One body's part of the common memory, given back when dropped.
pub(crate) struct Held {
    memory: Arc<BodyMemory>,
    turn: u64,
    bytes: u64,
    finished: bool,
    /// The head's part of what its connection may hold.
    head: Option<HeadPlace>,
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

    /// Makes room for a body that has become so large, within the limits of all.
    pub(crate) fn grow_by(&mut self, limits: BodyLimits, decoded: u64) -> Result<(), Refusal> {
        self.grow(limits.head + decoded.min(limits.one), limits.all)
    }

    /// Keeps the place of the request's head for as long.
    pub(crate) fn with_head(mut self, head: Option<HeadPlace>) -> Held {
        self.head = head;
        self
    }

    fn is_oldest(&self) -> bool {
        locked(&self.memory.unfinished).turns.front() == Some(&self.turn)
    }

    fn finish(&mut self) {
        if !self.finished {
            self.finished = true;
            locked(&self.memory.unfinished).leave(self.turn);
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
    /// Bytes of the request's head, which is held as long.
    pub(crate) head: u64,
    /// Time for a body slower than [`SLOWEST`]; `None` is no limit.
    pub(crate) timeout: Option<Duration>,
}

/// About how many bytes a head holds.
pub(crate) fn head_size(head: &Parts) -> u64 {
    let headers: usize = head.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + HEADER).sum();
    (headers + head.uri.path_and_query().map_or(0, |path| path.as_str().len())) as u64
}

/// Refuses what need not be read to be refused: a declared length over the limit, a JSON body in a coding that is not understood.
pub(crate) fn check_head(headers: &HeaderMap, json: bool, limit: u64) -> Result<(), Refusal> {
    let declared = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if declared.is_some_and(|bytes| bytes > limit) {
        return Err(Refusal::TooLarge(limit));
    }
    decode::coding(headers, json).map(drop)
}

/// Reads a body to its end.
pub(crate) async fn read<B>(body: B, memory: &Arc<BodyMemory>, limits: BodyLimits) -> Result<(Bytes, Held), Refusal>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Display,
{
    let mut held = memory.enter();
    held.grow(limits.head, limits.all)?;
    let bytes = read_pieces(body, &mut held, limits).await?;
    held.finish();
    Ok((bytes, held))
}

/// The timer that tells when a body has taken too long, by how much of it came.
struct Slow(Option<(Pin<Box<Sleep>>, Instant)>);

impl Slow {
    fn new(limit: Option<Duration>) -> Slow {
        Slow(limit.map(|limit| {
            let timer = Box::pin(tokio::time::sleep(limit));
            let from = timer.deadline();
            (timer, from)
        }))
    }

    /// Waits until the body is too slow, if so many bytes are all that came.
    async fn too_slow(&mut self, bytes: u64) {
        let Some((timer, from)) = &mut self.0 else { return std::future::pending().await };
        loop {
            timer.as_mut().await;
            let until = *from + Duration::from_secs_f64(bytes as f64 / SLOWEST as f64);
            if until <= timer.deadline() {
                return;
            }
            timer.as_mut().reset(until);
        }
    }
}

async fn read_pieces<B>(mut body: B, held: &mut Held, limits: BodyLimits) -> Result<Bytes, Refusal>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Display,
{
    let mut first = Bytes::new();
    let mut rest = Buffer::default();
    let mut slow = None;
    loop {
        let so_far = (first.len() + rest.0.len()) as u64;
        // A small body came with its head: no timer is made for it.
        let there = poll_fn(|cx| Poll::Ready(poll_piece(&mut body, cx))).await;
        let next = match there {
            Poll::Ready(next) => next,
            Poll::Pending => {
                let slow = slow.get_or_insert_with(|| Slow::new(limits.timeout));
                // On the heap, so that a body that is there has no room for the wait.
                Box::pin(next_piece(&mut body, slow, so_far)).await?
            }
        };
        let frame = match next {
            None => break,
            Some(Err(error)) => return Err(Refusal::BadRequest(format!("it could not be read: {error}"))),
            Some(Ok(frame)) => frame,
        };
        let Ok(data) = frame.into_data() else { continue };
        let total = so_far + data.len() as u64;
        if total > limits.one {
            return Err(Refusal::TooLarge(limits.one));
        }
        held.grow(limits.head + total, limits.all)?;
        if first.is_empty() && rest.0.is_empty() {
            first = data;
            continue;
        }
        if rest.0.capacity() - rest.0.len() < data.len() {
            // Growing by doubling would copy a large body once more. What is declared is believed up to sixteen times what came:
            // memory is taken by what comes, and what is never written to is none.
            let declared = body.size_hint().upper().unwrap_or(0).saturating_add(data.len() as u64);
            let ahead = declared.min(AHEAD * so_far.max(STEP)) + first.len() as u64;
            let ahead = usize::try_from(ahead).unwrap_or(data.len());
            if rest.0.len() < LARGE {
                rest.0.reserve(ahead);
            } else {
                rest = Box::pin(grown(rest, ahead)).await?;
            }
        }
        if rest.0.is_empty() {
            rest.0.extend_from_slice(&std::mem::take(&mut first));
        }
        rest.0.extend_from_slice(&data);
    }
    Ok(if rest.0.is_empty() { first } else { rest.into_bytes() })
}

/// The bytes of a body that came in pieces, or compressed.
#[derive(Default)]
struct Buffer(Vec<u8>);

impl Buffer {
    fn into_bytes(mut self) -> Bytes {
        if self.0.len() < LARGE { std::mem::take(&mut self.0).into() } else { Bytes::from_owner(self) }
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.0.len() >= LARGE
            && let Ok(runtime) = Handle::try_current()
        {
            let bytes = std::mem::take(&mut self.0);
            drop(runtime.spawn_blocking(move || drop(bytes)));
        }
    }
}

/// A large buffer with room for so many bytes more.
async fn grown(mut buffer: Buffer, ahead: usize) -> Result<Buffer, Refusal> {
    let growing = tokio::task::spawn_blocking(move || {
        buffer.0.reserve(ahead);
        buffer
    });
    growing.await.map_err(|_| Refusal::Internal)
}

/// Polls for the next piece of a body. hyper wakes its connection for each that is taken, to read another; after the last there is
/// none, and the poll would be in vain.
fn poll_piece<B>(body: &mut B, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>>
where
    B: Body<Data = Bytes> + Unpin,
{
    let (polled, woken) = gate::held(|| Pin::new(&mut *body).poll_frame(cx));
    if woken && !body.is_end_stream() {
        cx.waker().wake_by_ref();
    }
    polled
}

/// Waits for the next piece of a body of which so many bytes came.
async fn next_piece<B>(
    body: &mut B,
    slow: &mut Slow,
    so_far: u64,
) -> Result<Option<Result<Frame<Bytes>, B::Error>>, Refusal>
where
    B: Body<Data = Bytes> + Unpin,
{
    tokio::select! {
        biased;
        next = tokio::time::timeout(PIECE_TIMEOUT, body.frame()) => {
            next.map_err(|_| Refusal::BodyTimeout("10 s between two pieces"))
        }
        () = slow.too_slow(so_far) => Err(Refusal::BodyTimeout("listen.body_timeout")),
    }
}

/// Reads a bounded part of a refused body in the background, so that the client, still sending, sees our answer. Over HTTP/2 the
/// answer and the end of the body are told apart, so that nothing need be read.
pub(crate) fn drain<B>(body: B, version: http::Version)
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Send,
{
    if body.is_end_stream() || version == http::Version::HTTP_2 {
        return;
    }
    tokio::spawn(tokio::time::timeout(DRAIN_TIME, async move {
        let mut body = body;
        let mut read = 0;
        while let Ok(Some(Ok(frame))) = tokio::time::timeout(DRAIN_PIECE, body.frame()).await {
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
    use http::header::CONTENT_ENCODING;
    use http_body_util::{Full, StreamBody};

    const LIMITS: BodyLimits = BodyLimits { one: 1 << 20, all: 2 << 20, head: 0, timeout: None };

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

    #[tokio::test]
    async fn a_large_body_grows_apart_and_is_what_was_sent() {
        let memory = BodyMemory::new();
        let limits = BodyLimits { one: 16 << 20, all: 16 << 20, ..LIMITS };
        let piece = |i: usize| vec![i as u8; 64 << 10];
        let pieces = (0..200).map(|i| Ok::<_, String>(http_body::Frame::data(Bytes::from(piece(i)))));
        let (bytes, _held) = read(StreamBody::new(futures_util::stream::iter(pieces)), &memory, limits).await.unwrap();
        assert!(bytes == (0..200).flat_map(piece).collect::<Vec<u8>>());
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_stops_coming_is_refused_in_time() {
        let memory = BodyMemory::new();
        let body = StreamBody::new(futures_util::stream::pending::<Result<http_body::Frame<Bytes>, String>>());
        assert!(matches!(read(body, &memory, LIMITS).await.err(), Some(Refusal::BodyTimeout(_))));
    }

    #[tokio::test(start_paused = true)]
    #[expect(clippy::disallowed_methods, reason = "the runtime's own clock, which is paused")]
    async fn a_body_has_the_more_time_the_more_of_it_comes() {
        let steady = |bytes: usize, apart: u64, pieces: usize| {
            let pieces = futures_util::stream::unfold(0, move |sent| async move {
                tokio::time::sleep(Duration::from_millis(apart)).await;
                let frame = http_body::Frame::data(Bytes::from(vec![b' '; bytes]));
                (sent < pieces).then_some((Ok::<_, String>(frame), sent + 1))
            });
            StreamBody::new(Box::pin(pieces))
        };
        let limits = BodyLimits { one: 16 << 20, all: 16 << 20, head: 0, timeout: Some(Duration::from_secs(30)) };
        let memory = BodyMemory::new();
        // 200 kB a second for 40 s, and 5 kB a second for 60.
        assert_eq!(read(steady(20_000, 100, 400), &memory, limits).await.unwrap().0.len(), 8_000_000);
        assert_eq!(read(steady(5_000, 1000, 60), &memory, limits).await.unwrap().0.len(), 300_000);
        let begun = Instant::now();
        let slow = read(steady(1, 1000, 1000), &memory, limits).await.err();
        assert_eq!(slow, Some(Refusal::BodyTimeout("listen.body_timeout")));
        assert_eq!(begun.elapsed().as_secs(), 30);
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
        headers.insert(CONTENT_ENCODING, http::HeaderValue::from_static("br"));
        assert_eq!(check_head(&headers, true, 10), Err(Refusal::Encoded("br".into())));
        assert_eq!(check_head(&headers, false, 10), Ok(()));
        headers.insert(CONTENT_ENCODING, http::HeaderValue::from_static("gzip"));
        assert_eq!(check_head(&headers, true, 10), Ok(()));
        headers.insert(CONTENT_LENGTH, http::HeaderValue::from_static("11"));
        assert_eq!(check_head(&headers, false, 10), Err(Refusal::TooLarge(10)));
    }
}
