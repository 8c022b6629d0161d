//! The policies, by name. A policy is a function of the rows, the request, the moment and a random number; it keeps nothing.
//! It is given eligible rows only and may choose any of them, so it cannot pick a backend that must not have the request.
//!
//! To add one, write its file beside these and a line of the table below; CONTRIBUTING has the steps. `least` finds a least whole
//! number; for seconds see `predicted_ttft`.
//!
//! Hot path: one or two passes over the rows, no allocation.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::candidate::Candidate;
use super::choice::{Choice, Considered, Reason};
use super::facts::RequestFacts;
use crate::clock::Time;
use crate::units::brief_seconds;

/// Chooses one of the rows, and says by what.
pub trait Policy: fmt::Debug + Send + Sync {
    /// The choice; `None` only where there are no rows.
    fn pick(&self, rows: &[Candidate], facts: &RequestFacts, now: Time, rng: &mut fastrand::Rng) -> Option<Choice>;

    /// By how much it disfavours a row, in a unit of its own: an explanation names the second best.
    fn cost(&self, row: &Considered) -> f64 {
        row.terms.score()
    }

    /// Returns what it looked for the least of, with the chosen row's amount.
    fn least_of(&self, chosen: &Considered) -> String {
        format!("predicted TTFT {}", brief_seconds(chosen.terms.ttft()))
    }

    /// Returns what another row has in place of that; `None` if it is the prediction's terms that differ.
    fn other_has(&self, _other: &Considered) -> Option<String> {
        None
    }

    /// Returns whether it compares predictions, so that it matters whether anything was measured.
    fn predicts(&self) -> bool {
        false
    }
}

/// Makes the modules, the names and the table from one line for each policy. The first is the default.
macro_rules! policies {
    ($first_doc:literal $first_file:ident $first:ident, $($doc:literal $file:ident $name:ident,)*) => {
        mod $first_file;
        pub use $first_file::$first;
        $(
            mod $file;
            pub use $file::$name;
        )*

        /// A policy by its name in the configuration.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize)]
        #[serde(rename_all = "snake_case")]
        pub enum PolicyName {
            #[doc = $first_doc]
            #[default]
            $first,
            $(
                #[doc = $doc]
                $name,
            )*
        }

        impl PolicyName {
            /// Every policy, in the order of the documentation.
            pub const ALL: &[PolicyName] = &[PolicyName::$first, $(PolicyName::$name),*];

            /// The name as written in the configuration.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    PolicyName::$first => stringify!($first_file),
                    $(PolicyName::$name => stringify!($file),)*
                }
            }

            /// The policy itself.
            #[must_use]
            pub fn policy(self) -> &'static dyn Policy {
                match self {
                    PolicyName::$first => &$first,
                    $(PolicyName::$name => &$name,)*
                }
            }
        }
    };
}

// What it does, its name in the configuration (which is its file's), its type.
policies! {
    "The least predicted time to the first token." predicted_ttft PredictedTtft,
    "The least outstanding prompt tokens: those of requests without a first token, less what is expected to be cached." least_tokens LeastTokens,
    "The least requests in flight." least_inflight LeastInflight,
    "The better of two drawn at random." p2c P2c,
    "Each in turn." round_robin RoundRobin,
}

pub use predicted_ttft::TIE;

impl PolicyName {
    /// Every policy with its name: what a key of a file may hold.
    #[must_use]
    pub fn choices() -> Vec<(&'static str, PolicyName)> {
        PolicyName::ALL.iter().map(|policy| (policy.as_str(), *policy)).collect()
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
        PolicyName::ALL.iter().copied().find(|policy| policy.as_str() == text).ok_or_else(|| {
            let names: Vec<&str> = PolicyName::choices().into_iter().map(|(name, _)| name).collect();
            format!("`{text}` is not a policy; there are {}", names.join(", "))
        })
    }
}

/// A row drawn evenly from those that `qualifies` accepts by their place, of which there are `count`.
fn draw(count: usize, rows: usize, rng: &mut fastrand::Rng, qualifies: impl Fn(usize) -> bool) -> Option<Choice> {
    // No random number where there is no choice: a run in virtual time stays the same when rows are added that never
    // win.
    let nth = if count > 1 { rng.usize(..count) } else { 0 };
    let index = (0..rows).filter(|&index| qualifies(index)).nth(nth)?;
    let reason = match count {
        _ if rows == 1 => Reason::Only,
        1 => Reason::Lowest,
        _ => Reason::Tie(u16::try_from(count).unwrap_or(u16::MAX)),
    };
    Some(Choice { index, reason })
}

/// The row with the least `key`; ties by chance, never by place.
fn least<K: Ord + Copy>(rows: &[Candidate], rng: &mut fastrand::Rng, key: impl Fn(&Candidate) -> K) -> Option<Choice> {
    let least = rows.iter().map(&key).min()?;
    let count = rows.iter().filter(|row| key(row) == least).count();
    draw(count, rows.len(), rng, |index| key(&rows[index]) == least)
}

#[cfg(test)]
mod tests;
