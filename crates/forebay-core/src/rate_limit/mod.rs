//! The limits of one client: requests and tokens a minute, requests at once. A limit by the minute is a token bucket
//! ([`bucket`]); [`account`] holds the buckets of one client together. Written here and not taken from the crate `governor`, whose
//! limiter keeps one time stamp (GCRA) and can neither take more than there is nor give back what was taken: a prompt is charged by
//! an estimate, which the engine's own count corrects in both directions.

pub mod account;
pub mod bucket;

pub use account::{Account, LimitState, Limits, Refused};
pub use bucket::{Bucket, PerMinute};
