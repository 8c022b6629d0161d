//! The requests of a load, made of its dataset. Random prompts have an exact number of tokens by the server's own count where it
//! counts for others, else by token ids, which need no count.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::Value;

use super::client::{COUNTING, Client, ClientError, WordLengths};
use super::counting::{Counted, absent, words_within};
use super::dataset::{Dataset, Prefixes, lines};
use super::workload::{Endpoint, Length, Workload};
use crate::load::dataset::conversations::Script;
use crate::load::dataset::supply::Supply;
use crate::load::dataset::trace::Replay;

/// Counts of one prompt, at most: one where each word is one token, about six where words are several.
const ROUNDS: usize = 16;
/// Letters of a part of a word, at most.
const LETTERS: usize = 4;

/// The requests of a load, and how their lengths were settled.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// The requests.
    pub supply: Supply,
    /// The way in which the length of their prompts was settled.
    pub counted: Counted,
}

/// The place where a prompt ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct PromptEnd {
    /// Whole words, 1 or more.
    words: i64,
    /// Letters of the word after them.
    letters: usize,
}

impl PromptEnd {
    fn of(self, workload: &Workload, id: u32) -> String {
        let whole = workload.words(id, self.words as u32);
        if self.letters == 0 {
            return whole;
        }
        let mut longer = workload.words(id, self.words as u32 + 1);
        // The same seed gives the same words, so that the longer text begins with the shorter one.
        longer.truncate(whole.len() + 1 + self.letters);
        longer
    }
}

/// Looks for the cut that gives a wanted number of tokens, whatever the tokenizer makes of a word: by whole words, on the straight
/// line between the nearest that are too short and too long, and then by letters of the word that is one too many.
#[derive(Debug)]
struct Fit {
    wanted: i64,
    cut: PromptEnd,
    /// Words and their count: too short.
    short: Option<(i64, i64)>,
    /// Words and their count: too long.
    long: Option<(i64, i64)>,
}

