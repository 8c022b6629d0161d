//! `forebay serve`: the proxy.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};

use super::check;
use crate::server::{self, Handle, Options, Serving, Source};
use forebay_fleet::config::model::{
    AccessLogFormat, BackendConfig, BackendUrl, Config, LogFormat, PoolConfig, Secret, UrlError,
};
use forebay_fleet::config::printed::{Written, printed};
use forebay_fleet::telemetry::trace;

/// Arguments of `forebay serve`.
#[derive(clap::Args)]
#[command(
    after_help = "Without a file, --backend is enough: the servers are asked what they serve, and those that serve the same \
    model become one pool. Clients use the same paths as with vLLM; metrics are on the admin address under /metrics. \
    SIGTERM drains (in-flight requests finish), ctrl-c ends at once. A new binary takes the ports over without a refused \
    connection: start it with --upgrade, then send SIGQUIT to the old process, which drains.\n\n\
    Examples:\n  \
    forebay serve --backend http://127.0.0.1:8001 --backend http://127.0.0.1:8002\n  \
    forebay serve --config forebay.toml\n  \
    forebay serve --config forebay.toml --print-config > whole.toml\n  \
    forebay serve --config forebay.toml --upgrade & kill -QUIT OLD_PID\n  \
    forebay check forebay.toml"
)]
pub struct Args {
    /// The config file (TOML). Read again when it changes and on SIGHUP.
    #[arg(short, long, value_name = "FILE", conflicts_with = "backends")]
    config: Option<PathBuf>,
    /// A vLLM server, such as http://127.0.0.1:8001, https://gpu-1:8000 or unix:/run/vllm.sock; once for each.
    #[arg(short, long = "backend", value_name = "URL", value_parser = backend_url)]
    backends: Vec<BackendUrl>,
    /// The environment variable with the key that the servers want (vllm serve --api-key); once for all of them, or once for each
    /// --backend, in their order.
    #[arg(long = "backend-key-env", value_name = "NAME", requires = "backends", value_parser = key_in_environment)]
    backend_keys: Vec<Secret>,
    /// The address to listen on for requests [default: 127.0.0.1:8080, or the file's listen.address].
    #[arg(long, value_name = "HOST:PORT")]
    listen: Option<SocketAddr>,
    /// The address to listen on for metrics and the admin API [default: 127.0.0.1:8081, or the file's admin.address].
    #[arg(long, value_name = "HOST:PORT")]
    admin: Option<SocketAddr>,
    /// Threads that serve requests [default: one a core, or the file's listen.threads].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Take the listening sockets over from the process that has them, if one does: it hands them over on SIGQUIT, within five
    /// seconds.
    #[arg(long)]
    upgrade: bool,
    /// One line a request, on standard output or in --access-log-file [default: off, or the file's log.access_log].
    #[arg(long, value_name = "FORM", value_parser = choice(AccessLogFormat::ALL))]
    access_log: Option<AccessLogFormat>,
    /// The file of the access log [default: standard output, or the file's log.access_log_file].
    #[arg(long, value_name = "FILE")]
    access_log_file: Option<PathBuf>,
    /// The filter of the log of events: a level, or a list such as "info,forebay::proxy=debug" [default: the file's log.level,
    /// else the environment's FOREBAY_LOG, else "warn,forebay=info"].
    #[arg(long, value_name = "FILTER")]
    log_level: Option<String>,
    /// The form of the log of events [default: text, or the file's log.format].
    #[arg(long, value_name = "FORM", value_parser = choice(LogFormat::ALL))]
    log_format: Option<LogFormat>,
    /// The file of the log of events [default: standard error, or the file's log.file]. SIGUSR1 opens log files again.
    #[arg(long, value_name = "FILE")]
    log_file: Option<PathBuf>,
    /// Print every configuration key with its value in force, its default and what it takes, and start nothing. The output is a
    /// configuration file.
    #[arg(long)]
    print_config: bool,
}

