//! What the time of a run went to, from the tokens' times alone: the run is cut into slices, and the slices' lengths are
//! fitted by least squares to the steps, tokens and prompt tokens in them. Pure.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::rows::record::Record;

/// Slices of a run, at most.
const SLICES: f64 = 400.0;
/// Steps in a slice, at least.
const STEPS: f64 = 6.0;

/// The ratios that are tried: how many sequences, or prompt tokens, cost as much as an empty step.
const RATIOS: [f64; 11] = [40.0, 60.0, 80.0, 110.0, 150.0, 200.0, 270.0, 360.0, 500.0, 700.0, 1000.0];
/// The usual ratio.
const USUAL: f64 = 200.0;
/// The amount by which another ratio must fit better, for a factor of e.
const UNUSUAL: f64 = 0.03;

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

/// A slice of the run on one server.
#[derive(Clone, Copy, Debug, Default)]
struct Slice {
    busy: f64,
    /// Steps that made tokens, tokens, prompt tokens.
    did: [f64; 3],
}

impl Shares {
    /// The shares of a run; none where there is too little to fit.
    pub(super) fn of(records: &[&Record]) -> Option<Shares> {
        let mut by_server: BTreeMap<Option<&str>, Vec<&Record>> = BTreeMap::new();
        for record in records.iter().filter(|record| record.succeeded()) {
            by_server.entry(record.backend.as_deref()).or_default().push(record);
        }
        let slices: Vec<Slice> = by_server.values().flat_map(|records| slices(records)).collect();
        let busy: f64 = slices.iter().map(|slice| slice.busy).sum();
        let cost = fit(&slices)?;
        let mut shares = [0.0; 3];
        for slice in &slices {
            for (share, (cost, did)) in shares.iter_mut().zip(cost.iter().zip(slice.did)) {
                *share += cost * did / busy;
            }
        }
        Some(Shares {
            base: shares[0],
            tokens: shares[1],
            prefill: shares[2],
            base_ms: cost[0] / 1e3,
            per_token_ms: cost[1] / 1e3,
            per_prompt_token_ms: cost[2] / 1e3,
        })
    }
}

/// One server's run in slices; times in microseconds.
fn slices(records: &[&Record]) -> Vec<Slice> {
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
    let mut cut = RunSlices { slices: vec![Slice::default(); count], begin: begin as f64, width };
    for record in records {
        cut.tokens(record);
    }
    cut.prompts(records, gap);
    cut.busy(records);
    cut.slices
}

struct RunSlices {
    slices: Vec<Slice>,
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
                self.slices[place].did[0] = self.slices[place].did[0].max(here);
                (place, here) = (now, 0.0);
            }
            here += each;
            self.slices[place].did[1] += each;
        }
        self.slices[place].did[0] = self.slices[place].did[0].max(here);
    }

    /// Prompts are computed one after the other: each one's tokens lie between the first token before it and its own.
    fn prompts(&mut self, records: &[&Record], gap: f64) {
        let mut firsts: Vec<(f64, f64, f64)> = records
            .iter()
            .filter_map(|record| {
                let sent = record.sent_us as f64;
                Some((sent + record.first_event_us? as f64, sent, record.prompt_tokens as f64))
            })
            .collect();
        firsts.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut before = f64::NEG_INFINITY;
        for (first, sent, tokens) in firsts {
            let from = before.min(first - gap).max(sent).max(self.begin);
            self.spread(from, first, |slice, share| slice.did[2] += tokens * share);
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
    fn spread(&mut self, from: f64, to: f64, mut give: impl FnMut(&mut Slice, f64)) {
        let (first, last) = (self.place(from), self.place(to));
        for index in first..=last {
            let left = self.begin + index as f64 * self.width;
            let share = (to.min(left + self.width) - from.max(left)).max(0.0) / (to - from).max(1e-9);
            give(&mut self.slices[index], if first == last { 1.0 } else { share });
        }
    }
}

/// The costs that fit the slices best; none of too few slices.
///
/// A run whose batch never changes does not tell what a step costs from what its sequences cost. The hardware ties them (see
/// `table_diagnosis.rs`), so the fit is sought among sensible ratios, and the usual one is kept unless another fits clearly better.
fn fit(slices: &[Slice]) -> Option<[f64; 3]> {
    let slices: Vec<&Slice> = slices.iter().filter(|slice| slice.busy > 0.0).collect();
    if slices.len() < 8 {
        return None;
    }
    let mut best: Option<(f64, [f64; 3])> = None;
    for tokens in RATIOS {
        for prompts in RATIOS {
            let did = |slice: &Slice| slice.did[0] + slice.did[1] / tokens + slice.did[2] / prompts;
            let (mut both, mut square) = (0.0, 0.0);
            for slice in &slices {
                both += did(slice) * slice.busy;
                square += did(slice).powi(2);
            }
            if square <= 0.0 {
                continue;
            }
            let base = both / square;
            let off: f64 = slices.iter().map(|slice| (slice.busy - base * did(slice)).powi(2)).sum();
            let unusual = (tokens / USUAL).ln().powi(2) + (prompts / USUAL).ln().powi(2);
            let off = off * (1.0 + UNUSUAL * unusual);
            if best.is_none_or(|(least, _)| off < least) {
                best = Some((off, [base, base / tokens, base / prompts]));
            }
        }
    }
    best.map(|(_, cost)| cost)
}
