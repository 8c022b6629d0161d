//! An answer on its way out: its head, its bytes, and how an error is told once its status is spent.
//!
//! A backend's bytes reach a client in five places: `wire` (streams, and documents over 64 KiB), `exchange/mod.rs` (`whole` for
//! smaller ones, `finish_held` for the last answer of attempts that failed), `exchange/early_head.rs` (the same after a head that went
//! out early) and `tunnel.rs`.

pub(crate) mod error_event;
pub(crate) mod front;
pub(crate) mod injected;
pub(crate) mod pace;
pub(crate) mod relay;
pub(crate) mod wire;
