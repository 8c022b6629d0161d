//! What gateways and the picker say to each other, as Envoy's external processing has it. The only user of the generated types, so
//! that all else deals in heads, pieces and addresses. It must never decide anything.
//!
//! Hot path: bodies are moved and never copied.

use std::collections::HashMap;

use bytes::Bytes;
use envoy_types::pb::envoy::config::core::v3::header_value_option::HeaderAppendAction;
use envoy_types::pb::envoy::config::core::v3::{HeaderMap as WireHeaders, HeaderValue as WireValue, HeaderValueOption};
use envoy_types::pb::envoy::extensions::filters::http::ext_proc::v3::processing_mode::BodySendMode;
use envoy_types::pb::envoy::service::ext_proc::v3::body_mutation::Mutation;
use envoy_types::pb::envoy::service::ext_proc::v3::processing_request::Request as Asked;
use envoy_types::pb::envoy::service::ext_proc::v3::processing_response::Response as Told;
use envoy_types::pb::envoy::service::ext_proc::v3::{
    BodyMutation, BodyResponse, CommonResponse, HeaderMutation, HeadersResponse, HttpHeaders, ImmediateResponse,
    ProtocolConfiguration, StreamedBodyResponse, TrailersResponse,
};
use envoy_types::pb::envoy::r#type::v3::HttpStatus;
use envoy_types::pb::google::protobuf::value::Kind;
use envoy_types::pb::google::protobuf::{Struct, Value};
use forebay_core::error::Failure;
use http::header::{CONTENT_LENGTH, HOST};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri, Version};

pub(super) use envoy_types::pb::envoy::service::ext_proc::v3::external_processor_server::{
    ExternalProcessor, ExternalProcessorServer,
};
pub(super) use envoy_types::pb::envoy::service::ext_proc::v3::{ProcessingRequest, ProcessingResponse};

/// The header, and the key of the metadata, that name the picked addresses.
const DESTINATION: &str = "x-gateway-destination-endpoint";
/// The key of the metadata with the address that served.
const SERVED: &str = "x-gateway-destination-endpoint-served";
/// The key of the metadata with the addresses that the choice is limited to.
const SUBSET: &str = "x-gateway-destination-endpoint-subset";
/// The namespace of what load balancing reads and writes.
const LB: &str = "envoy.lb";
/// The namespace of the subset.
const HINT: &str = "envoy.lb.subset_hint";
/// The attributes of an answer, and the namespace that they come in.
const FILTER: &str = "envoy.filters.http.ext_proc";
const UPSTREAM: &str = "upstream.address";
const DETAILS: &str = "response.code_details";
/// The beginning of Envoy's words for a backend whose connection ended before it answered, or was never made.
const RESET: &str = "upstream_reset_before_response_started";
/// A piece of a body is at most so large, as the protocol asks.
pub(super) const PIECE_MAX: usize = 62_000;

/// The way in which a body is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum BodyMode {
    /// Not at all.
    #[default]
    None,
    /// A piece at a time, each of which the gateway keeps until it is answered.
    Streamed,
    /// Whole, once it is there.
    Buffered,
    /// A piece at a time, which the gateway gives away: it is sent on as it is given back.
    Duplex,
    /// In a way that no picker understands.
    Unknown,
}

/// The agreement for one exchange, as the gateway is configured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Modes {
    pub(super) request: BodyMode,
    pub(super) response: BodyMode,
    /// Pieces of a streamed body come before their head is answered.
    pub(super) unasked: bool,
}

/// One message of a gateway.
#[derive(Debug, Default)]
pub(super) struct GatewayMessage {
    /// The agreement, which the first message alone has.
    pub(super) modes: Option<Modes>,
    /// Nobody reads the answers.
    pub(super) observing: bool,
    /// The addresses that the choice is limited to.
    pub(super) subset: Option<Vec<String>>,
    /// The address that served the request.
    pub(super) served: Option<String>,
    /// The failure for which the gateway answers by itself.
    pub(super) own: Option<Failure>,
    pub(super) what: What,
}

