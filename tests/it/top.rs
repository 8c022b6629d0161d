//! `forebay top` in a real terminal (tmux, 80 columns): what it shows, how it ends, and what it says of an address where nobody is.

use std::process::{Command, Output};

use crate::harness::{Forebay, Harness, binary, eventually, free_port};
use crate::mock::Mock;

const STREAM: &str = r#"{"model":"tiny","stream":true,"messages":[{"role":"user","content":"hello"}]}"#;

/// A tmux server of its own, with one window that has a shell.
struct Terminal(String);

impl Terminal {
    /// None where tmux is not installed.
    fn open() -> Option<Terminal> {
        let terminal = Terminal(format!("forebay-top-{}-{}", std::process::id(), free_port()));
        let started = terminal.tmux(&["-f", "/dev/null", "new-session", "-d", "-x", "80", "-y", "30", "sh"]);
        if started.is_none() {
            println!("skipped: tmux is not installed");
        }
        started.map(|_| terminal)
    }

    fn tmux(&self, args: &[&str]) -> Option<Output> {
        Command::new("tmux").args(["-L", &self.0]).args(args).output().ok().filter(|done| done.status.success())
    }

    fn types(&self, keys: &[&str]) {
        let mut args = vec!["send-keys"];
        args.extend(keys);
        self.tmux(&args).unwrap();
    }

    /// Runs `forebay top` with these arguments, and tells its exit code after its end.
    fn runs(&self, args: &str) {
        let command = format!("{} top {args}; echo ended with $?", binary().to_str().unwrap());
        self.types(&[&command, "Enter"]);
    }

    /// What stands on it.
    fn text(&self) -> String {
        String::from_utf8(self.tmux(&["capture-pane", "-p"]).unwrap().stdout).unwrap()
    }

    fn until(&self, words: &str) -> String {
        eventually(&format!("`{words}` stands in the terminal"), || {
            let text = self.text();
            text.contains(words).then_some(text)
        })
    }

    /// Whether a program has taken the screen.
    fn is_taken(&self) -> bool {
        let shown = self.tmux(&["display-message", "-p", "#{alternate_on}"]).unwrap();
        shown.stdout.starts_with(b"1")
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        drop(self.tmux(&["kill-server"]));
    }
}

fn watched(token: bool) -> (Forebay, [Mock; 2]) {
    let mocks = [Mock::start(), Mock::start()];
    let harness = Harness::new().pool("tiny", &[&mocks[0], &mocks[1]]);
    let forebay =
        if token { harness.config("[admin]\ntoken_file = \"token\"").file("token", "sesame") } else { harness };
    (forebay.start(), mocks)
}

#[test]
fn it_shows_backends_and_decisions_and_q_gives_the_terminal_back() {
    let (forebay, mocks) = watched(false);
    let Some(terminal) = Terminal::open() else { return };
    terminal.runs(&format!("--admin http://{}", forebay.admin));
    terminal.until("q quit");
    mocks[1].refuse();
    let decision = eventually("a decision and an outage are shown", || {
        assert_eq!(forebay.post("/v1/chat/completions", STREAM).status, 200);
        let text = terminal.text();
        (text.contains("ejected") && text.contains(" ago  ")).then_some(text)
    });
    println!("{decision}");
    let name = |mock: &Mock| mock.url().replace("http://", "");
    let out = decision.find(&name(&mocks[1])).unwrap();
    assert!(out < decision.find(&name(&mocks[0])).unwrap(), "who is out stands first:\n{decision}");
    assert!(decision.lines().all(|line| line.chars().count() <= 80));
    terminal.types(&["s"]);
    terminal.until("s sort: in flight");
    assert!(terminal.is_taken());
    terminal.types(&["q"]);
    terminal.until("ended with 0");
    assert!(!terminal.is_taken());
}

#[test]
fn a_signal_ends_it_and_gives_the_terminal_back() {
    let (forebay, _mocks) = watched(true);
    let Some(terminal) = Terminal::open() else { return };
    terminal.types(&["export FOREBAY_ADMIN_TOKEN=sesame", "Enter"]);
    terminal.runs(&format!("--admin http://{}", forebay.admin));
    terminal.until("q quit");
    // The shell's child, which is the one that the terminal shows.
    let shell = terminal.tmux(&["display-message", "-p", "#{pane_pid}"]).unwrap();
    let shell = String::from_utf8(shell.stdout).unwrap();
    let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", shell.trim())).unwrap();
    assert!(Command::new("kill").arg("-INT").arg(children.trim()).status().unwrap().success());
    terminal.until("ended with 0");
    assert!(!terminal.is_taken());
    terminal.types(&["echo typed", "Enter"]);
    assert!(terminal.until("\ntyped").contains("echo typed"), "the shell echoes again");
}

#[test]
fn where_nobody_listens_or_the_token_is_wrong_it_says_so_and_takes_no_screen() {
    let (forebay, _mocks) = watched(true);
    let Some(terminal) = Terminal::open() else { return };
    let nobody = free_port();
    terminal.runs(&format!("--admin http://127.0.0.1:{nobody}"));
    let said = terminal.until("ended with 1").replace('\n', "");
    assert!(said.contains(&format!("forebay top: cannot watch http://127.0.0.1:{nobody}: ")), "{said}");
    assert!(said.contains("is this the admin address of a running proxy?"), "{said}");
    terminal.types(&["clear", "Enter"]);
    terminal.runs(&format!("--admin http://{}", forebay.admin));
    let said = terminal.until("ended with 1").replace('\n', "");
    assert!(said.contains("it wants its token: --admin-token-file FILE, or FOREBAY_ADMIN_TOKEN"), "{said}");
}

#[test]
fn without_a_terminal_it_says_what_else_there_is() {
    let done = Command::new(binary()).arg("top").output().unwrap();
    assert_eq!(done.status.code(), Some(2));
    let said = String::from_utf8(done.stderr).unwrap();
    assert!(said.contains("needs a terminal; /api/live"), "{said}");
}
