//! The allow-list: which method and path is served, by which API, and what is read of it. vLLM's key guards only `/v1` and its
//! development paths can stop the engine, so whatever is not listed here does not reach a backend. The list is matched on the
//! decoded path, as vLLM's is, and a path that was encoded is sent on in one canonical spelling.

use std::borrow::Cow;

use http::uri::PathAndQuery;
use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};

use forebay_core::stream::Api;
use forebay_fleet::config::model::Paths;

/// The characters that a path may not hold as they are (RFC 3986 section 3.3).
const NOT_IN_A_PATH: &AsciiSet =
    &CONTROLS.add(b' ').add(b'"').add(b'#').add(b'%').add(b'<').add(b'>').add(b'?').add(b'`').add(b'{').add(b'}');

/// The thing that a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route<'a> {
    /// A body that may name a model; goes to a backend of its pool.
    Model(Endpoint),
    /// `/v1/responses/{id}` and what is under it: goes to the backend that made the response.
    StoredResponse(&'a str),
    /// `/v1/models`: answered here.
    Models,
    /// `/v1/models/{id}`: answered here.
    OneModel(&'a str),
    /// Any backend's, such as `/version`.
    AnyBackend,
    /// `/health`: Forebay's own.
    Health,
    /// `/ready`, and `/ping`, by which SageMaker asks a server of its own: Forebay's own.
    Ready,
    /// `/v1/realtime`: a WebSocket to a backend.
    Realtime,
    /// The question of a web page what it may send to a path, which takes these methods.
    Options(&'static str),
}

/// An endpoint that takes a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Endpoint {
    pub(crate) api: Api,
    pub(crate) body: BodyForm,
    pub(crate) effort: Effort,
    /// The part of the body that the engine makes sequences of.
    pub(crate) counting: Counting,
}

/// The form in which the body says which model it wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BodyForm {
    Json,
    /// JSON in the form of one of several APIs, as `/invocations` takes it: its members say of which.
    JsonOfAny,
    /// A form with a file; passed on untouched.
    Multipart,
    /// Any body, for a path that an operator added: JSON is read, all else is passed on.
    Unknown,
}

impl BodyForm {
    /// Returns whether the body must be JSON.
    pub(crate) fn is_json(self) -> bool {
        matches!(self, BodyForm::Json | BodyForm::JsonOfAny)
    }
}

/// The work that the engine has to do for an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effort {
    /// Prefill and decode.
    Generate,
    /// Prefill only: embeddings, scores.
    Prefill,
    /// None: the API server answers by itself.
    None,
}

/// The part of a request that an API makes sequences of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Counting {
    /// One sequence, whatever the body says.
    One,
    /// `n` choices.
    Choices,
    /// `n` choices for each prompt.
    Prompts,
    /// Each element of `input`, or of what other APIs call it.
    Inputs,
    /// Each conversation of `messages`.
    Conversations,
    /// Each pair of a query and a document; one of the two may be a single one.
    Pairs,
}

impl Endpoint {
    /// A request that the API server answers by itself.
    pub(crate) const LIGHT: Endpoint =
        Endpoint { api: Api::Other, body: BodyForm::Json, effort: Effort::None, counting: Counting::One };
    /// A path that an operator added.
    pub(crate) const ADDED: Endpoint =
        Endpoint { body: BodyForm::Unknown, effort: Effort::Generate, ..Endpoint::LIGHT };

    const fn json(api: Api, effort: Effort, counting: Counting) -> Route<'static> {
        Route::Model(Endpoint { api, body: BodyForm::Json, effort, counting })
    }

    const fn other(effort: Effort, counting: Counting) -> Route<'static> {
        Endpoint::json(Api::Other, effort, counting)
    }

    const fn of(body: BodyForm) -> Route<'static> {
        Route::Model(Endpoint { body, effort: Effort::Generate, ..Endpoint::LIGHT })
    }
}

const POST: &str = "POST";
const GET: &str = "GET, HEAD";

