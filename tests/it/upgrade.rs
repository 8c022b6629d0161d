//! A process that another replaces, on the same addresses: by handing over its listening sockets, with no refused connection;
//! by a restart, with no lost stream.

use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use forebay_fleet::config::model::Drain;

use crate::client::{Conn, End, post};
use crate::harness::{Forebay, Harness, eventually, eventually_within, ms};
use crate::mock::{DONE, Gate, Mock, Step, chunk, last_chunk, like_vllm, stream_head, token};

const PATH: &str = "/v1/chat/completions";
const STREAM: &str = r#"{"model":"tiny","stream":true,"messages":[]}"#;
const HELD: &str = r#"{"model":"tiny","stream":true,"messages":[],"user":"held"}"#;
/// Who waits for the sockets says so.
const WAITS: &str = "waiting for the listening sockets";

/// How many answers the load has before and after, at least.
fn around() -> usize {
    if std::env::var("FOREBAY_SIZE").is_ok_and(|size| size == "full") { 5000 } else { 50 }
}

/// A backend whose held streams end when the test says so.
fn backend(gate: &Gate) -> Mock {
    let gate = gate.clone();
    Mock::replying(move |seen| match seen.text().contains("held") {
        true => vec![stream_head(), chunk(token("Hi")), Step::Hold(gate.clone()), chunk(DONE), last_chunk()],
        false => like_vllm(seen),
    })
}

fn hold(forebay: &Forebay, count: usize) -> Vec<Conn> {
    let mut held: Vec<Conn> = (0..count).map(|_| forebay.open()).collect();
    held.iter_mut().for_each(|conn| conn.send(&post(PATH, &[], HELD.as_bytes())));
    held.iter_mut().for_each(|conn| conn.until("Hi"));
    held
}

fn all_end_well(held: &mut [Conn]) {
    for conn in held {
        let answer = conn.answer();
        assert_eq!((answer.status, answer.end), (200, End::Whole));
        assert!(answer.text().ends_with(DONE));
    }
}

#[derive(Default)]
struct Load {
    stop: AtomicBool,
    answered: AtomicUsize,
    /// Kept-alive connections that were closed between two requests: HTTP/1.1 allows that race.
    closed: AtomicUsize,
    scraped: AtomicUsize,
}

impl Load {
    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    /// Waits until so many more requests are answered.
    fn await_answers(&self, count: usize) {
        let enough = self.answered.load(Ordering::Relaxed) + count;
        let answered = || self.answered.load(Ordering::Relaxed);
        eventually_within(ms(60_000), "the load is answered", || (answered() >= enough).then_some(()));
    }

    fn check(&self, answer: &crate::client::Answer) {
        assert_eq!((answer.status, answer.end), (200, End::Whole), "{}", answer.text());
        self.answered.fetch_add(1, Ordering::Relaxed);
    }

    /// A request on a new connection each time.
    fn ask_anew(&self, address: SocketAddr) {
        while self.goes_on() {
            self.check(&Conn::open(address).ask(&post(PATH, &[], STREAM.as_bytes())));
        }
    }

    /// Requests on one connection, for as long as it lives.
    fn ask_again(&self, address: SocketAddr) {
        let mut conn = Conn::open(address);
        while self.goes_on() {
            if conn.try_send(&post(PATH, &[], STREAM.as_bytes())) && conn.has_something() {
                self.check(&conn.answer());
            } else {
                self.closed.fetch_add(1, Ordering::Relaxed);
                conn = Conn::open(address);
            }
        }
    }

    fn scrape(&self, admin: SocketAddr) {
        while self.goes_on() {
            let answer = Conn::open(admin).ask(b"GET /metrics HTTP/1.1\r\nhost: admin\r\n\r\n");
            assert_eq!((answer.status, answer.end), (200, End::Whole));
            self.scraped.fetch_add(1, Ordering::Relaxed);
            // A scrape is some requests' time, and no more: the load is what is upgraded under.
            let next = self.answered.load(Ordering::Relaxed) + 10;
            eventually("ten more are answered", || {
                (self.answered.load(Ordering::Relaxed) >= next || !self.goes_on()).then_some(())
            });
        }
    }
}

/// Ends the clients, also where the test fails.
struct StopAtEnd<'a>(&'a Load);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::Relaxed);
    }
}

