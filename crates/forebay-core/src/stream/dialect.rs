//! What an event means in each of vLLM's streaming APIs: proof of the engine, token, usage, error, end. The text of an event
//! only decides whether it is parsed, parsing what it is: a model may write `"usage"` or `"error"` itself.
//!
//! Hot path: for a token event two `memmem` scans (chat, completions) or one match on its name (responses, messages); no
//! parse, no allocation.

use std::borrow::Cow;
use std::sync::LazyLock;

use memchr::memmem::Finder;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use super::sse::Event;
use super::usage::{Usage, Written};
use super::{Api, EventKind, StreamError};

static USAGE: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new("\"usage\""));
static ERROR: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new("\"error\""));

/// The begin of vLLM's message for an error that means: the engine behind this server is gone.
const ENGINE_DEAD: &str = "EngineCore encountered an issue";

/// The meaning of one event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Class {
    pub(super) kind: EventKind,
    /// It is a token event: a sign of the engine's pace, where the events around a token's are not.
    pub(super) counts: bool,
}

impl Class {
    const TOKEN: Class = Class { kind: EventKind::Token, counts: true };

    fn quiet(kind: EventKind) -> Class {
        Class { kind, counts: false }
    }
}

/// The reading of one stream so far.
#[derive(Debug)]
pub(super) struct Dialect {
    api: Api,
    /// A token event was seen: from here on only what the text filters point at is parsed.
    warm: bool,
    pub(super) usage: Option<Usage>,
    pub(super) error: Option<StreamError>,
    pub(super) ended: bool,
    pub(super) token_events: u64,
    /// An event with choices reported usage.
    pub(super) usage_in_each_event: bool,
}

/// A chat or completion chunk, as far as it is read.
#[derive(Deserialize)]
struct Chunk<'a> {
    #[serde(borrow)]
    object: Option<&'a RawValue>,
    #[serde(borrow)]
    choices: Option<&'a RawValue>,
    #[serde(borrow)]
    usage: Option<&'a RawValue>,
    #[serde(borrow)]
    error: Option<&'a RawValue>,
}

impl Dialect {
    pub(super) fn new(api: Api) -> Dialect {
        // For an opaque body its own end is the only one.
        Dialect {
            api,
            warm: false,
            usage: None,
            error: None,
            ended: api == Api::Other,
            token_events: 0,
            usage_in_each_event: false,
        }
    }

    /// Returns what `event` is, with its usage, error or end noted.
    pub(super) fn classify(&mut self, event: &Event<'_>) -> Class {
        match event.data.as_deref() {
            None if event.silent => Class::quiet(EventKind::Comment),
            None => Class::quiet(EventKind::Other),
            Some(data) => self.classify_data(event.name, data),
        }
    }

    /// Returns what an event with this name and this data is, with its usage, error or end noted.
    pub(super) fn classify_data(&mut self, name: &[u8], data: &[u8]) -> Class {
        if data.is_empty() {
            return Class::quiet(EventKind::Other);
        }
        // No API has an event that could be taken for it, so it ends a stream of any.
        // Looked at first by its first byte: nearly every event is an object.
        let class = if data[0] != b'{' && data.trim_ascii() == b"[DONE]" {
            self.ended = true;
            Class::quiet(EventKind::End)
        } else {
            match self.api {
                Api::Chat | Api::Completions | Api::Other => self.chunk(data),
                Api::Responses => self.response(name, data),
                Api::Messages => self.message(name, data),
            }
        };
        self.note(class)
    }

    /// Returns what the beginning of an event over the size limit is, and what its end will be.
    pub(super) fn classify_head(&mut self, event: &Event<'_>) -> (Class, EventKind) {
        let failed = EventKind::Error { code: 500, engine_dead: false };
        let (class, last) = match event.name {
            _ if event.data.is_none() => (Class::quiet(EventKind::Other), EventKind::Other),
            b"response.created" | b"response.in_progress" | b"response.queued" => {
                (Class::quiet(EventKind::Other), EventKind::Preamble)
            }
            // A proof of the engine from its beginning on; the end is noted when the last part has come.
            b"response.completed" | b"response.incomplete" => (Class::quiet(EventKind::Token), EventKind::End),
            b"response.failed" | b"error" => (Class::quiet(EventKind::Other), failed),
            _ => (Class::TOKEN, EventKind::Other),
        };
        (self.note(class), last)
    }

    /// Notes the end of an event over the size limit.
    pub(super) fn finish_oversize(&mut self, last: EventKind) {
        match last {
            EventKind::End => self.ended = true,
            EventKind::Error { code, engine_dead } => {
                self.error = Some(StreamError { code, engine_dead, message: String::new() });
            }
            _ => {}
        }
    }

    fn note(&mut self, class: Class) -> Class {
        self.token_events += u64::from(class.counts);
        self.warm |= class.counts;
        class
    }

