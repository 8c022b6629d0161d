//! `discover` of a pool or an arm: the source that names its backends in place of a list. Says where to ask, and asks nobody:
//! `forebay check` needs no network and no cluster.

mod kubernetes;
mod name;

use std::time::Duration;

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

use super::backend_key::backend_key;
use super::files::Outside;
use super::secret::Secret;
use super::tls::{PATH, key};
use forebay_core::toml_reader::kinds::{ValueKind, choice, interval, whole};
use forebay_core::toml_reader::notation::duration_text;
use forebay_core::toml_reader::{DefaultText, Diagnostic, Key, Section, Table, values};

pub(super) use kubernetes::{KUBERNETES, ServiceName};
pub use kubernetes::{Kubernetes, Whom};
pub use name::DnsName;

const INTERVAL: Duration = Duration::from_secs(5);
const MAX_BACKENDS: u32 = 256;
/// Replicas of Forebay that are counted at most.
const MOST_REPLICAS: usize = 1_000;
const SCHEMES: [(&str, bool); 2] = [("http", false), ("https", true)];
const FORM: &str = "write discover = { dns = \"vllm.example:8000\" }, discover = { kubernetes = { selector = \"app=vllm\", port = 8000 } } or discover = { inference_pool = \"m\" }";

/// `discover` of a pool, whose one arm then has what is found.
pub(super) const OF_POOL: Key = key(
    "discover",
    "pools.discover",
    || "the keys of `pools.discover`".to_owned(),
    || DefaultText::Words("the pool lists its `backends`"),
    "A source that names the pool's backends, in place of `backends`. A pool with arms has it in its arms.",
);

/// `discover` in `[[pools]]` and `[[pools.arms]]`.
pub(super) const DISCOVER: &Section = &Section {
    name: "pools.discover",
    head: "pools.discover",
    form: "discover = { dns = \"vllm.example:8000\" }",
    about: "A source that names the backends of a pool or an arm: a name of the DNS, Kubernetes, or an InferencePool in it. [Discovery](operations.md#discovery) explains it.",
    keys: &[
        key(
            "dns",
            "pools.discover.dns",
            || "host name and port, such as `\"vllm.example:8000\"`".to_owned(),
            || DefaultText::Words("not set"),
            "Each address of the name is a backend. The name is their `Host`, and the name that their certificates have. Of a name with addresses of IPv4 and IPv6, those of IPv4 count.",
        ),
        key(
            "interval",
            "pools.discover.interval",
            || ValueKind::takes(&interval()),
            || DefaultText::Words("`\"5s\"`"),
            "Time between two questions to the DNS. Kubernetes tells of changes by itself.",
        ),
        key(
            "kubernetes",
            "pools.discover.kubernetes",
            || "the keys of `pools.discover.kubernetes`".to_owned(),
            || DefaultText::Words("not set"),
            "Pods or endpoints of a Service, as the API server of a cluster lists them. Beside `inference_pool` it names the namespace and the API server alone.",
        ),
        key(
            "inference_pool",
            "pools.discover.inference_pool",
            || "name of an InferencePool".to_owned(),
            || DefaultText::Words("not set"),
            "Each pod of this InferencePool (`inference.networking.k8s.io/v1`) is a backend, at each of its target ports. Forebay follows its changes, and writes nothing to it.",
        ),
        key(
            "scheme",
            "pools.discover.scheme",
            || choice(SCHEMES).takes(),
            || DefaultText::Words("`\"http\"`"),
            "The way to the backends. `\"https\"` speaks TLS, by `pools.tls`.",
        ),
        key(
            "max_backends",
            "pools.discover.max_backends",
            || ValueKind::takes(&whole::<u32>(1..=4096)),
            || DefaultText::Words("`256`"),
            "Backends that are taken at most, since each is a label of metrics. Forebay warns when it leaves some out.",
        ),
        key(
            "key_env",
            "pools.discover.key_env",
            || "name of an environment variable".to_owned(),
            || DefaultText::Words("no key"),
            "Environment variable with the key that Forebay sends to the backends.",
        ),
        key(
            "key_file",
            "pools.discover.key_file",
            || PATH.to_owned(),
            || DefaultText::Words("no key"),
            "File with that key, in place of `key_env`. A new key in it takes effect without a restart.",
        ),
    ],
    later: &[],
};

/// The source of an arm's backends, and how they are met.
#[derive(Clone, Debug, PartialEq)]
pub struct Discover {
    /// The one to ask.
    pub source: DiscoverySource,
    /// True if the backends speak TLS.
    pub https: bool,
    /// Backends that are taken at most.
    pub max_backends: usize,
    /// The key that the backends want.
    pub key: Option<Secret>,
    /// True if the arm's `gpus` are one for each backend, as many as are found.
    pub gpus_each: bool,
}

/// The one to ask for backends.
#[derive(Clone, Debug, PartialEq)]
pub enum DiscoverySource {
    /// The resolver of this host.
    Dns {
        /// The name, with the port of its backends.
        name: DnsName,
        /// The time between two questions.
        interval: Duration,
    },
    /// The API server of a cluster.
    Kubernetes(Box<Kubernetes>),
}

