//! Backends by a name: addresses come and go under load and no request fails; an error empties no pool. The names are the test's
//! own, in a namespace; `tests/dns/run.sh` does the same with a real DNS server.

use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use socket2::{Domain, Socket, Type};

use crate::client::{End, post};
use crate::harness::{Forebay, Harness, eventually, free_port, ms};
use crate::mock::{CHAT, DONE, Gate, Mock, Step, answer, chunk, last_chunk, stream_head, token};
use crate::names::Names;

const NAME: &str = "vllm.forebay.test";
const STREAM: &str = r#"{"model":"tiny","stream":true,"messages":[{"role":"user","content":"hello"}]}"#;
const UNARY: &str = r#"{"model":"tiny","messages":[]}"#;
const CHAT_PATH: &str = "/v1/chat/completions";

/// Backends at 127.1.0.1 and so on, with one port.
fn mocks(count: u8) -> (u16, Vec<Mock>) {
    let port = free_port();
    (port, (1..=count).map(|n| Mock::at(([127, 1, 0, n], port).into())).collect())
}

fn hosts(numbers: &[u8]) -> Vec<[u8; 4]> {
    numbers.iter().map(|n| [127, 1, 0, *n]).collect()
}

fn pool(port: u16, more: &str) -> String {
    format!(
        "[[pools]]\nmodel = \"tiny\"\npolicy = \"round_robin\"\ndiscover = {{ dns = \"{NAME}:{port}\", interval = \"50ms\"{more} }}\n"
    )
}

/// Backends that take requests, as `/metrics` counts them.
pub(crate) fn serving(forebay: &Forebay) -> usize {
    forebay.metric("forebay_backend_state", &["state=\"healthy\""]) as usize
}

/// Waits until so many backends take requests and none is left of the others.
fn await_backends(forebay: &Forebay, count: usize) {
    eventually(&format!("{count} backends"), || {
        let all = forebay.metric("forebay_backend_state", &[]) as usize;
        (serving(forebay) == count && all == count).then_some(())
    });
}

/// Sends streams until told to stop; every one must be whole.
pub(crate) fn keep_asking(forebay: &Forebay, stop: &AtomicBool, answered: &AtomicUsize) {
    let request = post(CHAT_PATH, &[], STREAM.as_bytes());
    let mut conn = forebay.open();
    while !stop.load(Ordering::Relaxed) {
        let answer = conn.ask(&request);
        assert_eq!((answer.status, answer.end), (200, End::Whole), "{}", answer.text());
        assert!(answer.text().ends_with(DONE), "{}", answer.text());
        answered.fetch_add(1, Ordering::Relaxed);
    }
}

/// Runs `test` while four clients ask without a pause; each answer must be whole. Returns how many there were.
pub(crate) fn under_load(forebay: &Forebay, test: impl FnOnce(&AtomicUsize)) -> usize {
    let (stop, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..4).map(|_| scope.spawn(|| keep_asking(forebay, &stop, &answered))).collect();
        let tested = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| test(&answered)));
        stop.store(true, Ordering::Relaxed);
        let failed = clients.into_iter().filter_map(|client| client.join().err()).count();
        tested.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        assert_eq!(failed, 0, "clients with a request that failed");
    });
    answered.into_inner()
}

/// Waits for so many more answers.
pub(crate) fn answers(answered: &AtomicUsize, more: usize) {
    let before = answered.load(Ordering::Relaxed);
    eventually("answers go on", || (answered.load(Ordering::Relaxed) >= before + more).then_some(()));
}

/// A listener that takes no more connections, as a host that drops what is sent to it.
struct BlackHole {
    _listener: Socket,
    _filling: Vec<TcpStream>,
}

impl BlackHole {
    fn at(address: SocketAddr) -> BlackHole {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        listener.bind(&address.into()).unwrap();
        listener.listen(0).unwrap();
        let connect = || TcpStream::connect_timeout(&address, ms(200)).ok();
        BlackHole { _listener: listener, _filling: std::iter::from_fn(connect).collect() }
    }
}

