//! Why a request went where it went: in its answer, for a client that asks and may, and in the debug log.

use crate::client::{Answer, post};
use crate::harness::{Forebay, Harness, eventually};
use crate::mock::{Mock, answer};

const PATH: &str = "/v1/chat/completions";
const UNARY: &str = r#"{"model":"tiny","messages":[{"role":"user","content":"why?"}]}"#;
const STREAM: &str = r#"{"model":"tiny","stream":true,"messages":[{"role":"user","content":"why?"}]}"#;
const HEADER: &str = "x-forebay-explain";
const PREDICTED: &str = "policy = \"predicted_ttft\"";

fn ask(forebay: &Forebay, body: &str, wish: &[(&str, &str)]) -> Answer {
    forebay.open().ask(&post(PATH, wish, body.as_bytes()))
}

/// The words of an answer: one line, at most 1 KiB, that any HTTP client can read.
fn words(answer: &Answer) -> &str {
    let words = answer.header(HEADER).unwrap_or_else(|| panic!("no {HEADER}: {:?}", answer.text()));
    assert!(words.len() <= 1024 && words.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{words}");
    words
}

#[test]
fn a_client_that_asks_is_told_and_its_backend_does_not_hear_of_it() {
    let (a, b) = (Mock::start(), Mock::start());
    let forebay = Harness::new().pool_with("tiny", PREDICTED, &[&a, &b]).start();
    for body in [UNARY, STREAM] {
        let answer = ask(&forebay, body, &[(HEADER, "1")]);
        let words = words(&answer);
        let (chosen, mock) = if words.starts_with("b0: ") { (&a, "b1") } else { (&b, "b0") };
        assert_eq!(answer.header("x-forebay-backend"), Some(chosen.authority().as_str()), "{words}");
        assert!(words.contains("predicted TTFT") && words.contains(mock), "{words}");
        for part in ["step=", "queue=", "prompt=", "kv_wait=", "others=", "k=", "v=", "matched="] {
            assert!(words.contains(part), "{part} is not in {words}");
        }
        assert_eq!(chosen.last().header(HEADER), None);
    }
    for wish in [&[][..], &[(HEADER, "0")], &[(HEADER, "yes")]] {
        assert_eq!(ask(&forebay, UNARY, wish).header(HEADER), None);
    }
}

#[test]
fn who_may_ask_is_the_configuration_s_to_say_and_a_reload_s_to_change() {
    let mock = Mock::start();
    let forebay = Harness::new().config("[clients]\nexplain = \"off\"").pool("tiny", &[&mock]).start();
    assert_eq!(ask(&forebay, UNARY, &[(HEADER, "1")]).header(HEADER), None);
    assert_eq!(mock.last().header(HEADER), None);
    let text = std::fs::read_to_string(&forebay.config).unwrap().replace("\"off\"", "\"all\"");
    std::fs::write(&forebay.config, text).unwrap();
    forebay.signal("HUP");
    eventually("the reload", || ask(&forebay, UNARY, &[(HEADER, "1")]).header(HEADER).map(str::to_owned));
}

#[test]
fn many_backends_fit_into_one_kib() {
    let mocks: Vec<Mock> = (0..24).map(|_| Mock::start()).collect();
    let forebay = Harness::new().pool_with("tiny", PREDICTED, &mocks.iter().collect::<Vec<_>>()).start();
    let answer = ask(&forebay, UNARY, &[(HEADER, "1")]);
    let words = words(&answer);
    assert!(words.ends_with(" more") && words.contains("of 24 by predicted_ttft"), "{words}");
}

#[test]
fn after_a_failover_the_last_decision_is_told() {
    let (a, b) = (Mock::playing(answer(500, &[], "{}")), Mock::start());
    let forebay = Harness::new().pool("tiny", &[&a, &b]).start();
    let answer = eventually("a failover", || {
        let answer = ask(&forebay, UNARY, &[(HEADER, "1")]);
        (answer.header("x-forebay-attempts") == Some("2")).then_some(answer)
    });
    assert_eq!(answer.header("x-forebay-backend"), Some(b.authority().as_str()));
    assert!(words(&answer).starts_with("b1: the only one that may have it"), "{}", words(&answer));
}

#[test]
fn every_decision_is_in_the_debug_log_with_its_request() {
    let mock = Mock::start();
    let forebay = Harness::new().pool("tiny", &[&mock]).arg("--log-level=warn,forebay=debug").start();
    ask(&forebay, UNARY, &[("x-request-id", "r-explained")]);
    eventually("the decision's line", || {
        let log = forebay.log();
        let line = log.lines().find(|line| line.contains("r-explained") && line.contains("dispatched"))?;
        assert!(line.contains("b0: the only one that may have it"), "{line}");
        Some(())
    });
}
