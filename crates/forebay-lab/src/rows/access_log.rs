//! The access log of real traffic as rows: the lines of `forebay serve --access-log json` become one run of a live split. What a log
//! does not tell (gaps between tokens, the servers' metrics, their starts) stays out of the rows. Lines of other kinds may stand
//! between those of the log, and text may stand before a line, as container runtimes put it there. Pure but for reading.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, BufRead};
use std::time::Duration;

use serde::Deserialize;

use super::record::{Outcome, Record};
use super::row_file::{Load, Offered, RunEnd, RunHead, RunRows, Source};
use super::wall_clock::since_epoch;

/// The beginning of a line of the log, which Forebay writes in this order of its fields.
const BEGIN: &str = "{\"time\":\"";

/// A line of the log, as far as rows need it.
#[derive(Debug, Deserialize)]
struct LogLine {
    time: String,
    status: u16,
    outcome: String,
    pool: Option<String>,
    arm: Option<String>,
    assigned_arm: Option<String>,
    session: Option<String>,
    backend: Option<String>,
    stream: bool,
    ttft_ms: Option<f64>,
    tpot_ms: Option<f64>,
    e2e_ms: f64,
    prompt_tokens: Option<u64>,
    output_tokens: Option<u64>,
}

/// A log that has no rows to compare.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The system refused.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Several pools have arms.
    #[error("the log has requests of several pools with arms: {pools}. Name one with --pool")]
    Pools {
        /// Their names.
        pools: String,
    },
    /// The pool that was named is not in the log.
    #[error("--pool: no request of the log has the pool `{name}`; there are {known}")]
    UnknownPool {
        /// The name.
        name: String,
        /// The pools of the log.
        known: String,
    },
    /// No pool has two arms.
    #[error(
        "no pool of the log has two arms: {pools}. An A/B split has `[[pools.arms]]` with a `session` key (docs/configuration.md)"
    )]
    NoArms {
        /// The pools with their arms.
        pools: String,
    },
    /// No streamed request of the pool was served.
    #[error(
        "the log has no streamed request of the pool `{0}`, and of other answers it does not tell when the first token came"
    )]
    NoStreams(String),
}

/// A log as a run, and what was left out of it.
#[derive(Debug)]
pub struct ReadLog {
    /// The run.
    pub run: RunRows,
    /// Sentences about lines that are no rows, with their numbers.
    pub notes: Vec<String>,
}

/// Finds a line of the log in a line of text, whatever a container runtime or journal has put before it.
#[must_use]
pub fn within(text: &str) -> Option<&str> {
    let at = text.find(BEGIN)?;
    Some(text[at..].trim_end()).filter(|line| line.contains("\"e2e_ms\":") && line.ends_with('}'))
}

/// The number of lines that were left out, by reason.
#[derive(Debug, Default)]
struct LeftOut {
    other_lines: u64,
    other_pools: u64,
    unassigned: u64,
    unary: u64,
    client_left: BTreeMap<String, u64>,
    client_error: BTreeMap<String, u64>,
    uncounted: u64,
}

