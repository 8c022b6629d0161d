//! The kinds of values that only this file has: threads, the path of a socket, a salt, a header, a backend's URL.

use std::path::PathBuf;

use super::url::{BackendUrl, UrlError};
use forebay_core::toml_reader::notation::Notation;
use forebay_core::toml_reader::values;
use forebay_core::toml_reader::{Value, ValueKind, Wrong, quoted};

/// A number of threads, or `"auto"`: one for each CPU.
pub(super) struct Threads;

impl Threads {
    /// Returns what `"auto"` means on this machine.
    pub(super) fn auto() -> usize {
        std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
    }
}

impl ValueKind for Threads {
    type Of = usize;

    fn read(&self, value: &Value<'_>) -> Result<usize, Wrong> {
        let hint = "write a number, or \"auto\" for as many as there are processors";
        match values::text(value) {
            Ok("auto") => Ok(Threads::auto()),
            Ok(_) => Err(value.expected("a whole number or \"auto\"").hint(hint)),
            Err(_) => values::whole(1..=1024_u32)(value).map(|count| count as usize).map_err(|wrong| wrong.hint(hint)),
        }
    }

    fn written(&self, value: &usize) -> Notation {
        Notation::Whole(*value as u64)
    }

    fn takes(&self) -> String {
        "whole number, 1 to 1024, or `\"auto\"`".to_owned()
    }
}

/// A path that a Unix socket can have.
pub(super) struct SocketPath;

impl ValueKind for SocketPath {
    type Of = Option<PathBuf>;

    fn read(&self, value: &Value<'_>) -> Result<Option<PathBuf>, Wrong> {
        const HINT: &str = "write a whole path in a folder that only the user of the process can enter";
        let path = PathBuf::from(values::line(107)(value).map_err(|wrong| wrong.hint(HINT))?);
        if path.is_absolute() { Ok(Some(path)) } else { Err(Wrong::because("the path is not absolute").hint(HINT)) }
    }

    fn written(&self, value: &Option<PathBuf>) -> Notation {
        value.as_ref().map_or(Notation::Nothing, |path| Notation::Text(path.to_string_lossy().into_owned()))
    }

    fn takes(&self) -> String {
        "absolute path of at most 107 bytes".to_owned()
    }
}

/// Text on one line, of at most so many bytes; empty where there is none.
pub(super) struct LineOrEmpty(pub(super) usize);

impl ValueKind for LineOrEmpty {
    type Of = String;

    fn read(&self, value: &Value<'_>) -> Result<String, Wrong> {
        let text = values::text(value)?;
        if text.is_empty() { Ok(String::new()) } else { values::line(self.0)(value) }
    }

    fn written(&self, value: &String) -> Notation {
        Notation::Text(value.clone())
    }

    fn takes(&self) -> String {
        format!("text of at most {} bytes", self.0)
    }
}

/// The name of a request header, which is kept in lower case.
pub(super) struct HeaderName;

impl ValueKind for HeaderName {
    type Of = String;

    fn read(&self, value: &Value<'_>) -> Result<String, Wrong> {
        let text = values::text(value)?;
        match http::HeaderName::from_bytes(text.as_bytes()) {
            Ok(name) => Ok(name.as_str().to_owned()),
            Err(_) => Err(Wrong::because(format!("{} is no header name", quoted(text)))
                .hint("letters, digits and `-`, such as \"x-session-id\"")),
        }
    }

    fn written(&self, value: &String) -> Notation {
        Notation::Text(value.clone())
    }

    fn takes(&self) -> String {
        "name of a request header".to_owned()
    }
}

/// The URL of a backend.
pub(super) struct Url;

impl ValueKind for Url {
    type Of = BackendUrl;

    fn read(&self, value: &Value<'_>) -> Result<BackendUrl, Wrong> {
        let text = values::text(value).map_err(|wrong| wrong.hint(UrlError::Malformed.hint()))?;
        text.parse().map_err(|error: UrlError| Wrong::because(error.to_string()).hint(error.hint()))
    }

    fn written(&self, value: &BackendUrl) -> Notation {
        Notation::Text(value.to_string())
    }

    fn takes(&self) -> String {
        "`http://host:port` or `https://host:port`, with a prefix or without, or `unix:/path`".to_owned()
    }
}
