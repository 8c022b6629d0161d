//! The meaning of a TLS error for the operator: two sides that do not fit, and what to change. A server that breaks a connection for
//! another reason is not told from one without TLS.

use super::NotLetIn;
use tokio_rustls::rustls::{AlertDescription, CertificateError, Error, InvalidMessage};

/// Returns what to do about a server that did not let us in.
#[must_use]
pub fn meaning_of_close(error: &NotLetIn) -> String {
    let hint = if error.shown {
        "it does not accept ours: see cert_file in the pool's tls, and the server's own CA (--ssl-ca-certs)"
    } else {
        "set cert_file and key_file in the pool's tls"
    };
    format!("TLS: {error}; {hint}")
}

/// Returns what does not fit between us and a backend, and what to do about it. `None` where the error says nothing of the kind: the
/// backend's server has a trouble of its own.
#[must_use]
pub fn meaning(error: &Error) -> Option<String> {
    use AlertDescription as Alert;
    let hint = match error {
        Error::AlertReceived(Alert::InternalError | Alert::CloseNotify | Alert::UserCanceled) => return None,
        Error::InvalidCertificate(certificate) => of_certificate(certificate),
        Error::AlertReceived(Alert::CertificateRequired | Alert::NoCertificate) => {
            "it asks for a client certificate: set cert_file and key_file in the pool's tls"
        }
        Error::AlertReceived(
            Alert::UnknownCA
            | Alert::BadCertificate
            | Alert::CertificateUnknown
            | Alert::CertificateExpired
            | Alert::CertificateRevoked
            | Alert::UnsupportedCertificate
            | Alert::AccessDenied
            | Alert::DecryptError,
        ) => {
            "it does not accept our certificate: see cert_file in the pool's tls, and the server's own CA (--ssl-ca-certs)"
        }
        // Under TLS 1.2 a missing certificate looks like this, and so does a server that wants other ciphers.
        Error::AlertReceived(Alert::HandshakeFailure | Alert::InsufficientSecurity) => {
            "it asks for a client certificate (cert_file and key_file in the pool's tls), or for other ciphers than ours"
        }
        Error::AlertReceived(Alert::ProtocolVersion) | Error::PeerIncompatible(_) => "it must speak TLS 1.2 or 1.3",
        Error::AlertReceived(Alert::UnrecognisedName) => {
            "it has no certificate for this name: set server_name in the pool's tls"
        }
        Error::InvalidMessage(InvalidMessage::InvalidContentType | InvalidMessage::UnknownProtocolVersion) => {
            "no TLS is spoken there: write the URL with http://, or with the port of TLS"
        }
        _ => "the two do not agree on TLS",
    };
    // What rustls has no word for, it prints as it lies in memory; the hint says it in words.
    let said = error.to_string();
    let said = said.split(": Other(").next().unwrap_or_default();
    Some(format!("TLS: {said}; {hint}"))
}

fn of_certificate(error: &CertificateError) -> &'static str {
    match error {
        // A bad signature: an authority of the same name, which has been made anew.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "set ca_file in the pool's tls to the authority that signed its certificate"
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "write the URL with a name of its certificate, or set server_name in the pool's tls to one"
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => "renew the server's certificate",
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "the clock of this host or of the one that made the certificate is wrong"
        }
        // As `openssl req -x509` makes them, unless told otherwise. webpki's own word, which rustls hands on.
        other if format!("{other:?}").contains("CaUsedAsEndEntity") => {
            "its certificate is an authority's: make one for a server (openssl req -x509 -addext basicConstraints=critical,CA:FALSE)"
        }
        _ => "see the server's certificate: openssl s_client -connect HOST:PORT -showcerts",
    }
}
