//! The settings of a run of the test's own engine, and draws of them by seed.

use forebay_lab::rows::row_file::Offered;

/// Servers, network, client and load of a run; times in microseconds.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    pub(crate) servers: u32,
    /// A step with nothing in it, and what each decoding sequence, each computed prompt token and each thousand tokens of context add.
    pub(crate) step_us: f64,
    pub(crate) sequence_us: f64,
    pub(crate) prompt_us: f64,
    pub(crate) context_us: f64,
    /// The spread of a step's time, as a share of it.
    pub(crate) jitter: f64,
    /// `--max-num-batched-tokens`, `--max-num-seqs`, and blocks of the KV cache.
    pub(crate) budget: u32,
    pub(crate) max_num_seqs: u32,
    pub(crate) blocks: u32,
    /// The API server's time for an event.
    pub(crate) event_us: f64,
    pub(crate) round_trip_us: f64,
    pub(crate) failing: Failing,
    /// The client's time for an event.
    pub(crate) client_us: f64,
    pub(crate) offered: Offered,
    pub(crate) requests: u32,
    /// Tokens of a prompt, and how far single ones depart from it (a factor).
    pub(crate) prompt: u32,
    pub(crate) prompt_spread: f64,
    /// Leading tokens of a prompt that all prompts of its group share, and the groups.
    pub(crate) shared: u32,
    pub(crate) groups: u32,
    /// Tokens of an answer at most, and the mean of such as end by themselves; none: all go up to the limit.
    pub(crate) answer: u32,
    pub(crate) ends_at: Option<f64>,
    pub(crate) scrapes: Scrapes,
    /// Answers say how many of their prompt's tokens were cached.
    pub(crate) tells_cached: bool,
    /// The rows say `--max-num-seqs`.
    pub(crate) tells_cap: bool,
    pub(crate) seed: u64,
}

/// The way in which servers fail.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Failing {
    No,
    /// The last server is gone from the first time to the second, in seconds.
    Gone(f64, f64),
    /// A share of the requests gets a 500 at once.
    Errors(f64),
}

/// What is scraped, and how often, in seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Scrapes {
    Whole(f64),
    /// Sequences that run and wait, and nothing else.
    Few(f64),
    None,
}

/// The kinds of load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    AllAtOnce,
    ClosedLoop,
    AtARate,
}

pub(crate) const KINDS: [Kind; 3] = [Kind::AllAtOnce, Kind::ClosedLoop, Kind::AtARate];

fn between(rng: &mut fastrand::Rng, from: f64, to: f64) -> f64 {
    from + (to - from) * rng.f64()
}

pub(crate) fn log_between(rng: &mut fastrand::Rng, from: f64, to: f64) -> f64 {
    between(rng, from.ln(), to.ln().max(from.ln())).exp()
}

impl Setup {
    /// One server of a usual kind with room for everything, and a quiet load on it.
    pub(crate) fn usual() -> Setup {
        Setup {
            servers: 1,
            step_us: 12_000.0,
            sequence_us: 60.0,
            prompt_us: 50.0,
            context_us: 5.0,
            jitter: 0.03,
            budget: 2048,
            max_num_seqs: 256,
            blocks: 20_000,
            event_us: 30.0,
            round_trip_us: 300.0,
            failing: Failing::No,
            client_us: 15.0,
            offered: Offered::Unlimited,
            requests: 300,
            prompt: 100,
            prompt_spread: 1.0,
            shared: 0,
            groups: 1,
            answer: 150,
            ends_at: None,
            scrapes: Scrapes::Whole(0.5),
            tells_cached: true,
            tells_cap: true,
            seed: 7,
        }
    }

    /// Settings of any kind: what limits them, only an experiment tells.
    pub(crate) fn draw(kind: Kind, rng: &mut fastrand::Rng) -> Setup {
        let step_us = log_between(rng, 4e3, 30e3);
        let sequence_us = step_us / log_between(rng, 70.0, 500.0);
        let requests = between(rng, 200.0, 400.0) as u32;
        let servers = 1 + u32::from(rng.f64() < 0.3);
        let answer = log_between(rng, 16.0, 300.0) as u32;
        let prompt = log_between(rng, 30.0, 3000.0) as u32;
        let longest = (2 * prompt + answer).div_ceil(16) + 2;
        let needed = f64::from(requests / servers) * f64::from(prompt + answer / 2) / 16.0;
        let some = |rng: &mut fastrand::Rng, share: f64| rng.f64() < share;
        let mut setup = Setup {
            servers,
            step_us,
            sequence_us,
            prompt_us: step_us / log_between(rng, 90.0, 500.0),
            context_us: if some(rng, 0.5) { sequence_us * between(rng, 0.0, 1.0) } else { 0.0 },
            jitter: between(rng, 0.0, 0.12),
            budget: [2048, 8192][rng.usize(..2)],
            max_num_seqs: if some(rng, 0.45) { log_between(rng, 4.0, 128.0) as u32 } else { 256 },
            blocks: if some(rng, 0.4) {
                log_between(rng, f64::from(2 * longest), (0.8 * needed).max(f64::from(3 * longest))) as u32
            } else {
                longest * 600
            },
            event_us: if some(rng, 0.2) { log_between(rng, 150.0, 800.0) } else { between(rng, 15.0, 60.0) },
            round_trip_us: if some(rng, 0.3) { log_between(rng, 10e3, 250e3) } else { between(rng, 100.0, 2e3) },
            client_us: if some(rng, 0.1) { log_between(rng, 150.0, 800.0) } else { between(rng, 8.0, 25.0) },
            requests,
            prompt,
            prompt_spread: if some(rng, 0.5) { between(rng, 1.0, 2.0) } else { 1.0 },
            answer,
            ends_at: some(rng, 0.6).then(|| f64::from(answer) * between(rng, 0.3, 1.5)),
            scrapes: Scrapes::Whole(between(rng, 0.3, 1.0)),
            tells_cached: some(rng, 0.7),
            tells_cap: some(rng, 0.8),
            seed: rng.u64(..),
            ..Setup::usual()
        };
        if some(rng, 0.3) {
            setup.shared = (f64::from(prompt) * between(rng, 0.4, 0.95)) as u32 / 16 * 16;
            setup.groups = 1 + rng.u32(..8);
        }
        let quick = super::engine::run(&setup).seconds();
        setup.offered = match kind {
            Kind::AllAtOnce => Offered::Unlimited,
            Kind::ClosedLoop => Offered::Concurrency(log_between(rng, 2.0, 200.0) as u32),
            Kind::AtARate => Offered::Rate(f64::from(requests) / quick * log_between(rng, 0.2, 3.0)),
        };
        if some(rng, 0.12) {
            let whole = super::engine::run(&setup).seconds();
            setup.failing = if some(rng, 0.5) {
                let from = whole * between(rng, 0.1, 0.6);
                Failing::Gone(from, from + whole * between(rng, 0.05, 0.4))
            } else {
                Failing::Errors(log_between(rng, 0.005, 0.3))
            };
        }
        // Looks of a second at a run of two seconds show nothing; who wants a diagnosis measures for longer.
        let whole = super::engine::run(&setup).seconds();
        setup.scrapes = Scrapes::Whole((whole / between(rng, 25.0, 100.0)).clamp(0.1, 1.0));
        setup
    }
}
