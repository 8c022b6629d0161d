//! The shape of the tree, held by a test: layers and siblings, circles, the one home of each framework, file sizes and names, and
//! what must not stay in code. ARCHITECTURE.md says why; every message here says where, what and what to do about it.
//!
//! Standard library only, on the text of the files: comments and strings are blanked first, so that prose may name anything.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

#[path = "tidy/circles.rs"]
mod circles;

/// The crates whose modules have an order, top to bottom. A module imports from layers below its own, never from its own row:
/// siblings do not know each other. What one crate may take from another is in its `Cargo.toml`, and the compiler holds it.
const TREES: &[Tree] = &[
    Tree {
        src: "src/",
        layers: &[&["cli"], &["server"], &["epp"], &["proxy", "tasks", "admin"], &["upstream", "spans"]],
    },
    Tree {
        src: "crates/forebay-fleet/src/",
        layers: &[
            &["view"],
            &["membership"],
            &["clients"],
            &["pool"],
            &["load", "source", "probe"],
            &["health", "reach"],
            &["obstacle"],
            &["telemetry"],
            &["config"],
            &["tls", "lock"],
        ],
    },
    Tree {
        src: "crates/forebay-core/src/",
        layers: &[
            &["vllm_metrics"],
            &[
                "rate_limit",
                "routing",
                "stream",
                "sample",
                "so_far",
                "toml_reader",
                "chunked",
                "kubernetes",
                "terminal",
            ],
            &["units", "clock", "error"],
        ],
    },
    Tree { src: "crates/forebay-sim/src/", layers: &[&["server"], &["profile"], &["engine"], &["text"]] },
    Tree {
        src: "crates/forebay-lab/src/",
        layers: &[&["compare", "experiment"], &["load", "diagnosis"], &["rows"], &["plan", "stats"]],
    },
];

/// One crate's modules.
struct Tree {
    src: &'static str,
    layers: &'static [&'static [&'static str]],
}

/// The one exception to "no siblings": what an error says may carry a unit or a time.
const SIBLINGS_ALLOWED: &[(&str, &str)] = &[("error", "units"), ("error", "clock")];

/// Lines of a file before its tests.
const MAX_LINES: usize = 400;

/// A word that only some files may use.
struct Home {
    words: &'static [&'static str],
    /// Folders (with a slash at the end) and files.
    homes: &'static [&'static str],
    advice: &'static str,
}

