//! Server-sent events: where an event ends in a stream of chunks cut anywhere, and what its lines say. Knows nothing of
//! any API, never changes a byte and never holds more than one event of bounded size.
//!
//! Hot path: [`simple`] for a chunk that is exactly one event (two to four `memchr` scans, no copy, no allocation);
//! [`Framer::next`] for everything else, which copies only what straddles two chunks.

use std::borrow::Cow;

use bytes::{Bytes, BytesMut};
use memchr::{memchr, memchr2};

/// Room that is taken for the rest of an event with its beginning, in bytes: vLLM's events of one token have about 250.
const REST: usize = 256;

/// A piece of the stream, in order; together they are the input, byte for byte.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Frame {
    /// A whole event with the blank line that ends it; or a blank line where no event is open.
    Event(Bytes),
    /// The beginning of an event that is longer than the limit.
    Head(Bytes),
    /// More of such an event.
    Part(Bytes),
    /// The rest of such an event, with the blank line; may be empty.
    Last(Bytes),
}

/// The position of the scan in a line, between two bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// At the beginning of a line.
    Start,
    /// Within a line.
    Inside,
    /// After the CR that ended a line with text; an LF may belong to it.
    Cr,
    /// After the CR of a blank line in a stream whose lines end in CRLF: its LF is still to come.
    BlankCr,
}

/// Cuts a stream of bytes into events.
///
/// LF, CRLF and CR end a line, as the standard says. A CR at the end of a blank line would leave open whether an LF
/// follows; whether the last line ended in CRLF decides, so that a CR-only stream is not one event late and the cuts depend
/// on the bytes alone, never on how they were chunked.
#[derive(Debug)]
pub(super) struct Framer {
    at: At,
    /// The last line with text ended in CRLF.
    crlf: bool,
    /// The open event is over the limit and is passed on in parts.
    oversize: bool,
    max_event: usize,
    pending: BytesMut,
}

impl Framer {
    pub(super) fn new(max_event: usize) -> Framer {
        Framer { at: At::Start, crlf: false, oversize: false, max_event, pending: BytesMut::new() }
    }

    /// Returns whether the next byte begins an event.
    pub(super) fn at_boundary(&self) -> bool {
        self.at == At::Start && self.pending.is_empty() && !self.oversize
    }

    /// Notes that an event with LF line ends was taken past the framer, which is [`Framer::at_boundary`].
    pub(super) fn skip_lf_event(&mut self) {
        self.crlf = false;
    }

    /// The next piece out of `rest`, of which it takes what it uses; `None` when all of `rest` is taken and no piece is
    /// complete.
    pub(super) fn next(&mut self, rest: &mut Bytes) -> Option<Frame> {
        if rest.is_empty() {
            return None;
        }
        if let Some(end) = self.scan(rest) {
            let piece = rest.split_to(end);
            // Its beginning has gone out already, so its end does too, though it would fit.
            if std::mem::take(&mut self.oversize) {
                return Some(Frame::Last(piece));
            }
            if self.pending.is_empty() {
                return Some(Frame::Event(piece));
            }
            self.pending.extend_from_slice(&piece);
            // Taken, not split off: the rest of its capacity would keep the event's memory for as long as the stream
            // lasts.
            return Some(Frame::Event(std::mem::take(&mut self.pending).freeze()));
        }
        // No event ends here, so that all of it belongs to the open one.
        let piece = std::mem::take(rest);
        if self.oversize {
            return Some(Frame::Part(piece));
        }
        // Nothing to join it with: the chunk passes without a copy.
        if self.pending.is_empty() && piece.len() > self.max_event {
            self.oversize = true;
            return Some(Frame::Head(piece));
        }
        if self.pending.is_empty() {
            // The rest of an event that was cut is mostly short: with room for it, it is copied once.
            self.pending = BytesMut::with_capacity(piece.len() + REST);
        }
        self.pending.extend_from_slice(&piece);
        if self.pending.len() > self.max_event {
            self.oversize = true;
            return Some(Frame::Head(std::mem::take(&mut self.pending).freeze()));
        }
        None
    }

