//! What a request is, once its body is read: its pool and arm, what routing weighs it by, and what is sent to a backend.

use std::sync::Arc;

use bytes::Bytes;
use http::header::HOST;
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, Method, Request};
use twox_hash::XxHash3_64;

use super::intake::Held;
use super::multipart;
use super::peek::{Peek, peek};
use super::splice::Splice;
use crate::proxy::headers;
use crate::proxy::models;
use crate::proxy::record::Record;
use crate::proxy::route::{BodyForm, Effort, Endpoint, Route};
use crate::proxy::shared::Shared;
use crate::upstream::{self, Pieces};
use forebay_core::error::{Failure, Refusal};
use forebay_core::routing::affinity::Marks;
use forebay_core::routing::facts::{ArmIndex, Kind, RequestFacts};
use forebay_core::routing::wait_room::LaneKey;
use forebay_core::stream::Api;
use forebay_core::units::BackendId;
use forebay_fleet::Backend;
use forebay_fleet::config::model::{Affinity, Config, SessionKey, UsageMode};
use forebay_fleet::{Pool, Snapshot};

/// Bodies over this size are parsed on a blocking thread: a MiB takes about a millisecond.
const PARSE_INLINE: usize = 256 << 10;
/// What an audio part counts as, in tokens.
const MEDIA_TOKENS: u32 = 1000;

/// A request that is ready to be sent.
pub(crate) struct Work {
    pub(crate) pool: Arc<Pool>,
    pub(crate) facts: RequestFacts,
    /// What the client calls its session.
    pub(crate) session: Option<Arc<str>>,
    /// With whom it takes turns where requests must wait.
    pub(crate) lane: LaneKey,
    pub(crate) api: Api,
    /// The client asked for a stream.
    pub(crate) streamed: bool,
    /// Usage was asked for by us.
    pub(crate) usage_injected: bool,
    method: Method,
    path: PathAndQuery,
    headers: HeaderMap,
    body: Body,
    /// The body's part of the common memory.
    held: Option<Held>,
}

/// What is sent: the body as it came but for usage, and the one with the pool's model in place of an alias.
#[derive(Default)]
struct Body {
    asked: Option<String>,
    as_asked: Pieces,
    renamed: Option<Pieces>,
}

/// What the body's parse gave.
pub(crate) struct Parsed {
    pub(crate) peek: Option<Peek>,
    pub(crate) model: Option<String>,
}

impl Work {
    /// The body with the pool's model in place of an alias that this backend does not list.
    fn renamed_for(&self, backend: &Backend) -> Option<&Pieces> {
        let asked = self.body.asked.as_ref()?;
        self.body.renamed.as_ref().filter(|_| !backend.lists(asked))
    }

    /// The backends of the pool that do not serve what is asked for.
    pub(crate) fn not_serving(&self) -> Vec<BackendId> {
        not_serving(&self.pool, self.body.asked.as_deref())
    }

    /// Our answer where attempts ended without a backend's.
    pub(crate) fn exhausted(&self, attempts: u32, failure: Failure) -> Refusal {
        if failure == Failure::Shutdown {
            return Refusal::ShuttingDown;
        }
        Refusal::Exhausted { model: self.pool.model.clone(), attempts, failure }
    }

    /// Whether a 404 from this backend says that it does not serve the pool's model, which we named.
    pub(crate) fn is_our_fault(&self, backend: &Backend, answer: &[u8]) -> bool {
        let ours = self.body.asked.as_ref() == Some(&self.pool.model) || self.renamed_for(backend).is_some();
        ours && says_model_unknown(answer)
    }

    /// The request as this backend gets it.
    pub(crate) fn request_to(&self, backend: &Backend) -> Request<Pieces> {
        let body = self.renamed_for(backend).unwrap_or(&self.body.as_asked);
        let mut request = Request::new(body.clone());
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = upstream::target(&backend.url, &self.path);
        *request.headers_mut() = self.headers.clone();
        request.headers_mut().insert(HOST, backend.url.host_header().clone());
        if let Some(key) = &backend.key {
            headers::authorize(request.headers_mut(), key.expose());
        }
        request
    }

