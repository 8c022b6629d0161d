//! The keys of what clients and operators connect to: listeners, client keys, and what one peer may cost.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use super::super::between::{both, shown};
use super::super::kinds::{SocketPath, Threads};
use super::super::secret::Secret;
use super::super::tls::ListenerTls;
use super::client_key::ClientKey;
use forebay_core::section;
use forebay_core::toml_reader::kinds::{address, boolean, choice, delay, limit, or_off, size, whole};
use forebay_core::toml_reader::notation::size_text;
use forebay_core::toml_reader::{ByHand, DefaultText, Key, Nested, Reload, Table};

section! {
    name: "listen", head: "[listen]", form: "[listen] and its keys below";
    /// The listener for clients, and how the process stops.
    #[derive(Clone, Debug, PartialEq)]
    pub struct Listen {
        /// Address on which clients connect. `0.0.0.0` stands for every interface.
        address: SocketAddr { takes: address(), default: loopback(8080), reload: Restart },
        /// TLS on this address.
        tls: Option<ListenerTls> {
            takes: ByHand("the keys of `listen.tls`"), default: None, said: "plain HTTP", reload: AtOnce
        },
        /// True if every connection begins with the header of the PROXY protocol, version 1 or 2. The address in it is the client's.
        /// Only a proxy may reach the port then, since whoever does may claim any address.
        proxy_protocol: bool { takes: boolean(), default: false, reload: Restart },
        /// Client connections that may be open at once. Forebay answers further ones with 503 and closes them.
        max_connections: Option<usize> { takes: or_off(whole(1..=10_000_000)), default: Some(20_000), reload: Restart },
        /// Time limit for a request's head, from its first byte. A new connection that sends nothing has the same limit.
        header_timeout: Option<Duration> { takes: or_off(limit()), default: Some(Duration::from_secs(10)), reload: Restart },
        /// Time limit for a request's body, from the end of its head. Each 4 KiB that comes adds a second, so only a client that
        /// sends less than that in a second gets a 408. So does one that sends nothing for 10 s.
        body_timeout: Option<Duration> { takes: or_off(limit()), default: Some(Duration::from_secs(30)), reload: Restart },
        /// Time that an idle client connection stays open.
        keep_alive: Option<Duration> { takes: or_off(limit()), default: Some(Duration::from_secs(75)), reload: Restart },
        /// The steps between SIGTERM and the end of the process.
        drain: Drain { takes: Nested, default: Drain::default(), reload: Restart },
        /// Threads that serve clients.
        threads: usize { takes: Threads, default: Threads::auto(), said: "`\"auto\"`: one for each CPU", reload: Restart },
        /// Unix socket through which a new process (`forebay serve --upgrade`) gets the listening sockets. Its folder must be
        /// closed to other users.
        upgrade_socket: Option<PathBuf> {
            takes: SocketPath,
            default: None,
            said: "a socket in `$XDG_RUNTIME_DIR/forebay`, else in `forebay-UID` in the temporary folder",
            reload: Restart,
        },
    }
}

section! {
    name: "listen.drain", head: "listen.drain", form: "drain = { ready_delay = \"0s\", limit = \"10m\" }";
    /// The steps between SIGTERM and the end of the process.
    #[derive(Clone, Debug, PartialEq)]
    pub struct Drain {
        /// Time for which `/ready` answers 503 while new connections are still accepted, so that load balancers can react.
        ready_delay: Duration { takes: delay(), default: Duration::ZERO, reload: Restart },
        /// Time after which the process ends although requests are open. Open streams then get an error event, other
        /// requests a 503.
        limit: Duration { takes: limit(), default: Duration::from_secs(600), reload: Restart },
    }
}

section! {
    name: "admin", head: "[admin]", form: "[admin] and its keys below";
    /// The listener for operators: metrics, readiness, admin API, live page.
    #[derive(Clone, Debug, PartialEq)]
    pub struct Admin {
        /// Address of the admin listener. It needs a port of its own.
        address: SocketAddr { takes: address(), default: loopback(8081), reload: Restart },
        /// TLS on this address.
        tls: Option<ListenerTls> {
            takes: ByHand("the keys of `admin.tls`"), default: None, said: "plain HTTP", reload: AtOnce
        },
        /// File with the bearer token of the admin API. It is required where `admin.address` is not a loopback address and
        /// `admin.tls` asks for no client certificate. `/health` and `/ready` need no token.
        token: Option<Secret> {
            key: "token_file",
            takes: ByHand("path, relative to the configuration file"),
            default: None,
            said: "no token",
            reload: Restart,
        },
    }
}

