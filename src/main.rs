//! The `forebay` binary: the allocator, and the command line.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;
use forebay::cli::check;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// A load-balancing reverse proxy for vLLM.
#[derive(Parser)]
#[command(name = "forebay", version)]
enum Command {
    /// Check a configuration file.
    Check(check::Args),
    #[cfg(feature = "sim")]
    Sim(forebay::cli::sim::Args),
}

fn main() -> ExitCode {
    match Command::parse() {
        Command::Check(args) => check::run(args),
        #[cfg(feature = "sim")]
        Command::Sim(args) => forebay::cli::sim::run(args),
    }
}
