//! Other proxies before and behind Forebay: who a request came from, what streams and responses say, and compressed bodies.

use std::io::Write;

use crate::client::{Answer, post};
use crate::harness::{Forebay, Harness, eventually};
use crate::mock::Mock;

const PATH: &str = "/v1/chat/completions";
const UNARY: &str = r#"{"model":"tiny","messages":[]}"#;
const STREAM: &str = r#"{"model":"tiny","stream":true,"messages":[]}"#;

fn ask(forebay: &Forebay, headers: &[(&str, &str)]) -> Answer {
    forebay.open().ask(&post(PATH, headers, UNARY.as_bytes()))
}

const CLAIMS: [(&str, &str); 5] = [
    ("x-forwarded-for", "203.0.113.7"),
    ("x-forwarded-proto", "https"),
    ("x-forwarded-host", "chat.example"),
    ("forwarded", "for=203.0.113.7;proto=https"),
    ("x-request-id", "claims"),
];

#[test]
fn a_backend_is_told_of_the_client_and_a_stranger_s_claims_are_replaced() {
    let mock = Mock::start();
    let forebay = Harness::new().pool("tiny", &[&mock]).start();
    assert_eq!(ask(&forebay, &CLAIMS).status, 200);
    let seen = mock.last();
    assert_eq!(seen.header("x-forwarded-for"), Some("127.0.0.1"));
    assert_eq!(seen.header("x-forwarded-proto"), Some("http"));
    assert_eq!(seen.header("x-forwarded-host"), Some("forebay"));
    assert_eq!(seen.header("forwarded"), Some("for=127.0.0.1;proto=http;host=\"forebay\""));
    assert!(forebay.record("claims")["client"].as_str().unwrap().starts_with("127.0.0.1:"));
}

#[test]
fn a_trusted_proxy_s_claims_are_extended_and_the_log_has_the_client() {
    let mock = Mock::start();
    let trusts = "[forwarding]\ntrusted_proxies = [\"127.0.0.0/8\"]";
    let forebay = Harness::new().config(trusts).pool("tiny", &[&mock]).start();
    assert_eq!(ask(&forebay, &CLAIMS).status, 200);
    let seen = mock.last();
    assert_eq!(seen.header("x-forwarded-for"), Some("203.0.113.7, 127.0.0.1"));
    assert_eq!(
        (seen.header("x-forwarded-proto"), seen.header("x-forwarded-host")),
        (Some("https"), Some("chat.example"))
    );
    let forwarded = "for=203.0.113.7;proto=https, for=127.0.0.1;proto=http;host=\"forebay\"";
    assert_eq!(seen.header("forwarded"), Some(forwarded));
    assert_eq!(forebay.record("claims")["client"], "203.0.113.7:0");
    // It is no client of this machine, so it is told nothing of the decision.
    let explained = ask(&forebay, &[("x-forwarded-for", "203.0.113.7"), ("x-forebay-explain", "1")]);
    assert_eq!(explained.header("x-forebay-explain"), None);
    assert!(ask(&forebay, &[("x-forebay-explain", "1")]).header("x-forebay-explain").is_some());
}

#[test]
fn what_is_off_is_left_as_it_came_and_own_headers_can_be_left_out() {
    let mock = Mock::start();
    let off = "[forwarding]\nheaders = false\nown_headers = false";
    let forebay = Harness::new().config(off).pool("tiny", &[&mock]).start();
    let answer = ask(&forebay, &CLAIMS);
    let seen = mock.last();
    assert_eq!(
        (seen.header("x-forwarded-for"), seen.header("x-forwarded-host")),
        (Some("203.0.113.7"), Some("chat.example"))
    );
    let refused = forebay.post("/nothing", "{}");
    let unknown = forebay.open().ask(&post(PATH, &[("x-forebay-explain", "1")], b"nonsense"));
    for answer in [answer, refused, unknown, forebay.post(PATH, STREAM)] {
        assert!(answer.headers.iter().all(|(name, _)| !name.starts_with("x-forebay-")), "{:?}", answer.headers);
        assert!(answer.header("x-request-id").is_some());
    }
    let text = std::fs::read_to_string(&forebay.config).unwrap();
    std::fs::write(&forebay.config, text.replace("own_headers = false", "own_headers = true")).unwrap();
    forebay.signal("HUP");
    eventually("they are back", || forebay.post(PATH, UNARY).header("x-forebay-backend").map(drop));
}

