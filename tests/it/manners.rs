//! The manners of a proxy: it finds itself out in a loop, is strict about hosts, joins cookies, says nothing in a backend's name nor
//! lets a backend speak in its own, and keeps what it knows from pages in a browser.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::Command;
use std::time::Instant;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};

use crate::client::{Conn, on_h2, post};
use crate::harness::{DEADLINE, Forebay, Harness, eventually, free_port, ms, time_passes};
use crate::mock::{CHAT, Mock, Step, answer};

const PATH: &str = "/v1/chat/completions";
const UNARY: &str = r#"{"model":"tiny","messages":[]}"#;

fn one(mock: &Mock) -> Forebay {
    Harness::new().pool("tiny", &[mock]).start()
}

fn raw(forebay: &Forebay, request: &str) -> u16 {
    forebay.open().ask(request.as_bytes()).status
}

// ---- loops ---------------------------------------------------------------------------------------------------------

#[test]
fn a_backend_that_is_the_proxy_itself_is_refused_before_it_serves() {
    let binary = std::env::var_os("FOREBAY_BIN").unwrap_or_else(|| env!("CARGO_BIN_EXE_forebay").into());
    let run = |args: &[&str]| {
        let output = Command::new(&binary).args(args).output().unwrap();
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout),
        )
    };
    let dir = tempfile::TempDir::new().unwrap();
    let file = dir.path().join("f.toml");
    for (listen, url) in [
        ("127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("0.0.0.0:8080", "http://localhost:8080"),
        ("[::]:8080", "http://[::1]:8080"),
    ] {
        std::fs::write(
            &file,
            format!("[listen]\naddress = \"{listen}\"\n[[pools]]\nmodel = \"m\"\nbackends = [{{ url = \"{url}\" }}]\n"),
        )
        .unwrap();
        let (code, said) = run(&["check", file.to_str().unwrap()]);
        assert_ne!(code, Some(0), "{url}");
        assert!(said.contains("is where Forebay itself listens"), "{said}");
    }
    let port = free_port();
    let (listen, url) = (format!("127.0.0.1:{port}"), format!("http://127.0.0.1:{port}"));
    let (code, said) = run(&["serve", "--listen", &listen, "--backend", &url]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("is where Forebay itself listens"), "{said}");
}

/// A backend that hands what it gets to another address, as a name or a forwarded port may lead back.
fn relay(to: std::net::SocketAddr) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for inward in listener.incoming().map_while(Result::ok) {
            let Ok(outward) = std::net::TcpStream::connect(to) else { continue };
            for (mut from, mut into) in [
                (inward.try_clone().unwrap(), outward.try_clone().unwrap()),
                (outward.try_clone().unwrap(), inward.try_clone().unwrap()),
            ] {
                std::thread::spawn(move || {
                    let mut buffer = [0; 16 << 10];
                    while let Ok(read @ 1..) = from.read(&mut buffer) {
                        if into.write_all(&buffer[..read]).is_err() {
                            break;
                        }
                    }
                    drop(into.shutdown(std::net::Shutdown::Write));
                });
            }
        }
    });
    url
}

#[test]
fn a_request_that_comes_back_is_found_out() {
    let mock = Mock::start();
    let forebay = one(&mock);
    let pools = format!("[[pools]]\nmodel = \"tiny\"\nbackends = [{{ url = \"{}\" }}]", relay(forebay.address));
    // Another proxy in between: what it asks comes back to the first.
    let between = Harness::new().pools(&pools).start();
    let looped = format!("[[pools]]\nmodel = \"tiny\"\nbackends = [{{ url = \"{}\" }}]\n", relay(between.address));
    std::fs::write(&forebay.config, looped).unwrap();
    forebay.signal("HUP");
    forebay.tells("configuration in force");
    let answer = forebay.post(PATH, UNARY);
    assert_eq!(answer.status, 508, "{}", answer.text());
    assert_eq!(answer.json()["error"]["type"], "forebay_loop");
    assert!(mock.seen().is_empty());
}

