//! Layers that look back over a window alone, and so hold no more than it of a sequence. Pure.

use serde::Serialize;
use serde_json::Value;

use super::Keys;

/// Layers with a sliding window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Sliding {
    /// Layers that have one.
    pub layers: u64,
    /// Tokens of the window.
    pub window: u64,
}

/// The windows of a model, as far as its config tells.
pub(super) enum Windows {
    None,
    Known(Sliding),
    /// Some layers have one, and which it does not say.
    Unknown,
}

/// Reads `layer_types`, or the pattern that older configs have in its place.
pub(super) fn windows(keys: &Keys<'_>, layers: u64) -> Windows {
    let types = keys.get("layer_types").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let of = |kind: &str| types.iter().filter(|one| one.as_str() == Some(kind)).count() as u64;
    let (sliding, chunked) = (of("sliding_attention"), of("chunked_attention"));
    // Qwen2's class alone has a window that is not used unless the config says so.
    let by_class = !keys.class().starts_with("qwen");
    let used = keys.get("use_sliding_window").and_then(Value::as_bool).unwrap_or(by_class);
    let (counted, window) = match (sliding, chunked) {
        (0, 0) if !types.is_empty() || !used => return Windows::None,
        (0, 0) => match (keys.window(), keys.number("sliding_window_pattern")) {
            (None, _) => return Windows::None,
            // Each so many-th layer has none.
            (window, Some(pattern)) if pattern > 1 => (layers - layers / pattern, window),
            // Qwen2's kind: those past this number have one.
            (window, _) => (layers.saturating_sub(keys.number("max_window_layers").unwrap_or(0)), window),
        },
        (0, chunked) => (chunked, keys.number("attention_chunk_size")),
        (sliding, _) => (sliding, keys.window()),
    };
    match window {
        _ if counted == 0 => Windows::None,
        Some(window) => Windows::Known(Sliding { layers: counted.min(layers), window }),
        None => Windows::Unknown,
    }
}
