//! A configuration that changes while requests are under way: nothing is lost, what left the file finishes and then leaves
//! `/metrics`, and a file with mistakes changes nothing.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::client::{End, post};
use crate::harness::{Forebay, Harness, eventually, ms};
use crate::mock::{DONE, Gate, Mock, Step, chunk, last_chunk, stream_head, token};

const STREAM: &str = r#"{"model":"tiny","stream":true,"messages":[{"role":"user","content":"hello"}]}"#;
const CHAT_PATH: &str = "/v1/chat/completions";
const APPLIED: &str = "result=\"applied\"";
const REJECTED: &str = "result=\"rejected\"";
const UNCHANGED: &str = "result=\"unchanged\"";

/// The file's pools: arms by name, share and backends.
fn pools(arms: &[(&str, u32, &[&Mock])]) -> String {
    let mut text = "[[pools]]\nmodel = \"tiny\"\npolicy = \"round_robin\"\n".to_owned();
    for (name, share, backends) in arms {
        let urls: Vec<String> = backends.iter().map(|mock| format!("{{ url = \"{}\" }}", mock.url())).collect();
        text.push_str(&format!(
            "[[pools.arms]]\nname = \"{name}\"\nshare = {share}\ngpus = 1\nbackends = [{}]\n",
            urls.join(", ")
        ));
    }
    text
}

/// Replaced whole, as an editor or a ConfigMap does it.
fn write(forebay: &Forebay, text: &str) {
    let new = forebay.config.with_extension("new");
    std::fs::write(&new, text).unwrap();
    std::fs::rename(new, &forebay.config).unwrap();
}

fn reloads(forebay: &Forebay, result: &str) -> f64 {
    forebay.metric("forebay_config_reloads_total", &[result])
}

/// Signals until the reload is counted. The handler of SIGHUP is there once the listeners are.
fn hup_until(forebay: &Forebay, result: &str, count: f64) {
    forebay.signal("HUP");
    eventually(&format!("a reload with {result}"), || (reloads(forebay, result) >= count).then_some(()));
}

fn has_series(forebay: &Forebay, mock: &Mock) -> bool {
    forebay.metrics().contains(&format!("backend=\"{}\"", mock.authority()))
}

/// Sends streams until told to stop; every one must be whole.
fn keep_asking(forebay: &Forebay, stop: &AtomicBool, answered: &AtomicUsize) {
    let request = post(CHAT_PATH, &[], STREAM.as_bytes());
    let mut conn = forebay.open();
    while !stop.load(Ordering::Relaxed) {
        let answer = conn.ask(&request);
        assert_eq!((answer.status, answer.end), (200, End::Whole), "{}", answer.text());
        assert!(answer.text().ends_with(DONE), "{}", answer.text());
        answered.fetch_add(1, Ordering::Relaxed);
    }
}

/// Ends the clients, also where the test fails.
struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Waits for so many more answers.
fn answers(answered: &AtomicUsize, more: usize) {
    let before = answered.load(Ordering::Relaxed);
    eventually("answers go on", || (answered.load(Ordering::Relaxed) >= before + more).then_some(()));
}

#[test]
fn a_backend_may_come_go_and_change_its_arms_share_under_load_and_nothing_is_lost() {
    let (stays, goes, comes) = (Mock::start(), Mock::start(), Mock::start());
    let forebay = Harness::new().pools(&pools(&[("a", 50, &[&stays]), ("b", 50, &[&goes])])).start();
    // A stream on the backend that will go, held open over the change.
    let gate = Gate::new();
    let long = vec![
        stream_head(),
        chunk(token("one")),
        Step::Wait(gate.clone()),
        chunk(token("two")),
        chunk(DONE),
        last_chunk(),
    ];
    goes.next(long);
    let mut held = forebay.open();
    eventually("a session of arm b", || {
        held = forebay.open();
        held.send(&post(CHAT_PATH, &[], STREAM.as_bytes()));
        let head = held.head();
        (head.header("x-forebay-arm") == Some("b")).then_some(())
    });
    held.until("one");

    let (stop, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let _stop = StopAtEnd(&stop);
        let clients: Vec<_> = (0..8).map(|_| scope.spawn(|| keep_asking(&forebay, &stop, &answered))).collect();
        answers(&answered, 50);
        assert!(has_series(&forebay, &goes));

        write(&forebay, &pools(&[("a", 10, &[&stays]), ("c", 90, &[&comes])]));
        eventually("the change is in force", || (reloads(&forebay, APPLIED) == 1.0).then_some(()));
        // A request that was dispatched before the change may still be on its way.
        eventually("the removed backend's series are gone", || (!has_series(&forebay, &goes)).then_some(()));
        answers(&answered, 50);
        let before = [&stays, &goes, &comes].map(|mock| mock.seen().len());
        answers(&answered, 200);
        let after = [&stays, &goes, &comes].map(|mock| mock.seen().len());
        assert_eq!(after[1], before[1], "the removed backend gets nothing any more");
        assert!(
            after[2] - before[2] > 2 * (after[0] - before[0]),
            "the new arm has 90 % of them: {before:?} {after:?}"
        );
        assert_eq!(forebay.metric("forebay_arm_share", &["arm=\"c\""]), 0.9);
        assert!(forebay.metric("forebay_requests_total", &["arm=\"c\"", "outcome=\"success\""]) > 0.0);
        stop.store(true, Ordering::Relaxed);
        clients.into_iter().for_each(|client| client.join().expect("every answer was whole"));
    });
    gate.open();
    held.until(DONE);
    held.until("0\r\n\r\n");
    assert!(held.received().contains("two"));
    assert!(!has_series(&forebay, &goes), "the end of its last stream does not bring them back");
    assert!(!forebay.log().contains("panicked"));
}

