//! The header of the PROXY protocol: read or refused, wherever its bytes are cut, and not a byte beyond it. An address that is read
//! is the one that stands there.

#![no_main]

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll};

use forebay::server::proxy_protocol::read;
use futures_util::FutureExt;
use libfuzzer_sys::fuzz_target;
use tokio::io::{AsyncRead, ReadBuf};

/// Bytes that come in pieces.
struct Pieces<'a> {
    left: &'a [u8],
    size: usize,
}

impl AsyncRead for Pieces<'_> {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let (piece, left) = self.left.split_at(self.size.min(self.left.len()).min(buf.remaining()));
        buf.put_slice(piece);
        self.left = left;
        Poll::Ready(Ok(()))
    }
}

/// What is read, and how much of the bytes that took.
fn header(bytes: &[u8], size: usize) -> (Option<Option<SocketAddr>>, usize) {
    let mut pieces = Pieces { left: bytes, size };
    let found = read(&mut pieces).now_or_never().expect("all bytes are there");
    (found.ok(), bytes.len() - pieces.left.len())
}

/// The source in a header of either version: a second reader, which believes that the header is one.
fn source(header: &[u8]) -> Option<SocketAddr> {
    if header.starts_with(b"PROXY ") {
        let line = std::str::from_utf8(header).ok()?;
        let mut words = line.trim_end_matches("\r\n").split(' ').skip(2);
        let (ip, port) = (words.next()?, words.nth(1)?);
        return Some(SocketAddr::new(ip.parse().ok()?, port.parse().ok()?));
    }
    let addresses = &header[16..];
    let port = |at: usize| Some(u16::from_be_bytes(addresses.get(at..at + 2)?.try_into().ok()?));
    match header[13] >> 4 {
        1 => {
            let ip: [u8; 4] = addresses.get(..4)?.try_into().ok()?;
            Some(SocketAddr::new(IpAddr::V4(Ipv4Addr::from(ip)), port(8)?))
        }
        2 => {
            let ip: [u8; 16] = addresses.get(..16)?.try_into().ok()?;
            Some(SocketAddr::new(IpAddr::V6(Ipv6Addr::from(ip)), port(32)?))
        }
        _ => None,
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((size, bytes)) = data.split_first() else { return };
    let (found, read) = header(bytes, bytes.len().max(1));
    assert_eq!(header(bytes, usize::from(*size).max(1)), (found, read), "in pieces of {size}");
    assert!(read <= 16 + 4096, "{read} bytes were read");
    if let Some(Some(client)) = found {
        assert_eq!(source(&bytes[..read]), Some(client));
    }
});
