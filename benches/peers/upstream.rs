//! The mock of two vLLM servers: chat completions, unary and streamed, and the paths that a router asks. Events and answers have
//! the members and the size of vLLM 0.32's. An event's `id` holds the moment at which it was sent.

use std::convert::Infallible;
use std::io::{Read as _, Write as _};
use std::pin::Pin;
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
use tokio::time::{Interval, MissedTickBehavior};

use super::Fallible;
use super::relay::listen;

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
}

impl Mode {
    const ALL: [Mode; 5] = [Mode::Unary, Mode::Paced, Mode::Burst, Mode::Turn, Mode::Silent];

    /// The value of the request's member `user`.
    pub(super) fn word(self) -> &'static str {
        match self {
            Mode::Unary => "unary",
            Mode::Paced => "paced",
            Mode::Burst => "burst",
            Mode::Turn => "turn",
            Mode::Silent => "silent",
        }
    }

    fn of(body: &[u8]) -> Mode {
        let start = &body[..body.len().min(200)];
        let says = |mode: &&Mode| {
            let member = format!("\"user\":\"{}\"", mode.word());
            start.windows(member.len()).any(|window| window == member.as_bytes())
        };
        Mode::ALL.iter().find(says).copied().unwrap_or(Mode::Unary)
    }
}

/// Nanoseconds of the monotonic clock, which all processes of a machine share.
pub(super) fn monotonic() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from);
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}

/// Serves two ports, prints them, and ends when its standard input does.
pub(super) async fn serve() -> Fallible<()> {
    for _ in 0..2 {
        let listener = listen(0)?;
        println!("{}", listener.local_addr()?.port());
        tokio::spawn(async move {
            loop {
                if let Ok((stream, _)) = listener.accept().await {
                    let _ = stream.set_nodelay(true);
                    let mut http = hyper::server::conn::http1::Builder::new();
                    http.timer(TokioTimer::new());
                    tokio::spawn(http.serve_connection(TokioIo::new(stream), service_fn(answer)));
                }
            }
        });
    }
    std::io::stdout().flush()?;
    let (gone, ended) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        let _ = gone.send(());
    });
    let _ = ended.await;
    Ok(())
}

async fn answer(request: Request<Incoming>) -> Result<Response<UnsyncBoxBody<Bytes, Infallible>>, hyper::Error> {
    let path = request.uri().path().to_owned();
    let body = request.into_body().collect().await?.to_bytes();
    let (kind, body) = match path.as_str() {
        "/v1/chat/completions" => match Mode::of(&body) {
            Mode::Unary => ("application/json", text(ANSWER.to_owned())),
            mode => ("text/event-stream; charset=utf-8", Events::new(mode).boxed_unsync()),
        },
        "/v1/models" => {
            ("application/json", text(r#"{"object":"list","data":[{"id":"mock","object":"model"}]}"#.to_owned()))
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

/// The body of a stream. Its first event comes at once.
struct Events {
    mode: Mode,
    pace: Option<Interval>,
    sent: u32,
    yielded: bool,
}

impl Events {
    fn new(mode: Mode) -> Events {
        static STARTED: AtomicU64 = AtomicU64::new(0);
        let every = match mode {
            Mode::Paced => Some(PACE),
            Mode::Turn => Some(TURN_PACE),
            _ => None,
        };
        let pace = every.map(|every| {
            // Streams tick out of step with each other, as those of an engine's many clients would through a proxy. Those of a turn
            // do so already, and a phase would lengthen their first gap.
            let phase = match mode {
                Mode::Paced => Duration::from_millis(STARTED.fetch_add(7, Ordering::Relaxed) % 10),
                _ => Duration::ZERO,
            };
            let mut pace = tokio::time::interval_at(tokio::time::Instant::now() + every + phase, every);
            pace.set_missed_tick_behavior(MissedTickBehavior::Skip);
            pace
        });
        Events { mode, pace, sent: 0, yielded: false }
    }

    /// How many events come before the end; `None` is no end.
    fn total(&self) -> Option<u32> {
        match self.mode {
            Mode::Burst => Some(BURST),
            Mode::Turn => Some(TURN),
            Mode::Unary | Mode::Paced | Mode::Silent => None,
        }
    }
}

impl Body for Events {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let total = self.total();
        if total.is_some_and(|total| self.sent > total) {
            return Poll::Ready(None);
        }
        if self.sent > 0 {
            if self.mode == Mode::Silent {
                return Poll::Pending;
            }
            if let Some(pace) = &mut self.pace {
                std::task::ready!(pace.poll_tick(cx));
            } else {
                self.yielded = !self.yielded;
                // hyper writes what it has when the body has nothing more: so each event is a write of its own, as vLLM's are.
                if self.yielded {
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
            }
        }
        self.sent += 1;
        let over = total.is_some_and(|total| self.sent > total);
        let data = if over { Bytes::from_static(END.as_bytes()) } else { event() };
        Poll::Ready(Some(Ok(Frame::data(data))))
    }
}
