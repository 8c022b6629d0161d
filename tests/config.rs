//! The configuration from outside: every example in `config/` is right, every file in `tests/bad_config/` gives the report
//! beside it, `forebay check` says so with its exit code, and no file at all makes the loader panic.
//! `UPDATE_GOLDEN=1` rewrites the reports; the difference is reviewed.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use forebay_fleet::config::model::{Config, SessionKey, UsageMode};
use forebay_fleet::config::{self, Loaded, Report};
use proptest::prelude::*;

const KEY: &str = "backend-key-of-the-test";

fn env(name: &str) -> Option<String> {
    (name == "VLLM_KEY").then(|| KEY.to_owned())
}

/// Relative to the root of the repository, where tests run.
fn load(path: &str) -> Result<Loaded, Box<Report>> {
    config::load_with(Path::new(path), &env)
}

fn load_text(text: &str) -> Result<Loaded, Box<Report>> {
    config::load_text(Path::new("test.toml"), text, &env)
}

/// The files of `folder` that end in `.toml`, by name.
fn files(folder: &str) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> = entries.filter(|path| path.extension().is_some_and(|end| end == "toml")).collect();
    files.sort();
    files.iter().map(|path| path.to_str().unwrap().to_owned()).collect()
}

fn updating() -> bool {
    std::env::var_os("UPDATE_GOLDEN").is_some_and(|value| value == "1")
}

fn check(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_forebay"));
    command.arg("check").args(arguments).env("VLLM_KEY", KEY).env_remove("NO_COLOR").output().unwrap()
}

#[test]
fn every_example_is_right_and_has_its_counts() {
    let counts: Vec<(String, [usize; 3])> = files("config")
        .into_iter()
        .map(|file| {
            let pools = load(&file).unwrap_or_else(|report| panic!("{}", report.render(false))).config.pools;
            let arms = pools.iter().flat_map(|pool| &pool.arms);
            let backends = arms.clone().map(|arm| arm.backends.len()).sum();
            (file, [pools.len(), arms.count(), backends])
        })
        .collect();
    let expected = [
        ("config/ab.toml", [1, 2, 3]),
        ("config/discovery.toml", [2, 3, 0]),
        ("config/forebay.toml", [1, 1, 2]),
        ("config/keys.toml", [1, 1, 2]),
        ("config/many-pools.toml", [3, 3, 6]),
    ];
    assert_eq!(counts, expected.map(|(file, counts)| (file.to_owned(), counts)));
}

#[test]
fn an_example_of_two_replicas_differs_from_the_defaults_in_its_pool_alone() {
    let config = load("config/forebay.toml").unwrap().config;
    assert_eq!(config, Config { pools: config.pools.clone(), ..Config::default() });
    assert_eq!((config.pools[0].arms[0].name.as_str(), config.pools[0].arms[0].gpus), ("default", 2));
}

#[test]
fn an_example_of_two_arms_says_what_is_compared() {
    let pool = &load("config/ab.toml").unwrap().config.pools[0];
    let arms: Vec<_> = pool.arms.iter().map(|arm| (arm.name.as_str(), arm.share, arm.gpus)).collect();
    assert_eq!(arms, [("tp2", 50.0, 2), ("tp1x2", 50.0, 2)]);
    assert_eq!(pool.arms[0].backends[0].url.to_string(), "http://127.0.0.1:8001");
    assert_eq!((pool.arms[0].backends[0].speed, pool.arms[1].backends[0].speed), (1.4, 1.0));
}

#[test]
fn an_example_of_discovery_says_whom_to_ask() {
    let pools = load("config/discovery.toml").unwrap().config.pools;
    let arms = pools.iter().flat_map(|pool| &pool.arms);
    let found = arms.map(|arm| (arm.discover.clone().unwrap(), arm.gpus));
    let said: Vec<_> = found.map(|(one, gpus)| (one.source.target(), one.max_backends, one.gpus_each, gpus)).collect();
    assert_eq!(
        said,
        [
            ("pods of app=vllm,layout=tp2".to_owned(), 256, false, 8),
            ("endpoints of vllm-tp1 in inference".to_owned(), 64, true, 1),
            ("embeddings.internal:8000".to_owned(), 256, true, 1),
        ]
    );
}

