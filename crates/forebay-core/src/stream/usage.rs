//! Token counts as vLLM reports them, under every name that its APIs use. Never guesses: what is not there stays `None`.
//!
//! Hot path: only events that hold `"usage"`; a borrowed parse, no allocation.

use memchr::memmem;
use serde::Deserialize;

use super::Api;

/// The tokens that a request used, as the backend counts them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Usage {
    /// Tokens of the prompt, those found in the prefix cache included.
    pub prompt_tokens: u64,
    /// Tokens generated, all choices together.
    pub completion_tokens: u64,
    /// Tokens of the prompt found in the prefix cache; only with `--enable-prompt-tokens-details`.
    pub cached_tokens: Option<u64>,
}

/// A `usage` object as written. OpenAI's names and Anthropic's; all may be absent or null.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub(super) struct Written {
    prompt_tokens: Option<u64>,
    completion_tokens: Option<u64>,
    prompt_tokens_details: Option<Details>,
    input_tokens: Option<u64>,
    output_tokens: Option<u64>,
    input_tokens_details: Option<Details>,
    cache_read_input_tokens: Option<u64>,
    cache_creation_input_tokens: Option<u64>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
struct Details {
    cached_tokens: Option<u64>,
}

impl Written {
    /// The counts, over those reported earlier in the same answer. `None` where nothing here is a count.
    pub(super) fn over(self, earlier: Option<Usage>, api: Api) -> Option<Usage> {
        let (prompt, completion, details) = match api {
            Api::Responses | Api::Messages => (self.input_tokens, self.output_tokens, self.input_tokens_details),
            Api::Chat | Api::Completions => (self.prompt_tokens, self.completion_tokens, self.prompt_tokens_details),
            Api::Other => (
                self.prompt_tokens.or(self.input_tokens),
                self.completion_tokens.or(self.output_tokens),
                self.prompt_tokens_details.or(self.input_tokens_details),
            ),
        };
        if prompt.is_none() && completion.is_none() {
            return None;
        }
        // Messages tells the prompt at the start and the answer at the end: each report fills in what it has.
        let before = earlier.unwrap_or_default();
        // Anthropic's input_tokens leave out what the cache had and what was put there.
        let apart = match api {
            Api::Messages => {
                self.cache_read_input_tokens.unwrap_or(0).saturating_add(self.cache_creation_input_tokens.unwrap_or(0))
            }
            _ => 0,
        };
        let cached = match api {
            Api::Messages => self.cache_read_input_tokens,
            _ => details.and_then(|details| details.cached_tokens),
        };
        Some(Usage {
            prompt_tokens: prompt.map_or(before.prompt_tokens, |tokens| tokens.saturating_add(apart)),
            completion_tokens: completion.unwrap_or(before.completion_tokens),
            cached_tokens: cached.or(before.cached_tokens),
        })
    }
}

/// The usage in the JSON body of an answer that is no stream. `None` where the body has none, or is no JSON.
#[must_use]
pub fn usage_of_body(api: Api, body: &[u8]) -> Option<Usage> {
    #[derive(Deserialize)]
    struct AnswerWithUsage {
        usage: Option<Written>,
    }
    memmem::find(body, b"\"usage\"")?;
    serde_json::from_slice::<AnswerWithUsage>(body).ok()?.usage?.over(None, api)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn anthropic_prompts_are_whole_again() {
        let body = br#"{"usage":{"input_tokens":20,"cache_read_input_tokens":192,"output_tokens":8}}"#;
        let usage = Usage { prompt_tokens: 212, completion_tokens: 8, cached_tokens: Some(192) };
        assert_eq!(usage_of_body(Api::Messages, body), Some(usage));
    }

    #[test]
    fn a_body_without_counts_has_no_usage() {
        for body in [r#"{"usage":null}"#, r#"{"usage":{}}"#, r#"{"text":"\"usage\""}"#, "", "x", r#"{"usage":5}"#] {
            assert_eq!(usage_of_body(Api::Chat, body.as_bytes()), None, "{body}");
        }
    }

    #[test]
    fn embeddings_use_prompt_tokens_only() {
        let body = br#"{"data":[{"embedding":[0.5]}],"usage":{"prompt_tokens":3,"total_tokens":3,"completion_tokens":0,"prompt_tokens_details":null}}"#;
        assert_eq!(usage_of_body(Api::Other, body).map(|usage| usage.prompt_tokens), Some(3));
    }
}
