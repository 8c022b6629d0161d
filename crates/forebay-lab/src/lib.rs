//! The laboratory: sends loads to servers, times the answers, and says what the figures show. Every figure is made from
//! [`rows::record::Record`]s, so that live, simulated and recorded runs compare alike.
//!
//! | folder | what it is for |
//! |---|---|
//! | [`load`] | the load generator: datasets, prompts, the client that times each answer, one run |
//! | [`rows`] | what a run leaves: its row file, the figures of `vllm bench serve` made from it, the results as a table and JSON |
//! | [`compare`] | the comparison of arms: intervals, verdicts, checks, and the reports that show them |
//! | [`diagnosis`] | what bound an arm under a load |
//! | [`experiment`] | `experiment.toml`: starts servers, measures arms in turn, keeps a journal |
//! | [`plan`] | what a host with several GPUs can do for one model |
//! | [`stats`] | the statistics behind the figures, as functions of numbers |
//!
//! Imports point down: `experiment` and `compare`, then `load` and `diagnosis`, then `rows`, then `stats` and `plan`.

#![forbid(unsafe_code)]

pub mod compare;
pub mod diagnosis;
pub mod experiment;
pub mod load;
pub mod plan;
pub mod rows;
pub mod stats;