#[test]
fn an_upgrade_under_load_fails_no_request_no_scrape_and_no_stream() {
    let gate = Gate::new();
    let mock = backend(&gate);
    let runtime = tempfile::tempdir().unwrap();
    let place = runtime.path().to_str().unwrap();
    let mut old = Harness::new().env("XDG_RUNTIME_DIR", place).pool("tiny", &[&mock]).start();
    let (address, admin) = (old.address, old.admin);
    let mut held = hold(&old, 10);
    let load = Load::default();
    let new = std::thread::scope(|scope| {
        let _stop = StopAtEnd(&load);
        let clients: Vec<_> = (0..4)
            .flat_map(|_| [scope.spawn(|| load.ask_anew(address)), scope.spawn(|| load.ask_again(address))])
            .chain([scope.spawn(|| load.scrape(admin))])
            .collect();
        load.await_answers(around());
        let mut new = old.another(&["--upgrade"]);
        new.tells(WAITS);
        old.signal("QUIT");
        assert!(new.listens(), "{}", new.log());
        gate.open();
        all_end_well(&mut held);
        assert_eq!(old.exit(ms(15_000)).code(), Some(0));
        load.await_answers(around());
        load.stop.store(true, Ordering::Relaxed);
        clients.into_iter().for_each(|client| client.join().expect("no request failed"));
        new
    });
    let (before, after) = (old.access().len(), new.access().len());
    assert!(before > 20 && after > 20, "both served: {before}, {after}");
    println!(
        "upgrade: {} answered, 0 failed, {} kept-alive connections closed between two requests, {} scrapes; \
         {before} by the old process, {after} by the new",
        load.answered.load(Ordering::Relaxed),
        load.closed.load(Ordering::Relaxed),
        load.scraped.load(Ordering::Relaxed)
    );
    // What has taken over can be replaced in its turn.
    let mut next = new.another(&["--upgrade"]);
    next.tells(WAITS);
    new.signal("QUIT");
    assert!(next.listens());
    assert_eq!(next.post(PATH, STREAM).status, 200);
}

/// Sends a change to the admin API, as `curl -X POST` does.
fn change(forebay: &Forebay, name: &str, what: &str, body: &str) -> crate::client::Answer {
    let (host, length) = (forebay.admin, body.len());
    let text = format!(
        "POST /api/backends/{name}/{what} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n\
         content-length: {length}\r\n\r\n{body}"
    );
    Conn::open(forebay.admin).ask(text.as_bytes())
}

