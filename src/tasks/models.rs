//! Asks a backend's `/v1/models` what it serves. Bounded in time, bytes, names and their length; it must never hand on a name
//! that could not be a label or a log field.

use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use super::at;
use forebay_fleet::config::model::BackendUrl;
use forebay_fleet::probe::{ProbeClient, ProbeError};
use forebay_fleet::telemetry::labels::ProbeFailure;

const MAX_TEXT: usize = 1 << 20;
const MAX_MODELS: usize = 1024;
const MAX_NAME: usize = 512;

#[derive(Deserialize)]
struct Listing {
    data: Vec<Value>,
}

/// The name in an entry of the list.
pub(super) fn name(card: &Value) -> Option<&str> {
    card.get("id").and_then(Value::as_str)
}

/// The entries that the backend lists, as it says them and in its order; at least one, each with a usable name.
pub(super) async fn ask(
    client: &ProbeClient,
    url: &BackendUrl,
    key: Option<&str>,
    timeout: Duration,
) -> Result<Vec<Value>, ProbeError> {
    cards(&client.get_ok(at(url, "/v1/models"), key, timeout, MAX_TEXT).await?)
}

fn cards(body: &[u8]) -> Result<Vec<Value>, ProbeError> {
    let unreadable = |reason: String| ProbeError::new(ProbeFailure::Unreadable, reason);
    let listing: Listing = serde_json::from_slice(body)
        .map_err(|error| unreadable(format!("/v1/models is no list of models: {error}")))?;
    let usable = |name: &str| !name.is_empty() && name.len() <= MAX_NAME && !name.chars().any(char::is_control);
    let cards: Vec<Value> =
        listing.data.into_iter().filter(|card| name(card).is_some_and(usable)).take(MAX_MODELS).collect();
    if cards.is_empty() { Err(unreadable("/v1/models lists no model".to_owned())) } else { Ok(cards) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_in_their_order() {
        let body = br#"{"object":"list","data":[{"id":"m","object":"model"},{"id":"alias"}]}"#;
        let cards = cards(body).unwrap();
        assert_eq!(cards.iter().filter_map(name).collect::<Vec<_>>(), ["m", "alias"]);
        assert_eq!(cards[0]["object"], "model");
    }

    #[test]
    fn what_is_no_listing_is_an_error() {
        for body in [&b"<html>"[..], b"{}", b"[]", br#"{"data":[]}"#, br#"{"data":[{"id":"a\nb"}]}"#, b"\xff"] {
            assert_eq!(cards(body).unwrap_err().failure, ProbeFailure::Unreadable);
        }
    }
}
