//! `forebay explain`: where a request would go, and why. Asks a running proxy (`POST /api/explain`); the request is sent nowhere.

mod table;

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use http::{StatusCode, Uri};
use serde::Serialize;
use serde_json::value::RawValue;

use forebay_core::units::BackendId;
use forebay_fleet::probe::ProbeClient;
use forebay_fleet::telemetry::labels::ProbeFailure;
use forebay_fleet::view::explain::Explanation;

/// The variable of the environment that holds the admin API's token.
const TOKEN_VARIABLE: &str = "FOREBAY_ADMIN_TOKEN";
/// The time within which a proxy must answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// The answer of a pool of a thousand backends has 1 MiB.
const MAX_ANSWER: usize = 64 << 20;

/// The arguments of `forebay explain`.
#[derive(Debug, clap::Args)]
#[command(
    about = "Say where a request would go, and why",
    long_about = "Say where a request would go, and why: every backend with its load and its predicted time to first token by \
        its terms, the choice, and the reason in words. The request is sent nowhere.\n\n\
        A running proxy answers (--url, its admin address), with all that it knows: loads, health, and what it expects in \
        prefix caches. --matched supposes other contents of a cache.",
    after_help = "Exit codes: 0 a backend would get the request, 1 none would or the proxy cannot be asked, 2 wrong usage or a \
        request that would be refused.\n\n\
        Example: echo '{\"model\": \"m\", \"messages\": [{\"role\": \"user\", \"content\": \"hi\"}]}' | forebay explain -"
)]
pub struct Args {
    /// The request's body as a client would send it (JSON); `-` reads standard input
    #[arg(value_name = "REQUEST.json")]
    request: PathBuf,
    /// The admin address of a running proxy
    #[arg(long, default_value = "http://127.0.0.1:9090", value_name = "URL")]
    url: String,
    /// A file with the admin API's token [default: the environment's FOREBAY_ADMIN_TOKEN, if any]
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// The path that a client would send the request to
    #[arg(long, default_value = "/v1/chat/completions")]
    path: String,
    /// The session that it belongs to, which decides its arm [default: the one in its body, if the pool's is there]
    #[arg(long)]
    session: Option<String>,
    /// The arm that it is assigned to, whatever its session
    #[arg(long, value_name = "NAME", conflicts_with = "session")]
    arm: Option<String>,
    /// Suppose that a backend has so many tokens of the prompt in its prefix cache
    #[arg(long, value_name = "BACKEND=TOKENS", value_parser = supposed)]
    matched: Vec<(BackendId, u32)>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// The body of `POST /api/explain`.
#[derive(Serialize)]
struct ExplainBody<'a> {
    request: &'a RawValue,
    path: &'a str,
    session: Option<&'a str>,
    arm: Option<&'a str>,
    matched: BTreeMap<String, u32>,
}

/// The reason why there is no answer.
#[derive(Debug)]
enum ExplainError {
    /// The proxy cannot be asked.
    Proxy(String),
    /// The question makes no sense.
    Question(String),
}

