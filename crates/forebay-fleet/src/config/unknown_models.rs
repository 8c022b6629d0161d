//! What a pool does with a request for a model that nobody lists, as it is written and shown.

use serde::Serialize;

/// What becomes of a request for a model that no backend lists.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum UnknownModels {
    /// A backend of this pool is asked: it may load the model at first use, or not show its list.
    Try,
    /// Forebay answers 404.
    #[default]
    Refuse,
}

impl UnknownModels {
    /// As written in the configuration.
    pub const ALL: [(&str, UnknownModels); 2] = [("try", UnknownModels::Try), ("refuse", UnknownModels::Refuse)];
}
