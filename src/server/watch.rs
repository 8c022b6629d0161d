//! The background tasks of the process. None so far: they come with the next change.
use super::assemble::Common;
use pingora::services::background::BackgroundService;
use std::sync::Arc;
pub(super) struct Tasks(Arc<Common>);
impl Tasks {
    pub(super) fn new(c: Arc<Common>, _s: super::Source, _b: bool) -> Tasks {
        Tasks(c)
    }
}
#[async_trait::async_trait]
impl BackgroundService for Tasks {
    async fn start(&self, mut s: pingora::server::ShutdownWatch) {
        let _ = s.changed().await;
    }
}
