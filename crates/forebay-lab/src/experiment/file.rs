//! An `experiment.toml`, read and checked in one go: every mistake at once, each with its place and what would be right.

pub(super) mod command_line;
mod schema;

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::de::DeValue;

use self::command_line::{Env, WordError};
use super::spec::{ArmSpec, Experiment, LoadSpec, Route, ServerSpec};
use crate::load::dataset::Prefixes;
use crate::load::run::WarmUp;
use crate::load::workload::Endpoint;
use crate::rows::row_file::Offered;
use crate::rows::slo::Slo;
use forebay_core::routing::policy::PolicyName;
use forebay_core::toml_reader::{self, Diagnostic, Report, Table, Value, Wrong, nearest, quoted, values};
use forebay_fleet::config::model::{BackendUrl, UrlError};

const START_TIMEOUT: Duration = Duration::from_secs(600);
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
const WARM_UP: WarmUp = WarmUp { num_prompts: 16, output_len: Some(32) };

/// Reads the experiment `text`, whose file is at `path`; `env` looks variables up.
///
/// # Errors
/// Something in it is wrong; the report has all of it.
pub fn read(path: &Path, text: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<Experiment, Box<Report>> {
    toml_reader::parse(text, &schema::SCHEMA, |root| experiment(root, env)).map_err(|mistakes| {
        Box::new(Report::new(&schema::SCHEMA, &path.display().to_string(), text, mistakes, [0; 32]))
    })
}

fn experiment(root: &Table<'_>, env: Env<'_>) -> Experiment {
    let name = required(root, "name", "how its results are called", &values::name);
    let starts = root.or("starts", 1, values::whole(1..=1000_u32));
    let blocks = root.or("blocks", 1, values::whole(1..=10_000_u32));
    let together = root.or("together", false, values::boolean);
    let servers = servers(root, env);
    let arms = arms(root, &servers, (starts, blocks, together));
    let load = root.table("load", &schema::LOAD);
    let slo = root.table("slo", &schema::SLO);
    let limit = |key| slo.or(key, None, |value| values::limit(value).map(Some));
    Experiment {
        model: required(root, "model", "as the servers call it", &values::line(256)),
        out: PathBuf::from(root.or("out", format!("experiments/{name}"), |value| filled(value, env))),
        name,
        starts,
        blocks,
        time_scale: root.or("time_scale", None, |value| values::number(0.001..=1000.0)(value).map(Some)),
        record: root.list("record", |value| command(value, env)).into_iter().map(|(words, _)| words).collect(),
        loads: loads(root, &load),
        warm_up: warm_up(&load),
        slo: slo.is_written().then(|| Slo { ttft: limit("ttft"), tpot: limit("tpot"), e2e: limit("e2e") }),
        servers,
        arms,
    }
}

/// The value of a key that must be there.
fn required<'a, T: Default>(
    table: &Table<'a>,
    key: &'static str,
    what: &str,
    read: &dyn Fn(&Value<'a>) -> Result<T, Wrong>,
) -> T {
    if table.value(key).is_none() {
        table.note(format!("{} is missing", table.full(key)), format!("add {key} = …, {what}"));
    }
    table.or(key, T::default(), read)
}

// ---- loads ---------------------------------------------------------------------------------------------------------

fn loads(root: &Table<'_>, table: &Table<'_>) -> Vec<LoadSpec> {
    if !table.is_written() {
        root.note("there is no load", "add [load] with num_prompts, input_len and output_len");
        return Vec::new();
    }
    let rate = table.or("request_rate", None, rate);
    let max_concurrency = table.or("max_concurrency", None, |value| concurrency(value).map(Some));
    let num_prompts = required(table, "num_prompts", "how many requests", &values::whole(1..=10_000_000_u32));
    let base = LoadSpec {
        offered: offered(rate, max_concurrency),
        max_concurrency,
        num_prompts,
        input_len: required(table, "input_len", "the tokens of a prompt", &values::whole(1..=10_000_000_u32)),
        prefixes: prefixes(table, num_prompts),
        output_len: required(table, "output_len", "the tokens of an answer", &values::whole(1..=10_000_000_u32)),
        ignore_eos: table.or("ignore_eos", false, values::boolean),
        endpoint: table.or("endpoint", Endpoint::Completions, values::choice(&ENDPOINTS)),
        temperature: table.or("temperature", None, |value| values::number(0.0..=100.0)(value).map(Some)),
        seed: table.or("seed", 0, values::whole(0..=u64::from(u32::MAX))),
    };
    let sweep = table.table("sweep", &schema::SWEEP);
    let rates = sweep.list("request_rate", rate_of_sweep).into_iter().map(|(rate, _)| (Some(rate), max_concurrency));
    let limits = sweep.list("max_concurrency", concurrency).into_iter().map(|(limit, _)| (rate, Some(limit)));
    let swept: Vec<LoadSpec> = rates
        .chain(limits)
        .map(|(rate, limit)| LoadSpec { offered: offered(rate, limit), max_concurrency: limit, ..base.clone() })
        .collect();
    if sweep.is_written() && swept.is_empty() {
        sweep.note("load.sweep: it names no loads", format!("write {}", schema::SWEEP.form));
    }
    if swept.is_empty() { vec![base] } else { swept }
}

/// Beginnings that prompts share, under the names and with the defaults of `vllm bench serve`.
fn prefixes(load: &Table<'_>, prompts: u32) -> Option<Prefixes> {
    let table = load.table("prefix_repetition", &schema::PREFIXES);
    let tokens = values::whole(1..=10_000_000_u32);
    let prefixes = Prefixes { len: table.or("prefix_len", 256, &tokens), count: table.or("num_prefixes", 10, &tokens) };
    // None at all is a mistake that is told already.
    if table.is_written() && (1..prefixes.count).contains(&prompts) {
        let message = format!("load.prefix_repetition: {} prefixes for {prompts} prompts", prefixes.count);
        note_at(load, "prefix_repetition", message, "each prefix needs a prompt: raise num_prompts");
    }
    table.is_written().then_some(prefixes)
}

const ENDPOINTS: [(&str, Endpoint); 2] = [("chat", Endpoint::Chat), ("completions", Endpoint::Completions)];

fn offered(rate: Option<f64>, max_concurrency: Option<u32>) -> Offered {
    match (rate, max_concurrency) {
        (Some(rate), _) => Offered::Rate(rate),
        (None, Some(limit)) => Offered::Concurrency(limit),
        (None, None) => Offered::Unlimited,
    }
}

fn concurrency(value: &Value<'_>) -> Result<u32, Wrong> {
    values::whole(1..=1_000_000_u32)(value)
}

fn rate_of_sweep(value: &Value<'_>) -> Result<f64, Wrong> {
    values::number(0.000_001..=1_000_000.0)(value)
}

/// Requests a second; none for "inf": all at once.
fn rate(value: &Value<'_>) -> Result<Option<f64>, Wrong> {
    match value.value {
        DeValue::String(text) if text == "inf" => Ok(None),
        DeValue::Float(float) if float.as_str() == "inf" => Ok(None),
        _ => rate_of_sweep(value)
            .map(Some)
            .map_err(|wrong| wrong.hint("write requests a second, or \"inf\" for all at once")),
    }
}

fn warm_up(load: &Table<'_>) -> WarmUp {
    let table = load.table("warm_up", &schema::WARM_UP);
    WarmUp {
        num_prompts: table.or("num_prompts", WARM_UP.num_prompts, values::whole(0..=1_000_000_u32)),
        output_len: table
            .or("output_len", WARM_UP.output_len, |value| values::whole(1..=1_000_000_u32)(value).map(Some)),
    }
}

// ---- servers -------------------------------------------------------------------------------------------------------

fn servers(root: &Table<'_>, env: Env<'_>) -> Vec<ServerSpec> {
    let tables = root.tables("servers", &schema::SERVER);
    if tables.is_empty() && root.value("servers").is_none() {
        root.note("there are no servers", "add [[servers]] with name, url and command");
    }
    let common = variables(root, env);
    let mut servers: Vec<ServerSpec> = Vec::new();
    for table in &tables {
        let server = server(table, &common, &servers, env);
        servers.push(server);
    }
    servers
}

fn server(table: &Table<'_>, common: &[(String, String)], before: &[ServerSpec], env: Env<'_>) -> ServerSpec {
    let name = required(table, "name", "how arms call it", &values::name);
    if before.iter().any(|other| other.name == name) && !name.is_empty() {
        note_at(
            table,
            "name",
            format!("servers.name: {} is named twice", quoted(&name)),
            "each server has its own name",
        );
    }
    let mut variables_of = common.to_vec();
    variables_of.extend(variables(table, env));
    let after = table.list("after", |value| index_of(values::text(value)?, before.iter().map(|one| one.name.as_str())));
    if table.value("command").is_none() {
        table.note("servers.command is missing", "add command = \"vllm serve MODEL --port 8001\"");
    }
    ServerSpec {
        name,
        command: table.or("command", Vec::new(), |value| command(value, env)),
        or_else: table.list("or_else", |value| command(value, env)).into_iter().map(|(words, _)| words).collect(),
        env: variables_of,
        cwd: table.or("cwd", None, |value| filled(value, env).map(|path| Some(PathBuf::from(path)))),
        url: url(table, env),
        health: table.or("health", "/health".to_owned(), path),
        start_timeout: table.or("start_timeout", START_TIMEOUT, values::limit),
        stop_timeout: table.or("stop_timeout", STOP_TIMEOUT, values::limit),
        after: after.into_iter().map(|(index, _)| index).collect(),
    }
}

fn url(table: &Table<'_>, env: Env<'_>) -> BackendUrl {
    if table.value("url").is_none() {
        table.note("servers.url is missing", "add url = \"http://127.0.0.1:8001\", where the command listens");
    }
    table.or("url", blank_url(), |value| {
        let text = filled(value, env)?;
        const FORM: &str = "write it as \"http://127.0.0.1:8001\"";
        let url: BackendUrl =
            text.parse().map_err(|error: UrlError| Wrong::because(format!("{}: {error}", quoted(&text))).hint(FORM))?;
        // The load generator speaks plain HTTP over TCP alone.
        if url.is_https() || url.socket().is_some() {
            return Err(
                Wrong::because(format!("{}: an experiment reaches its servers by http", quoted(&text))).hint(FORM)
            );
        }
        Ok(url)
    })
}

/// Returns the URL that stands in for an address that is missing or wrong, which the report says.
fn blank_url() -> BackendUrl {
    "http://missing".parse().expect("this is a URL")
}

fn path(value: &Value<'_>) -> Result<String, Wrong> {
    let text = values::line(256)(value)?;
    if text.starts_with('/') { Ok(text) } else { Err(Wrong::because(format!("{} is no path", quoted(&text)))) }
}

/// The table `env`, whose keys are any names.
fn variables(table: &Table<'_>, env: Env<'_>) -> Vec<(String, String)> {
    let Some(value) = table.value("env") else { return Vec::new() };
    let DeValue::Table(entries) = value.value else {
        table.wrong("env", value.span.clone(), value.expected("a table").hint("write env = { NAME = \"value\" }"));
        return Vec::new();
    };
    let mut variables = Vec::new();
    for (key, entry) in entries {
        let entry = Value { value: entry.get_ref(), span: entry.span() };
        match text_with_variables(&entry, env) {
            Ok(text) => variables.push((key.get_ref().to_string(), text)),
            Err(wrong) => table.wrong("env", entry.span, wrong.hint("values are strings: NAME = \"1\"")),
        }
    }
    variables
}

/// A command as one string, split as a shell would, or as a list of words.
fn command(value: &Value<'_>, env: Env<'_>) -> Result<Vec<String>, Wrong> {
    let wrong = |error: WordError| Wrong::because(error.to_string()).hint(hint(&error));
    match value.value {
        DeValue::String(text) => command_line::command(text, env).map_err(wrong),
        DeValue::Array(items) if !items.is_empty() => items
            .iter()
            .map(|item| text_with_variables(&Value { value: item.get_ref(), span: item.span() }, env))
            .collect(),
        _ => Err(value.expected("a command").hint("write \"program argument …\" or [\"program\", \"argument\"]")),
    }
}

fn text_with_variables(value: &Value<'_>, env: Env<'_>) -> Result<String, Wrong> {
    command_line::fill(values::text(value)?, env).map_err(|error| Wrong::because(error.to_string()).hint(hint(&error)))
}

/// One line with its variables filled in.
fn filled(value: &Value<'_>, env: Env<'_>) -> Result<String, Wrong> {
    values::line(4096)(value)?;
    text_with_variables(value, env)
}

fn hint(error: &WordError) -> String {
    match error {
        WordError::Quote => "close it; no shell sees the command".to_owned(),
        WordError::Empty => "write \"program argument …\"".to_owned(),
        WordError::Unset(name) => format!("export {name}=…, or write ${{{name}:-DEFAULT}}"),
        WordError::Open => "write ${NAME} or ${NAME:-default}".to_owned(),
    }
}

// ---- arms ----------------------------------------------------------------------------------------------------------

fn arms(root: &Table<'_>, servers: &[ServerSpec], (starts, blocks, together): (u32, u32, bool)) -> Vec<ArmSpec> {
    let tables = root.tables("arms", &schema::ARM);
    if tables.is_empty() && root.value("arms").is_none() {
        root.note("there are no arms", "add [[arms]] with name and servers");
    }
    let mut arms: Vec<ArmSpec> = Vec::new();
    for table in &tables {
        let name = required(table, "name", "as reports call it", &values::name);
        if arms.iter().any(|other| other.name == name) && !name.is_empty() {
            note_at(table, "name", format!("arms.name: {} is named twice", quoted(&name)), "each arm has its own name");
        }
        let own: Vec<usize> = table
            .list("servers", |value| index_of(values::text(value)?, servers.iter().map(|one| one.name.as_str())))
            .into_iter()
            .map(|(index, _)| index)
            .collect();
        if table.value("servers").is_none_or(|value| matches!(value.value, DeValue::Array(list) if list.is_empty())) {
            table.note("arms.servers: the arm has none", "add servers = [\"NAME\"], names of [[servers]]");
        }
        let stage = if together { "together".to_owned() } else { name.clone() };
        let stage = table.or("stage", stage, values::name);
        one_address_each(table, servers, &own, arms.iter().filter(|other| other.stage == stage));
        arms.push(ArmSpec {
            route: route(table, own.len()),
            gpus: table.or("gpus", u32::try_from(own.len()).unwrap_or(1).max(1), values::whole(1..=100_000_u32)),
            price: table.or("price", None, |value| values::number(0.0..=1e9)(value).map(Some)),
            max_num_seqs: table.or("max_num_seqs", None, |value| values::whole(1..=1_000_000_u32)(value).map(Some)),
            stage,
            starts: table.or("starts", starts, values::whole(1..=1000_u32)),
            blocks: table.or("blocks", blocks, values::whole(1..=10_000_u32)),
            servers: own,
            name,
        });
    }
    arms
}

/// Servers that are up at the same time listen at different places.
fn one_address_each<'s>(
    table: &Table<'_>,
    servers: &[ServerSpec],
    own: &[usize],
    with: impl Iterator<Item = &'s ArmSpec>,
) {
    let mut up: Vec<usize> = with.flat_map(|arm| arm.servers.iter().copied()).collect();
    for &index in own {
        let (server, blank) = (&servers[index], blank_url());
        let same = |other: &&usize| **other != index && servers[**other].url == server.url && server.url != blank;
        if let Some(other) = up.iter().find(same) {
            let names = (quoted(&servers[*other].name), quoted(&server.name));
            let message = format!("arms.servers: {} and {} are up together at {}", names.0, names.1, server.url);
            note_at(table, "servers", message, "give each a port of its own");
        }
        up.push(index);
    }
}

