//! Forebay beside other proxies, in one run: nginx, HAProxy, Envoy, a bare relay as the floor, and an earlier Forebay. Every
//! contender has the same upstream server, the same client and as many threads, and the rounds are interleaved.
//!
//!     cargo bench --bench peers -- --help
//!
//! `upstream.rs` is the mock of two vLLM servers and `relay.rs` the floor. Both run as children of this binary, so that their
//! CPU time is not counted. `contenders.rs` starts the proxies with the configuration files beside it, `works/` has what is
//! measured, and `figures.rs` and `report.rs` say what came out. Load goes to loopback only.

#![expect(clippy::disallowed_methods, reason = "a benchmark measures real time")]

mod client;
mod contenders;
mod disturb;
mod figures;
mod options;
mod polls;
mod process;
mod relay;
mod report;
mod rhythm;
mod rounds;
mod tls;
mod upstream;
mod works;

use std::error::Error;
use std::process::ExitCode;

use clap::Parser as _;

use self::options::Options;

type Fallible<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// The environment variable that makes this binary the upstream or the relay instead of the benchmark.
const ROLE: &str = "FOREBAY_PEERS_ROLE";

fn main() -> ExitCode {
    let result = match std::env::var(ROLE).as_deref() {
        Ok(role) if role.starts_with("upstream ") => runtime(1).block_on(upstream::serve(role)).map(|()| true),
        Ok(role) if role.starts_with("disturb ") => runtime(1).block_on(disturb::run(role)).map(|()| true),
        Ok(role) => relay::run(role).map(|()| true),
        Err(_) => {
            let mut options = Options::parse();
            process::open_many_files();
            options.fit(process::file_limit());
            runtime(1).block_on(async {
                tokio::select! {
                    result = rounds::run(&options) => result,
                    () = stopped() => Err("stopped by a signal".into()),
                }
            })
        }
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("peers: {error}");
            ExitCode::FAILURE
        }
    }
}

/// A runtime of so many threads; one thread needs no scheduler between threads.
fn runtime(threads: usize) -> tokio::runtime::Runtime {
    let mut builder = match threads {
        1 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    if threads > 1 {
        builder.worker_threads(threads);
    }
    builder.enable_all().build().expect("a tokio runtime")
}

/// Waits for SIGINT or SIGTERM, so that the contenders are ended before this process ends.
async fn stopped() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}
