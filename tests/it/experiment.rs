//! `forebay compare experiment.toml` as a process: real servers (simulated vLLM) started, measured in turn and stopped, with
//! calls that are cut short in every way and go on.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use forebay_lab::rows::row_file::{self, RunRows};
use tempfile::TempDir;

use crate::harness::{eventually, free_port};

struct Experiment {
    dir: TempDir,
    file: PathBuf,
    ports: [u16; 2],
}

/// Two arms that share a simulated server: 40 requests of a fifth of a second or so each turn.
fn experiment(keys: &str) -> Experiment {
    let (dir, ports) = (TempDir::new().unwrap(), [free_port(), free_port()]);
    let mut text = format!(
        "name = \"x\"\nmodel = \"sim-fast\"\ntime_scale = 1\nrecord = [\"echo a machine\"]\n{keys}\n\
         [load]\nnum_prompts = 40\ninput_len = 20\noutput_len = 100\nignore_eos = true\n\
         warm_up = {{ num_prompts = 4, output_len = 2 }}\n"
    );
    for (name, port) in ["one", "two"].iter().zip(ports) {
        text.push_str(&format!(
            "[[servers]]\nname = \"{name}\"\nurl = \"http://127.0.0.1:{port}\"\n\
             command = \"${{FOREBAY}} sim --profile fast --port {port}\"\n"
        ));
    }
    text.push_str(
        "[[arms]]\nname = \"single\"\ngpus = 1\nservers = [\"one\"]\n\
         [[arms]]\nname = \"pair\"\nservers = [\"one\", \"two\"]\npolicy = \"round_robin\"\n",
    );
    let file = dir.path().join("experiment.toml");
    std::fs::write(&file, text).unwrap();
    Experiment { dir, file, ports }
}

impl Experiment {
    fn out(&self) -> PathBuf {
        self.dir.path().join("out")
    }

    fn command(&self, more: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_forebay"));
        command.arg("compare").arg(&self.file).arg("--out").arg(self.out()).args(more);
        command
    }

    fn call(&self, more: &[&str]) -> Output {
        self.command(more).output().unwrap()
    }

