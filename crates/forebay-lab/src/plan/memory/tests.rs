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
        overhead: None,
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

fn h200s(count: usize) -> Vec<Gpu> {
    // 143,771 MiB, of which the driver reserves 616.
    (0..count).map(|index| Gpu::of(index, "NVIDIA H200", Bytes::mib(143_155))).collect()
}

const GIB: f64 = 1_073_741_824.0;

/// vLLM 0.26.0 with a model of these shapes on one H200, at its default of 0.92, said that its KV cache holds 2.11 million tokens.
#[test]
fn the_kv_cache_of_a_real_server_on_an_h200_is_within_a_range_of_three_gib_at_most() {
    let gpus = h200s(1);
    let room = room(&model(), &load(0.92), &[&gpus[0]]).unwrap();
    assert!((room.tokens_least..=room.tokens_most).contains(&2_110_000), "{room:?}");
    assert!((room.tokens as f64 / 2.11e6 - 1.0).abs() < 0.01, "{room:?}");
    for (text, gpu) in [(QWEN_7B, &gpus[0]), (GEMMA3_27B, &gpus[0]), (QWEN_7B, &Gpu::of(0, "T", Bytes::mib(24_207)))] {
        let model = parse(text, &Overrides::default()).unwrap();
        let range = overhead(&model, step_limits(gpu), 1);
        let width = range.most.less(range.least).0 as f64 / GIB;
        assert!(width <= 3.0 && width > 0.3, "{width:.2} GiB for {}", model.layers);
    }
}

/// A server of that kind with `--kv-cache-memory-bytes 16G`, on one GPU and on two, and one of 1,600 blocks (benches/results).
#[test]
fn bytes_a_token_are_those_of_real_servers_on_h200() {
    for (tp, tokens) in [(1, 299_584), (2, 599_184)] {
        let holds = (16 << 30) / per_token(&model(), Bits(16), tp).0 / BLOCK * BLOCK;
        assert_eq!(holds, tokens, "TP {tp}");
    }
}

/// A real vLLM 0.32.0 on the CPU with `--kv-cache-memory-bytes 64M --dtype float32 --block-size 32`: the tokens of
/// `kv_cache_size_tokens` that it reported for the model of `tests/real_vllm`, and for one of another shape (`--hf-overrides`).
#[test]
fn bytes_a_token_are_those_of_a_real_vllm_on_the_cpu() {
    let tiny = r#"{"hidden_size":64,"num_hidden_layers":2,"num_attention_heads":2,"num_key_value_heads":2,"vocab_size":465,
        "intermediate_size":128,"sliding_window":null,"use_sliding_window":false,"model_type":"qwen2"}"#;
    let other = r#"{"hidden_size":128,"num_hidden_layers":5,"num_attention_heads":4,"num_key_value_heads":1,"vocab_size":465,
        "intermediate_size":128,"sliding_window":null,"use_sliding_window":false,"model_type":"qwen2"}"#;
    for (text, reported) in [(tiny, 65_536), (other, 52_416)] {
        let model = parse(text, &Overrides::default()).unwrap();
        assert_eq!((64 << 20) / per_token(&model, Bits(32), 1).0 / 32 * 32, reported, "{text}");
    }
}

/// The profile of the simulator was fitted to a benchmark on such a GPU, without knowledge of its KV cache: 104,000 tokens.
#[test]
fn the_kv_cache_of_an_rtx_4090_is_what_a_benchmarks_figures_lead_to() {
    let room = room_of(&model(), 1, 24_207).unwrap();
    assert!((room.tokens_least..=room.tokens_most).contains(&104_000), "{room:?}");
    assert_eq!((room.at_once(), room.max_num_seqs), (256, 256));
    let told = ServingLoad { overhead: Some(Bytes::mib(1536)), ..load(0.9) };
    let gpus = gpus(1, 24_207);
    let known = super::room(&model(), &told, &[&gpus[0]]).unwrap();
    assert_eq!((known.tokens_least, known.tokens_most), (known.tokens, known.tokens), "a told overhead is no range");
}

