//! Reads a backend's streamed answer as it passes: cuts it into events across any split of the bytes and says of each what
//! it is. Pure; never changes, drops or reorders a byte, and holds at most one unfinished event of bounded size.
//!
//! Hot path: [`Parser::push`] with one event a chunk, as vLLM sends them: at most 150 ns for 200 bytes, no copy, no
//! allocation, no JSON parse (`benches/stream.rs`).

mod data;
mod dialect;
mod sse;
pub mod timings;
mod usage;

#[cfg(test)]
mod tests;

use std::borrow::Cow;

use bytes::Bytes;

pub use data::{EventData, EventTooLarge};
pub use dialect::says_engine_dead;
use dialect::{Class, Dialect};
use sse::{Frame, Framer};
pub use usage::{Usage, usage_of_body};

/// The API that a request speaks, as far as its answer's form goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Api {
    /// `/v1/chat/completions`
    Chat,
    /// `/v1/completions`
    Completions,
    /// `/v1/responses`
    Responses,
    /// `/v1/messages`
    Messages,
    /// Anything else: its bytes are not read, and any byte of a stream counts as the engine's work.
    Other,
}

impl Api {
    /// All of them.
    pub const ALL: [Api; 5] = [Api::Chat, Api::Completions, Api::Responses, Api::Messages, Api::Other];

    /// The value of the `api` label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Api::Chat => "chat",
            Api::Completions => "completions",
            Api::Responses => "responses",
            Api::Messages => "messages",
            Api::Other => "other",
        }
    }
}

/// The kind of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// Comments or blank lines, of which a client sees nothing: `: keep-alive`. No proof.
    Comment,
    /// An event that comes before the request is scheduled (`response.created`, `.in_progress`, `.queued`): no proof.
    Preamble,
    /// An event that proves the engine at work. Not each is a token event: see [`Segment::token`].
    Token,
    /// `choices` is there and empty, and there is `usage`: the event to strip where the usage was asked for by us.
    Usage,
    /// An error event.
    Error {
        /// Its HTTP code (400 to 599); 500 where it names none.
        code: u16,
        /// The engine behind the server is gone.
        engine_dead: bool,
    },
    /// The API's end marker.
    End,
    /// Passed on and of no meaning: a ping, an event without data, a part of an event over the size limit.
    Other,
}

impl EventKind {
    /// Returns whether a held head is to be sent now: the engine has worked, or the answer is over.
    #[must_use]
    pub fn commits(self) -> bool {
        matches!(self, EventKind::Token | EventKind::Usage | EventKind::End)
    }
}

/// A piece of the stream, usually one event with the blank line that ends it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Its bytes, as they came.
    pub raw: Bytes,
    /// Its kind.
    pub kind: EventKind,
    /// It is a token event, which ends an ITL gap. Of [`EventKind::Token`] these are not: chat's role event, which comes with the
    /// first token's and would add a gap of zero; the events of responses and messages that are no delta; opaque bytes.
    pub token: bool,
}

impl Segment {
    /// Returns the `data` lines of the event, joined by LF. `None` where it has none. A byte order mark before
    /// the event is skipped.
    #[must_use]
    pub fn data(&self) -> Option<Cow<'_, [u8]>> {
        sse::parse(&self.raw, true).data
    }
}

/// An error event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamError {
    /// HTTP code (400 to 599); 500 where the event names none.
    pub code: u16,
    /// The engine behind the server is gone.
    pub engine_dead: bool,
    /// The backend's message, cut to [`StreamError::MAX_MESSAGE`] bytes; empty where there is none.
    pub message: String,
}

impl StreamError {
    /// Longest message kept, in bytes.
    pub const MAX_MESSAGE: usize = 1024;
}

/// Reads one streamed answer.
#[derive(Debug)]
pub struct Parser {
    api: Api,
    framer: Framer,
    dialect: Dialect,
    /// Nothing has been read yet.
    first: bool,
    /// The kind that the end of the event over the size limit will have.
    last: EventKind,
}

