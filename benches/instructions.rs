//! Instruction counts of the paths that every request or every token takes, under callgrind: one thread, fixed input, and no
//! clock. A count does not depend on what else the machine does, so a change of 1 % shows where a timing has a spread of 10 %.
//!
//!     cargo install gungraun-runner --version 0.20.0      once; valgrind is Debian's
//!     cargo bench --bench instructions
//!
//! Each benchmark repeats its step [`TIMES`] times on state that is warm, and the count is that of all of them.
//! `benches/instructions.toml` keeps the counts of one compiler, and `cargo bench --bench instructions_guard` compares.

#![expect(missing_docs, reason = "gungraun's macros make items without them")]

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use forebay::proxy::backend_headers;
use forebay::proxy::request::peek::peek;
use forebay::proxy::request::splice::Splice;
use forebay_core::clock::Time;
use forebay_core::error::Failure;
use forebay_core::routing::affinity::Marks;
use forebay_core::routing::facts::{ArmIndex, Kind, RequestFacts};
use forebay_core::sample::Sample;
use forebay_core::stream::{Api, Parser, Segment};
use forebay_fleet::config::model::{ArmConfig, BackendConfig, Config, PoolConfig};
use forebay_fleet::membership::controller::{Controller, Settings};
use forebay_fleet::telemetry::Telemetry;
use forebay_fleet::telemetry::figures::{Ended, Figures};
use forebay_fleet::telemetry::metrics::{self, BackendMetrics};
use forebay_fleet::{AttemptOutcome, Pool};
use gungraun::{Callgrind, LibraryBenchmarkConfig, library_benchmark, library_benchmark_group, main};

// The allocator of the shipped binary. glibc's would make the counts depend on the system's C library.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Repetitions of a step in one count.
const TIMES: u32 = 100;

/// An event of a chat stream as vLLM 0.32 writes it.
const CHAT: &str = "data: {\"id\":\"chatcmpl-b382a3865df1be9c\",\"object\":\"chat.completion.chunk\",\"created\":1795429251,\
    \"model\":\"tiny\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"de\"},\"logprobs\":null,\"finish_reason\":null,\
    \"token_ids\":null}]}\n\n";

/// An event of a stream of the messages API.
const MESSAGES: &str = "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"delta\":{\"type\":\"text_delta\",\
    \"text\":\" for\"},\"index\":0}\n\n";

/// A small chat request.
const BODY: &str = "{\"model\":\"tiny\",\"messages\":[{\"role\":\"system\",\"content\":\"You answer in one short sentence.\"},\
    {\"role\":\"user\",\"content\":\"Why do rivers meander, and how long does it take?\"}],\"max_tokens\":256,\
    \"temperature\":0.7,\"stream\":true}";

// ---- the stream observer -------------------------------------------------------------------------------------------

/// A parser in the middle of a stream, with the pieces of one event.
struct Stream {
    parser: Parser,
    pieces: Vec<Bytes>,
    out: Vec<Segment>,
}

fn stream(api: Api, event: &'static str, cut: usize) -> Stream {
    let event = Bytes::from_static(event.as_bytes());
    let mut parser = Parser::new(api);
    let mut out = Vec::with_capacity(8);
    parser.push(event.clone(), &mut out);
    let pieces = [event.slice(..cut), event.slice(cut..)].into_iter().filter(|piece| !piece.is_empty()).collect();
    Stream { parser, pieces, out }
}

#[library_benchmark]
#[bench::chat(stream(Api::Chat, CHAT, 0))]
#[bench::chat_split_in_two(stream(Api::Chat, CHAT, 100))]
#[bench::messages(stream(Api::Messages, MESSAGES, 0))]
fn stream_event(mut stream: Stream) -> Stream {
    for _ in 0..TIMES {
        stream.out.clear();
        for piece in &stream.pieces {
            stream.parser.push(black_box(piece.clone()), &mut stream.out);
        }
        black_box(&stream.out);
    }
    stream
}

// ---- a request's head and body -------------------------------------------------------------------------------------

fn head() -> http::request::Parts {
    let request = http::Request::post("/v1/chat/completions")
        .header("host", "127.0.0.1:8080")
        .header("content-type", "application/json")
        .header("content-length", BODY.len())
        .header("accept", "application/json")
        .header("accept-encoding", "gzip, deflate")
        .header("connection", "keep-alive")
        .header("user-agent", "OpenAI/Python 2.9.0")
        .header("authorization", "Bearer none")
        .header("x-stainless-lang", "python")
        .header("x-stainless-retry-count", "0");
    request.body(()).expect("a valid request").into_parts().0
}

#[library_benchmark]
#[bench::chat(head())]
fn request_head(head: http::request::Parts) -> http::request::Parts {
    for _ in 0..TIMES {
        black_box(backend_headers(black_box(&head), 32 << 20)).expect("the path is served");
    }
    head
}

#[library_benchmark]
#[bench::chat(Bytes::from_static(BODY.as_bytes()))]
fn request_body(body: Bytes) -> Bytes {
    for _ in 0..TIMES {
        let peeked = peek(black_box(&body), None, None).expect("a valid body");
        let mut splice = Splice::default();
        splice.inject_usage(Api::Chat, &peeked);
        black_box(splice.apply(&body));
    }
    body
}

