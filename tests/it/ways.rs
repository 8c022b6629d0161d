//! The ways to a server as it is: TLS with certificates of both sides, a prefix before every path, a Unix socket, and a key of its own.
//! What does not fit is misconfigured, with what to do about it, and never a death.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::Command;

use serde_json::Value;

use crate::certificates::{Authority, BOTH, NEW, OLD};
use crate::client::{Conn, End};
use crate::fronts::{Front, Manner};
use crate::harness::{Forebay, Harness, binary, eventually};
use crate::mock::{Mock, Step, chunk, stream_head, token};

const CHAT: &str = "/v1/chat/completions";
const STREAM: &str = r#"{"model":"tiny","stream":true,"messages":[{"role":"user","content":"hello"}]}"#;
const FAST: &str =
    "[health]\ninterval = \"200ms\"\ntimeout = \"200ms\"\n[scrape]\ninterval = \"200ms\"\ntimeout = \"200ms\"\n";

/// One pool on these URLs, in turn.
fn pool(keys: &str, urls: &[&str]) -> String {
    let urls: Vec<String> = urls.iter().map(|url| format!("{{ url = \"{url}\" }}")).collect();
    format!("[[pools]]\nmodel = \"tiny\"\npolicy = \"round_robin\"\n{keys}\nbackends = [{}]\n", urls.join(", "))
}

fn fleet(forebay: &Forebay) -> Vec<Value> {
    let fleet = Conn::open(forebay.admin).ask(b"GET /api/fleet HTTP/1.1\r\nhost: admin\r\n\r\n").json();
    fleet["pools"][0]["arms"][0]["backends"].as_array().cloned().unwrap_or_default()
}

/// Waits until the backend with this URL is in this state, and returns why.
fn await_state(forebay: &Forebay, url: &str, state: &str) -> String {
    eventually(&format!("{url} is {state}"), || {
        let backend = fleet(forebay).into_iter().find(|backend| backend["url"] == url)?;
        (backend["state"] == state).then(|| backend["reason"].as_str().unwrap_or_default().to_owned())
    })
}

#[test]
fn a_server_with_tls_is_asked_probed_and_scraped_over_it() {
    let (ca, mock) = (Authority::new("ca"), Mock::start());
    for (versions, strict) in [(NEW, false), (OLD, false), (NEW, true), (OLD, true)] {
        let front = Front::tls(&mock, &ca.server(), strict.then_some(&ca), versions);
        let tls = match strict {
            false => "tls = { ca_file = \"ca.crt\" }",
            true => "tls = { ca_file = \"ca.crt\", cert_file = \"us.crt\", key_file = \"us.key\" }",
        };
        let us = ca.client();
        let forebay = Harness::new()
            .config(FAST)
            .pools(&pool(tls, &[front.url()]))
            .file("ca.crt", &ca.pem)
            .file("us.crt", &us.certificate)
            .file("us.key", &us.key)
            .start();
        let answer = forebay.post(CHAT, STREAM);
        assert_eq!((answer.status, answer.end), (200, End::Whole), "{}", answer.text());
        assert_eq!(answer.header("x-forebay-backend"), Some(front.authority()));
        assert_eq!(mock.last().header("host"), Some(front.authority()));
        await_state(&forebay, front.url(), "healthy");
        forebay.tells("backend lists its models");
        eventually("it is scraped", || forebay.metrics().contains("forebay_backend_queue_depth{").then_some(()));
        assert_eq!(forebay.metric("forebay_backend_scrape_errors_total", &[]), 0.0);
        let shown = forebay.metric("forebay_certificate_expiry_timestamp_seconds", &["certificate=\"pools.tls\""]);
        assert_eq!(shown > 0.0, strict);
    }
}

