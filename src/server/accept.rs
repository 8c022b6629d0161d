//! A listener as a service of pingora's, with an accept of our own. pingora's goes on at once after every error but EMFILE: out of
//! other things it would take a core and fill the log. Here what concerns one connection is passed over, and what concerns all is
//! waited for. pingora keeps the table of listening sockets, which an upgrade hands over.
//!
//! Hot path: one system call a connection, and a task.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use pingora::server::{ListenFds, ShutdownWatch};
use pingora::services::Service;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use super::listener::{HyperApp, ServiceFor};
use forebay_core::clock::Clock;
use forebay_fleet::telemetry::throttle::Throttle;

/// The wait after an error that concerns every connection. Short, since what is missing may be back at any time.
const PAUSE: Duration = Duration::from_millis(100);
/// Connections that wait for their accept, as pingora has it; the kernel has a limit of its own (`net.core.somaxconn`).
const BACKLOG: u32 = 65_535;
/// Attempts to listen, and the time between two. The address was free just now.
const ATTEMPTS: u32 = 30;
const BETWEEN: Duration = Duration::from_secs(1);

/// Returns whether an error of accept(2) is about the one connection that would have come. Linux gives the errors that came on the
/// new socket before it was accepted.
fn is_of_one(error: &io::Error) -> bool {
    let Some(code) = error.raw_os_error() else { return false };
    matches!(
        Errno::from_raw(code),
        Errno::ECONNABORTED
            | Errno::ECONNRESET
            | Errno::EINTR
            | Errno::EAGAIN
            | Errno::EPERM
            | Errno::EPROTO
            | Errno::ENOPROTOOPT
            | Errno::EOPNOTSUPP
            | Errno::ENETDOWN
            | Errno::ENETUNREACH
            | Errno::EHOSTDOWN
            | Errno::EHOSTUNREACH
            | Errno::ENONET
            | Errno::ETIMEDOUT
    )
}