/// The end of the help of `forebay epp`.
#[cfg(feature = "epp")]
pub(super) const ABOUT_EPP: &str = "An Envoy gateway asks the picker for the vLLM server of each request (external processing), and sends the request itself. \
    The picker admits, routes and measures as `forebay serve` does; metrics and the live page are on the admin address. \
    docs/gateway.md has the gateway's configuration, and says when to use the picker and when the proxy. `forebay serve` \
    with `epp.address` in its file runs both.\n\n\
    Examples:\n  \
    forebay epp --backend http://10.0.0.1:8000 --backend http://10.0.0.2:8000\n  \
    forebay epp --config forebay.toml";
/// The help of `--listen` for `forebay epp`.
#[cfg(feature = "epp")]
pub(super) const LISTEN_OF_EPP: &str =
    "The address to listen on for gateways [default: 127.0.0.1:9002, or the file's epp.address]";

/// The address of a picker that nothing else names.
const PICKER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9002);
/// The time within which the last lines of the log must be written.
const LAST_LINES: Duration = Duration::from_secs(2);
/// A backend that is this proxy itself.
fn leads_back<'a>(config: &'a Config, source: &'a Source) -> Option<&'a BackendUrl> {
    let named = match source {
        Source::Backends(backends) => backends.as_slice(),
        Source::File { .. } | Source::Fixed => &[],
    };
    let arms = config.pools.iter().flat_map(|pool| &pool.arms);
    let all = named.iter().chain(arms.flat_map(|arm| &arm.backends));
    all.map(|backend| &backend.url).find(|url| url.leads_to(config.listen.address))
}

fn backend_url(text: &str) -> Result<BackendUrl, String> {
    text.parse().map_err(|error: UrlError| format!("{error}: {}", error.hint()))
}

/// Reads a key from the environment. What is no name may be the key itself, so neither is repeated.
fn key_in_environment(name: &str) -> Result<Secret, String> {
    let key = std::env::var(name).map_err(|_| "no such variable is set where Forebay is started".to_owned())?;
    let usable = !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_graphic());
    if usable {
        Ok(Secret::new(key))
    } else {
        Err("the variable holds no word that can be sent in a header".to_owned())
    }
}

/// The backends of the command line with their keys: one key for all, or one for each.
fn with_keys(urls: Vec<BackendUrl>, keys: &[Secret]) -> Result<Vec<BackendConfig>, String> {
    if keys.len() > 1 && keys.len() != urls.len() {
        let (keys, urls) = (keys.len(), urls.len());
        return Err(format!(
            "{keys} --backend-key-env for {urls} --backend: give one for all, or one for each in their order"
        ));
    }
    let key_of = |at: usize| keys.get(at).or(keys.first()).cloned();
    Ok(urls
        .into_iter()
        .enumerate()
        .map(|(at, url)| BackendConfig { key: key_of(at), ..BackendConfig::of(url) })
        .collect())
}

/// The URL of the live page, as a browser on this machine reaches it.
fn live_page(admin: SocketAddr, secure: bool) -> String {
    let scheme = if secure { "https" } else { "http" };
    let reachable = match admin.ip() {
        // A browser cannot go to "every address".
        IpAddr::V4(ip) if ip.is_unspecified() => SocketAddr::from((Ipv4Addr::LOCALHOST, admin.port())),
        IpAddr::V6(ip) if ip.is_unspecified() => SocketAddr::from((Ipv6Addr::LOCALHOST, admin.port())),
        _ => admin,
    };
    format!("{scheme}://{reachable}/dashboard")
}