/// Every path of vLLM 0.32 that serves clients, with its methods (the most usual first), and where it leads. What is not here is
/// closed: development and management (`/pause`, `/sleep`, `/v1/load_lora_adapter`, `/inference/v1/abort_requests`), and what speaks of
/// one server (`/load`, `/metrics`, `/kv_event_sources`, `/scale_elastic_ep`, `/openapi.json`).
const TABLE: &[(&str, &str, Route<'static>)] = &[
    ("/v1/chat/completions", POST, Endpoint::json(Api::Chat, Effort::Generate, Counting::Choices)),
    ("/v1/completions", POST, Endpoint::json(Api::Completions, Effort::Generate, Counting::Prompts)),
    ("/v1/responses", POST, Endpoint::json(Api::Responses, Effort::Generate, Counting::One)),
    ("/v1/messages", POST, Endpoint::json(Api::Messages, Effort::Generate, Counting::One)),
    ("/v1/models", GET, Route::Models),
    ("/v1/embeddings", POST, Endpoint::other(Effort::Prefill, Counting::Inputs)),
    ("/v2/embed", POST, Endpoint::other(Effort::Prefill, Counting::Inputs)),
    ("/pooling", POST, Endpoint::other(Effort::Prefill, Counting::Inputs)),
    ("/classify", POST, Endpoint::other(Effort::Prefill, Counting::Inputs)),
    ("/rerank", POST, Endpoint::other(Effort::Prefill, Counting::Pairs)),
    ("/v1/rerank", POST, Endpoint::other(Effort::Prefill, Counting::Pairs)),
    ("/v2/rerank", POST, Endpoint::other(Effort::Prefill, Counting::Pairs)),
    ("/score", POST, Endpoint::other(Effort::Prefill, Counting::Pairs)),
    ("/v1/score", POST, Endpoint::other(Effort::Prefill, Counting::Pairs)),
    // One token of each item is generated, and only its probabilities are told.
    ("/generative_scoring", POST, Endpoint::other(Effort::Prefill, Counting::Pairs)),
    ("/v1/systemone", POST, Endpoint::other(Effort::Prefill, Counting::One)),
    ("/v1/chat/completions/batch", POST, Endpoint::other(Effort::Generate, Counting::Conversations)),
    ("/cohere/v2/chat", POST, Endpoint::other(Effort::Generate, Counting::One)),
    ("/inference/v1/generate", POST, Endpoint::other(Effort::Generate, Counting::One)),
    ("/invocations", POST, Endpoint::of(BodyForm::JsonOfAny)),
    ("/v1/audio/transcriptions", POST, Endpoint::of(BodyForm::Multipart)),
    ("/v1/audio/translations", POST, Endpoint::of(BodyForm::Multipart)),
    ("/tokenize", POST, Endpoint::other(Effort::None, Counting::One)),
    ("/detokenize", POST, Endpoint::other(Effort::None, Counting::One)),
    ("/v1/messages/count_tokens", POST, Endpoint::other(Effort::None, Counting::One)),
    ("/v1/chat/completions/render", POST, Endpoint::other(Effort::None, Counting::One)),
    ("/v1/chat/completions/derender", POST, Endpoint::other(Effort::None, Counting::One)),
    ("/v1/completions/render", POST, Endpoint::other(Effort::None, Counting::One)),
    ("/v1/completions/derender", POST, Endpoint::other(Effort::None, Counting::One)),
    ("/v1/responses/render", POST, Endpoint::other(Effort::None, Counting::One)),
    ("/v1/messages/render", POST, Endpoint::other(Effort::None, Counting::One)),
    ("/cohere/v2/chat/render", POST, Endpoint::other(Effort::None, Counting::One)),
    ("/tokenizer_info", GET, Route::AnyBackend),
    ("/version", GET, Route::AnyBackend),
    ("/health", GET, Route::Health),
    ("/ready", GET, Route::Ready),
    ("/ping", "GET, HEAD, POST", Route::Ready),
];

/// The path of WebSockets, which is open where it is asked for.
const REALTIME: &str = "/v1/realtime";

/// The methods of a path that an operator added.
const ADDED_METHODS: &str = "GET, HEAD, POST, PUT, PATCH, DELETE";

/// The reason why a request has no route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unserved {
    /// The path is not served.
    Path,
    /// The path is served with other methods: these, as in the header `allow`.
    Method(&'static str),
}

/// Returns a path as it is matched: percent-decoded once and without slashes at its end. Borrowed where that is how it came.
pub(crate) fn plain(path: &str) -> Cow<'_, str> {
    // Nearly all paths are plain, and are borrowed. That also tells `target` to send on what came.
    if !path.ends_with('/') && memchr::memchr(b'%', path.as_bytes()).is_none() {
        return Cow::Borrowed(path);
    }
    // What is no UTF-8 keeps its percent signs, with which no path is served.
    match percent_decode_str(path).decode_utf8() {
        Ok(decoded) => Cow::Owned(decoded.trim_end_matches('/').to_owned()),
        Err(_) => Cow::Borrowed(path),
    }
}