const HOMES: &[Home] = &[
    Home {
        words: &["forebay_sim::", "forebay_lab::"],
        homes: &["src/cli/", "crates/forebay-sim/", "crates/forebay-lab/"],
        advice: "what serves does without them; only src/cli/ composes them",
    },
    Home {
        words: &["pingora::", "pingora_core::", "pingora_timeout::"],
        homes: &["src/server/"],
        advice: "pingora lives in src/server/ alone; hand its connections on as plain values",
    },
    Home {
        words: &["hyper::body"],
        homes: &[
            "src/server/",
            "src/upstream/",
            "src/proxy/",
            "crates/forebay-fleet/src/probe.rs",
            "crates/forebay-fleet/src/probe/",
            "crates/forebay-lab/src/load/",
            "crates/forebay-sim/src/server/http.rs",
        ],
        advice: "take `http` types, or the bytes",
    },
    Home {
        words: &["hyper::", "hyper_util::"],
        homes: &[
            "src/server/",
            "src/upstream/",
            "crates/forebay-fleet/src/probe.rs",
            "crates/forebay-fleet/src/probe/",
            "crates/forebay-lab/src/load/",
            "crates/forebay-sim/src/server/http.rs",
        ],
        advice: "hyper's connections live in src/server/ and src/upstream/; elsewhere use `http` types and tower",
    },
    Home {
        words: &["opentelemetry::", "opentelemetry_sdk::", "opentelemetry_otlp::", "opentelemetry_http::"],
        homes: &["src/spans/"],
        advice: "OpenTelemetry lives in src/spans/; elsewhere a request keeps a `Trace`",
    },
    Home {
        words: &["envoy_types::"],
        homes: &["src/epp/wire.rs"],
        advice: "Envoy's types live in src/epp/wire.rs; elsewhere use its plain values",
    },
    Home {
        words: &["tonic::", "tonic_health::"],
        homes: &["src/epp/", "src/server/picker.rs"],
        advice: "gRPC lives in src/epp/",
    },
    Home {
        words: &["axum::"],
        homes: &["src/admin/", "crates/forebay-sim/src/server/"],
        advice: "axum lives in src/admin/ and in the simulator",
    },
    Home {
        words: &["http::", "http_body::", "http_body_util::", "tower::"],
        homes: &[
            "src/",
            "crates/forebay-sim/src/server/",
            "crates/forebay-lab/src/",
            "crates/forebay-fleet/src/probe.rs",
            "crates/forebay-fleet/src/probe/",
            "crates/forebay-fleet/src/config/",
        ],
        advice: "the fleet knows no HTTP types, so that another front end can use it",
    },
    Home {
        words: &["counter!", "gauge!", "histogram!", "describe_counter!", "describe_gauge!", "describe_histogram!"],
        homes: &["crates/forebay-fleet/src/telemetry/metrics.rs"],
        advice: "declare the metric in telemetry/metrics.rs and hold its handle",
    },
    Home {
        words: &["SystemTime"],
        homes: &[
            "src/admin/changes.rs",
            "src/server/lifecycle.rs",
            "crates/forebay-fleet/src/telemetry/log.rs",
            "crates/forebay-fleet/src/tls/validity.rs",
            "crates/forebay-lab/src/load/run.rs",
            "crates/forebay-lab/src/rows/wall_clock.rs",
            "crates/forebay-sim/src/server/http.rs",
            "src/spans/",
        ],
        advice: "the wall clock jumps: logs, rows, operators and simulated answers are shown it, and no request waits for it",
    },
    Home {
        words: &["Instant::now"],
        homes: &["crates/forebay-core/src/clock.rs"],
        advice: "take `now` as an argument, or ask a `Clock`",
    },
];

/// Functions of their arguments: no async, I/O, locks, globals, clock or chance of their own. (The core has no tokio to ask.)
const PURE: &[&str] = &[
    "crates/forebay-core/src/",
    "crates/forebay-lab/src/stats/",
    "crates/forebay-sim/src/engine.rs",
    "crates/forebay-sim/src/engine/",
];
/// The clock itself.
const NOT_PURE: &[&str] = &["crates/forebay-core/src/clock.rs"];
const IMPURE: &[&str] = &[
    "async",
    "await",
    "tokio::",
    "std::net::Tcp",
    "std::net::Udp",
    "std::fs",
    "std::thread",
    "Mutex",
    "RwLock",
    "OnceLock",
    "thread_local!",
    "Instant",
    "SystemTime",
    "fastrand::u64",
    "fastrand::u32",
    "fastrand::f64",
    "fastrand::usize",
    "fastrand::bool",
    "fastrand::shuffle",
];

const LEFTOVERS: &[&str] = &["todo!", "unimplemented!", "dbg!", "#[ignore"];
const POOR_NAMES: &[&str] = &["utils", "util", "helpers", "helper", "common", "misc"];

// ---- reading Rust --------------------------------------------------------------------------------------------------

/// The text with comments and the contents of string and character literals blanked, line for line.
fn code_only(source: &str) -> String {
    let text: Vec<char> = source.chars().collect();
    let mut out = String::with_capacity(source.len());
    let mut at = 0;
    while at < text.len() {
        let end = literal_end(&text, at);
        if end == at {
            out.push(text[at]);
            at += 1;
        } else {
            out.extend(text[at..end].iter().map(|&c| if c == '\n' { '\n' } else { ' ' }));
            at = end;
        }
    }
    out
}

/// Where the comment or literal that starts at `at` ends; `at` itself where none does.
fn literal_end(text: &[char], at: usize) -> usize {
    let rest = &text[at..];
    let in_word = at > 0 && (text[at - 1].is_alphanumeric() || text[at - 1] == '_');
    match rest {
        ['/', '/', ..] => at + rest.iter().position(|&c| c == '\n').unwrap_or(rest.len()),
        ['/', '*', ..] => at + block_comment(rest),
        ['"', ..] => at + quoted(rest, '"'),
        ['b' | 'c', '"', ..] if !in_word => at + 1 + quoted(&rest[1..], '"'),
        ['r', '"' | '#', ..] if !in_word => at + raw_string(rest, 1),
        ['b' | 'c', 'r', '"' | '#', ..] if !in_word => at + raw_string(rest, 2),
        // A character, not a lifetime: it is escaped, or closed after one character.
        ['\'', '\\', ..] | ['\'', _, '\'', ..] => at + quoted(rest, '\''),
        _ => at,
    }
}

