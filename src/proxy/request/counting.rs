//! How many sequences the engine makes of a request: what an API reads as a number of them, or as a batch. A member that the API
//! lacks counts for nothing, since vLLM ignores it: a client's numbers are claims.
//!
//! Hot path: plain numbers.

use crate::proxy::route::{BodyForm, Counting, Effort, Endpoint};
use forebay_core::stream::Api;

/// The members by which an endpoint of several APIs knows whose a body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// `messages`
    Messages,
    /// `prompt`
    Prompt,
    /// Two sides of a comparison.
    Pairs,
    /// None of these.
    Other,
}

/// Returns the endpoint that a body is for. Where it may have the form of one of several APIs, vLLM takes the first whose members it
/// has.
pub(crate) fn endpoint_of(endpoint: Endpoint, shape: Option<Shape>) -> Endpoint {
    let Some(shape) = shape.filter(|_| endpoint.body == BodyForm::JsonOfAny) else { return endpoint };
    let (api, effort, counting) = match shape {
        Shape::Messages => (Api::Chat, Effort::Generate, Counting::Choices),
        Shape::Prompt => (Api::Completions, Effort::Generate, Counting::Prompts),
        Shape::Pairs => (Api::Other, Effort::Prefill, Counting::Pairs),
        Shape::Other => (Api::Other, Effort::Prefill, Counting::Inputs),
    };
    Endpoint { api, effort, counting, ..endpoint }
}

/// The numbers of a body that some API makes sequences of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claims {
    /// `n`
    pub n: u64,
    /// Elements of `prompt`.
    pub prompts: u64,
    /// Elements of `input`, `inputs`, `texts` or `images`.
    pub inputs: u64,
    /// Conversations in `messages`.
    pub conversations: u64,
    /// The most elements that a side of a comparison has (`documents`, `text_2` and the like).
    pub pairs: u64,
}

impl Claims {
    /// Sequences, at least 1.
    #[must_use]
    pub(crate) fn sequences(self, counting: Counting) -> u32 {
        let count = match counting {
            Counting::One => 1,
            Counting::Choices => self.n,
            Counting::Prompts => self.n.saturating_mul(self.prompts),
            Counting::Inputs => self.inputs,
            Counting::Conversations => self.conversations,
            Counting::Pairs => self.pairs,
        };
        u32::try_from(count.max(1)).unwrap_or(u32::MAX)
    }
}

impl Default for Claims {
    fn default() -> Claims {
        Claims { n: 1, prompts: 1, inputs: 1, conversations: 1, pairs: 1 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_counts_only_where_the_api_has_it() {
        let claims = Claims { n: 5, prompts: 2, inputs: 3, conversations: 6, pairs: 4 };
        for (counting, sequences) in [
            (Counting::Choices, 5),
            (Counting::Prompts, 10),
            (Counting::Inputs, 3),
            (Counting::Conversations, 6),
            (Counting::Pairs, 4),
            (Counting::One, 1),
        ] {
            assert_eq!(claims.sequences(counting), sequences, "{counting:?}");
        }
        assert_eq!(Claims { n: u64::MAX, ..claims }.sequences(Counting::Prompts), u32::MAX);
        assert_eq!(Claims { n: 0, ..claims }.sequences(Counting::Choices), 1);
    }
}
