//! A committed answer on its way to the client. It holds what a relay needs, and nothing of how it came about: thousands of them
//! are open at a time, for minutes.

use crate::proxy::answer::error_event::AtPanic;
use crate::proxy::answer::relay::{Events, relay_unary};
use crate::proxy::answer::wire::Wire;
use crate::proxy::attempt::Form;
use crate::proxy::record::Record;
use forebay_core::clock::Clock;
use forebay_core::stream::Api;
use forebay_fleet::Ticket;

/// The answer.
pub(crate) struct Relaying {
    pub(super) api: Api,
    pub(super) clock: Clock,
    pub(super) form: Form,
    /// Told to the client where the relay panics.
    pub(super) told: Option<AtPanic>,
    /// On the heap, as is the wire: each is moved several times on its way here.
    pub(super) record: Box<Record>,
    pub(super) ticket: Ticket,
    pub(super) wire: Box<Wire>,
}

impl Relaying {
    /// Relays it to its end.
    pub(crate) async fn run(self) {
        let Relaying { api, clock, form, told: _told, mut record, ticket, wire } = self;
        match form {
            Form::Events(events) => Events::run(events, wire, ticket, &mut record, || clock.now()).await,
            // On the heap: few relays are of documents, and they are short.
            Form::Unary => Box::pin(relay_unary(api, wire, ticket, &mut record, || clock.now())).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::mem::size_of;

    use super::*;

    fn of_future<F: Future>(_: impl FnOnce(Relaying) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn an_open_stream_holds_little() {
        let parts = [
            ("the relay's task", of_future(Relaying::run)),
            ("Record", size_of::<Record>()),
            ("Wire", size_of::<Wire>()),
            ("Parser", size_of::<forebay_core::stream::Parser>()),
        ];
        for (part, bytes) in parts {
            println!("{part}: {bytes} bytes");
        }
        assert!(parts.iter().map(|(_, bytes)| bytes).sum::<usize>() < 4 << 10, "{parts:?}");
    }
}
