//! What a prompt begins with, as hashes at growing positions, so that two prompts with a common beginning have their first
//! marks in common though the rest differs. Keeps no text; the hashes are keyed by the process, so that no client can aim at
//! another's.
//!
//! Hot path: SipHash over at most the first 192 KiB of a prompt's text, about 1 ns a byte; no allocation.

use std::hash::{BuildHasher, DefaultHasher, Hasher, RandomState};

use crate::routing::affinity::{Mark, Marks, PREFIX_MARKS};

/// Positions of the marks, in bytes of text: each a third or a half beyond the last, so that of a common beginning at least two
/// thirds are recognised. A shorter one than the first is not worth a place in the table.
const AT: [usize; PREFIX_MARKS] = {
    let mut at = [0; PREFIX_MARKS];
    let mut i = 0;
    while i < PREFIX_MARKS {
        at[i] = if i % 2 == 0 { 1024 << (i / 2) } else { 1536 << (i / 2) };
        i += 1;
    }
    at
};
/// Of a string that is no text (an image's data, a URL) so many bytes of both ends tell it from others.
const SAMPLED: usize = 256;
/// Bytes of text for one token, as the estimate of a prompt has it.
const BYTES_FOR_TOKEN: u64 = 4;

/// A prompt's beginning, while it is read.
#[derive(Debug)]
pub(super) struct Prefix {
    /// None: nobody wants to know.
    hasher: Option<DefaultHasher>,
    /// Bytes of text so far, as written.
    written: usize,
    /// Bytes of text so far, escapes taken for what they stand for.
    text: u64,
    marks: Marks,
}

impl Prefix {
    /// Hashes with the process's `keys`; without them nothing.
    pub(super) fn new(keys: Option<&RandomState>) -> Prefix {
        Prefix { hasher: keys.map(BuildHasher::build_hasher), written: 0, text: 0, marks: Marks::NONE }
    }

    /// The marks of what was read.
    pub(super) fn into_marks(self) -> Marks {
        self.marks
    }

    /// A string of the prompt's text, `escaped` bytes of which are escaping alone.
    pub(super) fn text(&mut self, string: &[u8], escaped: usize) {
        let counts = string.len().saturating_sub(escaped) as u64;
        let mut rest = string;
        while let Some(next) = self.next_mark() {
            let Some(hasher) = &mut self.hasher else { return };
            let room = next.saturating_sub(self.written);
            if rest.len() < room {
                hasher.write(rest);
                hasher.write(b"\0");
                self.written += rest.len();
                break;
            }
            let (head, tail) = rest.split_at(room);
            hasher.write(head);
            self.written += room;
            let done = (string.len() - tail.len()) as u64;
            self.mark(self.text + done * counts / (string.len() as u64).max(1));
            rest = tail;
        }
        self.text += counts;
    }

    /// A token id of the prompt.
    pub(super) fn id(&mut self, digits: &[u8]) {
        let Some(next) = self.next_mark() else { return };
        let Some(hasher) = &mut self.hasher else { return };
        let mut packed = [0; 8];
        let kept = digits.len().min(packed.len());
        packed[..kept].copy_from_slice(&digits[..kept]);
        hasher.write_u64(u64::from_le_bytes(packed));
        self.written += BYTES_FOR_TOKEN as usize;
        self.text += BYTES_FOR_TOKEN;
        if self.written >= next {
            self.mark(self.text);
        }
    }

    /// A string that shapes the prompt but is no text of it: a role, an image's data. Takes no room.
    pub(super) fn aside(&mut self, string: &[u8]) {
        if self.next_mark().is_none() {
            return;
        }
        let Some(hasher) = &mut self.hasher else { return };
        hasher.write_usize(string.len());
        hasher.write(&string[..string.len().min(SAMPLED)]);
        hasher.write(&string[string.len().saturating_sub(SAMPLED)..]);
    }

    fn next_mark(&self) -> Option<usize> {
        AT.get(self.marks.prefix().len()).copied()
    }

    fn mark(&mut self, text: u64) {
        if let Some(hasher) = &self.hasher {
            let tokens = u32::try_from(text / BYTES_FOR_TOKEN).unwrap_or(u32::MAX);
            self.marks.push(Mark { key: hasher.finish(), tokens });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marks(keys: &RandomState, strings: &[&str]) -> Marks {
        let mut prefix = Prefix::new(Some(keys));
        for string in strings {
            prefix.text(string.as_bytes(), 0);
        }
        prefix.into_marks()
    }

    #[test]
    fn marks_lie_at_growing_positions_up_to_192_kib() {
        assert_eq!(AT.map(|at| at / 512), [2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384]);
        let keys = RandomState::new();
        let all = marks(&keys, &["x".repeat(1 << 20).as_str()]);
        assert_eq!(all.prefix().iter().map(|mark| mark.tokens as usize * 4).collect::<Vec<_>>(), AT);
        assert!(marks(&keys, &["short"]).is_empty());
    }

    #[test]
    fn a_common_beginning_has_common_marks_and_no_more() {
        let keys = RandomState::new();
        let shared = "You are a helpful assistant. ".repeat(280);
        let (one, other) = (shared.clone() + &"a".repeat(9000), shared.clone() + &"b".repeat(9000));
        let (one, other) = (marks(&keys, &[&one]), marks(&keys, &[&other]));
        let common = one.prefix().iter().zip(other.prefix()).take_while(|(a, b)| a == b).count();
        assert_eq!(one.prefix()[common - 1].tokens, 1536, "6 KiB of {} bytes", shared.len());
        assert_ne!(one.prefix()[common].key, other.prefix()[common].key);
    }

    #[test]
    fn where_a_string_ends_and_what_stands_beside_it_matter() {
        let keys = RandomState::new();
        let (a, b) = ("a".repeat(700), "b".repeat(700));
        assert_ne!(marks(&keys, &[&a, &b]), marks(&keys, &[&(a.clone() + &b)]));
        let with_role = |role: &str| {
            let mut prefix = Prefix::new(Some(&keys));
            prefix.aside(role.as_bytes());
            prefix.text(a.as_bytes(), 0);
            prefix.text(b.as_bytes(), 0);
            prefix.into_marks()
        };
        assert_ne!(with_role("user"), with_role("system"));
        assert_eq!(with_role("user"), with_role("user"));
    }

    #[test]
    fn another_process_has_other_hashes() {
        let text = "x".repeat(2000);
        let (one, other) = (marks(&RandomState::new(), &[&text]), marks(&RandomState::new(), &[&text]));
        assert_ne!(one.prefix()[0].key, other.prefix()[0].key);
        assert_eq!(one.prefix()[0].tokens, other.prefix()[0].tokens);
    }

    #[test]
    fn escapes_count_for_what_they_stand_for() {
        let mut prefix = Prefix::new(Some(&RandomState::new()));
        prefix.text("\\u4e16".repeat(400).as_bytes(), 1200);
        let marks = prefix.into_marks();
        assert_eq!(marks.prefix().iter().map(|mark| mark.tokens).collect::<Vec<_>>(), [128, 192, 256]);
    }
}
