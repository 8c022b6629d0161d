//! The chunked coding of HTTP/1.1 (RFC 9112 section 7.1), decoded in place. Takes exactly what hyper takes: the same bytes give the
//! same data, or are refused by both, wherever they are cut.
//!
//! Must never guess: what is not chunked coding to the letter breaks the body for good.
//!
//! Hot path: data is moved only where a chunk's size stands between it and the data before; no allocation without trailers.

use std::ops::Range;

/// The most bytes of all chunk extensions of a body.
const MOST_EXTENSION: u32 = 16 << 10;
/// The most bytes of all trailers.
const MOST_TRAILER: usize = 16 << 10;

/// A body's decoder.
#[derive(Debug)]
pub struct Decoder {
    state: State,
    /// The size that is being read, then what is left of the chunk's data.
    left: u64,
    /// Bytes of extensions so far.
    extension: u32,
    trailers: Vec<u8>,
    /// Lines of trailers so far, and the most that there may be.
    lines: usize,
    most_lines: usize,
    surplus: bool,
}

/// The part of the coding that the next byte belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The first digit of a size.
    Start,
    Size,
    /// Behind the digits only spaces may come, an extension, or the line's end.
    Space,
    Extension,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    Trailer,
    TrailerLf,
    /// The beginning of a trailer, or the empty line that ends the body.
    EndCr,
    EndLf,
    Over,
    Broken(Malformed),
}

/// The rule that a body breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// A chunk has no size.
    #[error("a chunk has no size")]
    NoSize,
    /// A size is no number of 64 bits.
    #[error("a chunk's size is no number of 64 bits")]
    Size,
    /// The line of a size does not end with CR and LF.
    #[error("the line of a chunk's size does not end as it must")]
    SizeLine,
    /// Extensions are too long.
    #[error("chunk extensions are longer than 16 KiB")]
    Extensions,
    /// The data of a chunk is longer than its size says.
    #[error("a chunk's data is not followed by CR and LF")]
    DataEnd,
    /// Trailers are too long, too many, or no headers.
    #[error("the trailers are malformed or too long")]
    Trailers,
}

/// The progress of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// More is to come.
    Open,
    /// It is whole. With a surplus, bytes came after its end.
    Whole {
        /// Bytes came after its end.
        surplus: bool,
    },
    /// It broke; the data before that was given.
    Broken(Malformed),
}

impl Decoder {
    /// A decoder at the beginning of a body that may have so many trailers.
    #[must_use]
    pub fn new(most_trailers: usize) -> Decoder {
        Decoder {
            state: State::Start,
            left: 0,
            extension: 0,
            trailers: Vec::new(),
            lines: 0,
            most_lines: most_trailers,
            surplus: false,
        }
    }

    /// Returns how far the body has come.
    #[must_use]
    pub fn progress(&self) -> Progress {
        match self.state {
            State::Over => Progress::Whole { surplus: self.surplus },
            State::Broken(rule) => Progress::Broken(rule),
            _ => Progress::Open,
        }
    }

    /// Decodes the next bytes of a body, and returns where in them their data now is, in one piece.
    pub fn decode(&mut self, bytes: &mut [u8]) -> Range<usize> {
        let (mut at, mut data) = (0, 0..0);
        while at < bytes.len() {
            match self.state {
                State::Data => {
                    let there = bytes.len() - at;
                    let taken = usize::try_from(self.left).map_or(there, |left| left.min(there));
                    if data.is_empty() {
                        data = at..at;
                    } else {
                        bytes.copy_within(at..at + taken, data.end);
                    }
                    data.end += taken;
                    at += taken;
                    self.left -= taken as u64;
                    if self.left == 0 {
                        self.state = State::DataCr;
                    }
                }
                State::Over => {
                    self.surplus = true;
                    break;
                }
                State::Broken(_) => break,
                _ => {
                    self.state = self.step(bytes[at]).unwrap_or_else(State::Broken);
                    at += 1;
                }
            }
        }
        data
    }

