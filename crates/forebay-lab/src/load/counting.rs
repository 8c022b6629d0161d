//! What a server counts for a dataset: which words are one token each, and how long the prompts and answers of a ShareGPT file
//! are.

use std::sync::Arc;

use http::StatusCode;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::client::{COUNTING, Client, ClientError, WordLengths};
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

    /// The words of one token, by one call for all of them where the server lists the ids of tokens, else by one call a word.
    async fn one_token_words(&self, base: &str, model: &str) -> Result<Vec<&'static str>, ClientError> {
        match self.word_lengths(base, model).await? {
            Some(lengths) => Ok(lengths.into_iter().filter(|(_, tokens)| *tokens == 1).map(|(word, _)| word).collect()),
            None => self.one_by_one(base, model).await,
        }
    }

    /// The tokens of each word, by one call that is kept; none where the server does not list the ids, or they do not tell it.
    pub(super) async fn word_lengths(&self, base: &str, model: &str) -> Result<WordLengths, ClientError> {
        let key = (base.to_owned(), model.to_owned());
        let mut known = self.word_lengths.lock().await;
        if let Some(lengths) = known.get(&key) {
            return Ok(lengths.clone());
        }
        let text: String = WORDS.iter().map(|word| format!(" {word}").repeat(2)).collect();
        let counted = self.json(&format!("{base}/tokenize"), Some(&json!({"model": model, "prompt": text}))).await?;
        let ids: Option<Vec<i64>> =
            counted["tokens"].as_array().and_then(|ids| ids.iter().map(serde_json::Value::as_i64).collect());
        let lengths =
            ids.and_then(|ids| lengths_of(&ids, &WORDS)).map(|lengths| WORDS.into_iter().zip(lengths).collect());
        known.insert(key, lengths.clone());
        Ok(lengths)
    }

    async fn one_by_one(&self, base: &str, model: &str) -> Result<Vec<&'static str>, ClientError> {
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

/// Reads how many tokens each word has from the ids of a text in which each word stands twice; none where they cannot be read so.
fn lengths_of(ids: &[i64], words: &[&str]) -> Option<Vec<usize>> {
    // Marks stand before the text, behind it, or both.
    (0..=MARKS as usize).find_map(|before| {
        let mut rest = ids.get(before..)?;
        let mut found = Vec::new();
        for _ in words {
            // The shortest sequence that comes twice is the word's.
            let length = (1..=rest.len() / 2).find(|length| rest[..*length] == rest[*length..2 * length])?;
            found.push(length);
            rest = &rest[2 * length..];
        }
        (rest.len() + before <= MARKS as usize).then_some(found)
    })
}

/// The number of a prompt's words, 1 or more, that have at most this many tokens together.
pub(super) fn words_within(prompt: &str, lengths: &[(&'static str, usize)], tokens: i64) -> i64 {
    let (mut left, mut words) = (tokens, 0);
    for word in prompt.split(' ') {
        let length = lengths.iter().find(|(known, _)| *known == word).map_or(1, |(_, length)| *length as i64);
        left -= length;
        if left < 0 {
            break;
        }
        words += 1;
    }
    words.max(1)
}

fn estimates(some: &[PromptAndAnswer], output_len: Option<u32>) -> Vec<(u32, u32)> {
    let estimate = |text: &str| u32::try_from(text.len().div_ceil(BYTES)).unwrap_or(u32::MAX);
    some.iter().map(|turns| (estimate(&turns.prompt), output_len.unwrap_or(estimate(&turns.answer)))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_words_are_read_from_the_ids_of_all() {
        let words = ["a", "bb", "c"];
        assert_eq!(lengths_of(&[5, 5, 7, 8, 7, 8, 9, 9], &words), Some(vec![1, 2, 1]));
        assert_eq!(lengths_of(&[1, 5, 5, 7, 8, 7, 8, 9, 9, 2], &words), Some(vec![1, 2, 1]), "marks around the text");
        assert_eq!(lengths_of(&[5, 5, 7, 8, 7, 9, 9], &words), None, "ids that are no words twice");
        assert_eq!(lengths_of(&[5, 5, 6, 6, 9, 9, 9, 9, 9], &words), None, "more than the marks is left");
        let lengths = [("a", 1), ("bb", 2)];
        let within = |tokens| words_within("a bb a bb", &lengths, tokens);
        assert_eq!([0, 1, 2, 3, 4, 5, 6, 9].map(within), [1, 1, 1, 2, 3, 3, 4, 4]);
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
