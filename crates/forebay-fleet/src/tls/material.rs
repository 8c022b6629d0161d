//! Certificates, keys and authorities out of PEM texts, and what is wrong with them. No fault repeats what a file holds.

use sha2::{Digest, Sha256};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::{Error, RootCertStore};

use super::provider;
use super::validity::{Validity, is_no_authority};

/// The file that is at fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The certificate, with those between it and its authority.
    Certificate,
    /// The key of the certificate.
    Key,
    /// The authorities.
    Authorities,
}

/// Something wrong with a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The file.
    pub part: Part,
    /// The reason, to follow the name of the key.
    pub reason: String,
    /// A way to mend it.
    pub hint: &'static str,
}

impl Fault {
    pub(super) fn new(part: Part, reason: impl Into<String>, hint: &'static str) -> Fault {
        Fault { part, reason: reason.into(), hint }
    }
}

/// A hash by which two settings are told apart without being kept.
pub(super) type Fingerprint = [u8; 32];

/// Returns the hash of these parts, some of which may be absent.
pub(super) fn fingerprint(parts: &[Option<&str>]) -> Fingerprint {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update([u8::from(part.is_some())]);
        hash.update((part.unwrap_or_default().len() as u64).to_le_bytes());
        hash.update(part.unwrap_or_default());
    }
    hash.finalize().into()
}

/// A certificate with its key, which fit.
#[derive(Debug)]
pub(super) struct Pair {
    pub(super) certified: CertifiedKey,
    pub(super) validity: Validity,
}

/// Reads a certificate and its key.
pub(super) fn pair(certificate: &str, key: &str) -> Result<Pair, Fault> {
    let chain = certificates(certificate, Part::Certificate)?;
    let Some(validity) = Validity::of(&chain) else {
        return Err(Fault::new(
            Part::Certificate,
            "the file holds a certificate that cannot be read",
            CERTIFICATE_HINT,
        ));
    };
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|_| {
        let hint = if key.contains("BEGIN CERTIFICATE") { SWAPPED } else { KEY_HINT };
        Fault::new(Part::Key, "the file holds no private key in PEM form", hint)
    })?;
    let certified = CertifiedKey::from_der(chain, key, &provider()).map_err(|error| match error {
        Error::InconsistentKeys(_) => Fault::new(
            Part::Key,
            "the key is not the key of the certificate",
            "give the key that the certificate was made with; the server's own certificate comes first in cert_file",
        ),
        // As openssl makes them without extensions. webpki's own word, which rustls hands on.
        Error::InvalidCertificate(reason) if format!("{reason:?}").contains("UnsupportedCertVersion") => Fault::new(
            Part::Certificate,
            "the certificate is of version 1, without the names of the server",
            "make one of version 3 with its names: openssl x509 -req … -extfile <(echo subjectAltName=DNS:NAME)",
        ),
        Error::InvalidCertificate(reason) => Fault::new(
            Part::Certificate,
            format!("the certificate cannot be used: {reason}"),
            "make one of version 3 with its names: openssl x509 -req … -extfile <(echo subjectAltName=DNS:NAME)",
        ),
        _ => Fault::new(
            Part::Key,
            "the key is of no kind that TLS can use here",
            "use an RSA, ECDSA (P-256, P-384) or Ed25519 key",
        ),
    })?;
    Ok(Pair { certified, validity })
}

const CERTIFICATE_HINT: &str = "the file begins with `-----BEGIN CERTIFICATE-----`: the server's own first, then those between it and its authority";
const AUTHORITIES_HINT: &str =
    "the file begins with `-----BEGIN CERTIFICATE-----`: the certificates of the authorities, one after the other";
const SWAPPED: &str = "are cert_file and key_file swapped? this file has what belongs in the other";
const KEY_HINT: &str = "it begins with `-----BEGIN PRIVATE KEY-----`; one with a password is opened by: openssl pkey -in KEY -out OPEN_KEY";

fn certificates(pem: &str, part: Part) -> Result<Vec<CertificateDer<'static>>, Fault> {
    let hint = match part {
        Part::Authorities => AUTHORITIES_HINT,
        _ if pem.contains("PRIVATE KEY-----") => SWAPPED,
        _ => CERTIFICATE_HINT,
    };
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    match read {
        Ok(all) if !all.is_empty() => Ok(all),
        Ok(_) => Err(Fault::new(part, "the file holds no certificate in PEM form", hint)),
        Err(_) => Err(Fault::new(part, "the file holds a certificate that is cut or damaged", hint)),
    }
}

/// Reads the authorities that a peer's certificate may come from.
pub(super) fn authorities(pem: &str) -> Result<RootCertStore, Fault> {
    const HINT: &str = "give the certificate of the authority that signs, and not one that it has signed";
    let mut roots = RootCertStore::empty();
    for certificate in certificates(pem, Part::Authorities)? {
        if is_no_authority(&certificate) {
            return Err(Fault::new(Part::Authorities, "the file holds a certificate that is no CA", HINT));
        }
        roots.add(certificate).map_err(|_| {
            Fault::new(Part::Authorities, "the file holds a certificate that cannot be an authority", HINT)
        })?;
    }
    Ok(roots)
}
