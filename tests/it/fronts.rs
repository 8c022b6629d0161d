//! Doors before a scripted backend: one that speaks TLS, and one that is a Unix socket. What comes in goes on to the backend byte for
//! byte, and an end on one side ends the other.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, SupportedProtocolVersion};

use crate::certificates::{Authority, Signed};
use crate::mock::Mock;

/// The way in which a server refuses a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manner {
    /// By an alert.
    Says,
    /// By a close and no word, as Python's servers do.
    Closes,
}

/// A connection on which alerts are swallowed.
struct Quiet(TcpStream, usize);

impl AsyncRead for Quiet {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Quiet {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        // A record of an alert, in the clear (21) or as the short record that it is under TLS 1.3.
        let is_alert = buf.first() == Some(&21) || (buf.first() == Some(&23) && buf.len() < 40);
        if is_alert && self.1 > 0 {
            return Poll::Ready(Ok(buf.len()));
        }
        self.1 += 1;
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// A door, open while this lives.
pub(crate) struct Front {
    url: String,
    _runtime: tokio::runtime::Runtime,
    _folder: Option<TempDir>,
}

impl Front {
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Host and port.
    pub(crate) fn authority(&self) -> &str {
        self.url.split_once("://").unwrap().1
    }

    /// One that speaks these versions of TLS, and asks for a certificate of `clients` where there is one.
    pub(crate) fn tls(
        mock: &Mock,
        signed: &Signed,
        clients: Option<&Authority>,
        versions: &[&'static SupportedProtocolVersion],
    ) -> Front {
        Front::tls_of(mock, signed, clients, versions, Manner::Says)
    }

    /// One that refuses in this manner.
    pub(crate) fn tls_of(
        mock: &Mock,
        signed: &Signed,
        clients: Option<&Authority>,
        versions: &[&'static SupportedProtocolVersion],
        manner: Manner,
    ) -> Front {
        let builder =
            ServerConfig::builder_with_provider(Arc::new(default_provider())).with_protocol_versions(versions);
        let builder = match clients {
            None => builder.unwrap().with_no_client_auth(),
            Some(ca) => {
                let mut roots = RootCertStore::empty();
                roots.add(CertificateDer::from_pem_slice(ca.pem.as_bytes()).unwrap()).unwrap();
                let provider = Arc::new(default_provider());
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
                builder.unwrap().with_client_cert_verifier(verifier)
            }
        };
        let chain = CertificateDer::pem_slice_iter(signed.certificate.as_bytes()).map(Result::unwrap).collect();
        let key = PrivateKeyDer::from_pem_slice(signed.key.as_bytes()).unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(builder.with_single_cert(chain, key).unwrap()));
        let (runtime, backend) = (runtime(), mock.authority());
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address: SocketAddr = listener.local_addr().unwrap();
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, backend) = (acceptor.clone(), backend.clone());
                tokio::spawn(async move {
                    let accepted = match manner {
                        Manner::Says => {
                            acceptor.accept(stream).await.map(|stream| drop(tokio::spawn(pass_on(stream, backend))))
                        }
                        Manner::Closes => {
                            let quiet = Quiet(stream, 0);
                            acceptor.accept(quiet).await.map(|stream| drop(tokio::spawn(pass_on(stream, backend))))
                        }
                    };
                    drop(accepted);
                });
            }
        });
        Front { url: format!("https://{address}"), _runtime: runtime, _folder: None }
    }

    /// A Unix socket.
    pub(crate) fn unix(mock: &Mock) -> Front {
        let folder = TempDir::new().unwrap();
        let path: PathBuf = folder.path().join("vllm.sock");
        let (runtime, backend) = (runtime(), mock.authority());
        let listener = runtime.block_on(async { UnixListener::bind(&path) }).unwrap();
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(pass_on(stream, backend.clone()));
            }
        });
        Front { url: format!("unix:{}", path.display()), _runtime: runtime, _folder: Some(folder) }
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

async fn pass_on(mut stream: impl AsyncRead + AsyncWrite + Unpin, backend: String) {
    if let Ok(mut onwards) = TcpStream::connect(backend).await {
        // Its error is an end like any other here.
        drop(copy_bidirectional(&mut stream, &mut onwards).await);
    }
}
