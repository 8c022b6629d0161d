//! Connections that change their protocol (RFC 9110 section 7.8) and are then handed on byte for byte: WebSockets. Knows nothing of
//! what is said on them.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use http::Response;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWriteExt;

/// The body of a response to a request for another protocol.
pub use hyper::body::Incoming as TunnelBody;

/// A client's connection that will be handed over once the client has been told that the protocol changes. It is an extension of the
/// request that asks for it.
#[derive(Clone)]
pub struct ClientEnd {
    upgrade: OnUpgrade,
    /// Keeps the connection among those that are open.
    _open: Arc<dyn Send + Sync>,
}

impl ClientEnd {
    /// The client's end; `open` is dropped when nobody has the connection any more.
    #[must_use]
    pub fn new(upgrade: OnUpgrade, open: Arc<dyn Send + Sync>) -> ClientEnd {
        ClientEnd { upgrade, _open: open }
    }
}

/// The time that one side has to end once the other has.
const FAREWELL: Duration = Duration::from_secs(5);

/// Passes on what each side sends, until one has ended and the other had its time to follow. `answer` is the backend's, which said
/// that the protocol changes.
///
/// # Errors
/// One side broke, or the client never got its answer.
pub async fn join(client: ClientEnd, answer: Response<TunnelBody>) -> io::Result<()> {
    let ClientEnd { upgrade, _open } = client;
    let (client, backend) = tokio::try_join!(upgrade, hyper::upgrade::on(answer)).map_err(io::Error::other)?;
    let (mut from_client, mut to_client) = tokio::io::split(TokioIo::new(client));
    let (mut from_backend, mut to_backend) = tokio::io::split(TokioIo::new(backend));
    let up = async {
        tokio::io::copy(&mut from_client, &mut to_backend).await?;
        to_backend.shutdown().await
    };
    let down = async {
        tokio::io::copy(&mut from_backend, &mut to_client).await?;
        to_client.shutdown().await
    };
    let (mut up, mut down) = (std::pin::pin!(up), std::pin::pin!(down));
    // A side that never ends would else keep the connection of one that has.
    tokio::select! {
        ended = &mut up => {
            ended?;
            tokio::time::timeout(FAREWELL, down).await.unwrap_or(Ok(()))
        }
        ended = &mut down => {
            ended?;
            tokio::time::timeout(FAREWELL, up).await.unwrap_or(Ok(()))
        }
    }
}