/// The part of a request or its answer that a message shows.
#[derive(Debug, Default)]
pub(super) enum What {
    RequestHead(Box<Parts>, End),
    RequestBody(Bytes, End),
    RequestTrailers,
    ResponseHead(StatusCode, HeaderMap, End),
    ResponseBody(Bytes, End),
    ResponseTrailers,
    /// The head of a request that is none.
    Nonsense,
    #[default]
    Nothing,
}

/// The mark of the last part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Last,
    More,
}

impl End {
    fn of(last: bool) -> End {
        if last { End::Last } else { End::More }
    }

    pub(super) fn is_last(self) -> bool {
        self == End::Last
    }
}

/// Reads a message.
pub(super) fn read(message: ProcessingRequest) -> GatewayMessage {
    let metadata = message.metadata_context.as_ref().map(|context| &context.filter_metadata);
    let key = |namespace: &str, key: &str| metadata?.get(namespace)?.fields.get(key)?.kind.as_ref();
    let attribute = |name: &str| match message.attributes.get(FILTER)?.fields.get(name)?.kind.as_ref()? {
        Kind::StringValue(text) => Some(text.as_str()),
        _ => None,
    };
    let served = match key(LB, SERVED) {
        Some(Kind::StringValue(address)) if !address.is_empty() => Some(address.clone()),
        _ => attribute(UPSTREAM).map(str::to_owned),
    };
    GatewayMessage {
        modes: message.protocol_config.as_ref().map(modes),
        observing: message.observability_mode,
        subset: key(HINT, SUBSET).and_then(addresses),
        served,
        own: attribute(DETAILS).and_then(own_failure),
        what: message.request.map_or(What::Nothing, what),
    }
}

/// The failure that Envoy's words for an answer of its own mean.
fn own_failure(details: &str) -> Option<Failure> {
    let reset = details.strip_prefix(RESET)?;
    Some(if reset.contains("connection_failure") { Failure::Connect } else { Failure::Died })
}

/// The addresses of a list, or of a text with commas. `None` where it is neither, which limits nothing.
fn addresses(kind: &Kind) -> Option<Vec<String>> {
    let of_text = |text: &str| -> Vec<String> {
        text.split(',').map(str::trim).filter(|one| !one.is_empty()).map(str::to_owned).collect()
    };
    match kind {
        Kind::StringValue(text) => Some(of_text(text)),
        Kind::ListValue(list) => {
            let texts = list.values.iter().filter_map(|value| match &value.kind {
                Some(Kind::StringValue(text)) => Some(of_text(text)),
                _ => None,
            });
            Some(texts.flatten().collect())
        }
        _ => None,
    }
}

fn modes(config: &ProtocolConfiguration) -> Modes {
    let mode = |number: i32| match BodySendMode::try_from(number) {
        Ok(BodySendMode::None) => BodyMode::None,
        Ok(BodySendMode::Streamed) => BodyMode::Streamed,
        Ok(BodySendMode::Buffered) => BodyMode::Buffered,
        Ok(BodySendMode::FullDuplexStreamed) => BodyMode::Duplex,
        _ => BodyMode::Unknown,
    };
    Modes {
        request: mode(config.request_body_mode),
        response: mode(config.response_body_mode),
        unasked: config.send_body_without_waiting_for_header_response,
    }
}

fn what(asked: Asked) -> What {
    match asked {
        Asked::RequestHeaders(headers) => {
            let end = End::of(headers.end_of_stream);
            request_head(headers).map_or(What::Nonsense, |head| What::RequestHead(Box::new(head), end))
        }
        Asked::RequestBody(body) => What::RequestBody(body.body.into(), End::of(body.end_of_stream)),
        Asked::RequestTrailers(_) => What::RequestTrailers,
        Asked::ResponseHeaders(headers) => {
            let end = End::of(headers.end_of_stream);
            let (pseudo, headers) = split(headers);
            let status = pseudo.get(":status").and_then(|status| StatusCode::from_bytes(status).ok());
            What::ResponseHead(status.unwrap_or(StatusCode::OK), headers, end)
        }
        Asked::ResponseBody(body) => What::ResponseBody(body.body.into(), End::of(body.end_of_stream)),
        Asked::ResponseTrailers(_) => What::ResponseTrailers,
    }
}

