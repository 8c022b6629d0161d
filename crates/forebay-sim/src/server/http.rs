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
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use bytes::Bytes;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tower::Service;

use super::cors;
use super::faults::answers;
use super::faults::{Faults, Port, Signal};
use super::framing::Framing;
use super::pacer::{Aborting, Pacer, Work};
use super::request::{self, Api, ApiError, Ask};
use super::stream::{EventStream, Script};
use super::wire::{Verdict, Wire};
use crate::profile::Profile;
use crate::text;

/// Time that uvicorn keeps an idle connection for.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// Before trying again to accept or to listen.
const PAUSE: Duration = Duration::from_millis(10);
/// Length of the queue of connections that uvicorn listens with.
const BACKLOG: u32 = 2048;

/// A server to simulate.
#[derive(Clone, Debug)]
pub struct SimOptions {
    /// The profile that it imitates, changes included.
    pub profile: Profile,
    /// The names that it serves, the first of which labels its metrics; none: the profile's model.
    pub served_model_names: Vec<String>,
    /// For answers and the jitter of steps.
    pub seed: u64,
    /// 5 runs five times as fast as the profile says; above 0.
    pub time_scale: f64,
    /// True if token counts tell the tokens found in the prefix cache.
    pub prompt_tokens_details: bool,
    /// True if `/load` counts; else it is always 0, as in vLLM.
    pub load_tracking: bool,
    /// Origins whose pages may use it; `*` is every one.
    pub allowed_origins: Vec<String>,
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
            allowed_origins: Vec::new(),
        }
    }
}