    /// The state after a byte that is not data.
    fn step(&mut self, byte: u8) -> Result<State, Malformed> {
        match (self.state, byte) {
            (State::Start | State::Size, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => self.digit(byte),
            (State::Start, _) => Err(Malformed::NoSize),
            (State::Size | State::Space, b' ' | b'\t') => Ok(State::Space),
            (State::Size | State::Space, b';') => Ok(State::Extension),
            (State::Size | State::Space | State::Extension, b'\r') => Ok(State::SizeLf),
            // Some take a bare LF for the line's end: what follows must not mean one thing to us and another to them.
            (State::Size | State::Space, _) | (State::Extension, b'\n') => Err(Malformed::SizeLine),
            (State::Extension, _) => {
                self.extension += 1;
                if self.extension < MOST_EXTENSION { Ok(State::Extension) } else { Err(Malformed::Extensions) }
            }
            (State::SizeLf, b'\n') => Ok(if self.left == 0 { State::EndCr } else { State::Data }),
            (State::SizeLf, _) => Err(Malformed::SizeLine),
            (State::DataCr, b'\r') => Ok(State::DataLf),
            (State::DataLf, b'\n') => Ok(State::Start),
            (State::DataCr | State::DataLf, _) => Err(Malformed::DataEnd),
            (State::EndCr, b'\r') if self.trailers.is_empty() => Ok(State::EndLf),
            (State::EndLf, b'\n') if self.trailers.is_empty() => Ok(State::Over),
            _ => self.trailer(byte),
        }
    }

    fn digit(&mut self, byte: u8) -> Result<State, Malformed> {
        let digit = char::from(byte).to_digit(16).ok_or(Malformed::Size)?;
        let size = self.left.checked_mul(16).and_then(|size| size.checked_add(u64::from(digit)));
        self.left = size.ok_or(Malformed::Size)?;
        Ok(State::Size)
    }

    /// The state after a byte of the trailers. They are kept to the end, where they must prove to be headers.
    fn trailer(&mut self, byte: u8) -> Result<State, Malformed> {
        let next = match (self.state, byte) {
            (State::Trailer, b'\r') => State::TrailerLf,
            (State::TrailerLf, b'\n') if self.lines < self.most_lines => {
                self.lines += 1;
                State::EndCr
            }
            (State::EndCr, b'\r') => State::EndLf,
            (State::EndLf, b'\n') => State::Over,
            (State::Trailer | State::EndCr, _) => State::Trailer,
            _ => return Err(Malformed::Trailers),
        };
        self.trailers.push(byte);
        // The first byte is taken whatever the limit is.
        if self.trailers.len() >= MOST_TRAILER && self.trailers.len() > 1 {
            return Err(Malformed::Trailers);
        }
        if next == State::Over {
            let mut headers = vec![httparse::EMPTY_HEADER; self.lines];
            match httparse::parse_headers(&self.trailers, &mut headers) {
                Ok(httparse::Status::Complete(_)) => {}
                _ => return Err(Malformed::Trailers),
            }
        }
        Ok(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The data of a body that comes in these pieces, and how far it came.
    fn decoded<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> (Vec<u8>, Progress) {
        let (mut decoder, mut data) = (Decoder::new(100), Vec::new());
        for piece in pieces {
            let mut piece = piece.to_vec();
            let there = decoder.decode(&mut piece);
            data.extend_from_slice(&piece[there]);
        }
        (data, decoder.progress())
    }

    const WHOLE: Progress = Progress::Whole { surplus: false };

    #[test]
    fn each_cut_gives_the_same_data() {
        let bodies: [(&[u8], &[u8]); 7] = [
            (b"0\r\n\r\n", b""),
            (b"6\r\ndata: \r\n3\r\n1\n\n\r\n0\r\n\r\n", b"data: 1\n\n"),
            (b"3;name=value\r\nabc\r\n0;last\r\n\r\n", b"abc"),
            (b"3 \t;x\r\nabc\r\n0\r\n\r\n", b"abc"),
            (b"0000000000000003\r\nabc\r\n000\r\n\r\n", b"abc"),
            (b"00000000000000000000003\r\nabc\r\n0\r\n\r\n", b"abc"),
            (b"A\r\n0\r\n\r\n0\r\n\r\n\r\n0\r\nx-check: 1\r\nx-sum: 2\r\n\r\n", b"0\r\n\r\n0\r\n\r\n"),
        ];
        for (body, data) in bodies {
            for cut in 0..=body.len() {
                let (one, two) = body.split_at(cut);
                assert_eq!(decoded([one, two]), (data.to_vec(), WHOLE), "{} cut at {cut}", body.escape_ascii());
            }
            assert_eq!(decoded(body.chunks(1)), (data.to_vec(), WHOLE), "{}", body.escape_ascii());
            for end in 0..body.len() {
                let (there, progress) = decoded([&body[..end]]);
                assert!(data.starts_with(&there) && progress == Progress::Open, "a close after {end} bytes");
            }
        }
    }

    #[test]
    fn what_is_no_chunked_coding_is_refused_and_the_data_before_it_is_given() {
        let bodies: [(&[u8], &[u8], Malformed); 17] = [
            (b"\r\n", b"", Malformed::NoSize),
            (b"x\r\n", b"", Malformed::NoSize),
            (b" 3\r\nabc\r\n", b"", Malformed::NoSize),
            (b"-1\r\n", b"", Malformed::NoSize),
            (b"+3\r\n", b"", Malformed::NoSize),
            (b"0x3\r\nabc", b"", Malformed::SizeLine),
            (b"3\nabc\r\n", b"", Malformed::SizeLine),
            (b"3 3\r\nabc", b"", Malformed::SizeLine),
            (b"3\rabc", b"", Malformed::SizeLine),
            (b"3;a\nb\r\nabc", b"", Malformed::SizeLine),
            (b"10000000000000000\r\n", b"", Malformed::Size),
            (b"3\r\nabcd\r\n", b"abc", Malformed::DataEnd),
            (b"3\r\nabc\n0\r\n\r\n", b"abc", Malformed::DataEnd),
            (b"3\r\nabc\r0\r\n\r\n", b"abc", Malformed::DataEnd),
            (b"1\r\na\r\n\r\n0\r\n\r\n", b"a", Malformed::NoSize),
            (b"1\r\na\r\n0\r\nno header\r\n\r\n", b"a", Malformed::Trailers),
            (b"1\r\na\r\n0\r\na: b\rc\r\n\r\n", b"a", Malformed::Trailers),
        ];
        for (body, data, rule) in bodies {
            assert_eq!(decoded([body]), (data.to_vec(), Progress::Broken(rule)), "{}", body.escape_ascii());
            assert_eq!(decoded(body.chunks(1)).1, Progress::Broken(rule), "{}", body.escape_ascii());
        }
        let (data, progress) = decoded([&b"1\r\na\r\nx"[..], b"1\r\nb\r\n0\r\n\r\n"]);
        assert_eq!((data, progress), (b"a".to_vec(), Progress::Broken(Malformed::NoSize)), "broken for good");
    }

    #[test]
    fn the_largest_size_is_taken() {
        let (data, progress) = decoded([&b"ffffffffffffffff\r\nabc"[..]]);
        assert_eq!((data, progress), (b"abc".to_vec(), Progress::Open));
    }

    #[test]
    fn extensions_and_trailers_have_bounds() {
        let extension = |bytes: usize| format!("1;{}\r\na\r\n0\r\n\r\n", "x".repeat(bytes));
        assert_eq!(decoded([extension(MOST_EXTENSION as usize - 1).as_bytes()]).1, WHOLE);
        let broken = Progress::Broken(Malformed::Extensions);
        assert_eq!(decoded([extension(MOST_EXTENSION as usize).as_bytes()]).1, broken);
        let many = (0..20_000).map(|_| "1;x\r\na\r\n").collect::<String>();
        assert_eq!(decoded([many.as_bytes()]).1, broken, "of all chunks together");
        let trailers = |lines: usize, long: usize| {
            format!("0\r\n{}\r\n", (0..lines).map(|at| format!("x-{at}: {}\r\n", "y".repeat(long))).collect::<String>())
        };
        assert_eq!(decoded([trailers(100, 1).as_bytes()]).1, WHOLE);
        let broken = Progress::Broken(Malformed::Trailers);
        assert_eq!(decoded([trailers(101, 1).as_bytes()]).1, broken);
        assert_eq!(decoded([trailers(1, MOST_TRAILER).as_bytes()]).1, broken);
    }

    #[test]
    fn bytes_after_the_end_are_no_data_but_a_surplus() {
        let body = b"1\r\na\r\n0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n";
        let surplus = (b"a".to_vec(), Progress::Whole { surplus: true });
        for cut in 11..body.len() {
            let (one, two) = body.split_at(cut);
            assert_eq!(decoded([one, two]), surplus, "cut at {cut}");
        }
    }
}
