//! Request bodies that come compressed, by gzip or zstd: decoded within the limit of a body, so that a small one that would become
//! huge is refused at the limit and never held. The first part is decoded at once; what is larger goes on off the event loop.

use std::io::{BufRead, Read};

use bytes::Bytes;
use http::HeaderMap;
use http::header::CONTENT_ENCODING;

use super::{BodyLimits, Buffer, Held};
use forebay_core::error::{Refusal, repeated};

/// Bytes that are decoded at once: a tenth of a millisecond.
const AT_ONCE: usize = 64 << 10;
/// Bytes of a step.
const STEP: usize = 64 << 10;
/// The largest window that zstd may ask memory for, as a power of two: 8 MiB, as RFC 8878 asks of a decoder, and no more.
const ZSTD_WINDOW: u32 = 23;

/// A coding that is understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Coding {
    Gzip,
    Zstd,
}

/// Returns how a body is coded; `None` where it is not. `strict`: what is not understood is refused, as a body that must be read.
///
/// # Errors
/// It is coded in another way, or in several.
pub(crate) fn coding(headers: &HeaderMap, strict: bool) -> Result<Option<Coding>, Refusal> {
    // Nearly all bodies come as they are.
    if !headers.contains_key(CONTENT_ENCODING) {
        return Ok(None);
    }
    let lines = headers.get_all(CONTENT_ENCODING).iter().map(http::HeaderValue::as_bytes);
    let mut codings = lines.flat_map(|line| line.split(|byte| *byte == b',')).map(<[u8]>::trim_ascii);
    // As a list, in which proxies write one coding after the other, also on lines of their own.
    let mut found = None;
    let is = |coding: &[u8], name: &str| coding.eq_ignore_ascii_case(name.as_bytes());
    let unknown = codings.find(|coding| {
        let known = match coding {
            _ if is(coding, "gzip") || is(coding, "x-gzip") => Some(Coding::Gzip),
            _ if is(coding, "zstd") => Some(Coding::Zstd),
            _ => return !coding.is_empty() && !is(coding, "identity"),
        };
        // Twice compressed is a way to be larger than anybody wants.
        let again = found.is_some();
        found = found.or(known);
        again
    });
    match unknown {
        Some(coding) if strict || found.is_some() => Err(Refusal::Encoded(repeated(&String::from_utf8_lossy(coding)))),
        Some(_) => Ok(None),
        None => Ok(found),
    }
}

/// Decodes a body.
///
/// # Errors
/// It is larger than the limit, or not what its coding says.
pub(crate) async fn decode(
    bytes: Bytes,
    coding: Coding,
    held: Held,
    limits: BodyLimits,
) -> Result<(Bytes, Held), Refusal> {
    let mut decoding = Decoding { source: reader(bytes, coding)?, out: Vec::new(), held, limits };
    // Most bodies are small, and a hand-over to another thread costs more than to decode 64 KiB.
    if decoding.run(AT_ONCE)? {
        return Ok(decoding.finish());
    }
    let rest = tokio::task::spawn_blocking(move || {
        decoding.run(usize::MAX)?;
        Ok(decoding.finish())
    });
    rest.await.map_err(|_| Refusal::Internal)?
}

type Source = Box<dyn Read + Send>;

fn reader(bytes: Bytes, coding: Coding) -> Result<Source, Refusal> {
    let bytes = std::io::Cursor::new(bytes);
    Ok(match coding {
        // Of several members, as `cat a.gz b.gz` makes.
        Coding::Gzip => Box::new(libflate::gzip::MultiDecoder::new(bytes).map_err(|error| broken(&error))?),
        Coding::Zstd => Box::new(zstd_reader(bytes).map_err(|error| broken(&error))?),
    })
}

fn zstd_reader(bytes: impl BufRead + Send + 'static) -> std::io::Result<impl Read + Send> {
    let mut reader = zstd::stream::read::Decoder::with_buffer(bytes)?;
    // A frame of a few bytes may ask for a window of gigabytes.
    reader.window_log_max(ZSTD_WINDOW)?;
    Ok(reader)
}

fn broken(error: &std::io::Error) -> Refusal {
    Refusal::BadRequest(format!("it is not coded as its content-encoding says: {error}"))
}

/// A body that is being decoded.
struct Decoding {
    source: Source,
    out: Vec<u8>,
    held: Held,
    limits: BodyLimits,
}

