//! What a dispatch gives: a place on a backend, and why it is there.

use std::sync::Arc;

use super::ticket::Ticket;
use forebay_core::routing::decision::{Decision, Trace};

/// A dispatch: the place on the backend, and why it is there.
#[derive(Debug)]
#[must_use = "dropping the ticket frees its slot"]
pub struct Dispatched {
    /// The place on the backend.
    pub ticket: Ticket,
    /// The decision that led here.
    pub decision: Decision,
    /// The rows that were considered, where somebody asked for them.
    pub trace: Option<Box<Trace>>,
}

/// A place on a backend.
#[derive(Debug)]
pub struct Placed<P> {
    /// The place and the decision.
    pub dispatched: Dispatched,
    /// The pool that decided, where that is a later one than was asked: arms are counted by it.
    pub pool: Option<Arc<P>>,
}