#[test]
fn an_example_with_keys_reads_them_and_shows_none() {
    let config = load("config/keys.toml").unwrap().config;
    let keys = config.clients.keys.as_ref().unwrap();
    assert_eq!(keys.iter().map(|key| key.name.as_str()).collect::<Vec<_>>(), ["alice", "bob"]);
    let token = config.admin.token.as_ref().unwrap().expose();
    assert_eq!(config.pools[0].arms[0].backends[1].key.as_ref().unwrap().expose(), KEY);
    let shown = format!("{config:?} {}", serde_json::to_string(&config).unwrap());
    assert!(!shown.contains(KEY) && !shown.contains(token), "{shown}");
    let json = serde_json::to_value(&config).unwrap();
    assert_eq!(json["admin"]["token"], "[redacted]");
    let no_limits = serde_json::json!({ "requests": null, "tokens": null, "concurrent": null });
    let alice = serde_json::json!({ "name": "alice", "limits": no_limits, "models": null, "priority": 50 });
    assert_eq!(json["clients"]["keys"][0], alice);
    assert_eq!(json["clients"]["keys"][1]["limits"]["requests"], serde_json::json!({ "limit": 600, "burst": null }));
    assert_eq!(json["listen"]["keep_alive"], "1m15s");
    assert_eq!(json["limits"]["body"], "64MiB");
    assert_eq!(json["stream"]["first_token_timeout"], "off");
}

#[test]
fn a_file_that_writes_the_defaults_out_gives_the_defaults() {
    let text = r#"
        [listen]
        address = "127.0.0.1:8080"
        max_connections = 20000
        header_timeout = "10s"
        body_timeout = "30s"
        keep_alive = "75s"
        drain = { ready_delay = "0s", limit = "10m" }
        threads = "auto"
        [admin]
        address = "127.0.0.1:8081"
        [log]
        format = "text"
        access_log = "off"
        [clients]
        explain = "loopback"
        [limits]
        body = "64MiB"
        bodies_in_memory = "2GiB"
        head = "64KiB"
        h2_streams = 256
        write_stall = "30s"
        [stream]
        first_token_timeout = "off"
        idle_timeout = "60s"
        total_timeout = "30m"
        usage = "inject"
        [retry]
        attempts = 3
        budget = { burst = 100, ratio = 0.2, per_second = 10 }
        [health]
        interval = "2s"
        timeout = "1s"
        failures = 3
        ejection = { base = "5s", max = "60s" }
        stall_timeout = "20s"
        [scrape]
        interval = "1s"
        timeout = "800ms"
        stale_after = "3s"
        [slo]
        ttft = "1s"
        tpot = "60ms"
        [[pools]]
        model = "m"
        aliases = []
        policy = "predicted_ttft"
        session = { header = "x-session-id" }
        split_salt = ""
        affinity = "session"
        cross_arm = true
        backend_max_in_flight = "off"
        wait_room = { size = 512, timeout = "30s" }
        backends = [{ url = "http://a", speed = 1.0, drain = false }]
    "#;
    let config = load_text(text).unwrap_or_else(|report| panic!("{}", report.render(false))).config;
    let short = load_text("[[pools]]\nmodel = \"m\"\nbackends = [{ url = \"http://a:80/\" }]").unwrap().config;
    assert_eq!(config, short);
    assert_eq!(config, Config { pools: config.pools.clone(), ..Config::default() });
}

#[test]
fn the_example_of_every_limit_has_every_limit() {
    let document = std::fs::read_to_string("docs/configuration.md").unwrap();
    let example = std::fs::read_to_string("config/many-pools.toml").unwrap();
    let written = |key: &str| example.lines().any(|line| line.starts_with(&format!("{key} = ")));
    // What says where Forebay listens is no limit.
    let others = ["address", "tls", "proxy_protocol", "upgrade_socket"];
    for section in ["listen", "limits", "stream", "retry", "health", "scrape"] {
        let heading = format!("## `[{section}]`");
        let table =
            document.split(&heading).nth(1).unwrap_or_else(|| panic!("no {heading}")).split("\n#").next().unwrap();
        let keys: Vec<&str> = table.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
        assert!(!keys.is_empty(), "{heading} has no keys");
        for key in keys.into_iter().filter(|key| section != "listen" || !others.contains(key)) {
            assert!(written(key), "config/many-pools.toml lacks {section}.{key}, which it is said to write out");
        }
    }
}

#[test]
fn every_limit_that_can_be_off_can_be_off() {
    let text = r#"
        listen = { max_connections = "off", header_timeout = "off", body_timeout = "off", keep_alive = "off", threads = 3 }
        limits = { write_stall = "off" }
        health = { stall_timeout = "off" }
        stream = { first_token_timeout = "5s", idle_timeout = "off", total_timeout = "off", usage = "as_sent" }
        [[pools]]
        model = "m"
        session = { body = "user" }
        backends = [{ url = "http://[::1]:8001" }]
    "#;
    let config = load_text(text).unwrap_or_else(|report| panic!("{}", report.render(false))).config;
    let off = [config.listen.header_timeout, config.listen.body_timeout, config.listen.keep_alive];
    assert_eq!(off, [None; 3]);
    assert_eq!((config.listen.max_connections, config.listen.threads), (None, 3));
    assert_eq!(
        (config.limits.write_stall, config.stream.idle_timeout, config.stream.total_timeout),
        (None, None, None)
    );
    assert_eq!(config.health.stall_timeout, None);
    assert_eq!(config.stream.usage, UsageMode::AsSent);
    assert_eq!(config.pools[0].session, SessionKey::Body("user".to_owned()));
}