/// Reads a log to its end. `pool`: the pool whose arms are compared, where several have arms.
///
/// # Errors
/// The system refused, or there are not two arms of one pool with streamed requests.
pub fn read(from: impl BufRead, pool: Option<&str>) -> Result<ReadLog, LogError> {
    let mut left_out = LeftOut::default();
    let mut lines = Vec::new();
    for text in from.split(b'\n') {
        let text = text?;
        // A client's words are escaped in the log, so bytes that are no text are another program's.
        let text = String::from_utf8_lossy(&text);
        let parsed = within(&text).and_then(|line| serde_json::from_str::<LogLine>(line).ok());
        match parsed.and_then(|line| Some((since_epoch(&line.time)?, line))) {
            Some(line) => lines.push(line),
            None if text.trim().is_empty() => {}
            None => left_out.other_lines += 1,
        }
    }
    let pool = chosen(&lines, pool)?;
    let mut kept = Vec::new();
    for (end, line) in lines {
        if line.pool.is_none() || line.assigned_arm.is_none() {
            left_out.unassigned += 1;
        } else if line.pool.as_deref() != Some(&pool) {
            left_out.other_pools += 1;
        } else if let Some((sent, record)) = left_out.row(end, line) {
            kept.push((sent, record));
        }
    }
    // Lines are in the order of their ends. Rows count from the first request that was sent.
    kept.sort_by_key(|(sent, _)| *sent);
    let Some(first) = kept.first().map(|(sent, _)| *sent) else { return Err(LogError::NoStreams(pool)) };
    let records: Vec<Record> = (0..)
        .zip(kept)
        .map(|(id, (sent, record))| Record { id, sent_us: micros(sent.saturating_sub(first)), ..record })
        .collect();
    let load = Load {
        offered: Offered::Traffic,
        num_prompts: u32::try_from(records.len()).unwrap_or(u32::MAX),
        ..Load::default()
    };
    let head = RunHead {
        load,
        model: pool.clone(),
        began_ms: u64::try_from(first.as_millis()).ok(),
        source: Source::AccessLog,
        ..RunHead::default()
    };
    let run = RunRows { head: Some(head), records, samples: Vec::new(), end: Some(RunEnd::default()) };
    Ok(ReadLog { run, notes: left_out.notes(&pool) })
}

/// The pool to compare: the one that was named, or the only one with several arms.
fn chosen(lines: &[(Duration, LogLine)], named: Option<&str>) -> Result<String, LogError> {
    let mut pools: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (_, line) in lines {
        if let (Some(pool), Some(arm)) = (&line.pool, &line.assigned_arm) {
            pools.entry(pool).or_default().insert(arm);
        }
    }
    let all = || pools.keys().map(|pool| format!("`{pool}`")).collect::<Vec<_>>().join(", ");
    if let Some(name) = named {
        let known = || LogError::UnknownPool { name: name.to_owned(), known: all() };
        return pools.contains_key(name).then(|| name.to_owned()).ok_or_else(known);
    }
    let split: Vec<&str> = pools.iter().filter(|(_, arms)| arms.len() > 1).map(|(pool, _)| *pool).collect();
    match split[..] {
        [one] => Ok(one.to_owned()),
        [] => {
            let arms = |(pool, arms): (&&str, &BTreeSet<&str>)| {
                format!("`{pool}` has {}", arms.iter().copied().collect::<Vec<_>>().join(", "))
            };
            let pools: Vec<String> = pools.iter().map(arms).collect();
            Err(LogError::NoArms { pools: if pools.is_empty() { "it has none".to_owned() } else { pools.join("; ") } })
        }
        _ => {
            Err(LogError::Pools { pools: split.iter().map(|pool| format!("`{pool}`")).collect::<Vec<_>>().join(", ") })
        }
    }
}

fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}

/// Milliseconds with a fraction, as microseconds; what is no time is 0.
fn from_ms(ms: f64) -> u64 {
    (ms * 1e3).round().max(0.0) as u64
}

