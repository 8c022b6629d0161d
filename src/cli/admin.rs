//! What the commands that talk to a running proxy share: its admin address and token on the command line, and one question to the
//! admin API with an error in words.

use std::path::{Path, PathBuf};
use std::time::Duration;

use http::{StatusCode, Uri};

use forebay_fleet::probe::ProbeClient;
use forebay_fleet::telemetry::labels::ProbeFailure;

/// The admin address of a proxy that was started without an address of its own.
pub(super) const DEFAULT_ADMIN: &str = "http://127.0.0.1:8081";
/// The variable of the environment that holds the admin API's token.
const TOKEN_VARIABLE: &str = "FOREBAY_ADMIN_TOKEN";
/// The time within which a proxy must answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// The answer of a pool of a thousand backends has 1 MiB.
const MAX_ANSWER: usize = 64 << 20;
const FORM: &str = "write it as http://127.0.0.1:8081, the proxy's admin address";

/// The proxies that a command is for.
#[derive(Debug, clap::Args)]
pub(super) struct Proxies {
    /// The admin address of a running proxy, also with https; once for each, where several serve the same backends. The
    /// environment's SSL_CERT_FILE names an authority of your own
    #[arg(long, default_value = DEFAULT_ADMIN, value_name = "URL")]
    pub(super) admin: Vec<String>,
    /// A file with the admin API's token [default: the environment's FOREBAY_ADMIN_TOKEN, if any]
    #[arg(long, visible_alias = "token-file", value_name = "FILE")]
    pub(super) admin_token_file: Option<PathBuf>,
}

impl Proxies {
    /// A client for each proxy.
    ///
    /// # Errors
    /// There is no such token file.
    pub(super) fn clients(&self) -> Result<Vec<AdminClient<'_>>, AdminError> {
        self.admin.iter().map(|url| AdminClient::new(url, self.admin_token_file.as_deref())).collect()
    }
}

/// The reason why there is no answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum AdminError {
    /// The proxy cannot be asked.
    Proxy(String),
    /// The proxy hands over to a new process at this moment, which is to be asked.
    HandsOver(String),
    /// The question makes no sense.
    Question(String),
}

impl AdminError {
    /// The words for whoever asked.
    pub(super) fn words(self) -> String {
        match self {
            AdminError::Proxy(words) | AdminError::HandsOver(words) | AdminError::Question(words) => words,
        }
    }
}

/// The admin API of one proxy.
#[derive(Debug)]
pub(super) struct AdminClient<'a> {
    url: &'a str,
    token: Option<String>,
}

impl<'a> AdminClient<'a> {
    /// A client for the proxy at `url`, with the token of this file or of the environment.
    ///
    /// # Errors
    /// There is no such file, or it is empty.
    pub(super) fn new(url: &'a str, token_file: Option<&Path>) -> Result<AdminClient<'a>, AdminError> {
        Ok(AdminClient { url, token: token(token_file).map_err(AdminError::Proxy)? })
    }

    /// The address, as it was given.
    pub(super) fn url(&self) -> &'a str {
        self.url
    }

    /// Asks for a document.
    ///
    /// # Errors
    /// There is no answer, or it is an error.
    pub(super) fn get(&self, path: &str) -> Result<Vec<u8>, AdminError> {
        self.ask(path, None)
    }

    /// Sends a document in JSON.
    ///
    /// # Errors
    /// There is no answer, or it is an error.
    pub(super) fn post(&self, path: &str, body: String) -> Result<Vec<u8>, AdminError> {
        self.ask(path, Some(body))
    }

    fn ask(&self, path: &str, body: Option<String>) -> Result<Vec<u8>, AdminError> {
        let url = self.url;
        let uri = uri_of(url, path).map_err(AdminError::Proxy)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| AdminError::Proxy(format!("cannot start a runtime: {error}")))?;
        let (client, token) = (ProbeClient::new(PATIENCE), self.token.as_deref());
        let answer = runtime.block_on(async {
            match body {
                Some(body) => client.post(uri, token, body, PATIENCE, MAX_ANSWER).await,
                None => client.get(uri, token, PATIENCE, MAX_ANSWER).await,
            }
        });
        let (status, body) = answer.map_err(|error| {
            let hint = match error.failure {
                ProbeFailure::Tls => "name the file of its authority in the environment variable SSL_CERT_FILE",
                _ => "is this the admin address of a running proxy?",
            };
            AdminError::Proxy(format!("cannot ask {url}: {error}; {hint}"))
        })?;
        self.judge(path, status, body.to_vec())
    }

    /// Makes an error of an answer that is one.
    fn judge(&self, path: &str, status: StatusCode, body: Vec<u8>) -> Result<Vec<u8>, AdminError> {
        let url = self.url;
        let said = || {
            let answer: Option<serde_json::Value> = serde_json::from_slice(&body).ok();
            answer.and_then(|answer| answer["error"]["message"].as_str().map(str::to_owned))
        };
        match status {
            StatusCode::OK => Ok(body),
            StatusCode::UNAUTHORIZED => Err(AdminError::Proxy(format!("{url} {}", wants_token(self.token.is_some())))),
            status if status.is_client_error() && status != StatusCode::FORBIDDEN => match said() {
                Some(words) => Err(AdminError::Question(words)),
                None => Err(AdminError::Proxy(format!("{url}{path} answered {status}; {FORM}"))),
            },
            status => {
                let words = format!("{url}{path} answered {status}: {}", said().unwrap_or_else(|| FORM.to_owned()));
                let hands_over = status == StatusCode::SERVICE_UNAVAILABLE;
                Err(if hands_over { AdminError::HandsOver(words) } else { AdminError::Proxy(words) })
            }
        }
    }
}

/// Returns the address of a document of the admin API at `url`.
///
/// # Errors
/// That is no URL with `http` or `https`.
pub(super) fn uri_of(url: &str, path: &str) -> Result<Uri, String> {
    let whole = format!("{}{path}", url.trim_end_matches('/'));
    let uri: Uri = whole.parse().map_err(|error| format!("{url}: {error}; {FORM}"))?;
    if matches!(uri.scheme_str(), Some("http" | "https")) { Ok(uri) } else { Err(format!("{url}: {FORM}")) }
}

/// Returns what to do where a proxy refuses the token that was sent, or the lack of one.
pub(super) fn wants_token(sent: bool) -> String {
    let which = if sent { "another token" } else { "its token" };
    format!("wants {which}: --admin-token-file FILE, or {TOKEN_VARIABLE} in the environment")
}

/// Returns the admin API's token: the content of this file, else that of the environment.
pub(super) fn token(file: Option<&Path>) -> Result<Option<String>, String> {
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
