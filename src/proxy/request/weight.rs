//! How much a prompt holds: text, media parts, token ids. An estimate for routing, so it reads flat and knows no API; the one
//! exact thing is that it ends, whatever it is given.
//!
//! Hot path: one pass over a request's prompt but for the strings whose ends are known, no allocation, no recursion.

use memchr::memchr2;

use super::members::{LongString, place};
use super::prefix::Prefix;

/// The amount that a prompt holds.
#[derive(Debug, Default)]
pub(crate) struct Weight<'a> {
    /// The body, and those of its strings whose ends are known, in order.
    known: (&'a str, &'a [LongString]),
    /// Bytes of text, escapes taken for what they stand for.
    pub(crate) text: u64,
    /// Images, audio clips, videos and files.
    pub(crate) media: u32,
    /// Token ids.
    pub(crate) ids: u64,
}

/// Types of the parts that are not text; a string under a key of this name is a URL or data.
const MEDIA: [&[u8]; 17] = [
    b"image_url",
    b"input_image",
    b"image",
    b"image_pil",
    b"image_embeds",
    b"input_audio",
    b"audio",
    b"audio_url",
    b"audio_embeds",
    b"video",
    b"video_url",
    b"input_video",
    b"input_file",
    b"file",
    b"document",
    b"prompt_embeds",
    b"container_upload",
];

/// Keys whose strings are no text of the prompt.
const NO_TEXT: [&[u8]; 12] = [
    b"url",
    b"data",
    b"file_data",
    b"file_url",
    b"file_id",
    b"media_type",
    b"format",
    b"detail",
    b"uuid",
    b"id",
    b"tool_call_id",
    b"role",
];

/// The kind of strings under a key.
#[derive(Clone, Copy)]
enum Under {
    Text,
    Type,
    NoText,
}

/// The elements of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Elements {
    /// Of an array, whatever they are; else, and of an empty one, 1.
    pub(crate) all: u64,
    /// They are strings or arrays: a batch of texts or of lists of token ids.
    prompts: bool,
}

impl Elements {
    /// Returns how many prompts these are: an array of anything else is one prompt.
    pub(crate) fn batch(self) -> u64 {
        if self.prompts { self.all } else { 1 }
    }
}

impl<'a> Weight<'a> {
    /// The weight of values of this body, of which these strings are known.
    pub(super) fn within(body: &'a str, known: &'a [LongString]) -> Weight<'a> {
        Weight { known: (body, known), ..Weight::default() }
    }

    /// Adds a valid JSON value, of the body if strings of that are known, and returns its elements.
    /// Flat, so that depth costs nothing: an estimate needs no tree. `prefix` is told what it reads.
    pub(crate) fn add(&mut self, value: &str, prefix: &mut Prefix) -> Elements {
        let (at, mut known) = self.known_from(value);
        let json = value.as_bytes();
        // Depths and no stack: an attacker nests as deep as the body is long, and recursion would end the process.
        let (mut i, mut arrays, mut objects, mut commas) = (0, 0_u64, 0_u64, 0);
        let mut under = Under::Text;
        let inner = json.strip_prefix(b"[").map(|inner| inner.trim_ascii_start());
        let prompts = inner.is_some_and(|inner| matches!(inner.first(), Some(b'"' | b'[')));
        while let Some(&byte) = json.get(i) {
            i += 1;
            match byte {
                b'"' => {
                    let (end, escaped) = match known {
                        [string, rest @ ..] if string.start == at + i => {
                            known = rest;
                            (string.end - at, string.escaped)
                        }
                        _ => string_end(json, i),
                    };
                    let string = &json[i..end];
                    i = (end + 1).min(json.len());
                    // A string before a colon is a key, and no text of the prompt.
                    if objects > 0 && json[i..].trim_ascii_start().first() == Some(&b':') {
                        under = match string {
                            b"type" => Under::Type,
                            key if NO_TEXT.contains(&key) || MEDIA.contains(&key) => Under::NoText,
                            _ => Under::Text,
                        };
                    } else {
                        match under {
                            Under::Text => {
                                self.text += string.len().saturating_sub(escaped) as u64;
                                prefix.text(string, escaped);
                            }
                            Under::Type if MEDIA.contains(&string) => self.media += 1,
                            Under::Type => {}
                            Under::NoText => prefix.aside(string),
                        }
                    }
                }
                b'{' => objects += 1,
                b'}' => objects = objects.saturating_sub(1),
                b'[' => arrays += 1,
                b']' => arrays = arrays.saturating_sub(1),
                // Of the outer array alone: commas of inner ones separate token ids.
                b',' if arrays == 1 && objects == 0 => commas += 1,
                b'0'..=b'9' | b'-' => {
                    let start = i - 1;
                    while json.get(i).is_some_and(|byte| matches!(byte, b'0'..=b'9' | b'.' | b'e' | b'E' | b'+' | b'-'))
                    {
                        i += 1;
                    }
                    // Numbers in objects are parameters such as the size of an image. Those in bare arrays are token ids.
                    if objects == 0 {
                        self.ids += 1;
                        prefix.id(&json[start..i]);
                    }
                }
                _ => {}
            }
        }
        Elements { all: if inner.is_some() { commas + 1 } else { 1 }, prompts }
    }

    /// The place of a value in the body, and the known strings from there on.
    fn known_from(&self, value: &str) -> (usize, &'a [LongString]) {
        let (body, known) = self.known;
        if known.is_empty() {
            return (0, known);
        }
        let at = place(body, value).start;
        (at, &known[known.partition_point(|string| string.start < at)..])
    }
}