/// Returns the path and query to send on: as they came, or with the path in its canonical spelling where `plain` is another.
#[expect(clippy::ptr_arg, reason = "whether it is borrowed says whether it is as it came")]
pub(crate) fn target(uri: &http::Uri, plain: &Cow<'_, str>) -> PathAndQuery {
    let as_it_came = || uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    let Cow::Owned(plain) = plain else { return as_it_came() };
    let path = utf8_percent_encode(plain, NOT_IN_A_PATH);
    let query = uri.query().map_or_else(String::new, |query| format!("?{query}"));
    PathAndQuery::try_from(format!("{path}{query}")).unwrap_or_else(|_| as_it_came())
}

/// Finds the route of a request by its [`plain`] path.
///
/// # Errors
/// The path is not served, or not with this method.
pub(crate) fn find<'a>(method: &str, path: &'a str) -> Result<Route<'a>, Unserved> {
    let with = |allowed: &'static str, route: Route<'a>| {
        let is_allowed = allowed == method || allowed.split(", ").any(|one| one == method);
        match (is_allowed, method) {
            (true, _) => Ok(route),
            (false, "OPTIONS") => Ok(Route::Options(allowed)),
            (false, _) => Err(Unserved::Method(allowed)),
        }
    };
    if let Some((_, allowed, route)) = TABLE.iter().find(|(known, ..)| *known == path) {
        return with(allowed, *route);
    }
    if let Some(rest) = path.strip_prefix("/v1/responses/") {
        let id = rest.split('/').next().unwrap_or_default();
        let allowed = match &rest[id.len()..] {
            // An id of dots would leave the folder once a server resolves the path.
            _ if matches!(id, "" | "." | "..") => return Err(Unserved::Path),
            "" => "GET, DELETE",
            "/input_items" => "GET",
            "/cancel" => "POST",
            _ => return Err(Unserved::Path),
        };
        return with(allowed, Route::StoredResponse(id));
    }
    match path.strip_prefix("/v1/models/") {
        Some(id) if !id.is_empty() => with(GET, Route::OneModel(id)),
        _ => Err(Unserved::Path),
    }
}

/// Finds the route of a request, also to a path that an operator added or opened.
///
/// # Errors
/// As [`find`].
pub(crate) fn find_with<'a>(settings: &Paths, method: &str, path: &'a str) -> Result<Route<'a>, Unserved> {
    if settings.realtime && path == REALTIME {
        return match method {
            "GET" => Ok(Route::Realtime),
            "OPTIONS" => Ok(Route::Options("GET")),
            _ => Err(Unserved::Method("GET")),
        };
    }
    let found = find(method, path);
    if found != Err(Unserved::Path) || !settings.allow.iter().any(|one| one == path) {
        return found;
    }
    match method {
        "OPTIONS" => Ok(Route::Options(ADDED_METHODS)),
        _ if ADDED_METHODS.split(", ").any(|one| one == method) => Ok(Route::Model(Endpoint::ADDED)),
        _ => Err(Unserved::Method(ADDED_METHODS)),
    }
}

