//! The commands of the README and of `docs/`, run as they are written. Each `sh` block of a document is run in order, by bash, in
//! a folder that looks like a checkout, with this build's `forebay`. What cannot run here stands in [`NOT_RUN`] with its reason,
//! so that a new command is either run or looked at.
//!
//! Two things are changed. Ports are free ones, so that tests run side by side. And a server that a document runs in the foreground
//! goes to the background, where the next one takes its place.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::fmt::Write as _;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU16, Ordering};

use tempfile::TempDir;

/// Beginnings of commands that are not run, and why.
const NOT_RUN: &[(&str, &str)] = &[
    ("forebay top", "it needs a terminal: tests/it/top.rs runs it in one"),
    ("cargo ", "it builds, and may run this very test; .ci/run does what it says"),
    ("RUSTFLAGS=", "it builds every dependency anew"),
    ("FOREBAY_BIN=", "it takes two minutes, and needs what the command before it builds"),
    ("docker ", "it needs a Docker daemon and a registry of images"),
    ("install ", "it changes the machine"),
    ("kubectl ", "it needs a cluster; tests/helm/run.sh renders what it would apply"),
    ("helm ", "it needs a cluster; tests/helm/run.sh renders what it would install"),
    ("systemctl ", "it needs systemd; tests/it/upgrade.rs runs the unit's command"),
    ("apt-get ", "it changes the machine"),
    ("python3 -m venv envoy", "it loads a hundred megabytes; .ci/full does it"),
    ("ENVOY_BIN=", "it takes a quarter of an hour; .ci/full runs a shorter one"),
    ("forebay serve --config forebay.toml --upgrade", "it needs a process to replace; tests/it/upgrade.rs has one"),
    (
        "forebay compare config/experiments/sim-two-gpus.toml --html",
        "two minutes; tests/it/experiment.rs runs a short one",
    ),
    ("forebay epp --config config/gateway", "it needs a gateway; tests/it/epp.rs runs both"),
    ("envoy -c", "it needs Envoy; tests/it/epp.rs runs it where there is one"),
    ("benches/gpu/peers.sh", "it needs a GPU"),
    ("SIM=1 benches/gpu/peers.sh", "four minutes; tests/it/peers.rs runs a short one"),
    ("mkdir -p tls", "the folder is for the next command"),
    ("openssl ", "not every machine has it; tests/tls/run.sh makes certificates with it"),
    ("curl --cacert ", "it needs a Forebay with TLS; tests/it/tls.rs has one"),
    ("SSL_CERT_FILE=", "it needs a Forebay with TLS; tests/it/tls.rs has one"),
    ("packaging/release.sh", "it builds three times; its head says what it needs"),
];

/// What is run in place of a command that needs a GPU, or that takes long.
const INSTEAD: &[(&str, &str)] = &[
    ("CUDA_VISIBLE_DEVICES=0 vllm serve Qwen/Qwen2.5-7B-Instruct --port 8001", SIM_ONE),
    ("CUDA_VISIBLE_DEVICES=1 vllm serve Qwen/Qwen2.5-7B-Instruct --port 8002", SIM_TWO),
    (
        "forebay bench http://127.0.0.1:8001 --arm tp2",
        "forebay bench http://127.0.0.1:8001 --arm tp2 --gpus 2 --output tp2.jsonl $FEW",
    ),
    (
        "forebay bench http://127.0.0.1:8080 --arm tp1x2",
        "forebay bench http://127.0.0.1:8002 --arm tp1x2 --gpus 2 --output tp1x2.jsonl $FEW",
    ),
    ("sleep 2", "up"),
    ("forebay plan --model-config /models/Qwen2.5-7B-Instruct", PLAN_OF_A_RECORDED_HOST),
    // Of that plan's GPUs there are none here, so its experiment is read and shown.
    ("forebay compare plan/experiment.toml --html report.html", "forebay compare plan/experiment.toml --dry-run"),
    ("forebay compare access.log --slo ttft=500ms,tpot=50ms", SOME_TRAFFIC_THEN_COMPARE),
    (
        "forebay bench http://127.0.0.1:8080 --num-prompts 300",
        "up\nforebay bench http://127.0.0.1:8080 $FEW --sweep rate=50,100 --slo ttft=500ms,tpot=50ms",
    ),
];
const PLAN_OF_A_RECORDED_HOST: &str = "\
    host=tests/fixtures/hosts/nvlink-2xh200\n\
    forebay plan --gpus $host/gpus.xml --topo $host/topo.txt --numa $host/numa.txt \
    --model-config tests/fixtures/hosts/models/r1-distill-qwen-7b.json --concurrency 300 --out plan";
