//! From evidence to a cause, where looks at the servers say what requests waited for. Pure.

use super::cause::Cause;
use super::evidence::Evidence;
use super::finding::{FALLS_BEHIND, Found, KEEPS_UP, drained, unread};
use super::servers::Servers;
use super::shares::Shares;
use super::table_diagnosis;
use crate::rows::row_file::Offered;

/// Room or prefill is named from this share of the time on: twice as much would have made the run about 1.2 times as fast.
const NAMED: f64 = 0.34;
/// And step time where neither has this share: twice as much of either would have gained less than an eighth.
const SLIGHT: f64 = 0.23;
/// One of them leads the other by so much of the time, or neither is named.
const LEAD: f64 = 0.10;
/// A client is slow where its servers were done for this share of the run before it.
const UNREAD: f64 = 0.20;
/// Or where this share of the requests open at the client had been answered.
const STALE: f64 = 0.33;

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
        (Some(servers), Some(shares)) => engine(servers, &shares, evidence.max_num_seqs.is_some()),
        _ => table_diagnosis::judge(evidence),
    }
}

/// Finds whether answers were ready long before they were read.
fn client(evidence: &Evidence) -> Option<Found> {
    let Some((seen, servers)) = evidence.seen.as_ref().zip(evidence.servers.as_ref()) else {
        // Nobody looked at the servers: the generator's own lag is all there is.
        return (evidence.client_kept_up() == Some(false)).then(|| Found::one(Cause::SlowClient));
    };
    let (done, stale) = unread(seen, servers, evidence.figures.duration_s);
    (done >= UNREAD || stale >= STALE).then(|| Found::one(Cause::SlowClient))
}

/// Finds whether the arm kept up with what was offered.
fn arrival(evidence: &Evidence) -> Option<Found> {
    if evidence.seen.is_some() {
        let at_a_rate = matches!(evidence.offered, Some(Offered::Rate(_) | Offered::Trace(_)));
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

/// Finds what bound servers that were looked at.
fn engine(servers: &Servers, shares: &Shares, cap_known: bool) -> Found {
    let whole = (shares.base + shares.tokens + shares.prefill).max(1e-9);
    let base = shares.base / whole;
    let room = base * servers.room();
    let prefill = shares.prefill / whole;
    let step = 1.0 - room - prefill;
    let kv = base * (servers.kv_full + servers.both / 2.0);
    let cap = base * (servers.at_cap + servers.both / 2.0);
    let mut share =
        vec![(Cause::Prefill, prefill), (Cause::StepTime, step), (Cause::KvRoom, kv), (Cause::CapOnRunning, cap)];
    share.sort_by(|a, b| b.1.total_cmp(&a.1));
    let mut left = candidates(kv, cap, prefill);
    // Steps full of others' prompts take their time for prompts. Where they did not, a cap that nobody told made the queue.
    if !cap_known && left == [Cause::StepTime] && servers.in_prefill * base >= SLIGHT.max(prefill) {
        left.push(Cause::CapOnRunning);
    }
    Found { share, ..Found::between(&left) }
}

/// The causes that these shares of the time leave.
fn candidates(kv: f64, cap: f64, prefill: f64) -> Vec<Cause> {
    // Room of both kinds counts as one against prefill, and only then is told apart.
    let room = kv + cap;
    let kinds = match (kv >= 2.0 * cap, cap >= 2.0 * kv) {
        (true, _) => vec![Cause::KvRoom],
        (_, true) => vec![Cause::CapOnRunning],
        _ => vec![Cause::KvRoom, Cause::CapOnRunning],
    };
    let most = room.max(prefill);
    let mut left = Vec::new();
    if room >= SLIGHT && room > most - LEAD {
        left.extend(kinds);
    }
    left.extend((prefill >= SLIGHT && prefill > most - LEAD).then_some(Cause::Prefill));
    left.extend((most < NAMED).then_some(Cause::StepTime));
    left
}
