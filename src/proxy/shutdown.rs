//! The end of the process as requests see it: once it begins, whatever is still under way is told and ends. Until then a
//! drain leaves them alone.

use std::sync::Arc;

use tokio::sync::watch;

/// A handle for who ends the process and for those that it ends. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Shutdown(Arc<watch::Sender<bool>>);

impl Shutdown {
    /// Ends every request, those that come later too.
    pub fn begin(&self) {
        self.0.send_replace(true);
    }

    /// Waits until that.
    pub(crate) async fn begun(&self) {
        // The sender is held by `self`, so this does not fail.
        drop(self.0.subscribe().wait_for(|begun| *begun).await);
    }
}
