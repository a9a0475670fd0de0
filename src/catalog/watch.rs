//! When the catalog changes. A change is a hint: the pass that it starts reads the whole catalog.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::errors::{chain, kind, one_line};
use crate::nomad::NomadError;
use crate::reconcile::{RETRY_MAX, retries};
use crate::report::{Failure, Outage};
use crate::status::Board;

use super::Source;
use super::nomad::NomadCatalog;

/// Between two polls of a catalog file.
const FILE_POLL: Duration = Duration::from_millis(200);

/// Publishes when the catalog changes, until it is stopped. Its own failures are for the passes to report: they read
/// the catalog too.
///
/// `begun` is cancelled when it notices every change from then on: a pass that reads the catalog after that needs no
/// second read for the first answer.
pub async fn watch(source: Source, changed: watch::Sender<Instant>, board: Arc<Board>, begun: CancellationToken) {
    match source {
        Source::Nomad(nomad) => watch_nomad(nomad, changed, &board, &begun).await,
        Source::File(path) => watch_file(path, changed, &begun).await,
        Source::Nothing => begun.cancel(),
    }
}

/// The file is polled, as not every file system reports changes.
async fn watch_file(path: PathBuf, changed: watch::Sender<Instant>, begun: &CancellationToken) {
    let look = async || tokio::fs::metadata(&path).await.ok().map(|file| (file.modified().ok(), file.len()));
    let mut known = look().await;
    begun.cancel();
    loop {
        tokio::time::sleep(FILE_POLL).await;
        let now = look().await;
        if now != known {
            changed.send_replace(Instant::now());
        }
        known = now;
    }
}

async fn watch_nomad(nomad: NomadCatalog, changed: watch::Sender<Instant>, board: &Board, begun: &CancellationToken) {
    let mut index = 0;
    let (mut backoff, mut outage) = (retries(), Outage::default());
    loop {
        // The first answer comes at once: it gives the index to wait from.
        let answer = nomad.changed(index).await;
        board.nomad_answered(answer.is_ok());
        let is_change = match answer {
            Ok(now) => {
                backoff = retries();
                if let Some(extent) = outage.over(Instant::now()) {
                    tracing::info!(failed = extent.failures, outage_s = extent.seconds(), "watching Nomad again");
                }
                // A lower index means a restore or another cluster: one more reason to run a pass.
                now != std::mem::replace(&mut index, now)
            }
            Err(error) => {
                index = 0;
                cannot_watch(&mut outage, &error)
            }
        };
        if is_change {
            changed.send_replace(Instant::now());
        }
        begun.cancel();
        if index == 0 {
            tokio::time::sleep(backoff.next().unwrap_or(RETRY_MAX)).await;
        }
    }
}

/// Whether to wake the loops: at the beginning of an outage a pass reports what it means for HAProxy, and whether the
/// catalog can still be read.
fn cannot_watch(outage: &mut Outage, error: &NomadError) -> bool {
    let (kind, error) = (kind(error), one_line(&chain(error)));
    match outage.failed(&kind, Instant::now()) {
        Failure::New => {
            tracing::warn!(%error, "cannot watch Nomad for changes; trying again");
            true
        }
        Failure::Reminder(extent) => {
            let (failed, outage_s) = (extent.failures, extent.seconds());
            tracing::warn!(failed, outage_s, %error, "still cannot watch Nomad for changes");
            false
        }
        Failure::Known => {
            tracing::debug!(%error, "cannot watch Nomad for changes, as before");
            false
        }
    }
}