#[test]
fn via_is_added_to_what_is_there() {
    let mock = Mock::start();
    let forebay = one(&mock);
    for given in [None, Some("1.0 fred, 1.1 other")] {
        let header = given.map(|via| ("via", via));
        assert_eq!(forebay.open().ask(&post(PATH, header.as_slice(), UNARY.as_bytes())).status, 200);
        let seen = mock.last();
        let all: Vec<&str> =
            seen.headers.iter().filter(|(name, _)| name == "via").map(|(_, value)| value.as_str()).collect();
        assert_eq!(all.len(), 1 + usize::from(given.is_some()), "{all:?}");
        assert!(all.last().unwrap().starts_with("1.1 forebay-"), "{all:?}");
        assert!(given.is_none_or(|given| all[0] == given));
    }
}

// ---- hosts ---------------------------------------------------------------------------------------------------------

#[test]
fn a_request_names_one_host() {
    let mock = Mock::start();
    let forebay = one(&mock);
    let length = UNARY.len();
    for (version, hosts, status) in [
        ("1.1", "", 400),
        ("1.1", "host: a\r\nhost: a\r\n", 400),
        ("1.1", "host: a\r\nHost: b\r\n", 400),
        ("1.1", "host: a b\r\n", 400),
        ("1.1", "host: a/b\r\n", 400),
        ("1.1", "host: user@a\r\n", 400),
        ("1.0", "host: a\r\nhost: b\r\n", 400),
        ("1.1", "host:\r\n", 200),
        ("1.1", "host: [::1]:8080\r\n", 200),
        ("1.0", "", 200),
    ] {
        let request = format!(
            "POST {PATH} HTTP/{version}\r\n{hosts}content-type: application/json\r\ncontent-length: {length}\r\n\r\n{UNARY}"
        );
        assert_eq!(raw(&forebay, &request), status, "HTTP/{version} {hosts:?}");
    }
    assert_eq!(raw(&forebay, "GET /health HTTP/1.1\r\n\r\n"), 400);
    assert_eq!(raw(&forebay, "GET /health HTTP/1.0\r\n\r\n"), 200);
    assert_eq!(mock.seen().len(), 3);
}

#[test]
fn a_page_under_a_name_of_its_own_reads_nothing_of_the_admin_api() {
    let mock = Mock::start();
    let forebay = one(&mock);
    let ask = |host: &str, path: &str| {
        Conn::open(forebay.admin).ask(format!("GET {path} HTTP/1.1\r\nhost: {host}\r\n\r\n").as_bytes()).status
    };
    let port = forebay.admin.port();
    for path in [
        "/",
        "/metrics",
        "/api/config",
        "/api/fleet",
        "/api/live",
        "/api/live/stream",
        "/dashboard",
        "/health",
        "/ready",
        "/no",
    ] {
        for host in
            ["evil.example", &format!("rebind.evil.example:{port}"), "127.0.0.1.evil.example", "localhost.evil.example"]
        {
            assert_eq!(ask(host, path), 403, "{host} {path}");
        }
    }
    for path in ["/metrics", "/api/config", "/api/fleet", "/api/live", "/dashboard", "/health"] {
        for host in [&format!("127.0.0.1:{port}"), &format!("localhost:{port}"), "[::1]"] {
            assert_eq!(ask(host, path), 200, "{host} {path}");
        }
    }
}

// ---- headers -------------------------------------------------------------------------------------------------------

#[test]
fn cookies_of_http_2_are_joined() {
    let mock = Mock::start();
    let forebay = one(&mock);
    let status = on_h2(forebay.address, 1 << 20, async |mut h2| {
        let request = http::Request::post(format!("http://forebay{PATH}"))
            .header("content-type", "application/json")
            .header("cookie", "a=1")
            .header("cookie", "b=2")
            .header("cookie", "c=3")
            .body(Full::new(Bytes::from_static(UNARY.as_bytes())).boxed())
            .unwrap();
        h2.request(request).await.status()
    });
    assert_eq!(status, 200);
    let seen = mock.only();
    let cookies: Vec<&str> =
        seen.headers.iter().filter(|(name, _)| name == "cookie").map(|(_, value)| value.as_str()).collect();
    assert_eq!(cookies, ["a=1; b=2; c=3"]);
    assert!(seen.header("via").unwrap().starts_with("2.0 forebay-"));
}

