//! The advice of `forebay bench` and `forebay compare`, followed to the letter: each command as it is printed, each restart as it is
//! asked for, until there is a verdict.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use crate::harness::eventually;

/// The servers of an arm, which can be started again on their port.
struct Servers {
    child: Option<Child>,
    port: String,
    speed: &'static str,
}

impl Servers {
    fn start(speed: &'static str) -> Servers {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
        let mut servers = Servers { child: None, port, speed };
        servers.restart();
        servers
    }

    fn restart(&mut self) {
        // The old one first: it has the port.
        self.end();
        let mut command = Command::new(env!("CARGO_BIN_EXE_forebay"));
        command.args(["sim", "--served-model-name", "tiny", "--port", &self.port, "--time-scale", self.speed]);
        self.child = Some(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        let address = format!("127.0.0.1:{}", self.port);
        eventually("the server listens", || std::net::TcpStream::connect(&address).ok());
    }

    fn end(&mut self) {
        if let Some(mut child) = self.child.take() {
            drop(child.kill());
            drop(child.wait());
        }
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.end();
    }
}

/// Runs a line as a shell would, in a folder.
fn run(dir: &Path, line: &str) -> Output {
    let line = line.replacen("forebay", env!("CARGO_BIN_EXE_forebay"), 1);
    Command::new("sh").args(["-c", &line]).current_dir(dir).env_remove("OPENAI_API_KEY").output().unwrap()
}

fn said(done: &Output) -> String {
    String::from_utf8_lossy(&done.stdout).into_owned()
}

/// Takes the lateness of a busy machine out of the rows: it fails a check of its own, which is not what is tried here.
fn on_time(dir: &Path) {
    for file in std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
        let text = std::fs::read_to_string(&file).unwrap();
        let late = |line: &str| line.starts_with("{\"end\"");
        let lines = text.lines().map(|line| if late(line) { "{\"end\":{\"lag_p99_us\":90}}" } else { line });
        std::fs::write(&file, lines.map(|line| format!("{line}\n")).collect::<String>()).unwrap();
    }
}

/// A step of the advice: the arm whose servers are restarted first, and the command.
fn steps(report: &str) -> Vec<(Option<String>, String)> {
    let next = report.split("\nNEXT\n").nth(1).unwrap_or_default().replace("\\\n", "");
    let mut restart = None;
    let mut steps = Vec::new();
    for line in next.lines() {
        if let Some(rest) = line.strip_prefix("Restart the servers of ") {
            restart = rest.strip_suffix(", then:").map(str::to_owned);
        } else if line.starts_with("  forebay ") {
            steps.push((restart.take(), line.trim().to_owned()));
        }
    }
    steps
}

fn follow(flags: &str) {
    let dir = tempfile::tempdir().unwrap();
    let mut arms: BTreeMap<&str, Servers> =
        [("tp2", Servers::start("0.2")), ("tp1x2", Servers::start("0.4"))].into_iter().collect();
    for arm in ["tp2", "tp1x2"] {
        let port = &arms[arm].port;
        let load = "--num-prompts 12 --input-len 20 --output-len 24 --ignore-eos --gpus 2";
        let line = format!("forebay bench http://127.0.0.1:{port} {load} --arm {arm} --output {arm}.jsonl {flags}");
        let done = run(dir.path(), &line);
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        assert!(said(&done).contains("A winner takes 3 starts of each"), "{}", said(&done));
        assert!(said(&done).lines().all(|line| line.chars().count() <= 80), "{}", said(&done));
    }
    on_time(dir.path());
    let mut report = said(&run(dir.path(), "forebay compare tp2.jsonl tp1x2.jsonl"));
    assert!(report.contains("NO VERDICT") && report.lines().all(|line| line.chars().count() <= 80), "{report}");
    assert!(report.trim_end().ends_with("Report: --html FILE writes it with plots."), "{report}");
    let steps = steps(&report);
    assert!(steps.len() >= 5, "{report}");
    for (restart, command) in steps {
        if let Some(arm) = restart {
            arms.get_mut(arm.as_str()).unwrap().restart();
        }
        let done = run(dir.path(), &command);
        assert!(done.status.success(), "{command}: {}", String::from_utf8_lossy(&done.stderr));
        report = said(&done);
        on_time(dir.path());
    }
    assert!(report.contains("\nVERDICT") && !report.contains("NO VERDICT"), "{report}");
}

#[test]
fn advice_that_is_followed_to_the_letter_gives_a_verdict() {
    follow("--start 1");
}

#[test]
fn rows_that_do_not_tell_their_start_are_measured_again_with_numbers() {
    follow("");
}
