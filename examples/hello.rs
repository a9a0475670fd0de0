//! An HTTP server that returns its identity: the sample job of the demo and of the tests.
//!
//! Nomad sets where it listens (`NOMAD_ADDR_http`) and which allocation it is. On SIGTERM it stops accepting and
//! finishes its open requests.

use axum::Router;
use tokio::signal::unix::{SignalKind, signal};

fn variable(name: &str, default: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| default.to_owned())
}

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let address = variable("NOMAD_ADDR_http", "127.0.0.1:8000");
    let alloc: String = variable("NOMAD_ALLOC_ID", "unknown").chars().take(8).collect();
    let hello = format!("{alloc} version {}\n", variable("VERSION", "1"));
    let listener = tokio::net::TcpListener::bind(&address).await?;
    let mut terminate = signal(SignalKind::terminate())?;
    let router = Router::new().fallback(async move || hello.clone());
    axum::serve(listener, router)
        .with_graceful_shutdown(async move {
            terminate.recv().await;
        })
        .await
}
