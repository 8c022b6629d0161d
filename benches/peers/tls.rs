//! TLS between the client and each contender: an authority and a certificate made for one run, and the client that trusts them. The
//! upstream stays plain, so that what is compared is one side.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use super::Fallible;

/// The name in the certificate.
const NAME: &str = "localhost";

/// The files of a run, and the client's side.
#[derive(Clone)]
pub(super) struct Tls {
    /// The certificate, in PEM.
    pub(super) cert: PathBuf,
    /// Its key.
    pub(super) key: PathBuf,
    /// Both in one file, as HAProxy has it.
    pub(super) both: PathBuf,
    connector: TlsConnector,
}

impl Tls {
    /// Makes a certificate with a key of P-256, as most public ones have today.
    pub(super) fn make(dir: &Path) -> Fallible<Tls> {
        let made = rcgen::generate_simple_self_signed([NAME.to_owned()])?;
        let (cert, key) = (made.cert.pem(), made.signing_key.serialize_pem());
        let file = |name: &str, text: String| -> Fallible<PathBuf> {
            let path = dir.join(name);
            fs::write(&path, text)?;
            Ok(path)
        };
        let mut roots = RootCertStore::empty();
        roots.add(made.cert.der().clone())?;
        // One provider, named: a process may have several.
        let client = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Tls {
            both: file("both.pem", format!("{cert}{key}"))?,
            cert: file("cert.pem", cert)?,
            key: file("key.pem", key)?,
            connector: TlsConnector::from(Arc::new(client)),
        })
    }
}

/// A stream of bytes, plain or not.
pub(super) trait Bytes: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Bytes for S {}

/// Where something listens, and whether it speaks TLS.
#[derive(Clone)]
pub(super) struct At {
    /// Its port of the loopback.
    pub(super) port: u16,
    pub(super) tls: Option<Tls>,
}

impl At {
    /// Connects to it.
    pub(super) async fn connect(&self) -> Fallible<TokioIo<Box<dyn Bytes>>> {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).await?;
        stream.set_nodelay(true)?;
        let bytes: Box<dyn Bytes> = match &self.tls {
            None => Box::new(stream),
            Some(tls) => Box::new(tls.connector.connect(ServerName::try_from(NAME)?, stream).await?),
        };
        Ok(TokioIo::new(bytes))
    }
}
