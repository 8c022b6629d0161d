//! The bearer token of the admin API. Compared as hashes and in constant time, so that an answer's time says nothing about
//! the token or its length. It must never log what a client sent.

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, StatusCode, header};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::error::error;
use forebay_fleet::config::model::Secret;

/// The bearer token that a client must send, as its SHA-256 hash.
#[derive(Clone)]
pub(super) struct Token([u8; 32]);

impl Token {
    pub(super) fn new(secret: &Secret) -> Token {
        Token(Sha256::digest(secret.expose()).into())
    }

    fn is_in(&self, headers: &HeaderMap) -> bool {
        let sent = headers.get(header::AUTHORIZATION).map(|value| value.as_bytes());
        let Some((scheme, sent)) = sent.and_then(|value| value.split_at_checked("bearer ".len())) else { return false };
        let hash: [u8; 32] = Sha256::digest(sent).into();
        scheme.eq_ignore_ascii_case(b"bearer ") && bool::from(hash.ct_eq(&self.0))
    }
}

/// Lets through what carries the token.
pub(super) async fn require(State(token): State<Token>, request: Request, next: Next) -> Response {
    if token.is_in(request.headers()) {
        return next.run(request).await;
    }
    let words = "the admin API asks for its token here; send `authorization: Bearer TOKEN`";
    let refusal = error(StatusCode::UNAUTHORIZED, "forebay_unauthorized", words);
    ([(header::WWW_AUTHENTICATE, "Bearer")], refusal).into_response()
}
