//! The kinds of values that only this file has: threads, the path of a socket, a salt, a header, a rank, networks, origins, paths, a backend's
//! URL, a collector's.

use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;

use super::origins::{Origins, is_origin};
use super::url::{BackendUrl, UrlError};
use forebay_core::routing::policy::PolicyName;
use forebay_core::routing::wait_room::Priority;
use forebay_core::toml_reader::kinds::choice;
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

/// A path that a Unix socket can have, with some bytes left for a socket beside it.
pub(super) struct SocketPath;

impl ValueKind for SocketPath {
    type Of = Option<PathBuf>;

    fn read(&self, value: &Value<'_>) -> Result<Option<PathBuf>, Wrong> {
        const HINT: &str = "write a whole path in a folder that only the user of the process can enter";
        let path = PathBuf::from(values::line(100)(value).map_err(|wrong| wrong.hint(HINT))?);
        if path.is_absolute() { Ok(Some(path)) } else { Err(Wrong::because("the path is not absolute").hint(HINT)) }
    }

    fn written(&self, value: &Option<PathBuf>) -> Notation {
        value.as_ref().map_or(Notation::Nothing, |path| Notation::Text(path.to_string_lossy().into_owned()))
    }

    fn takes(&self) -> String {
        "absolute path of at most 100 bytes".to_owned()
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

/// The network of a proxy, or its address.
pub(super) struct Network;

impl ValueKind for Network {
    type Of = IpNet;

    fn read(&self, value: &Value<'_>) -> Result<IpNet, Wrong> {
        let text = values::text(value)?;
        let one = || text.parse::<IpAddr>().map(IpNet::from);
        text.parse::<IpNet>().map(|net| net.trunc()).or_else(|_| one()).map_err(|_| {
            Wrong::because(format!("{} is no network", quoted(text)))
                .hint("write it as \"10.0.0.0/8\" or \"fd00::/8\", or one address as \"192.0.2.7\"")
        })
    }

    fn written(&self, value: &IpNet) -> Notation {
        Notation::Text(value.to_string())
    }

    fn takes(&self) -> String {
        "network such as `10.0.0.0/8`, or an address".to_owned()
    }
}

/// The origins whose pages may send requests.
pub(super) struct OriginsKind;

impl ValueKind for OriginsKind {
    type Of = Origins;

    fn read(&self, value: &Value<'_>) -> Result<Origins, Wrong> {
        const FORM: &str = "write \"backend\", \"off\" or a list such as [\"https://chat.example.com\"]; a browser sends an origin \
                            in lower case, without a path and without the port 80 or 443 of its scheme";
        match values::text(value) {
            Ok("backend") => return Ok(Origins::Backend),
            Ok("off") => return Ok(Origins::Off),
            Ok(other) => return Err(Wrong::because(format!("{} is no choice", quoted(other))).hint(FORM)),
            Err(_) => {}
        }
        values::items(value).map_err(|wrong| wrong.hint(FORM))?;
        let origin = |item: &Value<'_>| match values::text(item)? {
            text if text == "*" || is_origin(text) => Ok(text.to_owned()),
            text => Err(Wrong::because(format!("{} is no origin", quoted(text))).hint(FORM)),
        };
        let origins = values::each(value, origin)?;
        if origins.is_empty() {
            return Err(Wrong::because("the list is empty").hint("write \"off\" to allow no origin"));
        }
        Ok(Origins::These(origins))
    }

    fn written(&self, value: &Origins) -> Notation {
        match value {
            Origins::Backend => Notation::Text("backend".to_owned()),
            Origins::Off => Notation::Text("off".to_owned()),
            Origins::These(origins) => Notation::List(origins.clone()),
        }
    }

    fn takes(&self) -> String {
        "`\"backend\"`, `\"off\"` or a list of origins".to_owned()
    }
}

/// The policy of a pool.
pub(super) struct Policy;

impl ValueKind for Policy {
    type Of = PolicyName;