const SOME_TRAFFIC_THEN_COMPARE: &str = "\
    up\nforebay bench http://127.0.0.1:8080 $FEW\nforebay compare access.log --slo ttft=500ms,tpot=50ms";
const SIM_ONE: &str = "forebay sim --port 8001 --served-model-name Qwen/Qwen2.5-7B-Instruct &";
const SIM_TWO: &str = "forebay sim --port 8002 --served-model-name Qwen/Qwen2.5-7B-Instruct &";

/// What a document takes for granted.
const BEFORE: &[(&str, &str)] = &[
    ("docs/clients.md", ONE_SERVER),
    (
        "docs/compare.md",
        "model='--served-model-name deepseek-ai/DeepSeek-R1-Distill-Qwen-7B'\n\
     forebay sim --port 8001 $model &\nforebay sim --port 8002 $model &\nforebay sim --port 8003 $model &\nsims",
    ),
    ("docs/bench.md", ONE_SERVER),
    ("docs/metrics.md", ONE_SERVER_WITH_TRAFFIC),
];
const ONE_SERVER: &str =
    "forebay sim --port 8001 --served-model-name demo &\nserve forebay serve --backend http://127.0.0.1:8001";
const ONE_SERVER_WITH_TRAFFIC: &str = "forebay sim --port 8001 --served-model-name demo &\n\
    serve forebay serve --backend http://127.0.0.1:8001\nup\nforebay bench http://127.0.0.1:8080 $FEW";

