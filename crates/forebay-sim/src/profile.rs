//! What a simulated server imitates: step times, limits, memory and the lengths of answers, from TOML with its source
//! stated. The profiles of `config/sim/` are in the binary. Refuses unknown keys and values out of range.

use std::path::Path;

use serde::Deserialize;

use super::engine::{EngineConfig, StepCost};

/// The profiles in the binary: name and text.
pub const BUILT_IN: [(&str, &str); 9] = [
    ("fast", include_str!("../../../config/sim/fast.toml")),
    ("rtx4090-tp1-qwen7b", include_str!("../../../config/sim/rtx4090-tp1-qwen7b.toml")),
    ("rtx4090-tp2-qwen7b", include_str!("../../../config/sim/rtx4090-tp2-qwen7b.toml")),
    ("rtx4090-tp4-qwen7b", include_str!("../../../config/sim/rtx4090-tp4-qwen7b.toml")),
    ("rtx4090x2-tp1-qwen7b", include_str!("../../../config/sim/rtx4090x2-tp1-qwen7b.toml")),
    ("rtx4090-tp1-llama8b", include_str!("../../../config/sim/rtx4090-tp1-llama8b.toml")),
    ("rtx4090-tp2-llama8b", include_str!("../../../config/sim/rtx4090-tp2-llama8b.toml")),
    ("rtx4090x2-tp1-llama8b", include_str!("../../../config/sim/rtx4090x2-tp1-llama8b.toml")),
    ("h200-tp1-qwen7b", include_str!("../../../config/sim/h200-tp1-qwen7b.toml")),
];

/// A server to imitate.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// Source of the figures.
    pub source: String,
    /// The model that it serves unless another name is given.
    pub model: String,
    /// GPUs that it stands for.
    pub gpus: u32,
    /// Time that a step takes.
    pub step: Step,
    /// Time that its GPUs talk in a step; absent for one GPU.
    #[serde(default)]
    pub all_reduce: AllReduce,
    /// Limits of a step.
    pub scheduler: Scheduler,
    /// The memory.
    pub kv: Kv,
    /// Length of answers that end by themselves.
    pub answers: Answers,
}

/// Time that a step takes: the sum of these terms.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// Every step, in milliseconds.
    pub base_ms: f64,
    /// Each decoding sequence, in milliseconds.
    pub per_decode_ms: f64,
    /// Cost of many sequences on top of that.
    #[serde(default)]
    pub crowd: Crowd,
    /// Each prompt token computed, in microseconds.
    pub per_prefill_token_us: f64,
    /// Each token of context, in nanoseconds.
    pub per_kv_token_ns: f64,
    /// Relative spread of a step's time: uniform within ± this share, below 1.
    #[serde(default)]
    pub jitter: f64,
}

/// Work of the engine's process on the CPU: it goes on beside the GPU's, and lengthens a step only where it takes longer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Crowd {
    /// Number of decoding sequences that are hidden behind the GPU's work.
    pub sequences: u32,
    /// Each above them, in milliseconds.
    pub per_decode_ms: f64,
}

/// The talk among the GPUs of a tensor-parallel instance in a step: after attention and after the MLP of each layer
/// the partial results of all tokens in the step are added up. Absent or `per_step = 0`: one GPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AllReduce {
    /// All-reduces in a step: two in each layer of the model.
    pub per_step: u32,
    /// Each of them, whatever its size, in microseconds.
    pub latency_us: f64,
    /// Bytes of one token in each of them: the model's hidden size × bytes of a number.
    pub bytes_per_token: u32,
    /// Bytes through one GPU's link in a second, in 10⁹, as achieved; in a ring of n GPUs each byte goes through it
    /// 2 (n − 1) / n times, so once for two.
    pub link_gb_per_s: f64,
}

impl AllReduce {
    fn step_us(&self) -> f64 {
        f64::from(self.per_step) * self.latency_us
    }

    fn token_us(&self, gpus: u32) -> f64 {
        if self.per_step == 0 {
            return 0.0;
        }
        let crossings = 2.0 * (f64::from(gpus) - 1.0) / f64::from(gpus);
        f64::from(self.per_step) * f64::from(self.bytes_per_token) * crossings / (self.link_gb_per_s * 1e3)
    }
}

