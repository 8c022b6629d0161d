//! The wall clock's times as texts: those of a log, and the day of a report. Pure.

use std::time::{Duration, SystemTime};

/// The time that a text in the form of RFC 3339 stands for, since the Unix epoch; none for another text, or a time before.
#[must_use]
pub fn since_epoch(text: &str) -> Option<Duration> {
    humantime::parse_rfc3339(text).ok()?.duration_since(SystemTime::UNIX_EPOCH).ok()
}

/// The day of a time in milliseconds since the Unix epoch, in UTC: `2026-11-30`.
#[must_use]
pub fn day(ms: u64) -> String {
    // A time that no calendar has comes from a file that somebody made up.
    let time = SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(ms.min(253_402_300_799_000)));
    let text = time.map(|time| humantime::format_rfc3339_seconds(time).to_string()).unwrap_or_default();
    text.chars().take(10).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_and_days_are_written() {
        assert_eq!(since_epoch("1970-01-01T00:00:01.500Z"), Some(Duration::from_millis(1500)));
        assert_eq!((since_epoch("yesterday"), since_epoch("1969-12-31T23:59:59Z")), (None, None));
        assert_eq!((day(1_790_000_000_000), day(0)), ("2026-09-21".to_owned(), "1970-01-01".to_owned()));
        assert_eq!(day(u64::MAX), "9999-12-31");
    }
}