impl Decoding {
    /// Decodes until the end, which is `true`, or until so many bytes are there.
    fn run(&mut self, most: usize) -> Result<bool, Refusal> {
        while self.out.len() < most {
            let before = self.out.len();
            // In steps, each of which is taken from the common memory before it is filled.
            self.held.grow_by(self.limits, (before + STEP) as u64)?;
            self.out.resize(before + STEP, 0);
            let read = self.source.read(&mut self.out[before..]);
            let read = match read {
                Ok(read) => read,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => 0,
                Err(error) => return Err(broken(&error)),
            };
            self.out.truncate(before + read);
            if self.out.len() as u64 > self.limits.one {
                return Err(Refusal::TooLarge(self.limits.one));
            }
            if read == 0 {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn finish(mut self) -> (Bytes, Held) {
        self.out.shrink_to_fit();
        (Buffer(self.out).into_bytes(), self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::intake::{self, BodyMemory};
    use http_body_util::Full;
    use std::io::Write;

    const LIMITS: BodyLimits = BodyLimits { one: 1 << 20, all: 4 << 20, head: 0, timeout: None };

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = libflate::gzip::Encoder::new(Vec::new()).unwrap();
        encoder.write_all(bytes).unwrap();
        encoder.finish().into_result().unwrap()
    }

    fn headers(lines: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(CONTENT_ENCODING, line.parse().unwrap());
        }
        headers
    }

    async fn decoded(coded: Vec<u8>, coding: Coding) -> Result<Bytes, Refusal> {
        let memory = BodyMemory::new();
        let (bytes, held) = intake::read(Full::new(Bytes::from(coded)), &memory, LIMITS).await.unwrap();
        let result = decode(bytes, coding, held, LIMITS).await.map(|(bytes, _)| bytes);
        assert_eq!(memory.used(), 0, "all that was taken is given back");
        result
    }

    #[test]
    fn codings_are_known_by_name_and_one_at_a_time() {
        for (lines, found) in [
            (&["gzip"][..], Some(Coding::Gzip)),
            (&["X-GZIP"], Some(Coding::Gzip)),
            (&["identity, zstd"], Some(Coding::Zstd)),
            (&[], None),
            (&["identity", ""], None),
        ] {
            assert_eq!(coding(&headers(lines), true), Ok(found), "{lines:?}");
        }
        for lines in [&["br"][..], &["gzip, gzip"], &["gzip", "zstd"], &["deflate"], &["gzip, br"]] {
            assert!(matches!(coding(&headers(lines), true), Err(Refusal::Encoded(_))), "{lines:?}");
        }
        assert_eq!(coding(&headers(&["br"]), false), Ok(None), "passed on, where nobody reads it");
        assert!(coding(&headers(&["gzip, br"]), false).is_err());
    }

    #[tokio::test]
    async fn a_body_is_what_it_was() {
        for size in [0, 1, 1000, AT_ONCE, 500_000, 1 << 20] {
            let text: Vec<u8> = (0..size).map(|at| b"{\"model\": 12 }"[at % 14] ^ (at / 4096) as u8).collect();
            let coded = [(gzip(&text), Coding::Gzip), (zstd::encode_all(&text[..], 3).unwrap(), Coding::Zstd)];
            for (coded, coding) in coded {
                assert_eq!(decoded(coded, coding).await.unwrap(), text, "{size} {coding:?}");
            }
        }
        let two = [gzip(b"one "), gzip(b"two")].concat();
        assert_eq!(decoded(two, Coding::Gzip).await.unwrap(), "one two");
    }

    #[tokio::test]
    async fn a_bomb_is_refused_at_the_limit() {
        // 16 MiB of zeros, sixteen times the limit, in 16 KB and less.
        let zeros = vec![0; 1 << 20];
        let mut encoder = libflate::gzip::Encoder::new(Vec::new()).unwrap();
        let mut packer = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        for _ in 0..16 {
            encoder.write_all(&zeros).unwrap();
            packer.write_all(&zeros).unwrap();
        }
        for (bomb, coding) in
            [(encoder.finish().into_result().unwrap(), Coding::Gzip), (packer.finish().unwrap(), Coding::Zstd)]
        {
            assert!(bomb.len() < 20 << 10);
            assert_eq!(decoded(bomb, coding).await, Err(Refusal::TooLarge(1 << 20)), "{coding:?}");
        }
    }

    #[tokio::test]
    async fn what_is_cut_or_something_else_is_refused() {
        let whole = gzip(&vec![7; 100_000]);
        let packed = zstd::encode_all(&vec![7; 100_000][..], 3).unwrap();
        for (coded, coding) in [
            (whole[..whole.len() - 9].to_vec(), Coding::Gzip),
            (packed[..packed.len() - 3].to_vec(), Coding::Zstd),
            (b"{\"model\":\"tiny\"}".to_vec(), Coding::Gzip),
            (b"{\"model\":\"tiny\"}".to_vec(), Coding::Zstd),
        ] {
            assert!(matches!(decoded(coded, coding).await, Err(Refusal::BadRequest(_))), "{coding:?}");
        }
    }
}