    /// The request will not be sent again: frees its body.
    pub(crate) fn release_body(&mut self) {
        self.body = Body::default();
        self.held = None;
    }
}

/// The backends of `pool` that do not serve the model `asked` for: a name of neither the pool nor its aliases (an adapter) is
/// served where it is listed.
pub(crate) fn not_serving(pool: &Pool, asked: Option<&str>) -> Vec<BackendId> {
    let Some(asked) = asked.filter(|asked| *asked != pool.model && pool.aliases.iter().all(|alias| alias != asked))
    else {
        return Vec::new();
    };
    let members = pool.members().iter().map(|member| &member.backend);
    members.filter(|backend| !backend.lists(asked)).map(|backend| backend.id).collect()
}

/// What a request is made of when its body has been read.
pub(crate) struct Intake<'a> {
    pub(crate) head: &'a Parts,
    pub(crate) route: Route<'a>,
    pub(crate) bytes: Bytes,
    pub(crate) held: Held,
}

/// Finds out what a request is.
///
/// # Errors
/// The body is not valid, names no model or one that is not served, or refers to a response that is not known.
pub(crate) async fn prepare(
    shared: &Shared,
    settings: &Config,
    snapshot: &Snapshot,
    record: &mut Record,
    intake: Intake<'_>,
) -> Result<Work, Refusal> {
    let Intake { head, route, bytes, held } = intake;
    let endpoint = match route {
        Route::Model(endpoint) => endpoint,
        _ => Endpoint { api: Api::Other, body: BodyForm::Json, effort: Effort::None },
    };
    let parsed = match route {
        Route::Model(Endpoint { body: BodyForm::Json, .. }) => {
            parse_json(&bytes, body_session(snapshot), seed(shared, snapshot)).await?
        }
        // On the heap: few requests are forms, and all would carry the room for reading one.
        Route::Model(_) => Parsed { peek: None, model: Box::pin(multipart::model(&head.headers, &bytes)).await },
        _ => Parsed { peek: None, model: None },
    };
    record.model.clone_from(&parsed.model);
    let pinned = pinned(shared, snapshot, route, parsed.peek.as_ref())?;
    let pool = Arc::clone(pool_for(snapshot, route, pinned, parsed.model.as_deref())?);
    let streamed = parsed.peek.as_ref().is_some_and(|peek| peek.stream);
    record.streamed = streamed;
    let session = session(&pool, head, parsed.peek.as_ref());
    // By session, before anybody looks at loads: the arm must not depend on how busy it is, or a comparison would
    // compare moments.
    let arm = pool.assign(session.as_deref(), &mut fastrand::Rng::new());
    record.assign(&pool, arm);
    let marks = marks(seed(shared, snapshot), &pool, session.as_deref(), &parsed);
    let (body, usage_injected) = outgoing(&pool, settings, endpoint, &parsed, &bytes);
    let mut headers = head.headers.clone();
    headers::for_backend(&mut headers, &record.request_id, streamed, settings.clients.keys.is_none());
    Ok(Work {
        facts: RequestFacts { arm, pinned, marks, ..weigh(endpoint, parsed.peek.as_ref()) },
        lane: LaneKey::of(session.as_deref(), record.client_key.as_deref()),
        session: session.map(Arc::from),
        pool,
        api: endpoint.api,
        streamed,
        usage_injected,
        method: head.method.clone(),
        path: head.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/")),
        headers,
        body,
        held: Some(held),
    })
}

