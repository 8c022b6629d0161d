//! What a request is, once its body is read: its pool and arm, what routing weighs it by, and what is sent to a backend.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, HOST};
use http::uri::PathAndQuery;
use http::{HeaderMap, Method, Request, Uri, Version};
use twox_hash::XxHash3_64;

use super::counting::endpoint_of;
use super::lookup::{not_serving, pool_for, search_in};
use super::parse::{Parsed, read_body, renamed_form};
use super::peek::Peek;
use super::splice::Splice;
use super::stored::{self, Home, Search};
use crate::proxy::forwarded::host_asked;
use crate::proxy::headers;
use crate::proxy::intake::Held;
use crate::proxy::record::Record;
use crate::proxy::route::{BodyForm, Effort, Endpoint, Route};
use crate::proxy::shared::Shared;
use crate::upstream::{self, Pieces};
use forebay_core::clock::Time;
use forebay_core::error::{Failure, Refusal, repeated};
use forebay_core::routing::affinity::Marks;
use forebay_core::routing::facts::{ArmIndex, Kind, RequestFacts};
use forebay_core::routing::split::Session;
use forebay_core::routing::wait_room::LaneKey;
use forebay_core::stream::Api;
use forebay_core::units::BackendId;
use forebay_fleet::Backend;
use forebay_fleet::clients::Client;
use forebay_fleet::config::model::{Affinity, Config, SessionKey, UsageMode};
use forebay_fleet::{Pool, Snapshot};

/// The weight of an audio part, in tokens.
const MEDIA_TOKENS: u32 = 1000;

/// A request that is ready to be sent.
pub(crate) struct Work {
    pub(crate) pool: Arc<Pool>,
    pub(crate) facts: RequestFacts,
    /// Its session, by which it may yet be assigned to another arm.
    pub(crate) session: Option<Session>,
    /// With whom it takes turns where requests must wait.
    pub(crate) lane: LaneKey,
    pub(crate) api: Api,
    /// The search for the stored response that it refers to, if it does.
    pub(crate) search: Option<Search>,
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

/// The body that is sent: as it came but for usage, and the one with the pool's model in place of an alias.
#[derive(Default)]
struct Body {
    asked: Option<String>,
    as_asked: Pieces,
    renamed: Option<Pieces>,
}

impl Work {
    /// A request for another protocol: one without a body, of which nothing is read. `asked`: the model that it names.
    pub(crate) fn of_upgrade(
        (pool, facts, lane): (Arc<Pool>, RequestFacts, LaneKey),
        (path, headers): (PathAndQuery, HeaderMap),
        asked: Option<String>,
    ) -> Work {
        let body = Body { asked, ..Body::default() };
        Work {
            pool,
            facts,
            session: None,
            lane,
            api: Api::Other,
            search: None,
            streamed: false,
            usage_injected: false,
            method: Method::GET,
            path,
            headers,
            body,
            held: None,
        }
    }

    /// The body with the pool's model in place of an alias that this backend does not list.
    pub(crate) fn renamed_for(&self, backend: &Backend) -> Option<&Pieces> {
        let asked = self.body.asked.as_ref()?;
        self.body.renamed.as_ref().filter(|_| !backend.lists(asked))
    }

    /// Turns to the next backend that may have the stored response which it refers to. False where there is none, or it refers to
    /// none.
    pub(crate) fn look_elsewhere(&mut self) -> bool {
        let Some(Home { pool, backend }) = self.search.as_mut().and_then(Search::next) else { return false };
        if !Arc::ptr_eq(&pool, &self.pool) {
            self.facts.arm = pool.assign_kept(self.session.as_ref(), &mut fastrand::Rng::new());
            self.pool = pool;
        }
        self.facts.pinned = Some(backend);
        true
    }

    /// The backends of the pool that do not serve what is asked for.
    pub(crate) fn not_serving(&self, now: Time) -> Vec<BackendId> {
        not_serving(&self.pool, self.model(), now)
    }

    /// The model that the client asked for.
    pub(crate) fn model(&self) -> Option<&str> {
        self.body.asked.as_deref()
    }

