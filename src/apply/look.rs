//! What a round starts from: HAProxy as it is, and the catalog.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use super::leaving::Found;
use super::memory::Process;
use super::{Controller, Moment, PassError, PassStatus, Stage};
use crate::catalog::shared::Reading;
use crate::desired::build::{self, Built, TargetNames};
use crate::desired::{BackendName, InstanceId, Occupant, ServiceKey};
use crate::observed::Observed;
use crate::plan::guard::Holding;
use crate::plan::{self, Growth, Part};
use crate::plane::{AccessError, Capabilities, HaproxyInfo, Runtime};

/// The input of one round.
pub(super) struct Seen {
    pub(super) info: HaproxyInfo,
    pub(super) moment: Moment,
    pub(super) observed: Observed,
    /// Including what the guard holds.
    pub(super) built: Built,
    /// What it holds.
    pub(super) holding: Option<Holding>,
    pub(super) process: Runtime,
    /// How servers come into it.
    pub(super) growth: Growth,
    /// Whether the process was actually read.
    pub(super) looked: bool,
    /// Why its maps could not be read.
    pub(super) maps_error: Option<AccessError>,
}

impl Controller {
    /// Whether an instance is gone that HAProxy still sends traffic to, as far as the catalog says now and HAProxy did
    /// in the last pass. Asks Nomad only.
    pub async fn has_leaver(&self, moment: Moment) -> bool {
        let seated: BTreeSet<_> = self.seated.seats.occupants().filter_map(Occupant::id).collect();
        if seated.is_empty() {
            return false;
        }
        let served = self.seated.seats.namespaces();
        let Ok(Reading { catalog, .. }) = self.source.read(&served, moment.catalog_since, None).await else {
            return false;
        };
        let registered: BTreeSet<_> = catalog.services.values().flatten().map(|one| InstanceId::new(&one.id)).collect();
        seated.into_iter().any(|id| !registered.contains(id))
    }

    /// Asks HAProxy which it is, and nothing else.
    pub async fn probe(&self) -> Result<(), AccessError> {
        self.plane.info().await.map(drop)
    }

    /// Finds out what HAProxy takes at run time, which the plan is sorted by.
    pub(super) async fn find_capabilities(&mut self, info: &HaproxyInfo) -> Result<(), AccessError> {
        let known = std::mem::take(&mut self.options.plan.capabilities);
        let found = self.plane.capabilities(info).await?;
        if found != known {
            let Capabilities { servers, backends } = found;
            tracing::debug!(servers, backends, "found out what HAProxy adds without a reload");
        }
        self.options.plan.capabilities = found;
        Ok(())
    }

    /// Reads what HAProxy has; the catalog is read once per pass.
    pub(super) async fn look(
        &mut self,
        info: HaproxyInfo,
        moment: Moment,
        reading: &mut Option<Reading>,
        status: &mut PassStatus,
    ) -> Result<Seen, PassError> {
        status.enter(Stage::Observe);
        let observed = self.plane.observe().await?;
        status.saw(&observed, &self.seated);
        self.memory.saw_file(observed.version);
        let known = self.memory.process(observed.version);
        let (observed, maps_error) = self.look_at_maps(observed, known == Process::Unknown).await;
        let present = Arc::new(observed.present());
        status.routes = present.routes.clone();
        let process = match known {
            Process::Unknown => Runtime { doubts: self.memory.doubts(), ..self.plane.runtime(&observed).await? },
            Process::Loaded { .. } => Runtime::loaded(&observed),
            Process::Agrees { .. } => Runtime::of(&observed).with_leaving(self.memory.leaving()),
        };
        status.enter(Stage::Catalog);
        let Reading { catalog, at } = match reading {
            Some(reading) => reading,
            None => {
                let (since, full_since) = (moment.catalog_since, moment.catalog_full_since);
                let read = self.source.read(&observed.namespaces(), since, full_since).await?;
                self.guard.saw_catalog(&read.catalog);
                reading.insert(read)
            }
        };
        status.index = catalog.index;
        (status.catalog_read, status.catalog) = (Some(*at), Some(catalog.clone()));
        let init_state = info.version.has_init_state();
        let targets = TargetNames { own: self.name.clone(), all: self.names.borrow().clone() };
        let options = build::Options { init_state, targets, ..self.options.build.clone() };
        let mut built = build::build(catalog, &present, &options);
        self.memory.keep_refusals(&built.desired, &observed);
        self.memory.keep_unresolved(&observed);
        let looked = known == Process::Unknown;
        if looked {
            self.memory.unresolved(plan::unresolved(&process, &observed), moment.instant);
        }
        status.became_ready.extend(self.arrivals.look(&built.desired, &observed, Instant::now()));
        let holding = self.guard.review(&self.source, &mut built, &observed, moment).await;
        let (seats, index) = (status.seats.clone(), status.index);
        self.found.send_replace(self.guard.is_calm().then_some(Found { seats, present, build: options, index }));
        status.guard.clone_from(&holding);
        status.namespaces.clone_from(&built.namespaces);
        self.options.plan.taken = process.surplus(&observed, self.options.plan.capabilities).collect();
        let growth = Growth::new(self.options.plan.capabilities, &built.desired);
        Ok(Seen { info, moment, observed, built, holding, process, growth, looked, maps_error })
    }
}

impl Seen {
    /// The services that a part belongs to.
    pub(super) fn concerned_by(&self, part: &Part) -> BTreeSet<ServiceKey> {
        let desired = &self.built.desired;
        match part {
            Part::Backend(name) => self.concerned(name),
            Part::Rules(frontend) => {
                let backends = desired.routes.get(frontend).into_iter().flat_map(|routes| routes.values());
                backends.flat_map(|name| self.concerned(name)).collect()
            }
            Part::Instance(name, id) => {
                let instances = desired.backends.get(name).into_iter().flat_map(|backend| &backend.instances);
                instances.filter(|instance| instance.id == *id).map(|instance| instance.service.clone()).collect()
            }
        }
    }

    /// The services that a backend is, or was, made for.
    pub(super) fn concerned(&self, name: &BackendName) -> BTreeSet<ServiceKey> {
        let Self { built, observed, .. } = self;
        let services = match (built.desired.backends.get(name), observed.backend(name)) {
            (Some(backend), _) => backend.services.as_slice(),
            (None, Some(backend)) => backend.ownership.services(),
            (None, None) => &[],
        };
        services.iter().cloned().collect()
    }
}
