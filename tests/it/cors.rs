//! Web pages of other origins: what backends allow holds for Forebay's own answers, and `[cors]` takes its place.

use crate::client::Answer;
use crate::harness::{Forebay, Harness, eventually};
use crate::mock::{CHAT, Mock, Script, Seen, answer, like_vllm};

const PATH: &str = "/v1/chat/completions";
const PAGE: &str = "http://page.example";

/// A backend whose server allows these origins, as Starlette's middleware does.
fn allowing(mock: &Mock, allowed: &'static str) {
    mock.reply(move |seen: &Seen| {
        let origin = seen.header("origin").unwrap_or_default();
        let may = match allowed {
            "*" => Some("*".to_owned()),
            one => (one == origin).then(|| origin.to_owned()),
        };
        let may: Vec<(&str, &str)> = may.iter().map(|may| ("access-control-allow-origin", may.as_str())).collect();
        if seen.method == "OPTIONS" {
            let methods = [("access-control-allow-methods", "GET, POST"), ("vary", "Origin")];
            return answer(if may.is_empty() { 400 } else { 200 }, &[&may[..], &methods].concat(), "OK");
        }
        let body: serde_json::Value = serde_json::from_slice(&seen.body).unwrap_or_default();
        if body["stream"] == true { like_vllm(seen) } else { answer(200, &may, CHAT) }
    });
}

fn ask(forebay: &Forebay, method: &str, path: &str, headers: &str, body: &str) -> Answer {
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: f\r\n{headers}content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    forebay.open().ask(head.as_bytes())
}

fn from_page(forebay: &Forebay, method: &str, path: &str, body: &str) -> Answer {
    ask(forebay, method, path, &format!("origin: {PAGE}\r\n"), body)
}

fn preflight(forebay: &Forebay, path: &str, origin: &str) -> Answer {
    let asks = "access-control-request-method: POST\r\naccess-control-request-headers: authorization,content-type\r\n";
    ask(forebay, "OPTIONS", path, &format!("origin: {origin}\r\n{asks}"), "")
}

fn allowed(answer: &Answer) -> Option<&str> {
    answer.header("access-control-allow-origin")
}

/// Keys, so that a refusal of our own is one header away.
const KEYS: &str = "[clients]\nkeys_file = \"keys\"";
const KEY_LINE: &str = "a = 2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae\n";

fn keyed(mock: &Mock, more: &str) -> Forebay {
    Harness::new().config(&format!("{KEYS}\n{more}")).file("keys", KEY_LINE).pool("tiny", &[mock]).start()
}