    fn chunk(&mut self, data: &[u8]) -> Class {
        // Once the first token is there, an event without these two words can only be a token: no JSON is read for
        // it. The words may stand in the text as well, which costs a parse and changes nothing.
        if self.warm && USAGE.find(data).is_none() && ERROR.find(data).is_none() {
            return Class::TOKEN;
        }
        // Not for us to judge: a client may understand it, and an engine that writes has worked.
        let Ok(chunk) = serde_json::from_slice::<Chunk<'_>>(data) else { return Class::TOKEN };
        if let Some(error) = chunk.error.filter(|error| is_error(error)) {
            return self.fail(error.get().as_bytes());
        }
        // vLLM's older form: the error's members stand in the event itself.
        if chunk.object.is_some_and(|object| object.get() == "\"error\"") {
            return self.fail(data);
        }
        let written = chunk.usage.filter(|usage| usage.get().starts_with('{'));
        if let Some(written) = written {
            self.take_usage(serde_json::from_str(written.get()).ok());
        }
        match chunk.choices {
            Some(choices) if !is_blank(choices) => {
                self.usage_in_each_event |= written.is_some();
                // The role event comes with the first token's: counted, it would add a gap of zero between two events.
                Class { kind: EventKind::Token, counts: self.warm || !is_role(choices) }
            }
            Some(_) if written.is_some() => Class::quiet(EventKind::Usage),
            _ => Class::quiet(EventKind::Token),
        }
    }

    fn response(&mut self, name: &[u8], data: &[u8]) -> Class {
        match &*name_or_type(name, data) {
            b"response.created" | b"response.in_progress" | b"response.queued" => Class::quiet(EventKind::Preamble),
            name @ (b"response.completed" | b"response.incomplete" | b"response.failed") => {
                self.response_end(name == b"response.failed", data)
            }
            b"error" => self.fail(data),
            b"ping" => Class::quiet(EventKind::Other),
            name if name.ends_with(b".delta") => Class::TOKEN,
            name if name.starts_with(b"response.") => Class::quiet(EventKind::Token),
            _ => self.unknown(data),
        }
    }

    fn response_end(&mut self, failed: bool, data: &[u8]) -> Class {
        #[derive(Deserialize)]
        struct End<'a> {
            #[serde(borrow)]
            response: Option<Response<'a>>,
        }
        #[derive(Deserialize)]
        struct Response<'a> {
            usage: Option<Written>,
            #[serde(borrow)]
            error: Option<&'a RawValue>,
        }
        self.ended = true;
        let response = serde_json::from_slice::<End<'_>>(data).ok().and_then(|end| end.response);
        self.take_usage(response.as_ref().and_then(|response| response.usage));
        match response.and_then(|response| response.error).filter(|error| is_error(error)) {
            Some(error) if failed => self.fail(error.get().as_bytes()),
            _ => Class::quiet(EventKind::End),
        }
    }

    fn message(&mut self, name: &[u8], data: &[u8]) -> Class {
        #[derive(Deserialize)]
        struct Message {
            usage: Option<Written>,
        }
        #[derive(Deserialize)]
        struct Start {
            message: Option<Message>,
        }
        match &*name_or_type(name, data) {
            b"content_block_delta" => Class::TOKEN,
            b"message_start" => {
                let start = serde_json::from_slice::<Start>(data).ok();
                self.take_usage(start.and_then(|start| start.message).and_then(|message| message.usage));
                Class::quiet(EventKind::Token)
            }
            // Its counts are of the whole answer so far, not of this event: the last one wins.
            b"message_delta" => {
                self.take_usage(serde_json::from_slice::<Message>(data).ok().and_then(|message| message.usage));
                Class::quiet(EventKind::Token)
            }
            b"message_stop" => {
                self.ended = true;
                Class::quiet(EventKind::End)
            }
            b"error" => self.fail(data),
            b"ping" => Class::quiet(EventKind::Other),
            b"content_block_start" | b"content_block_stop" => Class::quiet(EventKind::Token),
            _ => self.unknown(data),
        }
    }

    /// An event with a name of no API, or none: vLLM sends errors so (`event: unknown`).
    fn unknown(&mut self, data: &[u8]) -> Class {
        if ERROR.find(data).is_some()
            && let Ok(chunk) = serde_json::from_slice::<Chunk<'_>>(data)
            && let Some(error) = chunk.error.filter(|error| is_error(error))
        {
            return self.fail(error.get().as_bytes());
        }
        Class::quiet(EventKind::Token)
    }

    fn take_usage(&mut self, written: Option<Written>) {
        if let Some(usage) = written.and_then(|written| written.over(self.usage, self.api)) {
            self.usage = Some(usage);
        }
    }

    fn fail(&mut self, json: &[u8]) -> Class {
        let error = read_error(json);
        let kind = EventKind::Error { code: error.code, engine_dead: error.engine_dead };
        // The first error says why; what follows it is its echo.
        self.error.get_or_insert(error);
        Class::quiet(kind)
    }
}

/// Returns whether the body of an error answer says, as vLLM does, that the engine behind the server is gone.
#[must_use]
pub fn says_engine_dead(body: &[u8]) -> bool {
    read_error(body).engine_dead
}

/// Returns whether the data of an event is whole, and not only the beginning of some.
pub(super) fn is_whole(data: &[u8]) -> bool {
    data.trim_ascii() == b"[DONE]" || serde_json::from_slice::<IgnoredAny>(data).is_ok()
}

