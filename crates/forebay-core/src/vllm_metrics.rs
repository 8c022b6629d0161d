//! Reads a vLLM server's `/metrics` text into a [`Sample`]. Pure, and made for text from strangers: one pass, no allocation,
//! no panic; a figure that is missing, renamed, NaN, negative, infinite or absurd is `None`. It must never give a zero for a
//! figure that it did not read.
//!
//! Called once a second for each backend with about 50 KB; only lines that start with `vllm:` are looked at twice.

use crate::sample::Sample;

/// Past this a count in an f64 no longer counts, and no server was up for so long.
const ABSURD: f64 = 1e15;

/// No engine has larger blocks in its KV cache.
const MAX_BLOCK: f64 = 65_536.0;

/// Reason why a text gives no sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Not one figure that we know.
    #[error("no metric of a vLLM server in the answer")]
    NotVllm,
}

/// Reads what is needed of a `/metrics` text.
///
/// # Errors
/// Nothing in the text is a figure that we know: it is not vLLM's.
pub fn parse(text: &str) -> Result<Sample, ParseError> {
    let mut sums = Sums::default();
    for line in text.lines() {
        // Most of the text is histograms and Python's own figures, which this passes by at the first bytes.
        if let Some((name, labels, value)) = line.strip_prefix("vllm:").and_then(split) {
            sums.take(name, labels, value);
        }
    }
    let sample = sums.sample();
    if sample == Sample::default() { Err(ParseError::NotVllm) } else { Ok(sample) }
}

/// A figure by its name without `vllm:`, summed over engines.
#[must_use]
pub fn figure(text: &str, name: &str) -> Option<f64> {
    let mut sum = Sum::default();
    for line in text.lines() {
        if let Some((found, _, value)) = line.strip_prefix("vllm:").and_then(split)
            && found == name
        {
            sum.add(value.parse().ok());
        }
    }
    sum.total()
}

/// A figure summed over engines. One unreadable part makes the whole unknown: half a sum would look like an idle server.
#[derive(Clone, Copy, Default)]
struct Sum {
    total: f64,
    parts: u32,
    spoilt: bool,
}

impl Sum {
    fn add(&mut self, value: Option<f64>) {
        match value.filter(|value| (0.0..ABSURD).contains(value)) {
            Some(value) => {
                self.total += value;
                self.parts = self.parts.saturating_add(1);
            }
            None => self.spoilt = true,
        }
    }

    fn total(self) -> Option<f64> {
        (self.parts > 0 && !self.spoilt).then_some(self.total)
    }

    fn mean(self) -> Option<f64> {
        self.total().map(|total| total / f64::from(self.parts))
    }
}

#[derive(Default)]
struct Sums {
    running: Sum,
    waiting: Sum,
    kv_usage: Sum,
    kv_usage_old: Sum,
    kv_capacity: Sum,
    block_size: Sum,
    prefix_queries: Sum,
    prefix_hits: Sum,
    preemptions: Sum,
    generation_tokens: Sum,
    steps: Sum,
}

impl Sums {
    fn take(&mut self, name: &str, labels: &str, value: &str) {
        let sum = match name {
            "num_requests_running" => &mut self.running,
            "num_requests_waiting" => &mut self.waiting,
            "kv_cache_usage_perc" => &mut self.kv_usage,
            "gpu_cache_usage_perc" => &mut self.kv_usage_old,
            "prefix_cache_queries_total" => &mut self.prefix_queries,
            "prefix_cache_hits_total" => &mut self.prefix_hits,
            "num_preemptions_total" => &mut self.preemptions,
            "generation_tokens_total" => &mut self.generation_tokens,
            "iteration_tokens_total_count" => &mut self.steps,
            "cache_config_info" => {
                let number = |label| label_value(labels, label).and_then(|value| value.parse::<f64>().ok());
                let block_size = number("block_size");
                // Two labels of one sample: the capacity is their product, and unknown if either is missing.
                let tokens = block_size.zip(number("num_gpu_blocks")).map(|(size, blocks)| size * blocks);
                self.block_size.add(block_size);
                return self.kv_capacity.add(tokens);
            }
            _ => return,
        };
        sum.add(value.parse().ok());
    }