#[test]
fn a_file_with_mistakes_keeps_the_last_good_one_and_says_why_once() {
    let mock = Mock::start();
    let forebay = Harness::new().pools(&pools(&[("a", 50, &[&mock])])).start();
    write(&forebay, &pools(&[("a", 50, &[&mock])]).replace("round_robin", "round_robbin"));
    eventually("the file is rejected", || (reloads(&forebay, REJECTED) == 1.0).then_some(()));
    assert_eq!(reloads(&forebay, APPLIED), 0.0);
    eventually("the log says why", || forebay.log().contains("round_robbin").then_some(()));
    assert_eq!(forebay.post(CHAT_PATH, STREAM).status, 200);

    std::fs::remove_file(&forebay.config).unwrap();
    eventually("a file that is gone is rejected", || (reloads(&forebay, REJECTED) == 2.0).then_some(()));
    assert_eq!(forebay.post(CHAT_PATH, STREAM).status, 200);

    write(&forebay, &pools(&[("b", 50, &[&mock])]));
    eventually("a right one is taken", || (reloads(&forebay, APPLIED) == 1.0).then_some(()));
    assert_eq!(reloads(&forebay, REJECTED), 2.0, "the same mistakes are told once");
    assert_eq!(forebay.post(CHAT_PATH, STREAM).header("x-forebay-arm"), Some("b"));
}

#[test]
fn sighup_reads_the_file_at_once_and_answers_also_where_nothing_changed() {
    let mock = Mock::start();
    let forebay = Harness::new().pools(&pools(&[("a", 50, &[&mock])])).start();
    for count in 1..=3 {
        hup_until(&forebay, UNCHANGED, f64::from(count));
    }
    write(&forebay, &pools(&[("b", 50, &[&mock])]));
    hup_until(&forebay, APPLIED, 1.0);
    assert_eq!(forebay.post(CHAT_PATH, STREAM).header("x-forebay-arm"), Some("b"));
}

#[test]
fn a_key_that_waits_for_a_restart_is_named_and_the_rest_is_in_force() {
    let mock = Mock::start();
    let forebay = Harness::new().config("[listen]\nkeep_alive = \"75s\"").pools(&pools(&[("a", 50, &[&mock])])).start();
    let text = format!("[listen]\nkeep_alive = \"1s\"\n[limits]\nbody = \"1KiB\"\n{}", pools(&[("a", 50, &[&mock])]));
    write(&forebay, &text);
    hup_until(&forebay, APPLIED, 1.0);
    let log = eventually("the log names the key", || {
        let log = forebay.log();
        log.contains("listen.keep_alive").then_some(log)
    });
    assert!(log.contains("waits for a restart"), "{log}");
    let long = format!(r#"{{"model":"tiny","prompt":"{}"}}"#, "x".repeat(2000));
    assert_eq!(forebay.post("/v1/completions", &long).status, 413, "limits.body holds at once");
    // The old keep-alive of 75 s holds: an idle connection outlives the new one.
    let mut idle = forebay.open();
    assert_eq!(idle.ask(&post(CHAT_PATH, &[], STREAM.as_bytes())).status, 200);
    assert!(idle.is_quiet_for(ms(3500)), "closed by a key that is not in force");
    assert_eq!(idle.ask(&post(CHAT_PATH, &[], STREAM.as_bytes())).status, 200);
}
