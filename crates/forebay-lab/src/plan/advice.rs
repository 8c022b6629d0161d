//! The layout to try first, by the figures of the plan, and what would change that. Pure.

use serde::Serialize;

use super::Planned;
use super::bytes::Bytes;
use super::host::Host;
use super::host::topo::{Link, P2p};
use super::layout::{LayoutArm, Wanted};

/// The layout to try first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Advice {
    /// Its name.
    pub first: String,
    /// The figures that speak for it, a sentence each.
    pub why: Vec<String>,
    /// The things that would change it, a sentence each.
    pub changes: Vec<String>,
}

/// A layout of one arm on all GPUs, as far as it is weighed.
struct Weighed<'a> {
    name: &'a str,
    arm: &'a LayoutArm,
    /// Sequences that decode at once, by the least KV cache.
    surely: u64,
    /// Tokens that its KV caches hold, by the least.
    tokens: u64,
    /// The farthest link within one of its groups.
    farthest: Option<Link>,
    /// Some pair in a group copies through the host's memory.
    without_p2p: bool,
}

impl<'a> Weighed<'a> {
    fn of(host: &Host, planned: &'a Planned, wanted: Wanted<'_>) -> Option<Weighed<'a>> {
        let [arm] = planned.layout.arms.as_slice() else { return None };
        if !planned.starts || !planned.layout.idle.is_empty() {
            return None;
        }
        let mean = wanted.load.mean_tokens();
        let rooms = || arm.servers.iter().filter_map(|server| server.room.as_ref());
        let off = |a: usize, b: usize| {
            let told = host.p2p.as_ref().and_then(|p2p| p2p.get(a)?.get(b).copied().flatten());
            matches!(told, Some(P2p::Off(_)))
        };
        let pairs = |gpus: &[usize]| gpus.iter().any(|a| gpus.iter().any(|b| a != b && off(*a, *b)));
        Some(Weighed {
            name: &planned.layout.name,
            arm,
            surely: rooms().map(|room| (room.tokens_least / mean).min(room.max_num_seqs)).sum(),
            tokens: rooms().map(|room| room.tokens_least).sum(),
            farthest: arm.servers.iter().filter_map(|server| server.farthest).max_by_key(|link| link.distance()),
            without_p2p: arm.servers.iter().any(|server| pairs(&server.gpus)),
        })
    }

    fn weights(&self) -> Bytes {
        let rooms = self.arm.servers.iter().filter_map(|server| server.room.as_ref());
        Bytes(rooms.map(|room| room.weights.0 * self.arm.tp as u64).sum())
    }
}

/// Finds the layout to try first: of those that use every GPU, the smallest groups that surely hold all requests at once, since they
/// need the fewest all-reduces; where none does, the one that holds the most. None without a model, or with nothing to choose from.
pub(super) fn advice(host: &Host, layouts: &[Planned], wanted: Wanted<'_>) -> Option<Advice> {
    wanted.model?;
    let mut weighed: Vec<Weighed<'_>> =
        layouts.iter().filter_map(|planned| Weighed::of(host, planned, wanted)).filter(|one| one.surely > 0).collect();
    weighed.sort_by_key(|one| one.arm.tp);
    let concurrency = wanted.load.concurrency;
    let most = weighed.iter().map(|one| one.surely).max()?;
    let first = weighed.iter().find(|one| one.surely >= concurrency.min(most))?;
    let others = weighed.iter().filter(|one| one.name != first.name);
    Some(Advice {
        first: first.name.to_owned(),
        why: why(first, concurrency),
        changes: changes(host, first, &others.collect::<Vec<_>>(), wanted),
    })
}

fn why(first: &Weighed<'_>, concurrency: u64) -> Vec<String> {
    let mut why = vec![if first.surely >= concurrency {
        format!("It holds all {concurrency} requests at once, also by the least KV cache.")
    } else {
        format!("It holds the most at once: {} of {concurrency} requests, by the least KV cache.", first.surely)
    }];
    let copies = first.arm.servers.len();
    match (first.arm.tp, first.farthest) {
        (1, _) => why.push("It needs no all-reduce.".to_owned()),
        (tp, Some(link)) => why.push(format!("Its {tp} GPUs are linked by {}.", link.name())),
        (tp, None) => why.push(format!("The links of its {tp} GPUs are not known.")),
    }
    if copies > 1 {
        why.push(format!("It holds the weights {copies} times, {} in all.", first.weights()));
    }
    why
}

fn changes(host: &Host, first: &Weighed<'_>, others: &[&Weighed<'_>], wanted: Wanted<'_>) -> Vec<String> {
    let mut changes = Vec::new();
    let roomier = others.iter().filter(|one| one.surely > first.surely).max_by_key(|one| one.surely);
    if let Some(roomier) = roomier {
        changes.push(format!(
            "More than {} requests at once of this length, or longer ones: then {}, which holds {}.",
            first.surely, roomier.name, roomier.surely
        ));
    }
    // One copy of the weights leaves more for the KV cache, which counts where requests are long.
    let longer = others.iter().filter(|one| one.tokens > first.tokens).max_by_key(|one| one.tokens);
    if let Some(longer) = longer.filter(|one| roomier.is_none_or(|roomier| roomier.name != one.name)) {
        changes.push(format!(
            "Requests that hold more than {} tokens each while {} run at once: then {}, whose KV cache holds {} tokens.",
            first.tokens / wanted.load.concurrency.max(1),
            wanted.load.concurrency,
            longer.name,
            longer.tokens
        ));
    }
    let near = |one: &&&Weighed<'_>| one.farthest.is_some_and(|link| link.is_near()) && !one.without_p2p;
    if let Some(larger) = others.iter().filter(|one| one.arm.tp > first.arm.tp).find(near) {
        changes.push(format!(
            "A few requests at a time whose tokens must come fast: then {}, whose GPUs read the weights together.",
            larger.name
        ));
    }
    if let Some(smaller) = others.iter().filter(|one| one.arm.tp < first.arm.tp).max_by_key(|one| one.surely) {
        changes.push(format!(
            "Fewer or shorter requests, up to {} at once: then {}, with fewer all-reduces.",
            smaller.surely, smaller.name
        ));
    }
    if first.arm.tp > 1 && first.without_p2p {
        changes.push("All-reduces that take most of a step: its GPUs do not read each other's memory.".to_owned());
    }
    if first.arm.tp > 1 && host.p2p.is_none() {
        changes.push("P2P, which was not told: without it, try smaller groups first.".to_owned());
    }
    if wanted.load.overhead.is_none() {
        changes
            .push("What a server says at its start: --overhead takes it, and the range becomes one figure.".to_owned());
    }
    changes
}
