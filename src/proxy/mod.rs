//! One request as a tower service: intake, attempts, relay, record. Sees `http` types and tower; never hyper's connections,
//! and never the simulator, the benchmark or the planner.
//!
//! The way of a request: `admission` (by `route`, the allow-list; `request::auth`, the key; `intake`, the body within limits) →
//! `request::work` (what it is and what is sent on) → `exchange` (its task) → `attempt` (a place on a backend, the sending, and the hold until the engine is proved
//! at work) → `answer` (the relay to the client) → `record` (what metrics and log are told).

mod admission;
mod answer;
mod answered;
mod attempt;
pub(crate) mod body;
mod cors;
mod exchange;
mod explain;
mod fingerprints;
mod forwarded;
mod headers;
pub(crate) mod intake;
mod models;
mod outlet;
#[cfg(feature = "epp")]
pub(crate) mod picked;
mod record;
pub mod request;
mod responses;
mod route;
mod shared;
mod shutdown;
mod tunnel;

use std::convert::Infallible;
use std::fmt::Display;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::ORIGIN;
use http::{Request, Response, StatusCode};
use http_body::Body;
use tokio::sync::oneshot;

use self::admission::{Admitted, admit};
use self::answered::answered;
use self::body::Ours;
pub use self::body::{AnswerBody, Cut};
use self::exchange::Exchange;
use self::forwarded::Peer;
pub use self::outlet::{Outlet, Passed};
use self::record::Record;
use self::route::Route;
use self::shared::Shared;
pub use self::shared::{Parts, Readiness};
pub use self::shutdown::Shutdown;

use forebay_core::error::{ErrorShape, Refusal, refusal_json};
use forebay_fleet::telemetry::labels::Panicked;
use forebay_fleet::telemetry::panics::caught;

/// The proxy. Cheap to clone.
#[derive(Clone)]
pub struct Proxy(Arc<Shared>);

impl Proxy {
    /// Puts a proxy together.
    #[must_use]
    pub fn new(parts: Parts) -> Proxy {
        Proxy(Arc::new(Shared::new(parts)))
    }

    /// The service for one client connection. `outlet`: the way of its streams to the socket past hyper, where there is one.
    #[must_use]
    pub fn for_client(
        &self,
        (client, secure): (Option<SocketAddr>, bool),
        outlet: Option<Arc<dyn Outlet>>,
    ) -> ClientService {
        ClientService { shared: Arc::clone(&self.0), peer: Arc::new(Peer::new(client, secure)), outlet }
    }
}

/// The proxy as one client's connection sees it: a tower service.
#[derive(Clone)]
pub struct ClientService {
    shared: Arc<Shared>,
    peer: Arc<Peer>,
    outlet: Option<Arc<dyn Outlet>>,
}

impl<B> tower::Service<Request<B>> for ClientService
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Display + Send,
{
    type Response = Response<AnswerBody>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<AnswerBody>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    /// The record begins here and not in the future: a client that leaves before the future is first polled is counted too.
    fn call(&mut self, request: Request<B>) -> Self::Future {
        let shared = Arc::clone(&self.shared);
        let (head, body) = request.into_parts();
        // Forebay's own probes are no requests: neither logged nor counted.
        let is_sound = || headers::names_one_host(head.version, &head.headers);
        let probed = match route::find(head.method.as_str(), &route::plain(head.uri.path())) {
            Ok(Route::Health) if is_sound() => Some(probe(Ok(()))),
            Ok(Route::Ready) if is_sound() => Some(probe((shared.ready)())),
            _ => None,
        };
        let origin = head.headers.get(ORIGIN).cloned();
        if let Some(mut answer) = probed {
            return Box::pin(async move {
                if let Some(origin) = &origin {
                    shared.cors.finish(origin, &mut answer).await;
                }
                Ok(answer)
            });
        }
        // From here on everything is counted: the record's drop writes the log, whatever happens.
        let record = Box::new(Record::new(&shared, Arc::clone(&self.peer), &head));
        let is_nameless = !record.settings().forwarding.own_headers;
        let (request_id, shape) = (record.request_id.clone(), route::error_shape(head.uri.path()));
        let telemetry = Arc::clone(&shared.telemetry);
        // A future that holds another by value has room for it twice, as its argument and as what it waits for, and each move
        // copies all of that.
        // HTTP/2 shares one connection among streams, and HTTP/1.0 knows no chunks. Past hyper goes HTTP/1.1 alone.
        let outlet = self.outlet.clone().filter(|_| head.version == http::Version::HTTP_11);
        let serving = Box::pin(serve(Arc::clone(&shared), record, head, body, outlet));
        Box::pin(async move {
            let served = caught(&telemetry, Panicked::Request, serving).await;
            let mut answer = served.unwrap_or_else(|| internal_error(&request_id, shape));
            if is_nameless {
                headers::remove_ours(answer.headers_mut());
            }
            if let Some(origin) = &origin {
                // On the heap: few requests come from a page of another origin.
                Box::pin(shared.cors.finish(origin, &mut answer)).await;
            }
            Ok(answer)
        })
    }
}

