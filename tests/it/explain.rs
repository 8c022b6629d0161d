//! Why a request went where it went: in its answer, for a client that asks and may, and in the debug log.

use std::process::{Command, Stdio};

use crate::client::{Answer, Conn, post};
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
    assert!(words(&answer).starts_with("b1: the only eligible backend"), "{}", words(&answer));
}

#[test]
fn every_decision_is_in_the_debug_log_with_its_request() {
    let mock = Mock::start();
    let forebay = Harness::new().pool("tiny", &[&mock]).arg("--log-level=warn,forebay=debug").start();
    ask(&forebay, UNARY, &[("x-request-id", "r-explained")]);
    eventually("the decision's line", || {
        let log = forebay.log();
        let line = log.lines().find(|line| line.contains("r-explained") && line.contains("dispatched"))?;
        assert!(line.contains("b0: the only eligible backend"), "{line}");
        Some(())
    });
}

#[test]
fn every_stream_says_how_far_off_its_prediction_was_and_a_unary_request_nothing() {
    let mock = Mock::start();
    let forebay = Harness::new().pool_with("tiny", PREDICTED, &[&mock]).start();
    for _ in 0..6 {
        ask(&forebay, STREAM, &[]);
        ask(&forebay, UNARY, &[]);
    }
    let within = |le: &str| forebay.metric("forebay_prediction_error_ratio_bucket", &[&format!("le=\"{le}\"")]);
    assert_eq!(forebay.metric("forebay_prediction_error_ratio_count", &["backend"]), 6.0);
    assert_eq!(within("+Inf"), 6.0);
    for edges in ["0.1", "0.5", "1.0", "2.0", "10.0"].windows(2) {
        assert!(within(edges[0]) <= within(edges[1]), "{edges:?}: {}", forebay.metrics());
    }
    assert!(forebay.metrics().contains("forebay_prediction_error_ratio_bucket{"));
}

// ---- forebay explain -----------------------------------------------------------------------------------------------

/// Runs `forebay explain`, and gives its exit code and all that it said.
fn command(forebay: &Forebay, args: &[&str], env: &[(&str, &str)]) -> (i32, String) {
    let dir = forebay.config.parent().unwrap();
    std::fs::write(dir.join("request.json"), STREAM).unwrap();
    let run = Command::new(env!("CARGO_BIN_EXE_forebay"))
        .arg("explain")
        .args(args)
        .envs(env.iter().copied())
        .current_dir(dir)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = [run.stdout, run.stderr].concat();
    (run.status.code().unwrap(), String::from_utf8(text).unwrap())
}

#[test]
fn the_command_says_what_a_running_proxy_would_do() {
    let (a, b) = (Mock::start(), Mock::start());
    let pools = |drained: bool| {
        format!(
            "[[pools]]\nmodel = \"tiny\"\nbackends = [{{ url = \"{}\" }}, {{ url = \"{}\", drain = {drained} }}]\n",
            a.url(),
            b.url()
        )
    };
    let forebay = Harness::new().pools(&pools(true)).start();
    let admin = format!("http://{}", forebay.admin);
    let (code, live) = command(&forebay, &["--url", &admin, "request.json"], &[]);
    assert_eq!(code, 0, "{live}");
    for part in ["pool tiny, predicted_ttft: 1 prompt tokens (estimated), streamed, arm default", "drained", "* "] {
        assert!(live.contains(part), "{part:?} is not in:\n{live}");
    }
    let words = live.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(words.contains(&format!("b0 ({}): the only eligible backend", a.authority())), "{live}");
    assert!(live.lines().all(|line| line.chars().count() <= 80), "as wide as a terminal:\n{live}");

    let (code, recorded) = command(&forebay, &["--url", &admin, "--json", "request.json"], &[]);
    let recorded: serde_json::Value = serde_json::from_str(&recorded).unwrap_or_else(|_| panic!("{recorded}"));
    assert_eq!((code, &recorded["decision"]["reason"]), (0, &serde_json::json!("only")));
    let verdicts: Vec<&serde_json::Value> = (0..2).map(|place| &recorded["backends"][place]["verdict"]).collect();
    assert_eq!(verdicts, ["chosen", "drained"]);
    assert_eq!(a.seen().len() + b.seen().len(), 0, "the request is sent nowhere");
}

