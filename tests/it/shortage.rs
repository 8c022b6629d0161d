//! What this host lacks is no backend's fault: out of file descriptors, clients get a 503 at once and backends stay in; a backend
//! that cannot be reached from here pauses, and the next one serves.

use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use crate::client::{Answer, Conn, End, post};
use crate::harness::{Forebay, Harness, eventually, ms, time_passes};
use crate::mock::{DONE, Gate, Mock, Step, chunk, last_chunk, stream_head, token};

const PATH: &str = "/v1/chat/completions";
const STREAM: &str = r#"{"model":"tiny","stream":true,"messages":[]}"#;
const UNARY: &str = r#"{"model":"tiny","messages":[]}"#;
/// Connecting to it fails at once in this host's own network stack.
const NO_ROUTE: &str = "http://255.255.255.255:8000";
const NO_NAME: &str = "http://no-such-host.invalid:8000";

/// Many probes at this pace: long enough for three bad ones in a row.
const QUICK_HEALTH: &str = "[health]\ninterval = \"100ms\"\ntimeout = \"100ms\"";

fn ejections(forebay: &Forebay) -> f64 {
    forebay.metric("forebay_ejections_total", &[])
}

fn stream(conn: &mut Conn) -> Answer {
    conn.ask(&post(PATH, &[], STREAM.as_bytes()))
}

#[test]
fn out_of_file_descriptors_clients_get_a_503_at_once_and_the_backend_stays_in() {
    const CLIENTS: usize = 300;
    let gate = Gate::new();
    let held = gate.clone();
    let mock = Mock::replying(move |_| {
        vec![stream_head(), Step::Hold(held.clone()), chunk(token("Hi")), chunk(DONE), last_chunk()]
    });
    let forebay = Harness::new()
        .config(&format!("{QUICK_HEALTH}\n[listen]\nmax_connections = 300"))
        .pool("tiny", &[&mock])
        .ulimit("-n 256")
        .start();
    assert_eq!(forebay.tells("fewer client connections fit"), 1, "{}", forebay.log());
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let address = forebay.address;
            thread::spawn(move || {
                let mut conn = Conn::open(address);
                conn.send(&post(PATH, &[], STREAM.as_bytes()));
                conn.answer()
            })
        })
        .collect();
    forebay.tells("no file descriptor");
    // Those that have a backend's connection wait for it; the rest is refused meanwhile, and so others are let in.
    eventually("as many refused as do not fit", || {
        let waiting = mock.seen().len();
        let ended = clients.iter().filter(|client| client.is_finished()).count();
        (waiting + ended >= CLIENTS).then_some(())
    });
    gate.open();
    let answers: Vec<Answer> = clients.into_iter().map(|client| client.join().unwrap()).collect();
    let served = answers.iter().filter(|answer| answer.status == 200 && answer.end == End::Whole).count();
    let refused: Vec<_> = answers.iter().filter(|answer| answer.status == 503).collect();
    assert!(served > 50 && !refused.is_empty(), "{served} served, {} refused", refused.len());
    assert_eq!(served + refused.len(), CLIENTS);
    for answer in &refused {
        assert_eq!(answer.header("retry-after"), Some("1"));
    }
    // The others found no room for their own connection.
    assert!(refused.iter().any(|answer| answer.text().contains("forebay_shortage")));
    assert_eq!((ejections(&forebay), forebay.backend(&mock)["state"].as_str()), (0.0, Some("healthy")));
    assert_eq!(forebay.backend(&mock)["load"]["fails"], 0, "nothing is held against it");
    assert!(forebay.logged("no file descriptor") <= 2, "now and then:\n{}", forebay.log());
    assert_eq!(stream(&mut forebay.open()).status, 200, "all is well again");
}

/// The processor time that a process has used, in ticks of 10 ms.
fn ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let figures: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    figures[11].parse::<u64>().unwrap() + figures[12].parse::<u64>().unwrap()
}

