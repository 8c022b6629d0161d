//! A run made again in thought: requests, their clients, a network and servers of given costs, to see what twice of one thing
//! would have gained. Coarser than an engine: where a batch stays as it is, its steps are made at once. Pure.

use std::collections::{BinaryHeap, VecDeque};

use super::costs::Costs;

/// A request to make again; times in microseconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request {
    pub(super) server: usize,
    /// It is sent at this time at the earliest.
    pub(super) due: f64,
    /// And so long after the end of another one.
    pub(super) after: Option<(usize, f64)>,
    /// Tokens of its prompt, and those of them that are computed.
    pub(super) prompt: f64,
    pub(super) computed: f64,
    /// Tokens of its answer.
    pub(super) answer: f64,
    /// It fails after this time, and no server sees it.
    pub(super) fails_after: Option<f64>,
}

/// The servers, the network and the client that the requests meet.
#[derive(Clone, Copy, Debug)]
pub(super) struct World {
    pub(super) servers: usize,
    pub(super) costs: Costs,
    /// Tokens in a step at most (`--max-num-batched-tokens`).
    pub(super) budget: f64,
    /// Sequences that run at once on a server, at most.
    pub(super) cap: f64,
    /// Tokens that a server's KV blocks hold, and those that a token of a sequence takes of them: below 1 where prompts share blocks.
    pub(super) kv_tokens: f64,
    pub(super) kv_factor: f64,
    pub(super) round_trip: f64,
    /// Between two events of one server at least, and between any two that the client reads.
    pub(super) event: f64,
    pub(super) client: f64,
    /// Requests open at once, at most.
    pub(super) gate: usize,
}

/// The figures of a replay.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Replayed {
    /// From the first sending to the last end, in microseconds.
    pub(super) took: f64,
    /// Tokens held by each running sequence, on average, as gauges show them.
    pub(super) held: f64,
    /// Sequences running on average, over all servers, as gauges show them.
    pub(super) running: f64,
    /// Sequences decoding on average, over all servers.
    pub(super) decoding: f64,
}

#[derive(Clone, Copy, Debug)]
struct Sequence {
    id: usize,
    /// Prompt tokens to compute.
    prefill: f64,
    left: f64,
    held: f64,
}

#[derive(Clone, Debug, Default)]
struct Server {
    now: f64,
    arrivals: VecDeque<(f64, usize)>,
    waiting: VecDeque<Sequence>,
    running: Vec<Sequence>,
    held: f64,
    http_free: f64,
}

/// A time and what is due then; the earliest first.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Due(f64, usize);

impl Eq for Due {}

impl Ord for Due {
    fn cmp(&self, other: &Due) -> std::cmp::Ordering {
        other.0.total_cmp(&self.0).then(other.1.cmp(&self.1))
    }
}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Due) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

struct RunReplay<'a> {
    world: &'a World,
    requests: &'a [Request],
    followers: Vec<Vec<usize>>,
    /// Some requests wait for the end of others.
    chained: bool,
    servers: Vec<Server>,
    sends: BinaryHeap<Due>,
    gated: VecDeque<usize>,
    open: usize,
    end: f64,
    client_free: f64,
    held_time: f64,
    running_time: f64,
    decoding_time: f64,
}

/// Makes the run again.
pub(super) fn replay(world: &World, requests: &[Request]) -> Replayed {
    let mut followers = vec![Vec::new(); requests.len()];
    let mut sends = BinaryHeap::new();
    for (id, request) in requests.iter().enumerate() {
        match request.after {
            Some((before, _)) => followers[before].push(id),
            None => sends.push(Due(request.due, id)),
        }
    }
    let begin = sends.peek().map_or(0.0, |Due(at, _)| *at);
    let servers = vec![Server::default(); world.servers.max(1)];
    let mut made = RunReplay {
        world,
        requests,
        chained: followers.iter().any(|next| !next.is_empty()),
        followers,
        servers,
        sends,
        gated: VecDeque::new(),
        open: 0,
        end: begin,
        client_free: begin,
        held_time: 0.0,
        running_time: 0.0,
        decoding_time: 0.0,
    };
    made.run();
    let took = made.end - begin;
    Replayed {
        took,
        held: made.held_time / made.running_time.max(1e-9),
        running: made.running_time / took.max(1e-9),
        decoding: made.decoding_time / took.max(1e-9),
    }
}

