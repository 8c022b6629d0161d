//! Processes under test: how they are started and ended, and what they use. Every process is ended by its own id.

use std::fs;
use std::process::{Child, Command};
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;

use super::Fallible;

/// Open files of a proxy beside its streams, and some to spare.
const OTHERS: u64 = 500;

/// The open files that a proxy needs for so many streams. Each has the client's connection and that to the upstream, and Forebay keeps
/// a sixteenth of all for newcomers.
pub(super) fn files_for(streams: u32) -> u64 {
    (u64::from(streams) * 2 * 16).div_ceil(15) + OTHERS
}

/// The streams for which so many open files are enough.
pub(super) fn streams_in(files: u64) -> u32 {
    u32::try_from(files.saturating_sub(OTHERS) * 15 / 32).unwrap_or(u32::MAX).max(1)
}

/// A child process. Dropping it ends the child and the child's own children.
pub(super) struct Process(Child);

impl Process {
    /// Starts a command.
    pub(super) fn start(command: &mut Command) -> Fallible<Process> {
        let program = command.get_program().to_string_lossy().into_owned();
        Ok(Process(command.spawn().map_err(|error| format!("{program} cannot be started: {error}"))?))
    }

    /// Its process id.
    pub(super) fn pid(&self) -> u32 {
        self.0.id()
    }

    /// The standard output, once.
    pub(super) fn stdout(&mut self) -> Fallible<std::process::ChildStdout> {
        self.0.stdout.take().ok_or_else(|| "the standard output is not a pipe".into())
    }

    /// Whether it has ended by itself.
    pub(super) fn is_over(&mut self) -> bool {
        matches!(self.0.try_wait(), Ok(Some(_)))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let workers = children(self.pid());
        send(self.pid(), Signal::SIGTERM);
        for _ in 0..50 {
            if self.is_over() {
                break;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        // A master that did not end in time leaves its workers to us.
        if !self.is_over() {
            let _ = self.0.kill();
            let _ = self.0.wait();
            workers.into_iter().for_each(|worker| send(worker, Signal::SIGKILL));
        }
    }
}

/// Sends a signal to one process.
pub(super) fn send(pid: u32, signal: Signal) {
    if let Ok(pid) = i32::try_from(pid) {
        let _ = kill(Pid::from_raw(pid), signal);
    }
}

/// Raises the limit of open files to what is allowed; children inherit it.
pub(super) fn open_many_files() {
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

/// How many files a process may open.
pub(super) fn file_limit() -> u64 {
    getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft)
}

/// The processes whose parent is `parent`, and theirs.
fn children(parent: u32) -> Vec<u32> {
    let mut all = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        if after_name.split_whitespace().nth(1) == Some(parent.to_string().as_str()) {
            all.push(pid);
            all.extend(children(pid));
        }
    }
    all
}

/// A process and all below it.
pub(super) fn family(pid: u32) -> Vec<u32> {
    let mut all = vec![pid];
    all.extend(children(pid));
    all
}

/// The CPU time, user and system, of all threads of some processes, ended threads included. It is the figure of `/proc/PID/stat`
/// from the process's CPU clock, which has nanoseconds where the file has ticks of 10 ms.
pub(super) fn cpu(pids: &[u32]) -> Fallible<Duration> {
    let mut total = Duration::ZERO;
    for pid in pids {
        let clock = clock_getcpuclockid(Pid::from_raw(i32::try_from(*pid)?))?;
        total += Duration::from(clock_gettime(clock)?);
    }
    Ok(total)
}

/// The memory of some processes in KiB: proportional set size, so that pages which a master shares with its workers count once.
pub(super) fn memory(pids: &[u32]) -> Fallible<f64> {
    let mut total = 0.0;
    for pid in pids {
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
        let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:")).ok_or("smaps_rollup has no Pss")?;
        total += line.trim().trim_end_matches(" kB").parse::<f64>()?;
    }
    Ok(total)
}

/// The context switches of all threads of some processes. Those of threads that have ended are not in it.
pub(super) fn switches(pids: &[u32]) -> Fallible<u64> {
    let mut total = 0;
    for pid in pids {
        for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
            // It may have ended meanwhile.
            let Ok(status) = fs::read_to_string(thread?.path().join("status")) else { continue };
            let counts = status.lines().filter_map(|line| line.split_once("ctxt_switches:"));
            total += counts.filter_map(|(_, count)| count.trim().parse::<u64>().ok()).sum::<u64>();
        }
    }
    Ok(total)
}
