//! `tls` of a pool: how its backends with `https` URLs are met.

use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};
use tokio_rustls::rustls::pki_types::ServerName;

use super::files::Outside;
use super::tls::{KEY_FILE, PATH, key, note, optional};
use crate::tls::ClientTls;
use forebay_core::toml_reader::{DefaultText, Section, Table, Wrong, quoted, values};

/// `tls` in `[[pools]]`.
pub(super) const POOL_TLS: &Section = &Section {
    name: "pools.tls",
    head: "pools.tls",
    form: "tls = { ca_file = \"ca.crt\" }",
    about: "TLS to the pool's backends with `https` URLs, for requests, probes and scrapes. The files are read again every 2 s.",
    keys: &[
        key(
            "ca_file",
            "pools.tls.ca_file",
            || PATH.to_owned(),
            || DefaultText::Words("the authorities that the system trusts"),
            "File with the authorities that sign the backends' certificates, in PEM form. With it, no other is trusted.",
        ),
        key(
            "server_name",
            "pools.tls.server_name",
            || "name or IP address".to_owned(),
            || DefaultText::Words("the URL's host"),
            "The name that the backends' certificates have.",
        ),
        key(
            "cert_file",
            "pools.tls.cert_file",
            || PATH.to_owned(),
            || DefaultText::Words("no client certificate"),
            "File with the certificate that is shown to backends which ask for one. It needs `key_file`.",
        ),
        key(
            "key_file",
            "pools.tls.key_file",
            || PATH.to_owned(),
            || DefaultText::Words("no client certificate"),
            KEY_FILE,
        ),
    ],
    later: &[],
};

/// `tls` of a pool.
#[derive(Clone, Debug, PartialEq)]
pub struct PoolTls {
    /// The file of the backends' authorities, as written.
    pub ca_file: Option<String>,
    /// The name of the backends' certificates, as written.
    pub server_name: Option<String>,
    /// The file of our certificate, as written.
    pub cert_file: Option<String>,
    /// The file of its key, as written.
    pub key_file: Option<String>,
    /// The settings, made of the files' content.
    pub client: ClientTls,
}

impl Serialize for PoolTls {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("PoolTls", 5)?;
        fields.serialize_field("ca_file", &self.ca_file)?;
        fields.serialize_field("server_name", &self.server_name)?;
        fields.serialize_field("cert_file", &self.cert_file)?;
        fields.serialize_field("key_file", &self.key_file)?;
        fields.serialize_field("valid_until", &self.client.validity().map(|validity| validity.until()))?;
        fields.end()
    }
}

/// Reads `tls` of a pool, if the file has it.
pub(super) fn pool(table: &Table<'_>, outside: &mut Outside<'_>) -> Option<PoolTls> {
    if !table.is_written() {
        return None;
    }
    let name = table.get("server_name", None, |value| server_name(values::text(value)?).map(Some));
    let ca = optional(table, "ca_file", outside);
    let certificate = optional(table, "cert_file", outside);
    let private_key = optional(table, "key_file", outside);
    let (ca, certificate, private_key) = (ca.ok()?, certificate.ok()?, private_key.ok()?);
    let pair = match (&certificate, &private_key) {
        (Some(certificate), Some(key)) => Some((certificate.text.as_str(), key.text.as_str())),
        (None, None) => None,
        (Some(_), None) => {
            table.note("pools.tls.key_file: the key of the certificate is not named", "add key_file = \"…\"");
            return None;
        }
        (None, Some(_)) => {
            table.note("pools.tls.cert_file: the certificate of the key is not named", "add cert_file = \"…\"");
            return None;
        }
    };
    match ClientTls::new(ca.as_ref().map(|named| named.text.as_str()), name.value.as_ref(), pair) {
        Ok(client) => Some(PoolTls {
            ca_file: ca.map(|named| named.name),
            server_name: name.value.map(|name| name.to_str().into_owned()),
            cert_file: certificate.map(|named| named.name),
            key_file: private_key.map(|named| named.name),
            client,
        }),
        Err(fault) => {
            note(table, "ca_file", fault);
            None
        }
    }
}

fn server_name(text: &str) -> Result<ServerName<'static>, Wrong> {
    ServerName::try_from(text.to_owned()).map_err(|_| {
        Wrong::because(format!("{} is no host name and no IP address", quoted(text)))
            .hint("write a name of the backends' certificates, such as \"vllm.internal\", without a port")
    })
}
