//! What counts as served well: limits that a request meets all of, or does not. Pure.

use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::record::Record;

/// The limits; those that are not set hold for every request that got a whole answer. As text `ttft=500ms,tpot=50ms`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Slo {
    /// TTFT at most.
    pub ttft: Option<Duration>,
    /// TPOT at most; an answer of one token meets it.
    pub tpot: Option<Duration>,
    /// E2E at most.
    pub e2e: Option<Duration>,
}

/// A text that is no SLO.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SloError {
    /// No limit at all, or one without a value.
    #[error("`{0}` is not FIGURE=LIMIT, such as ttft=500ms or ttft=500ms,tpot=50ms")]
    Form(String),
    /// A figure that has no limit.
    #[error("`{0}` has no limit in an SLO; ttft, tpot and e2e have")]
    Figure(String),
    /// A limit that is no span of time.
    #[error("`{value}` is no limit for {figure}: {reason}")]
    Limit {
        /// The figure.
        figure: String,
        /// The value that was given.
        value: String,
        /// The reason why it is no limit.
        reason: String,
    },
}

impl Slo {
    /// Returns whether a request met every limit; one that failed did not.
    #[must_use]
    pub fn met(&self, record: &Record) -> bool {
        let within = |limit: Option<Duration>, value: Option<Duration>, absent: bool| match (limit, value) {
            (None, _) => true,
            (Some(limit), Some(value)) => value <= limit,
            (Some(_), None) => absent,
        };
        record.succeeded()
            && within(self.ttft, record.ttft(), false)
            // An answer of one token has no TPOT, so it cannot have broken that limit. Without a TTFT there was no answer.
            && within(self.tpot, record.tpot(), true)
            && within(self.e2e, record.e2e(), false)
    }
}

impl FromStr for Slo {
    type Err = SloError;

    /// `ttft=500ms,tpot=50ms,e2e=10s`, in any order, each at most once.
    fn from_str(text: &str) -> Result<Slo, SloError> {
        let mut slo = Slo::default();
        for part in text.split(',') {
            let form = || SloError::Form(part.trim().to_owned());
            let (figure, value) = part.split_once('=').ok_or_else(form)?;
            let (figure, value) = (figure.trim(), value.trim());
            let place = match figure {
                "ttft" => &mut slo.ttft,
                "tpot" => &mut slo.tpot,
                "e2e" => &mut slo.e2e,
                other => return Err(SloError::Figure(other.to_owned())),
            };
            let wrong = |reason: String| SloError::Limit { figure: figure.to_owned(), value: value.to_owned(), reason };
            if place.is_some() {
                return Err(wrong("it has one already".to_owned()));
            }
            let limit = humantime::parse_duration(value).map_err(|error| wrong(error.to_string()))?;
            if limit.is_zero() {
                return Err(wrong("nothing is served in no time".to_owned()));
            }
            *place = Some(limit);
        }
        Ok(slo)
    }
}

impl TryFrom<String> for Slo {
    type Error = SloError;

    fn try_from(text: String) -> Result<Slo, SloError> {
        text.parse()
    }
}

impl From<Slo> for String {
    fn from(slo: Slo) -> String {
        slo.to_string()
    }
}

impl std::fmt::Display for Slo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let limits = [("ttft", self.ttft), ("tpot", self.tpot), ("e2e", self.e2e)];
        let shown: Vec<String> = limits
            .iter()
            .filter_map(|(name, limit)| Some(format!("{name}={}", humantime::format_duration((*limit)?))))
            .map(|limit| limit.replace(' ', ""))
            .collect();
        f.write_str(&shown.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::record::{Outcome, tests::record};

    #[test]
    fn an_slo_is_read_and_shown() {
        let slo: Slo = "ttft=500ms, tpot=50ms,e2e=10s".parse().unwrap();
        let long: Slo = "e2e=90500ms".parse().unwrap();
        assert_eq!(long.to_string().parse(), Ok(long), "{long}");
        assert_eq!(slo.to_string(), "ttft=500ms,tpot=50ms,e2e=10s");
        for (text, said) in [
            ("", "`` is not FIGURE=LIMIT"),
            ("ttft", "`ttft` is not FIGURE=LIMIT"),
            ("itl=5ms", "`itl` has no limit"),
            ("ttft=5", "`5` is no limit for ttft"),
            ("ttft=0s", "nothing is served in no time"),
            ("ttft=1s,ttft=2s", "it has one already"),
        ] {
            let error = text.parse::<Slo>().unwrap_err().to_string();
            assert!(error.contains(said), "{text}: {error}");
        }
    }

    #[test]
    fn a_request_meets_all_limits_or_none() {
        let met = |text: &str, record: &Record| text.parse::<Slo>().unwrap().met(record);
        assert!(met("ttft=200ms,tpot=20ms,e2e=300ms", &record(0)));
        assert!(!met("ttft=199ms", &record(0)) && !met("tpot=19ms", &record(0)) && !met("e2e=299ms", &record(0)));
        let one = Record { output_tokens: 1, gaps_us: vec![], ..record(0) };
        assert!(met("tpot=1ms", &one), "one token has no time for each further one");
        assert!(!met("ttft=1s", &Record { outcome: Outcome::Truncated, ..record(0) }));
    }
}
