//! What is sent, and when: prompts of random words, the requests' bodies, and the times of sending. Pure and seeded: the same
//! seed gives the same load on every machine.

use std::time::Duration;

use serde_json::{Value, json};

use forebay_core::stream::Api;

/// Short words: one token each for most tokenizers.
pub const WORDS: [&str; 48] = [
    "water", "night", "house", "light", "paper", "green", "river", "stone", "music", "bread", "table", "chair",
    "horse", "wind", "fire", "glass", "road", "bird", "tree", "snow", "hand", "door", "book", "ship", "star", "milk",
    "salt", "gold", "field", "train", "cloud", "sugar", "apple", "lemon", "north", "south", "early", "quick", "small",
    "heavy", "sharp", "quiet", "seven", "eight", "three", "under", "above", "after",
];

/// The rate at which requests are sent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rate {
    /// All at once.
    Unlimited,
    /// A number of requests a second on average, at random times (a Poisson process).
    PerSecond(f64),
    /// A number of requests a second on average, the gaps drawn from a gamma distribution.
    Gamma {
        /// Requests a second.
        per_second: f64,
        /// Its shape, above 0: 1 is a Poisson process, less comes in bursts, more is more even, infinite quite even.
        burstiness: f64,
    },
    /// At the times of the trace that is sent.
    OfTrace {
        /// The speed as a multiple of the trace's, above 0.
        speedup: f64,
    },
}

/// The text that [`Workload::input_len`] counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// The text of a prompt, as `vllm bench serve` has it: a chat's template comes on top.
    Content,
    /// All that the server counts as the prompt, a chat's template included.
    Whole,
}

/// By which route requests are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// `/v1/chat/completions`.
    Chat,
    /// `/v1/completions`.
    Completions,
}

impl Endpoint {
    /// The route.
    #[must_use]
    pub fn path(self) -> &'static str {
        match self {
            Endpoint::Chat => "/v1/chat/completions",
            Endpoint::Completions => "/v1/completions",
        }
    }

    /// The API, as far as the form of its answers goes.
    #[must_use]
    pub fn api(self) -> Api {
        match self {
            Endpoint::Chat => Api::Chat,
            Endpoint::Completions => Api::Completions,
        }
    }

    /// The member of a body that limits its answer.
    #[must_use]
    pub fn limit(self) -> &'static str {
        if self == Endpoint::Chat { "max_completion_tokens" } else { "max_tokens" }
    }

    /// The member of a body that holds a prompt.
    #[must_use]
    pub fn prompt(self, text: &str) -> (&'static str, Value) {
        match self {
            Endpoint::Chat => ("messages", json!([{"role": "user", "content": text}])),
            Endpoint::Completions => ("prompt", Value::from(text)),
        }
    }
}

/// A load.
#[derive(Clone, Debug, PartialEq)]
pub struct Workload {
    /// The model to ask for.
    pub model: String,
    /// The route.
    pub endpoint: Endpoint,
    /// The number of requests.
    pub num_prompts: u32,
    /// Tokens of each prompt.
    pub input_len: u32,
    /// The text that the lengths count.
    pub length: Length,
    /// Tokens of each answer, at most.
    pub output_len: u32,
    /// True if answers go on up to the limit.
    pub ignore_eos: bool,
    /// Of the sampling; none: the server's own.
    pub temperature: Option<f64>,
    /// The rate at which they are sent.
    pub rate: Rate,
    /// For words and times.
    pub seed: u64,
}

impl Workload {
    /// The words of a prompt, so many.
    #[must_use]
    pub fn words(&self, id: u32, count: u32) -> String {
        let mut rng = self.rng(id);
        let words: Vec<&str> = (0..count).map(|_| WORDS[rng.usize(..WORDS.len())]).collect();
        words.join(" ")
    }

    /// Returns so many token ids: words or parts of words in the vocabulary of any model.
    #[must_use]
    pub fn token_ids(&self, id: u32, count: u32) -> Vec<u32> {
        let mut rng = self.rng(id);
        // Below 300 vocabularies have single bytes and special tokens, and the smallest one here ends at 465.
        (0..count).map(|_| rng.u32(300..460)).collect()
    }

    fn rng(&self, id: u32) -> fastrand::Rng {
        // Seeds are small numbers, and so are ids. The factor keeps (seed 1, id 2) from being (seed 2, id 1).
        fastrand::Rng::with_seed(self.seed.wrapping_mul(0x9e37_79b9).wrapping_add(u64::from(id)))
    }

    /// The body of a request with that prompt.
    #[must_use]
    pub fn body(&self, prompt: &str) -> String {
        let (key, value) = self.endpoint.prompt(prompt);
        self.body_of(key, value).to_string()
    }

    /// The body of a request whose prompt is that member.
    #[must_use]
    pub fn body_of(&self, key: &str, prompt: Value) -> Value {
        let mut body = json!({
            "model": self.model, key: prompt, self.endpoint.limit(): self.output_len,
            "stream": true, "stream_options": {"include_usage": true},
        });
        if let Some(temperature) = self.temperature {
            body["temperature"] = Value::from(temperature);
        }
        if self.ignore_eos {
            body["ignore_eos"] = Value::Bool(true);
        }
        body
    }

