//! Client keys: with any configured, a request must carry one of them, and the client's `authorization` ends here. Compared
//! as SHA-256 in constant time over all keys, so that the time taken says nothing.

use http::HeaderMap;
use http::header::AUTHORIZATION;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::proxy::headers::API_KEY;
use forebay_core::error::Refusal;
use forebay_fleet::config::model::ClientKey;

/// The name of the key that a request carries; `None` where no keys are configured.
///
/// # Errors
/// `Refusal::Unauthorized` where keys are configured and the request carries none of them.
pub(crate) fn client<'a>(headers: &HeaderMap, keys: Option<&'a [ClientKey]>) -> Result<Option<&'a str>, Refusal> {
    let Some(keys) = keys else { return Ok(None) };
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
    for key in keys {
        if bool::from(key.sha256.as_slice().ct_eq(hash.as_slice())) {
            found = Some(key.name.as_str());
        }
    }
    found.map(Some).ok_or(Refusal::Unauthorized)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_known_key_opens() {
        let keys = [ClientKey { name: "team".into(), sha256: Sha256::digest(b"secret").into() }];
        let mut headers = HeaderMap::new();
        assert_eq!(client(&headers, None), Ok(None));
        assert_eq!(client(&headers, Some(&keys)), Err(Refusal::Unauthorized));
        headers.insert(AUTHORIZATION, http::HeaderValue::from_static("Bearer wrong"));
        assert_eq!(client(&headers, Some(&keys)), Err(Refusal::Unauthorized));
        headers.insert(AUTHORIZATION, http::HeaderValue::from_static("Bearer secret"));
        assert_eq!(client(&headers, Some(&keys)), Ok(Some("team")));
    }
}