    fn sample(self) -> Sample {
        // vLLM itself goes a rounding error over 1; more than that is no share.
        let share = |usage: f64| (usage <= 1.01).then(|| usage.min(1.0));
        Sample {
            running: self.running.total(),
            waiting: self.waiting.total(),
            kv_usage: self.kv_usage.mean().or(self.kv_usage_old.mean()).and_then(share),
            kv_capacity_tokens: self.kv_capacity.total().filter(|tokens| *tokens >= 1.0).map(|tokens| tokens as u64),
            kv_block_tokens: self
                .block_size
                .mean()
                .filter(|tokens| (1.0..=MAX_BLOCK).contains(tokens))
                .map(|tokens| tokens as u32),
            prefix_queries: self.prefix_queries.total(),
            prefix_hits: self.prefix_hits.total(),
            preemptions: self.preemptions.total(),
            generation_tokens: self.generation_tokens.total(),
            steps: self.steps.total(),
        }
    }
}

/// `name{labels} value [timestamp]` → name, labels without braces, value.
fn split(line: &str) -> Option<(&str, &str, &str)> {
    let end = line.find(['{', ' ', '\t'])?;
    let (name, rest) = line.split_at(end);
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(inside) => inside.split_at(labels_end(inside)?),
        None => ("", rest),
    };
    let value = rest.trim_start_matches('}').split_ascii_whitespace().next()?;
    Some((name, labels, value))
}

/// Returns where the closing brace is: one inside quotes is part of a value.
fn labels_end(inside: &str) -> Option<usize> {
    let (mut quoted, mut escaped) = (false, false);
    for (i, byte) in inside.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'}' if !quoted => return Some(i),
            _ => {}
        }
    }
    None
}

/// The value of a label, as written: the numbers that we look for have nothing to unescape.
fn label_value<'a>(labels: &'a str, name: &str) -> Option<&'a str> {
    let mut rest = labels;
    loop {
        let (key, after) = rest.trim_start_matches([',', ' ']).split_once("=\"")?;
        let end = quote_end(after)?;
        if key == name {
            return Some(&after[..end]);
        }
        rest = &after[end + 1..];
    }
}

