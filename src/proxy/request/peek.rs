//! What is read of a request's JSON body: enough to route it and to splice into it, and nothing is changed. Of a member that
//! comes twice the last one counts, as in Python's `json`, which reads it at the backend. Only what we could not route or
//! relay by is refused; any other mistake is the backend's to answer.
//!
//! Hot path: a few borrowed passes at SIMD speed over the body and its text members, about 0.5 µs for 300 bytes and a third of a
//! millisecond for a MiB; allocates for the strings that it returns, and for the outline of a large body. Bodies over a MiB belong
//! on a blocking thread.

use std::ops::Range;

use bytes::Bytes;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use super::counting::{Claims, Shape};
use super::lenient;
use super::members::{self, place};
use super::prefix::Prefix;
pub use super::stream_options::{Flag, StreamOptions, StreamOptionsForm};
use super::weight::Weight;
use forebay_core::routing::affinity::Marks;

/// The content of a request's body, as far as it is read. Ranges are byte positions in that body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peek {
    /// The model asked for; `None` where there is none, or null, or an empty name: vLLM takes that for its own.
    pub model: Option<String>,
    /// The place of the model's value, quotes included; also of a null.
    pub model_at: Option<Range<usize>>,
    /// The answer is to be streamed.
    pub stream: bool,
    /// `stream_options`, if there are.
    pub stream_options: Option<StreamOptions>,
    /// Most tokens to generate for one sequence, under any API's name for it.
    pub max_tokens: Option<u64>,
    /// The numbers that an API may make sequences of.
    pub claims: Claims,
    /// The API whose members it has.
    pub shape: Shape,
    /// Bytes of text in the prompt.
    pub text_bytes: u64,
    /// Images, audio clips, videos and files in the prompt.
    pub media_parts: u32,
    /// Token ids in the prompt.
    pub token_ids: u64,
    /// The members that were named as session keys and are strings, in the order of their names.
    pub sessions: Vec<(String, String)>,
    /// The response that this one follows (responses API).
    pub previous_response_id: Option<String>,
    /// The marks of the prompt's beginning; nothing where nobody asked.
    pub marks: Marks,
    /// Position after the brace that opens the body.
    pub inside: usize,
}

/// The reason why a body cannot be routed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeekError {
    /// Nothing is there.
    #[error("it is empty; a JSON object is expected")]
    Empty,
    /// Bytes that are no UTF-8.
    #[error("byte {0} is not UTF-8")]
    NotUtf8(usize),
    /// No JSON; the text says what and where.
    #[error("it is not JSON: {0}")]
    NotJson(String),
    /// JSON, but no object.
    #[error("it is JSON but not an object")]
    NotObject,
    /// A member that decides the way of the request has a value of the wrong type.
    #[error("`{member}` at byte {at} is not {expected}")]
    WrongType {
        /// The member.
        member: &'static str,
        /// The place of its value.
        at: usize,
        /// The type that it should have.
        expected: &'static str,
    },
}

impl Peek {
    /// The prompt's tokens, estimated: a quarter of the text's bytes, 1000 for each media part, token ids as they are.
    #[must_use]
    pub fn est_tokens(&self) -> u32 {
        // Four bytes a token is English in today's vocabularies. Routing compares requests, so that a common error falls out.
        let tokens = self.text_bytes.div_ceil(4) + 1000 * u64::from(self.media_parts) + self.token_ids;
        u32::try_from(tokens).unwrap_or(u32::MAX)
    }

    /// The text in this member, if it was named as a session key.
    #[must_use]
    pub fn session(&self, member: &str) -> Option<&str> {
        self.sessions.iter().find(|(name, _)| name == member).map(|(_, text)| text.as_str())
    }
}

/// Members that make up the prompt, in all APIs: those first that a template puts first, so that what begins a prompt is read
/// first.
const PROMPT: [&str; 22] = [
    "tools",
    "system",
    "instructions",
    "messages",
    "prompt",
    "input",
    "query",
    "queries",
    "documents",
    "items",
    "text_1",
    "text_2",
    "data_1",
    "data_2",
    "inputs",
    "texts",
    "token_ids",
    "state",
    "questions",
    "images",
    "audio",
    "videos",
];

