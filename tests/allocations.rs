//! The way of a request through routing takes no memory from the allocator: decision, ticket, first token, later tokens and
//! end, with affinity, at several sizes of pool. A counting allocator says so; it counts this test's thread alone.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use forebay_core::clock::Time;
use forebay_core::routing::affinity::{BLOCK_ENDS, Mark, Marks};
use forebay_core::routing::decision::Trace;
use forebay_core::routing::facts::{ArmIndex, Kind, RequestFacts};
use forebay_core::routing::policy::PolicyName;
use forebay_core::sample::Sample;
use forebay_fleet::config::load_text;
use forebay_fleet::membership::controller::{Controller, Settings};
use forebay_fleet::telemetry::Telemetry;
use forebay_fleet::{AttemptOutcome, Pool};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call goes to the system's allocator as it came; the counter is a plain cell without a destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.realloc(block, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A pool as the config makes it, every backend scraped.
fn pool(policy: &str, size: u16) -> (Controller, Arc<Pool>) {
    let backends: Vec<String> = (0..size).map(|at| format!("{{ url = \"http://10.0.0.1:{}\" }}", 1000 + at)).collect();
    let file = format!("[[pools]]\nmodel = \"m\"\npolicy = \"{policy}\"\nbackends = [{}]\n", backends.join(", "));
    let config = load_text(Path::new("pool.toml"), &file, &|_| None).expect("a valid file").config;
    let controller = Controller::new(Settings::from(&config), Arc::new(Telemetry::new()));
    controller.apply(&config.pools, Time::ZERO);
    let snapshot = controller.fleet().snapshot();
    for backend in snapshot.backends() {
        let sample = Sample {
            running: Some(4.0),
            waiting: Some(1.0),
            kv_usage: Some(0.3),
            kv_capacity_tokens: Some(100_000),
            prefix_queries: Some(10.0),
            prefix_hits: Some(5.0),
            ..Sample::default()
        };
        backend.load.set_sample(sample, Time::ZERO);
    }
    let pool = Arc::clone(snapshot.pool("m").expect("just applied"));
    (controller, pool)
}

/// A request whose first blocks a seventh of all requests have in common.
fn request(number: u64) -> RequestFacts {
    let prefix: Vec<Mark> =
        [256, 512, 1024].map(|tokens| Mark { key: number % 7 + u64::from(tokens), tokens }).into_iter().collect();
    let kind = if number.is_multiple_of(5) { Kind::Unary } else { Kind::Stream };
    RequestFacts { kind, ..asking(1200, number % 50, &prefix) }
}

fn asking(est_tokens: u32, session: u64, prefix: &[Mark]) -> RequestFacts {
    let mut marks = Marks::of(prefix);
    marks.session = Some(session);
    RequestFacts { est_tokens, sequences: 1, kind: Kind::Stream, arm: ArmIndex(0), pinned: None, marks }
}

/// A request of 4,000 tokens, all of which others with this number begin with.
fn long(number: u64) -> RequestFacts {
    let block = |tokens: u32| Mark { key: (number << 32) + u64::from(tokens), tokens };
    let prefix: Vec<Mark> = BLOCK_ENDS.iter().filter(|end| **end <= 4_000).map(|end| block(*end)).collect();
    assert_eq!(prefix.len(), 62);
    asking(4_000, number, &prefix)
}

/// The whole way of requests that overlap; `tried` on every ninth, as after a failure.
fn serve(pool: &Pool, requests: &[RequestFacts], numbers: std::ops::Range<u64>) {
    let mut rng = fastrand::Rng::with_seed(numbers.start);
    let mut open = [const { None }; 16];
    for number in numbers {
        let now = Time::from_micros(number * 700);
        let first = [pool.members()[0].backend.id];
        let tried: &[_] = if number.is_multiple_of(9) && pool.members().len() > 1 { &first } else { &[] };
        let facts = &requests[number as usize % requests.len()];
        let mut ticket = pool.dispatch(facts, tried, now, &mut rng).expect("nothing is out").ticket;
        ticket.first_token(now + Duration::from_millis(3));
        ticket.event(now + Duration::from_millis(5), false);
        if let Some(older) = open[(number % 16) as usize].replace(ticket) {
            older.finish(AttemptOutcome::Success, now);
        }
    }
}

/// Serves the requests from `warm` on, a thousand of them, and returns how often that took memory.
fn taken(pool: &Pool, requests: &[RequestFacts], warm: u64) -> u64 {
    serve(pool, requests, 0..warm); // queues grow to their longest once
    let before = ALLOCATIONS.get();
    assert!(before > 0, "the pool itself took some: the counter counts");
    serve(pool, requests, warm..warm + 1_000);
    ALLOCATIONS.get() - before
}

#[test]
fn no_request_takes_memory_on_its_way_through_routing() {
    let requests: Vec<RequestFacts> = (0..350).map(request).collect();
    for policy in PolicyName::ALL.iter().map(|policy| policy.as_str()) {
        for size in [1, 16, 512] {
            let (_controller, pool) = pool(policy, size);
            let taken = taken(&pool, &requests, 500);
            assert_eq!(taken, 0, "{policy} at {size} backends: {taken} allocations in 1,000 requests");
        }
    }
}

#[test]
fn a_long_prefix_takes_no_memory_whether_it_is_known_or_not() {
    let known: Vec<RequestFacts> = (0..8).map(long).collect();
    let unknown: Vec<RequestFacts> = (100..1_600).map(long).collect();
    for size in [1, 16, 128] {
        for (name, requests) in [("known", &known), ("unknown", &unknown)] {
            let (_controller, pool) = pool("predicted_ttft", size);
            let taken = taken(&pool, requests, 500);
            assert_eq!(taken, 0, "a prefix that is {name}, before {size} backends");
        }
    }
}

#[test]
fn a_known_prefix_is_expected_to_be_found() {
    let (_controller, pool) = pool("predicted_ttft", 16);
    let mut rng = fastrand::Rng::with_seed(1);
    let mut matched = |facts: &RequestFacts| {
        let mut trace = Trace::default();
        let sent = pool.dispatch_traced(facts, &[], Time::ZERO, &mut rng, &mut trace).expect("nothing is out");
        drop(sent);
        trace.rows.iter().map(|row| row.matched).max()
    };
    assert_eq!(matched(&long(1)), Some(0));
    assert!(matched(&long(1)) >= Some(3_900), "what the trials above call known is");
    assert_eq!(matched(&long(2)), Some(0));
}
