//! From the table's figures alone to a cause, or to what is left. Bounds take the place of what was not measured. Pure.
//!
//! What a step costs without tokens in it (`a`: above all the weights read once), what a decoding sequence adds (`b`) and what
//! a prompt token adds (`c`) are tied by the hardware: on a GPU whose arithmetic reaches F operations for each byte read,
//! 2 bytes a weight and 2 operations a weight and token give `c ≈ a / F`, F from 100 (cards short of arithmetic, or at a
//! fraction of their peak) to 500. `b` is an operation like `c`, and the reading of one context besides: `a / 400` to `a / 100`,
//! which holds for the published benchmark's cards (0.1 of 17 ms) and for one H200 (4.8 ms alone, 6.4 ms at 128).

use super::cause::Cause;
use super::evidence::Evidence;
use super::finding::{FALLS_BEHIND, Found, drained};

/// Prompt tokens that cost as much as an empty step: the least and the most.
const PROMPT_TOKENS_OF_A_STEP: (f64, f64) = (100.0, 500.0);
/// Decoding sequences that cost as much as an empty step: the least and the most.
const SEQUENCES_OF_A_STEP: (f64, f64) = (100.0, 400.0);
/// P99 TTFT from this share of the run on: some began only when others had ended, or their prompts took that long.
pub(super) const LATE: f64 = 0.30;
/// Median TTFT from this share of the run on: half of the requests waited for others to end.
pub(super) const MOST_LATE: f64 = 0.12;
/// P99 TPOT over the median: below this nothing lost its blocks; from the second on some did, or short answers met a burst of
/// prompts.
pub(super) const EVEN: f64 = 1.35;
pub(super) const UNEVEN: f64 = 1.8;
/// A run this much longer than a typical request has sequences that came last.
const STRETCHED: f64 = 1.25;
/// A bound must be passed by so much before something is ruled out by it.
const CLEAR: f64 = 0.5;
const SMALL: f64 = 0.35;

/// The figures that the judgement rests on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Signs {
    /// Sequences that decoded at once.
    pub(super) decoding: f64,
    /// Median TTFT as a share of the run.
    pub(super) half_by: f64,
    /// P99 TTFT as a share of the run.
    pub(super) all_by: f64,
    /// P99 TPOT over its median, where both are known.
    pub(super) uneven: Option<f64>,
    /// The run over a typical request's time.
    pub(super) stretched: f64,
    /// Prefill's share of the time: the least and the most.
    pub(super) prefill: (f64, f64),
    /// The share of the time that room would have shortened: the least and the most.
    pub(super) room: (f64, f64),
}

impl Signs {
    pub(super) fn of(evidence: &Evidence) -> Option<Signs> {
        let figures = &evidence.figures;
        let decoding = evidence.decoding()?;
        let half_by = evidence.share_of_run(figures.ttft_ms.p50)?;
        let all_by = evidence.share_of_run(figures.ttft_ms.p99)?;
        let (prompt, answer) = evidence.lengths();
        let servers = f64::from(evidence.replicas.unwrap_or(1).max(1));
        let each = decoding / servers;
        // Prompt tokens in a step on average: each step makes a token of each sequence.
        let in_step = prompt * each / answer.max(1.0);
        let part = |prompt_tokens: f64, sequences: f64| {
            let (prefill, tokens) = (in_step / prompt_tokens, each / sequences);
            (1.0 / (1.0 + prefill + tokens), prefill / (1.0 + prefill + tokens))
        };
        let prefill = (
            part(PROMPT_TOKENS_OF_A_STEP.1, SEQUENCES_OF_A_STEP.0).1,
            part(PROMPT_TOKENS_OF_A_STEP.0, SEQUENCES_OF_A_STEP.1).1,
        );
        let base = (
            part(PROMPT_TOKENS_OF_A_STEP.0, SEQUENCES_OF_A_STEP.0).0,
            part(PROMPT_TOKENS_OF_A_STEP.1, SEQUENCES_OF_A_STEP.1).0,
        );
        // Where all begin early, prompts cannot have taken longer than that.
        let prefill = if all_by < LATE { (prefill.0.min(all_by), prefill.1.min(all_by)) } else { prefill };
        Some(Signs {
            decoding,
            half_by,
            all_by,
            stretched: {
                let longest = evidence.output_len.map_or(answer, f64::from);
                figures.duration_s * 1e3 / (figures.ttft_ms.p50? + evidence.tpot_ms()? * longest)
            },
            uneven: figures.tpot_ms.p99.zip(figures.tpot_ms.p50).map(|(p99, p50)| p99 / p50),
            prefill,
            room: if all_by < LATE { (0.0, all_by * base.1) } else { (all_by * base.0, all_by * base.1) },
        })
    }
}