/// The members that are read.
#[derive(Default)]
struct Members<'a> {
    model: Option<&'a str>,
    stream: Option<&'a str>,
    stream_options: Option<&'a str>,
    max_tokens: Option<&'a str>,
    max_completion_tokens: Option<&'a str>,
    max_output_tokens: Option<&'a str>,
    n: Option<&'a str>,
    previous_response_id: Option<&'a str>,
    /// By the place of their names.
    sessions: Vec<(usize, &'a str)>,
    cache_salt: Option<&'a str>,
    prompt: [Option<&'a str>; PROMPT.len()],
}

/// A session that is hashed here, where time is, instead of several times later.
const LONG_SESSION: usize = 4 << 10;

/// A session in few bytes, the same for the same words.
fn short(session: String) -> String {
    if session.len() <= LONG_SESSION {
        return session;
    }
    // A digest keeps long sessions apart. To cut them would make one session of all that begin alike.
    Sha256::digest(&session).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Reads a request's body. `sessions`: the members that are session keys, if the body has them. `seed`: with what to hash the
/// prompt's beginning, if somebody wants it.
///
/// # Errors
/// The body is no JSON object, or a member that decides its way has a value of the wrong type.
pub fn peek<'s>(
    body: &[u8],
    sessions: impl IntoIterator<Item = &'s str>,
    seed: Option<u64>,
) -> Result<Peek, PeekError> {
    let sessions: Vec<&str> = sessions.into_iter().collect();
    let strict = read(body, &sessions, seed);
    // Returned where it was made: what was read is large to move.
    let Err(PeekError::NotUtf8(_) | PeekError::NotJson(_)) = strict else { return strict };
    match lenient::shadow(body) {
        // What vLLM's parser takes beyond the standard.
        Some(shadow) => read(&shadow, &sessions, seed),
        None => strict,
    }
}

/// Returns a body that is not in UTF-8, which vLLM's parser takes, in UTF-8; nothing where it is in no encoding of JSON. Only for a
/// body that [`peek`] refuses.
#[must_use]
pub fn in_utf8(body: &[u8]) -> Option<Bytes> {
    lenient::as_utf8(body)
}

fn read(body: &[u8], sessions: &[&str], seed: Option<u64>) -> Result<Peek, PeekError> {
    let text = simdutf8::basic::from_utf8(body)
        .or_else(|_| simdutf8::compat::from_utf8(body))
        .map_err(|error| PeekError::NotUtf8(error.valid_up_to()))?;
    // serde skips white space, too. The place of the brace is needed for what is spliced in behind it.
    let open = body.iter().position(|byte| !byte.is_ascii_whitespace()).ok_or(PeekError::Empty)?;
    // One pass finds the members, a second one looks into the few that count: most bytes are seen once.
    let mut members = Members::default();
    let long = members::each(text, |key, value| members.take(&key, value, sessions)).map_err(|error| {
        // Only after a failure, so that no good body is parsed a second time to find out what it is not.
        let other = body[open] != b'{' && serde_json::from_str::<&RawValue>(text).is_ok();
        if other { PeekError::NotObject } else { PeekError::NotJson(error.to_string()) }
    })?;
    let mut weight = Weight::within(text, &long);
    let mut prefix = Prefix::new(seed);
    if let Some(salt) = members.cache_salt {
        prefix.aside(salt.as_bytes()); // vLLM shares no cache between two salts
    }
    let (mut claims, shape) = members.weigh(&mut weight, &mut prefix);
    // A count that cannot be read is left out and not refused: whether vLLM takes it is vLLM's to say.
    let count = |value: Option<&str>| value.and_then(number);
    claims.n = count(members.n).unwrap_or(1);
    Ok(Peek {
        // An empty name is none to vLLM.
        model: read_string(text, "model", members.model)?.filter(|model| !model.is_empty()),
        model_at: members.model.map(|value| place(text, value)),
        stream: match members.stream {
            None => false,
            Some(value) => truth(value).ok_or_else(|| wrong(text, value, "stream", "true or false"))?,
        },
        stream_options: members.stream_options.map(|value| read_options(text, value)).transpose()?,
        // In vLLM's own order: the newer name goes before the deprecated one.
        max_tokens: count(members.max_completion_tokens)
            .or(count(members.max_tokens))
            .or(count(members.max_output_tokens)),
        claims,
        shape,
        text_bytes: weight.text,
        media_parts: weight.media,
        token_ids: weight.ids,
        sessions: members.sessions_by_name(sessions),
        previous_response_id: read_string(text, "previous_response_id", members.previous_response_id)?,
        marks: prefix.into_marks(),
        inside: open + 1,
    })
}

impl<'a> Members<'a> {
    fn take(&mut self, key: &str, value: &'a str, sessions: &[&str]) {
        if let Some(name) = sessions.iter().position(|name| *name == key) {
            self.sessions.push((name, value));
        }
        let member = match key {
            "model" => &mut self.model,
            "stream" => &mut self.stream,
            "stream_options" => &mut self.stream_options,
            "max_tokens" => &mut self.max_tokens,
            "max_completion_tokens" => &mut self.max_completion_tokens,
            "max_output_tokens" => &mut self.max_output_tokens,
            "n" => &mut self.n,
            "cache_salt" => &mut self.cache_salt,
            "previous_response_id" => &mut self.previous_response_id,
            _ => match PROMPT.iter().position(|name| *name == key) {
                Some(i) => &mut self.prompt[i],
                None => return,
            },
        };
        // Overwritten by a later one of the same name, as a Python dict does.
        *member = Some(value);
    }

    /// Weighs the members of the prompt, and returns the numbers that an API may make sequences of, and whose members these are.
    fn weigh(&self, weight: &mut Weight<'_>, prefix: &mut Prefix) -> (Claims, Shape) {
        let (mut claims, mut shape) = (Claims::default(), Shape::Other);
        for (name, value) in PROMPT.iter().zip(&self.prompt) {
            let Some(value) = *value else { continue };
            // Tools are put into the prompt as JSON, keys included, so that all of their bytes are text.
            if *name == "tools" {
                weight.text += value.len() as u64;
                prefix.text(value.as_bytes(), 0);
                continue;
            }
            if matches!(*name, "images" | "audio" | "videos") {
                // Each is a URL or data, of which no byte is text.
                let elements = Weight::default().add(value, &mut Prefix::new(None));
                weight.media = weight.media.saturating_add(u32::try_from(elements.all).unwrap_or(u32::MAX));
                claims.inputs = claims.inputs.max(elements.all);
                continue;
            }
            let elements = weight.add(value, prefix);
            match *name {
                "messages" => shape = Shape::Messages,
                "prompt" if shape == Shape::Other => shape = Shape::Prompt,
                "query" | "queries" | "documents" | "text_1" | "data_1" if shape == Shape::Other => {
                    shape = Shape::Pairs
                }
                _ => {}
            }
            match *name {
                "prompt" => claims.prompts = elements.batch(),
                "messages" => claims.conversations = elements.batch(),
                "input" => claims.inputs = elements.batch(),
                "inputs" | "texts" => claims.inputs = claims.inputs.max(elements.all),
                "documents" | "items" | "queries" | "text_1" | "text_2" | "data_1" | "data_2" => {
                    claims.pairs = claims.pairs.max(elements.all);
                }
                _ => {}
            }
        }
        (claims, shape)
    }

    /// The session keys that are strings; the last value of each counts.
    fn sessions_by_name(&self, names: &[&str]) -> Vec<(String, String)> {
        let last = |place| self.sessions.iter().rev().find(|(of, _)| *of == place);
        let named = names.iter().enumerate().filter_map(|(place, name)| {
            let (_, value) = last(place)?;
            Some(((*name).to_owned(), short(serde_json::from_str(value).ok()?)))
        });
        named.collect()
    }
}

fn wrong(text: &str, value: &str, member: &'static str, expected: &'static str) -> PeekError {
    PeekError::WrongType { member, at: place(text, value).start, expected }
}

fn read_string(text: &str, name: &'static str, value: Option<&str>) -> Result<Option<String>, PeekError> {
    let Some(value) = value else { return Ok(None) };
    // Valid JSON already, so that without a backslash what is between the quotes is the string.
    if let Some(plain) = value.strip_prefix('"').and_then(|value| value.strip_suffix('"'))
        && memchr::memchr(b'\\', plain.as_bytes()).is_none()
    {
        return Ok(Some(plain.to_owned()));
    }
    serde_json::from_str(value).map_err(|_| wrong(text, value, name, "a string"))
}

fn read_options(text: &str, value: &str) -> Result<StreamOptions, PeekError> {
    let at = place(text, value);
    if value == "null" {
        return Ok(StreamOptions { at, form: StreamOptionsForm::Null });
    }
    let (mut empty, mut usage, mut continuous) = (true, None, None);
    members::each(value, |key, value| {
        empty = false;
        match &*key {
            "include_usage" => usage = Some(value),
            "continuous_usage_stats" => continuous = Some(value),
            _ => {}
        }
    })
    .map_err(|_| wrong(text, value, "stream_options", "an object"))?;
    let flag = |member, value: Option<&str>| {
        let read = |value| {
            let on = truth(value).ok_or_else(|| wrong(text, value, member, "true or false"))?;
            Ok(Flag { at: place(text, value), on })
        };
        value.map(read).transpose()
    };
    let include_usage = flag("stream_options.include_usage", usage)?;
    let continuous_usage_stats = flag("stream_options.continuous_usage_stats", continuous)?;
    Ok(StreamOptions { at, form: StreamOptionsForm::Object { empty, include_usage, continuous_usage_stats } })
}

/// A truth value in the forms that vLLM's validation takes; null is false. `None`: it would be refused there too.
fn truth(value: &str) -> Option<bool> {
    const TRUE: [&str; 6] = ["1", "on", "t", "true", "y", "yes"];
    const FALSE: [&str; 6] = ["0", "off", "f", "false", "n", "no"];
    match value {
        "true" | "1" | "1.0" => Some(true),
        "false" | "0" | "0.0" | "null" => Some(false),
        // Pydantic's rules for a bool, which vLLM reads these by: also 1.0, "yes" and "off".
        text if !text.starts_with('"') => match text.parse::<f64>() {
            Ok(1.0) => Some(true),
            Ok(0.0) => Some(false),
            _ => None,
        },
        text => {
            let text: String = serde_json::from_str(text).ok()?;
            let is_one_of = |words: [&str; 6]| words.iter().any(|word| text.eq_ignore_ascii_case(word));
            if is_one_of(TRUE) { Some(true) } else { is_one_of(FALSE).then_some(false) }
        }
    }
}

/// A count, where the value is one; also as `8.0` or `"8"`, which vLLM's validation takes.
fn number(value: &str) -> Option<u64> {
    let text = value.trim_matches('"');
    let whole = |number: &f64| number.fract() == 0.0 && (0.0..1e18).contains(number);
    text.parse().ok().or_else(|| text.parse().ok().filter(whole).map(|number| number as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ok(body: &str) -> Peek {
        peek(body.as_bytes(), Some("user"), None).unwrap_or_else(|error| panic!("{body}: {error}"))
    }

    fn refused(body: &[u8]) -> String {
        peek(body, None, None).unwrap_err().to_string()
    }

    #[test]
    fn a_chat_request_is_read() {
        let body = r#" {"model": "tiny", "messages": [{"role": "user", "content": "Hello, how are you today?"}],
            "max_tokens": 8, "stream": true, "n": 2, "user": "u-1", "stream_options": {"include_usage": true}}"#;
        let peek = ok(body);
        assert_eq!(peek.model.as_deref(), Some("tiny"));
        assert_eq!(&body[peek.model_at.clone().unwrap()], "\"tiny\"");
        assert!(peek.stream);
        assert_eq!((peek.max_tokens, peek.claims.n, peek.inside), (Some(8), 2, 2));
        assert_eq!((peek.text_bytes, peek.est_tokens()), (25, 7));
        assert_eq!(peek.session("user"), Some("u-1"));
        let Some(StreamOptions { form: StreamOptionsForm::Object { include_usage: Some(flag), .. }, at }) =
            peek.stream_options
        else {
            panic!("no options")
        };
        assert!(flag.on);
        assert_eq!(&body[flag.at], "true");
        assert_eq!(&body[at], r#"{"include_usage": true}"#);
    }

    #[test]
    fn the_last_of_two_keys_counts_as_in_python() {
        let body = r#"{"model":"a","stream":true,"mod\u0065l":"b","stream":false,"user":"x","user":"y"}"#;
        let peek = ok(body);
        assert_eq!(peek.model.as_deref(), Some("b"));
        assert_eq!(&body[peek.model_at.clone().unwrap()], "\"b\"");
        assert!(!peek.stream);
        assert_eq!(peek.session("user"), Some("y"));
    }

    #[test]
    fn prompts_are_counted_in_every_form() {
        for (prompt, sequences, text, ids) in [
            (r#""abcd""#, 1, 4, 0),
            (r#"["abcd", "ef"]"#, 2, 6, 0),
            ("[1, 2, 3]", 1, 0, 3),
            ("[ [1,2] , [3] ]", 2, 0, 3),
            ("[]", 1, 0, 0),
            (r#""\u4e16\n\"""#, 1, 5, 0),
            (r#"["a,[b", "c"]"#, 2, 5, 0),
        ] {
            let peek = ok(&format!(r#"{{"prompt": {prompt}, "n": 1}}"#));
            assert_eq!((peek.claims.prompts, peek.text_bytes, peek.token_ids), (sequences, text, ids), "{prompt}");
        }
        let claims = ok(r#"{"prompt":["a","b"],"n":3,"best_of":4}"#).claims;
        assert_eq!(claims, Claims { n: 3, prompts: 2, ..Claims::default() });
        assert_eq!(ok(r#"{"n":"8","input":["a","b","c"]}"#).claims, Claims { n: 8, inputs: 3, ..Claims::default() });
    }

    #[test]
    fn documents_are_counted_in_every_form() {
        for (body, pairs) in [
            (r#"{"query":"q","documents":["a","b","c"]}"#, 3),
            (r#"{"query":"q","documents":[{"content":[{"type":"text","text":"a, b"}]}, {"content":[]}]}"#, 2),
            (r#"{"text_1":"q","text_2":["a","b"]}"#, 2),
            (r#"{"text_1":["q","r"],"text_2":["a","b"]}"#, 2),
            (r#"{"queries":["q","r","s"],"documents":"a"}"#, 3),
            (r#"{"queries":"q","items":[[1,2],[3]]}"#, 2),
            (r#"{"data_1":"q","data_2":[]}"#, 1),
        ] {
            assert_eq!(ok(body).claims.pairs, pairs, "{body}");
        }
    }

    #[test]
    fn several_members_are_session_keys_each_by_its_name() {
        let body = r#"{"user":"u","conversation":"c","user":"v","other":5}"#;
        let peek = peek(body.as_bytes(), ["conversation", "user", "other"], None).unwrap();
        assert_eq!((peek.session("user"), peek.session("conversation")), (Some("v"), Some("c")));
        assert_eq!((peek.session("other"), peek.session("model")), (None, None));
    }

    #[test]
    fn media_weigh_by_the_part_and_their_data_nothing() {
        let data = "A".repeat(10_000);
        let body = format!(
            r#"{{"messages":[{{"role":"user","content":[{{"type":"text","text":"what?"}},
            {{"type":"image_url","image_url":{{"url":"data:image/png;base64,{data}"}}}},
            {{"type":"input_audio","input_audio":{{"data":"{data}","format":"wav"}}}},
            {{"type":"image","source":{{"type":"base64","media_type":"image/png","data":"{data}"}}}}]}}]}}"#
        );
        let peek = ok(&body);
        assert_eq!((peek.text_bytes, peek.media_parts, peek.est_tokens()), (5, 3, 3002));
        let body = r#"{"input":[{"role":"user","content":[{"type":"input_text","text":"hi"},{"type":"input_image","image_url":"https://x"}]}]}"#;
        let peek = ok(body);
        assert_eq!((peek.text_bytes, peek.media_parts, peek.claims), (2, 1, Claims::default()));
    }

    #[test]
    fn what_cannot_be_routed_is_refused_with_its_place() {
        assert!(refused(b"").contains("empty"));
        assert!(refused(b"  \n").contains("empty"));
        assert!(refused(b"[1]").contains("not an object"));
        assert!(refused(b"\"x\"").contains("not an object"));
        assert!(refused(b"{\"model\": \"\xff\"}").contains("byte 11 "));
        assert!(refused(b"{\"model\": ").contains("line 1 column 10"));
        assert!(refused(b"{\"a\": nope}").contains("column"));
        assert!(refused(b"{} x").contains("trailing"));
        assert_eq!(refused(b"{\"model\": 5}"), "`model` at byte 10 is not a string");
        assert_eq!(refused(b"{\"stream\":\"maybe\"}"), "`stream` at byte 10 is not true or false");
        assert_eq!(refused(b"{\"stream_options\":[1]}"), "`stream_options` at byte 18 is not an object");
        assert!(refused(b"{\"stream_options\":{\"include_usage\":[]}}").contains("include_usage"));
        assert!(refused(b"{\"previous_response_id\":5}").contains("previous_response_id"));
    }

    #[test]
    fn what_the_backend_can_judge_is_left_to_it() {
        let peek = ok(r#"{"max_tokens":"many","n":-1,"user":7,"messages":5,"prompt":null,"temperature":"x"}"#);
        assert_eq!((peek.max_tokens, peek.claims.n, peek.session("user")), (None, 1, None));
        assert_eq!(ok("{}").model, None);
        let peek = ok(r#"{"model":null,"stream":null,"stream_options":null,"previous_response_id":null}"#);
        assert_eq!((peek.model, peek.stream, peek.previous_response_id), (None, false, None));
        assert_eq!(peek.stream_options.unwrap().form, StreamOptionsForm::Null);
        assert!(ok(r#"{"stream":"Yes"}"#).stream);
        assert!(ok(r#"{"stream":1}"#).stream);
    }

    #[test]
    fn limits_on_tokens_have_three_names() {
        assert_eq!(ok(r#"{"max_completion_tokens":5,"max_tokens":9}"#).max_tokens, Some(5));
        assert_eq!(ok(r#"{"max_output_tokens":7}"#).max_tokens, Some(7));
        assert_eq!(ok(r#"{"max_tokens":8.0}"#).max_tokens, Some(8));
        assert_eq!(ok(r#"{"max_tokens":null}"#).max_tokens, None);
    }

    #[test]
    fn depth_does_not_overflow_the_stack() {
        let deep = "[".repeat(2_000_000);
        assert!(refused(format!("{{\"messages\":{deep}").as_bytes()).contains("not JSON"));
        assert!(refused(deep.as_bytes()).contains("not JSON"));
        let closed = format!("{{\"model\":\"a\",\"messages\":{deep}{}}}", "]".repeat(2_000_000));
        assert_eq!(ok(&closed).model.as_deref(), Some("a"));
        let objects = format!("{{\"model\":{}", "{\"a\":".repeat(1_000_000));
        assert!(refused(objects.as_bytes()).contains("not JSON"));
    }

    #[test]
    fn every_recorded_request_that_vllm_took_is_taken() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/vllm-0.32.0/http");
        let mut taken = 0;
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let Ok(answer) = std::fs::read(path.with_extension("response")) else { continue };
            let request = std::fs::read(&path).unwrap();
            let chunked = memchr::memmem::find(&request, b"chunked").is_some();
            let took = request.starts_with(b"POST ") && answer.starts_with(b"HTTP/1.1 200") && !chunked;
            let Some(head) = memchr::memmem::find(&request, b"\r\n\r\n").filter(|_| took) else { continue };
            let body = &request[head + 4..];
            if body.is_empty() {
                continue;
            }
            let peek = peek(body, None, None).unwrap_or_else(|error| panic!("{path:?}: {error}"));
            let streamed = memchr::memmem::find(&answer, b"text/event-stream").is_some();
            assert_eq!(peek.stream, streamed, "{path:?}");
            assert!(peek.est_tokens() > 0 || path.ends_with("detokenize.request"), "{path:?}");
            taken += 1;
        }
        assert!(taken > 50, "{taken}");
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic(body in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            let _ = peek(&body, Some("user"), Some(7));
        }

        #[test]
        fn no_near_json_panics(body in "[\\[\\]{}\",:0-9a\\\\u \n-]{0,80}", tail in "[\\[\\]{}\",:\\\\u1a ]{0,20}") {
            let _ = peek(format!("{{\"prompt\":{body}}}{tail}").as_bytes(), None, Some(7));
        }
    }
}
