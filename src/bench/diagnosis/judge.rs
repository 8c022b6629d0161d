//! From evidence to a cause, where looks at the servers say what requests waited for. Pure.

use crate::bench::rows::Offered;

use super::{Cause, Evidence, Seen, Servers, Shares, plain};

/// A cause leads by so much of the time, or it is not named.
const LEAD: f64 = 0.10;
/// An arm keeps up with what is offered where its work goes on for at most this share of the run after the last arrival: then
/// an arm twice as fast would have shortened the run by less than a tenth.
pub(super) const KEEPS_UP: f64 = 0.20;
/// From this share on it did not keep up.
pub(super) const FALLS_BEHIND: f64 = 0.28;
/// A client is slow where its servers were done for this share of the run before it.
const UNREAD: f64 = 0.20;
/// Or where this share of the requests open at the client had been answered.
const STALE: f64 = 0.33;

/// What was found: a cause, or the candidates; and, where it could be told, each one's share of the time.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Found {
    pub(super) cause: Cause,
    pub(super) candidates: Vec<Cause>,
    pub(super) share: Vec<(Cause, f64)>,
}

impl Found {
    pub(super) fn one(cause: Cause) -> Found {
        Found { cause, candidates: vec![cause], share: Vec::new() }
    }

    pub(super) fn between(candidates: &[Cause]) -> Found {
        match candidates {
            [cause] => Found::one(*cause),
            _ => Found { cause: Cause::Undecided, candidates: candidates.to_vec(), share: Vec::new() },
        }
    }
}

pub(super) fn judge(evidence: &Evidence) -> Found {
    if evidence.figures.requests == 0 || evidence.figures.duration_s <= 0.0 {
        return Found::between(&[]);
    }
    if let Some(found) = client(evidence) {
        return found;
    }
    if let Some(found) = arrival(evidence) {
        return found;
    }
    match (&evidence.servers, evidence.seen.and_then(|seen| seen.shares)) {
        (Some(servers), Some(shares)) => engine(servers, &shares),
        _ => plain::judge(evidence),
    }
}

/// The share of the run for which the servers had made their last token, and that of the open requests that were answered.
pub(super) fn unread(seen: &Seen, servers: &Servers, duration_s: f64) -> (f64, f64) {
    let done = servers.last_token_s.map_or(0.0, |last| (1.0 - last / duration_s).max(0.0));
    let stale = if seen.open > 0.0 { (1.0 - (servers.running + servers.waiting) / seen.open).max(0.0) } else { 0.0 };
    (done, stale)
}

/// Whether answers were ready long before they were read.
fn client(evidence: &Evidence) -> Option<Found> {
    let seen = evidence.seen.as_ref()?;
    let Some(servers) = &evidence.servers else {
        // Nobody looked at the servers: the generator's own lag is all there is.
        let step = evidence.figures.tpot_ms.p50?;
        let lag = seen.lag_p99_ms?;
        return (lag > 2.0 * step).then(|| Found::one(Cause::SlowClient));
    };
    let (done, stale) = unread(seen, servers, evidence.figures.duration_s);
    (done >= UNREAD || stale >= STALE).then(|| Found::one(Cause::SlowClient))
}

/// The share of the run that went on after the last request was sent; none where requests were not sent at a rate.
pub(super) fn drained(evidence: &Evidence) -> Option<f64> {
    let Offered::Rate(rate) = evidence.offered? else { return None };
    let arrivals_s = match evidence.seen {
        Some(seen) => seen.arrivals_s,
        None => evidence.figures.requests.saturating_sub(1) as f64 / rate,
    };
    Some(1.0 - arrivals_s / evidence.figures.duration_s)
}

/// Whether the arm kept up with what was offered.
fn arrival(evidence: &Evidence) -> Option<Found> {
    let drained = drained(evidence)?;
    if drained < KEEPS_UP {
        return Some(Found::one(Cause::Arrival));
    }
    (drained < FALLS_BEHIND).then(|| Found::between(&[Cause::Arrival, Cause::StepTime]))
}

/// What bound servers that were looked at.
fn engine(servers: &Servers, shares: &Shares) -> Found {
    let whole = (shares.base + shares.tokens + shares.prefill).max(1e-9);
    let base = shares.base / whole;
    let room = base * servers.room();
    let prefill = shares.prefill / whole;
    let step = 1.0 - room - prefill;
    let mut share = vec![(Cause::Prefill, prefill), (Cause::StepTime, step)];
    let kv = base * (servers.kv_full + servers.both / 2.0);
    let cap = base * (servers.at_cap + servers.both / 2.0);
    share.extend([(Cause::KvRoom, kv), (Cause::CapOnRunning, cap)]);
    share.sort_by(|a, b| b.1.total_cmp(&a.1));
    // Room of both kinds counts as one against the others, and only then is told apart.
    let rest = prefill.max(step);
    let candidates: Vec<Cause> = if room >= rest + LEAD {
        if kv.max(cap) >= 2.0 * kv.min(cap) {
            vec![if kv > cap { Cause::KvRoom } else { Cause::CapOnRunning }]
        } else {
            vec![Cause::KvRoom, Cause::CapOnRunning]
        }
    } else if rest >= room + LEAD && (prefill - step).abs() >= LEAD {
        vec![if prefill > step { Cause::Prefill } else { Cause::StepTime }]
    } else {
        let most = room.max(rest);
        let near = |one: f64| one > most - LEAD;
        let room_kinds = [(Cause::KvRoom, kv), (Cause::CapOnRunning, cap)];
        room_kinds
            .into_iter()
            .filter(|(_, one)| near(room) && *one > 0.0)
            .chain([(Cause::Prefill, prefill), (Cause::StepTime, step)].into_iter().filter(|(_, one)| near(*one)))
            .map(|(cause, _)| cause)
            .collect()
    };
    Found { share, ..Found::between(&candidates) }
}
