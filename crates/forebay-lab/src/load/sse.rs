//! Reads a stream of an OpenAI API as far as a benchmark needs it: is this event a choice, a count of tokens, an error or the
//! end? Pure; any split of the bytes gives the same events. 30,000 events a second on one core is its budget.

use serde::Deserialize;
use serde_json::value::RawValue;

/// Token counts, as the server gives them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Usage {
    /// Tokens of the prompt.
    #[serde(default)]
    pub prompt_tokens: u64,
    /// Tokens of the answer.
    #[serde(default)]
    pub completion_tokens: u64,
    /// More about the prompt. vLLM writes it in the last event, and only with `--enable-prompt-tokens-details`.
    #[serde(default)]
    pub prompt_tokens_details: Option<PromptDetails>,
}

/// What a server says about a prompt's tokens beside their number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct PromptDetails {
    /// Tokens found in the prefix cache; none where the server does not say.
    #[serde(default)]
    pub cached_tokens: Option<u64>,
}

impl Usage {
    /// Prompt tokens found in the prefix cache; none where the server does not say.
    #[must_use]
    pub fn cached_tokens(&self) -> Option<u64> {
        self.prompt_tokens_details?.cached_tokens
    }
}

/// What an event is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// It has a choice; `text`: and text in it.
    Choice {
        /// Whether there is any text; the role event of a chat has none.
        text: bool,
    },
    /// Token counts without a choice.
    Usage(Usage),
    /// The server says that something went wrong.
    Error(String),
    /// `[DONE]`.
    Done,
}

#[derive(Deserialize)]
struct Chunk<'a> {
    #[serde(borrow, default)]
    choices: Vec<Choice<'a>>,
    usage: Option<Usage>,
    #[serde(borrow)]
    error: Option<&'a RawValue>,
}

// Texts stay as they are written: whether there is one is all that is asked.
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
    #[serde(borrow)]
    reasoning: Option<&'a RawValue>,
    // Its older name; some releases write both.
    #[serde(borrow)]
    reasoning_content: Option<&'a RawValue>,
}

impl Choice<'_> {
    /// Returns what the model said to the user, without its reasoning: clients do not send that back.
    fn said(&self) -> Option<String> {
        let text = self.delta.as_ref().and_then(|delta| delta.content).or(self.text)?;
        serde_json::from_str::<Option<String>>(text.get()).ok()?
    }

    fn has_text(&self) -> bool {
        let delta = self.delta.iter().flat_map(|delta| [delta.content, delta.reasoning, delta.reasoning_content]);
        delta.chain([self.text]).flatten().any(|text| text.get() != "\"\"")
    }
}

/// A stream that is being read.
#[derive(Debug, Default)]
pub struct Reader {
    rest: Vec<u8>,
    last_usage: Option<Usage>,
    said: Option<String>,
}

impl Reader {
    /// Returns a reader that keeps the text of the answer.
    #[must_use]
    pub fn keeping_text() -> Reader {
        Reader { said: Some(String::new()), ..Reader::default() }
    }

    /// Returns the text of the answer so far, without reasoning; nothing unless the reader keeps it.
    #[must_use]
    pub fn into_text(self) -> String {
        self.said.unwrap_or_default()
    }

    /// Takes bytes, and gives each event that they complete.
    pub fn push(&mut self, bytes: &[u8], mut each: impl FnMut(Event)) {
        if self.rest.is_empty() {
            let used = self.read(bytes, &mut each);
            self.rest.extend_from_slice(&bytes[used..]);
            return;
        }
        let mut buffer = std::mem::take(&mut self.rest);
        buffer.extend_from_slice(bytes);
        let used = self.read(&buffer, &mut each);
        buffer.drain(..used);
        self.rest = buffer;
    }

    /// The last token counts seen, in whichever event.
    #[must_use]
    pub fn usage(&self) -> Option<Usage> {
        self.last_usage
    }

    /// Reads whole lines: an event's data is one line in every API that is measured. Gives how many bytes were used.
    fn read(&mut self, bytes: &[u8], each: &mut impl FnMut(Event)) -> usize {
        let mut used = 0;
        for end in memchr::memchr_iter(b'\n', bytes) {
            let line = bytes[used..end].strip_suffix(b"\r").unwrap_or(&bytes[used..end]);
            used = end + 1;
            if let Some(data) = line.strip_prefix(b"data:")
                && let Some(event) = self.event(data.trim_ascii_start())
            {
                each(event);
            }
        }
        used
    }

