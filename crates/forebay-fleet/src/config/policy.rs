//! The choices of how a pool routes, as they are written and shown: policies and affinity. What they do is `routing`'s.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// How a backend is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PolicyName {
    /// The least predicted time to the first token.
    #[default]
    PredictedTtft,
    /// The least outstanding tokens.
    LeastTokens,
    /// The least requests in flight.
    LeastInflight,
    /// The better of two drawn at random.
    P2c,
    /// Each in turn.
    RoundRobin,
}

impl PolicyName {
    /// Every policy, in the order of the documentation.
    pub const ALL: [PolicyName; 5] = [
        PolicyName::PredictedTtft,
        PolicyName::LeastTokens,
        PolicyName::LeastInflight,
        PolicyName::P2c,
        PolicyName::RoundRobin,
    ];

    /// The name as written in the configuration.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            PolicyName::PredictedTtft => "predicted_ttft",
            PolicyName::LeastTokens => "least_tokens",
            PolicyName::LeastInflight => "least_inflight",
            PolicyName::P2c => "p2c",
            PolicyName::RoundRobin => "round_robin",
        }
    }
}

impl fmt::Display for PolicyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for PolicyName {
    type Err = String;

    fn from_str(text: &str) -> Result<PolicyName, String> {
        PolicyName::ALL.into_iter().find(|policy| policy.as_str() == text).ok_or_else(|| {
            let names = PolicyName::ALL.map(PolicyName::as_str).join(", ");
            format!("`{text}` is not a policy; there are {names}")
        })
    }
}

/// By what a request is recognised, to send it where its prompt's beginning is cached, if that is predicted to be faster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
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
    /// As written in the configuration.
    pub const ALL: [(&str, Affinity); 3] =
        [("session", Affinity::Session), ("prefix", Affinity::Prefix), ("off", Affinity::Off)];
}
