//! Published configs beside the published sizes of their weights.

use super::*;

fn read(text: &str) -> Model {
    parse(text, &Overrides::default()).unwrap()
}

fn gigabytes(model: &Model) -> f64 {
    model.weights.0 as f64 / 1e9
}

const QWEN_7B: &str = include_str!("../../../../../tests/fixtures/hosts/models/r1-distill-qwen-7b.json");
const MIXTRAL: &str = r#"{"model_type":"mixtral","hidden_size":4096,"intermediate_size":14336,"num_hidden_layers":32,
    "num_attention_heads":32,"num_key_value_heads":8,"num_local_experts":8,"vocab_size":32000,"torch_dtype":"bfloat16",
    "tie_word_embeddings":false,"sliding_window":null,"max_position_embeddings":32768}"#;
const DEEPSEEK_V2_LITE: &str = r#"{"model_type":"deepseek_v2","hidden_size":2048,"intermediate_size":10944,
    "moe_intermediate_size":1408,"num_hidden_layers":27,"num_attention_heads":16,"num_key_value_heads":16,
    "n_routed_experts":64,"n_shared_experts":2,"first_k_dense_replace":1,"kv_lora_rank":512,"q_lora_rank":null,
    "qk_nope_head_dim":128,"qk_rope_head_dim":64,"v_head_dim":128,"vocab_size":102400,"torch_dtype":"bfloat16"}"#;

/// By the `total_size` of the index of each model's safetensors files on the Hugging Face hub, or parameters times two.
#[test]
fn estimates_are_within_one_percent_of_the_published_sizes() {
    for (text, published) in [(QWEN_7B, 15.231), (MIXTRAL, 93.405), (DEEPSEEK_V2_LITE, 31.413)] {
        let estimated = gigabytes(&read(text));
        assert!((estimated / published - 1.0).abs() < 0.01, "{estimated} for {published}");
    }
}

