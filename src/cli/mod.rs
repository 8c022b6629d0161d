//! The command line: one file a command, each from its arguments to one library call. Exit codes: 0 ok, 1 failed, 2 wrong
//! usage or configuration.

mod admin;
#[cfg(feature = "bench")]
pub mod bench;
pub mod check;
#[cfg(feature = "bench")]
pub mod compare;
pub mod completions;
#[cfg(all(feature = "sim", feature = "bench"))]
pub mod demo;
pub mod drain;
#[cfg(feature = "bench")]
pub mod experiment;
pub mod explain;
pub mod keys;
pub mod man;
#[cfg(feature = "plan")]
pub mod plan;
pub mod serve;
#[cfg(feature = "sim")]
pub mod sim;
pub mod status;
#[cfg(feature = "top")]
pub mod top;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use crate::server::Serving;

/// A load-balancing reverse proxy for several vLLM servers. Routes streaming requests by queue depth and measured time to
/// first token, and exports latency by backend and by arm.
#[derive(Parser)]
#[command(name = "forebay", version = env!("FOREBAY_VERSION"), arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

// A command whose arguments have an `about` has no doc comment here: clap would show that in place of the longer text.
#[derive(Subcommand)]
enum Command {
    /// Run the proxy, from a configuration file or from backends' URLs.
    Serve(Box<serve::Args>),
    /// Run the endpoint picker of an Envoy gateway, without a proxy beside it.
    #[cfg(feature = "epp")]
    #[command(after_help = serve::ABOUT_EPP, mut_arg("listen", |listen| listen.help(serve::LISTEN_OF_EPP)))]
    Epp(Box<serve::Args>),
    Check(check::Args),
    Status(status::Args),
    Drain(drain::DrainArgs),
    Undrain(drain::UndrainArgs),
    Keys(keys::Args),
    #[cfg(feature = "bench")]
    Bench(Box<bench::Args>),
    Explain(explain::Args),
    #[cfg(feature = "top")]
    Top(top::Args),
    #[cfg(feature = "plan")]
    Plan(Box<plan::Args>),
    #[cfg(feature = "bench")]
    Compare(Box<compare::Args>),
    /// Run a simulated vLLM server.
    #[cfg(feature = "sim")]
    Sim(sim::Args),
    /// Compare layouts of two GPUs on simulated servers, through the real proxy.
    #[cfg(all(feature = "sim", feature = "bench"))]
    Demo(demo::Args),
    Completions(completions::Args),
    Man(man::Args),
}

/// Runs the command that the process was started with.
#[must_use]
pub fn run() -> ExitCode {
    match Cli::parse().command {
        Command::Serve(args) => serve::run(*args, Serving::Clients),
        #[cfg(feature = "epp")]
        Command::Epp(args) => serve::run(*args, Serving::Gateways),
        Command::Check(args) => check::run(args),
        Command::Status(args) => status::run(&args),
        Command::Drain(args) => drain::drain(args),
        Command::Undrain(args) => drain::undrain(args),
        Command::Keys(args) => keys::run(&args),
        #[cfg(feature = "bench")]
        Command::Bench(args) => bench::run(*args),
        Command::Explain(args) => explain::run(args),
        #[cfg(feature = "top")]
        Command::Top(args) => top::run(args),
        #[cfg(feature = "plan")]
        Command::Plan(args) => plan::run(*args),
        #[cfg(feature = "bench")]
        Command::Compare(args) => compare::run(*args),
        #[cfg(feature = "sim")]
        Command::Sim(args) => sim::run(args),
        #[cfg(all(feature = "sim", feature = "bench"))]
        Command::Demo(args) => demo::run(args),
        Command::Completions(args) => completions::run(&args, Cli::command()),
        Command::Man(args) => man::run(&args, Cli::command()),
    }
}
