//! The lines of a watch, cut from bytes as they come, with a limit on the length of one.

use bytes::{Bytes, BytesMut};
use thiserror::Error;

/// A line that is longer than the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("an event is longer than {0} bytes")]
pub struct TooLong(pub usize);

/// Lines of at most so many bytes.
#[derive(Debug)]
pub struct Lines {
    buffer: BytesMut,
    /// Bytes of `buffer` that have no line feed.
    searched: usize,
    most: usize,
}

impl Lines {
    /// Lines of at most `most` bytes.
    #[must_use]
    pub fn of_at_most(most: usize) -> Lines {
        Lines { buffer: BytesMut::new(), searched: 0, most }
    }

    /// Takes the next bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole line, without its end; empty ones are left out.
    ///
    /// # Errors
    /// It is too long, or what has come of it is.
    pub fn next_line(&mut self) -> Result<Option<Bytes>, TooLong> {
        while let Some(end) = memchr::memchr(b'\n', &self.buffer[self.searched..]) {
            let mut line = self.buffer.split_to(self.searched + end + 1);
            self.searched = 0;
            line.truncate(line.len() - 1);
            if line.len() > self.most {
                return Err(TooLong(self.most));
            }
            if !line.trim_ascii().is_empty() {
                return Ok(Some(line.freeze()));
            }
        }
        // What was looked at once is not looked at again: a long line comes in many pieces.
        self.searched = self.buffer.len();
        if self.buffer.len() > self.most { Err(TooLong(self.most)) } else { Ok(None) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cut(pieces: &[&[u8]], most: usize) -> Result<Vec<Vec<u8>>, TooLong> {
        let (mut lines, mut all) = (Lines::of_at_most(most), Vec::new());
        for piece in pieces {
            lines.push(piece);
            while let Some(line) = lines.next_line()? {
                all.push(line.to_vec());
            }
        }
        Ok(all)
    }

    #[test]
    fn a_line_that_never_ends_is_given_up_at_its_limit() {
        assert_eq!(cut(&[b"abc", b"d"], 3), Err(TooLong(3)));
        assert_eq!(cut(&[b"abcd\n"], 3), Err(TooLong(3)));
        assert_eq!(cut(&[b"abc\n\n \nd\n"], 3), Ok(vec![b"abc".to_vec(), b"d".to_vec()]));
    }

    proptest! {
        #[test]
        fn any_split_gives_the_same_lines(text in "[ab\n]{0,60}", cuts in proptest::collection::vec(0_usize..60, 0..8)) {
            let bytes = text.as_bytes();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|at| at.min(bytes.len())).chain([0, bytes.len()]).collect();
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();
            prop_assert_eq!(cut(&pieces, 100), cut(&[bytes], 100));
        }
    }
}