#[test]
fn one_of_a_hosts_addresses_that_leads_nowhere_costs_a_request_no_time() {
    let Some(names) = Names::new() else { return };
    let (port, host) = (free_port(), "several.forebay.test");
    let good = Mock::at(([127, 1, 1, 2], port).into());
    let _hole = BlackHole::at(([127, 1, 1, 1], port).into());
    let url = format!("http://{host}:{port}");
    let pool = format!("[[pools]]\nmodel = \"tiny\"\nbackends = [{{ url = \"{url}\" }}]");
    for order in [[1, 2], [2, 1]] {
        names.set(host, order.map(|last| [127, 1, 1, last]));
        let health = "[health]\ninterval = \"1s\"\ntimeout = \"900ms\"";
        let forebay = Harness::new().names(&names).config(health).pools(&pool).start();
        for _ in 0..3 {
            // A connection of its own each time: the backend's is closed after the answer.
            good.next(answer(200, &[("connection", "close")], CHAT));
            let started = Instant::now();
            assert_eq!(forebay.post(CHAT_PATH, UNARY).status, 200, "{order:?}");
            let took = started.elapsed();
            assert!(took < ms(1500), "{took:?} with the addresses {order:?}");
        }
        eventually("its health is asked for", || {
            (forebay.metric("forebay_backend_state", &["state=\"healthy\""]) == 1.0).then_some(())
        });
        assert_eq!(forebay.metric("forebay_ejections_total", &[]), 0.0);
        drop(forebay);
    }
    assert_eq!(good.seen().len(), 6);
}

#[test]
fn addresses_come_and_go_under_load_and_no_request_fails() {
    let Some(names) = Names::new() else { return };
    let (port, mocks) = mocks(3);
    names.set(NAME, hosts(&[1]));
    let forebay = Harness::new().names(&names).pools(&pool(port, "")).start();
    await_backends(&forebay, 1);
    let total = under_load(&forebay, |answered| {
        answers(answered, 20);
        names.set(NAME, hosts(&[1, 2, 3]));
        await_backends(&forebay, 3);
        answers(answered, 30);
        names.set(NAME, hosts(&[2, 3]));
        await_backends(&forebay, 2);
        let before = mocks[0].seen().len();
        answers(answered, 50);
        assert_eq!(mocks[0].seen().len(), before, "what is no longer named gets nothing");
        // No address is known any more, and the resolver says so with an error.
        names.set("other.forebay.test", hosts(&[1]));
        eventually("errors", || {
            (forebay.metric("forebay_discovery_errors_total", &["reason=\"unresolved\""]) > 3.0).then_some(())
        });
        answers(answered, 50);
        assert_eq!(serving(&forebay), 2);
        names.set(NAME, hosts(&[3, 1]));
        eventually("the first is back", || (mocks[0].seen().len() > before).then_some(()));
        await_backends(&forebay, 2);
    });
    assert!(total >= 150);
    assert_eq!(forebay.metric("forebay_discovered_backends", &["source=\"dns\"", "pool=\"tiny\""]), 2.0);
    assert!(forebay.metric("forebay_discovery_age_seconds", &["source=\"dns\""]) < 10.0);
    let seen = mocks[2].last();
    assert_eq!(seen.header("host"), Some(format!("{NAME}:{port}").as_str()), "the name is the Host");
    assert_eq!(forebay.tells("the source of backends gave no answer"), 1, "an error is told once");
}

