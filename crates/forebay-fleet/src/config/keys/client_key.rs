//! The keys of `[[clients.keys]]`: what one client key may use.

use std::fmt;

use serde::Serialize;

use super::super::kinds::Rank;
use forebay_core::rate_limit::{Limits, PerMinute};
use forebay_core::routing::wait_room::Priority;
use forebay_core::section;
use forebay_core::toml_reader::kinds::{name, or_off, set, whole};
use forebay_core::toml_reader::{ByHand, DefaultText, Diagnostic, Key, Reload, Table};

section! {
    name: "clients.keys", head: "[[clients.keys]]", form: "[[clients.keys]], once for each key with limits", also: [KEY_ENV],
    check: bursts_have_limits;
    /// A client key with limits. The value of the key is a line of `clients.keys_file`, or in the environment.
    #[derive(Clone, Debug, PartialEq)]
    pub struct KeyConfig {
        /// Name of the key in logs and metrics: that of its line in `clients.keys_file`, unless `key_env` is set.
        name: String { takes: name(), default: String::new(), said: "required", reload: AtOnce },
        /// Requests that the key may send in a minute. Further ones get a 429 with `Retry-After`.
        requests_per_minute: Option<u32> { takes: or_off(whole(1..=1_000_000_000)), default: None, reload: AtOnce },
        /// Requests of that limit that may come at once.
        requests_burst: Option<u32> {
            takes: set(whole(1..=1_000_000_000)),
            default: None,
            said: "a tenth of `requests_per_minute`, at least 1",
            reload: AtOnce,
        },
        /// Tokens, of prompts and answers together, that the key may use in a minute. A prompt is charged by its estimated tokens; at the
        /// end the backend's `usage` takes the place of the estimate. A debt is paid before the next request.
        tokens_per_minute: Option<u32> { takes: or_off(whole(1..=4_000_000_000)), default: None, reload: AtOnce },
        /// Tokens of that limit that may be used at once. A larger prompt waits for a full bucket.
        tokens_burst: Option<u32> {
            takes: set(whole(1..=4_000_000_000)),
            default: None,
            said: "a tenth of `tokens_per_minute`, at least 1",
            reload: AtOnce,
        },
        /// Requests that the key may have under way at once.
        concurrent_requests: Option<u32> { takes: or_off(whole(1..=1_000_000)), default: None, reload: AtOnce },
        /// Models that the key may use, by any of their names. To the key there are no others: they get a 404, and `/v1/models`
        /// leaves them out.
        models: Option<Vec<String>> {
            takes: ByHand("list of texts of 1 to 256 bytes"), default: None, said: "all models", reload: AtOnce
        },
        /// Place of the key in the wait room. Requests of a higher priority are served first, and those of one priority take turns. It
        /// has no other effect.
        priority: Priority { takes: Rank, default: Priority::default(), reload: AtOnce },
    }
}

/// Notes a burst of a limit that is off.
fn bursts_have_limits(config: &KeyConfig, table: &Table<'_>) {
    let bursts = [
        ("requests_burst", config.requests_burst, "requests_per_minute", config.requests_per_minute),
        ("tokens_burst", config.tokens_burst, "tokens_per_minute", config.tokens_per_minute),
    ];
    for (key, burst, of, limit) in bursts {
        let (burst, limit) = (table.got(key, burst), table.got(of, limit));
        if let (Some(span), None, false) = (burst.span, limit.value, limit.wrong) {
            let message = format!("clients.keys.{key}: there is no {of} that it is a part of");
            table.notes().add(Diagnostic::at(span, message).hint(format!("add {of} = …, or leave {key} out")));
        }
    }
}

/// `key_env` of a client key, whose value is kept as its hash.
const KEY_ENV: Key = Key {
    name: "key_env",
    full: "clients.keys.key_env",
    takes: || "name of an environment variable".to_owned(),
    default: || DefaultText::Words("the line of this name in `keys_file`"),
    reload: Reload::AtOnce,
    about: "Environment variable with the key itself. A process keeps its environment, so a new value needs a restart.",
};

/// A client's key, kept as its hash, and what it may use.
#[derive(Clone, PartialEq, Eq, Serialize)]
pub struct ClientKey {
    /// The client's name in logs.
    pub name: String,
    /// SHA-256 of the key.
    #[serde(skip)]
    pub sha256: [u8; 32],
    /// Its limits.
    pub limits: Limits,
    /// The models that it may use; `None`: all.
    pub models: Option<Vec<String>>,
    /// Its place in the wait room.
    pub priority: Priority,
}

impl ClientKey {
    /// A key that may use everything.
    #[must_use]
    pub fn unlimited(name: impl Into<String>, sha256: [u8; 32]) -> ClientKey {
        ClientKey::of(KeyConfig { name: name.into(), ..KeyConfig::default() }, sha256)
    }

    /// The key of a table.
    #[must_use]
    pub fn of(config: KeyConfig, sha256: [u8; 32]) -> ClientKey {
        let per_minute = |limit: Option<u32>, burst| limit.map(|limit| PerMinute { limit, burst });
        let limits = Limits {
            requests: per_minute(config.requests_per_minute, config.requests_burst),
            tokens: per_minute(config.tokens_per_minute, config.tokens_burst),
            concurrent: config.concurrent_requests,
        };
        ClientKey { name: config.name, sha256, limits, models: config.models, priority: config.priority }
    }
}

impl fmt::Debug for ClientKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientKey").field("name", &self.name).finish_non_exhaustive()
    }
}
