//! The API server of a cluster: where it is, what it is trusted by, and the token that it is shown. What a pod is given by its cluster
//! is read when it is used, since the kubelet rotates it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::Fault;
use forebay_core::kubernetes::status_of;
use forebay_fleet::config::model::{BackendUrl, Kubernetes, Whom};
use forebay_fleet::probe::{ProbeClient, ProbeError, ProbeStream};
use forebay_fleet::reach::Endpoint;
use forebay_fleet::telemetry::labels::{DiscoveryFailure, ProbeFailure};
use forebay_fleet::tls::ClientTls;

/// The folder in which a pod finds its account.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const HOST: &str = "KUBERNETES_SERVICE_HOST";
const PORT: &str = "KUBERNETES_SERVICE_PORT";
/// The most that is read of a token, a namespace or the authorities.
const LARGEST_FILE: u64 = 1 << 20;
/// The most that is read of an error.
const LARGEST_ERROR: usize = 64 << 10;
const CONNECT: Duration = Duration::from_secs(3);
/// The time for the head of an answer, and for a page of a list.
const DEADLINE: Duration = Duration::from_secs(20);
/// The characters that a query need not escape.
const QUERY: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// The API server, and what is asked of it.
pub(super) struct Api<'a> {
    asked: &'a Kubernetes,
    client: ProbeClient,
    /// The server and the authorities' text that the client was made for.
    made_for: Option<(BackendUrl, String)>,
    url: Option<BackendUrl>,
    namespace: String,
}

