//! What a pool does with a request for a model that nobody lists, as it is written and shown.

use serde::Serialize;

/// The way in which a pool handles a request for a model that no backend lists.
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
    /// All of them, by their names in the configuration.
    pub const ALL: [(&str, UnknownModels); 2] = [("try", UnknownModels::Try), ("refuse", UnknownModels::Refuse)];
}
