//! What a faulty server answers, in the bytes of the recordings, and the routes by which it is told to be faulty. A request is
//! read whole before it is mistreated: what follows is the answer to it, and no reset for unread bytes.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get};
use bytes::Bytes;
use http_body::Frame;
use serde_json::{Value, json};

use crate::server::framing::DONE;
use crate::server::wire::{Ending, Verdict};

use super::{Fault, Faults, Order};

const EVENT_STREAM: HeaderValue = HeaderValue::from_static("text/event-stream; charset=utf-8");
/// The event that ends a stream whose engine died.
pub(crate) const DEATH: Bytes = Bytes::from_static(
    b"data: {\"error\": {\"message\": \"EngineCore encountered an issue. See stack trace (above) for the root cause.\", \
      \"type\": \"InternalServerError\", \"param\": null, \"code\": 500}}\n\n",
);
const DEAD: &str = "EngineCore encountered an issue. See stack trace (above) for the root cause.";
const SHUT_DOWN: &str = "cannot schedule new futures after shutdown";
const BUSY: &str =
    "The engine is currently busy and cannot accept new requests. Please try again later or on a different instance.";
/// A stream's head whose body never begins.
const HEAD_ONLY: &[u8] = b"HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-type: text/event-stream; charset=utf-8\r\n\
    transfer-encoding: chunked\r\n\r\n";
const NO_HTTP: &[u8] = b"HTTP/1.1 two hundred\r\nthis is no header\r\n\r\n";
/// The length of `metrics_huge`, in pieces of this one.
const PADDING: &[u8] = b"vllm:padding_total{engine=\"0\",model_name=\"padding\"} 1.0\n";
const PADDING_LENGTH: usize = 50_000_000;

/// Returns what stands before every route: the fault in force, or the route.
pub(crate) async fn gate(State(faults): State<Arc<Faults>>, request: Request, next: Next) -> Response {
    match request.uri().path() {
        "/health" if !faults.on_health() => StatusCode::SERVICE_UNAVAILABLE.into_response(),
        "/metrics" => match faults.on_metrics() {
            Fault::MetricsHang => std::future::pending().await,
            fault @ (Fault::MetricsHuge | Fault::MetricsNan | Fault::MetricsNegative | Fault::MetricsRenamed) => {
                metrics(fault, &faults.pacer.metrics())
            }
            _ => next.run(request).await,
        },
        "/v1/chat/completions" | "/v1/completions" if request.method() == Method::POST => {
            generate(&faults, request, next).await
        }
        _ => next.run(request).await,
    }
}

async fn generate(faults: &Faults, request: Request, next: Next) -> Response {
    let (fault, delay) = faults.on_request();
    match fault {
        Fault::Reset => cut(request, Ending::Reset).await,
        Fault::Eof => cut(request, Ending::Bytes(HEAD_ONLY)).await,
        Fault::MalformedHead => cut(request, Ending::Bytes(NO_HTTP)).await,
        Fault::ErrorEvent => {
            let asked: Value = serde_json::from_slice(&read(request).await).unwrap_or_default();
            if asked["stream"] == true {
                let events = Bytes::from([&DEATH[..], &DONE[..]].concat());
                return ([(header::CONTENT_TYPE, EVENT_STREAM)], events).into_response();
            }
            dead()
        }
        Fault::Error500 => refused(request, StatusCode::INTERNAL_SERVER_ERROR, "Internal server error").await,
        Fault::Error503 => refused(request, StatusCode::SERVICE_UNAVAILABLE, BUSY).await,
        Fault::Draining => refused(request, StatusCode::INTERNAL_SERVER_ERROR, SHUT_DOWN).await,
        Fault::EngineDeath | Fault::Sigterm => refused(request, StatusCode::INTERNAL_SERVER_ERROR, DEAD).await,
        Fault::HeadDelay => {
            tokio::time::sleep(delay).await;
            next.run(request).await
        }
        _ => next.run(request).await,
    }
}

async fn read(request: Request) -> Bytes {
    to_bytes(request.into_body(), usize::MAX).await.unwrap_or_default()
}

/// Ends the connection; what is returned here is never written.
async fn cut(request: Request, ending: Ending) -> Response {
    let verdict = request.extensions().get::<Verdict>().cloned();
    read(request).await;
    if let Some(verdict) = verdict {
        verdict.end(ending);
    }
    StatusCode::OK.into_response()
}

async fn refused(request: Request, status: StatusCode, message: &str) -> Response {
    read(request).await;
    error(status, message)
}

fn error(status: StatusCode, message: &str) -> Response {
    let kind = if status == StatusCode::SERVICE_UNAVAILABLE { "Service Unavailable" } else { "InternalServerError" };
    let (message, code) = (Value::from(message), status.as_u16());
    let body = format!(r#"{{"error":{{"message":{message},"type":"{kind}","param":null,"code":{code}}}}}"#);
    (status, [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], body).into_response()
}

/// The answer of a request whose engine died.
pub(crate) fn dead() -> Response {
    error(StatusCode::INTERNAL_SERVER_ERROR, DEAD)
}

fn metrics(fault: Fault, text: &str) -> Response {
    let lines = |value: fn(&str) -> String| {
        let mut out = String::with_capacity(text.len());
        for line in text.lines() {
            match line.rsplit_once(' ') {
                Some((series, number)) if !line.starts_with('#') => {
                    out.push_str(series);
                    out.push(' ');
                    out.push_str(&value(number));
                }
                _ => out.push_str(line),
            }
            out.push('\n');
        }
        out
    };
    let body = match fault {
        Fault::MetricsNan => Body::from(lines(|_| "NaN".to_owned())),
        Fault::MetricsNegative => Body::from(lines(|number| format!("-{}", number.replace("0.0", "1.0")))),
        Fault::MetricsRenamed => Body::from(text.replace("vllm:", "vllm:next_")),
        _ => Body::new(Padded { first: Some(Bytes::from(text.to_owned())), left: PADDING_LENGTH }),
    };
    let kind = HeaderValue::from_static("text/plain; version=1.0.0; charset=utf-8");
    ([(header::CONTENT_TYPE, kind)], body).into_response()
}

/// A true text, then padding, never whole in memory.
struct Padded {
    first: Option<Bytes>,
    left: usize,
}

impl http_body::Body for Padded {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = self.get_mut();
        if let Some(first) = this.first.take() {
            return Poll::Ready(Some(Ok(Frame::data(first))));
        }
        if this.left == 0 {
            return Poll::Ready(None);
        }
        this.left = this.left.saturating_sub(PADDING.len() * 1000);
        Poll::Ready(Some(Ok(Frame::data(Bytes::from(PADDING.repeat(1000))))))
    }
}

/// `GET` and `POST /sim/fault`.
pub(crate) fn route<S: Clone + Send + Sync + 'static>(faults: &Arc<Faults>) -> MethodRouter<S> {
    let (shown, ordered) = (Arc::clone(faults), Arc::clone(faults));
    let json = |status: StatusCode, value: &Value| {
        (status, [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], value.to_string())
    };
    get(async move || json(StatusCode::OK, &shown.json())).post(async move |body: Bytes| match Order::parse(&body) {
        Ok(order) => {
            ordered.order(order);
            json(StatusCode::OK, &ordered.json())
        }
        Err(error) => json(StatusCode::BAD_REQUEST, &json!({ "error": error })),
    })
}

/// Nothing but `/sim/fault`, for a port of its own.
pub(crate) fn router(faults: &Arc<Faults>) -> Router {
    Router::new().route("/sim/fault", route(faults))
}
