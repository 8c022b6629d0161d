//! From the file as written to the values that hold: defaults filled in, files and environment read, and everything that
//! only shows when two values are set side by side. Every mistake is noted; what comes back is only good if none was.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::files::Outside;
use super::model::{
    Admin, Budget, Clients, Config, Drain, Ejection, Explain, Health, Limits, Listen, Retry, Scrape, Slo, Stream,
    UsageMode,
};
use super::pools;
use super::schema;
use forebay_core::toml_reader::values;
use forebay_core::toml_reader::written::{duration_text, size_text};
use forebay_core::toml_reader::{Diagnostic, Notes};
use forebay_core::toml_reader::{Got, Table, Value, Wrong};

/// The configuration that the file at `root` means.
pub(super) fn config(root: &Table<'_>, outside: &mut Outside<'_>) -> Config {
    let listen_table = root.table("listen", &schema::LISTEN);
    let (listen, data) = listen(&listen_table);
    let admin = admin(&root.table("admin", &schema::ADMIN), &data, outside);
    Config {
        listen,
        admin,
        clients: clients(&root.table("clients", &schema::CLIENTS), outside),
        limits: limits(&root.table("limits", &schema::LIMITS)),
        stream: stream(&root.table("stream", &schema::STREAM)),
        retry: retry(&root.table("retry", &schema::RETRY)),
        health: health(&root.table("health", &schema::HEALTH)),
        scrape: scrape(&root.table("scrape", &schema::SCRAPE)),
        slo: slo(&root.table("slo", &schema::SLO)),
        pools: pools::pools(root, outside),
    }
}

fn listen(table: &Table<'_>) -> (Listen, Got<SocketAddr>) {
    let default = Listen::default();
    let address = table.get("address", default.address, values::address);
    let drain_table = table.table("drain", &schema::DRAIN);
    let listen = Listen {
        address: address.value,
        max_connections: table.or(
            "max_connections",
            default.max_connections,
            values::or_off(|value| values::whole(1..=10_000_000_u32)(value).map(|count| count as usize)),
        ),
        header_timeout: table.or("header_timeout", default.header_timeout, values::or_off(values::limit)),
        body_timeout: table.or("body_timeout", default.body_timeout, values::or_off(values::limit)),
        keep_alive: table.or("keep_alive", default.keep_alive, values::or_off(values::limit)),
        drain: Drain {
            ready_delay: drain_table.or("ready_delay", default.drain.ready_delay, values::delay),
            limit: drain_table.or("limit", default.drain.limit, values::limit),
        },
        upgrade_socket: table.or("upgrade_socket", default.upgrade_socket, |value| socket(value).map(Some)),
        threads: table.or("threads", default.threads, |value| threads(value, default.threads)),
    };
    (listen, address)
}

/// A path that a Unix socket can have.
fn socket(value: &Value<'_>) -> Result<PathBuf, Wrong> {
    const HINT: &str = "write a whole path in a folder that only the user of the process can enter";
    let path = PathBuf::from(values::line(107)(value).map_err(|wrong| wrong.hint(HINT))?);
    if path.is_absolute() { Ok(path) } else { Err(Wrong::because("the path is not absolute").hint(HINT)) }
}

fn threads(value: &Value<'_>, auto: usize) -> Result<usize, Wrong> {
    let hint = "write a number, or \"auto\" for as many as there are processors";
    match values::text(value) {
        Ok("auto") => Ok(auto),
        Ok(_) => Err(value.expected("a whole number or \"auto\"").hint(hint)),
        Err(_) => values::whole(1..=1024_u32)(value).map(|count| count as usize).map_err(|wrong| wrong.hint(hint)),
    }
}

