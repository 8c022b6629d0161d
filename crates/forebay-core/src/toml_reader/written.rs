//! Values in the form in which an operator writes them (`"10s"`, `"64MiB"`, `"off"`), for `/api/config` and for messages:
//! what is shown can be copied into a file.

use std::time::Duration;

use serde::Serializer;

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

/// For `#[serde(serialize_with)]`.
pub fn duration<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&duration_text(*value))
}

/// For `#[serde(serialize_with)]`.
pub fn duration_or_off<S: Serializer>(value: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&value.map_or_else(|| "off".to_owned(), duration_text))
}

/// For `#[serde(serialize_with)]`.
pub fn number_or_off<S: Serializer>(value: &Option<usize>, serializer: S) -> Result<S::Ok, S::Error> {
    match value {
        Some(number) => serializer.serialize_u64(*number as u64),
        None => serializer.serialize_str("off"),
    }
}

/// For `#[serde(serialize_with)]`.
pub fn count_or_off<S: Serializer>(value: &Option<u32>, serializer: S) -> Result<S::Ok, S::Error> {
    number_or_off(&value.map(|count| count as usize), serializer)
}

/// For `#[serde(serialize_with)]`.
pub fn size<S: Serializer>(bytes: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&size_text(*bytes))
}

/// For `#[serde(serialize_with)]`.
pub fn size_of_head<S: Serializer>(bytes: &usize, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&size_text(*bytes as u64))
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
