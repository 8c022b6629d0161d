//! One request, from its head to the end of its answer. So far: what is read of a request's body and what is spliced into
//! it.

pub mod peek;
pub mod splice;
mod weight;
