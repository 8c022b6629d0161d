//! Which backends hold the beginning of a prompt. A prompt is known by a chain of hashes, one for each block of its text. An
//! index keeps, for each block, the backends that were sent it and when. Beside it stands a model of each backend's prefix
//! cache, which says what an LRU cache of its size has evicted since. The answer is a number of tokens for each backend, which
//! the prediction prices in seconds: affinity has no score of its own.
//!
//! Hot path: one probe for each block that is known and one for the first that is not; no allocation.

mod cache;
mod claims;
mod index;
mod prior;
mod set;
mod worth;

pub use super::marks::{BLOCK_ENDS, Mark, Marks};
pub use cache::UNKNOWN_CAPACITY;
pub use claims::compare;
pub use index::{Index, Sent};
pub use set::HOLDERS;
pub use worth::{WORTH_PRIOR, WORTH_TAU, Worth};

#[cfg(test)]
mod tests;
