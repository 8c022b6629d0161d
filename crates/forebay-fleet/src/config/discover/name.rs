//! A name of the DNS with a port, as `discover` has it.

use std::fmt;

use crate::config::url::{BackendUrl, UrlError};
use forebay_core::toml_reader::{Value, Wrong, quoted, values};

/// A host name and the port of the servers at its addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsName {
    /// The name, in lower case.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl DnsName {
    /// The URL that the servers are called by.
    #[must_use]
    pub fn url(&self, https: bool) -> BackendUrl {
        let scheme = if https { "https" } else { "http" };
        format!("{scheme}://{self}").parse().expect("a checked name with a port is the authority of a URL")
    }
}

impl fmt::Display for DnsName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// Reads `"name:port"`.
pub(super) fn read(value: &Value<'_>) -> Result<DnsName, Wrong> {
    const HINT: &str = "write a host name and a port, such as \"vllm.example:8000\"";
    let text = values::line(260)(value)?;
    let wrong = |reason: &str| Err(Wrong::because(format!("{}: {reason}", quoted(&text))).hint(HINT));
    if text.contains("://") {
        return Err(Wrong::because(format!("{} is a URL", quoted(&text)))
            .hint("write the host name and the port alone; scheme = \"https\" speaks TLS"));
    }
    // Read as a URL first: its mistakes have words already.
    let url: BackendUrl = match format!("http://{text}").parse() {
        Ok(url) => url,
        Err(error @ (UrlError::Port | UrlError::UserInfo | UrlError::NoHost)) => return wrong(&error.to_string()),
        Err(_) => return wrong("this is no host name with a port"),
    };
    // Said of the text, since a URL leaves the port of its scheme out.
    let Some((host, port)) = text.rsplit_once(':') else { return wrong("the port is missing") };
    if host.starts_with('[') || host.parse::<std::net::IpAddr>().is_ok() {
        return Err(Wrong::because(format!("{} is an address, which is one backend", quoted(&text)))
            .hint("write it as a URL into backends, or write the name that has several addresses"));
    }
    if url.uri().path() != "/" || !host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)) {
        return wrong("this is no host name with a port");
    }
    let port = port.parse().ok().filter(|port| *port > 0);
    let Some(port) = port else { return wrong("the port is not between 1 and 65535") };
    Ok(DnsName { host: host.to_ascii_lowercase(), port })
}
