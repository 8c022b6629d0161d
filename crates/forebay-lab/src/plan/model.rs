//! What a model's `config.json` says of its size: parameters, layers, heads, what a token of context takes. Pure. The keys are
//! those of Hugging Face's configurations, read in the order in which vLLM reads them (its
//! `transformers_utils/model_arch_config_convertor.py`); what is estimated is named as estimated.

mod classes;
mod windows;

use serde::Serialize;
use serde_json::Value;

use super::bytes::Bytes;
use super::mistake::{Fault, Mistake};
pub use windows::Sliding;
use windows::{Windows, windows};

/// Bits of a number: of a weight, or of an element of the KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Bits(pub u32);

/// The attention of a layer, as the KV cache sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Attention {
    /// Keys and values by head; grouped-query attention where there are fewer of them than query heads.
    Heads {
        /// `num_key_value_heads`.
        kv_heads: u64,
        /// `head_dim`, or `hidden_size` / `num_attention_heads`.
        head_dim: u64,
    },
    /// Multi-head latent attention (DeepSeek): one latent vector for all heads, the same on every GPU of a group.
    Latent {
        /// `kv_lora_rank`.
        rank: u64,
        /// `qk_rope_head_dim`.
        rope: u64,
    },
}

/// A part of a config that this plan does not reckon with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum NotModelled {
    /// Sliding windows of layers that the config does not tell, which need less KV cache than is estimated.
    SlidingWindow,
    /// Layers with a state instead of a KV cache (Mamba, linear attention), which need less.
    StateLayers,
    /// A part for images or sound, whose weights are not in the estimate.
    OtherModalities,
}

/// The source of the bytes of the weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum WeightsFrom {
    /// The safetensors files, or their index.
    Files,
    /// The shapes in config.json.
    Estimate,
}

/// A model, as far as its memory goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Model {
    /// `_name_or_path`, if the config has one.
    pub named: Option<String>,
    /// `num_hidden_layers`.
    pub layers: u64,
    /// `hidden_size`.
    pub hidden: u64,
    /// `num_attention_heads`: a TP size must divide it.
    pub heads: u64,
    /// The numbers that the KV cache holds of a layer.
    pub attention: Attention,
    /// `vocab_size`.
    pub vocabulary: Option<u64>,
    /// Layers that hold no more of a sequence than a window.
    pub sliding: Option<Sliding>,
    /// `intermediate_size`, of the dense layers.
    pub intermediate: Option<u64>,
    /// All weights.
    pub weights: Bytes,
    /// The source of that figure.
    pub weights_from: WeightsFrom,
    /// The weights' format, such as `bfloat16` or `awq, 4 bit`.
    pub format: String,
    /// Bits of an activation, and of the KV cache unless that is told otherwise.
    pub activation: Bits,
    /// The longest context that the model was made for.
    pub longest: Option<u64>,
    /// The parts that are left out.
    pub not_modelled: Vec<NotModelled>,
}

/// The values that override a config.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// `--dtype`, unless it is `auto`.
    pub dtype: Option<Bits>,
    /// The bytes of the safetensors files, if they were found.
    pub files: Option<Bytes>,
}

/// No key of a real config is past this, and no product of five of them past 128 bits.
const MOST: u64 = 1 << 24;

/// A config, its language part, and what is read from them.
struct Keys<'a> {
    whole: &'a Value,
    text: &'a Value,
}

impl<'a> Keys<'a> {
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.text.get(key).or_else(|| self.whole.get(key)).filter(|value| !value.is_null())
    }

    /// The class of the language part, whose defaults stand for what a config leaves out.
    fn class(&self) -> &'a str {
        let class = self.text.get("model_type").or_else(|| self.whole.get("model_type"));
        class.and_then(Value::as_str).unwrap_or_default()
    }

    fn number(&self, key: &str) -> Option<u64> {
        match self.get(key) {
            Some(value) => value.as_u64().filter(|number| (1..MOST).contains(number)),
            None => classes::default(self.class(), key),
        }
    }

    /// `sliding_window`: null says that there is none.
    fn window(&self) -> Option<u64> {
        match self.text.get("sliding_window") {
            Some(Value::Null) => None,
            _ => self.number("sliding_window"),
        }
    }

    fn first(&self, keys: &[&str]) -> Option<u64> {
        keys.iter().find_map(|key| self.number(key))
    }

    fn need(&self, key: &'static str, others: &[&str]) -> Result<u64, Mistake> {
        let found = || self.get(key).map_or_else(|| "missing".to_owned(), Value::to_string);
        let wanted = "a whole number from 1 to 16777215";
        self.number(key)
            .or_else(|| self.first(others))
            .ok_or_else(|| Fault::BadKey { key, found: found(), wanted }.whole())
    }

    fn text(&self, key: &str) -> Option<&'a str> {
        self.get(key)?.as_str()
    }
}

