//! `/metrics` as Prometheus reads it: promtool (of Debian's prometheus package) finds nothing to complain of.

use std::io::Write;
use std::process::{Command, Stdio};

use crate::client::post;
use crate::harness::{Forebay, Harness, eventually};
use crate::mock::{Mock, answer};

const STREAM: &str = r#"{"model":"tiny","stream":true,"messages":[{"role":"user","content":"hello"}]}"#;

fn after_traffic() -> (Forebay, [Mock; 2]) {
    let mocks = [Mock::start(), Mock::start()];
    let refusing = "unknown_models = \"refuse\"";
    let forebay = Harness::new().pool_with("tiny", refusing, &[&mocks[0], &mocks[1]]).start();
    for _ in 0..4 {
        assert_eq!(forebay.post("/v1/chat/completions", STREAM).status, 200);
        assert_eq!(forebay.post("/v1/chat/completions", r#"{"model":"tiny","messages":[]}"#).status, 200);
    }
    assert_eq!(forebay.post("/v1/chat/completions", r#"{"model":"other"}"#).status, 404);
    mocks.iter().for_each(|mock| mock.next(answer(500, &[], "{}")));
    assert_eq!(forebay.post("/v1/chat/completions", STREAM).status, 500);
    let mut gone = forebay.open();
    gone.send(&post("/v1/chat/completions", &[("content-length", "1000")], b"{"));
    gone.reset();
    eventually("a scrape of each backend", || {
        let scraped = forebay.metrics().lines().filter(|line| line.starts_with("forebay_backend_scrape_age")).count();
        (scraped == 2).then_some(())
    });
    (forebay, mocks)
}

#[test]
fn promtool_finds_nothing_wrong_with_metrics_after_traffic() {
    let (forebay, _mocks) = after_traffic();
    let started =
        Command::new("promtool").args(["check", "metrics"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let Ok(mut promtool) = started else {
        println!("skipped: promtool is not installed (Debian's prometheus package has it)");
        return;
    };
    let text = forebay.metrics();
    promtool.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let checked = promtool.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&checked.stderr).into_owned();
    assert!(checked.status.success() && said.trim().is_empty(), "promtool says:\n{said}\nof:\n{text}");
}
