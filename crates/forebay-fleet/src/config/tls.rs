//! `tls` of a listener: files by name, read and made into what a handshake needs. Every fault is noted at the key that
//! names the file. What is shown of it later are names and dates, never what a file holds.

use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};

use super::files::Outside;
use crate::tls::{Fault, MinVersion, Part, ServerTls};
use forebay_core::toml_reader::kinds::{ValueKind, choice, line};
use forebay_core::toml_reader::{DefaultText, Key, Reload, Section, Table, Wrong, values};

const CERT_FILE: &str = "File with the certificate in PEM form, and those between it and its authority.";
pub(super) const KEY_FILE: &str = "File with the key of the certificate, in PEM form and without a password.";
pub(super) const PATH: &str = "path, relative to the configuration file";

/// Returns a key of this module's sections.
pub(super) const fn key(
    name: &'static str,
    full: &'static str,
    takes: fn() -> String,
    default: fn() -> DefaultText,
    about: &'static str,
) -> Key {
    Key { name, full, takes, default, reload: Reload::AtOnce, about }
}

/// Defines the section `tls` of a listener.
macro_rules! listener_tls {
    ($(#[doc = $doc:literal])+ $section:ident: $name:literal) => {
        $(#[doc = $doc])+
        pub(super) const $section: &Section = &Section {
            name: $name,
            head: $name,
            form: "tls = { cert_file = \"tls.crt\", key_file = \"tls.key\" }",
            about: concat!($($doc),+),
            keys: &[
                key("cert_file", concat!($name, ".cert_file"), || PATH.to_owned(), || DefaultText::Words("required"), CERT_FILE),
                key("key_file", concat!($name, ".key_file"), || PATH.to_owned(), || DefaultText::Words("required"), KEY_FILE),
                key(
                    "client_ca_file",
                    concat!($name, ".client_ca_file"),
                    || format!("{PATH}, or `\"off\"`"),
                    || DefaultText::Words("`\"off\"`"),
                    "File with the authorities that sign clients' certificates. With it, a client without such a certificate is refused.",
                ),
                key(
                    "min_version",
                    concat!($name, ".min_version"),
                    || choice(MinVersion::ALL).takes(),
                    || DefaultText::Words("`\"1.2\"`"),
                    "Oldest version of TLS that is spoken. Older ones than 1.2 are not known here.",
                ),
            ],
            later: &[],
        };
    };
}

listener_tls! {
    /// TLS for clients. The files are read again every 2 s. A new pair serves new connections, and open ones go on.
    LISTEN_TLS: "listen.tls"
}

listener_tls! {
    /// TLS for operators. The files are read again every 2 s.
    ADMIN_TLS: "admin.tls"
}

listener_tls! {
    /// TLS for gateways that ask the picker, with a certificate of your own. The files are read again every 2 s.
    EPP_TLS: "epp.tls"
}

/// `tls` of the picker.
#[derive(Clone, Debug, PartialEq)]
pub enum PickerTls {
    /// None.
    Off,
    /// A certificate that the process makes at its start.
    SelfSigned,
    /// A certificate from files.
    Files(ListenerTls),
}

impl Serialize for PickerTls {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            PickerTls::Off => serializer.serialize_str("off"),
            PickerTls::SelfSigned => serializer.serialize_str("self-signed"),
            PickerTls::Files(files) => files.serialize(serializer),
        }
    }
}

/// Reads `tls` of the picker.
pub(super) fn picker(table: &Table<'_>, outside: &mut Outside<'_>) -> PickerTls {
    let Some(value) = table.value("tls") else { return PickerTls::SelfSigned };
    match values::text(&value) {
        Ok("off") => PickerTls::Off,
        Ok("self-signed") => PickerTls::SelfSigned,
        Ok(text) => {
            let wrong = Wrong::because(format!("`{text}` is neither \"self-signed\" nor \"off\""));
            let hint = "write one of these, or tls = { cert_file = \"tls.crt\", key_file = \"tls.key\" }";
            table.wrong("tls", value.span, wrong.hint(hint));
            PickerTls::SelfSigned
        }
        Err(_) => listener(&table.table("tls", EPP_TLS), outside).map_or(PickerTls::SelfSigned, PickerTls::Files),
    }
}

