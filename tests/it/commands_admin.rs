//! The everyday commands, as an operator types them: `status`, `drain`, `undrain`, `keys new`, `serve --print-config`, and `serve`
//! without anything.

use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::client::post;
use crate::harness::{Forebay, Harness, binary, eventually};
use crate::mock::Mock;

const PATH: &str = "/v1/chat/completions";
const UNARY: &str = r#"{"model":"tiny","messages":[]}"#;

fn forebay(args: &[&str], env: &[(&str, &str)]) -> Output {
    let mut command = Command::new(binary());
    command.args(args).env_remove("FOREBAY_ADMIN_TOKEN").env("USER", "ada");
    command.envs(env.iter().copied()).stdin(Stdio::null()).output().unwrap()
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// What the command says, which must end with this code.
fn ends(code: i32, args: &[&str]) -> String {
    let output = forebay(args, &[]);
    assert_eq!(output.status.code(), Some(code), "forebay {}\n{}", args.join(" "), said(&output));
    said(&output)
}

fn admin(forebay: &Forebay) -> String {
    format!("http://{}", forebay.admin)
}

#[test]
fn status_is_one_screen_and_its_exit_code_says_whether_something_is_out() {
    let (a, b) = (Mock::start(), Mock::start());
    let proxy =
        Harness::new().config("[health]\ninterval = \"100ms\"\ntimeout = \"100ms\"").pool("tiny", &[&a, &b]).start();
    assert_eq!(proxy.post(PATH, UNARY).status, 200);
    let url = admin(&proxy);
    let shown = ends(0, &["status", "--admin", &url]);
    for part in [&a.authority(), &b.authority(), "pool tiny", "2 of 2 backends take requests", "ready"] {
        assert!(shown.contains(part), "{part} is not in\n{shown}");
    }
    let words = "a driver update that takes rather longer than one line of a terminal has room for, as such things do";
    ends(0, &["drain", &a.authority(), "--admin", &url, "--reason", words, "--for", "2h"]);
    let shown = ends(0, &["status", "--admin", &url]);
    assert!(
        shown.contains("drained") && shown.contains("by ada until 20") && shown.contains("such things do"),
        "{shown}"
    );
    ends(0, &["undrain", &a.url(), "--admin", &url]);
    b.stop_listening();
    proxy.await_state(&b, "ejected");
    let shown = ends(1, &["status", "--admin", &url]);
    assert!(shown.contains("1 OUT") && shown.contains("its port refuses connections"), "{shown}");
    assert!(shown.lines().all(|line| line.chars().count() <= 80), "{shown}");
    let output = forebay(&["status", "--json", "--admin", &url], &[]);
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((json["ok"].as_bool(), output.status.code()), (Some(false), Some(1)));
    assert_eq!(json["proxies"][0]["pools"][0]["arms"][0]["backends"][1]["state"], "ejected");
    eventually("a warning", || (proxy.logged("WARN") > 0 && proxy.logged("backend is out") == 1).then_some(()));
    ends(1, &["status", "--admin", "http://127.0.0.1:1"]);
    ends(1, &["status", "--admin", "localhost"]);
}

#[test]
fn a_drain_reaches_every_proxy_also_past_one_that_does_not_answer() {
    let mock = Mock::start();
    let (one, two) = (Harness::new().pool("tiny", &[&mock]).start(), Harness::new().pool("tiny", &[&mock]).start());
    let (first, second, name) = (admin(&one), admin(&two), mock.authority());
    let said = ends(1, &["drain", &name, "--admin", &first, "--admin", "http://127.0.0.1:1", "--admin", &second]);
    assert!(said.contains("is this the admin address of a running proxy?"), "{said}");
    for proxy in [&one, &two] {
        assert_eq!(proxy.backend(&mock)["state"], "drained");
    }
    let said = ends(2, &["undrain", "b0", "--admin", &first, "--admin", &second]);
    assert!(said.contains("host:port"), "{said}");
    ends(0, &["undrain", &name, "--admin", &first, "--admin", &second]);
    for proxy in [&one, &two] {
        assert_eq!(proxy.backend(&mock)["state"], "healthy");
    }
    ends(0, &["drain", "b0", "--admin", &first]);
    let said = ends(2, &["drain", "gpu-9:8000", "--admin", &first]);
    assert!(said.contains("no backend goes by this name") && said.contains(&name), "{said}");
    ends(2, &["drain", &name, "--for", "soon", "--admin", &first]);
}

#[test]
fn the_token_comes_from_a_file_or_the_environment() {
    let mock = Mock::start();
    let harness = Harness::new().config("[admin]\ntoken_file = \"token\"").file("token", "open-sesame\n");
    let proxy = harness.pool("tiny", &[&mock]).start();
    let (url, name) = (admin(&proxy), mock.authority());
    let file = proxy.config.with_file_name("token").display().to_string();
    for command in ["status", "drain", "undrain"] {
        let target: &[&str] = if command == "status" { &[] } else { &[&name] };
        let with = |more: &[&str], env: &[(&str, &str)]| {
            let args = [&[command], target, &["--admin", &url], more].concat();
            forebay(&args, env)
        };
        let refused = with(&[], &[]);
        assert_eq!(refused.status.code(), Some(1));
        assert!(said(&refused).contains("--admin-token-file"), "{}", said(&refused));
        assert_eq!(with(&["--admin-token-file", &file], &[]).status.code(), Some(0), "{command}");
        assert_eq!(with(&[], &[("FOREBAY_ADMIN_TOKEN", "open-sesame")]).status.code(), Some(0), "{command}");
    }
}

#[test]
fn an_arm_whose_source_names_nobody_is_told_and_is_not_well() {
    let mock = Mock::start();
    let pools = format!(
        "[[pools]]\nmodel = \"tiny\"\nbackends = [{{ url = \"{}\" }}]\n\
         [[pools]]\nmodel = \"lost\"\ndiscover = {{ dns = \"no-such-name.invalid:8000\" }}\n",
        mock.url()
    );
    let proxy = Harness::new().pools(&pools).start();
    let url = admin(&proxy);
    let shown = ends(1, &["status", "--admin", &url]);
    let words = shown.split_whitespace().collect::<Vec<_>>().join(" ");
    for part in ["1 of 1 backends take requests, 1 WITHOUT BACKENDS", "no backend from dns no-such-name.invalid:8000"] {
        assert!(words.contains(part), "{part:?} is not in:\n{shown}");
    }
}

#[test]
fn a_new_key_opens_the_door_once_its_line_is_in_the_file() {
    let mock = Mock::start();
    let line_of = |shown: &str, name: &str| {
        shown.lines().find(|line| line.starts_with(&format!("{name} = "))).unwrap().to_owned()
    };
    let first = ends(0, &["keys", "new", "first"]);
    let proxy = Harness::new()
        .config("[clients]\nkeys_file = \"keys\"")
        .file("keys", &line_of(&first, "first"))
        .pool("tiny", &[&mock])
        .start();
    let shown = ends(0, &["keys", "new", "team-a"]);
    let key = shown.lines().find(|line| line.starts_with("fbk-")).unwrap();
    let status = || {
        let request = post(PATH, &[("authorization", &format!("Bearer {key}"))], UNARY.as_bytes());
        proxy.open().ask(&request).status
    };
    assert_eq!(status(), 401);
    let lines = format!("{}\n{}\n", line_of(&first, "first"), line_of(&shown, "team-a"));
    std::fs::write(proxy.config.with_file_name("keys"), lines).unwrap();
    proxy.signal("HUP");
    eventually("the key is known", || (status() == 200).then_some(()));
    ends(2, &["keys", "new", "two words"]);
}

#[test]
fn the_printed_configuration_is_one_and_says_the_same_wherever_it_is_put() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let file = from.path().join("f.toml");
    std::fs::write(from.path().join("token"), "open-sesame").unwrap();
    let text = "[listen]\nkeep_alive = \"off\"\n[admin]\ntoken_file = \"token\"\n[log]\nfile = \"events.log\"\n\
                [[pools]]\nmodel = \"m\"\nbackends = [{ url = \"http://127.0.0.1:9\" }]\n";
    std::fs::write(&file, text).unwrap();
    let print = |file: &str| ends(0, &["serve", "--config", file, "--admin", "127.0.0.1:7", "--print-config"]);
    let printed = print(&file.display().to_string());
    let other = to.path().join("whole.toml");
    std::fs::write(&other, &printed).unwrap();
    ends(0, &["check", &other.display().to_string()]);
    let body = |text: &str| text.lines().skip(3).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(body(&print(&other.display().to_string())), body(&printed));
    for part in ["keep_alive = \"off\"", "address = \"127.0.0.1:7\"", "# duration, ", "default \"10s\""] {
        assert!(printed.contains(part), "{part} is not in\n{printed}");
    }
    assert!(printed.contains(&from.path().join("events.log").display().to_string()), "{printed}");
    assert!(!printed.contains("sesame"), "{printed}");
    for args in [&["serve", "--print-config"][..], &["serve", "--print-config", "--backend", "http://127.0.0.1:9"]] {
        std::fs::write(&other, ends(0, args)).unwrap();
        ends(0, &["check", &other.display().to_string()]);
    }
}

#[test]
fn serve_without_anything_says_what_is_missing_by_an_example_that_is_right() {
    let said = ends(2, &["serve"]);
    assert!(said.contains("--backend http://127.0.0.1:8001") && said.contains("--config"), "{said}");
    let from = said.find("[[pools]]").unwrap();
    let example = &said[from..said[from..].find("\n\n").unwrap() + from];
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), example).unwrap();
    ends(0, &["check", &file.path().display().to_string()]);
}
