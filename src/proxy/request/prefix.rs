//! The beginning of a prompt as a chain of hashes, one at the end of each block of its text. Two prompts with a common beginning
//! have the hashes of its blocks in common, though the rest differs. No text is kept.
//!
//! Hot path: XXH3 over at most the first 2.8 MB of a prompt's text, a fifth of a nanosecond a byte and a twentieth of a microsecond
//! a block; allocates for the chain it returns. A prompt that is shorter than the first block is copied and not hashed.

use std::hash::Hasher as _;

use twox_hash::xxhash3_64::Hasher;

use forebay_core::routing::affinity::{BLOCK_ENDS, Mark, Marks};

/// Of a string that is no text (an image's data, a URL) so many bytes of both ends tell it from others.
const SAMPLED: usize = 256;
/// Bytes of text for one token, as the estimate of a prompt has it.
const BYTES_FOR_TOKEN: u64 = 4;

/// Bytes that are kept before the first mark until a hasher is made: that takes longer than all else for a short prompt.
const KEPT: usize = 1 << 10;

/// The hash of what was read.
enum Hashing {
    /// Nobody wants to know.
    Off,
    /// Nobody has asked yet: the seed, and what was read.
    Kept(u64, Vec<u8>),
    On(Box<Hasher>),
}

impl Hashing {
    fn write(&mut self, bytes: &[u8]) {
        match self {
            Hashing::Off => {}
            Hashing::Kept(_, kept) if kept.len() + bytes.len() <= KEPT => kept.extend_from_slice(bytes),
            Hashing::Kept(..) => {
                if let Some(hasher) = self.hasher() {
                    hasher.write(bytes);
                }
            }
            Hashing::On(hasher) => hasher.write(bytes),
        }
    }

    /// The hasher of all that was read, made now if it is needed for the first time.
    fn hasher(&mut self) -> Option<&mut Hasher> {
        if let Hashing::Kept(seed, kept) = self {
            let mut hasher = Hasher::with_seed(*seed);
            hasher.write(kept);
            *self = Hashing::On(Box::new(hasher));
        }
        match self {
            Hashing::On(hasher) => Some(hasher),
            Hashing::Off | Hashing::Kept(..) => None,
        }
    }
}

/// A prompt's beginning, while it is read.
pub(crate) struct Prefix {
    hashing: Hashing,
    /// Bytes of text so far, as written.
    written: usize,
    /// Bytes of text so far, escapes taken for what they stand for.
    text: u64,
    marks: Vec<Mark>,
}

impl Prefix {
    /// Hashes with this seed; without one nothing.
    pub(crate) fn new(seed: Option<u64>) -> Prefix {
        let hashing = seed.map_or(Hashing::Off, |seed| Hashing::Kept(seed, Vec::with_capacity(KEPT / 2)));
        Prefix { hashing, written: 0, text: 0, marks: Vec::new() }
    }

    /// The marks of what was read.
    pub(crate) fn into_marks(self) -> Marks {
        Marks::of(&self.marks)
    }

    /// A string of the prompt's text, `escaped` bytes of which are escaping alone.
    pub(crate) fn text(&mut self, string: &[u8], escaped: usize) {
        let counts = string.len().saturating_sub(escaped) as u64;
        let mut rest = string;
        while let Some(next) = self.next_mark() {
            if matches!(self.hashing, Hashing::Off) {
                return;
            }
            // A mark is the hash of all before it, so a string is cut where the next one stands.
            let room = next.saturating_sub(self.written);
            if rest.len() < room {
                self.hashing.write(rest);
                // Two strings are not one: "ab", "c" must not hash like "a", "bc".
                self.hashing.write(b"\0");
                self.written += rest.len();
                break;
            }
            let (head, tail) = rest.split_at(room);
            self.hashing.write(head);
            self.written += room;
            // Marks stand at bytes as written, and tokens count characters as meant. Within a string the two are in proportion.
            let done = (string.len() - tail.len()) as u64;
            self.mark(self.text + done * counts / (string.len() as u64).max(1));
            rest = tail;
        }
        self.text += counts;
    }

    /// A token id of the prompt.
    pub(crate) fn id(&mut self, digits: &[u8]) {
        let Some(next) = self.next_mark() else { return };
        if matches!(self.hashing, Hashing::Off) {
            return;
        }
        let mut packed = [0; 8];
        let kept = digits.len().min(packed.len());
        // Ids of up to eight digits differ in full. A vocabulary has fewer than a hundred million words.
        packed[..kept].copy_from_slice(&digits[..kept]);
        self.hashing.write(&packed);
        self.written += BYTES_FOR_TOKEN as usize;
        self.text += BYTES_FOR_TOKEN;
        if self.written >= next {
            self.mark(self.text);
        }
    }

