//! HTTP servers that say who they are, in this process.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use axum::Router;
use axum::http::StatusCode;
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
