//! What lies between client and engine, from the requests and from looks at the servers at the same times: the network's round
//! trip, requests that the servers were done with, and the pace at which a server's HTTP side passes events on. Pure.

use std::collections::BTreeMap;

use super::costs::Span;
use crate::rows::record::Record;
use crate::rows::row_file::Sample;

/// Events of a server that are looked at, at most.
const EVENTS: usize = 100_000;
/// This quantile of the times between a server's events lies within its steps, where several sequences decode.
const WITHIN_STEP: f64 = 0.3;
/// Fewer sequences decoding at once do not tell it.
const SEVERAL: f64 = 2.5;

/// The findings.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Seen {
    pub(super) round_trip_us: f64,
    /// The share of the open requests that neither servers nor network had.
    pub(super) unread: f64,
    /// The time that a request spends so, in microseconds.
    pub(super) unread_us: f64,
    /// Between two events of one step of one server, and of all servers together, at the client.
    pub(super) event_us: Option<f64>,
    pub(super) any_event_us: Option<f64>,
    pub(super) events_per_token: f64,
}

impl Seen {
    pub(super) fn of(records: &[&Record], samples: &[&Sample], took_us: f64) -> Seen {
        let tokens: u64 = records.iter().map(|record| record.output_tokens).sum();
        let events = records.iter().filter(|record| record.first_event_us.is_some());
        let events: usize = events.map(|record| 1 + record.gaps_us.len()).sum();
        let mut seen = Seen {
            events_per_token: (events as f64 / tokens.max(1) as f64).min(1.0),
            event_us: pace(records, took_us, |record| record.backend.as_deref()),
            any_event_us: pace(records, took_us, |_| None),
            ..Seen::default()
        };
        let quickest =
            records.iter().filter(|record| record.succeeded()).filter_map(|record| record.first_event_us).min();
        let (Some((missing, open)), Some(quickest)) = (missing(records, samples), quickest) else { return seen };
        // Little's law, turned round: those on the network are the rate of requests times the round trip.
        let begun = records.iter().filter(|record| record.first_event_us.is_some()).count();
        let rate = begun as f64 / took_us.max(1.0);
        // No round trip is longer than the quickest answer took. What is missing beyond that was read late.
        seen.round_trip_us = (missing / rate.max(1e-12)).clamp(0.0, quickest as f64);
        let left = (missing - seen.round_trip_us * rate).max(0.0);
        seen.unread = left / open.max(1e-9);
        seen.unread_us = left / rate.max(1e-12);
        seen
    }
}

/// Requests that were open at the client and not at the servers, on average over the looks, and those that were open.
fn missing(records: &[&Record], samples: &[&Sample]) -> Option<(f64, f64)> {
    let first = records.iter().filter_map(|record| Some(record.sent_us + record.first_event_us?)).min()?;
    let (mut missing, mut open) = (0.0, 0.0);
    for (backend, looks) in by_backend(samples) {
        let mut sent: Vec<u64> = Vec::new();
        let mut ended: Vec<u64> = Vec::new();
        for record in records.iter().filter(|record| record.backend.as_deref().is_none_or(|name| name == backend)) {
            sent.push(record.sent_us);
            ended.push(record.sent_us + record.end_us);
        }
        sent.sort_unstable();
        ended.sort_unstable();
        let last = ended.last().copied().unwrap_or(0);
        // Before the first answer prompts are still on their way all at once, which is no state that a mean stands for.
        let within = looks.iter().filter(|look| look.at_us >= first && look.at_us <= last);
        let (mut count, mut here, mut there) = (0.0, 0.0, 0.0);
        for look in within {
            let begun = sent.partition_point(|at| *at <= look.at_us);
            here += (begun - ended.partition_point(|at| *at <= look.at_us)) as f64;
            there += look.running? + look.waiting?;
            count += 1.0;
        }
        if count > 0.0 {
            missing += (here - there) / count;
            open += here / count;
        }
    }
    (open > 0.0).then_some((missing, open))
}

pub(super) fn by_backend<'a>(samples: &[&'a Sample]) -> BTreeMap<&'a str, Vec<&'a Sample>> {
    let mut looks: BTreeMap<&str, Vec<&Sample>> = BTreeMap::new();
    for sample in samples {
        looks.entry(&sample.backend).or_default().push(sample);
    }
    looks
}