section! {
    name: "clients", head: "[clients]", form: "[clients] and its keys below", also: [KEYS_FILE];
    /// The clients that may send requests.
    #[derive(Clone, Debug, PartialEq)]
    pub struct Clients {
        /// The keys that have limits, and those whose value is in the environment. A key of `keys_file` without a table has no limits.
        keys: Option<Vec<ClientKey>> {
            takes: ByHand("`[[clients.keys]]`, once for each key with limits"),
            default: None,
            said: "no keys",
            reload: AtOnce,
        },
        /// Clients that get an explanation of the routing decision when they send `x-forebay-explain: 1`. `"loopback"` means
        /// connections from this machine. Behind another proxy on this machine that is everyone.
        explain: Explain { takes: choice(Explain::ALL), default: Explain::Loopback, reload: AtOnce },
    }
}

section! {
    name: "limits", head: "[limits]", form: "[limits] and its keys below", check: one_body_fits;
    /// Limits on the cost of a single client or backend.
    #[derive(Clone, Debug, PartialEq)]
    pub struct Limits {
        /// Largest body of a request. A larger one gets a 413. At most `limits.bodies_in_memory`.
        body: u64 { takes: size(1 << 10..=1 << 40), default: 64 << 20, reload: AtOnce },
        /// Memory for the heads and bodies of all requests together. A request that does not fit gets a 503.
        bodies_in_memory: u64 { takes: size(1 << 10..=1 << 50), default: 2 << 30, reload: Restart },
        /// Largest head of a request. Over HTTP/1.1 it may have a header for each 64 bytes of this, at most 1024.
        head: usize { takes: size(8 << 10..=16 << 20), default: 64 << 10, reload: Restart },
        /// Streams that may be open at once on an HTTP/2 connection. The heads of its requests may hold 8 KiB for each, all together.
        h2_streams: u32 { takes: whole(1..=65_536), default: 256, reload: Restart },
        /// Time for which a client or a backend may read nothing of what is written to it. Then its connection is closed. Where only
        /// a stream of HTTP/2 is not read, that stream is reset.
        write_stall: Option<Duration> { takes: or_off(limit()), default: Some(Duration::from_secs(30)), reload: Restart },
    }
}

/// Notes a limit for one body that is above the limit for all bodies.
fn one_body_fits(limits: &Limits, table: &Table<'_>) {
    let (body, sum) = (table.got("body", limits.body), table.got("bodies_in_memory", limits.bodies_in_memory));
    if !body.wrong && !sum.wrong && body.value > sum.value {
        let message = format!(
            "limits.body: {} for one body is more than {} for all (limits.bodies_in_memory)",
            shown(&body, size_text(body.value)),
            size_text(sum.value)
        );
        both(table.notes(), message, "one body must fit into the sum", (&body.span, &sum.span), "for all bodies");
    }
}

/// `keys_file` of the clients, whose keys are in [`Clients::keys`].
const KEYS_FILE: Key = Key {
    name: "keys_file",
    full: "clients.keys_file",
    takes: || "path, relative to the configuration file".to_owned(),
    default: || DefaultText::Words("no keys"),
    reload: Reload::AtOnce,
    about: "File with the keys that are accepted, one a line: `name = SHA-256 of the key, in hex`. Without it and without \
            `[[clients.keys]]` every client may send requests, and its `authorization` header goes on to the backend.",
};

/// Clients that get an explanation for the header `x-forebay-explain: 1`, which shows how many backends there are, and their load.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Explain {
    /// Nobody.
    Off,
    /// Connections from this machine; behind another proxy on it, everyone.
    #[default]
    Loopback,
    /// Everyone.
    All,
}

impl Explain {
    /// All values, as written in the configuration.
    pub const ALL: [(&str, Explain); 3] =
        [("off", Explain::Off), ("loopback", Explain::Loopback), ("all", Explain::All)];

    /// Returns whether a client at this address may ask.
    #[must_use]
    pub fn allows(self, client: Option<SocketAddr>) -> bool {
        match self {
            Explain::Off => false,
            Explain::Loopback => client.is_some_and(|client| client.ip().to_canonical().is_loopback()),
            Explain::All => true,
        }
    }
}

/// Returns an address on this machine only.
fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_loopback_in_every_form_of_address() {
        let client = |text: &str| Some(format!("{text}:9").parse().unwrap());
        for (address, may) in [
            ("127.0.0.1", true),
            ("127.9.0.1", true),
            ("[::1]", true),
            ("[::ffff:127.0.0.1]", true),
            ("10.0.0.1", false),
        ] {
            assert_eq!(Explain::Loopback.allows(client(address)), may, "{address}");
            assert!(Explain::All.allows(client(address)) && !Explain::Off.allows(client(address)));
        }
        assert!(!Explain::Loopback.allows(None));
    }
}
