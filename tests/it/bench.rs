//! `forebay bench` as a process, against simulated servers: its exit codes, its figures and its rows.

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use forebay_lab::rows::record::Outcome;
use forebay_lab::rows::row_file::{self, RunRows};
use serde_json::Value;

use crate::harness::eventually;
use crate::sim_faults::Sim;

impl Sim {
    fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

fn start(url: &str, args: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_forebay"))
        .args(["bench", url])
        .args(args)
        .env_remove("OPENAI_API_KEY")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn bench(url: &str, args: &[&str]) -> Output {
    start(url, args).wait_with_output().unwrap()
}

fn read(path: &Path) -> Vec<RunRows> {
    row_file::read(std::io::BufReader::new(std::fs::File::open(path).unwrap())).unwrap()
}

/// The most requests that were under way at once.
fn together(run: &RunRows) -> usize {
    let within = |at: u64| run.records.iter().filter(|one| one.sent_us <= at && at < one.sent_us + one.end_us).count();
    run.records.iter().map(|one| within(one.sent_us)).max().unwrap()
}

#[test]
fn a_sweep_is_told_as_json_and_its_rows_are_read_back() {
    let sim = Sim::start(&[]);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("rows.jsonl");
    let load = ["--num-prompts", "12", "--input-len", "30", "--output-len", "10", "--ignore-eos", "--json"];
    let rows = ["--sweep", "concurrency=1,3", "--arm", "a", "--gpus", "1", "--output", file.to_str().unwrap()];
    let done = bench(&sim.url(), &[&load[..], &rows].concat());
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let told: Value = serde_json::from_slice(&done.stdout).unwrap();
    let runs = read(&file);
    assert_eq!((runs.len(), told["runs"].as_array().unwrap().len()), (2, 2));
    for (run, limit) in runs.iter().zip([1, 3]) {
        let head = run.head.as_ref().unwrap();
        assert_eq!((head.arm.as_deref(), head.model.as_str(), head.simulated), (Some("a"), "tiny", true));
        assert!(together(run) <= limit, "{} at once", together(run));
        assert!(run.end.is_some() && run.records.iter().all(|one| one.output_tokens == 10));
        assert!(run.samples.len() >= 2 && run.samples[0].kv_tokens.is_some(), "{:?}", run.samples);
        assert_eq!(run.records[0].backend.as_deref(), sim.url().strip_prefix("http://"));
    }
    assert_eq!(told["runs"][0]["parts"][0]["output_tokens"], 120);
}

#[test]
fn metrics_are_left_alone_where_that_is_asked_for() {
    let sim = Sim::start(&[]);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("rows.jsonl");
    let load = ["--num-prompts", "4", "--input-len", "10", "--output-len", "4", "--no-scrape", "--output"];
    assert!(bench(&sim.url(), &[&load[..], &[file.to_str().unwrap()]].concat()).status.success());
    let run = &read(&file)[0];
    assert_eq!((run.records.len(), run.samples.len()), (4, 0));
}

#[test]
fn prompts_of_completions_have_exactly_their_length() {
    let sim = Sim::start(&[]);
    let args = ["--endpoint", "completions", "--num-prompts", "40", "--input-len", "57", "--output-len", "2", "--json"];
    let told: Value = serde_json::from_slice(&bench(&sim.url(), &args).stdout).unwrap();
    assert_eq!(told["runs"][0]["parts"][0]["input_tokens"], 40 * 57);
}

#[test]
fn a_server_that_dies_is_a_failure_that_is_told_with_its_count() {
    let mut sim = Sim::start(&["--time-scale", "0.05"]);
    let load = ["--num-prompts", "6", "--input-len", "20", "--output-len", "40", "--ignore-eos"];
    let running = start(&sim.url(), &load);
    // The request that tries the server runs alone.
    eventually("the load is under way", || {
        let text = sim.get("/metrics").text();
        let line = text.lines().find(|line| line.starts_with("vllm:num_requests_running{"))?;
        (line.rsplit(' ').next()?.parse::<f64>().ok()? >= 2.0).then_some(())
    });
    sim.child.kill().unwrap();
    let done = running.wait_with_output().unwrap();
    let told = String::from_utf8_lossy(&done.stdout).into_owned();
    assert_eq!(done.status.code(), Some(1), "{told}");
    assert!(told.contains(" failed: the answer was cut") || told.contains(" failed: no connection"), "{told}");
}

#[test]
fn an_interrupt_prints_what_was_measured_so_far_and_keeps_its_rows() {
    let sim = Sim::start(&[]);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("rows.jsonl");
    let load = ["--num-prompts", "400", "--input-len", "20", "--output-len", "4", "--request-rate", "10", "--arm", "a"];
    let running = start(&sim.url(), &[&load[..], &["--output", file.to_str().unwrap()]].concat());
    eventually("some answers are there", || {
        let text = sim.get("/metrics").text();
        // By reason of the end, a line each.
        let lines = text.lines().filter(|line| line.starts_with("vllm:request_success_total{"));
        let answers: f64 = lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum();
        (answers >= 6.0).then_some(())
    });
    let interrupted = Command::new("kill").args(["-INT", &running.id().to_string()]).status().unwrap();
    assert!(interrupted.success());
    let done = running.wait_with_output().unwrap();
    let (told, why) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert_eq!(done.status.code(), Some(130), "{why}");
    assert!(told.contains("median TTFT ms") && why.contains("requests that had ended"), "{told}{why}");
    let run = &read(&file)[0];
    assert!(!run.records.is_empty() && run.records.iter().all(|one| one.outcome == Outcome::Success), "{told}");
    assert_eq!(run.end, None, "it is not whole, and compare leaves it out");
}

#[test]
fn what_cannot_be_measured_is_said_with_the_right_code() {
    let sim = Sim::start(&[]);
    let said = |url: &str, args: &[&str]| {
        let done = bench(url, args);
        (done.status.code(), String::from_utf8_lossy(&done.stderr).into_owned())
    };
    let (code, text) = said(&sim.url(), &["--model", "nope", "--num-prompts", "1"]);
    assert!(code == Some(1) && text.contains("`nope` does not exist"), "{text}");
    let (code, text) = said("http://127.0.0.1:1", &["--num-prompts", "1"]);
    assert!(code == Some(1) && text.contains("cannot reach http://127.0.0.1:1"), "{text}");
    for args in [&["--sweep", "speed=1"][..], &["--dataset", "jsonl"], &["--slo", "itl=1s"], &["--num-prompts", "0"]] {
        assert_eq!(said(&sim.url(), args).0, Some(2), "{args:?}");
    }
    assert_eq!(said("https://127.0.0.1:1", &[]).0, Some(2));
}

/// The flag with which a vLLM, and the simulator, tells cached tokens.
const TELLING: &str = "--enable-prompt-tokens-details";

/// Runs a load of completions against a server that tells cached tokens; gives its rows.
fn rows_of(args: &[&str]) -> RunRows {
    let sim = Sim::start(&[TELLING]);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("rows.jsonl");
    let all = [&["--endpoint", "completions", "--no-scrape", "--output", file.to_str().unwrap()], args].concat();
    let done = bench(&sim.url(), &all);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    assert!(String::from_utf8_lossy(&done.stdout).contains("cached prompt tokens %"));
    read(&file).remove(0)
}

#[test]
fn repeated_prefixes_are_found_in_the_cache_and_rows_say_so() {
    let shape = ["--prefix-repetition-prefix-len", "160", "--prefix-repetition-suffix-len", "40"];
    let run =
        rows_of(
            &[
                &[
                    "--dataset-name",
                    "prefix_repetition",
                    "--prefix-repetition-num-prefixes",
                    "4",
                    "--num-prompts",
                    "20",
                ][..],
                &["--output-len", "2", "--max-concurrency", "1"],
                &shape[..],
            ]
            .concat(),
        );
    let head = run.head.unwrap().load;
    assert_eq!(head.dataset.as_deref(), Some("prefix_repetition of 4 prefixes of 160 tokens"));
    assert!(run.records.iter().all(|one| one.prompt_tokens == 200), "{:?}", run.records[0]);
    // One after the other: the first of each prefix finds nothing, the rest the whole of it (ten blocks of 16 tokens).
    let cached = |tokens| run.records.iter().filter(|one| one.cached_tokens == Some(tokens)).count();
    assert_eq!((cached(0), cached(160)), (4, 16));
}

#[test]
fn random_prompts_share_their_prefix_and_nothing_else() {
    let run =
        rows_of(&["--random-prefix-len", "64", "--input-len", "50", "--num-prompts", "6", "--max-concurrency", "1"]);
    let cached: Vec<_> = run.records.iter().map(|one| (one.prompt_tokens, one.cached_tokens)).collect();
    assert_eq!(cached, [&[(114, Some(0))][..], &[(114, Some(64)); 5]].concat());
}

#[test]
fn a_trace_shares_the_blocks_that_its_hash_ids_say() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("trace.jsonl");
    let line = |at: u32, ids: &str| {
        format!("{{\"timestamp\": {at}, \"input_length\": 1100, \"output_length\": 2, \"hash_ids\": [{ids}]}}\n")
    };
    let lines = [line(0, "1, 2, 3"), line(500, "1, 2, 4"), line(1000, "1, 5, 6"), line(1500, "7, 2, 8")];
    std::fs::write(&file, lines.concat()).unwrap();
    let path = file.to_str().unwrap();
    let run = rows_of(&["--dataset-name", "trace", "--dataset-path", path, "--trace-speedup", "10"]);
    assert_eq!(run.head.unwrap().load.offered, row_file::Offered::Trace(10.0));
    let told: Vec<_> = run.records.iter().map(|one| (one.prompt_tokens, one.cached_tokens)).collect();
    assert_eq!(told, [(1100, Some(0)), (1100, Some(1024)), (1100, Some(512)), (1100, Some(0))]);
    assert!(run.records[3].sent_us >= 150_000, "{}", run.records[3].sent_us);
}

#[test]
fn the_next_turn_of_a_conversation_has_the_answer_in_it() {
    let shape =
        ["--conversations-num-turns", "3", "--conversations-prefix-len", "30", "--conversations-input-len", "10"];
    let load = ["--dataset-name", "conversations", "--num-prompts", "6", "--output-len", "20", "--ignore-eos"];
    let run = rows_of(&[&load[..], &shape, &["--max-concurrency", "1", "--conversations-think-time", "1ms"]].concat());
    assert_eq!(run.records.len(), 6);
    for pair in run.records.windows(2).filter(|pair| pair[0].conversation == pair[1].conversation) {
        // The prompt, the answer to it, and ten new tokens. The last token of an answer is never computed.
        let before = pair[0].prompt_tokens + pair[0].output_tokens;
        assert_eq!(pair[1].prompt_tokens, before + 10);
        assert_eq!(pair[1].cached_tokens, Some((before - 1) / 16 * 16));
    }
}

#[test]
fn a_sharegpt_file_is_sent_with_its_own_lengths() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("sharegpt.json");
    let turn = |words: usize| format!("{{\"from\": \"x\", \"value\": \"{}\"}}", "one ".repeat(words).trim_end());
    let entry = |prompt, answer| format!("{{\"conversations\": [{}, {}]}}", turn(prompt), turn(answer));
    std::fs::write(&file, format!("[{}, {}, {}]", entry(12, 7), entry(3, 50), entry(2000, 50))).unwrap();
    let path = file.to_str().unwrap();
    let run = rows_of(&["--dataset-name", "sharegpt", "--dataset-path", path, "--num-prompts", "2", "--ignore-eos"]);
    let told: Vec<_> = run.records.iter().map(|one| (one.prompt_tokens, one.output_tokens)).collect();
    assert_eq!(told, [(12, 7), (12, 7)], "one is too short, one too long");
}

