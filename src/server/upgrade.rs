//! Replacing the binary without a closed port: a new process waits on a Unix socket for the listening sockets of the running one,
//! which sends them on SIGQUIT and then drains. pingora does the handing over; here is where they meet, and that nobody else
//! can be there. Linux only.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use pingora::server::Server;

use super::StartError;
use super::handover::Awaited;
use forebay_fleet::membership::drains::DrainByHand;

/// The place where old and new meet. By default a socket for each listen address in a folder that only this user can enter:
/// whoever listens there is given the ports.
#[derive(Clone, Debug)]
pub(super) struct Meeting {
    socket: PathBuf,
    /// The folder to be made, and to be ours; none where the operator has chosen the place.
    folder: Option<PathBuf>,
}

impl Meeting {
    pub(super) fn new(configured: Option<&Path>, address: SocketAddr) -> Meeting {
        if let Some(socket) = configured {
            return Meeting { socket: socket.to_owned(), folder: None };
        }
        let runtime = std::env::var_os("XDG_RUNTIME_DIR").filter(|folder| Path::new(folder).is_absolute());
        let folder = match runtime {
            Some(folder) => PathBuf::from(folder).join("forebay"),
            None => std::env::temp_dir().join(format!("forebay-{}", own_uid().unwrap_or(u32::MAX))),
        };
        let name = address.to_string().replace([':', '[', ']', '%'], "-");
        Meeting { socket: folder.join(format!("upgrade-{name}.sock")), folder: Some(folder) }
    }

    /// The path of the socket.
    pub(super) fn socket(&self) -> &Path {
        &self.socket
    }

    /// Makes sure that the place is there, and ours alone.
    ///
    /// # Errors
    /// It cannot be made, or others can enter it.
    pub(super) fn prepare(&self) -> io::Result<()> {
        let Some(folder) = &self.folder else { return Ok(()) };
        match std::fs::DirBuilder::new().mode(0o700).create(folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let found = std::fs::symlink_metadata(folder)?;
        let ours = found.is_dir() && found.uid() == own_uid()? && found.mode() & 0o077 == 0;
        let reason = format!("{} is not a folder of this user alone", folder.display());
        if ours { Ok(()) } else { Err(io::Error::other(reason)) }
    }

    /// Returns whether a new process waits there. A file that a crash left behind is nobody.
    pub(super) fn is_attended(&self) -> bool {
        self.prepare().is_ok()
            && std::fs::read_to_string("/proc/net/unix").is_ok_and(|table| listens(&table, &self.socket))
    }
}

/// Waits for the listening sockets of the process that has them, and returns what is drained by hand there. Ends the process if
/// nobody comes.
pub(super) fn take_over(server: &mut Server, meeting: &Meeting) -> Vec<DrainByHand> {
    let socket = meeting.socket().display();
    tracing::info!(%socket, "waiting for the listening sockets: send SIGQUIT to the process that has them");
    // First, since the old process tells them before it hands over.
    let drains = Awaited::listen(meeting.socket());
    let waiting = PatienceEnds::after(GIVES_UP);
    server.bootstrap();
    drop(waiting);
    drains.drains()
}

/// The time after which it is said that nobody hands over. pingora looks six times more, a second apart, and then ends the process
/// without a word that an operator could use.
const GIVES_UP: Duration = Duration::from_millis(5500);

/// Says that nobody hands over, unless it is dropped before.
struct PatienceEnds {
    _kept: mpsc::Sender<()>,
}

impl PatienceEnds {
    fn after(limit: Duration) -> PatienceEnds {
        let (kept, over) = mpsc::channel();
        let told = move || {
            if over.recv_timeout(limit) == Err(mpsc::RecvTimeoutError::Timeout) {
                tracing::warn!(
                    "nobody hands the listening sockets over, giving up: start again with --upgrade, and within five seconds \
                     send SIGQUIT to the process that has them"
                );
            }
        };
        // Without a thread the process ends all the same, with less said.
        _ = std::thread::Builder::new().name("patience".into()).spawn(told);
        PatienceEnds { _kept: kept }
    }
}

/// Returns whether the kernel's table of Unix sockets has one that listens at this path.
fn listens(table: &str, path: &Path) -> bool {
    // Num RefCount Protocol Flags Type St Inode Path; the flag is __SO_ACCEPTCON.
    let listening = table.lines().filter(|line| line.split_ascii_whitespace().nth(3) == Some("00010000"));
    let mut paths = listening.filter_map(|line| line.find('/').map(|at| &line[at..]));
    paths.any(|at| Path::new(at) == path)
}

fn own_uid() -> io::Result<u32> {
    std::fs::metadata("/proc/self").map(|process| process.uid())
}

/// Makes sure that an address can be bound, as pingora would retry for 30 s and then live on without the listener; a port of
/// 0 becomes a free one. True where it is in use, and so may be handed over.
pub(super) fn reserve(address: SocketAddr, key: &'static str, upgrade: bool) -> Result<(SocketAddr, bool), StartError> {
    match TcpListener::bind(address).and_then(|listener| listener.local_addr()) {
        Ok(bound) => Ok((bound, false)),
        Err(error) if upgrade && error.kind() == io::ErrorKind::AddrInUse => Ok((address, true)),
        Err(error) => Err(StartError::Bind { address, key, error }),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn each_address_has_a_place_of_its_own() {
        let of = |address: &str| Meeting::new(None, address.parse().unwrap()).socket;
        assert_ne!(of("127.0.0.1:8080"), of("127.0.0.1:8081"));
        assert_eq!(of("[::1]:8080").file_name().unwrap(), "upgrade----1--8080.sock");
        let chosen = Meeting::new(Some(Path::new("/run/x.sock")), "127.0.0.1:1".parse().unwrap());
        assert_eq!(chosen.socket(), Path::new("/run/x.sock"));
    }

    #[test]
    fn a_place_is_attended_while_somebody_listens_there() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("upgrade.sock");
        let meeting = Meeting { socket: socket.clone(), folder: None };
        assert!(!meeting.is_attended());
        let listener = UnixListener::bind(&socket).unwrap();
        assert!(meeting.is_attended());
        drop(listener);
        assert!(socket.exists() && !meeting.is_attended(), "what a crash leaves behind");
    }

    #[test]
    fn a_folder_that_others_can_enter_is_no_place_to_meet() {
        let above = tempfile::tempdir().unwrap();
        let folder = above.path().join("forebay");
        let meeting = Meeting { socket: folder.join("upgrade.sock"), folder: Some(folder.clone()) };
        meeting.prepare().unwrap();
        meeting.prepare().unwrap();
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert!(meeting.prepare().is_err());
    }
}
