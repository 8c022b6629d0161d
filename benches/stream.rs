//! What reading costs: a stream's chunk (budget: 150 ns for a 200-byte event) and a request's body.
//! `cargo bench --bench stream`

use std::hint::black_box;

use bytes::Bytes;
use criterion::{Criterion, Throughput};
use forebay::proxy::request::peek::peek;
use forebay_core::stream::{Api, Parser};

const CHAT: &str = "data: {\"id\":\"chatcmpl-b382a3865df1be9c\",\"object\":\"chat.completion.chunk\",\"created\":1795429251,\
    \"model\":\"tiny\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"de\"},\"logprobs\":null,\"finish_reason\":null,\
    \"token_ids\":null}]}\n\n";
const USAGE: &str = "data: {\"id\":\"chatcmpl-9552d5f03abe900f\",\"object\":\"chat.completion.chunk\",\"created\":1795429251,\
    \"model\":\"tiny\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"de\"},\"logprobs\":null,\"finish_reason\":null,\
    \"token_ids\":null}],\"usage\":{\"prompt_tokens\":18,\"total_tokens\":20,\"completion_tokens\":2,\
    \"completion_tokens_details\":null}}\n\n";
const MESSAGES: &str = "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"delta\":{\"type\":\"text_delta\",\
    \"text\":\" for\"},\"index\":0}\n\n";

/// Pushes the pieces of `text`, cut at `cut`, into a warm parser.
fn push(c: &mut Criterion, name: &str, api: Api, text: &'static str, cut: usize) {
    let chunk = Bytes::from_static(text.as_bytes());
    let pieces = [chunk.slice(..cut), chunk.slice(cut..)];
    let mut parser = Parser::new(api);
    let mut out = Vec::with_capacity(8);
    parser.push(chunk.clone(), &mut out);
    let mut group = c.benchmark_group("stream");
    group.throughput(Throughput::Bytes(text.len() as u64));
    group.bench_function(name, |b| {
        b.iter(|| {
            out.clear();
            for piece in &pieces {
                if !piece.is_empty() {
                    parser.push(black_box(piece.clone()), &mut out);
                }
            }
            black_box(out.len())
        });
    });
}

fn streams(c: &mut Criterion) {
    push(c, "one event a chunk, chat", Api::Chat, CHAT, 0);
    push(c, "one event a chunk, messages", Api::Messages, MESSAGES, 0);
    push(c, "split in two, chat", Api::Chat, CHAT, 100);
    push(c, "usage in each event, chat", Api::Chat, USAGE, 0);
}

fn bodies(c: &mut Criterion) {
    let mut group = c.benchmark_group("peek");
    for (name, text) in [("300 B", 200), ("64 KiB", 64 << 10), ("1 MiB", 1 << 20)] {
        let words = "one two\\nthree ".repeat(text / 15);
        let body = format!(
            "{{\"model\": \"tiny\", \"messages\": [{{\"role\": \"user\", \"content\": \"{words}\"}}], \"max_tokens\": 8, \
             \"stream\": true}}"
        );
        group.throughput(Throughput::Bytes(body.len() as u64));
        group.bench_function(name, |b| b.iter(|| peek(black_box(body.as_bytes()), Some("user"), Some(1))));
    }
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    streams(&mut criterion);
    bodies(&mut criterion);
    criterion.final_summary();
}
