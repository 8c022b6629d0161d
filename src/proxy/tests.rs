//! What no backend and no client can bring about: a bug of our own in the middle of a request.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use http_body::Frame;
use http_body_util::BodyExt;
use tower::Service;

use super::*;
use crate::upstream::Limits;
use crate::upstream::Upstream;
use crate::upstream::descriptors::Descriptors;
use arc_swap::ArcSwap;
use forebay_core::clock::Clock;
use forebay_fleet::clients::KnownClients;
use forebay_fleet::config::model::Config;
use forebay_fleet::membership::controller::Controller;
use forebay_fleet::membership::controller::Settings;
use forebay_fleet::telemetry::Telemetry;
use forebay_fleet::telemetry::log::AccessLog;

/// A request's body whose reading panics.
struct Panics;

impl Body for Panics {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        panic!("a bug")
    }
}

#[tokio::test]
async fn a_panic_in_a_request_is_a_500_is_counted_and_holds_nothing() {
    let (config, clock, telemetry) = (Config::default(), Clock::system(), Arc::new(Telemetry::new()));
    let controller = Arc::new(Controller::new(Settings::from(&config), Arc::clone(&telemetry)));
    let limits = Limits {
        connect_timeout: std::time::Duration::from_secs(1),
        write_stall: None,
        descriptors: Descriptors::unlimited(),
    };
    let proxy = Proxy::new(Parts {
        settings: Arc::new(ArcSwap::from_pointee(config)),
        fleet: controller.fleet().clone(),
        clients: Arc::new(KnownClients::new(Arc::clone(&telemetry))),
        upstream: Arc::new(Upstream::new(limits, clock.clone())),
        telemetry: Arc::clone(&telemetry),
        access_log: AccessLog::off(),
        spans: None,
        clock,
        ready: Arc::new(|| Ok(())),
        shutdown: Shutdown::default(),
    });
    let request = Request::post("/v1/messages")
        .header("host", "forebay")
        .header("content-type", "application/json")
        .body(Panics)
        .unwrap();
    let response = proxy.for_client((None, false), None).call(request).await.unwrap();
    assert_eq!(response.status(), 500);
    assert!(response.headers().contains_key("x-request-id"));
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let json: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((json["type"].as_str(), json["error"]["type"].as_str()), (Some("error"), Some("forebay_internal")));
    let text = telemetry.render(&[], &[]);
    assert!(text.contains("forebay_panics_total{where=\"request\"} 1"), "{text}");
    let counted = text.lines().find(|line| line.contains("api=\"messages\",outcome=\"forebay_internal\"")).unwrap();
    assert!(counted.ends_with(" 1"), "{counted}");
}
