//! The file of a log: appended to, and opened again by its name after `reopen`, so that a program that rotates logs can move the
//! file away. Written by the log's own thread alone. A file that cannot be opened again stays the old one, and the log says so.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use nix::unistd::{AccessFlags, access};

/// Counts the times that all files were to be opened again.
static REOPENED: AtomicU64 = AtomicU64::new(0);

/// Has every log file opened again before its next line. Whoever wants that at once also wakes the writers.
pub(super) fn reopen() {
    REOPENED.fetch_add(1, Ordering::AcqRel);
}

/// A log file.
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    file: File,
    opened: u64,
}

impl LogFile {
    /// Opens the file, or makes it; only its user and group may read it.
    ///
    /// # Errors
    /// It cannot be opened for writing.
    pub fn open(path: &Path) -> io::Result<LogFile> {
        let opened = REOPENED.load(Ordering::Acquire);
        Ok(LogFile { path: path.to_owned(), file: append(path)?, opened })
    }

    /// Opens the file again if that was asked for.
    fn renew(&mut self) {
        let wanted = REOPENED.load(Ordering::Acquire);
        if self.opened == wanted {
            return;
        }
        self.opened = wanted;
        match append(&self.path) {
            Ok(file) => self.file = file,
            Err(error) => {
                let file = self.path.display();
                tracing::error!(%file, %error, "the log file cannot be opened again: its lines go on into the old one");
            }
        }
    }
}

fn append(path: &Path) -> io::Result<File> {
    // The access log has the addresses of clients.
    OpenOptions::new().append(true).create(true).mode(0o640).open(path)
}

/// Tells whether this user can write the file, without making it.
///
/// # Errors
/// It cannot, for the reason that opening it would have.
pub fn probe(path: &Path) -> io::Result<()> {
    match std::fs::metadata(path) {
        Ok(found) if found.is_dir() => Err(io::ErrorKind::IsADirectory.into()),
        Ok(_) => access(path, AccessFlags::W_OK).map_err(io::Error::from),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            access(folder(path), AccessFlags::W_OK | AccessFlags::X_OK).map_err(io::Error::from)
        }
        Err(error) => Err(error),
    }
}

/// Says what to do about a log file that cannot be written.
#[must_use]
pub fn help(path: &Path, error: &io::Error) -> String {
    let folder = folder(path).display();
    match error.kind() {
        io::ErrorKind::NotFound => format!("make the folder {folder}, and let Forebay's user write to it"),
        io::ErrorKind::NotADirectory => format!("name a folder in place of {folder}"),
        io::ErrorKind::IsADirectory => "name a file in this folder".to_owned(),
        io::ErrorKind::PermissionDenied => format!("let Forebay's user write to the file, or to the folder {folder}"),
        _ => "name a file that can be written".to_owned(),
    }
}

fn folder(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

impl Write for LogFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    /// Never between the parts of a line: a log's thread flushes after whole lines.
    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()?;
        self.renew();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_cannot_be_written_is_found_without_making_it_and_its_help_says_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        assert!(probe(&at("new.log")).is_ok() && !at("new.log").exists());
        std::fs::write(at("old.log"), "x").unwrap();
        assert!(probe(&at("old.log")).is_ok());
        for (path, words) in [
            (at("none/a.log"), format!("make the folder {}", at("none").display())),
            (at("old.log/a.log"), "name a folder in place of".to_owned()),
            (folder.path().to_owned(), "name a file in this folder".to_owned()),
        ] {
            // The same reason as at the start, where it is too late.
            let (found, later) = (probe(&path).unwrap_err(), LogFile::open(&path).unwrap_err());
            assert_eq!(found.kind(), later.kind(), "{path:?}");
            assert!(help(&path, &found).contains(&words), "{}", help(&path, &found));
        }
    }

    #[test]
    fn a_file_that_was_moved_away_is_made_anew_and_one_that_cannot_be_stays() {
        let folder = tempfile::tempdir().unwrap();
        let (path, moved) = (folder.path().join("a.log"), folder.path().join("a.log.1"));
        let text = |path: &Path| std::fs::read_to_string(path).unwrap();
        std::fs::write(&path, "before\n").unwrap();
        let mut log = LogFile::open(&path).unwrap();
        log.write_all(b"one\n").unwrap();
        std::fs::rename(&path, &moved).unwrap();
        log.write_all(b"two\n").unwrap();
        log.flush().unwrap();
        assert_eq!(text(&moved), "before\none\ntwo\n");
        reopen();
        log.flush().unwrap();
        log.write_all(b"three\n").unwrap();
        assert_eq!(text(&path), "three\n");
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        reopen();
        log.flush().unwrap();
        log.write_all(b"four\n").unwrap();
        assert!(LogFile::open(&path).is_err());
    }
}
