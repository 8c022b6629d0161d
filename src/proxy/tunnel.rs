//! WebSockets to a backend (`/v1/realtime`): a place as for any request, for as long as the connection lives, and bytes passed on
//! as they come. Nothing is read of what is said, so that no token is counted and nothing is retried once a backend has agreed.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, HOST, HeaderMap, HeaderValue, UPGRADE};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{Request, Response, StatusCode, Version};
use http_body_util::{BodyExt, Limited};

use super::answer::body::AnswerBody;
use super::headers;
use super::record::Record;
use super::request::lookup::pool_for;
use super::route::{Endpoint, Route};
use super::shared::Shared;
use crate::upstream::tunnel::{ClientEnd, join};
use crate::upstream::{self, Pieces};
use forebay_core::error::{Failure, Refusal};
use forebay_core::routing::affinity::Marks;
use forebay_core::routing::facts::{Kind, RequestFacts};
use forebay_fleet::config::model::Config;
use forebay_fleet::{AttemptOutcome, Backend, Pool, Snapshot, Ticket};

/// Bytes of a backend's answer that is no agreement.
const MOST: usize = 64 << 10;
/// The protocol that is passed on.
const WEBSOCKET: HeaderValue = HeaderValue::from_static("websocket");

/// A WebSocket that is asked for.
pub(super) struct Tunnel {
    client: ClientEnd,
    pool: Arc<Pool>,
    facts: RequestFacts,
    target: PathAndQuery,
    headers: HeaderMap,
    attempts: u32,
}

/// Returns the model that a query names: `model=NAME`.
fn model_of(query: Option<&str>) -> Option<String> {
    let value = query?.split('&').find_map(|pair| pair.strip_prefix("model="))?;
    let decoded = percent_encoding::percent_decode_str(value).decode_utf8().ok()?;
    (!decoded.is_empty()).then(|| decoded.into_owned())
}

