//! The `system_fingerprint` that each backend put on its latest stream, as JSON. It is the same for all answers of one vLLM
//! process.
//!
//! Hot path: one `ArcSwap` load a stream; writes only where a fingerprint changed.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use bytes::Bytes;

use forebay_core::units::BackendId;

/// The table. It has one entry for each backend of the process's life that answered a stream.
#[derive(Default)]
pub(crate) struct Fingerprints(ArcSwap<HashMap<BackendId, Bytes>>);

impl Fingerprints {
    /// Returns what this backend said.
    pub(crate) fn of(&self, backend: BackendId) -> Option<Bytes> {
        self.0.load().get(&backend).cloned()
    }

    /// Remembers what this backend said.
    pub(crate) fn remember(&self, backend: BackendId, fingerprint: &Bytes) {
        if self.0.load().get(&backend) == Some(fingerprint) {
            return;
        }
        self.0.rcu(|known| {
            let mut known = HashMap::clone(known);
            known.insert(backend, fingerprint.clone());
            Arc::new(known)
        });
    }
}
