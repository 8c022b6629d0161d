//! The reader beside hyper's, on any bytes and any cuts. Must not use a clock or a real socket.

use std::future::poll_fn;

use http::Request;
use http_body_util::BodyExt;
use hyper::client::conn::http1::Builder;
use hyper_util::rt::TokioIo;
use proptest::prelude::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt, DuplexStream, duplex};

use super::*;

const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
const MOST_HEADERS: usize = 100;

/// The data of an answer, and whether it came whole. `None` where there was no answer.
type Read = Option<(Vec<u8>, bool)>;

/// A server that answers a request with these pieces, each once the one before was taken, and closes.
fn server(pieces: Vec<Vec<u8>>) -> DuplexStream {
    let longest = pieces.iter().map(Vec::len).max().unwrap_or_default();
    let (ours, theirs) = duplex(longest.max(1));
    let (mut requests, mut answers) = tokio::io::split(theirs);
    tokio::spawn(async move {
        // An answer before its request would be none.
        requests.read_exact(&mut [0; 4]).await.unwrap();
        tokio::spawn(async move { tokio::io::copy(&mut requests, &mut tokio::io::sink()).await });
        for piece in pieces {
            if answers.write_all(&piece).await.is_err() {
                return;
            }
            tokio::task::yield_now().await;
        }
        drop(answers.shutdown().await);
    });
    ours
}

async fn through_hyper(pieces: Vec<Vec<u8>>) -> Read {
    let mut builder = Builder::new();
    let (mut requests, connection) =
        builder.max_headers(MOST_HEADERS).handshake(TokioIo::new(server(pieces))).await.unwrap();
    tokio::spawn(connection);
    let mut body = requests.send_request(Request::post("/").body(Pieces::new(["{}".into()])).unwrap()).await.ok()?;
    let mut data = Vec::new();
    loop {
        match body.frame().await {
            Some(Ok(frame)) => data.extend(frame.into_data().unwrap_or_default()),
            Some(Err(_)) => return Some((data, false)),
            None => return Some((data, true)),
        }
    }
}

/// An answer as it is read past hyper, and whether the connection may be used again.
async fn past_hyper(pieces: Vec<Vec<u8>>) -> (Read, bool) {
    let handover = Handover::default();
    let mut builder = Builder::new();
    let tap = Tap::new(server(pieces), handover.clone());
    let (mut requests, mut connection) = builder.max_headers(MOST_HEADERS).handshake(TokioIo::new(tap)).await.unwrap();
    handover.begin(true);
    let request = Request::post("/").body(Sent::new(Pieces::new(["{}".into()]), &handover)).unwrap();
    let mut answer = pin!(requests.send_request(request));
    let mut over = false;
    let answer = poll_fn(|cx| {
        over = over || Pin::new(&mut connection).poll(cx).is_ready();
        let polled = answer.as_mut().poll(cx);
        if polled.is_pending() && handover.read_on() {
            cx.waker().wake_by_ref();
        }
        polled
    });
    let Ok(answer) = answer.await else { return (None, false) };
    assert!(handover.takes(&answer), "{answer:?}");
    let parts = connection.into_parts();
    assert!(parts.read_buf.is_empty(), "hyper was given more than the head");
    let mut past = Past::new(parts.io.into_inner(), parts.read_buf, MOST_HEADERS);
    let mut data = Vec::new();
    loop {
        match poll_fn(|cx| past.poll_piece(cx)).await {
            Ok(Some(piece)) => data.extend_from_slice(&piece),
            Ok(None) => return (Some((data, true)), past.into_io().is_some()),
            Err(_) => return (Some((data, false)), past.into_io().is_some()),
        }
    }
}

/// The bytes in pieces, cut at these places.
fn cut(bytes: &[u8], cuts: &[prop::sample::Index]) -> Vec<Vec<u8>> {
    let mut places: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len())).chain([0, bytes.len()]).collect();
    places.sort_unstable();
    places.windows(2).filter(|pair| pair[0] < pair[1]).map(|pair| bytes[pair[0]..pair[1]].to_vec()).collect()
}

