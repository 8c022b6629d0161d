//! What a server counts for a dataset: which words are one token each, and how long the prompts and answers of a ShareGPT file
//! are.

use std::sync::Arc;

use http::StatusCode;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::client::{COUNTING, Client, ClientError};
use super::workload::{Endpoint, WORDS};
use crate::load::dataset::lines::Line;
use crate::load::dataset::sharegpt::{self, PromptAndAnswer};
use crate::load::dataset::vocabulary::{ENOUGH, Vocabulary};

/// Marks that a tokenizer puts around a text, at most.
const MARKS: i64 = 2;
/// The number of times that a word stands in the counted text, so that marks around the text do not hide what a word is.
const TIMES: i64 = 8;
/// Bytes of a token on average, where no server counts: English text in today's vocabularies.
const BYTES: usize = 4;

/// The way in which the length of prompts was settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counted {
    /// By the server's `/tokenize`.
    Tokenize,
    /// The server has no `/tokenize`; prompts are lists of token ids.
    TokenIds,
    /// The server has no `/tokenize`, or too few short words are a token: so many words.
    Words,
    /// They are those of a file.
    File,
}

/// Returns whether the server counts for nobody, rather than not now or not for this model.
pub(super) fn absent(error: &ClientError) -> bool {
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
    /// Returns how many tokens a text has, by the server at `base`.
    pub(super) async fn count(&self, base: &str, model: &str, key: &str, prompt: &Value) -> Result<i64, ClientError> {
        let url = format!("{base}/tokenize");
        let counted = self.json(&url, Some(&json!({"model": model, key: prompt}))).await?;
        counted["count"].as_i64().ok_or(ClientError::NotJson(url))
    }

    /// Returns what prompts of a known length are written with: the words that are one token each, or token ids where the
    /// server does not count and the route takes them.
    ///
    /// # Errors
    /// The server does not answer, or does not know the model.
    pub async fn vocabulary(
        &self,
        base: &str,
        model: &str,
        endpoint: Endpoint,
    ) -> Result<(Vocabulary, Counted), ClientError> {
        match self.one_token_words(base, model).await {
            Ok(words) if words.len() >= ENOUGH => Ok((Vocabulary::Words(words.into()), Counted::Tokenize)),
            Ok(_) => Ok((Vocabulary::of_all_words(), Counted::Words)),
            Err(error) if absent(&error) && endpoint == Endpoint::Completions => {
                Ok((Vocabulary::Ids, Counted::TokenIds))
            }
            Err(error) if absent(&error) => Ok((Vocabulary::of_all_words(), Counted::Words)),
            Err(error) => Err(error),
        }
    }

    async fn one_token_words(&self, base: &str, model: &str) -> Result<Vec<&'static str>, ClientError> {
        let mut found = Vec::new();
        for word in WORDS {
            let text = format!(" {word}").repeat(TIMES as usize);
            let count = self.count(base, model, "prompt", &Value::from(text)).await?;
            if (TIMES..=TIMES + MARKS).contains(&count) {
                found.push(word);
            }
        }
        Ok(found)
    }

    /// Returns the prompts of a ShareGPT file that `vllm bench serve` would send, at most so many, each with the length of its
    /// recorded answer or with `output_len`.
    ///
    /// # Errors
    /// The server does not answer, or does not know the model.
    pub async fn sharegpt(
        &self,
        base: &str,
        model: &str,
        turns: Vec<PromptAndAnswer>,
        num_prompts: u32,
        output_len: Option<u32>,
    ) -> Result<(Vec<Line>, Counted), ClientError> {
        let mut lines = Vec::new();
        let mut how = Counted::Tokenize;
        let mut turns = turns.into_iter();
        while lines.len() < num_prompts as usize {
            let some: Vec<PromptAndAnswer> = turns.by_ref().take(COUNTING as usize).collect();
            if some.is_empty() {
                break;
            }
            let lengths = match how {
                Counted::Tokenize => match self.lengths(base, model, &some, output_len).await {
                    Err(error) if absent(&error) => {
                        how = Counted::Words;
                        estimates(&some, output_len)
                    }
                    other => other?,
                },
                _ => estimates(&some, output_len),
            };
            for (turns, (prompt, answer)) in some.into_iter().zip(lengths) {
                if sharegpt::fits(prompt, answer, output_len.is_some()) {
                    lines.push(Line { prompt: Some(turns.prompt), messages: None, output_tokens: Some(answer) });
                }
            }
        }
        lines.truncate(num_prompts as usize);
        Ok((lines, how))
    }

    /// Counts a few prompts and answers at once.
    async fn lengths(
        &self,
        base: &str,
        model: &str,
        some: &[PromptAndAnswer],
        output_len: Option<u32>,
    ) -> Result<Vec<(u32, u32)>, ClientError> {
        let mut counts = JoinSet::new();
        let place: Arc<(String, String)> = Arc::new((base.to_owned(), model.to_owned()));
        for (index, turns) in some.iter().cloned().enumerate() {
            let (client, place) = (self.clone(), Arc::clone(&place));
            counts.spawn(async move {
                let count = async |text: String| {
                    let counted = client.count(&place.0, &place.1, "prompt", &Value::from(text)).await?;
                    Ok::<u32, ClientError>(u32::try_from(counted).unwrap_or(u32::MAX))
                };
                let prompt = count(turns.prompt).await?;
                let answer = match output_len {
                    Some(fixed) => fixed,
                    None => count(turns.answer).await?,
                };
                Ok::<_, ClientError>((index, (prompt, answer)))
            });
        }
        let mut lengths = vec![(0, 0); some.len()];
        while let Some(counted) = counts.join_next().await {
            let (index, length) = counted.expect("a count neither panics nor is aborted")?;
            lengths[index] = length;
        }
        Ok(lengths)
    }
}

fn estimates(some: &[PromptAndAnswer], output_len: Option<u32>) -> Vec<(u32, u32)> {
    let estimate = |text: &str| u32::try_from(text.len().div_ceil(BYTES)).unwrap_or(u32::MAX);
    some.iter().map(|turns| (estimate(&turns.prompt), output_len.unwrap_or(estimate(&turns.answer)))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

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
