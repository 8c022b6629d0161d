//! A request on its way in: who sends it, its body within limits, what is peeked of it, and what is sent on.

pub(crate) mod auth;
pub mod counting;
pub(crate) mod decode;
mod form;
pub(crate) mod heads;
pub(crate) mod intake;
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
