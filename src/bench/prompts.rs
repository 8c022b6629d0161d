//! The bodies of a load: prompts of an exact number of tokens by the server's own count where it counts for others, else by
//! token ids, which need no count; or the prompts of a file.

use std::sync::Arc;

use bytes::Bytes;
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use super::client::{Client, ClientError};
use super::workload::{Endpoint, Length, Workload};

/// Counts under way at once: a server counts in its event loop, so more would gain nothing.
const COUNTING: u32 = 16;
/// A longer word in a prompt takes another round.
const ROUNDS: usize = 8;

/// Where prompts come from.
#[derive(Clone, Debug, Default)]
pub enum Dataset {
    /// Random words, or token ids.
    #[default]
    Random,
    /// The lines of a file, from its first again after its last.
    Lines(Arc<[Line]>),
}

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

/// How the length of prompts was settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counted {
    /// By the server's `/tokenize`.
    Tokenize,
    /// The server has no `/tokenize`; prompts are lists of token ids.
    TokenIds,
    /// The server has no `/tokenize`, and chats take no token ids: so many short words.
    Words,
    /// They are those of a file.
    File,
}

/// The bodies of a load.
#[derive(Clone, Debug)]
pub struct Bodies {
    /// One for each request.
    pub bodies: Vec<Bytes>,
    /// How long their prompts are.
    pub counted: Counted,
}

/// A file that has no prompts.
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

/// Reads a dataset: a prompt a line.
///
/// # Errors
/// There is none, or a line is none, or one that the route cannot take.
pub fn lines(from: impl std::io::BufRead, endpoint: Endpoint) -> Result<Dataset, DatasetError> {
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
    if lines.is_empty() { Err(DatasetError::Empty) } else { Ok(Dataset::Lines(lines.into())) }
}

fn from_lines(lines: &[Line], workload: &Workload) -> Vec<Bytes> {
    let body = |line: &Line| {
        let mut body = match (&line.messages, &line.prompt) {
            (Some(messages), _) => workload.body_of("messages", messages.clone()),
            (None, prompt) => {
                let (key, value) = workload.endpoint.prompt(prompt.as_deref().unwrap_or_default());
                workload.body_of(key, value)
            }
        };
        if let Some(tokens) = line.output_tokens {
            body[workload.endpoint.limit()] = Value::from(tokens);
        }
        Bytes::from(body.to_string())
    };
    lines.iter().cycle().take(workload.num_prompts as usize).map(body).collect()
}

/// Whether the server counts for nobody, rather than not now or not for this model.
fn absent(error: &ClientError) -> bool {
    match error {
        ClientError::Status { status, text, .. } => {
            let route =
                matches!(*status, StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED | StatusCode::FORBIDDEN);
            route && !text.contains("model")
        }
        ClientError::NotJson(_) => true,
        ClientError::Url(_) | ClientError::Unreachable { .. } => false,
    }
}

impl Client {
    /// The bodies of a load. `base`: the server that counts.
    ///
    /// # Errors
    /// The server does not answer, or does not know the model.
    pub async fn prepare(&self, base: &str, workload: &Workload, dataset: &Dataset) -> Result<Bodies, ClientError> {
        if let Dataset::Lines(lines) = dataset {
            return Ok(Bodies { bodies: from_lines(lines, workload), counted: Counted::File });
        }
        match self.bodies(base, workload).await {
            Ok(bodies) => Ok(Bodies { bodies, counted: Counted::Tokenize }),
            Err(error) if absent(&error) => {
                let ids = workload.endpoint == Endpoint::Completions;
                let body = |id| {
                    if ids {
                        workload.body_of("prompt", Value::from(workload.token_ids(id))).to_string()
                    } else {
                        workload.body(&workload.words(id, workload.input_len))
                    }
                };
                let bodies = (0..workload.num_prompts).map(|id| Bytes::from(body(id))).collect();
                Ok(Bodies { bodies, counted: if ids { Counted::TokenIds } else { Counted::Words } })
            }
            Err(error) => Err(error),
        }
    }

