//! Circles of imports. In every folder of every crate, whoever is imported imports back neither directly nor by way of others:
//! files beside each other, folders beside each other, and files beside folders. A circle is spelt out, with the line of each
//! import in it.
//!
//! A folder's own file (`mod.rs`, `lib.rs`) and what is in the folder may know each other: they are one subject. A name that the
//! own file hands on by `use` counts as an import of where the name is from.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write as _;

use super::{TREES, code_only, is_test_file, line_of, read, report, sources, without_tests};

/// A module's way from the root of its crate: `["proxy", "record"]`. The root's own is empty.
type Way = Vec<String>;

/// The modules of one crate: of each its file, and the code in it that is no test.
struct Modules(BTreeMap<Way, (String, String)>);

/// The imports of one folder: who imports whom, and the first place where.
type Imports = BTreeMap<(String, String), String>;

impl Modules {
    /// The modules of the crate at `src`, of files with their sources.
    fn of(src: &str, files: &[(String, String)]) -> Modules {
        let module = |(path, source): &(String, String)| {
            let mut way: Way = path.strip_prefix(src)?.strip_suffix(".rs")?.split('/').map(str::to_owned).collect();
            if way.last().is_some_and(|last| last == "mod" || (way.len() == 1 && last == "lib")) {
                way.pop();
            }
            Some((way, (path.clone(), without_tests(&code_only(source)))))
        };
        Modules(files.iter().filter(|(path, _)| !is_test_file(path)).filter_map(module).collect())
    }

    /// Follows a path that `from` names: the module that it leads to, and the name in that module.
    fn follow<'a>(&self, from: &[String], path: &'a [String]) -> (Way, Option<&'a str>) {
        let mut at = from.to_vec();
        for part in path {
            match part.as_str() {
                "crate" => at.clear(),
                "self" => {}
                "super" => drop(at.pop()),
                name => {
                    at.push(name.to_owned());
                    if !self.0.contains_key(&at) {
                        at.pop();
                        return (at, Some(name));
                    }
                }
            }
        }
        (at, None)
    }

    /// The module whose `name` the module at `way` hands on.
    fn handed_on(&self, way: &[String], name: &str) -> Option<Way> {
        let code = &self.0.get(way)?.1;
        let uses = code.match_indices("use ").filter(|(at, _)| !code[..*at].ends_with(is_plain));
        let paths = uses.flat_map(|(at, word)| leaves(&code[at + word.len()..]));
        let mut named = paths.filter(|path| path.last().is_some_and(|last| last == name));
        named.find_map(|path| Some(self.follow(way, &path).0).filter(|to| to != way))
    }

    /// Who imports whom, by the folder in which both are, or the folders that hold them.
    fn imports(&self) -> BTreeMap<Way, Imports> {
        let mut folders: BTreeMap<Way, Imports> = BTreeMap::new();
        for (from, (file, code)) in &self.0 {
            for (at, path) in paths(code) {
                let (mut to, name) = self.follow(from, &path);
                if let Some(name) = name.filter(|_| from.starts_with(&to)) {
                    to = self.handed_on(&to, name).unwrap_or(to);
                }
                let shared = from.iter().zip(&to).take_while(|(one, other)| one == other).count();
                // Of a folder's own file and what is in the folder, one way is the beginning of the other.
                if let (Some(one), Some(other)) = (from.get(shared), to.get(shared)) {
                    let imports = folders.entry(from[..shared].to_vec()).or_default();
                    let place = || format!("{file}:{}", line_of(code, at));
                    imports.entry((one.clone(), other.clone())).or_insert_with(place);
                }
            }
        }
        folders
    }
}

