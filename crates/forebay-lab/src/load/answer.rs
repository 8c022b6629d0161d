//! Reads a streamed answer as far as a benchmark needs it. The events and what a token event is are those of
//! [`forebay_core::stream`], which the proxy counts by too; what is added is which events have a choice, whether each is JSON,
//! and the text. Pure; any split of the bytes gives the same events. 30,000 events a second on one core is its budget.
//!
//! `vllm bench serve` times every event with a choice, whether there is text in it or not: the first is its TTFT, the gaps
//! between them are its ITLs. So does this load generator. A token event is an event with a choice that does more than
//! announce the role.

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;

use forebay_core::stream::{Api, EventKind, Parser, Segment, Usage};

/// An event of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AnswerEvent {
    /// It has a choice.
    Choice {
        /// True if it is a token event ([`Segment::token`]). The role event of a chat is none.
        token: bool,
    },
    /// Token counts without a choice. [`AnswerReader::usage`] has the last ones of all that was pushed.
    Usage,
    /// The server says that something went wrong, or what it says is no JSON.
    Error(String),
    /// `[DONE]`.
    Done,
}

#[derive(Deserialize)]
struct Chunk<'a> {
    #[serde(borrow, default)]
    choices: Vec<Choice<'a>>,
    #[serde(borrow)]
    error: Option<&'a RawValue>,
}

// Texts stay as they are written: most are not looked at.
#[derive(Deserialize)]
struct Choice<'a> {
    #[serde(borrow)]
    delta: Option<Delta<'a>>,
    #[serde(borrow)]
    text: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Delta<'a> {
    #[serde(borrow)]
    content: Option<&'a RawValue>,
}

impl Choice<'_> {
    /// Returns what the model said to the user, without its reasoning: clients do not send that back.
    fn said(&self) -> Option<String> {
        let text = self.delta.as_ref().and_then(|delta| delta.content).or(self.text)?;
        serde_json::from_str::<Option<String>>(text.get()).ok()?
    }
}

/// Reads one streamed answer.
#[derive(Debug)]
pub struct AnswerReader {
    parser: Parser,
    /// Kept for its memory; empty between two calls.
    segments: Vec<Segment>,
    said: Option<String>,
}

impl AnswerReader {
    /// Returns a reader at the beginning of an answer.
    #[must_use]
    pub fn new(api: Api) -> AnswerReader {
        AnswerReader { parser: Parser::new(api), segments: Vec::new(), said: None }
    }

    /// Returns a reader that keeps the text of the answer.
    #[must_use]
    pub fn keeping_text(api: Api) -> AnswerReader {
        AnswerReader { said: Some(String::new()), ..AnswerReader::new(api) }
    }

    /// Returns the text of the answer so far, without reasoning; nothing unless the reader keeps it.
    #[must_use]
    pub fn into_text(self) -> String {
        self.said.unwrap_or_default()
    }

    /// Takes bytes, and gives each event that they complete.
    pub fn push(&mut self, bytes: Bytes, mut each: impl FnMut(AnswerEvent)) {
        // Taken out and put back, since `event` borrows the whole reader. The memory is kept: this runs 30,000 times a second.
        let mut segments = std::mem::take(&mut self.segments);
        self.parser.push(bytes, &mut segments);
        for segment in segments.drain(..) {
            if let Some(event) = self.event(&segment) {
                each(event);
            }
        }
        self.segments = segments;
    }

    /// The last token counts seen, in whichever event.
    #[must_use]
    pub fn usage(&self) -> Option<Usage> {
        self.parser.usage()
    }

    fn event(&mut self, segment: &Segment) -> Option<AnswerEvent> {
        match segment.kind {
            EventKind::End => Some(AnswerEvent::Done),
            EventKind::Usage => Some(AnswerEvent::Usage),
            // Only these are parsed as JSON. The proxy's parser has told them from the rest by a few bytes.
            EventKind::Token | EventKind::Error { .. } => self.chunk(segment),
            EventKind::Comment | EventKind::Preamble | EventKind::Other => None,
        }
    }

