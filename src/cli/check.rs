//! `forebay check FILE`: whether a configuration is right, and if not, everything that is wrong with it. Starts nothing
//! and connects to nothing, so it can run where a configuration is written, not only where it is used.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use forebay_core::rate_limit::Limits;
use forebay_core::routing::wait_room::Priority;
use forebay_fleet::config::model::{
    ArmConfig, BackendConfig, ClientKey, Config, Discover, ListenerTls, PoolConfig, SessionKey, WaitRoom,
};
use forebay_fleet::config::{self, Report};
use forebay_fleet::telemetry::log_file;

/// The arguments of `forebay check`.
#[derive(Debug, clap::Args)]
#[command(
    about = "Check a configuration file without starting anything",
    long_about = "Check a configuration file without starting anything.\n\n\
        Reads the file, the files that it names and the environment variables that it names, and prints either a one-line \
        summary or every mistake at once, each with its line, the reason and what would be right. Certificates must be valid \
        today, and this user must be able to write the log files. Backends are not contacted.",
    after_help = "Exit codes: 0 the file is right, 2 it is not (or cannot be read).\n\n\
        Example: forebay check -v config/forebay.toml"
)]
pub struct Args {
    /// The configuration file (TOML)
    #[arg(value_name = "FILE", required_unless_present = "config")]
    file: Option<PathBuf>,
    /// The configuration file, given as `forebay serve` takes it
    #[arg(long, value_name = "FILE", conflicts_with = "file")]
    config: Option<PathBuf>,
    /// Also print every listener, client key, pool, arm and backend
    #[arg(short, long)]
    pub verbose: bool,
}

/// Runs the command: 0 if the file is right, 2 if not.
#[must_use]
pub fn run(args: Args) -> ExitCode {
    // clap asks for one of them
    let file = args.file.or(args.config).unwrap_or_default();
    match config::load(&file) {
        Ok(loaded) => {
            let written = Written { file: &file, text: std::fs::read_to_string(&file).unwrap_or_default() };
            let mut faults = out_of_date(&loaded.config, &written);
            faults.extend(logs_that_cannot_be_written(&loaded.config, &written));
            let warnings = without_effect(&loaded.config, &written);
            for message in warnings.iter().chain(&faults) {
                eprintln!("{message}");
            }
            if !faults.is_empty() {
                return ExitCode::from(2);
            }
            let mut text = format!("ok: {}\n", summary(&loaded.config));
            if args.verbose {
                text.push_str(&details(&loaded.config));
            }
            // a reader that has left needs no answer
            _ = std::io::stdout().write_all(text.as_bytes());
            ExitCode::SUCCESS
        }
        Err(report) => {
            print_report(&report);
            ExitCode::from(2)
        }
    }
}

/// Prints everything that is wrong to stderr, in colour on a terminal unless `NO_COLOR` is set.
pub fn print_report(report: &Report) {
    let stderr = std::io::stderr();
    let colour = stderr.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    _ = stderr.lock().write_all(report.render(colour).as_bytes());
}

/// The file as it is written, for the places of what is wrong with right values.
struct Written<'a> {
    file: &'a Path,
    text: String,
}

impl Written<'_> {
    /// `level: words`, the line that has `key` with `value` in it, and what to do.
    fn message(&self, words: &str, (key, value): (&str, &str), help: &str) -> String {
        let has = |line: &str| line.contains(key) && line.contains(value) && !line.trim_start().starts_with('#');
        let line = self.text.lines().position(has).map(|at| format!(":{}", at + 1)).unwrap_or_default();
        format!("{words}\n --> {}{line}\n  = help: {help}", self.file.display())
    }
}

/// Certificates that are not valid at present. `serve` warns of them and goes on, so that no reload fails for a date.
fn out_of_date(config: &Config, written: &Written<'_>) -> Vec<String> {
    let listeners = [("listen.tls", &config.listen.tls), ("admin.tls", &config.admin.tls)];
    let of_listeners = listeners.into_iter().filter_map(|(key, tls)| {
        let tls = tls.as_ref()?;
        Some((key, tls.cert_file.as_str(), tls.server.validity()))
    });
    let of_pools = config.pools.iter().filter_map(|pool| {
        let tls = pool.tls.as_ref()?;
        Some(("pools.tls", tls.cert_file.as_deref()?, tls.client.validity()?))
    });
    let faults = of_listeners.chain(of_pools).filter_map(|(key, file, validity)| {
        let fault = validity.fault_now()?;
        let words = format!("error: {key}.cert_file: {file}: {fault}");
        Some(written.message(&words, ("cert_file", file), "put a new certificate and its key into the files"))
    });
    faults.collect()
}

