//! Workloads in which prompts share their beginnings: system prompts, documents, conversations. Each is a fleet and the requests
//! of a seed. What a prompt consists of is a list of pieces, so that what two prompts share is exact for the engine, and for the
//! proxy known as far as its estimate of tokens goes.

#![cfg_attr(debug_assertions, allow(dead_code, reason = "a build without optimisation runs a few of them"))]

use std::sync::Arc;

use forebay_core::routing::affinity::{BLOCK_ENDS, Mark, Marks};
use forebay_core::routing::facts::Kind;
use forebay_sim::engine::{EngineConfig, StepCost};

use crate::engines::TP1;
use crate::traffic::{Request, To, at, exponential, lognormal, normal, poisson, seconds};
use crate::world::{Fleet, Incident};

/// A workload of shared prefixes.
pub(crate) struct Prefixes {
    pub(crate) name: &'static str,
    pub(crate) fleet: Fleet,
    /// Seconds that are left out of the figures.
    pub(crate) from: f64,
    pub(crate) seeds: u64,
    requests: Make,
}

type Make = Box<dyn Fn(&mut Draw) + Sync>;

impl Prefixes {
    fn new(
        name: &'static str,
        engines: &[EngineConfig],
        from: f64,
        make: impl Fn(&mut Draw) + Sync + 'static,
    ) -> Prefixes {
        let fleet = Fleet::of(engines);
        Prefixes { name, fleet, from, seeds: 3, requests: Box::new(make) }
    }

    fn incidents(mut self, incidents: &[(f64, usize, Incident)]) -> Prefixes {
        self.fleet.incidents = incidents.iter().map(|&(when, place, what)| (at(when), place, what)).collect();
        self
    }

    fn one_gpu(mut self) -> Prefixes {
        self.fleet.one_gpu = true;
        self
    }

    fn without_metrics(mut self) -> Prefixes {
        (self.fleet.metrics, self.fleet.usage) = (false, true);
        self
    }

    /// The same through so many proxies that share nothing, `told` of which each knows of.
    pub(crate) fn through(mut self, proxies: usize, told: u32) -> Prefixes {
        (self.fleet.proxies, self.fleet.told) = (proxies, told);
        self
    }

    fn one_seed(self) -> Prefixes {
        Prefixes { seeds: 1, ..self }
    }

    /// Every request of a seed, in the order of their numbers.
    pub(crate) fn requests(&self, seed: u64) -> Vec<Request> {
        let mut draw = Draw { rng: fastrand::Rng::with_seed(seed), requests: Vec::new(), next_id: 1 << 40 };
        (self.requests)(&mut draw);
        if self.fleet.proxies > 1 {
            draw.requests.iter_mut().for_each(|request| request.to = To::Proxy(draw.rng.usize(..self.fleet.proxies)));
        }
        draw.requests
    }
}

/// A part of a prompt. The same id is the same text, of which the proxy's estimate is off by the same factor.
#[derive(Clone, Copy, Debug)]
struct Piece {
    id: u64,
    tokens: u32,
}

impl Piece {
    fn estimate(self) -> f64 {
        let mut rng = fastrand::Rng::with_seed(self.id);
        f64::from(self.tokens) * (0.1 * normal(&mut rng)).exp()
    }
}

/// Requests while they are drawn.
struct Draw {
    rng: fastrand::Rng,
    requests: Vec<Request>,
    next_id: u64,
}

/// Lengths vary by this (lognormal) where nothing else is said.
const SIGMA: f64 = 0.3;

impl Draw {
    /// A piece of text that no other prompt has.
    fn new_piece(&mut self, tokens: u32) -> Piece {
        self.next_id += 1;
        Piece { id: self.next_id, tokens }
    }

    fn length(&mut self, mean: f64, sigma: f64) -> u32 {
        lognormal(&mut self.rng, mean, sigma, 1, 1 << 17)
    }

