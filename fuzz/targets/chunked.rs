//! A body in chunks, of any bytes and cut anywhere: where the cuts are does not change its data, and data comes out as it came in.

#![no_main]

use forebay_core::chunked::{Decoder, Progress};
use libfuzzer_sys::fuzz_target;

/// The data of a body in pieces of this size, and how far it came.
fn decoded(bytes: &[u8], size: usize) -> (Vec<u8>, Progress) {
    let (mut decoder, mut data) = (Decoder::new(8), Vec::new());
    for piece in bytes.chunks(size.max(1)) {
        let mut piece = piece.to_vec();
        let there = decoder.decode(&mut piece);
        data.extend_from_slice(&piece[there]);
    }
    (data, decoder.progress())
}

/// What stands behind a size line is the data of its chunk: a second reader, which knows no state.
fn read_line_by_line(mut bytes: &[u8]) -> Option<Vec<u8>> {
    let mut data = Vec::new();
    loop {
        let end = bytes.windows(2).position(|pair| pair == b"\r\n")?;
        let line = std::str::from_utf8(&bytes[..end]).ok()?;
        let digits = line.split([';', ' ', '\t']).next()?;
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        let size = usize::from_str_radix(digits.trim_start_matches('0'), 16).unwrap_or(0);
        bytes = &bytes[end + 2..];
        if size == 0 {
            return Some(data);
        }
        data.extend_from_slice(bytes.get(..size)?);
        bytes = bytes[size..].strip_prefix(b"\r\n")?;
    }
}

fuzz_target!(|bytes: &[u8]| {
    let whole = decoded(bytes, bytes.len());
    for size in [1, 1 + bytes.len() % 17] {
        assert_eq!(decoded(bytes, size), whole, "in pieces of {size}");
    }
    if matches!(whole.1, Progress::Whole { .. }) {
        assert_eq!(read_line_by_line(bytes).as_ref(), Some(&whole.0));
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
