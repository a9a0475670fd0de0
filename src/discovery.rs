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
use crate::config::{PlaneSettings, ServiceConfig, TargetConfig, is_name};
use crate::desired::{Address, ServiceKey, encode};
use crate::errors::{chain, kind, one_line};
use crate::fleet::Fleet;
use crate::leader::Lease;
use crate::nomad::{Nomad, NomadError};
use crate::plane::AccessError;
use crate::reconcile::{RETRY_MAX, retries};
use crate::report::{Failure, Outage};

/// Characters of an ID that stand for a node whose name cannot be used, as in Nomad's own tables.
const SHORT_ID: usize = 8;
/// Characters of a registration's ID in the log: a name by interpolation may have 66 kB (seen).
const LOGGED_ID: usize = 200;

/// The registrations of one service.
#[derive(Debug)]
pub struct Discovery {
    nomad: Nomad,
    config: ServiceConfig,
    /// The HAProxys that were found, by the IDs of their registrations; none before the first read.
    found: Option<BTreeMap<String, Found>>,
    /// The addresses of the HAProxys in the settings, as `ServiceConfig::target` writes them.
    fixed: BTreeSet<String>,
    outage: Outage,
    /// Registrations that the log has named as unusable, and why they are.
    refused: BTreeMap<String, String>,
}

/// Host and port of an API.
type Place = (Address, u16);

/// One of the HAProxys.
#[derive(Debug, Clone)]
struct Found {
    name: String,
    place: Place,
}

/// One that was not there before.
struct Arrival {
    id: String,
    found: Found,
    target: TargetConfig,
}

/// The part of `GET /v1/allocation/ID` that says where it runs.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Allocation {
    node_name: String,
}

impl Discovery {
    /// Nothing is read yet; `fixed` are the HAProxys of the settings. What a connection needs is tried, so that a bad
    /// `haproxy.ca_file` is reported at once.
    pub fn new(nomad: Nomad, config: ServiceConfig, fixed: &[TargetConfig]) -> Result<Self, AccessError> {
        drop(config.target(config.service.to_string(), "127.0.0.1", 1).connect(&Lease::ALWAYS)?);
        let fixed = fixed.iter().filter_map(api_address).map(|url| url.trim_end_matches('/').to_owned()).collect();
        Ok(Self { nomad, config, found: None, fixed, outage: Outage::default(), refused: BTreeMap::new() })
    }

    /// The service.
    pub fn service(&self) -> &ServiceKey {
        &self.config.service
    }

    /// The HAProxys that are registered now, for a command that does not follow them; `taken` are names of others.
    pub async fn list(&mut self, taken: &BTreeSet<String>) -> Result<Vec<TargetConfig>, NomadError> {
        let registered = self.registered().await?;
        let arrivals = self.arrivals(registered, |name| taken.contains(name)).await?;
        Ok(arrivals.into_iter().map(|arrival| arrival.target).collect())
    }

    /// Reads the registrations and makes the fleet follow them.
    async fn update(&mut self, fleet: &mut Fleet, connect: &impl Connect) -> Result<(), NomadError> {
        let registered = self.registered().await?;
        let is_there = |id: &String, found: &Found| registered.get(id).is_some_and(|(_, place)| *place == found.place);
        let is_first = self.found.is_none();
        let (stay, gone): (BTreeMap<_, _>, BTreeMap<_, _>) =
            self.found.take().unwrap_or_default().into_iter().partition(|(id, found)| is_there(id, found));
        self.found = Some(stay);
        for found in gone.values() {
            tracing::info!(haproxy = found.name, "a HAProxy is no longer registered; it keeps what it has");
            fleet.forget(&found.name).await;
        }
        let mut controllers = Vec::new();
        for Arrival { id, found, target } in self.arrivals(registered, |name| fleet.has(name)).await? {
            let (name, (address, port)) = (found.name.clone(), &found.place);
            match connect.controller(&target, fleet) {
                Ok(controller) => {
                    tracing::info!(haproxy = name, %address, port, "a HAProxy is registered");
                    controllers.push((name, controller));
                    self.found.get_or_insert_default().insert(id, found);
                }
                Err(error) => self.refuse(id, chain(&*error)),
            }
        }
        fleet.add_found(controllers);
        if self.found.as_ref().is_some_and(BTreeMap::is_empty) && (is_first || !gone.is_empty()) {
            tracing::warn!(service = %self.config.service, "no HAProxy is registered under this service");
        }
        Ok(())
    }

