//! The `sharegpt` dataset: the first prompt and the first answer of recorded conversations. Reads the file's list one entry at
//! a time and keeps a sample, so that a file of hundreds of megabytes takes the memory of the sample. Pure.

use std::io::Read;

use serde::Deserialize;
use serde::de::{Deserializer, SeqAccess, Visitor};

/// Entries that are kept for each prompt wanted: `vllm bench serve`'s filters drop about half of the published file.
const SPARE: usize = 4;
/// Entries that are kept at least.
const LEAST: usize = 1000;
/// Tokens of a prompt and of an answer, at least.
const MIN_LEN: u32 = 4;
/// Tokens of a prompt, at most.
const MAX_PROMPT: u32 = 1024;
/// Tokens of a prompt and its answer together, at most.
const MAX_TOTAL: u32 = 2048;

/// A prompt and the answer that was given to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PromptAndAnswer {
    /// The text that the person wrote.
    pub prompt: String,
    /// The text that the model answered.
    pub answer: String,
}

/// A mistake in a ShareGPT file.
#[derive(Debug, thiserror::Error)]
pub enum ShareGptError {
    /// It cannot be read, or is no list of conversations.
    #[error(
        "{0}; the file is a JSON list of {{\"conversations\": [{{\"from\": \"human\", \"value\": …}}, {{\"from\": \"gpt\", \"value\": …}}]}}"
    )]
    Json(#[from] serde_json::Error),
    /// No conversation has two turns.
    #[error("it has no conversation of two turns")]
    Empty,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    conversations: Vec<Message>,
}

#[derive(Deserialize)]
struct Message {
    value: String,
}

/// Reads a sample of a file in random order: enough entries for `num_prompts` after the filters.
///
/// # Errors
/// It is no such file, or no conversation has two turns.
pub fn read(from: impl Read, num_prompts: u32, seed: u64) -> Result<Vec<PromptAndAnswer>, ShareGptError> {
    let mut rng = fastrand::Rng::with_seed(seed ^ 0x5ba2_e697);
    let most = (num_prompts as usize).saturating_mul(SPARE).max(LEAST);
    let mut sample = Reservoir { kept: Vec::new(), most, seen: 0, rng: &mut rng };
    // From the reader, though slower than from a slice: the published file has 650 MB and the sample a few.
    let mut json = serde_json::Deserializer::from_reader(from);
    json.deserialize_seq(&mut sample)?;
    // A file that was cut off while it was loaded ends in the middle of the list, and a part of it would pass for all.
    json.end()?;
    let mut kept = sample.kept;
    // A reservoir keeps early entries at their places, so its order is not random even where its choice is.
    rng.shuffle(&mut kept);
    if kept.is_empty() { Err(ShareGptError::Empty) } else { Ok(kept) }
}

/// A uniform sample of all entries that have two turns (reservoir sampling).
struct Reservoir<'a> {
    kept: Vec<PromptAndAnswer>,
    most: usize,
    seen: usize,
    rng: &'a mut fastrand::Rng,
}

impl<'de> Visitor<'de> for &mut Reservoir<'_> {
    type Value = ();

    fn expecting(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("a list of conversations")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        while let Some(entry) = entries.next_element::<Entry>()? {
            let mut turns = entry.conversations.into_iter().map(|turn| turn.value);
            let (Some(prompt), Some(answer)) = (turns.next(), turns.next()) else { continue };
            let turns = PromptAndAnswer { prompt, answer };
            self.seen += 1;
            if self.kept.len() < self.most {
                self.kept.push(turns);
            } else if let Some(place) = self.kept.get_mut(self.rng.usize(..self.seen)) {
                *place = turns;
            }
        }
        Ok(())
    }
}

/// Returns whether `vllm bench serve` would send such a prompt. `fixed`: the answer's length is the user's own, and not too
/// short.
#[must_use]
pub fn fits(prompt_len: u32, output_len: u32, fixed: bool) -> bool {
    prompt_len >= MIN_LEN
        && (fixed || output_len >= MIN_LEN)
        && prompt_len <= MAX_PROMPT
        && prompt_len.saturating_add(output_len) <= MAX_TOTAL
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"[
        {"id": "a", "conversations": [{"from": "human", "value": "p1"}, {"from": "gpt", "value": "a1"}, {"from": "human", "value": "x"}]},
        {"id": "b", "conversations": [{"from": "human", "value": "alone"}]},
        {"id": "c"},
        {"id": "d", "conversations": [{"from": "human", "value": "p2"}, {"from": "gpt", "value": "a2"}]}
    ]"#;

    #[test]
    fn the_first_two_turns_of_each_conversation_are_read() {
        let mut read = read(FILE.as_bytes(), 10, 0).unwrap();
        read.sort_by(|a, b| a.prompt.cmp(&b.prompt));
        let turns =
            |prompt: &str, answer: &str| PromptAndAnswer { prompt: prompt.to_owned(), answer: answer.to_owned() };
        assert_eq!(read, [turns("p1", "a1"), turns("p2", "a2")]);
    }

    #[test]
    fn a_large_file_leaves_a_sample_of_all_of_it() {
        let entry = |id| format!(r#"{{"conversations":[{{"value":"{id}"}},{{"value":"a"}}]}}"#);
        let file = format!("[{}]", (0..5000).map(entry).collect::<Vec<_>>().join(","));
        let read = read(file.as_bytes(), 10, 1).unwrap();
        let numbers: Vec<f64> = read.iter().map(|turns| turns.prompt.parse().unwrap()).collect();
        let mean = numbers.iter().sum::<f64>() / numbers.len() as f64;
        assert!(numbers.len() == LEAST && (mean - 2500.0).abs() < 200.0, "{} of mean {mean}", numbers.len());
    }

    #[test]
    fn another_file_is_refused_with_the_place_and_the_form() {
        let said = |text: &str| read(text.as_bytes(), 10, 0).unwrap_err().to_string();
        assert!(said("{\"prompt\": \"a\"}").contains("JSON list of"));
        assert!(said("[{\"conversations\": [{\"from\": \"human\"}]}]").contains("missing field `value` at line 1"));
        assert!(said("[{\"conversations\"").contains("line 1"));
        assert!(said("[] {").contains("trailing"));
        assert_eq!(said("[]"), "it has no conversation of two turns");
    }

    #[test]
    fn lengths_are_filtered_as_vllm_filters_them() {
        for (prompt, output, fixed, good) in [
            (3, 100, false, false),
            (4, 4, false, true),
            (4, 3, false, false),
            (4, 1, true, true),
            (1024, 1024, false, true),
            (1025, 10, false, false),
            (1000, 1049, false, false),
        ] {
            assert_eq!(fits(prompt, output, fixed), good, "{prompt} {output} {fixed}");
        }
    }
}