impl Discover {
    /// The source that counts the replicas of Forebay, by the endpoints of their Service.
    #[must_use]
    pub fn of_replicas(service: Kubernetes) -> Discover {
        let source = DiscoverySource::Kubernetes(Box::new(service));
        Discover { source, https: false, max_backends: MOST_REPLICAS, key: None, gpus_each: false }
    }

    /// Returns whether it follows an InferencePool.
    #[must_use]
    pub fn is_of_pool(&self) -> bool {
        matches!(&self.source, DiscoverySource::Kubernetes(kubernetes) if matches!(kubernetes.whom, Whom::Pool(_)))
    }
}

impl DiscoverySource {
    /// The word for the kind of source, a metric label.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match self {
            DiscoverySource::Dns { .. } => "dns",
            DiscoverySource::Kubernetes(kubernetes) => match kubernetes.whom {
                Whom::Selector(_) | Whom::Service(_) => "kubernetes",
                Whom::Pool(_) => "inference_pool",
            },
        }
    }

    /// Returns what is asked for, in a few words.
    #[must_use]
    pub fn target(&self) -> String {
        match self {
            DiscoverySource::Dns { name, .. } => name.to_string(),
            DiscoverySource::Kubernetes(kubernetes) => kubernetes.target(),
        }
    }
}

impl Serialize for Discover {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_map(None)?;
        match &self.source {
            DiscoverySource::Dns { name, interval } => {
                fields.serialize_entry("dns", &name.to_string())?;
                fields.serialize_entry("interval", &duration_text(*interval))?;
            }
            DiscoverySource::Kubernetes(kubernetes) => {
                if let Whom::Pool(name) = &kubernetes.whom {
                    fields.serialize_entry("inference_pool", name)?;
                }
                fields.serialize_entry("kubernetes", kubernetes)?;
            }
        }
        fields.serialize_entry("scheme", if self.https { "https" } else { "http" })?;
        fields.serialize_entry("max_backends", &self.max_backends)?;
        fields.serialize_entry("key", &self.key)?;
        fields.end()
    }
}

/// Reads `service` and `kubernetes` of `[replicas]`: the Service whose endpoints are the replicas. `None`: there is none, or it is wrong,
/// which was noted.
pub(super) fn of_replicas(table: &Table<'_>, service: Option<&str>, outside: &mut Outside<'_>) -> Option<Kubernetes> {
    let Some(service) = service else {
        // A service that is wrong was noted already.
        if let (Some(span), None) = (table.key_span("kubernetes"), table.key_span("service")) {
            let message = "replicas.kubernetes: it says where a Service is, and none is named";
            table
                .notes()
                .add(Diagnostic::at(span, message).hint("add service = \"forebay\", the Service of Forebay itself"));
        }
        return None;
    };
    kubernetes::of_service(table, service, outside)
}

/// Reads `discover` of the pool or arm in `owner`. `None`: it is wrong, which was noted.
pub(super) fn discover(owner: &Table<'_>, outside: &mut Outside<'_>) -> Option<Discover> {
    let table = owner.table("discover", DISCOVER);
    if !table.is_written() {
        return None;
    }
    let max_backends = table.or("max_backends", MAX_BACKENDS, values::whole(1..=4096_u32));
    let https = table.or("scheme", false, |value| choice(SCHEMES).read(value));
    // All keys are read before any rule between them, so that every mistake is told at once.
    let key = backend_key(&table, outside);
    let interval_got = table.get("interval", INTERVAL, |value| interval().read(value));
    let dns = table.get("dns", None, |value| name::read(value).map(Some));
    let pool = table.get("inference_pool", None, |value| kubernetes::dns_name(value).map(Some));
    let kubernetes = match &pool.span {
        Some(_) => Some(kubernetes::of_pool(&table, pool.value, outside)),
        None => table.value("kubernetes").map(|_| kubernetes::read(&table, outside)),
    };
    let source = match (dns.span, kubernetes) {
        (Some(_), None) => DiscoverySource::Dns { name: dns.value?, interval: interval_got.value },
        (None, Some(kubernetes)) => {
            if let Some(span) = table.key_span("interval") {
                let message = "pools.discover.interval: Kubernetes tells of changes by itself";
                table.notes().add(Diagnostic::at(span, message).hint("leave it out"));
            }
            DiscoverySource::Kubernetes(Box::new(kubernetes?))
        }
        (Some(span), Some(_)) => {
            let message = "pools.discover: it asks the DNS or Kubernetes, not both";
            table.notes().add(Diagnostic::at(span, message).hint("leave one out, or give each an arm of its own"));
            return None;
        }
        (None, None) => {
            table.note("pools.discover: it says neither dns nor kubernetes nor inference_pool", FORM);
            return None;
        }
    };
    Some(Discover { source, https, max_backends: max_backends as usize, key, gpus_each: true })
}
