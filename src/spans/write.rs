//! The spans of a request that is over: one for the request, one over its attempts, and one for each attempt. They have the times that
//! were measured, set on the wall clock's time of the end. It must never tell a prompt, a key or a session's name.

use std::borrow::Cow;
use std::time::{Duration, SystemTime};

use http::HeaderValue;
use opentelemetry::trace::{Event, SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue, Value};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};

use super::Wall;
use super::names;
use super::told::{Attempt, Told, is_error};
use forebay_core::clock::Time;
use forebay_core::error::Failure;
use forebay_fleet::telemetry::metrics::Outcome;

/// Writes the spans of requests.
#[derive(Debug)]
pub(super) struct Writer {
    scope: InstrumentationScope,
}

/// The parts of a span that differ from one to the next.
struct Span {
    id: u64,
    parent: Option<u64>,
    kind: SpanKind,
    name: Cow<'static, str>,
    from: Time,
    to: Time,
    attributes: Vec<KeyValue>,
    /// The word for what went wrong.
    error: Option<Cow<'static, str>>,
}

impl Writer {
    pub(super) fn new() -> Writer {
        let scope = InstrumentationScope::builder("forebay").with_version(env!("CARGO_PKG_VERSION")).build();
        Writer { scope }
    }

    /// Adds the spans of a request to a batch.
    pub(super) fn write(&self, told: &Told, wall: Wall, batch: &mut Vec<SpanData>) {
        batch.push(self.span(told, wall, server(told)));
        if told.assigned.is_none() {
            return;
        }
        batch.push(self.span(told, wall, client(told)));
        for (at, attempt) in told.trace.attempts.iter().enumerate() {
            let mut span = self.span(told, wall, attempt_of(told, attempt, at));
            if let Some(first) = attempt.first_token {
                let event = Event::new(names::FIRST_TOKEN, on_the_wall(wall, first), Vec::new(), 0);
                span.events.events.push(event);
            }
            batch.push(span);
        }
    }

    fn span(&self, told: &Told, wall: Wall, span: Span) -> SpanData {
        let Span { id, parent, kind, name, from, to, mut attributes, error } = span;
        let status = if error.is_some() { Status::error("") } else { Status::Unset };
        if let Some(error) = error {
            attributes.push(KeyValue::new(names::ERROR, error));
        }
        SpanData {
            span_context: SpanContext::new(
                TraceId::from_bytes(told.trace.context.trace.to_be_bytes()),
                SpanId::from_bytes(id.to_be_bytes()),
                TraceFlags::new(told.trace.context.flags()),
                false,
                state(told.trace.state.as_ref()),
            ),
            parent_span_id: SpanId::from_bytes(parent.unwrap_or_default().to_be_bytes()),
            parent_span_is_remote: kind == SpanKind::Server && parent.is_some(),
            span_kind: kind,
            name,
            start_time: on_the_wall(wall, from),
            end_time: on_the_wall(wall, to),
            attributes,
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            // Without a text: what went wrong is an attribute, which can be searched for.
            status,
            instrumentation_scope: self.scope.clone(),
        }
    }
}

/// The state that other systems keep; none where it is not valid.
fn state(value: Option<&HeaderValue>) -> TraceState {
    value.and_then(|value| value.to_str().ok()?.parse().ok()).unwrap_or_default()
}

/// A moment of the request as the wall clock has it. All moments of a request are set on one look at that clock, which may jump.
fn on_the_wall((now, wall): Wall, time: Time) -> SystemTime {
    wall.checked_sub(now.since(time)).unwrap_or(SystemTime::UNIX_EPOCH)
}

fn seconds(time: Duration) -> f64 {
    time.as_secs_f64()
}

/// Attributes, of which some are not known.
#[derive(Default)]
struct Attributes(Vec<KeyValue>);

impl Attributes {
    fn add(&mut self, name: &'static str, value: impl Into<Value>) {
        self.0.push(KeyValue::new(name, value));
    }

    fn add_some(&mut self, name: &'static str, value: Option<impl Into<Value>>) {
        if let Some(value) = value {
            self.add(name, value);
        }
    }
}

/// The request, from its head to the end of its answer.
fn server(told: &Told) -> Span {
    let mut attributes = Attributes::default();
    let method = names::method(&told.method);
    attributes.add(names::METHOD, method.unwrap_or(names::OTHER_METHOD));
    attributes.add_some(names::ROUTE, told.route.clone());
    // A path with a part that a client filled in is told by its route alone.
    attributes.add_some(names::PATH, told.route.clone().filter(|route| !route.contains('{')));
    attributes.add(names::SCHEME, if told.secure { "https" } else { "http" });
    attributes.add(names::STATUS, i64::from(told.status));
    attributes.add_some(names::REQUEST_ID, told.request_id.to_str().ok().map(str::to_owned));
    attributes.add(names::OUTCOME, told.outcome.label());
    attributes.add_some(names::TTFT, told.first_token.map(|first| seconds(first.since(told.arrival))));
    let method = method.unwrap_or("HTTP");
    Span {
        id: told.trace.server,
        parent: told.trace.context.parent,
        kind: SpanKind::Server,
        name: told.route.as_ref().map_or_else(|| method.to_owned(), |route| format!("{method} {route}")).into(),
        from: told.arrival,
        to: told.end,
        attributes: attributes.0,
        error: is_error(told.outcome, told.status).then(|| told.outcome.label().into()),
    }
}

