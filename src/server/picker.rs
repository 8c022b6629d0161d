//! The listener of the endpoint picker: the same as that of clients, with TLS of its own. Gateways end an exchange by a reset, which
//! is no abuse.

use std::net::SocketAddr;
use std::sync::Arc;

use super::accept::Listening;
use super::listener::{Accepted, Connections, HyperApp, ServiceFor};
use super::parts::Common;
use crate::epp::{GatewayService, Picker, PickerParts};
use crate::proxy::{Outlet, Proxy};
use forebay_fleet::config::model::Config;

impl ServiceFor for Picker {
    type Service = GatewayService;
    type Body = tonic::body::Body;

    fn service_for(&self, peer: Accepted, _: Arc<dyn Outlet>) -> Self::Service {
        self.for_gateway((peer.client, peer.secure))
    }
}

/// The service of a picker at `address`. Its connections are counted with those of clients, so that a drain waits for both.
pub(super) fn service(
    common: &Common,
    proxy: Proxy,
    (config, address): (&Config, SocketAddr),
    connections: Connections,
) -> Listening<Picker> {
    let picker = Picker::new(PickerParts {
        proxy,
        settings: Arc::clone(&common.settings),
        telemetry: Arc::clone(&common.telemetry),
        ready: common.readiness(),
        shutdown: common.shutdown.clone(),
        clock: common.clock.clone(),
    });
    let app = HyperApp::new(picker, config, connections, common.clock.clone())
        .counted_by(common.telemetry.process.connections.clone())
        .within(Arc::clone(common.room.connections()))
        .secured(common.tls.picker.clone())
        .expecting_resets();
    Listening::new(("picker", address), app, config.listen.threads, common.clock.clone())
}
