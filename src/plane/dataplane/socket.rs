//! A stats socket of the HAProxy behind the API (`haproxy.runtime_socket`), for what the API cannot do at run time.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::haproxy::socket::SocketAddress;
use crate::leader::Lease;

use super::super::worker::Worker;
use super::super::{AccessError, Cause};

/// The process ID that stands for none.
const NONE: u64 = 0;

/// The socket, and whether it is usable.
#[derive(Debug)]
pub(super) struct RuntimeSocket {
    address: SocketAddress,
    worker: Worker,
    /// The process that it was checked to belong to: the API's.
    checked: AtomicU64,
}

impl RuntimeSocket {
    /// Nothing is sent yet.
    pub(super) fn new(address: SocketAddress) -> Self {
        let worker = Worker::of_stats(address.clone(), Lease::ALWAYS);
        Self { worker, address, checked: AtomicU64::new(NONE) }
    }

    /// Writes for as long as this is good.
    pub(super) fn leased(self, lease: Lease) -> Self {
        Self { worker: Worker::of_stats(self.address.clone(), lease), ..self }
    }

    /// The process, if the last check went well.
    pub(super) fn worker(&self) -> Option<&Worker> {
        (self.checked.load(Ordering::Relaxed) != NONE).then_some(&self.worker)
    }

    /// Whether it is a socket of the API's process, of level admin. Asks only if the process is another one than at the
    /// last check.
    pub(super) async fn check(&self, pid: u64) -> Result<(), AccessError> {
        if pid != NONE && self.checked.swap(NONE, Ordering::Relaxed) == pid {
            self.checked.store(pid, Ordering::Relaxed);
            return Ok(());
        }
        let info = self.worker.command("show info").await.map_err(|error| {
            self.unusable("does not answer: is it a `stats socket` of this HAProxy, and may this user open it?", error)
        })?;
        let found = info.lines().find_map(|line| line.strip_prefix("Pid: ")?.parse::<u64>().ok());
        match found {
            Some(found) if found == pid => {}
            Some(found) => {
                return Err(self.unusable(
                    "belongs to another HAProxy than the Data Plane API: name a stats socket of the same one",
                    format!("its process is {found}, the API's is {pid}"),
                ));
            }
            None => {
                return Err(self.unusable(
                    "is no stats socket: name one of `stats socket PATH level admin`, not the master's",
                    info.lines().next().unwrap_or("it answers with nothing").to_owned(),
                ));
            }
        }
        let level = self.worker.command("show cli level").await?;
        if level != "admin" {
            return Err(self.unusable(
                "does not have the level admin, which it takes to add servers: add `level admin` to its `stats socket`",
                format!("its level is {level}"),
            ));
        }
        self.checked.store(pid, Ordering::Relaxed);
        Ok(())
    }

    /// It may be usable the next time: while HAProxy is reloaded, a socket may still lead to the old process.
    fn unusable(&self, why: &str, source: impl Into<Cause>) -> AccessError {
        let what = format!("haproxy.runtime_socket (HAPROXY_RUNTIME_SOCKET): {} {why}", self.address);
        AccessError::Unavailable { what, source: source.into() }
    }
}
