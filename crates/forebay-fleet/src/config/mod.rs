//! The configuration file: read, checked in one go, resolved into plain values. Never panics, whatever the file holds, and
//! never lets a half-right file through: either everything in it is right, or a [`Report`] says all that is wrong.

mod affinity;
mod backend_key;
mod between;
mod client_keys;
pub mod diff;
mod discover;
#[cfg(test)]
mod document;
mod files;
mod keys;
mod keys_file;
mod kinds;
pub mod model;
mod origins;
mod pool_tls;
mod pools;
pub mod printed;
mod resolve;
mod schema;
mod secret;
mod tls;
mod unknown_models;
mod url;

use std::path::{Path, PathBuf};

pub use diff::{Diff, diff};
pub use forebay_core::toml_reader::Report;
pub use model::Config;

use files::Outside;
use forebay_core::toml_reader::{self, Diagnostic};

/// A configuration that was read and found right.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The content.
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
            // A file that cannot be read has a hash, too: the watcher must not report the same trouble at each look.
            let hash = outside.finish().0;
            return Err(Box::new(Report::new(
                &schema::SCHEMA,
                &name,
                "",
                vec![
                    Diagnostic::whole(format!("cannot read it: {reason}"))
                        .hint("name a TOML file in UTF-8 that this user may read"),
                ],
                hash,
            )));
        }
    };
    let read = toml_reader::parse(&text, &schema::SCHEMA, |root| resolve::config(root, &mut outside));
    // After the keys: a file or a variable that one of them names is a part of the hash.
    let (hash, files) = outside.finish();
    match read {
        Ok(config) => Ok(Loaded { config, hash, files }),
        Err(diagnostics) => Err(Box::new(Report::new(&schema::SCHEMA, &name, &text, diagnostics, hash))),
    }
}
