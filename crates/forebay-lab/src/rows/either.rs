//! A file that `forebay compare` was given: the rows of `forebay bench`, or the access log of real traffic, told apart by its first
//! line that is of either kind. Pure but for reading.

use std::io::{self, BufRead, Cursor, Read};

use super::access_log::{self, LogError, ReadLog};
use super::row_file::{self, RowError, RunRows};

/// The content of a file.
#[derive(Debug)]
pub enum Content {
    /// Runs of the load generator.
    Rows(Vec<RunRows>),
    /// The access log of real traffic.
    Log(Box<ReadLog>),
}

/// A file that is neither.
#[derive(Debug, thiserror::Error)]
pub enum ContentError {
    /// No file of rows, and nothing in it is of an access log.
    #[error(transparent)]
    Row(#[from] RowError),
    /// An access log that cannot be compared.
    #[error(transparent)]
    Log(#[from] LogError),
    /// An access log in the other format.
    #[error(
        "this access log is in the text format, which cannot be compared: start `forebay serve` with --access-log json"
    )]
    TextLog,
}

/// Reads a file of either kind. `pool`: the pool of a log whose arms are compared.
///
/// # Errors
/// The system refused, or the file is neither, or has nothing to compare.
pub fn read(mut from: impl BufRead, pool: Option<&str>) -> Result<Content, ContentError> {
    // A log begins with other lines, so what was looked at is kept: standard input cannot be read twice.
    let mut seen = Vec::new();
    let mut text_log = false;
    loop {
        let begin = seen.len();
        if from.read_until(b'\n', &mut seen).map_err(RowError::Io)? == 0 {
            break;
        }
        let line = String::from_utf8_lossy(&seen[begin..]);
        if access_log::within(&line).is_some() {
            let all = io::BufReader::new(Cursor::new(seen).chain(from));
            return Ok(Content::Log(Box::new(access_log::read(all, pool)?)));
        }
        if row_file::ROWS.iter().any(|row| line.trim_start().starts_with(row)) {
            break;
        }
        text_log |= line.contains(" outcome=") && line.contains(" e2e_ms=");
    }
    if text_log {
        return Err(ContentError::TextLog);
    }
    Ok(Content::Rows(row_file::read(io::BufReader::new(Cursor::new(seen).chain(from)))?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "{\"time\":\"2026-01-01T00:00:00Z\",\"status\":200,\"outcome\":\"success\",\"pool\":\"m\",\"arm\":\"ARM\",\
        \"assigned_arm\":\"ARM\",\"stream\":true,\"ttft_ms\":4.0,\"e2e_ms\":9.0,\"prompt_tokens\":1,\"output_tokens\":1}\n";

    #[test]
    fn the_first_line_of_either_kind_tells_what_a_file_is() {
        let log = [" INFO listening\n", &LOG.replace("ARM", "a"), &LOG.replace("ARM", "b")].concat();
        assert!(matches!(read(log.as_bytes(), None), Ok(Content::Log(read)) if read.run.records.len() == 2));
        let rows = "{\"end\":{\"lag_p99_us\":1}}\n";
        assert!(matches!(read(rows.as_bytes(), None), Ok(Content::Rows(runs)) if runs.len() == 1));
        assert!(read(&b"nonsense\n"[..], None).unwrap_err().to_string().starts_with("line 1 is no row"));
        let text = "2026-01-01T00:00:00Z status=200 outcome=success stream=true e2e_ms=9.000\n";
        assert!(read(text.as_bytes(), None).unwrap_err().to_string().contains("--access-log json"));
    }
}
