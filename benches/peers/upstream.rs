//! The mock of vLLM servers: chat completions, unary and streamed, and the paths that a router asks. Events and answers have
//! the members and the size of vLLM 0.32's. An event's `id` holds the moment at which it was sent.

use std::convert::Infallible;
use std::io::{Read as _, Write as _};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body, Bytes, Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode, header};
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::time::{ClockId, clock_gettime};
use tokio::sync::mpsc::Receiver;
use tokio::time::{Interval, MissedTickBehavior};

use super::Fallible;
use super::relay::listen;
use super::rhythm::{self, Rhythm};

/// Bytes of one event.
pub(super) const EVENT_BYTES: usize = 218;
/// Where the 16 hexadecimal digits of the moment stand in an event.
pub(super) const MOMENT: std::ops::Range<usize> = 22..38;
/// Events of a stream without pace.
pub(super) const BURST: u32 = 64;
/// Events of a stream of [`Mode::Turn`].
pub(super) const TURN: u32 = 40;
/// Time between two events of a stream of [`Mode::Turn`].
pub(super) const TURN_PACE: Duration = Duration::from_millis(50);
/// Time between two events of a stream of [`Mode::Paced`].
pub(super) const PACE: Duration = Duration::from_millis(10);

/// Bytes of a body that are kept.
const START: usize = 200;
const END: &str = "data: [DONE]\n\n";
const ANSWER: &str = "{\"id\":\"chatcmpl-b382a3865df1be9c\",\"object\":\"chat.completion\",\"created\":1795429251,\"model\":\"mock\",\
    \"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"A short answer.\",\"refusal\":null,\"tool_calls\":[]},\
    \"logprobs\":null,\"finish_reason\":\"stop\",\"stop_reason\":null}],\"service_tier\":null,\"usage\":{\"prompt_tokens\":31,\
    \"total_tokens\":35,\"completion_tokens\":4,\"prompt_tokens_details\":null},\"prompt_logprobs\":null}";

/// How an answer comes. The request names it in its member `user`, which stands first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// Whole, at once.
    Unary,
    /// An event every [`PACE`], until the client leaves.
    Paced,
    /// [`BURST`] events as fast as they can be written, each by itself, and the end.
    Burst,
    /// [`TURN`] events, one every [`TURN_PACE`], and the end.
    Turn,
    /// One event, and then nothing until the client leaves.
    Silent,
    /// Events as fast as they are taken, until the client leaves.
    Endless,
    /// Events at a rate that all streams of the rhythm share, until the client leaves.
    Shared(Rhythm),
}

impl Mode {
    /// The value of the request's member `user`.
    pub(super) fn word(self) -> String {
        match self {
            Mode::Unary => "unary".to_owned(),
            Mode::Paced => "paced".to_owned(),
            Mode::Burst => "burst".to_owned(),
            Mode::Turn => "turn".to_owned(),
            Mode::Silent => "silent".to_owned(),
            Mode::Endless => "endless".to_owned(),
            Mode::Shared(rhythm) => rhythm.to_string(),
        }
    }

    /// The mode that a body names, of which the first bytes are enough.
    fn of(body: &[u8]) -> Mode {
        let start = String::from_utf8_lossy(body);
        let word = start.split_once("\"user\":\"").and_then(|(_, rest)| rest.split_once('"')).map(|(word, _)| word);
        match word {
            Some("paced") => Mode::Paced,
            Some("burst") => Mode::Burst,
            Some("turn") => Mode::Turn,
            Some("silent") => Mode::Silent,
            Some("endless") => Mode::Endless,
            Some(word) => word.parse().map_or(Mode::Unary, Mode::Shared),
            None => Mode::Unary,
        }
    }
}

/// Nanoseconds of the monotonic clock, which all processes of a machine share.
pub(super) fn monotonic() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from);
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}

/// Serves as many ports as `role` says, with a model of its name: `upstream PORTS MODEL`. Prints the ports, and ends when its
/// standard input does.
pub(super) async fn serve(role: &str) -> Fallible<()> {
    let mut words = role.split_whitespace().skip(1);
    let (ports, model) = (words.next().ok_or("how many ports?")?.parse::<u32>()?, words.next().ok_or("which model?")?);
    let model: Arc<str> = model.into();
    for _ in 0..ports {
        let (listener, model) = (listen(0)?, Arc::clone(&model));
        println!("{}", listener.local_addr()?.port());
        tokio::spawn(async move {
            loop {
                if let Ok((stream, _)) = listener.accept().await {
                    let _ = stream.set_nodelay(true);
                    let mut http = hyper::server::conn::http1::Builder::new();
                    http.timer(TokioTimer::new());
                    let model = Arc::clone(&model);
                    let service = service_fn(move |request| answer(request, Arc::clone(&model)));
                    tokio::spawn(http.serve_connection(TokioIo::new(stream), service));
                }
            }
        });
    }
    std::io::stdout().flush()?;
    parent_gone().await;
    Ok(())
}

/// Waits until the standard input ends, which this process has from its parent.
pub(super) async fn parent_gone() {
    let (gone, ended) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        let _ = gone.send(());
    });
    let _ = ended.await;
}

/// Reads a body to its end. Returns its first bytes: to keep 50 MB would hold up the events of this thread.
async fn start_of(mut body: Incoming) -> Result<Vec<u8>, hyper::Error> {
    let mut start = Vec::with_capacity(START);
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data() {
            start.extend_from_slice(&data[..data.len().min(START - start.len())]);
        }
    }
    Ok(start)
}