impl<'a> Api<'a> {
    pub(super) fn new(asked: &'a Kubernetes) -> Api<'a> {
        let headers = HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_static("application/json"))]);
        // One connection is kept: a list and the watch after it go over the same.
        let client = ProbeClient::keeping(CONNECT, 1).with_headers(headers);
        Api { asked, client, made_for: None, url: None, namespace: String::new() }
    }

    /// Looks up where the server is and what it is trusted by.
    pub(super) async fn find(&mut self) -> Result<(), Fault> {
        let url = match &self.asked.api {
            Some(url) => url.clone(),
            None => in_cluster()?,
        };
        self.namespace = match &self.asked.namespace {
            Some(namespace) => namespace.clone(),
            None => read(account("namespace")).await.map_err(|fault| {
                let reason = format!("{}: set namespace, outside of a pod", fault.reason);
                Fault::new(fault.failure, reason)
            })?,
        };
        let authorities = match (&self.asked.ca, &self.asked.api) {
            (None, None) if url.is_https() => read(account("ca.crt")).await?,
            _ => String::new(),
        };
        // The connection is kept for as long as what it was made for is unchanged: a new one each round is a TLS handshake each.
        let made_for = Some((url.clone(), authorities));
        if self.made_for != made_for {
            let tls = match (&self.asked.ca, &made_for) {
                (Some((_, tls)), _) => Some(tls.clone()),
                (None, Some((_, text))) if !text.is_empty() => {
                    let tls = ClientTls::new(Some(text), None, None);
                    Some(tls.map_err(|fault| setup(format!("{ACCOUNT}/ca.crt: {}", fault.reason)))?)
                }
                _ => None,
            };
            self.client.turn_to(&Arc::new(Endpoint::new(&url, tls.as_ref())));
            (self.made_for, self.url) = (made_for, Some(url));
        }
        Ok(())
    }

    /// Asks for a page of the list, of at most so many bytes.
    pub(super) async fn list(&self, limit: u32, next: Option<&str>, most: usize) -> Result<Bytes, Fault> {
        let next = next.map(|token| format!("&continue={}", escaped(token))).unwrap_or_default();
        let (uri, token) = self.request(&format!("limit={limit}{next}")).await?;
        let asked = self.client.get(uri, token.as_deref(), DEADLINE, most).await;
        match asked.map_err(fault)? {
            (StatusCode::OK, body) => Ok(body),
            (status, body) => Err(refusal(status, &body, &self.asked.whom)),
        }
    }

    /// Begins a watch from `version` on, which the server ends after so many seconds.
    pub(super) async fn watch(&self, version: &str, seconds: u64) -> Result<ProbeStream, Fault> {
        let query =
            format!("watch=1&allowWatchBookmarks=true&timeoutSeconds={seconds}&resourceVersion={}", escaped(version));
        let (uri, token) = self.request(&query).await?;
        let (status, mut stream) = self.client.open(uri, token.as_deref(), DEADLINE).await.map_err(fault)?;
        if status == StatusCode::OK {
            return Ok(stream);
        }
        let mut body = Vec::new();
        // Without a length to go by: an error of a watch comes as a stream, too.
        while let (Ok(Some(data)), true) = (stream.next(CONNECT).await, body.len() < LARGEST_ERROR) {
            body.extend_from_slice(&data);
        }
        Err(refusal(status, &body, &self.asked.whom))
    }

    async fn request(&self, query: &str) -> Result<(http::Uri, Option<String>), Fault> {
        let url = self.url.as_ref().ok_or_else(|| setup("the API server was not looked up".to_owned()))?;
        let namespace = &self.namespace;
        let (path, narrowed) = match &self.asked.whom {
            Whom::Selector(selector) => {
                (format!("/api/v1/namespaces/{namespace}/pods"), format!("labelSelector={}", escaped(selector)))
            }
            Whom::Service(service) => {
                let label = escaped(&format!("kubernetes.io/service-name={service}"));
                (
                    format!("/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"),
                    format!("labelSelector={label}"),
                )
            }
            Whom::Pool(pool) => {
                let field = escaped(&format!("metadata.name={pool}"));
                (
                    format!("/apis/inference.networking.k8s.io/v1/namespaces/{namespace}/inferencepools"),
                    format!("fieldSelector={field}"),
                )
            }
        };
        let path: PathAndQuery = format!("{path}?{narrowed}&{query}")
            .parse()
            .map_err(|_| setup(format!("no path can be made of the namespace {namespace:?}")))?;
        // Read for each request: the kubelet writes a new one long before the old one ends.
        let token = match (&self.asked.token_file, &self.asked.api) {
            (Some(path), _) => Some(read(path.clone()).await?),
            (None, None) => Some(read(account("token")).await?),
            (None, Some(_)) => None,
        };
        Ok((url.at(&path), token))
    }
}

/// The server of the cluster that this process runs in.
fn in_cluster() -> Result<BackendUrl, Fault> {
    let of = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let Some(host) = of(HOST) else {
        return Err(setup(format!(
            "{HOST} is not set, so this is no pod of a cluster: set api, token_file and ca_file"
        )));
    };
    let port = of(PORT).unwrap_or_else(|| "443".to_owned());
    // Clusters of IPv6 give the bare address, and a URL needs brackets around it.
    let host = if host.contains(':') { format!("[{host}]") } else { host };
    let url = format!("https://{host}:{port}");
    url.parse().map_err(|error| setup(format!("{HOST} and {PORT} make no URL ({url}): {error}")))
}

fn account(file: &str) -> PathBuf {
    Path::new(ACCOUNT).join(file)
}

/// The text of a small file, without the space around it. On a thread of its own: a mount may hang.
async fn read(path: PathBuf) -> Result<String, Fault> {
    let shown = path.display().to_string();
    let text = tokio::task::spawn_blocking(move || {
        use std::io::Read as _;
        let mut text = String::new();
        std::fs::File::open(path)?.take(LARGEST_FILE).read_to_string(&mut text)?;
        std::io::Result::Ok(text)
    });
    let text = text.await.map_err(|error| setup(error.to_string()))?;
    let text = text.map_err(|error| setup(format!("cannot read {shown}: {error}")))?;
    let text = text.trim();
    if text.is_empty() { Err(setup(format!("{shown} is empty"))) } else { Ok(text.to_owned()) }
}

