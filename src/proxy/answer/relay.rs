//! From the commit to the end: what a backend sends goes to the client, and what it means goes to load, metrics and log.
//! Nothing here moves a request to another backend.
//!
//! Hot path: one parse and one channel send a chunk, chunk out first and observed after; no allocation for a chunk that is
//! one event.

use bytes::Bytes;

use super::error_event;
use super::injected::Injected;
use super::pace::Pace;
use super::wire::Wire;
use crate::proxy::record::Record;
use crate::proxy::request::work::Work;
use crate::proxy::responses;
use forebay_core::clock::Time;
use forebay_core::error::Failure;
use forebay_core::stream::{Api, EventKind, Parser, Segment, Usage, usage_of_body};
use forebay_fleet::{AttemptOutcome, Ticket};

/// Unary answers up to this size are kept beside the relay for their token counts.
pub(crate) const USAGE_BODY_MAX: usize = 4 << 20;

/// A stream of events: the parser, and what was read of it before the commit.
pub(crate) struct Events {
    parser: Box<Parser>,
    api: Api,
    first: Vec<Segment>,
    /// The time at which the first of them came.
    first_at: Time,
    /// Usage was asked for by us, so what that changed is taken out again.
    injected: Option<Box<Injected>>,
    /// Sequences of the request.
    sequences: u32,
    /// The gaps between its token events, once it is relayed.
    pace: Option<Box<Pace>>,
    /// The last event that was sent lacks the blank line that ends it.
    open: bool,
}

impl Events {
    /// A stream at its commit; `ended`: its body is over, and its last event lacks the blank line.
    pub(crate) fn new(
        (parser, first): (Box<Parser>, Vec<Segment>),
        first_at: Time,
        work: &Work,
        injected: Option<Injected>,
        ended: bool,
    ) -> Events {
        let (sequences, injected) = (work.facts.engine_sequences(), injected.map(Box::new));
        Events { parser, api: work.api, first, first_at, injected, sequences, pace: None, open: ended }
    }

    /// Relays to the end of the stream and gives the ticket back.
    pub(crate) async fn run(
        mut self,
        mut wire: Box<Wire>,
        mut ticket: Ticket,
        record: &mut Record,
        now: impl Fn() -> Time,
    ) {
        let relayed = self.relay(&mut wire, &mut ticket, record).await;
        // On the heap, as all that happens once: a future that is polled for each piece stays small.
        if relayed != Err(Failure::ClientLeft) {
            Box::pin(self.send_rest(&mut wire)).await;
        }
        if let Some(fingerprint) = self.injected.as_ref().and_then(|injected| injected.learned()) {
            record.remember_fingerprint(ticket.backend().id, fingerprint);
        }
        let relayed = match relayed {
            // After the end mark nothing is missing.
            Err(Failure::Truncated | Failure::Idle) if self.api != Api::Other && self.is_over() => Ok(()),
            relayed => relayed,
        };
        // An error event that was passed on as it came ends the bytes well and the request badly.
        let outcome = relayed.and_then(|()| match self.parser.failed() {
            Some(error) if error.code >= 500 => {
                Err(Failure::ErrorEvent { code: error.code, engine_dead: error.engine_dead })
            }
            Some(_) => {
                record.client_error();
                Ok(())
            }
            None => Ok(()),
        });
        // Before it is settled: the ticket learns from the usage how much of the prompt was cached.
        record.decode_time = self.pace.as_ref().and_then(|pace| pace.decode_time());
        record.usage = self.parser.usage();
        record.token_events = self.parser.token_events();
        settle(ticket, record, outcome, now());
        let event = relayed.err().and_then(|failure| error_event::of_cut(self.api, failure));
        let event = event.map(|event| if self.open { error_event::after_open_event(&event) } else { event });
        Box::pin(wire.close(relayed, event)).await;
    }

    /// Sends what is held and what the backend sent last, if that is a whole event without its blank line.
    async fn send_rest(&mut self, wire: &mut Wire) {
        let mut rest = Vec::new();
        if let Some(injected) = &mut self.injected {
            injected.release(&mut rest);
        }
        if let Some(tail) = self.parser.finish().filter(|tail| tail.kind != EventKind::Other) {
            self.open = true;
            rest.push(tail.raw);
        }
        for bytes in rest {
            // A client that is not there any more is no news: its answer is over.
            if wire.send(bytes).await.is_err() {
                return;
            }
        }
    }

    async fn relay(&mut self, wire: &mut Wire, ticket: &mut Ticket, record: &mut Record) -> Result<(), Failure> {
        let first = std::mem::take(&mut self.first);
        self.forward_each(wire, &first).await?;
        self.pace = Some(Box::new(Pace::new(&first, self.first_at, &self.parser, self.sequences)));
        let mut segments = first;
        segments.clear();
        while let Some((chunk, now)) = wire.next().await? {
            // Whether the client held this piece up: it was blocked since the one before.
            let blocked = std::mem::take(&mut wire.blocked);
            // A chunk is counted bytes: the clone shares its memory, and the client gets the very bytes that were parsed.
            self.parser.push(chunk.clone(), &mut segments);
            self.forward(wire, &chunk, &segments).await?;
            if !record.has_first_token() && segments.iter().any(|segment| matches!(segment.kind, EventKind::Token)) {
                ticket.first_token(now);
                record.first_token(now);
            }
            // After the send: the client's next token does not wait for our metrics.
            self.observe(&segments, now, blocked, ticket, record);
            segments.clear();
        }
        // Bytes after the last blank line are passed on, though no event is complete in them.
        if let Some(tail) = self.parser.finish() {
            self.open = true;
            let now = wire.now();
            self.forward_each(wire, std::slice::from_ref(&tail)).await?;
            self.observe(std::slice::from_ref(&tail), now, false, ticket, record);
        }
        // An end without the API's end marker is a cut, even where the connection closed well.
        if self.is_over() { Ok(()) } else { Err(Failure::Truncated) }
    }