/// Splits headers into those of HTTP/2 alone, whose names begin with a colon, and the others. One that HTTP does not allow is left
/// out.
fn split(headers: HttpHeaders) -> (HashMap<String, Vec<u8>>, HeaderMap) {
    let (mut pseudo, mut others) = (HashMap::new(), HeaderMap::new());
    for WireValue { key, value, raw_value } in headers.headers.map(|map: WireHeaders| map.headers).unwrap_or_default() {
        let bytes = if raw_value.is_empty() { value.into_bytes() } else { raw_value };
        if key.starts_with(':') {
            pseudo.insert(key, bytes);
        } else if let (Ok(name), Ok(value)) = (HeaderName::try_from(key), HeaderValue::try_from(bytes)) {
            others.append(name, value);
        }
    }
    (pseudo, others)
}

fn request_head(headers: HttpHeaders) -> Option<Parts> {
    let (pseudo, headers) = split(headers);
    let mut request = Request::new(());
    *request.method_mut() = Method::from_bytes(pseudo.get(":method")?).ok()?;
    *request.uri_mut() = Uri::try_from(pseudo.get(":path")?.as_slice()).ok()?;
    // The gateway has parsed it and will write it, in whatever version: to us it is one of HTTP/1.1.
    *request.version_mut() = Version::HTTP_11;
    *request.headers_mut() = headers;
    if let Some(host) = pseudo.get(":authority").and_then(|host| HeaderValue::from_bytes(host).ok()) {
        request.headers_mut().insert(HOST, host);
    }
    Some(request.into_parts().0)
}

/// The answer to a request's head, where the choice is made later.
pub(super) fn go_on() -> ProcessingResponse {
    told(Told::RequestHeaders(HeadersResponse::default()))
}

/// The decision: the addresses in order, and what changes in the request's head.
pub(super) fn picked(
    addresses: &[String],
    set: &[(HeaderName, HeaderValue)],
    remove: &[HeaderName],
) -> ProcessingResponse {
    let list = addresses.join(",");
    let mut headers = vec![option(DESTINATION, list.as_bytes())];
    headers.extend(set.iter().map(|(name, value)| option(name.as_str(), value.as_bytes())));
    let inner = Struct { fields: HashMap::from([(DESTINATION.to_owned(), text(&list))]) };
    let metadata = Struct { fields: HashMap::from([(LB.to_owned(), Value { kind: Some(Kind::StructValue(inner)) })]) };
    let response = CommonResponse {
        header_mutation: Some(HeaderMutation {
            set_headers: headers,
            remove_headers: remove.iter().map(|name| name.as_str().to_owned()).collect(),
        }),
        // A route may depend on the header.
        clear_route_cache: true,
        ..CommonResponse::default()
    };
    ProcessingResponse {
        dynamic_metadata: Some(metadata),
        ..told(Told::RequestHeaders(HeadersResponse { response: Some(response) }))
    }
}

/// Turns the decision into the answer to a whole body, which takes its place.
pub(super) fn with_body(decision: ProcessingResponse, body: Vec<u8>) -> ProcessingResponse {
    let Some(Told::RequestHeaders(HeadersResponse { response: Some(common) })) = decision.response else {
        return decision;
    };
    let body_mutation = Some(BodyMutation { mutation: Some(Mutation::Body(body)) });
    let response = Some(CommonResponse { body_mutation, ..common });
    ProcessingResponse { response: Some(Told::RequestBody(BodyResponse { response })), ..decision }
}

/// A piece of the request's body, given back.
pub(super) fn request_piece(piece: Bytes, end: End) -> ProcessingResponse {
    told(Told::RequestBody(given_back(piece, end)))
}

pub(super) fn request_trailers() -> ProcessingResponse {
    told(Told::RequestTrailers(TrailersResponse::default()))
}

