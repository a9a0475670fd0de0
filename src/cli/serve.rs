//! `run`: the controller, until SIGTERM.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, ensure};
use tokio_util::task::TaskTracker;

use crate::apply::Controller;
use crate::catalog::shared::SharedCatalog;
use crate::config::{Config, TargetConfig};
use crate::discovery::{Connect, follow};
use crate::fleet::{Faces, Fleet};
use crate::leader::{self, Elector, Lease};
use crate::telemetry::LogLevel;
use crate::{http, shutdown, target};

use super::targets::{NONE, catalog, discoveries, lock};

struct Connector<'a> {
    config: &'a Config,
    catalog: SharedCatalog,
    lease: Lease,
}

impl Connect for Connector<'_> {
    fn controller(&self, target: &TargetConfig, fleet: &Fleet) -> anyhow::Result<Controller> {
        Ok(target::controller(self.config, target, &self.catalog, fleet.names(), &self.lease)?)
    }
}

pub(super) async fn serve(config: &Config, file: Option<PathBuf>, level: LogLevel) -> anyhow::Result<ExitCode> {
    ensure!(!config.targets.is_empty(), NONE);
    let catalog = catalog(config, file)?;
    let lock = lock(config)?;
    let discoveries = discoveries(config)?;
    let stop = shutdown::on_signal()?;
    level.toggle_on_signal()?;
    let listen = config.listen;
    let listener = http::bind(listen).with_context(|| format!("cannot listen on {listen} (http.listen)"))?;
    let faces = Faces::default();
    let elector = match lock {
        Some(lock) => Some(Elector::start(lock, leader::me(Some(listener.local_addr()?)))),
        None => None,
    };
    let lease = elector.as_ref().map_or(Lease::ALWAYS, Elector::lease);
    let tasks = TaskTracker::new();
    if let Some(leadership) = lease.subscribe() {
        tasks.spawn(faces.board.clone().follow(leadership, stop.clone()));
    }
    let connector = Connector { config, catalog, lease };
    let mut fleet = Fleet::start(&connector.catalog, config, faces.clone(), stop.clone());
    let fixed = config.targets.fixed.iter();
    let fixed: anyhow::Result<Vec<_>> =
        fixed.map(|target| Ok((target.name.clone(), connector.controller(target, &fleet)?))).collect();
    let fixed = match fixed {
        Ok(fixed) => fixed,
        Err(error) => {
            // Another one need not wait for the lock of one that cannot start.
            if let Some(elector) = elector {
                elector.release().await;
            }
            return Err(error);
        }
    };
    tracing::info!(version = env!("CARGO_PKG_VERSION"), listen = %listener.local_addr()?, "started");
    faces.board.set_searching(!discoveries.is_empty());
    fleet.add_fixed(fixed);
    // Not before: without any HAProxy there is none that is not ready.
    let options = http::Options { access: config.access.clone(), prefix: config.prefix.clone(), level };
    let server = tasks.spawn(http::serve(listener, faces, options, stop.clone()));
    if !discoveries.is_empty() {
        let following = follow(&mut fleet, discoveries, config.timings.resync_interval, connector);
        stop.run_until_cancelled(following).await;
    }
    fleet.join().await;
    // No loop writes any more.
    if let Some(elector) = elector {
        elector.release().await;
    }
    tasks.close();
    tasks.wait().await;
    server.await?.context("the HTTP listener failed")?;
    Ok(ExitCode::SUCCESS)
}
