//! What the time of a run went to, from the tokens' times alone: the run is cut into slices, and the slices' lengths are
//! fitted by least squares to the steps, tokens and prompt tokens in them. Pure.

use std::collections::BTreeMap;

use serde::Serialize;

use super::costs::{Costs, Span};
use crate::rows::record::Record;

/// Slices of a run, at most.
const SLICES: f64 = 400.0;
/// Steps in a slice, at least.
const STEPS: f64 = 6.0;

/// The parts of the time of a run. The three shares are of the time in which requests were open, and add up to about 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Shares {
    /// The cost of every step, whatever is in it.
    pub base: f64,
    /// The cost that each decoding sequence adds to a step.
    pub tokens: f64,
    /// The cost that prompts add to a step.
    pub prefill: f64,
    /// A step with nothing in it, in milliseconds.
    pub base_ms: f64,
    /// A decoding sequence in a step, in milliseconds.
    pub per_token_ms: f64,
    /// A prompt token in a step, in milliseconds.
    pub per_prompt_token_ms: f64,
}

impl Shares {
    /// The shares of these spans of a run at these costs.
    pub(super) fn of(spans: &[Span], costs: &Costs) -> Shares {
        let [base, tokens, prefill] = costs.shares(spans);
        Shares {
            base,
            tokens,
            prefill,
            base_ms: costs.step / 1e3,
            per_token_ms: costs.sequence / 1e3,
            per_prompt_token_ms: costs.prompt_token / 1e3,
        }
    }
}

/// The spans of a run by its requests alone, where nobody counted the servers' steps.
pub(super) fn spans(records: &[&Record]) -> Vec<Span> {
    let mut by_server: BTreeMap<Option<&str>, Vec<&Record>> = BTreeMap::new();
    for record in records.iter().filter(|record| record.succeeded()) {
        by_server.entry(record.backend.as_deref()).or_default().push(record);
    }
    let numbered = by_server.values().enumerate();
    let of = |(server, records): (usize, &Vec<&Record>)| {
        slices(records).into_iter().map(move |span| Span { server, ..span }).collect::<Vec<_>>()
    };
    numbered.flat_map(of).collect()
}

/// One server's run in slices; times in microseconds.
fn slices(records: &[&Record]) -> Vec<Span> {
    let begin = records.iter().map(|record| record.sent_us).min().unwrap_or(0);
    let end = records.iter().map(|record| record.sent_us + record.end_us).max().unwrap_or(0);
    let mut gaps: Vec<u64> =
        records.iter().flat_map(|record| &record.gaps_us).copied().filter(|gap| *gap > 0).collect();
    if gaps.is_empty() || end <= begin {
        return Vec::new();
    }
    let middle = gaps.len() / 2;
    let gap = *gaps.select_nth_unstable(middle).1 as f64;
    let length = (end - begin) as f64;
    let width = (length / SLICES).max(STEPS * gap).min(length);
    let count = (length / width).ceil() as usize;
    let mut cut = RunSlices { slices: vec![Span::default(); count], begin: begin as f64, width };
    for record in records {
        cut.tokens(record);
    }
    cut.prompts(records, gap);
    cut.busy(records);
    cut.slices
}

struct RunSlices {
    slices: Vec<Span>,
    begin: f64,
    width: f64,
}

impl RunSlices {
    fn place(&self, at: f64) -> usize {
        (((at - self.begin) / self.width) as usize).min(self.slices.len() - 1)
    }

    /// A request's tokens; a server makes as many steps as the busiest of its requests has tokens.
    fn tokens(&mut self, record: &Record) {
        let Some(first) = record.first_event_us else { return };
        let each = record.output_tokens.saturating_sub(1) as f64 / record.gaps_us.len().max(1) as f64;
        let mut at = (record.sent_us + first) as f64;
        let (mut place, mut here) = (self.place(at), 0.0);
        for gap in &record.gaps_us {
            at += *gap as f64;
            let now = self.place(at);
            if now != place {
                self.slices[place].steps = self.slices[place].steps.max(here);
                (place, here) = (now, 0.0);
            }
            here += each;
            self.slices[place].tokens += each;
        }
        self.slices[place].steps = self.slices[place].steps.max(here);
    }

    /// Prompts are computed one after the other: each one's tokens lie between the first token before it and its own.
    fn prompts(&mut self, records: &[&Record], gap: f64) {
        let mut firsts: Vec<(f64, f64, f64)> = records
            .iter()
            .filter_map(|record| {
                let sent = record.sent_us as f64;
                Some((
                    sent + record.first_event_us? as f64,
                    sent,
                    record.prompt_tokens.saturating_sub(record.cached_tokens.unwrap_or(0)) as f64,
                ))
            })
            .collect();
        firsts.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut before = f64::NEG_INFINITY;
        for (first, sent, tokens) in firsts {
            let from = before.min(first - gap).max(sent).max(self.begin);
            self.spread(from, first, |slice, share| slice.prompts += tokens * share);
            before = first;
        }
    }

    fn busy(&mut self, records: &[&Record]) {
        let mut open: Vec<(f64, f64)> =
            records.iter().map(|record| (record.sent_us as f64, (record.sent_us + record.end_us) as f64)).collect();
        open.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut until = self.begin;
        for (from, to) in open {
            let from = from.max(until);
            if to > from {
                self.spread(from, to, |slice, share| slice.busy += (to - from) * share);
                until = to;
            }
        }
    }

    /// Gives each slice its share of a span of time.
    fn spread(&mut self, from: f64, to: f64, mut give: impl FnMut(&mut Span, f64)) {
        let (first, last) = (self.place(from), self.place(to));
        for index in first..=last {
            let left = self.begin + index as f64 * self.width;
            let share = (to.min(left + self.width) - from.max(left)).max(0.0) / (to - from).max(1e-9);
            give(&mut self.slices[index], if first == last { 1.0 } else { share });
        }
    }
}