fn block_comment(rest: &[char]) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        match &rest[at..] {
            ['/', '*', ..] => (depth, at) = (depth + 1, at + 2),
            ['*', '/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

fn quoted(rest: &[char], end: char) -> usize {
    let mut at = 1;
    while at < rest.len() && rest[at] != end {
        at += if rest[at] == '\\' { 2 } else { 1 };
    }
    (at + 1).min(rest.len())
}

/// The length of a raw string whose hashes start at `prefix`; 0 where it is a raw identifier.
fn raw_string(rest: &[char], prefix: usize) -> usize {
    let hashes = rest[prefix..].iter().take_while(|&&c| c == '#').count();
    let open = prefix + hashes;
    if rest.get(open) != Some(&'"') {
        return 0;
    }
    let closes =
        |at: usize| rest[at] == '"' && rest.len() > at + hashes && rest[at + 1..=at + hashes].iter().all(|&c| c == '#');
    (open + 1..rest.len()).find(|&at| closes(at)).map_or(rest.len(), |at| at + hashes + 1)
}

/// Blanks every item under `#[cfg(test)]`: tests may import what they like.
fn without_tests(code: &str) -> String {
    let mut out = code.to_owned();
    while let Some(start) = out.find("#[cfg(test)]") {
        let end = item_end(&out[start..]) + start;
        let blank: String = out[start..end].chars().map(|c| if c == '\n' { '\n' } else { ' ' }).collect();
        out.replace_range(start..end, &blank);
    }
    out
}

/// The length of the item at the start of `code`: to its closing brace, or its semicolon where no brace comes first.
fn item_end(code: &str) -> usize {
    let mut depth = 0_usize;
    for (at, c) in code.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth <= 1 => return at + 1,
            '}' => depth -= 1,
            ';' if depth == 0 => return at + 1,
            _ => {}
        }
    }
    code.len()
}

/// How many lines a file has before its test module.
fn lines_before_tests(code: &str) -> usize {
    let test_module = code.match_indices("#[cfg(test)]").find(|(at, attribute)| {
        let item = code[at + attribute.len()..].trim_start();
        item.starts_with("mod ") || item.starts_with("pub mod ")
    });
    test_module.map_or(code.lines().count(), |(at, _)| code[..at].lines().count())
}

/// Where `word` stands as a word or as the start of a path, by line number.
fn uses(code: &str, word: &str) -> Vec<usize> {
    let plain = |c: char| c.is_alphanumeric() || c == '_';
    let found = code.match_indices(word).filter(|&(at, _)| {
        let before = code[..at].chars().next_back();
        let after = code[at + word.len()..].chars().next();
        let starts = match before {
            // `Instant::now` and macros may follow a path, a crate's name may not.
            Some(':') => !word.ends_with("::"),
            Some(c) => !plain(c) && c != '$',
            None => true,
        };
        starts && (!word.ends_with(plain) || !after.is_some_and(plain))
    });
    found.map(|(at, _)| line_of(code, at)).collect()
}

fn line_of(code: &str, at: usize) -> usize {
    code[..at].matches('\n').count() + 1
}

/// Top-level modules that `code` names by `crate::…` or by enough `super::`, with their lines.
fn imports(code: &str, depth: usize) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let roots = ["crate::".to_owned(), "super::".repeat(depth)];
    for root in roots.iter().filter(|root| !root.is_empty()) {
        for (at, _) in code.match_indices(root.as_str()) {
            let before = code[..at].chars().next_back();
            if before.is_some_and(|c| c.is_alphanumeric() || "_$:".contains(c)) {
                continue;
            }
            for (offset, name) in heads(&code[at + root.len()..]) {
                found.push((line_of(code, at + root.len() + offset), name));
            }
        }
    }
    found
}

