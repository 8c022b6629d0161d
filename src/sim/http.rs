//! The simulated server: vLLM's routes over an engine that runs in real time. Headers of a stream go out at once, before
//! the request is scheduled; an idle connection is closed after 5 s; a client that leaves, or half-closes, aborts its request.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use bytes::Bytes;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpSocket};
use tokio::task::JoinSet;

use super::framing::Framing;
use super::pacer::{Aborting, Pacer, Work};
use super::profile::Profile;
use super::request::{self, Api, ApiError, Ask};
use super::stream::{EventStream, Script};
use super::text;

/// What uvicorn keeps an idle connection for.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// What uvicorn listens with.
const BACKLOG: u32 = 2048;

/// A server to simulate.
#[derive(Clone, Debug)]
pub struct SimOptions {
    /// What it imitates, changes included.
    pub profile: Profile,
    /// The names that it serves, the first of which labels its metrics; none: the profile's model.
    pub served_model_names: Vec<String>,
    /// For answers and the jitter of steps.
    pub seed: u64,
    /// 5 runs five times as fast as the profile says; above 0.
    pub time_scale: f64,
    /// Whether token counts tell the tokens found in the prefix cache.
    pub prompt_tokens_details: bool,
    /// Whether `/load` counts; else it is always 0, as in vLLM.
    pub load_tracking: bool,
}

impl SimOptions {
    /// A server of that profile in real time.
    #[must_use]
    pub fn of(profile: Profile) -> SimOptions {
        SimOptions {
            profile,
            served_model_names: Vec::new(),
            seed: 0,
            time_scale: 1.0,
            prompt_tokens_details: false,
            load_tracking: false,
        }
    }
}

/// A simulated server without its listener.
pub struct Sim {
    options: SimOptions,
    names: Vec<String>,
    pacer: Arc<Pacer>,
    started: u64,
    ids: AtomicU64,
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

impl Sim {
    /// An idle server.
    #[must_use]
    pub fn new(options: SimOptions) -> Arc<Sim> {
        let mut names = options.served_model_names.clone();
        if names.is_empty() {
            names.push(options.profile.model.clone());
        }
        let pacer = Pacer::new(&options.profile, options.seed, options.time_scale);
        Arc::new(Sim { options, names, pacer, started: unix_seconds(), ids: AtomicU64::new(0) })
    }

    /// The engine in real time, for its figures.
    #[must_use]
    pub fn pacer(&self) -> &Arc<Pacer> {
        &self.pacer
    }

    fn script(&self, ask: &Ask) -> (Vec<Work>, Script) {
        let profile = &self.options.profile;
        let mut script = Script {
            api: ask.api,
            answers: Vec::new(),
            finish: Vec::new(),
            prompt_tokens: Vec::new(),
            n: ask.n,
            include_usage: ask.include_usage,
            continuous_usage: ask.continuous_usage,
            tell_cached: self.options.prompt_tokens_details,
        };
        let mut work = Vec::with_capacity(ask.prompts.len());
        for tokens in &ask.prompts {
            let answer = text::mix(text::mix(self.options.seed, ask.seed), text::hash_tokens(tokens));
            let natural = profile.answer_tokens(text::mix(answer, u64::MAX) as f64 / u64::MAX as f64);
            let limited = ask.ignore_eos || natural >= ask.max_tokens;
            let prompt_tokens = tokens.len() as u32;
            for choice in 0..ask.n {
                script.answers.push(text::mix(answer, u64::from(choice)));
                script.finish.push(if limited { "length" } else { "stop" });
                script.prompt_tokens.push(prompt_tokens);
            }
            work.push(Work {
                prompt_tokens,
                block_hashes: text::block_hashes(tokens, profile.kv.block_size).into(),
                output_tokens: if limited { ask.max_tokens } else { natural },
                limited,
            });
        }
        (work, script)
    }

