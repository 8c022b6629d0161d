//! The endpoint picker: Envoy gateways ask it by gRPC for the backend of each request, and show it the answer as it passes. What it
//! decides and counts is the proxy's: the same admission, wait room, dispatch and record. It must never send a request to a backend.
//!
//! `wire` is the protocol's messages, `exchange` the order in which one request's are answered, `task` the task that drives one,
//! `health` the health of the service.

mod exchange;
mod health;
mod task;
mod wire;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use arc_swap::ArcSwap;
use bytes::Bytes;
use futures_util::Stream;
use http::{Request, Response};
use http_body::Body;
use tokio::sync::mpsc;
use tonic::{Status, Streaming};
use tower::Service;

use self::health::{Answering, HealthServer};
use self::task::Task;
use self::wire::{ExternalProcessor, ExternalProcessorServer, ProcessingRequest, ProcessingResponse};
use crate::proxy::picked::Deaths;
use crate::proxy::{Proxy, Readiness, Shutdown};
use forebay_core::clock::Clock;
use forebay_fleet::config::model::Config;
use forebay_fleet::telemetry::Telemetry;
use forebay_fleet::telemetry::labels::Panicked;
use forebay_fleet::telemetry::panics::caught;
use forebay_fleet::telemetry::throttle::Throttle;

/// Replies that may wait for a gateway that reads slowly.
const CHANNEL: usize = 16;

/// The parts that a picker is made of.
pub struct PickerParts {
    /// The proxy, whose admission and fleet it uses.
    pub proxy: Proxy,
    /// The settings in force, replaced whole by a reload.
    pub settings: Arc<ArcSwap<Config>>,
    /// Metrics.
    pub telemetry: Arc<Telemetry>,
    /// Tells whether to take traffic.
    pub ready: Readiness,
    /// Ends what is still under way when the process does.
    pub shutdown: Shutdown,
    /// Time.
    pub clock: Clock,
}

/// The picker. Cheap to clone.
#[derive(Clone)]
pub struct Picker(Arc<PickerShared>);

struct PickerShared {
    parts: PickerParts,
    deaths: Arc<Deaths>,
    /// Of the warnings of exchanges that a gateway's configuration makes impossible.
    warnings: Throttle,
}

impl Picker {
    /// Puts a picker together.
    #[must_use]
    pub fn new(parts: PickerParts) -> Picker {
        Picker(Arc::new(PickerShared { parts, deaths: Arc::default(), warnings: Throttle::new() }))
    }

    /// The service for one gateway's connection.
    #[must_use]
    pub fn for_gateway(&self, gateway: (Option<SocketAddr>, bool)) -> GatewayService {
        let ready = Arc::clone(&self.0.parts.ready);
        GatewayService {
            exchanges: ExternalProcessorServer::new(Gateway { picker: self.clone(), gateway }),
            health: HealthServer::new(Answering(ready)),
        }
    }
}

/// The picker as one gateway's connection sees it: a tower service.
#[derive(Clone)]
pub struct GatewayService {
    exchanges: ExternalProcessorServer<Gateway>,
    health: HealthServer<Answering>,
}

impl<B> Service<Request<B>> for GatewayService
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send + 'static,
{
    type Response = Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        if request.uri().path().starts_with("/grpc.health.v1.Health/") {
            return self.health.call(request);
        }
        self.exchanges.call(request)
    }
}

/// One gateway's connection.
struct Gateway {
    picker: Picker,
    gateway: (Option<SocketAddr>, bool),
}

#[tonic::async_trait]
impl ExternalProcessor for Gateway {
    type ProcessStream = Replies;

    async fn process(
        &self,
        request: tonic::Request<Streaming<ProcessingRequest>>,
    ) -> Result<tonic::Response<Replies>, Status> {
        let (tx, replies) = mpsc::channel(CHANNEL);
        let common = Arc::clone(&self.picker.0);
        let telemetry = Arc::clone(&common.parts.telemetry);
        let task = Task::new(common, self.gateway, request.into_inner(), tx);
        drop(tokio::spawn(async move {
            caught(&telemetry, Panicked::Request, Box::pin(task.run())).await;
        }));
        Ok(tonic::Response::new(Replies(replies)))
    }
}

/// The replies to a gateway, as they come.
struct Replies(mpsc::Receiver<Result<ProcessingResponse, Status>>);

impl Stream for Replies {
    type Item = Result<ProcessingResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(cx)
    }
}