/// Parts of a body: mostly chunks, some of them in odd forms, and bytes that are none.
fn part() -> impl Strategy<Value = Vec<u8>> {
    let data = prop::collection::vec(any::<u8>(), 1..40);
    prop_oneof![
        8 => data.clone().prop_map(|data| [format!("{:x}\r\n", data.len()).as_bytes(), &data, b"\r\n"].concat()),
        2 => (data, "[ \t]{0,2}(;[a-z=\"\r]{0,6})?", "0{0,20}").prop_map(|(data, extension, zeros)| {
            [format!("{zeros}{:X}{extension}\r\n", data.len()).as_bytes(), &data, b"\r\n"].concat()
        }),
        1 => Just(b"0\r\n\r\n".to_vec()),
        1 => "0\r\n([a-z]{1,3}: ?[a-z]{0,3}\r\n){1,3}\r\n".prop_map(String::into_bytes),
        1 => "0\r\n[a-z:\r\n ]{0,12}\r\n\r\n".prop_map(String::into_bytes),
        1 => "[0-9a-fA-Fx+;: \t\r\n-]{1,20}".prop_map(String::into_bytes),
        1 => prop::collection::vec(any::<u8>(), 1..8),
    ]
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_cut_anywhere_are_read_as_hyper_reads_them(
        parts in prop::collection::vec(part(), 0..8),
        ends in any::<bool>(),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
    ) {
        let mut body = parts.concat();
        if ends {
            body.extend(b"0\r\n\r\n");
        }
        let pieces = cut(&[HEAD, &body].concat(), &cuts);
        let (hypers, (ours, _)) = block_on(async { (through_hyper(pieces.clone()).await, past_hyper(pieces).await) });
        prop_assert_eq!(ours, hypers);
    }
}

#[test]
fn a_stream_of_a_backend_holds_little() {
    let past = size_of::<Past<crate::upstream::connect::BackendIo>>();
    println!("Past: {past} bytes");
    assert!(past < 1 << 10, "{past}");
}

#[test]
fn heads_are_cut_from_their_bodies_wherever_their_bytes_are_cut() {
    let body = b"3\r\nabc\r\n0\r\n\r\n";
    let interim = b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n";
    let bare = b"HTTP/1.1 200 OK\ncontent-type: text/event-stream\ntransfer-encoding: chunked\n\n";
    for head in [HEAD, &[interim, HEAD].concat(), &[interim, &interim[..], HEAD].concat(), bare] {
        let whole = [head, body].concat();
        for at in 1..whole.len() {
            let (one, two) = whole.split_at(at);
            let read = block_on(past_hyper(vec![one.to_vec(), two.to_vec()]));
            assert_eq!(read, (Some((b"abc".to_vec(), true)), true), "cut at {at}");
        }
        let bytes = whole.iter().map(|byte| vec![*byte]).collect();
        assert_eq!(block_on(past_hyper(bytes)), (Some((b"abc".to_vec(), true)), true));
    }
}

#[test]
fn a_close_in_each_place_is_a_truncation_and_what_came_is_given() {
    let body = b"3;x\r\nabc\r\n2\r\nde\r\n0\r\nx: y\r\n\r\n";
    for end in 0..body.len() {
        let (read, kept) = block_on(past_hyper(vec![[HEAD, &body[..end]].concat()]));
        let (data, whole) = read.unwrap();
        assert!(b"abcde".starts_with(&data[..]) && !whole && !kept, "closed after {end}");
    }
}

#[test]
fn a_connection_with_bytes_behind_the_last_chunk_is_not_used_again() {
    for behind in [&b"H"[..], b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", b"\r\n", b"\n"] {
        let (read, kept) = block_on(past_hyper(vec![[HEAD, b"1\r\na\r\n0\r\n\r\n", behind].concat()]));
        assert_eq!((read, kept), (Some((b"a".to_vec(), true)), false));
    }
}

#[test]
fn only_a_stream_in_chunks_is_read_past_hyper() {
    let head = |version, status: u16, headers: &[(&str, &str)]| {
        let mut response = Response::builder().version(version).status(status);
        for (name, value) in headers {
            response = response.header(*name, *value);
        }
        is_stream_in_chunks(&response.body(()).unwrap())
    };
    let (events, chunked) = (("content-type", "text/event-stream"), ("transfer-encoding", "chunked"));
    assert!(head(Version::HTTP_11, 200, &[events, chunked]));
    assert!(head(Version::HTTP_11, 200, &[("content-type", "text/event-stream; charset=utf-8"), chunked]));
    let others: [&[(&str, &str)]; 7] = [
        &[events],
        &[chunked],
        &[("content-type", "application/json"), chunked],
        &[events, ("transfer-encoding", "gzip, chunked")],
        &[events, chunked, chunked],
        &[events, chunked, ("content-length", "5")],
        &[events, chunked, ("trailer", "x")],
    ];
    for headers in others {
        assert!(!head(Version::HTTP_11, 200, headers), "{headers:?}");
    }
    assert!(!head(Version::HTTP_10, 200, &[events, chunked]));
    assert!(!head(Version::HTTP_11, 500, &[events, chunked]));
}

#[test]
fn a_connection_that_its_server_closes_after_the_answer_is_not_kept() {
    let kept = |values: &[&str]| {
        let headers = values.iter().map(|value| (CONNECTION, value.parse().unwrap())).collect();
        is_kept(&headers)
    };
    assert!(kept(&[]) && kept(&["keep-alive"]) && kept(&["Keep-Alive"]));
    assert!(!kept(&["close"]) && !kept(&["keep-alive, close"]) && !kept(&["keep-alive", "close"]));
}