#[test]
fn a_gpu_of_which_only_the_memory_is_known_has_the_limits_of_the_kind_that_runs_least() {
    let limits = |gpu: Gpu| (step_limits(&gpu).max_num_seqs, step_limits(&gpu).max_num_batched_tokens);
    assert_eq!(limits(Gpu::unnamed(0, Bytes::mib(81_559))), (256, 2048));
    assert_eq!(limits(Gpu::of(0, "NVIDIA A100-SXM4-80GB", Bytes::mib(81_559))), (256, 2048));
    assert_eq!(limits(Gpu::of(0, "NVIDIA H100 80GB HBM3", Bytes::mib(81_559))), (1024, 8192));
    // No A100 has that much.
    assert_eq!(limits(Gpu::unnamed(0, Bytes::mib(143_155))), (1024, 8192));
    assert_eq!(limits(Gpu::unnamed(0, Bytes::mib(183_359))), (1024, 16_384));
}

const GEMMA3_27B: &str = r#"{"model_type":"gemma3","text_config":{"head_dim":128,"hidden_size":5376,"intermediate_size":21504,
    "model_type":"gemma3_text","num_attention_heads":32,"num_hidden_layers":62,"num_key_value_heads":16,"sliding_window":1024},
    "torch_dtype":"bfloat16","vision_config":{"hidden_size":1152}}"#;

/// Gemma 3 has a window of 1,024 in 52 of its 62 layers. Blocks hold ten layers, so that six kinds of them hold the 52.
#[test]
fn layers_with_a_window_hold_no_more_than_it() {
    let model = parse(GEMMA3_27B, &Overrides::default()).unwrap();
    let each = 2 * 16 * 128 * 2;
    assert_eq!(per_sequence(&model, Bits(16), 1, 1000), Bytes(70 * each * 1000));
    assert_eq!(per_sequence(&model, Bits(16), 1, 8192), Bytes(each * (10 * 8192 + 60 * (1024 + BLOCK))));
    let gpus = h200s(1);
    let room = |input, output| room(&model, &ServingLoad { input, output, ..load(0.9) }, &[&gpus[0]]).unwrap();
    let (short, long) = (room(100, 600), room(16_000, 600));
    assert!(long.tokens > 4 * short.tokens, "{long:?}");
    // An H200 computes up to 8,192 tokens in a step, and two steps are in flight.
    let bytes = held(&model, Bits(16), 1, short.longest, 2 * 8192);
    assert!(bytes <= short.kv.least && bytes.0 as f64 > 0.99 * short.kv.least.0 as f64, "{short:?}");
}

/// A real vLLM 0.32.0 on the CPU, with 64 MiB, 32-bit numbers, blocks of 32 tokens and steps of up to 2,048: what
/// `tests/real_vllm/windows.py` reads of models with a window of 256 in five of six layers, and in five of seven.
#[test]
fn sequences_behind_a_window_take_what_a_real_vllm_on_the_cpu_said() {
    const WINDOW: &str = r#""model_type":"gemma3_text","hidden_size":64,"intermediate_size":128,"num_attention_heads":2,
        "num_key_value_heads":1,"head_dim":32,"vocab_size":465,"sliding_window":256"#;
    let model = |full: &[usize], layers: usize| {
        let kind = |at: usize| if full.contains(&at) { "\"full_attention\"" } else { "\"sliding_attention\"" };
        let kinds: Vec<&str> = (0..layers).map(kind).collect();
        let text = format!("{{{WINDOW},\"num_hidden_layers\":{layers},\"layer_types\":[{}]}}", kinds.join(","));
        parse(&text, &Overrides::default()).unwrap()
    };
    let near = |ours: f64, theirs: f64| (ours / theirs - 1.0).abs();
    // Tokens of `kv_cache_size_tokens` with --max-model-len 8192, and bytes in use at so many tokens of a sequence that decodes.
    for (model, reported, (tokens, used)) in
        [(model(&[5], 6), 108_065.0, (3235, 147 * 8192)), (model(&[2, 6], 7), 70_640.0, (3218, 128 * 16_384))]
    {
        let whole = f64::from(64 << 20) / held(&model, Bits(32), 1, 8192, 2048).0 as f64 * 8192.0;
        assert!(near(whole, reported) < 0.01, "{whole} {reported}");
        let decoding = per_sequence(&model, Bits(32), 1, tokens).0 as f64;
        assert!(near(decoding, f64::from(used)) < 0.03, "{decoding} {used}");
    }
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
