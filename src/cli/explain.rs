//! `forebay explain`: where a request would go, and why. From a running proxy or from its fleet as it was written down; it
//! sends the request nowhere.

mod source;
mod table;

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::proxy::asked::{Asked, asked};
use forebay_core::routing::facts::{ArmIndex, RequestFacts};
use forebay_core::units::BackendId;
use forebay_fleet::config::model::{Affinity, SessionKey};
use forebay_fleet::recorded::{Recorded, RecordedPool};

use source::Source;

/// The arguments of `forebay explain`.
#[derive(Debug, clap::Args)]
#[command(
    about = "Say where a request would go, and why",
    long_about = "Say where a request would go, and why: every backend with its load and its predicted time to first token by \
        its terms, the choice, and the reason in words. The request is sent nowhere.\n\n\
        The fleet is a running proxy's (--url, its admin address) or one that was written down (--state, the answer of \
        /api/fleet). What the proxy knows of prefix caches stays with it: --matched supposes some.",
    after_help = "Exit codes: 0 a backend would get the request, 1 none would or the fleet cannot be read, 2 wrong usage or a \
        request that would be refused.\n\n\
        Example: curl -s localhost:9090/api/fleet > fleet.json; forebay explain --state fleet.json request.json"
)]
pub struct Args {
    /// The request's body as a client would send it (JSON); `-` reads standard input
    #[arg(value_name = "REQUEST.json")]
    request: PathBuf,
    /// The admin address of a running proxy
    #[arg(long, default_value = "http://127.0.0.1:9090", value_name = "URL", conflicts_with = "state")]
    url: String,
    /// A fleet as /api/fleet answered it, instead of a running proxy's; `-` reads standard input
    #[arg(long, value_name = "FILE")]
    state: Option<PathBuf>,
    /// A file with the admin API's token [default: the environment's FOREBAY_ADMIN_TOKEN, if any]
    #[arg(long, value_name = "FILE", conflicts_with = "state")]
    token_file: Option<PathBuf>,
    /// Where a client would send the request
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

/// What to say of how an answer was found.
struct Note(String);

/// Why there is no answer.
enum Failed {
    /// The fleet cannot be read.
    Fleet(String),
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
        Err(Failed::Fleet(message)) => {
            eprintln!("forebay explain: {message}");
            ExitCode::FAILURE
        }
        Err(Failed::Question(message)) => {
            eprintln!("forebay explain: {message}");
            ExitCode::from(2)
        }
    }
}

/// The answer's text, and whether a backend would get the request.
fn explain(args: &Args) -> Result<(String, bool), Failed> {
    let source = match &args.state {
        Some(file) if file == Path::new("-") && args.request == Path::new("-") => {
            return Err(Failed::Question("standard input is the state or the request, not both".to_owned()));
        }
        Some(file) => Source::File(file),
        None => Source::Proxy { url: &args.url, token_file: args.token_file.as_deref() },
    };
    let body = read(&args.request)
        .map_err(|error| Failed::Question(format!("cannot read the request {}: {error}", args.request.display())))?;
    let request = asked(&args.path, &body, None).map_err(Failed::Question)?;
    let fleet = source.fleet().map_err(Failed::Fleet)?;
    let pool = fleet.pool(request.model.as_deref()).map_err(Failed::Question)?;
    answer(args, &fleet, pool, &request, &body)
}

fn answer(
    args: &Args,
    fleet: &Recorded,
    pool: &RecordedPool,
    request: &Asked,
    body: &[u8],
) -> Result<(String, bool), Failed> {
    let mut notes = Vec::new();
    let mut rng = fastrand::Rng::new();
    let arm = arm_of(args, pool, body, &mut rng, &mut notes).map_err(Failed::Question)?;
    for (id, _) in &args.matched {
        if !pool.backends().any(|(_, backend)| backend.id == *id) {
            let known: Vec<String> = pool.backends().map(|(_, backend)| backend.id.to_string()).collect();
            let message = format!("--matched: {id} is not in pool {}, which has {}", pool.model, known.join(", "));
            return Err(Failed::Question(message));
        }
    }
    if pool.affinity != Affinity::Off && args.matched.is_empty() {
        notes.push(Note(
            "what the proxy expects in prefix caches is not in its state: --matched BACKEND=TOKENS supposes some"
                .to_owned(),
        ));
    }
    let facts = RequestFacts { arm, ..request.facts.clone() };
    let explained = pool.explain(request.model.as_deref(), &facts, &args.matched, fleet.now, &mut rng);
    let shown = table::Shown { pool, facts: &facts, explained: &explained, notes: &notes };
    let text = if args.json { shown.json() } else { shown.text() };
    Ok((text, explained.decision.is_some()))
}

/// The arm that the request is assigned to.
fn arm_of(
    args: &Args,
    pool: &RecordedPool,
    body: &[u8],
    rng: &mut fastrand::Rng,
    notes: &mut Vec<Note>,
) -> Result<ArmIndex, String> {
    if let Some(name) = &args.arm {
        let found = (0_u16..).zip(&pool.arms).find(|(_, arm)| arm.name == *name);
        let names = || pool.arms.iter().map(|arm| arm.name.as_str()).collect::<Vec<_>>().join(", ");
        return found
            .map(|(place, _)| ArmIndex(place))
            .ok_or_else(|| format!("--arm: pool {} has no arm `{name}`, but {}", pool.model, names()));
    }
    let session = match (&args.session, &pool.session) {
        (Some(session), _) => Some(session.clone()),
        (None, SessionKey::Body(member)) => asked(&args.path, body, Some(member))?.session,
        (None, SessionKey::Header(_)) => None,
    };
    if session.is_none() && pool.arms.len() > 1 {
        notes.push(Note(
            "the request has no session, so its arm is drawn by share: --session or --arm settles it".to_owned(),
        ));
    }
    Ok(pool.assign(session.as_deref(), rng))
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
