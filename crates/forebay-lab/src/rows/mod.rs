//! What a run leaves: one [`record`] for each request, the [`row_file`] that holds them, and the figures made from them as
//! `vllm bench serve` defines them.

pub mod access_log;
pub mod command;
pub mod either;
pub mod kept_up;
pub mod published_benchmark;
pub mod record;
pub mod results;
pub mod row_file;
pub mod slo;
pub mod summary;
pub mod table;
pub mod wall_clock;