fn admin(table: &Table<'_>, data: &Got<SocketAddr>, outside: &mut Outside<'_>) -> Admin {
    let address = table.get("address", Admin::default().address, values::address);
    let token_file = table.get("token_file", String::new(), values::line(4096));
    let token = match &token_file.span {
        Some(span) if !token_file.wrong => outside.token(&token_file.value, span.clone(), table.notes()),
        _ => None,
    };
    if !address.value.ip().is_loopback() && token_file.span.is_none() {
        let message = format!("admin.address: {} is not loopback, so a token is required", address.value);
        let hint = "add token_file = \"admin.token\", a file with one random word, or bind 127.0.0.1";
        table.notes().add(Diagnostic::at(address.span.clone().unwrap_or_default(), message).hint(hint));
    }
    if !address.wrong && !data.wrong && collide(address.value, data.value) {
        let message = format!("admin.address: {} is taken by listen.address ({})", address.value, data.value);
        both(table.notes(), message, "give the two listeners two ports", (&address.span, &data.span), "taken here");
    }
    Admin { address: address.value, token }
}

/// Whether two listeners cannot be bound both.
fn collide(one: SocketAddr, other: SocketAddr) -> bool {
    let same_host = one.ip() == other.ip() || one.ip().is_unspecified() || other.ip().is_unspecified();
    one.port() != 0 && one.port() == other.port() && same_host
}

fn clients(table: &Table<'_>, outside: &mut Outside<'_>) -> Clients {
    let keys_file = table.get("keys_file", String::new(), values::line(4096));
    let keys = match keys_file.span {
        Some(span) if !keys_file.wrong => outside.client_keys(&keys_file.value, span, table.notes()),
        _ => None,
    };
    Clients { keys, explain: table.or("explain", Clients::default().explain, values::choice(&Explain::ALL)) }
}

fn limits(table: &Table<'_>) -> Limits {
    let default = Limits::default();
    let body = table.get("body", default.body, values::size(1 << 10..=1 << 40));
    let sum = table.get("bodies_in_memory", default.bodies_in_memory, values::size(1 << 10..=1 << 50));
    if !body.wrong && !sum.wrong && body.value > sum.value {
        let message = format!(
            "limits.body: {} for one body is more than {} for all (limits.bodies_in_memory)",
            shown(&body, size_text(body.value)),
            size_text(sum.value)
        );
        both(table.notes(), message, "one body must fit into the sum", (&body.span, &sum.span), "for all bodies");
    }
    let head = table.or("head", default.head as u64, values::size(8 << 10..=16 << 20));
    Limits {
        body: body.value,
        bodies_in_memory: sum.value,
        head: usize::try_from(head).unwrap_or(default.head),
        h2_streams: table.or("h2_streams", default.h2_streams, values::whole(1..=65_536)),
        write_stall: table.or("write_stall", default.write_stall, values::or_off(values::limit)),
    }
}

fn stream(table: &Table<'_>) -> Stream {
    let default = Stream::default();
    Stream {
        head_after: table.or("head_after", default.head_after, values::or_off(values::limit)),
        first_token_timeout: table.or(
            "first_token_timeout",
            default.first_token_timeout,
            values::or_off(values::limit),
        ),
        idle_timeout: table.or("idle_timeout", default.idle_timeout, values::or_off(values::limit)),
        total_timeout: table.or("total_timeout", default.total_timeout, values::or_off(values::limit)),
        usage: table.or(
            "usage",
            default.usage,
            values::choice(&[("inject", UsageMode::Inject), ("as_sent", UsageMode::AsSent)]),
        ),
    }
}

fn retry(table: &Table<'_>) -> Retry {
    let default = Retry::default();
    let budget = table.table("budget", &schema::BUDGET);
    Retry {
        attempts: table.or("attempts", default.attempts, |value| {
            values::whole(1..=10)(value).map_err(|wrong| wrong.hint("1 means the first attempt only"))
        }),
        budget: Budget {
            burst: budget.or("burst", default.budget.burst, values::number(0.0..=1e6)),
            ratio: budget.or("ratio", default.budget.ratio, values::number(0.0..=1.0)),
            per_second: budget.or("per_second", default.budget.per_second, values::number(0.0..=1e6)),
        },
    }
}

