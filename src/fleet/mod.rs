//! The fleet: which backends there are and how each one does.

pub mod sample;
pub mod vllm_metrics;