// ---- routing -------------------------------------------------------------------------------------------------------

/// A pool whose backends all have work and a fresh scrape.
struct Routing {
    _controller: Controller,
    pool: Arc<Pool>,
    facts: RequestFacts,
    rng: fastrand::Rng,
}

fn routing(size: u16) -> Routing {
    let backend = |place| BackendConfig::of(format!("http://10.0.0.1:{}", 1000 + place).parse().expect("a valid URL"));
    let backends = (0..size).map(backend).collect();
    let arms = vec![ArmConfig { gpus: 1, ..ArmConfig::of("default", backends) }];
    let pool = PoolConfig { model: "m".to_owned(), arms, ..PoolConfig::default() };
    let controller = Controller::new(Settings::from(&Config::default()), Arc::new(Telemetry::new()));
    controller.apply(&[pool], Time::ZERO);
    let snapshot = controller.fleet().snapshot();
    for backend in snapshot.backends() {
        let sample = Sample {
            running: Some(4.0),
            waiting: Some(1.0),
            kv_usage: Some(0.3),
            kv_capacity_tokens: Some(100_000),
            ..Sample::default()
        };
        backend.load.set_sample(sample, Time::ZERO);
    }
    let facts = RequestFacts {
        est_tokens: 500,
        sequences: 1,
        kind: Kind::Stream,
        arm: ArmIndex(0),
        pinned: None,
        marks: Marks::NONE,
    };
    let mut routing = Routing {
        pool: Arc::clone(snapshot.pool("m").expect("just applied")),
        _controller: controller,
        facts,
        rng: fastrand::Rng::with_seed(7),
    };
    for request in 0..u64::from(size) * 8 {
        serve(&mut routing, Time::from_micros(request * 100), request % 2 == 0);
    }
    routing
}

/// Takes one request through routing; one that does not end stays in flight for the whole measurement.
fn serve(routing: &mut Routing, now: Time, ends: bool) {
    let dispatched = routing.pool.dispatch(&routing.facts, &[], now, &mut routing.rng).expect("nothing is out");
    let mut ticket = dispatched.ticket;
    ticket.first_token(now + Duration::from_millis(40));
    ticket.event(now + Duration::from_millis(60), false);
    if ends {
        ticket.finish(AttemptOutcome::Success, now + Duration::from_millis(80));
    } else {
        std::mem::forget(ticket);
    }
}

#[library_benchmark]
#[bench::backends_2(routing(2))]
#[bench::backends_16(routing(16))]
#[bench::backends_128(routing(128))]
fn routing_decision(mut routing: Routing) -> Routing {
    let now = Time::from_micros(900_000);
    for _ in 0..TIMES {
        let facts = black_box(&routing.facts);
        let dispatched = routing.pool.dispatch(facts, &[], now, &mut routing.rng).expect("nothing is out");
        dispatched.ticket.finish(AttemptOutcome::Neutral, now);
    }
    routing
}

// ---- metrics -------------------------------------------------------------------------------------------------------

/// The handles of one backend, with the telemetry that they belong to.
fn backend_metrics() -> (Telemetry, Arc<BackendMetrics>) {
    let telemetry = Telemetry::new();
    let metrics = telemetry.backend("m", "default", "127.0.0.1:8001");
    (telemetry, metrics)
}

#[library_benchmark]
#[bench::gap(backend_metrics())]
fn metrics_observation(handles: (Telemetry, Arc<BackendMetrics>)) -> (Telemetry, Arc<BackendMetrics>) {
    for _ in 0..TIMES {
        handles.1.itl.record(black_box(0.0123));
    }
    handles
}

#[library_benchmark]
#[bench::outcome(backend_metrics())]
fn metrics_count(handles: (Telemetry, Arc<BackendMetrics>)) -> (Telemetry, Arc<BackendMetrics>) {
    for _ in 0..TIMES {
        handles.1.request(Api::Chat, black_box(metrics::Outcome::Failed(Failure::ClientLeft)));
    }
    handles
}

/// The live figures of a backend, warm, and a request to count.
fn live_figures() -> (Figures, Ended) {
    let ended = Ended {
        ttft: Some(Duration::from_millis(40)),
        tpot: Some(Duration::from_millis(12)),
        e2e: Some(Duration::from_secs(3)),
        prompt_tokens: 500,
        output_tokens: 250,
        ..Ended::of(metrics::Outcome::Success)
    };
    let figures = Figures::new(Time::ZERO);
    figures.record(&ended, Time::ZERO);
    (figures, ended)
}

#[library_benchmark]
#[bench::request(live_figures())]
fn figures_record((figures, ended): (Figures, Ended)) -> (Figures, Ended) {
    for _ in 0..TIMES {
        figures.record(black_box(&ended), Time::from_micros(1_000_000));
    }
    (figures, ended)
}

library_benchmark_group!(
    name = paths,
    benchmarks = [
        stream_event,
        request_head,
        request_body,
        routing_decision,
        metrics_observation,
        metrics_count,
        figures_record
    ]
);

main!(
    config = LibraryBenchmarkConfig::default().tool(Callgrind::with_args(["--cache-sim=no"])),
    library_benchmark_groups = paths
);
