//! The allow-list: which method and path is served, by which API, and what is read of it. vLLM's key guards only `/v1` and its
//! development paths can stop the engine, so whatever is not listed here does not reach a backend. The list is matched on the
//! decoded path, as vLLM's is, and a path that was encoded is sent on in one canonical spelling.

use std::borrow::Cow;

use http::uri::PathAndQuery;
use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};

use forebay_core::stream::Api;

/// The characters that a path may not hold as they are (RFC 3986 section 3.3).
const NOT_IN_A_PATH: &AsciiSet =
    &CONTROLS.add(b' ').add(b'"').add(b'#').add(b'%').add(b'<').add(b'>').add(b'?').add(b'`').add(b'{').add(b'}');

/// The thing that a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route<'a> {
    /// A body that names a model; goes to a backend of its pool.
    Model(Endpoint),
    /// `/v1/responses/{id}` and what is under it: goes to the backend that made the response.
    StoredResponse(&'a str),
    /// `/v1/models`: answered here.
    Models,
    /// `/v1/models/{id}`: answered here.
    OneModel(&'a str),
    /// `/version`: any backend's.
    Version,
    /// `/health`: Forebay's own.
    Health,
    /// `/ready`: Forebay's own.
    Ready,
}

/// An endpoint that takes a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Endpoint {
    pub(crate) api: Api,
    pub(crate) body: BodyForm,
    pub(crate) effort: Effort,
}

/// The form in which the body says which model it wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BodyForm {
    Json,
    /// A form with a file; passed on untouched.
    Multipart,
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

const fn json(api: Api, effort: Effort) -> Option<Endpoint> {
    Some(Endpoint { api, body: BodyForm::Json, effort })
}

fn endpoint(path: &str) -> Option<Endpoint> {
    match path {
        "/v1/chat/completions" => json(Api::Chat, Effort::Generate),
        "/v1/completions" => json(Api::Completions, Effort::Generate),
        "/v1/responses" => json(Api::Responses, Effort::Generate),
        "/v1/messages" => json(Api::Messages, Effort::Generate),
        "/v1/messages/count_tokens" | "/tokenize" | "/detokenize" => json(Api::Other, Effort::None),
        "/v1/embeddings" | "/rerank" | "/v1/rerank" | "/v2/rerank" | "/score" | "/v1/score" | "/pooling"
        | "/classify" => json(Api::Other, Effort::Prefill),
        "/v1/audio/transcriptions" | "/v1/audio/translations" => {
            Some(Endpoint { api: Api::Other, body: BodyForm::Multipart, effort: Effort::Generate })
        }
        _ => None,
    }
}

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
        if is_allowed { Ok(route) } else { Err(Unserved::Method(allowed)) }
    };
    if let Some(found) = endpoint(path) {
        return with("POST", Route::Model(found));
    }
    if let Some(rest) = path.strip_prefix("/v1/responses/") {
        let id = rest.split('/').next().unwrap_or_default();
        let allowed = match &rest[id.len()..] {
            _ if matches!(id, "" | "." | "..") => return Err(Unserved::Path),
            "" => "GET, DELETE",
            "/input_items" => "GET",
            "/cancel" => "POST",
            _ => return Err(Unserved::Path),
        };
        return with(allowed, Route::StoredResponse(id));
    }
    let route = match path {
        "/v1/models" => Route::Models,
        "/version" => Route::Version,
        "/health" => Route::Health,
        "/ready" => Route::Ready,
        _ => match path.strip_prefix("/v1/models/") {
            Some(id) if !id.is_empty() => Route::OneModel(id),
            _ => return Err(Unserved::Path),
        },
    };
    with("GET, HEAD", route)
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
            ("OPTIONS", "/tokenize", "POST"),
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
    fn a_stored_response_is_known_by_its_id() {
        assert_eq!(find("POST", "/v1/responses/resp_1/cancel"), Ok(Route::StoredResponse("resp_1")));
        assert_eq!(find("GET", "/v1/responses/resp_1"), Ok(Route::StoredResponse("resp_1")));
    }

    #[test]
    fn model_names_may_hold_slashes() {
        assert_eq!(find("GET", "/v1/models/org/name"), Ok(Route::OneModel("org/name")));
        assert_eq!(find("GET", &plain("/v1/models/org%2Fname")), Ok(Route::OneModel("org/name")));
    }
}