#[test]
fn a_stream_asks_proxies_not_to_hold_it_back_and_nothing_else_does() {
    let mock = Mock::start();
    let forebay = Harness::new().pool("tiny", &[&mock]).start();
    assert_eq!(forebay.post(PATH, STREAM).header("x-accel-buffering"), Some("no"));
    assert_eq!(forebay.post(PATH, UNARY).header("x-accel-buffering"), None);
    assert_eq!(forebay.get("/v1/models").header("x-accel-buffering"), None);
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = libflate::gzip::Encoder::new(Vec::new()).unwrap();
    encoder.write_all(bytes).unwrap();
    encoder.finish().into_result().unwrap()
}

#[test]
fn compressed_bodies_are_served_plain() {
    let mock = Mock::start();
    let forebay = Harness::new().pool("tiny", &[&mock]).start();
    let body = format!(r#"{{"model":"tiny","messages":[{{"role":"user","content":"{}"}}]}}"#, "word ".repeat(100_000));
    for (coding, coded) in [("gzip", gzip(body.as_bytes())), ("zstd", zstd::encode_all(body.as_bytes(), 3).unwrap())] {
        let answer = forebay.open().ask(&post(PATH, &[("content-encoding", coding)], &coded));
        assert_eq!(answer.status, 200, "{coding}: {}", answer.text());
        let seen = mock.last();
        assert!(seen.body == body.as_bytes(), "{coding}");
        assert_eq!(seen.header("content-encoding"), None);
        assert_eq!(seen.header("content-length"), Some(&*body.len().to_string()));
    }
    let form = "--b\r\ncontent-disposition: form-data; name=\"model\"\r\n\r\ntiny\r\n--b--\r\n";
    let headers = [("content-encoding", "gzip"), ("content-type", "multipart/form-data; boundary=b")];
    let answer = forebay.open().ask(&post("/v1/audio/transcriptions", &headers, &gzip(form.as_bytes())));
    assert_eq!((answer.status, mock.last().text().as_str()), (200, form));
}

#[test]
fn a_bomb_costs_no_more_than_the_limit_and_nonsense_is_refused() {
    let mock = Mock::start();
    let forebay = Harness::new().config("[limits]\nbody = \"4MiB\"").pool("tiny", &[&mock]).start();
    let zeros = vec![b' '; 256 << 20];
    let bombs = [("gzip", gzip(&zeros)), ("zstd", zstd::encode_all(&zeros[..], 1).unwrap())];
    assert_eq!(forebay.post(PATH, UNARY).status, 200);
    let before = forebay.rss_kib();
    for (coding, bomb) in &bombs {
        assert!(bomb.len() < 1 << 20);
        for _ in 0..5 {
            let answer = forebay.open().ask(&post(PATH, &[("content-encoding", coding)], bomb));
            assert_eq!((answer.status, answer.header("x-forebay-error")), (413, Some("forebay_too_large")), "{coding}");
        }
    }
    let grown = forebay.rss_kib().saturating_sub(before);
    assert!(grown < 64 << 10, "{grown} KiB");
    for coding in ["gzip", "zstd"] {
        let answer = forebay.open().ask(&post(PATH, &[("content-encoding", coding)], UNARY.as_bytes()));
        assert_eq!((answer.status, answer.header("x-forebay-error")), (400, Some("forebay_bad_request")), "{coding}");
    }
    let twice = forebay.open().ask(&post(PATH, &[("content-encoding", "gzip, gzip")], &gzip(&gzip(UNARY.as_bytes()))));
    assert_eq!((twice.status, twice.header("accept-encoding")), (415, Some("gzip, zstd")));
    assert_eq!(mock.seen().len(), 1);
}
