//! Where a request would go that is only asked about: read as one that is served is, and weighed by the same fleet. Sends
//! nothing, takes no place, and logs nothing of what it was given.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::Proxy;
use super::request::counting::endpoint_of;
use super::request::lookup::{not_serving, pool_for, search_in};
use super::request::parse::{Parsed, body_sessions};
use super::request::peek::peek;
use super::request::stored;
use super::request::work::{marks, seed, weigh};
use super::route::{Route, find, plain};
use forebay_core::error::Refusal;
use forebay_core::routing::facts::{ArmIndex, RequestFacts};
use forebay_core::units::BackendId;
use forebay_fleet::Pool;
use forebay_fleet::config::model::SessionKey;
use forebay_fleet::view::explain::Explanation;

/// The body of `POST /api/explain`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Question<'a> {
    /// The request's body, as a client would send it.
    #[serde(borrow)]
    request: &'a RawValue,
    /// The path that a client would send it to.
    #[serde(default = "chat")]
    path: String,
    /// The session that it belongs to; else the one in its body, if the pool's is there.
    session: Option<String>,
    /// The arm that it is assigned to, whatever its session.
    arm: Option<String>,
    /// Tokens of its prompt that a backend is supposed to have in its prefix cache.
    #[serde(default)]
    matched: BTreeMap<String, u32>,
}

fn chat() -> String {
    "/v1/chat/completions".to_owned()
}

impl Proxy {
    /// Explains where the request in `question` (the body of `POST /api/explain`) would go, and why.
    ///
    /// # Errors
    /// The question makes no sense, or the request would be refused.
    pub fn explain(&self, question: &[u8]) -> Result<Explanation, Refusal> {
        let question: Question<'_> = serde_json::from_slice(question).map_err(|error| {
            Refusal::BadRequest(format!("the body is {{\"request\": …, \"path\": \"/v1/chat/completions\"}}: {error}"))
        })?;
        let path = plain(&question.path);
        let route = find("POST", &path);
        let endpoint = match route {
            Ok(Route::Model(endpoint)) if endpoint.body.is_json() => endpoint,
            Ok(_) => {
                return Err(Refusal::BadRequest(format!("{} takes no JSON body that names a model", question.path)));
            }
            Err(_) => {
                let words = format!("{} is not served; a chat request goes to /v1/chat/completions", question.path);
                return Err(Refusal::BadRequest(words));
            }
        };
        let snapshot = self.0.fleet.snapshot();
        let seed = seed(&self.0, &snapshot);
        let peek = peek(question.request.get().as_bytes(), body_sessions(&snapshot).iter().map(String::as_str), seed)
            .map_err(|error| Refusal::BadRequest(format!("the request's body: {error}")))?;
        // The same steps as for a request that is served, by the same functions: an explanation that went another way
        // would lie.
        let parsed = Parsed { model: peek.model.clone(), peek: Some(peek) };
        let peek = parsed.peek.as_ref();
        let endpoint = endpoint_of(endpoint, peek.map(|peek| peek.shape));
        let (route, model) = (Route::Model(endpoint), parsed.model.as_deref());
        let home = match stored::id_of(route, peek) {
            Some(id) => Some(search_in((&self.0, &snapshot), None, model, id, &mut None)?),
            None => None,
        };
        let (pool, pinned) = match &home {
            Some(home) => (&home.pool, Some(home.backend)),
            None => (pool_for(&snapshot, route, model, None)?, None),
        };
        // As for a request that is served: where a header has the session, the body's member of that name is none.
        let in_body = || match &pool.session {
            SessionKey::Body(member) => peek?.session(member).map(str::to_owned),
            SessionKey::Header(_) => None,
        };
        let session = question.session.clone().or_else(in_body);
        let mut rng = fastrand::Rng::new();
        let arm = match &question.arm {
            Some(name) => arm_named(pool, name)?,
            None => pool.assign(session.as_deref(), &mut rng),
        };
        let facts = RequestFacts {
            arm,
            pinned,
            marks: marks(seed, pool, session.as_deref(), &parsed),
            ..weigh(endpoint, peek)
        };
        let not_serving = not_serving(pool, parsed.model.as_deref(), self.0.clock.now());
        let matched = supposed(pool, &question.matched)?;
        let mut explanation = pool.explanation(&facts, &not_serving, &matched, self.0.clock.now(), &mut rng);
        if session.is_none() && question.arm.is_none() && pool.arms().len() > 1 {
            let note = "the request has no session, so its arm is drawn by share: --session or --arm settles it";
            explanation.notes.push(note.to_owned());
        }
        Ok(explanation)
    }
}

fn arm_named(pool: &Pool, name: &str) -> Result<ArmIndex, Refusal> {
    let found = (0_u16..).zip(pool.arms()).find(|(_, arm)| &*arm.name == name);
    found.map(|(place, _)| ArmIndex(place)).ok_or_else(|| {
        let names: Vec<&str> = pool.arms().iter().map(|arm| &*arm.name).collect();
        Refusal::BadRequest(format!("pool {} has no arm `{name}`, but {}", pool.model, names.join(", ")))
    })
}

/// Backends by what they are called, `b2` or `2`.
fn supposed(pool: &Pool, matched: &BTreeMap<String, u32>) -> Result<Vec<(BackendId, u32)>, Refusal> {
    let ids = || pool.members().iter().map(|member| member.backend.id);
    let find = |name: &String| {
        let number = name.strip_prefix('b').unwrap_or(name).parse().ok().map(BackendId);
        number.filter(|id| ids().any(|one| one == *id)).ok_or_else(|| {
            let known: Vec<String> = ids().map(|id| id.to_string()).collect();
            Refusal::BadRequest(format!(
                "matched: {name} is not in pool {}, which has {}",
                pool.model,
                known.join(", ")
            ))
        })
    };
    matched.iter().map(|(name, tokens)| Ok((find(name)?, *tokens))).collect()
}
