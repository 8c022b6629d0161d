//! The `custom` dataset: a prompt a line of JSON, as `vllm bench serve` has it, or whole messages.

use bytes::Bytes;
use serde::Deserialize;
use serde_json::Value;

use crate::load::workload::{Endpoint, Workload};

/// A prompt of a file: a line of JSON, as the `custom` dataset of `vllm bench serve` has it, or with whole messages.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Line {
    /// Text.
    #[serde(default)]
    pub prompt: Option<String>,
    /// Messages of a chat.
    #[serde(default)]
    pub messages: Option<Value>,
    /// Tokens of its answer, at most; else the load's.
    #[serde(default)]
    pub output_tokens: Option<u32>,
}

/// A mistake in a file of prompts.
#[derive(Debug, thiserror::Error)]
pub enum DatasetError {
    /// The system refused.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// A line that is no prompt.
    #[error(
        "line {0} is no prompt: {1}; a line is {{\"prompt\": \"…\"}} or {{\"messages\": […]}}, with \"output_tokens\": N if wanted"
    )]
    Line(usize, String),
    /// None.
    #[error("it has no line")]
    Empty,
    /// Messages for a route that takes none.
    #[error("line {0} has messages: they need --endpoint chat")]
    Messages(usize),
}

/// Reads the prompts of a file, one a line.
///
/// # Errors
/// A line is no prompt or one that the route does not take, or there is no line.
pub fn read(from: impl std::io::BufRead, endpoint: Endpoint) -> Result<Vec<Line>, DatasetError> {
    let mut lines = Vec::new();
    for (number, line) in (1..).zip(from.lines()) {
        let line = line?;
        if line.trim().is_empty() {
            continue;
        }
        let read: Line = serde_json::from_str(&line).map_err(|error| DatasetError::Line(number, error.to_string()))?;
        match (&read.prompt, &read.messages) {
            (Some(_), None) => {}
            (None, Some(_)) if endpoint == Endpoint::Chat => {}
            (None, Some(_)) => return Err(DatasetError::Messages(number)),
            _ => return Err(DatasetError::Line(number, "it needs `prompt` or `messages`, and not both".to_owned())),
        }
        lines.push(read);
    }
    if lines.is_empty() { Err(DatasetError::Empty) } else { Ok(lines) }
}

/// Returns the bodies of a load: the lines in turn, from the first again after the last.
#[must_use]
pub fn bodies(lines: &[Line], workload: &Workload) -> Vec<Bytes> {
    let body = |line: &Line| {
        let mut body = match (&line.messages, &line.prompt) {
            (Some(messages), _) => workload.body_of("messages", messages.clone()),
            (None, prompt) => {
                let (key, value) = workload.endpoint.prompt(prompt.as_deref().unwrap_or_default());
                workload.body_of(key, value)
            }
        };
        // A line's own limit goes before the load's: a length that was recorded belongs to its prompt.
        if let Some(tokens) = line.output_tokens {
            body[workload.endpoint.limit()] = Value::from(tokens);
        }
        Bytes::from(body.to_string())
    };
    lines.iter().cycle().take(workload.num_prompts as usize).map(body).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::workload::Rate;
    use crate::load::workload::tests::workload;

    fn parsed(body: &Bytes) -> Value {
        serde_json::from_slice(body).unwrap()
    }

    #[test]
    fn a_file_s_prompts_are_sent_in_turn_with_their_own_lengths() {
        let text = "{\"prompt\": \"one\", \"output_tokens\": 7}\n\n{\"messages\": [{\"role\": \"user\", \"content\": \"two\"}]}\n";
        let read = read(text.as_bytes(), Endpoint::Chat).unwrap();
        let load = Workload { num_prompts: 3, ..workload(Rate::Unlimited) };
        let sent: Vec<Value> = bodies(&read, &load).iter().map(parsed).collect();
        assert_eq!((&sent[0]["max_completion_tokens"], &sent[1]["max_completion_tokens"]), (&7.into(), &600.into()));
        assert_eq!((&sent[1]["messages"][0]["content"], &sent[2]), (&"two".into(), &sent[0]));
    }

    #[test]
    fn a_line_that_is_no_prompt_is_named() {
        let said = |text: &str| read(text.as_bytes(), Endpoint::Completions).unwrap_err().to_string();
        assert!(said("{\"prompt\": \"a\"}\n{oops\n").contains("line 2 is no prompt"));
        assert!(said("{\"text\": \"a\"}\n").contains("needs `prompt` or `messages`"));
        assert!(said("{\"messages\": []}\n").contains("--endpoint chat"));
        assert_eq!(said("\n"), "it has no line");
    }
}
