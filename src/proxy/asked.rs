//! What routing would know of a request that is only asked about: read as one that is served is.

use super::peek::peek;
use super::route::{BodyForm, Endpoint, Route, find};
use super::work::weigh;
use forebay_core::routing::facts::RequestFacts;

/// A request that is asked about.
#[derive(Clone, Debug)]
pub struct Asked {
    /// The model that it names.
    pub model: Option<String>,
    /// The session key in its body, if a member was named for it and is there.
    pub session: Option<String>,
    /// What routing weighs it by; its arm, and what it is recognised by, are not known here.
    pub facts: RequestFacts,
}

/// Reads a request's body as a client would send it to `path`. `session`: the body member that is the session key.
///
/// # Errors
/// The path is not served or takes no JSON, or the body would be refused.
pub fn asked(path: &str, body: &[u8], session: Option<&str>) -> Result<Asked, String> {
    let endpoint = match find("POST", path) {
        Some(Route::Model(endpoint @ Endpoint { body: BodyForm::Json, .. })) => endpoint,
        Some(_) => return Err(format!("{path} takes no JSON body that names a model")),
        None => return Err(format!("{path} is not served; a chat request goes to /v1/chat/completions")),
    };
    let peek = peek(body, session, None).map_err(|error| format!("the request's body: {error}"))?;
    Ok(Asked { facts: weigh(endpoint, Some(&peek)), model: peek.model, session: peek.session })
}

#[cfg(test)]
mod tests {
    use super::*;
    use forebay_core::routing::facts::Kind;

    #[test]
    fn a_request_is_weighed_as_it_would_be_served() {
        let body = br#"{"model":"m","stream":true,"user":"u-7","messages":[{"role":"user","content":"12345678"}]}"#;
        let asked = asked("/v1/chat/completions", body, Some("user")).unwrap();
        assert_eq!((asked.model.as_deref(), asked.session.as_deref()), (Some("m"), Some("u-7")));
        assert_eq!((asked.facts.est_tokens, asked.facts.kind), (2, Kind::Stream));
        assert_eq!(super::asked("/v1/embeddings", br#"{"input":"1234"}"#, None).unwrap().facts.kind, Kind::NoDecode);
    }

    #[test]
    fn what_would_be_refused_is_refused_here() {
        let refused = |path, body: &str| asked(path, body.as_bytes(), None).unwrap_err();
        assert!(refused("/pause", "{}").contains("not served"));
        assert!(refused("/v1/audio/transcriptions", "{}").contains("no JSON"));
        assert!(refused("/v1/completions", "[]").contains("not an object"));
    }
}
