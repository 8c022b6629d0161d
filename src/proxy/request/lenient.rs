//! JSON as Python's `json.loads` reads it, with which vLLM reads bodies, where that takes more than the standard allows: a byte
//! order mark, UTF-16 and UTF-32, surrogates that have no partner, `NaN` and the infinities. Looked at only after a body was
//! found to be no JSON. The body that is sent on stays as it came, unless its encoding is another.

use bytes::Bytes;

/// Returns a body in UTF-16 or UTF-32 as UTF-8, or nothing where it is in neither. The encoding is told as by `json.detect_encoding`.
pub(super) fn as_utf8(body: &[u8]) -> Option<Bytes> {
    let big = |unit: &[u8]| unit.iter().fold(0, |value, byte| value << 8 | u32::from(*byte));
    let little = |unit: &[u8]| unit.iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte));
    match *body {
        // Before UTF-16, whose mark is the first half of this one. The order is that of Python's `json.detect_encoding`.
        [0xff, 0xfe, 0, 0, ..] => from_utf32(units(&body[4..], 4, little)?),
        [0, 0, 0xfe, 0xff, ..] => from_utf32(units(&body[4..], 4, big)?),
        [0xff, 0xfe, ..] => from_utf16(units(&body[2..], 2, little)?),
        [0xfe, 0xff, ..] => from_utf16(units(&body[2..], 2, big)?),
        [0, 0, _, _, ..] => from_utf32(units(body, 4, big)?),
        [0, ..] => from_utf16(units(body, 2, big)?),
        [_, 0, 0, 0, ..] => from_utf32(units(body, 4, little)?),
        [_, 0, ..] => from_utf16(units(body, 2, little)?),
        _ => None,
    }
}

/// The code units of a text, each of so many bytes; none where some are left over.
fn units(text: &[u8], width: usize, read: impl Fn(&[u8]) -> u32) -> Option<impl ExactSizeIterator<Item = u32>> {
    let units = text.chunks_exact(width);
    units.remainder().is_empty().then(|| units.map(read))
}

fn from_utf16(units: impl ExactSizeIterator<Item = u32>) -> Option<Bytes> {
    let mut text = String::with_capacity(units.len());
    for read in char::decode_utf16(units.map(|unit| u16::try_from(unit).unwrap_or_default())) {
        match read {
            Ok(character) => text.push(character),
            // Within a string, or it is no JSON: as an escape it means the same.
            Err(alone) => text.push_str(&format!("\\u{:04x}", alone.unpaired_surrogate())),
        }
    }
    Some(text.into())
}

fn from_utf32(units: impl ExactSizeIterator<Item = u32>) -> Option<Bytes> {
    let mut text = String::with_capacity(units.len());
    for unit in units {
        match char::from_u32(unit) {
            Some(character) => text.push(character),
            None if (0xd800..0xe000).contains(&unit) => text.push_str(&format!("\\u{unit:04x}")),
            None => return None,
        }
    }
    Some(text.into())
}

/// Returns a body of the same length that is JSON if Python takes this one, with every member where it was: what the standard does
/// not allow is overwritten. Nothing where there is no such thing.
pub(super) fn shadow(body: &[u8]) -> Option<Vec<u8>> {
    // The same length as the body, byte for byte, so that places in the shadow are places in the body.
    let mut shadow = body.to_vec();
    let start = if body.starts_with(b"\xEF\xBB\xBF") { 3 } else { 0 };
    shadow[..start].fill(b' ');
    let (mut at, mut in_string) = (start, false);
    while let Some(&byte) = shadow.get(at) {
        let rest = &mut shadow[at..];
        at += match byte {
            b'"' => {
                in_string = !in_string;
                1
            }
            b'\\' if in_string => escape(rest),
            // A surrogate encoded as UTF-8.
            0xed if in_string && matches!(rest, [_, 0xa0..=0xbf, 0x80..=0xbf, ..]) => {
                rest[..3].copy_from_slice("\u{fffd}".as_bytes());
                3
            }
            b'N' | b'I' | b'-' if !in_string => number(rest),
            _ => 1,
        };
    }
    (shadow != body).then_some(shadow)
}

