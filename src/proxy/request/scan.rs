//! The members of a small JSON object, found by a strict scan. serde_json takes twice as long for a body of some hundred bytes: it
//! makes a value of each member. Where the scan is not sure that a text is an object, it says nothing, and serde_json reads.
//!
//! Hot path: one pass over the body, one allocation.

use std::ops::Range;

use memchr::memchr2;

/// Values may be nested so deep.
const DEEPEST: u32 = 64;
/// A string is looked at byte by byte to here, and by SIMD from here on.
const SHORT: usize = 16;

/// The members of an object, in order: each key, and the place of its value. `None` also where a key has an escape.
pub(super) fn members(text: &str) -> Option<Vec<(&str, Range<usize>)>> {
    let mut scan = Scan { json: text.as_bytes(), at: 0 };
    let mut members = Vec::with_capacity(16);
    scan.space();
    scan.takes(b'{').then_some(())?;
    scan.space();
    let mut is_open = !scan.takes(b'}');
    while is_open {
        let key = &text[scan.name()?];
        if key.as_bytes().contains(&b'\\') {
            return None;
        }
        scan.space();
        let start = scan.at;
        scan.value()?;
        members.push((key, start..scan.at));
        scan.space();
        is_open = scan.goes_on(b'}')?;
        scan.space();
    }
    scan.space();
    (scan.at == text.len()).then_some(members)
}

/// A text, and how far it was read.
struct Scan<'a> {
    json: &'a [u8],
    at: usize,
}

impl Scan<'_> {
    fn next(&mut self) -> Option<u8> {
        let byte = *self.json.get(self.at)?;
        self.at += 1;
        Some(byte)
    }

    fn takes(&mut self, byte: u8) -> bool {
        let there = self.json.get(self.at) == Some(&byte);
        self.at += usize::from(there);
        there
    }

    fn space(&mut self) {
        while let Some(b' ' | b'\n' | b'\t' | b'\r') = self.json.get(self.at) {
            self.at += 1;
        }
    }

    /// Reads a comma or `end`. Returns whether it was the comma.
    fn goes_on(&mut self, end: u8) -> Option<bool> {
        match self.next()? {
            b',' => Some(true),
            byte if byte == end => Some(false),
            _ => None,
        }
    }

    /// Reads a key and its colon. Returns the place of the key.
    fn name(&mut self) -> Option<Range<usize>> {
        self.takes(b'"').then_some(())?;
        let start = self.at;
        self.string()?;
        let end = self.at - 1;
        self.space();
        self.takes(b':').then_some(start..end)
    }

    /// Reads the rest of a string, its closing quote included.
    fn string(&mut self) -> Option<()> {
        loop {
            self.plain()?;
            match self.next()? {
                b'"' => return Some(()),
                b'\\' => match self.next()? {
                    b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => {}
                    b'u' => {
                        let digits = self.json.get(self.at..self.at + 4)?;
                        digits.iter().all(u8::is_ascii_hexdigit).then_some(())?;
                        self.at += 4;
                    }
                    _ => return None,
                },
                _ => return None,
            }
        }
    }

    /// Passes what stands for itself in a string.
    fn plain(&mut self) -> Option<()> {
        let rest = self.json.get(self.at..)?;
        let is_plain = |byte: &u8| *byte >= b' ' && *byte != b'"' && *byte != b'\\';
        let near = rest.iter().take(SHORT).position(|byte| !is_plain(byte));
        let length = match near {
            Some(length) => length,
            // A string of this length is mostly a long one.
            None => {
                let from = SHORT.min(rest.len());
                let length = from + memchr2(b'"', b'\\', &rest[from..])?;
                // Without an exit in between, so that the compiler makes vectors of it.
                if rest[from..length].iter().fold(false, |any, byte| any | (*byte < b' ')) {
                    return None;
                }
                length
            }
        };
        self.at += length;
        Some(())
    }

    /// Reads a value, without recursion: its nesting is a stack of bits, one where it is in an object.
    fn value(&mut self) -> Option<()> {
        let (mut depth, mut objects) = (0, 0_u64);
        loop {
            self.space();
            let opened = match self.next()? {
                b'"' => {
                    self.string()?;
                    None
                }
                b'{' => Some(true),
                b'[' => Some(false),
                b't' => self.word(b"rue")?,
                b'f' => self.word(b"alse")?,
                b'n' => self.word(b"ull")?,
                byte => self.number(byte)?,
            };
            if let Some(object) = opened {
                self.space();
                if !self.takes(if object { b'}' } else { b']' }) {
                    if depth == DEEPEST {
                        return None;
                    }
                    (depth, objects) = (depth + 1, objects << 1 | u64::from(object));
                    if object {
                        self.name()?;
                    }
                    continue;
                }
            }
            // A value is over, and perhaps those that it is in.
            loop {
                if depth == 0 {
                    return Some(());
                }
                self.space();
                let object = objects & 1 == 1;
                if self.goes_on(if object { b'}' } else { b']' })? {
                    self.space();
                    if object {
                        self.name()?;
                    }
                    break;
                }
                (depth, objects) = (depth - 1, objects >> 1);
            }
        }
    }

    fn word(&mut self, rest: &[u8]) -> Option<Option<bool>> {
        self.json.get(self.at..)?.starts_with(rest).then_some(())?;
        self.at += rest.len();
        Some(None)
    }

    /// Reads the rest of a number.
    fn number(&mut self, first: u8) -> Option<Option<bool>> {
        let first = if first == b'-' { self.next()? } else { first };
        match first {
            b'0' => {}
            b'1'..=b'9' => _ = self.digits(),
            _ => return None,
        }
        if self.takes(b'.') {
            self.digits().then_some(())?;
        }
        if self.takes(b'e') || self.takes(b'E') {
            _ = self.takes(b'+') || self.takes(b'-');
            self.digits().then_some(())?;
        }
        Some(None)
    }

    /// Passes digits. Returns whether there was any.
    fn digits(&mut self) -> bool {
        let start = self.at;
        while self.json.get(self.at).is_some_and(u8::is_ascii_digit) {
            self.at += 1;
        }
        self.at > start
    }
}
