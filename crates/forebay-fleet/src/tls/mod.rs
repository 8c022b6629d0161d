//! TLS for both sides of the proxy, made of PEM texts: what the listeners present and demand, and what backends are met with. Reads
//! no file and opens no connection. It must never show a key, nor accept a pair that does not fit.

pub mod client;
mod material;
pub mod meeting;
pub mod server;
mod validity;
pub mod words;

use std::sync::{Arc, LazyLock};

pub use client::ClientTls;
pub use material::{Fault, Part};
pub use meeting::{Meeting, NotLetIn};
pub use server::{MinVersion, ServerTls};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
pub use validity::Validity;

/// The ciphers, key exchanges and signatures of ring. Named everywhere, so that no crate's feature can change the default.
fn provider() -> Arc<CryptoProvider> {
    static RING: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| Arc::new(ring::default_provider()));
    Arc::clone(&RING)
}

#[cfg(test)]
mod tests;