/// Passes an escape; one of a surrogate without its partner becomes that of U+FFFD.
fn escape(rest: &mut [u8]) -> usize {
    let surrogate = |bytes: &[u8]| match bytes {
        [b'\\', b'u', b'd' | b'D', b'8' | b'9' | b'a' | b'b' | b'A' | b'B', _, _, ..] => Some(true),
        [b'\\', b'u', b'd' | b'D', b'c'..=b'f' | b'C'..=b'F', _, _, ..] => Some(false),
        _ => None,
    };
    match surrogate(rest) {
        None => 2,
        Some(true) if rest.len() > 6 && surrogate(&rest[6..]) == Some(false) => 12,
        Some(_) => {
            rest[..6].copy_from_slice(b"\\ufffd");
            6
        }
    }
}

/// Passes a number or a word; what is no number in JSON becomes one.
fn number(rest: &mut [u8]) -> usize {
    for (word, plain) in [(&b"NaN"[..], &b"0.0"[..]), (b"Infinity", b"1.000000"), (b"-Infinity", b"-1.000000")] {
        if rest.starts_with(word) {
            rest[..word.len()].copy_from_slice(plain);
            return word.len();
        }
    }
    1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shadowed(body: &[u8]) -> Option<String> {
        shadow(body).map(|shadow| {
            assert_eq!(shadow.len(), body.len());
            String::from_utf8(shadow).unwrap()
        })
    }

    #[test]
    fn what_python_takes_becomes_json() {
        for (body, json) in [
            (&b"\xEF\xBB\xBF{}"[..], "   {}"),
            (b"{\"a\":NaN,\"b\":[-Infinity,Infinity]}", "{\"a\":0.0,\"b\":[-1.000000,1.000000]}"),
            (b"{\"\\ud800\":\"\\udc00x\"}", "{\"\\ufffd\":\"\\ufffdx\"}"),
            (b"{\"a\":\"\xED\xA0\x80\"}", "{\"a\":\"\u{fffd}\"}"),
        ] {
            assert_eq!(shadowed(body).as_deref(), Some(json));
            assert!(serde_json::from_str::<serde_json::Value>(json).is_ok(), "{json}");
        }
    }

    #[test]
    fn what_is_json_or_can_be_none_has_no_shadow() {
        for body in
            [&b"{\"a\":\"NaN \\\" Infinity\"}"[..], b"{\"a\":\"\\ud83d\\ude00\"}", b"{\"a\":-1}", b"", b"\"\\", b"\\u"]
        {
            assert_eq!(shadowed(body), None, "{}", String::from_utf8_lossy(body));
        }
    }

    #[test]
    fn every_encoding_of_python_is_read() {
        let text = "{\"a\":\"\u{e9}\u{1f600}\"}";
        let utf16 = |read: fn(u16) -> [u8; 2]| text.encode_utf16().flat_map(read).collect::<Vec<u8>>();
        let utf32 = |read: fn(u32) -> [u8; 4]| text.chars().map(u32::from).flat_map(read).collect::<Vec<u8>>();
        let marked = |mark: &[u8], body: Vec<u8>| [mark, &body].concat();
        for body in [
            utf16(u16::to_le_bytes),
            utf16(u16::to_be_bytes),
            utf32(u32::to_le_bytes),
            utf32(u32::to_be_bytes),
            marked(b"\xff\xfe", utf16(u16::to_le_bytes)),
            marked(b"\xfe\xff", utf16(u16::to_be_bytes)),
            marked(b"\xff\xfe\0\0", utf32(u32::to_le_bytes)),
            marked(b"\0\0\xfe\xff", utf32(u32::to_be_bytes)),
        ] {
            assert_eq!(as_utf8(&body).as_deref(), Some(text.as_bytes()));
        }
        assert_eq!(as_utf8(b"\xff\xfe\x00\xd8").as_deref(), Some(&b"\\ud800"[..]));
        for body in [&b"{}"[..], b"", b"\xff\xfe{", b"\xff\xfe\0\0\0\0\x11\0"] {
            assert_eq!(as_utf8(body), None);
        }
    }
}