    /// Our answer where attempts ended without a backend's.
    pub(crate) fn exhausted(&self, attempts: u32, failure: Failure) -> Refusal {
        match failure {
            Failure::Shutdown => Refusal::ShuttingDown,
            Failure::Shortage => Refusal::Shortage,
            _ => Refusal::Exhausted { model: self.pool.model.clone(), attempts, failure },
        }
    }

    /// Returns what a 404 from this backend means if it says that the model does not exist which we asked it for: the one that the
    /// configuration promises, or one that its list promised (an adapter, an alias).
    pub(crate) fn denied_model(&self, backend: &Backend, answer: &[u8]) -> Option<Failure> {
        let model = &self.pool.model;
        let asked = if self.renamed_for(backend).is_some() { model } else { self.body.asked.as_ref()? };
        let promised = asked == model && !self.pool.by_list;
        says_unknown(answer, asked).then_some(match promised {
            true => Failure::Misconfigured(404),
            false => Failure::NotServed,
        })
    }

    /// The request as this backend gets it.
    pub(crate) fn request_to(&self, backend: &Backend) -> Request<Pieces> {
        let body = self.renamed_for(backend).unwrap_or(&self.body.as_asked);
        let mut request = Request::new(body.clone());
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = upstream::target(&backend.url, &self.path);
        *request.headers_mut() = self.headers.clone();
        // In the place of the client's: a copy of a map has no room for one more.
        request.headers_mut().insert(HOST, backend.url.host_header().clone());
        if let Some(key) = &backend.key {
            headers::authorize(request.headers_mut(), key.expose());
        }
        request
    }

    /// The request will not be sent again: frees its body, and its headers, which keep the memory that the client's head was read
    /// into.
    pub(crate) fn release(&mut self) {
        self.body = Body::default();
        self.headers = HeaderMap::new();
        self.held = None;
    }
}

/// The parts of a request whose body has been read.
pub(crate) struct Intake<'a> {
    pub(crate) method: &'a Method,
    pub(crate) uri: &'a Uri,
    pub(crate) version: Version,
    /// Those that came, to be changed into those that are sent on.
    pub(crate) headers: HeaderMap,
    pub(crate) route: Route<'a>,
    /// The path and query to send on.
    pub(crate) target: PathAndQuery,
    pub(crate) bytes: Bytes,
    pub(crate) held: Held,
    /// The body came compressed.
    pub(crate) was_compressed: bool,
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
) -> Result<Box<Work>, Refusal> {
    let Intake { method, uri, version, mut headers, route, target, mut bytes, held, was_compressed } = intake;
    let route = match route {
        // Nothing says that an engine has work with a request without a body, or for which model.
        Route::Model(Endpoint { body: BodyForm::Unknown, .. }) if bytes.is_empty() => Route::AnyBackend,
        route => route,
    };
    let endpoint = match route {
        Route::Model(endpoint) => endpoint,
        _ => Endpoint::LIGHT,
    };
    let seed = seed(shared, snapshot);
    let parsed = read_body((seed, snapshot, settings.limits.body), route, &headers, &mut bytes).await?;
    let endpoint = endpoint_of(endpoint, parsed.peek.as_ref().map(|peek| peek.shape));
    if endpoint.body == BodyForm::JsonOfAny {
        record.api = endpoint.api;
    }
    record.model = parsed.model.as_deref().map(repeated);
    let (mut search, peek) = (None, parsed.peek.as_ref());
    let client = record.client_key.clone();
    let client = client.as_deref();
    let (pool, pinned) = match stored::id_of(route, peek) {
        Some(id) => {
            let home = search_in((shared, snapshot), client, parsed.model.as_deref(), id, &mut search)?;
            (home.pool, Some(home.backend))
        }
        None => (Arc::clone(pool_for(snapshot, route, parsed.model.as_deref(), client)?), None),
    };
    let streamed = parsed.peek.as_ref().is_some_and(|peek| peek.stream);
    record.streamed = streamed;
    let session = session(&pool, &headers, parsed.peek.as_ref());
    // By session, before anybody looks at loads: the arm must not depend on how busy it is, or a comparison would
    // compare moments.
    let kept = session.as_deref().map(|session| pool.session_of(session));
    let arm = pool.assign_kept(kept.as_ref(), &mut fastrand::Rng::new());
    record.assign(&pool, arm);
    record.belongs_to(session.as_deref(), kept.as_ref());
    let marks = marks(seed, &pool, session.as_deref(), &parsed);
    // What a picker asks for would have to be taken out of an answer that it may not see.
    let injects = settings.stream.usage == UsageMode::Inject && !record.is_picked();
    let (body, usage_injected) = outgoing(&pool, (injects, &headers), endpoint, &parsed, &bytes).await?;
    let (host, ours) = (host_asked(uri, &headers), (&record.request_id, shared.via.entry(version)));
    headers::for_backend(&mut headers, ours, streamed, client.is_none());
    if was_compressed {
        headers.remove(CONTENT_ENCODING);
    }
    record.peer.tell(host, &mut headers, &settings.forwarding);
    // On the heap at once: what follows moves it several times.
    Ok(Box::new(Work {
        facts: RequestFacts { arm, pinned, marks, ..weigh(endpoint, parsed.peek.as_ref()) },
        lane: lane(client, session.as_deref()),
        session: kept,
        pool,
        api: endpoint.api,
        search,
        streamed,
        usage_injected,
        method: method.clone(),
        path: target,
        headers,
        body,
        held: Some(held),
    }))
}