/// The first segments of the path, or group of paths, at the start of `code`.
fn heads(code: &str) -> Vec<(usize, String)> {
    let ident = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    if !code.starts_with('{') {
        return vec![(0, ident(code))];
    }
    let (mut depth, mut fresh, mut found) = (0, false, Vec::new());
    for (at, c) in code.char_indices() {
        match c {
            '{' => (depth, fresh) = (depth + 1, depth == 0),
            '}' if depth == 1 => break,
            '}' => depth -= 1,
            ',' => fresh = depth == 1,
            c if fresh && !c.is_whitespace() => {
                found.push((at, ident(&code[at..])));
                fresh = false;
            }
            _ => {}
        }
    }
    found
}

// ---- rules ---------------------------------------------------------------------------------------------------------

impl Tree {
    fn layer(&self, module: &str) -> Option<usize> {
        self.layers.iter().position(|row| row.contains(&module))
    }

    /// Why `from` may not import `to`; nothing where it may.
    fn import_fault(&self, from: &str, to: &str) -> Option<String> {
        let (above, below) = (self.layer(from)?, self.layer(to)?);
        if from == to || SIBLINGS_ALLOWED.contains(&(from, to)) {
            None
        } else if above == below {
            Some(format!("`{from}` imports its sibling `{to}`; move what both need into a layer below"))
        } else if above > below {
            Some(format!("`{from}` imports `{to}`, which is above it; pass the value down, or move it below"))
        } else {
            None
        }
    }
}

/// Every fault of one source file; `path` is relative to the project, with forward slashes.
fn faults(path: &str, source: &str) -> Vec<String> {
    let mut out = Vec::new();
    let mut say = |line: usize, what: String| out.push(format!("{path}:{line}: {what}"));
    let code = code_only(source);

    if !source.starts_with("//!") {
        say(1, "the file does not open with `//!`; say what it is for and what it must never do".into());
    }
    let lines = lines_before_tests(&code);
    if lines > MAX_LINES {
        say(MAX_LINES + 1, format!("{lines} lines before the tests, over {MAX_LINES}; split the file by subject"));
    }
    if is_root(path) && !code.contains("#![forbid(unsafe_code)]") {
        say(1, "no `#![forbid(unsafe_code)]`".into());
    }
    for (number, line) in source.lines().enumerate() {
        if let Some((_, after)) = line.split_once("TODO")
            && !after.trim_start_matches('(').starts_with('#')
        {
            say(number + 1, "a TODO without its issue; write TODO(#12)".into());
        }
    }
    if is_test_file(path) {
        return out;
    }
    let code = without_tests(&code);
    for home in HOMES.iter().filter(|home| !within(path, home.homes)) {
        for word in home.words {
            // `hyper::body` has a wider home than the rest of hyper.
            let narrower = |line: &usize| *word == "hyper::" && only_bodies(&code, *line);
            for line in uses(&code, word).into_iter().filter(|line| !narrower(line)) {
                say(line, format!("`{}` does not belong here; {}", word.trim_end_matches(':'), home.advice));
            }
        }
    }
    if within(path, PURE) && !within(path, NOT_PURE) {
        for word in IMPURE {
            for line in uses(&code, word) {
                say(line, format!("`{word}` in a pure module; take time, chance and data as arguments"));
            }
        }
    }
    for (line, what) in layer_faults(path, &code) {
        say(line, what);
    }
    out
}

/// `lib.rs` or `main.rs` of a crate.
fn is_root(path: &str) -> bool {
    path.ends_with("src/lib.rs") || path.ends_with("src/main.rs")
}

fn layer_faults(path: &str, code: &str) -> Vec<(usize, String)> {
    let Some(tree) = TREES.iter().find(|tree| path.starts_with(tree.src)) else {
        return vec![(
            1,
            "the crate is not in TREES in tests/tidy.rs; put it there and into ARCHITECTURE.md".to_owned(),
        )];
    };
    if is_root(path) {
        return Vec::new();
    }
    let inside = path.trim_start_matches(tree.src).trim_end_matches(".rs");
    let modules: Vec<&str> = inside.split('/').filter(|part| *part != "mod").collect();
    let own = modules[0];
    if tree.layer(own).is_none() {
        return vec![(1, format!("`{own}` is in no layer; put it into TREES in tests/tidy.rs and ARCHITECTURE.md"))];
    }
    let found = imports(code, modules.len()).into_iter();
    found.filter_map(|(line, to)| tree.import_fault(own, &to).map(|fault| (line, fault))).collect()
}

