//! Passes of a controller in the test's own process, at the times that the test sets.

use std::sync::Arc;
use std::time::Duration;

use nomad_haproxy::apply::{Controller, Moment, Options, PassStatus};
use nomad_haproxy::catalog::Source;
use nomad_haproxy::catalog::shared::SharedCatalog;
use nomad_haproxy::desired::build::{self, TargetNames};
use nomad_haproxy::desired::{Grants, Owner, SlotPolicy};
use nomad_haproxy::plan;
use nomad_haproxy::plane::Plane;
use nomad_haproxy::plane::dataplane::{Dataplane, DataplaneConfig, Write};

use super::api::Rig;

pub fn owner() -> Owner {
    "nomad".parse().unwrap()
}

pub fn dataplane(rig: &Rig) -> Dataplane {
    let config = DataplaneConfig::new(&rig.api.as_ref().unwrap().url, "admin", "secret".to_owned().into());
    Dataplane::new(config, owner(), Write::Auto).unwrap()
}

/// Over the catalog of the rig; nothing lingers, waits or is held.
pub fn controller(rig: &Rig, plane: Arc<dyn Plane>) -> Controller {
    let options = Options {
        build: build::Options {
            prefix: "haproxy.".into(),
            owner: owner(),
            slots: SlotPolicy { min_free: 2, max: 16 },
            init_state: true,
            lingers: false,
            grants: Grants::default(),
            targets: TargetNames::default(),
            frontend: None,
        },
        plan: plan::Options::new(owner()),
        guard: plan::guard::Options::OFF,
        reload_min_interval: Duration::ZERO,
    };
    Controller::new(plane, SharedCatalog::new(Source::File(rig.catalog())), options)
}

/// Runs a pass this many seconds after the start.
pub async fn pass(controller: &mut Controller, start: Moment, seconds: u64) -> PassStatus {
    let instant = start.instant + Duration::from_secs(seconds);
    controller.pass(Moment { instant, catalog_since: tokio::time::Instant::now(), ..start }, None).await
}
