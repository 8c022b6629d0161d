//! Values in the form in which an operator writes them (`"10s"`, `"64MiB"`, `"off"`), for `/api/config` and for messages:
//! what is shown can be copied into a file.

use std::fmt;
use std::time::Duration;

use serde::{Serialize, Serializer};

/// `"250ms"`, `"10m"`.
pub fn duration_text(value: Duration) -> String {
    humantime::format_duration(value).to_string().replace(' ', "")
}

/// `"64MiB"`: in the largest unit that divides it.
pub fn size_text(bytes: u64) -> String {
    for (shift, unit) in [(30, "GiB"), (20, "MiB"), (10, "KiB")] {
        if bytes > 0 && bytes.is_multiple_of(1 << shift) {
            return format!("{}{unit}", bytes >> shift);
        }
    }
    format!("{bytes}B")
}

/// A value as an operator writes it. It serializes to JSON, and is shown as TOML.
#[derive(Clone, Debug, PartialEq)]
pub enum Notation {
    /// A string.
    Text(String),
    /// A whole number.
    Whole(u64),
    /// A number.
    Number(f64),
    /// `true` or `false`.
    Flag(bool),
    /// A list of strings.
    List(Vec<String>),
    /// The absence of a value.
    Nothing,
}

impl fmt::Display for Notation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Notation::Text(text) => write!(f, "{text:?}"),
            Notation::Whole(number) => write!(f, "{number}"),
            Notation::Number(number) => write!(f, "{number}"),
            Notation::Flag(yes) => write!(f, "{yes}"),
            Notation::List(texts) => write!(f, "{texts:?}"),
            Notation::Nothing => Ok(()),
        }
    }
}

impl Serialize for Notation {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Notation::Text(text) => serializer.serialize_str(text),
            Notation::Whole(number) => serializer.serialize_u64(*number),
            Notation::Number(number) => serializer.serialize_f64(*number),
            Notation::Flag(yes) => serializer.serialize_bool(*yes),
            Notation::List(texts) => texts.serialize(serializer),
            Notation::Nothing => serializer.serialize_none(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::{parse_duration, parse_size};

    #[test]
    fn what_is_shown_is_read_back() {
        for bytes in [1, 1000, 1 << 10, 64 << 10, 64 << 20, 2 << 30, (1 << 20) + 1] {
            assert_eq!(parse_size(&size_text(bytes)), Ok(bytes));
        }
        for ms in [0, 1, 250, 10_000, 75_000, 1_800_000] {
            let duration = Duration::from_millis(ms);
            assert_eq!(parse_duration(&duration_text(duration)), Ok(duration));
        }
    }
}
