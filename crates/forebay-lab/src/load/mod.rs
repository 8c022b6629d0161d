//! The load generator: requests made from a seed, sent and timed one by one. [`run`] is one whole run, from its description to
//! its rows. Nothing between a socket and the clock does more than read events.

pub mod answer;
pub mod client;
pub mod counting;
pub mod dataset;
mod exchange;
mod lag;
pub mod prompts;
pub mod run;
pub mod sampler;
mod sender;
pub mod workload;