/// The event's name, or its JSON's `type` where it has none.
fn name_or_type<'a>(name: &'a [u8], data: &'a [u8]) -> Cow<'a, [u8]> {
    #[derive(Deserialize)]
    struct Typed<'a> {
        #[serde(borrow)]
        r#type: Option<Cow<'a, str>>,
    }
    if !name.is_empty() {
        return Cow::Borrowed(name);
    }
    match serde_json::from_slice::<Typed<'a>>(data) {
        Ok(Typed { r#type: Some(Cow::Borrowed(name)) }) => Cow::Borrowed(name.as_bytes()),
        Ok(Typed { r#type: Some(Cow::Owned(name)) }) => Cow::Owned(name.into_bytes()),
        _ => Cow::Borrowed(b""),
    }
}

/// Returns whether an `error` member tells of an error, as OpenAI's clients see it (`null` never comes here).
fn is_error(error: &RawValue) -> bool {
    match error.get().as_bytes() {
        [b'{', ..] => !is_blank(error),
        text => text[0] == b'"' && text != b"\"\"",
    }
}

/// Returns whether a value is `[]`, `{}` or `""`.
fn is_blank(value: &RawValue) -> bool {
    match value.get().as_bytes() {
        [b'[', inner @ .., b']'] | [b'{', inner @ .., b'}'] => inner.trim_ascii().is_empty(),
        text => text == b"\"\"",
    }
}

/// Returns whether these choices only announce the role: chat's first event, which comes with the first token's.
fn is_role(choices: &RawValue) -> bool {
    #[derive(Deserialize)]
    struct ChatChoice<'a> {
        #[serde(borrow)]
        delta: Option<Delta<'a>>,
    }
    #[derive(Deserialize)]
    struct Delta<'a> {
        #[serde(borrow)]
        role: Option<&'a RawValue>,
        #[serde(borrow)]
        content: Option<&'a RawValue>,
        #[serde(borrow)]
        reasoning: Option<&'a RawValue>,
        #[serde(borrow)]
        reasoning_content: Option<&'a RawValue>,
        #[serde(borrow)]
        refusal: Option<&'a RawValue>,
        #[serde(borrow)]
        tool_calls: Option<&'a RawValue>,
        #[serde(borrow)]
        function_call: Option<&'a RawValue>,
    }
    let blank = |value: Option<&RawValue>| value.is_none_or(is_blank);
    serde_json::from_str::<Vec<ChatChoice<'_>>>(choices.get()).is_ok_and(|choices| {
        choices.iter().all(|choice| {
            choice.delta.as_ref().is_some_and(|delta| {
                delta.role.is_some()
                    && blank(delta.content)
                    && blank(delta.reasoning)
                    && blank(delta.reasoning_content)
                    && blank(delta.refusal)
                    && blank(delta.tool_calls)
                    && blank(delta.function_call)
            })
        })
    })
}

/// Reads an error: a string, an object with `message`, `code` and `type`, or an event that holds such an object as `error`.
fn read_error(json: &[u8]) -> StreamError {
    #[derive(Deserialize)]
    struct ErrorBody<'a> {
        #[serde(borrow)]
        message: Option<&'a RawValue>,
        #[serde(borrow)]
        code: Option<&'a RawValue>,
        #[serde(borrow)]
        r#type: Option<&'a RawValue>,
        #[serde(borrow)]
        error: Option<&'a RawValue>,
    }
    fn text(value: Option<&RawValue>) -> Option<String> {
        serde_json::from_str(value?.get()).ok()
    }
    let body = match serde_json::from_slice::<ErrorBody<'_>>(json) {
        Ok(ErrorBody { error: Some(inner), .. }) if is_error(inner) => return read_error(inner.get().as_bytes()),
        Ok(body) => body,
        // An error may be a bare string.
        Err(_) => ErrorBody { message: serde_json::from_slice(json).ok(), code: None, r#type: None, error: None },
    };
    let status = |text: &str| text.parse().ok().filter(|code| (400..=599).contains(code));
    let code = body.code.and_then(|code| status(code.get().trim_matches('"')));
    let mut message = text(body.message).unwrap_or_default();
    let engine_dead = message.starts_with(ENGINE_DEAD);
    // It is kept for the log, so a backend must not choose its length.
    message.truncate(message.floor_char_boundary(StreamError::MAX_MESSAGE));
    let code = code.or_else(|| status_of_type(&text(body.r#type)?)).unwrap_or(500);
    StreamError { code, engine_dead, message }
}

/// The status behind an error's `type`, in vLLM's and Anthropic's words, for errors without a numeric code.
fn status_of_type(kind: &str) -> Option<u16> {
    Some(match kind {
        "Bad Request" | "BadRequestError" | "invalid_request_error" => 400,
        "NotFoundError" | "not_found_error" => 404,
        "request_too_large" => 413,
        "rate_limit_error" => 429,
        "Service Unavailable" => 503,
        "overloaded_error" => 529,
        _ => return None,
    })
}