    /// The bodies of a load, each with a prompt of the wanted length by the server's own `/tokenize`.
    ///
    /// # Errors
    /// The server has no `/tokenize`, or it does not answer.
    pub async fn bodies(&self, base: &str, workload: &Workload) -> Result<Vec<Bytes>, ClientError> {
        let Some(last) = workload.num_prompts.checked_sub(1) else { return Ok(Vec::new()) };
        // The first finds what a template or a mark of the begin adds.
        let (first, words) = self.counted(base, workload, 0, i64::from(workload.input_len)).await?;
        let mut counting = tokio::task::JoinSet::new();
        let shared = Arc::new(workload.clone());
        for begin in 1..=COUNTING.min(last) {
            let (client, base, workload) = (self.clone(), base.to_owned(), Arc::clone(&shared));
            counting.spawn(async move {
                let mut found = Vec::new();
                for id in (begin..workload.num_prompts).step_by(COUNTING as usize) {
                    found.push((id, client.counted(&base, &workload, id, words).await?.0));
                }
                Ok::<_, ClientError>(found)
            });
        }
        let mut bodies = vec![Bytes::new(); workload.num_prompts as usize];
        bodies[0] = first;
        while let Some(found) = counting.join_next().await {
            for (id, body) in found.expect("a count neither panics nor is aborted")? {
                bodies[id as usize] = body;
            }
        }
        Ok(bodies)
    }

    /// A body whose prompt has the wanted length, and how many words that took; `words`: how many to begin with.
    async fn counted(
        &self,
        base: &str,
        workload: &Workload,
        id: u32,
        mut words: i64,
    ) -> Result<(Bytes, i64), ClientError> {
        let url = format!("{base}/tokenize");
        let wanted = i64::from(workload.input_len);
        let mut prompt = String::new();
        for _ in 0..ROUNDS {
            prompt = workload.words(id, words.max(1) as u32);
            let (key, value) = match workload.length {
                Length::Whole => workload.endpoint.prompt(&prompt),
                Length::Content => Endpoint::Completions.prompt(&prompt),
            };
            let counted = self.json(&url, Some(&json!({"model": workload.model, key: value}))).await?;
            let count = counted["count"].as_i64().ok_or_else(|| ClientError::NotJson(url.clone()))?;
            if count == wanted || words <= 1 && count > wanted {
                break;
            }
            words += wanted - count;
        }
        Ok((Bytes::from(workload.body(&prompt)), words))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::workload::Rate;
    use crate::bench::workload::tests::workload;

    fn parsed(body: &Bytes) -> Value {
        serde_json::from_slice(body).unwrap()
    }

    #[test]
    fn a_file_s_prompts_are_sent_in_turn_with_their_own_lengths() {
        let text = "{\"prompt\": \"one\", \"output_tokens\": 7}\n\n{\"messages\": [{\"role\": \"user\", \"content\": \"two\"}]}\n";
        let Dataset::Lines(read) = lines(text.as_bytes(), Endpoint::Chat).unwrap() else { panic!("a file's") };
        let load = Workload { num_prompts: 3, ..workload(Rate::Unlimited) };
        let bodies: Vec<Value> = from_lines(&read, &load).iter().map(parsed).collect();
        assert_eq!(
            (&bodies[0]["max_completion_tokens"], &bodies[1]["max_completion_tokens"]),
            (&7.into(), &600.into())
        );
        assert_eq!((&bodies[1]["messages"][0]["content"], &bodies[2]), (&"two".into(), &bodies[0]));
    }

    #[test]
    fn a_line_that_is_no_prompt_is_named() {
        let said = |text: &str| lines(text.as_bytes(), Endpoint::Completions).unwrap_err().to_string();
        assert!(said("{\"prompt\": \"a\"}\n{oops\n").contains("line 2 is no prompt"));
        assert!(said("{\"text\": \"a\"}\n").contains("needs `prompt` or `messages`"));
        assert!(said("{\"messages\": []}\n").contains("--endpoint chat"));
        assert_eq!(said("\n"), "it has no line");
    }

    #[test]
    fn a_model_that_is_not_there_is_not_taken_for_a_route_that_is_not_there() {
        let answer = |text: &str| ClientError::Status {
            url: String::new(),
            status: StatusCode::NOT_FOUND,
            text: text.to_owned(),
        };
        assert!(absent(&answer("{\"detail\":\"Not Found\"}")));
        assert!(!absent(&answer("The model `x` does not exist.")));
    }
}
