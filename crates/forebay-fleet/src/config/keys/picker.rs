//! The keys of the endpoint picker: where gateways ask it, and how much of an answer it watches.

use std::net::SocketAddr;

use serde::Serialize;

use super::super::tls::PickerTls;
use forebay_core::section;
use forebay_core::toml_reader::ByHand;
use forebay_core::toml_reader::kinds::{address, choice, or_off, whole};

section! {
    name: "epp", head: "[epp]", form: "[epp] and its keys below";
    /// The endpoint picker, which chooses the backend for each request of an Envoy gateway. [gateway.md](gateway.md) explains it.
    #[derive(Clone, Debug, PartialEq)]
    pub struct Picker {
        /// Address on which gateways ask, by gRPC.
        address: Option<SocketAddr> { takes: or_off(address()), default: None, reload: Restart },
        /// TLS on this address. `"self-signed"` makes a certificate at each start, which encrypts and proves nothing. `"off"` is for a
        /// mesh that encrypts. Otherwise the keys of `epp.tls`.
        tls: PickerTls {
            takes: ByHand("`\"self-signed\"`, `\"off\"`, or the keys of `epp.tls`"),
            default: PickerTls::SelfSigned,
            said: "`\"self-signed\"`",
            reload: AtOnce,
        },
        /// The part of an answer that the picker watches. `"first_token"` ends at the first token. `"stream"` lasts to the end of the
        /// answer. `"none"` ends with the decision.
        observe: Observe { takes: choice(Observe::ALL), default: Observe::FirstToken, reload: AtOnce },
        /// Further addresses in the list that a gateway gets, for a backend that cannot be reached.
        fallbacks: u8 { takes: whole(0..=16), default: 2, reload: AtOnce },
    }
}

/// The part of an answer that the picker watches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Observe {
    /// Nothing: the picker leaves with the decision.
    None,
    /// All up to the first token.
    #[default]
    FirstToken,
    /// All of it.
    Stream,
}

impl Observe {
    /// All values, as written in the configuration.
    pub const ALL: [(&str, Observe); 3] =
        [("first_token", Observe::FirstToken), ("stream", Observe::Stream), ("none", Observe::None)];
}
