//! `kubernetes` in `discover`: the pods of a selector or the endpoints of a Service, and the API server that lists them. What a
//! pod knows by itself (server, account, namespace) is found when the process runs, so that a file can be checked anywhere.

use std::path::PathBuf;

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

use crate::config::files::Outside;
use crate::config::tls::{PATH, key, optional};
use crate::config::url::{BackendUrl, UrlError};
use crate::tls::ClientTls;
use forebay_core::kubernetes::Port;
use forebay_core::toml_reader::kinds::ValueKind;
use forebay_core::toml_reader::notation::Notation;
use forebay_core::toml_reader::{DefaultText, Diagnostic, Section, Table, Value, Wrong, quoted, values};

/// `kubernetes` in `pools.discover`.
pub(in crate::config) const KUBERNETES: &Section = &Section {
    name: "pools.discover.kubernetes",
    head: "pools.discover.kubernetes",
    form: "kubernetes = { selector = \"app=vllm\", port = 8000 }",
    about: "The pods of a selector, or the endpoints of a Service; beside `inference_pool`, the cluster alone. Forebay lists and watches them, with the rights of its ServiceAccount.",
    keys: &[
        key(
            "selector",
            "pools.discover.kubernetes.selector",
            || "label selector, such as `\"app=vllm,layout=tp2\"`".to_owned(),
            || DefaultText::Words("required, unless there is a `service`"),
            "Each pod with these labels is a backend.",
        ),
        key(
            "service",
            "pools.discover.kubernetes.service",
            || "name of a Service".to_owned(),
            || DefaultText::Words("required, unless there is a `selector`"),
            "Each endpoint of the Service is a backend, as its EndpointSlices (`discovery.k8s.io/v1`) list them.",
        ),
        key(
            "namespace",
            "pools.discover.kubernetes.namespace",
            || "name of a namespace".to_owned(),
            || DefaultText::Words("Forebay's own"),
            "The namespace of the pods or the Service.",
        ),
        key(
            "port",
            "pools.discover.kubernetes.port",
            || "port number, or name of a port".to_owned(),
            || DefaultText::Words("required, unless there is an `inference_pool`"),
            "The port of the pods. A name is that of a port of a pod's containers, or of the Service.",
        ),
        key(
            "api",
            "pools.discover.kubernetes.api",
            || "URL, such as `\"https://10.96.0.1:443\"`".to_owned(),
            || DefaultText::Words("the cluster that Forebay runs in"),
            "The API server. In a pod the cluster tells it.",
        ),
        key(
            "token_file",
            "pools.discover.kubernetes.token_file",
            || PATH.to_owned(),
            || DefaultText::Words("the ServiceAccount's; with `api` none"),
            "File with the token that Forebay shows to the API server. It is read for each request.",
        ),
        key(
            "ca_file",
            "pools.discover.kubernetes.ca_file",
            || PATH.to_owned(),
            || DefaultText::Words("the ServiceAccount's; with `api` the authorities that the system trusts"),
            "File with the authorities that sign the API server's certificate, in PEM form.",
        ),
    ],
    later: &[],
};

/// The pods to list, and the server that lists them.
#[derive(Clone, Debug, PartialEq)]
pub struct Kubernetes {
    /// The pods.
    pub whom: Whom,
    /// Their namespace; none: Forebay's own.
    pub namespace: Option<String>,
    /// Their ports, each a server of its own. Of an InferencePool, which names them itself: none.
    pub ports: Vec<Port>,
    /// The API server; none: that of the cluster that Forebay runs in.
    pub api: Option<BackendUrl>,
    /// The file of the token; none: the ServiceAccount's.
    pub token_file: Option<PathBuf>,
    /// The file of the server's authorities as written, and what it holds; none: the ServiceAccount's.
    pub ca: Option<(String, ClientTls)>,
}

/// The pods that are listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Whom {
    /// The pods that a label selector selects.
    Selector(String),
    /// The endpoints of a Service.
    Service(String),
    /// The pods of an InferencePool.
    Pool(String),
}

impl Kubernetes {
    /// Returns what is listed, in a few words.
    #[must_use]
    pub fn target(&self) -> String {
        let whom = match &self.whom {
            Whom::Selector(selector) => format!("pods of {selector}"),
            Whom::Service(service) => format!("endpoints of {service}"),
            Whom::Pool(pool) => format!("InferencePool {pool}"),
        };
        match &self.namespace {
            Some(namespace) => format!("{whom} in {namespace}"),
            None => whom,
        }
    }
}

