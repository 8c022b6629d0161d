//! The configuration file: read, checked in one go, resolved into plain values. Never panics, whatever the file holds, and
//! never lets a half-right file through: either everything in it is right, or a report says all that is wrong.

mod defaults;
pub mod model;
mod secret;
mod url;
mod written;

pub use model::Config;
