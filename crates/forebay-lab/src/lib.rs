//! The load generator: requests made from a seed, sent and timed one by one, and the figures of a run as `vllm bench serve`
//! defines them. Every figure is made from [`record::Record`]s, so that live, simulated and recorded runs compare alike.

#![forbid(unsafe_code)]

pub mod client;
pub mod compare;
pub mod counting;
pub mod dataset;
pub mod diagnosis;
mod exchange;
pub mod experiment;
mod lag;
pub mod plan;
pub mod prompts;
pub mod record;
pub mod results;
pub mod rows;
pub mod run;
pub mod sampler;
pub mod seed;
mod sender;
pub mod slo;
pub mod sse;
pub mod stats;
pub mod summary;
pub mod table;
pub mod workload;
