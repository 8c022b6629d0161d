//! The command line: one file for each command, each turning its arguments into one library call.

pub mod check;
#[cfg(all(feature = "sim", feature = "bench"))]
pub mod demo;
#[cfg(feature = "sim")]
pub mod sim;
