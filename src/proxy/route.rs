//! The allow-list: which method and path is served, by which API, and what is read of it. vLLM's key guards only `/v1` and its
//! development paths can stop the engine, so whatever is not listed here does not reach a backend.

use forebay_core::stream::Api;

/// What a request asks for.
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

/// How the body says which model it wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BodyForm {
    Json,
    /// A form with a file; passed on untouched.
    Multipart,
}

/// What the engine has to do for an answer.
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

/// Finds the route of a request; `None` is a path or method that is not served.
pub(crate) fn find<'a>(method: &str, path: &'a str) -> Option<Route<'a>> {
    if let Some(found) = endpoint(path) {
        // A known path with another method is not served either, and is told so by the caller.
        return (method == "POST").then_some(Route::Model(found));
    }
    if let Some(rest) = path.strip_prefix("/v1/responses/") {
        let id = rest.split('/').next().unwrap_or_default();
        let tail = &rest[id.len()..];
        let known = matches!((method, tail), ("GET", "" | "/input_items") | ("POST", "/cancel") | ("DELETE", ""));
        return (known && !id.is_empty()).then_some(Route::StoredResponse(id));
    }
    if !matches!(method, "GET" | "HEAD") {
        return None;
    }
    match path {
        "/v1/models" => Some(Route::Models),
        "/version" => Some(Route::Version),
        "/health" => Some(Route::Health),
        "/ready" => Some(Route::Ready),
        _ => path.strip_prefix("/v1/models/").filter(|id| !id.is_empty()).map(Route::OneModel),
    }
}

/// The shape in which the clients of a path expect an error.
pub(crate) fn error_shape(path: &str) -> forebay_core::error::ErrorShape {
    if path.starts_with("/v1/messages") {
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
            ("GET", "/v1/chat/completions"),
            ("POST", "/v1/models"),
            ("POST", "/v1/chat/completions/"),
            ("GET", "/v1/responses/"),
            ("POST", "/v1/responses/resp_1/other"),
            ("POST", "//v1/chat/completions"),
        ] {
            assert_eq!(find(method, path), None, "{method} {path}");
        }
    }

    #[test]
    fn a_stored_response_is_known_by_its_id() {
        assert_eq!(find("POST", "/v1/responses/resp_1/cancel"), Some(Route::StoredResponse("resp_1")));
        assert_eq!(find("GET", "/v1/responses/resp_1"), Some(Route::StoredResponse("resp_1")));
    }

    #[test]
    fn model_names_may_hold_slashes() {
        assert_eq!(find("GET", "/v1/models/org/name"), Some(Route::OneModel("org/name")));
    }
}
