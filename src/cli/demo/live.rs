//! `forebay demo --live`: light traffic on two arms behind the same proxy, half of the sessions each, until interrupted.

use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};

use super::fleet::{Fleet, LIVE};
use super::{Args, StartedProxy, say, workload};
use forebay_lab::load::client::{Client, Progress, Sending};
use forebay_lab::load::dataset::Dataset;
use forebay_lab::load::workload::{Rate, Workload};

/// The header that makes a request a session of its own.
const SESSION: &str = "x-session-id";
/// Requests a second of the wall clock: light for either arm.
const RATE: f64 = 1.5;
/// Requests in a round; then others with other words.
const ROUND: u32 = 60;
/// Tokens of an answer, at most.
const ANSWER: u32 = 200;

/// Sends until SIGINT or SIGTERM.
pub(super) async fn go_on(fleet: &Fleet, front: &StartedProxy, args: &Args) -> Result<(), String> {
    let caught = |kind| signal(kind).map_err(|error| format!("cannot catch signals: {error}"));
    let (mut interrupt, mut terminate) = (caught(SignalKind::interrupt())?, caught(SignalKind::terminate())?);
    let Some(arm) = fleet.live.first() else { return Ok(()) };
    if let Some(page) = &front.page {
        say(args, &format!("\nLight traffic on two simulated arms goes on. The live page: {page}   (ctrl-c ends it)"));
    }
    let (targets, tokenizer) = ((front.targets)(&arm.name), arm.first());
    let traffic = async {
        let client = Client::default();
        let sending = Sending { session_header: Some(SESSION.to_owned()), ..Sending::default() };
        for round in 1_u64.. {
            let seed = args.seed.wrapping_add(round);
            let load = Workload { rate: Rate::PerSecond(RATE), seed, ..workload(args, LIVE, ROUND, ANSWER) };
            let made = client.prepare(&tokenizer, &load, &Dataset::Random).await.map_err(|error| error.to_string())?;
            client.run(&targets, &load, &made.supply, &sending, &Arc::new(Progress::default())).await;
        }
        Ok(())
    };
    tokio::select! {
        ended = traffic => ended,
        _ = interrupt.recv() => Ok(()),
        _ = terminate.recv() => Ok(()),
    }
}
