//! The command line: one file for each command, each turning its arguments into one library call.

pub mod check;
