//! The order of one exchange after the decision, as a machine of plain values: what a gateway is told for each part of the answer that
//! it shows, when the head is held back, and when the picker leaves. Pure: what a part means is said by whoever watches.
//!
//! Hot path: no allocation for a part that is answered at once.

use bytes::Bytes;

use super::wire::{BodyMode, End, Modes};
use crate::proxy::picked::{AnswerForm, Seen};
use forebay_core::error::Failure;
use forebay_fleet::config::model::Observe;

/// More than this is not held: whatever it is, the engine sent it.
const HELD_MAX: usize = 1 << 20;

/// A reply to the gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Reply {
    /// The head may go on.
    Head,
    /// A piece may go on: the one that the gateway keeps, or this one.
    Piece(Option<Bytes>, End),
    /// The trailers may go on.
    Trailers,
}

/// The sequel of the replies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Then {
    /// More of the answer.
    More,
    /// Nothing, as the answer is whole.
    Whole,
    /// Nothing, as the picker leaves. The answer goes on without it.
    Leave,
    /// An answer of ours in place of the backend's.
    Refuse(Failure),
}

/// The replies to one message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) replies: Vec<Reply>,
    pub(super) then: Then,
}

/// The part of the answer that has been shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ShownSoFar {
    /// Nothing.
    Sent,
    /// The head, whose answer waits for the first token.
    Held,
    /// The head, which has gone on.
    Open,
}

/// One exchange.
#[derive(Debug)]
pub(super) struct Protocol {
    observe: Observe,
    modes: Modes,
    state: ShownSoFar,
    held: Vec<Reply>,
    held_bytes: usize,
}

impl Protocol {
    /// An exchange whose request has been placed.
    pub(super) fn new(observe: Observe, modes: Modes) -> Protocol {
        Protocol { observe, modes, state: ShownSoFar::Sent, held: Vec::new(), held_bytes: 0 }
    }

    /// Returns whether the picker leaves with the decision.
    pub(super) fn leaves_at_once(&self) -> bool {
        self.observe == Observe::None
    }

    /// Returns whether the head waits for a first token.
    #[cfg(test)]
    pub(super) fn is_held(&self) -> bool {
        self.state == ShownSoFar::Held
    }

    /// Returns whether the answer is awaited, or its first token.
    pub(super) fn is_early(&self) -> bool {
        self.state != ShownSoFar::Open
    }

    /// The head came.
    pub(super) fn head(&mut self, form: AnswerForm, end: End) -> Step {
        let shown = self.modes.response != BodyMode::None && !end.is_last();
        if form == AnswerForm::Events && shown && self.may_hold() {
            self.state = ShownSoFar::Held;
            self.held.push(Reply::Head);
            return Step { replies: Vec::new(), then: Then::More };
        }
        self.state = ShownSoFar::Open;
        let then = match (end, shown) {
            _ if form == AnswerForm::Fatal => Then::Refuse(Failure::Died),
            (End::Last, _) => Then::Whole,
            (End::More, false) => Then::Leave,
            // The first token is what one waits for, and a document has none.
            _ if form != AnswerForm::Events && self.observe == Observe::FirstToken && self.may_leave() => Then::Leave,
            _ => Then::More,
        };
        let replies = if then == Then::Refuse(Failure::Died) { Vec::new() } else { vec![Reply::Head] };
        Step { replies, then }
    }

    /// A piece of the body came, and this is what it means; at the end of the body, what all of it means.
    pub(super) fn piece(&mut self, piece: Bytes, end: End, seen: Seen) -> Step {
        let bytes = piece.len();
        let back = (self.modes.response == BodyMode::Duplex).then_some(piece);
        let reply = Reply::Piece(back, end);
        let mut replies = match (self.state, seen) {
            (ShownSoFar::Held, Seen::Failed(failure)) => {
                self.held.clear();
                return Step { replies: Vec::new(), then: Then::Refuse(failure) };
            }
            (ShownSoFar::Held, Seen::Nothing) if self.held_bytes + bytes <= HELD_MAX => {
                self.held.push(reply);
                self.held_bytes += bytes;
                return Step { replies: Vec::new(), then: Then::More };
            }
            (ShownSoFar::Held, _) => std::mem::take(&mut self.held),
            _ => Vec::new(),
        };
        self.state = ShownSoFar::Open;
        replies.push(reply);
        let then = match (end, seen) {
            (End::Last, _) => Then::Whole,
            (End::More, Seen::Committed) if self.observe == Observe::FirstToken && self.may_leave() => Then::Leave,
            _ => Then::More,
        };
        Step { replies, then }
    }

    /// The trailers came, which end the answer.
    pub(super) fn trailers(&mut self, seen: Seen) -> Step {
        if let (ShownSoFar::Held, Seen::Failed(failure)) = (self.state, seen) {
            return Step { replies: Vec::new(), then: Then::Refuse(failure) };
        }
        self.state = ShownSoFar::Open;
        let mut replies = std::mem::take(&mut self.held);
        replies.push(Reply::Trailers);
        Step { replies, then: Then::Whole }
    }

    /// Returns whether the gateway shows the body before the head is answered, so that the answer can wait for the first token.
    fn may_hold(&self) -> bool {
        match self.modes.response {
            BodyMode::Duplex => true,
            BodyMode::Streamed => self.modes.unasked,
            _ => false,
        }
    }

