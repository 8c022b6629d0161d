//! What is sent, and when: prompts of random words, the requests' bodies, and the times of sending. Pure and seeded: the same
//! seed gives the same load on every machine.

use std::time::Duration;

use serde_json::{Value, json};

/// Short words: one token each for most tokenizers.
const WORDS: [&str; 48] = [
    "water", "night", "house", "light", "paper", "green", "river", "stone", "music", "bread", "table", "chair",
    "horse", "wind", "fire", "glass", "road", "bird", "tree", "snow", "hand", "door", "book", "ship", "star", "milk",
    "salt", "gold", "field", "train", "cloud", "sugar", "apple", "lemon", "north", "south", "early", "quick", "small",
    "heavy", "sharp", "quiet", "seven", "eight", "three", "under", "above", "after",
];

/// How fast requests are sent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rate {
    /// All at once.
    Unlimited,
    /// So many a second on average, at random times (a Poisson process).
    PerSecond(f64),
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
    /// How many requests.
    pub num_prompts: u32,
    /// Tokens of each prompt.
    pub input_len: u32,
    /// Tokens of each answer, at most.
    pub output_len: u32,
    /// Whether answers go on up to the limit.
    pub ignore_eos: bool,
    /// How fast they are sent.
    pub rate: Rate,
    /// For words and times.
    pub seed: u64,
}

impl Workload {
    /// The words of a prompt, so many.
    #[must_use]
    pub fn words(&self, id: u32, count: u32) -> String {
        let mut rng = fastrand::Rng::with_seed(self.seed.wrapping_mul(0x9e37_79b9).wrapping_add(u64::from(id)));
        let words: Vec<&str> = (0..count).map(|_| WORDS[rng.usize(..WORDS.len())]).collect();
        words.join(" ")
    }

    /// The body of a request with that prompt.
    #[must_use]
    pub fn body(&self, prompt: &str) -> String {
        let (key, value) = self.endpoint.prompt(prompt);
        let limit = if self.endpoint == Endpoint::Chat { "max_completion_tokens" } else { "max_tokens" };
        let mut body = json!({
            "model": self.model, key: value, limit: self.output_len, "temperature": 0.0,
            "stream": true, "stream_options": {"include_usage": true},
        });
        if self.ignore_eos {
            body["ignore_eos"] = Value::Bool(true);
        }
        body.to_string()
    }

    /// When each request is to be sent, from the begin of the run.
    #[must_use]
    pub fn arrivals(&self) -> Vec<Duration> {
        let mut rng = fastrand::Rng::with_seed(self.seed ^ 0x5eed);
        let mut now = 0.0;
        let mut times = Vec::with_capacity(self.num_prompts as usize);
        for _ in 0..self.num_prompts {
            times.push(Duration::from_secs_f64(now));
            if let Rate::PerSecond(rate) = self.rate {
                now += -(1.0 - rng.f64()).ln() / rate.max(1e-9);
            }
        }
        times
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workload(rate: Rate) -> Workload {
        Workload {
            model: "m".to_owned(),
            endpoint: Endpoint::Chat,
            num_prompts: 2000,
            input_len: 100,
            output_len: 600,
            ignore_eos: false,
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
        let gaps: Vec<f64> = times.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let spread = (gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64).sqrt() / mean;
        assert!((mean * 5.0 - 1.0).abs() < 0.1 && (spread - 1.0).abs() < 0.1, "{mean} {spread}");
        assert!(workload(Rate::Unlimited).arrivals().iter().all(Duration::is_zero));
    }

    #[test]
    fn a_body_asks_for_a_stream_with_usage() {
        let body: Value = serde_json::from_str(&workload(Rate::Unlimited).body("hi")).unwrap();
        assert_eq!(body["stream_options"]["include_usage"], true);
        assert_eq!((&body["max_completion_tokens"], &body["messages"][0]["content"]), (&json!(600), &json!("hi")));
        assert!(body.get("ignore_eos").is_none());
    }
}
