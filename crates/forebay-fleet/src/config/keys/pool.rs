//! The keys of `[[pools]]`: models with their names and policy, arms with their shares, backends with their URLs.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::super::affinity::Affinity;
use super::super::discover::{Discover, OF_POOL};
use super::super::kinds::{HeaderName, LineOrEmpty, Policy, Url};
use super::super::pool_tls::PoolTls;
use super::super::secret::Secret;
use super::super::unknown_models::UnknownModels;
use super::super::url::BackendUrl;
use forebay_core::routing::policy::PolicyName;
use forebay_core::section;
use forebay_core::toml_reader::kinds::{boolean, choice, hinted, limit, line, name, number, or_off, whole};
use forebay_core::toml_reader::{ByHand, DefaultText, Key, Nested, Reload, Section, ValueKind};

section! {
    name: "pools", head: "[[pools]]", form: "[[pools]], once for each model", also: [BACKENDS, OF_POOL];
    /// A pool: the backends that serve one model. A file has at least one.
    #[derive(Clone, Debug, PartialEq)]
    pub struct PoolConfig {
        /// Name of the model, as its backends call it. No two pools may share a name or an alias.
        model: String { takes: line(256), default: String::new(), said: "required", reload: AtOnce },
        /// Other names for the model that clients may use.
        aliases: Vec<String> {
            takes: ByHand("list of texts of 1 to 256 bytes"), default: Vec::new(), said: "`[]`", reload: AtOnce
        },
        /// The way to handle a request for a model that no backend lists. `"try"`: a backend of this pool is asked, which may load
        /// an adapter at first use. `"refuse"`: the client gets a 404. At most one pool may try.
        unknown_models: UnknownModels {
            takes: choice(UnknownModels::ALL),
            default: UnknownModels::default(),
            said: "`\"try\"` where there is one pool, else `\"refuse\"`",
            reload: AtOnce,
        },
        /// The policy that chooses a backend. See the [table of policies](#policies).
        policy: PolicyName {
            takes: Policy,
            default: PolicyName::default(),
            reload: AtOnce,
        },
        /// The facts that a request is recognised by, to send it where the beginning of its prompt is cached. `"session"`: its session, and
        /// a prompt that begins like an earlier one. `"prefix"`: the prompt alone, for session keys that say nothing of the
        /// prompt. `"off"`: nothing. [routing.md](routing.md) explains it.
        affinity: Affinity { takes: choice(Affinity::ALL), default: Affinity::default(), reload: AtOnce },
        /// The fact that makes requests a session. A session stays in its arm. A request without one is assigned by itself.
        session: SessionKey {
            takes: ByHand("one key of `pools.session`"),
            default: SessionKey::Header("x-session-id".to_owned()),
            said: "`{ header = \"x-session-id\" }`",
            reload: AtOnce,
        },
        /// TLS to the backends that have `https` URLs.
        tls: Option<PoolTls> {
            takes: ByHand("the keys of `pools.tls`"),
            default: None,
            said: "the authorities that the system trusts, and no client certificate",
            reload: AtOnce,
        },
        /// Salt of the split of sessions among arms, and of prompt hashes. Another salt gives another split. Several Forebays
        /// with one salt split alike.
        split_salt: String { takes: LineOrEmpty(256), default: String::new(), reload: AtOnce },
        /// True if a request may go to another arm when no backend of its own can take it.
        cross_arm: bool { takes: boolean(), default: true, reload: AtOnce },
        /// Sequences that one backend may have in flight, as vLLM counts them. Beyond that requests wait in the wait room.
        backend_max_in_flight: Option<u32> { takes: or_off(whole(1..=1_000_000)), default: None, reload: AtOnce },
        /// A place where requests wait while every backend is at `backend_max_in_flight`.
        wait_room: WaitRoom { takes: Nested, default: WaitRoom::default(), reload: AtOnce },
        /// The arms: parts of the pool that are compared. A pool without `[[pools.arms]]` has one arm, `default`.
        arms: Vec<ArmConfig> {
            takes: ByHand("`[[pools.arms]]`, once for each arm"),
            default: Vec::new(),
            said: "one arm with the pool's `backends`",
            reload: AtOnce,
        },
    }
}

/// `backends` of a pool, which becomes its one arm.
const BACKENDS: Key = Key {
    name: "backends",
    full: "pools.backends",
    takes: || "list of `{ url = \"http://host:port\" }`".to_owned(),
    default: || DefaultText::Words("required, unless the pool has arms or `discover`"),
    reload: Reload::AtOnce,
    about: "The pool's backends. A pool with arms lists them in its arms.",
};

impl PoolConfig {
    /// A pool with the default policy and one arm, `default`, over `backends`.
    #[must_use]
    pub fn of(model: impl Into<String>, backends: Vec<BackendConfig>) -> PoolConfig {
        PoolConfig { model: model.into(), arms: vec![ArmConfig::of("default", backends)], ..PoolConfig::default() }
    }
}

/// The fact that makes requests a session.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SessionKey {
    /// The value of this request header, in lower case.
    Header(String),
    /// The text in this member of a JSON body.
    Body(String),
}

