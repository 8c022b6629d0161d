//! Gives a release build the commit that it was made from, for `forebay --version`. Asks git, and nothing else; without git,
//! or outside of a checkout, the version stands alone. `FOREBAY_COMMIT` says the commit where there is no `.git` (a container).

use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=FOREBAY_COMMIT");
    let version = std::env::var("CARGO_PKG_VERSION").unwrap_or_default();
    let said = std::env::var("FOREBAY_COMMIT").ok().filter(|commit| is_commit(commit));
    // A build script that runs again has every test of the package built again. So a debug build does not follow the commits.
    let is_release = std::env::var("PROFILE").is_ok_and(|profile| profile == "release");
    let version = match said.or_else(|| if is_release { commit_of_checkout() } else { None }) {
        Some(commit) => format!("{version} ({commit})"),
        None => version,
    };
    println!("cargo::rustc-env=FOREBAY_VERSION={version}");
}

/// Returns the commit that is checked out, if this folder is the root of a checkout.
fn commit_of_checkout() -> Option<String> {
    let root = std::env::var("CARGO_MANIFEST_DIR").ok()?;
    // An archive that was unpacked inside somebody else's checkout is not that checkout's commit.
    let top = git(&["rev-parse", "--show-toplevel"])?;
    if Path::new(&top).canonicalize().ok()? != Path::new(&root).canonicalize().ok()? {
        return None;
    }
    // HEAD changes with a checkout, its log with a commit. A file that is not there would have the script run each time.
    for file in ["HEAD", "logs/HEAD"] {
        if let Some(path) = git(&["rev-parse", "--git-path", file]).filter(|path| Path::new(path).exists()) {
            println!("cargo::rerun-if-changed={path}");
        }
    }
    git(&["rev-parse", "--short=12", "HEAD"]).filter(|commit| is_commit(commit))
}

/// Returns what git answers, without the line's end; nothing where it fails or is not installed.
fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim_end().to_owned())
}

fn is_commit(text: &str) -> bool {
    (7..=64).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}
