//! Who answers on which listener: the proxy for clients, the admin API for operators.

use std::convert::Infallible;
use std::sync::Arc;

use http::{Request, Response};
use hyper::body::Incoming;

use super::listener::{Accepted, ServiceFor};
use crate::admin::{self, Admin};
use crate::proxy::{Outlet, Proxy};
use forebay_fleet::config::model::Config;

impl ServiceFor for Proxy {
    type Service = crate::proxy::ClientService;
    type Body = crate::proxy::AnswerBody;

    fn service_for(&self, peer: Accepted, outlet: Arc<dyn Outlet>) -> Self::Service {
        self.for_client((peer.client, peer.secure), Some(outlet))
    }
}

/// The admin API, the same for every client.
pub(super) struct AdminServices {
    /// Over plain HTTP.
    plain: admin::Router,
    /// Over TLS.
    secure: admin::Router,
}

impl AdminServices {
    pub(super) fn new(admin: &Admin, config: &Config) -> AdminServices {
        let of = |way| admin::router(admin.clone(), config.admin.token.as_ref(), way);
        AdminServices { plain: of(admin::Channel::Plain), secure: of(admin::Channel::Tls) }
    }
}

impl ServiceFor for AdminServices {
    type Service = tower::util::BoxCloneSyncService<Request<Incoming>, Response<Self::Body>, Infallible>;
    type Body = admin::Body;

    fn service_for(&self, peer: Accepted, _: Arc<dyn Outlet>) -> Self::Service {
        let router = if peer.secure { &self.secure } else { &self.plain };
        tower::util::BoxCloneSyncService::new(router.clone())
    }
}