    /// Adds a request of these pieces for `output` tokens, at this time or, with none, after another (see `follows`). Returns the piece
    /// that is its answer.
    fn request(&mut self, when: Option<f64>, pieces: &[Piece], output: u32) -> Piece {
        let answer = self.new_piece(output);
        let prompt = pieces.iter().map(|piece| piece.tokens).sum();
        self.requests.push(Request {
            at: when.map(at),
            next: None,
            to: To::Proxy(0),
            kind: Kind::Stream,
            prompt,
            output,
            estimate: pieces.iter().map(|piece| piece.estimate()).sum::<f64>().round() as u32,
            hashes: blocks(pieces.iter().chain([&answer])),
            marks: marks(pieces),
        });
        answer
    }

    /// The request last drawn follows the one before it, after a pause.
    fn follows(&mut self, pause: f64) {
        let last = self.requests.len() - 1;
        self.requests[last - 1].next = Some((last, seconds(pause)));
    }

    /// A prefix and a prompt's own part, answered in `answer` tokens.
    fn ask(&mut self, when: f64, prefix: Piece, own: f64, answer: f64) {
        let own = self.length(own, SIGMA);
        let own = self.new_piece(own);
        let output = self.length(answer, SIGMA);
        self.request(Some(when), &[prefix, own], output);
    }

    /// A conversation from `begins` on: each prompt has all that was said before.
    fn conversation(&mut self, begins: f64, common: u32, first: f64, sigma: f64, added: f64) {
        let mut said = Vec::new();
        if common > 0 {
            said.push(Piece { id: 1, tokens: common });
        }
        for turn in 0..8 {
            let tokens = if turn == 0 { self.length(first, sigma) } else { self.length(added, SIGMA) };
            said.push(self.new_piece(tokens));
            let output = self.length(150.0, SIGMA);
            let answer = self.request((turn == 0).then_some(begins), &said, output);
            said.push(answer);
            if turn > 0 {
                let pause = 1.0 + exponential(&mut self.rng, 5.0);
                self.follows(pause);
            }
        }
    }
}

fn mix(hash: u64, value: u64) -> u64 {
    let mixed = (hash ^ value).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    mixed ^ (mixed >> 29)
}

/// The hashes of vLLM's blocks.
fn blocks<'a>(pieces: impl Iterator<Item = &'a Piece>) -> Arc<[u64]> {
    let (mut hashes, mut hash, mut place) = (Vec::new(), 0, 0_u32);
    for piece in pieces {
        let mut offset = 0;
        while offset < piece.tokens {
            let taken = (16 - place % 16).min(piece.tokens - offset);
            hash = mix(mix(hash, piece.id), u64::from(offset));
            (place, offset) = (place + taken, offset + taken);
            if place % 16 == 0 {
                hashes.push(hash);
            }
        }
    }
    hashes.into()
}

/// What the proxy makes of it: its own blocks of estimated tokens.
fn marks(pieces: &[Piece]) -> Marks {
    let (mut found, mut hash, mut begins) = (Vec::new(), 0x5eed, 0.0);
    for piece in pieces {
        let ends = begins + piece.estimate();
        while let Some(&end) = BLOCK_ENDS.get(found.len()).filter(|end| f64::from(**end) <= ends) {
            let offset = (f64::from(end) - begins) as u64;
            found.push(Mark { key: mix(mix(hash, piece.id), offset), tokens: end });
        }
        hash = mix(hash, piece.id);
        begins = ends;
    }
    Marks::of(&found)
}

/// How often each of the prefixes is drawn.
struct Popularity(Vec<f64>);

impl Popularity {
    fn even(count: usize) -> Popularity {
        Popularity::zipf(count, 0.0)
    }

    fn zipf(count: usize, exponent: f64) -> Popularity {
        Popularity((1..=count).map(|rank| (rank as f64).powf(-exponent)).collect())
    }

    /// The first has `share` of all requests.
    fn hot(count: usize, share: f64) -> Popularity {
        let mut weights = vec![(1.0 - share) / (count - 1) as f64; count];
        weights[0] = share;
        Popularity(weights)
    }

    fn draw(&self, rng: &mut fastrand::Rng) -> u64 {
        let mut left = rng.f64() * self.0.iter().sum::<f64>();
        for (place, weight) in self.0.iter().enumerate() {
            left -= weight;
            if left <= 0.0 {
                return place as u64;
            }
        }
        self.0.len() as u64 - 1
    }
}

