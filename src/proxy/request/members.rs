//! The members of a JSON object, each with its value as it is written. The grammar is serde_json's. What a large body consists of is
//! the text in its long strings, so that is searched here, by SIMD and with the rules of a string, and serde_json gets the rest.
//!
//! Hot path: of a body over 16 KiB two passes over its long strings, and one copy of what is between them. The strings are handed on, so
//! that nobody looks for their ends again.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use memchr::{memchr, memchr2};
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};
use serde_json::value::RawValue;

/// A body under this size is serde_json's as it is.
const LARGE: usize = 16 << 10;
/// A string under this size is, too.
const LONG: usize = 1 << 10;

/// A string in a JSON text whose end is known.
#[derive(Clone, Copy, Debug)]
pub(super) struct LongString {
    /// The place behind its opening quote.
    pub(super) start: usize,
    /// The place of its closing quote.
    pub(super) end: usize,
    /// Bytes of it that are escaping alone.
    pub(super) escaped: usize,
}

/// Calls `f` with each member of a JSON object, in order, and returns the long strings of a large text, in order. Values are skipped
/// without recursion, however deep they are.
pub(super) fn each<'a>(
    text: &'a str,
    mut f: impl FnMut(Cow<'_, str>, &'a str),
) -> Result<Vec<LongString>, serde_json::Error> {
    if text.len() >= LARGE
        && let Some(outline) = Outline::of(text, LONG)
        && let Some(members) = outline.members()
    {
        members.into_iter().for_each(|(key, at)| f(key, &text[at]));
        return Ok(outline.strings);
    }
    // Where something is wrong, this says what and where.
    parse(text, |key, value| f(key, value.get())).map(|()| Vec::new())
}

fn parse<'a>(text: &'a str, f: impl FnMut(Cow<'a, str>, &'a RawValue)) -> Result<(), serde_json::Error> {
    #[derive(Deserialize)]
    struct Key<'a>(#[serde(borrow)] Cow<'a, str>);
    struct Each<F>(F);
    impl<'a, F: FnMut(Cow<'a, str>, &'a RawValue)> Visitor<'a> for Each<F> {
        type Value = ();

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a JSON object")
        }

        fn visit_map<M: MapAccess<'a>>(mut self, mut map: M) -> Result<(), M::Error> {
            while let Some(Key(key)) = map.next_key()? {
                (self.0)(key, map.next_value().map_err(M::Error::custom)?);
            }
            Ok(())
        }
    }
    let mut json = serde_json::Deserializer::from_str(text);
    json.deserialize_map(Each(f))?;
    json.end()
}

/// Returns the place in `text` of a value that was read out of it.
pub(super) fn place(text: &str, value: &str) -> Range<usize> {
    // A value borrows from the text, so its address tells where it stands. serde gives no offsets.
    let start = value.as_ptr().addr() - text.as_ptr().addr();
    start..start + value.len()
}

/// A JSON text without what is in its long strings.
struct Outline {
    text: String,
    strings: Vec<LongString>,
    cuts: Vec<Omission>,
}

/// A place where something was left out.
struct Omission {
    /// The place in the outline, behind a quote.
    at: usize,
    /// All bytes left out up to here.
    out: usize,
}

impl Outline {
    /// The outline of a text that is long strings for the most part; `None` also where one of them is none to JSON.
    fn of(text: &str, long: usize) -> Option<Outline> {
        let (mut strings, mut all, mut i) = (Vec::new(), 0, 0);
        while let Some(quote) = memchr(b'"', text.as_bytes().get(i..)?) {
            let start = i + quote + 1;
            let (end, escaped) = string_end(text.as_bytes(), start)?;
            i = end + 1;
            // A name is never left out: it may be one of those that are looked for.
            if end - start < long || text[i..].trim_ascii_start().starts_with(':') {
                continue;
            }
            // Without an exit in between, so that the compiler makes vectors of it.
            if text.as_bytes()[start..end].iter().fold(u8::MAX, |least, byte| least.min(*byte)) < b' ' {
                return None;
            }
            strings.push(LongString { start, end, escaped });
            all += end - start;
        }
        if all < text.len() / 2 {
            return None;
        }
        let (mut outline, mut cuts) = (String::with_capacity(text.len() - all), Vec::with_capacity(strings.len()));
        let (mut kept, mut out) = (0, 0);
        for string in &strings {
            outline.push_str(&text[kept..string.start]);
            out += string.end - string.start;
            cuts.push(Omission { at: outline.len(), out });
            kept = string.end;
        }
        outline.push_str(&text[kept..]);
        Some(Outline { text: outline, strings, cuts })
    }