    /// The bytes of an event that has not ended.
    pub(super) fn take_tail(&mut self) -> Option<Bytes> {
        if self.pending.is_empty() { None } else { Some(std::mem::take(&mut self.pending).freeze()) }
    }

    /// The index after the event that ends first in `bytes`, which follow what was scanned before.
    fn scan(&mut self, bytes: &[u8]) -> Option<usize> {
        let mut i = 0;
        loop {
            let byte = *bytes.get(i)?;
            match self.at {
                At::Inside => {
                    i += memchr2(b'\n', b'\r', &bytes[i..])?;
                    if bytes[i] == b'\n' {
                        self.crlf = false;
                        self.at = At::Start;
                    } else {
                        self.at = At::Cr;
                    }
                    i += 1;
                }
                At::Cr => {
                    // Judged with the next byte, which may be the first of the next chunk.
                    self.crlf = byte == b'\n';
                    i += usize::from(self.crlf);
                    self.at = At::Start;
                }
                At::Start => match byte {
                    b'\n' => return Some(i + 1),
                    // The line before ended in CRLF, so an LF will follow, in this chunk or in the next.
                    b'\r' if self.crlf => {
                        self.at = At::BlankCr;
                        i += 1;
                    }
                    b'\r' => return Some(i + 1),
                    _ => self.at = At::Inside,
                },
                At::BlankCr => {
                    self.at = At::Start;
                    return Some(i + usize::from(byte == b'\n'));
                }
            }
        }
    }
}

/// The content of an event.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Event<'a> {
    /// The last `event:` field; empty where there is none.
    pub(super) name: &'a [u8],
    /// The `data:` fields, joined by LF; `None` where there is none.
    pub(super) data: Option<Cow<'a, [u8]>>,
    /// There are comments and blank lines only.
    pub(super) silent: bool,
}

/// The name and the data of the event that `chunk` is, if it is just one event in vLLM's form: an optional `event:` line, one `data:`
/// line, LF line ends.
#[inline]
pub(super) fn simple(chunk: &[u8]) -> Option<(&[u8], &[u8])> {
    let body = chunk.strip_suffix(b"\n\n")?;
    let (name, line) = match body.strip_prefix(b"event: ") {
        Some(rest) => {
            // The name's line ends in LF, or it is not this form.
            let end = memchr2(b'\n', b'\r', rest).filter(|end| rest[*end] == b'\n')?;
            (&rest[..end], &rest[end + 1..])
        }
        None => (&b""[..], body),
    };
    // Any other form, such as a comment or a field without its space, takes the general way.
    let data = line.strip_prefix(b"data: ")?;
    // What is left of the chunk must be the one line that it seems to be.
    if memchr2(b'\n', b'\r', data).is_some() {
        return None;
    }
    Some((name, data))
}

