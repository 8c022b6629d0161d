//! What is read of a body: JSON, which may take a blocking thread, or the model that a form names.

use bytes::Bytes;
use http::HeaderMap;

use super::multipart;
use super::peek::{Peek, in_utf8, peek};
use crate::proxy::route::{BodyForm, Endpoint, Route};
use forebay_core::error::Refusal;
use forebay_fleet::Snapshot;
use forebay_fleet::config::model::SessionKey;

/// Bodies over this size are parsed on a blocking thread. A MiB takes about a third of a millisecond. To give it to another thread,
/// whose cache has none of it, costs a good part of that.
const PARSE_INLINE: usize = 1 << 20;
/// Forms over this size are parsed on a blocking thread.
const FORM_INLINE: usize = 16 << 10;

/// The result of the body's parse.
pub(crate) struct Parsed {
    pub(crate) peek: Option<Peek>,
    pub(crate) model: Option<String>,
}

/// Reads what is needed of a body. One that is JSON in another encoding becomes UTF-8.
pub(super) async fn read_body(
    (seed, snapshot): (Option<u64>, &Snapshot),
    route: Route<'_>,
    headers: &HeaderMap,
    bytes: &mut Bytes,
) -> Result<Parsed, Refusal> {
    Ok(match route {
        Route::Model(endpoint) if endpoint.body.is_json() => {
            let sessions = body_sessions(snapshot);
            match parse_json(bytes, sessions.clone(), seed).await {
                Ok(parsed) => parsed,
                Err(refusal) => {
                    *bytes = in_utf8(bytes).ok_or(refusal)?;
                    parse_json(bytes, sessions, seed).await?
                }
            }
        }
        Route::Model(Endpoint { body: BodyForm::Unknown, .. }) => {
            let parsed = parse_json(bytes, body_sessions(snapshot), seed).await;
            parsed.unwrap_or(Parsed { peek: None, model: None })
        }
        // On the heap: few requests are forms, and all would carry the room for reading one.
        Route::Model(_) => Parsed { peek: None, model: Box::pin(form_model(headers, bytes)).await },
        _ => Parsed { peek: None, model: None },
    })
}

/// The model that a form names. Read on a blocking thread where that may take long: empty parts take 30 ns a byte.
async fn form_model(headers: &HeaderMap, bytes: &Bytes) -> Option<String> {
    if bytes.len() <= FORM_INLINE {
        return multipart::model(headers, bytes).await;
    }
    let (headers, bytes, runtime) = (headers.clone(), bytes.clone(), tokio::runtime::Handle::current());
    let reading = tokio::task::spawn_blocking(move || runtime.block_on(multipart::model(&headers, &bytes)));
    reading.await.ok().flatten()
}

async fn parse_json(bytes: &Bytes, sessions: Vec<String>, seed: Option<u64>) -> Result<Parsed, Refusal> {
    let peeked = if bytes.len() <= PARSE_INLINE {
        peek(bytes, sessions.iter().map(String::as_str), seed)
    } else {
        let bytes = bytes.clone();
        let parsing = tokio::task::spawn_blocking(move || peek(&bytes, sessions.iter().map(String::as_str), seed));
        parsing.await.map_err(|_| Refusal::Internal)?
    };
    let peek = peeked.map_err(|error| Refusal::BadRequest(error.to_string()))?;
    Ok(Parsed { model: peek.model.clone(), peek: Some(peek) })
}

/// The body members that make sessions, of all pools: which pool a request is for is not known before its body is read.
pub(crate) fn body_sessions(snapshot: &Snapshot) -> Vec<String> {
    let mut members: Vec<String> = Vec::new();
    for pool in &snapshot.pools {
        if let SessionKey::Body(member) = &pool.session
            && !members.contains(member)
        {
            members.push(member.clone());
        }
    }
    members
}
