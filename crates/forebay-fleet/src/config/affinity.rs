//! By what a pool recognises requests, as it is written and shown. What it does is `routing::affinity`'s.

use serde::Serialize;

/// By what a request is recognised, to send it where its prompt's beginning is cached, if that is predicted to be faster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Affinity {
    /// By its session, where it has one, and by its prompt's beginning.
    #[default]
    Session,
    /// By its prompt's beginning alone.
    Prefix,
    /// By nothing.
    Off,
}

impl Affinity {
    /// All values, as written in the configuration.
    pub const ALL: [(&str, Affinity); 3] =
        [("session", Affinity::Session), ("prefix", Affinity::Prefix), ("off", Affinity::Off)];
}
