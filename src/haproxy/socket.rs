//! HAProxy's sockets: one command per connection, one answer (management guide, 9.3 and 9.4).

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// Why a command has no answer.
#[derive(Debug, Error)]
#[error("HAProxy's socket {path} does not answer: is HAProxy running, and may this user open the socket?")]
pub struct SocketError {
    path: PathBuf,
    #[source]
    source: std::io::Error,
}

impl SocketError {
    /// Whether there is no such socket, or no process that listens on it.
    pub fn nobody_listens(&self) -> bool {
        matches!(self.source.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused)
    }
}

/// Sends one command and reads the whole answer.
pub async fn command(path: &Path, command: &str, timeout: Duration) -> Result<String, SocketError> {
    let exchange = async {
        let mut stream = UnixStream::connect(path).await?;
        stream.write_all(format!("{command}\n").as_bytes()).await?;
        // The master closes the connection only after the whole answer.
        stream.shutdown().await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        Ok(String::from_utf8_lossy(&answer).trim().to_owned())
    };
    let timed_out = || std::io::Error::new(ErrorKind::TimedOut, format!("no answer within {timeout:?}"));
    let result: std::io::Result<String> =
        tokio::time::timeout(timeout, exchange).await.unwrap_or_else(|_| Err(timed_out()));
    result.map_err(|source| SocketError { path: path.to_owned(), source })
}