/// Returns the route of a path as traces name it, with a name in place of what a client fills in; `None` where it is not served.
pub(crate) fn template(settings: &Paths, path: &str) -> Option<String> {
    if find_with(settings, "OPTIONS", path).is_err() {
        return None;
    }
    let is_fixed = TABLE.iter().any(|(known, ..)| *known == path) || settings.allow.iter().any(|one| one == path);
    if is_fixed || path == REALTIME {
        return Some(path.to_owned());
    }
    match path.strip_prefix("/v1/responses/") {
        Some(rest) => Some(format!("/v1/responses/{{response_id}}{}", &rest[rest.find('/').unwrap_or(rest.len())..])),
        None => Some("/v1/models/{model}".to_owned()),
    }
}

/// The shape in which the clients of a path expect an error.
pub(crate) fn error_shape(path: &str) -> forebay_core::error::ErrorShape {
    if plain(path).starts_with("/v1/messages") {
        forebay_core::error::ErrorShape::Anthropic
    } else {
        forebay_core::error::ErrorShape::OpenAi
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn development_and_unknown_paths_are_not_served() {
        for (method, path) in [
            ("POST", "/pause"),
            ("POST", "/reset_prefix_cache"),
            ("GET", "/metrics"),
            ("POST", "/v1/responses/resp_1/other"),
            ("POST", "//v1/chat/completions"),
            ("POST", "/%70ause"),
            ("POST", "/pause/"),
            ("POST", "%2Fpause"),
            ("POST", "/v1/../pause"),
            ("POST", "/v1/%2e%2e/pause"),
            ("POST", "/v1/chat/completions/../../../pause"),
            ("POST", "/v1/responses/../../pause"),
            ("POST", "/v1/responses/..%2F..%2Fpause"),
            ("POST", "/v1/responses/../cancel"),
            ("GET", "/v1/responses/%2e%2e"),
            ("GET", "/v1/responses/.%2F"),
            ("POST", "/%2570ause"),
            ("POST", "/v1/chat/completions%00"),
            ("POST", "/v1/chat/completions/%ff"),
        ] {
            assert_eq!(find(method, &plain(path)), Err(Unserved::Path), "{method} {path}");
        }
    }

    #[test]
    fn a_path_is_found_in_every_spelling_and_sent_on_in_one() {
        for (path, sent) in [
            ("/v1/chat/completions", "/v1/chat/completions"),
            ("/v1/chat/completions/?a=%2F", "/v1/chat/completions?a=%2F"),
            ("/v1%2Fchat%2Fcompletions", "/v1/chat/completions"),
            ("/v1/%63hat/completions//", "/v1/chat/completions"),
            ("/tokeniz%65", "/tokenize"),
            ("/v1/responses/a%20b%3F%25/cancel", "/v1/responses/a%20b%3F%25/cancel"),
        ] {
            let uri: http::Uri = path.parse().unwrap();
            let plain = plain(uri.path());
            assert!(find("POST", &plain).is_ok(), "{path}");
            assert_eq!(target(&uri, &plain).as_str(), sent);
        }
    }

    #[test]
    fn a_wrong_method_is_told_the_right_ones() {
        for (method, path, allowed) in [
            ("GET", "/v1/chat/completions", "POST"),
            ("POST", "/v1/models", "GET, HEAD"),
            ("DELETE", "/v1/models/m", "GET, HEAD"),
            ("POST", "/health", "GET, HEAD"),
            ("POST", "/v1/responses/r", "GET, DELETE"),
            ("GET", "/v1/responses/r/cancel", "POST"),
        ] {
            assert_eq!(find(method, path), Err(Unserved::Method(allowed)), "{method} {path}");
        }
    }

    #[test]
    fn a_page_may_ask_what_it_may_send_to_a_path_that_is_served() {
        for (path, allowed) in [("/tokenize", "POST"), ("/v1/models/m", GET), ("/v1/responses/r", "GET, DELETE")] {
            assert_eq!(find("OPTIONS", path), Ok(Route::Options(allowed)), "{path}");
        }
        assert_eq!(find("OPTIONS", "/pause"), Err(Unserved::Path));
    }

    #[test]
    fn what_speaks_of_one_server_or_manages_it_is_closed_in_every_spelling() {
        let closed = [
            "/load",
            "/metrics",
            "/kv_event_sources",
            "/scale_elastic_ep",
            "/is_scaling_elastic_ep",
            "/server_info",
            "/openapi.json",
            "/docs",
            "/redoc",
            "/static/x",
            "/start_profile",
            "/stop_profile",
            "/sleep",
            "/wake_up",
            "/is_sleeping",
            "/pause",
            "/resume",
            "/is_paused",
            "/abort_requests",
            "/inference/v1/abort_requests",
            "/reset_prefix_cache",
            "/reset_mm_cache",
            "/reset_encoder_cache",
            "/collective_rpc",
            "/update_weights",
            "/release_kv_cache_memory",
            "/v1/load_lora_adapter",
            "/v1/unload_lora_adapter",
            "/fault_tolerance/apply",
            "/fault_tolerance/status",
            "/get_world_size",
            "/weight_info",
            "/init_weight_transfer_engine",
            "/v1/realtime",
        ];
        for path in closed {
            // The second letter encoded, a slash at the end, one more in front, a dot, another case.
            let encoded = format!("/%{:02X}{}", path.as_bytes()[1], &path[2..]);
            for spelling in [
                path.to_owned(),
                encoded,
                format!("{path}/"),
                format!("/{path}"),
                format!("/.{path}"),
                path.to_ascii_uppercase(),
            ] {
                for method in ["GET", "POST", "OPTIONS", "HEAD", "DELETE"] {
                    assert_eq!(find(method, &plain(&spelling)), Err(Unserved::Path), "{method} {spelling}");
                }
            }
        }
    }

    #[test]
    fn an_added_path_is_served_in_every_spelling_and_no_other_is() {
        let added = Paths { allow: vec!["/v1/files".to_owned()], realtime: false };
        for path in ["/v1/files", "/v1/fil%65s", "/v1/files/"] {
            assert_eq!(find_with(&added, "PUT", &plain(path)), Ok(Route::Model(Endpoint::ADDED)), "{path}");
        }
        assert_eq!(find_with(&added, "OPTIONS", "/v1/files"), Ok(Route::Options(ADDED_METHODS)));
        assert_eq!(find_with(&added, "TRACE", "/v1/files"), Err(Unserved::Method(ADDED_METHODS)));
        for path in ["/v1/files/x", "/v1/file", "/pause", REALTIME] {
            assert_eq!(find_with(&added, "POST", path), Err(Unserved::Path), "{path}");
        }
    }

    #[test]
    fn each_path_is_in_the_table_once_and_is_plain() {
        for (at, (path, ..)) in TABLE.iter().enumerate() {
            assert!(TABLE[at + 1..].iter().all(|(other, ..)| other != path) && plain(path) == *path, "{path}");
        }
    }

    #[test]
    fn a_stored_response_is_known_by_its_id() {
        assert_eq!(find("POST", "/v1/responses/resp_1/cancel"), Ok(Route::StoredResponse("resp_1")));
        assert_eq!(find("GET", "/v1/responses/resp_1"), Ok(Route::StoredResponse("resp_1")));
    }

    #[test]
    fn a_route_has_names_in_place_of_what_a_client_fills_in() {
        let settings = Paths { allow: vec!["/v1/files".to_owned()], realtime: true };
        let of = |path: &str| template(&settings, path);
        for path in ["/v1/chat/completions", "/v1/models", "/v1/files", REALTIME] {
            assert_eq!(of(path).as_deref(), Some(path));
        }
        assert_eq!(of("/v1/models/org/secret").as_deref(), Some("/v1/models/{model}"));
        assert_eq!(of("/v1/responses/resp_1").as_deref(), Some("/v1/responses/{response_id}"));
        assert_eq!(of("/v1/responses/resp_1/cancel").as_deref(), Some("/v1/responses/{response_id}/cancel"));
        assert_eq!((of("/pause"), of("/v1/responses/..")), (None, None));
    }

    #[test]
    fn model_names_may_hold_slashes() {
        assert_eq!(find("GET", "/v1/models/org/name"), Ok(Route::OneModel("org/name")));
        assert_eq!(find("GET", &plain("/v1/models/org%2Fname")), Ok(Route::OneModel("org/name")));
    }
}
