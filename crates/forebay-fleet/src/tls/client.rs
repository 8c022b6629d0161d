//! TLS to backends: whom they must be signed by, the name that they must have, and the certificate that is shown to them.

use std::fmt;
use std::io;
use std::sync::{Arc, LazyLock};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::rustls::RootCertStore;
use tokio_rustls::rustls::client::{ClientConfig, Resumption};
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::sign::SingleCertAndKey;
use tokio_rustls::{TlsConnector, TlsStream};

use super::material::{Fault, Fingerprint, authorities, fingerprint, pair};
use super::meeting::{Meeting, Noting};
use super::provider;
use super::validity::Validity;

/// Sessions of one backend that may be resumed.
const SESSIONS: usize = 8;

/// TLS to the backends of one pool. Two are equal if they were made of the same texts.
#[derive(Clone)]
pub struct ClientTls {
    config: Arc<ClientConfig>,
    name: Option<ServerName<'static>>,
    made_of: Fingerprint,
    validity: Option<Validity>,
    meeting: Arc<Meeting>,
}

impl ClientTls {
    /// Makes it of the backends' authorities (the system's, where there are none), the name that their certificates have (the URL's
    /// host), and a certificate with its key to show them (none).
    ///
    /// # Errors
    /// A text is not what it should be, or key and certificate do not fit.
    pub fn new(
        ca: Option<&str>,
        name: Option<&ServerName<'static>>,
        certificate: Option<(&str, &str)>,
    ) -> Result<ClientTls, Fault> {
        let roots = ca.map_or_else(|| Ok(system_authorities()), |pem| authorities(pem).map(Arc::new))?;
        let builder = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .expect("ring has ciphers of both versions")
            .with_root_certificates(roots);
        let mut validity = None;
        let mut config = match certificate {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let pair = pair(certificate, key)?;
                validity = Some(pair.validity);
                builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(pair.certified)))
            }
        };
        // A stream is one request on one connection: its end must be the request's.
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let shown = name.map(ServerName::to_str);
        let (certificate, key) = certificate.unzip();
        let made_of = fingerprint(&[ca, shown.as_deref(), certificate, key]);
        let meeting = Meeting::new(validity.is_some());
        Ok(ClientTls { config: Arc::new(config), name: name.cloned(), made_of, validity, meeting })
    }

    /// Returns TLS that trusts whom the system trusts.
    #[must_use]
    pub fn system() -> ClientTls {
        ClientTls::new(None, None, None).expect("nothing in it can be wrong")
    }

    /// Returns the settings for one backend, with sessions of its own: servers of one name have tickets of different keys.
    #[must_use]
    pub fn of_its_own(&self) -> ClientTls {
        let mut config = ClientConfig::clone(&self.config);
        config.resumption = Resumption::in_memory_sessions(SESSIONS);
        let meeting = Meeting::new(self.validity.is_some());
        let inner = Arc::clone(&config.client_auth_cert_resolver);
        config.client_auth_cert_resolver = Arc::new(Noting { inner, meeting: Arc::clone(&meeting) });
        ClientTls { config: Arc::new(config), meeting, ..self.clone() }
    }

    /// Speaks TLS on a connection to `host`.
    ///
    /// # Errors
    /// The two do not agree, or the connection breaks. [`super::words::meaning`] tells one from the other.
    pub async fn connect<S: AsyncRead + AsyncWrite + Unpin>(&self, host: &str, io: S) -> io::Result<TlsStream<S>> {
        let name = match &self.name {
            Some(name) => name.clone(),
            None => ServerName::try_from(host.to_owned()).map_err(io::Error::other)?,
        };
        let shaken = TlsConnector::from(Arc::clone(&self.config)).connect(name, io).await;
        shaken.map(TlsStream::Client).map_err(|error| self.meeting.meaning_of(error))
    }

    /// Returns what the backend has shown of itself, if these settings are [its own](ClientTls::of_its_own).
    #[must_use]
    pub fn meeting(&self) -> &Arc<Meeting> {
        &self.meeting
    }

    /// The time in which the certificate that is shown to backends is valid, if there is one.
    #[must_use]
    pub fn validity(&self) -> Option<Validity> {
        self.validity
    }
}

/// The authorities that the system trusts. Those that cannot be read are left out; where none is left, no server is trusted.
fn system_authorities() -> Arc<RootCertStore> {
    static ROOTS: LazyLock<Arc<RootCertStore>> = LazyLock::new(|| {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        Arc::new(roots)
    });
    Arc::clone(&ROOTS)
}

/// Returns whether the system has an authority that it trusts.
#[must_use]
pub fn system_trusts_somebody() -> bool {
    !system_authorities().is_empty()
}

impl PartialEq for ClientTls {
    fn eq(&self, other: &ClientTls) -> bool {
        self.made_of == other.made_of
    }
}

impl fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientTls").field("name", &self.name).field("validity", &self.validity).finish_non_exhaustive()
    }
}
