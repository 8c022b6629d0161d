//! The configuration as this branch needs it to compile; the config branch brings the whole.

mod defaults;
pub mod model;
mod secret;
mod url;
mod written;
