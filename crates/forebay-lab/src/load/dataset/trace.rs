//! The `trace` dataset: requests as a service recorded them, a line of JSON each. Published traces of Mooncake and Qwen have
//! this form: a time, two lengths, and for each block of the prompt a number. Prompts whose numbers begin alike begin alike.
//! Pure; a trace is held as numbers, and the text of a prompt is made when it is sent.

use std::io::BufRead;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::Deserialize;

use super::vocabulary::Vocabulary;
use crate::load::workload::Workload;

/// Bytes of a line, at most: 400,000 block numbers.
const LINE: u64 = 4 << 20;
/// Tokens of a prompt or an answer, at most.
const TOKENS: u64 = 10_000_000;
/// The last time of a trace, from its first: a year.
const LAST: f64 = 366.0 * 86400.0;
/// Keeps the keys of tokens that no block number names away from those of block numbers.
const OWN: u64 = 0x6f77_6e00_0000_0000;

/// The form in which a trace is read.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Form {
    /// Seconds in one unit of a timestamp.
    pub seconds: f64,
    /// Tokens of the block that a hash id stands for.
    pub block: u32,
}

impl Form {
    /// The form of Mooncake's traces: milliseconds, and blocks of 512 tokens.
    pub const MOONCAKE: Form = Form { seconds: 0.001, block: 512 };
    /// The form that `vllm bench serve` expects of a `timed_trace`, and that of Qwen's: seconds, and blocks of 16 tokens.
    pub const TIMED: Form = Form { seconds: 1.0, block: 16 };
}

/// A request of a trace.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Row {
    /// The time at which it is sent, from the first, in seconds.
    at: f64,
    input_len: u32,
    output_len: u32,
    /// Its part of the list of all hash ids.
    ids: (usize, usize),
}

/// The requests of a trace.
#[derive(Clone, Debug, PartialEq)]
pub struct Trace {
    block: u32,
    rows: Vec<Row>,
    ids: Vec<u64>,
}

/// A mistake in a trace.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The system refused.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// A line that is no request.
    #[error("line {line}: {reason}")]
    Line {
        /// Its number, from 1.
        line: usize,
        /// The reason, and what would be right.
        reason: String,
    },
    /// No line.
    #[error("the file has no request: write a line of JSON for each, {EXAMPLE}")]
    Empty,
}

const EXAMPLE: &str = r#"such as {"timestamp": 0, "input_length": 6755, "output_length": 500, "hash_ids": [0, 1, …]}"#;

#[derive(Deserialize)]
struct Written {
    timestamp: f64,
    input_length: u64,
    output_length: u64,
    #[serde(default)]
    hash_ids: Vec<u64>,
}

/// Reads the first `most` requests of a trace.
///
/// # Errors
/// A line is no request, or contradicts itself or the one before it; or there is none.
pub fn read(mut from: impl BufRead, form: Form, most: u32) -> Result<Trace, TraceError> {
    let mut trace = Trace { block: form.block.max(1), rows: Vec::new(), ids: Vec::new() };
    let mut first = None;
    let mut text = String::new();
    for line in 1.. {
        if trace.rows.len() >= most as usize {
            break;
        }
        let wrong = |reason: String| TraceError::Line { line, reason };
        text.clear();
        // Limited before it is read: a file without line ends would otherwise be read whole into memory.
        let read = std::io::Read::take(&mut from, LINE).read_line(&mut text)?;
        if read as u64 == LINE {
            return Err(wrong(format!("it is longer than {LINE} bytes: this is no trace of one request a line")));
        }
        if read == 0 {
            break;
        }
        if text.trim().is_empty() {
            continue;
        }
        let written: Written =
            serde_json::from_str(&text).map_err(|error| wrong(format!("{error}; a line is a request, {EXAMPLE}")))?;
        // Published traces are cut out of longer ones, and begin at hour 3 or at a Unix time.
        let begin = *first.get_or_insert(written.timestamp);
        let before = trace.rows.last().map_or(0.0, |row| row.at);
        let at = time(&written, begin, before, form.seconds).map_err(wrong)?;
        trace.add(at, &written).map_err(wrong)?;
    }
    if trace.rows.is_empty() { Err(TraceError::Empty) } else { Ok(trace) }
}

/// Returns when a request is sent, in seconds from the first.
fn time(written: &Written, begin: f64, before: f64, seconds: f64) -> Result<f64, String> {
    let stamp = written.timestamp;
    if !stamp.is_finite() || stamp < 0.0 {
        return Err(format!("timestamp {stamp} is no time: write 0 or more, counted from the trace's begin"));
    }
    let at = (stamp - begin) * seconds;
    if at < before {
        return Err(format!(
            "timestamp {stamp} is before that of the request above; sort the file: jq -sc 'sort_by(.timestamp)[]' FILE"
        ));
    }
    if at > LAST {
        return Err(format!(
            "timestamp {stamp} is more than a year after the first; --timed-trace-sec-multiplier {seconds} says how many \
             seconds one unit is"
        ));
    }
    Ok(at)
}

