//! The collector's side: batches of spans, sent by OTLP over HTTP with the project's own client. What cannot be sent is dropped,
//! counted, and told in the log now and then. It reads the variables of the environment that every exporter of OpenTelemetry heeds.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, Uri};
use opentelemetry::KeyValue;
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::resource::{EnvResourceDetector, TelemetryResourceDetector};
use opentelemetry_sdk::trace::{SpanData, SpanExporter as _};
use tokio::sync::mpsc::Receiver;

use super::write::Writer;
use super::{Item, Pipeline};
use forebay_fleet::config::model::Trace as Settings;
use forebay_fleet::probe::ProbeClient;
use forebay_fleet::telemetry::labels::SpanEnd;
use forebay_fleet::telemetry::throttle::Throttle;

/// Spans of one message, but for those of its last request.
const BATCH: usize = 512;
/// The longest time that a span waits for others.
const LINGER: Duration = Duration::from_secs(1);
/// The time for a connection to the collector.
const CONNECT: Duration = Duration::from_secs(3);
/// The time for one message and its repetitions, where the environment does not say.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of a collector's answer.
const ANSWER_MAX: usize = 1 << 20;
/// The path of traces below a collector's URL.
const TRACES: &str = "/v1/traces";

const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
const TRACES_ENDPOINT: &str = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";

type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Sends spans to one collector.
#[derive(Debug)]
pub(super) struct Exporter {
    to: SpanExporter,
    /// Its address, for the log.
    endpoint: String,
    timeout: Duration,
    client: Client,
    writer: Writer,
    troubles: Throttle,
}

impl Exporter {
    /// The exporter to the collector that the settings or the environment name; `None` where neither does.
    ///
    /// # Errors
    /// The environment has a setting that cannot be used.
    pub(super) fn new(settings: &Settings, env: Env<'_>) -> Result<Option<Exporter>, String> {
        let Some(endpoint) = endpoint(settings, env)? else { return Ok(None) };
        let timeout = timeout(env)?;
        let client = Client::new(timeout);
        let mut to = SpanExporter::builder()
            .with_http()
            .with_http_client(client.clone())
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(&endpoint)
            .with_timeout(timeout)
            .build()
            .map_err(|error| format!("the exporter of traces: {error}"))?;
        to.set_resource(&resource(env));
        tracing::info!(endpoint, "traces go to this collector");
        let (writer, troubles) = (Writer::new(), Throttle::new());
        Ok(Some(Exporter { to, endpoint, timeout, client, writer, troubles }))
    }

    /// Sends a batch, or drops it.
    async fn send(&self, batch: Vec<SpanData>, pipeline: &Pipeline) {
        let count = batch.len() as u64;
        if count == 0 {
            return;
        }
        // The exporter repeats a message within its time. A limit of our own holds whatever it does.
        // One batch at a time. A collector that is slow makes the queue fill, which is dropped and counted, and no request
        // waits.
        let sent = tokio::time::timeout(self.timeout, self.to.export(batch)).await;
        let process = &pipeline.telemetry.process;
        let error = match sent {
            Ok(Ok(())) => return process.spans(SpanEnd::Sent, count),
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {:?}", self.timeout),
        };
        process.spans(SpanEnd::Failed, count);
        let error = self.client.trouble().unwrap_or(error);
        if let Some(held_back) = self.troubles.pass(pipeline.clock.now()) {
            let endpoint = &self.endpoint;
            tracing::warn!(%endpoint, %error, spans = count, held_back, "spans are lost, and requests go on: the collector does \
                not take OTLP over HTTP at this address, whose usual port is 4318");
        }
    }
}

/// Makes spans of what it is told and sends them, until it is dropped.
pub(super) async fn run(pipeline: &Pipeline, told: &mut Receiver<Item>) {
    while let Some(first) = told.recv().await {
        let mut batch = Vec::new();
        let mut waiting = take(first, &pipeline.exporter.writer, &mut batch);
        // From the first span of a batch: under little traffic a trace should be seen within a second.
        let mut due = std::pin::pin!(tokio::time::sleep(LINGER));
        while waiting.is_none() && batch.len() < BATCH {
            tokio::select! {
                item = told.recv() => match item {
                    Some(item) => waiting = take(item, &pipeline.exporter.writer, &mut batch),
                    None => break,
                },
                () = &mut due => break,
            }
        }
        pipeline.exporter.send(batch, pipeline).await;
        if let Some(done) = waiting {
            // Nobody waits any more where the limit came first.
            _ = done.send(());
        }
    }
}

/// Adds an item's spans to the batch. Returns who is to be told once it is sent, if the item asks for that.
fn take(item: Item, writer: &Writer, batch: &mut Vec<SpanData>) -> Option<std::sync::mpsc::SyncSender<()>> {
    match item {
        Item::Told(told, wall) => {
            writer.write(&told, wall, batch);
            None
        }
        Item::Flush(done) => Some(done),
    }
}