/// Finds the end of the string that begins at `i` (its closing quote), and how many bytes of it are escaping alone. The value is JSON, so
/// that unlike in [`super::members`] no escape is judged: short strings are most of a small request.
fn string_end(json: &[u8], mut i: usize) -> (usize, usize) {
    let mut escaped = 0;
    while let Some(found) = memchr2(b'"', b'\\', json.get(i..).unwrap_or_default()) {
        i += found;
        if json[i] == b'"' {
            return (i, escaped);
        }
        let unicode = json.get(i + 1) == Some(&b'u');
        escaped += if unicode { 3 } else { 1 };
        i += if unicode { 6 } else { 2 };
    }
    (json.len(), escaped)
}

#[cfg(test)]
mod tests {
    use super::super::members;
    use super::*;

    #[test]
    fn strings_under_keys_that_are_no_text_weigh_nothing() {
        let mut weight = Weight::default();
        let json = r#"[{"role":"user","content":["ab",{"type":"text","text":"cd"}],"id":"xyz","n":5}]"#;
        assert_eq!(weight.add(json, &mut Prefix::new(None)).batch(), 1);
        assert_eq!((weight.text, weight.media, weight.ids), (4, 0, 0));
    }

    #[test]
    fn escapes_weigh_what_they_stand_for() {
        let mut weight = Weight::default();
        weight.add(r#""\u4e16\u754c\n\"\\""#, &mut Prefix::new(None));
        assert_eq!(weight.text, 9);
    }

    #[test]
    fn strings_whose_ends_are_known_weigh_the_same() {
        let text = |word: &str| word.repeat(3000);
        let body = format!(
            r#"{{"input": "{}", "messages":[{{"role":"user","content":"{}"}},{{"type":"image_url","url":"{}"}},{{"content":"ab"}},{{"content":"{}"}}]}}"#,
            text("word \\u00e9"),
            text("\\\"quoted\\\" "),
            text("data"),
            text("plain\\n"),
        );
        let mut members = Vec::new();
        let long = members::each(&body, |_, value| members.push(value)).unwrap();
        assert_eq!(long.len(), 4);
        let weighed = |mut weight: Weight<'_>| {
            let mut prefix = Prefix::new(Some(7));
            // As a prompt's are: not in the order of the body.
            let elements: Vec<Elements> = members.iter().rev().map(|value| weight.add(value, &mut prefix)).collect();
            (elements, weight.text, weight.media, prefix.into_marks())
        };
        let known = weighed(Weight::within(&body, &long));
        assert_eq!(known, weighed(Weight::default()));
        assert_eq!((known.1, known.2), (3000 * (8 + 9 + 6) + 2, 1));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..80)) {
            Weight::default().add(&String::from_utf8_lossy(&bytes), &mut Prefix::new(Some(7)));
        }

        #[test]
        fn no_near_json_panics(text in "[\\[\\]{}\",:0-9a\\\\u \n-]{0,80}") {
            Weight::default().add(&text, &mut Prefix::new(Some(7)));
        }
    }
}