#[test]
fn the_command_s_errors_say_what_would_be_right() {
    let mock = Mock::start();
    let forebay = Harness::new()
        .config("[admin]\ntoken_file = \"admin.token\"")
        .file("admin.token", "t-1\n")
        .pool("tiny", &[&mock])
        .start();
    let admin = format!("http://{}", forebay.admin);
    let of = |args: &[&str], env: &[(&str, &str)]| command(&forebay, &[&["--url", &admin], args].concat(), env);
    let with = ["--token-file", "admin.token"];
    let wanted = [
        (vec![], None, 1, "wants its token: --admin-token-file FILE, or FOREBAY_ADMIN_TOKEN"),
        (vec![], Some("wrong"), 1, "wants another token"),
        (vec![], Some("t-1"), 0, "b0"),
        (with.to_vec(), None, 0, "b0"),
        ([&with[..], &["--path", "/pause"]].concat(), None, 2, "/pause is not served"),
        ([&with[..], &["--arm", "x"]].concat(), None, 2, "has no arm `x`, but default"),
    ];
    for (args, token, code, words) in wanted {
        let env: Vec<(&str, &str)> = token.map(|token| ("FOREBAY_ADMIN_TOKEN", token)).into_iter().collect();
        let args = [&args[..], &["request.json"]].concat();
        let (got, text) = of(&args, &env);
        assert_eq!(got, code, "{args:?}: {text}");
        assert!(text.contains(words), "{args:?}: {words:?} is not in {text:?}");
    }
}

// ---- POST /api/explain ---------------------------------------------------------------------------------------------

fn question(forebay: &Forebay, headers: &[(&str, &str)], body: &str) -> Answer {
    let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let (host, length) = (forebay.admin, body.len());
    let head = format!("POST /api/explain HTTP/1.1\r\nhost: {host}\r\n{headers}content-length: {length}\r\n\r\n");
    Conn::open(forebay.admin).ask(&[head.as_bytes(), body.as_bytes()].concat())
}

const PROMPT: &str = "the quick brown fox jumps over the lazy dog and runs on ";