/// A simulated server without its listener.
pub struct Sim {
    options: SimOptions,
    names: Vec<String>,
    pacer: Arc<Pacer>,
    faults: Arc<Faults>,
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
        let pacer = Pacer::new(&options.profile, &names[0], options.seed, options.time_scale);
        let faults = Faults::new(Arc::clone(&pacer), options.seed);
        Arc::new(Sim { options, names, pacer, faults, started: unix_seconds(), ids: AtomicU64::new(0) })
    }

    /// The engine in real time, for its figures.
    #[must_use]
    pub fn pacer(&self) -> &Arc<Pacer> {
        &self.pacer
    }

    /// Returns what it does wrong.
    #[must_use]
    pub fn faults(&self) -> &Arc<Faults> {
        &self.faults
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
            // The same prompt gives the same answer, in every run and on every server with that seed.
            let answer = text::mix(text::mix(self.options.seed, ask.seed), text::hash_tokens(tokens));
            // Drawn from the answer's own hash: its length does not depend on what else was asked.
            let natural = profile.answer_tokens(text::mix(answer, u64::MAX) as f64 / u64::MAX as f64);
            let limited = ask.ignore_eos || natural >= ask.max_tokens;
            let prompt_tokens = tokens.len() as u32;
            for choice in 0..ask.n {
                script.answers.push(text::mix(answer, u64::from(choice)));
                script.finish.push(if limited { "length" } else { "stop" });
                script.prompt_tokens.push(prompt_tokens);
            }
            let output_tokens = if limited { ask.max_tokens } else { natural };
            let mut known = tokens.clone();
            // Several answers differ from each other and share the prompt alone.
            if let (1, Some(answer)) = (ask.n, script.answers.last()) {
                known.extend(text::answer(*answer, output_tokens));
            }
            work.push(Work {
                prompt_tokens,
                block_hashes: text::block_hashes(&known, profile.kv.block_size).into(),
                output_tokens,
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
        // vLLM takes the client's id for its own.
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
        if ticket.dead() {
            return Ok(answers::dead());
        }
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
    ([(header::CONTENT_TYPE, kind)], sim.pacer.metrics()).into_response()
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
    let origins: Arc<[String]> = sim.options.allowed_origins.clone().into();
    Router::new()
        .route("/v1/chat/completions", post(chat))
        .route("/v1/completions", post(completions))
        .route("/v1/models", get(async |State(sim): State<Arc<Sim>>| plain(StatusCode::OK, sim.models())))
        .route("/tokenize", post(async |State(sim): State<Arc<Sim>>, body: Bytes| answer(sim.tokenize(&body))))
        .route("/health", get(async || StatusCode::OK))
        .route("/load", get(load))
        .route("/version", get(async move || plain(StatusCode::OK, version)))
        .route("/metrics", get(metrics))
        .route("/sim/fault", answers::route(&sim.faults))
        .fallback(async || plain(StatusCode::NOT_FOUND, r#"{"detail":"Not Found"}"#.to_owned()))
        .method_not_allowed_fallback(async || {
            plain(StatusCode::METHOD_NOT_ALLOWED, r#"{"detail":"Method Not Allowed"}"#.to_owned())
        })
        .layer(from_fn_with_state(Arc::clone(&sim.faults), answers::gate))
        .layer(from_fn_with_state(origins, cors::allow))
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

/// Serves on `listener` until `shutdown` is ready; then all connections are cut. To be called once for each [`Sim`]. A fault
/// may close the listener; it is bound again to the same address when the fault is over.
pub async fn serve_sim(listener: TcpListener, sim: Arc<Sim>, shutdown: impl Future<Output = ()>) {
    // The engine runs whether the port is open or not: a server that only refuses connections goes on with what it has.
    let pacing = Aborting(tokio::spawn(Arc::clone(sim.pacer()).run()));
    let faults = Arc::clone(&sim.faults);
    let router = router(sim);
    let address = listener.local_addr();
    let mut listener = Some(listener);
    let mut connections = JoinSet::new();
    let mut signals = faults.signals();
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let port = faults.port();
        match (&listener, port, &address) {
            (Some(_), Port::Closed, _) => {
                // Dropped, not kept: new connections must be refused, and a listener that nobody asks would take them
                // into its queue.
                listener = None;
                if faults.process_ends() {
                    faults.end_connections();
                }
            }
            (None, Port::Open, Ok(address)) => listener = listen(*address).ok(),
            _ => {}
        }
        let look_again = async {
            match port {
                Port::Closing(left) => tokio::time::sleep(left).await,
                Port::Open if listener.is_none() => tokio::time::sleep(PAUSE).await,
                Port::Open | Port::Closed => std::future::pending().await,
            }
        };
        let accepted = tokio::select! {
            () = &mut shutdown => break,
            accepted = accept(listener.as_ref()) => accepted,
            // Ended connections are taken out as they end; the set would otherwise grow for as long as the server runs.
            Some(_) = connections.join_next() => continue,
            _ = signals.changed() => continue,
            () = look_again => continue,
        };
        let Ok(socket) = accepted else {
            // Out of descriptors, or a client that left at once: neither ends the server.
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        // A socket that is not spawned is dropped, which closes it.
        if !faults.closes_connection() {
            connections.spawn(connection(socket, router.clone(), faults.signals()));
        }
    }
    drop(pacing);
}

/// Serves `/sim/fault` alone, on a listener that no fault closes, until it is dropped.
pub async fn serve_faults(listener: TcpListener, faults: Arc<Faults>) {
    let router = answers::router(&faults);
    let signals = watch::Sender::new(Signal::Changed);
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = accept(Some(&listener)) => match accepted {
                Ok(socket) => {
                    connections.spawn(connection(socket, router.clone(), signals.subscribe()));
                }
                Err(_) => tokio::time::sleep(PAUSE).await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn accept(listener: Option<&TcpListener>) -> io::Result<TcpStream> {
    match listener {
        Some(listener) => listener.accept().await.map(|(socket, _)| socket),
        None => std::future::pending().await,
    }
}

async fn connection(socket: TcpStream, router: Router, mut signals: watch::Receiver<Signal>) {
    let _ = socket.set_nodelay(true);
    let verdict = Verdict::default();
    let wire = TokioIo::new(Wire::new(socket, verdict.clone()));
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let (mut request, mut router) = (request.map(Body::new), router.clone());
        request.extensions_mut().insert(verdict.clone());
        async move { router.call(request).await }
    });
    let mut server = hyper::server::conn::http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(KEEP_ALIVE);
    let mut serving = std::pin::pin!(server.serve_connection(wire, service));
    loop {
        tokio::select! {
            // First of all: an end of the process is an end before whatever else is to be written.
            biased;
            Ok(()) = signals.changed() => match *signals.borrow_and_update() {
                Signal::Changed => {}
                Signal::EndIdle => serving.as_mut().graceful_shutdown(),
                Signal::EndAll => return,
            },
            _ = &mut serving => return,
        }
    }
}

#[cfg(test)]
mod tests;