#[test]
fn a_name_of_the_certificate_may_differ_from_the_urls_host() {
    let (ca, mock) = (Authority::new("ca"), Mock::start());
    let front = Front::tls(&mock, &ca.server(), None, BOTH);
    let url = front.url().replace("127.0.0.1", "localhost");
    let of = |tls: &str| Harness::new().config(FAST).pools(&pool(tls, &[&url])).file("ca.crt", &ca.pem).start();
    let wrong = of("tls = { ca_file = \"ca.crt\" }");
    let why = await_state(&wrong, &url, "misconfigured");
    assert!(why.contains("localhost") && why.contains("set server_name in the pool's tls"), "{why}");
    let right = of("tls = { ca_file = \"ca.crt\", server_name = \"forebay.test\" }");
    assert_eq!(right.post(CHAT, STREAM).status, 200);
    await_state(&right, &url, "healthy");
}

#[test]
fn what_does_not_fit_is_misconfigured_and_kills_nobody() {
    let (ca, stranger, mock) = (Authority::new("ca"), Authority::new("other"), Mock::start());
    let theirs = stranger.client();
    for (versions, tls, advice) in [
        (BOTH, "", "set ca_file in the pool's tls"),
        (NEW, "tls = { ca_file = \"ca.crt\" }", "set cert_file and key_file in the pool's tls"),
        (OLD, "tls = { ca_file = \"ca.crt\" }", "it asks for a client certificate"),
        (
            NEW,
            "tls = { ca_file = \"ca.crt\", cert_file = \"us.crt\", key_file = \"us.key\" }",
            "it does not accept our certificate",
        ),
        (
            OLD,
            "tls = { ca_file = \"ca.crt\", cert_file = \"us.crt\", key_file = \"us.key\" }",
            "it does not accept our certificate",
        ),
    ] {
        // Two of them, which would end a request if they were deaths, and one that is well.
        let fronts = [(); 2].map(|()| Front::tls(&mock, &ca.server(), Some(&ca), versions));
        let good = Mock::start();
        let health = "[health]\ninterval = \"1h\"\n[retry]\nattempts = 5\n";
        let forebay = Harness::new()
            .config(health)
            .pools(&pool(tls, &[fronts[0].url(), fronts[1].url(), &good.url()]))
            .file("ca.crt", &ca.pem)
            .file("us.crt", &theirs.certificate)
            .file("us.key", &theirs.key)
            .start();
        for _ in 0..6 {
            let answer = forebay.post(CHAT, STREAM);
            assert_eq!(answer.status, 200, "{}", answer.text());
        }
        for front in &fronts {
            let why = await_state(&forebay, front.url(), "misconfigured");
            assert!(why.contains(advice), "{why} has no {advice}");
        }
        assert_eq!(forebay.metric("forebay_ejections_total", &["reason=\"failures\""]), 0.0);
        assert_eq!(forebay.metric("forebay_retries_total", &["reason=\"died\""]), 0.0);
        assert_eq!(mock.seen().len(), 0);
    }
}

#[test]
fn a_server_that_closes_in_place_of_an_alert_is_misconfigured_too() {
    let (ca, stranger, mock) = (Authority::new("ca"), Authority::new("other"), Mock::start());
    let theirs = stranger.client();
    for (versions, keys, advice) in [
        (NEW, "", "set cert_file and key_file in the pool's tls"),
        (OLD, "", "set cert_file and key_file in the pool's tls"),
        (NEW, ", cert_file = \"us.crt\", key_file = \"us.key\"", "it does not accept ours"),
    ] {
        let front = Front::tls_of(&mock, &ca.server(), Some(&ca), versions, Manner::Closes);
        let tls = format!("tls = {{ ca_file = \"ca.crt\"{keys} }}");
        let forebay = Harness::new()
            .config(FAST)
            .pools(&pool(&tls, &[front.url()]))
            .file("ca.crt", &ca.pem)
            .file("us.crt", &theirs.certificate)
            .file("us.key", &theirs.key)
            .start();
        let answer = forebay.post(CHAT, STREAM);
        assert_eq!(answer.status, 502);
        assert_eq!(forebay.record(answer.header("x-request-id").unwrap())["outcome"], "tls");
        let why = await_state(&forebay, front.url(), "misconfigured");
        assert!(why.contains(advice), "{why}");
    }
}

