//! Holding a stream's answer back until the engine is proved at work: an answer of 200 and its headers come 2 to 5 ms after
//! the request, also when the request then waits for seconds, so they prove nothing.

use bytes::Bytes;
use http_body_util::BodyExt;

use super::Means;
use super::outcome::Uncommitted;
use crate::proxy::answer::injected::Injected;
use crate::proxy::answer::relay::Events;
use crate::proxy::record::Record;
use crate::proxy::request::work::Work;
use crate::proxy::responses;
use crate::upstream::{BackendBody, shortage_or};
use forebay_core::error::Failure;
use forebay_core::stream::{Api, EventKind, Parser, Segment};
use forebay_fleet::Ticket;
use forebay_fleet::health::alarm::Heard;

/// Of the comments before the first event so many bytes are kept, for the client to get at the commit.
const COMMENTS_MAX: usize = 16 << 10;
/// More than this is not held, preambles (which echo the request) apart: whatever it is, the engine sent it.
const HELD_MAX: usize = 1 << 20;

/// Reads a stream up to its first token (or whatever else is the client's: a client-fault error event, an early end).
///
/// # Errors
/// The stream ended or broke without an event, or began with an error event of the server.
pub(crate) async fn hold(
    work: &Work,
    record: &mut Record,
    means: &Means<'_>,
    (ticket, heard): (&mut Ticket, &Heard),
    mut body: BackendBody,
) -> Result<(Events, BackendBody), Uncommitted> {
    let api = work.api;
    // On the heap: it outlives this future, and inside it would be copied with it at each move.
    let mut parser = Box::new(Parser::new(api));
    let mut segments = Vec::new();
    let mut held = Vec::new();
    let (mut bytes, mut comments) = (0, 0);
    loop {
        let ended = read_on(&mut body, &mut parser, &mut segments).await?;
        let now = means.clock.now();
        // Also a comment is a sign of life, which the alarm asks for.
        heard.note(now);
        let mut committed = false;
        for segment in segments.drain(..) {
            match segment.kind {
                // A comment proves a socket and no engine: a server may send them while the request still queues.
                EventKind::Comment if !committed => {
                    comments += segment.raw.len();
                    if comments <= COMMENTS_MAX {
                        held.push(segment);
                    }
                    continue;
                }
                // Below 500 the error is the client's, and another backend would say the same.
                EventKind::Error { code, engine_dead } if !committed && code >= 500 => {
                    let failure = Failure::ErrorEvent { code, engine_dead };
                    return Err(Uncommitted::event(ticket.backend(), failure, data_of(&segment.raw), segment.raw));
                }
                // Noted here and not at the relay: what is held back may go on with the next piece, and TTFT is when the token
                // came.
                EventKind::Token if !record.has_first_token() => {
                    ticket.first_token(now);
                    record.first_token(now);
                }
                EventKind::Preamble => learn_response(means, ticket, api, &segment),
                _ => {}
            }
            committed |= segment.kind.commits() || matches!(segment.kind, EventKind::Error { .. });
            // Preambles of the Responses API repeat the whole request, so a long prompt would look like an answer.
            if !matches!(segment.kind, EventKind::Preamble) {
                bytes += segment.raw.len();
            }
            held.push(segment);
        }
        // A backend that sends only what proves nothing must not fill the memory.
        committed |= bytes > HELD_MAX;
        if committed {
            let injected = work.usage_injected.then(|| Injected::new(record.fingerprint(ticket.backend().id)));
            return Ok((Events::new((parser, held), now, work, injected, ended), body));
        }
        if ended {
            return Err(Failure::Died.into());
        }
    }
}

/// Reads on until something came; whether that was the end of the body, where the last event may lack its blank line.
///
/// # Errors
/// The body broke, or ended without one.
async fn read_on(body: &mut BackendBody, parser: &mut Parser, segments: &mut Vec<Segment>) -> Result<bool, Failure> {
    loop {
        match body.frame().await {
            Some(Ok(frame)) => {
                if let Ok(chunk) = frame.into_data() {
                    parser.push(chunk, segments);
                    return Ok(false);
                }
            }
            Some(Err(error)) => return Err(shortage_or(Failure::Died, &error)),
            None => {
                segments.push(parser.finish().ok_or(Failure::Died)?);
                return Ok(true);
            }
        }
    }
}

fn learn_response(means: &Means<'_>, ticket: &Ticket, api: Api, segment: &Segment) {
    if api == Api::Responses
        && let Some(id) = responses::id_of_event(&data_of(&segment.raw))
    {
        means.responses.remember(&id, ticket.backend().id);
    }
}

/// The data of an event whose data is one line, as vLLM's is.
fn data_of(event: &Bytes) -> Bytes {
    let Some(at) = memchr::memmem::find(event, b"data:") else { return event.clone() };
    let line = event.slice(at + 5..);
    let end = memchr::memchr2(b'\n', b'\r', &line).unwrap_or(line.len());
    let start = line.iter().position(|byte| *byte != b' ').unwrap_or(0).min(end);
    line.slice(start..end)
}
