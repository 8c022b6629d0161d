//! Why one arm made more tokens a second than another under the same load: by Little's law output tokens/s is the number of
//! sequences that decode at once ÷ TPOT, so that a ratio of two arms is exactly that of the first over that of the second. Pure.

use serde::Serialize;

use super::evidence::Evidence;
use super::explanation::{count, times};

/// Below this a ratio is no difference.
const NO_DIFFERENCE: f64 = 0.02;
/// A part of the difference (of the logarithms) below this is not worth a word.
const MINOR: f64 = 0.15;

/// One arm's output tokens/s over another's, taken apart.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Contrast {
    /// The arm.
    pub arm: String,
    /// The arm that it is set against.
    pub against: String,
    /// Output tokens/s, arm ÷ other: `at_once` ÷ `per_token`.
    pub ratio: f64,
    /// Sequences decoding at once, arm ÷ other.
    pub at_once: f64,
    /// TPOT, arm ÷ other.
    pub per_token: f64,
    /// One sentence with its figures.
    pub sentence: String,
}

/// Each arm beside the first, in order; arms without the figures are left out.
#[must_use]
pub fn contrast(arms: &[Evidence]) -> Vec<Contrast> {
    let Some((first, rest)) = arms.split_first() else { return Vec::new() };
    rest.iter().filter_map(|arm| beside(arm, first)).collect()
}

fn beside(arm: &Evidence, other: &Evidence) -> Option<Contrast> {
    let rate = |of: &Evidence| Some(of.figures.output_tokens_per_second()).filter(|rate| *rate > 0.0);
    let ratio = rate(arm)? / rate(other)?;
    let at_once = arm.decoding()? / other.decoding().filter(|decoding| *decoding > 0.0)?;
    // By Little's law, and not from the tables' TPOT: so the two parts explain the whole ratio and leave no rest.
    let per_token = at_once / ratio;
    let (name, against) = (&arm.arm, &other.arm);
    let why = reason(ratio, at_once, per_token);
    let sentence = format!(
        "{name} makes {} the output tokens/s of {against} ({} and {}): {} as many sequences decode at once ({} and {}), and \
         each token takes {} as long. {}",
        times(ratio),
        count(rate(arm)?),
        count(rate(other)?),
        times(at_once),
        count(arm.decoding()?),
        count(other.decoding()?),
        times(per_token),
        why,
    );
    Some(Contrast { arm: name.clone(), against: against.clone(), ratio, at_once, per_token, sentence })
}

fn reason(ratio: f64, at_once: f64, per_token: f64) -> &'static str {
    let (whole, room, steps) = (ratio.ln(), at_once.ln(), -per_token.ln());
    let little = (1.0 + NO_DIFFERENCE).ln();
    if whole.abs() < little {
        return "There is no difference to explain.";
    }
    // In logarithms parts add up. A part under 15 % of the difference would make the sentence longer and not truer.
    let little = little.max(MINOR * whole.abs());
    let (by_room, by_steps) = (room * whole.signum() > little, steps * whole.signum() > little);
    match (whole > 0.0, by_room, by_steps) {
        (true, true, false) => "The gain is room: more runs at once, and its steps, of larger batches, are no faster.",
        (false, true, false) => "The loss is what runs at once: its steps, of smaller batches, take no longer.",
        (true, false, _) => "The gain is faster steps: no more runs at once.",
        (false, false, _) => "The loss is slower steps: as much runs at once.",
        (true, true, true) if room > steps => "Most of the gain is room, the rest faster steps.",
        (true, true, true) => "Most of the gain is faster steps, the rest room.",
        (false, true, true) if room < steps => "Most of the loss is what runs at once, the rest slower steps.",
        (false, true, true) => "Most of the loss is slower steps, the rest what runs at once.",
    }
}