#[test]
fn a_limit_in_flight_and_its_wait_room_are_read_and_shown_as_written() {
    let config = load("config/many-pools.toml").unwrap().config;
    let limits: Vec<Option<u32>> = config.pools.iter().map(|pool| pool.backend_max_in_flight).collect();
    assert_eq!(limits, [None, Some(256), None]);
    let shown = serde_json::to_value(&config).unwrap();
    assert_eq!(shown["pools"][0]["backend_max_in_flight"], "off");
    assert_eq!(shown["pools"][1]["backend_max_in_flight"], 256);
    assert_eq!(shown["pools"][1]["wait_room"], serde_json::json!({ "size": 512, "timeout": "10s" }));
}

#[test]
fn a_session_header_is_kept_in_lower_case() {
    let text = "[[pools]]\nmodel = \"m\"\nsession = { header = \"X-User\" }\nbackends = [{ url = \"http://a\" }]";
    assert_eq!(load_text(text).unwrap().config.pools[0].session, SessionKey::Header("x-user".to_owned()));
}

#[test]
fn every_bad_file_gives_its_report() {
    let files = files("tests/bad_config");
    assert!(files.len() >= 30, "only {} files", files.len());
    let mut different = Vec::new();
    for file in files {
        let report = load(&file).expect_err(&file).render(false);
        let golden = file.replace(".toml", ".txt");
        if updating() {
            std::fs::write(&golden, &report).unwrap();
        }
        let expected = std::fs::read_to_string(&golden).unwrap_or_default();
        if report != expected {
            different.push(format!("--- {golden} has\n{expected}--- but it is\n{report}"));
        }
        assert!(!report.contains("very-secret"), "{file} shows a secret:\n{report}");
    }
    assert!(different.is_empty(), "{}", different.join("\n"));
}

#[test]
fn no_report_is_left_without_its_file() {
    for entry in std::fs::read_dir("tests/bad_config").unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|end| end == "txt") {
            assert!(path.with_extension("toml").exists(), "{} belongs to no file", path.display());
        }
    }
}

#[test]
fn check_refuses_every_bad_file_with_exit_code_2() {
    for file in files("tests/bad_config") {
        let output = check(&[&file]);
        assert_eq!(output.status.code(), Some(2), "{file}");
        assert_eq!(output.stdout, b"", "{file}");
        let report = String::from_utf8(output.stderr).unwrap();
        if updating() {
            continue;
        }
        assert_eq!(report, std::fs::read_to_string(file.replace(".toml", ".txt")).unwrap(), "{file}");
    }
}

#[test]
fn check_accepts_every_example_with_exit_code_0() {
    for file in files("config") {
        let output = check(&[&file]);
        assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), b"".as_slice()), "{file}");
    }
    assert_eq!(check(&["config/ab.toml"]).stdout, b"ok: 1 pool, 2 arms, 3 backends\n");
}

#[test]
fn check_shows_backends_when_asked_and_no_key() {
    let shown = String::from_utf8(check(&["-v", "config/keys.toml"]).stdout).unwrap();
    assert!(shown.contains("http://127.0.0.1:8002  speed 1, own key\n"), "{shown}");
    assert!(shown.contains("  bob: 600 requests a minute, 200000 tokens a minute, 16 at once, models "), "{shown}");
    assert!(!shown.contains(KEY), "{shown}");
}

#[test]
fn a_file_that_is_not_there_is_one_mistake() {
    let output = check(&["no-such.toml"]);
    assert_eq!(output.status.code(), Some(2));
    let report = String::from_utf8(output.stderr).unwrap();
    assert!(report.contains("cannot read it: No such file") && report.contains("no-such.toml"), "{report}");
}

#[test]
fn wrong_usage_has_exit_code_2() {
    assert_eq!(check(&[]).status.code(), Some(2));
}

#[test]
fn the_hash_follows_every_file_that_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let (path, token) = (folder.path().join("f.toml"), folder.path().join("t"));
    let text = "[admin]\ntoken_file = \"t\"\n[[pools]]\nmodel = \"m\"\nbackends = [{ url = \"http://a\" }]\n";
    std::fs::write(&path, text).unwrap();
    std::fs::write(&token, "one").unwrap();
    let first = config::load(&path).unwrap();
    assert_eq!(first.files, [path.clone(), token.clone()]);
    assert_eq!(first.hash, config::load(&path).unwrap().hash);
    std::fs::write(&token, "two").unwrap();
    let second = config::load(&path).unwrap();
    assert_ne!(first.hash, second.hash);
    assert_eq!(config::diff(&first.config, &second.config).restart_keys, ["admin.token_file"]);
    std::fs::write(&token, "").unwrap();
    let third = config::load(&path).unwrap_err();
    assert_ne!(third.hash(), second.hash);
    assert_eq!(third.hash(), config::load(&path).unwrap_err().hash());
}