async fn parse_json(bytes: &Bytes, session: Option<String>, seed: Option<u64>) -> Result<Parsed, Refusal> {
    let peeked = if bytes.len() <= PARSE_INLINE {
        peek(bytes, session.as_deref(), seed)
    } else {
        let bytes = bytes.clone();
        let parsing = tokio::task::spawn_blocking(move || peek(&bytes, session.as_deref(), seed));
        parsing.await.map_err(|_| Refusal::Internal)?
    };
    let peek = peeked.map_err(|error| Refusal::BadRequest(error.to_string()))?;
    Ok(Parsed { model: peek.model.clone(), peek: Some(peek) })
}

/// The body member that makes a session; where pools differ the first pool's.
pub(crate) fn body_session(snapshot: &Snapshot) -> Option<String> {
    snapshot.pools.iter().find_map(|pool| match &pool.session {
        SessionKey::Body(member) => Some(member.clone()),
        SessionKey::Header(_) => None,
    })
}

fn session(pool: &Pool, head: &Parts, peek: Option<&Peek>) -> Option<String> {
    match &pool.session {
        SessionKey::Header(name) => Some(head.headers.get(name.as_str())?.to_str().ok()?.to_owned()),
        SessionKey::Body(_) => peek?.session.clone(),
    }
}

/// The backend that made the response that the request refers to.
pub(crate) fn pinned(
    shared: &Shared,
    snapshot: &Snapshot,
    route: Route<'_>,
    peek: Option<&Peek>,
) -> Result<Option<BackendId>, Refusal> {
    let id = match route {
        Route::StoredResponse(id) => Some(id),
        _ => peek.and_then(|peek| peek.previous_response_id.as_deref()),
    };
    let Some(id) = id else { return Ok(None) };
    // A stored response is in one backend's memory. Any other would answer that it does not exist.
    let home = shared.responses.find(id).filter(|backend| snapshot.backend(*backend).is_some());
    home.map(Some).ok_or_else(|| Refusal::UnknownResponse(id.to_owned()))
}

/// The pool that serves a request: that of the backend which it is bound to, or of its model.
pub(crate) fn pool_for<'a>(
    snapshot: &'a Snapshot,
    route: Route<'_>,
    pinned: Option<BackendId>,
    model: Option<&str>,
) -> Result<&'a Arc<Pool>, Refusal> {
    let pool = match pinned.and_then(|id| snapshot.backend(id)) {
        Some(backend) => Some(pool_of(snapshot, backend, model)?),
        None if route == Route::Version => snapshot.pools.first(),
        None => find_pool(snapshot, model)?,
    };
    pool.ok_or_else(|| Refusal::NoBackend("any model".to_owned()))
}

/// The pool of the backend that holds what the request refers to, if that is where its model is served.
fn pool_of<'a>(snapshot: &'a Snapshot, backend: &Backend, model: Option<&str>) -> Result<&'a Arc<Pool>, Refusal> {
    let pool = snapshot.pool(&backend.pool).ok_or_else(|| Refusal::NoBackend(backend.pool.to_string()))?;
    match model {
        Some(model) if !find_pool(snapshot, Some(model))?.is_some_and(|named| Arc::ptr_eq(named, pool)) => {
            Err(Refusal::BadRequest(format!(
                "`previous_response_id` names a response of `{}`, not of `{model}`",
                pool.model
            )))
        }
        _ => Ok(pool),
    }
}

/// Whether an error answer says, as vLLM does, that the model does not exist.
fn says_model_unknown(answer: &[u8]) -> bool {
    let Ok(answer) = serde_json::from_slice::<serde_json::Value>(answer) else { return false };
    let message = answer["error"]["message"].as_str().unwrap_or_default();
    answer["error"]["type"] == "NotFoundError"
        && message.starts_with("The model `")
        && message.contains("does not exist")
}

