//! The `forebay` binary: the allocator, and the command line.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

#[derive(Parser)]
#[command(version, about)]
enum Cli {
    #[cfg(feature = "sim")]
    Sim(forebay::cli::sim::Args),
}

fn main() -> ExitCode {
    match Cli::parse() {
        #[cfg(feature = "sim")]
        Cli::Sim(args) => forebay::cli::sim::run(args),
    }
}
