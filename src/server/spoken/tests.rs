//! hyper's side of a connection, and who takes its place while a stream goes past it.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::{Ready, ready};
use std::sync::Mutex;
use std::task::Waker;

use http::{Request, Response};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::mpsc;

use super::super::ear::watched;
use super::*;
use crate::proxy::body::{AnswerBody, Message};
use crate::proxy::{Outlet, Passed};
use forebay_core::clock::Clock;

const ASKS: &[u8] = b"POST / HTTP/1.1\r\nhost: a\r\n\r\n";
const CLOSES: &[u8] = b"POST / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";

/// Answers each request with a stream.
struct Streams {
    answers: Mutex<VecDeque<mpsc::Receiver<Message>>>,
    state: Arc<ConnState>,
    keeper: Arc<Keeper<AnswerBody>>,
    outlet: Arc<dyn Outlet>,
}

impl hyper::service::Service<Request<Incoming>> for Streams {
    type Response = Response<Counted<AnswerBody>>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        self.state.set_closes(request.headers().contains_key("connection"));
        let messages = self.answers.lock().unwrap().pop_front().expect("a stream for each request");
        let body = AnswerBody::relayed(messages, Some(Arc::clone(&self.outlet)));
        ready(Ok(Response::new(Counted::new(body, self.state.begin(false), Arc::clone(&self.keeper)))))
    }
}

/// Both ends of a connection, and the relays of its answers.
struct Scene {
    spoken: Spoken<'static, DuplexStream, Streams, AnswerBody>,
    client: DuplexStream,
    outlet: Arc<dyn Outlet>,
    relays: Vec<mpsc::Sender<Message>>,
}

impl Scene {
    fn new() -> Scene {
        let (client, ours) = duplex(1 << 16);
        let state = ConnState::new(Clock::system());
        let (io, _) = watched(ours, &state);
        let (outlet, keeper) = (io.outlet(), Keeper::new());
        let (relays, answers): (Vec<_>, VecDeque<_>) = (0..2).map(|_| mpsc::channel(8)).unzip();
        let protocols =
            Protocols { http1: http1::Builder::new(), http2: http2::Builder::new(StreamExecutor { stall: None }) };
        let service = Streams {
            answers: Mutex::new(answers),
            state: Arc::clone(&state),
            keeper: Arc::clone(&keeper),
            outlet: Arc::clone(&outlet),
        };
        // Few and small: a test's scene has no end of its own.
        let known = (&*Box::leak(Box::new(protocols)), &**Box::leak(Box::new(state)));
        Scene { spoken: Spoken::new(io, service, known, keeper), client, outlet, relays }
    }

    fn poll(&mut self) -> Poll<Result<(), Broke>> {
        Pin::new(&mut self.spoken).poll(&mut Context::from_waker(Waker::noop()))
    }

    async fn asks(&mut self, request: &[u8]) -> String {
        self.client.write_all(request).await.unwrap();
        assert!(self.poll().is_pending());
        self.got().await
    }

    /// All that the client has got and not read.
    async fn got(&mut self) -> String {
        let mut bytes = [0; 1 << 12];
        let read = self.client.read(&mut bytes).await.unwrap();
        String::from_utf8_lossy(&bytes[..read]).into_owned()
    }

    fn passes(&self, piece: &str) -> Passed {
        self.outlet.pass(&mut Context::from_waker(Waker::noop()), piece.as_bytes()).unwrap()
    }
}

#[tokio::test]
async fn hyper_is_gone_while_a_stream_goes_past_it_and_back_for_the_next_request() {
    let mut scene = Scene::new();
    for turn in 0..2 {
        let head = scene.asks(ASKS).await;
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && head.ends_with("\r\n\r\n"), "{head}");
        assert!(matches!(scene.spoken.stage, Stage::Past(..)));
        assert_eq!(scene.passes("data: 1\n\n"), Passed::Whole);
        assert_eq!(scene.got().await, "9\r\ndata: 1\n\n\r\n");
        scene.relays[turn].try_send(Message::Data("late".into())).unwrap();
        scene.relays[turn].try_send(Message::End).unwrap();
        assert!(scene.poll().is_pending());
        assert_eq!(scene.got().await, "4\r\nlate\r\n0\r\n\r\n");
        assert!(matches!(scene.spoken.stage, Stage::Http1(_)));
    }
}

#[tokio::test]
async fn a_request_in_the_pipe_is_answered_after_the_stream_before_it() {
    let mut scene = Scene::new();
    let both = [ASKS, ASKS].concat();
    let head = scene.asks(&both).await;
    assert_eq!(head.matches("HTTP/1.1 200").count(), 1, "{head}");
    scene.relays[0].try_send(Message::End).unwrap();
    assert!(scene.poll().is_pending());
    let rest = scene.got().await;
    assert!(rest.starts_with("0\r\n\r\nHTTP/1.1 200 OK\r\n"), "{rest}");
}

#[tokio::test]
async fn a_connection_that_is_to_close_does_so_after_the_stream() {
    for told in [false, true] {
        let mut scene = Scene::new();
        scene.asks(if told { ASKS } else { CLOSES }).await;
        assert!(matches!(scene.spoken.stage, Stage::Past(..)));
        if told {
            scene.spoken.end();
        }
        assert!(scene.poll().is_pending(), "the stream goes on");
        scene.relays[0].try_send(Message::End).unwrap();
        assert!(matches!(scene.poll(), Poll::Ready(Ok(()))));
        assert_eq!(scene.got().await, "0\r\n\r\n");
        assert_eq!(scene.got().await, "", "the end");
    }
}

#[tokio::test]
async fn a_stream_that_is_cut_has_no_last_chunk() {
    let mut scene = Scene::new();
    scene.asks(ASKS).await;
    scene.relays[0].try_send(Message::Data("data: 1".into())).unwrap();
    scene.relays.clear();
    assert!(scene.poll().is_pending(), "what came before the cut is written first");
    assert!(matches!(scene.poll(), Poll::Ready(Err(_))));
    assert_eq!(scene.got().await, "7\r\ndata: 1\r\n");
}
