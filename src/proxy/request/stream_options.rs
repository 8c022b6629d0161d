//! The `stream_options` of a request's body, as they are written: what is spliced in depends on it.

use std::ops::Range;

/// `stream_options` as written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamOptions {
    /// The place of the value.
    pub at: Range<usize>,
    /// The form of the value.
    pub form: StreamOptionsForm,
}

/// The value of `stream_options`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StreamOptionsForm {
    /// `null`
    Null,
    /// An object.
    Object {
        /// True if it has no member.
        empty: bool,
        /// `include_usage`, if it is there.
        include_usage: Option<Flag>,
        /// `continuous_usage_stats`, if it is there.
        continuous_usage_stats: Option<Flag>,
    },
}

/// A member that is true or false.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flag {
    /// The place of the value.
    pub at: Range<usize>,
    /// Its value; null is false.
    pub on: bool,
}
