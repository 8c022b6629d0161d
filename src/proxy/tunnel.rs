//! WebSockets to a backend (`/v1/realtime`): a place as for any request, also by way of the wait room, for as long as the connection
//! lives, and bytes passed on as they come. Nothing is read of what is said, so that no token is counted and nothing is retried once a
//! backend has agreed.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONNECTION, HeaderValue, UPGRADE};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{Response, StatusCode, Version};

use super::attempt::{Attempted, Means, Upgraded, upgrade};
use super::body::AnswerBody;
use super::forwarded::host_asked;
use super::headers;
use super::record::Record;
use super::request::lookup::pool_for;
use super::request::work::{Work, lane};
use super::route::{Endpoint, Route};
use super::shared::Shared;
use crate::upstream::tunnel::{ClientEnd, TunnelBody, join};
use forebay_core::error::{Failure, Refusal};
use forebay_core::routing::affinity::Marks;
use forebay_core::routing::facts::{Kind, RequestFacts};
use forebay_fleet::config::model::Config;
use forebay_fleet::{Snapshot, Ticket};

/// The protocol that is passed on.
const WEBSOCKET: HeaderValue = HeaderValue::from_static("websocket");

/// A WebSocket that is asked for.
pub(super) struct Tunnel {
    client: ClientEnd,
    work: Work,
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
        record.peer.tell(host_asked(&head.uri, &head.headers), &mut headers, &settings.forwarding);
        // The client's own were hop-by-hop and went with the rest. These are for the hop to the backend.
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, WEBSOCKET);
        // One sequence, of whose prompt nothing is known.
        let facts =
            RequestFacts { est_tokens: 0, sequences: 1, kind: Kind::Unary, arm, pinned: None, marks: Marks::NONE };
        record.charge(facts.kind, facts.est_tokens)?;
        let work = Work::of_upgrade((pool, facts, lane(keyed.as_deref(), None)), (target, headers), model);
        Ok(Tunnel { client, work, attempts: settings.retry.attempts })
    }

    /// Opens it: the answer is the backend's. What follows is passed on by a task of its own.
    pub(super) async fn open(mut self, shared: &Arc<Shared>, mut record: Record) -> Response<AnswerBody> {
        let means = Means {
            upstream: &shared.upstream,
            fleet: &shared.fleet,
            responses: &shared.responses,
            clock: &shared.clock,
        };
        let ended = tokio::select! {
            biased;
            ended = upgrade(&mut self.work, &mut record, means, self.attempts) => ended,
            () = shared.shutdown.begun() => Upgraded::Ended(Attempted::Refused(Refusal::ShuttingDown)),
        };
        match ended {
            Upgraded::Agreed(ticket, answer) => self.agreed(shared, record, ticket, answer),
            Upgraded::Ended(Attempted::LastAnswer(answer)) => {
                record.answered_by(&answer.backend);
                let mut response = answer.into_response();
                record.answered(response.status());
                headers::for_client(response.headers_mut());
                record.mark(response.headers_mut());
                response
            }
            Upgraded::Ended(Attempted::Refused(refusal)) => record.refuse(&refusal),
            // Only the attempts of other requests commit to a document.
            Upgraded::Ended(Attempted::Committed(_)) => record.refuse(&Refusal::Internal),
        }
    }

    fn agreed(
        self,
        shared: &Arc<Shared>,
        mut record: Record,
        ticket: Ticket,
        answer: Response<TunnelBody>,
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
