//! One HAProxy: its controller, from the settings.

use std::time::Duration;

use crate::apply::{Controller, Moment, Options};
use crate::catalog::Source;
use crate::catalog::shared::SharedCatalog;
use crate::config::{Config, TargetConfig, TargetOptions};
use crate::desired::build;
use crate::fleet::Names;
use crate::leader::Lease;
use crate::plan;
use crate::plan::guard;
use crate::plane::AccessError;

/// The controller of one HAProxy, which writes for as long as the lease is good; nothing is sent yet.
pub fn controller(
    config: &Config,
    target: &TargetConfig,
    catalog: &SharedCatalog,
    names: Names,
    lease: &Lease,
) -> Result<Controller, AccessError> {
    let options = options(config, &target.options);
    let controller = Controller::new(target.connect(lease)?, catalog.clone(), options);
    Ok(controller.named(target.name.clone(), names).leased(lease.clone()))
}

/// A controller that removes everything of ours from one HAProxy, and needs no catalog for that; nothing is sent yet.
pub fn remover(config: &Config, target: &TargetConfig, lease: &Lease) -> Result<Controller, AccessError> {
    let mut options = options(config, &target.options);
    options.plan.uninstall = true;
    options.plan.linger = Duration::ZERO;
    options.guard = guard::Options::OFF;
    let plane = target.connect_to_uninstall(lease)?;
    Ok(Controller::new(plane, SharedCatalog::new(Source::Nothing), options).leased(lease.clone()))
}

/// How a controller plans and writes.
pub fn options(config: &Config, target: &TargetOptions) -> Options {
    let Config { prefix, grants, linger, guard, reload_min_interval, .. } = config;
    let TargetOptions { owner, slots, strategy, validation_timeout: _, frontend } = target;
    Options {
        build: build::Options {
            prefix: prefix.clone(),
            owner: owner.clone(),
            slots: *slots,
            // Each pass reads the version of its HAProxy, and which other HAProxys there are.
            init_state: true,
            targets: build::TargetNames::default(),
            lingers: !linger.is_zero(),
            grants: grants.clone(),
            frontend: frontend.clone(),
        },
        plan: plan::Options {
            strategy: *strategy,
            linger: *linger,
            now: Moment::now(true).clock,
            ..plan::Options::new(owner.clone())
        },
        guard: *guard,
        reload_min_interval: *reload_min_interval,
    }
}
