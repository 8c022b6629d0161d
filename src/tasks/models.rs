//! Asks a backend's `/v1/models` what it serves. Bounded in time, bytes, names and their length; it must never hand on a name
//! that could not be a label or a log field.

use std::fmt::{self, Display, Formatter};
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use super::at;
use forebay_fleet::config::model::BackendUrl;
use forebay_fleet::probe::{ProbeClient, ProbeError};
use forebay_fleet::telemetry::labels::ProbeFailure;

const MAX_TEXT: usize = 4 << 20;
const MAX_MODELS: usize = 4096;
const MAX_NAME: usize = 512;

/// The models that a backend lists.
#[derive(Debug)]
pub(super) struct Listing {
    /// Its entries, as it says them and in its order; at least one, each with a usable name.
    pub(super) cards: Vec<Value>,
    /// Entries beyond the limit, which are not here.
    pub(super) left_out: usize,
}

/// The reason why there is no list.
#[derive(Debug)]
pub(super) enum Unlisted {
    /// 401 or 403: the server shows it to who has a key.
    Locked(u16),
    /// Anything else.
    Failed(ProbeError),
}

impl Unlisted {
    /// Returns whether the server has no list for us, rather than not giving it this time. A refusal of our key is no such answer.
    pub(super) fn is_for_good(&self, our_key: bool) -> bool {
        match self {
            Unlisted::Locked(_) => !our_key,
            Unlisted::Failed(error) => {
                matches!(error.failure, ProbeFailure::Status | ProbeFailure::Unreadable | ProbeFailure::TooLarge)
            }
        }
    }
}

impl Display for Unlisted {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Unlisted::Locked(status) => write!(f, "status {status}"),
            Unlisted::Failed(error) => error.fmt(f),
        }
    }
}

#[derive(Deserialize)]
struct WrittenList {
    data: Vec<Value>,
}

/// The name in an entry of the list.
pub(super) fn name(card: &Value) -> Option<&str> {
    card.get("id").and_then(Value::as_str)
}

/// Asks a backend what it lists.
pub(super) async fn ask(
    client: &ProbeClient,
    url: &BackendUrl,
    key: Option<&str>,
    timeout: Duration,
) -> Result<Listing, Unlisted> {
    let asked = client.get(at(url, "/v1/models"), key, timeout, MAX_TEXT).await;
    let (status, body) = asked.map_err(Unlisted::Failed)?;
    match status.as_u16() {
        200..=299 => listing(&body).map_err(Unlisted::Failed),
        // vLLM with --api-key guards its list as well: a server that wants a key is not a broken one.
        status @ (401 | 403) => Err(Unlisted::Locked(status)),
        status => Err(Unlisted::Failed(ProbeError::new(ProbeFailure::Status, format!("status {status}")))),
    }
}

fn listing(body: &[u8]) -> Result<Listing, ProbeError> {
    let unreadable = |reason: String| ProbeError::new(ProbeFailure::Unreadable, reason);
    let written: WrittenList = serde_json::from_slice(body)
        .map_err(|error| unreadable(format!("/v1/models is no list of models: {error}")))?;
    let usable = |name: &str| !name.is_empty() && name.len() <= MAX_NAME && !name.chars().any(char::is_control);
    let mut cards = written.data;
    cards.retain(|card| name(card).is_some_and(usable));
    let left_out = cards.len().saturating_sub(MAX_MODELS);
    // Each name is a label of metrics and an entry of the pools, so a server may not list without end.
    cards.truncate(MAX_MODELS);
    if cards.is_empty() {
        Err(unreadable("/v1/models lists no model".to_owned()))
    } else {
        Ok(Listing { cards, left_out })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_in_their_order() {
        let body = br#"{"object":"list","data":[{"id":"m","object":"model"},{"id":"alias"}]}"#;
        let Listing { cards, left_out } = listing(body).unwrap();
        assert_eq!(left_out, 0);
        assert_eq!(cards.iter().filter_map(name).collect::<Vec<_>>(), ["m", "alias"]);
        assert_eq!(cards[0]["object"], "model");
    }

    #[test]
    fn what_is_no_listing_is_an_error() {
        for body in [&b"<html>"[..], b"{}", b"[]", br#"{"data":[]}"#, br#"{"data":[{"id":"a\nb"}]}"#, b"\xff"] {
            assert_eq!(listing(body).unwrap_err().failure, ProbeFailure::Unreadable);
        }
    }

    #[test]
    fn what_is_over_the_limit_is_counted() {
        let cards: Vec<_> = (0..MAX_MODELS + 3).map(|n| serde_json::json!({"id": format!("m{n}")})).collect();
        let listing = listing(serde_json::json!({"data": cards}).to_string().as_bytes()).unwrap();
        assert_eq!((listing.cards.len(), listing.left_out), (MAX_MODELS, 3));
    }
}
