//! The heads that one HTTP/2 connection makes Forebay hold at a time. A client may open hundreds of requests on one connection and
//! keep back their bodies: their heads count, and what is over the connection's share is refused.
//!
//! Hot path: two atomic adds a request of HTTP/2.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use forebay_core::error::Refusal;

/// The share of each stream, in bytes. nginx lets a head have four times that (`large_client_header_buffers`).
const EACH_STREAM: u64 = 8 << 10;

/// The heads of one connection's requests, in bytes.
#[derive(Debug, Default)]
pub(crate) struct Heads(AtomicU64);

/// One head's part of them, given back when dropped.
#[derive(Debug)]
pub(crate) struct HeadPlace {
    heads: Arc<Heads>,
    bytes: u64,
}

impl Heads {
    /// Takes a head of so many bytes in; `streams`: how many requests the connection may have at once.
    ///
    /// # Errors
    /// The connection holds others, and all together would be too many. One alone always fits.
    pub(crate) fn take(self: &Arc<Self>, bytes: u64, streams: u32) -> Result<HeadPlace, Refusal> {
        let before = self.0.fetch_add(bytes, Ordering::Relaxed);
        let place = HeadPlace { heads: Arc::clone(self), bytes };
        let fits = before == 0 || before + bytes <= EACH_STREAM * u64::from(streams);
        if fits { Ok(place) } else { Err(Refusal::BodiesFull) }
    }
}

impl Drop for HeadPlace {
    fn drop(&mut self) {
        self.heads.0.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_share_what_the_streams_of_a_connection_may_have() {
        let heads = Arc::new(Heads::default());
        let first = heads.take(60 << 10, 2).expect("one alone fits");
        assert_eq!(heads.take(1, 2).unwrap_err(), Refusal::BodiesFull);
        drop(first);
        let held: Vec<HeadPlace> = (0..4).map(|_| heads.take(4 << 10, 2).unwrap()).collect();
        assert!(heads.take(1, 2).is_err());
        drop(held);
        assert!(heads.take(16 << 10, 2).is_ok(), "what was refused took nothing");
    }
}