impl Tunnel {
    /// Finds out where a WebSocket goes.
    ///
    /// # Errors
    /// The request is none, or names a model that is not served.
    pub(super) fn prepare(
        shared: &Shared,
        settings: &Config,
        snapshot: &Snapshot,
        record: &mut Record,
        (head, target): (&Parts, PathAndQuery),
    ) -> Result<Tunnel, Refusal> {
        // Forebay passes bytes on unread, so it speaks for no protocol but the one that it knows to be framed.
        let asks = head.headers.get(UPGRADE).is_some_and(|to| to.as_bytes().eq_ignore_ascii_case(b"websocket"));
        let client = head.extensions.get::<ClientEnd>().filter(|_| asks && head.version == Version::HTTP_11);
        let wrong = || {
            Refusal::BadRequest("this path is a WebSocket: ask for it over HTTP/1.1 with `upgrade: websocket`".into())
        };
        let client = client.cloned().ok_or_else(wrong)?;
        let model = model_of(head.uri.query());
        record.model = model.as_deref().map(forebay_core::error::repeated);
        let keyed = record.client_key.clone();
        let pool = Arc::clone(pool_for(snapshot, Route::Model(Endpoint::ADDED), model.as_deref(), keyed.as_deref())?);
        let arm = pool.assign_kept(None, &mut fastrand::Rng::new());
        record.assign(&pool, arm);
        let mut headers = head.headers.clone();
        let ours = (&record.request_id, shared.via.entry(head.version));
        headers::for_backend(&mut headers, ours, false, keyed.is_none());
        record.peer.tell(head, &mut headers, &settings.forwarding);
        // The client's own were hop-by-hop and went with the rest. These are for the hop to the backend.
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, WEBSOCKET);
        // One sequence, of whose prompt nothing is known.
        let facts =
            RequestFacts { est_tokens: 0, sequences: 1, kind: Kind::Unary, arm, pinned: None, marks: Marks::NONE };
        record.charge(facts.kind, facts.est_tokens)?;
        Ok(Tunnel { client, pool, facts, target, headers, attempts: settings.retry.attempts })
    }

    fn request_to(&self, backend: &Backend) -> Request<Pieces> {
        let mut request = Request::new(Pieces::default());
        *request.uri_mut() = upstream::target(&backend.url, &self.target);
        *request.headers_mut() = self.headers.clone();
        request.headers_mut().insert(HOST, backend.url.host_header().clone());
        if let Some(key) = &backend.key {
            headers::authorize(request.headers_mut(), key.expose());
        }
        request
    }

    /// Opens it: the answer is the backend's. What follows is passed on by a task of its own.
    pub(super) async fn open(self, shared: &Arc<Shared>, mut record: Record) -> Response<AnswerBody> {
        let (mut tried, mut failed) = (Vec::new(), Failure::Died);
        for _ in 0..self.attempts.max(1) {
            let now = shared.clock.now();
            let dispatched = match self.pool.dispatch(&self.facts, &tried, now, &mut fastrand::Rng::new()) {
                Ok(dispatched) => dispatched,
                Err(refusal) if tried.is_empty() => return record.refuse(&refusal),
                Err(_) => break,
            };
            record.dispatched(&dispatched);
            let ticket = dispatched.ticket;
            let backend = Arc::clone(ticket.backend());
            let mut request = self.request_to(&backend);
            record.sending(now, request.headers_mut());
            match shared.upstream.send_upgrade(&backend, request).await {
                Ok(answer) if answer.status() == StatusCode::SWITCHING_PROTOCOLS => {
                    return self.agreed(shared, record, ticket, answer);
                }
                Ok(answer) => {
                    ticket.finish(AttemptOutcome::Neutral, shared.clock.now());
                    return refused(record, answer).await;
                }
                Err(failure) => {
                    // Nothing was said on it yet, so another backend may have it.
                    ticket.finish(AttemptOutcome::Failed(failure), shared.clock.now());
                    record.attempt_over(Some(failure), shared.clock.now());
                    tried.push(backend.id);
                    failed = failure;
                }
            }
        }
        let attempts = u32::try_from(tried.len()).unwrap_or(u32::MAX);
        record.refuse(&Refusal::Exhausted { model: self.pool.model.clone(), attempts, failure: failed })
    }

    fn agreed(
        self,
        shared: &Arc<Shared>,
        mut record: Record,
        ticket: Ticket,
        answer: Response<upstream::tunnel::TunnelBody>,
    ) -> Response<AnswerBody> {
        let mut response = Response::new(AnswerBody::whole(Bytes::new()));
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        *response.headers_mut() = answer.headers().clone();
        headers::for_client(response.headers_mut());
        record.head_came(response.status());
        record.answered(response.status());
        record.mark(response.headers_mut());
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
        response.headers_mut().insert(UPGRADE, WEBSOCKET);
        let (shared, client) = (Arc::clone(shared), self.client);
        tokio::spawn(async move {
            // Silence on it says nothing of the engine: people pause.
            let _quiet = ticket.engine_load().pause();
            tokio::select! {
                joined = join(client, answer) => {
                    if let Err(error) = joined {
                        tracing::debug!(%error, "a WebSocket broke");
                    }
                    // Whoever ended it: a WebSocket says by its own frames whether all was said.
                    record.succeeded();
                    drop(ticket);
                }
                () = shared.shutdown.begun() => record.failed(Failure::Shutdown),
            }
        });
        response
    }
}

/// The answer of a backend that does not agree, as it came.
async fn refused(mut record: Record, answer: Response<upstream::tunnel::TunnelBody>) -> Response<AnswerBody> {
    let (head, body) = answer.into_parts();
    let body = Limited::new(body, MOST).collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let mut response = Response::new(AnswerBody::whole(body));
    *response.status_mut() = head.status;
    *response.headers_mut() = head.headers;
    response.headers_mut().remove(CONTENT_LENGTH);
    headers::for_client(response.headers_mut());
    record.head_came(head.status);
    record.answered(head.status);
    record.mark(response.headers_mut());
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_query_names_the_model() {
        for (query, model) in [
            (Some("model=tiny"), Some("tiny")),
            (Some("a=b&model=org%2Fname&c"), Some("org/name")),
            (Some("model="), None),
            (Some("models=x"), None),
            (Some("model=%ff"), None),
            (None, None),
        ] {
            assert_eq!(model_of(query).as_deref(), model, "{query:?}");
        }
    }
}