/// Whether every `hyper::` of a line is `hyper::body`.
fn only_bodies(code: &str, line: usize) -> bool {
    let text = code.lines().nth(line - 1).unwrap_or_default();
    uses(text, "hyper::").len() == uses(text, "hyper::body").len()
}

/// Whether a file holds nothing but tests: `tests.rs` beside what it tests, or a folder `tests/`.
fn is_test_file(path: &str) -> bool {
    path.ends_with("/tests.rs") || path == "tests.rs" || path.contains("/tests/")
}

fn within(path: &str, homes: &[&str]) -> bool {
    homes.iter().any(|home| if home.ends_with('/') { path.starts_with(home) } else { path == *home })
}

/// Faults that hold for every Rust file of the project.
fn leftovers(path: &str, source: &str) -> Vec<String> {
    let code = code_only(source);
    let mut out = Vec::new();
    for word in LEFTOVERS {
        for line in uses(&code, word) {
            out.push(format!("{path}:{line}: `{word}` is left over; finish it or take it out"));
        }
    }
    let stem = path.rsplit('/').next().unwrap_or(path).trim_end_matches(".rs");
    let folder = path.rsplit('/').nth(1).unwrap_or_default();
    for name in POOR_NAMES {
        if stem == *name || folder == *name {
            out.push(format!("{path}:1: `{name}` says nothing; name the file by its subject"));
        }
    }
    out
}

/// Names of this machine or of folders outside the checkout, in any text of the project.
fn outside_names(path: &str, text: &str) -> Vec<String> {
    let outside = [concat!("../", "shared"), concat!("/work", "/"), concat!("/root", "/")];
    let mut out = Vec::new();
    for (number, line) in text.lines().enumerate() {
        for name in outside.iter().filter(|name| line.contains(**name)) {
            out.push(format!("{path}:{}: `{name}` is outside the project; copy what is needed into it", number + 1));
        }
    }
    out
}

// ---- the tree ------------------------------------------------------------------------------------------------------

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Every file under a folder of the project (or the file itself), relative to its root, sorted.
fn files(under: &str) -> Vec<String> {
    let mut found = Vec::new();
    collect(&root().join(under), &mut found);
    let mut names: Vec<String> = found
        .iter()
        .filter_map(|path| path.strip_prefix(root()).ok())
        .map(|path| path.to_string_lossy().replace('\\', "/"))
        .collect();
    names.sort();
    names
}

fn collect(path: &Path, found: &mut Vec<PathBuf>) {
    if path.is_file() {
        found.push(path.to_path_buf());
    }
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect(&path, found);
        } else {
            found.push(path);
        }
    }
}

fn read(path: &str) -> String {
    String::from_utf8_lossy(&fs::read(root().join(path)).expect("a file that was just listed")).into_owned()
}

fn is_rust(path: &str) -> bool {
    Path::new(path).extension().is_some_and(|extension| extension == "rs")
}

fn report(faults: &[String]) {
    let mut text = String::new();
    for fault in faults {
        let _ = writeln!(text, "{fault}");
    }
    assert!(faults.is_empty(), "{} faults:\n{text}", faults.len());
}

/// The sources of every crate: the root's and those of `crates/`.
fn sources() -> Vec<String> {
    let of_crates = files("crates").into_iter().filter(|path| path.split('/').nth(2) == Some("src"));
    files("src").into_iter().chain(of_crates).filter(|path| is_rust(path)).collect()
}

#[test]
fn sources_keep_their_shape() {
    let sources = sources();
    for tree in TREES {
        assert!(sources.contains(&format!("{}lib.rs", tree.src)), "{} was not found", tree.src);
    }
    report(&sources.iter().flat_map(|path| faults(path, &read(path))).collect::<Vec<_>>());
}

#[test]
fn nothing_is_left_over() {
    let rust = ["src", "crates", "tests", "benches", "fuzz"].into_iter().flat_map(files).filter(|path| is_rust(path));
    report(&rust.flat_map(|path| leftovers(&path, &read(&path))).collect::<Vec<_>>());
}

