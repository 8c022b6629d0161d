//! What an experiment starts and stops: the servers of an arm, the Forebay before them, and the commands that describe the
//! machine. Each runs in a process group of its own, and none outlives the experiment.

pub(crate) mod front;
mod health;
pub(crate) mod machine;
pub(crate) mod process;
pub(crate) mod servers;
