//! What a step of an engine costs, fitted to spans of a run: so much whatever is in it, so much for each sequence that decodes,
//! and so much for each prompt token that is computed. A run whose batch hardly changes leaves the three open, so that the fit
//! also returns the other costs that the spans allow. Pure.

/// The ratios that are tried: sequences, or prompt tokens, that cost as much as an empty step.
const RATIOS: [f64; 14] =
    [25.0, 40.0, 60.0, 80.0, 110.0, 150.0, 200.0, 270.0, 360.0, 500.0, 700.0, 1000.0, 1400.0, 2000.0];
/// The usual ratio, which the hardware sets (`table_diagnosis.rs` says how), and by which factor others depart from it.
const USUAL: f64 = 200.0;
const USUAL_FACTOR: f64 = 2.2;
/// The share of a step by which a counter is off at least, since it is read between two steps.
const NOISE: f64 = 0.5;
/// Logarithm of the odds against the best fit up to which other costs are still possible.
const POSSIBLE: f64 = 2.5;
/// Spans, at least.
const FEWEST: usize = 4;

/// A span of the run on one server. Spans of one server follow each other.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Span {
    /// The server.
    pub(super) server: usize,
    /// Time in which it had work, in microseconds.
    pub(super) busy: f64,
    /// Steps that it made.
    pub(super) steps: f64,
    /// Tokens of answers.
    pub(super) tokens: f64,
    /// Tokens of prompts that it computed.
    pub(super) prompts: f64,
}

/// The costs of a step, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Costs {
    pub(super) step: f64,
    pub(super) sequence: f64,
    pub(super) prompt_token: f64,
}

impl Costs {
    /// The share of the spans' time that the steps themselves took, the sequences in them, and the prompts.
    pub(super) fn shares(&self, spans: &[Span]) -> [f64; 3] {
        let sum = |of: fn(&Span) -> f64| spans.iter().map(of).sum::<f64>();
        let busy = sum(|span| span.busy).max(1e-9);
        [
            self.step * sum(|span| span.steps) / busy,
            self.sequence * sum(|span| span.tokens) / busy,
            self.prompt_token * sum(|span| span.prompts) / busy,
        ]
    }

    /// The costs that fit best, and then those that take least and most of the time for steps and for prompts of all that are
    /// still possible. Empty with too few spans.
    pub(super) fn fit(spans: &[Span]) -> Vec<Costs> {
        let spans: Vec<Span> = spans.iter().copied().filter(|span| span.busy > 0.0).collect();
        if spans.len() < FEWEST {
            return Vec::new();
        }
        let tried: Vec<(f64, Costs)> =
            RATIOS.iter().flat_map(|a| RATIOS.iter().filter_map(|b| one(&spans, *a, *b))).collect();
        let least = tried.iter().map(|(off, _)| *off).fold(f64::INFINITY, f64::min);
        let sum = |of: fn(&Span) -> f64| spans.iter().map(of).sum::<f64>();
        let step = sum(|span| span.busy) / sum(|span| span.steps).max(1.0);
        // At least what the counters' coarseness gives: a fit of few spans may be exact by chance, and would then rule out all
        // others.
        let variance = (least / (spans.len() - 3) as f64).max((NOISE * step).powi(2));
        // A lognormal prior of the ratio. Where the batch never changes it alone decides, and says the middle of what hardware
        // does.
        let unusual = |ratio: f64| ((ratio / USUAL).ln() / USUAL_FACTOR.ln()).powi(2) / 2.0;
        let odds = |off: f64, costs: &Costs| {
            off / (2.0 * variance) + unusual(costs.step / costs.sequence) + unusual(costs.step / costs.prompt_token)
        };
        let mut judged: Vec<(f64, Costs)> = tried.iter().map(|(off, costs)| (odds(*off, costs), *costs)).collect();
        judged.sort_by(|a, b| a.0.total_cmp(&b.0));
        let Some(best) = judged.first().copied() else { return Vec::new() };
        let possible: Vec<Costs> =
            judged.iter().take_while(|(odds, _)| *odds <= best.0 + POSSIBLE).map(|(_, costs)| *costs).collect();
        let mut fits = vec![best.1];
        // The ends of what is possible, by the share of steps and of prompts. A cause is named only if it gains by all of them.
        for part in [0, 2] {
            let by = |a: &&Costs, b: &&Costs| a.shares(&spans)[part].total_cmp(&b.shares(&spans)[part]);
            fits.extend(possible.iter().min_by(by));
            fits.extend(possible.iter().max_by(by));
        }
        fits.dedup();
        fits
    }
}

/// The costs of these two ratios that take the whole time of the spans, with the sum of the squares by which they are off at the end
/// of each: counters are read between two steps, so that what one span lacks the next one has.
fn one(spans: &[Span], sequences: f64, prompts: f64) -> Option<(f64, Costs)> {
    let did = |span: &Span| span.steps + span.tokens / sequences + span.prompts / prompts;
    let all: f64 = spans.iter().map(did).sum();
    if all <= 0.0 {
        return None;
    }
    // One of three costs follows from the whole time, so that each fit gives the run's length exactly.
    let step = spans.iter().map(|span| span.busy).sum::<f64>() / all;
    let (mut off, mut server, mut left) = (0.0, spans[0].server, 0.0);
    for span in spans {
        if span.server != server {
            (server, left) = (span.server, 0.0);
        }
        // The error is carried on, since a counter that was read a step early in one span is made up for in the next.
        left += span.busy - step * did(span);
        off += left * left;
    }
    Some((off, Costs { step, sequence: step / sequences, prompt_token: step / prompts }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spans(batches: &[f64]) -> Vec<Span> {
        let one = |tokens: &f64| {
            let (steps, tokens, prompts) = (20.0, 20.0 * tokens, 3.0 * tokens);
            Span { busy: 10_000.0 * steps + 100.0 * tokens + 50.0 * prompts, steps, tokens, prompts, server: 0 }
        };
        batches.iter().map(one).collect()
    }

    #[test]
    fn a_batch_that_changes_tells_the_costs_and_one_that_stays_leaves_them_open() {
        let changing: Vec<f64> = (1..60).map(f64::from).collect();
        let known = Costs::fit(&spans(&changing));
        assert!((known[0].step / 10_000.0 - 1.0).abs() < 0.1, "{known:?}");
        let shares =
            |fits: &[Costs], spans: &[Span]| -> Vec<f64> { fits.iter().map(|costs| costs.shares(spans)[0]).collect() };
        let spread =
            |shares: Vec<f64>| shares.iter().copied().fold(0.0, f64::max) - shares.iter().copied().fold(1.0, f64::min);
        let same = spans(&[100.0; 40]);
        let open = Costs::fit(&same);
        assert!(spread(shares(&known, &spans(&changing))) < 0.15, "{known:?}");
        assert!(spread(shares(&open, &same)) > 0.3, "{open:?}");
        assert!(Costs::fit(&same[..3]).is_empty());
    }
}
