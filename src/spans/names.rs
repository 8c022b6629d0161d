//! The names of a span's attributes and events, and the values that the conventions fix. HTTP's are stable. Those of generative AI are
//! still in development: where they change, this file changes. Forebay's own begin with `forebay.`.

// HTTP and networks: OpenTelemetry semantic conventions, stable since 1.23.
pub(super) const METHOD: &str = "http.request.method";
pub(super) const ROUTE: &str = "http.route";
pub(super) const STATUS: &str = "http.response.status_code";
pub(super) const RESENDS: &str = "http.request.resend_count";
pub(super) const URL: &str = "url.full";
pub(super) const PATH: &str = "url.path";
pub(super) const SCHEME: &str = "url.scheme";
pub(super) const ADDRESS: &str = "server.address";
pub(super) const PORT: &str = "server.port";
pub(super) const ERROR: &str = "error.type";

// Generative AI.
pub(super) const OPERATION: &str = "gen_ai.operation.name";
pub(super) const PROVIDER: &str = "gen_ai.provider.name";
pub(super) const MODEL: &str = "gen_ai.request.model";
pub(super) const STREAM: &str = "gen_ai.request.stream";
pub(super) const FIRST_CHUNK: &str = "gen_ai.response.time_to_first_chunk";
pub(super) const INPUT_TOKENS: &str = "gen_ai.usage.input_tokens";
pub(super) const OUTPUT_TOKENS: &str = "gen_ai.usage.output_tokens";
pub(super) const CACHED_TOKENS: &str = "gen_ai.usage.cache_read.input_tokens";
/// The value of [`PROVIDER`].
pub(super) const VLLM: &str = "vllm";

// Forebay's own. Times are in seconds, as those of the conventions are.
pub(super) const REQUEST_ID: &str = "forebay.request_id";
pub(super) const OUTCOME: &str = "forebay.outcome";
pub(super) const TTFT: &str = "forebay.ttft";
pub(super) const PREDICTED: &str = "forebay.ttft.predicted";
pub(super) const WAIT: &str = "forebay.wait";
pub(super) const ATTEMPTS: &str = "forebay.attempts";
pub(super) const POOL: &str = "forebay.pool";
pub(super) const ARM: &str = "forebay.arm";
pub(super) const ASSIGNED_ARM: &str = "forebay.assigned_arm";
pub(super) const POLICY: &str = "forebay.policy";
pub(super) const BACKEND: &str = "forebay.backend";
/// The event of the first token.
pub(super) const FIRST_TOKEN: &str = "first_token";

use http::Method;

use forebay_core::stream::Api;

/// The value of [`METHOD`] for what the conventions do not know.
pub(super) const OTHER_METHOD: &str = "_OTHER";
/// The methods that the conventions know.
const METHODS: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];

/// Returns the method, if the conventions know it. Any other is a client's word, which no span repeats.
pub(super) fn method(method: &Method) -> Option<&'static str> {
    METHODS.into_iter().find(|known| *known == method.as_str())
}

/// Returns the conventions' name of what a request asks a model for. Where they have none, it is the last fixed part of the route.
pub(super) fn operation(api: Api, route: &str) -> &str {
    match (api, route) {
        (Api::Chat | Api::Responses | Api::Messages, _) => "chat",
        (Api::Completions, _) => "text_completion",
        (_, "/v1/embeddings" | "/v2/embed") => "embeddings",
        _ => route.rsplit('/').find(|part| !part.is_empty() && !part.starts_with('{')).unwrap_or("request"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operation_has_the_name_of_the_conventions_or_of_its_route() {
        for (api, route, name) in [
            (Api::Chat, "/v1/chat/completions", "chat"),
            (Api::Messages, "/v1/messages", "chat"),
            (Api::Completions, "/v1/completions", "text_completion"),
            (Api::Other, "/v1/embeddings", "embeddings"),
            (Api::Other, "/v1/rerank", "rerank"),
            (Api::Other, "/v1/models/{model}", "models"),
            (Api::Other, "", "request"),
        ] {
            assert_eq!(operation(api, route), name);
        }
    }
}
