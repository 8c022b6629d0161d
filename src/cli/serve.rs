//! `forebay serve`: the proxy.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use super::check;
use crate::server::{self, AccessLogFormat, Options, Source};
use forebay_fleet::config::model::{BackendConfig, BackendUrl, Config, Secret, UrlError};
use forebay_fleet::telemetry::log::Format;
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
    forebay serve --config forebay.toml --upgrade & kill -QUIT OLD_PID\n  \
    forebay check forebay.toml"
)]
pub struct Args {
    /// The config file (TOML). Read again when it changes and on SIGHUP.
    #[arg(short, long, value_name = "FILE", required_unless_present = "backends", conflicts_with = "backends")]
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
    /// One line a request on standard output.
    #[arg(long, value_enum, default_value_t = AccessLogFormat::Off)]
    access_log: AccessLogFormat,
    /// The filter of the log on standard error: a level, or a list such as "info,forebay::proxy=debug" [default: the
    /// environment's FOREBAY_LOG, or "warn,forebay=info"].
    #[arg(long, value_name = "FILTER")]
    log_level: Option<String>,
    /// The form of the log on standard error: text or json.
    #[arg(long, default_value = "text", value_name = "FORM")]
    log_format: Format,
}

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

/// Runs the command.
#[must_use]
pub fn run(args: Args) -> ExitCode {
    if let Err(error) = trace::init(args.log_format, args.log_level.as_deref()) {
        eprintln!("forebay: {error}");
        return ExitCode::from(2);
    }
    let (mut config, source) = match &args.config {
        None => match with_keys(args.backends, &args.backend_keys) {
            Ok(backends) => (Config::default(), Source::Backends(backends)),
            Err(reason) => {
                eprintln!("forebay: {reason}");
                return ExitCode::from(2);
            }
        },
        Some(path) => match forebay_fleet::config::load(path) {
            Ok(loaded) => (loaded.config.clone(), Source::File { path: path.clone(), loaded: Box::new(loaded) }),
            Err(report) => {
                check::print_report(&report);
                return ExitCode::from(2);
            }
        },
    };
    config.listen.address = args.listen.unwrap_or(config.listen.address);
    config.admin.address = args.admin.unwrap_or(config.admin.address);
    if let Some(url) = leads_back(&config, &source) {
        eprintln!("forebay: backend {url} is where Forebay itself listens ({})", config.listen.address);
        return ExitCode::from(2);
    }
    config.listen.threads = args.threads.map_or(config.listen.threads, usize::from);
    let Args { access_log, upgrade, .. } = args;
    let secure = config.admin.tls.is_some();
    let code = match server::start(Options { config, source, access_log, signals: true, upgrade }) {
        Ok(handle) => {
            let page = live_page(handle.admin, secure);
            tracing::info!(requests = %handle.data, admin = %handle.admin, %page, "forebay is listening");
            if handle.admin == Config::default().admin.address {
                tracing::info!("the admin address moved: its default was port 9090, which is Prometheus's own");
            }
            handle.wait();
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("forebay: {error}");
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
