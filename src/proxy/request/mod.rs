//! A request on its way in: who sends it, its body within limits, what is peeked of it, and what is sent on.

pub(crate) mod auth;
pub(crate) mod intake;
pub mod multipart;
pub mod peek;
mod prefix;
pub mod splice;
mod weight;
pub(crate) mod work;
