//! The room on a GPU: what the weights take, what is left for the KV cache, and how many sequences that holds. Pure.
//!
//! The reckoning is vLLM's own (`v1/worker/gpu_worker.py`, `determine_available_memory`): it takes
//! `--gpu-memory-utilization` of the total, refuses to start where less than that is free, and gives the KV cache what weights
//! and the pass that it profiles with leave. That last part is known only when it starts: `overhead.rs` gives a range for it, and the KV
//! cache is a range by it.

use std::fmt;

use serde::Serialize;

use super::bytes::Bytes;
use super::model::{Attention, Bits, Model};
use super::overhead::{Range, StepLimits, overhead, step_limits};
use crate::plan::host::gpu::Gpu;

/// Tokens of a block of the KV cache, vLLM's default.
pub const BLOCK: u64 = 16;

/// Steps whose tokens are in flight at once: vLLM plans a step while a GPU still works on the one before (`async_scheduling`, its default).
const IN_FLIGHT: u64 = 2;

/// The way in which a server is to be started, and the load for which the room is asked.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ServingLoad {
    /// `--gpu-memory-utilization`.
    pub utilization: f64,
    /// The memory that a server holds on each GPU beside weights and KV cache, where it is known; none: it is estimated.
    pub overhead: Option<Bytes>,
    /// `--dtype`, if it is not `auto`.
    pub dtype: Option<String>,
    /// `--kv-cache-dtype`, if it is not `auto`.
    pub kv_cache_dtype: Option<String>,
    /// Bits of an element of the KV cache; the activations' unless told.
    pub kv_bits: Option<Bits>,
    /// `--max-model-len`, if it was given.
    pub max_model_len: Option<u64>,
    /// Tokens of a prompt.
    pub input: u64,
    /// Tokens of an answer.
    pub output: u64,
    /// Requests at once.
    pub concurrency: u64,
}

impl ServingLoad {
    /// The tokens that a sequence holds on average over its decoding: its prompt and half of its answer.
    #[must_use]
    pub fn mean_tokens(&self) -> u64 {
        (self.input + self.output / 2).max(1)
    }
}

/// The KV cache of one server, and what else is on its GPUs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Room {
    /// Weights on each of its GPUs.
    pub weights: Bytes,
    /// The memory that it holds on each beside weights and KV cache.
    pub overhead: Range,
    /// The memory that its KV cache takes of each of its GPUs.
    pub kv: Range,
    /// The memory that a token of a mean sequence takes of each GPU.
    pub per_token: Bytes,
    /// Tokens that its KV cache holds, in whole blocks, by the middle of the range; and the least and the most.
    pub tokens: u64,
    /// The least of them.
    pub tokens_least: u64,
    /// The most of them.
    pub tokens_most: u64,
    /// Sequences of the mean length that it holds at once.
    pub sequences: u64,
    /// Tokens of the longest sequence that it surely holds.
    pub longest: u64,
    /// Sequences that vLLM runs at once by default (`--max-num-seqs`).
    pub max_num_seqs: u64,
}

impl Room {
    /// Returns the number of sequences that decode at once: as many as there is room for, up to the cap.
    #[must_use]
    pub fn at_once(&self) -> u64 {
        self.sequences.min(self.max_num_seqs)
    }
}

/// The reason why a server cannot start.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Refused {
    /// Weights and overhead are more than it may take.
    Weights {
        /// Weights on each GPU.
        weights: Bytes,
        /// The memory that it may take of each.
        budget: Bytes,
    },
    /// The TP size does not divide this number.
    NotDivisible {
        /// Its key in the config.
        key: &'static str,
        /// Its value.
        value: u64,
        /// The TP size.
        tp: u64,
    },
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refused::Weights { weights, budget } => {
                write!(f, "does not fit: {weights} of weights on each GPU, where a server may take {budget} in all")
            }
            Refused::NotDivisible { key, value, tp } => {
                write!(f, "vLLM will not start: a TP size of {tp} does not divide {key}, which is {value}")
            }
        }
    }
}

/// Returns what a token of context takes of each GPU of a group of `tp`: keys and values of each of its KV heads in each layer.
/// A group with more GPUs than KV heads holds copies; MLA's latent vector is on every GPU.
#[must_use]
pub fn per_token(model: &Model, kv_bits: Bits, tp: u64) -> Bytes {
    of_layers(model, kv_bits, tp, model.layers, 1).max(Bytes(1))
}

/// Returns what a sequence of so many tokens takes while it decodes: layers with a window hold no more of it than that and one block,
/// since a window seldom begins where a block does.
#[must_use]
pub fn per_sequence(model: &Model, kv_bits: Bits, tp: u64, tokens: u64) -> Bytes {
    held(model, kv_bits, tp, tokens, 0)
}

/// Returns what a sequence takes of which so many tokens are still in flight: layers with a window give up a block only when the step
/// after it is done.
fn held(model: &Model, kv_bits: Bits, tp: u64, tokens: u64, in_flight: u64) -> Bytes {
    let slots = Slots::of(model);
    let window = model.sliding.map_or(0, |sliding| sliding.window + in_flight + BLOCK);
    let whole = of_layers(model, kv_bits, tp, slots.whole, tokens);
    let part = of_layers(model, kv_bits, tp, slots.sliding, tokens.min(window));
    Bytes(whole.0.saturating_add(part.0))
}

/// The layers that vLLM makes room for. A block is of one kind of layers and holds as many of them as there are of the rarer kind, so
/// that the last block of the other kind is padded (0.32.0, `v1/core/kv_cache_utils.py`, `_get_kv_cache_groups_uniform_page_size`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Slots {
    whole: u64,
    sliding: u64,
}