impl Trace {
    fn add(&mut self, at: f64, written: &Written) -> Result<(), String> {
        let length = |name: &str, value: u64, least: u64| match u32::try_from(value) {
            Ok(small) if (least..=TOKENS).contains(&value) => Ok(small),
            _ => Err(format!("{name} {value} is not between {least} and {TOKENS} tokens")),
        };
        let input_len = length("input_length", written.input_length, 1)?;
        // A server generates a token in any case.
        let output_len = length("output_length", written.output_length, 0)?.max(1);
        let (ids, block) = (written.hash_ids.len(), self.block);
        let (whole, all) = (input_len / block, input_len.div_ceil(block));
        // Some traces number whole blocks alone; one that numbers none shares nothing.
        if ids != 0 && ids != whole as usize && ids != all as usize {
            return Err(format!(
                "input_length {input_len} is {all} blocks of {block} tokens, and there are {ids} hash_ids; \
                 --timed-trace-chunk-hash-size says how many tokens a block has (Mooncake: 512, Qwen: 16)"
            ));
        }
        let begin = self.ids.len();
        // One list for all rows. A list for each would cost an allocation a request, of which a trace may have millions.
        self.ids.extend_from_slice(&written.hash_ids);
        self.rows.push(Row { at, input_len, output_len, ids: (begin, self.ids.len()) });
        Ok(())
    }

    /// Returns how many requests there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Returns whether there is no request; a trace that was read has one.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Returns when each request is sent, in a run that is so many times as fast as the trace.
    #[must_use]
    pub fn arrivals(&self, speedup: f64) -> Vec<Duration> {
        let at = |row: &Row| Duration::try_from_secs_f64(row.at / speedup).unwrap_or(Duration::MAX);
        self.rows.iter().map(at).collect()
    }
}

/// Makes the requests of a trace, one by one.
#[derive(Clone, Debug)]
pub struct Replay {
    /// The trace.
    pub trace: Arc<Trace>,
    /// The words that prompts are written with.
    pub vocabulary: Vocabulary,
    /// The rest of each body; its seed is that of the prompts.
    pub workload: Workload,
}