/// Where a test may let real time pass: the harness, which looks again, and the two peers whose pace is a part of a script.
const MAY_SLEEP: &[&str] = &["tests/it/harness.rs", "tests/it/mock.rs", "tests/it/client.rs"];

/// A test that sleeps proves nothing on a slow machine and wastes its time on a fast one.
fn bare_waits(path: &str, source: &str) -> Vec<String> {
    let code = code_only(source);
    let waits = ["thread::sleep", "time::sleep", "sleep_until", "park_timeout"].into_iter();
    let found = waits.filter(|_| !within(path, MAY_SLEEP)).flat_map(|word| uses(&code, word));
    found
        .map(|line| format!("{path}:{line}: a bare wait; wait for a condition with `eventually` or `awaited`"))
        .collect()
}

#[test]
fn tests_wait_for_conditions() {
    let tests = files("tests").into_iter().filter(|path| is_rust(path));
    report(&tests.flat_map(|path| bare_waits(&path, &read(&path))).collect::<Vec<_>>());
}

#[test]
fn a_bare_wait_is_seen() {
    assert_eq!(bare_waits("tests/it/x.rs", "fn f() {\n std::thread::sleep(ms(5));\n}\n").len(), 1);
    assert_eq!(bare_waits("tests/it/x.rs", "async fn f() { tokio::time::sleep(ms(5)).await }").len(), 1);
    assert!(bare_waits("tests/it/x.rs", "// thread::sleep\nlet sleeps = is_sleeping();").is_empty());
    assert!(bare_waits("tests/it/mock.rs", "std::thread::sleep(time);").is_empty());
}

#[test]
fn nothing_outside_the_project_is_named() {
    let folders = ["src", "crates", "tests", "benches", "config", "docker", "docs", "fuzz"];
    let mut texts: Vec<String> = folders.into_iter().flat_map(files).collect();
    for entry in fs::read_dir(root()).expect("the project's root").flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if Path::new(&name).extension().is_some_and(|extension| extension == "md" || extension == "toml") {
            texts.push(name);
        }
    }
    report(&texts.iter().flat_map(|path| outside_names(path, &read(path))).collect::<Vec<_>>());
}

/// Names of files and folders in backquotes, with their lines: `routing/cost.rs`, `tests/it/`. A bare `cost.rs` is one too.
fn named_files(text: &str) -> Vec<(usize, &str)> {
    let is_file = |name: &str| {
        let plain = name.chars().all(|c| c.is_ascii_alphanumeric() || "_-./".contains(c));
        let kind = [".rs", ".md"].iter().any(|kind| name.len() > kind.len() && name.ends_with(kind));
        plain && (kind || name.ends_with('/')) && !name.starts_with(['/', '.', '-'])
    };
    let lines = text.lines().enumerate();
    lines
        .flat_map(|(at, line)| line.split('`').skip(1).step_by(2).map(move |name| (at + 1, name)))
        .filter(|(_, name)| is_file(name))
        .collect()
}

#[test]
fn files_that_texts_name_are_there() {
    let folders = ["src", "crates", "tests", "benches", "config", "docker", "docs", "fuzz", ".ci"];
    let mut all: Vec<String> = folders.into_iter().flat_map(files).collect();
    let documents = fs::read_dir(root()).expect("the project's root").flatten().map(|entry| entry.file_name());
    all.extend(documents.map(|name| name.to_string_lossy().into_owned()).filter(|name| name.ends_with(".md")));
    let is_there = |name: &str| {
        all.iter().any(|path| {
            let path = format!("/{path}");
            if name.ends_with('/') { path.contains(&format!("/{name}")) } else { path.ends_with(&format!("/{name}")) }
        })
    };
    let mut missing = Vec::new();
    for path in all.iter().filter(|path| is_rust(path) || path.ends_with(".md")) {
        let text = read(path);
        // In code a backquote is a comment's.
        let comments = |line: &str| !is_rust(path) || line.trim_start().starts_with("//");
        let text: String = text.lines().map(|line| if comments(line) { line } else { "" }.to_owned() + "\n").collect();
        for (line, name) in named_files(&text).into_iter().filter(|(_, name)| !is_there(name)) {
            missing.push(format!("{path}:{line}: there is no `{name}`; name the file as it is"));
        }
    }
    report(&missing);
}

