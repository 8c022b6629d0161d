//! Streams over HTTP/1.1 go past hyper on both sides: their chunks are read and written by Forebay's own code. What a backend sends
//! wrongly ends its stream as a truncation and its connection; no byte of it reaches another request. Clients see no difference.

use std::sync::Arc;
use std::time::Duration;

use crate::client::{Answer, Conn, End, on_h2, post, read_h2};
use crate::harness::{Forebay, Harness, eventually};
use crate::mock::{CHAT, DONE, Gate, Mock, Seen, Step, answer, chunk, last_chunk, stream_head, token};

const PATH: &str = "/v1/chat/completions";
const STREAM: &str = r#"{"model":"tiny","stream":true,"messages":[]}"#;
const UNARY: &str = r#"{"model":"tiny","messages":[]}"#;

fn one(mock: &Mock) -> Forebay {
    Harness::new().pool("tiny", &[mock]).start()
}

fn bytes(step: Step) -> Vec<u8> {
    match step {
        Step::Send(bytes) => bytes,
        _ => unreachable!("bytes to send"),
    }
}

/// A chunk whose size is written like this; `{}` stands for the size in hex.
fn sized(size: &str, text: &str) -> Vec<u8> {
    [size.replace("{}", &format!("{:x}", text.len())).as_bytes(), b"\r\n", text.as_bytes(), b"\r\n"].concat()
}

fn ask(forebay: &Forebay) -> Answer {
    forebay.open().ask(&post(PATH, &[], STREAM.as_bytes()))
}

/// The next request is answered as if nothing had been, on a connection of its own if `fresh`.
fn next_is_answered(forebay: &Forebay, mock: &Mock, fresh: bool) {
    let before = mock.last();
    mock.next(answer(200, &[], CHAT));
    let got = forebay.post(PATH, UNARY);
    assert_eq!((got.status, got.text().as_str()), (200, CHAT));
    let last = mock.last();
    assert_eq!(last.connection != before.connection, fresh, "{} after {}", last.connection, before.connection);
}

#[test]
fn chunks_in_any_legal_form_arrive_and_their_connection_is_used_again() {
    let whole = [&token("one"), &token("two"), DONE].concat();
    for size in
        ["{}", "000{}", "00000000000000{}", "0000000000000000000{}", "{};x", "{};name=\"a b\"", "{} \t", "{} ;x"]
    {
        let body: Vec<u8> =
            [token("one"), token("two"), DONE.into()].iter().flat_map(|text| sized(size, text)).collect();
        for end in ["0\r\n\r\n", "000;x=y\r\n\r\n", "0\r\nx-trailer: 1\r\n\r\n", "0\r\na: b\r\nc: d\r\n\r\n"] {
            let mock = Mock::start();
            let forebay = one(&mock);
            mock.next(vec![stream_head(), Step::Send([&body, end.as_bytes()].concat())]);
            let got = ask(&forebay);
            assert_eq!((got.text(), got.end), (whole.clone(), End::Whole), "{size} {end:?}");
            next_is_answered(&forebay, &mock, false);
        }
        let mock = Mock::playing(vec![stream_head(), Step::Trickle([&body, &b"0\r\n\r\n"[..]].concat())]);
        let got = ask(&one(&mock));
        assert_eq!((got.text(), got.end), (whole.clone(), End::Whole), "{size} byte by byte");
    }
}