impl Replay {
    /// Returns how many requests there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.trace.len().min(self.workload.num_prompts as usize)
    }

    /// Returns whether there is no request.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the body of a request.
    ///
    /// # Panics
    /// There is no request of that number.
    #[must_use]
    pub fn body(&self, index: usize) -> Bytes {
        let row = self.trace.rows[index];
        let (seed, block) = (self.workload.seed, self.trace.block);
        let mut prompt = self.vocabulary.prompt();
        let mut left = row.input_len;
        for id in &self.trace.ids[row.ids.0..row.ids.1] {
            let tokens = left.min(block);
            self.vocabulary.add(&mut prompt, (seed, *id), tokens);
            left -= tokens;
        }
        // What no block number names is the request's own: two prompts that share all blocks still differ at their ends.
        self.vocabulary.add(&mut prompt, (seed ^ OWN, index as u64), left);
        Bytes::from(prompt.body(&self.workload, row.output_len))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::load::workload::Rate;
    use crate::load::workload::tests::workload;

    fn replay(text: &str) -> Replay {
        let trace = Arc::new(read(text.as_bytes(), Form::MOONCAKE, 100).unwrap());
        Replay { trace, vocabulary: Vocabulary::of_all_words(), workload: workload(Rate::Unlimited) }
    }

    fn words(replay: &Replay, index: usize) -> Vec<String> {
        let body: Value = serde_json::from_slice(&replay.body(index)).unwrap();
        body["messages"][0]["content"].as_str().unwrap().split_whitespace().map(str::to_owned).collect()
    }

    /// The first two requests are lines of Mooncake's published trace, their times moved.
    const TRACE: &str = r#"{"timestamp": 27482, "input_length": 1100, "output_length": 52, "hash_ids": [46, 47, 2353]}
{"timestamp": 30535, "input_length": 1030, "output_length": 26, "hash_ids": [46, 47, 2366]}

{"timestamp": 30535, "input_length": 1030, "output_length": 0, "hash_ids": [46, 48, 2366]}
{"timestamp": 30536, "input_length": 700, "output_length": 7, "hash_ids": [46]}
{"timestamp": 30537, "input_length": 700, "output_length": 7}
"#;

    #[test]
    fn prompts_share_exactly_the_blocks_that_the_trace_says() {
        let replay = replay(TRACE);
        let prompts: Vec<Vec<String>> = (0..5).map(|index| words(&replay, index)).collect();
        assert_eq!(prompts.iter().map(Vec::len).collect::<Vec<_>>(), [1100, 1030, 1030, 700, 700]);
        let common = |a: usize, b: usize| prompts[a].iter().zip(&prompts[b]).take_while(|(a, b)| a == b).count();
        // The word after the common part may be the same by chance, not sixteen of them.
        for (a, b, blocks) in [(0, 1, 1024), (1, 2, 512), (0, 2, 512), (0, 3, 512), (3, 4, 0)] {
            assert!((blocks..blocks + 16).contains(&common(a, b)), "{a} and {b} share {}", common(a, b));
        }
        let other = Replay { workload: Workload { seed: 8, ..replay.workload.clone() }, ..replay.clone() };
        assert_ne!(words(&other, 0)[..16], words(&replay, 0)[..16], "another seed has other text");
    }

    #[test]
    fn times_count_from_the_first_request_and_lengths_are_the_trace_s() {
        let replay = replay(TRACE);
        assert_eq!(replay.trace.arrivals(1.0)[..3], [0, 3053, 3053].map(Duration::from_millis));
        assert_eq!(replay.trace.arrivals(2.0)[1], Duration::from_micros(1_526_500));
        let limit = |index| {
            serde_json::from_slice::<Value>(&replay.body(index)).unwrap()["max_completion_tokens"].as_u64().unwrap()
        };
        assert_eq!((limit(0), limit(2)), (52, 1), "an answer has a token in any case");
        assert_eq!(read(TRACE.as_bytes(), Form::MOONCAKE, 2).unwrap().len(), 2);
    }

    #[test]
    fn a_server_that_does_not_count_gets_token_ids_of_the_same_blocks() {
        let mut replay = Replay { vocabulary: Vocabulary::Ids, ..replay(TRACE) };
        replay.workload.endpoint = crate::load::workload::Endpoint::Completions;
        let ids = |index| serde_json::from_slice::<Value>(&replay.body(index)).unwrap()["prompt"].clone();
        assert_eq!(ids(0).as_array().unwrap().len(), 1100);
        assert_eq!(ids(0).as_array().unwrap()[..1024], ids(1).as_array().unwrap()[..1024]);
    }

    #[test]
    fn a_mistake_is_told_with_its_line_and_what_would_be_right() {
        let good = r#"{"timestamp": 5, "input_length": 10, "output_length": 1, "hash_ids": [1]}"#;
        let said = |line: &str| {
            let text = format!("{good}\n{line}\n");
            read(text.as_bytes(), Form::MOONCAKE, 100).unwrap_err().to_string()
        };
        for (line, words) in [
            ("{oops", "line 2: key must be a string"),
            (r#"{"timestamp": 6, "input_length": 10}"#, "missing field `output_length`"),
            (r#"{"timestamp": -1, "input_length": 10, "output_length": 1}"#, "timestamp -1 is no time"),
            (r#"{"timestamp": NaN, "input_length": 10, "output_length": 1}"#, "line 2: "),
            (r#"{"timestamp": 1e999, "input_length": 10, "output_length": 1}"#, "out of range"),
            (r#"{"timestamp": 1e300, "input_length": 10, "output_length": 1}"#, "more than a year"),
            (r#"{"timestamp": 4, "input_length": 10, "output_length": 1}"#, "sort the file"),
            (r#"{"timestamp": 6, "input_length": 0, "output_length": 1}"#, "input_length 0 is not between 1"),
            (r#"{"timestamp": 6, "input_length": 99999999999, "output_length": 1}"#, "input_length 99999999999"),
            (r#"{"timestamp": 6, "input_length": 10, "output_length": -1}"#, "line 2: invalid value"),
            (r#"{"timestamp": 6, "input_length": 10, "output_length": 1, "hash_ids": [1, 2]}"#, "there are 2 hash_ids"),
            (r#"{"timestamp": 6, "input_length": 9000, "output_length": 1, "hash_ids": [1]}"#, "18 blocks of 512"),
        ] {
            assert!(said(line).contains(words), "{line}: {}", said(line));
        }
        assert!(read(b"\n".as_slice(), Form::MOONCAKE, 1).unwrap_err().to_string().contains("has no request"));
        let long = vec![b'1'; LINE as usize + 1];
        assert!(read(long.as_slice(), Form::MOONCAKE, 1).unwrap_err().to_string().contains("line 1: it is longer"));
    }
}