#[test]
fn a_server_that_does_not_tell_cached_tokens_leaves_them_out() {
    let sim = Sim::start(&[]);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("rows.jsonl");
    let load = ["--random-prefix-len", "64", "--input-len", "10", "--num-prompts", "4", "--output-len", "2"];
    let done = bench(&sim.url(), &[&load[..], &["--no-scrape", "--output", file.to_str().unwrap()]].concat());
    assert!(done.status.success() && !String::from_utf8_lossy(&done.stdout).contains("cached"));
    assert!(read(&file)[0].records.iter().all(|one| one.cached_tokens.is_none()));
}

#[test]
fn a_mistake_in_a_dataset_is_told_before_anything_is_sent() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("trace.jsonl");
    std::fs::write(&file, "{\"timestamp\": 0, \"input_length\": 9000, \"output_length\": 1, \"hash_ids\": [1]}\n")
        .unwrap();
    let path = file.to_str().unwrap();
    for (args, words) in [
        (&["--dataset-name", "trace", "--dataset-path", path][..], "line 1: input_length 9000 is 18 blocks"),
        (&["--dataset-name", "sharegpt", "--dataset-path", path], "JSON list of"),
        (&["--dataset-name", "custom"], "--dataset-path FILE"),
        (&["--dataset-name", "conversations", "--random-prefix-len", "5"], "does not go with"),
    ] {
        // No server is there: it would be another error.
        let done = bench("http://127.0.0.1:1", args);
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(done.status.code() == Some(2) && said.contains(words), "{args:?}: {said}");
    }
}