#[test]
fn an_upgrade_keeps_drains_by_hand_and_their_ends() {
    let (a, b, c) = (Mock::start(), Mock::start(), Mock::start());
    let runtime = tempfile::tempdir().unwrap();
    let place = runtime.path().to_str().unwrap();
    let old = Harness::new().env("XDG_RUNTIME_DIR", place).pool("tiny", &[&a, &b, &c]).start();
    assert_eq!(change(&old, &a.authority(), "drain", r#"{"by": "ada", "reason": "a driver"}"#).status, 200);
    // Long enough for the upgrade, and short enough to be waited for.
    assert_eq!(change(&old, &b.authority(), "drain", r#"{"for": "12s"}"#).status, 200);
    let mut new = old.another(&["--upgrade"]);
    new.tells(WAITS);
    old.signal("QUIT");
    assert!(new.listens(), "{}", new.log());
    new.tells("taken over: these backends stay drained by hand");
    assert!(!new.log().contains("No incoming socket transfer") && !new.log().contains("ERROR"), "{}", new.log());
    let served: Vec<String> =
        (0..6).map(|_| new.post(PATH, STREAM).header("x-forebay-backend").unwrap().to_owned()).collect();
    assert!(served.iter().all(|by| *by == c.authority()), "{served:?}");
    // The old process still accepts: it refuses a change that nobody would hear of, and the command asks again.
    let mut command = std::process::Command::new(crate::harness::binary());
    command.args(["undrain", &a.authority(), "--admin", &format!("http://{}", new.admin)]);
    assert!(command.status().unwrap().success());
    eventually("one is back by hand", || {
        (new.post(PATH, STREAM).header("x-forebay-backend") == Some(a.authority().as_str())).then_some(())
    });
    eventually_within(ms(30_000), "the other by its own end", || {
        (new.post(PATH, STREAM).header("x-forebay-backend") == Some(b.authority().as_str())).then_some(())
    });
}

#[test]
fn an_old_process_that_tells_no_drains_is_named_in_the_log() {
    let mock = Mock::start();
    let runtime = tempfile::tempdir().unwrap();
    let socket = runtime.path().join("upgrade.sock");
    let listen = format!("[listen]\nupgrade_socket = \"{}\"", socket.display());
    let old = Harness::new().config(&listen).pool("tiny", &[&mock]).start();
    let mut new = old.another(&["--upgrade"]);
    new.tells(WAITS);
    // As before a version that knows of drains: nobody finds the socket.
    let drains = runtime.path().join("upgrade.sock.drains");
    eventually("the socket is there", || std::fs::remove_file(&drains).ok());
    old.signal("QUIT");
    assert!(new.listens(), "{}", new.log());
    new.tells("the old process did not tell which backends");
    old.tells("cannot be told which backends");
    assert_eq!(new.post(PATH, STREAM).status, 200);
}

#[test]
fn sigquit_without_a_new_process_changes_nothing() {
    let mock = Mock::start();
    let mut forebay = Harness::new().pool("tiny", &[&mock]).start();
    forebay.signal("QUIT");
    forebay.tells("start it with --upgrade");
    assert_eq!(forebay.post(PATH, STREAM).status, 200);
    forebay.signal("TERM");
    assert_eq!(forebay.exit(ms(3000)).code(), Some(0));
}

#[test]
fn an_upgrade_of_nobody_is_a_start() {
    let mock = Mock::start();
    let forebay = Harness::new().pool("tiny", &[&mock]).arg("--upgrade").start();
    assert_eq!(forebay.post(PATH, STREAM).status, 200);
}

#[test]
fn a_new_process_that_is_given_nothing_says_so_and_the_old_one_serves_on() {
    let mock = Mock::start();
    let runtime = tempfile::tempdir().unwrap();
    let place = runtime.path().join("upgrade.sock");
    let listen = format!("[listen]\nupgrade_socket = \"{}\"", place.display());
    let old = Harness::new().config(&listen).pool("tiny", &[&mock]).start();
    let mut new = old.another(&["--upgrade"]);
    new.tells(WAITS);
    eventually("its socket is at the place of the config", || place.exists().then_some(()));
    assert_eq!(new.exit(ms(15_000)).code(), Some(1));
    new.tells("nobody hands the listening sockets over, giving up");
    assert!(!new.log().contains("No incoming socket transfer"), "{}", new.log());
    assert_eq!(old.post(PATH, STREAM).status, 200);
}

#[test]
fn a_process_that_waits_for_its_sockets_survives_a_rotation_and_a_reload_and_does_both_later() {
    let mock = Mock::start();
    let runtime = tempfile::tempdir().unwrap();
    let old = Harness::new().env("XDG_RUNTIME_DIR", runtime.path().to_str().unwrap()).pool("tiny", &[&mock]).start();
    let mut new = old.another(&["--upgrade"]);
    new.tells(WAITS);
    new.signal("USR1");
    new.signal("HUP");
    old.signal("QUIT");
    assert!(new.listens(), "{}", new.log());
    // Neither is lost, although nobody listened to it yet.
    assert_eq!(new.tells("opening the log files again"), 1);
    assert_eq!(new.tells("configuration read again"), 1);
    assert_eq!(new.post(PATH, STREAM).status, 200);
}

#[test]
fn a_restart_loses_none_of_50_streams() {
    let gate = Gate::new();
    let mock = backend(&gate);
    let mut old = Harness::new().pool("tiny", &[&mock]).start();
    let mut held = hold(&old, 50);
    old.signal("TERM");
    eventually("the port is free", || TcpStream::connect(old.address).is_err().then_some(()));
    let mut new = old.another(&[]);
    assert!(new.listens(), "{}", new.log());
    assert_eq!(new.post(PATH, STREAM).status, 200);
    gate.open();
    let started = Instant::now();
    all_end_well(&mut held);
    eventually_within(ms(5000), "the old process ends", || (!old.is_running()).then_some(()));
    println!("restart: 50 of 50 streams ended well; the old process ended {:.1?} after them", started.elapsed());
    assert_eq!(old.access().iter().filter(|record| record["outcome"] == "success").count(), 50);
}

/// The unit's command, with the binary of this build and a config of the test's, in an environment like the unit's.
#[test]
fn the_command_of_the_systemd_unit_starts_and_meets_where_the_unit_says() {
    let unit = include_str!("../../config/systemd/forebay@.service");
    let of = |key: &str| unit.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_else(|| panic!("no {key}"));
    let command: Vec<&str> = of("ExecStart=").split(' ').collect();
    assert_eq!(command, ["/usr/local/bin/forebay", "serve", "--upgrade", "--config", "/etc/forebay/forebay.toml"]);
    assert_eq!(of("Environment="), format!("XDG_RUNTIME_DIR=/run/{}", of("RuntimeDirectory=")));
    assert_eq!(of("RuntimeDirectoryPreserve="), "yes", "or the end of one instance takes the place from the other");
    // The drain limit and 30 s, as for the pods of the chart.
    assert_eq!((of("TimeoutStopSec="), Drain::default().limit.as_secs()), ("10min 30s", 600));
    let (mock, runtime) = (Mock::start(), tempfile::tempdir().unwrap());
    let place = runtime.path().to_str().unwrap();
    let old = Harness::new().env("XDG_RUNTIME_DIR", place).arg("--upgrade").pool("tiny", &[&mock]).start();
    let mut new = old.another(&[]);
    new.tells(WAITS);
    assert!(runtime.path().join("forebay").is_dir());
    old.signal("QUIT");
    assert!(new.listens(), "{}", new.log());
    assert_eq!(new.post(PATH, STREAM).status, 200);
}