    fn spawn(&self) -> Child {
        self.command(&[]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    fn rows(&self) -> Vec<RunRows> {
        let file = std::fs::read(self.out().join("rows.jsonl")).unwrap_or_default();
        row_file::read(file.as_slice()).unwrap()
    }

    /// Whether nothing listens where its servers did.
    fn is_quiet(&self) -> bool {
        self.ports.iter().all(|port| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok())
    }
}

fn words(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// What each run was: arm, block and start.
fn turns(rows: &[RunRows]) -> Vec<(String, u32, u32)> {
    let turn = |run: &RunRows| {
        let head = run.head.clone().unwrap();
        (head.arm.unwrap(), head.block.unwrap(), head.start.unwrap())
    };
    rows.iter().map(turn).collect()
}

fn turn(arm: &str, block: u32, start: u32) -> (String, u32, u32) {
    (arm.to_owned(), block, start)
}

#[test]
fn arms_take_turns_and_servers_are_started_again_between() {
    let experiment = experiment("together = true\nstarts = 2\nblocks = 1");
    let output = experiment.call(&[]);
    assert!(output.status.success(), "{}", words(&output));
    let rows = experiment.rows();
    assert_eq!(turns(&rows), [turn("single", 0, 0), turn("pair", 0, 0), turn("pair", 1, 1), turn("single", 1, 1)]);
    for run in &rows {
        assert!(run.end.is_some() && run.records.len() == 40, "{} records", run.records.len());
        assert!(run.records.iter().all(|record| record.succeeded() && record.output_tokens == 100));
        let head = run.head.as_ref().unwrap();
        let backends: std::collections::BTreeSet<_> = run.records.iter().map(|record| &record.backend).collect();
        assert_eq!(backends.len() as u32, head.replicas.unwrap(), "each server has its part");
        assert!(run.records.iter().all(|record| record.arm == head.arm) && head.simulated);
    }
    assert!(experiment.is_quiet());
    let counted = std::fs::read_to_string(experiment.out().join("logs/forebay-pair-1.prom")).unwrap();
    for kept in ["\nprocess_cpu_seconds_total ", "\nforebay_prediction_error_ratio_count{"] {
        assert!(counted.contains(kept), "{kept} in {counted}");
    }
    let machine = std::fs::read_to_string(experiment.out().join("machine.txt")).unwrap();
    assert!(machine.contains("a machine"), "{machine}");
    let report = experiment.dir.path().join("report.html");
    let again = experiment.call(&["--html", report.to_str().unwrap()]);
    assert!(again.status.success() && experiment.rows().len() == 4, "nothing is left to do: {}", words(&again));
    let report = std::fs::read_to_string(report).unwrap();
    assert!(["[[arms]]", "a machine"].iter().all(|said| report.contains(said)), "what was run is in it");
}

#[test]
fn what_is_cut_short_goes_on_from_the_last_whole_turn() {
    let experiment = experiment("starts = 1\nblocks = 6");
    let mut child = experiment.spawn();
    eventually("two turns are whole", || {
        (experiment.rows().iter().filter(|run| run.end.is_some()).count() >= 2).then_some(())
    });
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!experiment.is_quiet(), "a killed runner leaves its servers behind");
    let before = experiment.rows().len();
    let mut file = std::fs::OpenOptions::new().append(true).open(experiment.out().join("rows.jsonl")).unwrap();
    std::io::Write::write_all(&mut file, b"{\"run\":{\"arm\":").unwrap();
    let output = experiment.call(&[]);
    assert!(output.status.success(), "{}", words(&output));
    assert!(words(&output).contains("cut off") && words(&output).contains("left behind"), "{}", words(&output));
    let turns = turns(&experiment.rows());
    let mut blocks: Vec<(&str, u32)> = turns.iter().map(|(arm, block, _)| (arm.as_str(), *block)).collect();
    blocks.sort_unstable();
    blocks.dedup();
    assert_eq!((blocks.len(), turns.len()), (12, 12), "each turn once: {turns:?}");
    let first = turns[0].2;
    assert!(turns[..before].iter().all(|turn| turn.2 == first) && turns[before].2 != first, "servers of another start");
    assert!(experiment.is_quiet());
}

#[test]
fn a_call_that_runs_out_of_time_or_is_interrupted_stops_its_servers() {
    let experiment = experiment("starts = 100\nblocks = 1");
    let output = experiment.call(&["--stop-after", "14s"]);
    assert_eq!(output.status.code(), Some(75), "{}", words(&output));
    assert!(
        words(&output).contains("of 200 turns are taken; the same command goes on from here"),
        "{}",
        words(&output)
    );
    assert!(experiment.is_quiet() && !experiment.rows().is_empty(), "{}", words(&output));
    let taken = experiment.rows().len();
    let mut child = experiment.spawn();
    eventually("a further turn is whole", || (experiment.rows().len() > taken).then_some(()));
    Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(experiment.is_quiet());
}

#[test]
fn a_server_that_dies_or_a_port_that_is_taken_is_told_at_once() {
    let experiment = experiment("");
    let text = std::fs::read_to_string(&experiment.file).unwrap();
    std::fs::write(&experiment.file, text.replace("--profile fast", "--profile nothing")).unwrap();
    let output = experiment.call(&[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(words(&output).contains("one ended while it started (exit status: 2)"), "{}", words(&output));
    assert!(words(&output).contains("  | forebay sim: `nothing` is no profile"), "{}", words(&output));
    let taken = std::net::TcpListener::bind(("127.0.0.1", experiment.ports[0])).unwrap();
    let output = experiment.call(&[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(words(&output).contains("is in use already, so one cannot listen there"), "{}", words(&output));
    drop(taken);
    std::fs::write(
        &experiment.file,
        text.replace("sim --profile fast", "sim --profile nothing")
            .replace("[[arms]]\nname = \"pair\"", "[[arms]]\nname = \"pair\"\nprice = \"cheap\""),
    )
    .unwrap();
    let output = experiment.call(&[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(words(&output).contains("arms.price: expected a number"), "{}", words(&output));
}

#[test]
fn plainer_settings_are_tried_where_a_server_does_not_come_up() {
    let experiment = experiment("");
    let text = std::fs::read_to_string(&experiment.file).unwrap();
    let port = experiment.ports[0];
    let plain = format!("--port {port}\"\nor_else = [\"--nonsense\", \"--time-scale 2\"]");
    let text = text.replacen(&format!("--port {port}\""), &plain, 1).replacen(
        "--profile fast --port",
        "--profile ${WHICH:-nothing} --port",
        1,
    );
    std::fs::write(&experiment.file, &text).unwrap();
    let output = experiment.call(&[]);
    assert_eq!(output.status.code(), Some(1), "{}", words(&output));
    assert!(words(&output).contains("it is started again with --nonsense"), "{}", words(&output));
    assert!(words(&output).contains("it is started again with --time-scale 2"), "{}", words(&output));
    let shell = text.replacen(
        "command = \"${FOREBAY} sim --profile ${WHICH:-nothing}",
        "command = \"sh -c 'case \\\"$*\\\" in *--time-scale*) exec \\\"$0\\\" \\\"$@\\\";; *) exit 9;; esac' ${FOREBAY} sim --profile fast",
        1,
    );
    std::fs::write(&experiment.file, shell).unwrap();
    let output = experiment.call(&[]);
    assert!(output.status.success(), "{}", words(&output));
    assert!(
        words(&output).contains("one is ready after") && words(&output).contains("s, with --time-scale 2"),
        "{}",
        words(&output)
    );
    assert!(
        words(&output).matches("one ended while it started").count() == 2,
        "the variant is remembered: {}",
        words(&output)
    );
}

#[test]
fn the_experiments_that_are_shipped_are_right() {
    let dry = |file: &str| {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/experiments").join(file);
        let output = Command::new(env!("CARGO_BIN_EXE_forebay"))
            .args(["compare", "--dry-run"])
            .arg(folder)
            .envs([("PYTHON", "python3"), ("MODELS", "/models"), ("CACHE", "/cache")])
            .output()
            .unwrap();
        assert!(output.status.success(), "{file}: {}", words(&output));
        words(&output)
    };
    assert!(dry("sim-two-gpus.toml").contains("3 starts of servers, 6 turns (3 of tp2, 3 of tp1x2)"));
    assert!(dry("sim-four-gpus.toml").contains("3 starts of servers, 9 turns (3 of tp4, 3 of tp2x2, 3 of tp1x4)"));
    let four = dry("four-gpus.toml");
    assert!(
        four.contains("6 of tp4, 6 of tp2x2, 6 of tp1x4") && four.contains("CUDA_VISIBLE_DEVICES=0,1,2,3"),
        "{four}"
    );
    let two = dry("two-gpus.toml");
    assert!(two.contains("15 of s2, 15 of s4"), "{two}");
    assert!(two.contains("NCCL_NVLS_ENABLE=0") && two.contains("TORCH_SYMM_MEM_DISABLE_MULTICAST=1"), "{two}");
    assert!(dry("two-gpus-rates.toml").contains("6 of s2, 6 of s4"));
    assert!(dry("h200-one-gpu.toml").contains("12 of one, 12 of two"));
    assert!(dry("h200-overhead.toml").contains("12 of direct, 12 of forebay"));
    assert!(dry("h200-routing.toml").contains("6 of predicted-ttft, 6 of least-inflight, 6 of round-robin"));
    assert!(dry("h200-diagnosis.toml").contains("3 of kv-room, 3 of max-num-seqs"));
}

#[test]
fn four_simulated_gpus_are_compared_in_three_layouts_within_two_minutes() {
    let dir = tempfile::tempdir().unwrap();
    let names = ["TP4", "TP2_A", "TP2_B", "TP1_A", "TP1_B", "TP1_C", "TP1_D"];
    // All at once, or one port would be given twice.
    let ports: Vec<std::net::TcpListener> =
        names.iter().map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let port = |place: usize| ports[place].local_addr().unwrap().port().to_string();
    let env: Vec<(String, String)> =
        names.iter().enumerate().map(|(place, name)| (format!("PORT_{name}"), port(place))).collect();
    drop(ports);
    let begun = std::time::Instant::now();
    let output = Command::new(env!("CARGO_BIN_EXE_forebay"))
        .args(["compare", "config/experiments/sim-four-gpus.toml", "--json", "--out"])
        .arg(dir.path())
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .envs(env)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", words(&output));
    println!("sim-four-gpus.toml took {:.0} s", begun.elapsed().as_secs_f64());
    assert!(begun.elapsed() < Duration::from_secs(120), "{:?}", begun.elapsed());
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let point = &report["points"][0];
    let pairs: Vec<_> =
        point["pairs"].as_array().unwrap().iter().map(|pair| (&pair["baseline"], &pair["arm"])).collect();
    assert_eq!(pairs.len(), 3, "all pairs: {pairs:?}");
    for cell in point["cells"].as_array().unwrap() {
        assert_eq!(
            (&cell["pooled"]["requests"], &cell["pooled"]["failed"]),
            (&600.into(), &0.into()),
            "{}",
            cell["arm"]
        );
    }
}
