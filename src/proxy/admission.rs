//! What decides whether a request is let in: checks of its head, the place of its key, its body within limits, and what it asks for.

use std::fmt::Display;
use std::sync::Arc;

use bytes::Bytes;
use http_body::Body;

use super::cors;
use super::headers;
use super::intake::{self, BodyLimits, decode};
use super::models;
use super::record::Record;
use super::request::auth;
use super::request::work::{self, Work};
use super::route::{self, Route, Unserved};
use super::shared::Shared;
use super::tunnel::Tunnel;
use forebay_core::error::{Refusal, repeated};
use forebay_core::stream::Api;
use forebay_fleet::config::model::Config;

/// A request that is let in: work for a backend, or an answer of our own.
pub(super) enum Admitted {
    Work(Box<Work>),
    Answer(String),
    Preflight(cors::Preflight),
    Tunnel(Box<Tunnel>),
}

/// Lets a request in, or refuses it.
///
/// # Errors
/// Why it is refused. The rest of its body is read where the client may still be sending it.
pub(super) async fn admit<B>(
    shared: &Arc<Shared>,
    settings: &Arc<Config>,
    record: &mut Record,
    head: &mut http::request::Parts,
    body: B,
) -> Result<Admitted, Refusal>
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Display + Send,
{
    let path = route::plain(head.uri.path());
    // Before a byte of the body is read: whoever may not send a request should not make us hold one.
    let checked = check(shared, settings, record, head, &path);
    let route = match checked {
        Ok(route) => route,
        Err(refusal) => {
            refuse_unread(head, body);
            return Err(refusal);
        }
    };
    if let Route::Options(allowed) = route
        && let Some(answer) = cors::preflight(settings, head, allowed)
    {
        return answer.map(Admitted::Preflight);
    }
    // Once for a request: all that follows is about one configuration, also if another one is taken over meanwhile.
    let snapshot = shared.fleet.snapshot();
    match route {
        // As any request without a body that goes to a backend.
        Route::Models | Route::OneModel(_) if models::are_unlisted(&snapshot) => {}
        Route::Models => return Ok(Admitted::Answer(models::list(&snapshot, record.client_key.as_deref()))),
        Route::OneModel(id) => {
            let client = record.client_key.as_deref();
            let unknown = || models::unknown(&snapshot, id, client);
            return models::one(&snapshot, id, client).map(Admitted::Answer).ok_or_else(unknown);
        }
        _ => {}
    }
    // A key's places and requests are counted before its body comes, or many slow bodies would pass under the limit.
    if let Err(refusal) = record.enter(&head.headers) {
        refuse_unread(head, body);
        return Err(refusal);
    }
    if route == Route::Realtime {
        let asked = (&*head, route::target(&head.uri, &path));
        return Tunnel::prepare(shared, settings, &snapshot, record, asked).map(Box::new).map(Admitted::Tunnel);
    }
    let (bytes, held, was_compressed) = body_of((shared, settings), record, head, body).await?;
    // The time until here is the client's own, and no overhead.
    record.body_read = Some(shared.clock.now());
    let target = route::target(&head.uri, &path);
    let intake = work::Intake {
        method: &head.method,
        uri: &head.uri,
        version: head.version,
        headers: std::mem::take(&mut head.headers),
        route,
        target,
        bytes,
        held,
        was_compressed,
    };
    let work = work::prepare(shared, settings, &snapshot, record, intake).await?;
    // Prompt tokens are known only now. What the answer costs is taken when it is over.
    record.charge(work.facts.kind, work.facts.est_tokens)?;
    Ok(Admitted::Work(work))
}

/// Reads a request's body, and decodes it where it came compressed. Returns it, its place in the memory of all bodies, and whether it was
/// compressed.
async fn body_of<B>(
    (shared, settings): (&Shared, &Config),
    record: &Record,
    head: &http::request::Parts,
    mut body: B,
) -> Result<(Bytes, intake::Held, bool), Refusal>
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Display + Send,
{
    let head_size = intake::head_size(head);
    let is_h2 = head.version == http::Version::HTTP_2;
    let place = is_h2.then(|| record.peer.heads.take(head_size, settings.limits.h2_streams)).transpose()?;
    let limits = BodyLimits {
        one: settings.limits.body,
        all: settings.limits.bodies_in_memory,
        head: head_size,
        timeout: settings.listen.body_timeout,
    };
    let (bytes, held) = match intake::read(&mut body, &shared.bodies, limits).await {
        Ok(read) => read,
        Err(refusal) => {
            intake::drain(body, head.version);
            return Err(refusal);
        }
    };
    let coding = decode::coding(&head.headers, false)?;
    let (bytes, held) = match coding {
        Some(coding) => Box::pin(decode::decode(bytes, coding, held, limits)).await?,
        None => (bytes, held),
    };
    Ok((bytes, held.with_head(place), coding.is_some()))
}

/// Reads the body of a request that is refused for its head.
fn refuse_unread<B>(head: &http::request::Parts, body: B)
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Send,
{
    // A client that waits for `100 Continue` has sent nothing.
    if !head.headers.contains_key(http::header::EXPECT) {
        intake::drain(body, head.version);
    }
}

/// Checks what can be said of a request before its body is read.
fn check<'a>(
    shared: &Shared,
    settings: &Config,
    record: &mut Record,
    head: &http::request::Parts,
    path: &'a str,
) -> Result<Route<'a>, Refusal> {
    if !headers::names_one_host(head.version, &head.headers) {
        return Err(Refusal::BadHost);
    }
    // A backend that is Forebay itself would send the request round until descriptors ran out.
    if shared.via.is_in(&head.headers) {
        return Err(Refusal::Loop);
    }
    let method = head.method.as_str();
    let route = route::find_with(&settings.paths, method, path).map_err(|unserved| {
        let (method, path) = (repeated(method), repeated(head.uri.path()));
        match unserved {
            Unserved::Path => Refusal::PathNotAllowed { method, path },
            Unserved::Method(allowed) => Refusal::MethodNotAllowed { method, path, allowed },
        }
    })?;
    record.api = match route {
        Route::Model(endpoint) => endpoint.api,
        Route::StoredResponse(_) => Api::Responses,
        _ => Api::Other,
    };
    // A browser sends no key with the question what it may send.
    if !matches!(route, Route::Options(_)) {
        record.client_key = auth::client(&head.headers, &shared.clients)?;
    }
    let json = matches!(route, Route::Model(endpoint) if endpoint.body.is_json());
    intake::check_head(&head.headers, json, settings.limits.body)?;
    Ok(route)
}