impl LeftOut {
    /// The row of a request and when it was sent; none, and counted, for one that says nothing of the servers.
    fn row(&mut self, end: Duration, line: LogLine) -> Option<(Duration, Record)> {
        let arm = line.assigned_arm.unwrap_or_default();
        // Neither is the doing of the servers: a client that leaves early leaves any arm, and a bad request fails on any.
        match line.outcome.as_str() {
            "client_left" => {
                *self.client_left.entry(arm).or_default() += 1;
                return None;
            }
            "client_error" => {
                *self.client_error.entry(arm).or_default() += 1;
                return None;
            }
            _ => {}
        }
        if !line.stream {
            self.unary += 1;
            return None;
        }
        let outcome = match line.outcome.as_str() {
            "success" => Outcome::Success,
            _ if line.status != 200 => Outcome::Status,
            _ => Outcome::Truncated,
        };
        let (ttft, tokens) = (line.ttft_ms.map(from_ms), line.output_tokens.unwrap_or(0));
        let end_us = from_ms(line.e2e_ms);
        // TPOT is a mean over the gaps, so it gives back the time of the last token. Of one token the first is the last.
        let decoding = line.tpot_ms.map(|tpot| from_ms(tpot * tokens.saturating_sub(1) as f64));
        let last = ttft.map(|ttft| (ttft + decoding.unwrap_or(0)).min(end_us.max(ttft)));
        if outcome == Outcome::Success && (line.prompt_tokens.is_none() || line.output_tokens.is_none()) {
            self.uncounted += 1;
        }
        let record = Record {
            arm: line.arm.clone(),
            assigned: line.arm.as_ref().is_none_or(|served| *served != arm).then_some(arm),
            backend: line.backend,
            session: line.session,
            first_event_us: ttft,
            first_token_us: ttft,
            last_event_us: last,
            end_us,
            prompt_tokens: line.prompt_tokens.unwrap_or(0),
            output_tokens: tokens,
            status: Some(line.status),
            error: (outcome != Outcome::Success).then_some(line.outcome),
            outcome,
            ..Record::unsent(0, 0)
        };
        Some((end.saturating_sub(Duration::from_micros(end_us)), record))
    }

