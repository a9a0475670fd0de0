//! HAProxys that Nomad lists: each registration of a service is a Data Plane API, and a target for as long as it is
//! registered.
//!
//! A read that fails changes nothing. A HAProxy that is no longer listed is forgotten and left as it is: nothing is
//! written to it any more.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::Deserialize;
use tokio::time::{Instant, sleep_until};

use crate::apply::Controller;
use crate::catalog::Registration;
use crate::config::{ServiceConfig, TargetConfig};
use crate::desired::{Address, encode};
use crate::errors::{chain, kind, one_line};
use crate::fleet::Fleet;
use crate::nomad::{Nomad, NomadError};
use crate::reconcile::{RETRY_MAX, retries};
use crate::report::{Failure, Outage};

/// Characters of an ID that stand for a node whose name cannot be read, as in Nomad's own tables.
const SHORT_ID: usize = 8;

/// The registrations of one service.
#[derive(Debug)]
pub struct Discovery {
    nomad: Nomad,
    config: ServiceConfig,
    /// The HAProxys that were found, by the IDs of their registrations.
    found: BTreeMap<String, Found>,
    outage: Outage,
    /// Registrations that the log has named as unusable.
    refused: BTreeSet<String>,
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Found {
    name: String,
    address: Address,
    port: u16,
}

/// The part of `GET /v1/allocation/ID` that says where it runs.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Allocation {
    node_name: String,
}

impl Discovery {
    /// Nothing is read yet.
    pub fn new(nomad: Nomad, config: ServiceConfig) -> Self {
        Self { nomad, config, found: BTreeMap::new(), outage: Outage::default(), refused: BTreeSet::new() }
    }

    /// The HAProxys that are registered now, for a command that does not follow them; `taken` are names of others.
    pub async fn list(&mut self, taken: &BTreeSet<String>) -> Result<Vec<TargetConfig>, NomadError> {
        let (mut taken, mut targets) = (taken.clone(), Vec::new());
        for (registration, address, port) in self.registered().await?.into_values() {
            let name = self.name(&registration, port, |name| taken.contains(name)).await;
            taken.insert(name.clone());
            targets.push(self.config.target(name, &address.to_string(), port));
        }
        Ok(targets)
    }

    /// Reads the registrations and makes the fleet follow them. Returns whether they could be read.
    async fn update(&mut self, fleet: &mut Fleet, connect: &impl Connect) -> bool {
        let registered = match self.registered().await {
            Ok(registered) => registered,
            Err(error) => {
                self.failed(&error);
                return false;
            }
        };
        if let Some(extent) = self.outage.over(Instant::now()) {
            let (service, failed, outage_s) = (&self.config.service, extent.failures, extent.seconds());
            tracing::info!(%service, failed, outage_s, "reading the HAProxys of a service again");
        }
        let is_there = |id: &String, found: &Found| {
            registered.get(id).is_some_and(|(_, address, port)| (address, port) == (&found.address, &found.port))
        };
        let (stay, gone) = std::mem::take(&mut self.found).into_iter().partition(|(id, found)| is_there(id, found));
        self.found = stay;
        let gone: BTreeMap<String, Found> = gone;
        for found in gone.into_values() {
            tracing::info!(haproxy = found.name, "a HAProxy is no longer registered; it keeps what it has");
            fleet.forget(&found.name);
        }
        for (id, (registration, address, port)) in registered {
            if self.found.contains_key(&id) {
                continue;
            }
            let name = self.name(&registration, port, |name| fleet.has(name)).await;
            let target = self.config.target(name.clone(), &address.to_string(), port);
            match connect.controller(&target, fleet) {
                Ok(controller) => {
                    tracing::info!(haproxy = name, %address, port, "a HAProxy is registered");
                    fleet.add(&name, controller);
                    self.found.insert(id, Found { name, address, port });
                }
                Err(error) => tracing::error!(haproxy = name, error = %chain(&*error), "a HAProxy cannot be used"),
            }
        }
        true
    }

    /// The usable registrations by ID.
    async fn registered(&mut self) -> Result<BTreeMap<String, (Registration, Address, u16)>, NomadError> {
        let service = &self.config.service;
        let path = format!("/v1/service/{}", encode(&service.name));
        let read = self.nomad.read::<Vec<Registration>>(&path, &[("namespace", &service.namespace)]).await?;
        let mut registered = BTreeMap::new();
        let mut refused = BTreeSet::new();
        for registration in read.value {
            let port = u16::try_from(registration.port).ok().filter(|port| *port > 0);
            match (registration.address.parse(), port) {
                (Ok(address), Some(port)) => {
                    registered.insert(registration.id.clone(), (registration, address, port));
                }
                _ => {
                    refused.insert(registration.id);
                }
            }
        }
        for id in refused.difference(&self.refused) {
            let id: String = id.chars().take(200).collect();
            tracing::error!(%service, id, "a registration has no address and port of a Data Plane API");
        }
        self.refused = refused;
        Ok(registered)
    }

    /// The node's name; where another HAProxy has it, with the port.
    async fn name(&self, registration: &Registration, port: u16, is_taken: impl Fn(&str) -> bool) -> String {
        let path = format!("/v1/allocation/{}", encode(&registration.alloc_id));
        let node = match self.nomad.read::<Allocation>(&path, &[]).await {
            Ok(read) => read.value.node_name,
            Err(error) => {
                tracing::debug!(error = %chain(&error), "cannot read the name of a node; its ID stands for it");
                registration.node_id.chars().take(SHORT_ID).collect()
            }
        };
        if is_taken(&node) { format!("{node}:{port}") } else { node }
    }

    fn failed(&mut self, error: &NomadError) {
        let (service, kind, error) = (&self.config.service, kind(error), one_line(&chain(error)));
        match self.outage.failed(&kind, Instant::now()) {
            Failure::New => {
                tracing::error!(%service, %error, "cannot read the HAProxys of a service; those known stay");
            }
            Failure::Reminder(extent) => {
                let (failed, outage_s) = (extent.failures, extent.seconds());
                tracing::error!(%service, failed, outage_s, %error, "still cannot read the HAProxys of a service");
            }
            Failure::Known => tracing::debug!(%service, %error, "cannot read the HAProxys of a service, as before"),
        }
    }
}

/// Makes a controller for a HAProxy that was found.
pub trait Connect {
    /// The controller; nothing is sent yet.
    fn controller(&self, target: &TargetConfig, fleet: &Fleet) -> anyhow::Result<Controller>;
}

/// Follows the registrations, for ever: at each change of the catalog, and at least once in each interval.
pub async fn follow(fleet: &mut Fleet, mut discoveries: Vec<Discovery>, interval: Duration, connect: impl Connect) {
    let (mut changes, mut backoff) = (fleet.changes(), retries());
    loop {
        let mut all_read = true;
        for discovery in &mut discoveries {
            all_read &= discovery.update(fleet, &connect).await;
        }
        let pause = if all_read {
            backoff = retries();
            interval
        } else {
            backoff.next().unwrap_or(RETRY_MAX)
        };
        let next = Instant::now() + pause;
        tokio::select! {
            _ = changes.changed(), if all_read => {}
            () = sleep_until(next) => {}
        }
    }
}
