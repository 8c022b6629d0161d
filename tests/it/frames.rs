//! HTTP/2 frame by frame: what no well-behaved client does.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};

use crate::harness::DEADLINE;

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// A frame as it came.
#[derive(Debug)]
pub(crate) struct Frame {
    kind: u8,
    flags: u8,
    pub(crate) stream: u32,
    payload: Vec<u8>,
}

/// A connection that speaks frames.
pub(crate) struct Frames {
    tcp: TcpStream,
    /// The window of each stream, as the next settings say.
    pub(crate) window: u32,
    /// A ping that was not answered.
    ping: Option<Vec<u8>>,
    /// Frames read and passed over.
    goaways: Vec<u32>,
}

impl Frames {
    /// Opens a connection whose streams have a window of this size for answers.
    pub(crate) fn open(address: SocketAddr, window: u32) -> Frames {
        let mut tcp = TcpStream::connect(address).unwrap();
        tcp.set_read_timeout(Some(DEADLINE)).unwrap();
        tcp.set_write_timeout(Some(DEADLINE)).unwrap();
        tcp.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
        let mut frames = Frames { tcp, window, ping: None, goaways: Vec::new() };
        frames.settings();
        // The connection's own window is no limit.
        frames.send(WINDOW_UPDATE, 0, 0, &(1_u32 << 24).to_be_bytes());
        frames
    }

    /// Tells the window of streams.
    pub(crate) fn settings(&mut self) {
        let payload = [&[0, 4][..], &self.window.to_be_bytes()].concat();
        self.send(SETTINGS, 0, 0, &payload);
    }

    fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> bool {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let head = [&length[1..], &[kind, flags], &stream.to_be_bytes()].concat();
        self.tcp.write_all(&[head.as_slice(), payload].concat()).is_ok()
    }

    /// A POST of JSON.
    pub(crate) fn request(&mut self, stream: u32, path: &str, body: &[u8]) {
        let block = block(path);
        assert!(self.send(HEADERS, END_HEADERS, stream, &block));
        assert!(self.send(DATA, END_STREAM, stream, body));
    }

    /// Opens a POST whose head has a header of so many bytes, and keeps its body back.
    pub(crate) fn open_request(&mut self, stream: u32, path: &str, filler: usize) {
        let mut block = block(path);
        block.extend([0, 8]);
        block.extend(b"x-filler");
        // A length over the seven bits of its first byte (RFC 7541 section 5.1).
        block.push(127);
        let mut rest = filler - 127;
        while rest >= 128 {
            block.push(u8::try_from(rest % 128).expect("below 128") | 128);
            rest /= 128;
        }
        block.push(u8::try_from(rest).expect("below 128"));
        block.extend(std::iter::repeat_n(b'x', filler));
        let pieces: Vec<&[u8]> = block.chunks(16 << 10).collect();
        for (at, piece) in pieces.iter().enumerate() {
            let kind = if at == 0 { HEADERS } else { CONTINUATION };
            let flags = if at + 1 == pieces.len() { END_HEADERS } else { 0 };
            assert!(self.send(kind, flags, stream, piece));
        }
    }

    /// The same connection for another thread, which only sends.
    pub(crate) fn twin(&self) -> Frames {
        Frames { tcp: self.tcp.try_clone().unwrap(), window: self.window, ping: None, goaways: Vec::new() }
    }

