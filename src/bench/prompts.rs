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
/// Counts of one prompt, at most: one where each word is one token, about six where words are several.
const ROUNDS: usize = 16;
/// Letters of a part of a word, at most.
const LETTERS: usize = 4;

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

/// Where a prompt ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cut {
    /// Whole words, 1 or more.
    words: i64,
    /// Letters of the word after them.
    letters: usize,
}

impl Cut {
    fn of(self, workload: &Workload, id: u32) -> String {
        let whole = workload.words(id, self.words as u32);
        if self.letters == 0 {
            return whole;
        }
        let mut longer = workload.words(id, self.words as u32 + 1);
        longer.truncate(whole.len() + 1 + self.letters);
        longer
    }
}

/// Looks for the cut that gives a wanted number of tokens, whatever the tokenizer makes of a word: by whole words, on the straight
/// line between the nearest that are too short and too long, and then by letters of the word that is one too many.
#[derive(Debug)]
struct Fit {
    wanted: i64,
    cut: Cut,
    /// Words and their count: too short.
    short: Option<(i64, i64)>,
    /// The same, too long.
    long: Option<(i64, i64)>,
}

impl Fit {
    fn begin(wanted: i64, words: i64) -> Fit {
        Fit { wanted, cut: Cut { words: words.max(1), letters: 0 }, short: None, long: None }
    }

    /// Takes the count of the cut, and moves it; false: there is no better one.
    fn again(&mut self, count: i64) -> bool {
        if count == self.wanted {
            return false;
        }
        if self.cut.letters > 0 {
            let more = count < self.wanted && self.cut.letters < LETTERS;
            self.cut.letters = if more { self.cut.letters + 1 } else { 0 };
            return more;
        }
        if count < self.wanted {
            self.short = Some((self.cut.words, count));
        } else {
            self.long = Some((self.cut.words, count));
        }
        self.cut.words = match (self.short, self.long) {
            (Some((words, count)), Some((more, most))) if more > words + 1 => {
                (words + (self.wanted - count) * (more - words) / (most - count)).clamp(words + 1, more - 1)
            }
            (Some((words, _)), Some(_)) => {
                self.cut.letters = 1;
                words
            }
            // A word is one token at least.
            (Some((words, count)), None) => words + self.wanted - count,
            (None, Some((1, _))) => return false,
            (None, Some((words, count))) => (words + self.wanted - count).max(1),
            (None, None) => unreachable!("one was set above"),
        };
        true
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
    async fn counted(&self, base: &str, workload: &Workload, id: u32, words: i64) -> Result<(Bytes, i64), ClientError> {
        let url = format!("{base}/tokenize");
        let mut fit = Fit::begin(i64::from(workload.input_len), words);
        for _ in 0..ROUNDS {
            let prompt = fit.cut.of(workload, id);
            let (key, value) = match workload.length {
                Length::Whole => workload.endpoint.prompt(&prompt),
                Length::Content => Endpoint::Completions.prompt(&prompt),
            };
            let counted = self.json(&url, Some(&json!({"model": workload.model, key: value}))).await?;
            let count = counted["count"].as_i64().ok_or_else(|| ClientError::NotJson(url.clone()))?;
            if !fit.again(count) {
                break;
            }
        }
        Ok((Bytes::from(workload.body(&fit.cut.of(workload, id))), fit.cut.words))
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

    /// The cut that a tokenizer's counts lead to, its count, and how many counts that took.
    fn fitted(wanted: i64, words: i64, id: u32, count: impl Fn(&str) -> usize) -> (Cut, i64, usize) {
        let load = workload(Rate::Unlimited);
        let mut fit = Fit::begin(wanted, words);
        let counted = |cut: Cut| count(&cut.of(&load, id)) as i64;
        let rounds = (1..=ROUNDS).find(|_| !fit.again(counted(fit.cut))).unwrap_or(ROUNDS);
        (fit.cut, counted(fit.cut), rounds)
    }

    #[test]
    fn a_word_that_is_one_token_is_counted_once_and_a_template_twice() {
        let words = |text: &str| text.split(' ').count();
        assert_eq!(fitted(100, 100, 3, words), (Cut { words: 100, letters: 0 }, 100, 1));
        assert_eq!(fitted(100, 100, 3, |text| words(text) + 11), (Cut { words: 89, letters: 0 }, 100, 2));
        assert_eq!(fitted(5, 5, 3, |text| words(text) + 11).0, Cut { words: 1, letters: 0 }, "no shorter one");
    }

    #[test]
    fn a_prompt_has_the_wanted_length_where_a_word_is_several_tokens() {
        // A token is two letters or what is left of a word, with the space before it; the first word has none.
        let pairs = |text: &str| text.split(' ').map(|word| word.len().div_ceil(2)).sum();
        // As small vocabularies have it: some words are one token, others are letters.
        let mixed =
            |text: &str| text.split(' ').map(|word| if word.len() == 5 { 1 } else { word.len() }).sum::<usize>();
        for id in 0..200 {
            for (wanted, begin) in [(32, 32), (32, 8), (1024, 1024), (1024, 300), (7, 500)] {
                let (_, count, rounds) = fitted(wanted, begin, id, pairs);
                assert!(count == wanted && rounds < ROUNDS, "{wanted} from {begin}: {count} after {rounds}");
                let (_, count, rounds) = fitted(wanted, begin, id, mixed);
                assert!(count == wanted && rounds < ROUNDS, "{wanted} from {begin}: {count} after {rounds}");
            }
        }
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
