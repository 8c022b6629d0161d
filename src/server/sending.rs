//! The sending side of a client's connection, which hyper and the relay of a stream use in turns ([`Outlet`] says why). hyper has it
//! at first. The relay has it once hyper's answer has nothing more to give and all of it is flushed. Any write of hyper's takes it
//! back, and so does its answer whenever it looks for more. What the relay was promised to be written is written first, so that no chunk is ever torn.
//!
//! Hot path: one copy of a piece between its chunk's size and end, one write.
//!
//! [`Outlet`]: crate::proxy::Outlet

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::AsyncWrite;

use crate::proxy::Passed;

/// The memory for one chunk that a thread keeps.
const SCRATCH_KEPT: usize = 64 << 10;

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The owner of the sending side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Owner {
    #[default]
    Hyper,
    /// hyper's, until it has flushed what it holds.
    Offered,
    Relay,
    /// hyper's answer looks for more, and all before was flushed. hyper looks once more after each flush, and flushes no more then.
    Looking,
}

/// The state of the sending side.
#[derive(Default)]
pub(super) struct Sending {
    owner: Owner,
    /// The rest of a chunk that the socket took in part.
    owed: BytesMut,
}

impl Sending {
    /// hyper may be given more. A second time without an offer in between, it was given something.
    pub(super) fn take_back(&mut self) {
        self.owner = if self.owner == Owner::Relay { Owner::Looking } else { Owner::Hyper };
    }

    /// hyper has been given all there is.
    pub(super) fn offer(&mut self) {
        self.owner = if self.owner == Owner::Looking { Owner::Relay } else { Owner::Offered };
    }

    /// hyper has flushed all that it was given.
    pub(super) fn flushed(&mut self) {
        if self.owner == Owner::Offered {
            self.owner = Owner::Relay;
        }
    }

    /// Returns whether the relay writes: hyper has nothing to write.
    pub(super) fn is_relays(&self) -> bool {
        self.owner == Owner::Relay
    }

    /// Returns whether hyper writes, or who takes its place.
    pub(super) fn is_hypers(&self) -> bool {
        matches!(self.owner, Owner::Hyper | Owner::Looking)
    }

    /// Keeps a piece, to be written as one chunk after what is owed already.
    pub(super) fn owe(&mut self, piece: &[u8]) {
        // An empty chunk would be the answer's end.
        if !piece.is_empty() {
            as_chunk(piece, |chunk| self.owed.extend_from_slice(chunk));
        }
    }

    /// Keeps the end of an answer in chunks, to be written after what is owed already.
    pub(super) fn owe_end(&mut self) {
        self.owed.extend_from_slice(b"0\r\n\r\n");
    }

    /// hyper is about to write; ready when it may.
    pub(super) fn poll_before_hyper<S: AsyncWrite + Unpin>(
        &mut self,
        io: &mut S,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        if matches!(self.owner, Owner::Relay | Owner::Looking) {
            self.owner = Owner::Hyper;
        }
        if self.owed.is_empty() { Poll::Ready(Ok(())) } else { self.poll_taken(io, cx) }
    }

    /// Writes what is owed.
    pub(super) fn poll_taken<S: AsyncWrite + Unpin>(
        &mut self,
        io: &mut S,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        while !self.owed.is_empty() {
            let bytes = ready!(Pin::new(&mut *io).poll_write(cx, &self.owed))?;
            if bytes == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.owed.advance(bytes);
        }
        self.owed = BytesMut::new();
        Pin::new(io).poll_flush(cx)
    }

    /// Writes a piece of the relay's.
    pub(super) fn pass<S: AsyncWrite + Unpin>(
        &mut self,
        io: &mut S,
        cx: &mut Context<'_>,
        piece: &[u8],
    ) -> io::Result<Passed> {
        if self.owner != Owner::Relay {
            return Ok(Passed::NotNow);
        }
        // An empty chunk would be the answer's end.
        if piece.is_empty() {
            return Ok(Passed::Whole);
        }
        as_chunk(piece, |chunk| {
            let taken = match self.owed.is_empty().then(|| Pin::new(&mut *io).poll_write(cx, chunk)) {
                Some(Poll::Ready(taken)) => taken?,
                Some(Poll::Pending) | None => 0,
            };
            self.owed.extend_from_slice(&chunk[taken..]);
            io::Result::Ok(())
        })?;
        if !self.owed.is_empty() {
            return Ok(Passed::InPart);
        }
        match Pin::new(io).poll_flush(cx) {
            Poll::Ready(flushed) => flushed.map(|()| Passed::Whole),
            Poll::Pending => Ok(Passed::InPart),
        }
    }
}