impl Fit {
    fn begin(wanted: i64, words: i64) -> Fit {
        Fit { wanted, cut: PromptEnd { words: words.max(1), letters: 0 }, short: None, long: None }
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
        // Tokens are nearly linear in words, so the line between the two nearest counts ends after two or three questions.
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

/// The beginnings of random prompts, and the whole length that prompts are to have.
#[derive(Clone, Debug)]
struct Beginnings {
    /// The beginnings; none: prompts share nothing.
    texts: Vec<String>,
    /// The beginning of each prompt, by number.
    of_prompts: Vec<u32>,
    /// Tokens of a whole prompt.
    wanted: u32,
}

impl Beginnings {
    fn none(workload: &Workload) -> Beginnings {
        Beginnings { texts: Vec::new(), of_prompts: Vec::new(), wanted: workload.input_len }
    }

    fn of(prefixes: &Prefixes, texts: Vec<String>, workload: &Workload) -> Beginnings {
        let of_prompts = prefixes.of_prompts(workload.num_prompts, workload.seed);
        Beginnings { texts, of_prompts, wanted: workload.input_len.saturating_add(prefixes.len) }
    }

    /// Returns a prompt that ends with `rest`.
    fn before(&self, id: u32, rest: &str) -> String {
        match self.of_prompts.get(id as usize) {
            Some(place) => format!("{} {rest}", self.texts[*place as usize]),
            None => rest.to_owned(),
        }
    }
}

/// A guess at the lengths of a load's prompts, before they are counted.
#[derive(Debug)]
struct Guess {
    /// Words of the first prompt.
    words: i64,
    /// Tokens of these words, without what a template adds.
    tokens: i64,
    lengths: WordLengths,
}

impl Guess {
    fn words(&self, workload: &Workload, id: u32) -> i64 {
        let Some(lengths) = &self.lengths else { return self.words };
        // A word has one token at least, so that there are no more words than tokens.
        words_within(&workload.words(id, self.tokens as u32), lengths, self.tokens)
    }
}

/// The number of a beginning among those that words and token ids are drawn by: prompts have the low numbers.
fn number(place: u32) -> u32 {
    u32::MAX - place
}

impl Client {
    /// Makes the requests of a load. `base`: the server that counts.
    ///
    /// # Errors
    /// The server does not answer, or does not know the model.
    pub async fn prepare(&self, base: &str, workload: &Workload, dataset: &Dataset) -> Result<Prepared, ClientError> {
        let prefixes = match dataset {
            Dataset::Random => None,
            Dataset::Prefixes(prefixes) => Some(prefixes),
            Dataset::Lines(read) => {
                let supply = Supply::Ready(lines::bodies(read, workload));
                return Ok(Prepared { supply, counted: Counted::File });
            }
            Dataset::Trace(trace) => {
                let (vocabulary, counted) = self.vocabulary(base, &workload.model, workload.endpoint).await?;
                let replay = Replay { trace: Arc::clone(trace), vocabulary, workload: workload.clone() };
                return Ok(Prepared { supply: Supply::Replay(replay), counted });
            }
            Dataset::Conversations(shape) => {
                // Answers are text, so prompts are as well.
                let (vocabulary, counted) = self.vocabulary(base, &workload.model, Endpoint::Chat).await?;
                let script = Script { shape: *shape, vocabulary, workload: workload.clone(), time_scale: 1.0 };
                return Ok(Prepared { supply: Supply::Conversations(script), counted });
            }
        };
        match self.bodies(base, workload, prefixes).await {
            Ok(bodies) => Ok(Prepared { supply: Supply::Ready(bodies), counted: Counted::Tokenize }),
            Err(error) if absent(&error) => Ok(uncounted(workload, prefixes)),
            Err(error) => Err(error),
        }
    }

    /// Makes the bodies of a load, each with a prompt of the wanted length by the server's own `/tokenize`.
    ///
    /// # Errors
    /// The server has no `/tokenize`, or it does not answer.
    pub async fn bodies(
        &self,
        base: &str,
        workload: &Workload,
        prefixes: Option<&Prefixes>,
    ) -> Result<Vec<Bytes>, ClientError> {
        let Some(last) = workload.num_prompts.checked_sub(1) else { return Ok(Vec::new()) };
        let beginnings = Arc::new(self.beginnings(base, workload, prefixes).await?);
        // The first finds what a template or a mark of the begin adds.
        let (first, words) = self.counted(base, workload, &beginnings, 0, i64::from(workload.input_len)).await?;
        let guess = Arc::new(self.guess(base, workload, words).await?);
        let mut counting = tokio::task::JoinSet::new();
        let shared = Arc::new(workload.clone());
        // Each task takes every so-many-th prompt and waits for its own answers: no more than this ask at once.
        for begin in 1..=COUNTING.min(last) {
            let (client, base, workload) = (self.clone(), base.to_owned(), Arc::clone(&shared));
            let (beginnings, guess) = (Arc::clone(&beginnings), Arc::clone(&guess));
            counting.spawn(async move {
                let mut found = Vec::new();
                for id in (begin..workload.num_prompts).step_by(COUNTING as usize) {
                    let words = guess.words(&workload, id);
                    found.push((id, client.counted(&base, &workload, &beginnings, id, words).await?.0));
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

    /// The guess at how many words a prompt takes: by the tokens of each word where the server tells them, else as many as the first.
    /// The server counts each prompt once in any case, and more often where the guess was wrong.
    async fn guess(&self, base: &str, workload: &Workload, words: i64) -> Result<Guess, ClientError> {
        let lengths = match self.word_lengths(base, &workload.model).await {
            // A route that counts chats and no texts is possible; then nothing is known of words.
            Err(ClientError::Status { .. } | ClientError::NotJson(_)) => None,
            other => other?,
        };
        let first = workload.words(0, words as u32);
        let tokens = lengths.iter().flatten();
        let of = |word: &str| tokens.clone().find(|(known, _)| *known == word).map_or(1, |(_, tokens)| *tokens as i64);
        let tokens = first.split(' ').map(of).sum();
        Ok(Guess { words, tokens, lengths })
    }

    /// Makes the common beginnings, each of the wanted length by itself.
    async fn beginnings(
        &self,
        base: &str,
        workload: &Workload,
        prefixes: Option<&Prefixes>,
    ) -> Result<Beginnings, ClientError> {
        let Some(prefixes) = prefixes else { return Ok(Beginnings::none(workload)) };
        let alone = Workload { input_len: prefixes.len, length: Length::Content, ..workload.clone() };
        let nothing = Beginnings::none(&alone);
        let mut texts = Vec::new();
        for place in 0..prefixes.count.min(workload.num_prompts) {
            let words = i64::from(prefixes.len);
            // By itself and as bare text. What a chat template adds is counted once, with the prompt that follows.
            let cut = self.fitted(base, &alone, &nothing, number(place), words).await?;
            texts.push(cut.of(&alone, number(place)));
        }
        Ok(Beginnings::of(prefixes, texts, workload))
    }

    /// Makes a body whose prompt has the wanted length, and says how many words that took; `words`: how many to begin with.
    async fn counted(
        &self,
        base: &str,
        workload: &Workload,
        beginnings: &Beginnings,
        id: u32,
        words: i64,
    ) -> Result<(Bytes, i64), ClientError> {
        let cut = self.fitted(base, workload, beginnings, id, words).await?;
        Ok((Bytes::from(workload.body(&beginnings.before(id, &cut.of(workload, id)))), cut.words))
    }

    /// Finds the cut that gives a prompt its length.
    async fn fitted(
        &self,
        base: &str,
        workload: &Workload,
        beginnings: &Beginnings,
        id: u32,
        words: i64,
    ) -> Result<PromptEnd, ClientError> {
        let mut fit = Fit::begin(i64::from(beginnings.wanted), words);
        for _ in 0..ROUNDS {
            let prompt = beginnings.before(id, &fit.cut.of(workload, id));
            let (key, value) = match workload.length {
                Length::Whole => workload.endpoint.prompt(&prompt),
                Length::Content => Endpoint::Completions.prompt(&prompt),
            };
            let count = self.count(base, &workload.model, key, &value).await?;
            if !fit.again(count) {
                break;
            }
        }
        Ok(fit.cut)
    }
}

/// Makes the requests for a server that does not count: token ids where the route takes them, else so many words.
fn uncounted(workload: &Workload, prefixes: Option<&Prefixes>) -> Prepared {
    let of_prompts = prefixes.map_or_else(Vec::new, |one| one.of_prompts(workload.num_prompts, workload.seed));
    let beginning = |id: u32| of_prompts.get(id as usize).map(|place| number(*place));
    let len = prefixes.map_or(0, |prefixes| prefixes.len);
    let ids = |id: u32| {
        let mut ids = beginning(id).map_or_else(Vec::new, |number| workload.token_ids(number, len));
        ids.extend(workload.token_ids(id, workload.input_len));
        workload.body_of("prompt", Value::from(ids)).to_string()
    };
    let words = |id: u32| {
        let rest = workload.words(id, workload.input_len);
        let prompt = beginning(id).map(|number| workload.words(number, len) + " " + &rest);
        workload.body(&prompt.unwrap_or(rest))
    };
    let numbers = 0..workload.num_prompts;
    let (bodies, counted) = match workload.endpoint {
        Endpoint::Completions => (numbers.map(|id| Bytes::from(ids(id))).collect(), Counted::TokenIds),
        Endpoint::Chat => (numbers.map(|id| Bytes::from(words(id))).collect(), Counted::Words),
    };
    Prepared { supply: Supply::Ready(bodies), counted }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::workload::Rate;
    use crate::load::workload::tests::workload;

    /// The cut that a tokenizer's counts lead to, its count, and how many counts that took.
    fn fitted(wanted: i64, words: i64, id: u32, count: impl Fn(&str) -> usize) -> (PromptEnd, i64, usize) {
        let load = workload(Rate::Unlimited);
        let mut fit = Fit::begin(wanted, words);
        let counted = |cut: PromptEnd| count(&cut.of(&load, id)) as i64;
        let rounds = (1..=ROUNDS).find(|_| !fit.again(counted(fit.cut))).unwrap_or(ROUNDS);
        (fit.cut, counted(fit.cut), rounds)
    }

    #[test]
    fn a_word_that_is_one_token_is_counted_once_and_a_template_twice() {
        let words = |text: &str| text.split(' ').count();
        assert_eq!(fitted(100, 100, 3, words), (PromptEnd { words: 100, letters: 0 }, 100, 1));
        assert_eq!(fitted(100, 100, 3, |text| words(text) + 11), (PromptEnd { words: 89, letters: 0 }, 100, 2));
        assert_eq!(fitted(5, 5, 3, |text| words(text) + 11).0, PromptEnd { words: 1, letters: 0 }, "no shorter one");
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
}