impl Parser {
    /// Longest event that is held until it is whole, in bytes. A longer one passes in parts: the first may still be proof of
    /// the engine and the last its end, by the event's name; between them all is [`EventKind::Other`]. Who holds segments back
    /// must bound what they hold.
    pub const MAX_EVENT: usize = 8 << 20;

    /// A parser at the beginning of an answer.
    #[must_use]
    pub fn new(api: Api) -> Parser {
        Parser::with_max_event(api, Parser::MAX_EVENT)
    }

    /// A parser with a limit of its own on the size of an event, in bytes.
    #[must_use]
    pub fn with_max_event(api: Api, max: usize) -> Parser {
        Parser { api, framer: Framer::new(max), dialect: Dialect::new(api), first: true, last: EventKind::Other }
    }

    /// Reads a chunk and appends what it completes to `out`: no segment, one, or many.
    pub fn push(&mut self, chunk: Bytes, out: &mut Vec<Segment>) {
        if self.api == Api::Other {
            if !chunk.is_empty() {
                out.push(Segment { raw: chunk, kind: EventKind::Token, token: false });
            }
        // vLLM writes one event a chunk. Then nothing is framed, held or copied.
        } else if self.framer.at_boundary()
            && let Some((name, data)) = sse::simple(&chunk)
        {
            let class = self.dialect.classify_data(name, data);
            // The framer did not see these line ends, by which it judges a later CR.
            self.framer.skip_lf_event();
            self.first = false;
            out.push(segment(chunk, class));
        } else {
            self.push_any(chunk, out);
        }
    }

    fn push_any(&mut self, mut rest: Bytes, out: &mut Vec<Segment>) {
        while let Some(frame) = self.framer.next(&mut rest) {
            let quiet = |kind| Class { kind, counts: false };
            let (raw, class) = match frame {
                Frame::Event(raw) => {
                    let class = self.dialect.classify(&sse::parse(&raw, self.first));
                    (raw, class)
                }
                Frame::Head(raw) => {
                    let (class, last) = self.dialect.classify_head(&sse::parse(&raw, self.first));
                    // The middle of such an event is not kept, so what its end means is settled by its name, now.
                    self.last = last;
                    (raw, class)
                }
                Frame::Part(raw) => (raw, quiet(EventKind::Other)),
                Frame::Last(raw) => {
                    self.dialect.finish_oversize(self.last);
                    (raw, quiet(self.last))
                }
            };
            // Only the first event may have a byte order mark before it.
            self.first = false;
            out.push(segment(raw, class));
        }
    }

    /// The end of the body: the event that no blank line ended, if there is one. Its bytes are part of the answer and pass like
    /// the rest. It is read as an event if it is whole; the beginning of one is [`EventKind::Other`].
    #[must_use]
    pub fn finish(&mut self) -> Option<Segment> {
        let raw = self.framer.take_tail()?;
        let event = sse::parse(&raw, self.first);
        let class = if event.data.as_deref().is_none_or(dialect::is_whole) {
            self.dialect.classify(&event)
        } else {
            Class { kind: EventKind::Other, counts: false }
        };
        Some(segment(raw, class))
    }

    /// Returns whether events with choices report usage: the client asked for that, or the server was started with
    /// `--enable-force-include-usage`.
    #[must_use]
    pub fn usage_in_each_event(&self) -> bool {
        self.dialect.usage_in_each_event
    }

    /// The usage reported so far; the last report wins.
    #[must_use]
    pub fn usage(&self) -> Option<Usage> {
        self.dialect.usage
    }

    /// Returns whether the end marker was seen, so that the end of the body is no truncation. Always so for [`Api::Other`], which has
    /// none.
    #[must_use]
    pub fn ended(&self) -> bool {
        self.dialect.ended
    }

    /// Token events so far ([`Segment::token`]). One may carry several tokens: the number of tokens is [`Parser::usage`]'s.
    #[must_use]
    pub fn token_events(&self) -> u64 {
        self.dialect.token_events
    }

    /// The first error event seen.
    #[must_use]
    pub fn failed(&self) -> Option<&StreamError> {
        self.dialect.error.as_ref()
    }
}

fn segment(raw: Bytes, class: Class) -> Segment {
    Segment { raw, kind: class.kind, token: class.counts }
}
