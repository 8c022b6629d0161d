//! Traces: the spans that a collector gets, the headers that backends get, and a collector that is slow, dead or silent, which
//! costs no request anything.

use std::collections::HashMap;
use std::time::Instant;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use prost::Message;

use crate::client::{Answer, post};
use crate::harness::{Forebay, Harness, eventually, eventually_within, ms};
use crate::mock::{CHAT, Mock, Seen, Step, answer, chunk, stream_head, token};

const PATH: &str = "/v1/chat/completions";
const STREAM: &str = r#"{"model":"tiny","stream":true,"messages":[{"role":"user","content":"a-prompt"}]}"#;
const UNARY: &str = r#"{"model":"tiny","messages":[{"role":"user","content":"a-prompt"}]}"#;
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";
/// Nobody is ejected: a failure must not change the next request.
const SETTINGS: &str = "[health]\nfailures = 100\n";
const SERVER: i32 = 2;
const CLIENT: i32 = 3;

/// A collector that takes everything.
fn collector() -> Mock {
    Mock::replying(|_| answer(200, &[("content-type", "application/x-protobuf")], ""))
}

/// A Forebay whose spans go there.
fn traced(collector: &Mock, keys: &str) -> Harness {
    Harness::new().config(&format!("[trace]\nendpoint = \"{}\"\n{keys}\n{SETTINGS}", collector.url()))
}

fn ask(forebay: &Forebay, headers: &[(&str, &str)], body: &str) -> Answer {
    forebay.open().ask(&post(PATH, headers, body.as_bytes()))
}

fn parent(flags: &str) -> String {
    format!("00-{TRACE}-{PARENT}-{flags}")
}

/// The spans that the collector got so far.
fn spans(collector: &Mock) -> Vec<Span> {
    let messages = collector.seen().into_iter().map(|seen| {
        assert_eq!((seen.method.as_str(), seen.target.as_str()), ("POST", "/v1/traces"));
        assert_eq!(seen.header("content-type"), Some("application/x-protobuf"));
        ExportTraceServiceRequest::decode(seen.body.as_slice()).unwrap()
    });
    let resources = messages.flat_map(|message| message.resource_spans);
    resources.flat_map(|resource| resource.scope_spans).flat_map(|scope| scope.spans).collect()
}

/// Waits for the spans of so many requests.
fn of_requests(collector: &Mock, count: usize) -> Vec<Span> {
    eventually(&format!("the spans of {count} requests"), || {
        let spans = spans(collector);
        (spans.iter().filter(|span| span.kind == SERVER).count() >= count).then_some(spans)
    })
}

