//! The admin API as a tower service, and what it shows of a real fleet.

use http::{Request, StatusCode, header};
use http_body_util::BodyExt;
use serde_json::json;
use tower::ServiceExt;

use super::*;
use forebay_core::clock::Time;
use forebay_core::sample::Sample;
use forebay_core::stream::Api;
use forebay_core::units::BackendId;
use forebay_fleet::config::Config;
use forebay_fleet::config::model::{ArmConfig, BackendConfig, PoolConfig};
use forebay_fleet::membership::controller::{Controller, Settings};
use forebay_fleet::telemetry::Telemetry;
use forebay_fleet::telemetry::labels::Outcome;

fn admin(ready: Result<(), String>) -> Admin {
    Admin {
        metrics: Arc::new(|| "# text\n".to_owned()),
        ready: Arc::new(move || ready.clone()),
        fleet: Arc::new(|| json!({"pools": []})),
        live: Arc::new(|| Box::new(|| "{}".to_owned())),
        explain: Arc::new(|_| Err(forebay_core::error::Refusal::BadRequest("no".to_owned()))),
        config: Arc::new(|| serde_json::to_value(Config::default()).unwrap()),
        drain: Arc::new(|name, _| match name {
            "b7" | "[::1]:8001" => Ok(vec![BackendId(7)]),
            "b9" => Err(NotChanged::HandedOver),
            _ => Err(NotChanged::Unknown),
        }),
        drains: Arc::new(Vec::new),
    }
}

struct Answer {
    status: u16,
    content_type: String,
    text: String,
}

async fn ask(router: Router, method: &str, path: &str, authorization: Option<&str>) -> Answer {
    let mut request = Request::builder().method(method).uri(path);
    if let Some(value) = authorization {
        request = request.header(header::AUTHORIZATION, value);
    }
    let response = router.oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
    let header = |name| response.headers().get(name).map_or("", |value| value.to_str().unwrap()).to_owned();
    assert_eq!(header(header::CACHE_CONTROL), "no-store");
    if response.status() == StatusCode::UNAUTHORIZED {
        assert_eq!(header(header::WWW_AUTHENTICATE), "Bearer");
    }
    let (status, content_type) = (response.status().as_u16(), header(header::CONTENT_TYPE));
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    Answer { status, content_type, text: String::from_utf8(bytes.to_vec()).unwrap() }
}

#[tokio::test]
async fn every_path_of_the_index_answers() {
    let router = router(admin(Ok(())), None, Channel::Plain);
    let index = ask(router.clone(), "GET", "/", None).await;
    let reads = index.text.lines().filter(|line| line.starts_with('/'));
    let paths: Vec<&str> = reads.filter_map(|line| line.split(' ').next()).collect();
    let listed =
        ["/dashboard", "/metrics", "/health", "/ready", "/api/fleet", "/api/live", "/api/drains", "/api/config"];
    assert_eq!(paths, listed);
    for path in paths {
        assert_eq!(ask(router.clone(), "GET", path, None).await.status, 200, "{path}");
        assert_eq!(ask(router.clone(), "HEAD", path, None).await.text, "", "{path}");
    }
    let metrics = ask(router, "GET", "/metrics", None).await;
    assert_eq!(
        (metrics.content_type.as_str(), metrics.text.as_str()),
        ("text/plain; version=0.0.4; charset=utf-8", "# text\n")
    );
}

#[tokio::test]
async fn not_ready_says_why() {
    let answer = ask(router(admin(Err("draining".into())), None, Channel::Plain), "GET", "/ready", None).await;
    assert_eq!((answer.status, answer.text.as_str()), (503, "not ready: draining\n"));
    let alive = ask(router(admin(Err("draining".into())), None, Channel::Plain), "GET", "/health", None).await;
    assert_eq!(alive.status, 200);
}

#[tokio::test]
async fn with_a_token_only_the_probes_are_open() {
    let router = router(admin(Ok(())), Some(&Secret::new("open sesame")), Channel::Plain);
    for path in ["/", "/metrics", "/api/fleet", "/api/config", "/nothing"] {
        for wrong in [
            None,
            Some("Bearer open"),
            Some("Bearer open sesame!"),
            Some("Basic open sesame"),
            Some("open sesame"),
            Some(""),
        ] {
            let answer = ask(router.clone(), "GET", path, wrong).await;
            assert_eq!(answer.status, 401, "{path} {wrong:?}");
            let error: serde_json::Value = serde_json::from_str(&answer.text).unwrap();
            assert_eq!(error["error"]["type"], "forebay_unauthorized");
            assert!(!answer.text.contains("sesame"));
        }
    }
    for path in ["/health", "/ready"] {
        assert_eq!(ask(router.clone(), "GET", path, None).await.status, 200);
    }
    assert_eq!(ask(router.clone(), "GET", "/metrics", Some("Bearer open sesame")).await.status, 200);
    assert_eq!(ask(router, "GET", "/metrics", Some("bearer open sesame")).await.status, 200);
}