#[test]
fn one_hundred_and_fifty_addresses_are_as_many_backends_and_the_cap_leaves_the_rest_out() {
    let Some(names) = Names::new() else { return };
    let (port, mocks) = mocks(150);
    names.set(NAME, hosts(&(1..=150).collect::<Vec<_>>()));
    let forebay = Harness::new().names(&names).pools(&pool(port, ", max_backends = 149")).start();
    eventually("149 backends", || (serving(&forebay) == 149).then_some(()));
    assert_eq!(forebay.tells("more backends are found than max_backends"), 1);
    for _ in 0..149 {
        assert_eq!(forebay.post(CHAT_PATH, STREAM).status, 200);
    }
    let asked = mocks.iter().filter(|mock| !mock.seen().is_empty()).count();
    assert_eq!(asked, 149, "in turn, so each had one");
    let fleet = crate::client::Conn::open(forebay.admin).ask(b"GET /api/fleet HTTP/1.1\r\nhost: admin\r\n\r\n").json();
    let source = &fleet["pools"][0]["arms"][0]["source"];
    assert_eq!((&source["kind"], &source["found"], &source["left_out"]), (&"dns".into(), &149.into(), &1.into()));
    assert!(source["age_seconds"].as_f64().unwrap() < 10.0, "{source}");
}

#[test]
fn a_stream_on_an_address_that_is_gone_goes_on_to_its_end() {
    let Some(names) = Names::new() else { return };
    let (port, mocks) = mocks(2);
    names.set(NAME, hosts(&[1]));
    let forebay = Harness::new().names(&names).pools(&pool(port, "")).start();
    let gate = Gate::new();
    let script =
        [stream_head(), chunk(token("one")), Step::Wait(gate.clone()), chunk(token("two")), chunk(DONE), last_chunk()];
    mocks[0].next(script.into());
    let mut held = forebay.open();
    held.send(&post(CHAT_PATH, &[], STREAM.as_bytes()));
    held.until("one");
    names.set(NAME, hosts(&[2]));
    forebay.await_state(&mocks[0], "drained");
    assert_eq!(forebay.backend(&mocks[0])["reason"], "its source no longer names it");
    assert_eq!(forebay.post(CHAT_PATH, STREAM).status, 200);
    assert_eq!(mocks[1].seen().len(), 1);
    gate.open();
    held.until(DONE);
    await_backends(&forebay, 1);
    assert!(!forebay.metrics().contains(&mocks[0].authority()));
}

#[test]
fn a_name_without_an_address_at_the_start_is_waited_for_and_a_reload_keeps_what_is_known() {
    let Some(names) = Names::new() else { return };
    let (port, mocks) = mocks(2);
    let forebay = Harness::new().names(&names).pools(&pool(port, "")).start();
    let refused = forebay.post(CHAT_PATH, STREAM);
    assert_eq!(refused.status, 503, "{}", refused.text());
    assert!(refused.header("retry-after").is_some());
    names.set(NAME, hosts(&[1, 2]));
    await_backends(&forebay, 2);
    names.set("other.forebay.test", []);
    let id = forebay.backend(&mocks[0])["id"].clone();
    let changed = pool(port, "").replace("round_robin", "p2c");
    std::fs::write(&forebay.config, changed).unwrap();
    forebay.signal("HUP");
    eventually("a reload", || (forebay.metric("forebay_config_reloads_total", &["applied"]) > 0.0).then_some(()));
    assert_eq!(forebay.backend(&mocks[0])["id"], id, "it is the same backend, with all that was learned");
    assert_eq!(forebay.post(CHAT_PATH, STREAM).status, 200);
}

#[test]
fn a_backend_by_a_name_of_several_addresses_names_discover_in_its_warning() {
    let Some(names) = Names::new() else { return };
    let (port, _mocks) = mocks(2);
    names.set(NAME, hosts(&[1, 2]));
    let listed = format!("[[pools]]\nmodel = \"tiny\"\nbackends = [{{ url = \"http://{NAME}:{port}\" }}]\n");
    let forebay = Harness::new().names(&names).pools(&listed).start();
    assert_eq!(forebay.post(CHAT_PATH, STREAM).status, 200);
    forebay.tells(&format!("discover = {{ dns = \"{NAME}:{port}\" }}"));
}