    /// The usable registrations by ID; of several with one address, one.
    async fn registered(&mut self) -> Result<BTreeMap<String, (Registration, Place)>, NomadError> {
        let service = &self.config.service;
        let path = format!("/v1/service/{}", encode(&service.name));
        let read = self.nomad.read::<Vec<Registration>>(&path, &[("namespace", &service.namespace)]).await?;
        let ids: BTreeSet<&String> = read.value.iter().map(|registration| &registration.id).collect();
        self.refused.retain(|id, _| ids.contains(id));
        let mut all = read.value;
        // One that is in use is not replaced by another one with its address.
        all.sort_by_key(|one| (!self.found.iter().any(|found| found.contains_key(&one.id)), one.create_index));
        let (mut registered, mut places) = (BTreeMap::new(), BTreeSet::new());
        for registration in all {
            let port = u16::try_from(registration.port).ok().filter(|port| *port > 0);
            match (registration.address.parse::<Address>(), port) {
                (Ok(address), Some(port)) if self.is_fixed(&address, port) => {
                    self.refuse(registration.id, "the settings name its HAProxy, too".to_owned());
                }
                (Ok(address), Some(port)) if places.insert((address.to_string(), port)) => {
                    registered.insert(registration.id.clone(), (registration, (address, port)));
                }
                (Ok(_), Some(_)) => self.refuse(registration.id, "another one has its address and port".to_owned()),
                _ => self.refuse(registration.id, "it has no address and port of a Data Plane API".to_owned()),
            }
        }
        Ok(registered)
    }

    fn is_fixed(&self, address: &Address, port: u16) -> bool {
        let target = self.config.target(String::new(), &address.to_string(), port);
        api_address(&target).is_some_and(|url| self.fixed.contains(url))
    }

    /// Those that were not there before.
    async fn arrivals(
        &mut self,
        registered: BTreeMap<String, (Registration, Place)>,
        is_taken: impl Fn(&str) -> bool,
    ) -> Result<Vec<Arrival>, NomadError> {
        let (mut arrivals, mut names) = (Vec::new(), BTreeSet::new());
        for (id, (registration, place)) in registered {
            if self.found.iter().any(|found| found.contains_key(&id)) {
                continue;
            }
            let node = self.node(&registration).await?;
            let (address, port) = &place;
            let candidates = [node.clone(), format!("{node}:{port}"), format!("{node}:{address}:{port}")];
            let Some(name) = candidates.into_iter().find(|name| !is_taken(name) && !names.contains(name)) else {
                self.refuse(id, format!("a HAProxy of another service is called {node}:{address}:{port}"));
                continue;
            };
            let target = self.config.target(name.clone(), &address.to_string(), *port);
            names.insert(name.clone());
            arrivals.push(Arrival { id, found: Found { name, place }, target });
        }
        Ok(arrivals)
    }

    /// The name of the node that it runs on, or the node's ID where Nomad says that there is no such name.
    async fn node(&self, registration: &Registration) -> Result<String, NomadError> {
        let path = format!("/v1/allocation/{}", encode(&registration.alloc_id));
        match self.nomad.read::<Allocation>(&path, &[]).await {
            Ok(read) if is_name(&read.value.node_name) => return Ok(read.value.node_name),
            Ok(_) => {}
            Err(error) if error.is_not_found() || matches!(error, NomadError::Denied { .. }) => {
                tracing::debug!(error = %chain(&error), "cannot read the name of a node; its ID stands for it");
            }
            Err(error) => return Err(error),
        }
        Ok(registration.node_id.chars().take(SHORT_ID).collect())
    }

    /// Logs once why a registration cannot be used.
    fn refuse(&mut self, id: String, why: String) {
        if self.refused.get(&id) != Some(&why) {
            let (service, shown) = (&self.config.service, id.chars().take(LOGGED_ID).collect::<String>());
            tracing::error!(%service, id = shown, %why, "a registration cannot be used");
            self.refused.insert(id, why);
        }
    }

    fn succeeded(&mut self) {
        if let Some(extent) = self.outage.over(Instant::now()) {
            let (service, failed, outage_s) = (&self.config.service, extent.failures, extent.seconds());
            tracing::info!(%service, failed, outage_s, "reading the HAProxys of a service again");
        }
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

fn api_address(target: &TargetConfig) -> Option<&str> {
    match &target.plane {
        PlaneSettings::Dataplane(api, _) => Some(&api.address),
        PlaneSettings::Local(_) => None,
    }
}

/// Makes a controller for a HAProxy that was found.
pub trait Connect {
    /// The controller; nothing is sent yet.
    fn controller(&self, target: &TargetConfig, fleet: &Fleet) -> anyhow::Result<Controller>;
}

/// Follows the registrations, for ever: at each change in Nomad's services, when a pass over one of the HAProxys fails,
/// and at least once in each interval.
pub async fn follow(fleet: &mut Fleet, mut discoveries: Vec<Discovery>, interval: Duration, connect: impl Connect) {
    let (mut changes, mut backoff) = (fleet.changes(), retries());
    loop {
        let (began, mut all_read) = (Instant::now(), true);
        for discovery in &mut discoveries {
            match discovery.update(fleet, &connect).await {
                Ok(()) => discovery.succeeded(),
                Err(error) => {
                    discovery.failed(&error);
                    all_read = false;
                }
            }
        }
        fleet.was_read(began, all_read);
        let pause = if all_read {
            backoff = retries();
            interval
        } else {
            backoff.next().unwrap_or(RETRY_MAX)
        };
        let next = Instant::now() + pause;
        tokio::select! {
            Ok(()) = changes.changed() => {}
            () = fleet.asked() => {}
            () = sleep_until(next) => {}
        }
    }
}
