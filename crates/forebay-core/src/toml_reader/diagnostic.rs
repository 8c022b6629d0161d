//! What is wrong with a configuration, said so that it can be put right without the manual: file, line, column, the line
//! itself with a caret, the reason, and the right form. Never shows a secret that stands on such a line (see `mask`), and
//! never a line of a file that holds nothing but secrets.

use std::cell::RefCell;
use std::fmt;
use std::ops::Range;

use annotate_snippets::renderer::Renderer;
use annotate_snippets::{AnnotationKind, Level, Origin, Snippet};

use super::mask;
use super::section::Schema;

/// One mistake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// The file, as the operator named it.
    path: String,
    /// Place in the main file; none: the file as a whole, or `line` of another file.
    span: Option<Range<usize>>,
    /// The line of a file that is not shown, from 1.
    line: Option<usize>,
    /// The reason, beginning with the key.
    message: String,
    /// A text that says what would be right.
    hint: Option<String>,
    /// Another place in the main file that belongs to the mistake, and what it is.
    also: Option<(Range<usize>, &'static str)>,
}

impl Diagnostic {
    /// A mistake in the main file at `span` (bytes).
    pub fn at(span: Range<usize>, message: impl Into<String>) -> Diagnostic {
        Diagnostic {
            path: String::new(),
            span: Some(span),
            line: None,
            message: message.into(),
            hint: None,
            also: None,
        }
    }

    /// A mistake in the main file as a whole.
    pub fn whole(message: impl Into<String>) -> Diagnostic {
        Diagnostic { path: String::new(), span: None, line: None, message: message.into(), hint: None, also: None }
    }

    /// A mistake in `line` of another file, which is not shown.
    pub fn elsewhere(path: impl Into<String>, line: Option<usize>, message: impl Into<String>) -> Diagnostic {
        Diagnostic { path: path.into(), span: None, line, message: message.into(), hint: None, also: None }
    }

    /// Adds what would be right.
    pub fn hint(mut self, hint: impl Into<String>) -> Diagnostic {
        self.hint = Some(hint.into());
        self
    }

    /// Adds another place, if there is one.
    pub fn also(mut self, place: Option<Range<usize>>, label: &'static str) -> Diagnostic {
        self.also = place.map(|span| (span, label));
        self
    }

    /// The reason, beginning with the key; one line.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }
}

/// A list in which mistakes are collected while the file is read.
#[derive(Debug, Default)]
pub struct Notes(RefCell<Vec<Diagnostic>>);

impl Notes {
    /// Notes a mistake and goes on.
    pub fn add(&self, diagnostic: Diagnostic) {
        self.0.borrow_mut().push(diagnostic);
    }

    /// Everything noted, if anything was.
    pub fn into_inner(self) -> Vec<Diagnostic> {
        self.0.into_inner()
    }
}

/// Mistakes that are shown: each costs a walk through the file, and nobody reads more at once.
const MOST_SHOWN: usize = 50;

/// Everything that is wrong with one configuration; never empty.
#[derive(Clone, Debug)]
pub struct Report {
    path: String,
    text: String,
    diagnostics: Vec<Diagnostic>,
    hash: [u8; 32],
}

impl Report {
    /// The mistakes of the file at `path` with the content `text`, which `schema` describes, sorted by their place.
    pub fn new(schema: &Schema, path: &str, text: &str, mut diagnostics: Vec<Diagnostic>, hash: [u8; 32]) -> Report {
        diagnostics.sort_by_key(|d| (d.span.is_none(), d.span.as_ref().map(|span| span.start), d.line));
        for diagnostic in &mut diagnostics {
            if diagnostic.path.is_empty() {
                path.clone_into(&mut diagnostic.path);
            }
        }
        Report { path: path.to_owned(), text: mask::masked(schema, text), diagnostics, hash }
    }

    /// The mistakes, by their place.
    #[must_use]
    pub fn diagnostics(&self) -> &[Diagnostic] {
        &self.diagnostics
    }

    /// SHA-256 of what was read, as in `Loaded`: the same mistakes need no second telling.
    #[must_use]
    pub fn hash(&self) -> [u8; 32] {
        self.hash
    }