/// `session` in `[[pools]]`: one of its keys makes a [`SessionKey`].
pub(in super::super) const SESSION: &Section = &Section {
    name: "pools.session",
    head: "pools.session",
    form: "session = { header = \"x-session-id\" }",
    about: "What makes requests a session: a header or a member of the body, not both.",
    keys: &[
        Key {
            name: "header",
            full: "pools.session.header",
            takes: || HeaderName.takes(),
            default: || DefaultText::Words("`\"x-session-id\"`, unless `body` is set"),
            reload: Reload::AtOnce,
            about: "Requests with the same value of this header are a session.",
        },
        Key {
            name: "body",
            full: "pools.session.body",
            takes: || line(64).takes(),
            default: || DefaultText::Words("not set"),
            reload: Reload::AtOnce,
            about: "Requests with the same text in this member of their JSON body are a session. An example is `user`.",
        },
    ],
    later: &[],
};

section! {
    name: "pools.wait_room", head: "pools.wait_room", form: "wait_room = { size = 512, timeout = \"30s\" }";
    /// The place where requests wait while every backend of the pool is at `backend_max_in_flight`. Client keys take turns, and so
    /// do the sessions of a key.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct WaitRoom {
        /// Requests that may wait at once. Further ones get a 503 with `Retry-After`. With `0` none waits.
        size: usize {
            takes: hinted(whole(0..=100_000), "requests that wait at once; 0 refuses them instead"),
            default: 512,
            reload: AtOnce,
        },
        /// Longest time that a request waits in all. Then it gets a 503.
        timeout: Duration { takes: limit(), default: Duration::from_secs(30), reload: AtOnce },
    }
}

section! {
    name: "pools.arms", head: "[[pools.arms]]", form: "[[pools.arms]], once for each arm";
    /// An arm: a labelled part of a pool, with a share of its sessions.
    #[derive(Clone, Debug, PartialEq)]
    pub struct ArmConfig {
        /// Name of the arm in metrics, logs and headers. No two arms of a pool may share it.
        name: String { takes: name(), default: name.into(), said: "required", reload: AtOnce },
        /// Its part of the sessions, relative to the shares of the other arms. Write it for every arm or for none.
        share: f64 { takes: number(0.0..=1e6), default: 1.0, reload: AtOnce },
        /// GPUs that the arm occupies, for figures per GPU.
        gpus: u32 { takes: whole(1..=65_536), default: one_each(&backends), said: "one for each backend", reload: AtOnce },
        /// The arm's backends. A URL may appear once in a pool.
        backends: Vec<BackendConfig> {
            takes: ByHand("list of `{ url = \"http://host:port\" }`"),
            default: backends,
            said: "required, unless there is `discover`",
            reload: AtOnce,
        },
        /// A source that names the arm's backends, in place of `backends`.
        discover: Option<Discover> {
            takes: ByHand("the keys of `pools.discover`"),
            default: None,
            said: "the arm lists its `backends`",
            reload: AtOnce,
        },
    }

    /// An arm with share 1 and a GPU for each backend.
    pub fn of(name: impl Into<String>, backends: Vec<BackendConfig>);
}

fn one_each(backends: &[BackendConfig]) -> u32 {
    u32::try_from(backends.len()).unwrap_or(u32::MAX).max(1)
}

section! {
    name: "backends", head: "a backend", form: "each backend as { url = \"http://127.0.0.1:8001\" }", also: [KEY_FILE];
    /// A backend: one vLLM server, as an item of `backends`.
    #[derive(Clone, Debug, PartialEq)]
    pub struct BackendConfig {
        /// The URL that the server listens at. With a prefix, as in `http://gateway/gpu-1`, every path of a request comes after it.
        /// `https` speaks TLS, by `pools.tls`. A Unix socket is `unix:/path`.
        url: BackendUrl { takes: Url, default: url, said: "required", reload: AtOnce },
        /// The server's speed relative to the other backends, until Forebay has measured it.
        speed: f64 {
            takes: hinted(number(0.01..=100.0), "a speed is relative to the other backends: 1.0, or 1.4 for a faster one"),
            default: 1.0,
            reload: AtOnce,
        },
        /// Environment variable with the key that Forebay sends to the server. The file itself holds no keys. A process keeps its
        /// environment, so a new value needs a restart.
        key: Option<Secret> {
            key: "key_env",
            takes: ByHand("name of an environment variable"),
            default: None,
            said: "no key",
            reload: AtOnce,
        },
        /// True if the server finishes its requests and gets no new ones.
        drain: bool { takes: boolean(), default: false, reload: AtOnce },
    }

    /// A backend of speed 1 without a key.
    pub fn of(url: BackendUrl);
}

/// The other place of a backend's key.
const KEY_FILE: Key = Key {
    name: "key_file",
    full: "backends.key_file",
    takes: || "path, relative to the configuration file".to_owned(),
    default: || DefaultText::Words("no key"),
    reload: Reload::AtOnce,
    about: "File with the key that Forebay sends to the server, in place of `key_env`. A new key in it takes effect without a restart.",
};
