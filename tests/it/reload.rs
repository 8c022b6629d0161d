//! A configuration that changes while requests are under way: nothing is lost, what left the file finishes and then leaves
//! `/metrics`, and a file with mistakes changes nothing.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::client::{Conn, End, post};
use crate::harness::{Forebay, Harness, eventually, ms};
use crate::mock::{DONE, Gate, Mock, Step, chunk, last_chunk, like_vllm, stream_head, token};

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
    forebay.tells("round_robbin");
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

/// Reloads under load, and how many of them are of bad files.
fn many() -> (u32, u32) {
    if std::env::var("FOREBAY_SIZE").is_ok_and(|size| size == "full") { (1000, 50) } else { (60, 6) }
}

#[test]
fn many_reloads_under_load_with_bad_files_among_them_fail_no_request() {
    let mocks = [(); 3].map(|()| Mock::start());
    let [a, b, c] = &mocks;
    let files = [pools(&[("one", 50, &[a, b]), ("two", 50, &[c])]), pools(&[("two", 30, &[c]), ("one", 70, &[a])])];
    let forebay = Harness::new().pools(&files[1]).start();
    let (stop, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
    let (total, bad) = many();
    std::thread::scope(|scope| {
        let _stop = StopAtEnd(&stop);
        let clients: Vec<_> = (0..4).map(|_| scope.spawn(|| keep_asking(&forebay, &stop, &answered))).collect();
        let (mut good, mut rejected) = (0, 0);
        for round in 0..total {
            if round % (total / bad) == 0 {
                rejected += 1;
                write(&forebay, &format!("{}nonsense_{round} = true\n", files[0]));
                hup_until(&forebay, REJECTED, f64::from(rejected));
            } else {
                write(&forebay, &files[good as usize % 2]);
                good += 1;
                hup_until(&forebay, APPLIED, f64::from(good));
            }
        }
        answers(&answered, 20);
        stop.store(true, Ordering::Relaxed);
        clients.into_iter().for_each(|client| client.join().expect("every answer was whole"));
        assert_eq!((reloads(&forebay, APPLIED), reloads(&forebay, REJECTED)), (f64::from(good), f64::from(rejected)));
        assert!(rejected >= bad);
        println!("{total} reloads, {rejected} of bad files: {} answered, 0 failed", answered.load(Ordering::Relaxed));
    });
    let failed = forebay.access().iter().filter(|record| record["outcome"] != "success").count();
    assert_eq!(failed, 0);
    assert!(!forebay.log().contains("panicked"));
}

/// Streams that run over all reloads.
const HELD: usize = 200;
/// Sessions of the requests that come and go meanwhile.
const SESSIONS: usize = 400;

fn rounds() -> u32 {
    if std::env::var("FOREBAY_SIZE").is_ok_and(|size| size == "full") { 15 } else { 4 }
}

/// A request of a session, and the arm that served it.
fn ask_as(conn: &mut Conn, session: &str) -> String {
    let answer = conn.ask(&post(CHAT_PATH, &[("x-session-id", session)], STREAM.as_bytes()));
    assert_eq!((answer.status, answer.end), (200, End::Whole), "{}", answer.text());
    answer.header("x-forebay-arm").unwrap().to_owned()
}

/// Sessions in turn until told to stop; each stays in its arm.
fn keep_arms(forebay: &Forebay, stop: &AtomicBool, arms: &Mutex<HashMap<usize, String>>, answered: &AtomicUsize) {
    let mut conn = forebay.open();
    while !stop.load(Ordering::Relaxed) {
        let session = answered.fetch_add(1, Ordering::Relaxed) % SESSIONS;
        let arm = ask_as(&mut conn, &format!("s-{session}"));
        let mut arms = arms.lock().unwrap();
        let known = arms.entry(session).or_insert_with(|| arm.clone());
        assert_eq!(*known, arm, "session {session} left its arm");
    }
}

#[test]
fn arms_keep_their_sessions_and_counts_while_backends_go_and_come_back_under_200_streams() {
    let (gate, mocks) = (Gate::new(), [(); 3].map(|()| Mock::start()));
    for mock in &mocks {
        let gate = gate.clone();
        mock.reply(move |seen| {
            let end = [chunk(DONE), last_chunk()];
            let held = [stream_head(), chunk(token("one")), Step::Hold(gate.clone())].into_iter().chain(end).collect();
            if seen.text().contains("held") { held } else { like_vllm(seen) }
        });
    }
    let [a, b, other] = &mocks;
    let all = pools(&[("one", 75, &[a, b]), ("two", 25, &[other])]);
    let forebay = Harness::new().pools(&all).start();
    let on = |mock: &Mock| forebay.metric("forebay_in_flight", &[&format!("backend=\"{}\"", mock.authority())]);
    let mut held: Vec<Conn> = (0..HELD)
        .map(|session| {
            let mut conn = forebay.open();
            let body = STREAM.replace("hello", "held");
            conn.send(&post(CHAT_PATH, &[("x-session-id", &format!("held-{session}"))], body.as_bytes()));
            conn.until("one");
            conn
        })
        .collect();
    let before = mocks.each_ref().map(on);
    assert_eq!(before.iter().sum::<f64>(), HELD as f64);
    let (stop, answered, arms) = (AtomicBool::new(false), AtomicUsize::new(0), Mutex::default());
    std::thread::scope(|scope| {
        let _stop = StopAtEnd(&stop);
        let clients: Vec<_> = (0..4).map(|_| scope.spawn(|| keep_arms(&forebay, &stop, &arms, &answered))).collect();
        for round in 0..rounds() {
            write(&forebay, &pools(&[("two", 25, &[other]), ("one", 75, &[a])]));
            hup_until(&forebay, APPLIED, f64::from(2 * round + 1));
            eventually("the backend is gone", || (!has_series(&forebay, b)).then_some(()));
            answers(&answered, 20);
            write(&forebay, &all);
            hup_until(&forebay, APPLIED, f64::from(2 * round + 2));
            eventually("it is back", || has_series(&forebay, b).then_some(()));
            answers(&answered, 20);
        }
        answers(&answered, SESSIONS);
        stop.store(true, Ordering::Relaxed);
        clients.into_iter().for_each(|client| client.join().expect("every session kept its arm"));
    });
    // What came back is another: the streams of the first count on the first.
    eventually("only the held are in flight", || {
        ([on(a), on(b), on(other)] == [before[0], 0.0, before[2]]).then_some(())
    });
    let arms = arms.into_inner().unwrap();
    let share = arms.values().filter(|arm| *arm == "one").count() as f64 / arms.len() as f64;
    assert!(arms.len() == SESSIONS && (share - 0.75).abs() < 0.05, "{share} of {} sessions", arms.len());
    crossing(&forebay, &all, &mocks, &arms);
    assert_eq!(on(other), before[2], "a drained backend keeps what it has");
    gate.open();
    for conn in &mut held {
        conn.until("0\r\n\r\n");
        assert!(conn.received().contains("[DONE]"));
    }
    eventually("nothing is in flight", || (forebay.metric("forebay_in_flight", &[]) == 0.0).then_some(()));
    assert!(!forebay.log().contains("panicked"));
}

/// An arm whose only backend is drained: its sessions are served by the other, counted as crossed, and stay assigned to it.
fn crossing(forebay: &Forebay, all: &str, [.., other]: &[Mock; 3], arms: &HashMap<usize, String>) {
    let drained = format!("{{ url = \"{}\", drain = true }}", other.url());
    let applied = reloads(forebay, APPLIED);
    write(forebay, &all.replace(&format!("{{ url = \"{}\" }}", other.url()), &drained));
    hup_until(forebay, APPLIED, applied + 1.0);
    let of_two: Vec<_> = arms.iter().filter(|(_, arm)| *arm == "two").map(|(session, _)| *session).take(20).collect();
    let mut conn = forebay.open();
    for session in &of_two {
        let (name, id) = (format!("s-{session}"), format!("crossed-{session}"));
        let headers = [("x-session-id", name.as_str()), ("x-request-id", id.as_str())];
        let answer = conn.ask(&post(CHAT_PATH, &headers, STREAM.as_bytes()));
        assert_eq!(answer.header("x-forebay-arm"), Some("one"));
        assert_eq!(answer.header("x-forebay-assigned-arm"), Some("two"));
        let record = forebay.record(&id);
        assert_eq!((record["arm"].as_str(), record["assigned_arm"].as_str()), (Some("one"), Some("two")), "{record}");
    }
    assert_eq!(forebay.metric("forebay_arm_crossed_total", &["arm=\"two\""]), of_two.len() as f64);
    assert_eq!(forebay.metric("forebay_arm_crossed_total", &["arm=\"one\""]), 0.0);
}