#[test]
fn what_is_no_chunk_ends_the_stream_as_a_truncation_and_the_connection() {
    let smuggled = "HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\nsmuggled";
    let two = token("two");
    let (long, lf) = (format!("1{:016x}\r\n{two}\r\n", two.len()), format!("{:x}\n{two}\r\n", two.len()));
    let cases = [
        lf,
        long,
        format!("{:x};a\nb\r\n{two}\r\n", two.len()),
        format!("{:x}\r\n{two}x\r\n", two.len()),
        format!("{:x}\r\n{two}\n", two.len()),
        format!("-{:x}\r\n{two}\r\n", two.len()),
        "\r\n0\r\n\r\n".into(),
        "0\r\nno trailer\r\n\r\n".into(),
        "0\r\n x\r\n\r\n".into(),
        format!("{:x};{}\r\n{two}\r\n", two.len(), "x".repeat(20_000)),
        format!("0\r\nx: {}\r\n\r\n", "x".repeat(20_000)),
        smuggled.into(),
    ];
    for wrong in cases {
        let (mock, seen) = (Mock::start(), Gate::new());
        let forebay = one(&mock);
        let after = [wrong.as_bytes(), smuggled.as_bytes()].concat();
        mock.next(vec![
            stream_head(),
            chunk(token("one")),
            Step::Wait(seen.clone()),
            Step::Send(after),
            Step::AwaitClose,
        ]);
        let mut client = forebay.open();
        client.send(&post(PATH, &[], STREAM.as_bytes()));
        client.until("one");
        seen.open();
        let got = client.answer();
        mock.await_closes(1);
        let shown = wrong.escape_debug().to_string();
        assert!(
            got.text().starts_with(&token("one")) && got.text().contains("forebay_stream_cut"),
            "{shown}: {}",
            got.text()
        );
        assert!(got.end == End::Cut && !got.text().contains("smuggled"), "{shown}");
        let record = forebay.record(got.header("x-request-id").unwrap());
        assert_eq!(record["outcome"], "truncated", "{shown}");
        next_is_answered(&forebay, &mock, true);
    }
}

#[test]
fn bytes_after_the_last_chunk_reach_no_request() {
    let smuggled = "HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\nsmuggled";
    for behind in ["\r\n", "x", "0\r\n\r\n", smuggled] {
        let whole = [&token("one"), DONE].concat();
        let body = [sized("{}", &whole), b"0\r\n\r\n".to_vec(), behind.into()].concat();
        let mock = Mock::start();
        let forebay = one(&mock);
        mock.next(vec![stream_head(), Step::Send(body)]);
        let got = ask(&forebay);
        assert_eq!((got.text(), got.end), (whole, End::Whole), "{behind:?}");
        next_is_answered(&forebay, &mock, true);
    }
}

/// The bytes of a stream up to here came, and then this.
fn ended_after(end: usize, how: &Step) {
    let event = token("two");
    let body = [sized("{};x", &event), b"0\r\nx: y\r\n\r\n".to_vec()].concat();
    let (mock, seen) = (Mock::start(), Gate::new());
    let forebay = one(&mock);
    let steps = [stream_head(), chunk(token("one")), Step::Wait(seen.clone()), Step::Send(body[..end].to_vec())];
    mock.next(steps.into_iter().chain([how.clone()]).collect());
    let mut client = forebay.open();
    client.send(&post(PATH, &[], STREAM.as_bytes()));
    client.until("one");
    seen.open();
    let got = client.answer();
    assert_eq!(got.end, End::Cut, "after {end}");
    let text = got.text();
    assert!(text.starts_with(&token("one")) && text.contains("forebay_stream_cut"), "after {end}: {text}");
    let there = text.contains(&event);
    // A reset may throw away what came just before it.
    assert!(there == (end >= body.len() - 15) || matches!(how, Step::Reset), "after {end}: {text}");
    next_is_answered(&forebay, &mock, true);
}

#[test]
fn a_close_or_a_reset_in_each_state_is_a_truncation() {
    let body = sized("{};x", &token("two")).len() + 11;
    // In the size, the extension, the data, the ends of both, the last chunk, the trailer.
    for end in [
        0,
        1,
        2,
        3,
        4,
        5,
        6,
        7,
        60,
        body - 14,
        body - 13,
        body - 12,
        body - 11,
        body - 10,
        body - 8,
        body - 5,
        body - 1,
    ] {
        for how in [Step::Close, Step::Reset] {
            ended_after(end, &how);
        }
    }
}

#[test]
fn a_request_in_the_pipe_waits_for_the_stream_before_it() {
    let (mock, seen) = (Mock::start(), Gate::new());
    let forebay = one(&mock);
    let rest = [chunk(token("two")), chunk(DONE), last_chunk()];
    mock.next([stream_head(), chunk(token("one")), Step::Wait(seen.clone())].into_iter().chain(rest).collect());
    let mut client = forebay.open();
    client.send(&post(PATH, &[], STREAM.as_bytes()));
    client.until("one");
    client.send(&[post(PATH, &[], UNARY.as_bytes()), post(PATH, &[], STREAM.as_bytes())].concat());
    seen.open();
    assert_eq!(client.answer().text(), [&token("one"), &token("two"), DONE].concat());
    assert_eq!(client.answer().text(), CHAT);
    assert_eq!(client.answer().text(), [&token("Hel"), &token("lo"), DONE].concat());
}