/// Waits for the next connection. Never returns while there is none, and never takes a core meanwhile.
async fn next<T, A: Future<Output = io::Result<T>>>(
    mut accept: impl FnMut() -> A,
    (clock, warnings): (&Clock, &Throttle),
) -> T {
    loop {
        match accept().await {
            Ok(accepted) => return accepted,
            Err(error) if is_of_one(&error) => tracing::debug!(%error, "a connection ended before it was accepted"),
            Err(error) => {
                if let Some(held_back) = warnings.pass(clock.now()) {
                    tracing::warn!(%error, held_back, "connections cannot be accepted: new clients wait until they can");
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// One listener and what serves its connections.
pub(super) struct Listening<F> {
    name: &'static str,
    app: Arc<HyperApp<F>>,
    address: SocketAddr,
    threads: usize,
    clock: Clock,
}

impl<F> Listening<F> {
    pub(super) fn new(
        (name, address): (&'static str, SocketAddr),
        app: HyperApp<F>,
        threads: usize,
        clock: Clock,
    ) -> Listening<F> {
        Listening { name, app: Arc::new(app), address, threads, clock }
    }
}

#[async_trait]
impl<F: ServiceFor> Service for Listening<F> {
    async fn start_service(&mut self, fds: Option<ListenFds>, mut shutdown: ShutdownWatch, _: usize) {
        #[cfg(tokio_unstable)]
        super::loops::watch(self.name);
        let listener = match listener(self.address, fds).await {
            Ok(listener) => listener,
            // Whoever starts the process waits for the listener, and says that it does not come.
            Err(error) => return tracing::error!(address = %self.address, %error, "cannot listen"),
        };
        let warnings = Throttle::new();
        loop {
            let (stream, client) = tokio::select! {
                accepted = next(|| listener.accept(), (&self.clock, &warnings)) => accepted,
                _ = shutdown.wait_for(|stop| *stop) => return,
            };
            take(&self.app, stream, client, &shutdown);
        }
    }

    fn name(&self) -> &str {
        self.name
    }

    fn threads(&self) -> Option<usize> {
        Some(self.threads)
    }
}

fn take<F: ServiceFor>(app: &Arc<HyperApp<F>>, stream: TcpStream, client: SocketAddr, shutdown: &ShutdownWatch) {
    // Fails for a client that is gone, which its first read shows as well.
    _ = stream.set_nodelay(true);
    app.take(stream, client, shutdown);
}

/// Listens at an address, on the socket that the old process has handed over if it has.
async fn listener(address: SocketAddr, fds: Option<ListenFds>) -> io::Result<TcpListener> {
    let key = address.to_string();
    let given = fds.as_ref().and_then(|fds| fds.lock().get(&key).copied());
    let listener = match given {
        Some(given) => TcpSocket::from_std_stream(owned(given)?.into()).listen(BACKLOG)?,
        None => bind(address).await?,
    };
    if let Some(fds) = fds {
        fds.lock().add(key, listener.as_raw_fd());
    }
    Ok(listener)
}

async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let mut left = ATTEMPTS;
    loop {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.set_reuseaddr(true)?;
        match socket.bind(address) {
            Ok(()) => return socket.listen(BACKLOG),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && left > 1 => {
                left -= 1;
                tokio::time::sleep(BETWEEN).await;
            }
            Err(error) => return Err(error),
        }
    }
}

/// Makes a descriptor that pingora keeps as a number ours. Only the kernel can tell that such a number is an open descriptor: it
/// is sent through a socket to ourselves, and what arrives has an owner.
fn owned(number: RawFd) -> io::Result<OwnedFd> {
    let (from, to) = UnixDatagram::pair()?;
    let numbers = [number];
    let sent = [ControlMessage::ScmRights(&numbers)];
    sendmsg::<()>(from.as_raw_fd(), &[IoSlice::new(b"x")], &sent, MsgFlags::empty(), None)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut received = RecvAncillaryBuffer::new(&mut space);
    recvmsg(&to, &mut [IoSliceMut::new(&mut [0])], &mut received, RecvFlags::CMSG_CLOEXEC)?;
    let mut fds = received.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    let owned = fds.next().and_then(|mut fds| fds.next()).ok_or(io::ErrorKind::InvalidData)?;
    // The one that came would keep the port open after we have let go of it.
    nix::unistd::close(number)?;
    Ok(owned)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::net::TcpStream as StdStream;
    use std::os::fd::IntoRawFd;

    use super::*;
    use forebay_core::clock::ManualClock;

    const SHORTAGES: [Errno; 7] = [
        Errno::EMFILE,
        Errno::ENFILE,
        Errno::ENOBUFS,
        Errno::ENOMEM,
        // Of a socket that is none any more: for ever, so at no cost.
        Errno::EBADF,
        Errno::EINVAL,
        Errno::ENOTSOCK,
    ];

    async fn calls_within(limit: Duration, errno: Errno) -> u32 {
        let calls = Cell::new(0);
        let (hand, warnings) = (ManualClock::default(), Throttle::new());
        let accept = || async {
            calls.set(calls.get() + 1);
            assert!(calls.get() < 10_000, "{errno} is asked for again and again");
            io::Result::<()>::Err(io::Error::from_raw_os_error(errno as i32))
        };
        let clock = hand.clock();
        assert!(tokio::time::timeout(limit, next(accept, (&clock, &warnings))).await.is_err());
        calls.get()
    }

    #[tokio::test(start_paused = true)]
    async fn what_concerns_every_connection_is_waited_for() {
        for errno in SHORTAGES {
            let calls = calls_within(Duration::from_secs(10), errno).await;
            assert!((50..=101).contains(&calls), "{errno}: {calls} calls in ten seconds");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_concerns_one_connection_costs_the_next_no_time() {
        for errno in [Errno::ECONNABORTED, Errno::EPROTO, Errno::EPERM, Errno::EHOSTUNREACH] {
            let calls = Cell::new(0);
            let accept = || async {
                calls.set(calls.get() + 1);
                if calls.get() < 100 { Err(io::Error::from_raw_os_error(errno as i32)) } else { Ok(calls.get()) }
            };
            let (hand, warnings) = (ManualClock::default(), Throttle::new());
            let clock = hand.clock();
            let accepted = tokio::time::timeout(PAUSE / 2, next(accept, (&clock, &warnings))).await;
            assert_eq!(accepted, Ok(100), "{errno} is not waited for");
        }
    }

    #[tokio::test]
    async fn a_listening_socket_that_was_handed_over_is_ours_and_closes_with_us() {
        let (number, address) = {
            let old = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            old.set_nonblocking(true).unwrap();
            let address = old.local_addr().unwrap();
            (old.into_raw_fd(), address)
        };
        let socket = TcpSocket::from_std_stream(owned(number).unwrap().into());
        let listener = socket.listen(BACKLOG).unwrap();
        let client = tokio::task::spawn_blocking(move || StdStream::connect(address));
        listener.accept().await.unwrap();
        client.await.unwrap().unwrap();
        drop(listener);
        assert!(StdStream::connect(address).is_err(), "nobody holds it");
    }
}