#[test]
fn a_type_name_means_one_thing_in_a_crate() {
    let mut twice = Vec::new();
    for tree in TREES {
        let mut seen: Vec<(String, String)> = Vec::new();
        for path in sources().into_iter().filter(|path| path.starts_with(tree.src) && !is_test_file(path)) {
            for name in type_names(&without_tests(&code_only(&read(&path)))) {
                match seen.iter().find(|(known, _)| *known == name) {
                    // Each command of the command line has its arguments.
                    Some((_, first)) if name != "Args" => {
                        twice
                            .push(format!("{path}:1: `{name}` is also in {first}; give one of them a name of its own"));
                    }
                    _ => seen.push((name, path.clone())),
                }
            }
        }
    }
    report(&twice);
}

/// The structs, enums, traits and unions that `code` defines.
fn type_names(code: &str) -> Vec<String> {
    let ident = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let of_line = |line: &str| {
        let line = line.trim_start();
        let line = line.strip_prefix("pub(crate) ").or(line.strip_prefix("pub(super) ")).unwrap_or(line);
        let line = line.strip_prefix("pub ").unwrap_or(line);
        ["struct ", "enum ", "trait ", "union "].iter().find_map(|kind| line.strip_prefix(kind)).map(ident)
    };
    code.lines().filter_map(of_line).filter(|name| !name.is_empty()).collect()
}

#[test]
fn every_file_of_config_is_named_by_a_test() {
    let code: String =
        ["tests", "src", "crates"].into_iter().flat_map(files).filter(|p| is_rust(p)).map(|p| read(&p)).collect();
    let unnamed: Vec<String> = files("config")
        .into_iter()
        .filter(|path| !code.contains(path.rsplit('/').next().unwrap_or(path)))
        .map(|path| format!("{path}:1: no test names it; serve it in tests/it, or take it out"))
        .collect();
    report(&unnamed);
}

// ---- the scanner itself --------------------------------------------------------------------------------------------

#[test]
fn comments_and_literals_are_blanked_and_lines_kept() {
    let code =
        code_only("a // todo!()\nb /* x /* y */\n z */ c \"q\\\"todo!\" r#\"w\"x\"# d b\"e\" 'f' '\\'' &'g str r#type");
    assert_eq!(code.lines().count(), 3);
    let words: Vec<&str> = code.split_whitespace().collect();
    assert_eq!(words, ["a", "b", "c", "d", "&'g", "str", "r#type"]);
}

#[test]
fn imports_are_found_in_every_form() {
    let names = |code: &str, depth| imports(code, depth).into_iter().map(|(_, name)| name).collect::<Vec<_>>();
    assert_eq!(names("use crate::fleet::load;", 2), ["fleet"]);
    assert_eq!(names("use crate::{fleet::{a, b}, routing as r,\n stats};", 2), ["fleet", "routing", "stats"]);
    assert_eq!(names("let x = crate::proxy::go(); pub(crate) fn f() {}", 2), ["proxy"]);
    assert_eq!(names("use super::super::server::X; use super::load;", 2), ["server"]);
    assert!(names("$crate::fleet::x; not_crate::fleet::y", 2).is_empty());
    assert_eq!(imports("\n\nuse crate::{\n  fleet,\n  stats,\n};", 1)[1], (5, "stats".to_owned()));
}

#[test]
fn layers_point_down_and_siblings_are_strangers() {
    let (root, fleet, core) = (&TREES[0], &TREES[1], &TREES[2]);
    assert!(root.import_fault("proxy", "upstream").is_none());
    assert!(core.import_fault("error", "units").is_none());
    assert!(core.import_fault("routing", "routing").is_none());
    assert!(fleet.import_fault("load", "telemetry").is_none());
    assert!(fleet.import_fault("pool", "membership").is_some_and(|fault| fault.contains("above")));
    assert!(core.import_fault("units", "error").is_some_and(|fault| fault.contains("sibling")));
    assert!(root.import_fault("proxy", "admin").is_some_and(|fault| fault.contains("sibling")));
    assert!(root.import_fault("upstream", "proxy").is_some_and(|fault| fault.contains("above")));
    assert!(fleet.import_fault("config", "load").is_some_and(|fault| fault.contains("above")));
    assert_eq!(faults("crates/forebay-new/src/x.rs", "//! x\n").len(), 1, "a crate of no tree");
}

