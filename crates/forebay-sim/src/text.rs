//! The simulated tokenizer and the simulated model's words: a token is up to six letters or digits with the space before
//! them, or any other single character. Pure and seeded: the same prompt gives the same answer.

use std::sync::LazyLock;

/// Tokens that the chat template puts around each message.
const PER_MESSAGE: usize = 5;
/// Tokens that it puts at the end, to make the model answer.
const AT_THE_END: usize = 6;
/// Letters or digits in one token, at most.
const LETTERS: usize = 6;
/// Token numbers are below this.
const VOCABULARY: u64 = 150_000;

/// Words of the simulated model: each one token of the simulated tokenizer, and safe inside a JSON string.
const WORDS: [&str; 64] = [
    " the", " of", " and", " to", " in", " is", " you", " that", " it", " he", " was", " for", " on", " are", " as",
    " with", " his", " they", " I", " at", " be", " this", " have", " from", " or", " one", " had", " by", " word",
    " but", " not", " what", " all", " were", " we", " when", " your", " can", " said", " there", " use", " an",
    " each", " which", " she", " do", " how", " their", " if", " will", " up", " other", " about", " out", " many",
    " then", " them", " these", " so", " some", " her", " would", " make", " like",
];

/// Mixes two numbers into one (splitmix64's finaliser).
#[must_use]
pub fn mix(a: u64, b: u64) -> u64 {
    let mut x = a.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(b).wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// The numbers of a text's tokens.
#[must_use]
pub fn tokenize(text: &str) -> Vec<u32> {
    let mut tokens = Vec::with_capacity(text.len() / 4 + 1);
    let mut letters = 0;
    let mut hash = 0;
    let mut open = false;
    for character in text.chars() {
        let wordy = character.is_ascii_alphanumeric();
        // Long words are several tokens, as in a real tokenizer: a text of one long word must not be one token.
        let joins = open && wordy && letters < LETTERS;
        if open && !joins {
            tokens.push((hash % VOCABULARY) as u32);
        }
        if !joins {
            (letters, hash) = (0, 0);
        }
        hash = mix(hash, u64::from(character));
        letters += usize::from(wordy);
        // Other characters stand alone, but a space waits for the word that it belongs to.
        open = wordy || character == ' ';
        if !open {
            tokens.push((hash % VOCABULARY) as u32);
        }
    }
    if open {
        tokens.push((hash % VOCABULARY) as u32);
    }
    tokens
}

/// The numbers of a chat's tokens: its messages' roles and texts, in a template.
pub fn tokenize_chat<'a>(messages: impl IntoIterator<Item = (&'a str, &'a str)>) -> Vec<u32> {
    let mut tokens = Vec::new();
    for (role, content) in messages {
        let begin = role.bytes().fold(1, |hash, byte| mix(hash, u64::from(byte)));
        // The frame of a message depends on its role: two prompts that differ in a role alone share no block from
        // there on.
        tokens.extend((0..PER_MESSAGE as u64 - 2).map(|index| (mix(begin, index) % VOCABULARY) as u32));
        tokens.extend(tokenize(content));
        tokens.extend([2, 3]);
    }
    tokens.extend((0..AT_THE_END as u32).map(|index| 10 + index));
    tokens
}

/// One number for a whole prompt.
#[must_use]
pub fn hash_tokens(tokens: &[u32]) -> u64 {
    tokens.iter().fold(0, |hash, token| mix(hash, u64::from(*token)))
}

/// A hash for each whole block of tokens, each including what is before it.
#[must_use]
pub fn block_hashes(tokens: &[u32], block_size: u32) -> Vec<u64> {
    let blocks = tokens.chunks_exact(block_size.max(1) as usize);
    blocks
        .scan(0, |before, block| {
            *before = block.iter().fold(*before, |hash, token| mix(hash, u64::from(*token)));
            Some(*before)
        })
        .collect()
}

/// The word at a place of an answer; `answer` is a hash of all that makes the answer what it is.
#[must_use]
pub fn word(answer: u64, index: u32) -> &'static str {
    WORDS[place(answer, index)]
}

fn place(answer: u64, index: u32) -> usize {
    (mix(answer, u64::from(index)) % WORDS.len() as u64) as usize
}

/// The tokens of an answer's first `length` words.
pub fn answer(answer: u64, length: u32) -> impl Iterator<Item = u32> {
    static NUMBERS: LazyLock<Vec<u32>> = LazyLock::new(|| WORDS.iter().flat_map(|word| tokenize(word)).collect());
    (0..length).map(move |index| NUMBERS[place(answer, index)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sentence_has_the_tokens_that_a_reader_expects() {
        assert_eq!(tokenize("Hello, how are you today?").len(), 7);
        assert_eq!(tokenize("").len(), 0);
        assert_eq!(tokenize("extraordinary").len(), 3);
        assert_eq!(tokenize("a  b\n\nc").len(), 6);
        assert_eq!(tokenize("äöü").len(), 3);
        assert_eq!(tokenize_chat([("user", "Hello, how are you today?")]).len(), 18);
    }

    #[test]
    fn every_word_of_an_answer_is_one_token() {
        for word in WORDS {
            assert_eq!(tokenize(word).len(), 1, "{word}");
        }
        let text: String = (0..100).map(|index| word(7, index)).collect();
        assert_eq!(tokenize(&text), answer(7, 100).collect::<Vec<_>>());
        assert_ne!(text, (0..100).map(|index| word(8, index)).collect::<String>());
    }

    #[test]
    fn texts_that_begin_alike_share_their_first_blocks() {
        let (a, b) = (tokenize(&" word".repeat(40)), tokenize(&(" word".repeat(35) + " other" + &" word".repeat(4))));
        let (a, b) = (block_hashes(&a, 16), block_hashes(&b, 16));
        assert_eq!((a.len(), b.len()), (2, 2));
        assert_eq!(a, b);
        assert_ne!(block_hashes(&tokenize(&" other".repeat(16)), 16)[0], a[0]);
    }
}
