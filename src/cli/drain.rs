//! `forebay drain` and `forebay undrain`: takes a backend out for maintenance, and lets it come back. Asks one running proxy or
//! several (`POST /api/backends/NAME/drain`), all of them, also where one does not answer.

use std::process::ExitCode;
use std::time::Duration;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use super::admin::{AdminClient, AdminError, Proxies};

/// The times that a proxy is asked again while it hands over, which takes five seconds.
const AGAIN: u32 = 40;
const PAUSE: Duration = Duration::from_millis(250);

/// The arguments of `forebay drain`.
#[derive(Debug, clap::Args)]
#[command(
    about = "Take a backend out for maintenance",
    long_about = "Take a backend out for maintenance: it finishes the requests that it has, and gets no new ones. `forebay status` \
        shows when none is in flight. The drain lasts over reloads and upgrades of the proxy. It ends with `forebay undrain`, \
        after --for, or when the proxy ends.",
    after_help = "Exit codes: 0 every proxy drains it, 1 one could not be asked, 2 wrong usage or no such backend.\n\n\
        Examples:\n  \
        forebay drain 127.0.0.1:8001 --for 2h --reason \"driver update\"\n  \
        forebay drain gpu-1:8000 --admin http://lb-1:8081 --admin http://lb-2:8081"
)]
pub struct DrainArgs {
    #[command(flatten)]
    target: Target,
    /// The time after which the drain ends by itself, such as 30m or 2h
    #[arg(long = "for", value_name = "TIME", value_parser = time)]
    lasts: Option<String>,
    /// The reason, which `forebay status` and the live page show
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// The person who drains [default: the environment's USER]
    #[arg(long, value_name = "NAME")]
    by: Option<String>,
}

/// The arguments of `forebay undrain`.
#[derive(Debug, clap::Args)]
#[command(
    about = "End the drain of a backend",
    long_about = "End the drain of a backend: it gets requests again, if it is well. A backend that has `drain = true` in the \
        configuration stays drained.",
    after_help = "Exit codes: 0 no proxy drains it by hand, 1 one could not be asked, 2 wrong usage or no such backend.\n\n\
        Example: forebay undrain 127.0.0.1:8001"
)]
pub struct UndrainArgs {
    #[command(flatten)]
    target: Target,
}

/// The backend, and who is asked.
#[derive(Debug, clap::Args)]
struct Target {
    /// The backend: host:port as `forebay status` shows it, or its URL
    #[arg(value_name = "BACKEND")]
    backend: String,
    #[command(flatten)]
    proxies: Proxies,
}

/// Checks a time here, so that a slip is not told once by each proxy.
fn time(text: &str) -> Result<String, String> {
    match humantime::parse_duration(text) {
        Ok(time) if !time.is_zero() => Ok(text.to_owned()),
        Ok(_) => Err("a drain of no time drains nothing".to_owned()),
        Err(error) => Err(format!("{error}; write it as 30m, 2h or 1h30m")),
    }
}

/// Runs `forebay drain`.
#[must_use]
pub fn drain(args: DrainArgs) -> ExitCode {
    // Whoever finds it drained at night wants to know whom to ask.
    let by = args.by.clone().or_else(|| std::env::var("USER").ok().filter(|user| !user.is_empty()));
    let mut body = serde_json::Map::new();
    for (key, value) in [("by", &by), ("reason", &args.reason), ("for", &args.lasts)] {
        if let Some(value) = value {
            body.insert(key.to_owned(), value.as_str().into());
        }
    }
    let done = args.lasts.as_ref().map_or_else(|| "drained".to_owned(), |time| format!("drained for {time}"));
    let code = change("drain", &args.target, &serde_json::Value::from(body).to_string(), &done);
    if code == ExitCode::SUCCESS {
        println!("It finishes what it has and takes no more; `forebay status` shows what is left.");
        if args.lasts.is_none() {
            println!("It takes requests again after: forebay undrain {}", args.target.name());
        }
    }
    code
}

/// Runs `forebay undrain`.
#[must_use]
pub fn undrain(args: UndrainArgs) -> ExitCode {
    change("undrain", &args.target, "", "no longer drained by hand")
}

impl Target {
    /// The name by which proxies know it: a URL without its scheme.
    fn name(&self) -> &str {
        let text = self.backend.trim_end_matches('/');
        ["http://", "https://"].into_iter().find_map(|scheme| text.strip_prefix(scheme)).unwrap_or(text)
    }