fn setup(reason: String) -> Fault {
    Fault::new(DiscoveryFailure::Setup, reason)
}

fn escaped(text: &str) -> String {
    utf8_percent_encode(text, QUERY).to_string()
}

pub(super) fn fault(error: ProbeError) -> Fault {
    let failure = match error.failure {
        ProbeFailure::Connect | ProbeFailure::Shortage | ProbeFailure::Unreachable => DiscoveryFailure::Connect,
        ProbeFailure::Tls => DiscoveryFailure::Tls,
        ProbeFailure::Timeout => DiscoveryFailure::Timeout,
        ProbeFailure::TooLarge => DiscoveryFailure::TooLarge,
        ProbeFailure::Broken => DiscoveryFailure::Broken,
        ProbeFailure::Status => DiscoveryFailure::Status,
        ProbeFailure::Unreadable => DiscoveryFailure::Unreadable,
    };
    Fault::new(failure, format!("the API server: {}", error.detail))
}

/// The meaning of a status other than 200. A list of nothing is a 200, so a 404 says that the server does not know the kind.
fn refusal(status: StatusCode, body: &[u8], whom: &Whom) -> Fault {
    let (_, message) = status_of(body);
    let hint = match status.as_u16() {
        403 => "; its account needs a Role with list and watch",
        401 => "; the token is not taken",
        404 => match whom {
            Whom::Selector(_) => "; there are no pods at this address: is api the URL of an API server?",
            Whom::Service(_) => {
                "; it does not serve EndpointSlices of discovery.k8s.io/v1, as Kubernetes does since 1.21: name the pods by a \
                 selector"
            }
            Whom::Pool(_) => {
                "; it does not serve inference.networking.k8s.io/v1: install the definitions of the Gateway API Inference \
                 Extension, or name the pods by a selector"
            }
        },
        _ => "",
    };
    let separator = if message.is_empty() { "" } else { ": " };
    let reason = format!("the API server answered {}{separator}{message}{hint}", status.as_u16());
    Fault::new(of_code(status.as_u16()), reason)
}

/// The reason that a status, or the code of an error event, counts as.
pub(super) fn of_code(code: u16) -> DiscoveryFailure {
    match code {
        401 | 403 => DiscoveryFailure::Refused,
        410 => DiscoveryFailure::Expired,
        _ => DiscoveryFailure::Status,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_what_the_server_said_and_what_to_do() {
        let pods = Whom::Selector("app=vllm".to_owned());
        let forbidden = br#"{"kind":"Status","code":403,"message":"pods is forbidden"}"#;
        let said = refusal(StatusCode::FORBIDDEN, forbidden, &pods);
        assert_eq!(said.failure, DiscoveryFailure::Refused);
        assert_eq!(
            said.reason,
            "the API server answered 403: pods is forbidden; its account needs a Role with list and watch"
        );
        let gone = refusal(StatusCode::GONE, b"<html>", &pods);
        assert_eq!((gone.failure, gone.reason.as_str()), (DiscoveryFailure::Expired, "the API server answered 410"));
        // What kube-apiserver 1.20.2 says to a group and version that it has not.
        for (whom, hint) in [
            (Whom::Service("vllm".to_owned()), "since 1.21: name the pods by a selector"),
            (Whom::Pool("m".to_owned()), "install the definitions of the Gateway API Inference Extension"),
        ] {
            let unknown = refusal(StatusCode::NOT_FOUND, b"404 page not found\n", &whom);
            assert!(unknown.reason.contains(hint), "{}", unknown.reason);
        }
    }

    #[test]
    fn a_selector_is_escaped() {
        assert_eq!(escaped("app in (a, b),x!=y/z"), "app%20in%20%28a%2C%20b%29%2Cx%21%3Dy%2Fz");
    }
}