impl Slots {
    fn of(model: &Model) -> Slots {
        let sliding = model.sliding.map_or(0, |sliding| sliding.layers);
        let whole = model.layers.saturating_sub(sliding);
        let (rarer, other) = (whole.min(sliding), whole.max(sliding));
        let group = match rarer {
            // All layers are of one kind, and one block holds them all.
            0 => return Slots { whole, sliding },
            // vLLM's own rule: where the kinds are nearly as many, the rarer one is padded.
            _ if 2 * other < 3 * rarer => other,
            _ => rarer,
        };
        Slots { whole: whole.next_multiple_of(group), sliding: sliding.next_multiple_of(group) }
    }
}

fn of_layers(model: &Model, kv_bits: Bits, tp: u64, layers: u64, tokens: u64) -> Bytes {
    let elements = match model.attention {
        Attention::Heads { kv_heads, head_dim } => 2 * u128::from((kv_heads / tp).max(1)) * u128::from(head_dim),
        Attention::Latent { rank, rope } => u128::from(rank + rope),
    };
    let bits = elements * u128::from(layers) * u128::from(kv_bits.0) * u128::from(tokens);
    Bytes(u64::try_from(bits / 8).unwrap_or(u64::MAX))
}

/// Tokens of the longest sequence that this memory holds, also while its prompt is computed: vLLM does not start where it might not.
fn longest(model: &Model, kv_bits: Bits, tp: u64, kv: Bytes, in_flight: u64) -> u64 {
    let slots = Slots::of(model);
    let each = |layers: u64| of_layers(model, kv_bits, tp, layers, 1).0;
    let Some(sliding) = model.sliding else { return kv.0 / each(slots.whole).max(1) };
    // Up to here layers with a window hold all of it, too.
    let all = sliding.window + in_flight;
    let short =
        kv.less(of_layers(model, kv_bits, tp, slots.sliding, BLOCK)).0 / each(slots.whole + slots.sliding).max(1);
    if short <= all {
        return short;
    }
    let windows = of_layers(model, kv_bits, tp, slots.sliding, all + BLOCK);
    match each(slots.whole) {
        0 => u64::MAX,
        each => kv.less(windows).0 / each,
    }
}

/// The bytes of the weights on each GPU of a group of `tp`: an equal part, and copies of key and value projections where
/// there are more GPUs than KV heads.
fn weights_of_each(model: &Model, tp: u64) -> Bytes {
    let copies = match model.attention {
        Attention::Heads { kv_heads, head_dim } if tp > kv_heads => {
            let spare = u128::from(tp - kv_heads) * u128::from(head_dim) * u128::from(model.hidden);
            2 * spare * u128::from(model.layers) * u128::from(model.activation.0) / 8
        }
        _ => 0,
    };
    let all = u128::from(model.weights.0) + copies;
    Bytes(u64::try_from(all.div_ceil(u128::from(tp))).unwrap_or(u64::MAX))
}

/// The room of a server of `model` over `gpus`, one group of tensor parallelism. The GPU with the least memory decides.
///
/// # Errors
/// The server would not start.
pub fn room(model: &Model, load: &ServingLoad, gpus: &[&Gpu]) -> Result<Room, Refused> {
    let tp = gpus.len().max(1) as u64;
    divides(model, tp)?;
    let total = gpus.iter().map(|gpu| gpu.total).min().unwrap_or_default();
    let budget = Bytes((total.0 as f64 * load.utilization) as u64);
    let weights = weights_of_each(model, tp);
    // One server has one set of limits, and the smallest GPU's is what it runs with in any case.
    let limits = gpus.iter().map(|gpu| step_limits(gpu)).min_by_key(|limits| limits.max_num_seqs);
    let limits = limits.unwrap_or(StepLimits { max_num_seqs: 256, max_num_batched_tokens: 2048 });
    let overhead = load.overhead.map_or_else(|| overhead(model, limits, tp), Range::known);
    let kv = overhead.left_of(budget.less(weights));
    let kv_bits = load.kv_bits.unwrap_or(model.activation);
    let mean = load.mean_tokens();
    // Of a mean sequence and not of the model: behind a window a long sequence takes less for each of its tokens.
    let per_token = Bytes((per_sequence(model, kv_bits, tp, mean).0 / mean).max(1));
    let tokens = |kv: Bytes| kv.0 / per_token.0 / BLOCK * BLOCK;
    if tokens(kv.middle()) == 0 {
        return Err(Refused::Weights { weights, budget });
    }
    Ok(Room {
        weights,
        overhead,
        kv,
        per_token,
        tokens: tokens(kv.middle()),
        tokens_least: tokens(kv.least),
        tokens_most: tokens(kv.most),
        sequences: tokens(kv.middle()) / mean,
        // By the least KV cache of the range, since vLLM refuses to start where the longest sequence might not fit.
        longest: longest(model, kv_bits, tp, kv.least, IN_FLIGHT * limits.max_num_batched_tokens) / BLOCK * BLOCK,
        max_num_seqs: limits.max_num_seqs,
    })
}

/// vLLM splits query heads, KV heads (or copies them evenly) and the feed-forward width, and refuses what does not divide.
fn divides(model: &Model, tp: u64) -> Result<(), Refused> {
    let refuse = |key, value| Err(Refused::NotDivisible { key, value, tp });
    if !model.heads.is_multiple_of(tp) {
        return refuse("num_attention_heads", model.heads);
    }
    if let Attention::Heads { kv_heads, .. } = model.attention
        && !kv_heads.is_multiple_of(tp)
        && !tp.is_multiple_of(kv_heads)
    {
        return refuse("num_key_value_heads", kv_heads);
    }
    match model.intermediate {
        Some(width) if !width.is_multiple_of(tp) => refuse("intermediate_size", width),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
