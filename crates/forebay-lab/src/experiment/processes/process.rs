//! A process under test and all that it starts: a process group of its own, whose output goes to a file, and which does not
//! outlive the runner. One that a killed runner left behind is found again by its number and its time of start.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use forebay_core::clock::Clock;

/// Between two looks whether a process has ended.
const LOOK: Duration = Duration::from_millis(50);
/// The time after which a killed process is gone.
const KILLED: Duration = Duration::from_secs(3);
/// The number of a log's last lines that are shown.
const TAIL_LINES: usize = 15;
const TAIL_BYTES: u64 = 64 * 1024;

/// A process to start.
pub(crate) struct Launch<'a> {
    /// Its name, for messages.
    pub(crate) name: &'a str,
    /// Program and arguments.
    pub(crate) command: &'a [String],
    /// Environment beside the runner's own.
    pub(crate) env: &'a [(String, String)],
    /// The folder that it runs in; none: the runner's.
    pub(crate) cwd: Option<&'a Path>,
    /// The file that its output is added to.
    pub(crate) log: PathBuf,
    /// The time that it may take to end by itself.
    pub(crate) grace: Duration,
}

/// A running process group, told to end and then killed when dropped.
#[derive(Debug)]
pub(crate) struct Process {
    name: String,
    child: Child,
    group: Pid,
    log: PathBuf,
    log_begin: u64,
    grace: Duration,
    ended: Option<ExitStatus>,
    note: Option<PathBuf>,
}

/// A process that could not be started.
#[derive(Debug, thiserror::Error)]
#[error("cannot start {name} (`{program}`): {error}")]
pub(crate) struct LaunchError {
    name: String,
    program: String,
    error: io::Error,
}

impl Process {
    /// Starts it. `notes` is the folder in which a runner that comes later finds it.
    pub(crate) fn start(launch: Launch<'_>, notes: &Path) -> Result<Process, LaunchError> {
        let program = launch.command.first().cloned().unwrap_or_default();
        let wrong = |error| LaunchError { name: launch.name.to_owned(), program: program.clone(), error };
        let mut log = OpenOptions::new().create(true).append(true).open(&launch.log).map_err(wrong)?;
        writeln!(log, "$ {}", launch.command.join(" ")).map_err(wrong)?;
        let log_begin = log.seek(SeekFrom::End(0)).map_err(wrong)?;
        let mut command = Command::new(&program);
        command.args(&launch.command[1.min(launch.command.len())..]).envs(launch.env.iter().map(|(k, v)| (k, v)));
        if let Some(cwd) = launch.cwd {
            command.current_dir(cwd);
        }
        // A group of its own: vLLM starts workers, which a signal to the first process alone would leave on the GPUs.
        command.stdin(Stdio::null()).stdout(log.try_clone().map_err(wrong)?).stderr(log).process_group(0);
        let child = command.spawn().map_err(wrong)?;
        let id = child.id().cast_signed();
        Ok(Process {
            name: launch.name.to_owned(),
            child,
            group: Pid::from_raw(id),
            log: launch.log,
            log_begin,
            grace: launch.grace,
            ended: None,
            note: leave_note(notes, id),
        })
    }

    /// Its name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Returns the status with which it ended, if it has.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().ok().flatten();
        }
        self.ended
    }

    /// Bytes in its log.
    pub(crate) fn log_length(&self) -> u64 {
        fs::metadata(&self.log).map_or(0, |data| data.len())
    }

    /// Returns its output since its start, from the end of its log.
    pub(crate) fn said(&self) -> String {
        let mut text = Vec::new();
        if let Ok(mut file) = File::open(&self.log) {
            let end = file.metadata().map_or(0, |data| data.len());
            let from = self.log_begin.max(end.saturating_sub(TAIL_BYTES));
            let read = file.seek(SeekFrom::Start(from)).and_then(|_| file.read_to_end(&mut text));
            drop(read);
        }
        String::from_utf8_lossy(&text).into_owned()
    }

    /// Its last lines and where the rest is, for a message.
    pub(crate) fn last_words(&self) -> String {
        let said = self.said();
        let lines: Vec<&str> = said.lines().collect();
        let shown: Vec<String> =
            lines[lines.len().saturating_sub(TAIL_LINES)..].iter().map(|line| format!("  | {line}")).collect();
        format!("the end of {}:\n{}", self.log.display(), shown.join("\n"))
    }

    fn signal(&self, signal: Signal) -> bool {
        killpg(self.group, signal).is_ok()
    }

    fn is_gone(&mut self) -> bool {
        let reaped = self.ended().is_some();
        reaped && !lives(self.group)
    }
}

/// Returns whether anything of a group still runs. A process that has ended and waits for its parent to take note does not run: it
/// holds no memory, and an orphan's new parent, the first process of a container, may take its time or never do it. One whose
/// first thread has ended and others have not still holds its ports.
fn lives(group: Pid) -> bool {
    if killpg(group, None).is_err() {
        return false;
    }
    let Ok(processes) = fs::read_dir("/proc") else { return true };
    let mut seen = false;
    for process in processes.flatten().map(|entry| entry.path()) {
        let Ok(stat) = fs::read_to_string(process.join("stat")) else { continue };
        // after the name in brackets, which may hold anything: state, parent, group
        let mut fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields).split_whitespace();
        let (state, of) = (fields.next(), fields.nth(1).and_then(|of| of.parse().ok()));
        if of == Some(group.as_raw()) {
            seen = true;
            let threads = fs::read_dir(process.join("task")).map_or(0, Iterator::count);
            if threads > 1 || !matches!(state, Some("Z" | "X")) {
                return true;
            }
        }
    }
    // A system that shows no process at all says nothing.
    !seen
}