    async fn generate(&self, api: Api, headers: &HeaderMap, body: &Bytes) -> Result<Response, ApiError> {
        check_content_type(headers)?;
        let ask = request::parse(api, body, &self.names, self.options.profile.max_len())?;
        let (work, script) = self.script(&ask);
        let ticket = self.pacer.submit(&work, ask.n, ask.stream).map_err(|error| ApiError {
            status: 400,
            message: error.to_string(),
            kind: "BadRequestError",
            param: None,
        })?;
        let id = headers.get("x-request-id").and_then(|id| id.to_str().ok()).map_or_else(
            || format!("{:016x}", text::mix(self.started, self.ids.fetch_add(1, Ordering::Relaxed))),
            str::to_owned,
        );
        let framing = Framing::new(api, &id, unix_seconds(), &self.names[0]);
        if ask.stream {
            let mut response = Response::new(Body::new(EventStream::new(ticket, framing, script)));
            let kind = HeaderValue::from_static("text/event-stream; charset=utf-8");
            response.headers_mut().insert(header::CONTENT_TYPE, kind);
            return Ok(response);
        }
        ticket.finished().await;
        let choices: Vec<(String, &'static str)> = (0..ticket.choices())
            .map(|choice| (script.text(choice, 0, ticket.standing(choice).tokens), script.finish[choice]))
            .collect();
        Ok(plain(StatusCode::OK, framing.body(&choices, script.usage(&ticket))))
    }

    fn tokenize(&self, body: &Bytes) -> Result<Response, ApiError> {
        let members = request::object(body, &self.names)?;
        let api = if members.contains_key("messages") { Api::Chat } else { Api::Completions };
        let tokens = match members.get("prompt") {
            Some(Value::String(text)) if api == Api::Completions => text::tokenize(text),
            _ => request::prompts(api, &members)?.concat(),
        };
        let (count, limit) = (tokens.len(), self.options.profile.max_len());
        let body = json!({"count": count, "max_model_len": limit, "tokens": tokens, "token_strs": null});
        Ok(plain(StatusCode::OK, body.to_string()))
    }

    fn models(&self) -> String {
        let limit = self.options.profile.max_len();
        let data: Vec<Value> = self
            .names
            .iter()
            .map(|name| {
                json!({"id": name, "object": "model", "created": self.started, "owned_by": "forebay-sim",
                       "root": self.options.profile.model, "parent": null, "max_model_len": limit, "permission": []})
            })
            .collect();
        json!({"object": "list", "data": data}).to_string()
    }
}

fn check_content_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let essence = kind.split(';').next().unwrap_or_default().trim();
    if essence.eq_ignore_ascii_case("application/json") { Ok(()) } else { Err(ApiError::content_type()) }
}

fn plain(status: StatusCode, body: String) -> Response {
    (status, [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], body).into_response()
}

fn answer(result: Result<Response, ApiError>) -> Response {
    result.unwrap_or_else(|error| {
        plain(StatusCode::from_u16(error.status).unwrap_or(StatusCode::BAD_REQUEST), error.body())
    })
}

async fn metrics(State(sim): State<Arc<Sim>>) -> Response {
    let kind = HeaderValue::from_static("text/plain; version=1.0.0; charset=utf-8");
    ([(header::CONTENT_TYPE, kind)], sim.pacer.metrics(&sim.names[0])).into_response()
}

async fn load(State(sim): State<Arc<Sim>>) -> Response {
    let load = if sim.options.load_tracking { sim.pacer.load() } else { 0 };
    plain(StatusCode::OK, json!({ "server_load": load }).to_string())
}

async fn chat(State(sim): State<Arc<Sim>>, headers: HeaderMap, body: Bytes) -> Response {
    answer(sim.generate(Api::Chat, &headers, &body).await)
}

async fn completions(State(sim): State<Arc<Sim>>, headers: HeaderMap, body: Bytes) -> Response {
    answer(sim.generate(Api::Completions, &headers, &body).await)
}

/// The routes.
pub fn router(sim: Arc<Sim>) -> Router {
    let version = json!({"version": concat!("0.32.0+forebay-sim.", env!("CARGO_PKG_VERSION"))}).to_string();
    Router::new()
        .route("/v1/chat/completions", post(chat))
        .route("/v1/completions", post(completions))
        .route("/v1/models", get(async |State(sim): State<Arc<Sim>>| plain(StatusCode::OK, sim.models())))
        .route("/tokenize", post(async |State(sim): State<Arc<Sim>>, body: Bytes| answer(sim.tokenize(&body))))
        .route("/health", get(async || StatusCode::OK))
        .route("/load", get(load))
        .route("/version", get(async move || plain(StatusCode::OK, version)))
        .route("/metrics", get(metrics))
        .fallback(async || plain(StatusCode::NOT_FOUND, r#"{"detail":"Not Found"}"#.to_owned()))
        .method_not_allowed_fallback(async || {
            plain(StatusCode::METHOD_NOT_ALLOWED, r#"{"detail":"Method Not Allowed"}"#.to_owned())
        })
        .layer(DefaultBodyLimit::disable())
        .with_state(sim)
}

/// Listens as uvicorn does: room for 2048 connections that are not accepted yet. With the usual 128, a burst of requests
/// loses its last ones for the second until the kernel tries again.
///
/// # Errors
/// The address is taken, or not one of this machine.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Serves a new simulated server on `listener` until `shutdown` is ready; then all connections are cut.
pub async fn serve(listener: TcpListener, options: SimOptions, shutdown: impl Future<Output = ()>) {
    serve_sim(listener, Sim::new(options), shutdown).await;
}

/// As [`serve`], for a server whose figures the caller wants to read. To be called once for each [`Sim`].
pub async fn serve_sim(listener: TcpListener, sim: Arc<Sim>, shutdown: impl Future<Output = ()>) {
    let pacing = Aborting(tokio::spawn(Arc::clone(sim.pacer()).run()));
    let service = TowerToHyperService::new(router(sim));
    let mut connections = JoinSet::new();
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            () = &mut shutdown => break,
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        let Ok((socket, _)) = accepted else {
            // Out of descriptors, or a client that left at once: neither ends the server.
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        let _ = socket.set_nodelay(true);
        let mut server = hyper::server::conn::http1::Builder::new();
        server.timer(TokioTimer::new()).header_read_timeout(KEEP_ALIVE);
        let connection = server.serve_connection(TokioIo::new(socket), service.clone());
        connections.spawn(async move {
            let _ = connection.await;
        });
    }
    drop(pacing);
}

#[cfg(test)]
mod tests;
