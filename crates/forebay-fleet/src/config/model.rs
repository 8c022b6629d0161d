//! The configuration as the rest of Forebay sees it: every default filled in, every value in range, nothing left to check.
//! Plain data, compared as a whole by a reload. Never shows a secret: `Debug` and `Serialize` print `[redacted]`, so that
//! the serialised form is what `/api/config` may answer.

use serde::Serialize;

use forebay_core::toml_reader::{Change, Key, Keys, Section, Table};

pub use super::affinity::Affinity;
pub use super::discover::{Discover, DiscoverySource, DnsName, Kubernetes, Whom};
pub use super::keys::{
    AccessLogFormat, Admin, ArmConfig, BackendConfig, Budget, ClientKey, Clients, Cors, Drain, Ejection, Explain,
    Forwarding, HealthConfig, KeyConfig, Limits, Listen, Log, LogFormat, Observe, Paths, Picker, PoolConfig, Replicas,
    Retry, ScrapeConfig, SessionKey, Slo, Stream, Trace, TracedErrors, UsageMode, WaitRoom, log_filter,
};
pub use super::origins::Origins;
pub use super::pool_tls::PoolTls;
pub use super::secret::Secret;
pub use super::tls::{ListenerTls, PickerTls};
pub use super::unknown_models::UnknownModels;
pub use super::url::{BackendUrl, UrlError};

/// Defines the file's sections, but for the pools, which may occur several times: the configuration, and what is done to each.
macro_rules! sections {
    ($($(#[doc = $about:literal])+ $section:ident: $type:ty),+ $(,)?) => {
        /// Everything that can be configured. The default has the values of the documentation and no pools.
        #[derive(Clone, Debug, Default, PartialEq, Serialize)]
        pub struct Config {
            $($(#[doc = $about])+ pub $section: $type,)+
            /// One for each model; empty only in the default, never in a file that was read.
            pub pools: Vec<PoolConfig>,
        }

        /// The sections of a file that is read.
        pub(super) struct Tables<'a> {
            $(pub(super) $section: Table<'a>,)+
        }

        /// The file itself.
        pub(super) const ROOT: &Section = &Section {
            name: "",
            head: "the file",
            form: "sections and their keys",
            about: "",
            keys: &[
                $(Key { about: concat!($($about),+), ..Key::named(stringify!($section)) },)+
                Key { about: "The pools: which backends serve which models.", ..Key::named("pools") },
            ],
            later: &[],
        };

        impl<'a> Tables<'a> {
            /// Opens the sections of the file at `root`.
            pub(super) fn open(root: &Table<'a>) -> Tables<'a> {
                Tables { $($section: root.table(stringify!($section), <$type>::SECTION),)+ }
            }
        }

        impl Config {
            /// Returns what the sections say, without the pools and without what files hold.
            pub(super) fn read(tables: &Tables<'_>) -> Config {
                let mut config = Config::default();
                $(config.$section.read(&tables.$section);)+
                config
            }

            /// Returns the keys outside the pools in which `new` differs from this.
            pub(super) fn changes(&self, new: &Config) -> Vec<Change> {
                let mut changes = Vec::new();
                $(changes.extend(self.$section.changes(&new.$section));)+
                changes
            }

            /// Takes over from `old` the values that only a restart may change.
            pub(super) fn keep(&mut self, old: &Config) {
                $(self.$section.keep(&old.$section);)+
            }
        }
    };
}

sections! {
    /// The listener for clients, and how the process stops.
    listen: Listen,
    /// The listener for operators.
    admin: Admin,
    /// The endpoint picker of an Envoy gateway.
    epp: Picker,
    /// The log of events and the access log.
    log: Log,
    /// The clients that may send requests.
    clients: Clients,
    /// Paths that clients may use beside those of vLLM's API.
    paths: Paths,
    /// Web pages of other origins (CORS).
    cors: Cors,
    /// Other proxies, before and behind Forebay.
    forwarding: Forwarding,
    /// Limits on the cost of a single client or backend.
    limits: Limits,
    /// Time limits of an answer, and what Forebay adds to a request.
    stream: Stream,
    /// Rules for an attempt that fails before the first token.
    retry: Retry,
    /// Rules for ejecting a backend, and for its return.
    health: HealthConfig,
    /// Rules for reading the backends' own `/metrics`.
    scrape: ScrapeConfig,
    /// Replicas of Forebay before the same backends. They share nothing at run time.
    replicas: Replicas,
    /// Limits that count as good service.
    slo: Slo,
    /// Traces of requests, in the form of OpenTelemetry.
    trace: Trace,
}
