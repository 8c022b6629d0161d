//! TLS of a listener: the certificate that it presents, the versions that it speaks, and whose certificates it demands.

use std::fmt;
use std::sync::Arc;

use tokio_rustls::rustls::server::{ServerConfig, WebPkiClientVerifier};
use tokio_rustls::rustls::sign::SingleCertAndKey;
use tokio_rustls::rustls::{crypto::ring, version};

use super::material::{Fault, Fingerprint, Part, authorities, fingerprint, pair};
use super::provider;
use super::validity::Validity;

/// The oldest version that a listener speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MinVersion {
    /// TLS 1.2.
    #[default]
    Tls12,
    /// TLS 1.3.
    Tls13,
}

impl MinVersion {
    /// All values, as written in the configuration.
    pub const ALL: [(&str, MinVersion); 2] = [("1.2", MinVersion::Tls12), ("1.3", MinVersion::Tls13)];

    /// The value as written in the configuration.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            MinVersion::Tls12 => "1.2",
            MinVersion::Tls13 => "1.3",
        }
    }
}

/// TLS of one listener. Two are equal if they were made of the same texts.
#[derive(Clone)]
pub struct ServerTls {
    config: Arc<ServerConfig>,
    made_of: Fingerprint,
    validity: Validity,
}

impl ServerTls {
    /// Makes it of a certificate, its key and, where clients need certificates, their authorities.
    ///
    /// # Errors
    /// A text is not what it should be, or key and certificate do not fit.
    pub fn new(
        certificate: &str,
        key: &str,
        client_authorities: Option<&str>,
        min_version: MinVersion,
    ) -> Result<ServerTls, Fault> {
        let pair = pair(certificate, key)?;
        let versions = match min_version {
            MinVersion::Tls12 => &[&version::TLS13, &version::TLS12][..],
            MinVersion::Tls13 => &[&version::TLS13],
        };
        let builder = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(versions)
            .expect("ring has ciphers of both versions");
        let builder = match client_authorities {
            None => builder.with_no_client_auth(),
            Some(pem) => {
                let roots = Arc::new(authorities(pem)?);
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider());
                builder.with_client_cert_verifier(verifier.build().map_err(|_| {
                    Fault::new(
                        Part::Authorities,
                        "the file holds no authority",
                        "give the CA that signs clients' certificates",
                    )
                })?)
            }
        };
        let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(pair.certified)));
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        // Sessions are resumed by tickets, so that clients that come back cost no memory here. Their key ends with this object: who
        // was let in by an authority that is gone does not come back by a ticket. Without it, sessions are kept in memory.
        if let Ok(ticketer) = ring::Ticketer::new() {
            config.ticketer = ticketer;
        }
        let made_of = fingerprint(&[Some(certificate), Some(key), client_authorities, Some(min_version.as_str())]);
        Ok(ServerTls { config: Arc::new(config), made_of, validity: pair.validity })
    }

    /// The settings of a handshake.
    #[must_use]
    pub fn config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.config)
    }

    /// The time in which the certificate is valid.
    #[must_use]
    pub fn validity(&self) -> Validity {
        self.validity
    }
}

impl PartialEq for ServerTls {
    fn eq(&self, other: &ServerTls) -> bool {
        self.made_of == other.made_of
    }
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerTls").field("validity", &self.validity).finish_non_exhaustive()
    }
}