/// Log files without which `serve` would not start. Nothing is written.
fn logs_that_cannot_be_written(config: &Config, written: &Written<'_>) -> Vec<String> {
    let folder = written.file.parent().unwrap_or(Path::new(""));
    let of_access = config.log.access_log_file.as_ref().filter(|_| config.log.access_log.lines().is_some());
    let logs = [("log.file", config.log.file.as_ref()), ("log.access_log_file", of_access)];
    let faults = logs.into_iter().filter_map(|(key, path)| {
        let name = path?;
        let path = folder.join(name);
        let error = log_file::probe(&path).err()?;
        let (shown, help) = (path.display(), log_file::help(&path, &error));
        let words = format!("error: {key}: {shown} cannot be written: {error}");
        let short = key.trim_start_matches("log.");
        Some(written.message(&words, (short, &name.to_string_lossy()), &help))
    });
    faults.collect()
}

/// Warnings of keys that do nothing as they stand. A model that no pool names may be an adapter that a backend lists.
fn without_effect(config: &Config, written: &Written<'_>) -> Vec<String> {
    let mut warnings = Vec::new();
    if let (Some(file), None) = (&config.log.access_log_file, config.log.access_log.lines()) {
        let words =
            "warning: log.access_log_file names a file, but log.access_log is \"off\": no access log is written";
        let place = ("access_log_file", &*file.to_string_lossy());
        warnings.push(written.message(words, place, "add access_log = \"json\" or \"text\""));
    }
    let named = |model: &String| config.pools.iter().any(|pool| pool.model == *model || pool.aliases.contains(model));
    for key in config.clients.keys.iter().flatten() {
        for model in key.models.iter().flatten().filter(|model| !named(model)) {
            let words =
                format!("warning: clients.keys.models: the key `{}` may use `{model}`, which no pool names", key.name);
            let help = "name a pool's model or alias; the name of an adapter works once a backend lists it";
            warnings.push(written.message(&words, ("models", model), help));
        }
    }
    warnings
}

/// `2 pools, 3 arms, 5 backends`, and sources of backends, where there are some.
fn summary(config: &Config) -> String {
    let arms = config.pools.iter().flat_map(|pool| &pool.arms);
    let backends = arms.clone().flat_map(|arm| &arm.backends);
    let sources = match arms.clone().filter(|arm| arm.discover.is_some()).count() {
        0 => String::new(),
        count => format!(", {} of backends", counted(count, "source")),
    };
    format!(
        "{}, {}, {}{sources}",
        counted(config.pools.len(), "pool"),
        counted(arms.count(), "arm"),
        counted(backends.count(), "backend")
    )
}

fn counted(count: usize, noun: &str) -> String {
    if count == 1 { format!("1 {noun}") } else { format!("{count} {noun}s") }
}

/// Every listener, key, pool, arm and backend, one a line.
fn details(config: &Config) -> String {
    let clients = match &config.clients.keys {
        Some(keys) => format!("clients: {}", counted(keys.len(), "key")),
        None => "clients: no key asked for, their authorization is passed on".to_owned(),
    };
    let (requests, admin) = (encryption(config.listen.tls.as_ref()), encryption(config.admin.tls.as_ref()));
    let (listen, admin_address) = (config.listen.address, config.admin.address);
    let mut text = format!("listen {listen}{requests}, admin {admin_address}{admin}, {clients}\n");
    config.clients.keys.iter().flatten().for_each(|key| key_details(&mut text, key));
    config.pools.iter().for_each(|pool| pool_details(&mut text, pool));
    text
}

/// The TLS of a listener in words, to be put behind its address.
fn encryption(tls: Option<&ListenerTls>) -> String {
    let Some(tls) = tls else { return String::new() };
    let clients = if tls.client_ca_file.is_some() { ", clients need a certificate" } else { "" };
    format!(" (TLS, certificate valid until {}{clients})", tls.server.validity().until())
}

fn key_details(text: &mut String, key: &ClientKey) {
    let Limits { requests, tokens, concurrent } = &key.limits;
    let mut parts: Vec<String> = Vec::new();
    parts.extend(requests.as_ref().map(|limit| format!("{} requests a minute", limit.limit)));
    parts.extend(tokens.as_ref().map(|limit| format!("{} tokens a minute", limit.limit)));
    parts.extend(concurrent.map(|limit| format!("{limit} at once")));
    parts.extend(key.models.as_ref().map(|models| format!("models {}", models.join(" "))));
    if key.priority != Priority::default() {
        parts.push(format!("priority {}", key.priority.0));
    }
    let limits = if parts.is_empty() { "no limits".to_owned() } else { parts.join(", ") };
    append(text, format_args!("  {}: {limits}\n", key.name));
}

