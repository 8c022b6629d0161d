//! From the file as written to the values that hold: defaults filled in, files and environment read, and what only shows when
//! two sections are set side by side. Every mistake is noted; what comes back is only good if none was.

use std::net::SocketAddr;

use super::between::both;
use super::files::Outside;
use super::model::{Admin, Config, Secret, Tables};
use super::tls;
use super::{client_keys, discover, pools};
use forebay_core::toml_reader::kinds::{ValueKind, line};
use forebay_core::toml_reader::{Diagnostic, Got, Table, values};

/// The configuration that the file at `root` means.
pub(super) fn config(root: &Table<'_>, outside: &mut Outside<'_>) -> Config {
    let tables = Tables::open(root);
    let mut config = Config::read(&tables);
    let data = tables.listen.got("address", config.listen.address);
    config.listen.tls = tls::listener(&tables.listen.table("tls", tls::LISTEN_TLS), outside);
    let admin_tls = tables.admin.table("tls", tls::ADMIN_TLS);
    config.admin.tls = tls::listener(&admin_tls, outside);
    config.epp.tls = tls::picker(&tables.epp, outside);
    config.admin.token = token(&tables.admin, outside);
    check_admin(&config.admin, (&tables.admin, &admin_tls), &data);
    check_picker(&config, &tables, &data);
    config.clients.keys = client_keys::client_keys(&tables.clients, outside);
    config.pools = pools::pools(root, &mut pools::Around { outside, listener: &data });
    config.replicas.kubernetes = discover::of_replicas(&tables.replicas, config.replicas.service.as_deref(), outside);
    check_replicas(&config, &tables.replicas);
    config
}

/// Notes replicas that would not agree on anything: each pool's salt is what they have in common.
fn check_replicas(config: &Config, table: &Table<'_>) {
    let count = table.got("count", config.replicas.count);
    let Some(alone) = config.pools.iter().find(|pool| pool.split_salt.is_empty()) else { return };
    let (span, message) = match table.key_span("service") {
        Some(span) => (span, format!("replicas.service: the pool of {} has no split_salt", alone.model)),
        None if count.value > 1 && !count.wrong => {
            let message =
                format!("replicas.count: {} replicas, but the pool of {} has no split_salt", count.value, alone.model);
            (count.span.unwrap_or_default(), message)
        }
        None => return,
    };
    let hint = "give the pool a split_salt, the same in all replicas: by it they assign sessions and prompts alike";
    table.notes().add(Diagnostic::at(span, message).hint(hint));
}

/// Reads the file that `admin.token_file` names.
fn token(table: &Table<'_>, outside: &mut Outside<'_>) -> Option<Secret> {
    let file = table.get("token_file", None, |value| line(4096).read(value).map(Some));
    outside.token(&file.value?, file.span?, table.notes())
}

/// Notes an admin listener that anybody could use, and one whose port clients have.
fn check_admin(admin: &Admin, (table, tls): (&Table<'_>, &Table<'_>), data: &Got<SocketAddr>) {
    let address = table.got("address", admin.address);
    // A file of authorities that is wrong was noted already, and is meant to be there.
    let asks = tls.value("client_ca_file");
    let asks = asks.is_some_and(|value| values::text(&value).is_ok_and(|text| text != "off"));
    if !address.value.ip().is_loopback() && table.value("token_file").is_none() && !asks {
        let message = format!("admin.address: {} is not loopback, so a token is required", address.value);
        let hint = "add token_file = \"admin.token\", a file with one random word, or tls with a client_ca_file, or bind 127.0.0.1";
        table.notes().add(Diagnostic::at(address.span.clone().unwrap_or_default(), message).hint(hint));
    }
    if !address.wrong && !data.wrong && collide(address.value, data.value) {
        let message = format!("admin.address: {} is taken by listen.address ({})", address.value, data.value);
        both(table.notes(), message, "give the two listeners two ports", (&address.span, &data.span), "taken here");
    }
}

/// Notes a picker whose port is another listener's.
fn check_picker(config: &Config, tables: &Tables<'_>, data: &Got<SocketAddr>) {
    let picker = tables.epp.got("address", config.epp.address);
    let admin = tables.admin.got("address", config.admin.address);
    let Some(address) = picker.value.filter(|_| !picker.wrong) else { return };
    for (other, key) in [(data, "listen.address"), (&admin, "admin.address")] {
        if !other.wrong && collide(address, other.value) {
            let message = format!("epp.address: {address} is taken by {key} ({})", other.value);
            both(
                tables.epp.notes(),
                message,
                "give the two listeners two ports",
                (&picker.span, &other.span),
                "taken here",
            );
        }
    }
}

/// Returns whether two listeners cannot be bound both.
fn collide(one: SocketAddr, other: SocketAddr) -> bool {
    let same_host = one.ip() == other.ip() || one.ip().is_unspecified() || other.ip().is_unspecified();
    one.port() != 0 && one.port() == other.port() && same_host
}