    /// Resets a stream, as a client does that cancels its request.
    pub(crate) fn reset(&mut self, stream: u32) {
        assert!(self.send(RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
    }

    /// Sends a byte of a stream's body, whatever became of the stream; whether the connection takes it.
    #[cfg(feature = "epp")]
    pub(crate) fn late(&mut self, stream: u32) -> bool {
        self.send(DATA, 0, stream, b"x")
    }

    /// Returns whether the server answers a ping.
    #[cfg(feature = "epp")]
    pub(crate) fn is_alive(&mut self) -> bool {
        let asked = self.send(PING, 0, 0, &[9; 8]);
        asked && std::iter::from_fn(|| self.next()).any(|frame| frame.kind == PING && frame.flags == ACK)
    }

    /// Waits for the head of an answer; whether its status is 200.
    pub(crate) fn is_served(&mut self, stream: u32) -> bool {
        loop {
            let head = self.until(HEADERS);
            if head.stream == stream {
                // The static table's entry of that status comes first (RFC 7541 appendix A).
                return head.payload.first() == Some(&0x88);
            }
        }
    }

    /// Opens the window of a stream by so many bytes.
    pub(crate) fn widen(&mut self, stream: u32, bytes: u32) -> bool {
        self.send(WINDOW_UPDATE, 0, stream, &bytes.to_be_bytes())
    }

    /// A POST that is reset once the server has seen it; whether that went well.
    pub(crate) fn request_and_reset(&mut self, stream: u32, path: &str) -> bool {
        let block = block(path);
        let asked = self.send(HEADERS, END_HEADERS, stream, &block) && self.send(PING, 0, 0, &[7; 8]);
        let seen = || self.next().map(|frame| frame.kind == PING && frame.flags == ACK);
        let mut frames = asked.then(|| std::iter::from_fn(seen)).into_iter().flatten();
        frames.any(|answered| answered) && self.send(RST_STREAM, 0, stream, &8_u32.to_be_bytes())
    }

    /// The next frame; none at the end.
    fn next(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        match self.tcp.read_exact(&mut head) {
            Ok(()) => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                panic!("no frame within {DEADLINE:?}");
            }
            Err(_) => return None,
        }
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]) & 0x7fff_ffff;
        let mut payload = vec![0; length as usize];
        self.tcp.read_exact(&mut payload).ok()?;
        let frame = Frame { kind: head[3], flags: head[4], stream, payload };
        match (frame.kind, frame.flags & ACK) {
            (SETTINGS, 0) => drop(self.send(SETTINGS, ACK, 0, &[])),
            (PING, 0) => self.ping = Some(frame.payload.clone()),
            (GOAWAY, _) => self.goaways.push(u32::from_be_bytes(frame.payload[..4].try_into().unwrap()) & 0x7fff_ffff),
            _ => {}
        }
        Some(frame)
    }

    /// The next frame of this kind; what comes before is passed over, pings stay without an answer.
    pub(crate) fn until(&mut self, kind: u8) -> Frame {
        loop {
            let frame = self.next().expect("the connection goes on");
            if frame.kind == kind {
                return frame;
            }
        }
    }

    /// Waits for the end of the connection to be announced and for the ping that comes with it, which stays without an answer: the last
    /// stream that is served.
    pub(crate) fn goaway_unanswered(&mut self) -> u32 {
        while self.goaways.is_empty() || self.ping.is_none() {
            self.next().expect("the connection goes on");
        }
        self.goaways.remove(0)
    }

    /// The last stream of the next announcement.
    pub(crate) fn goaway(&mut self) -> u32 {
        while self.goaways.is_empty() {
            self.next().expect("the connection goes on");
        }
        self.goaways.remove(0)
    }

    /// Answers the last ping.
    pub(crate) fn pong(&mut self) {
        let ping = self.ping.take().expect("a ping came");
        assert!(self.send(PING, ACK, 0, &ping));
    }

    /// Reads to the end of the connection; panics if none comes within the deadline.
    pub(crate) fn is_closed(&mut self) -> bool {
        while self.next().is_some() {}
        true
    }
}

/// The header block of a POST of JSON, without compression (RFC 7541 section 6.2.2 and 6.1).
fn block(path: &str) -> Vec<u8> {
    let mut block = vec![0x83, 0x86];
    for (name, value) in [(":path", path), (":authority", "forebay"), ("content-type", "application/json")] {
        block.push(0);
        for text in [name, value] {
            block.push(u8::try_from(text.len()).expect("a short text"));
            block.extend(text.bytes());
        }
    }
    block
}
