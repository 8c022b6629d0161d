//! What an experiment has done so far: its row file. A run that was cut off is moved aside when the file is opened, so that
//! what is in it is whole; what is missing from it is what is left to do. Beside it, how long starts and turns took, by which
//! the runner judges what still fits.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::rows::row_file::{self, RowError, RunHead};

/// The journal of one experiment, which no other runner can open meanwhile.
pub(super) struct Journal {
    rows: File,
    took: File,
    heads: Vec<RunHead>,
    longest: HashMap<String, Duration>,
    variants: HashMap<String, usize>,
    cut_off: bool,
    _lock: File,
}

/// The reason why there is no journal.
#[derive(Debug, thiserror::Error)]
pub(super) enum JournalError {
    /// The system refused.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The reason.
        error: io::Error,
    },
    /// Another runner has it.
    #[error("{} is in use: another `forebay compare` runs this experiment", .0.display())]
    Locked(PathBuf),
    /// A file that this did not write.
    #[error("{}: {error}", path.display())]
    Rows {
        /// The file.
        path: PathBuf,
        /// The reason.
        error: RowError,
    },
}

/// A line of `took.jsonl`.
#[derive(Deserialize, Serialize)]
struct Took {
    /// `start SERVER` or `epoch ARM`.
    what: String,
    seconds: f64,
    /// The number of the server's command with which it came up: how many of `or_else` were tried before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    variant: Option<usize>,
}

impl Journal {
    /// Opens the journal in a folder, which is made if there is none.
    pub(super) fn open(out: &Path) -> Result<Journal, JournalError> {
        let failed = |path: &Path, error| JournalError::Io { path: path.to_owned(), error };
        for folder in ["logs", "running"] {
            fs::create_dir_all(out.join(folder)).map_err(|error| failed(out, error))?;
        }
        let lock_path = out.join("lock");
        let lock = File::create(&lock_path).map_err(|error| failed(&lock_path, error))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(JournalError::Locked(out.to_owned())),
            Err(TryLockError::Error(error)) => return Err(failed(&lock_path, error)),
        }
        let path = rows_in(out);
        let mut file = appended(&path).map_err(|error| failed(&path, error))?;
        let (heads, cut_off) = whole_runs(&mut file, &out.join("cut-off.jsonl")).map_err(|error| match error {
            RowError::Io(error) => failed(&path, error),
            error => JournalError::Rows { path: path.clone(), error },
        })?;
        let path = out.join("took.jsonl");
        let mut took = appended(&path).map_err(|error| failed(&path, error))?;
        let (longest, variants) = read_took(&mut took).map_err(|error| failed(&path, error))?;
        Ok(Journal { rows: file, took, heads, longest, variants, cut_off, _lock: lock })
    }

    /// The heads of all whole runs.
    pub(super) fn heads(&self) -> &[RunHead] {
        &self.heads
    }

    /// Returns whether a run that was cut off was found and moved aside.
    pub(super) fn was_cut_off(&self) -> bool {
        self.cut_off
    }

    /// The number for the next start of servers: no other start has it.
    pub(super) fn next_start(&self) -> u32 {
        self.heads.iter().filter_map(|head| head.start).max().map_or(0, |last| last + 1)
    }

    /// Adds a whole run: its head, rows and end, as they are to be in the file.
    pub(super) fn add(&mut self, head: RunHead, text: &[u8]) -> io::Result<()> {
        self.rows.write_all(text)?;
        self.rows.flush()?;
        self.heads.push(head);
        Ok(())
    }

    /// Returns the time that the slowest of its kind took; none if there was none.
    pub(super) fn longest(&self, what: &str) -> Option<Duration> {
        self.longest.get(what).copied()
    }

    /// Returns the number of the command with which a server came up last.
    pub(super) fn variant(&self, server: &str) -> usize {
        self.variants.get(&starting(server)).copied().unwrap_or(0)
    }

    /// Notes how long something took. What cannot be noted costs an estimate and nothing else.
    pub(super) fn note(&mut self, what: String, took: Duration, variant: Option<usize>) {
        let line = serde_json::to_string(&Took { what: what.clone(), seconds: took.as_secs_f64(), variant });
        if let Ok(line) = line {
            drop(writeln!(self.took, "{line}"));
        }
        learn(&mut self.longest, &mut self.variants, what, took, variant);
    }
}

/// The row file in an experiment's folder.
pub fn rows_in(out: &Path) -> PathBuf {
    out.join("rows.jsonl")
}

/// Returns the name under which a server's start is noted.
pub(super) fn starting(server: &str) -> String {
    format!("start {server}")
}

/// Returns the name under which an arm's turn is noted.
pub(super) fn turn(arm: &str) -> String {
    format!("epoch {arm}")
}

fn appended(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).read(true).append(true).open(path)
}

