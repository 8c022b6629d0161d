//! The access log of a real proxy with an A/B split, compared: its figures are those of the load generator's own rows.

use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::harness::eventually;
use crate::sim_faults::Sim;

/// A proxy that is ended when the test is.
struct Proxy(std::process::Child);

impl Drop for Proxy {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Compares one file; gives the report as JSON.
fn compared(file: &Path, more: &[&str]) -> Value {
    let slo = ["--json", "--baseline", "a", "--slo", "ttft=2s,tpot=500ms"];
    let done =
        Command::new(env!("CARGO_BIN_EXE_forebay")).arg("compare").arg(file).args(slo).args(more).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    serde_json::from_slice(&done.stdout).unwrap()
}

fn figure(cell: &Value, name: &str) -> Option<f64> {
    cell["figures"].as_array().unwrap().iter().find(|one| one["figure"] == name)?["value"].as_f64()
}

#[test]
fn a_log_of_real_traffic_is_compared_like_the_rows_of_the_same_run() {
    // Slower than real servers, so that a busy machine adds little to what they take.
    let (fast, slow) = (Sim::start(&["--time-scale", "0.5"]), Sim::start(&["--time-scale", "0.25"]));
    let dir = tempfile::tempdir().unwrap();
    let (port, admin) = (free_port(), free_port());
    let config = format!(
        "[listen]\naddress = \"127.0.0.1:{port}\"\n[admin]\naddress = \"127.0.0.1:{admin}\"\n[[pools]]\nmodel = \"tiny\"\n\
         session = {{ header = \"x-session-id\" }}\n[[pools.arms]]\nname = \"a\"\nbackends = [{{ url = \"http://{}\" }}]\n\
         [[pools.arms]]\nname = \"b\"\nbackends = [{{ url = \"http://{}\" }}]\n",
        fast.address, slow.address
    );
    std::fs::write(dir.path().join("forebay.toml"), config).unwrap();
    let (log, rows) = (dir.path().join("access.log"), dir.path().join("rows.jsonl"));
    // Both logs go into one file, as where a container's output is kept: the log of the process stands between the lines.
    let all = File::create(&log).unwrap();
    let serve = Command::new(env!("CARGO_BIN_EXE_forebay"))
        .args(["serve", "--config", dir.path().join("forebay.toml").to_str().unwrap(), "--access-log", "json"])
        .stdout(all.try_clone().unwrap())
        .stderr(Stdio::from(all))
        .spawn()
        .unwrap();
    let _proxy = Proxy(serve);
    let url = format!("http://127.0.0.1:{port}");
    eventually("the proxy lists its model", || {
        let ready = format!("http://127.0.0.1:{admin}/ready");
        Command::new("curl").args(["-sf", &ready]).output().ok().filter(|done| done.status.success())
    });
    let load = ["--num-prompts", "120", "--input-len", "40", "--output-len", "12", "--request-rate", "15"];
    let sessions = ["--session-header", "x-session-id", "--ignore-eos", "--no-scrape", "--output"];
    let mut bench = Command::new(env!("CARGO_BIN_EXE_forebay"));
    bench.args(["bench", &url]).args(load).args(sessions).arg(&rows);
    let done = bench.env_remove("OPENAI_API_KEY").output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    // The log is written by a thread of its own.
    let streams = |text: &str| text.lines().filter(|line| line.contains("\"stream\":true")).count();
    eventually("every request is in the log", || {
        (streams(&std::fs::read_to_string(&log).unwrap()) >= 121).then_some(())
    });
    let (by_log, by_rows) = (compared(&log, &[]), compared(&rows, &[]));
    let cells = |report: &Value| report["points"][0]["cells"].as_array().unwrap().clone();
    for (logged, timed) in cells(&by_log).iter().zip(cells(&by_rows)) {
        assert_eq!(logged["arm"], timed["arm"]);
        let count = |cell: &Value, of: &str| cell["pooled"][of].as_u64().unwrap();
        // The log also has the request that tries the server.
        assert!(count(logged, "requests").abs_diff(count(&timed, "requests")) <= 1, "{logged}");
        assert!(count(logged, "output_tokens").abs_diff(count(&timed, "output_tokens")) <= 12);
        for (name, within) in [("ttft_median", 30.0), ("tpot_median", 5.0), ("e2e_median", 60.0)] {
            let (logged, timed) = (figure(logged, name).unwrap(), figure(&timed, name).unwrap());
            assert!((logged - timed).abs() <= within + 0.1 * timed, "{name}: {logged} beside {timed} ms");
        }
        assert!(
            figure(logged, "itl_median").is_none() && figure(&timed, "itl_median").is_some(),
            "a log tells no gaps"
        );
        assert!(figure(logged, "slo_attainment").is_some());
    }
    the_reports_go_by_session(&by_log, &by_rows);
    let counts = std::fs::read_to_string(&log).unwrap().matches("\"path\":\"/tokenize\"").count();
    assert!(counts <= 2 * 121 + 10, "{counts} calls of /tokenize for 121 prompts");
    let warnings = by_log["warnings"].to_string();
    assert!(warnings.contains("from an access log") && warnings.contains("none of the access log"), "{warnings}");
    let text = std::fs::read_to_string(&log).unwrap();
    assert!(!text.contains("0-119"), "a session is hashed, and its own value is not in the log");
}

fn the_reports_go_by_session(by_log: &Value, by_rows: &Value) {
    let sessions = |report: &Value| report["points"][0]["sample_ratio"]["arms"][0][1].as_u64().unwrap();
    assert!(sessions(by_log).abs_diff(sessions(by_rows)) <= 1, "sessions, by their hashes");
    let interval = |report: &Value| {
        let ratios = report["points"][0]["pairs"][0]["ratios"].as_array().unwrap();
        ratios.iter().find(|ratio| ratio["figure"] == "ttft_median")?["interval"]["low"].as_f64()
    };
    assert!(interval(by_log).is_some() && interval(by_rows).is_some(), "both have intervals by session");
}
