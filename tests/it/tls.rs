//! TLS for clients: what is agreed on and what is refused, certificates of both sides, and a new certificate under open streams.

use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use http_body_util::BodyExt;
use tokio_rustls::rustls::{HandshakeKind, ProtocolVersion, SupportedProtocolVersion};

use crate::certificates::{Authority, BOTH, NEW, OLD, Signed, client};
use crate::client::{Conn, post};
use crate::harness::{DEADLINE, Forebay, Harness, awaited, eventually, time_passes};
use crate::mock::{Gate, Mock, Step, chunk, last_chunk, stream_head, token};
use crate::tls_client::{TlsConn, on_h2_tls};

const CHAT: &str = "/v1/chat/completions";
const STREAM: &str = r#"{"model":"tiny","stream":true,"messages":[{"role":"user","content":"hello"}]}"#;
const HEALTH: &[u8] = b"GET /health HTTP/1.1\r\nhost: forebay.test\r\n\r\n";
const TLS: &str = "tls = { cert_file = \"tls.crt\", key_file = \"tls.key\" }";

/// A Forebay that speaks TLS to clients. `keys`: more of `[listen]`.
fn secured(mock: &Mock, signed: &Signed, keys: &str) -> Harness {
    Harness::new()
        .pool("tiny", &[mock])
        .config(&format!("[listen]\n{keys}"))
        .file("tls.crt", &signed.certificate)
        .file("tls.key", &signed.key)
}

fn write(forebay: &Forebay, name: &str, text: &str) {
    std::fs::write(forebay.config.with_file_name(name), text).unwrap();
}

#[test]
fn the_newest_version_and_the_protocol_of_the_client_are_agreed_on() {
    let (ca, mock) = (Authority::new("ca"), Mock::start());
    let forebay = secured(&mock, &ca.server(), TLS).start();
    for (versions, protocols, version, protocol) in [
        (BOTH, &["h2", "http/1.1"][..], ProtocolVersion::TLSv1_3, Some("h2")),
        (OLD, &["h2", "http/1.1"], ProtocolVersion::TLSv1_2, Some("h2")),
        (NEW, &["http/1.1"], ProtocolVersion::TLSv1_3, Some("http/1.1")),
        (OLD, &["http/1.1", "h2"], ProtocolVersion::TLSv1_2, Some("h2")),
        (BOTH, &[], ProtocolVersion::TLSv1_3, None),
    ] {
        let config = client(&ca, versions, protocols, None);
        let mut conn = TlsConn::open(forebay.address, "forebay.test", &config).unwrap();
        let (agreed, name, _) = conn.agreed();
        assert_eq!((agreed, name.as_deref()), (Some(version), protocol));
        if protocol != Some("h2") {
            assert!(conn.ask(HEALTH, "\r\n\r\n").unwrap().starts_with("HTTP/1.1 200"));
        }
    }
    let unknown = client(&ca, BOTH, &["imap"], None);
    assert!(TlsConn::open(forebay.address, "forebay.test", &unknown).is_err());
    let answer = on_h2_tls(forebay.address, &client(&ca, BOTH, &["h2"], None), async |mut h2| {
        let answer = h2.post(CHAT, STREAM).await;
        (answer.status(), answer.into_body().collect().await.unwrap().to_bytes())
    });
    assert_eq!(answer.0, 200);
    assert!(answer.1.ends_with(b"data: [DONE]\n\n"));
}

#[test]
fn a_listener_of_the_new_version_refuses_the_old_one() {
    let (ca, mock) = (Authority::new("ca"), Mock::start());
    let keys = "tls = { cert_file = \"tls.crt\", key_file = \"tls.key\", min_version = \"1.3\" }";
    let forebay = secured(&mock, &ca.server(), keys).start();
    assert!(TlsConn::open(forebay.address, "forebay.test", &client(&ca, NEW, &[], None)).is_ok());
    let refused = TlsConn::open(forebay.address, "forebay.test", &client(&ca, OLD, &[], None)).map(drop).unwrap_err();
    assert!(refused.to_string().contains("ProtocolVersion"), "{refused}");
}

#[test]
fn a_wrong_name_an_unknown_authority_and_plain_http_get_nothing() {
    let (ca, stranger, mock) = (Authority::new("ca"), Authority::new("other"), Mock::start());
    let forebay = secured(&mock, &ca.server(), TLS).start();
    let config = client(&ca, BOTH, &[], None);
    let refused = TlsConn::open(forebay.address, "wrong.test", &config).map(drop).unwrap_err();
    assert!(refused.to_string().contains("wrong.test"), "{refused}");
    assert!(TlsConn::open(forebay.address, "forebay.test", &client(&stranger, BOTH, &[], None)).is_err());
    let mut plain = forebay.open();
    plain.send(&post(CHAT, &[], STREAM.as_bytes()));
    plain.closed();
    assert!(!plain.received().contains("HTTP/1.1"), "{}", plain.received());
    assert_eq!(mock.seen().len(), 0);
    assert!(TlsConn::open(forebay.address, "127.0.0.1", &config).is_ok());
}