/// Lines such as a file may have, and some that it may not.
fn fragment() -> impl Strategy<Value = String> {
    let files = files("config").into_iter().chain(files("tests/bad_config"));
    let lines: Vec<String> = files
        .filter_map(|file| std::fs::read_to_string(file).ok())
        .flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>())
        .collect();
    prop_oneof![8 => proptest::sample::select(lines), 1 => any::<String>(), 1 => "[ -~é\r\n\t]{0,40}"]
}

/// Whatever the text: no panic, and a report has something to say, in every form.
fn never_panics(text: &str) {
    if let Err(report) = load_text(text) {
        assert!(!report.diagnostics().is_empty());
        assert!(!report.lines().is_empty() && report.lines().len() <= report.diagnostics().len());
        assert!(report.render(false).ends_with('\n') && !report.render(true).is_empty());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_text_panics_the_loader(text in any::<String>()) {
        never_panics(&text);
    }

    #[test]
    fn no_mixture_of_lines_panics_the_loader(lines in proptest::collection::vec(fragment(), 0..30)) {
        never_panics(&lines.join("\n"));
    }

    #[test]
    fn no_value_of_any_key_panics_the_loader(value in "[ -~é]{0,12}", line in 0_usize..64) {
        let example = std::fs::read_to_string("config/many-pools.toml").unwrap();
        let mut lines: Vec<String> = example.lines().map(str::to_owned).collect();
        let line = line % lines.len();
        if let Some((key, _)) = lines[line].clone().split_once('=') {
            lines[line] = format!("{key}= {value}");
            never_panics(&lines.join("\n"));
            lines[line] = format!("{key}= {value:?}");
            never_panics(&lines.join("\r\n"));
        }
    }

    #[test]
    fn no_bytes_panic_the_loader(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &bytes).unwrap();
        _ = config::load(file.path());
    }
}

#[test]
fn check_names_the_logs_that_serve_could_not_write() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("f.toml");
    let pool = "[[pools]]\nmodel = \"m\"\nbackends = [{ url = \"http://127.0.0.1:8001\" }]\n";
    let with = |log: &str| {
        std::fs::write(&path, format!("[log]\n{log}\n{pool}")).unwrap();
        let output = check(&[path.to_str().unwrap()]);
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, said) =
        with("file = \"none/events.log\"\naccess_log = \"json\"\naccess_log_file = \"f.toml/access.log\"");
    assert_eq!(code, Some(2));
    let none = folder.path().join("none");
    for part in [
        format!("error: log.file: {} cannot be written: No such file", none.join("events.log").display()),
        format!(" --> {}:2\n", path.display()),
        format!("  = help: make the folder {}, and let Forebay's user write to it\n", none.display()),
        "error: log.access_log_file: ".to_owned(),
        "cannot be written: Not a directory".to_owned(),
    ] {
        assert!(said.contains(&part), "{part} is not in:\n{said}");
    }
    // Paths are relative to the file, and nothing is made.
    assert_eq!(with("file = \"events.log\""), (Some(0), String::new()));
    let (code, said) = with("access_log_file = \"none/access.log\"");
    assert_eq!(code, Some(0), "no access log is written");
    for part in ["warning: log.access_log_file ", "f.toml:2\n", "  = help: add access_log = "] {
        assert!(said.contains(part), "{part} is not in:\n{said}");
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn check_warns_of_a_model_of_a_key_that_no_pool_names() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("f.toml");
    let with = |model: &str| {
        let keys = format!("[[clients.keys]]\nname = \"team\"\nkey_env = \"VLLM_KEY\"\nmodels = [\"{model}\"]\n");
        let pool = "[[pools]]\nmodel = \"m\"\naliases = [\"a\"]\nbackends = [{ url = \"http://127.0.0.1:8001\" }]\n";
        std::fs::write(&path, keys + pool).unwrap();
        let output = check(&[path.to_str().unwrap()]);
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    assert_eq!(with("m"), (Some(0), String::new()));
    assert_eq!(with("a"), (Some(0), String::new()));
    // It may be an adapter that a backend lists, so the file is right.
    let (code, said) = with("adapter");
    assert_eq!(code, Some(0));
    for part in ["warning: clients.keys.models: the key `team` may use `adapter`, which no pool names", "f.toml:4\n"] {
        assert!(said.contains(part), "{part} is not in:\n{said}");
    }
}
