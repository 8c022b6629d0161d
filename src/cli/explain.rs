//! `forebay explain`: where a request would go, and why. Asks a running proxy (`POST /api/explain`); the request is sent nowhere.

mod table;

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde::Serialize;
use serde_json::value::RawValue;

use super::admin::{AdminClient, AdminError, DEFAULT_ADMIN};
use forebay_core::units::BackendId;
use forebay_fleet::view::explain::Explanation;

/// The arguments of `forebay explain`.
#[derive(Debug, clap::Args)]
#[command(
    about = "Say where a request would go, and why",
    long_about = "Say where a request would go, and why: every backend with its load and its predicted time to first token by \
        its terms, the choice, and the reason in words. The request is sent nowhere.\n\n\
        A running proxy answers (--admin, its admin address), with all that it knows: loads, health, and what it expects in \
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
    #[arg(long, visible_alias = "url", default_value = DEFAULT_ADMIN, value_name = "URL")]
    admin: String,
    /// A file with the admin API's token [default: the environment's FOREBAY_ADMIN_TOKEN, if any]
    #[arg(long, visible_alias = "token-file", value_name = "FILE")]
    admin_token_file: Option<PathBuf>,
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

/// Runs the command.
#[must_use]
pub fn run(args: Args) -> ExitCode {
    match explain(&args) {
        Ok((text, found)) => {
            print!("{text}");
            if found { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(AdminError::Proxy(message) | AdminError::HandsOver(message)) => {
            eprintln!("forebay explain: {message}");
            ExitCode::FAILURE
        }
        Err(AdminError::Question(message)) => {
            eprintln!("forebay explain: {message}");
            ExitCode::from(2)
        }
    }
}

/// The answer's text, and whether a backend would get the request.
fn explain(args: &Args) -> Result<(String, bool), AdminError> {
    let file = args.request.display();
    let body = read(&args.request)
        .map_err(|error| AdminError::Question(format!("cannot read the request {file}: {error}")))?;
    let request: &RawValue = serde_json::from_slice(&body)
        .map_err(|error| AdminError::Question(format!("{file} is not a request's body in JSON: {error}")))?;
    let question = ExplainBody {
        request,
        path: &args.path,
        session: args.session.as_deref(),
        arm: args.arm.as_deref(),
        matched: args.matched.iter().map(|(id, tokens)| (id.to_string(), *tokens)).collect(),
    };
    let question = serde_json::to_string(&question).expect("a question has string keys");
    let proxy = AdminClient::new(&args.admin, args.admin_token_file.as_deref())?;
    let answer = proxy.post("/api/explain", question)?;
    let explanation: Explanation = serde_json::from_slice(&answer)
        .map_err(|error| AdminError::Proxy(format!("{} answers unlike this version: {error}", args.admin)))?;
    let text = if args.json {
        format!("{:#}\n", serde_json::to_value(&explanation).expect("plain structs with string keys are JSON"))
    } else {
        table::text(&explanation)
    };
    Ok((text, explanation.decision.is_some()))
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
