//! The keys of the two logs: what is written, in which form, and where.

use std::path::PathBuf;

use serde::Serialize;
use tracing_subscriber::EnvFilter;

use super::super::between::both;
use forebay_core::section;
use forebay_core::toml_reader::kinds::{choice, line, set};
use forebay_core::toml_reader::notation::Notation;
use forebay_core::toml_reader::{Table, Value, ValueKind, Wrong, quoted, values};

section! {
    name: "log", head: "[log]", form: "[log] and its keys below", check: one_file_each;
    /// The log of events and the access log. Options of the command line win over these keys. SIGUSR1 opens the files again.
    #[derive(Clone, Debug, PartialEq)]
    pub struct Log {
        /// Filter of the log of events: a level, or a list such as `info,forebay::proxy=debug`.
        level: Option<String> {
            takes: set(Filter), default: None, said: "the environment's `FOREBAY_LOG`, else `\"warn,forebay=info\"`", reload: Restart
        },
        /// Form of the log of events.
        format: LogFormat { takes: choice(LogFormat::ALL), default: LogFormat::Text, reload: Restart },
        /// File of the log of events, relative to the configuration file. Forebay appends to it.
        file: Option<PathBuf> { takes: set(LogPath), default: None, said: "standard error", reload: Restart },
        /// Form of the access log, one line a request.
        access_log: AccessLogFormat { takes: choice(AccessLogFormat::ALL), default: AccessLogFormat::Off, reload: Restart },
        /// File of the access log, relative to the configuration file. Forebay appends to it.
        access_log_file: Option<PathBuf> { takes: set(LogPath), default: None, said: "standard output", reload: Restart },
    }
}

/// Notes two logs that would mix their lines in one file.
fn one_file_each(log: &Log, table: &Table<'_>) {
    let (events, access) =
        (table.got("file", log.file.clone()), table.got("access_log_file", log.access_log_file.clone()));
    if events.wrong || access.wrong || access.value.is_none() {
        return;
    }
    if events.value == access.value {
        let message = "log.access_log_file: the log of events is in this file".to_owned();
        both(table.notes(), message, "give the two logs two files", (&access.span, &events.span), "taken here");
    }
}

/// The form of a log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// For people: `key=value`.
    #[default]
    Text,
    /// For machines: one JSON object a line.
    Json,
}

impl LogFormat {
    /// All values, as they are written.
    pub const ALL: [(&str, LogFormat); 2] = [("text", LogFormat::Text), ("json", LogFormat::Json)];
}

impl std::str::FromStr for LogFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<LogFormat, String> {
        let found = LogFormat::ALL.into_iter().find(|(word, _)| *word == text);
        found.map(|(_, format)| format).ok_or_else(|| format!("`{text}` is no log format; write \"text\" or \"json\""))
    }
}

/// The form of the access log, which may be off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AccessLogFormat {
    /// No access log.
    #[default]
    Off,
    /// Lines of names and values.
    Text,
    /// One JSON object a line.
    Json,
}

impl AccessLogFormat {
    /// All values, as they are written.
    pub const ALL: [(&str, AccessLogFormat); 3] =
        [("off", AccessLogFormat::Off), ("text", AccessLogFormat::Text), ("json", AccessLogFormat::Json)];

    /// The form of its lines, if there are any.
    #[must_use]
    pub fn lines(self) -> Option<LogFormat> {
        match self {
            AccessLogFormat::Off => None,
            AccessLogFormat::Text => Some(LogFormat::Text),
            AccessLogFormat::Json => Some(LogFormat::Json),
        }
    }
}

/// Reads a filter of the log of events.
///
/// # Errors
/// It cannot be read, or has a word that is neither a level nor a module. `tracing` takes such a word for the name of a module,
/// so that a slip in a level would turn everything off.
pub fn log_filter(text: &str) -> Result<EnvFilter, String> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let means_something = |word: &&str| {
        let word = word.trim();
        let level = LEVELS.iter().any(|level| word.eq_ignore_ascii_case(level));
        level || word.is_empty() || word.contains(['=', '[']) || word.contains("::") || word == "forebay"
    };
    if let Some(slip) = text.split(',').find(|word| !means_something(word)) {
        return Err(format!("`{}` is no level", slip.trim()));
    }
    EnvFilter::try_new(text).map_err(|error| error.to_string())
}

/// A filter as `tracing` reads it.
struct Filter;

impl ValueKind for Filter {
    type Of = String;

    fn read(&self, value: &Value<'_>) -> Result<String, Wrong> {
        let text = values::line(1024)(value)?;
        match log_filter(&text) {
            Ok(_) => Ok(text),
            Err(reason) => Err(Wrong::because(format!("{} is no log filter ({reason})", quoted(&text)))
                .hint("write error, warn, info, debug or trace, or a list such as \"info,forebay::proxy=debug\"")),
        }
    }

    fn written(&self, value: &String) -> Notation {
        Notation::Text(value.clone())
    }

    fn takes(&self) -> String {
        format!("{}: a level, or levels by module", line(1024).takes())
    }
}

/// The path of a file that is written.
struct LogPath;

impl ValueKind for LogPath {
    type Of = PathBuf;

    fn read(&self, value: &Value<'_>) -> Result<PathBuf, Wrong> {
        let text = values::line(4096)(value)?;
        if text.ends_with('/') {
            return Err(Wrong::because(format!("{} is a folder", quoted(&text))).hint("name the file in it"));
        }
        Ok(PathBuf::from(text))
    }

    fn written(&self, value: &PathBuf) -> Notation {
        Notation::Text(value.to_string_lossy().into_owned())
    }

    fn takes(&self) -> String {
        "path, relative to the configuration file".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_in_a_level_is_no_module() {
        for fine in ["info", "WARN", "info,forebay::proxy=debug", "forebay::proxy", "warn,forebay=trace", "off"] {
            assert!(log_filter(fine).is_ok(), "{fine}");
        }
        for slip in ["wran", "info,debg", "loud", "forebay=loud"] {
            assert!(log_filter(slip).is_err(), "{slip}");
        }
    }

    #[test]
    fn words_of_a_format_are_those_of_the_documentation() {
        assert_eq!("json".parse(), Ok(LogFormat::Json));
        assert!("xml".parse::<LogFormat>().unwrap_err().contains("xml"));
        assert_eq!(AccessLogFormat::ALL.map(|(_, format)| format.lines().is_some()), [false, true, true]);
    }
}
