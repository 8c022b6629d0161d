//! The configuration file: read, checked in one go, resolved into plain values. Never panics, whatever the file holds, and
//! never lets a half-right file through: either everything in it is right, or a [`Report`] says all that is wrong.

mod defaults;
pub mod diagnostic;
pub mod diff;
mod files;
pub(crate) mod kinds;
mod mask;
pub mod model;
mod policy;
mod pools;
pub(crate) mod raw;
mod resolve;
pub(crate) mod schema;
mod secret;
mod url;
pub(crate) mod written;

use std::path::{Path, PathBuf};

use toml::de::DeTable;

pub use diagnostic::Report;
pub use diff::{Diff, diff};
pub use model::Config;

use diagnostic::{Diagnostic, Notes};
use files::Outside;
use schema::Section;

/// Slips of syntax that are told: what is no TOML at all would have hundreds.
const MOST_SYNTAX: usize = 5;

/// A configuration that was read and found right.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// What it says.
    pub config: Config,
    /// SHA-256 of the file and of every file that it names: another hash, another configuration.
    pub hash: [u8; 32],
    /// The file and every file that it names, in the order of reading.
    pub files: Vec<PathBuf>,
}

/// Reads the configuration at `path`, with the process's environment.
///
/// # Errors
/// The file or one that it names cannot be read, or something in it is wrong; the report has all of it.
pub fn load(path: &Path) -> Result<Loaded, Box<Report>> {
    load_with(path, &|name| std::env::var(name).ok())
}

/// Reads the configuration at `path`, with the environment that `env` looks up.
///
/// # Errors
/// As [`load`].
pub fn load_with(path: &Path, env: &dyn Fn(&str) -> Option<String>) -> Result<Loaded, Box<Report>> {
    let mut outside = Outside::of(path, env);
    let text = outside.file(path);
    resolve_text(path, text, outside)
}

/// Reads `text` as if it were the file at `path`.
///
/// # Errors
/// As [`load`].
pub fn load_text(path: &Path, text: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<Loaded, Box<Report>> {
    let mut outside = Outside::of(path, env);
    outside.text(text);
    resolve_text(path, Ok(text.to_owned()), outside)
}

fn resolve_text(path: &Path, text: Result<String, String>, mut outside: Outside<'_>) -> Result<Loaded, Box<Report>> {
    let name = path.display().to_string();
    let text = match text {
        Ok(text) => text,
        Err(reason) => {
            let hash = outside.finish().0;
            return Err(Box::new(Report::new(
                &name,
                "",
                vec![Diagnostic::whole(format!("cannot read it: {reason}"))],
                hash,
            )));
        }
    };
    let read = parse(&text, &schema::ROOT, |root| resolve::config(root, &mut outside));
    let (hash, files) = outside.finish();
    match read {
        Ok(config) => Ok(Loaded { config, hash, files }),
        Err(diagnostics) => Err(Box::new(Report::new(&name, &text, diagnostics, hash))),
    }
}

/// Reads TOML whose keys are those of `section`: what `read` makes of it, or every mistake that it noted.
pub(crate) fn parse<T>(
    text: &str,
    section: &'static Section,
    read: impl FnOnce(&raw::Table<'_>) -> T,
) -> Result<T, Vec<Diagnostic>> {
    let notes = Notes::default();
    let (document, syntax) = DeTable::parse_recoverable(text);
    let found = if syntax.is_empty() {
        Some(read(&raw::Table::root(document.get_ref(), section, &notes)))
    } else {
        // what follows a slip of syntax was not understood, so nothing is said about it
        syntax.iter().take(MOST_SYNTAX).for_each(|error| notes.add(syntax_error(error, text.len())));
        None
    };
    drop(document);
    match (found, notes.into_inner()) {
        (Some(found), noted) if noted.is_empty() => Ok(found),
        (_, noted) => Err(noted),
    }
}

fn syntax_error(error: &toml::de::Error, end: usize) -> Diagnostic {
    let span = error.span().unwrap_or(end..end);
    if error.message().starts_with("duplicate key") {
        return Diagnostic::at(span, "this is written twice").hint("write each key, and each [section], once");
    }
    let message = format!("this is not TOML: {}", error.message());
    Diagnostic::at(span, message).hint("the form is key = \"text\", key = 3, key = true or key = [1, 2]")
}