    fn read(&self, value: &Value<'_>) -> Result<PolicyName, Wrong> {
        let choices = choice(PolicyName::choices());
        // By spelling alone, nginx's `least_conn` would be nearest to a policy that counts something else.
        let ours = match values::text(value) {
            Ok("least_conn" | "leastconn" | "least_connections" | "least_request" | "LEAST_REQUEST") => {
                "least_inflight"
            }
            Ok("random" | "power_of_two") => "p2c",
            Ok("roundrobin" | "rr" | "ROUND_ROBIN") => "round_robin",
            _ => return choices.read(value),
        };
        choices.read(value).map_err(|wrong| wrong.hint(format!("its name is \"{ours}\" here")))
    }

    fn written(&self, value: &PolicyName) -> Notation {
        choice(PolicyName::choices()).written(value)
    }

    fn takes(&self) -> String {
        choice(PolicyName::choices()).takes()
    }
}

/// A path that goes to backends.
pub(super) struct ServedPath;

impl ValueKind for ServedPath {
    type Of = String;

    fn read(&self, value: &Value<'_>) -> Result<String, Wrong> {
        let text = values::line(256)(value)?;
        let hint = "write one whole path, decoded, as \"/v1/files\"; there are no patterns, so that nothing is opened by mistake";
        let has = |bad: &[char]| text.contains(bad);
        if !text.starts_with('/') || text.len() == 1 || text.ends_with('/') || has(&['*', '?', '#', '%', '{', '\\']) {
            return Err(Wrong::because(format!("{} is no path", quoted(&text))).hint(hint));
        }
        if text.split('/').skip(1).any(|part| matches!(part, "" | "." | "..")) {
            return Err(Wrong::because(format!("{} has an empty part or dots in it", quoted(&text))).hint(hint));
        }
        // They are Forebay's own, whatever else is allowed.
        if matches!(text.as_str(), "/health" | "/ready" | "/ping" | "/v1/models" | "/v1/realtime") {
            let hint = if text == "/v1/realtime" { "set paths.realtime = true" } else { "leave it out" };
            return Err(Wrong::because(format!("{text} is served without this key")).hint(hint));
        }
        Ok(text)
    }

    fn written(&self, value: &String) -> Notation {
        Notation::Text(value.clone())
    }

    fn takes(&self) -> String {
        "path such as `/v1/files`".to_owned()
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

/// The URL of a collector of traces, or none.
pub(super) struct Collector;

impl ValueKind for Collector {
    type Of = Option<String>;

    fn read(&self, value: &Value<'_>) -> Result<Option<String>, Wrong> {
        const HINT: &str = "write it as \"http://host:4318\", without /v1/traces, or \"off\"";
        let text = values::line(2048)(value).map_err(|wrong| wrong.hint(HINT))?;
        if text == "off" {
            // Written down, so that the environment does not turn traces on.
            return Ok(None);
        }
        let wrong = |reason: &str| Err(Wrong::because(reason).hint(HINT));
        // The exporter would find out only when it has spans to send.
        let Ok(uri) = text.parse::<http::Uri>() else { return wrong("this is not a URL") };
        if !matches!(uri.scheme_str(), Some("http" | "https")) || uri.host().is_none_or(str::is_empty) {
            return wrong("the URL does not begin with http:// or https:// and a host");
        }
        // The text is not repeated: it may hold a password.
        if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
            return Err(Wrong::because("the URL has a user or a password in it")
                .hint("leave it out; OTEL_EXPORTER_OTLP_HEADERS has what the collector asks for"));
        }
        if uri.query().is_some() || text.contains('#') {
            return wrong("the URL has a query or a fragment");
        }
        // A path follows it, and two slashes in a row are another path.
        Ok(Some(text.trim_end_matches('/').to_owned()))
    }

    fn written(&self, value: &Option<String>) -> Notation {
        Notation::Text(value.clone().unwrap_or_else(|| "off".to_owned()))
    }

    fn takes(&self) -> String {
        "`http://host:port` or `https://host:port`, with a prefix or without, or `\"off\"`".to_owned()
    }
}
