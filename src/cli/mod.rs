//! The command line: one file for each command.

#[cfg(all(feature = "sim", feature = "bench"))]
pub mod demo;
#[cfg(feature = "sim")]
pub mod sim;
