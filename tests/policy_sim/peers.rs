//! The rules of other routers, on the same arrivals. Each is given what the real one could know at best: where a router follows
//! KV events, the caches as they are.

use std::collections::HashMap;

use forebay_sim::engine::Engine;

use crate::traffic::Request;

/// What one backend has to do.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Load {
    /// Requests that have not ended.
    pub(crate) in_flight: u32,
    /// Prompt tokens of requests without a first token that were not cached when they came.
    pub(crate) uncached: u64,
}

/// What a peer sees of a request and of the backends.
pub(crate) struct Seen<'a> {
    pub(crate) engines: &'a [Engine],
    pub(crate) loads: &'a [Load],
    pub(crate) usable: &'a [bool],
    pub(crate) request: &'a Request,
}

impl Seen<'_> {
    fn usable(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.engines.len()).filter(|&place| self.usable[place])
    }

    /// Prompt tokens that the backend has in its cache.
    fn cached(&self, place: usize) -> u32 {
        self.engines[place].cached_tokens(&self.request.hashes, self.request.prompt)
    }
}

/// A router's rule.
pub(crate) trait Peer {
    /// The place of the backend that gets the request.
    fn choose(&mut self, seen: &Seen<'_>, rng: &mut fastrand::Rng) -> usize;
}

/// The place with the least of a figure; one of the ties at random.
fn least(places: impl Iterator<Item = usize>, figure: impl Fn(usize) -> u64, rng: &mut fastrand::Rng) -> usize {
    places.min_by_key(|&place| (figure(place), rng.u32(..))).unwrap()
}

/// llm-d's default since v1.0: of the backends that hold `HELD` of the prompt and whose uncached tokens in flight are within the
/// limit, the one with the fewest uncached tokens in flight, this prompt's counted; of all backends if none is.
pub(crate) struct StickyUntilSaturated;

/// Share of a prompt that a backend must hold to be home.
const HELD: f64 = 0.8;
/// Seconds of prefill under way from which a backend is saturated.
const SATURATED: f64 = 14.0;

impl Peer for StickyUntilSaturated {
    fn choose(&mut self, seen: &Seen<'_>, rng: &mut fastrand::Rng) -> usize {
        let prompt = seen.request.prompt;
        let after = |place: usize| seen.loads[place].uncached + u64::from(prompt - seen.cached(place).min(prompt));
        let home = |&place: &usize| {
            let limit = SATURATED / (seen.engines[place].config().cost.prefill_us * 1e-6);
            f64::from(seen.cached(place)) >= HELD * f64::from(prompt) && seen.loads[place].uncached as f64 <= limit
        };
        let homes: Vec<usize> = seen.usable().filter(home).collect();
        if homes.is_empty() { least(seen.usable(), after, rng) } else { least(homes.into_iter(), after, rng) }
    }
}

/// vllm-router's `cache_aware`: the backend that was sent most of the prompt, if that is `MATCH` of it; else, and where the loads
/// differ by more than `UNEVEN` requests and `UNEVEN_RATIO` times, the one with the fewest requests in flight. It remembers
/// what it sent, and never learns of an eviction.
#[derive(Default)]
pub(crate) struct CacheAware {
    /// For each block of a prompt, the backends that were sent it, the last one last.
    sent: HashMap<u64, Vec<usize>>,
}

const MATCH: f64 = 0.3;
const UNEVEN: u32 = 64;
const UNEVEN_RATIO: f64 = 1.5;

impl Peer for CacheAware {
    fn choose(&mut self, seen: &Seen<'_>, rng: &mut fastrand::Rng) -> usize {
        let request = seen.request;
        let blocks = &request.hashes[..request.hashes.len().min(request.prompt as usize / 16)];
        let loads = || seen.usable().map(|place| seen.loads[place].in_flight);
        let (most, fewest) = (loads().max().unwrap_or(0), loads().min().unwrap_or(0));
        let uneven = most - fewest > UNEVEN && f64::from(most) > UNEVEN_RATIO * f64::from(fewest);
        let mut home = None;
        if !uneven {
            let known = blocks.iter().take_while(|block| self.sent.contains_key(block)).count();
            if known as f64 * 16.0 > MATCH * f64::from(request.prompt) {
                let holders = &self.sent[&blocks[known - 1]];
                home = holders.iter().rev().copied().find(|&place| seen.usable[place]);
            }
        }
        let chosen = home.unwrap_or_else(|| least(seen.usable(), |place| u64::from(seen.loads[place].in_flight), rng));
        for block in blocks {
            let holders = self.sent.entry(*block).or_default();
            holders.retain(|&place| place != chosen);
            holders.push(chosen);
        }
        chosen
    }
}

/// Consistent hash by the prompt's first block with bounded load: the first backend on the ring with fewer than `BOUND` times its
/// share of the requests in flight.
pub(crate) struct BoundedHash;

const BOUND: f64 = 1.25;

impl Peer for BoundedHash {
    fn choose(&mut self, seen: &Seen<'_>, rng: &mut fastrand::Rng) -> usize {
        let key = seen.request.hashes.first().copied().unwrap_or_else(|| rng.u64(..));
        let usable: Vec<usize> = seen.usable().collect();
        let all: u32 = usable.iter().map(|&place| seen.loads[place].in_flight).sum();
        let bound = (BOUND * f64::from(all + 1) / usable.len() as f64).ceil();
        // A rendezvous order is what a ring with many points comes to.
        let mut order = usable;
        order.sort_by_key(|&place| {
            fastrand::Rng::with_seed(key ^ (place as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15)).u64(..)
        });
        let free = |place: &usize| f64::from(seen.loads[*place].in_flight) < bound;
        order.iter().copied().find(free).unwrap_or(order[0])
    }
}
