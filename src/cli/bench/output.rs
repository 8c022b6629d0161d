//! The row file of `forebay bench`: opened to append to, and written so that a run in it is whole or not there.

use std::fs::{File, OpenOptions};
use std::io::{BufReader, Write};
use std::path::Path;

use forebay_lab::load::run;
use forebay_lab::rows::row_file::{self, RunRows};

/// Opens a row file to append to. Half a line at its end is the trace of a crash, and cut off.
pub(super) fn opened(path: &Path) -> Result<File, String> {
    let wrong = |error: &dyn std::fmt::Display| format!("--output {}: {error}", path.display());
    let file = OpenOptions::new().create(true).read(true).append(true).open(path).map_err(|error| wrong(&error))?;
    row_file::read(BufReader::new(&file)).map_err(|error| wrong(&error))?;
    let text = std::fs::read(path).map_err(|error| wrong(&error))?;
    let whole = memchr::memrchr(b'\n', &text).map_or(0, |end| end + 1);
    if whole < text.len() && text.starts_with(b"{") {
        file.set_len(whole as u64).map_err(|error| wrong(&error))?;
    } else if whole < text.len() {
        return Err(wrong(&"it is no file of rows"));
    }
    Ok(file)
}

/// Appends a run in one write, its end last, and waits until the disk has it.
pub(super) fn written(file: &mut File, rows: &RunRows) -> std::io::Result<()> {
    let mut text = Vec::new();
    run::write(&mut text, rows)?;
    file.write_all(&text)?;
    file.sync_data()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_file_is_appended_to_after_a_crash_and_another_file_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rows.jsonl");
        let end = row_file::RunEnd { lag_p99_us: 1 };
        let one = RunRows { end: Some(end), ..RunRows::default() };
        written(&mut opened(&path).unwrap(), &one).unwrap();
        std::fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"id\":0,").unwrap();
        written(&mut opened(&path).unwrap(), &one).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "{\"end\":{\"lag_p99_us\":1}}\n".repeat(2));
        for other in ["not rows\n", "not rows"] {
            std::fs::write(&path, other).unwrap();
            assert!(opened(&path).is_err());
            assert_eq!(std::fs::read_to_string(&path).unwrap(), other);
        }
    }
}
