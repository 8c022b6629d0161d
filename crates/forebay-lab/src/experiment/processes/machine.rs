//! What is known of the machine: what the experiment's own commands say of it, in `machine.txt` beside the rows. A command
//! that fails or takes too long is a line in that file and no more.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::process::{self, Launch, Process};
use forebay_core::clock::Clock;

const LIMIT: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_millis(20);

/// Returns the file in which an experiment keeps what is known of the machine.
#[must_use]
pub fn machine_in(out: &Path) -> PathBuf {
    out.join("machine.txt")
}

/// Runs the commands one after the other, and writes what they say.
pub(crate) async fn record(commands: &[Vec<String>], out: &Path) -> io::Result<()> {
    let path = machine_in(out);
    let mut text = format!("forebay {}\n", env!("CARGO_PKG_VERSION"));
    for (name, key) in [("/proc/cpuinfo", "model name"), ("/proc/meminfo", "MemTotal"), ("/proc/version", "Linux")] {
        let line = fs::read_to_string(name).unwrap_or_default();
        text.extend(line.lines().find(|line| line.starts_with(key)).map(|line| format!("{line}\n")));
    }
    if let Ok(cores) = std::thread::available_parallelism() {
        text.push_str(&format!("cores: {cores}\n"));
    }
    fs::write(&path, text)?;
    let clock = Clock::system();
    for command in commands {
        let launch = Launch { name: "record", command, env: &[], cwd: None, log: path.clone(), grace: LOOK };
        let mut process = match Process::start(launch, &out.join("running")) {
            Ok(process) => process,
            Err(error) => {
                writeln!(fs::OpenOptions::new().append(true).open(&path)?, "{error}")?;
                continue;
            }
        };
        let begun = clock.now();
        while process.ended().is_none() && clock.now().since(begun) < LIMIT {
            tokio::time::sleep(LOOK).await;
        }
        let verdict = match process.ended() {
            Some(status) if status.success() => String::new(),
            Some(status) => format!("({status})"),
            None => format!("(not done within {} s)", LIMIT.as_secs()),
        };
        process::stop(&mut vec![process]);
        writeln!(fs::OpenOptions::new().append(true).open(&path)?, "{verdict}")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_commands_say_is_kept_and_one_that_fails_is_a_line() {
        let dir = tempfile::TempDir::new().unwrap();
        fs::create_dir(dir.path().join("running")).unwrap();
        let commands: Vec<Vec<String>> = [&["echo", "two GPUs"][..], &["no-such-program"], &["false"]]
            .iter()
            .map(|words| words.iter().map(|word| (*word).to_owned()).collect())
            .collect();
        record(&commands, dir.path()).await.unwrap();
        let text = fs::read_to_string(dir.path().join("machine.txt")).unwrap();
        assert!(text.contains("$ echo two GPUs\ntwo GPUs\n") && text.contains("cores: "), "{text}");
        assert!(
            text.contains("cannot start record (`no-such-program`)") && text.contains("(exit status: 1)"),
            "{text}"
        );
    }
}
