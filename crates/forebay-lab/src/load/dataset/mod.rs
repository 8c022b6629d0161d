//! The datasets of `forebay bench`: which prompts a load has, and which of them begin alike. Pure: what a server must count is
//! asked in `counting.rs` and `prompts.rs`.

pub mod conversations;
pub mod lines;
pub mod sharegpt;
pub mod supply;
pub mod trace;
pub mod vocabulary;

use std::fmt;
use std::sync::Arc;

use self::conversations::Conversations;
use self::lines::Line;
use self::trace::Trace;

/// The source of prompts.
#[derive(Clone, Debug, Default)]
pub enum Dataset {
    /// Random words, or token ids.
    #[default]
    Random,
    /// Random prompts behind common beginnings.
    Prefixes(Prefixes),
    /// The lines of a file, from its first again after its last.
    Lines(Arc<[Line]>),
    /// The requests of a trace, whose block hashes say which prompts begin alike.
    Trace(Arc<Trace>),
    /// Conversations of several turns, each of which repeats the earlier prompts and the answers received.
    Conversations(Conversations),
}

/// Beginnings that random prompts share. The load's `input_len` counts what follows them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefixes {
    /// Tokens of a beginning, at least 1.
    pub len: u32,
    /// The number of beginnings, at least 1.
    pub count: u32,
}

/// The dataset in words, as rows have it.
impl fmt::Display for Prefixes {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "prefix_repetition of {} prefixes of {} tokens", self.count, self.len)
    }
}

impl Prefixes {
    /// Returns the beginning of each prompt, by number: each is used equally often, give or take one, in an order drawn from
    /// the seed.
    #[must_use]
    pub fn of_prompts(&self, num_prompts: u32, seed: u64) -> Vec<u32> {
        // Dealt and then shuffled, as `vllm bench serve` does. Drawn one by one, some beginnings would come three times as
        // often.
        let mut places: Vec<u32> = (0..num_prompts).map(|id| id % self.count.max(1)).collect();
        fastrand::Rng::with_seed(seed ^ 0x9e_f1c5).shuffle(&mut places);
        places
    }
}

impl Dataset {
    /// Returns the dataset to warm up with: that of the load, with conversations of one turn.
    #[must_use]
    pub fn of_warm_up(&self) -> Dataset {
        match self {
            // One turn warms kernels and connections. More would fill the prefix cache with histories that the load never
            // repeats.
            Dataset::Conversations(shape) => Dataset::Conversations(Conversations { turns: 1, ..*shape }),
            other => other.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_beginning_has_as_many_prompts_in_an_order_of_its_own() {
        let prefixes = Prefixes { len: 256, count: 10 };
        let places = prefixes.of_prompts(200, 7);
        assert!((0..10).all(|place| places.iter().filter(|one| **one == place).count() == 20));
        assert_eq!(places, prefixes.of_prompts(200, 7));
        assert_ne!(places, prefixes.of_prompts(200, 8));
        assert!(places.windows(2).any(|pair| pair[1] != (pair[0] + 1) % 10), "shuffled");
    }
}
