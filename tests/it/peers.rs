//! `benches/gpu/peers.sh` before simulated servers: each contender has its turns, a second call has nothing left to do, and `forebay compare`
//! reads the rows.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use forebay_lab::rows::row_file::{self, RunRows, Sample};
use tempfile::TempDir;

/// The first of the ports that the driver takes: four for servers, two for a contender. Below those that the system hands out by itself, and above
/// those of the other tests.
fn free_ports() -> u16 {
    let free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
    let first = u16::try_from(std::process::id() % 20).unwrap();
    let mut bases = (0..20).map(|n| 30_100 + (n + first) % 20 * 100);
    bases.find(|base| [0, 1, 2, 3, 70, 71].iter().all(|more| free(base + more))).expect("of 20 ranges one is free")
}

struct Bench {
    dir: TempDir,
    port: u16,
}

impl Bench {
    fn call(&self, scenarios: &str, more: &[(&str, &str)]) -> Output {
        Command::new("bash")
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/gpu/peers.sh"))
            .args([scenarios, "2"])
            .env_remove("OUT")
            .envs([("SIM", "1"), ("SCALE", "0.05"), ("RATE", "8"), ("SPAN", "1"), ("CONTENDERS", "forebay placed")])
            .env("FOREBAY", env!("CARGO_BIN_EXE_forebay"))
            .env("BASE", self.dir.path())
            .env("PORT", self.port.to_string())
            .envs(more.iter().copied())
            .output()
            .unwrap()
    }

    fn file(&self, scenario: &str) -> PathBuf {
        self.dir.path().join(format!("out/{scenario}.jsonl"))
    }

    fn rows(&self, scenario: &str) -> Vec<RunRows> {
        row_file::read(std::fs::read(self.file(scenario)).unwrap().as_slice()).unwrap()
    }
}

/// Servers outlive a call, and must not outlive a test that failed.
impl Drop for Bench {
    fn drop(&mut self) {
        let notes = std::fs::read_dir(self.dir.path().join("servers")).into_iter().flatten().flatten();
        for note in notes.filter(|note| note.path().extension().is_some_and(|end| end == "json")) {
            let text = std::fs::read_to_string(note.path()).unwrap_or_default();
            if let Some(pid) =
                serde_json::from_str::<serde_json::Value>(&text).ok().and_then(|note| note["pid"].as_u64())
            {
                let _ = Command::new("kill").arg(pid.to_string()).output();
            }
        }
    }
}

fn words(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn contenders_take_turns_before_simulated_servers() {
    if Command::new("python3").arg("--version").output().is_err() {
        println!("SKIPPED: python3 is not installed");
        return;
    }
    let bench = Bench { dir: TempDir::new().unwrap(), port: free_ports() };
    let first = bench.call("hetero,prefix", &[("KEEP", "1")]);
    let said = words(&first);
    assert!(first.status.success() && said.contains("all turns have rows"), "{said}");
    for (scenario, tokens) in [("hetero", (512, 256)), ("prefix", (4224, 64))] {
        let runs = bench.rows(scenario);
        let heads: Vec<_> = runs.iter().map(|run| run.head.as_ref().unwrap()).collect();
        let turns: Vec<_> = heads.iter().map(|head| (head.arm.as_deref().unwrap(), head.block, head.start)).collect();
        let turn = |arm, block| (arm, Some(block), Some(0));
        assert_eq!(turns, [turn("forebay", 0), turn("placed", 0), turn("placed", 1), turn("forebay", 1)]);
        for run in &runs {
            assert_eq!((run.records.len(), run.samples.len(), run.end.is_some()), (8, 4, true), "{said}");
            assert!(run.records.iter().all(|record| record.succeeded() && record.output_tokens == tokens.1), "{said}");
            assert!(run.records.iter().all(|record| record.prompt_tokens == tokens.0), "{said}");
        }
        assert_eq!(heads[0].load.seed, heads[1].load.seed, "a round is of one load");
        let mut homes: Vec<_> = runs[1].records.iter().map(|record| record.backend.clone().unwrap()).collect();
        homes.sort();
        homes.dedup();
        assert_eq!(homes.len(), 2, "perfect placement sends to both servers: {said}");
    }
    let hits = |run: &RunRows| {
        let all = |looks: &[Sample]| looks.iter().filter_map(|sample| sample.prefix_hits).sum::<f64>();
        all(&run.samples[2..]) - all(&run.samples[..2])
    };
    for run in bench.rows("prefix") {
        assert!(hits(&run) > 0.0, "primers fill the caches: {said}");
    }

    let before = std::fs::read(bench.file("hetero")).unwrap();
    let second = bench.call("hetero", &[("KEEP", "0")]);
    assert!(second.status.success(), "{}", words(&second));
    assert_eq!(std::fs::read(bench.file("hetero")).unwrap(), before, "nothing was left to do: {}", words(&second));
    assert!(TcpListener::bind(("127.0.0.1", bench.port)).is_ok(), "the servers were ended: {}", words(&second));

    let report = Command::new(env!("CARGO_BIN_EXE_forebay")).arg("compare").arg(bench.file("hetero")).output().unwrap();
    assert!(report.status.success() && words(&report).contains("placed"), "{}", words(&report));
}

#[test]
fn an_unknown_scenario_and_a_missing_contender_are_named() {
    if Command::new("python3").arg("--version").output().is_err() {
        println!("SKIPPED: python3 is not installed");
        return;
    }
    let bench = Bench { dir: TempDir::new().unwrap(), port: free_ports() };
    let unknown = bench.call("hetro", &[]);
    assert!(!unknown.status.success() && words(&unknown).contains("there is no scenario hetro"), "{}", words(&unknown));
    let missing =
        bench.call("burst", &[("CONTENDERS", "nginx:hash mystery"), ("NGINX", "no-such-nginx"), ("KEEP", "0")]);
    let said = words(&missing);
    assert!(said.contains("nginx:hash: SKIPPED") && said.contains("mystery: SKIPPED"), "{said}");
}
