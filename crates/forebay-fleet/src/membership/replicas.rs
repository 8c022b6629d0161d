//! What replicas of Forebay have in common without talking: the name that each gives a backend.

use sha2::{Digest, Sha256};

use crate::config::model::{BackendUrl, Replicas};
use crate::pool::Member;
use forebay_core::routing::affinity::Index;

/// Tells the index of a pool by what all replicas know the backends.
pub(super) fn agree(index: &mut Index, replicas: Replicas, members: &[Member]) {
    index.set_replicas(replicas.count);
    if replicas.are_several() {
        for backend in members.iter().map(|member| &member.backend) {
            index.identify(backend.load.slot(), backend.id, backend.identity);
        }
    }
}

/// Returns what every replica calls the backend at this URL, and every version: a hash, which may never change.
pub(super) fn identity(url: &BackendUrl) -> u64 {
    let digest = Sha256::digest(url.to_string().as_bytes());
    u64::from_be_bytes(*digest.first_chunk().expect("SHA-256 has 32 bytes"))
}
