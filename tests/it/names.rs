//! Host names of a test's own: a mount namespace in which `/etc/hosts` is a file of the test's, so that the resolver of the system
//! (getaddrinfo) finds there what the test writes. Where this host allows no such namespace, whoever asks is told so.

use std::ffi::OsStr;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use tempfile::TempDir;

use crate::harness::binary;

/// Enters the namespace and becomes the command that follows the two files.
const ENTER: &str =
    "mount --bind \"$1\" /etc/hosts && mount --bind \"$2\" /etc/nsswitch.conf && shift 2 && exec \"$@\"";

/// Bytes of the file of names, whatever it says: the rest is empty lines.
const FILE: usize = 16 * 1024;

/// The names that a Forebay finds.
#[derive(Clone)]
pub(crate) struct Names {
    dir: Arc<TempDir>,
    within: &'static [&'static str],
}

impl Names {
    /// No names, if this host allows names of a test's own.
    pub(crate) fn new() -> Option<Names> {
        let dir = Arc::new(TempDir::new().unwrap());
        std::fs::write(dir.path().join("hosts"), "").unwrap();
        std::fs::write(dir.path().join("nsswitch.conf"), "hosts: files\n").unwrap();
        // As root, or as an ordinary user who is root within.
        for within in [&[][..], &["--map-root-user"]] {
            let names = Names { dir: Arc::clone(&dir), within };
            let entered = names.entering(OsStr::new("true")).stderr(Stdio::null()).status();
            if entered.is_ok_and(|status| status.success()) {
                return Some(names);
            }
        }
        println!("skipped: this host allows no mount namespace (unshare --mount needs root or user namespaces)");
        None
    }

    /// A name that has these addresses of IPv4, and no others.
    pub(crate) fn set(&self, name: &str, addresses: impl IntoIterator<Item = [u8; 4]>) {
        let line = |[a, b, c, d]: [u8; 4]| format!("{a}.{b}.{c}.{d} {name}\n");
        // In place: what is mounted is this file, and not its name. In one write over what was there: a file that is cut to nothing
        // first has no name at all for whoever reads it in between.
        let mut text: String = addresses.into_iter().map(line).collect();
        assert!(text.len() < FILE, "{} bytes of names", text.len());
        text.push_str(&"\n".repeat(FILE - text.len()));
        let file = std::fs::OpenOptions::new().write(true).open(self.hosts()).unwrap();
        file.write_all_at(text.as_bytes(), 0).unwrap();
    }

    fn hosts(&self) -> PathBuf {
        self.dir.path().join("hosts")
    }

    pub(crate) fn command(&self) -> Command {
        self.entering(&binary())
    }

    fn entering(&self, program: &OsStr) -> Command {
        let file = |name: &str| -> PathBuf { Path::new(self.dir.path()).join(name) };
        let mut command = Command::new("unshare");
        command.arg("--mount").args(self.within);
        command.args(["sh", "-c", ENTER, "sh"]).arg(file("hosts")).arg(file("nsswitch.conf")).arg(program);
        command
    }
}