/// One H200 with a 7B model, as `config/sim/h200-tp1-qwen7b.toml` has it, with room for so many tokens.
fn h(kv_tokens: u32) -> EngineConfig {
    EngineConfig {
        cost: StepCost { base_us: 4_800.0, decode_us: 12.0, prefill_us: 26.0, kv_us: 0.016, ..StepCost::default() },
        max_num_seqs: 256,
        max_num_batched_tokens: 8_192,
        num_blocks: kv_tokens / 16,
        ..TP1
    }
}

/// Requests with one of these prefixes each.
#[derive(Clone, Copy)]
struct Open {
    rate: f64,
    seconds: f64,
    prefix: u32,
    own: f64,
    answer: f64,
}

impl Open {
    const fn new(rate: f64, seconds: f64) -> Open {
        Open { rate, seconds, prefix: 4_096, own: 128.0, answer: 64.0 }
    }

    fn draw(self, draw: &mut Draw, popularity: &Popularity, first_id: u64) {
        self.draw_from(draw, popularity, first_id, 0.0);
    }

    fn draw_from(self, draw: &mut Draw, popularity: &Popularity, first_id: u64, from: f64) {
        for when in poisson(self.rate, from, self.seconds, &mut draw.rng) {
            let prefix = Piece { id: first_id + popularity.draw(&mut draw.rng), tokens: self.prefix };
            draw.ask(when, prefix, self.own, self.answer);
        }
    }

    /// A workload of even popularity.
    fn of(self, name: &'static str, engines: &[EngineConfig], prefixes: usize, from: f64) -> Prefixes {
        self.popular(name, engines, Popularity::even(prefixes), from)
    }

    fn popular(self, name: &'static str, engines: &[EngineConfig], popularity: Popularity, from: f64) -> Prefixes {
        Prefixes::new(name, engines, from, move |draw| self.draw(draw, &popularity, 100))
    }
}

/// Two servers on one GPU, from cold: 60 prefixes where each server has room for 45.
pub(crate) fn a1() -> Prefixes {
    Open::new(24.0, 20.0).of("a1", &[h(187_000); 2], 60, 0.0).one_gpu()
}

/// The same in its steady state.
pub(crate) fn a1l() -> Prefixes {
    Open::new(24.0, 120.0).of("a1l", &[h(187_000); 2], 60, 60.0).one_gpu()
}

/// The same at a quarter of the load.
pub(crate) fn a2() -> Prefixes {
    Open::new(6.0, 120.0).of("a2", &[h(187_000); 2], 60, 30.0).one_gpu()
}

/// The prefixes fit into the fleet's caches once.
pub(crate) fn a3() -> Prefixes {
    Open::new(40.0, 90.0).of("a3", &[h(100_000); 4], 80, 30.0)
}

/// Many prefixes, a few of them popular.
pub(crate) fn a4() -> Prefixes {
    Open::new(80.0, 90.0).popular("a4", &[h(150_000); 8], Popularity::zipf(400, 1.0), 30.0)
}

/// One prefix needs more than one server.
pub(crate) fn a5() -> Prefixes {
    let open = Open { own: 1_024.0, ..Open::new(70.0, 90.0) };
    open.popular("a5", &[h(150_000); 4], Popularity::hot(101, 0.6), 30.0)
}

/// Bursts of twelve requests with a prefix that was never seen.
pub(crate) fn a6() -> Prefixes {
    Prefixes::new("a6", &[h(150_000); 4], 10.0, |draw| {
        for (id, begins) in (100..).zip(poisson(3.0, 0.0, 70.0, &mut draw.rng)) {
            let mut when = begins;
            for _ in 0..12 {
                draw.ask(when, Piece { id, tokens: 6_144 }, 128.0, 64.0);
                when += exponential(&mut draw.rng, 0.05);
            }
        }
    })
}

/// Conversations.
pub(crate) fn a7() -> Prefixes {
    Prefixes::new("a7", &[h(400_000); 4], 60.0, |draw| {
        for begins in poisson(5.0, 0.0, 120.0, &mut draw.rng) {
            draw.conversation(begins, 0, 2_000.0, 0.5, 300.0);
        }
    })
}

/// Conversations with a system prompt that all have in common.
pub(crate) fn a7s() -> Prefixes {
    Prefixes::new("a7s", &[TP1; 4], 60.0, |draw| {
        for begins in poisson(1.2, 0.0, 140.0, &mut draw.rng) {
            draw.conversation(begins, 1_024, 800.0, 0.5, 120.0);
        }
    })
}

