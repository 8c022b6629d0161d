//! Expected times of an engine, by which the prediction prices what it is given. docs/results.md has the trials behind the
//! constants. Sensitivities are p99 TTFT against an oracle, over the workloads tried.
//!
//! Hot path: one multiplication and one addition.

use serde::Serialize;

/// Seconds of one engine step with nothing in it (a0). Half or double moves p99 by at most 2 %, since k and v take it up; where
/// sessions repeat, half costs 5 % and double 15 %.
pub const STEP_BASE: f64 = 0.025;
/// Seconds that each decoding sequence adds to a step (b0). None at all costs 3 %.
pub const STEP_PER_SEQUENCE: f64 = 0.000_15;
/// Seconds to prefill one token (s). The one constant that is not flat: double costs up to 17 % (and 12 % of TPOT); half up to 5 %
/// where it was run, which was not with sessions.
pub const TOKEN: f64 = 0.000_1;

/// Expected times of an engine. Only its *shape* matters: a common factor ends in k and v, which are ratios to it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Shape {
    /// Seconds of a step with nothing in it.
    pub step_base: f64,
    /// Seconds that each decoding sequence adds to a step.
    pub step_per_sequence: f64,
    /// Seconds to prefill one token.
    pub token: f64,
}

impl Shape {
    /// The prior of a backend of speed 1.
    pub const PRIOR: Shape = Shape { step_base: STEP_BASE, step_per_sequence: STEP_PER_SEQUENCE, token: TOKEN };

    /// The prior of a backend that the operator calls `speed` times as fast. It divides every time for good: what is
    /// measured is a ratio to these times, so with samples the operator's figure cancels, and without it leads. A speed that
    /// is not a positive number counts as 1.
    #[must_use]
    #[inline]
    pub fn with_speed(speed: f64) -> Shape {
        let speed = if speed.is_finite() && speed > 0.0 { speed } else { 1.0 };
        Shape { step_base: STEP_BASE / speed, step_per_sequence: STEP_PER_SEQUENCE / speed, token: TOKEN / speed }
    }

    /// Seconds of one step with so many sequences decoding.
    #[must_use]
    #[inline]
    pub fn step(self, sequences: f64) -> f64 {
        self.step_base + self.step_per_sequence * sequences
    }
}
