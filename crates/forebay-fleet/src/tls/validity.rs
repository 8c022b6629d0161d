//! The time in which a certificate is valid, which rustls checks of a peer's and nobody of one's own.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use x509_cert::Certificate;
use x509_cert::der::Decode;
use x509_cert::ext::pkix::BasicConstraints;

/// The time in which a certificate is valid, in seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// The first second.
    pub not_before: u64,
    /// The last second.
    pub not_after: u64,
}

impl Validity {
    /// Returns the time in which all certificates of a chain are valid. `None` where one cannot be read.
    pub(super) fn of(chain: &[impl AsRef<[u8]>]) -> Option<Validity> {
        let all = chain.iter().map(|der| {
            let validity = Certificate::from_der(der.as_ref()).ok()?.tbs_certificate.validity;
            Some(Validity {
                not_before: validity.not_before.to_unix_duration().as_secs(),
                not_after: validity.not_after.to_unix_duration().as_secs(),
            })
        });
        // A chain is as good as its shortest-lived part.
        all.reduce(|one, other| {
            let (one, other) = (one?, other?);
            Some(Validity {
                not_before: one.not_before.max(other.not_before),
                not_after: one.not_after.min(other.not_after),
            })
        })?
    }

    /// Returns why the certificate is not valid now, if it is not.
    #[must_use]
    pub fn fault_now(&self) -> Option<String> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        if now < self.not_before {
            return Some(format!("the certificate is not valid before {}", date(self.not_before)));
        }
        (now > self.not_after).then(|| format!("the certificate is out of date since {}", date(self.not_after)))
    }

    /// The last moment, as `2026-11-29T10:00:00Z`.
    #[must_use]
    pub fn until(&self) -> String {
        date(self.not_after)
    }
}

fn date(seconds: u64) -> String {
    UNIX_EPOCH
        .checked_add(Duration::from_secs(seconds))
        // Certificates without an end are dated to the year 9999, which is the last that can be written.
        .map_or_else(
            || "a time that cannot be written".to_owned(),
            |at| humantime::format_rfc3339_seconds(at).to_string(),
        )
}

/// Returns whether a certificate says of itself that it signs no others, though another has signed it: no authority, then.
/// One that signed itself may be what is to be trusted.
pub(super) fn is_no_authority(der: &[u8]) -> bool {
    let Ok(certificate) = Certificate::from_der(der) else { return false };
    let tbs = &certificate.tbs_certificate;
    let is_ca = tbs.get::<BasicConstraints>().ok().flatten().is_some_and(|(_, constraints)| constraints.ca);
    !is_ca && tbs.subject != tbs.issuer
}
