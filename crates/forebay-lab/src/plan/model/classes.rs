//! What a model's class says where its config.json is silent. Pure. The values are the defaults of the configuration classes of
//! Hugging Face's transformers 5.19.

/// Families whose language models use the embedding as the head too unless their config says otherwise.
const TIED: [&str; 22] = [
    "bloom",
    "cohere",
    "cohere2",
    "cohere2_moe",
    "cohere2_vision",
    "ernie4_5",
    "falcon",
    "gemma",
    "gemma2",
    "gemma3",
    "gemma3n",
    "gemma4",
    "gpt2",
    "gpt_bigcode",
    "gpt_neo",
    "lfm2",
    "lfm2_moe",
    "minicpm3",
    "mpt",
    "opt",
    "smollm3",
    "starcoder2",
];

const GEMMA2: [(&str, u64); 9] = [
    ("vocab_size", 256_000),
    ("hidden_size", 2304),
    ("intermediate_size", 9216),
    ("num_hidden_layers", 26),
    ("num_attention_heads", 8),
    ("num_key_value_heads", 4),
    ("head_dim", 256),
    ("sliding_window", 4096),
    ("sliding_window_pattern", 2),
];
const GEMMA3: [(&str, u64); 10] = [
    ("vocab_size", 262_208),
    ("hidden_size", 2304),
    ("intermediate_size", 9216),
    ("num_hidden_layers", 26),
    ("num_attention_heads", 8),
    ("num_key_value_heads", 4),
    ("head_dim", 256),
    ("sliding_window", 4096),
    ("sliding_window_pattern", 6),
    ("max_position_embeddings", 131_072),
];

/// The family of a `model_type`: `gemma3_text` is one of `gemma3`.
fn family(class: &str) -> &str {
    class.strip_suffix("_text").unwrap_or(class)
}

/// Returns the value that a class gives a key that its config leaves out.
pub(super) fn default(class: &str, key: &str) -> Option<u64> {
    let defaults: &[(&str, u64)] = match family(class) {
        "gemma2" => &GEMMA2,
        "gemma3" => &GEMMA3,
        _ => return None,
    };
    defaults.iter().find(|(name, _)| *name == key).map(|(_, value)| *value)
}

/// Returns whether a class uses the embedding as the head too where its config does not say.
pub(super) fn ties(class: &str) -> bool {
    TIED.contains(&family(class))
}
