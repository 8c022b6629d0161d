//! Several replicas behind a proxy that hashes the session, by the files that are shipped for it. `tests/replicas/run.sh` does more,
//! with Envoy too; here is what any machine with nginx can do.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use crate::client::{Conn, post};
use crate::harness::{DEADLINE, Harness, eventually_within, free_port};
use crate::mock::Mock;

const PATH: &str = "/v1/chat/completions";
const UNARY: &str = r#"{"model":"tiny","messages":[]}"#;

fn shipped(name: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("config/replicas").join(name)).unwrap()
}

/// nginx by the shipped file, on ports of its own; `None` where it is not installed.
struct Nginx {
    child: Child,
    port: u16,
    _dir: TempDir,
}

impl Nginx {
    fn start(replicas: [u16; 2]) -> Option<Nginx> {
        let (dir, port) = (TempDir::new().unwrap(), free_port());
        let at = |name: &str| dir.path().join(name).display().to_string();
        let ours = format!("daemon off;\npid {};\nerror_log {};\nevents {{}}", at("pid"), at("error.log"));
        let mut folders = String::from("access_log off;");
        for kind in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"] {
            folders.push_str(&format!("\n    {kind}_temp_path {};", at(kind)));
        }
        let mut text = shipped("nginx.conf").replace("events {}", &ours).replace("access_log off;", &folders);
        for (written, real) in [(8080, port), (8081, replicas[0]), (8082, replicas[1])] {
            let before = format!("127.0.0.1:{written}");
            assert!(text.contains(&before), "{before} is in the file");
            text = text.replace(&before, &format!("127.0.0.1:{real}"));
        }
        std::fs::write(dir.path().join("nginx.conf"), text).unwrap();
        let mut command = Command::new("nginx");
        command.args(["-c", &at("nginx.conf"), "-p", &dir.path().display().to_string()]);
        match command.stdout(Stdio::null()).stderr(Stdio::null()).spawn() {
            Ok(child) => Some(Nginx { child, port, _dir: dir }),
            Err(_) => {
                println!("skipped: nginx is not installed");
                None
            }
        }
    }

    fn address(&self) -> std::net::SocketAddr {
        ([127, 0, 0, 1], self.port).into()
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // Its master ends its workers on SIGTERM, and leaves them on SIGKILL.
        drop(Command::new("kill").arg(self.child.id().to_string()).status());
        drop(self.child.wait());
    }
}

#[test]
fn nginx_keeps_a_session_at_one_replica_and_leaves_one_that_is_gone() {
    let backend = Mock::start();
    let mut replicas = [(); 2].map(|()| Harness::new().pool("tiny", &[&backend]).start());
    let Some(nginx) = Nginx::start([replicas[0].address.port(), replicas[1].address.port()]) else { return };
    eventually_within(DEADLINE, "nginx listens", || std::net::TcpStream::connect(nginx.address()).ok());
    let ask = |session: &str| {
        let answer = Conn::open(nginx.address()).ask(&post(PATH, &[("x-session-id", session)], UNARY.as_bytes()));
        assert_eq!(answer.status, 200, "{}", answer.text());
    };
    let mut had = [0.0; 2];
    for session in 0..12 {
        for _ in 0..3 {
            ask(&format!("session-{session}"));
        }
        let now = [0, 1].map(|at: usize| replicas[at].metric("forebay_requests_total", &["outcome=\"success\""]));
        let of_it = [now[0] - had[0], now[1] - had[1]];
        assert!(of_it == [3.0, 0.0] || of_it == [0.0, 3.0], "session {session}: {of_it:?}");
        had = now;
    }
    assert!(had.iter().all(|count| *count > 0.0), "both replicas serve: {had:?}");
    replicas[0].signal("TERM");
    for session in 0..12 {
        ask(&format!("session-{session}"));
    }
    assert!(replicas[0].exit(DEADLINE).success());
}

#[test]
fn the_file_for_envoy_checks_a_replica_before_its_first_request() {
    let text = shipped("envoy.yaml");
    // Without it a replica that drains is chosen for up to a minute.
    for line in ["no_traffic_interval: 1s", "lb_policy: RING_HASH", "header_name: x-session-id", "path: /ready"] {
        assert!(text.contains(line), "{line}");
    }
}