fn quote_end(text: &str) -> Option<usize> {
    let mut escaped = false;
    for (i, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return Some(i),
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    macro_rules! recorded {
        ($name:literal) => {
            parse(include_str!(concat!("../../../tests/fixtures/vllm-0.32.0/metrics/", $name, ".txt"))).unwrap()
        };
    }

    #[test]
    fn a_recorded_text_under_load_gives_every_figure() {
        let sample = recorded!("under-load-4-running-12-waiting");
        assert_eq!((sample.running, sample.waiting), (Some(4.0), Some(12.0)));
        assert_eq!(sample.kv_usage, Some(0.027357107962872496));
        assert_eq!((sample.kv_capacity_tokens, sample.kv_block_tokens), (Some(65_536), Some(32)));
        assert_eq!(sample.preemptions, Some(0.0));
        let counts = [sample.prefix_queries, sample.prefix_hits, sample.generation_tokens, sample.steps];
        assert!(counts.iter().all(Option::is_some), "{sample:?}");
        let full = recorded!("kv-cache-full-preempting");
        assert_eq!((full.running, full.waiting, full.kv_usage), (Some(3.0), Some(3.0), Some(0.8425196850393701)));
        assert!(full.preemptions > Some(0.0));
    }

    #[test]
    fn engines_are_summed() {
        let sample = recorded!("data-parallel-2");
        assert_eq!(sample.kv_capacity_tokens, Some(2 * 32 * 4096));
        assert_eq!((sample.steps, sample.prefix_queries), (Some(80.0), Some(152.0)));
        assert_eq!(sample.kv_usage, Some(0.0));
        let two = "vllm:num_requests_running{engine=\"0\"} 2\nvllm:num_requests_running{engine=\"1\"} 3\n\
                   vllm:kv_cache_usage_perc{engine=\"0\"} 0.2\nvllm:kv_cache_usage_perc{engine=\"1\"} 0.4\n";
        let sample = parse(two).unwrap();
        assert_eq!(sample.running, Some(5.0));
        assert!((sample.kv_usage.unwrap() - 0.3).abs() < 1e-9);
    }

    #[test]
    fn a_figure_is_found_by_its_name_and_summed() {
        let text = "vllm:prompt_tokens_total{engine=\"0\"} 5\nvllm:prompt_tokens_total{engine=\"1\"} 7\nvllm:x NaN\n";
        assert_eq!(
            (figure(text, "prompt_tokens_total"), figure(text, "x"), figure(text, "y")),
            (Some(12.0), None, None)
        );
    }

    #[test]
    fn an_idle_server_is_zero_and_not_unknown() {
        let sample = recorded!("idle-fresh");
        assert_eq!((sample.running, sample.waiting, sample.kv_usage), (Some(0.0), Some(0.0), Some(0.0)));
    }

    #[test]
    fn the_older_name_of_the_kv_gauge_is_read() {
        assert_eq!(parse("vllm:gpu_cache_usage_perc{model_name=\"m\"} 0.5").unwrap().kv_usage, Some(0.5));
        let both = "vllm:gpu_cache_usage_perc 0.5\nvllm:kv_cache_usage_perc 0.25\n";
        assert_eq!(parse(both).unwrap().kv_usage, Some(0.25));
    }

    #[test]
    fn an_absurd_figure_is_unknown() {
        for bad in ["NaN", "-1", "+Inf", "inf", "1e300", "many", ""] {
            let text = format!("vllm:num_requests_waiting{{engine=\"0\"}} {bad}\nvllm:num_requests_running 1\n");
            let sample = parse(&text).unwrap();
            assert_eq!((sample.waiting, sample.running), (None, Some(1.0)), "{bad}");
        }
        let half = "vllm:num_requests_waiting{engine=\"0\"} 3\nvllm:num_requests_waiting{engine=\"1\"} NaN\nvllm:num_requests_running 1";
        assert_eq!(parse(half).unwrap().waiting, None);
        assert_eq!(parse("vllm:kv_cache_usage_perc 7\nvllm:num_requests_running 1").unwrap().kv_usage, None);
        assert_eq!(parse("vllm:kv_cache_usage_perc 1.0000001").unwrap().kv_usage, Some(1.0));
    }

    #[test]
    fn labels_may_hold_braces_quotes_and_other_names() {
        let text = r#"vllm:num_requests_running{model_name="a} 9 \"b{",engine="0"} 2 1700000000"#;
        assert_eq!(parse(text).unwrap().running, Some(2.0));
        let info = r#"vllm:cache_config_info{mamba_block_size="None",x="block_size=\"9\"",block_size="16",num_gpu_blocks="10"} 1.0"#;
        assert_eq!(parse(info).unwrap().kv_capacity_tokens, Some(160));
        let unknown =
            "vllm:cache_config_info{block_size=\"16\",num_gpu_blocks=\"None\"} 1.0\nvllm:num_requests_running 1";
        assert_eq!(parse(unknown).unwrap().kv_capacity_tokens, None);
    }

    #[test]
    fn another_program_s_text_is_an_error() {
        for text in ["", "<html>", "go_goroutines 7\n", "vllm:", "# TYPE vllm:num_requests_running gauge\n"] {
            assert_eq!(parse(text), Err(ParseError::NotVllm), "{text}");
        }
    }

    #[test]
    fn crlf_line_ends_are_taken() {
        assert_eq!(parse("vllm:num_requests_running 4\r\nvllm:num_requests_waiting 1\r\n").unwrap().waiting, Some(1.0));
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics(text in "(?s).{0,300}") {
            let _ = parse(&text);
        }

        #[test]
        fn arbitrary_lines_never_panic_nor_give_an_absurd_figure(
            lines in proptest::collection::vec("vllm:(num_requests_running|cache_config_info|kv_cache_usage_perc)[{]?(block_size=)?[\"\\\\ {}a-z0-9.,=-]{0,40}[}]? ?[-+.eE0-9NaInf]{0,8}", 0..8)
        ) {
            if let Ok(sample) = parse(&lines.join("\n")) {
                prop_assert!(sample.running.is_none_or(|n| n.is_finite() && n >= 0.0));
                prop_assert!(sample.kv_usage.is_none_or(|n| (0.0..=1.0).contains(&n)));
            }
        }
    }
}