/// Calls `f` with a piece as one chunk.
fn as_chunk<T>(piece: &[u8], f: impl FnOnce(&[u8]) -> T) -> T {
    SCRATCH.with_borrow_mut(|chunk| {
        chunk.clear();
        put_chunk(piece, chunk);
        let done = f(chunk);
        if chunk.capacity() > SCRATCH_KEPT {
            *chunk = Vec::new();
        }
        done
    })
}

/// Appends a piece as one chunk.
fn put_chunk(piece: &[u8], out: &mut Vec<u8>) {
    let digits = (usize::BITS - piece.len().leading_zeros()).div_ceil(4).max(1);
    out.reserve(piece.len() + digits as usize + 4);
    let digit = |at: u32| b"0123456789abcdef"[piece.len() >> (4 * at) & 15];
    out.extend((0..digits).rev().map(digit));
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(piece);
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use tokio::io::{AsyncReadExt, DuplexStream, duplex};

    use super::*;

    /// The sending side of a connection that holds so many bytes, owned by the relay.
    fn relays(room: usize) -> (Sending, DuplexStream, DuplexStream) {
        let (ours, client) = duplex(room);
        let mut sending = Sending::default();
        sending.offer();
        sending.flushed();
        (sending, ours, client)
    }

    async fn read(client: &mut DuplexStream, bytes: usize) -> String {
        let mut read = vec![0; bytes];
        client.read_exact(&mut read).await.unwrap();
        String::from_utf8(read).unwrap()
    }

    #[test]
    fn a_chunk_has_its_size_in_hex() {
        for size in [1, 9, 10, 15, 16, 17, 255, 256, 4095, 4096, 65_535, 65_536, 1 << 20] {
            let mut chunk = Vec::new();
            put_chunk(&vec![b'x'; size], &mut chunk);
            let head = format!("{size:x}\r\n");
            assert!(chunk.starts_with(head.as_bytes()) && chunk.ends_with(b"x\r\n"), "{size}");
            assert_eq!(chunk.len(), head.len() + size + 2);
        }
    }

    #[test]
    fn the_socket_is_the_relays_only_between_hypers_flush_and_its_next_write() {
        let (mut io, _client) = duplex(1 << 10);
        let mut cx = Context::from_waker(Waker::noop());
        let mut sending = Sending::default();
        let mut pass = |sending: &mut Sending| sending.pass(&mut io, &mut cx, b"data: 1").unwrap();
        assert_eq!(pass(&mut sending), Passed::NotNow, "hyper writes the head");
        sending.flushed();
        assert_eq!(pass(&mut sending), Passed::NotNow, "hyper's answer may have more to give");
        sending.offer();
        assert_eq!(pass(&mut sending), Passed::NotNow, "not flushed");
        sending.flushed();
        assert_eq!(pass(&mut sending), Passed::Whole);
        assert_eq!(pass(&mut sending), Passed::Whole);
        sending.take_back();
        sending.flushed();
        assert_eq!(pass(&mut sending), Passed::NotNow, "hyper's answer looks for more");
        sending.offer();
        assert_eq!(pass(&mut sending), Passed::Whole, "it has found nothing, so there is nothing to flush");
        sending.take_back();
        sending.take_back();
        sending.offer();
        assert_eq!(pass(&mut sending), Passed::NotNow, "it has found something");
        sending.flushed();
        assert_eq!(pass(&mut sending), Passed::Whole);
        let (mut other, _) = duplex(8);
        assert!(sending.poll_before_hyper(&mut other, &mut Context::from_waker(Waker::noop())).is_ready());
        assert_eq!(pass(&mut sending), Passed::NotNow);
    }

    #[tokio::test]
    async fn a_chunk_that_was_taken_in_part_goes_whole_before_anything_of_hypers() {
        let (mut sending, mut io, mut client) = relays(8);
        let mut cx = Context::from_waker(Waker::noop());
        assert_eq!(sending.pass(&mut io, &mut cx, b"data: 12345").unwrap(), Passed::InPart);
        assert!(sending.poll_taken(&mut io, &mut cx).is_pending());
        assert!(sending.poll_before_hyper(&mut io, &mut cx).is_pending(), "hyper waits");
        assert_eq!(read(&mut client, 8).await, "b\r\ndata:");
        assert!(sending.poll_before_hyper(&mut io, &mut cx).is_ready());
        assert_eq!(read(&mut client, 8).await, " 12345\r\n");
        assert!(sending.poll_taken(&mut io, &mut cx).is_ready());
    }

    #[tokio::test]
    async fn an_empty_piece_is_no_chunk_and_a_client_that_is_gone_is_an_error() {
        let (mut sending, mut io, client) = relays(64);
        let mut cx = Context::from_waker(Waker::noop());
        assert_eq!(sending.pass(&mut io, &mut cx, b"").unwrap(), Passed::Whole);
        drop(client);
        assert_eq!(sending.pass(&mut io, &mut cx, b"x").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