#[test]
fn a_client_that_comes_back_resumes_its_session() {
    let (ca, mock) = (Authority::new("ca"), Mock::start());
    let forebay = secured(&mock, &ca.server(), TLS).start();
    for versions in [OLD, NEW] {
        let config = client(&ca, versions, &[], None);
        let kinds: Vec<_> = (0..6)
            .map(|_| {
                let mut conn = TlsConn::open(forebay.address, "forebay.test", &config).unwrap();
                conn.ask(HEALTH, "\r\n\r\n").unwrap();
                conn.agreed().2.unwrap()
            })
            .collect();
        assert_eq!(kinds[0], HandshakeKind::Full);
        assert!(kinds[1..].iter().all(|kind| *kind == HandshakeKind::Resumed), "{kinds:?}");
    }
}

#[test]
fn a_handshake_that_says_nothing_or_half_of_it_holds_no_place_for_long() {
    let (ca, mock) = (Authority::new("ca"), Mock::start());
    let keys = format!("{TLS}\nmax_connections = 2\nheader_timeout = \"400ms\"");
    let forebay = secured(&mock, &ca.server(), &keys).start();
    let config = client(&ca, BOTH, &[], None);
    let silent = TcpStream::connect(forebay.address).unwrap();
    let mut half = TcpStream::connect(forebay.address).unwrap();
    // The head of a client's hello that never follows.
    std::io::Write::write_all(&mut half, &[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc]).unwrap();
    eventually("two are open", || (forebay.metric("forebay_connections", &[]) == 2.0).then_some(()));
    let mut refused = TlsConn::open(forebay.address, "forebay.test", &config).unwrap();
    assert!(refused.until("\r\n\r\n").unwrap().starts_with("HTTP/1.1 503"), "the third is told");
    for mut stream in [silent, half] {
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        drop(stream.read_to_end(&mut Vec::new()));
    }
    eventually("they are gone", || (forebay.metric("forebay_connections", &[]) == 0.0).then_some(()));
    let mut conn = TlsConn::open(forebay.address, "forebay.test", &config).unwrap();
    assert!(conn.ask(HEALTH, "\r\n\r\n").unwrap().starts_with("HTTP/1.1 200"));
    forebay.tells("no TLS handshake, or no PROXY header, in time");
}