    /// Says what was left out, a sentence for each reason that occurred.
    fn notes(&self, pool: &str) -> Vec<String> {
        let by_arm = |counts: &BTreeMap<String, u64>| {
            let parts: Vec<String> = counts.iter().map(|(arm, count)| format!("{count} of {arm}")).collect();
            (!parts.is_empty()).then(|| parts.join(", "))
        };
        let some = |count: u64| (count > 0).then_some(count);
        let number = |count: Option<u64>, one: &str, many: &str| {
            count.map(|count| if count == 1 { format!("1 {one}") } else { format!("{count} {many}") })
        };
        [
            number(some(self.other_lines), "line is no line of the access log", "lines are none of the access log"),
            number(
                some(self.other_pools),
                &format!("request was of another pool than `{pool}`"),
                &format!("requests were of other pools than `{pool}`"),
            ),
            number(some(self.unassigned), "request had no arm", "requests had no arm"),
            number(
                some(self.unary),
                "answer was no stream, so the log does not tell when its first token came",
                "answers were no streams, so the log does not tell when their first tokens came",
            ),
            by_arm(&self.client_left).map(|counts| format!("requests whose client left: {counts}")),
            by_arm(&self.client_error).map(|counts| format!("requests that a server refused as wrong: {counts}")),
            number(
                some(self.uncounted),
                "answer has no token counts and counts as 0 tokens",
                "answers have no token counts and count as 0 tokens",
            ),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(time: &str, rest: &str) -> String {
        format!(
            "{{\"time\":\"1970-01-01T00:00:{time}Z\",\"status\":200,\"outcome\":\"success\",\"method\":\"POST\",\
             \"path\":\"/v1/chat/completions\",\"pool\":\"m\",\"stream\":true,\"e2e_ms\":1000.000,{rest}}}\n"
        )
    }

    const TIMES: &str = "\"ttft_ms\":40.000,\"tpot_ms\":10.000,\"prompt_tokens\":7,\"output_tokens\":11";

    fn a(time: &str, rest: &str) -> String {
        line(time, &format!("\"arm\":\"a\",\"assigned_arm\":\"a\",\"session\":\"00ff\",{TIMES}{rest}"))
    }

    fn b(time: &str) -> String {
        line(time, &format!("\"arm\":\"a\",\"assigned_arm\":\"b\",{TIMES}"))
    }

    fn of(text: &str) -> Result<ReadLog, LogError> {
        read(text.as_bytes(), None)
    }

    #[test]
    fn lines_become_rows_in_the_order_in_which_they_were_sent() {
        let read = of(&[b("02.500"), a("01.000", "")].concat()).unwrap();
        let rows = &read.run.records;
        assert_eq!(rows.iter().map(|row| (row.id, row.sent_us)).collect::<Vec<_>>(), [(0, 0), (1, 1_500_000)]);
        assert_eq!(
            (rows[0].arm.as_deref(), &rows[0].assigned, rows[0].session.as_deref()),
            (Some("a"), &None, Some("00ff"))
        );
        assert_eq!(rows[1].assigned.as_deref(), Some("b"), "it left its arm");
        assert_eq!(
            (rows[0].ttft(), rows[0].tpot()),
            (Some(Duration::from_millis(40)), Some(Duration::from_millis(10)))
        );
        assert_eq!((rows[0].e2e(), rows[0].gaps_us.len()), (Some(Duration::from_millis(140)), 0));
        assert!(read.notes.is_empty(), "{:?}", read.notes);
        let head = read.run.head.unwrap();
        assert_eq!((head.began_ms, head.load.offered, head.source), (Some(0), Offered::Traffic, Source::AccessLog));
    }

    #[test]
    fn other_lines_and_what_stands_before_a_line_do_no_harm() {
        let log = [
            "2026-01-01T00:00:00Z  INFO forebay: listening\n".to_owned(),
            "{\"timestamp\":\"x\",\"level\":\"INFO\"}\n".to_owned(),
            format!("forebay-1  | {}", a("01.000", "")),
            format!("2026-01-01T00:00:00.1Z stdout F {}", b("01.000")),
            "\n{\"time\":\"1970-01-01T00:00:0".to_owned(),
        ];
        let read = of(&log.concat()).unwrap();
        assert_eq!(read.run.records.len(), 2);
        assert_eq!(read.notes, ["3 lines are none of the access log"]);
    }

    #[test]
    fn what_is_no_doing_of_the_servers_is_left_out_and_counted() {
        let left = a("01.000", "").replace("\"success\"", "\"client_left\"");
        let wrong = a("01.000", "").replace("\"success\"", "\"client_error\"");
        let died = a("01.000", "").replace("\"success\"", "\"died\"");
        let unary = a("01.000", "").replace("\"stream\":true", "\"stream\":false");
        let other = a("01.000", "").replace("\"pool\":\"m\"", "\"pool\":\"n\"");
        let none = line("01.000", "\"backend\":\"none\"");
        let read = of(&[a("01.000", ""), b("01.000"), left, wrong, died, unary, other, none].concat()).unwrap();
        assert_eq!(read.run.records.iter().filter(|row| !row.succeeded()).count(), 1, "a death is the server's");
        assert_eq!(read.run.records.len(), 3);
        let notes = read.notes.join("; ");
        for said in
            ["another pool than `m`", "1 request had no arm", "1 answer was no stream", "left: 1 of a", "wrong: 1 of a"]
        {
            assert!(notes.contains(said), "{said}: {notes}");
        }
    }

    #[test]
    fn a_log_that_cannot_be_compared_says_what_is_missing() {
        let said = |log: &str, pool| read(log.as_bytes(), pool).unwrap_err().to_string();
        assert!(said(&a("01.000", ""), None).contains("no pool of the log has two arms: `m` has a"));
        let two = [a("01.000", ""), b("01.000")].concat();
        let both = [two.clone(), two.replace("\"pool\":\"m\"", "\"pool\":\"n\"")].concat();
        assert!(said(&both, None).contains("several pools with arms: `m`, `n`"));
        assert_eq!(read(both.as_bytes(), Some("n")).unwrap().run.records.len(), 2);
        assert!(said(&two, Some("x")).contains("no request of the log has the pool `x`; there are `m`"));
        assert!(said(&two.replace("\"stream\":true", "\"stream\":false"), None).contains("no streamed request"));
    }
}
