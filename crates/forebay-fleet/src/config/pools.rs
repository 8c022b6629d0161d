//! The pools of the file: models with their names, arms with their shares, backends with their URLs, and what must be
//! unique among them. A pool may list backends without arms: it has one then, `default`.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::ops::Range;

use toml::de::DeValue;

use super::backend_key::backend_key;
use super::between::both;
use super::discover;
use super::files::Outside;
use super::keys::SESSION;
use super::kinds::HeaderName;
use super::model::{ArmConfig, BackendConfig, BackendUrl, PoolConfig, SessionKey, UnknownModels};
use super::pool_tls::{self, POOL_TLS};
use forebay_core::toml_reader::values;
use forebay_core::toml_reader::{Diagnostic, Notes, quoted};
use forebay_core::toml_reader::{Got, Keys, Table, ValueKind};

const BACKENDS_FORM: &str = "backends = [{ url = \"http://127.0.0.1:8001\" }]";

/// Place where a name or a URL was first used.
type Places<K> = HashMap<K, Range<usize>>;

/// The settings outside the pools that their reading needs.
pub(super) struct Around<'a, 'b> {
    pub(super) outside: &'a mut Outside<'b>,
    /// The address at which this proxy itself listens.
    pub(super) listener: &'a Got<SocketAddr>,
}

/// Every pool of the file.
pub(super) fn pools(root: &Table<'_>, around: &mut Around<'_, '_>) -> Vec<PoolConfig> {
    let tables = root.tables("pools", PoolConfig::SECTION);
    if tables.is_empty() && root.value("pools").is_none_or(|value| value.kind() == "a list") {
        root.note("there is no pool, so that nothing could be served", format!("add [[pools]] with {POOL_FORM}"));
    }
    let mut names = Places::new();
    let mut pools: Vec<PoolConfig> = tables.iter().map(|table| pool(table, &mut names, around)).collect();
    unknown_models(&tables, &mut pools);
    pools
}

