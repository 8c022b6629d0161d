//! The data of events of a stream that is of no API: such as the ticks of the live page, which `forebay top` reads.

use bytes::Bytes;

use super::sse::{Frame, Framer, parse};

/// Cuts a stream into events and hands on what they carry.
#[derive(Debug)]
pub struct EventData {
    framer: Framer,
    first: bool,
}

/// An event has more bytes than the reader takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventTooLarge;

impl EventData {
    /// A reader that takes events of up to `max_event` bytes.
    #[must_use]
    pub fn new(max_event: usize) -> EventData {
        EventData { framer: Framer::new(max_event), first: true }
    }

    /// The data of the next event out of `rest`, of which it takes what it uses; `None` when no further event ends in it. Events
    /// without data, such as comments, are passed over.
    ///
    /// # Errors
    /// An event is over the limit.
    pub fn next(&mut self, rest: &mut Bytes) -> Result<Option<Vec<u8>>, EventTooLarge> {
        while let Some(frame) = self.framer.next(rest) {
            let Frame::Event(event) = frame else { return Err(EventTooLarge) };
            if let Some(data) = parse(&event, std::mem::take(&mut self.first)).data {
                return Ok(Some(data.into_owned()));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &[u8] =
        b": hello\n\ndata: {\"a\":1}\n\nevent: tick\r\ndata: one\r\ndata: two\r\n\r\ndata:three\n\ndata: open";

    #[test]
    fn the_data_is_handed_on_wherever_the_bytes_are_cut() {
        for cut in 0..STREAM.len() {
            let (mut reader, mut found) = (EventData::new(1_000), Vec::new());
            for piece in [&STREAM[..cut], &STREAM[cut..]] {
                let mut rest = Bytes::copy_from_slice(piece);
                while let Some(data) = reader.next(&mut rest).unwrap() {
                    found.push(String::from_utf8(data).unwrap());
                }
            }
            assert_eq!(found, ["{\"a\":1}", "one\ntwo", "three"], "cut at {cut}");
        }
    }

    #[test]
    fn an_event_over_the_limit_is_refused() {
        let mut rest = Bytes::from(vec![b'x'; 2_000]);
        assert_eq!(EventData::new(1_000).next(&mut rest), Err(EventTooLarge));
    }
}