fn find_pool<'a>(snapshot: &'a Snapshot, model: Option<&str>) -> Result<Option<&'a Arc<Pool>>, Refusal> {
    let Some(model) = model else {
        return match snapshot.pools.as_slice() {
            [] => Ok(None),
            // vLLM takes its own model where a request names none. With several pools there is no such one.
            [only] => Ok(Some(only)),
            _ => Err(Refusal::NoModel(models::names(snapshot))),
        };
    };
    if snapshot.pools.is_empty() {
        return Ok(None);
    }
    // An adapter that was loaded at run time is in no configuration, but in a backend's list.
    let listed = || snapshot.pools.iter().find(|pool| pool.members().iter().any(|m| m.backend.lists(model)));
    let found = snapshot.pool(model).or_else(listed);
    let unknown = || Refusal::UnknownModel { model: model.to_owned(), served: models::names(snapshot) };
    found.map(Some).ok_or_else(unknown)
}

/// The seed of the hashes of sessions and prompts, if some pool has affinity. Replicas with the same `split_salt` have the same
/// seed, and so name a prompt alike.
pub(crate) fn seed(shared: &Shared, snapshot: &Snapshot) -> Option<u64> {
    let wanted = snapshot.pools.iter().any(|pool| pool.affinity != Affinity::Off);
    let salt = snapshot.pools.iter().map(|pool| pool.split_salt.as_str()).find(|salt| !salt.is_empty());
    wanted.then(|| salt.map_or(shared.seed, |salt| XxHash3_64::oneshot(salt.as_bytes())))
}

/// By what the request is recognised, as its pool has it.
pub(crate) fn marks(seed: Option<u64>, pool: &Pool, session: Option<&str>, parsed: &Parsed) -> Marks {
    let Some(seed) = seed else { return Marks::NONE };
    let mut marks = parsed.peek.as_ref().map_or(Marks::NONE, |peek| peek.marks.clone());
    match (pool.affinity, session) {
        (Affinity::Off, _) => return Marks::NONE,
        (Affinity::Session, Some(session)) => {
            marks.session = Some(XxHash3_64::oneshot_with_seed(seed, session.as_bytes()))
        }
        (Affinity::Session, None) | (Affinity::Prefix, _) => {}
    }
    match &parsed.model {
        // An adapter's cache is not its base model's.
        Some(model) if *model != pool.model && !pool.aliases.contains(model) => {
            marks.within(XxHash3_64::oneshot_with_seed(seed, model.as_bytes()))
        }
        _ => marks,
    }
}

/// What routing weighs a request by; its arm and what it is recognised by are filled in by who knows them.
pub(crate) fn weigh(endpoint: Endpoint, peek: Option<&Peek>) -> RequestFacts {
    let streamed = peek.is_some_and(|peek| peek.stream);
    let kind = match endpoint.effort {
        Effort::None => Kind::Light,
        Effort::Prefill => Kind::NoDecode,
        Effort::Generate if streamed => Kind::Stream,
        Effort::Generate => Kind::Unary,
    };
    let (est_tokens, sequences) = match peek {
        _ if kind == Kind::Light => (0, 0),
        Some(peek) => (peek.est_tokens(), peek.sequences),
        None => (MEDIA_TOKENS, 1),
    };
    RequestFacts { est_tokens, sequences, kind, arm: ArmIndex::default(), pinned: None, marks: Marks::NONE }
}

fn outgoing(pool: &Pool, settings: &Config, endpoint: Endpoint, parsed: &Parsed, bytes: &Bytes) -> (Body, bool) {
    let Some(peek) = &parsed.peek else {
        return (Body { asked: parsed.model.clone(), as_asked: Pieces::new([bytes.clone()]), renamed: None }, false);
    };
    let mut splice = Splice::default();
    let injected = settings.stream.usage == UsageMode::Inject && splice.inject_usage(endpoint.api, peek);
    // Both forms are made now: which one is sent depends on the backend, and attempts must not read the body again.
    let renamed = parsed.model.as_ref().filter(|asked| pool.aliases.contains(asked)).map(|_| {
        let mut splice = splice.clone();
        splice.replace_model(peek, &pool.model);
        splice.apply(bytes)
    });
    let as_asked = splice.apply(bytes);
    (Body { asked: parsed.model.clone(), as_asked, renamed }, injected)
}