impl Serialize for Kubernetes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_map(None)?;
        match &self.whom {
            Whom::Selector(selector) => fields.serialize_entry("selector", selector)?,
            Whom::Service(service) => fields.serialize_entry("service", service)?,
            // Beside this, as it is written.
            Whom::Pool(_) => {}
        }
        fields.serialize_entry("namespace", &self.namespace)?;
        for port in &self.ports {
            match port {
                Port::Number(number) => fields.serialize_entry("port", number)?,
                Port::Name(name) => fields.serialize_entry("port", name)?,
                // Nothing is sent there.
                Port::Any => {}
            }
        }
        fields.serialize_entry("api", &self.api)?;
        fields.serialize_entry("token_file", &self.token_file)?;
        fields.serialize_entry("ca_file", &self.ca.as_ref().map(|(name, _)| name))?;
        fields.end()
    }
}

/// Reads `kubernetes` of the `discover` in `owner`. `None`: it is wrong, which was noted.
pub(super) fn read(owner: &Table<'_>, outside: &mut Outside<'_>) -> Option<Kubernetes> {
    let table = owner.table("kubernetes", KUBERNETES);
    if !table.is_written() {
        return None;
    }
    let selector = table.get("selector", None, |value| label_selector(value).map(Some));
    let service = table.get("service", None, |value| dns_label(value).map(Some));
    // Never guessed: a pod may have several, and a request to a wrong one is a failure like any other.
    let port = table.get("port", None, |value| read_port(value).map(Some));
    if port.span.is_none() {
        table.note("pools.discover.kubernetes.port: the port is not named", "add port = 8000, the port of the pods");
    }
    let cluster = cluster(&table, outside);
    let whom = match (selector.span, service.span) {
        (Some(_), None) => Whom::Selector(selector.value?),
        (None, Some(_)) => Whom::Service(service.value?),
        (Some(first), Some(second)) => {
            let message = "pools.discover.kubernetes: it names pods by a selector or by a service, not both";
            let diagnostic = Diagnostic::at(second, message).also(Some(first), "the selector");
            table.notes().add(diagnostic.hint("leave one of the two out"));
            return None;
        }
        (None, None) => {
            let hint = "add selector = \"app=vllm\", the labels of the pods, or service = \"vllm\"";
            table.note("pools.discover.kubernetes: it names no pods", hint);
            return None;
        }
    };
    Some(cluster?(whom, vec![port.value?]))
}

/// Reads the `discover` in `owner` that names an InferencePool: its `kubernetes` may say where that is. `None`: it is wrong, which was
/// noted, here or where `pool` was read.
pub(super) fn of_pool(owner: &Table<'_>, pool: Option<String>, outside: &mut Outside<'_>) -> Option<Kubernetes> {
    let told = ("the InferencePool names its pods and ports itself", "leave it out, or leave inference_pool out");
    let cluster = cluster_alone(&owner.table("kubernetes", KUBERNETES), "pools.discover.kubernetes", told, outside)?;
    Some(cluster(Whom::Pool(pool?), Vec::new()))
}

/// Reads the `kubernetes` in `owner` that says in which cluster a Service of Forebay's own is, if it must be said. `None`: it is wrong,
/// which was noted.
pub(super) fn of_service(owner: &Table<'_>, service: &str, outside: &mut Outside<'_>) -> Option<Kubernetes> {
    let told = ("the Service is named beside it, and no port matters", "leave it out");
    let cluster = cluster_alone(&owner.table("kubernetes", KUBERNETES), "replicas.kubernetes", told, outside)?;
    Some(cluster(Whom::Service(service.to_owned()), vec![Port::Any]))
}

/// Reads a table that may say no more than which cluster and which namespace are meant. `why` and `hint` are for one that names pods.
fn cluster_alone(
    table: &Table<'_>,
    full: &str,
    (why, hint): (&str, &str),
    outside: &mut Outside<'_>,
) -> Option<impl FnOnce(Whom, Vec<Port>) -> Kubernetes + use<>> {
    let mut fits = true;
    for key in ["selector", "service", "port"] {
        if let Some(span) = table.key_span(key) {
            table.notes().add(Diagnostic::at(span, format!("{full}.{key}: {why}")).hint(hint));
            fits = false;
        }
    }
    cluster(table, outside).filter(|_| fits)
}