/// Limits of a step, by the names of vLLM's options.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scheduler {
    /// Sequences in a step.
    pub max_num_seqs: u32,
    /// Tokens computed in a step.
    pub max_num_batched_tokens: u32,
    /// Tokens of prompt and answer together.
    pub max_model_len: u32,
}

/// The memory for keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kv {
    /// Tokens that fit in.
    pub tokens: u32,
    /// Tokens in a block.
    pub block_size: u32,
    /// True if prompts that begin alike share their beginning.
    pub prefix_caching: bool,
}

/// Tokens of an answer that ends by itself: anything between these, equally likely.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answers {
    /// The shortest, in tokens.
    pub shortest: u32,
    /// The longest, in tokens.
    pub longest: u32,
}

/// Reason why there is no profile.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// Neither a name nor a file.
    #[error("`{0}` is no profile; there are {names}, or give the path of a TOML file", names = names())]
    Unknown(String),
    /// The file cannot be read.
    #[error("cannot read the profile {path}: {error}")]
    Unreadable {
        /// The file.
        path: String,
        /// The system's error.
        error: std::io::Error,
    },
    /// The text is not a profile.
    #[error("the profile {path} is not right: {error}")]
    Malformed {
        /// The name or file.
        path: String,
        /// The mistake, and its place.
        error: Box<toml::de::Error>,
    },
    /// A value is out of range.
    #[error("the profile {path} is not right: {key} {reason}")]
    OutOfRange {
        /// The name or file.
        path: String,
        /// The key.
        key: &'static str,
        /// The values that it may have.
        reason: &'static str,
    },
}

fn names() -> String {
    BUILT_IN.map(|(name, _)| name).join(", ")
}

impl Profile {
    /// A profile by name, or else from the file at that path.
    ///
    /// # Errors
    /// There is none, or it is not right.
    pub fn load(name_or_path: &str) -> Result<Profile, ProfileError> {
        // Built-in names win over files, so that an experiment means the same in every folder.
        if let Some((name, text)) = BUILT_IN.iter().find(|(name, _)| *name == name_or_path) {
            return Profile::parse(text, name);
        }
        if !Path::new(name_or_path).exists() {
            return Err(ProfileError::Unknown(name_or_path.to_owned()));
        }
        let text = std::fs::read_to_string(name_or_path)
            .map_err(|error| ProfileError::Unreadable { path: name_or_path.to_owned(), error })?;
        Profile::parse(&text, name_or_path)
    }

    /// Reads a profile's text; `path` is for messages.
    ///
    /// # Errors
    /// The text is not a profile, or a value is out of range.
    pub fn parse(text: &str, path: &str) -> Result<Profile, ProfileError> {
        let profile: Profile = toml::from_str(text)
            .map_err(|error| ProfileError::Malformed { path: path.to_owned(), error: Box::new(error) })?;
        match profile.wrong() {
            Some((key, reason)) => Err(ProfileError::OutOfRange { path: path.to_owned(), key, reason }),
            None => Ok(profile),
        }
    }

