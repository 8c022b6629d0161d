//! A body in chunks, of any bytes and cut anywhere: it is read as hyper reads it, where the cuts are does not change its data, and
//! data comes out as it came in.

#![no_main]

use std::collections::VecDeque;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use forebay_core::chunked::{Decoder, Progress};
use hyper::body::Body;
use hyper::client::conn::http1::Builder;
use hyper::rt::{Read, ReadBufCursor, Write};
use libfuzzer_sys::fuzz_target;

const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
/// The most trailers, few so that an input can have more.
const MOST_TRAILERS: usize = 8;
/// Polls after which hyper must have read an answer, by its bytes and pieces. It takes a few for each chunk and each piece.
const POLLS: usize = 100;

/// The data of a body in pieces of this size, and how far it came.
fn decoded(bytes: &[u8], size: usize) -> (Vec<u8>, Progress) {
    let (mut decoder, mut data) = (Decoder::new(MOST_TRAILERS), Vec::new());
    for piece in bytes.chunks(size.max(1)) {
        let mut piece = piece.to_vec();
        let there = decoder.decode(&mut piece);
        data.extend_from_slice(&piece[there]);
    }
    (data, decoder.progress())
}

/// The server's end of a connection: each piece is a read of its own, once there is a request, and then the connection closes.
struct Server {
    pieces: VecDeque<Bytes>,
    asked: bool,
}

impl Read for Server {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, mut to: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        // An answer before its request would be none.
        if !self.asked {
            return Poll::Pending;
        }
        if let Some(piece) = self.pieces.front_mut() {
            let there = piece.len().min(to.remaining());
            to.put_slice(&piece.split_to(there));
            if piece.is_empty() {
                self.pieces.pop_front();
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl Write for Server {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.asked = true;
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// The data that hyper's client reads of a body in pieces of this size, and whether it came whole.
fn read_by_hyper(bytes: &[u8], size: usize) -> (Vec<u8>, bool) {
    let cx = &mut Context::from_waker(Waker::noop());
    let body = Bytes::copy_from_slice(bytes);
    let pieces = (0..body.len()).step_by(size.max(1)).map(|at| body.slice(at..body.len().min(at + size.max(1))));
    let pieces: VecDeque<Bytes> = std::iter::once(Bytes::from_static(HEAD)).chain(pieces).collect();
    let polls = (bytes.len() + pieces.len()) * POLLS;
    let mut builder = Builder::new();
    builder.max_headers(MOST_TRAILERS);
    let handshake = pin!(builder.handshake(Server { pieces, asked: false }));
    let Poll::Ready(Ok((mut requests, connection))) = handshake.poll(cx) else { panic!("nothing to wait for") };
    let mut answer = pin!(requests.send_request(hyper::Request::new(String::new())));
    let (mut connection, mut closed) = (pin!(connection), false);
    let (mut body, mut data) = (None, Vec::new());
    // Nothing here wakes anybody, so both ends are polled in turn.
    for _ in 0..polls {
        closed = closed || connection.as_mut().poll(cx).is_ready();
        let Some(body) = &mut body else {
            if let Poll::Ready(there) = answer.as_mut().poll(cx) {
                body = Some(there.expect("the head is sound").into_body());
            }
            continue;
        };
        match Pin::new(body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => data.extend_from_slice(&frame.into_data().unwrap_or_default()),
            Poll::Ready(Some(Err(_))) => return (data, false),
            Poll::Ready(None) => return (data, true),
            Poll::Pending => {}
        }
    }
    panic!("hyper is not done after {polls} polls")
}

fuzz_target!(|bytes: &[u8]| {
    let whole = decoded(bytes, bytes.len());
    for size in [1, 1 + bytes.len() % 17] {
        assert_eq!(decoded(bytes, size), whole, "in pieces of {size}");
    }
    let read = (whole.0, matches!(whole.1, Progress::Whole { .. }));
    for size in [bytes.len(), 1 + bytes.len() % 13] {
        assert_eq!(read_by_hyper(bytes, size), read, "hyper, in pieces of {size}");
    }
    // What is encoded is decoded to the byte.
    let size = 1 + bytes.len() % 31;
    let mut coded: Vec<u8> = Vec::new();
    for chunk in bytes.chunks(size) {
        coded.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        coded.extend_from_slice(chunk);
        coded.extend_from_slice(b"\r\n");
    }
    coded.extend_from_slice(b"0\r\n\r\n");
    assert_eq!(decoded(&coded, coded.len()), (bytes.to_vec(), Progress::Whole { surplus: false }));
});
