//! What a client asks of the simulated server: request bodies read as vLLM reads them, with its error answers. Pure.
//! Sampling parameters are taken and mean nothing, since no model runs.

use serde_json::{Map, Value};

use crate::text;

/// One of the two generating routes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Api {
    /// `/v1/chat/completions`.
    Chat,
    /// `/v1/completions`.
    Completions,
}

/// A request that was understood.
#[derive(Clone, Debug)]
pub struct Ask {
    /// The route that it came by.
    pub api: Api,
    /// The prompts, in tokens; one for a chat, one or more for completions; none of them empty.
    pub prompts: Vec<Vec<u32>>,
    /// The limit for each answer, in tokens; at least 1.
    pub max_tokens: u32,
    /// Answers for each prompt; at least 1.
    pub n: u32,
    /// True if the answer comes as events, not as one body.
    pub stream: bool,
    /// A last event with token counts.
    pub include_usage: bool,
    /// Token counts in every event.
    pub continuous_usage: bool,
    /// Answer up to the limit, always.
    pub ignore_eos: bool,
    /// The client's own seed.
    pub seed: u64,
}

/// An answer that is an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    /// The HTTP status.
    pub status: u16,
    /// For people.
    pub message: String,
    /// `error.type`.
    pub kind: &'static str,
    /// `error.param`.
    pub param: Option<String>,
}

impl ApiError {
    fn validation(kind: &str, at: &str, message: &str, input: &str) -> ApiError {
        ApiError {
            status: 400,
            message: format!(
                "1 validation error:\n  {{'type': '{kind}', 'loc': '{at}', 'msg': '{message}', 'input': '{input}'}}"
            ),
            kind: "Bad Request",
            param: Some(at.to_owned()),
        }
    }

    fn bad(param: &str, value: Option<&str>, message: &str) -> ApiError {
        let value = value.map(|value| format!(", value={value}")).unwrap_or_default();
        ApiError {
            status: 400,
            message: format!("{message} (parameter={param}{value})"),
            kind: "BadRequestError",
            param: Some(param.to_owned()),
        }
    }

    /// No or a wrong content type.
    #[must_use]
    pub fn content_type() -> ApiError {
        ApiError {
            status: 400,
            message: "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed".to_owned(),
            kind: "Bad Request",
            param: None,
        }
    }

    /// The body, as vLLM writes it.
    #[must_use]
    pub fn body(&self) -> String {
        let text = |value: &str| Value::from(value).to_string();
        let param = self.param.as_deref().map_or_else(|| "null".to_owned(), text);
        let (message, kind, status) = (text(&self.message), text(self.kind), self.status);
        format!(r#"{{"error":{{"message":{message},"type":{kind},"param":{param},"code":{status}}}}}"#)
    }
}

/// Reads a body as a JSON object whose `model`, if any, is one of those served.
///
/// # Errors
/// It is no JSON, no object, or names another model.
pub fn object(body: &[u8], served: &[String]) -> Result<Map<String, Value>, ApiError> {
    if body.is_empty() {
        return Err(ApiError::validation("missing", "body", "Field required", "None"));
    }
    let members = match serde_json::from_slice(body) {
        Ok(Value::Object(members)) => members,
        Ok(other) => {
            let input = match other {
                Value::Array(items) => format!("<list of {} items>", items.len()),
                scalar => scalar.to_string(),
            };
            let message = "Input should be a valid dictionary or object to extract fields from";
            return Err(ApiError::validation("model_attributes_type", "body", message, &input));
        }
        Err(error) => {
            let lines = body.split_inclusive(|byte| *byte == b'\n').take(error.line().saturating_sub(1));
            let offset = lines.map(<[u8]>::len).sum::<usize>() + error.column();
            let mut refused = ApiError::validation("json_invalid", &format!("body.{offset}"), "JSON decode error", "");
            refused.message = refused
                .message
                .replace("'input': ''}", "'input': '<dict of 0 items>', 'ctx': {'error': 'Expecting value'}}");
            return Err(refused);
        }
    };
    match members.get("model") {
        Some(Value::String(model)) if !served.contains(model) => Err(ApiError {
            status: 404,
            message: format!("The model `{model}` does not exist. Valid aliases: {}.", served.join(", ")),
            kind: "NotFoundError",
            param: Some("model".to_owned()),
        }),
        _ => Ok(members),
    }
}

fn integer(members: &Map<String, Value>, key: &str) -> Result<Option<i64>, ApiError> {
    match members.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Number(number)) if number.is_i64() => Ok(number.as_i64()),
        Some(Value::String(text)) => match text.parse() {
            Ok(number) => Ok(Some(number)),
            Err(_) => Err(ApiError::validation(
                "int_parsing",
                &format!("body.{key}"),
                "Input should be a valid integer, unable to parse string as an integer",
                text,
            )),
        },
        Some(other) => {
            let message = "Input should be a valid integer";
            Err(ApiError::validation("int_type", &format!("body.{key}"), message, &other.to_string()))
        }
    }
}

fn flag(members: &Map<String, Value>, key: &str) -> bool {
    members.get(key).and_then(Value::as_bool).unwrap_or(false)
}

