//! The admin API on its own listener. Empty so far: its routes come with the next change.
/// The routes.
pub type Router = axum::Router;
/// The body of an answer.
pub type Body = axum::body::Body;
