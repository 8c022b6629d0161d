//! Clients that speak TLS: HTTP/1.1 byte for byte over a blocking connection, and HTTP/2 through hyper.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use socket2::SockRef;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, ClientConnection, HandshakeKind, ProtocolVersion, StreamOwned};

use crate::client::{H2, h2_on};
use crate::harness::DEADLINE;

/// A connection with TLS on it.
pub(crate) struct TlsConn {
    stream: StreamOwned<ClientConnection, TcpStream>,
    received: Vec<u8>,
}

impl TlsConn {
    /// Connects and does the handshake, as far as the client can see it: under TLS 1.3 the server may yet refuse a certificate.
    pub(crate) fn open(address: SocketAddr, name: &str, config: &Arc<ClientConfig>) -> io::Result<TlsConn> {
        TlsConn::on(TcpStream::connect(address)?, name, config)
    }

    /// Does the handshake on a connection that was made.
    pub(crate) fn on(socket: TcpStream, name: &str, config: &Arc<ClientConfig>) -> io::Result<TlsConn> {
        socket.set_read_timeout(Some(DEADLINE))?;
        socket.set_write_timeout(Some(DEADLINE))?;
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let mut stream = StreamOwned::new(ClientConnection::new(Arc::clone(config), name).unwrap(), socket);
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock)?;
        }
        Ok(TlsConn { stream, received: Vec::new() })
    }

    /// The version, the protocol and whether the session was resumed. The last is known after the first answer.
    pub(crate) fn agreed(&self) -> (Option<ProtocolVersion>, Option<String>, Option<HandshakeKind>) {
        let conn = &self.stream.conn;
        let protocol = conn.alpn_protocol().map(|name| String::from_utf8(name.to_vec()).unwrap());
        (conn.protocol_version(), protocol, conn.handshake_kind())
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Reads until what came contains this, and returns all that came.
    pub(crate) fn until(&mut self, wanted: &str) -> io::Result<String> {
        loop {
            let text = String::from_utf8_lossy(&self.received).into_owned();
            if text.contains(wanted) {
                return Ok(text);
            }
            let mut piece = [0; 16 << 10];
            match self.stream.read(&mut piece)? {
                0 => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text)),
                read => self.received.extend_from_slice(&piece[..read]),
            }
        }
    }

    /// Reads so many bytes more.
    pub(crate) fn read_some(&mut self, bytes: usize) -> io::Result<()> {
        let mut more = vec![0; bytes];
        self.stream.read_exact(&mut more)?;
        self.received.extend(more);
        Ok(())
    }

    /// Sends a request and reads an answer that ends with this.
    pub(crate) fn ask(&mut self, request: &[u8], end: &str) -> io::Result<String> {
        self.send(request)?;
        self.until(end)
    }

    /// Leaves with a reset.
    pub(crate) fn reset(self) {
        SockRef::from(&self.stream.sock).set_linger(Some(Duration::ZERO)).unwrap();
    }
}

/// Runs a test on an h2 connection of its own over TLS, within the deadline.
pub(crate) fn on_h2_tls<T>(address: SocketAddr, config: &Arc<ClientConfig>, test: impl AsyncFnOnce(H2) -> T) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::clone(config));
    runtime.block_on(async {
        let socket = tokio::net::TcpStream::connect(address).await.unwrap();
        let stream = connector.connect(ServerName::try_from("forebay.test").unwrap(), socket).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        h2_on(stream, 1 << 16, test).await
    })
}