/// The time between two events of one step of one server, over the servers the longest.
fn pace<'a>(records: &[&'a Record], took_us: f64, of: fn(&'a Record) -> Option<&'a str>) -> Option<f64> {
    let mut by_server: BTreeMap<Option<&str>, (Vec<u64>, f64)> = BTreeMap::new();
    for record in records {
        let Some(first) = record.first_event_us else { continue };
        let server = by_server.entry(of(record)).or_default();
        let mut at = record.sent_us + first;
        server.0.push(at);
        for gap in &record.gaps_us {
            at += gap;
            server.0.push(at);
            server.1 += *gap as f64;
        }
    }
    let paces =
        by_server.into_values().filter(|(_, decoded)| decoded / took_us.max(1.0) >= SEVERAL).map(|(mut at, _)| {
            at.sort_unstable();
            // From the middle of the run, where most decode.
            let from = at.len().saturating_sub(EVENTS) / 2;
            let at = &at[from..(from + EVENTS).min(at.len())];
            // A step hands over all its tokens at once. So most gaps between events of different answers are the pace of whoever
            // passes them on.
            let mut between: Vec<u64> = at.windows(2).map(|pair| pair[1] - pair[0]).collect();
            let place = (between.len().saturating_sub(1) as f64 * WITHIN_STEP) as usize;
            if between.is_empty() { 0.0 } else { *between.select_nth_unstable(place).1 as f64 }
        });
    paces.reduce(f64::max)
}

/// The spans between two looks, where the servers count their steps.
pub(super) fn spans(records: &[&Record], samples: &[&Sample], round_trip_us: f64) -> Vec<Span> {
    let mut spans = Vec::new();
    for (server, (backend, looks)) in by_backend(samples).into_iter().enumerate() {
        let busy = busy(records, backend, round_trip_us);
        for pair in looks.windows(2) {
            let (before, now) = (pair[0], pair[1]);
            let grown = |of: fn(&Sample) -> Option<f64>| Some((of(now)? - of(before)?).max(0.0));
            let (Some(steps), Some(tokens), Some(prompts)) =
                (grown(|look| look.steps), grown(|look| look.generation_tokens), grown(|look| look.prompt_tokens))
            else {
                continue;
            };
            // vLLM counts prompt tokens whether it computed them or found them in the prefix cache. The second kind cost no time.
            let hits = grown(|look| look.prefix_hits).unwrap_or(0.0);
            // A step may be longer than the time between two looks. A server that is done has no work, though its answers are unread.
            let has_work = |look: &Sample| look.running.unwrap_or(0.0) + look.waiting.unwrap_or(0.0) > 0.0;
            if steps > 0.0 || has_work(before) || has_work(now) {
                let busy = overlap(&busy, before.at_us as f64, now.at_us as f64);
                spans.push(Span { server, busy, steps, tokens, prompts: (prompts - hits).max(0.0) });
            }
        }
    }
    spans
}

/// The times in which a server had a request, from its begin.
fn busy(records: &[&Record], backend: &str, round_trip_us: f64) -> Vec<(f64, f64)> {
    let here = records.iter().filter(|record| record.backend.as_deref().is_none_or(|name| name == backend));
    let mut times: Vec<(f64, f64)> = here
        .filter(|record| record.first_event_us.is_some())
        .map(|record| {
            let sent = record.sent_us as f64;
            let last = record.e2e().map_or(record.end_us as f64, |e2e| e2e.as_secs_f64() * 1e6);
            // As the server saw it: half of the round trip later at the begin, and half of it earlier at the end.
            (sent + round_trip_us / 2.0, sent + last - round_trip_us / 2.0)
        })
        .collect();
    times.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut joined: Vec<(f64, f64)> = Vec::new();
    for (from, to) in times {
        match joined.last_mut() {
            Some(last) if from <= last.1 => last.1 = last.1.max(to),
            _ => joined.push((from, to)),
        }
    }
    joined
}

fn overlap(times: &[(f64, f64)], from: f64, to: f64) -> f64 {
    let begin = times.partition_point(|(_, end)| *end <= from);
    let within = times[begin..].iter().take_while(|(start, _)| *start < to);
    within.map(|(start, end)| end.min(to) - start.max(from)).sum()
}