/// The text of a message: a string, or the text parts of a list.
fn content(message: &Value) -> String {
    match message.get("content") {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => parts.iter().filter_map(|part| part.get("text")?.as_str()).collect(),
        _ => String::new(),
    }
}

/// The prompts of a body in tokens: `messages` or `prompt`, in any of the forms that vLLM takes.
///
/// # Errors
/// There is none, or it is of another form.
pub fn prompts(api: Api, members: &Map<String, Value>) -> Result<Vec<Vec<u32>>, ApiError> {
    let key = if api == Api::Chat { "messages" } else { "prompt" };
    let wrong = |message: &str| ApiError::validation("list_type", &format!("body.{key}"), message, "<...>");
    let Some(value) = members.get(key) else {
        let input = format!("<dict of {} items>", members.len());
        return Err(ApiError::validation("missing", &format!("body.{key}"), "Field required", &input));
    };
    if api == Api::Chat {
        let messages = value.as_array().ok_or_else(|| wrong("Input should be a valid list"))?;
        let texts: Vec<(&str, String)> = messages
            .iter()
            .map(|message| (message.get("role").and_then(Value::as_str).unwrap_or("user"), content(message)))
            .collect();
        return Ok(vec![text::tokenize_chat(texts.iter().map(|(role, content)| (*role, content.as_str())))]);
    }
    let numbers =
        |items: &[Value]| -> Option<Vec<u32>> { items.iter().map(|item| u32::try_from(item.as_u64()?).ok()).collect() };
    let found: Option<Vec<Vec<u32>>> = match value {
        Value::String(text) => Some(vec![text::tokenize(text)]),
        Value::Array(items) if items.first().is_some_and(Value::is_number) => numbers(items).map(|tokens| vec![tokens]),
        Value::Array(items) => items
            .iter()
            .map(|item| match item {
                Value::String(text) => Some(text::tokenize(text)),
                Value::Array(tokens) => numbers(tokens),
                _ => None,
            })
            .collect(),
        _ => None,
    };
    match found {
        Some(prompts) if !prompts.is_empty() && prompts.iter().all(|prompt| !prompt.is_empty()) => Ok(prompts),
        Some(_) => Err(ApiError::bad("prompt", None, "Either prompt or prompt_embeds must be provided and non-empty.")),
        None => Err(wrong("Input should be a string, a list of strings, or lists of token ids")),
    }
}