/// One server is out for half a minute and comes back empty.
pub(crate) fn a9() -> Prefixes {
    Open::new(36.0, 110.0).of("a9", &[h(150_000); 4], 90, 30.0).incidents(&[
        (50.0, 3, Incident::Out(true)),
        (79.9, 3, Incident::Restart),
        (80.0, 3, Incident::Out(false)),
    ])
}

/// One server joins.
pub(crate) fn a10() -> Prefixes {
    Open::new(36.0, 100.0).of("a10", &[h(150_000); 4], 100, 30.0).incidents(&[(50.0, 3, Incident::Join)])
}

/// Servers without metrics, and less room than is presumed.
pub(crate) fn a12() -> Prefixes {
    Open::new(36.0, 90.0).of("a12", &[h(50_000); 4], 40, 30.0).without_metrics()
}

/// Sixteen servers.
pub(crate) fn a13() -> Prefixes {
    Open::new(150.0, 75.0).of("a13", &[h(100_000); 16], 320, 30.0)
}

/// A hundred and twenty-eight servers.
pub(crate) fn a14() -> Prefixes {
    Open::new(1_100.0, 30.0).popular("a14", &[h(100_000); 128], Popularity::zipf(2_500, 0.8), 15.0)
}

/// Nothing is shared.
pub(crate) fn a15() -> Prefixes {
    Prefixes::new("a15", &[h(150_000); 4], 20.0, |draw| {
        for when in poisson(70.0, 0.0, 80.0, &mut draw.rng) {
            let tokens = draw.length(1_200.0, 0.8);
            let prompt = draw.new_piece(tokens);
            let output = draw.length(150.0, SIGMA);
            draw.request(Some(when), &[prompt], output);
        }
    })
}

/// Other prefixes from the middle on.
pub(crate) fn a17() -> Prefixes {
    Prefixes::new("a17", &[h(150_000); 4], 30.0, |draw| {
        let even = Popularity::even(90);
        Open::new(36.0, 60.0).draw(draw, &even, 100);
        Open::new(36.0, 110.0).draw_from(draw, &even, 1_000, 60.0);
    })
}

/// Long prefixes on small servers.
pub(crate) fn a19() -> Prefixes {
    let open = Open { prefix: 6_144, own: 300.0, answer: 150.0, ..Open::new(6.0, 160.0) };
    open.popular("a19", &[TP1; 4], Popularity::zipf(40, 0.7), 40.0)
}

/// Answers so long that KV capacity is short.
pub(crate) fn a20() -> Prefixes {
    let open = Open { own: 500.0, answer: 400.0, ..Open::new(30.0, 100.0) };
    open.of("a20", &[h(100_000); 4], 60, 30.0)
}

/// llm-d's b2b-saas: 150 customers' system prompts, five questions to each.
fn b2b(name: &'static str, rate: f64) -> Prefixes {
    Prefixes::new(name, &[h(250_000); 8], 40.0, move |draw| {
        for when in poisson(rate, 0.0, 120.0, &mut draw.rng) {
            let customer = draw.rng.u64(..150);
            let question = customer * 5 + draw.rng.u64(..5);
            let pieces = [Piece { id: 100 + customer, tokens: 6_000 }, Piece { id: 1_000 + question, tokens: 1_200 }];
            draw.request(Some(when), &pieces, 1_000);
        }
    })
    .one_seed()
}

pub(crate) fn b2b20() -> Prefixes {
    b2b("b2b20", 20.0)
}

pub(crate) fn b2b30() -> Prefixes {
    b2b("b2b30", 30.0)
}

/// llm-d's code generation: twenty conversations at a time, each with a long system prompt of its own.
pub(crate) fn code20() -> Prefixes {
    Prefixes::new("code20", &[h(250_000); 5], 30.0, |draw| {
        for _ in 0..20 {
            let mut turns = 0;
            while turns < 20 {
                let system = draw.rng.u32(3_000..100_000);
                let mut said = vec![draw.new_piece(system)];
                for _ in 0..draw.rng.u32(2..=10).min(20 - turns) {
                    said.push(draw.new_piece(1_500));
                    let answer = draw.request((turns == 0).then_some(0.0), &said, 800);
                    said.push(answer);
                    if turns > 0 {
                        draw.follows(0.0);
                    }
                    turns += 1;
                }
            }
        }
    })
    .one_seed()
}