impl Signs {
    fn even(&self) -> bool {
        self.uneven.is_some_and(|ratio| ratio < EVEN)
    }

    fn uneven(&self) -> bool {
        self.uneven.is_some_and(|ratio| ratio > UNEVEN)
    }
}

/// Finds what bound the arm, as far as a table tells.
pub(super) fn judge(evidence: &Evidence) -> Found {
    use Cause::{Arrival, CapOnRunning, KvRoom, Prefill, SlowClient, StepTime};
    let Some(signs) = Signs::of(evidence) else {
        return Found::between(&[KvRoom, CapOnRunning, StepTime, Prefill, SlowClient]);
    };
    if drained(evidence).is_some_and(|drained| drained < FALLS_BEHIND) {
        return Found::between(&[Arrival, StepTime]);
    }
    let mut left = Vec::new();
    if signs.prefill.0 > CLEAR {
        left.push(Prefill);
    } else if signs.all_by < LATE {
        left.push(StepTime);
        // Sequences that lost their blocks and came last make the run longer than its requests.
        left.extend((!signs.even() && signs.stretched >= STRETCHED).then_some(KvRoom));
        left.extend((signs.prefill.1 > SMALL).then_some(Prefill));
    } else {
        if signs.room.1 > SMALL {
            left.extend(room(evidence, &signs));
        }
        left.extend((signs.room.0 < SMALL && 1.0 - signs.room.0 - signs.prefill.0 > CLEAR).then_some(StepTime));
        left.extend((signs.prefill.1 > SMALL).then_some(Prefill));
    }
    // A table does not say whether its answers were read in time.
    left.extend((evidence.client_kept_up() != Some(true)).then_some(SlowClient));
    Found::between(&left)
}

/// Tells which room: by the cap and the memory where they are known, else by the shape that each gives.
fn room(evidence: &Evidence, signs: &Signs) -> Vec<Cause> {
    use Cause::{CapOnRunning, KvRoom};
    let (prompt, answer) = evidence.lengths();
    let servers = f64::from(evidence.replicas.unwrap_or(1).max(1));
    let each = signs.decoding / servers;
    if evidence.max_num_seqs.is_some_and(|cap| each < 0.6 * f64::from(cap)) {
        return vec![KvRoom];
    }
    if evidence.kv_tokens.is_some_and(|tokens| each * (prompt + answer / 2.0) < 0.6 * tokens) {
        return vec![CapOnRunning];
    }
    // Short prompts are admitted as long as they fit and lose their blocks later: memory gives an early median and uneven
    // TPOT. A cap gives waves, each of even TPOT. Long prompts fill the memory at once, and look like a cap.
    let grows = answer > 3.0 * prompt;
    if grows && signs.half_by >= MOST_LATE && signs.even() {
        return vec![CapOnRunning];
    }
    let half = evidence.figures.requests as f64 / 2.0 / servers;
    if grows && signs.half_by < MOST_LATE && signs.uneven() && each < 0.7 * half {
        return vec![KvRoom];
    }
    // A late median is a cap's doing where answers grow past their prompts, whatever the single tokens looked like.
    let waves = signs.half_by >= MOST_LATE && (grows || !signs.uneven());
    if waves { vec![CapOnRunning, KvRoom] } else { vec![KvRoom, CapOnRunning] }
}