/// Reads a generating request; `max_len` is the limit for prompt and answer together.
///
/// # Errors
/// What vLLM refuses, with its words.
pub fn parse(api: Api, body: &[u8], served: &[String], max_len: u32) -> Result<Ask, ApiError> {
    let members = object(body, served)?;
    let prompts = prompts(api, &members)?;
    let stream = flag(&members, "stream");
    let options = members.get("stream_options").and_then(Value::as_object);
    // In vLLM's order: of several mistakes the client is told the one that vLLM would tell.
    if options.is_some() && !stream {
        let message = "Stream options can only be defined when `stream=True`.";
        return Err(ApiError::bad("stream_options", None, message));
    }
    let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
    if longest >= max_len as usize {
        let message = format!(
            "This model's maximum context length is {max_len} tokens. However, your request has {longest} input tokens. \
             Please reduce the length of the input messages."
        );
        return Err(ApiError::bad("input_tokens", Some(&longest.to_string()), &message));
    }
    let room = max_len - longest as u32;
    let mut asked = integer(&members, "max_tokens")?;
    if api == Api::Chat {
        asked = integer(&members, "max_completion_tokens")?.or(asked);
    }
    let max_tokens = match asked {
        None if api == Api::Chat => room,
        // The default of the completions API; chat has none.
        None => room.min(16),
        Some(number) if number < 1 => {
            let message = format!("max_tokens must be at least 1, got {number}.");
            return Err(ApiError::bad("max_tokens", Some(&number.to_string()), &message));
        }
        Some(number) if number > i64::from(room) => {
            let message = format!(
                "max_tokens={number} cannot be greater than max_model_len={max_len}. Please request fewer output tokens."
            );
            return Err(ApiError::bad("max_tokens", Some(&number.to_string()), &message));
        }
        Some(number) => number as u32,
    };
    let n = integer(&members, "n")?.unwrap_or(1);
    if !(1..=128).contains(&n) {
        return Err(ApiError::bad("n", Some(&n.to_string()), &format!("n must be between 1 and 128, got {n}.")));
    }
    let option = |key: &str| options.and_then(|members| members.get(key)).and_then(Value::as_bool).unwrap_or(false);
    Ok(Ask {
        api,
        prompts,
        max_tokens,
        n: n as u32,
        stream,
        include_usage: option("include_usage"),
        continuous_usage: option("include_usage") && option("continuous_usage_stats"),
        ignore_eos: flag(&members, "ignore_eos"),
        seed: integer(&members, "seed")?.unwrap_or(0) as u64,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(api: Api, body: &str) -> Result<Ask, ApiError> {
        parse(api, body.as_bytes(), &["tiny".to_owned(), "other".to_owned()], 2048)
    }

    fn refusal(api: Api, body: &str) -> String {
        let error = read(api, body).unwrap_err();
        format!("{} {}", error.status, error.body())
    }

    /// The words are those of the recordings of vLLM 0.32.0 (`chat-err-*`).
    #[test]
    fn refusals_have_the_words_of_the_recordings() {
        let messages = r#""messages": [{"role": "user", "content": "Hello"}]"#;
        let cases = [
            (
                format!(r#"{{"model": "nope", {messages}}}"#),
                r#"404 {"error":{"message":"The model `nope` does not exist. Valid aliases: tiny, other.","type":"NotFoundError","param":"model","code":404}}"#,
            ),
            (
                r#"{"model": "tiny", "messages": ["#.to_owned(),
                r#"400 {"error":{"message":"1 validation error:\n  {'type': 'json_invalid', 'loc': 'body.31', 'msg': 'JSON decode error', 'input': '<dict of 0 items>', 'ctx': {'error': 'Expecting value'}}","type":"Bad Request","param":"body.31","code":400}}"#,
            ),
            (
                String::new(),
                r#"400 {"error":{"message":"1 validation error:\n  {'type': 'missing', 'loc': 'body', 'msg': 'Field required', 'input': 'None'}","type":"Bad Request","param":"body","code":400}}"#,
            ),
            (
                "[1,2]".to_owned(),
                r#"400 {"error":{"message":"1 validation error:\n  {'type': 'model_attributes_type', 'loc': 'body', 'msg': 'Input should be a valid dictionary or object to extract fields from', 'input': '<list of 2 items>'}","type":"Bad Request","param":"body","code":400}}"#,
            ),
            (
                r#"{"model": "tiny"}"#.to_owned(),
                r#"400 {"error":{"message":"1 validation error:\n  {'type': 'missing', 'loc': 'body.messages', 'msg': 'Field required', 'input': '<dict of 1 items>'}","type":"Bad Request","param":"body.messages","code":400}}"#,
            ),
            (
                format!(r#"{{{messages}, "max_tokens": 0}}"#),
                r#"400 {"error":{"message":"max_tokens must be at least 1, got 0. (parameter=max_tokens, value=0)","type":"BadRequestError","param":"max_tokens","code":400}}"#,
            ),
            (
                format!(r#"{{{messages}, "max_tokens": "many"}}"#),
                r#"400 {"error":{"message":"1 validation error:\n  {'type': 'int_parsing', 'loc': 'body.max_tokens', 'msg': 'Input should be a valid integer, unable to parse string as an integer', 'input': 'many'}","type":"Bad Request","param":"body.max_tokens","code":400}}"#,
            ),
            (
                format!(r#"{{{messages}, "max_tokens": 100000}}"#),
                r#"400 {"error":{"message":"max_tokens=100000 cannot be greater than max_model_len=2048. Please request fewer output tokens. (parameter=max_tokens, value=100000)","type":"BadRequestError","param":"max_tokens","code":400}}"#,
            ),
            (
                format!(r#"{{{messages}, "stream_options": {{"include_usage": true}}}}"#),
                r#"400 {"error":{"message":"Stream options can only be defined when `stream=True`. (parameter=stream_options)","type":"BadRequestError","param":"stream_options","code":400}}"#,
            ),
        ];
        for (body, expected) in cases {
            assert_eq!(refusal(Api::Chat, &body), expected, "{body}");
        }
    }

    #[test]
    fn prompts_come_as_text_texts_or_tokens() {
        let lengths = |prompt: &str| {
            let ask = read(Api::Completions, &format!(r#"{{"prompt": {prompt}}}"#)).unwrap();
            ask.prompts.iter().map(Vec::len).collect::<Vec<_>>()
        };
        assert_eq!(lengths(r#""Hello, how are you today?""#), [7]);
        assert_eq!(lengths(r#"["Hello", "What is it"]"#), [1, 3]);
        assert_eq!(lengths("[10, 20, 30, 40]"), [4]);
        assert_eq!(lengths("[[10], [20, 30]]"), [1, 2]);
        assert!(read(Api::Completions, r#"{"prompt": ""}"#).is_err());
        assert!(read(Api::Completions, r#"{"prompt": [[]]}"#).is_err());
        assert!(read(Api::Completions, r#"{"prompt": {}}"#).is_err());
    }

    #[test]
    fn limits_default_as_in_vllm() {
        let chat = r#"{"messages": [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}]"#;
        assert_eq!(read(Api::Chat, &format!("{chat}}}")).unwrap().max_tokens, 2048 - 12);
        assert_eq!(read(Api::Completions, r#"{"prompt": "Hello"}"#).unwrap().max_tokens, 16);
        let both = format!(r#"{chat}, "max_tokens": 5, "max_completion_tokens": 7}}"#);
        assert_eq!(read(Api::Chat, &both).unwrap().max_tokens, 7);
        let long = format!(r#"{{"prompt": "{}"}}"#, " word".repeat(3000));
        assert!(refusal(Api::Completions, &long).contains("maximum context length is 2048"));
    }
}
