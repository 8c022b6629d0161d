//! The keys of what stands around Forebay: web pages of other origins, other proxies, and the paths that clients may use.

use ipnet::IpNet;

use super::super::kinds::{Network, OriginsKind, ServedPath};
use super::super::origins::Origins;
use forebay_core::section;
use forebay_core::toml_reader::kinds::{boolean, list_of};

section! {
    name: "cors", head: "[cors]", form: "[cors] and its keys below";
    /// Web pages of other origins (CORS).
    #[derive(Clone, Debug, PartialEq)]
    pub struct Cors {
        /// Origins whose pages may send requests. `"backend"`: those that the backends allow, as vLLM's `--allowed-origins` says. A list is answered by Forebay, whatever the backends allow; `["*"]` is every origin.
        /// `"off"`: none.
        origins: Origins { takes: OriginsKind, default: Origins::Backend, reload: AtOnce },
    }
}

section! {
    name: "forwarding", head: "[forwarding]", form: "[forwarding] and its keys below";
    /// Other proxies, before and behind Forebay.
    #[derive(Clone, Debug, PartialEq)]
    pub struct Forwarding {
        /// True if backends get `X-Forwarded-For`, `X-Forwarded-Proto`, `X-Forwarded-Host` and `Forwarded`.
        headers: bool { takes: boolean(), default: true, reload: AtOnce },
        /// Networks of proxies before Forebay whose `X-Forwarded-*` and `Forwarded` are believed and extended. From all others these
        /// headers are replaced. The client in the access log is the last address in `X-Forwarded-For` that is not one of theirs.
        trusted_proxies: Vec<IpNet> { takes: list_of(Network), default: Vec::new(), reload: AtOnce },
        /// True if responses have the headers that begin with `x-forebay-`. They name backends and arms.
        own_headers: bool { takes: boolean(), default: true, reload: AtOnce },
    }
}

section! {
    name: "paths", head: "[paths]", form: "[paths] and its keys below";
    /// Paths that clients may use beside [those of vLLM's API](clients.md#paths).
    #[derive(Clone, Debug, PartialEq)]
    pub struct Paths {
        /// Further paths that go to a backend, with any method. A JSON body may name the model. Paths that Forebay answers itself cannot
        /// be listed.
        allow: Vec<String> { takes: list_of(ServedPath), default: Vec::new(), reload: AtOnce },
        /// True if WebSocket connections to `/v1/realtime` go to a backend. The query may name the model: `?model=NAME`.
        realtime: bool { takes: boolean(), default: false, reload: AtOnce },
    }
}