fn health(table: &Table<'_>) -> Health {
    let default = Health::default();
    let interval = table.get("interval", default.interval, values::interval);
    let timeout = table.get("timeout", default.timeout, values::limit);
    in_time(table, &timeout, &interval);
    Health {
        interval: interval.value,
        timeout: timeout.value,
        failures: table.or("failures", default.failures, values::whole(1..=1000)),
        ejection: ejection(&table.table("ejection", &schema::EJECTION)),
        stall_timeout: table.or("stall_timeout", default.stall_timeout, values::or_off(values::limit)),
    }
}

fn ejection(table: &Table<'_>) -> Ejection {
    let default = Ejection::default();
    let base = table.get("base", default.base, values::interval);
    let max = table.get("max", default.max, values::interval);
    if !base.wrong && !max.wrong && base.value > max.value {
        let message = format!(
            "health.ejection: base {} is longer than max {}",
            shown(&base, duration_text(base.value)),
            shown(&max, duration_text(max.value))
        );
        let hint = "the first time out is the shortest: base is doubled up to max";
        both(table.notes(), message, hint, (&base.span, &max.span), "the longest time out");
    }
    Ejection { base: base.value, max: max.value }
}

fn scrape(table: &Table<'_>) -> Scrape {
    let default = Scrape::default();
    let interval = table.get("interval", default.interval, values::interval);
    let timeout = table.get("timeout", default.timeout, values::limit);
    let stale_after = table.get("stale_after", default.stale_after, values::limit);
    in_time(table, &timeout, &interval);
    if !stale_after.wrong && !interval.wrong && stale_after.value < interval.value {
        let message = format!(
            "scrape.stale_after: {} is shorter than scrape.interval ({})",
            shown(&stale_after, duration_text(stale_after.value)),
            duration_text(interval.value)
        );
        let hint = "figures would be stale before the next ones come; three intervals are usual";
        both(table.notes(), message, hint, (&stale_after.span, &interval.span), "the interval");
    }
    Scrape { interval: interval.value, timeout: timeout.value, stale_after: stale_after.value }
}

/// A round's timeout is over before the next round.
fn in_time(table: &Table<'_>, timeout: &Got<Duration>, interval: &Got<Duration>) {
    if timeout.wrong || interval.wrong || timeout.value <= interval.value {
        return;
    }
    let message = format!(
        "{}: {} is longer than {} ({})",
        table.full("timeout"),
        shown(timeout, duration_text(timeout.value)),
        table.full("interval"),
        duration_text(interval.value)
    );
    let hint = format!("set timeout to at most \"{}\"", duration_text(interval.value));
    both(table.notes(), message, &hint, (&timeout.span, &interval.span), "the interval");
}

fn slo(table: &Table<'_>) -> Slo {
    let default = Slo::default();
    Slo { ttft: table.or("ttft", default.ttft, values::limit), tpot: table.or("tpot", default.tpot, values::limit) }
}

/// `text`, the value of `got`, with a word where the operator did not write it.
fn shown<T>(got: &Got<T>, text: String) -> String {
    if got.span.is_some() { text } else { text + " (the default)" }
}

/// Notes a mistake between two values: at the first if it is written, else at the second.
fn both(
    notes: &Notes,
    message: String,
    hint: &str,
    spans: (&Option<std::ops::Range<usize>>, &Option<std::ops::Range<usize>>),
    label: &'static str,
) {
    let diagnostic = match spans {
        (Some(first), second) => Diagnostic::at(first.clone(), message).also(second.clone(), label),
        (None, Some(second)) => Diagnostic::at(second.clone(), message),
        (None, None) => Diagnostic::whole(message),
    };
    notes.add(diagnostic.hint(hint));
}
