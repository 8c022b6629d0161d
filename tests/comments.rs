//! What stands in the code's comments, held by a test: a doc comment opens with a noun phrase or a verb, and functions have
//! comments that say why. `cargo test --test comments -- --nocapture` prints the figures of each crate.
//!
//! Both are looked at by line, in the form that rustfmt gives. Standard library only, on the text of the files.

use std::fs;
use std::path::{Path, PathBuf};

/// Words that open a clause in place of a subject. A doc comment that begins with one cannot be read alone.
const OPENS_A_CLAUSE: &[&str] = &[
    "What",
    "Where",
    "Whether",
    "Who",
    "Whom",
    "Whose",
    "When",
    "How",
    "Why",
    "Which",
    "Whatever",
    "Whichever",
    "Whoever",
    "Whenever",
    "Wherever",
    "That",
    "If",
    "As",
    "While",
    "Once",
    "Since",
    "Because",
    "Until",
    "Unless",
    "So",
];

/// Lines of comments inside functions, for each 1,000 lines of source before the tests.
const LEAST: f64 = 20.0;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Returns the Rust files under a folder, relative to the root.
fn files(under: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root().join(under)).into_iter().flatten().flatten() {
        let path = under.join(entry.file_name());
        if entry.path().is_dir() {
            found.extend(files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// Returns the crates' folders, relative to the root: that of the product is the root's own.
fn crates() -> Vec<PathBuf> {
    let members = fs::read_dir(root().join("crates")).expect("the crates").flatten();
    let mut all: Vec<PathBuf> = members.map(|entry| Path::new("crates").join(entry.file_name())).collect();
    all.push(PathBuf::new());
    all.sort();
    all
}

/// Returns the first line of each doc comment, with its number.
fn openings(source: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    let mut inside = false;
    for (number, line) in (1..).zip(source.lines()) {
        let text = line.trim_start().strip_prefix("///").filter(|rest| !rest.starts_with('/'));
        if let (Some(text), false) = (text, inside) {
            found.push((number, text.trim()));
        }
        inside = text.is_some();
    }
    found
}

/// Returns whether a doc comment opens with a clause, or points at a line that rustdoc does not show beside it.
fn opens_badly(text: &str) -> bool {
    let word = text.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default();
    let points_back = text.strip_prefix("The same").is_some_and(|rest| !rest.starts_with(char::is_alphanumeric));
    OPENS_A_CLAUSE.contains(&word) || points_back
}

/// Returns the source before its tests.
fn before_tests(source: &str) -> &str {
    let tests = source.match_indices("#[cfg(test)]\nmod ").find(|(at, _)| {
        let rest = &source[at + "#[cfg(test)]\n".len()..];
        rest.lines().next().is_some_and(|line| line.ends_with('{'))
    });
    tests.map_or(source, |(at, _)| &source[..at])
}

/// Returns whether a line begins a function.
fn begins_function(line: &str) -> bool {
    let mut words = line.split_whitespace().peekable();
    let before = |word: &str| word.starts_with("pub") || ["const", "async", "unsafe", "in"].contains(&word);
    while words.next_if(|word| before(word) || word.ends_with(')') && !word.contains("fn")).is_some() {}
    words.next() == Some("fn")
}

/// Returns the number of lines before the tests, and of those that are comments inside a function.
fn counts(source: &str) -> (usize, usize) {
    let lines: Vec<&str> = before_tests(source).lines().collect();
    let (mut comments, mut at) = (0, 0);
    while at < lines.len() {
        let indent = lines[at].len() - lines[at].trim_start().len();
        let closing = format!("{}}}", &lines[at][..indent]);
        if begins_function(lines[at]) && !lines[at].ends_with(['}', ';']) {
            // The brace that ends a function stands under its first word.
            let length = lines[at..].iter().position(|line| *line == closing).unwrap_or(0);
            comments += lines[at..at + length].iter().filter(|line| is_comment(line)).count();
            at += length;
        }
        at += 1;
    }
    (lines.len(), comments)
}

/// Returns whether a line is a comment, or code with one behind it.
fn is_comment(line: &str) -> bool {
    let text = line.trim_start();
    let alone = text.starts_with("//") && !text.starts_with("///") && !text.starts_with("//!");
    alone || [";", ",", "{", "}", ")"].iter().any(|end| text.contains(&format!("{end} // ")))
}

#[test]
fn comments_say_why_and_doc_comments_can_be_read_alone() {
    let mut faults = Vec::new();
    println!("{:<22} {:>7} {:>10} {:>10} {:>8} {:>8}", "crate", "lines", "comments", "per 1,000", "docs", "clauses");
    for folder in crates() {
        let (mut lines, mut comments, mut docs, mut clauses) = (0, 0, 0, 0);
        for path in files(&folder.join("src")) {
            let source = fs::read_to_string(root().join(&path)).expect("a file that was just listed");
            let is_test = path.ends_with("tests.rs") || path.components().any(|part| part.as_os_str() == "tests");
            if !is_test {
                let (all, found) = counts(&source);
                (lines, comments) = (lines + all, comments + found);
            }
            let openings = openings(&source);
            docs += openings.len();
            for (number, text) in openings.into_iter().filter(|(_, text)| opens_badly(text)) {
                clauses += 1;
                faults.push(format!("{}:{number}: opens with a clause: {text}", path.display()));
            }
        }
        let share = 1e3 * comments as f64 / lines as f64;
        let name = if folder == Path::new("") { "forebay" } else { folder.to_str().expect("an ASCII name") };
        println!("{name:<22} {lines:>7} {comments:>10} {share:>10.1} {docs:>8} {clauses:>8}");
        if share < LEAST {
            faults.push(format!("{name}: {share:.1} lines of comments in 1,000; say why where a reader would wonder"));
        }
    }
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}

#[test]
fn clauses_are_told_from_noun_phrases() {
    for bad in
        ["Whether it is.", "What it says.", "The same with a deadline.", "The same.", "Why.", "How long, in seconds."]
    {
        assert!(opens_badly(bad), "{bad}");
    }
    for good in
        ["Returns whether it is.", "The sameness.", "Howitzer.", "A place where it is.", "Time at which it began."]
    {
        assert!(!opens_badly(good), "{good}");
    }
    let source = "/// One.\n/// What follows.\nfn f() {}\n//// no doc\n    /// Two.\n";
    assert_eq!(openings(source), [(1, "One."), (5, "Two.")]);
}

#[test]
fn comments_inside_functions_are_counted() {
    let source = "// outside\npub(crate) async fn f() {\n    // one\n    g(); // two\n    /// no\n    h(\"a // b\");\n}\n\n\
                  fn short() { g() }\n// outside\n\n#[cfg(test)]\nmod tests {\n    fn t() {\n        // a test's\n    }\n}\n";
    assert_eq!(counts(source), (11, 2));
}
