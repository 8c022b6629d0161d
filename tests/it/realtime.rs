//! WebSockets to `/v1/realtime`, through a real WebSocket server and client (tungstenite): passed on whole, counted, drained, and
//! closed where nobody asked for them.

use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use tungstenite::handshake::client::Response;
use tungstenite::{Message, WebSocket};

use crate::harness::{DEADLINE, Forebay, Harness, eventually};
use crate::mock::Mock;

const OPEN: &str = "[paths]\nrealtime = true";

/// A server that sends back what it gets, on as many connections as come; it answers probes as a vLLM at rest.
fn echo() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || serve(stream));
        }
    });
    url
}

fn serve(stream: TcpStream) {
    let mut start = [0; 64];
    let read = eventually("a request comes", || match stream.peek(&mut start) {
        Ok(read) if read >= 16 || read == 0 => Some(read),
        Ok(_) => None,
        Err(_) => Some(0),
    });
    if !start[..read].starts_with(b"GET /v1/realtime") {
        use std::io::{Read, Write};
        let mut stream = stream;
        let mut head = [0; 4096];
        while stream.read(&mut head).is_ok_and(|read| read > 0) {
            let body = r#"{"object":"list","data":[{"id":"tiny","object":"model"}]}"#;
            let answer = format!(
                "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            );
            if stream.write_all(answer.as_bytes()).is_err() {
                return;
            }
        }
        return;
    }
    let Ok(mut socket) = tungstenite::accept(stream) else { return };
    while let Ok(message) = socket.read() {
        let last = message.is_close();
        if message.is_text() || message.is_binary() {
            drop(socket.send(message));
        }
        if last {
            drop(socket.flush());
        }
    }
}

fn pool(url: &str) -> String {
    format!(
        "[[pools]]\nmodel = \"tiny\"\naliases = [\"small\"]\nunknown_models = \"refuse\"\nbackends = [{{ url = \"{url}\" }}]"
    )
}

type Socket = WebSocket<TcpStream>;

fn connect(forebay: &Forebay, target: &str) -> Result<(Socket, Response), u16> {
    let stream = TcpStream::connect(forebay.address).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let url = format!("ws://{}{target}", forebay.address);
    tungstenite::client(url, stream).map_err(|error| match error {
        tungstenite::HandshakeError::Failure(tungstenite::Error::Http(answer)) => answer.status().as_u16(),
        other => panic!("{other}"),
    })
}

fn in_flight(forebay: &Forebay) -> f64 {
    forebay.metric("forebay_in_flight", &[])
}

#[test]
fn a_websocket_is_passed_on_and_counted_as_long_as_it_lives() {
    let forebay = Harness::new().config(OPEN).pools(&pool(&echo())).start();
    let (mut socket, answer) = connect(&forebay, "/v1/realtime?model=small").unwrap();
    assert!(
        answer.headers().contains_key("sec-websocket-accept") && answer.headers().contains_key("x-forebay-backend")
    );
    eventually("it has a place", || (in_flight(&forebay) == 1.0).then_some(()));
    assert_eq!(forebay.metric("forebay_connections", &[]), 1.0, "and is an open connection");
    for text in ["hello", "", &"x".repeat(1 << 20)] {
        socket.send(Message::text(text)).unwrap();
        assert_eq!(socket.read().unwrap(), Message::text(text));
    }
    socket.send(Message::binary(vec![0, 255, 7])).unwrap();
    assert_eq!(socket.read().unwrap(), Message::binary(vec![0, 255, 7]));
    socket.close(None).unwrap();
    while socket.read().is_ok() {}
    eventually("its place is free", || (in_flight(&forebay) == 0.0).then_some(()));
    eventually("its connection is closed", || (forebay.metric("forebay_connections", &[]) == 0.0).then_some(()));
    let outcome = ["api=\"other\"", "outcome=\"success\""];
    eventually("it is counted", || (forebay.metric("forebay_requests_total", &outcome) == 1.0).then_some(()));
}

#[test]
fn a_client_that_vanishes_frees_its_place() {
    let forebay = Harness::new().config(OPEN).pools(&pool(&echo())).start();
    let (mut socket, _) = connect(&forebay, "/v1/realtime").unwrap();
    socket.send(Message::text("a")).unwrap();
    socket.read().unwrap();
    eventually("it has a place", || (in_flight(&forebay) == 1.0).then_some(()));
    drop(socket);
    eventually("its place is free", || (in_flight(&forebay) == 0.0).then_some(()));
}

#[test]
fn a_drain_waits_for_it_until_the_limit() {
    let limit = "[listen]\ndrain = { limit = \"2s\" }";
    let forebay = Harness::new().config(OPEN).config(limit).pools(&pool(&echo())).start();
    let mut forebay = forebay;
    let (mut socket, _) = connect(&forebay, "/v1/realtime").unwrap();
    forebay.signal("TERM");
    forebay.tells("draining");
    socket.send(Message::text("still here")).unwrap();
    assert_eq!(socket.read().unwrap(), Message::text("still here"));
    assert!(forebay.is_running());
    // Nobody ends it, so the limit does.
    while socket.read().is_ok() {}
    forebay.exit(Duration::from_secs(10));
}

#[test]
fn a_drain_ends_when_the_last_one_does() {
    let mut forebay = Harness::new().config(OPEN).pools(&pool(&echo())).start();
    let (mut socket, _) = connect(&forebay, "/v1/realtime").unwrap();
    forebay.signal("TERM");
    forebay.tells("draining");
    socket.close(None).unwrap();
    while socket.read().is_ok() {}
    drop(socket);
    forebay.exit(Duration::from_secs(8));
}

#[test]
fn it_is_closed_unless_asked_for_and_refused_as_other_requests_are() {
    let url = echo();
    let closed = Harness::new().pools(&pool(&url)).start();
    assert_eq!(connect(&closed, "/v1/realtime").err(), Some(404));
    let key = "alice = 2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae\n";
    let keyed =
        Harness::new().config(OPEN).config("[clients]\nkeys_file = \"k\"").file("k", key).pools(&pool(&url)).start();
    assert_eq!(connect(&keyed, "/v1/realtime").err(), Some(401));
    let forebay = Harness::new().config(OPEN).pools(&pool(&url)).start();
    assert_eq!(connect(&forebay, "/v1/realtime?model=nope").err(), Some(404));
    let plain = forebay.get("/v1/realtime");
    assert_eq!((plain.status, plain.header("x-forebay-error")), (400, Some("forebay_bad_request")));
    assert_eq!(forebay.post("/v1/realtime", "{}").status, 405);
}

#[test]
fn a_backend_that_does_not_agree_has_the_last_word_and_one_that_is_gone_is_passed_over() {
    // A text model: vLLM has no such path and answers 403 to a WebSocket.
    let mock = Mock::replying(|_| crate::mock::answer(403, &[], "no"));
    let forebay = Harness::new().config(OPEN).pool("tiny", &[&mock]).start();
    assert_eq!(connect(&forebay, "/v1/realtime").err(), Some(403));
    assert_eq!(mock.only().header("upgrade"), Some("websocket"));
    let gone = Mock::start();
    gone.refuse();
    let both = format!(
        "[health]\ninterval = \"60s\"\n[[pools]]\nmodel = \"tiny\"\npolicy = \"round_robin\"\nbackends = [{{ url = \"{}\" }}, {{ url = \"{}\" }}]",
        gone.url(),
        echo()
    );
    let forebay = Harness::new().config(OPEN).pools(&both).start();
    for _ in 0..4 {
        let (mut socket, _) = connect(&forebay, "/v1/realtime").unwrap();
        socket.send(Message::text("a")).unwrap();
        assert_eq!(socket.read().unwrap(), Message::text("a"));
    }
}

#[test]
fn it_waits_for_a_place_as_any_request_does() {
    let room = "backend_max_in_flight = 1\nwait_room = { timeout = \"10s\" }\n";
    let one = pool(&echo()).replace("unknown_models", &format!("{room}unknown_models"));
    let forebay = Harness::new().config(OPEN).pools(&one).start();
    let (mut first, _) = connect(&forebay, "/v1/realtime").unwrap();
    let waiting = |count: f64| {
        eventually(&format!("{count} wait"), || (forebay.metric("forebay_waiting", &[]) == count).then_some(()));
    };
    std::thread::scope(|scope| {
        let second = scope.spawn(|| {
            connect(&forebay, "/v1/realtime").map(|(mut socket, _)| {
                socket.send(Message::text("at last")).unwrap();
                socket.read().unwrap()
            })
        });
        waiting(1.0);
        // One that leaves while it waits gives its turn up.
        let mut left = forebay.open();
        left.send(
            b"GET /v1/realtime HTTP/1.1\r\nhost: f\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
              sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        );
        waiting(2.0);
        drop(left);
        waiting(1.0);
        first.close(None).unwrap();
        while first.read().is_ok() {}
        assert_eq!(second.join().unwrap().unwrap(), Message::text("at last"));
    });
    eventually("its place is free", || (in_flight(&forebay) == 0.0).then_some(()));
}

#[test]
fn another_backend_is_asked_before_one_agrees_as_far_as_the_budget_goes() {
    let full = Mock::replying(|_| crate::mock::answer(503, &[("retry-after", "0")], "full"));
    let broken = Mock::replying(|_| crate::mock::answer(500, &[], "broken"));
    let with = |first: &Mock, budget: &str| {
        Harness::new()
            .config(OPEN)
            .config(&format!("[health]\ninterval = \"60s\"\n[retry]\nbudget = {{ {budget} }}"))
            .pools(&format!(
                "[[pools]]\nmodel = \"tiny\"\npolicy = \"round_robin\"\nbackends = [{{ url = \"{}\" }}, {{ url = \"{}\" }}]",
                first.url(),
                echo()
            ))
            .start()
    };
    for first in [&full, &broken] {
        let forebay = with(first, "burst = 10, ratio = 1, per_second = 0");
        for _ in 0..4 {
            assert!(connect(&forebay, "/v1/realtime").is_ok(), "another is asked");
        }
        assert!(!first.seen().is_empty());
    }
    let spent = "burst = 0, ratio = 0, per_second = 0";
    for (first, status) in [(&full, 503), (&broken, 500)] {
        let forebay = with(first, spent);
        let answers = [(), ()].map(|()| connect(&forebay, "/v1/realtime").err());
        assert!(answers.contains(&Some(status)), "{answers:?}: nothing pays for another attempt");
    }
}