/// llm-d's reasoning: answers so long that decoding decides.
pub(crate) fn reason() -> Prefixes {
    Prefixes::new("reason", &[h(250_000); 4], 0.0, |draw| {
        for _ in 0..160 {
            for turn in 0..3 {
                let own = draw.length(1_000.0, SIGMA);
                let pieces = [Piece { id: 1, tokens: 250 }, draw.new_piece(own)];
                let output = draw.length(4_000.0, 0.6);
                draw.request((turn == 0).then_some(0.0), &pieces, output);
                if turn > 0 {
                    draw.follows(0.0);
                }
            }
        }
    })
    .one_seed()
}

// Seven that the rule was not tuned on: written down before it was run on them.

/// Caches of unequal size.
pub(crate) fn unequal_caches() -> Prefixes {
    Open::new(40.0, 90.0).of("unequal_caches", &[h(200_000), h(100_000), h(50_000), h(50_000)], 80, 30.0)
}

/// Twice as many prefixes as the caches hold.
pub(crate) fn beyond_capacity() -> Prefixes {
    Open::new(30.0, 90.0).of("beyond_capacity", &[h(100_000); 4], 180, 30.0)
}

/// Bursts of forty requests.
pub(crate) fn large_bursts() -> Prefixes {
    Prefixes::new("large_bursts", &[h(150_000); 4], 10.0, |draw| {
        for (id, begins) in (100..).zip(poisson(1.0, 0.0, 70.0, &mut draw.rng)) {
            let mut when = begins;
            for _ in 0..40 {
                draw.ask(when, Piece { id, tokens: 6_144 }, 128.0, 64.0);
                when += exponential(&mut draw.rng, 0.02);
            }
        }
    })
}

/// Conversations whose histories do not fit into the caches.
pub(crate) fn conversations_that_do_not_fit() -> Prefixes {
    Prefixes::new("conversations_that_do_not_fit", &[h(60_000); 4], 60.0, |draw| {
        for begins in poisson(4.0, 0.0, 120.0, &mut draw.rng) {
            draw.conversation(begins, 0, 2_000.0, 0.5, 300.0);
        }
    })
}

/// A system prompt that all have in common, one of 20 instructions after it, one of 10 documents after that.
pub(crate) fn prefixes_within_prefixes() -> Prefixes {
    Prefixes::new("prefixes_within_prefixes", &[h(150_000); 4], 30.0, |draw| {
        for when in poisson(40.0, 0.0, 90.0, &mut draw.rng) {
            let group = draw.rng.u64(..20);
            let document = group * 10 + draw.rng.u64(..10);
            let own = draw.length(128.0, SIGMA);
            let own = draw.new_piece(own);
            let output = draw.length(64.0, SIGMA);
            let shared = [(1, 1_024), (100 + group, 2_048), (1_000 + document, 2_048)];
            let [common, instructions, document] = shared.map(|(id, tokens)| Piece { id, tokens });
            draw.request(Some(when), &[common, instructions, document, own], output);
        }
    })
}

/// One server is half as fast.
pub(crate) fn a_slow_server() -> Prefixes {
    let fast = h(150_000);
    let slow = EngineConfig { cost: crate::engines::slowed(fast.cost, 2.0), ..fast };
    Open::new(36.0, 90.0).of("a_slow_server", &[fast, fast, fast, slow], 90, 30.0)
}

/// As many requests that share nothing.
pub(crate) fn mixed() -> Prefixes {
    Prefixes::new("mixed", &[h(150_000); 4], 30.0, |draw| {
        Open::new(25.0, 90.0).draw(draw, &Popularity::even(80), 100);
        for when in poisson(25.0, 0.0, 90.0, &mut draw.rng) {
            let tokens = draw.length(1_200.0, 0.8);
            let prompt = draw.new_piece(tokens);
            let output = draw.length(150.0, SIGMA);
            draw.request(Some(when), &[prompt], output);
        }
    })
}
