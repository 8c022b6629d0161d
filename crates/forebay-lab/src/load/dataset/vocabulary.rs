//! Text of a known number of tokens without counting it: words that are one token each behind a space, so that the tokens of
//! pieces add up. Tokenizers split before a space, whatever follows it. Pure.

use std::sync::Arc;

use serde_json::Value;

use crate::load::workload::{Endpoint, WORDS, Workload};

/// Words that a vocabulary must have: with fewer, prompts that should differ might begin alike.
pub const ENOUGH: usize = 16;

/// The vocabulary that prompts are written with.
#[derive(Clone, Debug)]
pub enum Vocabulary {
    /// Words, each one token with the space before it.
    Words(Arc<[&'static str]>),
    /// Token ids, for a server that takes them and does not count.
    Ids,
}

impl Vocabulary {
    /// Returns the vocabulary of all words, whatever the tokenizer makes of them.
    #[must_use]
    pub fn of_all_words() -> Vocabulary {
        Vocabulary::Words(Arc::from(WORDS))
    }

    /// Returns an empty prompt in this vocabulary.
    #[must_use]
    pub fn prompt(&self) -> Prompt {
        match self {
            Vocabulary::Words(_) => Prompt::Text(String::new()),
            Vocabulary::Ids => Prompt::Ids(Vec::new()),
        }
    }

    /// Adds `tokens` tokens to a prompt. They are the first of an endless series that the seed and the key name.
    pub fn add(&self, prompt: &mut Prompt, (seed, key): (u64, u64), tokens: u32) {
        // One more than the key, since key 0 times the factor would leave the seed itself, which words are drawn by as well.
        let mut rng = fastrand::Rng::with_seed(seed ^ key.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        match (self, prompt) {
            (Vocabulary::Words(words), Prompt::Text(text)) => {
                for _ in 0..tokens {
                    text.push(' ');
                    text.push_str(words[rng.usize(..words.len())]);
                }
            }
            (_, Prompt::Ids(ids)) => ids.extend((0..tokens).map(|_| rng.u32(300..460))),
            (Vocabulary::Ids, Prompt::Text(_)) => unreachable!("a prompt is made by the vocabulary that adds to it"),
        }
    }
}

/// A prompt that is being written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prompt {
    /// Text.
    Text(String),
    /// Token ids.
    Ids(Vec<u32>),
}

impl Prompt {
    /// Returns the member of a body that holds this prompt.
    #[must_use]
    pub fn member(self, endpoint: Endpoint) -> (&'static str, Value) {
        match self {
            Prompt::Text(text) => endpoint.prompt(&text),
            Prompt::Ids(ids) => ("prompt", Value::from(ids)),
        }
    }

    /// Returns the body of a request with this prompt and a limit for its answer.
    #[must_use]
    pub fn body(self, workload: &Workload, output_len: u32) -> String {
        let (key, value) = self.member(workload.endpoint);
        let mut body = workload.body_of(key, value);
        body[workload.endpoint.limit()] = Value::from(output_len);
        body.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_keys_give_equal_text_and_the_shorter_begins_the_longer() {
        let words = Vocabulary::of_all_words();
        let text = |key, tokens| {
            let mut prompt = words.prompt();
            words.add(&mut prompt, (7, key), tokens);
            let Prompt::Text(text) = prompt else { panic!("words are text") };
            text
        };
        assert_eq!(text(3, 512), text(3, 512));
        assert_eq!(text(3, 512).split_whitespace().count(), 512);
        assert!(text(3, 512).starts_with(&(text(3, 100) + " ")));
        assert_ne!(text(3, 16), text(4, 16));
    }
}