/// Reads a `config.json`.
///
/// # Errors
/// It is not JSON, or a key is missing or out of range without which nothing can be reckoned.
pub fn parse(text: &str, overrides: &Overrides) -> Result<Model, Mistake> {
    let whole: Value =
        serde_json::from_str(text).map_err(|error| Fault::BadJson(error.to_string()).at(error.line()))?;
    let text = ["text_config", "llm_config", "language_config"].iter().find_map(|key| whole.get(key));
    let keys = Keys { whole: &whole, text: text.filter(|value| value.is_object()).unwrap_or(&whole) };
    let layers = keys.need("num_hidden_layers", &["n_layer", "num_layers"])?;
    let hidden = keys.need("hidden_size", &["n_embd", "d_model"])?;
    let heads = keys.need("num_attention_heads", &["n_head"])?;
    let attention = attention(&keys, hidden, heads);
    let activation = overrides.dtype.unwrap_or_else(|| activation(&keys));
    let quantised = Quantised::of(&keys);
    let shape = Shape { layers, hidden, heads, attention };
    let windows = windows(&keys, layers);
    let (weights, weights_from) = match overrides.files {
        Some(bytes) => (as_served(bytes, &keys, activation, quantised.as_ref()), WeightsFrom::Files),
        None => (estimate(&keys, &shape, activation, quantised.as_ref())?, WeightsFrom::Estimate),
    };
    let format = match &quantised {
        Some(quantised) => format!("{}, {} bit", quantised.method, quantised.bits.0),
        None => format!("{} bit", activation.0),
    };
    Ok(Model {
        named: keys.text("_name_or_path").filter(|name| !name.trim().is_empty()).map(str::to_owned),
        layers,
        hidden,
        heads,
        attention,
        vocabulary: keys.number("vocab_size"),
        sliding: if let Windows::Known(sliding) = windows { Some(sliding) } else { None },
        intermediate: keys.first(&["intermediate_size", "n_inner"]),
        weights,
        weights_from,
        format,
        activation,
        longest: keys.first(&["max_position_embeddings", "n_positions", "max_seq_len", "seq_length"]),
        not_modelled: not_modelled(&keys, &windows),
    })
}

fn attention(keys: &Keys<'_>, hidden: u64, heads: u64) -> Attention {
    if let (Some(rank), Some(rope)) = (keys.number("kv_lora_rank"), keys.number("qk_rope_head_dim")) {
        return Attention::Latent { rank, rope };
    }
    let kv_heads = keys.first(&[
        "n_head_kv",
        "num_kv_heads",
        "num_key_value_heads",
        "multi_query_group_num",
        "num_attention_groups",
    ]);
    let head_dim = keys.first(&["head_dim", "hidden_size_per_head"]).unwrap_or((hidden / heads).max(1));
    Attention::Heads { kv_heads: kv_heads.unwrap_or(heads), head_dim }
}

/// Bits of an activation under `--dtype auto`: the config's own; vLLM serves 32-bit checkpoints in 16 bit.
fn activation(keys: &Keys<'_>) -> Bits {
    let named = keys.text("torch_dtype").or_else(|| keys.text("dtype"));
    match named.and_then(bits_of) {
        Some(Bits(bits)) if bits < 16 => Bits(bits),
        _ => Bits(16),
    }
}

/// Returns what files take once they are loaded: a checkpoint that is not quantised is cast to the dtype that it is served in.
fn as_served(files: Bytes, keys: &Keys<'_>, activation: Bits, quantised: Option<&Quantised>) -> Bytes {
    let stored = keys.text("torch_dtype").or_else(|| keys.text("dtype")).and_then(bits_of);
    match stored {
        Some(stored) if quantised.is_none() => {
            let bytes = u128::from(files.0) * u128::from(activation.0) / u128::from(stored.0);
            Bytes(u64::try_from(bytes).unwrap_or(u64::MAX))
        }
        _ => files,
    }
}

/// The bits of a dtype by its name; `None` for `auto` and unknown names.
#[must_use]
pub fn bits_of(name: &str) -> Option<Bits> {
    Some(Bits(match name {
        "float32" | "float" => 32,
        "bfloat16" | "float16" | "half" => 16,
        "fp8" | "fp8_e4m3" | "fp8_e5m2" | "float8_e4m3fn" | "float8_e5m2" => 8,
        _ => return None,
    }))
}

fn not_modelled(keys: &Keys<'_>, windows: &Windows) -> Vec<NotModelled> {
    let mut found = Vec::new();
    let types = keys.get("layer_types").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let has = |wanted: &[&str]| types.iter().filter_map(Value::as_str).any(|kind| wanted.contains(&kind));
    if matches!(windows, Windows::Unknown) {
        found.push(NotModelled::SlidingWindow);
    }
    let states =
        ["mamba_d_state", "ssm_state_size", "linear_num_value_heads", "layers_block_type", "hybrid_override_pattern"];
    if has(&["linear_attention", "mamba"]) || states.iter().any(|key| keys.get(key).is_some()) {
        found.push(NotModelled::StateLayers);
    }
    if ["vision_config", "audio_config"].iter().any(|key| keys.whole.get(key).is_some()) {
        found.push(NotModelled::OtherModalities);
    }
    found
}

