//! What one backend has shown of itself over TLS: whether it asks for our certificate, and whether it ever let us in. Python's servers
//! close a connection whose client certificate they refuse without saying why, after the handshake under TLS 1.3. So a close in place
//! of a first byte is a refusal where both are so, and a death where not.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio_rustls::rustls::SignatureScheme;
use tokio_rustls::rustls::client::ResolvesClientCert;
use tokio_rustls::rustls::sign::CertifiedKey;

/// A close by a server that asks for certificates and has never let us in.
#[derive(Debug, thiserror::Error)]
#[error("it asked for a client certificate and closed the connection")]
pub struct NotLetIn {
    /// It was shown one.
    pub shown: bool,
}

/// The manners of one backend, as it has shown them.
#[derive(Debug, Default)]
pub struct Meeting {
    asks: AtomicBool,
    let_in: AtomicBool,
    shows: bool,
}

impl Meeting {
    pub(super) fn new(shows: bool) -> Arc<Meeting> {
        Arc::new(Meeting { shows, ..Meeting::default() })
    }

    /// Something came of what the server had to say.
    pub fn let_in(&self) {
        if !self.let_in.load(Ordering::Relaxed) {
            self.let_in.store(true, Ordering::Relaxed);
        }
    }

    /// Returns whether a close now is a refusal.
    #[must_use]
    pub fn refuses(&self) -> bool {
        self.asks.load(Ordering::Relaxed) && !self.let_in.load(Ordering::Relaxed)
    }

    /// Returns the error that a close is.
    #[must_use]
    pub fn refusal(&self) -> io::Error {
        io::Error::other(NotLetIn { shown: self.shows })
    }

    /// Returns the error of a connection, or what it means.
    #[must_use]
    pub fn meaning_of(&self, error: io::Error) -> io::Error {
        use io::ErrorKind as Kind;
        let closed = matches!(
            error.kind(),
            Kind::UnexpectedEof | Kind::ConnectionReset | Kind::BrokenPipe | Kind::ConnectionAborted
        );
        if closed && self.refuses() { self.refusal() } else { error }
    }
}

/// Shows the certificate, if there is one, and notes that it was asked for.
#[derive(Debug)]
pub(super) struct Noting {
    pub(super) inner: Arc<dyn ResolvesClientCert>,
    pub(super) meeting: Arc<Meeting>,
}

impl ResolvesClientCert for Noting {
    fn resolve(&self, roots: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        // rustls asks this only where the server asked: from now on a close may be its refusal.
        self.meeting.asks.store(true, Ordering::Relaxed);
        self.inner.resolve(roots, schemes)
    }

    fn has_certs(&self) -> bool {
        self.inner.has_certs()
    }
}