    /// A string that shapes the prompt but is no text of it: a role, an image's data. Takes no room.
    pub(crate) fn aside(&mut self, string: &[u8]) {
        if self.next_mark().is_none() {
            return;
        }
        // An image in base64 has megabytes. Its length and both ends tell two apart, and the middle costs a millisecond.
        self.hashing.write(&(string.len() as u64).to_le_bytes());
        self.hashing.write(&string[..string.len().min(SAMPLED)]);
        self.hashing.write(&string[string.len().saturating_sub(SAMPLED)..]);
    }

    fn next_mark(&self) -> Option<usize> {
        BLOCK_ENDS.get(self.marks.len()).map(|end| *end as usize * BYTES_FOR_TOKEN as usize)
    }

    fn mark(&mut self, text: u64) {
        if let Some(hasher) = self.hashing.hasher() {
            let tokens = u32::try_from(text / BYTES_FOR_TOKEN).unwrap_or(u32::MAX);
            self.marks.push(Mark { key: hasher.finish(), tokens });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marks(seed: u64, strings: &[&str]) -> Marks {
        let mut prefix = Prefix::new(Some(seed));
        for string in strings {
            prefix.text(string.as_bytes(), 0);
        }
        prefix.into_marks()
    }

    #[test]
    fn a_long_prompt_has_all_blocks_and_a_short_one_none() {
        let all = marks(1, &["x".repeat(8 << 20).as_str()]);
        assert_eq!(all.prefix().iter().map(|mark| mark.tokens).collect::<Vec<_>>(), BLOCK_ENDS);
        assert!(marks(1, &["short"]).is_empty());
    }

    #[test]
    fn a_common_beginning_has_common_blocks_and_no_more() {
        let shared = "You are a helpful assistant. ".repeat(280);
        let (one, other) = (shared.clone() + &"a".repeat(9000), shared.clone() + &"b".repeat(9000));
        let (one, other) = (marks(1, &[&one]), marks(1, &[&other]));
        let common = one.prefix().iter().zip(other.prefix()).take_while(|(a, b)| a == b).count();
        assert_eq!(one.prefix()[common - 1].tokens as usize, shared.len() / 256 * 64);
        assert!(one.prefix()[common..].iter().zip(&other.prefix()[common..]).all(|(a, b)| a.key != b.key));
    }

    #[test]
    fn where_a_string_ends_and_what_stands_beside_it_matter() {
        let (a, b) = ("a".repeat(700), "b".repeat(700));
        assert_ne!(marks(1, &[&a, &b]), marks(1, &[&(a.clone() + &b)]));
        let with_role = |role: &str| {
            let mut prefix = Prefix::new(Some(1));
            prefix.aside(role.as_bytes());
            prefix.text(a.as_bytes(), 0);
            prefix.text(b.as_bytes(), 0);
            prefix.into_marks()
        };
        assert_ne!(with_role("user"), with_role("system"));
        assert_eq!(with_role("user"), with_role("user"));
    }

    #[test]
    fn a_seed_decides_the_hashes_in_every_process_alike() {
        let text = "x".repeat(2000);
        let (one, other) = (marks(1, &[&text]), marks(2, &[&text]));
        assert!(one.prefix().iter().zip(other.prefix()).all(|(a, b)| a.key != b.key && a.tokens == b.tokens));
        // Replicas of different versions share a `split_salt`: this figure may never change.
        assert_eq!(one.prefix()[0].key, 10_421_567_070_846_207_039);
    }

    #[test]
    fn escapes_count_for_what_they_stand_for() {
        let mut prefix = Prefix::new(Some(7));
        prefix.text("\\u4e16".repeat(128).as_bytes(), 384);
        let marks = prefix.into_marks();
        assert_eq!(marks.prefix().iter().map(|mark| mark.tokens).collect::<Vec<_>>(), [32, 64, 96]);
    }

    #[test]
    fn token_ids_are_a_chain_too() {
        let mut prefix = Prefix::new(Some(7));
        (0..100).for_each(|id: u32| prefix.id(id.to_string().as_bytes()));
        let marks = prefix.into_marks();
        assert_eq!(marks.prefix().iter().map(|mark| mark.tokens).collect::<Vec<_>>(), [64]);
    }
}
