//! The room beside what real servers said of theirs.

use super::*;
use crate::plan::model::{Overrides, parse};

const QWEN_7B: &str = include_str!("../../../../../tests/fixtures/hosts/models/r1-distill-qwen-7b.json");

fn model() -> Model {
    parse(QWEN_7B, &Overrides::default()).unwrap()
}

fn load(utilization: f64) -> ServingLoad {
    ServingLoad {
        utilization,
        overhead: Bytes::mib(1536),
        dtype: None,
        kv_cache_dtype: None,
        kv_bits: None,
        max_model_len: None,
        input: 100,
        output: 600,
        concurrency: 300,
    }
}

fn gpus(count: usize, mib: u64) -> Vec<Gpu> {
    (0..count).map(|index| Gpu::of(index, "NVIDIA T", Bytes::mib(mib))).collect()
}

fn room_of(model: &Model, count: usize, mib: u64) -> Result<Room, Refused> {
    let gpus = gpus(count, mib);
    room(model, &load(0.9), &gpus.iter().collect::<Vec<_>>())
}

/// vLLM 0.26.0 with a model of these shapes on one H200 (143,771 MiB of which the driver reserves 616), at its default of 0.92,
/// said that its KV cache holds 2.11 million tokens.
#[test]
fn a_real_servers_room_is_met_within_one_percent() {
    let gpus = gpus(1, 143_155);
    let tokens = room(&model(), &load(0.92), &[&gpus[0]]).unwrap().tokens as f64;
    assert!((tokens / 2.11e6 - 1.0).abs() < 0.01, "{tokens}");
}

/// The profile of the simulator was fitted to a benchmark on such a GPU, without knowledge of its room: 104,000 tokens.
#[test]
fn the_room_of_an_rtx_4090_is_what_a_benchmarks_figures_lead_to() {
    let room = room_of(&model(), 1, 24_207).unwrap();
    assert!((room.tokens as f64 / 104_000.0 - 1.0).abs() < 0.02, "{}", room.tokens);
    assert_eq!((room.sequences, room.at_once(), room.max_num_seqs), (261, 256, 256));
}

#[test]
fn a_token_takes_two_vectors_for_each_kv_head_and_layer() {
    assert_eq!(per_token(&model(), Bits(16), 1), Bytes(2 * 28 * 4 * 128 * 2));
    assert_eq!(per_token(&model(), Bits(8), 2), Bytes(2 * 28 * 2 * 128));
    // eight GPUs share four KV heads: each holds one
    assert_eq!(per_token(&model(), Bits(16), 8), per_token(&model(), Bits(16), 4));
}

#[test]
fn a_latent_vector_is_on_every_gpu() {
    let model = Model { attention: Attention::Latent { rank: 512, rope: 64 }, layers: 27, ..model() };
    assert_eq!(per_token(&model, Bits(16), 1), Bytes(27 * 576 * 2));
    assert_eq!(per_token(&model, Bits(16), 8), Bytes(27 * 576 * 2));
}

#[test]
fn two_gpus_hold_half_of_the_weights_each_and_more_than_twice_the_tokens() {
    let (one, two) = (room_of(&model(), 1, 24_207).unwrap(), room_of(&model(), 2, 24_207).unwrap());
    assert_eq!(two.weights.0, one.weights.0.div_ceil(2));
    assert!(two.tokens > 4 * one.tokens, "{} and {}", two.tokens, one.tokens);
}

#[test]
fn what_does_not_fit_or_divide_is_refused_with_its_figures() {
    let said = room_of(&model(), 1, 16_000).unwrap_err().to_string();
    assert_eq!(said, "does not fit: 14.2 GiB of weights on each GPU, where a server may take 14.1 GiB in all");
    let said = room_of(&model(), 8, 24_207).unwrap_err().to_string();
    assert_eq!(said, "vLLM will not start: a TP size of 8 does not divide num_attention_heads, which is 28");
    let heads = Model { heads: 24, attention: Attention::Heads { kv_heads: 3, head_dim: 64 }, ..model() };
    assert!(room_of(&heads, 2, 24_207).unwrap_err().to_string().contains("num_key_value_heads, which is 3"));
    let narrow = Model { heads: 28, intermediate: Some(18_946), ..model() };
    assert!(room_of(&narrow, 4, 24_207).unwrap_err().to_string().contains("intermediate_size, which is 18946"));
}

#[test]
fn sizes_are_told_in_binary_units() {
    let shown = [512, 7168, 57_344 << 10, 3 << 30].map(|bytes| Bytes(bytes).to_string());
    assert_eq!(shown, ["512 B", "7 KiB", "56 MiB", "3.0 GiB"]);
}