/// `tls` of a listener.
#[derive(Clone, Debug, PartialEq)]
pub struct ListenerTls {
    /// The file of the certificate, as written.
    pub cert_file: String,
    /// The file of the key, as written.
    pub key_file: String,
    /// The file of the clients' authorities, as written.
    pub client_ca_file: Option<String>,
    /// The oldest version that is spoken.
    pub min_version: MinVersion,
    /// The settings, made of the files' content.
    pub server: ServerTls,
}

impl Serialize for ListenerTls {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("ListenerTls", 5)?;
        fields.serialize_field("cert_file", &self.cert_file)?;
        fields.serialize_field("key_file", &self.key_file)?;
        fields.serialize_field("client_ca_file", self.client_ca_file.as_deref().unwrap_or("off"))?;
        fields.serialize_field("min_version", self.min_version.as_str())?;
        fields.serialize_field("valid_until", &self.server.validity().until())?;
        fields.end()
    }
}

/// A file that a key names.
pub(super) struct Named {
    pub(super) name: String,
    pub(super) text: String,
}

/// Reads `tls` of a listener, if the file has it.
pub(super) fn listener(table: &Table<'_>, outside: &mut Outside<'_>) -> Option<ListenerTls> {
    if !table.is_written() {
        return None;
    }
    let min_version = table.or("min_version", MinVersion::default(), |value| choice(MinVersion::ALL).read(value));
    let [certificate, private_key] = ["cert_file", "key_file"].map(|key| required(table, key, outside));
    let client_ca = match table.value("client_ca_file") {
        Some(value) if values::text(&value).is_ok_and(|text| text == "off") => Ok(None),
        _ => optional(table, "client_ca_file", outside),
    };
    // All three are read before any is missed, so that every mistake is told at once.
    let (certificate, private_key, client_ca) = (certificate?, private_key?, client_ca.ok()?);
    let authorities = client_ca.as_ref().map(|named| named.text.as_str());
    match ServerTls::new(&certificate.text, &private_key.text, authorities, min_version) {
        Ok(server) => Some(ListenerTls {
            cert_file: certificate.name,
            key_file: private_key.name,
            client_ca_file: client_ca.map(|named| named.name),
            min_version,
            server,
        }),
        Err(fault) => {
            note(table, "client_ca_file", fault);
            None
        }
    }
}

/// Reads the file that `key` names. `Err`: it names one that cannot be read, which is noted.
pub(super) fn optional(table: &Table<'_>, key: &'static str, outside: &mut Outside<'_>) -> Result<Option<Named>, ()> {
    if table.value(key).is_none() {
        return Ok(None);
    }
    let got = table.get(key, None, |value| line(4096).read(value).map(Some));
    let (Some(name), Some(span)) = (got.value, got.span) else { return Err(()) };
    let text = outside.content(&table.full(key), &name, span, table.notes()).ok_or(())?;
    Ok(Some(Named { name, text }))
}

fn required(table: &Table<'_>, key: &'static str, outside: &mut Outside<'_>) -> Option<Named> {
    match optional(table, key, outside) {
        Ok(None) => {
            table.note(format!("{}: the file is not named", table.full(key)), format!("add {key} = \"…\""));
            None
        }
        read => read.ok().flatten(),
    }
}

/// Notes a fault at the key that names the file. `authorities`: the key of the file with authorities.
pub(super) fn note(table: &Table<'_>, authorities: &'static str, fault: Fault) {
    let key = match fault.part {
        Part::Certificate => "cert_file",
        Part::Key => "key_file",
        Part::Authorities => authorities,
    };
    let span = table.got(key, ()).span.unwrap_or_default();
    table.wrong(key, span, Wrong::because(fault.reason).hint(fault.hint));
}