    /// One line for each mistake, for a log: `file:line:column: reason; hint`. The first 50, and a line that counts the rest.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let mut lines: Vec<String> = self.first().iter().map(|diagnostic| self.line(diagnostic)).collect();
        if lines.len() < self.diagnostics.len() {
            lines.push(format!("{}: and {} more mistakes", self.path, self.diagnostics.len() - lines.len()));
        }
        lines
    }

    fn first(&self) -> &[Diagnostic] {
        &self.diagnostics[..self.diagnostics.len().min(MOST_SHOWN)]
    }

    /// The report as text that ends in a line break, with terminal colours only if asked; the first 50 mistakes.
    #[must_use]
    pub fn render(&self, colour: bool) -> String {
        let renderer = if colour { Renderer::styled() } else { Renderer::plain() };
        let mut text = String::new();
        for diagnostic in self.first() {
            text.push_str(&self.one(diagnostic, &renderer));
            text.push_str("\n\n");
        }
        let mistakes = match self.diagnostics.len() {
            1 => "1 mistake".to_owned(),
            count if count > MOST_SHOWN => format!("{count} mistakes (the first {MOST_SHOWN} are shown)"),
            count => format!("{count} mistakes"),
        };
        text.push_str(&renderer.render(&[annotate_snippets::Group::with_title(
            Level::ERROR.primary_title(format!("{mistakes} in {}", self.path)),
        )]));
        text.push('\n');
        text
    }

    fn one(&self, diagnostic: &Diagnostic, renderer: &Renderer) -> String {
        let title = Level::ERROR.primary_title(diagnostic.message.as_str());
        let mut group = match &diagnostic.span {
            Some(span) => {
                let mut snippet = Snippet::source(self.text.as_str())
                    .path(diagnostic.path.as_str())
                    .annotation(AnnotationKind::Primary.span(self.shown(span)));
                if let Some((place, label)) = &diagnostic.also {
                    snippet = snippet.annotation(AnnotationKind::Context.span(self.shown(place)).label(*label));
                }
                title.element(snippet)
            }
            None => {
                let origin = Origin::path(diagnostic.path.as_str());
                title.element(match diagnostic.line {
                    Some(line) => origin.line(line),
                    None => origin,
                })
            }
        };
        if let Some(hint) = &diagnostic.hint {
            group = group.element(Level::HELP.message(annotate_snippets::normalize_untrusted_str(hint)));
        }
        renderer.render(&[group])
    }

    /// `span`, within the text, at character bounds, and no longer than its first line.
    fn shown(&self, span: &Range<usize>) -> Range<usize> {
        let text = &self.text;
        let start = floor_boundary(text, span.start);
        let end = floor_boundary(text, span.end).max(start);
        let line_end = text[start..].find(['\n', '\r']).map_or(text.len(), |length| start + length);
        start..end.min(line_end).max(start)
    }

    fn line(&self, diagnostic: &Diagnostic) -> String {
        let place = match (&diagnostic.span, diagnostic.line) {
            (Some(span), _) => {
                let before = &self.text[..floor_boundary(&self.text, span.start)];
                let line_start = before.rfind('\n').map_or(0, |at| at + 1);
                let line = before.matches('\n').count() + 1;
                format!("{}:{line}:{}", diagnostic.path, before[line_start..].chars().count() + 1)
            }
            (None, Some(line)) => format!("{}:{line}", diagnostic.path),
            (None, None) => diagnostic.path.clone(),
        };
        match &diagnostic.hint {
            Some(hint) => format!("{place}: {}; {hint}", diagnostic.message),
            None => format!("{place}: {}", diagnostic.message),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.lines().join("\n"))
    }
}

impl std::error::Error for Report {}

/// The last character boundary at or before `at`.
fn floor_boundary(text: &str, at: usize) -> usize {
    let at = at.min(text.len());
    (0..=at).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0)
}

/// `text` from the file in a message: on one line, in backticks, and not too much of it.
pub fn quoted(text: &str) -> String {
    const MOST: usize = 60;
    let shown: String = text.chars().take(MOST).flat_map(char::escape_debug).collect();
    let more = if text.chars().nth(MOST).is_some() { "…" } else { "" };
    format!("`{shown}{more}`")
}

#[cfg(test)]
mod tests {
    use super::super::section::SMALL;
    use super::*;

    fn report() -> Report {
        let text = "[retry]\nattempts = 0\n";
        let first = Diagnostic::at(19..20, "retry.attempts: 0 is not between 1 and 10").hint("1 means no retry");
        Report::new(&SMALL, "f.toml", text, vec![Diagnostic::elsewhere("k", Some(7), "no hash"), first], [0; 32])
    }

    #[test]
    fn a_mistake_has_a_place_a_reason_and_a_hint() {
        assert_eq!(
            report().lines(),
            ["f.toml:2:12: retry.attempts: 0 is not between 1 and 10; 1 means no retry", "k:7: no hash"]
        );
    }

    #[test]
    fn colour_comes_only_when_asked() {
        let (plain, coloured) = (report().render(false), report().render(true));
        assert!(!plain.contains('\u{1b}'), "{plain}");
        assert!(coloured.contains('\u{1b}'), "{coloured}");
        assert!(plain.contains("attempts = 0") && plain.contains('^'), "{plain}");
        assert!(plain.ends_with("error: 2 mistakes in f.toml\n"), "{plain}");
    }

    #[test]
    fn a_flood_of_mistakes_is_cut_and_counted() {
        let flood = (0..60).map(|_| Diagnostic::at(0..1, "no")).collect();
        let report = Report::new(&SMALL, "f", "x", flood, [0; 32]);
        assert_eq!(report.lines().len(), 51);
        assert_eq!(report.lines()[50], "f: and 10 more mistakes");
        assert!(report.render(false).ends_with("error: 60 mistakes (the first 50 are shown) in f\n"));
    }

    #[test]
    fn a_long_text_is_quoted_on_one_line() {
        assert_eq!(quoted("a\nb"), "`a\\nb`");
        assert_eq!(quoted(&"x".repeat(99)).chars().count(), 63);
    }
}