#[test]
fn tests_may_import_what_they_like() {
    let source = "//! x\nuse crate::units::A;\n#[cfg(test)]\nmod tests {\n use crate::stream::B;\n fn f() { {} }\n}\n";
    let path = "crates/forebay-core/src/routing/table.rs";
    assert_eq!(faults(path, source), Vec::<String>::new());
    let after = format!("{source}use crate::stream::C;\n");
    assert_eq!(faults(path, &after).len(), 1, "what follows the tests counts again");
    assert!(faults(path, &after)[0].starts_with(&format!("{path}:8:")));
    assert!(faults("crates/forebay-core/src/routing/tests.rs", "//! x\nuse crate::stream::B;").is_empty());
}

#[test]
fn frameworks_stay_at_home() {
    let bad = |path, line: &str| !faults(path, &format!("//! x\n{line}\n")).is_empty();
    assert!(bad("src/proxy/relay.rs", "use pingora::apps::ServerApp;"));
    assert!(!bad("src/server/app.rs", "use pingora::apps::ServerApp;"));
    assert!(bad("src/proxy/relay.rs", "use hyper::client::conn;"));
    assert!(!bad("src/proxy/relay.rs", "use hyper::body::Incoming;"));
    assert!(bad("src/proxy/relay.rs", "use forebay_sim::engine;"));
    assert!(!bad("src/cli/demo.rs", "use forebay_sim::engine;"));
    assert!(bad("src/admin/routes.rs", "use hyper::body::Incoming;"));
    assert!(bad("crates/forebay-fleet/src/load.rs", "let t = std::time::Instant::now();"));
    assert!(bad("crates/forebay-sim/src/server/http.rs", "let t = Instant::now();"));
    assert!(!bad("crates/forebay-core/src/clock.rs", "let t = Instant::now();"));
    assert!(bad("src/proxy/relay.rs", "metrics::counter!(\"x\").increment(1);"));
    assert!(!bad("crates/forebay-fleet/src/telemetry/metrics.rs", "counter!(\"x\").increment(1);"));
    assert!(bad("crates/forebay-fleet/src/event.rs", "use http::StatusCode;"));
    assert!(!bad("src/admin/routes.rs", "use forebay_fleet::telemetry::log; // pingora:: is not used here"));
    assert!(bad("crates/forebay-core/src/routing/cost.rs", "async fn f() {}"));
    assert!(bad("crates/forebay-core/src/stream/sse.rs", "static X: std::sync::Mutex<u8> = todo;"));
    assert!(!bad("crates/forebay-core/src/stream/sse.rs", "fn asynchronous(instant: Time) {}"));
}

#[test]
fn sizes_headers_and_leftovers_are_seen() {
    let long =
        |before: usize| format!("//! x\n{}#[cfg(test)]\nmod tests {{\n{}}}\n", "\n".repeat(before), "\n".repeat(500));
    assert!(faults("crates/forebay-lab/src/stats/x.rs", &long(399)).is_empty());
    assert_eq!(faults("crates/forebay-lab/src/stats/x.rs", &long(400)).len(), 1);
    assert_eq!(faults("crates/forebay-lab/src/stats/x.rs", "use std::fmt;\n").len(), 1);
    assert_eq!(faults("crates/forebay-lab/src/stats/x.rs", "//! x\n// TODO later\n// TODO(#3): soon\n").len(), 1);
    assert_eq!(faults("src/gateway/x.rs", "//! x\n").len(), 1, "a module of no layer");
    assert_eq!(leftovers("src/a.rs", "fn f() { todo!() }\n// todo!()\n#[ignore = \"slow\"]\n").len(), 2);
    assert_eq!(leftovers("tests/common/mod.rs", "").len(), 1);
    assert_eq!(leftovers("src/uncommon.rs", "").len(), 0);
    assert_eq!(outside_names("a.md", concat!("see ..", "/shared/x")).len(), 1);
}
