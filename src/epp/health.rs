//! Health by gRPC, as gateways and Kubernetes ask for it: `liveness` is whether the process answers, `readiness` and the service's own
//! name are whether it takes requests, as `/ready` says.

use std::pin::Pin;
use std::time::Duration;

use futures_util::{Stream, stream};
use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

pub(super) use tonic_health::pb::health_server::{Health, HealthServer};

use crate::proxy::Readiness;

/// The name of the service of pickers.
pub(super) const SERVICE: &str = "envoy.service.ext_proc.v3.ExternalProcessor";
/// A change of health is told within this.
const LOOK: Duration = Duration::from_millis(100);

/// The health that is asked for.
#[derive(Clone)]
pub(super) struct Answering(pub(super) Readiness);

impl Answering {
    fn of(&self, service: &str) -> Option<ServingStatus> {
        match service {
            "liveness" => Some(ServingStatus::Serving),
            "" | "readiness" | SERVICE if (self.0)().is_ok() => Some(ServingStatus::Serving),
            "" | "readiness" | SERVICE => Some(ServingStatus::NotServing),
            _ => None,
        }
    }
}

fn answer(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into() }
}

#[tonic::async_trait]
impl Health for Answering {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        let status = self.of(&request.get_ref().service);
        status.map(|status| Response::new(answer(status))).ok_or_else(|| Status::not_found("no such service"))
    }

    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let (health, service) = (self.clone(), request.into_inner().service);
        let changes = stream::unfold(None, move |last| {
            let (health, service) = (health.clone(), service.clone());
            async move {
                loop {
                    let now = health.of(&service).unwrap_or(ServingStatus::ServiceUnknown);
                    if last != Some(now) {
                        return Some((Ok(answer(now)), Some(now)));
                    }
                    tokio::time::sleep(LOOK).await;
                }
            }
        });
        Ok(Response::new(Box::pin(changes)))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use futures_util::StreamExt;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_drain_is_told_under_every_name_but_liveness() {
        let ready = Arc::new(AtomicBool::new(true));
        let asked = Arc::clone(&ready);
        let health =
            Answering(Arc::new(
                move || if asked.load(Ordering::Relaxed) { Ok(()) } else { Err("draining".to_owned()) },
            ));
        let ask = |service: &str| Request::new(HealthCheckRequest { service: service.to_owned() });
        let serving = i32::from(ServingStatus::Serving);
        let mut watched = health.watch(ask("readiness")).await.unwrap().into_inner();
        assert_eq!(watched.next().await.unwrap().unwrap().status, serving);
        for service in ["", "liveness", "readiness", SERVICE] {
            assert_eq!(health.check(ask(service)).await.unwrap().get_ref().status, serving);
        }
        ready.store(false, Ordering::Relaxed);
        let not = i32::from(ServingStatus::NotServing);
        assert_eq!(watched.next().await.unwrap().unwrap().status, not);
        for (service, status) in [("liveness", serving), ("readiness", not), (SERVICE, not)] {
            assert_eq!(health.check(ask(service)).await.unwrap().get_ref().status, status);
        }
        assert_eq!(health.check(ask("other")).await.unwrap_err().code(), tonic::Code::NotFound);
    }
}
