//! HTTP servers that return their name, servers of plain TCP, and servers that keep what they are sent, in this process.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::http::StatusCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;

pub struct Server {
    pub address: SocketAddr,
    pub requests: Arc<AtomicU64>,
    pub healthy: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Server {
    pub async fn start(name: &str) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (requests, healthy) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(true)));
        let (name, counted, health) = (name.to_owned(), requests.clone(), healthy.clone());
        let router = Router::new()
            .route(
                "/health",
                axum::routing::get(async move || match health.load(Ordering::Relaxed) {
                    true => StatusCode::OK,
                    false => StatusCode::SERVICE_UNAVAILABLE,
                }),
            )
            .fallback(async move || {
                counted.fetch_add(1, Ordering::Relaxed);
                name.clone()
            });
        let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { address, requests, healthy, task }
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A server that does not speak HTTP: it accepts connections, and sends one word on each if it has one.
pub struct Plain {
    port: u16,
    word: Arc<Mutex<String>>,
    task: JoinHandle<()>,
}

impl Plain {
    /// One that sends nothing.
    pub async fn start() -> Self {
        Self::saying("").await
    }

    /// One that sends this and hangs up, as an agent does (configuration manual, `agent-check`).
    pub async fn saying(word: &str) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let word = Arc::new(Mutex::new(word.to_owned()));
        let said = word.clone();
        let task = tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let word = said.lock().unwrap().clone();
                tokio::spawn(async move {
                    if word.is_empty() {
                        let _ = stream.read_to_end(&mut Vec::new()).await;
                    } else {
                        let _ = stream.write_all(format!("{word}\n").as_bytes()).await;
                    }
                });
            }
        });
        Self { port, word, task }
    }

    pub fn says(&self, word: &str) {
        word.clone_into(&mut self.word.lock().unwrap());
    }

    pub fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for Plain {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A server of one connection after the other's end, which keeps every byte that it is sent. It answers a request with its
/// name; one for `/slow` never, and one for `/tunnel` by switching protocols, after which it is silent.
pub struct Recorder {
    port: u16,
    seen: Arc<Mutex<Vec<Vec<u8>>>>,
    task: JoinHandle<()>,
}

impl Recorder {
    /// One that answers with a status, such as `200 OK`.
    pub async fn start(name: &str, status: &str) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
        let answer = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{name}", name.len());
        let all = seen.clone();
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let at = {
                    let mut all = all.lock().unwrap();
                    all.push(Vec::new());
                    all.len() - 1
                };
                tokio::spawn(Self::serve(stream, all.clone(), at, answer.clone()));
            }
        });
        Self { port, seen, task }
    }

    async fn serve(mut stream: tokio::net::TcpStream, all: Arc<Mutex<Vec<Vec<u8>>>>, at: usize, answer: String) {
        let mut buffer = [0; 4096];
        loop {
            let Ok(read @ 1..) = stream.read(&mut buffer).await else { return };
            let request = {
                let mut all = all.lock().unwrap();
                all[at].extend(&buffer[..read]);
                String::from_utf8_lossy(&all[at]).into_owned()
            };
            if !(request.contains(" HTTP/1.") && request.ends_with("\r\n\r\n")) || request.contains(" /slow ") {
                continue;
            }
            if request.contains(" /tunnel ") {
                let answer = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: raw\r\nConnection: Upgrade\r\n\r\n";
                let _ = stream.write_all(answer.as_bytes()).await;
                continue;
            }
            let _ = stream.write_all(answer.as_bytes()).await;
            return;
        }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// What came on each connection, as text.
    pub fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap().iter().map(|bytes| String::from_utf8_lossy(bytes).into_owned()).collect()
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.task.abort();
    }
}