#[test]
fn the_running_process_says_what_it_expects_in_prefix_caches_and_logs_nothing_of_the_prompt() {
    let (a, b) = (Mock::start(), Mock::start());
    let forebay = Harness::new().pool_with("tiny", PREDICTED, &[&a, &b]).arg("--log-level=debug").start();
    let body = format!(r#"{{"model":"tiny","messages":[{{"role":"user","content":"{}"}}]}}"#, PROMPT.repeat(200));
    let asked = format!(r#"{{"request": {body}}}"#);
    let matched = |answer: &Answer| -> Vec<u64> {
        let answer: serde_json::Value = serde_json::from_str(&answer.text()).unwrap();
        let backends = answer["backends"].as_array().unwrap();
        backends.iter().map(|backend| backend["row"]["matched"].as_u64().unwrap()).collect()
    };
    let before = question(&forebay, &[("content-type", "application/json")], &asked);
    assert_eq!((before.status, matched(&before)), (200, vec![0, 0]), "{}", before.text());
    ask(&forebay, &body, &[]);
    let after = question(&forebay, &[("content-type", "application/json")], &asked);
    let held = usize::from(a.seen().is_empty());
    assert!(matched(&after)[held] > 2000 && matched(&after)[1 - held] == 0, "{}", after.text());
    let decision: serde_json::Value = serde_json::from_str(&after.text()).unwrap();
    assert_eq!(decision["backends"][held]["verdict"], "chosen");
    let supposed = format!(r#"{{"request": {body}, "matched": {{"b{}": 2500}}}}"#, 1 - held);
    let supposed = question(&forebay, &[("content-type", "application/json")], &supposed);
    assert_eq!(matched(&supposed)[1 - held], 2500);
    assert_eq!(a.seen().len() + b.seen().len(), 1, "what is asked about is sent nowhere");
    assert!(!forebay.log().contains("quick brown"), "{}", forebay.log());
    assert_eq!(forebay.metric("forebay_in_flight", &["backend"]), 0.0);
}

#[test]
fn a_question_is_guarded_as_a_change_is_and_its_mistakes_are_told() {
    let mock = Mock::start();
    let forebay = Harness::new().pool_with("tiny", "unknown_models = \"refuse\"", &[&mock]).start();
    let json = ("content-type", "application/json");
    let good = format!(r#"{{"request": {UNARY}}}"#);
    for (headers, body, status, words) in [
        (vec![json], good.as_str(), 200, "\"decision\""),
        // curl without a body names no content type; a form's is what a page may send unasked.
        (vec![], good.as_str(), 200, "\"decision\""),
        (vec![("content-type", "application/x-www-form-urlencoded")], good.as_str(), 415, "form"),
        (vec![json, ("origin", "https://evil.example")], good.as_str(), 403, "another origin"),
        (vec![json], "{}", 400, "request"),
        (vec![json], "not json", 400, "the body is"),
        (vec![json], r#"{"request": [1]}"#, 400, "not an object"),
        (vec![json], r#"{"request": {"model": "other"}}"#, 404, "tiny"),
        (vec![json], r#"{"request": {"model": "tiny"}, "path": "/pause"}"#, 400, "/pause is not served"),
        (vec![json], r#"{"request": {"model": "tiny"}, "arm": "x"}"#, 400, "has no arm `x`, but default"),
        (vec![json], r#"{"request": {"model": "tiny"}, "matched": {"b9": 1}}"#, 400, "b9 is not in pool tiny"),
        (vec![json], r#"{"request": {"model": "tiny"}, "bananas": 1}"#, 400, "bananas"),
    ] {
        let answer = question(&forebay, &headers, body);
        assert_eq!(answer.status, status, "{body}: {}", answer.text());
        assert!(answer.text().contains(words), "{words:?} is not in {}", answer.text());
    }
    let large = format!(r#"{{"request": {{"model": "tiny", "prompt": "{}"}}}}"#, "x".repeat(9 << 20));
    assert_eq!(question(&forebay, &[json], &large).status, 413);
    assert_eq!(mock.seen().len(), 0);
}

#[test]
fn a_question_s_session_is_found_as_a_request_s_is() {
    let mocks = [Mock::start(), Mock::start()];
    let arm = |mock: &Mock| {
        let url = mock.url();
        format!(
            "[[pools.arms]]\nname = \"on-{}\"\nbackends = [{{ url = \"{url}\" }}]\n",
            mock.authority().replace(['.', ':'], "-")
        )
    };
    let arms: String = mocks.iter().map(arm).collect();
    // By a header, which a question does not have, and by a member of the body, which it has.
    let pools = format!(
        "[[pools]]\nmodel = \"by-header\"\n{}[[pools]]\nmodel = \"by-body\"\nsession = {{ body = \"user\" }}\n{}",
        arms, arms
    );
    let forebay = Harness::new().pools(&pools).start();
    let notes = |model: &str| {
        let body = format!(
            r#"{{"request": {{"model": "{model}", "user": "u-7", "prompt": "hi"}}, "path": "/v1/completions"}}"#
        );
        let answer = question(&forebay, &[("content-type", "application/json")], &body);
        let answer: serde_json::Value = serde_json::from_str(&answer.text()).unwrap();
        answer["notes"].as_array().unwrap().len()
    };
    assert_eq!((notes("by-header"), notes("by-body")), (1, 0), "one draws its arm, and says so");
}
