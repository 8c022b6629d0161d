//! The log of the process itself: `tracing` to stderr, text or JSON. Set up once, by the command line; the library only emits.
//! It must never write to stdout, which is the access log's.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use super::log::Format;

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
    /// Something in this process has set up a log before.
    #[error("the log of this process is set up already")]
    Twice,
}

/// Sets up the process's log. The filter is, in this order: the argument, `FOREBAY_LOG`, "warn,forebay=info".
///
/// # Errors
/// The filter cannot be read, or the process has a log already.
pub fn init(format: Format, filter: Option<&str>) -> Result<(), TraceError> {
    let from_environment = std::env::var(FILTER_VARIABLE).ok().filter(|filter| !filter.is_empty());
    let filter = read_filter(filter.or(from_environment.as_deref()).unwrap_or(DEFAULT_FILTER))?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        // Standard output is the access log's.
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    let done = match format {
        Format::Text => builder.try_init(),
        Format::Json => builder.json().flatten_event(true).try_init(),
    };
    done.map_err(|_| TraceError::Twice)
}

fn read_filter(filter: &str) -> Result<EnvFilter, TraceError> {
    EnvFilter::try_new(filter)
        .map_err(|error| TraceError::Filter { filter: filter.to_owned(), reason: error.to_string() })
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