/// The head of the answer may go on, with these headers.
pub(super) fn response_head(set: &HeaderMap) -> ProcessingResponse {
    let set_headers = set.iter().map(|(name, value)| option(name.as_str(), value.as_bytes())).collect();
    let header_mutation = Some(HeaderMutation { set_headers, remove_headers: Vec::new() });
    let response = Some(CommonResponse { header_mutation, ..CommonResponse::default() });
    told(Told::ResponseHeaders(HeadersResponse { response }))
}

/// A piece of the answer may go on: as it was kept, or as it is given back.
pub(super) fn response_piece(piece: Option<Bytes>, end: End) -> ProcessingResponse {
    let kept = || BodyResponse { response: Some(CommonResponse::default()) };
    told(Told::ResponseBody(piece.map_or_else(kept, |piece| given_back(piece, end))))
}

pub(super) fn response_trailers() -> ProcessingResponse {
    told(Told::ResponseTrailers(TrailersResponse::default()))
}

/// An answer in place of the backend's.
pub(super) fn instead(status: StatusCode, headers: &HeaderMap, body: Vec<u8>) -> ProcessingResponse {
    let written = headers.iter().filter(|(name, _)| *name != CONTENT_LENGTH);
    let set_headers = written.map(|(name, value)| option(name.as_str(), value.as_bytes())).collect();
    told(Told::ImmediateResponse(ImmediateResponse {
        status: Some(HttpStatus { code: i32::from(status.as_u16()) }),
        headers: Some(HeaderMutation { set_headers, remove_headers: Vec::new() }),
        body,
        details: "forebay".to_owned(),
        ..ImmediateResponse::default()
    }))
}

fn told(response: Told) -> ProcessingResponse {
    ProcessingResponse { response: Some(response), ..ProcessingResponse::default() }
}

fn given_back(piece: Bytes, end: End) -> BodyResponse {
    let streamed =
        StreamedBodyResponse { body: piece.into(), end_of_stream: end.is_last(), ..StreamedBodyResponse::default() };
    let body_mutation = Some(BodyMutation { mutation: Some(Mutation::StreamedResponse(streamed)) });
    BodyResponse { response: Some(CommonResponse { body_mutation, ..CommonResponse::default() }) }
}

fn option(name: &str, value: &[u8]) -> HeaderValueOption {
    HeaderValueOption {
        header: Some(WireValue { key: name.to_owned(), raw_value: value.to_vec(), ..WireValue::default() }),
        append_action: HeaderAppendAction::OverwriteIfExistsOrAdd.into(),
        ..HeaderValueOption::default()
    }
}