/// Reads where the API server is and which namespace is meant. Returns what makes a source of that, for given pods.
fn cluster(table: &Table<'_>, outside: &mut Outside<'_>) -> Option<impl FnOnce(Whom, Vec<Port>) -> Kubernetes + use<>> {
    let namespace = table.get("namespace", None, |value| dns_label(value).map(Some));
    let api = table.get("api", None, |value| api_url(value).map(Some));
    let token_file = table.get("token_file", None, |value| values::line(4096)(value).map(Some));
    let token_file = match (token_file.value, token_file.span) {
        (Some(name), Some(span)) => {
            Some(outside.present("pools.discover.kubernetes.token_file", &name, span, table.notes())?)
        }
        _ => None,
    };
    let ca = match optional(table, "ca_file", outside) {
        Ok(None) => None,
        Ok(Some(named)) => match ClientTls::new(Some(&named.text), None, None) {
            Ok(tls) => Some((named.name, tls)),
            Err(fault) => {
                crate::config::tls::note(table, "ca_file", fault);
                return None;
            }
        },
        Err(()) => return None,
    };
    let (namespace, api) = (namespace.value, api.value);
    Some(move |whom, ports| Kubernetes { whom, namespace, ports, api, token_file, ca })
}

/// Reads a label selector. The API server knows its grammar; here are the characters that it may have.
fn label_selector(value: &Value<'_>) -> Result<String, Wrong> {
    let text = values::line(1024)(value)?;
    let is_usable = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./=!,() ".contains(&byte);
    if text.bytes().all(is_usable) {
        return Ok(text);
    }
    Err(Wrong::because(format!("{} is no label selector", quoted(&text)))
        .hint("write labels and values, such as \"app=vllm,layout=tp2\" or \"app in (vllm, vllm-next)\""))
}

/// Reads the name of an object that may have dots in it.
pub(super) fn dns_name(value: &Value<'_>) -> Result<String, Wrong> {
    let text = values::text(value)?;
    if text.len() <= 253 && text.split('.').all(is_label) {
        return Ok(text.to_owned());
    }
    Err(Wrong::because(format!("{} is no name that Kubernetes gives", quoted(text)))
        .hint("lower-case letters, digits, `-` and dots, such as \"vllm-qwen\""))
}

/// Returns whether Kubernetes would give this name.
fn is_label(text: &str) -> bool {
    let is_inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=63).contains(&text.len()) && text.bytes().all(is_inner) && !text.starts_with('-') && !text.ends_with('-')
}

/// The name of a Service.
pub(in crate::config) struct ServiceName;

impl ValueKind for ServiceName {
    type Of = String;

    fn read(&self, value: &Value<'_>) -> Result<String, Wrong> {
        dns_label(value)
    }

    fn written(&self, value: &String) -> Notation {
        Notation::Text(value.clone())
    }

    fn takes(&self) -> String {
        "name of a Service".to_owned()
    }
}

/// Reads the name of a Service or a namespace.
fn dns_label(value: &Value<'_>) -> Result<String, Wrong> {
    let text = values::text(value)?;
    if is_label(text) {
        return Ok(text.to_owned());
    }
    Err(Wrong::because(format!("{} is no name that Kubernetes gives", quoted(text)))
        .hint("lower-case letters, digits and `-`, at most 63 of them, such as \"vllm\""))
}

fn read_port(value: &Value<'_>) -> Result<Port, Wrong> {
    const HINT: &str = "write the number, such as 8000, or the port's name, such as \"http\"";
    let Ok(text) = values::text(value) else {
        return values::whole(1..=65_535_u32)(value)
            .map(|number| Port::Number(u16::try_from(number).expect("it is at most 65535")))
            .map_err(|wrong| wrong.hint(HINT));
    };
    let is_inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    // As the Kubernetes API has it: a name with a letter in it, so that no name is a number.
    let is_name = (1..=63).contains(&text.len())
        && text.bytes().all(is_inner)
        && text.bytes().any(|byte| byte.is_ascii_lowercase());
    if is_name {
        Ok(Port::Name(text.to_owned()))
    } else {
        Err(Wrong::because(format!("{} is no port", quoted(text))).hint(HINT))
    }
}

fn api_url(value: &Value<'_>) -> Result<BackendUrl, Wrong> {
    let text = values::text(value)?;
    match text.parse::<BackendUrl>() {
        Ok(url) if url.socket().is_none() => Ok(url),
        Ok(_) => Err(Wrong::because("the API server has no socket").hint("write it as \"https://host:port\"")),
        Err(UrlError::UserInfo) => {
            Err(Wrong::because(UrlError::UserInfo.to_string()).hint("leave it out; token_file names the token"))
        }
        Err(UrlError::NoScheme | UrlError::Scheme) => {
            Err(Wrong::because(format!("{} is no URL of an API server", quoted(text)))
                .hint("write it as \"https://host:port\""))
        }
        Err(error) => Err(Wrong::because(error.to_string()).hint("write it as \"https://host:port\"")),
    }
}