/// Functions of the scripts. A failed request is a failed command, and all that was started ends with the script.
const PRELUDE: &str = r#"
set -euo pipefail
trap 'echo "FAILED: $BASH_COMMAND" >&2' ERR
trap 'for job in $(jobs -p); do kill "$job" 2>/dev/null; done; wait' EXIT
serving=
FEW="--num-prompts 30 --input-len 20 --output-len 8"
curl() { command curl --fail-with-body "$@"; }
answers() { until command curl -s -o /dev/null "$1"; do sleep 0.05; done; }
up() { until command curl -sf -o /dev/null http://127.0.0.1:8081/ready; do sleep 0.05; done; }
sims() { answers http://127.0.0.1:8001/health; answers http://127.0.0.1:8002/health; }
serve() {
    if [ -n "$serving" ]; then kill "$serving"; wait "$serving" || true; fi
    "$@" &
    serving=$!
    answers http://127.0.0.1:8081/health
}
"#;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Returns the commands of a document's `sh` blocks: a line each, or more where a line or a here-document goes on.
fn commands(markdown: &str) -> Vec<String> {
    let (mut found, mut open, mut until, mut inside) = (Vec::new(), String::new(), None, false);
    for line in markdown.lines() {
        match line {
            "```sh" => inside = true,
            "```" => inside = false,
            _ if !inside => {}
            _ => {
                open.push_str(line);
                open.push('\n');
                until = match until {
                    Some(end) if end == line => None,
                    Some(end) => Some(end),
                    None => line.split_once("<<'").and_then(|(_, rest)| rest.split_once('\'')).map(|(end, _)| end),
                };
                if until.is_none() && !line.ends_with('\\') {
                    found.push(std::mem::take(&mut open).trim_end().to_owned());
                }
            }
        }
    }
    found
}

fn starts(command: &str, list: &[(&'static str, &'static str)]) -> Option<&'static str> {
    list.iter().find(|(start, _)| command.starts_with(start)).map(|(_, what)| *what)
}

/// Returns the script of a document, and how many of its commands are run.
fn script(name: &str, markdown: &str) -> (String, usize) {
    let (mut text, mut run) = (PRELUDE.to_owned(), 0);
    text.push_str(starts(name, BEFORE).unwrap_or_default());
    text.push('\n');
    for command in commands(markdown) {
        if starts(&command, NOT_RUN).is_some() {
            continue;
        }
        run += 1;
        let command = starts(&command, INSTEAD).map_or(command, str::to_owned);
        let prints = command.contains("--print-config");
        let serves = command.strip_prefix("forebay serve").filter(|_| !prints).map(|rest| rest.trim_end_matches(" &"));
        let asks = ["curl", "forebay status", "forebay drain", "forebay undrain"];
        let asks = command.contains("| forebay explain") || asks.iter().any(|start| command.starts_with(start));
        let _ = match (serves, asks) {
            (Some(arguments), _) => writeln!(text, "serve forebay serve{arguments}"),
            (None, true) => writeln!(text, "up\n{command}"),
            (None, false) => writeln!(text, "{command}"),
        };
    }
    (text, run)
}

/// A port that nothing uses, below those that the system hands out by itself, of which clients take some at any moment.
fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let base = u16::try_from(std::process::id() % 200).unwrap() * 100;
    loop {
        let port = base.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % 20_000 + 10_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// A free port for each of those that the documents name.
fn ports() -> Vec<(&'static str, String)> {
    ["8080", "8081", "8001", "8002", "8003"].into_iter().map(|named| (named, free_port().to_string())).collect()
}

fn with_ports(text: &str, ports: &[(&str, String)]) -> String {
    ports.iter().fold(text.to_owned(), |text, (named, free)| {
        let text = text.replace(&format!("127.0.0.1:{named}"), &format!("127.0.0.1:{free}"));
        text.replace(&format!("--port {named}"), &format!("--port {free}"))
    })
}

/// A folder that looks like a checkout, with `forebay` on its path.
fn checkout(ports: &[(&str, String)]) -> TempDir {
    let dir = TempDir::new().unwrap();
    for folder in ["tests", "benches", "docker"] {
        symlink(root().join(folder), dir.path().join(folder)).unwrap();
    }
    std::fs::create_dir_all(dir.path().join("config/experiments")).unwrap();
    for folder in ["config", "config/experiments"] {
        for entry in std::fs::read_dir(root().join(folder)).unwrap().flatten() {
            if entry.path().extension().is_some_and(|end| end == "toml") {
                let text = with_ports(&std::fs::read_to_string(entry.path()).unwrap(), ports);
                std::fs::write(dir.path().join(folder).join(entry.file_name()), text).unwrap();
            }
        }
    }
    let port = |named: &str| &ports.iter().find(|(known, _)| *known == named).unwrap().1;
    let (listen, admin) = (port("8080"), port("8081"));
    // The defaults of the command line are in no text, so they are changed where the command starts.
    let wrapper = format!(
        "#!/bin/sh\ncommand=$1\nshift\ncase $command in\n\
         serve) set -- --listen 127.0.0.1:{listen} --admin 127.0.0.1:{admin} \"$@\" ;;\n\
         explain|status|drain|undrain) set -- --admin http://127.0.0.1:{admin} \"$@\" ;;\nesac\nexec {} \"$command\" \"$@\"\n",
        env!("CARGO_BIN_EXE_forebay")
    );
    std::fs::create_dir(dir.path().join("bin")).unwrap();
    let path = dir.path().join("bin/forebay");
    std::fs::write(&path, wrapper).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    dir
}

fn run(name: &str) {
    let markdown = std::fs::read_to_string(root().join(name)).unwrap();
    let ports = ports();
    let dir = checkout(&ports);
    let (text, count) = script(name, &markdown);
    assert!(count > 0, "{name} has no command that runs here");
    let path = format!("{}:{}", dir.path().join("bin").display(), std::env::var("PATH").unwrap());
    let done = Command::new("timeout")
        .args(["--kill-after=5", "120", "bash", "-c", &with_ports(&text, &ports)])
        .current_dir(dir.path())
        .env("PATH", path)
        .env("XDG_RUNTIME_DIR", dir.path())
        .env_remove("OPENAI_API_KEY")
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap();
    let said = format!("{}\n{}", String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(done.status.success(), "{name}: {}\n{said}", done.status);
    println!("{name}: {count} commands ran");
}

#[test]
fn those_of_the_readme() {
    run("README.md");
}

#[test]
fn those_of_operations() {
    run("docs/operations.md");
}

#[test]
fn those_of_clients() {
    run("docs/clients.md");
}

#[test]
fn those_of_compare() {
    run("docs/compare.md");
}

#[test]
fn those_of_bench() {
    run("docs/bench.md");
}

#[test]
fn those_of_metrics() {
    run("docs/metrics.md");
}

#[test]
fn those_of_results() {
    run("docs/results.md");
}

fn documents() -> Vec<String> {
    let docs = std::fs::read_dir(root().join("docs")).unwrap().flatten().map(|entry| entry.path());
    let docs = docs.filter(|path| path.extension().is_some_and(|end| end == "md"));
    let docs = docs.map(|path| path.strip_prefix(root()).unwrap().display().to_string());
    docs.chain(["README.md".to_owned(), "CONTRIBUTING.md".to_owned()]).collect()
}

#[test]
fn every_document_with_a_command_that_runs_here_has_a_test_and_no_exception_is_left_over() {
    let tests = std::fs::read_to_string(root().join(file!())).unwrap();
    let mut all = Vec::new();
    for name in documents() {
        let found = commands(&std::fs::read_to_string(root().join(&name)).unwrap());
        let runs = found.iter().filter(|command| starts(command, NOT_RUN).is_none()).count();
        assert!(runs == 0 || tests.contains(&format!("    run(\"{name}\");")), "{name}: {runs} commands, no test");
        all.extend(found);
    }
    for (start, _) in NOT_RUN.iter().chain(INSTEAD) {
        assert!(all.iter().any(|command| command.starts_with(start)), "no document has `{start}` any more");
    }
    for (name, _) in BEFORE {
        assert!(Path::new(&root().join(name)).exists(), "{name} is gone");
    }
}

fn forebay(arguments: &[&str]) -> String {
    let done = Command::new(env!("CARGO_BIN_EXE_forebay")).args(arguments).output().unwrap();
    assert!(done.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap()
}

#[test]
fn completions_and_manual_know_every_command() {
    let help = forebay(&["help"]);
    let listed = help.split_once("Commands:\n").unwrap().1.split_once("\n\n").unwrap().0;
    let names = listed.lines().filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    let names: Vec<&str> =
        names.filter_map(|line| line.split_whitespace().next()).filter(|name| *name != "help").collect();
    assert!(names.contains(&"serve") && names.contains(&"completions") && names.len() > 5, "{names:?}");
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = forebay(&["completions", shell]);
        assert!(names.iter().all(|name| script.contains(name)), "{shell}");
    }
    let pages = TempDir::new().unwrap();
    assert_eq!(forebay(&["man", "--out", pages.path().to_str().unwrap()]), "");
    for name in &names {
        let page = forebay(&["man", name]);
        assert!(page.contains(&format!(".TH forebay-{name} 1")), "{page}");
        assert_eq!(std::fs::read_to_string(pages.path().join(format!("forebay-{name}.1"))).unwrap(), page);
    }
    assert!(forebay(&["man"]).contains(".TH forebay 1"));
    // A command within a command has a page, too.
    assert!(pages.path().join("forebay-keys-new.1").exists());
    let count = std::fs::read_dir(pages.path()).unwrap().count();
    assert_eq!(count, names.len() + 2, "one for each command, that of `keys new`, and Forebay's own");
    let unknown = Command::new(env!("CARGO_BIN_EXE_forebay")).args(["man", "nothing"]).output().unwrap();
    assert_eq!(unknown.status.code(), Some(2));
}

#[test]
fn the_version_has_its_commit_where_one_is_known() {
    let said = forebay(&["--version"]);
    let version =
        said.trim_end().strip_prefix(concat!("forebay ", env!("CARGO_PKG_VERSION"))).expect("name and version");
    let commit = version.strip_prefix(" (").and_then(|rest| rest.strip_suffix(')'));
    // A debug build follows no commits: see build.rs.
    assert!(version.is_empty() || commit.is_some_and(|commit| commit.bytes().all(|b| b.is_ascii_hexdigit())), "{said}");
}

#[test]
fn commands_are_cut_from_blocks() {
    let text = "```sh\na \\\n  b\ncat > x <<'END'\n[c]\nEND\nd # e\n```\n\n```toml\nf\n```\n";
    assert_eq!(commands(text), ["a \\\n  b", "cat > x <<'END'\n[c]\nEND", "d # e"]);
}
