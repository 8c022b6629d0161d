//! The bytes of the simulated server's answers, in the form of vLLM 0.32.0: the events of a stream and whole bodies. Pure.
//!
//! Every token of every simulated stream passes here: one buffer for each event and no JSON value in between.

use std::fmt::Write;

use bytes::Bytes;
use serde_json::Value;

use super::request::Api;

/// The end of a stream.
pub const DONE: Bytes = Bytes::from_static(b"data: [DONE]\n\n");

/// Token counts of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompts.
    pub prompt: u64,
    /// Tokens of the answers.
    pub completion: u64,
    /// Tokens of the prompts that were in the prefix cache; none unless the server is to tell.
    pub cached: Option<u64>,
}

impl Usage {
    fn members(self) -> String {
        let Usage { prompt, completion, .. } = self;
        format!(r#""prompt_tokens":{prompt},"total_tokens":{},"completion_tokens":{completion}"#, prompt + completion)
    }

    fn details(self) -> String {
        match self.cached {
            Some(cached) => format!(r#"{{"cached_tokens":{cached},"created_cache_tokens":0}}"#),
            None => "null".to_owned(),
        }
    }
}

/// Writes one answer's events or its body.
#[derive(Clone, Debug)]
pub struct Framing {
    api: Api,
    /// `data: {"id":…,"object":…,"created":…,"model":…,"choices":[`
    head: String,
    fingerprint: String,
    whole: String,
}

/// A piece of an answer's text.
#[derive(Clone, Copy, Debug)]
pub struct Piece<'a> {
    /// Number of the answer, from 0.
    pub choice: usize,
    /// The text; must need no escaping in JSON.
    pub text: &'a str,
    /// Reason why it ends with this piece.
    pub finish: Option<&'static str>,
    /// Counts so far, where every event carries them.
    pub usage: Option<Usage>,
}

impl Framing {
    /// The frame of one answer: its id without prefix, when it was asked (Unix seconds), the model as the client named it.
    #[must_use]
    pub fn new(api: Api, id: &str, created: u64, model: &str) -> Framing {
        let (prefix, chunk, whole) = match api {
            Api::Chat => ("chatcmpl", "chat.completion.chunk", "chat.completion"),
            Api::Completions => ("cmpl", "text_completion", "text_completion"),
        };
        let id = Value::from(format!("{prefix}-{id}"));
        let model = Value::from(model);
        let identity = format!(r#""created":{created},"model":{model},"choices":["#);
        Framing {
            api,
            head: format!(r#"data: {{"id":{id},"object":"{chunk}",{identity}"#),
            whole: format!(r#"{{"id":{id},"object":"{whole}",{identity}"#),
            fingerprint: r#""system_fingerprint":"forebay-sim""#.to_owned(),
        }
    }

    /// The event that opens a choice of a chat; completions have none.
    #[must_use]
    pub fn role(&self, choice: usize, usage: Option<Usage>) -> Bytes {
        let mut out = String::with_capacity(self.head.len() + 200);
        out.push_str(&self.head);
        let delta = r#""delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]"#;
        let _ = write!(out, r#"{{"index":{choice},{delta}"#);
        if let Some(usage) = usage {
            let _ = write!(out, r#","usage":{{{},"completion_tokens_details":null}}"#, usage.members());
        }
        out.push_str(",\"prompt_token_ids\":null,\"prompt_text\":null}\n\n");
        Bytes::from(out)
    }

    /// The event of one or more tokens. `last_word`: no usage event follows, so that a finish carries the fingerprint.
    #[must_use]
    pub fn tokens(&self, piece: Piece<'_>, last_word: bool) -> Bytes {
        let mut out = String::with_capacity(self.head.len() + piece.text.len() + 260);
        out.push_str(&self.head);
        let (choice, text) = (piece.choice, piece.text);
        let _ = match self.api {
            Api::Chat => write!(out, r#"{{"index":{choice},"delta":{{"content":"{text}"}},"logprobs":null"#),
            Api::Completions => write!(out, r#"{{"index":{choice},"text":"{text}","logprobs":null"#),
        };
        let _ = match (piece.finish, self.api) {
            (Some(reason), _) => write!(out, r#","finish_reason":"{reason}","stop_reason":null"#),
            (None, Api::Chat) => out.write_str(r#","finish_reason":null"#),
            (None, Api::Completions) => out.write_str(r#","finish_reason":null,"stop_reason":null"#),
        };
        out.push_str(if self.api == Api::Completions {
            r#","prompt_token_ids":null,"token_ids":null}]"#
        } else {
            r#","token_ids":null}]"#
        });
        if let Some(usage) = piece.usage {
            let details = if self.api == Api::Chat { r#","completion_tokens_details":null"# } else { "" };
            let _ = write!(out, r#","usage":{{{}{details}}}"#, usage.members());
        }
        if piece.finish.is_some() && last_word {
            let _ = write!(out, ",{}", self.fingerprint);
        }
        out.push_str("}\n\n");
        Bytes::from(out)
    }

    /// The event with the token counts of all choices.
    #[must_use]
    pub fn usage(&self, usage: Usage) -> Bytes {
        let details = match usage.cached {
            Some(_) => format!(r#","prompt_tokens_details":{}"#, usage.details()),
            None => String::new(),
        };
        let (head, members, fingerprint) = (&self.head, usage.members(), &self.fingerprint);
        Bytes::from(format!("{head}],\"usage\":{{{members}{details}}},{fingerprint}}}\n\n"))
    }

    /// A whole body: text and reason of each choice.
    #[must_use]
    pub fn body(&self, choices: &[(String, &'static str)], usage: Usage) -> String {
        let mut out = self.whole.clone();
        for (index, (text, reason)) in choices.iter().enumerate() {
            let comma = if index > 0 { "," } else { "" };
            let _ = match self.api {
                Api::Chat => write!(
                    out,
                    r#"{comma}{{"index":{index},"message":{{"role":"assistant","content":"{text}","refusal":null,"annotations":null,"audio":null,"function_call":null,"reasoning":null}},"logprobs":null,"finish_reason":"{reason}","stop_reason":null,"token_ids":null,"routed_experts":null}}"#
                ),
                Api::Completions => write!(
                    out,
                    r#"{comma}{{"index":{index},"text":"{text}","logprobs":null,"finish_reason":"{reason}","stop_reason":null,"token_ids":null,"prompt_logprobs":null,"prompt_token_ids":null,"routed_experts":null}}"#
                ),
            };
        }
        let prompt = match self.api {
            Api::Chat => r#""prompt_logprobs":null,"prompt_token_ids":null,"prompt_text":null,"#,
            Api::Completions => "",
        };
        let (members, details, fingerprint) = (usage.members(), usage.details(), &self.fingerprint);
        let _ = write!(
            out,
            r#"],"service_tier":null,{fingerprint},"usage":{{{members},"prompt_tokens_details":{details},"completion_tokens_details":null}},{prompt}"kv_transfer_params":null,"ec_transfer_params":null,"metrics":null}}"#
        );
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const USAGE: Usage = Usage { prompt: 18, completion: 8, cached: None };

    fn framing(api: Api) -> Framing {
        let mut framing = Framing::new(api, "b382a3865df1be9c", 1_795_429_251, "tiny");
        framing.fingerprint = r#""system_fingerprint":"vllm-0.32.0-8bb187da""#.to_owned();
        framing
    }

    /// Recordings of vLLM 0.32.0: `chat-stream`, `chat-stream-usage-continuous`, `completion-stream-usage`, `chat`.
    #[test]
    fn events_are_those_of_the_recordings_byte_for_byte() {
        let chat = framing(Api::Chat);
        let head = r#"data: {"id":"chatcmpl-b382a3865df1be9c","object":"chat.completion.chunk","created":1795429251,"model":"tiny","choices":["#;
        let piece = Piece { choice: 0, text: "de", finish: None, usage: None };
        let cases = [
            (
                chat.role(0, None),
                r#"{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}],"prompt_token_ids":null,"prompt_text":null}"#,
            ),
            (
                chat.role(0, Some(Usage { completion: 0, ..USAGE })),
                r#"{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}],"usage":{"prompt_tokens":18,"total_tokens":18,"completion_tokens":0,"completion_tokens_details":null},"prompt_token_ids":null,"prompt_text":null}"#,
            ),
            (
                chat.tokens(piece, true),
                r#"{"index":0,"delta":{"content":"de"},"logprobs":null,"finish_reason":null,"token_ids":null}]}"#,
            ),
            (
                chat.tokens(Piece { text: "):", finish: Some("length"), ..piece }, true),
                r#"{"index":0,"delta":{"content":"):"},"logprobs":null,"finish_reason":"length","stop_reason":null,"token_ids":null}],"system_fingerprint":"vllm-0.32.0-8bb187da"}"#,
            ),
            (
                chat.tokens(Piece { text: "):", finish: Some("length"), usage: Some(USAGE), ..piece }, false),
                r#"{"index":0,"delta":{"content":"):"},"logprobs":null,"finish_reason":"length","stop_reason":null,"token_ids":null}],"usage":{"prompt_tokens":18,"total_tokens":26,"completion_tokens":8,"completion_tokens_details":null}}"#,
            ),
            (
                chat.usage(USAGE),
                r#"],"usage":{"prompt_tokens":18,"total_tokens":26,"completion_tokens":8},"system_fingerprint":"vllm-0.32.0-8bb187da"}"#,
            ),
        ];
        for (event, tail) in cases {
            assert_eq!(event, format!("{head}{tail}\n\n"));
        }
        let completion = framing(Api::Completions);
        let head = r#"data: {"id":"cmpl-b382a3865df1be9c","object":"text_completion","created":1795429251,"model":"tiny","choices":["#;
        let cases = [
            (
                completion.tokens(Piece { text: " six", ..piece }, false),
                r#"{"index":0,"text":" six","logprobs":null,"finish_reason":null,"stop_reason":null,"prompt_token_ids":null,"token_ids":null}]}"#,
            ),
            (
                completion.tokens(Piece { text: "ital", finish: Some("length"), ..piece }, false),
                r#"{"index":0,"text":"ital","logprobs":null,"finish_reason":"length","stop_reason":null,"prompt_token_ids":null,"token_ids":null}]}"#,
            ),
        ];
        for (event, tail) in cases {
            assert_eq!(event, format!("{head}{tail}\n\n"));
        }
    }

    /// Recordings `chat` and `completion`.
    #[test]
    fn bodies_are_those_of_the_recordings_byte_for_byte() {
        let text = "de shortWhat jumons ei):".to_owned();
        assert_eq!(
            framing(Api::Chat).body(&[(text, "length")], USAGE),
            r#"{"id":"chatcmpl-b382a3865df1be9c","object":"chat.completion","created":1795429251,"model":"tiny","choices":[{"index":0,"message":{"role":"assistant","content":"de shortWhat jumons ei):","refusal":null,"annotations":null,"audio":null,"function_call":null,"reasoning":null},"logprobs":null,"finish_reason":"length","stop_reason":null,"token_ids":null,"routed_experts":null}],"service_tier":null,"system_fingerprint":"vllm-0.32.0-8bb187da","usage":{"prompt_tokens":18,"total_tokens":26,"completion_tokens":8,"prompt_tokens_details":null,"completion_tokens_details":null},"prompt_logprobs":null,"prompt_token_ids":null,"prompt_text":null,"kv_transfer_params":null,"ec_transfer_params":null,"metrics":null}"#
        );
        assert_eq!(
            framing(Api::Completions)
                .body(&[("):N sixs ei):Nital".to_owned(), "length")], Usage { prompt: 7, completion: 8, cached: None }),
            r#"{"id":"cmpl-b382a3865df1be9c","object":"text_completion","created":1795429251,"model":"tiny","choices":[{"index":0,"text":"):N sixs ei):Nital","logprobs":null,"finish_reason":"length","stop_reason":null,"token_ids":null,"prompt_logprobs":null,"prompt_token_ids":null,"routed_experts":null}],"service_tier":null,"system_fingerprint":"vllm-0.32.0-8bb187da","usage":{"prompt_tokens":7,"total_tokens":15,"completion_tokens":8,"prompt_tokens_details":null,"completion_tokens_details":null},"kv_transfer_params":null,"ec_transfer_params":null,"metrics":null}"#
        );
    }

    #[test]
    fn a_model_name_is_escaped() {
        let event = Framing::new(Api::Chat, "1", 0, r#"a"b"#).usage(USAGE);
        let text = std::str::from_utf8(&event).unwrap().trim_start_matches("data: ");
        assert_eq!(serde_json::from_str::<Value>(text).unwrap()["model"], r#"a"b"#);
    }
}