/// Ends all of them at the same time: SIGTERM, and SIGKILL to those that are still there after their grace.
pub(crate) fn stop(processes: &mut Vec<Process>) {
    let clock = Clock::system();
    let begin = clock.now();
    for process in &*processes {
        process.signal(Signal::SIGTERM);
    }
    while !processes.is_empty() {
        let passed = clock.now().since(begin);
        processes.retain_mut(|process| {
            if !process.is_gone() {
                if passed < process.grace {
                    return true;
                }
                process.kill();
            }
            process.forget();
            false
        });
        if !processes.is_empty() {
            std::thread::sleep(LOOK);
        }
    }
}

impl Process {
    /// Kills the group and waits until it is gone, so that its memory is free; what hangs in the kernel is not waited for.
    fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        let clock = Clock::system();
        let begin = clock.now();
        while !self.is_gone() && clock.now().since(begin) < KILLED {
            std::thread::sleep(LOOK);
        }
    }

    fn forget(&mut self) {
        if let Some(note) = self.note.take() {
            drop(fs::remove_file(note));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.note.is_some() || self.ended().is_none() {
            self.kill();
            self.forget();
        }
    }
}

// ---- what a killed runner left behind ------------------------------------------------------------------------------

/// Notes that a group was started, in a file named by its number that holds the time of its start.
fn leave_note(notes: &Path, id: i32) -> Option<PathBuf> {
    let path = notes.join(id.to_string());
    fs::write(&path, started(id)?).ok()?;
    Some(path)
}

/// Returns the start of a process, in the kernel's own count; none where it is gone or the system does not say.
fn started(id: i32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    // the name, in brackets, may hold anything
    let fields = stat.rsplit_once(')')?.1;
    fields.split_whitespace().nth(19).map(str::to_owned)
}

/// Kills the groups that an earlier runner noted and did not live to end. Says how many there were.
pub(crate) fn end_left_overs(notes: &Path) -> usize {
    let mut ended = 0;
    for entry in fs::read_dir(notes).into_iter().flatten().flatten() {
        let Some(id) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        let noted = fs::read_to_string(entry.path()).ok();
        if noted.is_some() && started(id) == noted && killpg(Pid::from_raw(id), Signal::SIGKILL).is_ok() {
            ended += 1;
            let clock = Clock::system();
            let begin = clock.now();
            while lives(Pid::from_raw(id)) && clock.now().since(begin) < Duration::from_secs(5) {
                std::thread::sleep(LOOK);
            }
        }
        drop(fs::remove_file(entry.path()));
    }
    ended
}

#[cfg(test)]
mod tests {
    use super::*;

    fn launch(dir: &Path, script: &str, grace: Duration) -> Process {
        let command = ["sh", "-c", script].map(str::to_owned);
        let launch = Launch { name: "x", command: &command, env: &[], cwd: None, log: dir.join("x.log"), grace };
        Process::start(launch, dir).unwrap()
    }

    fn until(what: &str, mut look: impl FnMut() -> bool) {
        let clock = Clock::system();
        let begin = clock.now();
        while !look() {
            assert!(clock.now().since(begin) < Duration::from_secs(10), "{what}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn a_group_ends_whole_and_what_ignores_the_signal_is_killed() {
        let dir = tempfile::TempDir::new().unwrap();
        let gentle = launch(dir.path(), "echo up; sleep 600 & wait", Duration::from_secs(10));
        let stubborn =
            launch(dir.path(), "trap '' TERM; echo up; while :; do sleep 0.05; done", Duration::from_millis(100));
        let groups = [gentle.group, stubborn.group];
        // The log is of both, and the first one's part of it begins before either has spoken.
        until("both are up", || gentle.said().matches("up\n").count() == 2);
        let mut both = vec![gentle, stubborn];
        stop(&mut both);
        assert!(both.is_empty() && !groups.into_iter().any(lives));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "the log alone is left");
    }

    #[test]
    fn what_has_ended_and_was_not_taken_note_of_does_not_live() {
        let dir = tempfile::TempDir::new().unwrap();
        let process = launch(dir.path(), "sleep 600", Duration::ZERO);
        assert!(lives(process.group));
        process.signal(Signal::SIGKILL);
        until("it ends", || !lives(process.group));
        // Nobody has waited for it yet, so its number is still taken.
        assert!(killpg(process.group, None).is_ok());
    }

    #[test]
    fn an_end_is_seen_with_its_last_words() {
        let dir = tempfile::TempDir::new().unwrap();
        let mut process = launch(dir.path(), "echo the reason; exit 3", Duration::ZERO);
        until("it ends", || process.ended().is_some());
        assert_eq!(process.ended().and_then(|status| status.code()), Some(3));
        assert!(process.last_words().ends_with("  | the reason"), "{}", process.last_words());
    }

    #[test]
    fn a_left_over_is_ended_and_a_stranger_with_its_number_is_not() {
        let dir = tempfile::TempDir::new().unwrap();
        let mut process = launch(dir.path(), "sleep 600", Duration::ZERO);
        let note = process.note.clone().unwrap();
        fs::write(&note, "1").unwrap();
        assert_eq!(end_left_overs(dir.path()), 0);
        assert!(process.ended().is_none(), "another process has this number now");
        fs::write(&note, started(process.group.as_raw()).unwrap()).unwrap();
        assert_eq!(end_left_overs(dir.path()), 1);
        until("it ends", || process.ended().is_some());
    }
}