/// The packing of quantised weights.
struct Quantised {
    method: String,
    bits: Bits,
    /// Weights that share a scale, where the config says so.
    group: Option<u64>,
}

impl Quantised {
    fn of(keys: &Keys<'_>) -> Option<Quantised> {
        let config = keys.get("quantization_config").or_else(|| keys.get("compression_config"))?;
        let method = config.get("quant_method").and_then(Value::as_str).unwrap_or("quantised").to_ascii_lowercase();
        // compressed-tensors keeps them by groups of layers
        let weights = config.get("config_groups").and_then(Value::as_object).and_then(|groups| groups.values().next());
        let weights = weights.and_then(|group| group.get("weights"));
        let named = |key: &str| {
            let here = config.get(key).or_else(|| weights?.get(if key == "bits" { "num_bits" } else { key }))?;
            here.as_u64().filter(|number| (1..=4096).contains(number))
        };
        let known = match method.as_str() {
            "gptq" | "awq" | "mxfp4" | "modelopt_fp4" | "nvfp4" => 4,
            "fp8" | "modelopt" | "fbgemm_fp8" | "compressed-tensors" | "bitsandbytes" => 8,
            _ => 16,
        };
        let four = config.get("load_in_4bit").and_then(Value::as_bool) == Some(true);
        let bits = named("bits").or_else(|| named("w_bit")).or(four.then_some(4)).unwrap_or(known);
        Some(Quantised { method, bits: Bits(bits.min(32) as u32), group: named("group_size") })
    }
}

/// The sizes that most of the estimate follows from.
struct Shape {
    layers: u64,
    hidden: u64,
    heads: u64,
    attention: Attention,
}

/// The bytes of the weights from the shapes: the matrices of attention and of the feed-forward part of each layer, which
/// quantisation packs, and the embedding and the head, which it leaves alone. Norms and biases (below 0.1 %) are left out.
fn estimate(keys: &Keys<'_>, shape: &Shape, activation: Bits, quantised: Option<&Quantised>) -> Result<Bytes, Mistake> {
    let vocabulary = u128::from(keys.need("vocab_size", &[])?);
    let intermediate = keys.first(&["intermediate_size", "n_inner"]).unwrap_or(4 * shape.hidden);
    let tied = keys.get("tie_word_embeddings").and_then(Value::as_bool).unwrap_or_else(|| classes::ties(keys.class()));
    let embeddings = vocabulary * u128::from(shape.hidden) * if tied { 1 } else { 2 };
    let layers = u128::from(shape.layers);
    let packed = layers * attention_weights(keys, shape) + feed_forward_weights(keys, shape, intermediate);
    let scale = quantised.and_then(|quantised| quantised.group).map_or(0.0, |group| 20.0 / group as f64);
    let bits = quantised.map_or(f64::from(activation.0), |quantised| f64::from(quantised.bits.0) + scale);
    let bytes = packed as f64 * bits / 8.0 + embeddings as f64 * f64::from(activation.0) / 8.0;
    Ok(Bytes(bytes as u64))
}

/// Weights of the attention of one layer: the projections of query, key, value and output, or MLA's low-rank pairs.
fn attention_weights(keys: &Keys<'_>, shape: &Shape) -> u128 {
    let (hidden, heads) = (u128::from(shape.hidden), u128::from(shape.heads));
    match shape.attention {
        Attention::Heads { kv_heads, head_dim } => 2 * hidden * u128::from(head_dim) * (heads + u128::from(kv_heads)),
        Attention::Latent { rank, rope } => {
            let size = |key| u128::from(keys.number(key).unwrap_or(128));
            let (nope, value, rank, rope) =
                (size("qk_nope_head_dim"), size("v_head_dim"), u128::from(rank), u128::from(rope));
            let query = match keys.number("q_lora_rank") {
                Some(low) => u128::from(low) * (hidden + heads * (nope + rope)),
                None => hidden * heads * (nope + rope),
            };
            query + hidden * (rank + rope) + rank * heads * (nope + value) + heads * value * hidden
        }
    }
}

/// Weights of the feed-forward part of all layers: three matrices (gate, up, down), as in every model family of these
/// years, in the dense layers; experts, shared experts and the router in the others.
fn feed_forward_weights(keys: &Keys<'_>, shape: &Shape, intermediate: u64) -> u128 {
    let hidden = u128::from(shape.hidden);
    let block = |width: u64| 3 * hidden * u128::from(width);
    let Some(experts) = keys.first(&["num_experts", "moe_num_experts", "n_routed_experts", "num_local_experts"]) else {
        return u128::from(shape.layers) * block(intermediate);
    };
    let width = keys.number("moe_intermediate_size").unwrap_or(intermediate);
    let shared =
        keys.number("shared_expert_intermediate_size").or_else(|| Some(keys.number("n_shared_experts")? * width));
    let sparse = u128::from(experts) * (block(width) + hidden) + shared.map_or(0, block);
    let dense = keys.number("first_k_dense_replace").unwrap_or(0).min(shape.layers);
    u128::from(dense) * block(intermediate) + u128::from(shape.layers - dense) * sparse
}

#[cfg(test)]
mod tests;
