//! A request on its way in: who sends it, what is peeked of its body, and what is sent on.

pub(crate) mod auth;
pub mod counting;
mod form;
mod lenient;
pub(crate) mod lookup;
mod members;
pub mod multipart;
pub(crate) mod parse;
pub mod peek;
mod prefix;
pub mod splice;
pub(crate) mod stored;
mod stream_options;
mod weight;
pub(crate) mod work;