/// The attributes as text.
fn attributes(span: &Span) -> HashMap<&str, String> {
    let text = |value: &Value| match value {
        Value::StringValue(text) => text.clone(),
        Value::IntValue(number) => number.to_string(),
        Value::BoolValue(yes) => yes.to_string(),
        Value::DoubleValue(number) => number.to_string(),
        other => panic!("{other:?}"),
    };
    let pairs = span.attributes.iter();
    pairs.map(|pair| (pair.key.as_str(), text(pair.value.as_ref().unwrap().value.as_ref().unwrap()))).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn failed(span: &Span) -> bool {
    span.status.as_ref().is_some_and(|status| status.code == StatusCode::Error as i32)
}

/// What a backend was told of its parent: trace, span, flags.
fn told(seen: &Seen) -> (String, String, String) {
    let value = seen.header("traceparent").unwrap();
    let parts: Vec<&str> = value.split('-').collect();
    assert_eq!((parts.len(), parts[0]), (4, "00"), "{value}");
    (parts[1].into(), parts[2].into(), parts[3].into())
}

/// The spans of one request: its own, the one over its attempts, the attempts by their start.
fn family(spans: &[Span]) -> (&Span, &Span, Vec<&Span>) {
    let server = spans.iter().find(|span| span.kind == SERVER).unwrap();
    let children_of = |parent: &Span| {
        let of = |span: &&Span| span.parent_span_id == parent.span_id;
        spans.iter().filter(of).collect::<Vec<_>>()
    };
    let calls = children_of(server);
    assert_eq!(calls.len(), 1);
    let mut attempts = children_of(calls[0]);
    attempts.sort_by_key(|span| span.start_time_unix_nano);
    assert_eq!(spans.len(), 2 + attempts.len(), "every span has its place");
    assert!(spans.iter().all(|span| span.trace_id == server.trace_id));
    for (child, parent) in attempts.iter().map(|one| (*one, calls[0])).chain([(calls[0], server)]) {
        assert_eq!(child.kind, CLIENT);
        assert!(child.start_time_unix_nano >= parent.start_time_unix_nano, "{child:?} in {parent:?}");
        assert!(child.end_time_unix_nano <= parent.end_time_unix_nano, "{child:?} in {parent:?}");
        assert!(child.end_time_unix_nano >= child.start_time_unix_nano);
    }
    (server, calls[0], attempts)
}

#[test]
fn the_parents_lead_from_the_client_over_each_attempt_to_the_backend_that_had_it() {
    let (collector, dead, well) = (collector(), Mock::playing(vec![Step::Close]), Mock::start());
    let forebay = traced(&collector, "").pool("tiny", &[&dead, &well]).start();
    // In turns: the first or the second goes to the backend that hangs up, and then on to the other.
    for _ in 0..2 {
        let headers = [("traceparent", parent("01")), ("tracestate", "vendor=a-state,other=b".into())];
        let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        assert_eq!(ask(&forebay, &headers, STREAM).status, 200);
    }
    let all = of_requests(&collector, 2);
    let attempted = |span: &Span| attributes(span).get("forebay.attempts").cloned();
    let call = all.iter().find(|span| attempted(span).as_deref() == Some("2")).expect("one request was tried twice");
    let server = all.iter().find(|span| span.span_id == call.parent_span_id).unwrap();
    let of_it = |span: &&Span| {
        [&span.span_id, &span.parent_span_id].contains(&&server.span_id) || span.parent_span_id == call.span_id
    };
    let spans: Vec<Span> = all.iter().filter(of_it).cloned().collect();
    let (server, call, attempts) = family(&spans);
    assert_eq!((hex(&server.trace_id).as_str(), hex(&server.parent_span_id).as_str()), (TRACE, PARENT));
    assert_eq!(server.trace_state, "vendor=a-state,other=b");
    let said = attributes(server);
    assert_eq!(server.name, format!("POST {PATH}"));
    assert_eq!((said["http.route"].as_str(), said["http.response.status_code"].as_str()), (PATH, "200"));
    assert_eq!((said["forebay.outcome"].as_str(), failed(server)), ("success", false));
    assert_eq!(call.name, "chat tiny");
    let said = attributes(call);
    assert_eq!((said["gen_ai.operation.name"].as_str(), said["gen_ai.request.model"].as_str()), ("chat", "tiny"));
    assert_eq!((said["gen_ai.usage.input_tokens"].as_str(), said["gen_ai.usage.output_tokens"].as_str()), ("7", "2"));
    assert_eq!((said["forebay.pool"].as_str(), said["forebay.policy"].as_str()), ("tiny", "round_robin"));
    let first_chunk: f64 = said["gen_ai.response.time_to_first_chunk"].parse().unwrap();
    assert!(first_chunk > 0.0 && first_chunk <= attributes(server)["forebay.ttft"].parse().unwrap());
    let [first, second] = attempts[..] else { panic!("{attempts:?}") };
    let (one, other) = (attributes(first), attributes(second));
    assert_eq!((one["error.type"].as_str(), failed(first)), ("died", true));
    assert_eq!((one["forebay.backend"].as_str(), one.get("http.request.resend_count")), (&*dead.authority(), None));
    assert_eq!((other.get("error.type"), failed(second)), (None, false));
    assert_eq!((&*other["forebay.backend"], &*other["http.request.resend_count"]), (&*well.authority(), "1"));
    assert_eq!(other["url.full"], format!("{}{PATH}", well.url()));
    assert_eq!(second.events.iter().map(|event| event.name.as_str()).collect::<Vec<_>>(), ["first_token"]);
    // What each backend was told is the span of the attempt that it had.
    let wanted = (TRACE.to_owned(), hex(&first.span_id), "01".to_owned());
    assert!(dead.seen().iter().any(|seen| told(seen) == wanted), "{wanted:?}");
    let had = well.seen().into_iter().find(|seen| told(seen).1 == hex(&second.span_id)).unwrap();
    assert_eq!(had.header("tracestate"), Some("vendor=a-state,other=b"));
}

#[test]
fn a_callers_decision_holds_and_failures_are_kept_all_the_same() {
    let (collector, backend) = (collector(), Mock::start());
    let forebay = traced(&collector, "").pool("tiny", &[&backend]).start();
    assert_eq!(ask(&forebay, &[("traceparent", &parent("00"))], UNARY).status, 200);
    let (trace, span, flags) = told(&backend.last());
    assert_eq!((trace.as_str(), flags.as_str()), (TRACE, "00"));
    assert_ne!(span, PARENT);
    backend.reply(|_| answer(500, &[], r#"{"error":{"message":"no","code":500}}"#));
    assert_eq!(ask(&forebay, &[("traceparent", &parent("00"))], UNARY).status, 500);
    // The queue has an order: what is not there with this one was not made.
    let spans = of_requests(&collector, 1);
    let (server, call, attempts) = family(&spans);
    assert_eq!((failed(server), failed(call), failed(attempts[0])), (true, true, true));
    assert_eq!(attributes(server)["http.response.status_code"], "500");
    assert_eq!(hex(&attempts[0].span_id), told(&backend.last()).1);
}

#[test]
fn a_client_that_leaves_is_no_error_and_states_in_several_headers_are_one() {
    let collector = collector();
    let backend = Mock::playing(vec![stream_head(), chunk(token("Hi")), Step::AwaitClose]);
    let forebay = traced(&collector, "").pool("tiny", &[&backend]).start();
    let mut client = forebay.open();
    let headers = [("traceparent", &*parent("01")), ("tracestate", "a=1"), ("tracestate", "b=2")];
    client.send(&post(PATH, &headers, STREAM.as_bytes()));
    client.until("Hi");
    drop(client);
    backend.await_closes(1);
    let spans = of_requests(&collector, 1);
    let (server, call, attempts) = family(&spans);
    assert_eq!(attributes(server)["forebay.outcome"], "client_left");
    assert!(![server, call, attempts[0]].into_iter().any(failed));
    assert_eq!((server.trace_state.as_str(), attempts[0].events.len()), ("a=1,b=2", 1));
    // One that its caller does not sample is not kept either.
    let mut client = forebay.open();
    client.send(&post(PATH, &[("traceparent", &parent("00"))], STREAM.as_bytes()));
    client.until("Hi");
    drop(client);
    backend.await_closes(2);
    backend.reply(|_| answer(200, &[], CHAT));
    assert_eq!(ask(&forebay, &[], UNARY).status, 200);
    let servers = of_requests(&collector, 2).into_iter().filter(|span| span.kind == SERVER);
    assert_eq!(
        servers.map(|span| attributes(&span)["http.response.status_code"].clone()).collect::<Vec<_>>(),
        ["499", "200"]
    );
}

#[test]
fn errors_can_be_traced_as_all_else_is() {
    let (collector, backend) = (collector(), Mock::start());
    let forebay = traced(&collector, "sample = 0\nerrors = \"sampled\"").pool("tiny", &[&backend]).start();
    backend.next(answer(500, &[], "{}"));
    assert_eq!(ask(&forebay, &[], UNARY).status, 500);
    assert_eq!(ask(&forebay, &[], UNARY).status, 200);
    // A caller that samples is heard whatever the share.
    assert_eq!(ask(&forebay, &[("traceparent", &parent("01"))], UNARY).status, 200);
    let spans = of_requests(&collector, 1);
    assert_eq!(hex(&family(&spans).0.trace_id), TRACE);
    // Nobody but a caller decides for a trace of its own: the backend is told what was decided here.
    assert_eq!(&told(&backend.seen()[0]).2, "02");
}

#[test]
fn a_parent_that_is_not_valid_is_as_if_it_were_not_there() {
    let (collector, backend) = (collector(), Mock::start());
    let forebay = traced(&collector, "").pool("tiny", &[&backend]).start();
    for wrong in [format!("00-{}-{PARENT}-01", TRACE.to_uppercase()), format!("ff-{TRACE}-{PARENT}-01"), "x".into()] {
        assert_eq!(ask(&forebay, &[("traceparent", &wrong), ("tracestate", "a=b")], UNARY).status, 200);
        let (trace, _, flags) = told(&backend.last());
        assert_eq!(flags, "03");
        assert_ne!(trace, TRACE);
        assert_eq!(backend.last().header("tracestate"), None);
    }
    let spans = of_requests(&collector, 3);
    assert!(spans.iter().filter(|span| span.kind == SERVER).all(|span| span.parent_span_id.is_empty()));
}

#[test]
fn what_came_to_no_backend_has_a_span_and_no_words_of_the_client() {
    let (collector, backend) = (collector(), Mock::start());
    // Where a model is not known, no backend is asked, so that its name is a client's word and no more.
    let forebay = traced(&collector, "").pool_with("tiny", "unknown_models = \"refuse\"", &[&backend]).start();
    assert_eq!(forebay.get("/v1/secret-path?q=secret").status, 404);
    assert_eq!(ask(&forebay, &[], r#"{"model":"secret-model","messages":[]}"#).status, 404);
    assert_eq!(forebay.get("/v1/models/secret").status, 404);
    assert_eq!(forebay.open().ask(b"SECRET /v1/models HTTP/1.1\r\nhost: forebay\r\n\r\n").status, 405);
    let spans = of_requests(&collector, 4);
    let names: Vec<&str> = spans.iter().map(|span| span.name.as_str()).collect();
    assert_eq!(names, ["GET", &format!("POST {PATH}"), "GET /v1/models/{model}", "HTTP /v1/models"]);
    assert_eq!(attributes(&spans[3])["http.request.method"], "_OTHER");
    assert!(spans.iter().all(|span| !failed(span)));
    assert!(!collector.seen().iter().any(|seen| seen.text().to_lowercase().contains("secret")));
}

#[test]
fn no_prompt_no_key_and_no_session_is_in_a_span_and_probes_have_none() {
    let (collector, backend) = (collector(), Mock::replying(|_| answer(200, &[], &CHAT.replace("ok", "an-answer"))));
    let forebay = traced(&collector, "")
        .pools(&format!(
            "[[pools]]\nmodel = \"tiny\"\nsession = {{ header = \"x-session-id\" }}\nbackends = [{{ url = \"{}\", key_env = \"K\" }}]",
            backend.url()
        ))
        .env("K", "sk-backend")
        .start();
    let headers = [
        ("authorization", "Bearer sk-client"),
        ("x-session-id", "a-session"),
        ("cookie", "c=a-cookie"),
        ("x-request-id", "r-1"),
    ];
    assert_eq!(ask(&forebay, &headers, UNARY).status, 200);
    assert_eq!(forebay.get("/health").status, 200);
    assert_eq!(forebay.get("/v1/models?x=a-query").status, 200);
    let spans = of_requests(&collector, 2);
    assert_eq!(spans.iter().filter(|span| span.kind == SERVER).count(), 2, "a probe has no span");
    assert_eq!(attributes(&spans[0])["forebay.request_id"], "r-1");
    let sent: String = collector.seen().iter().map(|seen| seen.text()).collect();
    for secret in ["a-prompt", "an-answer", "sk-client", "sk-backend", "a-session", "a-cookie", "a-query"] {
        assert!(!sent.contains(secret), "{secret}");
    }
}

#[test]
fn a_collector_that_never_answers_holds_no_request_and_the_drops_are_counted() {
    let (collector, backend) = (Mock::playing(vec![Step::AwaitClose]), Mock::start());
    let mut forebay = traced(&collector, "").pool("tiny", &[&backend]).start();
    let mut client = forebay.open();
    let mut slowest = ms(0);
    // More than the queue holds, while the first message has no answer for ten seconds.
    for _ in 0..3000 {
        let began = Instant::now();
        assert_eq!(client.ask(b"GET /v1/models HTTP/1.1\r\nhost: forebay\r\n\r\n").status, 200);
        slowest = slowest.max(began.elapsed());
    }
    assert!(slowest < ms(5000), "a request took {slowest:?}");
    assert!(forebay.metric("forebay_trace_spans_total", &["result=\"queue_full\""]) > 0.0);
    assert_eq!(ask(&forebay, &[], STREAM).status, 200);
    drop(client);
    let began = Instant::now();
    forebay.signal("TERM");
    assert!(forebay.exit(ms(12_000)).success());
    if began.elapsed() >= ms(2000) {
        forebay.tells("the last ones are lost");
    }
}

#[test]
fn a_collector_that_is_not_there_or_refuses_is_told_in_the_log_and_costs_spans_alone() {
    let (collector, backend) = (Mock::playing(answer(403, &[], "")), Mock::start());
    let forebay = traced(&collector, "").pool("tiny", &[&backend]).start();
    assert_eq!(ask(&forebay, &[], STREAM).status, 200);
    eventually("spans that a collector refused are counted", || {
        (forebay.metric("forebay_trace_spans_total", &["result=\"failed\""]) >= 3.0).then_some(())
    });
    forebay.tells("status 403");
    collector.refuse();
    assert_eq!(ask(&forebay, &[], STREAM).status, 200);
    eventually("spans that nobody took are counted", || {
        (forebay.metric("forebay_trace_spans_total", &["result=\"failed\""]) >= 6.0).then_some(())
    });
    // A collector that comes back gets what comes after.
    collector.listen_again();
    collector.reply(|_| answer(200, &[], ""));
    assert_eq!(ask(&forebay, &[], STREAM).status, 200);
    eventually_within(ms(30_000), "spans are sent", || {
        (forebay.metric("forebay_trace_spans_total", &["result=\"sent\""]) >= 3.0).then_some(())
    });
}

#[test]
fn sigterm_sends_what_is_left_at_once() {
    let (collector, backend) = (collector(), Mock::start());
    // The environment names the collector, and what it asks for.
    let mut forebay = Harness::new()
        .pool("tiny", &[&backend])
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.url())
        .env("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=team%201")
        .env("OTEL_SERVICE_NAME", "gateway")
        .start();
    let answered = ask(&forebay, &[], UNARY);
    assert_eq!(answered.status, 200);
    forebay.signal("TERM");
    assert!(forebay.exit(ms(10_000)).success());
    let spans = spans(&collector);
    assert_eq!(family(&spans).2.len(), 1);
    let message = collector.last();
    assert_eq!(message.header("x-tenant"), Some("team 1"));
    let message = ExportTraceServiceRequest::decode(message.body.as_slice()).unwrap();
    let resource = message.resource_spans[0].resource.clone().unwrap();
    let service = resource.attributes.iter().find(|pair| pair.key == "service.name").unwrap();
    assert_eq!(service.value.as_ref().unwrap().value, Some(Value::StringValue("gateway".into())));
}

#[test]
fn without_a_collector_a_clients_headers_pass_as_they_are() {
    let backend = Mock::start();
    let forebay = Harness::new()
        .config("[trace]\nendpoint = \"off\"\n")
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
        .pool("tiny", &[&backend])
        .start();
    for value in [parent("01"), parent("00"), "whatever it is".to_owned()] {
        assert_eq!(ask(&forebay, &[("traceparent", &value), ("tracestate", "a=b")], UNARY).status, 200);
        assert_eq!(backend.last().header("traceparent"), Some(value.as_str()));
        assert_eq!(backend.last().header("tracestate"), Some("a=b"));
    }
    assert_eq!(ask(&forebay, &[], UNARY).status, 200);
    assert_eq!(backend.last().header("traceparent"), None);
    assert_eq!(forebay.metric("forebay_trace_spans_total", &[]), 0.0);
}
