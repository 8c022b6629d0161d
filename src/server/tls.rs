//! TLS of the listeners: the handshake of a connection, under a deadline, with the certificate that is in force at that moment. A
//! reload replaces the certificate for new connections and touches no open one.
//!
//! Hot path: one atomic load a connection, none a read or a write.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use tokio::net::TcpStream;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::{TlsAcceptor, TlsStream};

use crate::upstream::write_stall::WriteStall;
use forebay_fleet::config::model::{Config, PickerTls};
use forebay_fleet::reach::Wire;
use forebay_fleet::telemetry::Telemetry;
use forebay_fleet::telemetry::live::CertificateRow;
use forebay_fleet::tls::ServerTls;

/// A client's connection.
pub(super) type Transport = Wire<WriteStall<TcpStream>>;

/// The time for a handshake where `listen.header_timeout` is off: a client that says nothing must not hold a connection for ever.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// TLS of one listener, as the configuration has it now.
#[derive(Clone, Default)]
pub(super) struct Secured(Arc<ArcSwapOption<ServerConfig>>);

impl Secured {
    fn set(&self, tls: Option<&ServerTls>) {
        self.0.store(tls.map(ServerTls::config));
    }

    /// Returns the settings of a connection's handshake; `None` where the listener speaks plain HTTP.
    pub(super) fn acceptor(&self) -> Option<TlsAcceptor> {
        self.0.load_full().map(TlsAcceptor::from)
    }
}

/// Does the handshake of a connection.
///
/// # Errors
/// The two sides do not agree, the client leaves, or it takes longer than `limit`.
pub(super) async fn handshake(
    acceptor: TlsAcceptor,
    stream: WriteStall<TcpStream>,
    limit: Option<Duration>,
) -> io::Result<Transport> {
    // On the heap: the state of a handshake is large, and every connection's task would carry room for it.
    let shaken = within(limit, Box::pin(acceptor.accept(stream))).await?;
    Ok(Wire::Tls(Box::new(TlsStream::Server(shaken)), None))
}

/// Waits for what a connection must begin with.
///
/// # Errors
/// Those of `beginning`, and that it takes longer than `limit`.
pub(super) async fn within<T>(
    limit: Option<Duration>,
    beginning: impl Future<Output = io::Result<T>>,
) -> io::Result<T> {
    let late = |_| io::Error::new(io::ErrorKind::TimedOut, "no TLS handshake, or no PROXY header, in time");
    tokio::time::timeout(limit.unwrap_or(HANDSHAKE), beginning).await.map_err(late)?
}

/// TLS of both listeners.
#[derive(Clone, Default)]
pub(super) struct Listeners {
    pub(super) requests: Secured,
    pub(super) admin: Secured,
    pub(super) picker: Secured,
}

impl Listeners {
    /// Puts the certificates of `config` into force and shows until when they are valid.
    pub(super) fn take(&self, config: &Config, telemetry: &Telemetry) {
        let mut rows = Vec::new();
        let of_picker = match &config.epp.tls {
            PickerTls::Files(files) => Some(files),
            PickerTls::Off | PickerTls::SelfSigned => None,
        };
        for (key, secured, tls) in [
            ("listen.tls", &self.requests, config.listen.tls.as_ref()),
            ("admin.tls", &self.admin, config.admin.tls.as_ref()),
            ("epp.tls", &self.picker, of_picker),
        ] {
            secured.set(tls.map(|tls| &tls.server));
            let Some(tls) = tls else { continue };
            let validity = tls.server.validity();
            rows.push(CertificateRow { key, pool: None, not_after: validity.not_after });
            match validity.fault_now() {
                // Served all the same: some clients look at no date, and to those that do, no listener is no better.
                Some(fault) => tracing::error!(key, file = tls.cert_file, "{fault}: clients will refuse it"),
                None => {
                    tracing::info!(key, file = tls.cert_file, valid_until = validity.until(), "certificate in force")
                }
            }
        }
        #[cfg(feature = "epp")]
        if config.epp.tls == PickerTls::SelfSigned && config.epp.address.is_some() {
            self.picker.set(Some(self_signed::certificate()));
        }
        for pool in &config.pools {
            let Some((tls, validity)) = pool.tls.as_ref().and_then(|tls| Some((tls, tls.client.validity()?))) else {
                continue;
            };
            rows.push(CertificateRow {
                key: "pools.tls",
                pool: Some(pool.model.clone()),
                not_after: validity.not_after,
            });
            if let Some(fault) = validity.fault_now() {
                tracing::error!(
                    key = "pools.tls",
                    pool = pool.model,
                    file = tls.cert_file,
                    "{fault}: backends will refuse it"
                );
            }
        }
        telemetry.show_certificates(rows);
    }
}

#[cfg(feature = "epp")]
mod self_signed {
    //! A certificate that the process makes for itself. Gateways that check none of a picker's encrypt by it.

    use std::sync::LazyLock;

    use forebay_fleet::tls::{MinVersion, ServerTls};

    static MADE: LazyLock<ServerTls> = LazyLock::new(|| {
        let names = ["forebay".to_owned(), "localhost".to_owned()];
        let made = rcgen::generate_simple_self_signed(names).expect("two plain names make a certificate");
        let key = made.signing_key.serialize_pem();
        ServerTls::new(&made.cert.pem(), &key, None, MinVersion::default()).expect("a certificate fits its own key")
    });

    /// The certificate, the same for the life of the process.
    pub(super) fn certificate() -> &'static ServerTls {
        &MADE
    }
}