/// Through a Forebay where there is something to choose, else straight to the server, unless the file says otherwise.
fn route(table: &Table<'_>, servers: usize) -> Route {
    let choices = PolicyName::choices();
    let policy = table.get("policy", PolicyName::default(), values::choice(&choices));
    let direct = table.get("route", servers <= 1 && policy.span.is_none(), |value| {
        values::choice(&[("forebay", false), ("direct", true)])(value)
    });
    if direct.value && servers > 1 {
        note_at(table, "route", "arms.route: nothing shares the load out between the servers", "leave it out");
    } else if let (true, Some(_)) = (direct.value, &policy.span) {
        note_at(table, "policy", "arms.policy: an arm with route = \"direct\" has none", "leave one of them out");
    }
    if direct.value { Route::Direct } else { Route::Forebay(policy.value) }
}

fn index_of<'n>(name: &str, mut names: impl Iterator<Item = &'n str> + Clone) -> Result<usize, Wrong> {
    let known: Vec<&str> = names.clone().collect();
    names.position(|one| one == name).ok_or_else(|| {
        let hint = match nearest(name, &known) {
            Some(near) => format!("did you mean \"{near}\"?"),
            None => format!("there are: {}", known.join(", ")),
        };
        Wrong::because(format!("no server {} stands above", quoted(name))).hint(hint)
    })
}

fn note_at(table: &Table<'_>, key: &str, message: impl Into<String>, hint: &str) {
    let span: Option<Range<usize>> = table.key_span(key);
    let diagnostic = match span {
        Some(span) => Diagnostic::at(span, message),
        None => Diagnostic::whole(message),
    };
    table.notes().add(diagnostic.hint(hint));
}

#[cfg(test)]
mod tests;