    fn observe(&mut self, segments: &[Segment], now: Time, blocked: bool, ticket: &mut Ticket, record: &mut Record) {
        if let Some(pace) = &mut self.pace {
            pace.observe((&self.parser, segments), now, blocked, ticket, record);
        }
    }

    /// Returns whether the answer is complete, however its connection ends: its end mark came, or the error event in its place.
    fn is_over(&self) -> bool {
        self.api == Api::Other || self.parser.ended() || self.parser.failed().is_some()
    }

    /// Returns the filter that undoes what our wish for usage changed in the stream; none where usage comes in each event unasked.
    fn injected(&mut self) -> Option<&mut Injected> {
        let forced = self.parser.usage_in_each_event();
        self.injected.as_deref_mut().filter(|_| !forced)
    }

    /// Sends whole events: the chunk as it came where it is just that, else event by event.
    async fn forward(&mut self, wire: &mut Wire, chunk: &Bytes, segments: &[Segment]) -> Result<(), Failure> {
        let whole: usize = segments.iter().map(|segment| segment.raw.len()).sum();
        // The usual chunk is whole events, all of them the client's. It goes on as one piece, in the memory that it
        // came in.
        let as_it_came = whole == chunk.len()
            && segments.first().is_some_and(|first| first.raw.as_ptr() == chunk.as_ptr())
            && self.injected().is_none_or(|injected| injected.passes(segments));
        if as_it_came {
            return wire.send(chunk.clone()).await;
        }
        self.forward_each(wire, segments).await
    }

    async fn forward_each(&mut self, wire: &mut Wire, segments: &[Segment]) -> Result<(), Failure> {
        let mut out = Vec::new();
        for segment in segments {
            match self.injected() {
                Some(injected) => injected.take(segment, &mut out),
                None => out.push(segment.raw.clone()),
            }
        }
        // Copied together: what came together costs one piece.
        match out.len() {
            0 => Ok(()),
            1 => wire.send(out.swap_remove(0)).await,
            _ => wire.send(out.concat().into()).await,
        }
    }
}

/// Relays an answer that is one document to its end and gives the ticket back.
pub(crate) async fn relay_unary(
    api: Api,
    mut wire: Box<Wire>,
    ticket: Ticket,
    record: &mut Record,
    now: impl Fn() -> Time,
) {
    let mut seen = Vec::new();
    let relayed = relay_document(&mut wire, &mut seen).await;
    if relayed.is_ok() {
        // Megabytes take milliseconds, in which this thread's streams would stand still.
        let reading = tokio::task::spawn_blocking(move || Document::read(api, &seen.concat()));
        if let Ok(document) = reading.await {
            document.note(&ticket, record);
        }
    }
    settle(ticket, record, relayed, now());
    wire.close(relayed, None).await;
}

/// The facts that a whole document holds beside its answer.
pub(crate) struct Document {
    usage: Option<Usage>,
    /// The id under which the backend stores a response.
    response: Option<String>,
}

impl Document {
    pub(crate) fn read(api: Api, document: &[u8]) -> Document {
        let response = if api == Api::Responses { responses::id_of_body(document) } else { None };
        Document { usage: usage_of_body(api, document), response }
    }

    pub(crate) fn note(self, ticket: &Ticket, record: &mut Record) {
        record.usage = self.usage;
        if let Some(id) = self.response {
            record.remember_response(&id, ticket.backend().id);
        }
    }
}

async fn relay_document(wire: &mut Wire, seen: &mut Vec<Bytes>) -> Result<(), Failure> {
    let mut bytes = 0;
    while let Some((chunk, _)) = wire.next().await? {
        bytes += chunk.len();
        if bytes <= USAGE_BODY_MAX {
            seen.push(chunk.clone());
        } else {
            // Too long to be kept for its counts. The relay goes on, and the record has no usage.
            seen.clear();
        }
        wire.send(chunk).await?;
    }
    Ok(())
}

/// Gives the ticket back and closes the record.
pub(crate) fn settle(ticket: Ticket, record: &mut Record, outcome: Result<(), Failure>, now: Time) {
    record.end = Some(now);
    match outcome {
        // A client's mistake, answered as it should be, says nothing of the backend's health.
        Ok(()) if record.is_error_answer() => ticket.finish(AttemptOutcome::Neutral, now),
        Ok(()) => {
            record.succeeded();
            if let Some(usage) = record.usage
                && let Some(cached) = usage.cached_tokens
            {
                ticket.cached(usage.prompt_tokens, cached);
            }
            ticket.finish(AttemptOutcome::Success, now);
        }
        Err(failure) => {
            record.failed(failure);
            ticket.finish(AttemptOutcome::Failed(failure), now);
        }
    }
}