fn is_plain(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The paths that `code` names from `crate`, `super` or `self`, and where each begins.
fn paths(code: &str) -> Vec<(usize, Vec<String>)> {
    let starts = ["crate::", "super::", "self::"].into_iter().flat_map(|root| code.match_indices(root));
    let begins = starts.filter(|(at, _)| !code[..*at].ends_with(|c| is_plain(c) || "$:".contains(c)));
    begins.flat_map(|(at, _)| leaves(&code[at..]).into_iter().map(move |path| (at, path))).collect()
}

/// The paths in the tree at the start of `code`: of `a::{b, c::d}` these are `a::b` and `a::c::d`.
fn leaves(code: &str) -> Vec<Vec<String>> {
    let (mut rest, mut found) = (code, Vec::new());
    collect_leaves(&mut rest, &[], &mut found);
    found
}

fn collect_leaves(rest: &mut &str, before: &[String], found: &mut Vec<Vec<String>>) {
    let mut path = before.to_vec();
    loop {
        *rest = rest.trim_start();
        if let Some(group) = rest.strip_prefix('{') {
            *rest = group;
            while !rest.is_empty() && !rest.starts_with('}') {
                collect_leaves(rest, &path, found);
                // Behind a name comes another name for it, or a comma, or nothing.
                *rest = &rest[rest.find([',', '}']).unwrap_or(rest.len())..];
                *rest = rest.strip_prefix(',').unwrap_or(*rest).trim_start();
            }
            *rest = rest.strip_prefix('}').unwrap_or(*rest);
            return;
        }
        let end = rest.find(|c| !is_plain(c)).unwrap_or(rest.len());
        path.extend((end > 0).then(|| rest[..end].to_owned()));
        match rest[end..].strip_prefix("::") {
            Some(more) if end > 0 => *rest = more,
            _ => {
                *rest = &rest[end..];
                break;
            }
        }
    }
    found.push(path);
}

/// The shortest circle of each module that is in one, from its first name on: `["a", "b"]` where each imports the other.
fn circles(imports: &Imports) -> BTreeSet<Vec<&str>> {
    let through = imports.keys().filter_map(|(from, _)| circle_through(imports, from));
    through
        .map(|mut circle| {
            let first = (0..circle.len()).min_by_key(|at| circle[*at]).unwrap_or(0);
            circle.rotate_left(first);
            circle
        })
        .collect()
}

fn circle_through<'a>(imports: &'a Imports, start: &'a str) -> Option<Vec<&'a str>> {
    let mut came_from: BTreeMap<&str, &str> = BTreeMap::new();
    let mut queue = VecDeque::from([start]);
    while let Some(at) = queue.pop_front() {
        for (_, to) in imports.keys().filter(|(from, _)| from == at) {
            if to == start {
                let back = std::iter::successors(Some(at), |name| came_from.get(name).copied());
                let mut circle: Vec<&str> = back.collect();
                circle.reverse();
                return Some(circle);
            }
            if !came_from.contains_key(to.as_str()) {
                came_from.insert(to, at);
                queue.push_back(to);
            }
        }
    }
    None
}

/// The circles of the crate at `src`, spelt out.
fn faults(src: &str, files: &[(String, String)]) -> Vec<String> {
    let mut out = Vec::new();
    for (folder, imports) in Modules::of(src, files).imports() {
        for circle in circles(&imports) {
            let mut text = format!("{src}{}: `{}`", folder.join("/"), circle[0]);
            for (at, from) in circle.iter().enumerate() {
                let to = circle[(at + 1) % circle.len()];
                let which = if at == 0 { "" } else { ", which" };
                let place = &imports[&((*from).to_owned(), to.to_owned())];
                let _ = write!(text, "{which} imports `{to}` ({place})");
            }
            text.push_str("; move what they share below them, or hand it over as an argument");
            out.push(text);
        }
    }
    out
}

#[test]
fn no_modules_import_each_other_in_a_circle() {
    let files: Vec<(String, String)> = sources().into_iter().map(|path| (path.clone(), read(&path))).collect();
    report(&TREES.iter().flat_map(|tree| faults(tree.src, &files)).collect::<Vec<_>>());
}

// ---- the check itself ----------------------------------------------------------------------------------------------

fn faults_of(files: &[(&str, &str)]) -> Vec<String> {
    let files: Vec<_> = files.iter().map(|(path, source)| (format!("src/{path}"), (*source).to_owned())).collect();
    faults("src/", &files)
}

#[test]
fn a_circle_is_spelt_out_with_its_lines() {
    let found = faults_of(&[
        ("lib.rs", "pub mod a; pub mod b; pub mod c;"),
        ("a.rs", "//! x\nuse crate::b::{X, y::Z as W};\nuse crate::d;"),
        ("b/mod.rs", "mod y;"),
        ("b/y.rs", "\n\nfn f() { crate::c::g() }"),
        ("c.rs", "use super::a;"),
        ("d.rs", "use std::fmt;"),
    ]);
    assert_eq!(found.len(), 1, "{found:?}");
    let text = "src/: `a` imports `b` (src/a.rs:2), which imports `c` (src/b/y.rs:3), which imports `a` (src/c.rs:1);";
    assert!(found[0].starts_with(text), "{}", found[0]);
}

#[test]
fn each_folder_is_looked_at_and_each_circle_in_it_told() {
    let found = faults_of(&[
        ("lib.rs", ""),
        ("f/mod.rs", ""),
        ("f/a.rs", "use super::b::X;"),
        ("f/b.rs", "use crate::f::{a::Y, c::{self, Z}};"),
        ("f/c/mod.rs", "use crate::f::b::X;"),
        ("f/d.rs", "use super::a::Y;"),
    ]);
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(
        found[0].starts_with("src/f: `a` imports `b`") && found[1].starts_with("src/f: `b` imports `c`"),
        "{found:?}"
    );
}

#[test]
fn what_a_folders_own_file_hands_on_is_followed() {
    let with = |own: &'static str| {
        faults_of(&[("lib.rs", ""), ("f/mod.rs", own), ("f/a.rs", "use super::B;"), ("f/b.rs", "use super::a;")])
    };
    assert_eq!(with("pub(crate) use self::b::{A, B};").len(), 1);
    assert_eq!(with("mod b;\npub use b::B;").len(), 1);
    assert_eq!(with("pub struct B;").len(), 0);
}

#[test]
fn a_folder_and_its_own_file_may_know_each_other_and_tests_whom_they_like() {
    let test = "#[cfg(test)]\nmod tests { use crate::f::b; }";
    let found = faults_of(&[
        ("lib.rs", "use f::X; mod f;"),
        ("f.rs", "mod a; mod b; use self::a::A;"),
        ("f/a.rs", &format!("use super::X;\n{test}")),
        ("f/b.rs", "use super::a::A;\npub(in crate::f) struct B;"),
        ("f/tests.rs", "use super::{a, b};"),
    ]);
    assert!(found.is_empty(), "{found:?}");
}
