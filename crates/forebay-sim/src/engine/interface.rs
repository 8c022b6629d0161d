//! What goes into an engine and what comes out of it, as plain data.

use std::sync::Arc;
use std::time::Duration;

use forebay_core::clock::Time;

/// Upper edges of the histogram of tokens per step, as vLLM's `vllm:iteration_tokens_total` has them.
pub const ITERATION_EDGES: [f64; 13] =
    [1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0];

/// Time that a step takes: the computing (the first five terms), then what the GPUs of a tensor-parallel instance need to add
/// up their partial results (the all-reduce; 0 with one GPU). The computing figures are those of one GPU's share of the work.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepCost {
    /// Every step, in microseconds.
    pub base_us: f64,
    /// Each decoding sequence in the step, in microseconds.
    pub decode_us: f64,
    /// Each decoding sequence above `crowd`, in microseconds, on top of that: work of the engine's process on the CPU, which
    /// the GPU's hides until then.
    pub crowd_us: f64,
    /// Sequences whose work on the CPU is hidden.
    pub crowd: u32,
    /// Each prompt token computed in the step, in microseconds.
    pub prefill_us: f64,
    /// Each token of context of the sequences in the step, in microseconds.
    pub kv_us: f64,
    /// All-reduces of every step, whatever their size, in microseconds: how many there are × the latency of one.
    pub all_reduce_us: f64,
    /// All-reduces, for each token computed in the step, decoded ones too, in microseconds: how many × bytes ÷ bandwidth.
    pub all_reduce_token_us: f64,
    /// Relative spread of a step's time: uniform within ± this share. 0: every step as computed.
    pub jitter: f64,
}

impl StepCost {
    /// The time of a step with so many decoding sequences, prompt tokens and tokens of context, in microseconds; no jitter.
    #[must_use]
    pub fn step_us(&self, decoding: u32, prefill: u32, context: u64) -> f64 {
        self.base_us
            + self.decode_us * f64::from(decoding)
            + self.crowd_us * f64::from(decoding.saturating_sub(self.crowd))
            + self.prefill_us * f64::from(prefill)
            + self.kv_us * context as f64
            + self.all_reduce_us
            + self.all_reduce_token_us * (f64::from(decoding) + f64::from(prefill))
    }
}

/// The settings of an engine, by the names of vLLM's options.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EngineConfig {
    /// Time that steps take.
    pub cost: StepCost,
    /// Sequences in one step, at most.
    pub max_num_seqs: u32,
    /// Tokens computed in one step, at most; longer prompts are cut into chunks.
    pub max_num_batched_tokens: u32,
    /// Tokens in one block of memory.
    pub block_size: u32,
    /// Blocks of memory.
    pub num_blocks: u32,
    /// True if blocks that nobody holds are kept for prompts that begin alike.
    pub prefix_caching: bool,
    /// For the jitter of steps.
    pub seed: u64,
}

/// A request's number; chosen by the caller, unique among the live ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// A request to the engine.
#[derive(Clone, Debug)]
pub struct Submission {
    /// The request's number.
    pub id: RequestId,
    /// Tokens of the prompt, at least 1.
    pub prompt_tokens: u32,
    /// Tokens that each sequence will produce, at least 1.
    pub output_tokens: u32,
    /// Sequences, as vLLM's `n`, at least 1.
    pub sequences: u32,
    /// A hash for each whole block of the sequence, chained; may be empty (nothing shared) and may go past the prompt.
    pub block_hashes: Arc<[u64]>,
}

/// A sequence got a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// The request.
    pub id: RequestId,
    /// Number of the sequence in its request, from 0.
    pub choice: u32,
    /// Time at which the step that made it ended.
    pub at: Time,
    /// Tokens of this sequence so far, this one included: 1 is the first token.
    pub tokens: u32,
    /// True if it was the last.
    pub finished: bool,
    /// From the submission to the first step that worked on it.
    pub queued: Duration,
    /// Tokens of the prompt that were in the cache when it was last admitted.
    pub cached_tokens: u32,
    /// Number of times that it lost its memory and was computed again.
    pub preemptions: u32,
}

/// Sums since the engine was made.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Counters {
    /// Steps ended.
    pub steps: u64,
    /// Prompt tokens of sequences that got their first token (cached ones included).
    pub prompt_tokens: u64,
    /// Tokens computed in prefill, recomputation included.
    pub prefill_tokens: u64,
    /// Tokens generated.
    pub generation_tokens: u64,
    /// Sequences that lost their memory.
    pub preemptions: u64,
    /// Tokens looked up in the prefix cache.
    pub prefix_queries: u64,
    /// Tokens found there.
    pub prefix_hits: u64,
    /// Sequences that ended.
    pub finished: u64,
    /// Sequences that were aborted.
    pub aborted: u64,
    /// Time spent in steps, in microseconds.
    pub busy_us: u64,
    /// Steps by tokens scheduled: below or at each of [`ITERATION_EDGES`], then the rest (not cumulative).
    pub iteration_tokens: [u64; ITERATION_EDGES.len() + 1],
    /// Tokens scheduled in all steps.
    pub iteration_tokens_sum: u64,
}

/// Reason why a request cannot be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// It would not fit even alone.
    #[error("{tokens} tokens need more than the {capacity} tokens of the KV cache")]
    TooLong {
        /// Prompt and output together.
        tokens: u32,
        /// The tokens that the memory holds.
        capacity: u32,
    },
    /// No prompt, no output, or no sequence.
    #[error("a request needs at least one prompt token, one output token and one sequence")]
    Empty,
}