async fn answer(
    request: Request<Incoming>,
    model: Arc<str>,
) -> Result<Response<UnsyncBoxBody<Bytes, Infallible>>, hyper::Error> {
    let path = request.uri().path().to_owned();
    let body = start_of(request.into_body()).await?;
    let (kind, body) = match path.as_str() {
        "/v1/chat/completions" => match Mode::of(&body) {
            Mode::Unary => ("application/json", text(ANSWER.to_owned())),
            mode => ("text/event-stream; charset=utf-8", Events::new(mode).boxed_unsync()),
        },
        "/v1/models" => {
            let list = format!(r#"{{"object":"list","data":[{{"id":"{model}","object":"model"}}]}}"#);
            ("application/json", text(list))
        }
        "/metrics" => ("text/plain; version=1.0.0; charset=utf-8", text(metrics())),
        "/health" | "/version" => ("application/json", text(String::new())),
        _ => {
            let mut missing = Response::new(text("{\"detail\":\"Not Found\"}".to_owned()));
            *missing.status_mut() = StatusCode::NOT_FOUND;
            return Ok(missing);
        }
    };
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    Ok(response)
}

fn text(text: String) -> UnsyncBoxBody<Bytes, Infallible> {
    Full::new(Bytes::from(text)).boxed_unsync()
}

/// What a router reads. The step count grows at every scrape, so that a silent stream is no hung engine.
fn metrics() -> String {
    static STEPS: AtomicU64 = AtomicU64::new(0);
    let steps = STEPS.fetch_add(100, Ordering::Relaxed);
    let label = "{engine=\"0\",model_name=\"mock\"}";
    format!(
        "# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running{label} 1.0\n\
         # TYPE vllm:num_requests_waiting gauge\nvllm:num_requests_waiting{label} 0.0\n\
         # TYPE vllm:kv_cache_usage_perc gauge\nvllm:kv_cache_usage_perc{label} 0.1\n\
         # TYPE vllm:iteration_tokens_total histogram\nvllm:iteration_tokens_total_count{label} {steps}.0\n\
         # TYPE vllm:generation_tokens counter\nvllm:generation_tokens_total{label} {steps}.0\n"
    )
}

fn event() -> Bytes {
    Bytes::from(format!(
        "data: {{\"id\":\"chatcmpl-{:016x}\",\"object\":\"chat.completion.chunk\",\"created\":1795429251,\"model\":\"mock\",\
         \"choices\":[{{\"index\":0,\"delta\":{{\"content\":\" short\"}},\"logprobs\":null,\"finish_reason\":null,\
         \"token_ids\":null}}]}}\n\n",
        monotonic()
    ))
}

/// The moments at which the events of a stream are due.
enum Pace {
    /// As soon as the one before is taken. Each is a write of its own, as vLLM's are: hyper writes what it has when the body has
    /// nothing more, so every other poll has nothing.
    AtOnce { yielded: bool },
    /// By the stream's own clock.
    Every(Interval),
    /// By the clock of a rhythm.
    Told(Receiver<()>),
    /// Never.
    Never,
}

impl Pace {
    fn of(mode: Mode) -> Pace {
        static STARTED: AtomicU64 = AtomicU64::new(0);
        let (every, phase) = match mode {
            // Streams tick out of step with each other, as those of an engine's many clients would through a proxy. Those of a turn
            // do so already, and a phase would lengthen their first gap.
            Mode::Paced => (PACE, Duration::from_millis(STARTED.fetch_add(7, Ordering::Relaxed) % 10)),
            Mode::Turn => (TURN_PACE, Duration::ZERO),
            Mode::Shared(rhythm) => return Pace::Told(rhythm::join(rhythm)),
            Mode::Silent => return Pace::Never,
            Mode::Unary | Mode::Burst | Mode::Endless => return Pace::AtOnce { yielded: false },
        };
        let mut pace = tokio::time::interval_at(tokio::time::Instant::now() + every + phase, every);
        pace.set_missed_tick_behavior(MissedTickBehavior::Skip);
        Pace::Every(pace)
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Pace::AtOnce { yielded } => {
                *yielded = !*yielded;
                if *yielded {
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                Poll::Ready(())
            }
            Pace::Every(interval) => interval.poll_tick(cx).map(|_| ()),
            // The clock runs as long as the process.
            Pace::Told(due) => due.poll_recv(cx).map(|_| ()),
            Pace::Never => Poll::Pending,
        }
    }
}

/// The body of a stream. Its first event comes at once.
struct Events {
    pace: Pace,
    /// How many events come before the end; `None` is no end.
    total: Option<u32>,
    sent: u32,
}

impl Events {
    fn new(mode: Mode) -> Events {
        let total = match mode {
            Mode::Burst => Some(BURST),
            Mode::Turn => Some(TURN),
            Mode::Unary | Mode::Paced | Mode::Silent | Mode::Endless | Mode::Shared(_) => None,
        };
        Events { pace: Pace::of(mode), total, sent: 0 }
    }
}

impl Body for Events {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.total.is_some_and(|total| self.sent > total) {
            return Poll::Ready(None);
        }
        if self.sent > 0 {
            std::task::ready!(self.pace.poll(cx));
        }
        self.sent = self.sent.saturating_add(1);
        let over = self.total.is_some_and(|total| self.sent > total);
        let data = if over { Bytes::from_static(END.as_bytes()) } else { event() };
        Poll::Ready(Some(Ok(Frame::data(data))))
    }
}
