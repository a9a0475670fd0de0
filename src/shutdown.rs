//! SIGTERM and SIGINT: the program ends within five seconds, whatever a client, HAProxy or Nomad does.
//!
//! A running pass has [`PASS`] to end, and pending answers have [`ANSWERS`], both from the signal on. Cancelling a pass
//! harms nothing: each of its steps may be the last one at any moment, and the next start repairs what it left. But
//! waiting for a reload that has begun is better than making it twice.

use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// How long a running pass is waited for. Most take milliseconds, and a reload takes a second.
pub const PASS: Duration = Duration::from_secs(4);
/// How long the clients of the HTTP listener have to take their answers.
pub const ANSWERS: Duration = Duration::from_secs(2);

/// A token that is cancelled by the first SIGTERM or SIGINT.
pub fn on_signal() -> std::io::Result<CancellationToken> {
    let stop = CancellationToken::new();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let cancelled = stop.clone();
    tokio::spawn(async move {
        let signal = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        };
        tracing::info!(signal, "stopping");
        cancelled.cancel();
    });
    Ok(stop)
}

/// Returns when a pass that is still running must be cancelled; never, unless there was a signal.
pub async fn pass_is_due(stop: &CancellationToken) {
    stop.cancelled().await;
    tokio::time::sleep(PASS).await;
}
