//! The logs of `[log]`: in files, in the form that they are given, opened again on SIGUSR1; and what they say of an end, of an
//! ejection and of a scrape that is late.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::client::post;
use crate::harness::{Harness, eventually, ms, time_passes};
use crate::mock::{DONE, Gate, Mock, Step, answer, chunk, last_chunk, stream_head, token};

const PATH: &str = "/v1/chat/completions";
const UNARY: &str = r#"{"model":"tiny","messages":[]}"#;
const STREAM: &str = r#"{"model":"tiny","stream":true,"messages":[]}"#;

fn text(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// The lines of a JSON log.
fn lines(path: &Path) -> Vec<Value> {
    text(path).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn log_files_are_opened_again_on_sigusr1_and_no_line_is_lost() {
    let mock = Mock::start();
    // The harness waits for a line on standard error, so the log of events has no file here.
    let log = "[log]\naccess_log_file = \"access.log\"";
    let forebay = Harness::new().config(log).pool("tiny", &[&mock]).start();
    let access = forebay.config.with_file_name("access.log");
    let moved = forebay.config.with_file_name("access.log.1");
    let mut sent = 0;
    let mut send = |count: u32| {
        (0..count).for_each(|_| assert_eq!(forebay.post(PATH, UNARY).status, 200));
        sent += count as usize;
        sent
    };
    let all = send(5);
    eventually("five lines", || (lines(&access).len() == all).then_some(()));
    std::fs::rename(&access, &moved).unwrap();
    let all = send(5);
    eventually("they go on into the file that was moved", || (lines(&moved).len() == all).then_some(()));
    forebay.signal("USR1");
    eventually("a new file, before any line", || access.exists().then_some(()));
    let all = send(5);
    eventually("the rest is in it", || (lines(&access).len() + lines(&moved).len() == all).then_some(()));
    assert_eq!(lines(&access).len(), 5);
    assert!(forebay.access().is_empty(), "nothing on standard output");
    // As a rotation that finds its folder gone: the log goes on where it can, and says so.
    std::fs::remove_file(&access).unwrap();
    std::fs::create_dir(&access).unwrap();
    forebay.signal("USR1");
    assert_eq!(forebay.tells("cannot be opened again"), 1);
    assert_eq!(forebay.post(PATH, UNARY).status, 200);
}

#[test]
fn the_log_of_events_has_a_level_a_form_and_a_file_and_options_win() {
    let mock = Mock::start();
    let place = tempfile::tempdir().unwrap();
    let events = place.path().join("events.log");
    let config = place.path().join("forebay.toml");
    let pool = format!("[[pools]]\nmodel = \"tiny\"\nbackends = [{{ url = \"{}\" }}]\n", mock.url());
    let section = "[log]\nlevel = \"debug\"\nformat = \"json\"\nfile = \"events.log\"\naccess_log = \"text\"\naccess_log_file = \"a.log\"\n";
    std::fs::write(&config, format!("{section}{pool}")).unwrap();
    let start = |more: &[&str]| {
        let port = crate::harness::free_port;
        let (listen, admin) = (format!("127.0.0.1:{}", port()), format!("127.0.0.1:{}", port()));
        let mut command = std::process::Command::new(crate::harness::binary());
        command
            .args(["serve", "--config", config.to_str().unwrap(), "--listen", &listen, "--admin", &admin])
            .args(more);
        command.env_remove("FOREBAY_LOG").stdout(std::process::Stdio::null()).stderr(std::process::Stdio::piped());
        Child(command.spawn().unwrap())
    };
    let forebay = start(&[]);
    eventually("it listens", || text(&events).contains("forebay is listening").then_some(()));
    eventually("debug lines", || lines(&events).iter().any(|line| line["level"] == "DEBUG").then_some(()));
    let moved = place.path().join("events.log.1");
    std::fs::rename(&events, &moved).unwrap();
    forebay.signal("USR1");
    eventually("a new file", || text(&events).contains("opening the log files again").then_some(()));
    forebay.signal("TERM");
    eventually("its last word is in it", || text(&events).contains("drained").then_some(()));
    drop(forebay);
    let other = place.path().join("other.log");
    let _forebay =
        start(&["--log-file", other.to_str().unwrap(), "--log-format", "text", "--log-level", "warn,forebay=info"]);
    eventually("it listens", || text(&other).contains("forebay is listening").then_some(()));
    assert!(!text(&other).contains("DEBUG") && !text(&other).starts_with('{'), "{}", text(&other));
    drop(_forebay);
    let mut refused = start(&["--log-file", place.path().to_str().unwrap()]);
    assert_eq!(refused.0.wait().unwrap().code(), Some(2), "a folder is no log file");
}

struct Child(std::process::Child);

impl Child {
    fn signal(&self, name: &str) {
        let pid = self.0.id().to_string();
        assert!(std::process::Command::new("kill").args([&format!("-{name}"), &pid]).status().unwrap().success());
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[test]
fn an_end_says_what_it_waits_for_and_what_it_cuts() {
    let gate = Gate::new();
    let held = gate.clone();
    let mock = Mock::replying(move |_| {
        vec![stream_head(), chunk(token("Hi")), Step::Hold(held.clone()), chunk(DONE), last_chunk()]
    });
    let mut forebay = Harness::new().config("[listen]\ndrain = { limit = \"1h\" }").pool("tiny", &[&mock]).start();
    let mut client = forebay.open();
    client.send(&post(PATH, &[], STREAM.as_bytes()));
    client.until("Hi");
    forebay.signal("TERM");
    let says = "SIGTERM: draining, /ready says no; waiting for 1 request on backends (1 past the first token), 0 waiting for a place";
    assert_eq!(forebay.tells(says), 1);
    assert_eq!(forebay.tells("no new connections; waiting for 1 request"), 1);
    forebay.tells("until 20");
    forebay.tells("SIGINT ends at once");
    forebay.signal("INT");
    assert_eq!(forebay.tells("ending at once, which cuts 1 request"), 1);
    assert_eq!(forebay.exit(ms(5000)).code(), Some(0));
    gate.open();
    let mut idle = Harness::new().pool("tiny", &[&mock]).start();
    idle.signal("INT");
    assert!(idle.exit(ms(5000)).success());
    assert_eq!(idle.tells("nothing is under way"), 1);
}

#[test]
fn one_slow_scrape_is_no_warning_and_three_are_one_that_names_the_path() {
    let (mock, slow) = (Mock::start(), Gate::new());
    let config = "[scrape]\ninterval = \"150ms\"\ntimeout = \"100ms\"\n[health]\ninterval = \"1h\"";
    let forebay =
        Harness::new().config(config).arg("--log-level").arg("info,forebay=debug").pool("tiny", &[&mock]).start();
    let held = slow.clone();
    let once = std::sync::atomic::AtomicBool::new(true);
    mock.probes(move |path| {
        let first = path.contains("/metrics") && once.swap(false, std::sync::atomic::Ordering::Relaxed);
        first.then(|| vec![Step::Hold(held.clone())])
    });
    assert_eq!(forebay.tells("scrape failed"), 1);
    time_passes(Duration::from_millis(300));
    assert_eq!(forebay.logged("metrics cannot be read"), 0, "{}", forebay.log());
    let held = slow.clone();
    mock.probes(move |path| path.contains("/metrics").then(|| vec![Step::Hold(held.clone())]));
    let words = "metrics cannot be read: it is routed by what Forebay counts itself";
    assert_eq!(forebay.tells(words), 1);
    forebay.tells("/metrics gave no answer within 100ms");
    mock.probes(|_| None);
    assert_eq!(forebay.tells("metrics are read again"), 1);
    slow.open();
}

#[test]
fn the_reason_of_an_ejection_names_what_did_not_answer_and_that_it_answers_again() {
    let (mock, other, silent) = (Mock::start(), Mock::start(), Gate::new());
    // Out for long, so that the reason is seen after the return of /health.
    let config = "[health]\ninterval = \"100ms\"\ntimeout = \"100ms\"\nejection = { base = \"1m\", max = \"1m\" }";
    let forebay = Harness::new().config(config).pool("tiny", &[&mock, &other]).start();
    let held = silent.clone();
    mock.probes(move |path| path.contains("/health").then(|| vec![Step::Hold(held.clone())]));
    forebay.await_state(&mock, "ejected");
    let reason = || forebay.backend(&mock)["reason"].as_str().unwrap_or_default().to_owned();
    assert!(reason().contains("/health gave no answer within 100ms"), "{}", reason());
    forebay.tells("WARN");
    mock.probes(|path| path.contains("/health").then(|| answer(200, &[], "")));
    eventually("it answers again", || reason().contains("/health answers again").then_some(()));
    silent.open();
}
