//! Words in errors and logs: a client's, which are cut, and those of an error's causes.

use std::borrow::Cow;
use std::error::Error;

/// Bytes of a client's words that an error or a log repeats.
const REPEATED: usize = 256;
/// Bytes of a whole message, whatever it repeats: the names of all models that are served may be many.
pub(super) const MESSAGE: usize = 4096;

/// A client's words as an error or a log repeats them: the first 256 bytes. What a client names must not be kept for as long as its
/// answer is, nor come back in full to whoever reads slowly.
#[must_use]
pub fn repeated(words: &str) -> String {
    cut(words, REPEATED).into_owned()
}

pub(super) fn cut(text: &str, most: usize) -> Cow<'_, str> {
    if text.len() <= most {
        return Cow::Borrowed(text);
    }
    Cow::Owned(format!("{}…", &text[..text.floor_char_boundary(most)]))
}

/// Returns an error's text with those of its causes: hyper's own alone is "client error (Connect)".
#[must_use]
pub fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{ErrorShape, error_json};

    #[derive(Debug, thiserror::Error)]
    #[error("cannot reach a:1")]
    struct Unreachable(#[source] std::io::Error);

    #[test]
    fn an_error_is_told_with_its_causes() {
        let error = Unreachable(std::io::Error::other("no route"));
        assert_eq!(with_causes(&error), "cannot reach a:1: no route");
    }

    #[test]
    fn long_words_are_cut_at_a_character_and_short_ones_stay() {
        assert_eq!(repeated("tiny"), "tiny");
        assert_eq!(repeated(&"é".repeat(4 << 20)).len(), 256 + "…".len());
        assert!(repeated(&format!("a{}", "é".repeat(200))).ends_with("é…"));
        assert!(error_json(ErrorShape::OpenAi, 400, "k", &"\u{1}".repeat(1 << 20)).len() < 32 << 10);
    }
}