#[test]
fn a_listener_that_cannot_accept_waits_and_goes_on_at_once_when_it_can() {
    let mock = Mock::start();
    let forebay = Harness::new().pool("tiny", &[&mock]).ulimit("-n 128").start();
    // Connections of the admin API have no cap, so that these take every descriptor.
    let idle: Vec<TcpStream> = (0..200).map(|_| TcpStream::connect(forebay.admin).unwrap()).collect();
    forebay.tells("connections cannot be accepted");
    let before = ticks(forebay.pid());
    time_passes(ms(1000));
    let used = ticks(forebay.pid()) - before;
    assert!(used < 30, "{used} ticks in a second of waiting");
    assert!(forebay.logged("connections cannot be accepted") <= 2, "one a listener:\n{}", forebay.log());
    drop(idle);
    assert_eq!(forebay.post(PATH, UNARY).status, 200, "{}", forebay.log());
}

#[test]
fn a_backend_that_cannot_be_reached_from_here_pauses_and_the_next_one_serves() {
    for out_of_reach in [NO_NAME, NO_ROUTE] {
        let (well, probes) = (Mock::start(), Arc::new(AtomicUsize::new(0)));
        let counted = Arc::clone(&probes);
        well.probes(move |target| {
            counted.fetch_add(usize::from(target == "/health"), Ordering::Relaxed);
            None
        });
        let pool = format!(
            "[[pools]]\nmodel = \"tiny\"\npolicy = \"round_robin\"\n\
             backends = [{{ url = \"{out_of_reach}\" }}, {{ url = \"{}\" }}]",
            well.url()
        );
        let forebay = Harness::new()
            .config(&format!(
                "{QUICK_HEALTH}\n[retry]\nattempts = 1\nbudget = {{ burst = 0, ratio = 0, per_second = 0 }}"
            ))
            .pools(&pool)
            .start();
        for _ in 0..20 {
            assert_eq!(forebay.post(PATH, UNARY).status, 200, "{out_of_reach}");
        }
        let until = probes.load(Ordering::Relaxed) + 10;
        eventually("many probes", || (probes.load(Ordering::Relaxed) >= until).then_some(()));
        assert_eq!(ejections(&forebay), 0.0, "{out_of_reach}: {}", forebay.log());
        assert_eq!(forebay.tells("cannot be reached from this host"), 1, "{}", forebay.log());
    }
}

#[test]
fn backends_none_of_which_can_be_reached_are_a_503_and_no_gateway_error() {
    let pool =
        format!("[[pools]]\nmodel = \"tiny\"\nbackends = [{{ url = \"{NO_NAME}\" }}, {{ url = \"{NO_ROUTE}\" }}]");
    let forebay = Harness::new().config(QUICK_HEALTH).pools(&pool).start();
    for _ in 0..5 {
        let answer = forebay.post(PATH, UNARY);
        assert_eq!(answer.status, 503, "{}", answer.text());
        assert_eq!(answer.header("retry-after"), Some("1"));
    }
    assert_eq!(ejections(&forebay), 0.0);
    assert_eq!(forebay.get("/ready").status, 200, "it is in: its name may resolve at any time");
}

#[test]
fn a_backend_that_refuses_is_still_blamed_beside_one_that_is_out_of_reach() {
    let gone = Mock::start();
    gone.refuse();
    let pool =
        format!("[[pools]]\nmodel = \"tiny\"\nbackends = [{{ url = \"{NO_ROUTE}\" }}, {{ url = \"{}\" }}]", gone.url());
    let forebay = Harness::new().config(QUICK_HEALTH).pools(&pool).start();
    // None of them has ever answered, as while all engines load.
    assert_eq!(forebay.post(PATH, UNARY).status, 503);
    forebay.await_state(&gone, "ejected");
}

#[test]
fn the_limit_of_file_descriptors_is_raised_at_the_start() {
    let mock = Mock::start();
    let forebay = Harness::new().pool("tiny", &[&mock]).ulimit("-S -n 512").start();
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", forebay.pid())).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let mut figures = line.split_whitespace().filter_map(|word| word.parse::<u64>().ok());
    let (soft, hard) = (figures.next().unwrap(), figures.next().unwrap());
    assert!(soft == hard && soft > 512, "{line}");
}