    /// A gateway that gives its pieces away would lose those that are on their way when the picker leaves.
    fn may_leave(&self) -> bool {
        self.modes.response != BodyMode::Duplex
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DUPLEX: Modes = Modes { request: BodyMode::Duplex, response: BodyMode::Duplex, unasked: false };
    const STREAMED: Modes = Modes { response: BodyMode::Streamed, ..DUPLEX };
    const UNASKED: Modes = Modes { unasked: true, ..STREAMED };

    fn piece(text: &'static str) -> Bytes {
        Bytes::from_static(text.as_bytes())
    }

    fn step(replies: Vec<Reply>, then: Then) -> Step {
        Step { replies, then }
    }

    #[test]
    fn a_held_head_goes_on_with_the_first_token_and_all_before_it() {
        for (modes, back) in [(DUPLEX, true), (UNASKED, false)] {
            let given = |text| back.then(|| piece(text));
            let mut exchange = Protocol::new(Observe::Stream, modes);
            assert_eq!(exchange.head(AnswerForm::Events, End::More), step(vec![], Then::More));
            assert!(exchange.is_held());
            assert_eq!(exchange.piece(piece(": hi"), End::More, Seen::Nothing), step(vec![], Then::More));
            let all =
                vec![Reply::Head, Reply::Piece(given(": hi"), End::More), Reply::Piece(given("data: 1"), End::More)];
            assert_eq!(exchange.piece(piece("data: 1"), End::More, Seen::Committed), step(all, Then::More));
            assert!(!exchange.is_held() && !exchange.is_early());
            let last = vec![Reply::Piece(given("data: 2"), End::Last)];
            assert_eq!(exchange.piece(piece("data: 2"), End::Last, Seen::Committed), step(last, Then::Whole));
        }
    }

    #[test]
    fn a_failure_before_the_first_token_takes_the_place_of_the_answer() {
        for (end, failure) in
            [(End::More, Failure::ErrorEvent { code: 500, engine_dead: true }), (End::Last, Failure::Died)]
        {
            let mut exchange = Protocol::new(Observe::FirstToken, UNASKED);
            exchange.head(AnswerForm::Events, End::More);
            let refused = exchange.piece(piece("data: {}"), end, Seen::Failed(failure));
            assert_eq!(refused, step(vec![], Then::Refuse(failure)));
        }
        let mut exchange = Protocol::new(Observe::FirstToken, DUPLEX);
        exchange.head(AnswerForm::Events, End::More);
        assert_eq!(exchange.trailers(Seen::Failed(Failure::Died)), step(vec![], Then::Refuse(Failure::Died)));
    }

    #[test]
    fn the_picker_leaves_at_the_first_token_where_the_gateway_keeps_what_it_showed() {
        let mut exchange = Protocol::new(Observe::FirstToken, UNASKED);
        exchange.head(AnswerForm::Events, End::More);
        let replies = vec![Reply::Head, Reply::Piece(None, End::More)];
        assert_eq!(exchange.piece(piece("data: 1"), End::More, Seen::Committed), step(replies, Then::Leave));
        let mut exchange = Protocol::new(Observe::FirstToken, DUPLEX);
        exchange.head(AnswerForm::Events, End::More);
        assert_eq!(exchange.piece(piece("data: 1"), End::More, Seen::Committed).then, Then::More);
    }

    #[test]
    fn a_head_that_cannot_be_held_goes_on_at_once() {
        let mut exchange = Protocol::new(Observe::FirstToken, STREAMED);
        assert_eq!(exchange.head(AnswerForm::Events, End::More), step(vec![Reply::Head], Then::More));
        // What was said cannot be taken back.
        let failed = exchange.piece(piece("data: {}"), End::More, Seen::Failed(Failure::Died));
        assert_eq!(failed, step(vec![Reply::Piece(None, End::More)], Then::More));
    }

    #[test]
    fn an_answer_that_is_no_stream_is_not_held() {
        for form in [AnswerForm::Document, AnswerForm::Error(true), AnswerForm::Error(false)] {
            let mut exchange = Protocol::new(Observe::FirstToken, UNASKED);
            assert_eq!(exchange.head(form, End::More), step(vec![Reply::Head], Then::Leave), "{form:?}");
            let mut exchange = Protocol::new(Observe::Stream, DUPLEX);
            assert_eq!(exchange.head(form, End::More), step(vec![Reply::Head], Then::More), "{form:?}");
            assert_eq!(exchange.head(form, End::Last), step(vec![Reply::Head], Then::Whole), "{form:?}");
        }
        let mut exchange = Protocol::new(Observe::Stream, Modes { response: BodyMode::None, ..DUPLEX });
        assert_eq!(exchange.head(AnswerForm::Events, End::More), step(vec![Reply::Head], Then::Leave));
        let mut exchange = Protocol::new(Observe::Stream, DUPLEX);
        assert_eq!(exchange.head(AnswerForm::Fatal, End::More), step(vec![], Then::Refuse(Failure::Died)));
    }

    #[test]
    fn a_backend_that_proves_nothing_fills_no_memory() {
        let mut exchange = Protocol::new(Observe::FirstToken, DUPLEX);
        exchange.head(AnswerForm::Events, End::More);
        let comment = Bytes::from(vec![b':'; HELD_MAX / 2]);
        for _ in 0..2 {
            assert_eq!(exchange.piece(comment.clone(), End::More, Seen::Nothing), step(vec![], Then::More));
        }
        let all = exchange.piece(comment, End::More, Seen::Nothing);
        assert_eq!((all.replies.len(), all.then), (4, Then::More));
    }
}
