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
fn the_command_says_the_same_of_a_running_proxy_and_of_its_recorded_fleet() {
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
    assert!(live.contains(&format!("b0 ({}): the only one that may have it", a.authority())), "{live}");

    let state = Conn::open(forebay.admin).ask(b"GET /api/fleet HTTP/1.1\r\nhost: admin\r\n\r\n").text();
    std::fs::write(forebay.config.with_file_name("fleet.json"), state).unwrap();
    let (code, recorded) = command(&forebay, &["--state", "fleet.json", "--json", "request.json"], &[]);
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
        (vec![], None, 1, "wants its token: --token-file FILE, or FOREBAY_ADMIN_TOKEN"),
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