fn pool_details(text: &mut String, pool: &PoolConfig) {
    let session = match &pool.session {
        SessionKey::Header(name) => format!("header {name}"),
        SessionKey::Body(member) => format!("body member {member}"),
    };
    let names = pool.aliases.iter().fold(pool.model.clone(), |names, alias| names + ", " + alias);
    let total: f64 = pool.arms.iter().map(|arm| arm.share).sum();
    append(text, format_args!("\npool {names}\n  policy {}, session by {session}\n", pool.policy));
    if let Some(tls) = &pool.tls {
        let authority = tls.ca_file.as_ref().map_or(String::new(), |file| format!(", authority {file}"));
        let ours =
            tls.client.validity().map_or(String::new(), |own| format!(", our certificate until {}", own.until()));
        append(text, format_args!("  TLS to https backends{authority}{ours}\n"));
    }
    if let Some(limit) = pool.backend_max_in_flight {
        let WaitRoom { size, timeout, .. } = pool.wait_room;
        let each = counted(limit as usize, "sequence");
        append(text, format_args!("  at most {each} on a backend; {size} requests wait for up to {timeout:?}\n"));
    }
    for arm in &pool.arms {
        arm_details(text, arm, total);
    }
}

fn arm_details(text: &mut String, arm: &ArmConfig, total: f64) {
    let percent = 100.0 * arm.share / total;
    let gpus = match &arm.discover {
        Some(discover) if discover.gpus_each => "a GPU for each backend".to_owned(),
        _ => counted(arm.gpus as usize, "GPU"),
    };
    append(text, format_args!("  arm {}: {percent:.0}% of the sessions, {gpus}\n", arm.name));
    if let Some(Discover { source, max_backends, .. }) = &arm.discover {
        let (target, kind) = (source.target(), source.label());
        append(text, format_args!("    at most {max_backends} backends, found by {kind}: {target}\n"));
    }
    for BackendConfig { url, speed, key, drain, .. } in &arm.backends {
        let key = if key.is_some() { ", own key" } else { "" };
        let drain = if *drain { ", draining" } else { "" };
        append(text, format_args!("    {url}  speed {speed}{key}{drain}\n"));
    }
}

fn append(text: &mut String, line: std::fmt::Arguments<'_>) {
    text.write_fmt(line).expect("writing to a String cannot fail");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        let backend = |port: u16| BackendConfig::of(format!("http://127.0.0.1:{port}").parse().unwrap());
        let mut pool = PoolConfig::of("m", vec![backend(8001)]);
        pool.aliases = vec!["a".to_owned()];
        pool.backend_max_in_flight = Some(8);
        pool.arms.push(ArmConfig { share: 3.0, ..ArmConfig::of("b", vec![backend(8002), backend(8003)]) });
        Config { pools: vec![pool], ..Config::default() }
    }

    #[test]
    fn the_summary_counts_what_there_is() {
        assert_eq!(summary(&config()), "1 pool, 2 arms, 3 backends");
    }

    #[test]
    fn a_source_is_counted_and_shown() {
        let text = "[[pools]]\nmodel = \"m\"\ndiscover = { dns = \"vllm.example:8000\" }\n";
        let config = config::load_text(std::path::Path::new("f.toml"), text, &|_| None).unwrap().config;
        assert_eq!(summary(&config), "1 pool, 1 arm, 0 backends, 1 source of backends");
        let details = details(&config);
        for part in ["a GPU for each backend\n", "    at most 256 backends, found by dns: vllm.example:8000\n"] {
            assert!(details.contains(part), "{part} is not in:\n{details}");
        }
    }

    #[test]
    fn the_details_name_every_key_with_its_limits_and_nothing_secret() {
        let text = "[[clients.keys]]\nname = \"ada\"\nkey_env = \"ADA\"\nrequests_per_minute = 60\nmodels = [\"m\"]\npriority = 9\n\
            [[clients.keys]]\nname = \"bob\"\nkey_env = \"BOB\"\n[[pools]]\nmodel = \"m\"\nbackends = [{ url = \"http://a\" }]\n";
        let secret = |name: &str| Some(format!("sk-{name}-0123456789"));
        let config = config::load_text(std::path::Path::new("f.toml"), text, &secret).unwrap().config;
        let details = details(&config);
        let lines = "clients: 2 keys\n  ada: 60 requests a minute, models m, priority 9\n  bob: no limits\n";
        assert!(details.contains(lines) && !details.contains("sk-"), "{details}");
    }

    #[test]
    fn the_details_name_every_backend_and_share() {
        let text = details(&config());
        for part in [
            "pool m, a\n",
            "at most 8 sequences on a backend; 512 requests wait for up to 30s\n",
            "arm default: 25% of the sessions, 1 GPU\n",
            "arm b: 75%",
            "http://127.0.0.1:8003",
        ] {
            assert!(text.contains(part), "{part} is not in:\n{text}");
        }
    }
}
