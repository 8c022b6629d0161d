//! The client keys of the file: those of `clients.keys_file`, and `[[clients.keys]]`, which give one of them limits or take another
//! from the environment. Never repeats a key, not even in a complaint about it.

use std::collections::HashMap;
use std::ops::Range;

use sha2::{Digest, Sha256};

use super::files::Outside;
use super::keys::{ClientKey, KeyConfig};
use super::keys_file;
use forebay_core::toml_reader::kinds::{ValueKind, line};
use forebay_core::toml_reader::values;
use forebay_core::toml_reader::{Diagnostic, Keys, Table, quoted};

/// The keys that clients may send; `None` where the file names none, so that everybody may.
pub(super) fn client_keys(clients: &Table<'_>, outside: &mut Outside<'_>) -> Option<Vec<ClientKey>> {
    let file = clients.get("keys_file", None, |value| line(4096).read(value).map(Some));
    let named = file.value.is_some();
    let from_file =
        file.value.zip(file.span).and_then(|(name, span)| keys_file::from_file(outside, &name, span, clients.notes()));
    let tables = clients.tables("keys", KeyConfig::SECTION);
    if !named && tables.is_empty() {
        return None;
    }
    // A file that could not be read was noted, and which names it lacks cannot be said.
    let is_whole = named == from_file.is_some();
    let mut keys = from_file.unwrap_or_default();
    let mut first_of: HashMap<String, Range<usize>> = HashMap::new();
    for table in &tables {
        let mut config = KeyConfig::default();
        config.read(table);
        let name = table.got("name", config.name.clone());
        let Some(span) = name.span.filter(|_| !name.wrong) else {
            if !name.wrong {
                table.note(
                    "clients.keys.name: the key has no name",
                    "add name = \"…\", as it shall stand in logs and metrics",
                );
            }
            continue;
        };
        if let Some(first) = first_of.get(&name.value) {
            let message = format!("clients.keys.name: {} is named twice", quoted(&name.value));
            let hint = "write all limits of a key in one table";
            clients.notes().add(Diagnostic::at(span, message).hint(hint).also(Some(first.clone()), "first here"));
            continue;
        }
        first_of.insert(name.value.clone(), span.clone());
        config.models = models(table);
        settle(table, config, &mut keys, (span, is_whole), outside);
    }
    Some(keys)
}

/// Gives the key of this table its limits: the line of that name in the file, or a key of the environment.
fn settle(
    table: &Table<'_>,
    config: KeyConfig,
    keys: &mut Vec<ClientKey>,
    (span, is_whole): (Range<usize>, bool),
    outside: &Outside<'_>,
) {
    let secret = table.read("key_env", |value| outside.variable(values::text(value)?));
    let known = keys.iter_mut().find(|key| key.name == config.name);
    match (known, secret) {
        (None, Some(secret)) => {
            let sha256: [u8; 32] = Sha256::digest(secret.expose().as_bytes()).into();
            if let Some(other) = keys.iter().find(|key| key.sha256 == sha256) {
                let message = format!("clients.keys.key_env: the key {} has the same value", quoted(&other.name));
                let hint = "a key that two names share cannot tell its clients apart";
                table.notes().add(Diagnostic::at(span, message).hint(hint));
                return;
            }
            keys.push(ClientKey::of(config, sha256));
        }
        (Some(_), Some(_)) => {
            let message =
                format!("clients.keys.key_env: {} has a line in clients.keys_file already", quoted(&config.name));
            table.notes().add(Diagnostic::at(span, message).hint("leave key_env out, or the line in the file"));
        }
        (Some(known), None) => *known = ClientKey::of(config, known.sha256),
        (None, None) if table.value("key_env").is_none() && is_whole => {
            let message = format!("clients.keys.name: there is no key {}", quoted(&config.name));
            let hint = "add a line of this name to clients.keys_file, or key_env = \"NAME\", the environment variable with the key";
            table.notes().add(Diagnostic::at(span, message).hint(hint));
        }
        (None, None) => {}
    }
}

/// The models that the key may use; all of them where the table lists none.
fn models(table: &Table<'_>) -> Option<Vec<String>> {
    table.value("models")?;
    let models: Vec<String> = table.list("models", values::line(256)).into_iter().map(|(model, _)| model).collect();
    if models.is_empty() && table.value("models").is_some_and(|value| value.kind() == "a list") {
        table.note(
            "clients.keys.models: the list is empty, so that the key could use nothing",
            "leave models out to allow all",
        );
    }
    Some(models)
}
