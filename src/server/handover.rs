//! The drains by hand on their way from the old process to the new one, beside the listening sockets: the new process listens on a
//! Unix socket next to the one of the upgrade, and the old one writes there what is drained before it hands its sockets over. Nothing
//! is written to disk. It must never hold an upgrade up: each side waits for a moment, and then goes on without.

use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use tokio::io::AsyncWriteExt;

use forebay_fleet::membership::drains::DrainByHand;

/// The time within which one side must have done its part.
const PATIENCE: Duration = Duration::from_secs(2);
/// The largest list of drains, in bytes: thousands of them.
const LARGEST: u64 = 4 << 20;

/// The socket's path, beside the one of the upgrade.
fn beside(upgrade: &Path) -> PathBuf {
    let mut path = upgrade.as_os_str().to_owned();
    path.push(".drains");
    PathBuf::from(path)
}

/// The new process's end.
pub(super) struct Awaited(mpsc::Receiver<io::Result<Vec<DrainByHand>>>);

impl Awaited {
    /// Listens for the old process. Errors are told by [`Awaited::drains`], since an upgrade goes on without.
    pub(super) fn listen(upgrade: &Path) -> Awaited {
        let (told, heard) = mpsc::channel();
        match open(&beside(upgrade)) {
            Ok(listener) => {
                let path = beside(upgrade);
                let listening = move || {
                    let read = listener.accept().and_then(|(stream, _)| read(&stream));
                    _ = std::fs::remove_file(path);
                    // Who waited for it has given up.
                    _ = told.send(read);
                };
                // Without a thread nobody tells, which is the same as an old process that says nothing.
                _ = std::thread::Builder::new().name("drains".into()).spawn(listening);
            }
            Err(error) => _ = told.send(Err(error)),
        }
        Awaited(heard)
    }

    /// Returns the old process's drains. Called once it has handed its listening sockets over, it waits for a moment only.
    pub(super) fn drains(self) -> Vec<DrainByHand> {
        let heard = self.0.recv_timeout(PATIENCE);
        match heard.unwrap_or_else(|_| Err(io::Error::other("it said nothing"))) {
            Ok(drains) => {
                if !drains.is_empty() {
                    tracing::info!(backends = ?names(&drains), "taken over: these backends stay drained by hand");
                }
                drains
            }
            Err(error) => {
                tracing::warn!(
                    %error,
                    "the old process did not tell which backends it has drained by hand: they take requests now; drain them again"
                );
                Vec::new()
            }
        }
    }
}

fn names(drains: &[DrainByHand]) -> Vec<&str> {
    drains.iter().map(|drain| drain.backend.as_str()).collect()
}

fn open(path: &Path) -> io::Result<UnixListener> {
    // What a crash left behind would be in the way.
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

fn read(stream: &std::os::unix::net::UnixStream) -> io::Result<Vec<DrainByHand>> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut text = Vec::new();
    stream.take(LARGEST).read_to_end(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}

/// Tells the new process which backends are drained by hand. Errors are logged: the upgrade goes on without.
pub(super) async fn tell(upgrade: &Path, drains: &[DrainByHand]) {
    let telling = async {
        let mut stream = tokio::net::UnixStream::connect(beside(upgrade)).await?;
        stream.write_all(&serde_json::to_vec(drains)?).await?;
        stream.shutdown().await
    };
    let told = tokio::time::timeout(PATIENCE, telling).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    if let Err(error) = told {
        let backends = names(drains);
        tracing::warn!(%error, ?backends, "the new process cannot be told which backends are drained by hand");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(backend: &str) -> DrainByHand {
        DrainByHand { backend: backend.to_owned(), words: "x".to_owned(), for_seconds: 1.0, left_seconds: Some(2.5) }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_new_process_hears_what_the_old_one_tells_also_over_what_a_crash_left() {
        let folder = tempfile::tempdir().unwrap();
        let upgrade = folder.path().join("upgrade.sock");
        drop(UnixListener::bind(beside(&upgrade)).unwrap());
        let awaited = Awaited::listen(&upgrade);
        let drains = vec![drain("a:1"), drain("unix:/x")];
        tell(&upgrade, &drains).await;
        let heard = tokio::task::spawn_blocking(|| awaited.drains()).await.unwrap();
        assert_eq!(heard, drains);
        assert!(!beside(&upgrade).exists());
    }

    #[tokio::test]
    async fn neither_side_waits_long_for_the_other() {
        let folder = tempfile::tempdir().unwrap();
        let upgrade = folder.path().join("upgrade.sock");
        tell(&upgrade, &[drain("a:1")]).await;
        assert_eq!(Awaited::listen(&upgrade).drains(), []);
        assert_eq!(Awaited::listen(Path::new("/nowhere/upgrade.sock")).drains(), []);
    }
}