/// The only pool tries what nobody lists, unless it says otherwise. Of several, one may.
fn unknown_models(tables: &[Table<'_>], pools: &mut [PoolConfig]) {
    let written: Vec<_> = tables.iter().map(|table| table.key_span("unknown_models")).collect();
    if let ([only], [None]) = (&mut *pools, written.as_slice()) {
        only.unknown_models = UnknownModels::Try;
    }
    let mut trying =
        tables.iter().zip(written).zip(pools).filter(|(_, pool)| pool.unknown_models == UnknownModels::Try);
    let Some(((_, Some(first)), _)) = trying.next() else { return };
    for ((table, span), _) in trying {
        let Some(span) = span else { continue };
        let message = "pools.unknown_models: another pool tries unknown models already".to_owned();
        twice(table.notes(), &span, &first, message, "a model that nobody lists can be tried in one pool");
    }
}

const POOL_FORM: &str = "model = \"…\" and backends = [{ url = \"http://127.0.0.1:8001\" }]";

fn pool(table: &Table<'_>, names: &mut Places<String>, around: &mut Around<'_, '_>) -> PoolConfig {
    let mut pool = PoolConfig::default();
    pool.read(table);
    let model = table.got("model", pool.model.clone());
    match &model.span {
        None if table.key_span("discover").is_some() => {
            let hint = "add model = \"…\", the id that the /v1/models of the backends lists; aliases are further names";
            table.note("pools.model: the pool names no model, and what is found later has no say in it", hint);
        }
        None => table.note("pools.model: the pool names no model", "add model = \"…\", as the backends call it"),
        Some(span) if !model.wrong => unique(table, "model", names, &model.value, span),
        Some(_) => {}
    }
    // Names of models and aliases share one space, since a request names either.
    for (alias, span) in table.list("aliases", values::line(256)) {
        unique(table, "aliases", names, &alias, &span);
        pool.aliases.push(alias);
    }
    if let Some(session) = session(table) {
        pool.session = session;
    }
    let tls = table.table("tls", POOL_TLS);
    pool.tls = pool_tls::pool(&tls, around.outside);
    pool.arms = arms(table, around);
    // An arm without backends was noted already.
    let uses_tls = |arm: &ArmConfig| match &arm.discover {
        Some(discover) => discover.https,
        None => arm.backends.is_empty() || arm.backends.iter().any(|backend| backend.url.is_https()),
    };
    if tls.is_written() && !pool.arms.iter().any(uses_tls) {
        let hint = "write https:// in the URLs of backends that speak TLS, or leave tls out";
        tls.note("pools.tls: no backend of the pool has an https URL, so nothing would use it", hint);
    }
    pool
}

/// Refuses a model's name or alias that another pool, or this one, has already.
fn unique(table: &Table<'_>, key: &str, names: &mut Places<String>, name: &str, span: &Range<usize>) {
    if let Some(first) = names.get(name) {
        let message = format!("{}: {} is named twice", table.full(key), quoted(name));
        twice(table.notes(), span, first, message, "names and aliases are unique over all pools");
    } else {
        names.insert(name.to_owned(), span.clone());
    }
}

fn twice(notes: &Notes, span: &Range<usize>, first: &Range<usize>, message: String, hint: &str) {
    notes.add(Diagnostic::at(span.clone(), message).hint(hint).also(Some(first.clone()), "first here"));
}

fn session(table: &Table<'_>) -> Option<SessionKey> {
    const FORM: &str = "write session = { header = \"x-session-id\" } or session = { body = \"user\" }";
    let session = table.table("session", SESSION);
    let header = session.get("header", String::new(), |value| HeaderName.read(value));
    let body = session.get("body", String::new(), values::line(64));
    match (&header.span, &body.span) {
        (Some(_), None) => Some(SessionKey::Header(header.value)),
        (None, Some(_)) => Some(SessionKey::Body(body.value)),
        // No guess which of the two was meant: another session key is another split among the arms.
        (Some(_), Some(second)) => {
            let message = "pools.session: it is a header or a member of the body, not both";
            table.notes().add(Diagnostic::at(second.clone(), message).hint(FORM).also(header.span, "the header"));
            None
        }
        (None, None) => {
            if session.is_written() {
                session.note("pools.session: it says neither header nor body", FORM);
            }
            None
        }
    }
}

fn arms(table: &Table<'_>, around: &mut Around<'_, '_>) -> Vec<ArmConfig> {
    let mut urls = Places::new();
    // Read on with the arms, so that mistakes in them are told in the same run.
    let written = ["backends", "discover"].map(|key| (key, table.key_span(key)));
    if table.value("arms").is_some() {
        for (key, span) in written {
            let Some(span) = span else { continue };
            let message = format!("pools.{key}: the pool has arms, so its backends belong to them");
            let hint = "move the backends into an arm, or leave the arms out";
            table.notes().add(Diagnostic::at(span, message).hint(hint));
        }
    } else if written.iter().any(|(_, span)| span.is_some()) {
        return vec![members("default", table, "pool", &mut urls, around)];
    }
    let tables = table.tables("arms", ArmConfig::SECTION);
    if tables.is_empty() && table.value("arms").is_none_or(|value| value.kind() == "a list") {
        table.note("pools.backends: the pool has neither backends nor arms", format!("add {BACKENDS_FORM}"));
    }
    let mut names = Places::new();
    let (arms, shares): (Vec<ArmConfig>, Vec<Got<f64>>) =
        tables.iter().map(|arm_table| arm(arm_table, &mut names, &mut urls, around)).unzip();
    check_shares(table, &tables, &shares);
    arms
}

fn arm(
    table: &Table<'_>,
    names: &mut Places<String>,
    urls: &mut Places<BackendUrl>,
    around: &mut Around<'_, '_>,
) -> (ArmConfig, Got<f64>) {
    if table.value("name").is_none() {
        table.note("pools.arms.name: the arm has no name", "add name = \"…\", such as \"tp2\"");
    }
    let mut arm = members("", table, "arm", urls, around);
    arm.read(table);
    if let (Some(found), true) = (&mut arm.discover, table.value("gpus").is_some()) {
        found.gpus_each = false;
    }
    let name = table.got("name", &arm.name);
    if let (Some(span), false) = (name.span, name.wrong) {
        match names.get(name.value) {
            Some(first) => {
                let message = format!("pools.arms.name: {} is named twice", quoted(name.value));
                twice(table.notes(), &span, first, message, "arms have different names, in metrics and in headers");
            }
            None => _ = names.insert(name.value.clone(), span),
        }
    }
    let share = table.got("share", arm.share);
    (arm, share)
}

/// Every arm has a share or none has, and some arm gets something.
fn check_shares(pool: &Table<'_>, arms: &[Table<'_>], shares: &[Got<f64>]) {
    if shares.iter().any(|share| share.wrong) {
        return;
    }
    let written = shares.iter().filter(|share| share.span.is_some()).count();
    if written > 0 && written < shares.len() {
        for (arm, share) in arms.iter().zip(shares) {
            if share.span.is_none() {
                let hint = "write a share for every arm, or for none, which means equal shares";
                arm.note("pools.arms.share: this arm has no share, but another has", hint);
            }
        }
    } else if !shares.is_empty() && shares.iter().all(|share| share.value <= 0.0) {
        pool.note("pools.arms.share: no arm has a share above 0", "give some arm a share, such as share = 1");
    }
}

