//! The kinds of values that only this file has: threads, the path of a socket, a salt, a header, a rank, a backend's URL.

use std::path::PathBuf;

use super::url::{BackendUrl, UrlError};
use forebay_core::routing::wait_room::Priority;
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

/// The rank of a client among those that wait.
pub(super) struct Rank;

impl ValueKind for Rank {
    type Of = Priority;

    fn read(&self, value: &Value<'_>) -> Result<Priority, Wrong> {
        let hint = "100 is served first, and keys without a priority have 50";
        let rank = values::whole(0..=100_u32)(value).map_err(|wrong| wrong.hint(hint))?;
        Ok(Priority(u8::try_from(rank).expect("it is at most 100")))
    }

    fn written(&self, value: &Priority) -> Notation {
        Notation::Whole(value.0.into())
    }

    fn takes(&self) -> String {
        "whole number, 0 to 100".to_owned()
    }
}

/// The URL of a backend.
pub(super) struct Url;

impl ValueKind for Url {
    type Of = BackendUrl;

    fn read(&self, value: &Value<'_>) -> Result<BackendUrl, Wrong> {
        const FORM: &str = "write it as \"http://host:port\"";
        let text = values::text(value).map_err(|wrong| wrong.hint(FORM))?;
        text.parse().map_err(|error: UrlError| {
            let hint = match error {
                UrlError::UserInfo => "leave it out; a backend's key is named by key_env",
                UrlError::Path => "leave it out, also a `/v1`: requests keep the path that the client sent",
                UrlError::Https => "write http://, and keep backends on a private network",
                _ => FORM,
            };
            Wrong::because(error.to_string()).hint(hint)
        })
    }

    fn written(&self, value: &BackendUrl) -> Notation {
        Notation::Text(value.to_string())
    }

    fn takes(&self) -> String {
        "`http://host:port`, without a path".to_owned()
    }
}