#[test]
fn without_cors_a_page_asks_a_backend_and_our_answers_repeat_what_it_allowed() {
    let mock = Mock::start();
    allowing(&mock, "*");
    let forebay = keyed(&mock, "");
    let asked = preflight(&forebay, PATH, PAGE);
    assert_eq!((asked.status, allowed(&asked), mock.seen().len()), (200, Some("*"), 1), "without a key");
    assert_eq!(mock.last().header("access-control-request-method"), Some("POST"));
    for (method, path, status) in [
        ("POST", PATH, 401),
        ("GET", "/v1/models", 401),
        ("POST", "/pause", 404),
        ("PUT", PATH, 405),
        ("GET", "/health", 200),
    ] {
        let refused = from_page(&forebay, method, path, "{}");
        assert_eq!((refused.status, allowed(&refused)), (status, Some("*")), "{method} {path}");
        assert!(refused.headers.iter().any(|(name, value)| name == "vary" && value.eq_ignore_ascii_case("origin")));
    }
    assert_eq!(mock.seen().len(), 1, "what is known is not asked again");
    let key = format!("origin: {PAGE}\r\nauthorization: Bearer foo\r\n");
    let served = ask(&forebay, "POST", PATH, &key, r#"{"model":"tiny","messages":[]}"#);
    assert_eq!((served.status, allowed(&served)), (200, Some("*")));
    assert_eq!(allowed(&ask(&forebay, "GET", "/v1/models", "authorization: Bearer foo\r\n", "")), None, "no page asks");
    // What no path is stays closed to the question, too.
    assert_eq!(preflight(&forebay, "/pause", PAGE).status, 404);
}

#[test]
fn what_no_page_asked_about_is_asked_when_it_is_needed() {
    let mock = Mock::start();
    allowing(&mock, PAGE);
    let forebay = Harness::new().pool("tiny", &[&mock]).start();
    // A GET without special headers comes without a question.
    let list = from_page(&forebay, "GET", "/v1/models", "");
    assert_eq!((list.status, allowed(&list)), (200, Some(PAGE)));
    assert_eq!((mock.seen().len(), mock.last().method.as_str()), (1, "OPTIONS"));
    let other = ask(&forebay, "GET", "/v1/models", "origin: http://other.example\r\n", "");
    assert_eq!((other.status, allowed(&other)), (200, None));
    assert_eq!(preflight(&forebay, PATH, "http://other.example").status, 400, "as the backend has it");
    // A backend that changes its mind is believed.
    allowing(&mock, "http://other.example");
    assert_eq!(preflight(&forebay, PATH, PAGE).status, 400);
    assert_eq!(allowed(&from_page(&forebay, "GET", "/v1/models", "")), None);
}

#[test]
fn strangers_who_name_many_origins_cause_few_questions() {
    let mock = Mock::start();
    allowing(&mock, PAGE);
    let forebay = Harness::new().pool("tiny", &[&mock]).start();
    let mut conn = forebay.open();
    for n in 0..100 {
        let get = format!("GET /v1/models HTTP/1.1\r\nhost: f\r\norigin: http://o{n}.example\r\n\r\n");
        assert_eq!(conn.ask(get.as_bytes()).status, 200);
    }
    assert!((1..=25).contains(&mock.seen().len()), "{}", mock.seen().len());
}

#[test]
fn cors_off_lets_no_page_in_whatever_the_backend_says() {
    let mock = Mock::start();
    allowing(&mock, "*");
    let forebay = Harness::new().config("[cors]\norigins = \"off\"").pool("tiny", &[&mock]).start();
    let asked = preflight(&forebay, PATH, PAGE);
    assert_eq!((asked.status, asked.header("allow"), allowed(&asked)), (405, Some("POST"), None));
    let served = from_page(&forebay, "POST", PATH, r#"{"model":"tiny","messages":[]}"#);
    assert_eq!((served.status, allowed(&served)), (200, None), "what the backend says of it ends here");
    assert_eq!(allowed(&from_page(&forebay, "GET", "/v1/models", "")), None);
    assert!(mock.seen().iter().all(|seen| seen.method == "POST"));
}

#[test]
fn a_list_is_answered_here_and_reloaded() {
    let mock = Mock::start();
    allowing(&mock, "*");
    let forebay = keyed(&mock, &format!("[cors]\norigins = [\"{PAGE}\"]"));
    let asked = preflight(&forebay, PATH, PAGE);
    assert_eq!((asked.status, allowed(&asked)), (204, Some(PAGE)));
    assert_eq!(asked.header("access-control-allow-methods"), Some("POST"));
    assert_eq!(asked.header("access-control-allow-headers"), Some("authorization,content-type"));
    assert_eq!(asked.header("access-control-max-age"), Some("600"));
    let refused = from_page(&forebay, "POST", PATH, "{}");
    assert_eq!((refused.status, allowed(&refused)), (401, Some(PAGE)));
    assert!(refused.header("access-control-expose-headers").unwrap().contains("retry-after"));
    let key = format!("origin: {PAGE}\r\nauthorization: Bearer foo\r\n");
    let served = ask(&forebay, "POST", PATH, &key, r#"{"model":"tiny","messages":[]}"#);
    assert_eq!((served.status, allowed(&served)), (200, Some(PAGE)), "in place of the backend's");
    let other = preflight(&forebay, PATH, "http://other.example");
    assert_eq!((other.status, allowed(&other)), (403, None));
    assert_eq!(other.header("x-forebay-error"), Some("forebay_origin_not_allowed"));
    let no_question = ask(&forebay, "OPTIONS", PATH, "", "");
    assert_eq!((no_question.status, no_question.header("allow")), (405, Some("POST")));
    let text = std::fs::read_to_string(&forebay.config).unwrap();
    std::fs::write(&forebay.config, text.replace(PAGE, "*")).unwrap();
    forebay.signal("HUP");
    eventually("every origin", || {
        (allowed(&preflight(&forebay, PATH, "http://other.example")) == Some("http://other.example")).then_some(())
    });
}

#[test]
fn a_stream_whose_head_went_out_early_may_be_read_by_the_page() {
    let mock = Mock::start();
    allowing(&mock, "*");
    let forebay = Harness::new().config("[stream]\nhead_after = \"50ms\"").pool("tiny", &[&mock]).start();
    let slow: Script = [vec![crate::mock::Step::Pause(crate::harness::ms(300))], like_vllm_stream()].concat();
    mock.next(slow);
    let streamed = from_page(&forebay, "POST", PATH, r#"{"model":"tiny","stream":true,"messages":[]}"#);
    // The question for what is allowed meets the backend's next script, or its handler.
    assert!(streamed.text().contains("forebay waiting"), "{}", streamed.text());
    assert_eq!((streamed.status, allowed(&streamed)), (200, Some("*")));
    assert_eq!(streamed.header("x-accel-buffering"), Some("no"));
}

fn like_vllm_stream() -> Script {
    crate::mock::stream(&[crate::mock::token("Hi"), crate::mock::DONE.to_owned()])
}
