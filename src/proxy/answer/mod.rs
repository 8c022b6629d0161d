//! An answer on its way out: its head, its bytes, and how an error is told once its status is spent.

pub(crate) mod error_event;
pub(crate) mod front;
pub(crate) mod injected;
pub(crate) mod pace;
pub(crate) mod relay;
pub(crate) mod wire;
