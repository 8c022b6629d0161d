//! A TCP connection to a host by name, which may have several addresses of which some lead nowhere: each is tried when the one before
//! it has failed or shown nothing for a moment, and the first that connects wins (RFC 8305 section 5).

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use crate::obstacle::{Unresolved, obstacle};
use forebay_core::error::Failure;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::net::TcpStream;

/// The time that an address has before the next is tried beside it (RFC 8305 section 8).
const NEXT_AFTER: Duration = Duration::from_millis(250);

/// Connects to one of a backend's addresses. The error is the most telling one: of an address that could be reached, if any could.
pub(super) async fn dial(mut addresses: impl Iterator<Item = SocketAddr>) -> io::Result<TcpStream> {
    match (addresses.next(), addresses.next()) {
        (None, _) => Err(Unresolved::new(None).into()),
        (Some(only), None) => TcpStream::connect(only).await,
        (Some(first), Some(second)) => any_of([first, second].into_iter().chain(addresses)).await,
    }
}

/// Connects to whichever of these answers first. They are tried in their order.
async fn any_of(addresses: impl Iterator<Item = SocketAddr>) -> io::Result<TcpStream> {
    let mut left: VecDeque<SocketAddr> = addresses.collect();
    let mut trying = FuturesUnordered::new();
    let mut failed: Option<io::Error> = None;
    loop {
        match left.pop_front() {
            Some(address) => trying.push(TcpStream::connect(address)),
            None if trying.is_empty() => return Err(failed.unwrap_or_else(|| Unresolved::new(None).into())),
            None => {}
        }
        let limit = if left.is_empty() { Duration::MAX } else { NEXT_AFTER };
        match tokio::time::timeout(limit, trying.next()).await {
            Ok(Some(Ok(stream))) => return Ok(stream),
            Ok(Some(Err(error))) => match obstacle(&error) {
                // Of which no other address would be free.
                Some(Failure::Shortage) => return Err(error),
                _ if failed.as_ref().is_none_or(|failed| obstacle(failed).is_some()) => failed = Some(error),
                _ => {}
            },
            Ok(None) | Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::{TcpListener, TcpSocket};

    /// A listener that takes no more connections, as a host that drops what is sent to it.
    async fn black_hole() -> (TcpListener, Vec<TcpStream>) {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(0).unwrap();
        let mut filling = Vec::new();
        while let Ok(Ok(stream)) =
            tokio::time::timeout(Duration::from_millis(200), TcpStream::connect(listener.local_addr().unwrap())).await
        {
            filling.push(stream);
        }
        (listener, filling)
    }

    #[tokio::test]
    async fn an_address_that_leads_nowhere_does_not_hide_the_next() {
        let (hole, _filling) = black_hole().await;
        let good = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let (hole, good) = (hole.local_addr().unwrap(), good.local_addr().unwrap());
        for order in [&[hole, good][..], &[closed, hole, good], &[hole, closed, good], &[good, hole]] {
            let dialled = tokio::time::timeout(Duration::from_secs(2), any_of(order.iter().copied())).await;
            assert_eq!(dialled.unwrap().unwrap().peer_addr().unwrap(), good, "{order:?}");
        }
    }

    #[tokio::test]
    async fn where_no_address_answers_its_error_is_told() {
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let error = any_of([closed, closed].into_iter()).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }

    #[tokio::test]
    async fn the_error_of_an_address_in_reach_counts_more() {
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        // This host may not connect to a broadcast address (EACCES).
        let out_of_reach = "255.255.255.255:1".parse().unwrap();
        for order in [[closed, out_of_reach], [out_of_reach, closed]] {
            let error = any_of(order.into_iter()).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{order:?}");
        }
    }
}