/// Returns the lane of the wait room for a client's key and, within it, a session.
pub(crate) fn lane(client: Option<&Client>, session: Option<&str>) -> LaneKey {
    LaneKey::of(session, client.map(|client| &*client.name))
        .ranked(client.map(|client| client.priority).unwrap_or_default())
}

fn session(pool: &Pool, headers: &HeaderMap, peek: Option<&Peek>) -> Option<String> {
    match &pool.session {
        SessionKey::Header(name) => Some(headers.get(name.as_str())?.to_str().ok()?.to_owned()),
        SessionKey::Body(member) => peek?.session(member).map(str::to_owned),
    }
}

/// Returns whether an error answer says, as vLLM does, that this model does not exist.
fn says_unknown(answer: &[u8], model: &str) -> bool {
    let Ok(answer) = serde_json::from_slice::<serde_json::Value>(answer) else { return false };
    let message = answer["error"]["message"].as_str().unwrap_or_default();
    let named = message.strip_prefix("The model `").and_then(|rest| rest.strip_prefix(model));
    answer["error"]["type"] == "NotFoundError" && named.is_some_and(|rest| rest.starts_with("` does not exist"))
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

/// Returns what routing weighs a request to this endpoint by; its arm and what it is recognised by are filled in by who knows them.
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
        Some(peek) => (peek.est_tokens(), peek.claims.sequences(endpoint.counting)),
        None => (MEDIA_TOKENS, 1),
    };
    RequestFacts { est_tokens, sequences, kind, arm: ArmIndex::default(), pinned: None, marks: Marks::NONE }
}

/// The body to send, and whether usage was asked for in it.
async fn outgoing(
    pool: &Pool,
    (injects, headers): (bool, &HeaderMap),
    endpoint: Endpoint,
    parsed: &Parsed,
    bytes: &Bytes,
) -> Result<(Body, bool), Refusal> {
    let Some(peek) = &parsed.peek else {
        let alias = parsed.model.as_ref().filter(|asked| pool.aliases.contains(asked));
        let renamed = match alias {
            // On the heap: few requests are forms, and fewer name an alias.
            Some(alias) => Some(Box::pin(renamed_form(headers, bytes, alias, &pool.model)).await?),
            None => None,
        };
        return Ok((Body { asked: parsed.model.clone(), as_asked: Pieces::new([bytes.clone()]), renamed }, false));
    };
    let mut splice = Splice::default();
    let injected = injects && splice.inject_usage(endpoint.api, peek);
    let is_alias = |asked: &&String| !pool.by_list && pool.aliases.contains(asked);
    let renamed = parsed.model.as_ref().filter(is_alias).map(|_| {
        let mut splice = splice.clone();
        splice.replace_model(peek, &pool.model);
        splice.apply(bytes)
    });
    let as_asked = splice.apply(bytes);
    Ok((Body { asked: parsed.model.clone(), as_asked, renamed }, injected))
}
