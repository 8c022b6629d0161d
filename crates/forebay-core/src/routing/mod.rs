//! Which backend gets a request, and what happens after one fails: functions of their arguments. No async, no I/O, no
//! locks, no globals, no clock reads: time comes in as `now`, chance as `&mut fastrand::Rng`, load as rows of numbers, so
//! that the proxy, the tests in virtual time and a later endpoint picker run the same code.

pub mod affinity;
pub mod candidate;
mod choice;
pub mod cost;
pub mod decide;
pub mod decision;
pub mod eligible;
pub mod estimate;
pub mod explain;
pub mod facts;
mod marks;
pub mod policy;
pub mod retry;
pub mod rows;
mod shape;
pub mod split;
pub mod wait_room;