/// The status of a POST with these headers.
async fn change(router: &Router, path: &str, headers: &[(&str, &str)], body: &str) -> u16 {
    let mut request = Request::builder().method("POST").uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    router.clone().oneshot(request.body(Body::from(body.to_owned())).unwrap()).await.unwrap().status().as_u16()
}

const JSON: (&str, &str) = ("content-type", "application/json");
const HOST: (&str, &str) = ("host", "127.0.0.1:8081");

#[tokio::test]
async fn a_backend_is_drained_by_id_or_address() {
    let open = router(admin(Ok(())), None, Channel::Plain);
    for (path, body, status) in [
        ("/api/backends/b7/drain", "", 200),
        ("/api/backends/b7/undrain", "", 200),
        ("/api/backends/b7/drain", r#"{"by": "alice", "reason": "new kernel"}"#, 200),
        ("/api/backends/%5B::1%5D:8001/drain", "", 200),
        ("/api/backends/b7/drain", r#"{"for": "2h 30m"}"#, 200),
        ("/api/backends/b7/drain", r#"{"for": "0s"}"#, 400),
        ("/api/backends/b7/drain", r#"{"for": "soon"}"#, 400),
        ("/api/backends/b7/drain", r#"{"for": "2000y"}"#, 400),
        ("/api/backends/b8/drain", "", 404),
        ("/api/backends/b8/undrain", "", 404),
        ("/api/backends/b9/drain", "", 503),
        ("/api/backends/b7/drain", r#"{"why": 1}"#, 400),
        ("/api/backends/b7/drain", &"x".repeat(5000), 413),
    ] {
        assert_eq!(change(&open, path, &[HOST, JSON], body).await, status, "{path} {body:.20}");
    }
    assert_eq!(ask(open, "GET", "/api/backends/b7/drain", None).await.status, 405);
}

/// Every route that changes something, or that a page must not ask.
const GUARDED: [&str; 3] = ["/api/backends/b7/drain", "/api/backends/b7/undrain", "/api/explain"];

#[tokio::test]
async fn a_page_of_another_site_changes_nothing_and_curl_does() {
    let open = router(admin(Ok(())), None, Channel::Plain);
    let guarded = router(admin(Ok(())), Some(&Secret::new("open sesame")), Channel::Plain);
    let kind = |kind: &'static str| ("content-type", kind);
    let site = |site: &'static str| ("sec-fetch-site", site);
    let origin = |origin: &'static str| ("origin", origin);
    let own = origin("http://127.0.0.1:8081");
    for (what, headers, refused) in [
        ("curl -X POST", vec![HOST], None),
        ("curl with JSON", vec![HOST, JSON], None),
        ("by IPv6", vec![("host", "[::1]:8081")], None),
        ("by localhost", vec![("host", "localhost:8081")], None),
        ("the live page", vec![HOST, JSON, own, site("same-origin")], None),
        ("the operator, by hand", vec![HOST, site("none")], None),
        ("a form", vec![HOST, kind("application/x-www-form-urlencoded")], Some(415)),
        ("a form with files", vec![HOST, kind("multipart/form-data; boundary=x")], Some(415)),
        ("a form of text", vec![HOST, kind("Text/Plain;charset=UTF-8")], Some(415)),
        ("a form behind JSON", vec![HOST, JSON, kind("text/plain")], Some(415)),
        ("a form of its own origin", vec![HOST, kind("text/plain"), own], Some(415)),
        ("a fetch without CORS, without a type", vec![HOST, origin("https://evil.example")], Some(403)),
        ("a fetch of a page with an opaque origin", vec![HOST, origin("null")], Some(403)),
        ("a page of another site", vec![HOST, site("cross-site")], Some(403)),
        ("a page of a neighbour", vec![HOST, site("same-site")], Some(403)),
        ("a word that no browser sends", vec![HOST, site("friend")], Some(403)),
        ("two words", vec![HOST, site("same-origin"), site("cross-site")], Some(403)),
        ("two origins", vec![HOST, own, origin("https://evil.example")], Some(403)),
        ("another port", vec![HOST, origin("http://127.0.0.1:3000")], Some(403)),
        ("a rebound name", vec![("host", "evil.example:8081"), origin("http://evil.example:8081")], Some(403)),
        ("a rebound name, as its own page", vec![("host", "evil.example"), site("same-origin")], Some(403)),
        ("no host", vec![], Some(403)),
    ] {
        for path in GUARDED {
            let taken = if path == "/api/explain" { 400 } else { 200 };
            assert_eq!(change(&open, path, &headers, "").await, refused.unwrap_or(taken), "{what}: {path}");
            assert_eq!(change(&guarded, path, &headers, "").await, 401, "the token comes first: {what}: {path}");
        }
    }
    let token = ("authorization", "Bearer open sesame");
    let named = ("host", "forebay.internal");
    assert_eq!(change(&guarded, GUARDED[0], &[named, token], "").await, 200, "a token guards a name");
    assert_eq!(change(&guarded, GUARDED[0], &[named, token, origin("https://evil.example")], "").await, 403);
    assert_eq!(change(&guarded, GUARDED[0], &[named, token, kind("text/plain")], "").await, 415);
}

#[tokio::test]
async fn mistakes_are_answered_in_json() {
    let router = router(admin(Ok(())), None, Channel::Plain);
    for (method, path, status) in [("GET", "/nothing", 404), ("POST", "/api/config", 405), ("DELETE", "/ready", 405)] {
        let answer = ask(router.clone(), method, path, None).await;
        assert_eq!((answer.status, answer.content_type.as_str()), (status, "application/json"), "{method} {path}");
        let error: serde_json::Value = serde_json::from_str(&answer.text).unwrap();
        assert_eq!(error["error"]["code"], status);
    }
}

#[tokio::test]
async fn the_configuration_shows_no_secret() {
    let mut config = Config::default();
    config.admin.token = Some(Secret::new("open sesame"));
    let mut backend = BackendConfig::of("http://127.0.0.1:1".parse().unwrap());
    backend.key = Some(Secret::new("sk-123"));
    config.pools = vec![PoolConfig::of("m", vec![backend])];
    let mut admin = admin(Ok(()));
    admin.config = Arc::new(move || serde_json::to_value(&config).unwrap());
    let text = ask(router(admin, None, Channel::Plain), "GET", "/api/config", None).await.text;
    assert!(text.contains("[redacted]") && !text.contains("sesame") && !text.contains("sk-123"), "{text}");
}

#[test]
fn a_fleet_becomes_rows_of_metrics() {
    let telemetry = Arc::new(Telemetry::new());
    let controller = Controller::new(Settings::from(&Config::default()), Arc::clone(&telemetry));
    let backend = |port: u16| BackendConfig::of(format!("http://127.0.0.1:{port}").parse().unwrap());
    let arms = vec![
        ArmConfig { share: 3.0, gpus: 2, ..ArmConfig::of("tp2", vec![backend(1)]) },
        ArmConfig::of("tp1x2", vec![backend(2), backend(3)]),
    ];
    let pool = PoolConfig { model: "m".into(), arms, ..PoolConfig::default() };
    controller.apply(std::slice::from_ref(&pool), Time::ZERO);
    let snapshot = controller.fleet().snapshot();
    let first = snapshot.backends().next().unwrap();
    first.load.set_sample(Sample { waiting: Some(7.0), ..Sample::default() }, Time::from_micros(1_000_000));
    first.metrics.request(Api::Chat, Outcome::Success);
    controller.misconfigured(first.id, "404 for m", Time::ZERO);

    let text =
        views::metrics(&telemetry, &controller.fleet().snapshot(), &Config::default(), Time::from_micros(1_500_000));
    for line in [
        r#"forebay_requests_total{pool="m",arm="tp2",backend="127.0.0.1:1",api="chat",outcome="success"} 1"#,
        r#"forebay_backend_queue_depth{pool="m",arm="tp2",backend="127.0.0.1:1"} 7"#,
        r#"forebay_backend_scrape_age_seconds{pool="m",arm="tp2",backend="127.0.0.1:1"} 0.5"#,
        r#"forebay_backend_state{pool="m",arm="tp2",backend="127.0.0.1:1",state="misconfigured"} 1"#,
        r#"forebay_backend_state{pool="m",arm="tp1x2",backend="127.0.0.1:3",state="healthy"} 1"#,
        r#"forebay_in_flight{pool="m",arm="tp1x2",backend="127.0.0.1:2",phase="decode"} 0"#,
        r#"forebay_arm_share{pool="m",arm="tp2"} 0.75"#,
        r#"forebay_arm_gpus{pool="m",arm="tp2"} 2"#,
        r#"forebay_arm_crossed_total{pool="m",arm="tp2"} 0"#,
    ] {
        assert!(text.contains(&format!("{line}\n")), "{line} is not in\n{text}");
    }
    assert!(!text.contains(r#"forebay_backend_queue_depth{pool="m",arm="tp1x2""#));
    let later =
        views::metrics(&telemetry, &controller.fleet().snapshot(), &Config::default(), Time::from_micros(60_000_000));
    assert!(!later.contains("forebay_backend_queue_depth") && later.contains("forebay_backend_scrape_age_seconds"));
    let fleet = views::fleet(&snapshot, Time::from_micros(1_500_000));
    assert_eq!(fleet["pools"][0]["arms"][0]["backends"][0]["load"]["scrape"]["queue_depth"], 7.0);
}
