//! The floor: a relay that copies bytes between a client's connection and one to an upstream, and reads none of them. It has no
//! HTTP, no keep-alive of its own and no choice but turns, so no proxy on the same runtime can be cheaper.

use std::io::Write as _;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::net::{TcpListener, TcpSocket, TcpStream};

use super::Fallible;

/// Serves the port, for the upstream ports, with the threads that `role` names: `relay THREADS PORT UPSTREAM...`.
pub(super) fn run(role: &str) -> Fallible<()> {
    let mut words = role.split_whitespace();
    if words.next() != Some("relay") {
        return Err(format!("{role:?} is no role; unset {}", super::ROLE).into());
    }
    let numbers = words.map(str::parse::<u16>).collect::<Result<Vec<_>, _>>()?;
    let [threads, port, upstreams @ ..] = numbers.as_slice() else { return Err("the relay has no port".into()) };
    super::runtime(usize::from(*threads)).block_on(serve(*port, upstreams.to_vec()))
}

async fn serve(port: u16, upstreams: Vec<u16>) -> Fallible<()> {
    let listener = listen(port)?;
    let turn = AtomicUsize::new(0);
    std::io::stdout().flush()?;
    loop {
        let (client, _) = listener.accept().await?;
        let upstream = upstreams[turn.fetch_add(1, Ordering::Relaxed) % upstreams.len()];
        tokio::spawn(async move {
            let _ = copy(client, upstream).await;
        });
    }
}

/// A listener with a backlog that takes thousands of connections at once.
pub(super) fn listen(port: u16) -> Fallible<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(([127, 0, 0, 1], port).into())?;
    Ok(socket.listen(4096)?)
}

async fn copy(mut client: TcpStream, upstream: u16) -> std::io::Result<()> {
    let mut upstream = TcpStream::connect(("127.0.0.1", upstream)).await?;
    client.set_nodelay(true)?;
    upstream.set_nodelay(true)?;
    tokio::io::copy_bidirectional(&mut client, &mut upstream).await?;
    Ok(())
}
