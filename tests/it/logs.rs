//! Logs whose reader stands still stop nothing, warnings that many connections cause come now and then, and the last lines are
//! written.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use crate::client::{Conn, post};
use crate::harness::{Harness, binary, eventually, eventually_within, free_port, ms};
use crate::mock::Mock;

const PATH: &str = "/v1/chat/completions";
const UNARY: &str = r#"{"model":"tiny","messages":[]}"#;

/// A Forebay whose logs are read by nobody.
struct Unread {
    child: Child,
    address: SocketAddr,
    admin: SocketAddr,
}

impl Unread {
    fn start(mock: &Mock, dir: &tempfile::TempDir) -> Unread {
        let config = dir.path().join("forebay.toml");
        let text = format!(
            "[listen]\nmax_connections = 8\n[[pools]]\nmodel = \"tiny\"\nbackends = [{{ url = \"{}\" }}]",
            mock.url()
        );
        std::fs::write(&config, text).unwrap();
        let address = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let (address, admin) = (address(free_port()), address(free_port()));
        // A debug log soon fills the pipes that nobody reads.
        let child = Command::new(binary())
            .args(["serve", "--config", &config.display().to_string(), "--threads", "1", "--access-log", "json"])
            .args(["--listen", &address.to_string(), "--admin", &admin.to_string(), "--log-level", "debug"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let unread = Unread { child, address, admin };
        eventually("it serves", || std::net::TcpStream::connect(unread.address).ok());
        unread
    }
}

impl Drop for Unread {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[test]
fn logs_that_nobody_reads_stop_nothing() {
    let (mock, dir) = (Mock::start(), tempfile::tempdir().unwrap());
    let unread = Unread::start(&mock, &dir);
    let mut client = Conn::open(unread.address);
    let request = post(PATH, &[("x-filler", &"x".repeat(2000))], UNARY.as_bytes());
    // Far more lines than two pipes hold.
    for _ in 0..2000 {
        assert_eq!(client.ask(&request).status, 200);
    }
    // Connections over the limit, each of which could be worth a warning.
    let crowd: Vec<Conn> = (0..200).map(|_| Conn::open(unread.address)).collect();
    assert_eq!(client.ask(&request).status, 200);
    drop(crowd);
    let health = Conn::open(unread.admin).ask(b"GET /health HTTP/1.1\r\nhost: admin\r\n\r\n");
    assert_eq!(health.status, 200);
    let metrics = Conn::open(unread.admin).ask(b"GET /metrics HTTP/1.1\r\nhost: admin\r\n\r\n").text();
    assert!(metrics.contains("\nforebay_log_dropped_total 0\n"), "16 MiB wait before a line is lost");
}

#[test]
fn connections_over_the_limit_are_warned_of_now_and_then() {
    let mock = Mock::start();
    let forebay = Harness::new().config("[listen]\nmax_connections = 2").pool("tiny", &[&mock]).start();
    let _held: Vec<Conn> = (0..2)
        .map(|_| {
            eventually("a connection within the limit", || {
                let mut client = forebay.open();
                (client.ask(&post(PATH, &[], UNARY.as_bytes())).status == 200).then_some(client)
            })
        })
        .collect();
    for _ in 0..50 {
        let mut client = forebay.open();
        eventually_within(ms(5000), "an end", || (!client.is_quiet_for(ms(1))).then_some(()));
    }
    forebay.tells("connection refused");
    assert!(forebay.logged("connection refused") <= 2, "{}", forebay.log());
}

#[test]
fn the_last_lines_of_the_log_are_written_before_the_process_ends() {
    let mock = Mock::start();
    for _ in 0..5 {
        let mut forebay = Harness::new().pool("tiny", &[&mock]).start();
        let id = forebay.post(PATH, UNARY).header("x-request-id").unwrap().to_owned();
        forebay.signal("TERM");
        assert!(forebay.exit(ms(10_000)).success());
        assert_eq!(forebay.tells("drained"), 1);
        drop(forebay.record(&id));
    }
}