/// Gemma 3's published configs name little more than what departs from their class. Sizes by the parameters that its cards give,
/// without the vision part: 27.0 and 3.88 thousand million.
#[test]
fn a_config_that_leaves_most_to_its_class_is_read() {
    let text = |inner: &str| {
        format!(r#"{{"model_type":"gemma3","text_config":{{{inner}}},"torch_dtype":"bfloat16","vision_config":{{}}}}"#)
    };
    let large = text(
        r#""hidden_size":5376,"intermediate_size":21504,"model_type":"gemma3_text","num_attention_heads":32,
        "num_hidden_layers":62,"num_key_value_heads":16,"head_dim":128,"sliding_window":1024"#,
    );
    let small = text(
        r#""hidden_size":2560,"intermediate_size":10240,"model_type":"gemma3_text","num_hidden_layers":34,"sliding_window":1024"#,
    );
    for (text, published, sliding) in [(large, 54.0, 52), (small, 7.76, 29)] {
        let model = read(&text);
        assert!((gigabytes(&model) / published - 1.0).abs() < 0.02, "{} for {published}", gigabytes(&model));
        assert_eq!(model.sliding, Some(Sliding { layers: sliding, window: 1024 }));
        assert_eq!((model.vocabulary, model.longest), (Some(262_208), Some(131_072)));
        assert_eq!(model.not_modelled, [NotModelled::OtherModalities]);
    }
}

#[test]
fn an_embedding_is_the_head_too_where_the_class_has_it_so_and_the_config_says_nothing() {
    let of = |class: &str, said: &str| {
        let config = format!(
            r#"{{"model_type":"{class}","hidden_size":64,"num_hidden_layers":2,"num_attention_heads":2,"vocab_size":100000{said}}}"#
        );
        read(&config).weights.0
    };
    for class in ["gemma", "gemma2", "gemma3_text", "cohere", "falcon", "opt", "starcoder2", "gpt2"] {
        assert_eq!(of(class, ""), of(class, r#","tie_word_embeddings":true"#), "{class}");
        assert!(of(class, r#","tie_word_embeddings":false"#) > of(class, ""), "{class}");
    }
    for class in ["llama", "qwen2", "qwen3", "mistral", "phi3", "deepseek_v3"] {
        assert_eq!(of(class, ""), of(class, r#","tie_word_embeddings":false"#), "{class}");
    }
}

#[test]
fn windows_are_read_from_every_way_to_write_them() {
    let of = |class: &str, more: &str| {
        let config = format!(
            r#"{{"model_type":"{class}","hidden_size":64,"num_hidden_layers":12,"num_attention_heads":2,"vocab_size":100{more}}}"#
        );
        let model = read(&config);
        (model.sliding.map(|sliding| (sliding.layers, sliding.window)), model.not_modelled.is_empty())
    };
    let types = r#","layer_types":["sliding_attention","full_attention","sliding_attention","full_attention"]"#;
    assert_eq!(of("gpt_oss", &format!("{types},\"sliding_window\":128")), (Some((2, 128)), true));
    assert_eq!(of("gpt_oss", types), (None, false), "a window of unknown length");
    assert_eq!(of("mistral", r#","sliding_window":4096"#), (Some((12, 4096)), true));
    assert_eq!(of("mistral", r#","sliding_window":null"#), (None, true));
    assert_eq!(of("qwen2", r#","sliding_window":4096"#), (None, true), "its class does not use it");
    let used = r#","sliding_window":4096,"use_sliding_window":true,"max_window_layers":8"#;
    assert_eq!(of("qwen2", used), (Some((4, 4096)), true));
    assert_eq!(of("gemma2", r#","head_dim":32"#), (Some((6, 4096)), true));
}

#[test]
fn four_bit_weights_leave_embedding_and_head_alone() {
    let awq = r#""quantization_config":{"bits":4,"group_size":128,"quant_method":"awq"},"vocab_size""#;
    let model = read(&QWEN_7B.replace("\"vocab_size\"", awq));
    // Qwen2.5-7B-Instruct-AWQ: 5.57 GB
    assert!((gigabytes(&model) - 5.57).abs() < 0.06, "{}", gigabytes(&model));
    assert_eq!((model.format.as_str(), model.activation), ("awq, 4 bit", Bits(16)));
}

#[test]
fn files_tell_the_truth_and_are_cast_to_what_is_served() {
    let files = |dtype: &str, bytes| {
        let text = QWEN_7B.replace("bfloat16", dtype);
        parse(&text, &Overrides { files: Some(Bytes(bytes)), dtype: None }).unwrap()
    };
    assert_eq!(files("bfloat16", 1000).weights, Bytes(1000));
    assert_eq!((files("float32", 1000).weights, files("float32", 1000).activation), (Bytes(500), Bits(16)));
    assert_eq!(files("float32", 1000).weights_from, WeightsFrom::Files);
}

#[test]
fn attention_is_grouped_latent_or_neither() {
    assert_eq!(read(QWEN_7B).attention, Attention::Heads { kv_heads: 4, head_dim: 128 });
    assert_eq!(read(DEEPSEEK_V2_LITE).attention, Attention::Latent { rank: 512, rope: 64 });
    let plain = r#"{"n_embd":768,"n_layer":12,"n_head":12,"n_positions":1024,"vocab_size":50257}"#;
    assert_eq!(read(plain).attention, Attention::Heads { kv_heads: 12, head_dim: 64 });
    assert_eq!(read(plain).longest, Some(1024));
}

#[test]
fn the_language_part_of_a_larger_model_is_read_and_the_rest_named() {
    let text = format!(r#"{{"vision_config":{{}},"text_config":{QWEN_7B}}}"#);
    assert_eq!((read(&text).layers, read(&text).not_modelled), (28, vec![NotModelled::OtherModalities]));
}

#[test]
fn what_is_not_reckoned_with_is_named() {
    assert_eq!(read(QWEN_7B).not_modelled, [], "its sliding window is switched off");
    let on = QWEN_7B.replace("\"use_sliding_window\": false", "\"use_sliding_window\": true");
    // Qwen2's windows begin at layer 28, and this model has 28.
    assert_eq!((read(&on).not_modelled, read(&on).sliding), (vec![], None));
    let untold = QWEN_7B.replace("\"vocab_size\"", "\"layer_types\":[\"chunked_attention\"],\"vocab_size\"");
    assert_eq!(read(&untold).not_modelled, [NotModelled::SlidingWindow]);
    let hybrid =
        QWEN_7B.replace("\"vocab_size\"", "\"layer_types\":[\"linear_attention\",\"full_attention\"],\"vocab_size\"");
    assert_eq!(read(&hybrid).not_modelled, [NotModelled::StateLayers]);
}

#[test]
fn a_key_that_is_missing_or_wrong_is_named_with_what_is_there() {
    let fault = |text: &str| parse(text, &Overrides::default()).unwrap_err();
    assert_eq!(fault("{\n  \"a\": }").line, Some(2));
    let said = fault(r#"{"num_hidden_layers":-3}"#).fault.to_string();
    assert_eq!(said, "num_hidden_layers is -3, not a whole number from 1 to 16777215");
    assert!(fault("[]").fault.to_string().starts_with("num_hidden_layers is missing"));
}