/// The words of a choice, and the value of each.
fn choice<T: Copy + Send + Sync + 'static, const N: usize>(
    all: [(&'static str, T); N],
) -> impl TypedValueParser<Value = T> {
    let value_of = move |word: String| {
        let found = all.iter().find(|(known, _)| *known == word);
        found.map(|(_, value)| *value).expect("clap lets known words alone through")
    };
    PossibleValuesParser::new(all.map(|(word, _)| word)).map(value_of)
}

/// Lets the command line win over the file. Paths of the file are relative to its folder.
fn settle(config: &mut Config, args: &Args, front: Serving) {
    match front {
        Serving::Clients => config.listen.address = args.listen.unwrap_or(config.listen.address),
        Serving::Gateways => config.epp.address = args.listen.or(config.epp.address).or(Some(PICKER)),
    }
    config.admin.address = args.admin.unwrap_or(config.admin.address);
    config.listen.threads = args.threads.map_or(config.listen.threads, usize::from);
    let log = &mut config.log;
    log.level = args.log_level.clone().or(log.level.take());
    log.format = args.log_format.unwrap_or(log.format);
    log.access_log = args.access_log.unwrap_or(log.access_log);
    let folder = folder(args);
    for (file, arg) in [(&mut log.file, &args.log_file), (&mut log.access_log_file, &args.access_log_file)] {
        // Whole paths, each from where it was written: what is printed holds in any folder.
        let from_here = arg.as_ref().map(|path| std::path::absolute(path).unwrap_or_else(|_| path.clone()));
        *file = from_here.or(file.take().map(|path| folder.join(path)));
    }
}

/// The folder of the configuration file, whole where that can be told.
fn folder(args: &Args) -> PathBuf {
    let folder = args.config.as_deref().and_then(Path::parent).unwrap_or(Path::new(""));
    std::path::absolute(if folder.as_os_str().is_empty() { Path::new(".") } else { folder })
        .unwrap_or_else(|_| folder.to_owned())
}

/// The words for who starts it without anything.
const NOTHING: &str = "nothing to serve: name the vLLM servers, or a configuration file

  forebay serve --backend http://127.0.0.1:8001 --backend http://127.0.0.1:8002
  forebay serve --config forebay.toml

A configuration file may be as short as this:

  [[pools]]
  model = \"Qwen/Qwen2.5-7B-Instruct\"
  backends = [
    { url = \"http://127.0.0.1:8001\" },
    { url = \"http://127.0.0.1:8002\" },
  ]

`forebay sim --port 8001` stands in for a server. All options: forebay serve --help";

/// The configuration and its source, as the command line names them. What is wrong is told here.
fn read(args: &Args) -> Result<(Config, Source), ExitCode> {
    let wrong = |reason: &str| {
        eprintln!("forebay serve: {reason}");
        ExitCode::from(2)
    };
    if let Some(path) = &args.config {
        return match forebay_fleet::config::load(path) {
            Ok(loaded) => Ok((loaded.config.clone(), Source::File { path: path.clone(), loaded: Box::new(loaded) })),
            Err(report) => {
                check::print_report(&report);
                Err(ExitCode::from(2))
            }
        };
    }
    if args.backends.is_empty() && !args.print_config {
        return Err(wrong(NOTHING));
    }
    let backends = with_keys(args.backends.clone(), &args.backend_keys).map_err(|reason| wrong(&reason))?;
    Ok((Config::default(), Source::Backends(backends)))
}

/// Prints the configuration in force as a file.
fn print_config(mut config: Config, source: &Source, args: &Args) -> ExitCode {
    let text = args.config.as_ref().and_then(|path| std::fs::read_to_string(path).ok()).unwrap_or_default();
    let folder = folder(args);
    let from = match (source, &args.config) {
        (Source::Backends(backends), _) => {
            // What they serve is asked of them later, so the name stands for it. No backend at all is an example.
            let example = || vec![BackendConfig::of("http://127.0.0.1:8001".parse().expect("this is a URL"))];
            let backends = if backends.is_empty() { example() } else { backends.clone() };
            config.pools = vec![PoolConfig::of("MODEL", backends)];
            "# The backends are asked for their models. Write the name in place of MODEL, and\n# key_env where a server wants a key.".to_owned()
        }
        (_, Some(path)) => format!("# Made of {} and the command line.", path.display()),
        (_, None) => String::new(),
    };
    let printed = printed(&config, Written { text: &text, folder: &folder });
    let head = "# Every key with its value in force. Above each: what it takes, its default, and\n# whether a change needs a restart.";
    // A reader that has left needs no answer.
    _ = std::io::stdout().write_all(format!("{head}\n{from}\n{printed}").as_bytes());
    ExitCode::SUCCESS
}

/// Says where it listens, and where the live page is.
fn announce(handle: &Handle, (secure, from_file): (bool, bool), front: Serving) {
    let page = live_page(handle.admin, secure);
    if let Some(address) = handle.picker {
        tracing::info!(gateways = %address, "the endpoint picker is listening");
    }
    let requests = if front == Serving::Clients { handle.data.to_string() } else { "off".to_owned() };
    tracing::info!(requests, admin = %handle.admin, %page, "forebay is listening");
    // Who starts it without a file has no older one that relied on the port.
    if from_file && handle.admin == Config::default().admin.address {
        tracing::info!("admin.address has its default, port 8081; in builds of before the first release it was 9090");
    }
}

/// Runs the command.
#[must_use]
pub fn run(args: Args, front: Serving) -> ExitCode {
    let (mut config, source) = match read(&args) {
        Ok(read) => read,
        Err(code) => return code,
    };
    settle(&mut config, &args, front);
    if args.print_config {
        return print_config(config, &source, &args);
    }
    let log = &config.log;
    if log.file.is_some() && log.file == log.access_log_file {
        eprintln!("forebay serve: --log-file and --access-log-file name the same file: give each log its own");
        return ExitCode::from(2);
    }
    if let Err(error) = trace::init(log.format, log.level.as_deref(), log.file.as_deref()) {
        eprintln!("forebay serve: {error}");
        return ExitCode::from(2);
    }
    if config.log.access_log_file.is_some() && config.log.access_log == AccessLogFormat::Off {
        tracing::warn!("log.access_log_file names a file, but log.access_log is \"off\": no access log is written");
    }
    if let Some(url) = leads_back(&config, &source) {
        eprintln!(
            "forebay serve: backend {url} is where Forebay itself listens ({}): give one of the two another port",
            config.listen.address
        );
        return ExitCode::from(2);
    }
    let (secure, from_file) = (config.admin.tls.is_some(), matches!(source, Source::File { .. }));
    let code = match server::start(Options { config, source, signals: true, upgrade: args.upgrade, front }) {
        Ok(handle) => {
            announce(&handle, (secure, from_file), front);
            handle.wait();
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("forebay serve: {error}");
            ExitCode::FAILURE
        }
    };
    _ = trace::flush(LAST_LINES);
    code
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_for_all_backends_or_each_has_its_own() {
        let urls = || vec!["http://a".parse().unwrap(), "http://b".parse().unwrap()];
        let keys = |keys: &[&str]| {
            let keys: Vec<Secret> = keys.iter().copied().map(Secret::new).collect();
            let backends = with_keys(urls(), &keys)?;
            Ok::<_, String>(
                backends.into_iter().map(|one| one.key.map(|key| key.expose().to_owned())).collect::<Vec<_>>(),
            )
        };
        assert_eq!(keys(&[]), Ok(vec![None, None]));
        assert_eq!(keys(&["x"]), Ok(vec![Some("x".into()), Some("x".into())]));
        assert_eq!(keys(&["x", "y"]), Ok(vec![Some("x".into()), Some("y".into())]));
        assert!(keys(&["x", "y", "z"]).unwrap_err().contains("one for each"));
    }

    #[test]
    fn the_live_page_has_an_address_that_a_browser_can_open() {
        let of = |admin: &str, secure| live_page(admin.parse().unwrap(), secure);
        assert_eq!(of("127.0.0.1:8081", false), "http://127.0.0.1:8081/dashboard");
        assert_eq!(of("0.0.0.0:8081", true), "https://127.0.0.1:8081/dashboard");
        assert_eq!(of("[::]:1", false), "http://[::1]:1/dashboard");
        assert_eq!(of("10.0.0.7:1", false), "http://10.0.0.7:1/dashboard");
    }

    #[test]
    fn a_wrong_url_says_what_to_write() {
        let said = backend_url("http://127.0.0.1:8001/v1").unwrap_err();
        assert!(said.contains("leave `/v1`"), "{said}");
    }
}