/// An arm called `name` with the backends of a pool or an arm, which is `what`, or with the source that names them.
fn members(
    name: &str,
    table: &Table<'_>,
    what: &str,
    urls: &mut Places<BackendUrl>,
    around: &mut Around<'_, '_>,
) -> ArmConfig {
    let Some(span) = table.key_span("discover") else {
        return ArmConfig::of(name, backends(table, what, urls, around));
    };
    if let Some(first) = table.key_span("backends") {
        // Which of the two would win is no guess to make: a backend that is listed and not found would be gone or not.
        let message = format!("{}: the {what} lists backends, too", table.full("discover"));
        let hint = "leave one of the two out, or give each an arm of its own";
        table.notes().add(Diagnostic::at(span, message).hint(hint).also(Some(first), "listed here"));
    }
    ArmConfig { discover: discover::discover(table, around.outside), ..ArmConfig::of(name, Vec::new()) }
}

/// The backends of a pool or an arm, which is `what`.
fn backends(
    table: &Table<'_>,
    what: &str,
    urls: &mut Places<BackendUrl>,
    around: &mut Around<'_, '_>,
) -> Vec<BackendConfig> {
    let empty = table.value("backends").is_none_or(|value| match value.value {
        DeValue::Array(items) => items.is_empty(),
        _ => false,
    });
    if empty {
        let message = format!("{}: the {what} has no backend", table.full("backends"));
        table.note(message, format!("write {BACKENDS_FORM}"));
    }
    let tables = table.tables("backends", BackendConfig::SECTION);
    tables.iter().map(|table| backend(table, urls, around)).collect()
}

fn backend(table: &Table<'_>, urls: &mut Places<BackendUrl>, around: &mut Around<'_, '_>) -> BackendConfig {
    let mut backend = BackendConfig::of(unread());
    backend.read(table);
    backend.key = backend_key(table, around.outside);
    let url = table.got("url", &backend.url);
    match url.span {
        None => table.note("backends.url: the backend has no URL", "add url = \"http://127.0.0.1:8001\""),
        Some(span) if !url.wrong => {
            if let Some(first) = urls.get(url.value) {
                let message = format!("backends.url: {} is in this pool twice", quoted(&url.value.to_string()));
                twice(
                    table.notes(),
                    &span,
                    first,
                    message,
                    "a backend belongs to one arm; one that is faster has a speed",
                );
            } else {
                own_address(table, url.value, &span, around.listener);
                urls.insert(url.value.clone(), span);
            }
        }
        Some(_) => {}
    }
    backend
}

/// Notes a backend that is this proxy itself, to which each request would come back.
fn own_address(table: &Table<'_>, url: &BackendUrl, span: &Range<usize>, listener: &Got<SocketAddr>) {
    if !listener.wrong && url.leads_to(listener.value) {
        let message = format!("backends.url: {url} is where Forebay itself listens ({})", listener.value);
        let spans = (&Some(span.clone()), &listener.span);
        both(
            table.notes(),
            message,
            "name the server behind it, or give listen.address another port",
            spans,
            "listens here",
        );
    }
}

/// Returns what stands in for a URL until it is read; a file without one does not get through.
fn unread() -> BackendUrl {
    "http://unread".parse().expect("this is a URL")
}