    /// The members, with the places of their values in the whole text; `None` where it is no JSON object.
    fn members(&self) -> Option<Vec<(Cow<'_, str>, Range<usize>)>> {
        let mut members = Vec::new();
        let taken = parse(&self.text, |key, value| {
            let Range { start, end } = place(&self.text, value.get());
            members.push((key, self.in_whole(start)..self.in_whole(end)));
        });
        taken.ok().map(|()| members)
    }

    fn in_whole(&self, place: usize) -> usize {
        // A value begins before the quote behind which something was left out, and ends behind it.
        let before = self.cuts.partition_point(|cut| cut.at <= place);
        place + before.checked_sub(1).map_or(0, |last| self.cuts[last].out)
    }
}

/// Returns where the string that begins at `i` has its closing quote, and how many bytes of it are escaping alone; `None` where it has no
/// end, or escapes what cannot be escaped.
fn string_end(json: &[u8], mut i: usize) -> Option<(usize, usize)> {
    let mut escaped = 0;
    loop {
        // Strings are nearly all of a prompt, and memchr looks at 32 bytes at a time.
        i += memchr2(b'"', b'\\', json.get(i..)?)?;
        if json[i] == b'"' {
            return Some((i, escaped));
        }
        // `\uXXXX` is mostly a character of three bytes in UTF-8, any other escape one of one.
        let (length, alone) = match json.get(i + 1)? {
            b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => (2, 1),
            b'u' if json.get(i + 2..i + 6)?.iter().all(u8::is_ascii_hexdigit) => (6, 3),
            _ => return None,
        };
        i += length;
        escaped += alone;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Keys and values as they are written; none where the text is no object.
    type Written = Option<Vec<(String, String)>>;

    /// The members as serde_json has them, and as the outline has them where there is one.
    fn both(text: &str, long: usize) -> (Written, Written) {
        let mut whole = Vec::new();
        let parsed = parse(text, |key, value| whole.push((key.into_owned(), value.get().to_owned())));
        let outline = Outline::of(text, long);
        let members = outline.as_ref().and_then(Outline::members);
        let named =
            members.map(|all| all.into_iter().map(|(key, at)| (key.into_owned(), text[at].to_owned())).collect());
        (parsed.ok().map(|()| whole), named)
    }

    #[test]
    fn a_large_body_has_the_same_members_as_a_small_one() {
        let text = "word \\u00e9 \\\"quoted\\\"\\n".repeat(2000);
        let body = format!(
            r#" {{"model":"a","messages":[{{"role":"user","content":"{text}"}},{{"content":"{text}"}}], "n": 1, "x":"{text}" ,"y":[]}} "#
        );
        let (whole, outlined) = both(&body, LONG);
        assert_eq!(whole.as_ref().map(Vec::len), Some(5));
        assert_eq!(outlined, whole);
        let mut each_member = Vec::new();
        each(&body, |key, value| each_member.push((key.into_owned(), value.to_owned()))).unwrap();
        assert_eq!(Some(each_member), whole);
    }

    #[test]
    fn what_is_wrong_in_a_long_string_is_told_with_its_place() {
        let long = "x".repeat(LARGE);
        for (wrong, why) in [("\n", "control character"), ("\\x", "invalid escape"), ("\\u12g4", "invalid escape")] {
            let body = format!("{{\"a\":\"{long}{wrong}\"}}");
            let error = each(&body, |_, _| {}).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
        let cut = format!("{{\"a\":\"{long}");
        assert!(each(&cut, |_, _| {}).unwrap_err().to_string().contains("EOF"));
    }

    proptest::proptest! {
        #[test]
        fn an_outline_has_what_the_whole_has(body in "[\\[\\]{}\",:0-9a\\\\u\u{1}é \n-]{0,60}") {
            for text in [body.clone(), format!("{{\"a\":{body}}}"), format!("{{\"a\":\"{body}\",\"b\":{{\"c\":\"{body}\"}}}}")] {
                let (whole, outlined) = both(&text, 3);
                if outlined.is_some() {
                    proptest::prop_assert_eq!(&outlined, &whole, "{}", text);
                }
            }
        }

        #[test]
        fn a_good_body_with_something_long_has_an_outline(
            parts in proptest::collection::vec("[a-z \u{e9}]{0,9}(\\\\n|\\\\u00e9|\\\\\")?[a-z]{0,3}", 1..6),
        ) {
            let members: Vec<String> = parts.iter().enumerate().map(|(i, text)| format!("\"{i}\":[\"{text}\"]")).collect();
            let text = format!("{{{}}}", members.join(","));
            let (whole, outlined) = both(&text, 4);
            proptest::prop_assert!(whole.is_some());
            let long: usize = parts.iter().map(String::len).filter(|bytes| *bytes >= 4).sum();
            proptest::prop_assert_eq!(outlined, whole.filter(|_| long >= text.len() / 2));
        }
    }
}
