//! The length of sentences in the documents, held by a test: half of them have at most 16 words, nine in ten at most 28, and
//! none has more than 30. `cargo test --test prose -- --nocapture` prints the figures of each document.
//!
//! Prose alone is counted. Tables, code blocks, headings and generated parts are left out, and inline code is one word. A line
//! of a list is a paragraph. Links between documents must lead somewhere, too. Standard library only, on the text of the files.

use std::fs;
use std::path::{Path, PathBuf};

/// The limits, in words.
const MEDIAN: usize = 16;
const P90: usize = 28;
const LONGEST: usize = 30;

/// Documents beside those of `docs/`.
const AT_THE_ROOT: &[&str] = &["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md"];

/// A document is written by a program from the line that begins so.
const GENERATED: &str = "<!-- From here on this file is generated";

/// Words with a full stop that ends no sentence.
const ABBREVIATIONS: &[&str] = &["e.g.", "i.e.", "vs.", "etc.", "cf."];

/// Returns the paragraphs of a document, each as one line, without what is no prose.
fn paragraphs(markdown: &str) -> Vec<String> {
    let written = markdown.split(GENERATED).next().unwrap_or_default();
    let (mut found, mut open, mut fence) = (Vec::new(), String::new(), false);
    let close = |open: &mut String, found: &mut Vec<String>| {
        if !open.trim().is_empty() {
            found.push(open.trim().to_owned());
        }
        open.clear();
    };
    for line in written.lines().map(str::trim) {
        if line.starts_with("```") {
            fence = !fence;
            close(&mut open, &mut found);
        } else if fence || line.is_empty() || line.starts_with(['|', '#']) || line.starts_with("<!--") {
            close(&mut open, &mut found);
        } else if let Some(item) = list_item(line) {
            close(&mut open, &mut found);
            open.push_str(item);
        } else {
            open.push(' ');
            open.push_str(line.trim_start_matches("> "));
        }
    }
    close(&mut open, &mut found);
    found
}

/// Returns the text of a list's line: what follows `-`, `*` or a number.
fn list_item(line: &str) -> Option<&str> {
    let digits = line.chars().take_while(char::is_ascii_digit).count();
    let rest = if digits > 0 { line[digits..].strip_prefix('.') } else { line.strip_prefix(['-', '*']) };
    rest.and_then(|rest| rest.strip_prefix(' '))
}

/// Returns the text as it is read: inline code is the word `code`, a link is its text, emphasis is gone.
fn plain(paragraph: &str) -> String {
    let mut text = String::new();
    for (at, part) in paragraph.split('`').enumerate() {
        // Between two backquotes is code, which reads as one name however long it is.
        text.push_str(if at % 2 == 1 { "code" } else { part });
    }
    let mut out = String::new();
    let mut rest = text.as_str();
    while let Some((before, after)) = rest.split_once("](") {
        out.push_str(before);
        rest = after.split_once(')').map_or("", |(_, after)| after);
    }
    out.push_str(rest);
    out.replace(['*', '[', '!'], "")
}

/// Returns the number of words of each sentence of `text`.
fn sentences(text: &str) -> Vec<(usize, String)> {
    let (mut found, mut words, mut said) = (Vec::new(), 0, String::new());
    for token in text.split_whitespace() {
        words += usize::from(token.chars().any(char::is_alphanumeric));
        said.push_str(token);
        said.push(' ');
        let bare = token.trim_end_matches(['"', ')', '”', '’']);
        if bare.ends_with(['.', '?', '!']) && !ABBREVIATIONS.contains(&bare.trim_start_matches('(')) {
            found.push((words, std::mem::take(&mut said)));
            words = 0;
        }
    }
    found.push((words, said));
    found.retain(|(words, _)| *words > 0);
    found
}

/// The lengths of a document's sentences.
struct Figures {
    median: usize,
    p90: usize,
    longest: usize,
    sentences: usize,
}

