//! From evidence to a cause. Where the servers' metrics were scraped, the cause is what a replay with twice of it gains from;
//! everything else is a guess, and undecided. Pure.

use super::cause::Cause;
use super::evidence::Evidence;
use super::finding::{FALLS_BEHIND, Found, KEEPS_UP, drained};
use super::servers::Servers;
use super::table_diagnosis;
use super::what_if::{Gain, WhatIf};
use crate::rows::row_file::Offered;

/// A cause is named where twice of it gains this by the likeliest costs, and the second of these by any that are possible.
const GAINS: f64 = 1.17;
const SURELY: f64 = 1.14;
/// And step time where twice of nothing else gains more than this by any possible costs.
const NOTHING_ELSE: f64 = 1.13;
/// For that the replay is as long as the run to this: what it does not know of may be what gains.
const CLOSE: f64 = 0.08;
/// Twice of something that gains this may be the cause.
const MAYBE: f64 = 1.08;
/// The server's HTTP side is slow, and surely not the client, where the client's own lag is at most this share of the time that
/// answers were unread.
const LITTLE_LAG: f64 = 0.1;
/// From this share of failed requests on nothing is sure.
const FAILED: f64 = 0.05;

pub(super) fn judge(evidence: &Evidence) -> Found {
    if evidence.figures.requests == 0 || evidence.figures.duration_s <= 0.0 {
        return Found::open(&[]).unsure(vec!["no request got a whole answer".to_owned()]);
    }
    let found = match (&evidence.servers, &evidence.what_if) {
        (Some(servers), Some(what_if)) => by_replay(evidence, servers, what_if),
        _ => guess(evidence),
    };
    let doubts = doubts(evidence);
    if doubts.is_empty() { found } else { found.unsure(doubts) }
}

/// The reasons why nothing is sure, in words that follow "not sure:".
fn doubts(evidence: &Evidence) -> Vec<String> {
    let mut doubts = Vec::new();
    let failed = evidence.figures.failed as f64 / (evidence.figures.failed + evidence.figures.requests) as f64;
    if failed >= FAILED {
        doubts.push(format!("{:.0} % of the requests failed", failed * 100.0));
    }
    let Some(servers) = &evidence.servers else {
        doubts.push("the servers' metrics were not scraped".to_owned());
        return doubts;
    };
    let lacks = servers.lacks();
    if !lacks.is_empty() {
        doubts.push(format!("the scrapes lack {}", lacks.join(", ")));
    }
    match &evidence.what_if {
        None => doubts.push("there are too few tokens to say what a step costs".to_owned()),
        Some(what_if) if !what_if.alike.holds() && lacks.is_empty() => doubts.push(format!(
            "a replay with the costs that were fitted to the run took {:.2} × as long as the run, with {:.2} × as many running",
            what_if.alike.took, what_if.alike.running
        )),
        Some(_) => {}
    }
    doubts
}

/// Finds what a replay with twice of it gains from.
fn by_replay(evidence: &Evidence, servers: &Servers, what_if: &WhatIf) -> Found {
    // Below saturation the load is the cause where it is known that the servers kept up, and elsewhere it is not.
    let keeps_up = evidence.kept_up.map(|found| found.holds);
    let load = |gain: &&Gain| gain.cause != Cause::Arrival || keeps_up != Some(false);
    let others: Vec<Gain> =
        what_if.gains.iter().filter(|gain| gain.cause != Cause::StepTime).filter(load).copied().collect();
    let steps = what_if.gain(Cause::StepTime);
    let sure = |gain: &&Gain| gain.likely >= GAINS && gain.least >= SURELY;
    // Where it is not known that they kept up, twice the load may only lengthen the queue.
    let known = |gain: &&Gain| gain.cause != Cause::Arrival || keeps_up == Some(true);
    let best = others.first().filter(sure).filter(known);
    if let Some(best) = best {
        return match best.cause {
            Cause::HttpSide => behind_the_engine(evidence),
            cause => Found::one(cause),
        };
    }
    let mut else_gains = what_if.gains.iter().filter(|gain| gain.cause != Cause::StepTime);
    let nothing_else = else_gains.all(|gain| gain.most <= NOTHING_ELSE);
    let close = what_if.alike.took.ln().abs() <= CLOSE;
    if steps.as_ref().filter(sure).is_some() && nothing_else && close {
        return Found::one(Cause::StepTime);
    }
    let mut left: Vec<Cause> = others.iter().filter(|gain| gain.most >= MAYBE).map(|gain| gain.cause).collect();
    if left.is_empty() && servers.both > 0.0 {
        // Either alone gains nothing where both are full.
        left.extend([Cause::KvRoom, Cause::CapOnRunning]);
    }
    left.extend(steps.filter(|gain| gain.most >= MAYBE).map(|gain| gain.cause));
    Found::open(&left)
}

/// Finds who is slow behind an engine that was done, where the client's lag does not account for it.
fn behind_the_engine(evidence: &Evidence) -> Found {
    let share = evidence.lag_p99_ms.zip(evidence.unread_ms).map(|(lag, unread)| lag / unread.max(1e-3));
    match share {
        Some(share) if share <= LITTLE_LAG => Found::one(Cause::HttpSide),
        _ => Found::open(&[Cause::HttpSide, Cause::SlowClient]),
    }
}

/// Guesses where nobody looked at the servers: the load generator's lag, the arrivals, and the table.
fn guess(evidence: &Evidence) -> Found {
    if evidence.client_kept_up() == Some(false) {
        return Found::one(Cause::SlowClient);
    }
    arrival(evidence).unwrap_or_else(|| table_diagnosis::judge(evidence))
}

/// Finds whether the arm kept up with what was offered.
fn arrival(evidence: &Evidence) -> Option<Found> {
    if evidence.seen.is_some() {
        let at_a_rate = matches!(evidence.offered, Some(Offered::Rate(_) | Offered::Trace(_) | Offered::Traffic));
        return match evidence.kept_up {
            Some(found) => found.holds.then(|| Found::one(Cause::Arrival)),
            None => at_a_rate.then(|| Found::between(&[Cause::Arrival, Cause::StepTime])),
        };
    }
    let drained = drained(evidence)?;
    if drained < KEEPS_UP {
        return Some(Found::one(Cause::Arrival));
    }
    (drained < FALLS_BEHIND).then(|| Found::between(&[Cause::Arrival, Cause::StepTime]))
}