/// The error of a call that ended so. One that its caller gave up has none.
fn error_of(outcome: Outcome) -> Option<Cow<'static, str>> {
    let is_none = matches!(outcome, Outcome::Success | Outcome::Failed(Failure::ClientLeft));
    (!is_none).then(|| outcome.label().into())
}

/// The call of the model over all its attempts, from the moment at which the request is known to its end.
fn client(told: &Told) -> Span {
    let operation = names::operation(told.api, told.route.as_deref().unwrap_or_default()).to_owned();
    let from = told.body_read.unwrap_or(told.arrival);
    let mut attributes = Attributes::default();
    let name = match &told.model {
        Some(model) => format!("{operation} {model}"),
        None => operation.clone(),
    };
    attributes.add(names::OPERATION, operation);
    attributes.add(names::PROVIDER, names::VLLM);
    attributes.add_some(names::MODEL, told.model.clone());
    attributes.add(names::STREAM, told.streamed);
    attributes.add_some(names::FIRST_CHUNK, told.first_token.map(|first| seconds(first.since(from))));
    let count = |tokens: u64| i64::try_from(tokens).unwrap_or(i64::MAX);
    attributes.add_some(names::INPUT_TOKENS, told.usage.map(|usage| count(usage.prompt_tokens)));
    attributes.add_some(names::OUTPUT_TOKENS, told.usage.map(|usage| count(usage.completion_tokens)));
    attributes.add_some(names::CACHED_TOKENS, told.usage.and_then(|usage| usage.cached_tokens).map(count));
    if let Some((pool, arm)) = &told.assigned {
        attributes.add(names::POOL, pool.model.clone());
        attributes.add(names::POLICY, pool.policy.as_str());
        attributes.add_some(names::ASSIGNED_ARM, arm.as_deref().map(str::to_owned));
    }
    let last = told.trace.attempts.last();
    attributes.add_some(names::ARM, last.map(|attempt| attempt.backend.arm.to_string()));
    attributes.add_some(names::PREDICTED, last.and_then(|attempt| attempt.predicted).map(seconds));
    attributes.add(names::WAIT, seconds(told.wait));
    attributes.add(names::ATTEMPTS, i64::try_from(told.trace.attempts.len()).unwrap_or(i64::MAX));
    Span {
        id: told.trace.client,
        parent: Some(told.trace.server),
        kind: SpanKind::Client,
        name: name.into(),
        from,
        to: told.end,
        attributes: attributes.0,
        // To a client an answer of 4xx is an error, too.
        error: error_of(told.outcome),
    }
}

/// One request to one backend.
fn attempt_of(told: &Told, attempt: &Attempt, at: usize) -> Span {
    let backend = &attempt.backend;
    let method = names::method(&told.method);
    let mut attributes = Attributes::default();
    attributes.add(names::METHOD, method.unwrap_or(names::OTHER_METHOD));
    attributes.add_some(names::URL, told.route.as_ref().map(|route| format!("{}{route}", backend.url)));
    match backend.url.socket() {
        Some(path) => attributes.add(names::ADDRESS, path.display().to_string()),
        None => {
            attributes.add(names::ADDRESS, backend.url.host().trim_matches(['[', ']']).to_owned());
            attributes.add(names::PORT, i64::from(backend.url.port()));
        }
    }
    attributes.add_some(names::STATUS, attempt.status.map(i64::from));
    if at > 0 {
        attributes.add(names::RESENDS, i64::try_from(at).unwrap_or(i64::MAX));
    }
    attributes.add(names::BACKEND, backend.url.authority().to_owned());
    attributes.add(names::ARM, backend.arm.to_string());
    attributes.add_some(names::PREDICTED, attempt.predicted.map(seconds));
    let error = match (attempt.failure, attempt.status, attempt.over) {
        (Some(failure), ..) => Some(failure.label().into()),
        (None, Some(status @ 400..), _) => Some(status.to_string().into()),
        (None, _, Some(_)) => None,
        // One that is not over before the request ends as the request does.
        (None, _, None) => error_of(told.outcome),
    };
    let to = attempt.over.unwrap_or(told.end);
    Span {
        id: attempt.span,
        parent: Some(told.trace.client),
        kind: SpanKind::Client,
        name: method.unwrap_or("HTTP").into(),
        from: attempt.sent,
        to,
        attributes: attributes.0,
        error,
    }
}
