//! What is known of one request: a line of JSON. Times are whole microseconds; gaps between events are kept, not their
//! times, so that a line stays short. Pure.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The way in which a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// A whole answer.
    Success,
    /// An answer with another status than 200.
    Status,
    /// An error inside of the stream.
    ErrorEvent,
    /// No connection, or none that lasted until the head of the answer.
    Connect,
    /// The answer was cut before its end.
    Truncated,
}

/// One request.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct Record {
    /// Its number in the run, from 0.
    pub id: u32,
    /// The arm that served it, if the answer told.
    pub arm: Option<String>,
    /// The arm that it was assigned to, where another one served it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub assigned: Option<String>,
    /// The backend that served it, if the answer told.
    pub backend: Option<String>,
    /// The part of an experiment that it belongs to.
    pub epoch: u32,
    /// Its conversation, from 0, where the load has conversations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conversation: Option<u32>,
    /// Its session, as a keyed hash of 16 hexadecimal digits: equal for requests of one session, and telling nothing else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
    /// Its turn in the conversation, from 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub turn: Option<u32>,
    /// The time at which it was sent, from the begin of the run, in microseconds.
    pub sent_us: u64,
    /// From sending to the first event with a choice, in microseconds.
    pub first_event_us: Option<u64>,
    /// From sending to the first token event, in microseconds: chat's role event is none.
    pub first_token_us: Option<u64>,
    /// Between each event with a choice and the one before it, in microseconds. They are most of a row, and may be left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gaps_us: Vec<u64>,
    /// From sending to the last event with a choice, in microseconds, where the gaps were left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_event_us: Option<u64>,
    /// From sending to the end of the answer or the failure, in microseconds.
    pub end_us: u64,
    /// Tokens of the prompt, as the server counted.
    pub prompt_tokens: u64,
    /// Tokens of the prompt that were in the server's prefix cache; none where it does not say
    /// (vLLM: `--enable-prompt-tokens-details`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cached_tokens: Option<u64>,
    /// Tokens of the answer, as the server counted; token events where it did not tell.
    pub output_tokens: u64,
    /// The way in which it ended.
    pub outcome: Outcome,
    /// The status of the answer, if there was one.
    pub status: Option<u16>,
    /// The error, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl Record {
    /// A request that nothing is known of.
    #[must_use]
    pub fn unsent(id: u32, epoch: u32) -> Record {
        Record {
            id,
            arm: None,
            assigned: None,
            backend: None,
            epoch,
            conversation: None,
            session: None,
            turn: None,
            sent_us: 0,
            first_event_us: None,
            first_token_us: None,
            gaps_us: Vec::new(),
            last_event_us: None,
            end_us: 0,
            prompt_tokens: 0,
            cached_tokens: None,
            output_tokens: 0,
            outcome: Outcome::Truncated,
            status: None,
            error: None,
        }
    }

    /// Returns whether there was a whole answer.
    #[must_use]
    pub fn succeeded(&self) -> bool {
        self.outcome == Outcome::Success
    }

    /// TTFT: to the first event with a choice, as `vllm bench serve` has it.
    #[must_use]
    pub fn ttft(&self) -> Option<Duration> {
        self.first_event_us.map(Duration::from_micros)
    }

    /// E2E: to the last event with a choice, as `vllm bench serve` has it.
    #[must_use]
    pub fn e2e(&self) -> Option<Duration> {
        let last = self.last_event_us.or_else(|| Some(self.first_event_us? + self.gaps_us.iter().sum::<u64>()));
        last.map(Duration::from_micros)
    }

    /// TPOT: (E2E − TTFT) / (output tokens − 1); none for an answer of one token, or whose last event is said to be before its first.
    #[must_use]
    pub fn tpot(&self) -> Option<Duration> {
        let tokens = self.output_tokens.checked_sub(1).filter(|tokens| *tokens > 0)?;
        // Rows may come from another program, and a report must not end by what one of them says.
        Some(self.e2e()?.checked_sub(self.ttft()?)?.div_f64(tokens as f64))
    }

    /// Returns the record in the time of a simulation that ran so many times as fast.
    #[must_use]
    pub fn scaled(&self, factor: f64) -> Record {
        let scale = |micros: u64| (micros as f64 * factor).round() as u64;
        Record {
            sent_us: scale(self.sent_us),
            first_event_us: self.first_event_us.map(scale),
            first_token_us: self.first_token_us.map(scale),
            gaps_us: self.gaps_us.iter().map(|gap| scale(*gap)).collect(),
            last_event_us: self.last_event_us.map(scale),
            end_us: scale(self.end_us),
            ..self.clone()
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn record(id: u32) -> Record {
        Record {
            id,
            arm: Some("tp2".to_owned()),
            assigned: None,
            backend: None,
            epoch: 0,
            conversation: None,
            session: None,
            turn: None,
            sent_us: 1000,
            first_event_us: Some(200_000),
            first_token_us: Some(200_000),
            gaps_us: vec![0, 30_000, 50_000, 20_000],
            last_event_us: None,
            end_us: 301_000,
            prompt_tokens: 100,
            cached_tokens: None,
            output_tokens: 6,
            outcome: Outcome::Success,
            status: Some(200),
            error: None,
        }
    }

    #[test]
    fn figures_are_those_of_vllm_bench_serve() {
        let record = record(0);
        assert_eq!(record.ttft(), Some(Duration::from_millis(200)));
        assert_eq!(record.e2e(), Some(Duration::from_millis(300)));
        assert_eq!(record.tpot(), Some(Duration::from_millis(20)), "by tokens, not by events");
        let turned = Record { last_event_us: Some(1), ..record.clone() };
        assert_eq!(turned.tpot(), None, "its last event is before its first");
        assert_eq!(Record { output_tokens: 1, ..record.clone() }.tpot(), None);
        assert_eq!(record.scaled(2.0).tpot(), Some(Duration::from_millis(40)));
    }

    #[test]
    fn a_row_without_gaps_has_the_same_latency() {
        let whole = record(0);
        let short = Record { gaps_us: vec![], last_event_us: Some(300_000), ..whole.clone() };
        assert_eq!((short.e2e(), short.tpot()), (whole.e2e(), whole.tpot()));
        assert_eq!(short.scaled(2.0).e2e(), whole.scaled(2.0).e2e());
        let line = serde_json::to_string(&short).unwrap();
        assert!(!line.contains("gaps_us"), "{line}");
        assert_eq!(serde_json::from_str::<Record>(&line).unwrap(), short);
    }

    #[test]
    fn cached_tokens_are_written_only_where_they_are_known() {
        let line = |cached_tokens| serde_json::to_string(&Record { cached_tokens, ..record(3) }).unwrap();
        assert!(!line(None).contains("cached_tokens"));
        assert!(line(Some(0)).contains("\"cached_tokens\":0"));
        assert_eq!(serde_json::from_str::<Record>(&line(Some(96))).unwrap().cached_tokens, Some(96));
    }

    #[test]
    fn a_line_is_read_back() {
        let line = serde_json::to_string(&record(3)).unwrap();
        assert!(!line.contains('\n') && line.len() < 400, "{line}");
        assert_eq!(serde_json::from_str::<Record>(&line).unwrap(), record(3));
    }
}