/// Reads the lines of one event, or of the beginning of one. `first`: it is the stream's first, which a byte order mark may
/// precede.
pub(super) fn parse(raw: &[u8], first: bool) -> Event<'_> {
    let mut event = Event { name: b"", data: None, silent: true };
    let mut rest = match raw.strip_prefix(b"\xEF\xBB\xBF") {
        Some(rest) if first => rest,
        _ => raw,
    };
    while !rest.is_empty() {
        // An empty line between CR and LF says nothing, so that CRLF needs no care here.
        let end = memchr2(b'\n', b'\r', rest).unwrap_or(rest.len());
        let line = &rest[..end];
        rest = rest.get(end + 1..).unwrap_or_default();
        if line.is_empty() || line[0] == b':' {
            continue;
        }
        event.silent = false;
        let (field, value) = match memchr(b':', line) {
            Some(colon) => (&line[..colon], &line[colon + 1..]),
            // By the standard a line without a colon is a field with an empty value.
            None => (line, &b""[..]),
        };
        // The standard takes away one space after the colon, and no more.
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match field {
            b"event" => event.name = value,
            b"data" => match &mut event.data {
                None => event.data = Some(Cow::Borrowed(value)),
                Some(data) => {
                    // Several `data:` lines are one text. This alone copies; vLLM writes one line.
                    let data = data.to_mut();
                    data.push(b'\n');
                    data.extend_from_slice(value);
                }
            },
            // `id` and `retry` are for the client, which gets the bytes as they are.
            _ => {}
        }
    }
    event
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(chunks: &[&[u8]], max: usize) -> (Vec<Frame>, Option<Bytes>) {
        let (mut framer, mut out) = (Framer::new(max), Vec::new());
        for chunk in chunks {
            let mut rest = Bytes::copy_from_slice(chunk);
            while let Some(frame) = framer.next(&mut rest) {
                out.push(frame);
            }
        }
        (out, framer.take_tail())
    }

    fn event(text: &'static str) -> Frame {
        Frame::Event(Bytes::from_static(text.as_bytes()))
    }

    #[test]
    fn every_line_end_ends_an_event() {
        for (text, ends) in [
            ("data: a\n\ndata: b\n\n", ["data: a\n\n", "data: b\n\n"]),
            ("data: a\r\n\r\ndata: b\r\n\r\n", ["data: a\r\n\r\n", "data: b\r\n\r\n"]),
            ("data: a\r\rdata: b\r\r", ["data: a\r\r", "data: b\r\r"]),
            ("data: a\r\n\ndata: b\n\r\n", ["data: a\r\n\n", "data: b\n\r"]),
        ] {
            let whole = frames(&[text.as_bytes()], 100).0;
            assert_eq!(whole[..2], ends.map(event), "{text:?}");
            let bytes: Vec<&[u8]> = text.as_bytes().chunks(1).collect();
            assert_eq!(frames(&bytes, 100).0, whole, "{text:?}");
        }
    }

    #[test]
    fn a_cr_only_stream_is_not_one_event_late() {
        assert_eq!(frames(&[b"data: a\r\r"], 100).0, [event("data: a\r\r")]);
    }

    #[test]
    fn a_crlf_cut_in_two_stays_with_its_event() {
        let (got, tail) = frames(&[b"data: a\r\n\r", b"\ndata"], 100);
        assert_eq!(got, [event("data: a\r\n\r\n")]);
        assert_eq!(tail.as_deref(), Some(&b"data"[..]));
    }

    #[test]
    fn an_event_over_the_limit_passes_in_parts_and_the_next_is_whole() {
        let (got, tail) = frames(&[b"data: 0123", b"4567", b"89\n", b"\n: c\n\n"], 12);
        let part = Bytes::from_static;
        assert_eq!(
            got,
            [
                Frame::Head(part(b"data: 01234567")),
                Frame::Part(part(b"89\n")),
                Frame::Last(part(b"\n")),
                event(": c\n\n")
            ]
        );
        assert_eq!(tail, None);
    }

    #[test]
    fn fields_are_read_as_the_standard_says() {
        let raw = b"\xEF\xBB\xBFid: 7\r\nevent:a\r\n: note\r\ndata\r\ndata:  x\r\nretry: 1\r\nevent: b\r\n\r\n";
        let event = parse(raw, true);
        assert_eq!(event.name, b"b");
        assert_eq!(event.data.as_deref(), Some(&b"\n x"[..]));
        assert!(!event.silent);
        assert!(parse(b": a\n\n", false).silent);
        assert!(parse(b"\n", false).silent);
        assert_eq!(parse(b"\xEF\xBB\xBFdata: x\n\n", true).data.as_deref(), Some(&b"x"[..]));
        assert_eq!(parse(b"\xEF\xBB\xBFdata: x\n\n", false).data, None);
    }

    #[test]
    fn the_fast_form_is_read_as_the_slow_one() {
        for text in ["data: x\n\n", "event: a\ndata: {}\n\n", "event: \ndata: \n\n"] {
            let event = parse(text.as_bytes(), false);
            assert_eq!(simple(text.as_bytes()), event.data.as_deref().map(|data| (event.name, data)), "{text:?}");
        }
        for text in [
            "data: x\n\ndata: y\n\n",
            "data: x\r\n\n",
            "data: x\ndata: y\n\n",
            "event: a\n\n",
            "event: a\rdata: x\ndata: x\n\n",
            "data: x\n\n\n",
            "\ndata: x\n\n",
            "\n\n",
            ": c\n\n",
            "data: x\n",
        ] {
            assert_eq!(simple(text.as_bytes()), None, "{text:?}");
        }
    }
}
