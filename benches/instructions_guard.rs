//! Compares the counts of `benches/instructions.rs` with the stored ones, `benches/instructions.toml`. A count that is more than 3 %
//! above the stored one fails.
//!
//!     cargo bench --bench instructions_guard                  compare
//!     cargo bench --bench instructions_guard -- --update      store the counts of now
//!     cargo bench --bench instructions_guard -- --why-not     print why nothing can be compared here, or nothing
//!
//! Counts of another compiler, target, valgrind or instruction set cannot be compared. Then, and without valgrind or
//! gungraun-runner, the guard says `SKIPPED` with the reason and compares nothing.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use serde::Deserialize;
use serde_json::Value;

/// How far above the stored count a count may be.
const TOLERANCE: f64 = 0.03;
const UPDATE: &str = "cargo bench --bench instructions_guard -- --update";

/// The stored counts, and with what they were made.
#[derive(Deserialize)]
struct Store {
    rustc: String,
    target: String,
    valgrind: String,
    cpu: String,
    counts: BTreeMap<String, u64>,
}

/// What the counts of this machine are made with.
struct Tools {
    rustc: String,
    target: String,
    valgrind: String,
    cpu: String,
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let result = match args.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [] => guard(),
        ["--update"] => update(),
        ["--why-not"] => {
            comparable().err().into_iter().for_each(|why| println!("{why}"));
            Ok(true)
        }
        _ => Err(format!("unknown arguments {args:?}; --update and --why-not are known").into()),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("instructions_guard: {error}");
            ExitCode::FAILURE
        }
    }
}

fn guard() -> Result<bool, Box<dyn Error>> {
    let store = match comparable() {
        Ok(store) => store,
        Err(why) => {
            println!("SKIPPED: {why}");
            return Ok(true);
        }
    };
    let counts = count()?;
    let mut good = true;
    for (name, now) in &counts {
        let Some(stored) = store.counts.get(name) else {
            println!("{name:42} {now:>9}  NOT STORED; store it: {UPDATE}");
            good = false;
            continue;
        };
        let change = *now as f64 / *stored as f64 - 1.0;
        let verdict = match change {
            change if change > TOLERANCE => "MORE THAN 3 % ABOVE",
            change if change < -TOLERANCE => "below; store it to keep the gain",
            _ => "",
        };
        good &= change <= TOLERANCE;
        println!("{name:42} {now:>9}  stored {stored:>9}  {:+.2} %  {verdict}", change * 100.0);
    }
    for name in store.counts.keys().filter(|name| !counts.contains_key(*name)) {
        println!("{name:42} is stored and was not counted; if it is gone: {UPDATE}");
        good = false;
    }
    if !good {
        println!("If the increase is meant, say why in the commit, and store it: {UPDATE}");
    }
    Ok(good)
}

fn update() -> Result<bool, Box<dyn Error>> {
    let tools = tools()?;
    let counts = count()?;
    let mut text = format!(
        "# Instructions of the paths in benches/instructions.rs, 100 repetitions each. Comparable only with the same tools.\n\
         # Written by `{UPDATE}`.\n\n\
         rustc = {:?}\ntarget = {:?}\nvalgrind = {:?}\ncpu = {:?}\n\n[counts]\n",
        tools.rustc, tools.target, tools.valgrind, tools.cpu
    );
    for (name, count) in counts {
        let _ = writeln!(text, "{name:?} = {count}");
    }
    fs::write(store_path(), &text)?;
    print!("{text}");
    Ok(true)
}

fn store_path() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("instructions.toml")
}

/// The store, where its counts can be compared with those of this machine; else the reason.
fn comparable() -> Result<Store, String> {
    let text = fs::read_to_string(store_path()).map_err(|error| format!("benches/instructions.toml: {error}"))?;
    let store: Store = toml::from_str(&text).map_err(|error| format!("benches/instructions.toml: {error}"))?;
    let tools = tools()?;
    for (what, stored, here) in [
        ("rustc", &store.rustc, &tools.rustc),
        ("the target", &store.target, &tools.target),
        ("valgrind", &store.valgrind, &tools.valgrind),
        ("the CPU", &store.cpu, &tools.cpu),
    ] {
        if stored != here {
            return Err(format!("the stored counts are of another tool: {what} is {here}, stored is {stored}"));
        }
    }
    Ok(store)
}

fn tools() -> Result<Tools, String> {
    let rustc = said("rustc", &["-vV"]).ok_or("rustc cannot be run")?;
    let line = |start: &str| rustc.lines().find_map(|line| line.strip_prefix(start)).unwrap_or_default().to_owned();
    let valgrind = said("valgrind", &["--version"]).ok_or("valgrind is not installed (Debian's package valgrind)")?;
    let version = locked("gungraun").ok_or("Cargo.lock has no gungraun")?;
    let install = format!("cargo install gungraun-runner --version {version}");
    let runner = said("gungraun-runner", &["--version"])
        .ok_or_else(|| format!("gungraun-runner is not installed: {install}"))?;
    if runner != format!("gungraun-runner {version}") {
        return Err(format!("{runner} does not fit the library gungraun {version}: {install}"));
    }
    #[cfg(target_arch = "x86_64")]
    let cpu = if std::is_x86_feature_detected!("avx2") { "x86-64 with AVX2" } else { "x86-64 without AVX2" };
    #[cfg(not(target_arch = "x86_64"))]
    let cpu = std::env::consts::ARCH;
    Ok(Tools {
        rustc: format!("{} {}", line("release: "), line("commit-hash: ")),
        target: line("host: "),
        valgrind: valgrind.trim_start_matches("valgrind-").to_owned(),
        cpu: cpu.to_owned(),
    })
}

/// The version of a crate in `Cargo.lock`.
fn locked(name: &str) -> Option<String> {
    let lock = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.lock")).ok()?;
    let entry = lock.split("[[package]]").find(|entry| entry.contains(&format!("\nname = \"{name}\"\n")))?;
    Some(entry.split("version = \"").nth(1)?.split('"').next()?.to_owned())
}

/// What a program prints; none where it cannot be run or fails.
fn said(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Runs `benches/instructions.rs` and returns its counts by name.
fn count() -> Result<BTreeMap<String, u64>, Box<dyn Error>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["bench", "--locked", "--bench", "instructions", "--", "--output-format=json"]);
    let output = command.current_dir(env!("CARGO_MANIFEST_DIR")).stderr(Stdio::inherit()).output()?;
    if !output.status.success() {
        return Err("`cargo bench --bench instructions` failed".into());
    }
    let mut counts = BTreeMap::new();
    for line in String::from_utf8(output.stdout)?.lines().filter(|line| line.starts_with('{')) {
        let summary: Value = serde_json::from_str(line)?;
        let name = summary["function_name"].as_str().ok_or("a summary without function_name")?;
        let id = summary["id"].as_str().unwrap_or_default();
        let instructions = instructions(&summary).ok_or_else(|| format!("no instruction count of {name} {id}"))?;
        counts.insert(format!("{name} {id}").trim().to_owned(), instructions);
    }
    if counts.is_empty() {
        return Err("gungraun printed no summary".into());
    }
    Ok(counts)
}

/// The total of callgrind's `Ir` in one summary (gungraun's schema 7).
fn instructions(summary: &Value) -> Option<u64> {
    let profile = summary["profiles"].as_array()?.iter().find(|profile| profile["tool"] == "Callgrind")?;
    profile["data"]["total"]["metrics"]["Ir"]["values"]["new"].as_u64()
}