#[test]
fn a_pool_that_no_tls_fits_answers_502_and_heals_by_a_reload() {
    let (ca, mock) = (Authority::new("ca"), Mock::start());
    let front = Front::tls(&mock, &ca.server(), Some(&ca), BOTH);
    let us = ca.client();
    let forebay = Harness::new()
        .config(FAST)
        .pools(&pool("tls = { ca_file = \"ca.crt\" }", &[front.url()]))
        .file("ca.crt", &ca.pem)
        .file("us.crt", &us.certificate)
        .file("us.key", &us.key)
        .start();
    let answer = forebay.post(CHAT, STREAM);
    assert_eq!(answer.status, 502, "{}", answer.text());
    assert_eq!(forebay.record(answer.header("x-request-id").unwrap())["outcome"], "tls");
    await_state(&forebay, front.url(), "misconfigured");
    let text = std::fs::read_to_string(&forebay.config).unwrap();
    let with = "\"ca.crt\", cert_file = \"us.crt\", key_file = \"us.key\" }";
    std::fs::write(&forebay.config, text.replace("\"ca.crt\" }", with)).unwrap();
    await_state(&forebay, front.url(), "healthy");
    assert_eq!(forebay.post(CHAT, STREAM).status, 200);
}

#[test]
fn the_wrong_scheme_says_so() {
    let (ca, mock) = (Authority::new("ca"), Mock::start());
    // What uvicorn says to bytes that are no HTTP.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let https = format!("https://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            drop(stream.read(&mut [0; 4096]));
            drop(
                stream
                    .write_all(b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\nInvalid HTTP request received."),
            );
        }
    });
    let forebay = Harness::new().config(FAST).pools(&pool("", &[&https])).start();
    let why = await_state(&forebay, &https, "misconfigured");
    assert!(why.contains("no TLS is spoken there: write the URL with http://"), "{why}");
    let front = Front::tls(&mock, &ca.server(), None, BOTH);
    let http = front.url().replace("https://", "http://");
    let forebay = Harness::new().config(FAST).pools(&pool("", &[&http])).start();
    let why = await_state(&forebay, &http, "ejected");
    assert!(why.contains("https://"), "{why}");
}

#[test]
fn a_client_that_leaves_closes_the_tls_connection_of_the_backend() {
    let (ca, mock) = (Authority::new("ca"), Mock::start());
    mock.reply(|_| vec![stream_head(), chunk(token("one")), Step::AwaitClose]);
    let front = Front::tls(&mock, &ca.server(), None, BOTH);
    let forebay =
        Harness::new().pools(&pool("tls = { ca_file = \"ca.crt\" }", &[front.url()])).file("ca.crt", &ca.pem).start();
    let mut conn = forebay.open();
    conn.send(&crate::client::post(CHAT, &[], STREAM.as_bytes()));
    conn.until("one");
    drop(conn);
    mock.await_closes(1);
}

#[test]
fn a_prefix_comes_before_every_path() {
    let mock = Mock::start();
    mock.probes(|target| {
        let known = target.starts_with("/gpu-1/");
        (!known).then(|| crate::mock::answer(404, &[], "")).or_else(|| {
            let body = r#"{"object":"list","data":[{"id":"tiny","object":"model"}]}"#;
            Some(crate::mock::answer(200, &[], if target.ends_with("/v1/models") { body } else { "" }))
        })
    });
    let url = format!("{}/gpu-1", mock.url());
    let forebay = Harness::new().config(FAST).pools(&pool("", &[&format!("{url}/")])).start();
    let answer = forebay.post(&format!("{CHAT}?a=b"), STREAM);
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(mock.only().target, format!("/gpu-1{CHAT}?a=b"));
    assert_eq!(mock.only().header("host"), Some(mock.authority().as_str()));
    let name = format!("{}/gpu-1", mock.authority());
    assert_eq!(answer.header("x-forebay-backend"), Some(name.as_str()));
    forebay.tells("backend lists its models");
    assert_eq!(forebay.metric("forebay_requests_total", &[&format!("backend=\"{name}\""), "outcome=\"success\""]), 1.0);
    assert_eq!(fleet(&forebay)[0]["state"], "healthy");
}

