//! What is made of certificates and keys, and what a handshake between the two sides says.

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

/// An authority, and what it signs.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    fn new(name: &str) -> Authority {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Authority { issuer: Issuer::new(params, key), pem }
    }

    /// A certificate for `localhost`, and its key.
    fn signed(&self) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }
}

fn server(pair: &(String, String), ca: Option<&str>) -> Result<ServerTls, Fault> {
    ServerTls::new(&pair.0, &pair.1, ca, MinVersion::Tls12)
}

#[test]
fn a_pair_that_does_not_fit_and_texts_that_are_none_are_told_apart() {
    let ca = Authority::new("ca");
    let (one, other) = (ca.signed(), ca.signed());
    let part = |certificate: &str, key: &str, ca| {
        ServerTls::new(certificate, key, ca, MinVersion::Tls12).map_err(|fault| (fault.part, fault.reason)).unwrap_err()
    };
    assert_eq!(part(&one.0, &other.1, None), (Part::Key, "the key is not the key of the certificate".to_owned()));
    assert_eq!(part(&one.0, &one.0, None).0, Part::Key);
    assert_eq!(part(&one.1, &one.1, None).0, Part::Certificate);
    assert_eq!(part("", &one.1, None).0, Part::Certificate);
    let cut = &one.0[..one.0.len() / 2];
    assert_eq!(part(cut, &one.1, None).0, Part::Certificate);
    assert_eq!(part(&one.0, &one.1, Some("")).0, Part::Authorities);
    let leaf = part(&one.0, &one.1, Some(&other.0));
    assert_eq!(leaf, (Part::Authorities, "the file holds a certificate that is no CA".to_owned()));
    assert!(server(&one, Some(&ca.pem)).is_ok());
}

#[test]
fn no_fault_and_no_debug_output_shows_a_key() {
    let ca = Authority::new("ca");
    let (one, other) = (ca.signed(), ca.signed());
    let secret: String = one.1.lines().nth(1).unwrap().chars().take(20).collect();
    let fault = ServerTls::new(&other.0, &one.1, None, MinVersion::Tls12).unwrap_err();
    assert!(!format!("{fault:?}").contains(&secret));
    assert!(!format!("{:?}", server(&one, None)).contains(&secret));
    let client = ClientTls::new(Some(&ca.pem), None, Some((&one.0, &one.1))).unwrap();
    assert!(!format!("{client:?}").contains(&secret));
}

#[test]
fn settings_are_equal_if_their_texts_are() {
    let ca = Authority::new("ca");
    let (one, other) = (ca.signed(), ca.signed());
    assert_eq!(server(&one, None), server(&one, None));
    assert_ne!(server(&one, None), server(&other, None));
    assert_ne!(server(&one, None), server(&one, Some(&ca.pem)));
    assert_ne!(server(&one, None), ServerTls::new(&one.0, &one.1, None, MinVersion::Tls13));
    let client = |ca: Option<&str>| ClientTls::new(ca, None, None);
    assert_eq!(client(None).unwrap(), ClientTls::system());
    assert_ne!(client(None), client(Some(&ca.pem)));
}

#[test]
fn a_chain_is_valid_while_all_of_it_is() {
    let chain: Vec<Vec<u8>> = [(2020, 2030), (2021, 2040)]
        .map(|(from, to)| {
            let mut params = CertificateParams::new(Vec::new()).unwrap();
            (params.not_before, params.not_after) = (rcgen::date_time_ymd(from, 1, 1), rcgen::date_time_ymd(to, 1, 1));
            params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
        })
        .into();
    let validity = Validity::of(&chain).unwrap();
    assert_eq!(validity, Validity { not_before: 1_609_459_200, not_after: 1_893_456_000 });
    assert_eq!(validity.until(), "2030-01-01T00:00:00Z");
    assert_eq!(Validity::of(&[b"no certificate"]), None);
    let over = Validity { not_before: 0, not_after: 1 }.fault_now().unwrap();
    assert_eq!(over, "the certificate is out of date since 1970-01-01T00:00:01Z");
    assert!(
        Validity { not_before: u64::MAX - 1, not_after: u64::MAX }.fault_now().unwrap().contains("not valid before")
    );
    assert_eq!(Validity { not_before: 0, not_after: u64::MAX }.fault_now(), None);
}

/// The error of a client that meets this server under this name, and what it means.
async fn met(client: ClientTls, server: ServerTls, host: &'static str) -> Result<(), Option<String>> {
    let (ours, theirs) = tokio::io::duplex(64 << 10);
    let serving = tokio::spawn(async move {
        let Ok(mut io) = tokio_rustls::TlsAcceptor::from(server.config()).accept(theirs).await else { return };
        drop(io.write_all(b"hello").await);
        drop(io.shutdown().await);
    });
    let said = async {
        let mut io = client.connect(host, ours).await?;
        io.read_exact(&mut [0; 5]).await
    };
    let said = said.await.map(drop).map_err(|error| {
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<tokio_rustls::rustls::Error>());
        inner.and_then(words::meaning)
    });
    serving.await.unwrap();
    said
}

#[tokio::test]
async fn what_does_not_fit_says_what_to_do() {
    let (ca, stranger) = (Authority::new("ca"), Authority::new("other"));
    let (pair, ours, theirs) = (ca.signed(), ca.signed(), stranger.signed());
    let client = |ca: &Authority, pair: Option<&(String, String)>| {
        ClientTls::new(Some(&ca.pem), None, pair.map(|(certificate, key)| (certificate.as_str(), key.as_str())))
            .unwrap()
    };
    let (plain, strict) = (server(&pair, None).unwrap(), server(&pair, Some(&ca.pem)).unwrap());
    assert_eq!(met(client(&ca, None), plain.clone(), "localhost").await, Ok(()));
    assert_eq!(met(client(&ca, Some(&ours)), strict.clone(), "localhost").await, Ok(()));
    for (client, server, host, advice) in [
        (client(&stranger, None), &plain, "localhost", "set ca_file in the pool's tls"),
        (client(&Authority::new("ca"), None), &plain, "localhost", "set ca_file in the pool's tls"),
        (ClientTls::system(), &plain, "localhost", "set ca_file in the pool's tls"),
        (client(&ca, None), &plain, "wrong.test", "set server_name in the pool's tls"),
        (client(&ca, None), &strict, "localhost", "set cert_file and key_file in the pool's tls"),
        (client(&ca, Some(&theirs)), &strict, "localhost", "it does not accept our certificate"),
    ] {
        let said = met(client, server.clone(), host).await.unwrap_err().unwrap();
        assert!(said.starts_with("TLS: ") && said.contains(advice), "{said}");
    }
}

#[tokio::test]
async fn a_server_without_tls_and_one_that_breaks_off_are_told_apart() {
    for (says, advice) in [(&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], Some("no TLS is spoken there")), (b"", None)] {
        let (ours, mut theirs) = tokio::io::duplex(64 << 10);
        let serving = tokio::spawn(async move {
            theirs.write_all(says).await.unwrap();
            drop(theirs);
        });
        let error = ClientTls::system().connect("localhost", ours).await.unwrap_err();
        serving.await.unwrap();
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<tokio_rustls::rustls::Error>());
        let said = inner.and_then(words::meaning);
        match advice {
            Some(advice) => assert!(said.unwrap().contains(advice)),
            None => assert_eq!(said, None),
        }
    }
}
