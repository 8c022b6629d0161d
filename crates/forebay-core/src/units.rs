//! Numbers that carry their unit: a share, and the text forms of durations and sizes as operators write them. Parsed once,
//! at the edge; the error text says what would have been right.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A number between 0 and 1, both included.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd, Deserialize, Serialize)]
#[serde(try_from = "f64")]
pub struct Ratio(f64);

impl Ratio {
    /// The number, between 0 and 1.
    #[must_use]
    pub const fn get(self) -> f64 {
        self.0
    }
}

impl TryFrom<f64> for Ratio {
    type Error = String;

    fn try_from(value: f64) -> Result<Ratio, String> {
        if (0.0..=1.0).contains(&value) { Ok(Ratio(value)) } else { Err(format!("{value} is not between 0 and 1")) }
    }
}

/// Parses a duration such as `250ms`, `10s` or `10m`.
///
/// # Errors
/// The text is no duration, or carries no unit; the message names the text and shows the form.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|_| {
        format!("`{text}` is not a duration; write a number and a unit, such as \"250ms\", \"10s\" or \"5m\"")
    })
}

/// Parses a size in bytes such as `64KiB`, `4MiB`, `2GiB` or `1000` (bytes).
///
/// # Errors
/// The text is no size, or too large for 64 bits; the message names the text and shows the form.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let wrong =
        || format!("`{text}` is not a size; write a number and a unit, such as \"64KiB\", \"4MiB\" or \"2GiB\"");
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic() || c == ' ');
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    let unit: u64 = match text[digits.len()..].trim() {
        "" | "B" => 1,
        "KB" | "kB" => 1000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return Err(wrong()),
    };
    number.checked_mul(unit).ok_or_else(wrong)
}

/// The identity of a backend for the life of the process: never reused, also when the same URL is removed and added again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize, Serialize)]
pub struct BackendId(pub u32);

impl fmt::Display for BackendId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "b{}", self.0)
    }
}

/// `0.18 s`; milliseconds where seconds would say nothing.
#[must_use]
pub fn brief_seconds(seconds: f64) -> String {
    if seconds < 0.1 { format!("{:.0} ms", seconds * 1000.0) } else { format!("{seconds:.2} s") }
}

/// `3,200`.
#[must_use]
pub fn grouped(number: f64) -> String {
    let digits = format!("{:.0}", number.max(0.0));
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_their_unit() {
        assert_eq!(parse_size("64MiB"), Ok(64 << 20));
        assert_eq!(parse_size("1000"), Ok(1000));
        assert_eq!(parse_size("2 GiB"), Ok(2 << 30));
        assert!(parse_size("4 bananas").unwrap_err().contains("4 bananas"));
        assert!(parse_size("99999999999GiB").is_err());
        assert!(parse_size("-1").is_err());
    }

    #[test]
    fn durations_need_a_unit() {
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        assert!(parse_duration("10").is_err());
    }

    #[test]
    fn a_ratio_is_a_share() {
        assert!(Ratio::try_from(1.5).unwrap_err().contains("1.5"));
        assert!(Ratio::try_from(f64::NAN).is_err());
        assert_eq!(Ratio::try_from(0.5).map(Ratio::get), Ok(0.5));
    }
}
