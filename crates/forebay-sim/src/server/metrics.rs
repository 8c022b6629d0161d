//! The simulated server's `/metrics`, with the names, labels, help texts and bucket edges of vLLM 0.32.0. Pure: figures come
//! in, text goes out. Times are wall-clock seconds, as whoever scrapes sees them, whatever the time scale.

use std::fmt::Write;

use serde_json::Value;

use crate::engine::{Engine, ITERATION_EDGES};

const SIZES: &[f64] = &[1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0, 10000.0, 20000.0];
const TTFT: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
    160.0, 640.0, 2560.0,
];
const GAPS: &[f64] =
    &[0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0];
const LATENCIES: &[f64] = &[
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0,
    1920.0, 7680.0,
];
const PREEMPTIONS: &[f64] = &[1.0, 2.0, 3.0, 4.0, 5.0, 10.0, 20.0];

/// Counts by upper edge.
#[derive(Clone, Debug)]
pub struct Histogram {
    edges: &'static [f64],
    counts: Vec<u64>,
    sum: f64,
}

impl Histogram {
    fn new(edges: &'static [f64]) -> Histogram {
        Histogram { edges, counts: vec![0; edges.len() + 1], sum: 0.0 }
    }

    /// Counts a value.
    pub fn observe(&mut self, value: f64) {
        self.counts[self.edges.partition_point(|edge| *edge < value)] += 1;
        self.sum += value;
    }
}

/// Counts that the engine does not keep itself: one entry for each request that ended, or for each token.
#[derive(Clone, Debug)]
pub struct Recorder {
    /// Arrival to first token, in seconds.
    pub ttft: Histogram,
    /// Between two tokens, in seconds.
    pub gap: Histogram,
    /// Mean time of each token after the first, in seconds.
    pub tpot: Histogram,
    /// Arrival to last token, in seconds.
    pub e2e: Histogram,
    /// Arrival to the first step, in seconds.
    pub queue: Histogram,
    /// First step to first token, in seconds.
    pub prefill: Histogram,
    /// First token to last, in seconds.
    pub decode: Histogram,
    /// Tokens of prompts.
    pub prompt_tokens: Histogram,
    /// Tokens of answers.
    pub generation_tokens: Histogram,
    /// Number of times that a request was preempted.
    pub preemptions: Histogram,
    /// Answers that ended by themselves.
    pub stopped: u64,
    /// Answers that ended at their limit.
    pub limited: u64,
}

impl Default for Recorder {
    fn default() -> Recorder {
        Recorder {
            ttft: Histogram::new(TTFT),
            gap: Histogram::new(GAPS),
            tpot: Histogram::new(GAPS),
            e2e: Histogram::new(LATENCIES),
            queue: Histogram::new(LATENCIES),
            prefill: Histogram::new(LATENCIES),
            decode: Histogram::new(LATENCIES),
            prompt_tokens: Histogram::new(SIZES),
            generation_tokens: Histogram::new(SIZES),
            preemptions: Histogram::new(PREEMPTIONS),
            stopped: 0,
            limited: 0,
        }
    }
}

struct Writer {
    out: String,
    labels: String,
}