    /// Returns the time of each request, from the begin of the run. As with `vllm bench serve`, random gaps are stretched so
    /// that their mean is that of the rate: the times are those of a Poisson process of which the length is known. A trace has
    /// times of its own: see [`Supply::arrivals`](crate::load::dataset::supply::Supply::arrivals).
    #[must_use]
    pub fn arrivals(&self) -> Vec<Duration> {
        let (per_second, burstiness) = match self.rate {
            Rate::Unlimited | Rate::OfTrace { .. } => return vec![Duration::ZERO; self.num_prompts as usize],
            Rate::PerSecond(rate) => (rate.max(1e-9), 1.0),
            Rate::Gamma { per_second, burstiness } => (per_second.max(1e-9), burstiness),
        };
        // A stream of its own, so that the same seed gives the same times whatever the prompts drew.
        let mut rng = fastrand::Rng::with_seed(self.seed ^ 0x5eed);
        let mut now = 0.0;
        let mut times = Vec::with_capacity(self.num_prompts as usize);
        for _ in 0..self.num_prompts {
            times.push(now);
            // Only their proportions count: the stretch sets their mean.
            now += if burstiness.is_infinite() { 1.0 } else { gamma(burstiness, &mut rng) };
        }
        let last = times.last().copied().unwrap_or(0.0);
        // The number of requests is fixed, so a random sum of gaps would make one run offer several percent more than the next.
        let stretch = if last > 0.0 { times.len().saturating_sub(1) as f64 / last / per_second } else { 0.0 };
        times.into_iter().map(|time| Duration::from_secs_f64(time * stretch)).collect()
    }
}

/// A draw from the gamma distribution of that shape, above 0, and scale 1. Marsaglia and Tsang, "A simple method for generating
/// gamma variables" (2000).
fn gamma(shape: f64, rng: &mut fastrand::Rng) -> f64 {
    let positive = |rng: &mut fastrand::Rng| 1.0 - rng.f64();
    if shape == 1.0 {
        return -positive(rng).ln();
    }
    if shape < 1.0 {
        // The method below needs a shape of 1 or more. The same paper's section 6 has this way down.
        return gamma(shape + 1.0, rng) * positive(rng).powf(1.0 / shape);
    }
    let d = shape - 1.0 / 3.0;
    loop {
        let normal = (-2.0 * positive(rng).ln()).sqrt() * (std::f64::consts::TAU * rng.f64()).cos();
        let v = (1.0 + normal / (9.0 * d).sqrt()).powi(3);
        // The exact acceptance. The paper's cheap test before it would save a logarithm, and arrivals are drawn once a run.
        if v > 0.0 && positive(rng).ln() < 0.5 * normal * normal + d - d * v + d * v.ln() {
            return d * v;
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn workload(rate: Rate) -> Workload {
        Workload {
            model: "m".to_owned(),
            endpoint: Endpoint::Chat,
            num_prompts: 2000,
            input_len: 100,
            length: Length::Content,
            output_len: 600,
            ignore_eos: false,
            temperature: None,
            rate,
            seed: 7,
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_load() {
        let (a, b) = (workload(Rate::PerSecond(5.0)), workload(Rate::PerSecond(5.0)));
        assert_eq!(a.arrivals(), b.arrivals());
        assert_eq!(a.words(3, 20), b.words(3, 20));
        assert_ne!(a.words(3, 20), a.words(4, 20));
        assert_ne!(a.words(3, 20), Workload { seed: 8, ..a.clone() }.words(3, 20));
        assert_eq!(a.words(3, 20).split(' ').count(), 20);
    }

    #[test]
    fn arrivals_have_the_rate_and_the_spread_of_a_poisson_process() {
        let times = workload(Rate::PerSecond(5.0)).arrivals();
        let (mean, spread) = shape(&times);
        assert!((mean * 5.0 - 1.0).abs() < 1e-6 && (spread - 1.0).abs() < 0.1, "{mean} {spread}");
        assert!(workload(Rate::Unlimited).arrivals().iter().all(Duration::is_zero));
    }

    /// The mean of the gaps in seconds, and their coefficient of variation.
    fn shape(times: &[Duration]) -> (f64, f64) {
        let gaps: Vec<f64> = times.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        (mean, (gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64).sqrt() / mean)
    }

    #[test]
    fn burstiness_is_the_shape_of_a_gamma_distribution() {
        for (burstiness, expected) in [(0.25, 2.0), (4.0, 0.5), (f64::INFINITY, 0.0)] {
            let (mean, spread) = shape(&workload(Rate::Gamma { per_second: 5.0, burstiness }).arrivals());
            assert!((mean * 5.0 - 1.0).abs() < 1e-6 && (spread - expected).abs() < 0.1 * expected.max(0.1), "{spread}");
        }
    }

    #[test]
    fn a_body_asks_for_a_stream_with_usage() {
        let body: Value = serde_json::from_str(&workload(Rate::Unlimited).body("hi")).unwrap();
        assert_eq!(body["stream_options"]["include_usage"], true);
        assert_eq!((&body["max_completion_tokens"], &body["messages"][0]["content"]), (&json!(600), &json!("hi")));
        assert!(body.get("ignore_eos").is_none());
    }
}
