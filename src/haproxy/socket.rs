//! HAProxy's sockets: one command per connection, one answer (management guide, 9.3 and 9.4).

use std::convert::Infallible;
use std::fmt;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::Instant;

/// Where a socket is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SocketAddress {
    /// A unix socket.
    Path(PathBuf),
    /// `host:port`, as in `stats socket ipv4@127.0.0.1:9999`.
    Tcp(String),
}

impl FromStr for SocketAddress {
    type Err = Infallible;

    /// What has no slash and ends in a port is `host:port`; anything else is a path.
    fn from_str(text: &str) -> Result<Self, Infallible> {
        let port = text.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse::<u16>().ok()?)));
        Ok(match port {
            Some((host, _)) if !host.is_empty() && !text.contains('/') => Self::Tcp(text.to_owned()),
            _ => Self::Path(text.into()),
        })
    }
}

impl fmt::Display for SocketAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => path.display().fmt(f),
            Self::Tcp(address) => f.write_str(address),
        }
    }
}

/// Until the next attempt to connect.
const PAUSE: Duration = Duration::from_millis(5);
/// For a master that replaces itself to listen again.
const REPLACED: Duration = Duration::from_secs(1);

/// Why a command has no answer.
#[derive(Debug, Error)]
#[error("HAProxy's socket {address} does not answer: is HAProxy running, and may this user open the socket?")]
pub struct SocketError {
    address: SocketAddress,
    #[source]
    source: std::io::Error,
}

impl SocketError {
    /// Whether there is no such socket, or no process that listens on it.
    pub fn nobody_listens(&self) -> bool {
        matches!(self.source.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused)
    }
}

/// Sends one command to a unix socket and reads the whole answer.
pub async fn command(path: &Path, command: &str, timeout: Duration) -> Result<String, SocketError> {
    SocketAddress::Path(path.to_owned()).command(command, timeout).await
}

impl SocketAddress {
    /// Sends one command and reads the whole answer.
    pub async fn command(&self, command: &str, timeout: Duration) -> Result<String, SocketError> {
        let exchange = async {
            match self {
                Self::Path(path) => exchange(connect(path).await?, command).await,
                Self::Tcp(address) => exchange(TcpStream::connect(address).await?, command).await,
            }
        };
        let timed_out = || std::io::Error::new(ErrorKind::TimedOut, format!("no answer within {timeout:?}"));
        let result: std::io::Result<String> =
            tokio::time::timeout(timeout, exchange).await.unwrap_or_else(|_| Err(timed_out()));
        result.map_err(|source| SocketError { address: self.clone(), source })
    }
}

/// Connects to a unix socket. One whose queue is full refuses with EAGAIN instead of waiting, as a TCP socket does
/// (unix(7); seen on the master of HAProxy 3.4 under load); and a master that replaces itself for a reload has nobody
/// who listens for a moment (seen on 3.2). Bounded by the time-out of the command.
async fn connect(path: &Path) -> std::io::Result<UnixStream> {
    let start = Instant::now();
    loop {
        match UnixStream::connect(path).await {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == ErrorKind::ConnectionRefused && start.elapsed() < REPLACED => {}
            result => return result,
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn exchange(mut stream: impl AsyncRead + AsyncWrite + Unpin, command: &str) -> std::io::Result<String> {
    stream.write_all(format!("{command}\n").as_bytes()).await?;
    // The master closes the connection only after the whole answer.
    stream.shutdown().await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A socket that accepts nobody yet, with a queue for one connection.
    #[tokio::test]
    async fn a_full_queue_is_waited_for() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("socket");
        let socket = tokio::net::UnixSocket::new_stream().expect("a socket");
        socket.bind(&path).expect("bound");
        let listener = socket.listen(0).expect("a listener");
        let waiting = UnixStream::connect(&path).await.expect("the queue has room for one");
        assert_eq!(UnixStream::connect(&path).await.expect_err("it is full").kind(), ErrorKind::WouldBlock);
        let asked = tokio::spawn(async move { command(&path, "show info", Duration::from_secs(60)).await });
        drop((listener.accept().await.expect("the first"), waiting));
        let (mut stream, _) = listener.accept().await.expect("the second");
        let mut command = String::new();
        stream.read_to_string(&mut command).await.expect("a command");
        stream.write_all(b"Uptime: 1\n").await.expect("an answer");
        drop(stream);
        assert_eq!(asked.await.expect("a task").expect("an answer"), "Uptime: 1");
    }

    /// A master that replaces itself leaves its socket behind, and binds another one to its path.
    #[tokio::test]
    async fn a_master_that_replaces_itself_is_waited_for() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("socket");
        drop(tokio::net::UnixListener::bind(&path).expect("a listener"));
        let refused = UnixStream::connect(&path).await.expect_err("nobody listens");
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        let (asked, bound) = tokio::join!(connect(&path), async {
            tokio::task::yield_now().await;
            let listener = tokio::net::UnixListener::bind(path.with_extension("new")).expect("a listener");
            std::fs::rename(path.with_extension("new"), &path).expect("renamed");
            listener
        });
        asked.expect("a connection");
        drop(bound);
        assert!(connect(&path).await.is_err(), "not for ever");
    }

    #[test]
    fn what_ends_in_a_port_is_an_address_and_anything_else_a_path() {
        let is_tcp = |text: &str| matches!(text.parse(), Ok(SocketAddress::Tcp(_)));
        assert!(is_tcp("127.0.0.1:9999") && is_tcp("lb.internal:9999") && is_tcp("[::1]:9999"));
        assert!(!is_tcp("/run/haproxy.sock") && !is_tcp("/run/a:1") && !is_tcp("haproxy.sock") && !is_tcp(":99"));
    }
}
