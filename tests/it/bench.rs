//! `forebay bench` as a process, against simulated servers: its exit codes, its figures and its rows.

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use forebay::bench::rows::{self, RunRows};
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
    rows::read(std::io::BufReader::new(std::fs::File::open(path).unwrap())).unwrap()
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
