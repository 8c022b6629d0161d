//! The limits of a client that a request can be over.

/// The limit that a request is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    /// Requests a minute.
    Requests,
    /// Tokens a minute.
    Tokens,
    /// Requests at once.
    Concurrent,
}

impl Over {
    /// Every limit.
    pub const ALL: &'static [Over] = &[Over::Requests, Over::Tokens, Over::Concurrent];

    /// The limit in words.
    #[must_use]
    pub const fn words(self) -> &'static str {
        match self {
            Over::Requests => "requests a minute",
            Over::Tokens => "tokens a minute",
            Over::Concurrent => "requests at once",
        }
    }

    /// The value of the `limit` label.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Over::Requests => "requests",
            Over::Tokens => "tokens",
            Over::Concurrent => "concurrent",
        }
    }
}
