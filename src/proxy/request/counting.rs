//! How many sequences the engine makes of a request: what an API reads as a number of them, or as a batch. A member that the API
//! lacks counts for nothing, since vLLM ignores it: a client's numbers are claims.
//!
//! Hot path: one match on a path, then plain numbers.

/// The part of a request that an API makes sequences of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counting {
    /// One sequence, whatever the body says.
    One,
    /// `n` choices.
    Choices,
    /// `n` choices for each prompt.
    Prompts,
    /// Each element of `input`.
    Inputs,
    /// Each pair of a query and a document; one of the two may be a single one.
    Pairs,
}

impl Counting {
    /// Returns the way in which the API of this path counts, in vLLM 0.32.
    #[must_use]
    pub fn of(path: &str) -> Counting {
        match path {
            "/v1/chat/completions" => Counting::Choices,
            "/v1/completions" => Counting::Prompts,
            "/v1/embeddings" | "/pooling" | "/classify" => Counting::Inputs,
            "/rerank" | "/v1/rerank" | "/v2/rerank" | "/score" | "/v1/score" => Counting::Pairs,
            _ => Counting::One,
        }
    }
}

/// The numbers of a body that some API makes sequences of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claims {
    /// `n`
    pub n: u64,
    /// Elements of `prompt`.
    pub prompts: u64,
    /// Elements of `input`.
    pub inputs: u64,
    /// The most elements that a side of a comparison has (`documents`, `text_2` and the like).
    pub pairs: u64,
}

impl Claims {
    /// Sequences, at least 1.
    #[must_use]
    pub fn sequences(self, counting: Counting) -> u32 {
        let count = match counting {
            Counting::One => 1,
            Counting::Choices => self.n,
            Counting::Prompts => self.n.saturating_mul(self.prompts),
            Counting::Inputs => self.inputs,
            Counting::Pairs => self.pairs,
        };
        u32::try_from(count.max(1)).unwrap_or(u32::MAX)
    }
}

impl Default for Claims {
    fn default() -> Claims {
        Claims { n: 1, prompts: 1, inputs: 1, pairs: 1 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_counts_only_where_the_api_has_it() {
        let claims = Claims { n: 5, prompts: 2, inputs: 3, pairs: 4 };
        for (path, sequences) in [
            ("/v1/chat/completions", 5),
            ("/v1/completions", 10),
            ("/v1/embeddings", 3),
            ("/classify", 3),
            ("/pooling", 3),
            ("/v1/rerank", 4),
            ("/score", 4),
            ("/v1/responses", 1),
            ("/v1/messages", 1),
            ("/tokenize", 1),
        ] {
            assert_eq!(claims.sequences(Counting::of(path)), sequences, "{path}");
        }
        assert_eq!(Claims { n: u64::MAX, ..claims }.sequences(Counting::Prompts), u32::MAX);
        assert_eq!(Claims { n: 0, ..claims }.sequences(Counting::Choices), 1);
    }
}
