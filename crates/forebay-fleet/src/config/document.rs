//! Writes the tables of `docs/configuration.md` from the entries of the keys, and holds the file to them. The text above the
//! tables is written by hand, in that file. `UPDATE_GOLDEN=1 cargo test -p forebay-fleet --lib document` rewrites the tables.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use super::load_text;
use super::model::{ClientKey, Config, KeyConfig};
use super::schema::SCHEMA;
use forebay_core::toml_reader::{DefaultText, Key, Keys, Reload, Section};

/// The line after which the document is generated.
const MARK: &str =
    "<!-- From here on this file is generated: UPDATE_GOLDEN=1 cargo test -p forebay-fleet --lib document -->\n";

fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/configuration.md")
}

/// Returns the text above the mark, and what follows it.
fn parts() -> (String, String) {
    let text = std::fs::read_to_string(path()).unwrap();
    let (above, below) = text.split_once(MARK).expect("the document has the mark");
    (above.to_owned(), below.to_owned())
}

/// Returns the sections, without the file itself.
fn sections() -> impl Iterator<Item = &'static Section> {
    SCHEMA.sections.iter().copied().filter(|section| !section.name.is_empty())
}

fn tables() -> String {
    let mut text = String::new();
    for section in sections() {
        let (level, title) = if section.head.starts_with('[') { ("##", section.head) } else { ("###", section.name) };
        let _ = write!(text, "\n{level} `{title}`\n\n{}", section.about.trim());
        if level == "###" && section.name.contains('.') {
            let _ = write!(text, " It is written as `{}`.", section.form);
        }
        text.push_str("\n\n| key | takes | default | on reload | what it does |\n|---|---|---|---|---|\n");
        section.keys.iter().for_each(|key| row(&mut text, key));
    }
    text
}

fn row(text: &mut String, key: &Key) {
    let default = match (key.default)() {
        DefaultText::Written(value) => format!("`{value}`"),
        DefaultText::Words(words) => words.to_owned(),
    };
    let reload = match key.reload {
        Reload::AtOnce => "at once",
        Reload::Restart => "restart",
    };
    let cells =
        [format!("`{}`", key.name), linked((key.takes)()), default, reload.to_owned(), linked(key.about.to_owned())];
    let cells = cells.map(|cell| cell.trim().replace('|', "\\|"));
    let _ = writeln!(text, "| {} |", cells.join(" | "));
}

/// Makes links of the names of sections in `text`.
fn linked(mut text: String) -> String {
    for section in sections() {
        let title = if section.head.starts_with('[') { section.head } else { section.name };
        let anchor: String = title.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
        text = text.replace(&format!("`{title}`"), &format!("[`{title}`](#{anchor})"));
    }
    text
}

#[test]
fn the_document_has_every_key() {
    let (above, below) = parts();
    let tables = tables();
    if std::env::var_os("UPDATE_GOLDEN").is_some_and(|value| value == "1") {
        // whole at once: the other tests may be reading it
        let written = path().with_extension("new");
        std::fs::write(&written, above + MARK + &tables).unwrap();
        std::fs::rename(&written, path()).unwrap();
        return;
    }
    let differs = below.lines().zip(tables.lines()).find(|(old, new)| old != new);
    assert!(
        below == tables,
        "docs/configuration.md is not what the entries say; UPDATE_GOLDEN=1 cargo test -p forebay-fleet --lib document writes it.\n\
         The first row that differs, in the file and by the entries: {differs:#?}"
    );
}

#[test]
fn every_key_is_described() {
    for key in sections().flat_map(|section| section.keys) {
        assert!(key.about.trim().ends_with('.'), "{}: the description is no sentence", key.full);
        assert!(!(key.takes)().is_empty(), "{}: what it takes is not said", key.full);
        let said = match (key.default)() {
            DefaultText::Written(value) => !value.is_empty(),
            DefaultText::Words(words) => !words.is_empty(),
        };
        assert!(said, "{}: the default is not said", key.full);
    }
}

#[test]
fn every_default_of_the_document_reads_back_as_the_default() {
    let pool = "model = \"m\"\nbackends = [{ url = \"http://a\" }]\n";
    let mut text = String::new();
    let whole =
        |section: &&Section| section.head.starts_with('[') && !matches!(section.name, "pools.arms" | "clients.keys");
    for section in sections().filter(whole) {
        let _ = write!(text, "{}\n{}", section.head, if section.name == "pools" { pool } else { "" });
        for key in section.keys {
            if let DefaultText::Written(value) = (key.default)() {
                let _ = writeln!(text, "{} = {value}", key.name);
            }
        }
    }
    let read = |text: &str| {
        let loaded = load_text(Path::new("f.toml"), text, &|_| None);
        loaded.unwrap_or_else(|report| panic!("{}\n{text}", report.render(false))).config
    };
    let written = read(&text);
    assert_eq!(written, read(&format!("[[pools]]\n{pool}")));
    assert_eq!(written, Config { pools: written.pools.clone(), ..Config::default() });
}

#[test]
fn a_client_key_with_the_defaults_of_the_document_may_use_everything() {
    let defaults = KeyConfig::SECTION.keys.iter().filter_map(|key| match (key.default)() {
        DefaultText::Written(value) => Some(format!("{} = {value}\n", key.name)),
        DefaultText::Words(_) => None,
    });
    let pool = "[[pools]]\nmodel = \"m\"\nbackends = [{ url = \"http://a\" }]\n";
    let key = "[[clients.keys]]\nname = \"k\"\nkey_env = \"K\"\n";
    let text = format!("{pool}{key}{}", defaults.collect::<String>());
    let loaded = load_text(Path::new("f.toml"), &text, &|_| Some("secret".to_owned()));
    let keys = loaded.unwrap_or_else(|report| panic!("{}", report.render(false))).config.clients.keys.unwrap();
    assert_eq!(keys, [ClientKey::unlimited("k", keys[0].sha256)]);
}

#[test]
fn the_examples_of_the_document_are_right() {
    let (above, _) = parts();
    let examples: Vec<&str> = above.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert!(!examples.is_empty());
    for example in examples {
        if let Err(report) = load_text(Path::new("docs/configuration.md"), example, &|_| None) {
            panic!("{}", report.render(false));
        }
    }
}
