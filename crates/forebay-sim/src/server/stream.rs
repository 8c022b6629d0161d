//! The body of a simulated stream: as its request gets tokens, events. Where the reader was slower than the engine, one
//! event carries several tokens, as vLLM does it. Dropping the body aborts the request.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame};

use super::faults::answers::DEATH;
use super::framing::{DONE, Framing, Piece, Usage};
use super::request::Api;
use super::ticket::Ticket;
use crate::text;

/// The content of an answer and its end, beside its ticket.
#[derive(Clone, Debug)]
pub struct Script {
    /// The route.
    pub api: Api,
    /// A hash for the text of each choice.
    pub answers: Vec<u64>,
    /// Reason why each choice ends.
    pub finish: Vec<&'static str>,
    /// Tokens of each choice's prompt.
    pub prompt_tokens: Vec<u32>,
    /// Answers for each prompt.
    pub n: u32,
    /// A last event with token counts.
    pub include_usage: bool,
    /// Token counts in every event.
    pub continuous_usage: bool,
    /// True if the counts tell the tokens found in the prefix cache.
    pub tell_cached: bool,
}

impl Script {
    /// The text of a choice between two places.
    #[must_use]
    pub fn text(&self, choice: usize, from: u32, to: u32) -> String {
        (from..to).map(|index| text::word(self.answers[choice], index)).collect()
    }

    /// The counts of all choices together.
    #[must_use]
    pub fn usage(&self, ticket: &Ticket) -> Usage {
        let prompts = self.prompt_tokens.iter().step_by(self.n.max(1) as usize);
        Usage {
            prompt: prompts.map(|tokens| u64::from(*tokens)).sum(),
            completion: (0..ticket.choices()).map(|choice| u64::from(ticket.standing(choice).tokens)).sum(),
            cached: self.tell_cached.then(|| u64::from(ticket.cached_tokens())),
        }
    }
}

/// The body.
pub struct EventStream {
    ticket: Ticket,
    framing: Framing,
    script: Script,
    sent: Vec<(u32, bool)>,
    queue: VecDeque<Bytes>,
    ended: bool,
}

impl EventStream {
    /// A stream that has sent nothing.
    #[must_use]
    pub fn new(ticket: Ticket, framing: Framing, script: Script) -> EventStream {
        let sent = vec![(0, false); ticket.choices()];
        EventStream { ticket, framing, script, sent, queue: VecDeque::new(), ended: false }
    }

    fn collect(&mut self) {
        let EventStream { ticket, framing, script, sent, queue, ended } = self;
        for (choice, (tokens, over)) in sent.iter_mut().enumerate() {
            let standing = ticket.standing(choice);
            // Tokens that came since the last look go into one event, as vLLM does for a client that reads slowly.
            if *over || standing.tokens == *tokens {
                continue;
            }
            let usage = |completion: u32| {
                let (prompt, completion) = (u64::from(script.prompt_tokens[choice]), u64::from(completion));
                script.continuous_usage.then_some(Usage { prompt, completion, cached: None })
            };
            if *tokens == 0 && script.api == Api::Chat {
                queue.push_back(framing.role(choice, usage(0)));
            }
            let text = script.text(choice, *tokens, standing.tokens);
            let finish = standing.finished.then_some(script.finish[choice]);
            let piece = Piece { choice, text: &text, finish, usage: usage(standing.tokens) };
            queue.push_back(framing.tokens(piece, !script.include_usage));
            (*tokens, *over) = (standing.tokens, standing.finished);
        }
        if !*ended && sent.iter().all(|(_, over)| *over) {
            if script.include_usage {
                queue.push_back(framing.usage(script.usage(ticket)));
            }
            queue.push_back(DONE);
            *ended = true;
        }
    }
}

impl Body for EventStream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = self.get_mut();
        if this.queue.is_empty() && !this.ended {
            // Registered before looking: a token that comes between the two wakes this task again.
            this.ticket.register(context);
            this.collect();
            if this.ticket.dead() && !this.ended {
                this.queue.extend([DEATH, DONE]);
                this.ended = true;
            }
        }
        match this.queue.pop_front() {
            Some(event) => Poll::Ready(Some(Ok(Frame::data(event)))),
            None if this.ended => Poll::Ready(None),
            None => Poll::Pending,
        }
    }
}
