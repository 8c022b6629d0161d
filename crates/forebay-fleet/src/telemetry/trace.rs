//! The log of the process itself: `tracing` to stderr, text or JSON. Set up once, by the command line; the library only emits.
//! At first lines are written by whoever logs, so that none is lost when the process does not start. Once it serves
//! ([`detach`]), they go through a `LineWriter`: a reader that stands still stops nothing. It must never write to stdout, which is
//! the access log's. With a file of its own it writes there from the beginning.

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use ::metrics::Counter;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use super::log::{AccessLog, Format};
use super::log_file::{self, LogFile};
use super::writer::{Line, LineWriter, Manner};
use crate::config::model::log_filter;

/// The environment variable with the filter, used where the command line gives none.
pub const FILTER_VARIABLE: &str = "FOREBAY_LOG";

/// The filter where nobody names one: state changes of ours, warnings of the libraries.
const DEFAULT_FILTER: &str = "warn,forebay=info";

/// Reason why the log could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The filter cannot be read.
    #[error(
        "`{filter}` is no log filter ({reason}); write a level such as \"debug\", or \"info,forebay::proxy=debug\""
    )]
    Filter {
        /// The filter as given.
        filter: String,
        /// The mistake in it.
        reason: String,
    },
    /// The log file cannot be written.
    #[error("cannot write the log file {}: {error}; {}", file.display(), log_file::help(file, error))]
    File {
        /// Its path.
        file: PathBuf,
        /// The system's reason.
        error: io::Error,
    },
    /// Something in this process has set up a log before.
    #[error("the log of this process is set up already")]
    Twice,
}

/// Sets up the process's log, to this file or to stderr. The filter is, in this order: the argument, `FOREBAY_LOG`,
/// "warn,forebay=info".
///
/// # Errors
/// The filter cannot be read, the file cannot be written, or the process has a log already.
pub fn init(format: Format, filter: Option<&str>, file: Option<&Path>) -> Result<(), TraceError> {
    let from_environment = std::env::var(FILTER_VARIABLE).ok().filter(|filter| !filter.is_empty());
    let filter = read_filter(filter.or(from_environment.as_deref()).unwrap_or(DEFAULT_FILTER))?;
    if let Some(path) = file {
        let file = || path.to_owned();
        LogFile::open(path).map_err(|error| TraceError::File { file: file(), error })?;
        FILE.set(file()).map_err(|_| TraceError::Twice)?;
    }
    let colour = file.is_none() && std::io::stderr().is_terminal();
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(Destination).with_ansi(colour);
    let done = match format {
        Format::Text => builder.try_init(),
        Format::Json => builder.json().flatten_event(true).try_init(),
    };
    done.map_err(|_| TraceError::Twice)
}

/// The file of the log, if it has one.
static FILE: OnceLock<PathBuf> = OnceLock::new();
/// The writer, once there is one.
static WRITER: OnceLock<LineWriter<TraceLine>> = OnceLock::new();
/// The time for which a thread that panics waits for its line to be written: the process may end with it.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// From now on whoever logs never waits for stderr's reader; panics are logged, too. `lost` counts the lines that the reader was too
/// slow for.
///
/// # Errors
/// The writer's thread could not be started.
pub fn detach(lost: Counter) -> io::Result<()> {
    let tell = |lost| tracing::warn!(lost, "lines of this log are lost: its reader does not keep up");
    // No linger: these lines are few, and an operator wants each when it happens.
    let manner = Manner { name: "log", linger: Duration::ZERO, lost, tell };
    let sink: Box<dyn Write + Send> = match FILE.get() {
        Some(path) => Box::new(LogFile::open(path)?),
        None => Box::new(io::stderr()),
    };
    let writer = LineWriter::start(sink, manner)?;
    if WRITER.set(writer).is_ok() {
        // In place of the default hook, which would write to stderr itself and wait for its reader.
        std::panic::set_hook(Box::new(|panic| {
            let thread = std::thread::current();
            let backtrace = std::backtrace::Backtrace::capture();
            tracing::error!(thread = thread.name(), %backtrace, "{panic}");
            _ = flush(LAST_WORDS);
        }));
    }
    Ok(())
}

/// Opens the files of this log and of the access log again, for a program that has moved them away.
pub fn reopen(access: &AccessLog) {
    log_file::reopen();
    access.reopen();
    if let Some(writer) = WRITER.get() {
        writer.poke();
    }
}

/// Waits until everything logged so far is written, but no longer than `limit`. For the end of the process; blocks the thread.
/// False: the limit came first.
pub fn flush(limit: Duration) -> bool {
    WRITER.get().is_none_or(|writer| writer.flush(limit))
}

/// A line as `tracing` made it.
#[derive(Debug)]
struct TraceLine(Box<[u8]>);

impl Line for TraceLine {
    fn size(&self) -> usize {
        self.0.len() + size_of::<TraceLine>()
    }

    fn append_to(&self, text: &mut Vec<u8>) {
        text.extend_from_slice(&self.0);
    }
}

/// The choice of where lines go at present.
struct Destination;

enum Out {
    Direct(io::Stderr),
    File(LogFile),
    Queue(&'static LineWriter<TraceLine>),
}

impl<'a> MakeWriter<'a> for Destination {
    type Writer = Out;

    fn make_writer(&'a self) -> Out {
        // Asked for every line, so that `detach` takes effect while the process runs.
        if let Some(writer) = WRITER.get() {
            return Out::Queue(writer);
        }
        // A few lines of a start. A file that is gone since then is no reason to lose them.
        let file = FILE.get().and_then(|path| LogFile::open(path).ok());
        file.map_or_else(|| Out::Direct(io::stderr()), Out::File)
    }
}

impl Write for Out {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match self {
            Out::Direct(stderr) => return stderr.write(line),
            Out::File(file) => return file.write(line),
            // `tracing` writes an event at once, so that one call is one line.
            Out::Queue(writer) => writer.push(TraceLine(line.into())),
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Out::Direct(stderr) => stderr.flush(),
            Out::File(file) => file.flush(),
            // A flush here would make the thread that logs wait for the reader.
            Out::Queue(_) => Ok(()),
        }
    }
}

/// The part of pingora that waits in an upgrade. It calls each second without a hand-over an error, which it is not; Forebay says
/// itself that it waits, and that it gives up.
const NOISE: &str = "pingora_core::server::transfer_fd=off";

fn read_filter(filter: &str) -> Result<EnvFilter, TraceError> {
    let read = log_filter(filter).map_err(|reason| TraceError::Filter { filter: filter.to_owned(), reason })?;
    // Whoever asks for pingora's words gets all of them.
    let quiet = if filter.contains("pingora") { None } else { NOISE.parse().ok() };
    Ok(match quiet {
        Some(noise) => read.add_directive(noise),
        None => read,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_filter_can_be_read() {
        assert!(read_filter(DEFAULT_FILTER).is_ok());
        assert!(read_filter("debug").is_ok());
    }

    #[test]
    fn a_bad_filter_is_named() {
        let error = read_filter("forebay=loud").unwrap_err().to_string();
        assert!(error.contains("forebay=loud"), "{error}");
    }
}
