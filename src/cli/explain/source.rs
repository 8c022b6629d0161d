//! Where the fleet comes from: a running proxy's admin API, or a file.

use std::path::Path;
use std::time::Duration;

use http::{StatusCode, Uri};

use forebay_fleet::probe::ProbeClient;
use forebay_fleet::recorded::Recorded;

/// The variable of the environment that holds the admin API's token.
const TOKEN_VARIABLE: &str = "FOREBAY_ADMIN_TOKEN";
/// How long a proxy may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// A fleet of a thousand backends has 3 MiB.
const MAX_STATE: usize = 64 << 20;

/// Where the fleet comes from.
pub(super) enum Source<'a> {
    /// A file, or `-`.
    File(&'a Path),
    /// A running proxy.
    Proxy { url: &'a str, token_file: Option<&'a Path> },
}

impl Source<'_> {
    /// The fleet, or what is wrong.
    pub(super) fn fleet(&self) -> Result<Recorded, String> {
        let (text, from) = match self {
            Source::File(file) => {
                let text = super::read(file).map_err(|error| format!("cannot read {}: {error}", file.display()))?;
                (text, file.display().to_string())
            }
            Source::Proxy { url, token_file } => (fetched(url, *token_file)?, format!("{url}/api/fleet")),
        };
        serde_json::from_slice(&text)
            .map_err(|error| format!("{from} is no fleet as /api/fleet of this version answers it: {error}"))
    }
}

fn fetched(url: &str, token_file: Option<&Path>) -> Result<Vec<u8>, String> {
    let uri: Uri = format!("{}/api/fleet", url.trim_end_matches('/'))
        .parse()
        .map_err(|error| format!("--url {url}: {error}; write it as http://127.0.0.1:9090"))?;
    if uri.scheme_str() != Some("http") {
        return Err(format!("--url {url}: write it as http://127.0.0.1:9090, the proxy's admin address"));
    }
    let token = token(token_file)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start a runtime: {error}"))?;
    let client = ProbeClient::new(PATIENCE);
    let answer = runtime.block_on(client.get(uri, token.as_deref(), PATIENCE, MAX_STATE));
    let (status, body) =
        answer.map_err(|error| format!("cannot ask {url}: {error}; is this the admin address of a running proxy?"))?;
    match status {
        StatusCode::OK => Ok(body.to_vec()),
        StatusCode::UNAUTHORIZED => {
            let sent = if token.is_some() { "another token" } else { "its token" };
            Err(format!("{url} wants {sent}: --token-file FILE, or {TOKEN_VARIABLE} in the environment"))
        }
        status => Err(format!("{url}/api/fleet answered {status}; --url is the proxy's admin address")),
    }
}

fn token(file: Option<&Path>) -> Result<Option<String>, String> {
    let text = match file {
        Some(file) => std::fs::read_to_string(file)
            .map_err(|error| format!("cannot read the token file {}: {error}", file.display()))?,
        None => match std::env::var(TOKEN_VARIABLE) {
            Ok(text) => text,
            Err(_) => return Ok(None),
        },
    };
    let token = text.trim();
    if token.is_empty() { Err("the admin API's token is empty".to_owned()) } else { Ok(Some(token.to_owned())) }
}