/// A stream of many events, each a step of its own.
fn many(events: usize) -> (Vec<Step>, String) {
    let texts: Vec<String> = (0..events).map(|at| token(&format!("{at}-{}", "x".repeat(at % 700)))).collect();
    let steps = [stream_head()].into_iter().chain(texts.iter().map(chunk));
    (steps.chain([chunk(DONE), last_chunk()]).collect(), texts.concat() + DONE)
}

#[test]
fn every_kind_of_client_gets_the_same_bytes() {
    let (script, whole) = many(500);
    let mock = Mock::playing(script);
    let forebay = one(&mock);
    for headers in [&[][..], &[("connection", "close")], &[("connection", "keep-alive")]] {
        let mut client = forebay.open();
        let got = client.ask(&post(PATH, headers, STREAM.as_bytes()));
        assert_eq!((got.text(), got.end), (whole.clone(), End::Whole));
        if headers.contains(&("connection", "close")) {
            assert!(client.closed() < Duration::from_secs(2) && client.received().is_empty());
        } else {
            assert_eq!(client.ask(&post(PATH, &[], STREAM.as_bytes())).text(), whole, "again on this connection");
        }
    }
    let old = String::from_utf8(post(PATH, &[], STREAM.as_bytes())).unwrap().replace("HTTP/1.1", "HTTP/1.0");
    let got = forebay.open().ask(old.as_bytes());
    assert_eq!((got.header("transfer-encoding"), got.text()), (None, whole.clone()));
    on_h2(forebay.address, 1 << 20, async |mut h2| {
        let (body, end) = read_h2(h2.post(PATH, STREAM).await.into_body()).await;
        assert_eq!((String::from_utf8(body).unwrap(), end), (whole, Ok(())));
    });
}

#[test]
fn a_client_whose_socket_holds_little_gets_every_byte_and_no_chunk_is_torn() {
    let (script, whole) = many(3000);
    let mock = Mock::playing(script);
    let forebay = one(&mock);
    let mut client = Conn::open_narrow(forebay.address);
    let got = client.ask(&post(PATH, &[], STREAM.as_bytes()));
    assert!(got.end == End::Whole && got.text() == whole, "bytes were lost or changed");
}

#[test]
fn a_client_that_stops_reading_in_the_middle_is_cut_and_its_backend_closed() {
    let flood = Step::Flood(bytes(chunk(token(&"x".repeat(10_000)))));
    let mock = Mock::replying(move |seen: &Seen| match seen.json()["stream"] == true {
        true => vec![stream_head(), chunk(token("one")), flood.clone()],
        false => answer(200, &[], CHAT),
    });
    let forebay = Harness::new().config("[limits]\nwrite_stall = \"700ms\"").pool("tiny", &[&mock]).start();
    let mut client = Conn::open_narrow(forebay.address);
    client.send(&post(PATH, &[], STREAM.as_bytes()));
    client.until("one");
    mock.await_closes(1);
    let got = client.answer();
    assert!(got.end == End::Cut && got.text().starts_with(&token("one")));
    eventually("nothing is in flight", || (forebay.metric("forebay_in_flight", &[]) == 0.0).then_some(()));
    assert_eq!(forebay.post(PATH, UNARY).status, 200);
}

#[test]
fn a_client_that_closes_half_or_resets_stops_the_backend_also_while_its_socket_is_full() {
    let flood = || Step::Flood(bytes(chunk(token(&"x".repeat(10_000)))));
    for full in [false, true] {
        for half in [true, false] {
            let last = if full { flood() } else { Step::AwaitClose };
            let mock = Arc::new(Mock::playing(vec![stream_head(), chunk(token("one")), chunk(token("two")), last]));
            let forebay = one(&mock);
            let mut client = Conn::open_narrow(forebay.address);
            client.send(&post(PATH, &[], STREAM.as_bytes()));
            client.until("two");
            if half {
                client.half_close();
                mock.await_closes(1);
            } else {
                client.reset();
                mock.await_closes(1);
            }
            eventually("nothing is in flight", || (forebay.metric("forebay_in_flight", &[]) == 0.0).then_some(()));
        }
    }
}
