//! TOML files that people write: read against a [`Schema`], with every mistake noted at its place and a hint that says what
//! would be right. Never panics, whatever the file holds; never reads a file itself.

pub mod diagnostic;
pub mod entry;
pub mod kinds;
mod mask;
pub mod notation;
pub mod section;
pub mod table;
pub mod values;

use std::ops::Range;

use toml::de::DeTable;

pub use diagnostic::{Diagnostic, Notes, Report, quoted};
pub use entry::{ByHand, Change, Entry, Keys, Nested};
pub use kinds::ValueKind;
pub use section::{DefaultText, Key, Reload, Schema, Section, nearest};
#[doc(hidden)]
pub use serde; // for the code that `section!` writes
pub use table::{Got, Table, Value, Wrong};

/// Slips of syntax that are told: what is no TOML at all would have hundreds.
const MOST_SYNTAX: usize = 5;

/// Reads TOML whose keys are those of `schema`: what `read` makes of it.
///
/// # Errors
/// Something in it is wrong: every mistake that was noted.
pub fn parse<T>(text: &str, schema: &'static Schema, read: impl FnOnce(&Table<'_>) -> T) -> Result<T, Vec<Diagnostic>> {
    let notes = Notes::default();
    let (document, syntax) = DeTable::parse_recoverable(text);
    let found = if syntax.is_empty() {
        Some(read(&Table::root(document.get_ref(), schema, &notes)))
    } else {
        // what follows a slip of syntax was not understood, so nothing is said about it
        let mut lines: Vec<usize> = Vec::new();
        for error in &syntax {
            let span = error.span().unwrap_or(text.len()..text.len());
            let line = text.as_bytes()[..span.start].iter().filter(|byte| **byte == b'\n').count();
            // One slip often breaks the rest of its line, too.
            if lines.len() < MOST_SYNTAX && !lines.contains(&line) {
                lines.push(line);
                notes.add(syntax_error(error, text, span));
            }
        }
        None
    };
    drop(document);
    match (found, notes.into_inner()) {
        (Some(found), noted) if noted.is_empty() => Ok(found),
        (_, noted) => Err(noted),
    }
}

const FORM: &str = "the form is key = \"text\", key = 3, key = true or key = [1, 2]";

fn syntax_error(error: &toml::de::Error, text: &str, span: Range<usize>) -> Diagnostic {
    if error.message().starts_with("duplicate key") {
        return Diagnostic::at(span, "this is written twice").hint("write each key, and each [section], once");
    }
    let message = format!("this is not TOML: {}", error.message());
    let at = text.get(..span.start).map_or(0, |before| before.rfind('\n').map_or(0, |end| end + 1));
    let line = text.get(at..).and_then(|rest| rest.lines().next()).unwrap_or_default();
    let hint = match text.get(span.start..).and_then(|rest| rest.chars().next()) {
        Some('“' | '”' | '„' | '‘' | '’' | '«' | '»') => {
            "these are not the quotes of TOML: write key = \"text\""
        }
        // As YAML writes it.
        _ if !line.contains('=') && (line.contains(": ") || line.ends_with(':')) => {
            "write `=` in place of `:`; a file in YAML has to be written as TOML"
        }
        _ => FORM,
    };
    Diagnostic::at(span, message).hint(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn yaml_is_told_from_other_slips() {
        for (text, yaml) in [("url: \"x\"\n", 1), ("pools:\n  - model: m\n", 2), ("url = \"a: b\n", 0), ("url\n", 0)] {
            let wrong = parse(text, &section::SMALL, |_| ()).unwrap_err();
            let report = Report::new(&section::SMALL, "f", text, wrong, [0; 32]).lines().join("\n");
            assert_eq!(report.matches("a file in YAML").count(), yaml, "{report}");
        }
    }
}