fn text(text: &str) -> Value {
    Value { kind: Some(Kind::StringValue(text.to_owned())) }
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::config::core::v3::Metadata;
    use envoy_types::pb::envoy::service::ext_proc::v3::HttpBody;
    use envoy_types::pb::google::protobuf::ListValue;

    use super::*;

    fn with_metadata(namespace: &str, key: &str, kind: Kind) -> ProcessingRequest {
        let inner = Struct { fields: HashMap::from([(key.to_owned(), Value { kind: Some(kind) })]) };
        let filter_metadata = HashMap::from([(namespace.to_owned(), inner)]);
        let metadata_context = Some(Metadata { filter_metadata, ..Metadata::default() });
        ProcessingRequest { metadata_context, ..ProcessingRequest::default() }
    }

    #[test]
    fn a_subset_is_a_list_or_a_text_and_an_empty_one_is_one() {
        let list = |texts: &[&str]| Kind::ListValue(ListValue { values: texts.iter().map(|one| text(one)).collect() });
        let both = Some(vec!["10.0.0.1:8000".to_owned(), "10.0.0.2:8000".to_owned()]);
        for (kind, subset) in [
            (Kind::StringValue("10.0.0.1:8000, 10.0.0.2:8000,".to_owned()), both.clone()),
            (list(&["10.0.0.1:8000", "10.0.0.2:8000"]), both),
            (Kind::StringValue(String::new()), Some(Vec::new())),
            (list(&[]), Some(Vec::new())),
            (Kind::NumberValue(1.0), None),
        ] {
            assert_eq!(read(with_metadata(HINT, SUBSET, kind)).subset, subset);
        }
        assert_eq!(read(ProcessingRequest::default()).subset, None);
    }

    #[test]
    fn the_served_address_is_the_metadata_or_the_attribute() {
        let mut message = with_metadata(LB, SERVED, Kind::StringValue("10.0.0.1:8000".to_owned()));
        let attributes = HashMap::from([(UPSTREAM.to_owned(), text("10.0.0.2:8000"))]);
        message.attributes.insert(FILTER.to_owned(), Struct { fields: attributes });
        assert_eq!(read(message.clone()).served.as_deref(), Some("10.0.0.1:8000"));
        message.metadata_context = None;
        assert_eq!(read(message).served.as_deref(), Some("10.0.0.2:8000"));
    }

    #[test]
    fn a_gateways_own_answer_is_told_from_a_backends() {
        for (details, failure) in [
            ("via_upstream", None),
            ("upstream_reset_before_response_started{connection_termination}", Some(Failure::Died)),
            ("upstream_reset_before_response_started{remote_connection_failure|refused}", Some(Failure::Connect)),
        ] {
            assert_eq!(own_failure(details), failure, "{details}");
        }
    }

    #[test]
    fn a_head_of_http_2_becomes_one_of_http_1() {
        let header = |key: &str, value: &str| WireValue {
            key: key.to_owned(),
            raw_value: value.as_bytes().to_vec(),
            ..WireValue::default()
        };
        let headers = vec![
            header(":method", "POST"),
            header(":path", "/v1/chat/completions?a=b"),
            header(":authority", "gateway:80"),
            header("x-session-id", "7"),
        ];
        let headers = HttpHeaders { headers: Some(WireHeaders { headers }), ..HttpHeaders::default() };
        let head = request_head(headers).unwrap();
        assert_eq!((&head.method, head.uri.path()), (&Method::POST, "/v1/chat/completions"));
        assert_eq!(head.version, Version::HTTP_11);
        assert_eq!(head.headers[HOST], "gateway:80");
        assert_eq!(head.headers["x-session-id"], "7");
        assert!(request_head(HttpHeaders::default()).is_none());
    }

    #[test]
    fn a_body_is_moved_and_not_copied() {
        let body = vec![7; 100];
        let at = body.as_ptr();
        let request = Some(Asked::ResponseBody(HttpBody { body, end_of_stream: true, ..HttpBody::default() }));
        let said = read(ProcessingRequest { request, ..ProcessingRequest::default() });
        let What::ResponseBody(piece, End::Last) = said.what else { panic!("{:?}", said.what) };
        let Some(Told::ResponseBody(back)) = response_piece(Some(piece), End::Last).response else { panic!() };
        let Some(Mutation::StreamedResponse(streamed)) = back.response.unwrap().body_mutation.unwrap().mutation else {
            panic!()
        };
        assert_eq!((streamed.body.as_ptr(), streamed.end_of_stream), (at, true));
    }

    #[test]
    fn header_and_metadata_name_the_same_list() {
        let picked = picked(&["10.0.0.1:8000".to_owned(), "10.0.0.2:8000".to_owned()], &[], &[]);
        let list = "10.0.0.1:8000,10.0.0.2:8000";
        let Some(Kind::StructValue(inner)) = picked.dynamic_metadata.as_ref().unwrap().fields[LB].kind.clone() else {
            panic!()
        };
        assert_eq!(inner.fields[DESTINATION], text(list));
        let Some(Told::RequestHeaders(headers)) = picked.response else { panic!() };
        let common = headers.response.unwrap();
        let mutation = common.header_mutation.unwrap();
        let set = &mutation.set_headers[0];
        assert_eq!(set.header.as_ref().unwrap().raw_value, list.as_bytes());
        assert_eq!(set.append_action, i32::from(HeaderAppendAction::OverwriteIfExistsOrAdd));
        assert!(common.clear_route_cache);
    }
}