/// The URL that spans are sent to. The file has the first word, and may turn traces off.
fn endpoint(settings: &Settings, env: Env<'_>) -> Result<Option<String>, String> {
    let set = |name| env(name).filter(|value| !value.trim().is_empty());
    if set("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
        return Ok(None);
    }
    let below = |base: &str| {
        let base = base.trim_end_matches('/');
        // The variable for all signals is a base by the specification, and many people write the whole path all the same.
        if base.ends_with(TRACES) { base.to_owned() } else { format!("{base}{TRACES}") }
    };
    if let Some(written) = &settings.endpoint {
        return Ok(written.as_deref().map(below));
    }
    if set("OTEL_TRACES_EXPORTER").is_some_and(|value| value.trim() != "otlp") {
        return Ok(None);
    }
    let (name, url) = match (set(TRACES_ENDPOINT), set(ENDPOINT)) {
        (Some(url), _) => (TRACES_ENDPOINT, url),
        (None, Some(base)) => (ENDPOINT, below(base.trim())),
        (None, None) => return Ok(None),
    };
    let uri = url.trim().parse::<Uri>().ok();
    let is_good = |uri: &Uri| {
        matches!(uri.scheme_str(), Some("http" | "https"))
            && uri.authority().is_some_and(|authority| !authority.as_str().contains('@'))
    };
    // Not repeated: it may hold a password.
    let uri =
        uri.filter(is_good).ok_or_else(|| format!("{name} is no URL such as http://host:4318, without a user"))?;
    Ok(Some(uri.to_string()))
}

/// The limit for one message.
fn timeout(env: Env<'_>) -> Result<Duration, String> {
    for name in ["OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "OTEL_EXPORTER_OTLP_TIMEOUT"] {
        if let Some(value) = env(name).filter(|value| !value.is_empty()) {
            let millis = value.parse::<u64>().ok().filter(|millis| *millis > 0);
            return millis.map(Duration::from_millis).ok_or_else(|| format!("{name} is no number of milliseconds"));
        }
    }
    Ok(TIMEOUT)
}

/// The sender of the spans, as collectors show it. The environment has the last word.
fn resource(env: Env<'_>) -> Resource {
    let ours = [
        KeyValue::new("service.name", "forebay"),
        KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
        KeyValue::new("service.instance.id", format!("{:032x}", fastrand::u128(..))),
    ];
    let builder = Resource::builder_empty()
        .with_attributes(ours)
        .with_detector(Box::new(TelemetryResourceDetector))
        .with_detector(Box::new(EnvResourceDetector::new()));
    match env("OTEL_SERVICE_NAME").filter(|name| !name.is_empty()) {
        Some(name) => builder.with_service_name(name).build(),
        None => builder.build(),
    }
}

/// The project's client as the exporter calls it.
#[derive(Clone, Debug)]
struct Client {
    http: ProbeClient,
    timeout: Duration,
    /// The reason for the last failure, which the exporter would not repeat.
    trouble: Arc<Mutex<Option<String>>>,
}

impl Client {
    fn new(timeout: Duration) -> Client {
        Client { http: ProbeClient::new(CONNECT), timeout, trouble: Arc::default() }
    }

    /// Takes the reason for the last failure.
    fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take()
    }

    fn note(&self, trouble: Option<String>) {
        *self.trouble.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = trouble;
    }
}

#[async_trait::async_trait]
impl HttpClient for Client {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        // From now on what is known is about this message.
        self.note(None);
        match self.http.send(request, self.timeout, ANSWER_MAX).await {
            Ok(answer) if answer.status().is_success() => Ok(answer),
            Ok(answer) => {
                self.note(Some(format!("status {}", answer.status().as_u16())));
                Ok(answer)
            }
            Err(error) => {
                self.note(Some(error.to_string()));
                Err(Box::new(error))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn to(written: Option<Option<&str>>, env: &[(&str, &str)]) -> Result<Option<String>, String> {
        let settings = Settings { endpoint: written.map(|url| url.map(str::to_owned)), ..Settings::default() };
        let env: HashMap<&str, &str> = env.iter().copied().collect();
        endpoint(&settings, &|name| env.get(name).map(|value| (*value).to_owned()))
    }

    #[test]
    fn the_file_has_the_first_word_and_the_environment_the_next() {
        let url = |text: &str| Ok(Some(text.to_owned()));
        assert_eq!(to(None, &[]), Ok(None));
        assert_eq!(to(Some(Some("http://a:4318")), &[(ENDPOINT, "http://b")]), url("http://a:4318/v1/traces"));
        assert_eq!(to(Some(Some("http://a/otlp/v1/traces")), &[]), url("http://a/otlp/v1/traces"));
        assert_eq!(to(Some(None), &[(ENDPOINT, "http://b")]), Ok(None));
        assert_eq!(to(None, &[(ENDPOINT, "http://b:4318/")]), url("http://b:4318/v1/traces"));
        // A variable of traces alone has the whole path.
        assert_eq!(to(None, &[(ENDPOINT, "http://b"), (TRACES_ENDPOINT, "http://c/x")]), url("http://c/x"));
        assert_eq!(to(None, &[(ENDPOINT, "http://b"), ("OTEL_TRACES_EXPORTER", "none")]), Ok(None));
        assert_eq!(to(Some(Some("http://a")), &[("OTEL_SDK_DISABLED", "TRUE")]), Ok(None));
        for wrong in ["collector:4318", "grpc://b", "http://user:secret@b", "/v1"] {
            let said = to(None, &[(ENDPOINT, wrong)]).unwrap_err();
            assert!(said.contains(ENDPOINT) && !said.contains("secret"), "{said}");
        }
    }

    #[test]
    fn the_time_for_a_message_is_in_milliseconds() {
        let of =
            |value: &'static str| timeout(&move |name| (name == "OTEL_EXPORTER_OTLP_TIMEOUT").then(|| value.into()));
        assert_eq!(of(""), Ok(TIMEOUT));
        assert_eq!(of("2500"), Ok(Duration::from_millis(2500)));
        assert!(of("10s").is_err() && of("0").is_err());
    }
}
