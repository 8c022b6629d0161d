//! What a vLLM server holds on each GPU beside weights and KV cache, as a range: only its start tells it. Pure.
//!
//! When vLLM starts it makes one step of the most tokens and samples for the most sequences, and counts the peak (0.32.0,
//! `v1/worker/gpu_model_runner.py`, `profile_run` and `_dummy_sampler_run`). The peak is the larger of two: the activations of a layer, and
//! the logits with what sampling copies of them. To it come the CUDA graphs, which vLLM takes from the KV cache since 0.21, and
//! what libraries hold.

use serde::Serialize;

use super::bytes::Bytes;
use super::host::gpu::Gpu;
use super::model::Model;

/// Bytes that sampling holds for each sequence and token of the vocabulary: logits of 2 and of 4 bytes, and up to two copies.
const SAMPLING: (f64, f64) = (8.0, 14.0);
/// Activations of a layer for each token: so many of the hidden size, and so many of the feed-forward width.
const HIDDEN: (f64, f64) = (2.0, 3.0);
const WIDTH: (f64, f64) = (2.0, 2.5);
/// CUDA graphs: bytes for each layer and batch size that is captured, and the sizes (1, 2, 4, 8 to 512 by eights and sixteens).
const GRAPH: (f64, f64) = (0.05 * MIB, 0.35 * MIB);
const GRAPHS: f64 = 51.0;
/// Libraries (cuBLAS, attention kernels), and what a group holds for its all-reduces.
const LIBRARIES: (f64, f64) = (100.0 * MIB, 550.0 * MIB);
const GROUP: (f64, f64) = (50.0 * MIB, 900.0 * MIB);
const MIB: f64 = 1_048_576.0;

/// The least and the most of a size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Range {
    /// The least.
    pub least: Bytes,
    /// The most.
    pub most: Bytes,
}

impl Range {
    /// A size that is known.
    #[must_use]
    pub const fn known(size: Bytes) -> Range {
        Range { least: size, most: size }
    }

    /// The size half way.
    #[must_use]
    pub const fn middle(self) -> Bytes {
        Bytes(self.least.0 / 2 + self.most.0 / 2 + (self.least.0 % 2 + self.most.0 % 2) / 2)
    }

    /// Returns what is left of `whole`: most where this is least.
    #[must_use]
    pub const fn left_of(self, whole: Bytes) -> Range {
        Range { least: whole.less(self.most), most: whole.less(self.least) }
    }
}

/// The limits of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct StepLimits {
    /// `--max-num-seqs`.
    pub max_num_seqs: u64,
    /// `--max-num-batched-tokens`.
    pub max_num_batched_tokens: u64,
}

/// vLLM's defaults by the GPU (`engine/arg_utils.py`, `get_batch_defaults`, 0.32.0). It asks for the name: an A100 has the smaller ones
/// in spite of its memory. A GPU of which only the memory is known may be one, and gets the smaller ones too.
#[must_use]
pub fn step_limits(gpu: &Gpu) -> StepLimits {
    const GIB: u64 = 1 << 30;
    let maybe_a100 = gpu.name.to_ascii_lowercase().contains("a100") || (!gpu.is_named() && gpu.total.0 < 90 * GIB);
    let (max_num_seqs, max_num_batched_tokens) = match gpu.total.0 {
        total if total >= 160 * GIB => (1024, 16_384),
        total if total >= 70 * GIB && !maybe_a100 => (1024, 8192),
        _ => (256, 2048),
    };
    StepLimits { max_num_seqs, max_num_batched_tokens }
}

/// The overhead on each GPU of a server of `model` over `tp` GPUs with these limits.
#[must_use]
pub fn overhead(model: &Model, limits: StepLimits, tp: u64) -> Range {
    let bytes = f64::from(model.activation.0) / 8.0;
    let tokens = limits.max_num_batched_tokens as f64;
    let hidden = model.hidden as f64;
    // Feed-forward layers are split over the group, and the logits are gathered whole.
    let width = model.intermediate.unwrap_or(4 * model.hidden) as f64 / tp as f64;
    let logits = limits.max_num_seqs as f64 * model.vocabulary.unwrap_or(128_000) as f64;
    let sum = |hidden_parts: f64, width_parts: f64, sampling: f64, graph: f64, libraries: f64, group: f64| {
        let activations = tokens * bytes * (hidden_parts * hidden + width_parts * width);
        let sampled = logits * sampling + tokens * bytes * hidden;
        let group = if tp > 1 { group } else { 0.0 };
        let graphs = graph * GRAPHS * model.layers as f64;
        Bytes((activations.max(sampled) + graphs + libraries + group) as u64)
    };
    Range {
        least: sum(HIDDEN.0, WIDTH.0, SAMPLING.0, GRAPH.0, LIBRARIES.0, GROUP.0),
        most: sum(HIDDEN.1, WIDTH.1, SAMPLING.1, GRAPH.1, LIBRARIES.1, GROUP.1),
    }
}