/// Returns the figures of sentence lengths; nothing where there is no sentence.
fn figures(lengths: &mut [usize]) -> Option<Figures> {
    lengths.sort_unstable();
    let last = lengths.len().checked_sub(1)?;
    // The nearest rank: the smallest length that as many sentences do not exceed.
    let rank = |share: usize| lengths[(lengths.len() * share).div_ceil(100).saturating_sub(1)];
    Some(Figures { median: rank(50), p90: rank(90), longest: lengths[last], sentences: lengths.len() })
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn documents() -> Vec<PathBuf> {
    let is_markdown = |path: &Path| path.extension().is_some_and(|extension| extension == "md");
    let folder =
        fs::read_dir(root().join("docs")).expect("the folder of documents").flatten().map(|entry| entry.path());
    let mut docs: Vec<PathBuf> = folder.filter(|path| is_markdown(path)).collect();
    docs.sort();
    AT_THE_ROOT.iter().map(|name| root().join(name)).chain(docs).collect()
}

#[test]
fn sentences_are_short() {
    let mut faults = Vec::new();
    println!("{:<26} {:>9} {:>6} {:>4} {:>7}", "words in a sentence", "sentences", "median", "p90", "longest");
    for path in documents() {
        let name = path.strip_prefix(root()).unwrap_or(&path).display().to_string();
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{name}: {error}"));
        let all: Vec<(usize, String)> =
            paragraphs(&text).iter().flat_map(|paragraph| sentences(&plain(paragraph))).collect();
        let mut lengths: Vec<usize> = all.iter().map(|(words, _)| *words).collect();
        let Some(of) = figures(&mut lengths) else { continue };
        println!("{name:<26} {:>9} {:>6} {:>4} {:>7}", of.sentences, of.median, of.p90, of.longest);
        if of.median > MEDIAN || of.p90 > P90 {
            faults.push(format!("{name}: median {} and 90th percentile {}; shorten its sentences", of.median, of.p90));
        }
        let long = all.iter().filter(|(words, _)| *words > LONGEST);
        faults.extend(long.map(|(words, said)| format!("{name}: {words} words, make two sentences of it: {said}")));
    }
    assert!(
        faults.is_empty(),
        "{} faults (at most {MEDIAN}, {P90}, {LONGEST} words):\n{}",
        faults.len(),
        faults.join("\n")
    );
}

/// Returns a document without its code blocks.
fn without_code(markdown: &str) -> String {
    let parts = markdown.split("\n```");
    parts.step_by(2).collect()
}

/// Returns the anchors of a document's headings, as GitHub makes them.
fn anchors(markdown: &str) -> Vec<String> {
    let text = without_code(markdown);
    let headings = text.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#').trim());
    let kept = |c: &char| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_');
    headings.map(|title| title.chars().filter(kept).collect::<String>().to_lowercase().replace(' ', "-")).collect()
}

#[test]
fn links_lead_somewhere() {
    let mut faults = Vec::new();
    for path in documents() {
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let folder = path.parent().expect("a document is in a folder");
        let code_free = without_code(&text);
        let links = code_free.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(link, _)| link);
        for link in links.filter(|link| !link.contains("://")) {
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() { path.clone() } else { folder.join(file) };
            let found = target.exists();
            let is_document = target.extension().is_some_and(|extension| extension == "md");
            let has_anchor =
                || fs::read_to_string(&target).is_ok_and(|text| anchors(&text).contains(&anchor.to_owned()));
            if !found || (is_document && !anchor.is_empty() && !has_anchor()) {
                faults.push(format!("{}: `{link}` leads nowhere", path.display()));
            }
        }
    }
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}

#[test]
fn anchors_are_those_of_github() {
    let text = "# One: two\n\n```sh\n# no heading\n```\n\n## `[listen]`\n### `pools.wait_room`, as a table\n";
    assert_eq!(anchors(text), ["one-two", "listen", "poolswait_room-as-a-table"]);
}

#[test]
fn what_is_no_prose_is_left_out() {
    let text = "# A heading. Here\n\nOne two\nthree. Four `five six. seven`!\n\n| a | table. |\n\n```sh\na command. b\n```\n\
                - an item\n- [a link](docs/x.md) e.g. this.\n1. the first\n\n\
                <!-- From here on this file is generated -->\nNo more.";
    let counts: Vec<usize> =
        paragraphs(text).iter().flat_map(|p| sentences(&plain(p))).map(|(words, _)| words).collect();
    assert_eq!(counts, [3, 2, 2, 4, 2]);
}

#[test]
fn figures_are_by_nearest_rank() {
    let of = figures(&mut [5, 1, 4, 2, 3, 6, 7, 8, 9, 10]).expect("there are sentences");
    assert_eq!((of.median, of.p90, of.longest, of.sentences), (5, 9, 10, 10));
    assert!(figures(&mut []).is_none());
}