impl RunReplay<'_> {
    fn run(&mut self) {
        loop {
            let busy = (0..self.servers.len()).filter(|index| self.servers[*index].has_work());
            // The server that is furthest behind goes first, so that no end of another comes too late for a request that waits
            // for it.
            let server = busy.min_by(|a, b| self.servers[*a].now.total_cmp(&self.servers[*b].now));
            match (self.sends.peek(), server) {
                (Some(Due(at, _)), Some(index)) if self.servers[index].now < *at => self.advance(index),
                (Some(_), _) => self.send(),
                (None, Some(index)) => self.advance(index),
                (None, None) => return,
            }
        }
    }

    fn send(&mut self) {
        let Some(Due(at, id)) = self.sends.pop() else { return };
        if self.open >= self.world.gate {
            self.gated.push_back(id);
            return;
        }
        self.open += 1;
        let request = &self.requests[id];
        if let Some(after) = request.fails_after {
            // Its place is taken until then; the end is a send of nothing, so it is handled at once where nobody waits for it.
            self.ends(at + after, id);
            return;
        }
        let arrives = at + self.world.round_trip / 2.0;
        let server = &mut self.servers[request.server];
        // An idle server's clock stands still. A busy one sees the arrival at its next step, as an engine does.
        if !server.has_work() {
            server.now = server.now.max(arrives);
        }
        server.arrivals.push_back((arrives, id));
    }

    fn ends(&mut self, at: f64, id: usize) {
        self.open -= 1;
        self.end = self.end.max(at);
        for next in std::mem::take(&mut self.followers[id]) {
            let pause = self.requests[next].after.map_or(0.0, |(_, pause)| pause);
            self.sends.push(Due(at + pause, next));
        }
        if let Some(next) = self.gated.pop_front() {
            self.sends.push(Due(at.max(self.requests[next].due), next));
        }
    }

    /// Makes one step of a server, or as many alike as there are before something changes.
    fn advance(&mut self, index: usize) {
        let until = self.next_change(index);
        let (world, requests) = (self.world, self.requests);
        let server = &mut self.servers[index];
        // As a gauge shows it: after a step's ends, and before others take their places.
        let (shown, held) = (server.running.len() as f64, server.held / world.kv_factor);
        server.arrive(requests);
        if server.running.is_empty() && server.waiting.is_empty() {
            // Only arrivals to come.
            if let Some((at, _)) = server.arrivals.front() {
                server.now = server.now.max(*at);
            }
            return;
        }
        server.admit(world);
        let decoding = server.running.iter().filter(|one| one.prefill <= 0.0).count() as f64;
        server.make_room(world, requests, decoding);
        let decoding = server.running.iter().filter(|one| one.prefill <= 0.0).count() as f64;
        let computed = server.prefill(world.budget - decoding);
        let costs = &world.costs;
        let took = costs.step + costs.sequence * decoding + costs.prompt_token * computed.0;
        let mut steps = 1.0_f64;
        // Most of a run is steps that only decode. They are made at once, up to the next end, arrival or full cache: a thousand
        // times faster.
        if computed.0 <= 0.0 && decoding > 0.0 {
            let shortest = server.running.iter().map(|one| one.left).fold(f64::INFINITY, f64::min);
            // Before a block is missing, since then somebody is preempted and the batch is another one.
            let full = ((world.kv_tokens - server.held) / (decoding * world.kv_factor).max(1e-9)).floor();
            let change = ((until - server.now) / took).ceil();
            steps = shortest.min(full).min(change).max(1.0);
        }
        self.held_time += took * (held + (steps - 1.0) * (held + server.held / world.kv_factor) / 2.0);
        self.running_time += took * (shown + (steps - 1.0) * server.running.len() as f64);
        self.decoding_time += took * steps * decoding;
        let events = decoding + computed.1;
        let ended = server.tokens(world, took, steps, events);
        let there = server.http_free + world.round_trip / 2.0;
        // The client reads one event after the other. It may fall behind over many steps and catch up when few decode.
        self.client_free = (self.client_free + events * steps * world.client).max(there + events * world.client);
        let seen = self.client_free;
        for id in ended {
            self.ends(seen, id);
        }
    }

    /// The next time at which a request may come to a server.
    fn next_change(&self, index: usize) -> f64 {
        let send = self.sends.peek().map_or(f64::INFINITY, |Due(at, _)| at + self.world.round_trip / 2.0);
        let arrival = self.servers[index].arrivals.iter().find(|(at, _)| *at > self.servers[index].now);
        let arrival = arrival.map_or(f64::INFINITY, |(at, _)| *at);
        // Only then can the end of a request elsewhere bring one here.
        let waits = self.chained || !self.gated.is_empty();
        let others =
            self.servers.iter().enumerate().filter(|(other, server)| waits && *other != index && server.has_work());
        let others = others.map(|(_, server)| {
            let soonest = server.running.iter().map(|one| one.left).fold(f64::INFINITY, f64::min);
            server.now + self.world.costs.step * if soonest.is_finite() { soonest } else { 1.0 }
        });
        others.fold(send.min(arrival), f64::min)
    }
}

