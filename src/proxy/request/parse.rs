//! What is read of a body: JSON, which may take a blocking thread, or the model that a form names.

use bytes::Bytes;
use http::HeaderMap;

use super::peek::{Peek, in_utf8, peek};
use super::splice::Splice;
use super::{form, multipart};
use crate::proxy::route::{BodyForm, Endpoint, Route};
use crate::upstream::Pieces;
use forebay_core::error::Refusal;
use forebay_fleet::Snapshot;
use forebay_fleet::config::model::SessionKey;

/// Bodies over this size are parsed on a blocking thread. A MiB takes about a third of a millisecond. To give it to another thread,
/// whose cache has none of it, costs a good part of that.
const PARSE_INLINE: usize = 1 << 20;
/// Forms over this size are parsed on a blocking thread: empty parts take 30 ns a byte. So are bodies in another encoding, which take 10.
const SLOW_INLINE: usize = 16 << 10;

/// The result of the body's parse.
pub(crate) struct Parsed {
    pub(crate) peek: Option<Peek>,
    pub(crate) model: Option<String>,
}

/// Reads what is needed of a body. One that is JSON in another encoding becomes UTF-8, within the limit of a body.
pub(super) async fn read_body(
    (seed, snapshot, limit): (Option<u64>, &Snapshot, u64),
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
                    *bytes = apart(bytes, SLOW_INLINE, |bytes| in_utf8(bytes)).await?.ok_or(refusal)?;
                    // Two bytes of UTF-16 may be three, and six where they are half of a pair.
                    if bytes.len() as u64 > limit {
                        return Err(Refusal::TooLarge(limit));
                    }
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

/// The model that a form names.
async fn form_model(headers: &HeaderMap, bytes: &Bytes) -> Option<String> {
    if bytes.len() <= SLOW_INLINE {
        return multipart::model(headers, bytes).await;
    }
    let (headers, runtime) = (headers.clone(), tokio::runtime::Handle::current());
    apart(bytes, SLOW_INLINE, move |bytes| runtime.block_on(multipart::model(&headers, bytes))).await.ok().flatten()
}

/// A form with the pool's model in place of an alias.
pub(super) async fn renamed_form(
    headers: &HeaderMap,
    bytes: &Bytes,
    alias: &str,
    model: &str,
) -> Result<Pieces, Refusal> {
    let (headers, alias, model) = (headers.clone(), alias.to_owned(), Bytes::copy_from_slice(model.as_bytes()));
    let rename = move |bytes: &Bytes| {
        let mut splice = Splice::default();
        for at in form::values(&headers, bytes, "model") {
            if bytes[at.clone()] == *alias.as_bytes() {
                splice.replace(at, model.clone());
            }
        }
        splice.apply(bytes)
    };
    apart(bytes, SLOW_INLINE, rename).await
}

/// Does something with a body: at once, or on a blocking thread where the body has more than so many bytes.
///
/// # Errors
/// It panicked there.
async fn apart<T: Send + 'static>(
    bytes: &Bytes,
    at_once: usize,
    work: impl FnOnce(&Bytes) -> T + Send + 'static,
) -> Result<T, Refusal> {
    if bytes.len() <= at_once {
        return Ok(work(bytes));
    }
    let bytes = bytes.clone();
    tokio::task::spawn_blocking(move || work(&bytes)).await.map_err(|_| Refusal::Internal)
}

async fn parse_json(bytes: &Bytes, sessions: Vec<String>, seed: Option<u64>) -> Result<Parsed, Refusal> {
    let parse = move |bytes: &Bytes| peek(bytes, sessions.iter().map(String::as_str), seed);
    let peeked = apart(bytes, PARSE_INLINE, parse).await?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_takes_long_leaves_the_event_loop() {
        let thread = |_: &Bytes| std::thread::current().id();
        let (small, large) = (Bytes::from_static(&[0; 8]), Bytes::from_static(&[0; 9]));
        assert_eq!(apart(&small, 8, thread).await, Ok(thread(&small)));
        assert_ne!(apart(&large, 8, thread).await, Ok(thread(&small)));
        assert_eq!(apart(&large, 8, |_| panic!("a bug")).await, Err::<(), _>(Refusal::Internal));
    }
}