#[test]
fn a_unix_socket_is_a_backend_like_any_other() {
    let mock = Mock::start();
    let front = Front::unix(&mock);
    let forebay = Harness::new().config(FAST).pools(&pool("", &[front.url()])).start();
    let answer = forebay.post(CHAT, STREAM);
    assert_eq!((answer.status, answer.header("x-forebay-backend")), (200, Some(front.url())));
    assert_eq!(mock.only().header("host"), Some("localhost"));
    await_state(&forebay, front.url(), "healthy");
    eventually("it is scraped", || forebay.metrics().contains("forebay_backend_queue_depth{").then_some(()));
    let gone = front.url().to_owned();
    drop(front);
    let why = await_state(&forebay, &gone, "ejected");
    assert!(why.contains("refuses connections"), "{why}");
}

#[test]
fn the_command_line_takes_sockets_and_keys() {
    let (mock, other) = (Mock::start(), Mock::start());
    let front = Front::unix(&mock);
    let forebay = Harness::new()
        .env("ONE_KEY", "sk-one")
        .env("OTHER_KEY", "sk-other")
        .arg("--backend")
        .arg(front.url())
        .arg("--backend-key-env")
        .arg("ONE_KEY")
        .arg(&format!("--backend={}", other.url()))
        .arg("--backend-key-env=OTHER_KEY")
        .start();
    eventually("both are known", || (fleet(&forebay).len() == 2).then_some(()));
    for _ in 0..8 {
        assert_eq!(forebay.post(CHAT, STREAM).status, 200);
    }
    let keys = |mock: &Mock| {
        mock.seen().iter().map(|seen| seen.header("authorization").unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert!(keys(&mock).iter().all(|key| key == "Bearer sk-one"));
    assert!(keys(&other).iter().all(|key| key == "Bearer sk-other"));
    assert_eq!(keys(&mock).len() + keys(&other).len(), 8);
    assert!(!forebay.log().contains("sk-o"));
}

#[test]
fn a_key_in_a_file_is_read_again() {
    let mock = Mock::start();
    let backends = format!("backends = [{{ url = \"{}\", key_file = \"vllm.key\" }}]", mock.url());
    let forebay =
        Harness::new().pools(&format!("[[pools]]\nmodel = \"tiny\"\n{backends}")).file("vllm.key", "sk-old\n").start();
    let key = || {
        assert_eq!(forebay.post(CHAT, STREAM).status, 200);
        mock.last().header("authorization").unwrap().to_owned()
    };
    assert_eq!(key(), "Bearer sk-old");
    std::fs::write(forebay.config.with_file_name("vllm.key"), "sk-new\n").unwrap();
    eventually("the new key is sent", || (key() == "Bearer sk-new").then_some(()));
}

#[test]
fn a_wrong_argument_says_what_to_write() {
    for (args, wanted) in [
        (&["--backend", "http://127.0.0.1:1/v1"][..], "leave `/v1`"),
        (&["--backend", "unix:vllm.sock"], "unix:/run/vllm.sock"),
        (&["--backend", "http://127.0.0.1:1", "--backend-key-env", "NOT_SET_HERE"], "no such variable"),
        (
            &["--backend", "http://a", "--backend-key-env", "HOME", "--backend-key-env", "HOME"],
            "one for all, or one for each",
        ),
    ] {
        let ended = Command::new(binary()).arg("serve").args(args).output().unwrap();
        let said = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert_eq!(ended.status.code(), Some(2), "{said}");
        assert!(said.contains(wanted), "{said}");
    }
}