    fn chunk(&mut self, segment: &Segment) -> Option<AnswerEvent> {
        let data = segment.data()?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let Ok(chunk) = serde_json::from_slice::<Chunk<'_>>(&data) else {
            // A stream that is no JSON is not this API. To skip the event would count its answer as whole with a token less.
            return Some(AnswerEvent::Error(format!("not an event: {}", text(&data[..data.len().min(200)]))));
        };
        if let EventKind::Error { .. } = segment.kind {
            return Some(AnswerEvent::Error(chunk.error.map_or_else(|| text(&data), |error| error.get().to_owned())));
        }
        if let Some(said) = &mut self.said {
            said.extend(chunk.choices.first().and_then(Choice::said));
        }
        (!chunk.choices.is_empty()).then_some(AnswerEvent::Choice { token: segment.token })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &str = concat!(
        ": keep-alive\n\n",
        "data: {\"id\":\"1\",\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n",
        "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"a\\\"b\"}}]}\n\n",
        "data: {\"choices\":[{\"index\":0,\"text\":\" six\"}],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":1}}\r\n\r\n",
        "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":18,\"total_tokens\":26,\"completion_tokens\":8}}\n\n",
        "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":18,\"completion_tokens\":9}}\n\n",
        "data: [DONE]\n\n",
    );

    #[test]
    fn any_split_gives_the_same_events() {
        let usage = Usage { prompt_tokens: 18, completion_tokens: 9, cached_tokens: None };
        let choice = |token| AnswerEvent::Choice { token };
        let (choices, counts) = ([choice(false), choice(true), choice(true)], [AnswerEvent::Usage, AnswerEvent::Usage]);
        let expected = [&choices[..], &counts, &[AnswerEvent::Done]].concat();
        for size in 1..STREAM.len() {
            let (mut reader, mut events) = (AnswerReader::new(Api::Chat), Vec::new());
            for piece in STREAM.as_bytes().chunks(size) {
                reader.push(Bytes::copy_from_slice(piece), |event| events.push(event));
            }
            assert_eq!(events, expected, "pieces of {size}");
            assert_eq!(reader.usage(), Some(usage));
        }
    }

    fn events<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<AnswerEvent> {
        let (mut reader, mut events) = (AnswerReader::new(Api::Chat), Vec::new());
        for piece in pieces {
            reader.push(Bytes::copy_from_slice(piece), |event| events.push(event));
        }
        events
    }

    /// The bytes that vLLM really wrote, with the head and the chunk sizes around the events.
    const RECORDED: [&[u8]; 4] = [
        include_bytes!("../../../../tests/fixtures/vllm-0.32.0/http/chat-stream-usage.response"),
        include_bytes!("../../../../tests/fixtures/vllm-0.32.0/http/chat-stream-n2.response"),
        include_bytes!("../../../../tests/fixtures/vllm-0.32.0/http/completion-stream-usage-continuous.response"),
        include_bytes!("../../../../tests/fixtures/vllm-0.32.0/http/engine-killed-stream-running.response"),
    ];

    proptest::proptest! {
        #[test]
        fn a_recorded_stream_cut_anywhere_gives_the_same_events(
            which in 0..RECORDED.len(),
            cuts in proptest::collection::vec(proptest::prelude::any::<proptest::sample::Index>(), 0..20),
        ) {
            let stream = RECORDED[which];
            let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len())).collect();
            at.extend([0, stream.len()]);
            at.sort_unstable();
            let whole = events([stream]);
            proptest::prop_assert!(whole.len() > 2);
            proptest::prop_assert_eq!(events(at.windows(2).map(|ends| &stream[ends[0]..ends[1]])), whole);
        }
    }

    #[test]
    fn a_reader_keeps_what_was_said_without_reasoning() {
        let mut reader = AnswerReader::keeping_text(Api::Chat);
        reader.push(Bytes::from_static(STREAM.as_bytes()), |_| {});
        let reasoning = b"data: {\"choices\":[{\"delta\":{\"reasoning\":\"hm\",\"content\":null}}]}\n\n";
        reader.push(Bytes::from_static(reasoning), |_| {});
        reader.push(Bytes::from_static(b"data: {\"choices\":[{\"delta\":{\"content\":\"\\u00e4\\n\"}}]}\n\n"), |_| {});
        assert_eq!(reader.into_text(), "a\"b six\u{e4}\n");
        let mut plain = AnswerReader::new(Api::Chat);
        plain.push(Bytes::from_static(STREAM.as_bytes()), |_| {});
        assert_eq!(plain.into_text(), "");
    }

    #[test]
    fn cached_tokens_are_known_only_where_the_server_says_them() {
        let said = |stream: &[u8]| {
            let mut reader = AnswerReader::new(Api::Chat);
            reader.push(Bytes::copy_from_slice(stream), |_| {});
            reader.usage().and_then(|usage| usage.cached_tokens)
        };
        let first =
            include_bytes!("../../../../tests/fixtures/vllm-0.32.0/http/opt-chat-stream-cached-tokens-1.response")
                .as_slice();
        let again =
            include_bytes!("../../../../tests/fixtures/vllm-0.32.0/http/opt-chat-stream-cached-tokens-2.response")
                .as_slice();
        assert_eq!((said(first), said(again), said(RECORDED[0])), (Some(0), Some(192), None));
        assert_eq!(
            said(b"data: {\"choices\":[],\"usage\":{\"prompt_tokens\":1,\"prompt_tokens_details\":{}}}\n\n"),
            None
        );
    }

    #[test]
    fn a_choice_is_a_token_event_unless_it_only_announces_the_role() {
        let event = |choice: &str| events([format!("data: {{\"choices\":[{choice}]}}\n\n").as_bytes()]);
        for choice in [
            r#"{"text":"a"}"#,
            r#"{"delta":{"content":"\n"}}"#,
            r#"{"delta":{"content":null,"reasoning":"a"}}"#,
            r#"{"delta":{"reasoning_content":"a"}}"#,
            r#"{"delta":{"reasoning":"a","reasoning_content":"a"}}"#,
            r#"{"delta":{}},{"delta":{"content":"of the second"}}"#,
            // Without text: tokens of which nothing is shown yet, or the one that ends the answer.
            r#"{"text":""}"#,
            r#"{"delta":{"content":null}}"#,
            "{}",
        ] {
            assert_eq!(event(choice), [AnswerEvent::Choice { token: true }], "{choice}");
        }
        let role = r#"{"delta":{"role":"assistant","content":""}}"#;
        assert_eq!(event(role), [AnswerEvent::Choice { token: false }]);
        assert_eq!(events([b"data: {\"choices\":[]}\n\n".as_slice()]), [], "no choice");
    }

    /// Three events of each have a choice and no text: vLLM holds back what may begin the string to stop at.
    #[test]
    fn every_recorded_event_with_a_choice_is_timed_as_vllm_bench_serve_does() {
        let chat = include_bytes!("../../../../tests/fixtures/vllm-0.32.0/http/chat-stream-stop.response").as_slice();
        let completion =
            include_bytes!("../../../../tests/fixtures/vllm-0.32.0/http/completion-stream-stop.response").as_slice();
        for (stream, choices, tokens) in [(chat, 24, 23), (completion, 17, 17)] {
            let events = events([stream]);
            let with = |token| events.iter().filter(|event| **event == AnswerEvent::Choice { token }).count();
            assert_eq!((with(true) + with(false), with(true)), (choices, tokens));
        }
    }

    #[test]
    fn errors_and_nonsense_are_errors() {
        let mut events = Vec::new();
        let text = b"data: {\"error\": {\"message\": \"dead\", \"code\": 500}}\n\ndata: {oops\n\n";
        AnswerReader::new(Api::Chat).push(Bytes::from_static(text), |event| events.push(event));
        assert!(matches!(&events[0], AnswerEvent::Error(message) if message.contains("dead")));
        assert!(matches!(&events[1], AnswerEvent::Error(message) if message.contains("oops")));
    }
}