    /// The first value out of range, with what it must be.
    #[must_use]
    pub fn wrong(&self) -> Option<(&'static str, &'static str)> {
        let cost = |value: f64| value.is_finite() && (0.0..=1e6).contains(&value);
        let Profile { step, all_reduce, scheduler, kv, answers, .. } = self;
        let checks = [
            (self.gpus > 0, "gpus", "must be at least 1"),
            (cost(step.base_ms) && step.base_ms > 0.0, "step.base_ms", "must be above 0"),
            (cost(step.per_decode_ms), "step.per_decode_ms", "must be 0 or more"),
            (cost(step.crowd.per_decode_ms), "step.crowd.per_decode_ms", "must be 0 or more"),
            (cost(step.per_prefill_token_us), "step.per_prefill_token_us", "must be 0 or more"),
            (cost(step.per_kv_token_ns), "step.per_kv_token_ns", "must be 0 or more"),
            ((0.0..1.0).contains(&step.jitter), "step.jitter", "must be at least 0 and below 1"),
            (cost(all_reduce.latency_us), "all_reduce.latency_us", "must be 0 or more"),
            (
                all_reduce.per_step == 0 || (cost(all_reduce.link_gb_per_s) && all_reduce.link_gb_per_s > 0.0),
                "all_reduce.link_gb_per_s",
                "must be above 0",
            ),
            (all_reduce.per_step == 0 || self.gpus > 1, "gpus", "must be at least 2 where there is an all_reduce"),
            (scheduler.max_num_seqs > 0, "scheduler.max_num_seqs", "must be at least 1"),
            (scheduler.max_num_batched_tokens > 0, "scheduler.max_num_batched_tokens", "must be at least 1"),
            (scheduler.max_model_len > 1, "scheduler.max_model_len", "must be at least 2"),
            (kv.block_size > 0, "kv.block_size", "must be at least 1"),
            (kv.tokens >= kv.block_size.max(2), "kv.tokens", "must be at least one block"),
            (answers.shortest > 0, "answers.shortest", "must be at least 1"),
            (answers.longest >= answers.shortest, "answers.longest", "must be at least answers.shortest"),
        ];
        checks.into_iter().find(|(right, ..)| !right).map(|(_, key, reason)| (key, reason))
    }

    /// The engine that this profile describes.
    #[must_use]
    pub fn engine(&self, seed: u64) -> EngineConfig {
        EngineConfig {
            cost: StepCost {
                base_us: self.step.base_ms * 1e3,
                decode_us: self.step.per_decode_ms * 1e3,
                crowd_us: self.step.crowd.per_decode_ms * 1e3,
                crowd: self.step.crowd.sequences,
                prefill_us: self.step.per_prefill_token_us,
                kv_us: self.step.per_kv_token_ns * 1e-3,
                all_reduce_us: self.all_reduce.step_us(),
                all_reduce_token_us: self.all_reduce.token_us(self.gpus),
                jitter: self.step.jitter,
            },
            max_num_seqs: self.scheduler.max_num_seqs,
            max_num_batched_tokens: self.scheduler.max_num_batched_tokens,
            block_size: self.kv.block_size,
            num_blocks: self.kv.tokens / self.kv.block_size,
            prefix_caching: self.kv.prefix_caching,
            seed,
        }
    }

    /// Tokens that prompt and answer may have together: the model's limit, or the memory where that is less.
    #[must_use]
    pub fn max_len(&self) -> u32 {
        self.scheduler.max_model_len.min(self.kv.tokens / self.kv.block_size * self.kv.block_size)
    }

    /// The length of an answer that ends by itself, for a number between 0 and 1.
    #[must_use]
    pub fn answer_tokens(&self, drawn: f64) -> u32 {
        let Answers { shortest, longest } = self.answers;
        shortest + (drawn.clamp(0.0, 1.0) * f64::from(longest - shortest)).round() as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_built_in_profile_is_right_and_states_its_source() {
        for (name, _) in BUILT_IN {
            let profile = Profile::load(name).unwrap();
            assert!(profile.source.len() > 20, "{name}");
            assert_eq!(profile.engine(0).num_blocks * profile.kv.block_size, profile.kv.tokens, "{name}");
        }
    }

    #[test]
    fn an_unknown_name_lists_the_known_ones() {
        let message = Profile::load("h100").unwrap_err().to_string();
        assert!(message.contains("h100") && message.contains("rtx4090-tp2-qwen7b"), "{message}");
    }

    #[test]
    fn unknown_keys_and_values_out_of_range_are_refused() {
        let text = BUILT_IN[0].1;
        let typo = Profile::parse(&text.replace("jitter", "").replace("base_ms", "bsae_ms"), "x").unwrap_err();
        assert!(typo.to_string().contains("bsae_ms"), "{typo}");
        let zero = Profile::parse(&text.replace("max_num_seqs = 256", "max_num_seqs = 0"), "x").unwrap_err();
        assert!(zero.to_string().contains("scheduler.max_num_seqs must be at least 1"), "{zero}");
    }

    #[test]
    fn answers_span_the_range() {
        let profile = Profile::load("fast").unwrap();
        assert_eq!((profile.answer_tokens(0.0), profile.answer_tokens(1.0)), (16, 128));
    }
}
