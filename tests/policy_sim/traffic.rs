//! What clients ask for: lengths of prompts and answers, and when they come. Drawn from a seed, before any policy runs, so
//! that every policy meets the same arrivals.

use std::sync::Arc;
use std::time::Duration;

use forebay_core::clock::Time;
use forebay_core::routing::affinity::Marks;
use forebay_core::routing::facts::Kind;

/// Lengths of prompts and answers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Mix {
    /// Prompts lognormal with mean 500 and sigma 1.0 (8 to 16k), answers lognormal with mean 200 and sigma 0.7.
    Chat,
    /// The same, but this share of prompts has 16k to 32k tokens.
    Heavy(f64),
    /// Short prompts (mean 200) and long answers (mean 1000).
    Long,
    /// The public benchmark: 100 in, 600 out.
    Benchmark,
    /// A turn of a session of eight, taken by itself.
    Turn,
    /// Questions about documents (3k to 6k tokens in, short answers) beside chats with long answers; a third is not streamed,
    /// and the proxy's guess at a prompt's length is poor.
    Documents,
    /// Nothing streamed: half chats, half embeddings, which have no decode.
    Unstreamed,
}

/// Turns of a session, and the tokens that its user adds in each after the first.
const TURNS: u32 = 8;
const ADDED: u32 = 120;

impl Mix {
    /// A prompt's and an answer's tokens.
    pub(crate) fn draw(self, rng: &mut fastrand::Rng) -> (u32, u32) {
        let answer = |rng: &mut fastrand::Rng| lognormal(rng, 200.0, 0.7, 4, 2000);
        match self {
            Mix::Heavy(share) if rng.f64() < share => (rng.u32(16_000..32_000), answer(rng)),
            Mix::Unstreamed if rng.f64() < 0.5 => (lognormal(rng, 500.0, 1.0, 8, 16_000), 1),
            Mix::Chat | Mix::Heavy(_) | Mix::Unstreamed => (lognormal(rng, 500.0, 1.0, 8, 16_000), answer(rng)),
            Mix::Long => (lognormal(rng, 200.0, 0.7, 8, 2000), lognormal(rng, 1000.0, 0.5, 50, 4000)),
            Mix::Benchmark => (100, 600),
            Mix::Documents if rng.f64() < 0.55 => (rng.u32(3000..6000), lognormal(rng, 60.0, 0.5, 4, 400)),
            Mix::Documents => (lognormal(rng, 500.0, 1.0, 8, 16_000), lognormal(rng, 500.0, 0.6, 8, 3000)),
            Mix::Turn => {
                let turn = rng.u32(0..TURNS);
                let earlier: u32 = (0..turn).map(|_| answer(rng) + ADDED).sum();
                (first_prompt(rng) + earlier, answer(rng))
            }
        }
    }
}

/// The first prompt of a session.
fn first_prompt(rng: &mut fastrand::Rng) -> u32 {
    lognormal(rng, 1200.0, 0.5, 100, 6000)
}

/// A lognormal number of tokens with this mean, cut to a range.
pub(crate) fn lognormal(rng: &mut fastrand::Rng, mean: f64, sigma: f64, least: u32, most: u32) -> u32 {
    let drawn = mean * (sigma * normal(rng) - sigma * sigma / 2.0).exp();
    (drawn.round() as u32).clamp(least, most)
}

/// A standard normal number (Box and Muller).
pub(crate) fn normal(rng: &mut fastrand::Rng) -> f64 {
    let (radius, angle) = ((-2.0 * (1.0 - rng.f64()).ln()).sqrt(), std::f64::consts::TAU * rng.f64());
    radius * angle.cos()
}

/// Exponential with this mean.
pub(crate) fn exponential(rng: &mut fastrand::Rng, mean: f64) -> f64 {
    -mean * (1.0 - rng.f64()).ln()
}

/// Seconds as a duration.
pub(crate) fn seconds(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

/// Where a request is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum To {
    /// To this proxy.
    Proxy(usize),
    /// By another client straight to this backend: nobody's figures count it.
    Backend(usize),
}

/// One request that a client will send.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    /// When it comes; a later turn of a session comes when the one before it has ended and its user has thought.
    pub(crate) at: Option<Time>,
    /// Its turn after this one, and how long the user thinks.
    pub(crate) next: Option<(usize, Duration)>,
    pub(crate) to: To,
    pub(crate) kind: Kind,
    pub(crate) prompt: u32,
    pub(crate) output: u32,
    /// What the proxy takes the prompt for, in tokens.
    pub(crate) estimate: u32,
    /// A hash for each block of prompt and answer; empty where nothing is shared.
    pub(crate) hashes: Arc<[u64]>,
    /// By what the proxy recognises its session.
    pub(crate) marks: Marks,
}

impl Request {
    /// A single request through the first proxy. The error of the prompt's estimate is lognormal with sigma 0.2.
    pub(crate) fn new(at: Time, mix: Mix, rng: &mut fastrand::Rng) -> Request {
        let (prompt, output) = mix.draw(rng);
        let kind = match (mix, output) {
            (Mix::Unstreamed, 1) => Kind::NoDecode,
            (Mix::Unstreamed, _) => Kind::Unary,
            (Mix::Documents, _) if rng.f64() < 1.0 / 3.0 => Kind::Unary,
            _ => Kind::Stream,
        };
        let sigma = if mix == Mix::Documents { 0.4 } else { 0.2 };
        Request {
            at: Some(at),
            next: None,
            to: To::Proxy(0),
            kind,
            prompt,
            output,
            estimate: lognormal(rng, f64::from(prompt), sigma, 1, u32::MAX),
            hashes: Arc::from([]),
            marks: Marks::NONE,
        }
    }
}

/// Times of a Poisson process.
pub(crate) fn poisson(rate: f64, from: f64, to: f64, rng: &mut fastrand::Rng) -> Vec<f64> {
    let mut times = Vec::new();
    let mut at = from + exponential(rng, 1.0 / rate);
    while at < to {
        times.push(at);
        at += exponential(rng, 1.0 / rate);
    }
    times
}

/// The time so many seconds after the start.
pub(crate) fn at(seconds: f64) -> Time {
    Time::from_micros((seconds * 1e6).round() as u64)
}

/// A session's turns, appended to `requests`: each prompt is all that was said before and 120 tokens more, the user thinks for
/// 1 s and an exponential time of mean 5 s. Estimates err by 10 %, the same way in every turn but for what is new.
pub(crate) fn session(id: u64, begins: f64, rng: &mut fastrand::Rng, requests: &mut Vec<Request>) {
    let mut prompt = first_prompt(rng);
    let error = (0.1 * normal(rng)).exp();
    for turn in 0..TURNS {
        let output = lognormal(rng, 200.0, 0.7, 4, 2000);
        let blocks = u64::from((prompt + output) / 16);
        let last = turn + 1 == TURNS;
        requests.push(Request {
            at: (turn == 0).then(|| at(begins)),
            next: (!last).then(|| (requests.len() + 1, seconds(1.0 + exponential(rng, 5.0)))),
            to: To::Proxy(0),
            kind: Kind::Stream,
            prompt,
            output,
            estimate: (f64::from(prompt) * error).round() as u32,
            hashes: (0..blocks).map(|block| (id << 20) | block).collect(),
            marks: Marks::session(id.wrapping_mul(0x9E37_79B9_7F4A_7C15)),
        });
        prompt += output + ADDED;
    }
}