impl Server {
    fn has_work(&self) -> bool {
        !(self.running.is_empty() && self.waiting.is_empty() && self.arrivals.is_empty())
    }

    fn arrive(&mut self, requests: &[Request]) {
        while let Some((_, id)) = self.arrivals.front().copied().filter(|(at, _)| *at <= self.now) {
            let request = &requests[id];
            self.arrivals.pop_front();
            self.waiting.push_back(Sequence {
                id,
                prefill: request.computed.max(1.0),
                left: request.answer,
                held: request.prompt,
            });
        }
    }

    fn admit(&mut self, world: &World) {
        // Those that run go first: what they decode and have left of their prompts.
        let mut budget = world.budget - self.running.iter().map(|one| one.prefill.max(1.0)).sum::<f64>();
        while (self.running.len() as f64) < world.cap && budget > 0.0 {
            let Some(one) = self.waiting.front().copied() else { return };
            let held = one.held * world.kv_factor;
            // A sequence that alone is larger than the cache is let in all the same. vLLM refuses it at its start, and a replay
            // must end.
            if self.held + held > world.kv_tokens && !self.running.is_empty() {
                return;
            }
            self.waiting.pop_front();
            self.held += held;
            budget -= one.prefill;
            self.running.push(one);
        }
    }

    /// Takes the blocks of those that began last until each that decodes has room for a token.
    fn make_room(&mut self, world: &World, requests: &[Request], decoding: f64) {
        while self.held + decoding * world.kv_factor > world.kv_tokens && self.running.len() > 1 {
            // The youngest, as vLLM does: it has the least to lose.
            let Some(one) = self.running.pop() else { return };
            self.held -= one.held * world.kv_factor;
            let made = one.held - requests[one.id].prompt;
            // What it had made is computed again with its prompt.
            self.waiting.push_front(Sequence { prefill: requests[one.id].computed.max(1.0) + made, ..one });
        }
    }

    /// Computes prompts, first come first served; with the number that were done.
    fn prefill(&mut self, mut budget: f64) -> (f64, f64) {
        let (mut computed, mut done) = (0.0, 0.0);
        for one in self.running.iter_mut().filter(|one| one.prefill > 0.0) {
            let tokens = one.prefill.min(budget.max(0.0));
            one.prefill -= tokens;
            budget -= tokens;
            computed += tokens;
            if one.prefill <= 0.0 {
                done += 1.0;
            }
        }
        (computed, done)
    }

    /// Gives each sequence that has its prompt computed so many tokens; returns those that end.
    fn tokens(&mut self, world: &World, took: f64, steps: f64, events: f64) -> Vec<usize> {
        let first = self.now + took;
        self.now += took * steps;
        // From the first step's end on, one event after the other; and at the earliest after the last step with that step's own
        // events.
        let queued = self.http_free.max(first) + events * steps * world.event;
        self.http_free = queued.max(self.now + events * world.event);
        let mut ended = Vec::new();
        let mut held = 0.0;
        self.running.retain_mut(|one| {
            if one.prefill <= 0.0 {
                one.left -= steps;
                one.held += steps;
                held += steps * world.kv_factor;
            }
            if one.left <= 0.0 {
                held -= one.held * world.kv_factor;
                ended.push(one.id);
            }
            one.left > 0.0
        });
        self.held += held;
        ended
    }
}
