//! Real parts for the tests, the benchmarks and the demo: HAProxy, Nomad, the Data Plane API (or the fake one), HTTP
//! servers, and the controller itself. Whatever is started is ended when it is dropped.

#![allow(dead_code, unused_macros, reason = "every test binary uses its own part of this")]
#![allow(
    missing_docs,
    clippy::missing_panics_doc,
    clippy::unwrap_used,
    clippy::similar_names,
    unreachable_pub,
    reason = "tests"
)]

/// A test that runs a case on every series of HAProxy, on both planes; a failure names them.
macro_rules! everywhere {
    ($(#[$doc:meta])* $name:ident, $case:path) => {
        $(#[$doc])*
        #[tokio::test(flavor = "multi_thread")]
        async fn $name() {
            for series in $crate::support::haproxy::matrix() {
                for way in $crate::support::api::WAYS {
                    eprintln!("--- {} on HAProxy {series}, {way:?}", stringify!($name));
                    $case($crate::support::api::Rig::start(way, series).await, way).await;
                }
            }
        }
    };
}

pub mod api;
pub mod controller;
pub mod disk;
pub mod docs;
pub mod fake_api;
pub mod fleet;
pub mod gate;
pub mod haproxy;
pub mod load;
pub mod machine;
pub mod mariadb;
pub mod nomad;
pub mod passes;
pub mod playground;
pub mod process;
pub mod prometheus;
pub mod reader;
pub mod routes;
pub mod servers;
pub mod soak;
pub mod tls;

use std::collections::VecDeque;
use std::future::Future;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use tokio::net::TcpSocket;

/// The repository.
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// A port from the kernel for a server that is started later. It is kept until many others were given out: as long as a
/// socket here is bound to it and does not listen, the kernel gives it to no connection, and whoever sets `SO_REUSEADDR`,
/// as servers do, may listen on it (socket(7)).
pub fn free_port() -> u16 {
    static KEPT: Mutex<VecDeque<TcpSocket>> = Mutex::new(VecDeque::new());
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let port = socket.local_addr().unwrap().port();
    let mut kept = KEPT.lock().unwrap();
    kept.push_back(socket);
    if kept.len() > KEPT_PORTS {
        kept.pop_front();
    }
    port
}

/// Well below the number of files that a process may open.
const KEPT_PORTS: usize = 100;

/// Waits for a state; if it is not reached, panics with its name.
pub async fn wait_for<T, F: Future<Output = Option<T>>>(
    what: &str,
    timeout: Duration,
    mut state: impl FnMut() -> F,
) -> T {
    let deadline = Instant::now() + timeout;
    loop {
        if let Some(value) = state().await {
            return value;
        }
        assert!(Instant::now() < deadline, "waited {timeout:?} for {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
