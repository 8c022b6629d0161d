//! A backend's `/metrics`: a figure is within its bounds or absent, and never made up.

#![no_main]

use forebay_core::vllm_metrics;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    let Ok(sample) = vllm_metrics::parse(&text) else { return };
    let counts = [
        ("num_requests_running", sample.running),
        ("num_requests_waiting", sample.waiting),
        ("prefix_cache_queries_total", sample.prefix_queries),
        ("prefix_cache_hits_total", sample.prefix_hits),
        ("num_preemptions_total", sample.preemptions),
        ("generation_tokens_total", sample.generation_tokens),
        ("iteration_tokens_total_count", sample.steps),
    ];
    for (name, value) in counts {
        // The reader of one figure and the reader of all of them are two loops over the text.
        assert_eq!(vllm_metrics::figure(&text, name), value, "{name}");
        if let Some(value) = value {
            assert!(value.is_finite() && value >= 0.0, "{name} {value}");
            assert!(text.contains(name), "{name} was not in the text");
        }
    }
    assert!(sample.kv_usage.is_none_or(|share| (0.0..=1.0).contains(&share)), "{:?}", sample.kv_usage);
    assert!(sample.kv_capacity_tokens.is_none_or(|tokens| (1..1_000_000_000_000_000_000).contains(&tokens)));
    assert!(sample.kv_block_tokens.is_none_or(|tokens| (1..=65_536).contains(&tokens)));
});