/// Runs the command.
#[must_use]
pub fn run(args: Args) -> ExitCode {
    match explain(&args) {
        Ok((text, found)) => {
            print!("{text}");
            if found { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(ExplainError::Proxy(message)) => {
            eprintln!("forebay explain: {message}");
            ExitCode::FAILURE
        }
        Err(ExplainError::Question(message)) => {
            eprintln!("forebay explain: {message}");
            ExitCode::from(2)
        }
    }
}

/// The answer's text, and whether a backend would get the request.
fn explain(args: &Args) -> Result<(String, bool), ExplainError> {
    let file = args.request.display();
    let body = read(&args.request)
        .map_err(|error| ExplainError::Question(format!("cannot read the request {file}: {error}")))?;
    let request: &RawValue = serde_json::from_slice(&body)
        .map_err(|error| ExplainError::Question(format!("{file} is not a request's body in JSON: {error}")))?;
    let question = ExplainBody {
        request,
        path: &args.path,
        session: args.session.as_deref(),
        arm: args.arm.as_deref(),
        matched: args.matched.iter().map(|(id, tokens)| (id.to_string(), *tokens)).collect(),
    };
    let question = serde_json::to_string(&question).expect("a question has string keys");
    let answer = ask(args, question)?;
    let explanation: Explanation = serde_json::from_slice(&answer)
        .map_err(|error| ExplainError::Proxy(format!("{} answers unlike this version: {error}", args.url)))?;
    let text = if args.json {
        format!("{:#}\n", serde_json::to_value(&explanation).expect("plain structs with string keys are JSON"))
    } else {
        table::text(&explanation)
    };
    Ok((text, explanation.decision.is_some()))
}

/// Asks the proxy and returns its answer.
fn ask(args: &Args, question: String) -> Result<Vec<u8>, ExplainError> {
    let url = &args.url;
    let form = "write it as http://127.0.0.1:9090, the proxy's admin address";
    let uri: Uri = format!("{}/api/explain", url.trim_end_matches('/'))
        .parse()
        .map_err(|error| ExplainError::Proxy(format!("--url {url}: {error}; {form}")))?;
    if !matches!(uri.scheme_str(), Some("http" | "https")) {
        return Err(ExplainError::Proxy(format!("--url {url}: {form}")));
    }
    let token = token(args.token_file.as_deref()).map_err(ExplainError::Proxy)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| ExplainError::Proxy(format!("cannot start a runtime: {error}")))?;
    let client = ProbeClient::new(PATIENCE);
    let answer = runtime.block_on(client.post(uri, token.as_deref(), question, PATIENCE, MAX_ANSWER));
    let (status, body) = answer.map_err(|error| {
        let hint = match error.failure {
            ProbeFailure::Tls => "name the file of its authority in the environment variable SSL_CERT_FILE",
            _ => "is this the admin address of a running proxy?",
        };
        ExplainError::Proxy(format!("cannot ask {url}: {error}; {hint}"))
    })?;
    let said = || {
        let answer: Option<serde_json::Value> = serde_json::from_slice(&body).ok();
        answer.and_then(|answer| answer["error"]["message"].as_str().map(str::to_owned))
    };
    match status {
        StatusCode::OK => Ok(body.to_vec()),
        StatusCode::UNAUTHORIZED => {
            let sent = if token.is_some() { "another token" } else { "its token" };
            Err(ExplainError::Proxy(format!(
                "{url} wants {sent}: --token-file FILE, or {TOKEN_VARIABLE} in the environment"
            )))
        }
        status if status.is_client_error() && status != StatusCode::FORBIDDEN => match said() {
            Some(words) => Err(ExplainError::Question(words)),
            None => Err(ExplainError::Proxy(format!("{url}/api/explain answered {status}; {form}"))),
        },
        status => {
            let words = said().unwrap_or_else(|| format!("--url: {form}"));
            Err(ExplainError::Proxy(format!("{url}/api/explain answered {status}: {words}")))
        }
    }
}

/// Returns the admin API's token: the content of this file, else that of the environment.
///
/// # Errors
/// The file cannot be read, or the token is empty.
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

fn read(file: &Path) -> std::io::Result<Vec<u8>> {
    if file != Path::new("-") {
        return std::fs::read(file);
    }
    let mut bytes = Vec::new();
    std::io::stdin().lock().read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// `b2=1500`.
fn supposed(text: &str) -> Result<(BackendId, u32), String> {
    let parsed = text.split_once('=').and_then(|(id, tokens)| {
        Some((BackendId(id.strip_prefix('b').unwrap_or(id).parse().ok()?), tokens.parse().ok()?))
    });
    parsed.ok_or_else(|| format!("`{text}` is not BACKEND=TOKENS, such as b2=1500"))
}

#[cfg(test)]
mod tests;