impl Writer {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _ = write!(self.out, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    fn sample(&mut self, name: &str, more: &str, value: f64) {
        let _ = writeln!(self.out, "{name}{{{}{more}}} {value:?}", self.labels);
    }

    fn one(&mut self, name: &str, kind: &str, help: &str, value: f64) {
        self.head(name, kind, help);
        self.sample(name, "", value);
    }

    fn histogram(&mut self, name: &str, help: &str, edges: &[f64], counts: &[u64], sum: f64) {
        self.head(name, "histogram", help);
        let mut total = 0;
        for (index, count) in counts.iter().enumerate() {
            total += count;
            let edge = edges.get(index).map_or_else(|| "+Inf".to_owned(), |edge| format!("{edge:?}"));
            self.sample(&format!("{name}_bucket"), &format!(",le=\"{edge}\""), total as f64);
        }
        self.sample(&format!("{name}_count"), "", total as f64);
        self.sample(&format!("{name}_sum"), "", sum);
    }

    fn recorded(&mut self, name: &str, help: &str, histogram: &Histogram) {
        self.histogram(name, help, histogram.edges, &histogram.counts, histogram.sum);
    }
}

/// The whole text.
#[must_use]
pub fn render(engine: &Engine, recorder: &Recorder, model: &str) -> String {
    let labels = format!("engine=\"0\",model_name={}", Value::from(model));
    let mut writer = Writer { out: String::with_capacity(16 * 1024), labels };
    gauges(&mut writer, engine);
    counters(&mut writer, engine, recorder);
    histograms(&mut writer, engine, recorder);
    cache_config(&mut writer, engine);
    writer.out
}

fn gauges(writer: &mut Writer, engine: &Engine) {
    let (running, waiting) = (engine.running() as f64, engine.waiting() as f64);
    writer.one("vllm:num_requests_running", "gauge", "Number of requests in model execution batches.", running);
    writer.one("vllm:num_requests_waiting", "gauge", "Number of requests waiting to be processed.", waiting);
    let name = "vllm:num_requests_waiting_by_reason";
    writer.head(
        name,
        "gauge",
        "Number of waiting requests by reason. Reason labels: 'capacity' = waiting for scheduling capacity; 'deferred' = \
         deferred by transient constraints (LoRA budget, KV transfer, blocked status). Sum of all reasons equals \
         vllm:num_requests_waiting.",
    );
    writer.sample(name, ",reason=\"capacity\"", waiting);
    writer.sample(name, ",reason=\"deferred\"", 0.0);
    let help = "KV-cache usage. 1 means 100 percent usage.";
    writer.one("vllm:kv_cache_usage_perc", "gauge", help, engine.kv_usage());
}

fn counters(writer: &mut Writer, engine: &Engine, recorder: &Recorder) {
    let sums = engine.counters();
    let rows = [
        (
            "vllm:prefix_cache_queries_total",
            "Prefix cache queries, in terms of number of queried tokens.",
            sums.prefix_queries,
        ),
        ("vllm:prefix_cache_hits_total", "Prefix cache hits, in terms of number of cached tokens.", sums.prefix_hits),
        ("vllm:num_preemptions_total", "Cumulative number of preemption from the engine.", sums.preemptions),
        ("vllm:prompt_tokens_total", "Number of prefill tokens processed.", sums.prompt_tokens),
        ("vllm:prompt_tokens_cached_total", "Number of cached prompt tokens (local + external).", sums.prefix_hits),
        ("vllm:generation_tokens_total", "Number of generation tokens processed.", sums.generation_tokens),
    ];
    for (name, help, value) in rows {
        writer.one(name, "counter", help, value as f64);
    }
    let name = "vllm:request_success_total";
    writer.head(name, "counter", "Count of successfully processed requests.");
    let reasons = [("stop", recorder.stopped), ("length", recorder.limited), ("abort", 0), ("error", 0)];
    for (reason, count) in reasons {
        writer.sample(name, &format!(",finished_reason=\"{reason}\""), count as f64);
    }
}

fn histograms(writer: &mut Writer, engine: &Engine, recorder: &Recorder) {
    let sums = engine.counters();
    let help = "Histogram of number of tokens per engine_step.";
    let total = sums.iteration_tokens_sum as f64;
    writer.histogram("vllm:iteration_tokens_total", help, &ITERATION_EDGES, &sums.iteration_tokens, total);
    let rows = [
        ("vllm:request_prompt_tokens", "Number of prefill tokens processed.", &recorder.prompt_tokens),
        ("vllm:request_generation_tokens", "Number of generation tokens processed.", &recorder.generation_tokens),
        ("vllm:time_to_first_token_seconds", "Histogram of time to first token in seconds.", &recorder.ttft),
        ("vllm:inter_token_latency_seconds", "Histogram of inter-token latency in seconds.", &recorder.gap),
        (
            "vllm:request_time_per_output_token_seconds",
            "Histogram of time_per_output_token_seconds per request.",
            &recorder.tpot,
        ),
        ("vllm:e2e_request_latency_seconds", "Histogram of e2e request latency in seconds.", &recorder.e2e),
        ("vllm:request_queue_time_seconds", "Histogram of time spent in WAITING phase for request.", &recorder.queue),
        (
            "vllm:request_prefill_time_seconds",
            "Histogram of time spent in PREFILL phase for request.",
            &recorder.prefill,
        ),
        ("vllm:request_decode_time_seconds", "Histogram of time spent in DECODE phase for request.", &recorder.decode),
        (
            "vllm:request_num_preemptions",
            "Histogram of the number of times a request was preempted.",
            &recorder.preemptions,
        ),
    ];
    for (name, help, histogram) in rows {
        writer.recorded(name, help, histogram);
    }
}

fn cache_config(writer: &mut Writer, engine: &Engine) {
    let config = engine.config();
    let (size, blocks) = (config.block_size, config.num_blocks);
    let caching = if config.prefix_caching { "True" } else { "False" };
    let more = format!(
        ",block_size=\"{size}\",cache_dtype=\"auto\",effective_attention_block_size=\"{size}\",\
         enable_prefix_caching=\"{caching}\",kv_cache_size_tokens=\"{}\",num_gpu_blocks=\"{blocks}\",\
         num_gpu_blocks_override=\"None\"",
        u64::from(size) * u64::from(blocks),
    );
    writer.head("vllm:cache_config_info", "gauge", "Information of the LLMEngine CacheConfig");
    // vLLM's cache_config_info carries no model name.
    let labels = std::mem::replace(&mut writer.labels, "engine=\"0\"".to_owned());
    writer.sample("vllm:cache_config_info", &more, 1.0);
    writer.labels = labels;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{RequestId, Submission};
    use crate::profile::Profile;
    use forebay_core::clock::Time;

    #[test]
    fn the_text_has_the_engine_s_figures_under_vllm_s_names() {
        let mut profile = Profile::load("fast").unwrap();
        profile.scheduler.max_num_seqs = 1;
        let mut engine = Engine::new(profile.engine(0));
        for id in 0..3 {
            let block_hashes = std::sync::Arc::from([]);
            let request =
                Submission { id: RequestId(id), prompt_tokens: 100, output_tokens: 5, sequences: 1, block_hashes };
            engine.submit(Time::ZERO, &request).unwrap();
        }
        engine.step(Time::from_micros(1300), &mut Vec::new());
        let mut recorder = Recorder::default();
        recorder.ttft.observe(0.03);
        let text = render(&engine, &recorder, "tiny");
        for line in [
            "vllm:num_requests_running{engine=\"0\",model_name=\"tiny\"} 1.0",
            "vllm:num_requests_waiting{engine=\"0\",model_name=\"tiny\"} 2.0",
            "vllm:kv_cache_usage_perc{engine=\"0\",model_name=\"tiny\"} 0.00056",
            "vllm:generation_tokens_total{engine=\"0\",model_name=\"tiny\"} 1.0",
            "vllm:iteration_tokens_total_count{engine=\"0\",model_name=\"tiny\"} 1.0",
            "vllm:iteration_tokens_total_bucket{engine=\"0\",model_name=\"tiny\",le=\"64.0\"} 0.0",
            "vllm:iteration_tokens_total_bucket{engine=\"0\",model_name=\"tiny\",le=\"128.0\"} 1.0",
            "vllm:time_to_first_token_seconds_bucket{engine=\"0\",model_name=\"tiny\",le=\"0.02\"} 0.0",
            "vllm:time_to_first_token_seconds_bucket{engine=\"0\",model_name=\"tiny\",le=\"+Inf\"} 1.0",
            "# TYPE vllm:num_requests_running gauge",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        let sample = forebay_core::vllm_metrics::parse(&text).unwrap();
        assert_eq!((sample.running, sample.waiting, sample.kv_usage), (Some(1.0), Some(2.0), Some(0.00056)));
        assert_eq!(
            (sample.kv_capacity_tokens, sample.generation_tokens, sample.steps),
            (Some(200_000), Some(1.0), Some(1.0))
        );
        assert_eq!(
            (sample.prefix_queries, sample.prefix_hits, sample.preemptions),
            (Some(100.0), Some(0.0), Some(0.0))
        );
        assert!(text.contains("block_size=\"16\"") && text.contains("num_gpu_blocks=\"12500\""));
    }

    #[test]
    fn every_sample_belongs_to_a_declared_family() {
        let engine = Engine::new(Profile::load("fast").unwrap().engine(0));
        let text = render(&engine, &Recorder::default(), "tiny");
        let mut family = "";
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                family = rest.split(' ').next().unwrap();
            } else if !line.starts_with('#') {
                assert!(line.starts_with(family), "{line}");
            }
        }
    }
}
