//! Client keys: with any configured, a request must carry one of them, and the client's `authorization` ends here. Compared
//! as SHA-256 in constant time over all keys, so that the time taken says nothing.

use std::sync::Arc;

use http::HeaderMap;
use http::header::AUTHORIZATION;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::proxy::headers::API_KEY;
use forebay_core::error::Refusal;
use forebay_fleet::clients::{Client, KnownClients};

/// The client whose key a request carries; `None` where no keys are configured.
///
/// # Errors
/// `Refusal::Unauthorized` where keys are configured and the request carries none of them.
pub(crate) fn client(headers: &HeaderMap, clients: &KnownClients) -> Result<Option<Arc<Client>>, Refusal> {
    let Some(clients) = clients.list() else { return Ok(None) };
    let given = headers
        .get(AUTHORIZATION)
        .and_then(|value| value.as_bytes().split_at_checked(7))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"bearer "))
        .map(|(_, key)| key)
        .or_else(|| headers.get(API_KEY).map(http::HeaderValue::as_bytes))
        .ok_or(Refusal::Unauthorized)?;
    let hash = Sha256::digest(given);
    let mut found = None;
    // All keys are compared, also after one was found: the time says nothing of its place in the list.
    for client in clients.iter() {
        if bool::from(client.sha256.as_slice().ct_eq(hash.as_slice())) {
            found = Some(client);
        }
    }
    found.cloned().map(Some).ok_or(Refusal::Unauthorized)
}

#[cfg(test)]
mod tests {
    use super::*;
    use forebay_core::clock::Time;
    use forebay_fleet::config::model::ClientKey;
    use forebay_fleet::telemetry::Telemetry;

    #[test]
    fn only_a_known_key_opens() {
        let clients = KnownClients::new(Arc::new(Telemetry::new()));
        let mut headers = HeaderMap::new();
        let name =
            |headers: &HeaderMap| client(headers, &clients).map(|client| client.map(|client| client.name.to_string()));
        assert_eq!(name(&headers), Ok(None));
        let key = ClientKey::unlimited("team", Sha256::digest(b"secret").into());
        clients.apply(Some(&[key]), Time::ZERO);
        assert_eq!(name(&headers), Err(Refusal::Unauthorized));
        headers.insert(AUTHORIZATION, http::HeaderValue::from_static("Bearer wrong"));
        assert_eq!(name(&headers), Err(Refusal::Unauthorized));
        headers.insert(AUTHORIZATION, http::HeaderValue::from_static("Bearer secret"));
        assert_eq!(name(&headers), Ok(Some("team".to_owned())));
    }
}
