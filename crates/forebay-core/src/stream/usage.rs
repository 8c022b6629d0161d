//! Token counts as vLLM reports them, under every name that its APIs use. Never guesses: what is not there stays `None`.
//!
//! Hot path: only events that hold `"usage"`; a borrowed parse, no allocation. Of a document the part from its last `"usage"` on is
//! copied and parsed, if that is its smaller half.

use std::sync::LazyLock;

use memchr::memmem::Finder;
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

static USAGE: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new("\"usage\""));

/// An answer that is one document, as far as it is read.
#[derive(Deserialize)]
struct Answer {
    usage: Option<Written>,
}

impl Answer {
    fn read(body: &[u8]) -> Option<Answer> {
        let last = USAGE.find_iter(body).last()?;
        Answer::read_from(last, body).or_else(|| serde_json::from_slice(body).ok())
    }

    /// The answer by its part from a `"usage"` on; `None` where that is no member of the answer itself, or in the larger half.
    fn read_from(at: usize, body: &[u8]) -> Option<Answer> {
        let rest = &body[at..];
        // Most of a document is its text, which need not be read for the few counts behind it.
        if rest.len() > body.len() / 2 || body.trim_ascii_start().first() != Some(&b'{') {
            return None;
        }
        // A member of something within the answer leaves more braces to close than the one, and a text has no colon behind it.
        let mut object = Vec::with_capacity(rest.len() + 1);
        object.push(b'{');
        object.extend_from_slice(rest);
        serde_json::from_slice(&object).ok()
    }
}

/// The usage in the JSON body of an answer that is no stream. `None` where the body has none, or is no JSON.
#[must_use]
pub fn usage_of_body(api: Api, body: &[u8]) -> Option<Usage> {
    Answer::read(body)?.usage?.over(None, api)
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

    /// The answer as all of its JSON has it.
    fn by_all(api: Api, body: &str) -> Option<Usage> {
        serde_json::from_str::<Answer>(body).ok()?.usage?.over(None, api)
    }

    #[test]
    fn usage_behind_the_text_is_found_without_it() {
        let text = "so it is, ".repeat(50);
        let counts = r#"{"prompt_tokens":31,"total_tokens":35,"completion_tokens":4,"prompt_tokens_details":null}"#;
        let usage = Some(Usage { prompt_tokens: 31, completion_tokens: 4, cached_tokens: None });
        for (body, found) in [
            (format!(r#"{{"text":"{text}","usage":{counts},"prompt_logprobs":null}}"#), usage),
            (format!(" {{\"text\":\"{text}\", \"usage\" : {counts} }}\n"), usage),
            (format!(r#"{{"usage":{counts},"text":"{text}"}}"#), usage),
            (format!(r#"{{"text":"{text}","usage":{counts},"x":{{"usage":{{"prompt_tokens":9}}}}}}"#), usage),
            (format!(r#"{{"text":"{text}","x":{{"usage":{counts}}}}}"#), None),
            (format!(r#"{{"text":"{text}","x":[{{"usage":{counts}}}]}}"#), None),
            (format!(r#"{{"text":"{text} \"usage\":{{}}","usage":{counts},"end":"usage"}}"#), usage),
            (format!(r#"{{"text":"{text}","end":["usage"]}}"#), None),
            (format!(r#"{{"text":"{text}","usage":null}}"#), None),
        ] {
            assert_eq!(usage_of_body(Api::Chat, body.as_bytes()), found, "{body}");
            assert_eq!(by_all(Api::Chat, &body), found, "{body}");
        }
        let cut = format!(r#"{{"text":"{text}","usage":{{"prompt_tokens":31"#);
        assert_eq!(usage_of_body(Api::Chat, cut.as_bytes()), None);
        let list = format!(r#"[{{"text":"{text}","usage":{counts}}}"#);
        assert_eq!(usage_of_body(Api::Chat, list.as_bytes()), None);
    }

    #[test]
    fn embeddings_use_prompt_tokens_only() {
        let body = br#"{"data":[{"embedding":[0.5]}],"usage":{"prompt_tokens":3,"total_tokens":3,"completion_tokens":0,"prompt_tokens_details":null}}"#;
        assert_eq!(usage_of_body(Api::Other, body).map(|usage| usage.prompt_tokens), Some(3));
    }
}