    fn event(&mut self, data: &[u8]) -> Option<Event> {
        if data == b"[DONE]" {
            return Some(Event::Done);
        }
        let Ok(chunk) = serde_json::from_slice::<Chunk<'_>>(data) else {
            return Some(Event::Error(format!(
                "not an event: {}",
                String::from_utf8_lossy(&data[..data.len().min(200)])
            )));
        };
        if let Some(error) = chunk.error {
            return Some(Event::Error(error.get().to_owned()));
        }
        self.last_usage = chunk.usage.or(self.last_usage);
        if let Some(said) = &mut self.said {
            said.extend(chunk.choices.first().and_then(Choice::said));
        }
        if !chunk.choices.is_empty() {
            return Some(Event::Choice { text: chunk.choices.iter().any(Choice::has_text) });
        }
        chunk.usage.map(Event::Usage)
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
        "data: [DONE]\n\n",
    );

    #[test]
    fn any_split_gives_the_same_events() {
        let usage = Usage { prompt_tokens: 18, completion_tokens: 8, prompt_tokens_details: None };
        let choice = |text| Event::Choice { text };
        let expected = [choice(false), choice(true), choice(true), Event::Usage(usage), Event::Done];
        for size in 1..STREAM.len() {
            let (mut reader, mut events) = (Reader::default(), Vec::new());
            for piece in STREAM.as_bytes().chunks(size) {
                reader.push(piece, |event| events.push(event));
            }
            assert_eq!(events, expected, "pieces of {size}");
            assert_eq!(reader.usage(), Some(usage));
        }
    }

    fn events<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<Event> {
        let (mut reader, mut events) = (Reader::default(), Vec::new());
        for piece in pieces {
            reader.push(piece, |event| events.push(event));
        }
        events
    }

    /// What vLLM really wrote, with the head and the chunk sizes around it, which are no events.
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
        let mut reader = Reader::keeping_text();
        reader.push(STREAM.as_bytes(), |_| {});
        reader.push(b"data: {\"choices\":[{\"delta\":{\"reasoning\":\"hm\",\"content\":null}}]}\n", |_| {});
        reader.push(b"data: {\"choices\":[{\"delta\":{\"content\":\"\\u00e4\\n\"}}]}\n", |_| {});
        assert_eq!(reader.into_text(), "a\"b six\u{e4}\n");
        let mut plain = Reader::default();
        plain.push(STREAM.as_bytes(), |_| {});
        assert_eq!(plain.into_text(), "");
    }

    #[test]
    fn cached_tokens_are_known_only_where_the_server_says_them() {
        let said = |stream: &[u8]| {
            let mut reader = Reader::default();
            reader.push(stream, |_| {});
            reader.usage().unwrap().cached_tokens()
        };
        let first =
            include_bytes!("../../../../tests/fixtures/vllm-0.32.0/http/opt-chat-stream-cached-tokens-1.response")
                .as_slice();
        let again =
            include_bytes!("../../../../tests/fixtures/vllm-0.32.0/http/opt-chat-stream-cached-tokens-2.response")
                .as_slice();
        assert_eq!((said(first), said(again), said(RECORDED[0])), (Some(0), Some(192), None));
        assert_eq!(said(b"data: {\"choices\":[],\"usage\":{\"prompt_tokens_details\":{}}}\n"), None);
    }

    #[test]
    fn any_text_of_a_choice_is_text() {
        let event = |choice: &str| events([format!("data: {{\"choices\":[{choice}]}}\n").as_bytes()]);
        for choice in [
            r#"{"text":"a"}"#,
            r#"{"delta":{"content":"\n"}}"#,
            r#"{"delta":{"content":null,"reasoning":"a"}}"#,
            r#"{"delta":{"reasoning_content":"a"}}"#,
            r#"{"delta":{"reasoning":"a","reasoning_content":"a"}}"#,
            r#"{"delta":{}},{"delta":{"content":"of the second"}}"#,
        ] {
            assert_eq!(event(choice), [Event::Choice { text: true }], "{choice}");
        }
        for choice in
            [r#"{"text":""}"#, r#"{"delta":{"content":null}}"#, r#"{"delta":{"role":"assistant","content":""}}"#, "{}"]
        {
            assert_eq!(event(choice), [Event::Choice { text: false }], "{choice}");
        }
    }

    #[test]
    fn errors_and_nonsense_are_errors() {
        let mut events = Vec::new();
        let text = b"data: {\"error\": {\"message\": \"dead\", \"code\": 500}}\n\ndata: {oops\n\n";
        Reader::default().push(text, |event| events.push(event));
        assert!(matches!(&events[0], Event::Error(message) if message.contains("dead")));
        assert!(matches!(&events[1], Event::Error(message) if message.contains("oops")));
    }
}