async fn serve<B>(
    shared: Arc<Shared>,
    mut record: Box<Record>,
    mut head: http::request::Parts,
    body: B,
    outlet: Option<Arc<dyn Outlet>>,
) -> Response<AnswerBody>
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Display + Send,
{
    let settings = Arc::clone(record.settings());
    let work = match admit(&shared, &settings, &mut record, &mut head, body).await {
        Ok(Admitted::Work(work)) => work,
        Ok(Admitted::Answer(json)) => return record.local(StatusCode::OK, json),
        Ok(Admitted::Tunnel(tunnel)) => return Box::pin(tunnel.open(&shared, *record)).await,
        Ok(Admitted::Preflight(preflight)) => {
            let mut response = record.local(StatusCode::NO_CONTENT, String::new());
            preflight.answer(&mut response);
            return response;
        }
        Err(refusal) => return record.refuse(&refusal),
    };
    let (reply, answer) = oneshot::channel();
    let (request_id, shape) = (record.request_id.clone(), route::error_shape(head.uri.path()));
    let telemetry = Arc::clone(&shared.telemetry);
    let exchange = Box::new(Exchange { shared, settings, work, record, outlet });
    answered(telemetry, Box::pin(exchange.run(reply)), answer)
        .await
        .unwrap_or_else(|| internal_error(&request_id, shape))
}

/// Prepares a request's head as the proxy does for every request: finds the route, checks the head, and returns the headers that
/// any backend gets. `None` where the path is not served or the head is refused. For `benches/instructions.rs`, which counts it.
#[doc(hidden)]
#[must_use]
pub fn backend_headers(head: &http::request::Parts, body_limit: u64) -> Option<http::HeaderMap> {
    let path = route::plain(head.uri.path());
    let route = route::find(head.method.as_str(), &path).ok()?;
    let json = matches!(route, Route::Model(endpoint) if endpoint.body.is_json());
    intake::check_head(&head.headers, json, body_limit).ok()?;
    let mut headers = head.headers.clone();
    let via = http::HeaderValue::from_static("1.1 forebay");
    headers::for_backend(&mut headers, (&headers::request_id(&head.headers), &via), true, true);
    Some(headers)
}

fn probe(result: Result<(), String>) -> Response<AnswerBody> {
    let (status, text) = match result {
        Ok(()) => (StatusCode::OK, String::new()),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {reason}\n")),
    };
    let mut response = Response::new(AnswerBody::whole(text));
    *response.status_mut() = status;
    response.extensions_mut().insert(Ours);
    response
}

/// The task of a request ended without an answer: our bug, and the record has counted it.
fn internal_error(request_id: &http::HeaderValue, shape: ErrorShape) -> Response<AnswerBody> {
    let refusal = Refusal::Internal;
    let text = refusal_json(shape, &refusal);
    let mut response = Response::new(AnswerBody::whole(text));
    *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
    response.extensions_mut().insert(Ours);
    let json = http::HeaderValue::from_static("application/json");
    response.headers_mut().insert(http::header::CONTENT_TYPE, json);
    response.headers_mut().insert(headers::REQUEST_ID, request_id.clone());
    response.headers_mut().insert(headers::ERROR, http::HeaderValue::from_static(refusal.kind()));
    response
}

#[cfg(test)]
mod tests;