/// Whether a client with this certificate, or none, is served at an address.
fn gets_in(
    address: SocketAddr,
    ca: &Authority,
    versions: &[&'static SupportedProtocolVersion],
    certificate: Option<&Signed>,
) -> bool {
    let config = client(ca, versions, &[], certificate);
    let conn = TlsConn::open(address, "forebay.test", &config);
    conn.and_then(|mut conn| conn.ask(HEALTH, "\r\n\r\n")).is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
}

#[test]
fn a_client_needs_a_certificate_of_the_authority_that_is_asked_for() {
    let (ca, ops, stranger, mock) =
        (Authority::new("ca"), Authority::new("ops"), Authority::new("other"), Mock::start());
    let tls = "tls = { cert_file = \"tls.crt\", key_file = \"tls.key\", client_ca_file = \"ops.crt\" }";
    let forebay = secured(&mock, &ca.server(), &format!("{tls}\n[admin]\n{tls}")).file("ops.crt", &ops.pem).start();
    let (ours, theirs) = (ops.client(), stranger.client());
    for address in [forebay.address, forebay.admin] {
        for versions in [OLD, NEW] {
            assert!(!gets_in(address, &ca, versions, None));
            assert!(!gets_in(address, &ca, versions, Some(&theirs)));
            assert!(gets_in(address, &ca, versions, Some(&ours)));
        }
    }
    assert_eq!(mock.seen().len(), 0);
}

#[test]
fn a_new_certificate_cuts_no_stream_and_one_that_does_not_fit_is_not_taken() {
    const STREAMS: usize = 50;
    let (ca, mock, gate) = (Authority::new("ca"), Mock::start(), Gate::new());
    let open = gate.clone();
    mock.reply(move |_| {
        let rest = [Step::Hold(open.clone()), chunk(token("two")), chunk("data: [DONE]\n\n"), last_chunk()];
        [stream_head(), chunk(token("one"))].into_iter().chain(rest).collect()
    });
    let (old, new) = (ca.server_until(3000), ca.server_until(3001));
    let forebay = secured(&mock, &old, TLS).start();
    let config = client(&ca, BOTH, &[], None);
    let start = || {
        let mut conn = TlsConn::open(forebay.address, "forebay.test", &config).unwrap();
        conn.send(&post(CHAT, &[], STREAM.as_bytes())).unwrap();
        conn.until("one").unwrap();
        conn
    };
    let expiry = |year: f64| {
        let shown = forebay.metric("forebay_certificate_expiry_timestamp_seconds", &["certificate=\"listen.tls\""]);
        ((shown / 31_556_952.0 + 1970.0).floor() == year).then_some(())
    };
    eventually("the old one is shown", || expiry(3000.0));
    let mut streams: Vec<TlsConn> = (0..STREAMS).map(|_| start()).collect();

    write(&forebay, "tls.key", &new.key);
    forebay.tells("the key is not the key of the certificate");
    forebay.tells("listen.tls.key_file");
    streams.push(start());
    expiry(3000.0).expect("the old one stays");

    write(&forebay, "tls.crt", &new.certificate);
    eventually("the new one is in force", || expiry(3001.0));
    streams.push(start());
    gate.open();
    for mut conn in streams {
        let whole = conn.until("0\r\n\r\n").unwrap();
        assert!(whole.contains("two") && whole.contains("[DONE]"), "{whole}");
    }
}

#[test]
fn tls_may_come_and_go_with_a_reload() {
    let (ca, mock) = (Authority::new("ca"), Mock::start());
    let forebay = secured(&mock, &ca.server(), "").start();
    let before = std::fs::read_to_string(&forebay.config).unwrap();
    assert_eq!(forebay.get("/health").status, 200);
    let mut open = forebay.open();
    std::fs::write(&forebay.config, before.replace("[listen]\n", &format!("[listen]\n{TLS}\n"))).unwrap();
    let config = client(&ca, BOTH, &[], None);
    eventually("it speaks TLS", || TlsConn::open(forebay.address, "forebay.test", &config).ok());
    assert_eq!(open.ask(HEALTH).status, 200, "an open connection goes on");
    std::fs::write(&forebay.config, before).unwrap();
    eventually("it speaks plain HTTP", || {
        let mut conn = forebay.open();
        conn.try_send(HEALTH);
        (conn.has_something() && conn.received().starts_with("HTTP/1.1 200")).then_some(())
    });
    assert_eq!(forebay.metric("forebay_certificate_expiry_timestamp_seconds", &[]), 0.0);
}

#[test]
fn a_certificate_that_is_out_of_date_is_told_and_still_served() {
    let (ca, mock) = (Authority::new("ca"), Mock::start());
    let forebay = secured(&mock, &ca.server_until(2020), TLS).start();
    assert_eq!(forebay.tells("the certificate is out of date since 2020-12-31T00:00:00Z"), 1, "{}", forebay.log());
    let refused = TlsConn::open(forebay.address, "forebay.test", &client(&ca, BOTH, &[], None)).map(drop);
    assert!(refused.unwrap_err().to_string().contains("xpired"));
}

#[test]
fn a_client_that_leaves_over_tls_stops_the_engine() {
    let (ca, mock) = (Authority::new("ca"), Mock::start());
    mock.reply(|_| vec![stream_head(), chunk(token("one")), Step::AwaitClose]);
    let forebay = secured(&mock, &ca.server(), TLS).start();
    let config = client(&ca, BOTH, &["http/1.1"], None);
    let start = || {
        let mut conn = TlsConn::open(forebay.address, "forebay.test", &config).unwrap();
        conn.send(&post(CHAT, &[], STREAM.as_bytes())).unwrap();
        conn.until("one").unwrap();
        conn
    };
    drop(start());
    mock.await_closes(1);
    start().reset();
    mock.await_closes(2);
    on_h2_tls(forebay.address, &client(&ca, BOTH, &["h2"], None), async |mut h2| {
        let mut body = h2.post(CHAT, STREAM).await.into_body();
        body.frame().await.unwrap().unwrap();
        // The stream is reset, and its connection stays.
        drop(body);
        awaited(|| (mock.closes().len() == 3).then_some(())).await;
    });
    eventually("nothing is in flight", || (forebay.metric("forebay_in_flight", &[]) == 0.0).then_some(()));
    assert_eq!(forebay.metric("forebay_aborts_total", &["phase=\"mid_stream\""]), 3.0);
}

#[test]
fn a_name_of_the_certificate_may_ask_the_admin_api_without_a_token() {
    let (ca, mock) = (Authority::new("ca"), Mock::start());
    let forebay = secured(&mock, &ca.server(), &format!("[admin]\n{TLS}")).start();
    let config = client(&ca, BOTH, &[], None);
    let mut conn = TlsConn::open(forebay.admin, "forebay.test", &config).unwrap();
    let answer = conn.ask(b"GET /api/fleet HTTP/1.1\r\nhost: forebay.test\r\n\r\n", "\r\n\r\n").unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let mut plain = Conn::open(forebay.admin);
    plain.try_send(b"GET /api/fleet HTTP/1.1\r\nhost: admin\r\n\r\n");
    plain.closed();
    assert!(!plain.received().contains("HTTP"));
}

#[test]
fn a_client_that_reads_nothing_over_tls_is_cut() {
    let (ca, mock) = (Authority::new("ca"), Mock::start());
    mock.reply(|_| vec![stream_head(), chunk(token("one")), Step::Flood(framed(&"x".repeat(60_000)))]);
    let keys = format!("{TLS}\n[limits]\nwrite_stall = \"500ms\"");
    let forebay = secured(&mock, &ca.server(), &keys).start();
    let mut conn = TlsConn::open(forebay.address, "forebay.test", &client(&ca, BOTH, &[], None)).unwrap();
    conn.send(&post(CHAT, &[], STREAM.as_bytes())).unwrap();
    conn.until("one").unwrap();
    mock.await_closes(1);
    eventually("nothing is in flight", || (forebay.metric("forebay_in_flight", &[]) == 0.0).then_some(()));
}

/// An event with this text, as a chunk on the wire.
fn framed(text: &str) -> Vec<u8> {
    let event = token(text);
    format!("{:x}\r\n{event}\r\n", event.len()).into_bytes()
}

#[test]
fn a_slow_reader_over_tls_is_not_cut() {
    let (ca, mock) = (Authority::new("ca"), Mock::start());
    mock.reply(|_| {
        let mut script = vec![stream_head()];
        script.extend((0..40).map(|_| chunk(token(&"x".repeat(60_000)))));
        script.extend([chunk("data: [DONE]\n\n"), last_chunk()]);
        script
    });
    let keys = format!("{TLS}\n[limits]\nwrite_stall = \"1s\"");
    let forebay = secured(&mock, &ca.server(), &keys).start();
    let mut conn = TlsConn::open(forebay.address, "forebay.test", &client(&ca, BOTH, &[], None)).unwrap();
    conn.send(&post(CHAT, &[], STREAM.as_bytes())).unwrap();
    // Each pause is below the limit, and all of them are over it.
    for _ in 0..6 {
        time_passes(Duration::from_millis(300));
        conn.read_some(200_000).unwrap();
    }
    conn.until("[DONE]").unwrap();
}

#[test]
fn the_header_of_the_proxy_protocol_names_the_client() {
    let (ca, mock) = (Authority::new("ca"), Mock::start());
    let keys = "proxy_protocol = true\nmax_connections = 2\nheader_timeout = \"400ms\"";
    let forebay = secured(&mock, &ca.server(), keys).start();
    let version_1 = b"PROXY TCP4 192.0.2.7 192.0.2.1 4242 443\r\n".to_vec();
    let addresses = [192, 0, 2, 8, 192, 0, 2, 1, 0x10, 0x92, 1, 0xbb];
    let version_2 = [b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".as_slice(), &addresses].concat();
    let by_itself = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0".to_vec();
    for (header, client) in [(version_1, "192.0.2.7:4242"), (version_2, "192.0.2.8:4242"), (by_itself, "127.0.0.1:")] {
        let mut conn = forebay.open();
        let answer = conn.ask(&[header, post(CHAT, &[], STREAM.as_bytes())].concat());
        assert_eq!(answer.status, 200);
        let record = forebay.record(answer.header("x-request-id").unwrap());
        assert!(record["client"].as_str().unwrap().starts_with(client), "{record}");
    }
    let mut without = forebay.open();
    without.send(&post(CHAT, &[], STREAM.as_bytes()));
    without.closed();
    assert_eq!(without.received(), "");
    let mut silent = forebay.open();
    silent.send(b"PROXY TCP4 192.0.2.7");
    assert!(silent.closed() < DEADLINE);
    assert_eq!(mock.seen().len(), 3);
    eventually("they are gone", || (forebay.metric("forebay_connections", &[]) == 0.0).then_some(()));
}

#[test]
fn tls_follows_the_header_of_the_proxy_protocol() {
    let (ca, mock) = (Authority::new("ca"), Mock::start());
    let forebay = secured(&mock, &ca.server(), &format!("{TLS}\nproxy_protocol = true")).start();
    let mut socket = TcpStream::connect(forebay.address).unwrap();
    std::io::Write::write_all(&mut socket, b"PROXY TCP6 2001:db8::7 2001:db8::1 4242 443\r\n").unwrap();
    let mut conn = TlsConn::on(socket, "forebay.test", &client(&ca, BOTH, &[], None)).unwrap();
    conn.send(&post(CHAT, &[], STREAM.as_bytes())).unwrap();
    conn.until("[DONE]").unwrap();
    let record = eventually("its line", || forebay.access().pop());
    assert_eq!(record["client"], "[2001:db8::7]:4242");
}