#[test]
fn a_backend_does_not_speak_in_forebays_name() {
    let spoken =
        [("x-forebay-backend", "fake:1"), ("X-Forebay-Arm", "fake"), ("x-forebay-made-up", "1"), ("x-mine", "1")];
    let mock = Mock::start();
    let forebay = one(&mock);
    for status in [200, 400, 500] {
        mock.reply(move |_| answer(status, &spoken, CHAT));
        let got = forebay.post(PATH, UNARY);
        assert_eq!(got.status, status);
        assert_eq!(got.header("x-forebay-backend"), Some(mock.authority().as_str()));
        assert_eq!(got.header("x-forebay-arm"), Some("default"));
        assert_eq!((got.header("x-forebay-made-up"), got.header("x-mine")), (None, Some("1")));
    }
}

#[test]
fn a_connection_header_with_an_odd_byte_still_names_the_others() {
    let head =
        b"HTTP/1.1 200 OK\r\nconnection: x-private, \xe9, x-other\r\nx-private: 1\r\nx-other: 1\r\nx-public: 1\r\n\
                 content-length: 2\r\n\r\n{}";
    let mock = Mock::playing(vec![Step::Send(head.to_vec())]);
    let forebay = one(&mock);
    let mut request = format!("POST {PATH} HTTP/1.1\r\nhost: f\r\ncontent-length: {}\r\n", UNARY.len()).into_bytes();
    request.extend(b"connection: \xff, x-mine,\xfe\r\nx-mine: 1\r\nx-kept: 1\r\n\r\n");
    request.extend(UNARY.bytes());
    let got = forebay.open().ask(&request);
    assert_eq!((got.status, got.header("x-public")), (200, Some("1")), "{}", got.text());
    assert_eq!((got.header("x-private"), got.header("x-other")), (None, None));
    let seen = mock.only();
    assert_eq!((seen.header("x-mine"), seen.header("x-kept")), (None, Some("1")));
}

#[test]
fn a_switch_of_protocols_that_nobody_asked_for_is_a_failure() {
    let switch = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n".to_vec();
    let mock = Mock::playing(vec![Step::Send(switch), Step::AwaitClose]);
    let forebay = one(&mock);
    for upgrade in [&[][..], &[("connection", "upgrade"), ("upgrade", "websocket")]] {
        let got = forebay.open().ask(&post(PATH, upgrade, UNARY.as_bytes()));
        assert_eq!(got.status, 502, "{}", got.text());
    }
}

// ---- configuration -------------------------------------------------------------------------------------------------

#[test]
fn a_file_that_is_half_written_is_not_applied() {
    let mocks = [Mock::start(), Mock::start()];
    let forebay = one(&mocks[0]);
    let pool = |mock: &Mock| format!("[[pools]]\nmodel = \"tiny\"\nbackends = [{{ url = \"{}\" }}]\n", mock.url());
    // Valid at every moment, and never twice the same: somebody is writing. Where the machine held the writer up, the file did
    // stay as it was for a while, and the count begins anew.
    let reloads = || forebay.metric("forebay_config_reloads_total", &[]);
    let (mut line, mut written) = (0, Instant::now());
    let (mut since, mut before) = (Instant::now(), None);
    let started = Instant::now();
    while since.elapsed() < ms(5000) {
        assert!(started.elapsed() < DEADLINE * 6, "the writer is held up again and again");
        line += 1;
        let begun = Instant::now();
        std::fs::write(&forebay.config, format!("{}# line {line}\n", pool(&mocks[1]))).unwrap();
        if written.elapsed() > ms(300) {
            (since, before) = (Instant::now(), None);
        }
        written = begun;
        if before.is_none() && since.elapsed() > ms(2000) {
            before = Some(reloads());
        }
        time_passes(ms(30));
    }
    assert_eq!(Some(reloads()), before, "after {line} lines");
    std::fs::write(&forebay.config, format!("{}# the last line\n", pool(&mocks[1]))).unwrap();
    eventually("the file that stays is applied", || {
        let served = forebay.post(PATH, UNARY).header("x-forebay-backend") == Some(mocks[1].authority().as_str());
        served.then_some(())
    });
}

#[test]
fn a_signal_applies_a_file_at_once() {
    let mocks = [Mock::start(), Mock::start()];
    let forebay = one(&mocks[0]);
    std::fs::write(
        &forebay.config,
        format!("[[pools]]\nmodel = \"tiny\"\nbackends = [{{ url = \"{}\" }}]\n", mocks[1].url()),
    )
    .unwrap();
    forebay.signal("HUP");
    crate::harness::eventually_within(ms(1900), "it is applied", || {
        (forebay.metric("forebay_config_reloads_total", &["result=\"applied\""]) == 1.0).then_some(())
    });
}
