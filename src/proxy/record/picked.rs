//! A request that another data plane sends: what of it this process cannot see, and so does not count.

#[cfg(feature = "epp")]
use http::StatusCode;

use super::Record;

impl Record {
    /// Another data plane sends the request.
    #[cfg(feature = "epp")]
    pub(crate) fn picked(&mut self) {
        self.picked = true;
    }

    /// Returns whether another data plane sends the request.
    pub(crate) fn is_picked(&self) -> bool {
        self.picked
    }

    /// Nobody will see the end of the answer, so that it has no duration and no count of tokens.
    #[cfg(feature = "epp")]
    pub(crate) fn left_early(&mut self) {
        self.partly = true;
    }

    /// Returns whether the head of an answer came.
    #[cfg(feature = "epp")]
    pub(crate) fn has_head(&self) -> bool {
        self.got_head
    }

    /// The request is shed, which a gateway's client is told by a 429.
    #[cfg(feature = "epp")]
    pub(crate) fn shed(&mut self) {
        self.status = StatusCode::TOO_MANY_REQUESTS.as_u16();
    }
}