    /// Returns whether it is named by the number that a proxy gave it.
    fn is_number(&self) -> bool {
        self.name().strip_prefix('b').is_some_and(|rest| rest.parse::<u32>().is_ok())
    }
}

/// Asks every proxy and says what came of it.
fn change(command: &str, target: &Target, body: &str, done: &str) -> ExitCode {
    let complain = |words: &str| eprintln!("forebay {command}: {words}");
    let clients = match target.proxies.clients() {
        Ok(clients) => clients,
        Err(error) => {
            complain(&error.words());
            return ExitCode::from(2);
        }
    };
    // The same number is another server there, and the wrong one would be drained.
    if clients.len() > 1 && target.is_number() {
        complain("each proxy numbers its backends by itself: name this one by host:port");
        return ExitCode::from(2);
    }
    let name = target.name();
    let path = format!("/api/backends/{}/{command}", utf8_percent_encode(name, NON_ALPHANUMERIC));
    let (mut unasked, mut unknown) = (false, false);
    for client in &clients {
        match ask(client, &path, body) {
            // Goes on after a failure: half of the proxies drained is what the user must hear of, not the first error alone.
            Ok(_) => println!("{name} is {done} ({})", client.url()),
            Err(AdminError::Proxy(words) | AdminError::HandsOver(words)) => {
                complain(&words);
                unasked = true;
            }
            Err(AdminError::Question(words)) => {
                complain(&format!("{}: {words}{}", client.url(), known(client)));
                unknown = true;
            }
        }
    }
    match (unknown, unasked) {
        (true, _) => ExitCode::from(2),
        (false, true) => ExitCode::FAILURE,
        (false, false) => ExitCode::SUCCESS,
    }
}

/// Asks one proxy. During an upgrade the old process may take the connection, which refuses: the new one takes the next.
fn ask(client: &AdminClient<'_>, path: &str, body: &str) -> Result<Vec<u8>, AdminError> {
    let mut answer = client.post(path, body.to_owned());
    for _ in 0..AGAIN {
        if !matches!(answer, Err(AdminError::HandsOver(_))) {
            break;
        }
        std::thread::sleep(PAUSE);
        answer = client.post(path, body.to_owned());
    }
    answer
}

/// The names that the proxy knows, for whoever wrote another.
fn known(client: &AdminClient<'_>) -> String {
    let Ok(answer) = client.get("/api/fleet") else { return String::new() };
    let fleet: serde_json::Value = serde_json::from_slice(&answer).unwrap_or_default();
    let list = |value: &serde_json::Value| value.as_array().cloned().unwrap_or_default();
    let mut names: Vec<String> = list(&fleet["pools"])
        .iter()
        .flat_map(|pool| list(&pool["arms"]))
        .flat_map(|arm| list(&arm["backends"]))
        .filter_map(|backend| Some(backend["url"].as_str()?.replace("https://", "").replace("http://", "")))
        .collect();
    names.sort();
    names.dedup();
    if names.is_empty() { String::new() } else { format!("\n  backends: {}", names.join(", ")) }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        args: DrainArgs,
    }

    fn args(line: &str) -> Result<DrainArgs, String> {
        let words = std::iter::once("drain").chain(line.split_whitespace());
        Cli::try_parse_from(words).map(|cli| cli.args).map_err(|error| error.to_string())
    }

    #[test]
    fn a_backend_is_named_by_its_address_or_its_url() {
        for text in ["gpu-1:8000", "http://gpu-1:8000", "https://gpu-1:8000/"] {
            assert_eq!(args(text).unwrap().target.name(), "gpu-1:8000");
        }
        assert!(args("b12").unwrap().target.is_number() && !args("bark:1").unwrap().target.is_number());
    }

    #[test]
    fn a_time_has_a_unit_and_is_some_time() {
        assert_eq!(args("a:1 --for 1h30m").unwrap().lasts.as_deref(), Some("1h30m"));
        for wrong in ["0s", "2", "soon", "-1h"] {
            assert!(args(&format!("a:1 --for={wrong}")).is_err(), "{wrong}");
        }
    }

    #[test]
    fn there_is_one_proxy_unless_several_are_named() {
        assert_eq!(args("a:1").unwrap().target.proxies.admin, ["http://127.0.0.1:8081"]);
        let several = args("a:1 --admin http://x:1 --admin http://y:2").unwrap();
        assert_eq!(several.target.proxies.admin, ["http://x:1", "http://y:2"]);
    }
}