/// The heads of the whole runs; what is behind the last of them goes to the file `aside`.
fn whole_runs(file: &mut File, aside: &Path) -> Result<(Vec<RunHead>, bool), RowError> {
    let (mut whole, mut at) = (0, 0);
    let (mut marks, mut head) = (Vec::new(), Vec::new());
    let mut reader = BufReader::new(&mut *file);
    let mut line = Vec::new();
    loop {
        line.clear();
        if reader.read_until(b'\n', &mut line)? == 0 || line.last() != Some(&b'\n') {
            break;
        }
        at += line.len() as u64;
        if line.starts_with(b"{\"run\"") {
            head.clone_from(&line);
        } else if line.starts_with(b"{\"end\"") {
            marks.append(&mut head);
            marks.extend_from_slice(&line);
            whole = at;
        }
    }
    // What a cut-off turn wrote goes aside and not away: somebody may want to see why it was cut off.
    let length = file.metadata()?.len();
    if length > whole {
        let mut rest = Vec::new();
        file.seek(SeekFrom::Start(whole))?;
        file.read_to_end(&mut rest)?;
        appended(aside)?.write_all(&rest)?;
        file.set_len(whole)?;
    }
    let heads = row_file::read(marks.as_slice())?.into_iter().filter_map(|run| run.head).collect();
    Ok((heads, length > whole))
}

type Learned = (HashMap<String, Duration>, HashMap<String, usize>);

fn read_took(file: &mut File) -> io::Result<Learned> {
    let mut learned = Learned::default();
    for line in BufReader::new(file).lines() {
        // half a line is the trace of a crash
        let Ok(took) = serde_json::from_str::<Took>(&line?) else { continue };
        let seconds = Duration::try_from_secs_f64(took.seconds).unwrap_or_default();
        learn(&mut learned.0, &mut learned.1, took.what, seconds, took.variant);
    }
    Ok(learned)
}

fn learn(
    longest: &mut HashMap<String, Duration>,
    variants: &mut HashMap<String, usize>,
    what: String,
    took: Duration,
    variant: Option<usize>,
) {
    if let Some(variant) = variant {
        variants.insert(what.clone(), variant);
    }
    let slot = longest.entry(what).or_default();
    *slot = (*slot).max(took);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::row_file::{Load, Offered, RunEnd, write_end, write_head};

    fn head(epoch: u32, start: u32) -> RunHead {
        RunHead {
            arm: Some("a".to_owned()),
            epoch,
            block: Some(epoch),
            start: Some(start),
            load: Load {
                offered: Offered::Unlimited,
                num_prompts: 1,
                dataset: None,
                input_len: None,
                output_len: None,
                seed: 0,
                ..Load::default()
            },
            model: "m".to_owned(),
            gpus: None,
            replicas: None,
            max_num_seqs: None,
            simulated: false,
            ..RunHead::default()
        }
    }

    fn run(epoch: u32, start: u32) -> Vec<u8> {
        let mut text = Vec::new();
        write_head(&mut text, &head(epoch, start)).unwrap();
        write_end(&mut text, RunEnd::default()).unwrap();
        text
    }

    #[test]
    fn whole_runs_are_kept_and_a_cut_off_one_is_moved_aside() {
        let dir = tempfile::TempDir::new().unwrap();
        let mut journal = Journal::open(dir.path()).unwrap();
        assert_eq!((journal.next_start(), journal.was_cut_off()), (0, false));
        journal.add(head(0, 0), &run(0, 0)).unwrap();
        journal.add(head(1, 3), &run(1, 3)).unwrap();
        drop(journal);
        let kept = fs::read(rows_in(dir.path())).unwrap();
        let cut = [&kept[..], &run(2, 3)[..30]].concat();
        fs::write(rows_in(dir.path()), cut).unwrap();
        let journal = Journal::open(dir.path()).unwrap();
        assert_eq!((journal.heads().len(), journal.next_start(), journal.was_cut_off()), (2, 4, true));
        assert_eq!(fs::read(rows_in(dir.path())).unwrap(), kept);
        assert_eq!(fs::read(dir.path().join("cut-off.jsonl")).unwrap(), run(2, 3)[..30]);
    }

    #[test]
    fn one_runner_has_it_and_what_took_how_long_is_remembered() {
        let dir = tempfile::TempDir::new().unwrap();
        let mut journal = Journal::open(dir.path()).unwrap();
        assert!(matches!(Journal::open(dir.path()), Err(JournalError::Locked(_))));
        journal.note(starting("s"), Duration::from_secs(5), Some(1));
        journal.note(starting("s"), Duration::from_secs(3), Some(1));
        drop(journal);
        let journal = Journal::open(dir.path()).unwrap();
        assert_eq!((journal.longest("start s"), journal.variant("s")), (Some(Duration::from_secs(5)), 1));
        assert_eq!((journal.longest("epoch a"), journal.variant("t")), (None, 0));
    }
}
