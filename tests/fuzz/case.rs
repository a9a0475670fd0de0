//! A case: a configuration file, settings, and what happens step by step.

use std::fmt;
use std::time::Duration;

use nomad_haproxy::catalog::{Catalog, Registration, Unread};
use nomad_haproxy::desired::build;
use nomad_haproxy::desired::{BackendName, Grant, Grants, InstanceId, Owner, ServiceKey, SlotPolicy};
use nomad_haproxy::plan::guard::{self, Policy, Share};
use nomad_haproxy::plan::{self, LeftOut, Part, Strategy as Taken};
use nomad_haproxy::plane::Capabilities;
use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::hand::{self, Edit};
use super::{catalog, config, validate};

/// The first step's time, since 1970.
const START: Duration = Duration::from_secs(1_750_000_000);

#[derive(Clone)]
pub struct Case {
    pub file: Vec<u8>,
    pub settings: Settings,
    pub steps: Vec<Step>,
    /// The HAProxy that validates it, if any.
    pub haproxy: Option<usize>,
}

#[derive(Clone)]
pub struct Settings {
    pub taken: Taken,
    pub linger: Duration,
    pub slots: SlotPolicy,
    pub init_state: bool,
    /// What HAProxy takes at run time.
    pub capabilities: Capabilities,
    /// The grants of each namespace: its backends, and whether it may join existing ones.
    pub namespaces: Vec<(&'static str, Vec<&'static str>, bool)>,
    /// The same.
    pub grants: Grants,
    /// What may not be missing from the catalog without proof.
    pub guard: guard::Options,
    /// The frontend of services that name none.
    pub frontend: Option<&'static str>,
}

/// One pass, and what a person did before it.
#[derive(Clone)]
pub struct Step {
    pub hand: Vec<Edit>,
    /// The time since the step before; negative if the clock was set back.
    pub milliseconds: i64,
    pub registrations: Vec<Registration>,
    pub unreadable: Vec<ServiceKey>,
    /// Namespaces without a list, and whether that is since they do not exist.
    pub unread: Vec<(&'static str, bool)>,
    /// What HAProxy refuses.
    pub refused: Vec<Part>,
}

impl Step {
    pub fn catalog(&self) -> Catalog {
        self.catalog_of(self.registrations.iter())
    }

    /// The same in another order, as another answer from Nomad may list it.
    pub fn reversed(&self) -> Catalog {
        self.catalog_of(self.registrations.iter().rev())
    }

    pub fn refused(&self) -> LeftOut {
        self.refused.iter().cloned().collect()
    }

    fn catalog_of<'a>(&self, list: impl Iterator<Item = &'a Registration>) -> Catalog {
        let unreadable = self.unreadable.iter().map(|service| (service.clone(), "no such URL".to_owned())).collect();
        let why = |is_missing| if is_missing { Unread::Missing } else { Unread::Failed("403".to_owned()) };
        let namespaces = self.unread.iter().map(|(name, is_missing)| ((*name).to_owned(), why(*is_missing))).collect();
        let mut catalog = Catalog { index: 1, unreadable, namespaces, ..Catalog::default() };
        // Of a namespace without a list there are no registrations.
        for one in list.filter(|one| self.unread.iter().all(|(name, _)| *name != one.namespace)) {
            catalog.services.entry(one.service()).or_default().push(one.clone());
        }
        catalog
    }
}

impl Settings {
    pub fn owner() -> Owner {
        "nomad".parse().expect("an owner")
    }

    pub fn build(&self) -> build::Options {
        let Self { slots, init_state, linger, .. } = *self;
        let lingers = !linger.is_zero();
        build::Options {
            targets: build::TargetNames::default(),
            frontend: self.frontend.map(|name| name.parse().expect("a name")),
            prefix: "haproxy.".to_owned(),
            owner: Self::owner(),
            slots,
            init_state,
            lingers,
            grants: self.grants.clone(),
        }
    }

    pub fn plan(&self, now: Duration) -> plan::Options {
        plan::Options {
            strategy: self.taken,
            linger: self.linger,
            now,
            capabilities: self.capabilities,
            ..plan::Options::new(Self::owner())
        }
    }
}

fn grants(namespaces: &[(&'static str, Vec<&'static str>, bool)]) -> Grants {
    let entry = |(name, backends, join): &(&str, Vec<&str>, bool)| {
        let backends = backends.iter().map(|glob| (*glob).to_owned()).collect();
        ((*name).to_owned(), Grant { backends, join: *join, domains: None })
    };
    Grants::new(&namespaces.iter().map(entry).collect()).expect("globs")
}

/// The clock after a step.
pub fn moved(now: Option<Duration>, milliseconds: i64) -> Duration {
    let Some(now) = now else { return START };
    let by = Duration::from_millis(milliseconds.unsigned_abs());
    if milliseconds < 0 { now.saturating_sub(by) } else { now + by }
}

fn settings() -> impl Strategy<Value = Settings> {
    let taken =
        prop_oneof![6 => Just(Taken::UseExisting), 1 => Just(Taken::CreateNew), 1 => Just(Taken::FailOnConflict)];
    let linger = select(&[0, 0, 60, 600, u64::MAX][..]).prop_map(Duration::from_secs);
    let globs = prop::collection::vec(select(&["*", "shop", "a*", "from"][..]), 0..3);
    let entry = (select(&["*", "default", "team-*", "team-b"][..]), globs, any::<bool>());
    let namespaces = prop_oneof![
        2 => Just(Vec::new()),
        2 => Just(vec![("*", vec!["*"], true)]),
        1 => prop::collection::vec(entry, 1..3),
    ];
    let defaults = guard::Options { share: Share::DEFAULT, min: 5, policy: Policy::Sync };
    let guard = prop_oneof![
        6 => Just(guard::Options::OFF),
        1 => Just(defaults),
        1 => Just(guard::Options { policy: Policy::UpsertOnly, ..defaults }),
    ];
    let versions = any::<(bool, bool, bool)>();
    let frontend = select(&[None, Some("web"), Some("api")][..]);
    (taken, linger, 0u32..=4, select(&[64u32, 64, 4, 1, 0][..]), versions, namespaces, guard, frontend).prop_map(
        |(taken, linger, min_free, max, (init_state, servers, backends), namespaces, guard, frontend)| Settings {
            taken,
            linger,
            slots: SlotPolicy { min_free, max },
            init_state,
            capabilities: Capabilities { servers, backends: servers && backends },
            grants: grants(&namespaces),
            namespaces,
            guard,
            frontend,
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    let times = &[0, 1, 500, 1000, 30_000, 60_000, 90_000_000, -10_000][..];
    let unreadable = prop_oneof![
        20 => Just(Vec::new()),
        1 => select(&["api", "shop", "a/b"][..])
            .prop_map(|name| vec![ServiceKey { namespace: "default".to_owned(), name: name.to_owned() }]),
    ];
    let unread = prop_oneof![
        20 => Just(Vec::new()),
        1 => (select(&["default", "team-a"][..]), any::<bool>()).prop_map(|one| vec![one]),
    ];
    let backend = || select(&["api", "shop", "theirs"][..]).prop_map(|name| name.parse().expect("a name"));
    let instance = (backend(), select(&["i0", "i1"][..]));
    let refused = prop_oneof![
        20 => Just(Vec::new()),
        1 => backend().prop_map(|name| vec![Part::Backend(name)]),
        1 => Just(vec![Part::Rules("web".parse().expect("a name"))]),
        1 => instance.prop_map(|(name, id): (BackendName, _)| vec![Part::Instance(name, InstanceId::new(id))]),
    ];
    (hand::edits(), select(times), catalog::registrations(), unreadable, unread, refused).prop_map(
        |(hand, milliseconds, registrations, unreadable, unread, refused)| Step {
            hand,
            milliseconds,
            registrations,
            unreadable,
            unread,
            refused,
        },
    )
}

/// Cases, of which HAProxy validates one in `sample`.
pub fn cases(sample: u32) -> impl Strategy<Value = Case> {
    let series = validate::series().len();
    let haproxy = match (sample, series) {
        (0, _) | (_, 0) => Just(None).boxed(),
        (1, _) => any::<Index>().prop_map(move |at| Some(at.index(series))).boxed(),
        _ => prop_oneof![
            sample - 1 => Just(None),
            1 => any::<Index>().prop_map(move |at| Some(at.index(series))),
        ]
        .boxed(),
    };
    (config::files(), settings(), prop::collection::vec(step(), 1..=5), haproxy).prop_map(
        |(file, mut settings, steps, haproxy)| {
            settings.init_state &= haproxy.is_none_or(validate::has_init_state);
            Case { file, settings, steps, haproxy }
        },
    )
}

/// As short as a person can read it, and complete enough to write a test from it.
impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, settings, steps, haproxy } = self;
        writeln!(f, "\nfile:\n{}", shown(file))?;
        writeln!(f, "{settings:?}")?;
        if let Some(at) = haproxy {
            writeln!(f, "HAProxy {}", validate::series()[*at].0)?;
        }
        for (number, step) in steps.iter().enumerate() {
            writeln!(f, "step {number}: {step:?}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { taken, linger, slots, init_state, capabilities, namespaces, grants: _, guard, frontend } = self;
        write!(f, "{taken:?}, linger {linger:?}, {slots:?}, init-state {init_state}, {capabilities:?}, ")?;
        write!(f, "{namespaces:?}, {guard:?}, {frontend:?}")
    }
}

impl fmt::Debug for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { hand, milliseconds, registrations, unreadable, unread, refused } = self;
        write!(f, "{milliseconds} ms later")?;
        let mut list = |what: &str, text: String, is_empty: bool| {
            if is_empty { Ok(()) } else { write!(f, "; {what} {text}") }
        };
        list("by hand", format!("{hand:?}"), hand.is_empty())?;
        list("unreadable", format!("{unreadable:?}"), unreadable.is_empty())?;
        list("unread", format!("{unread:?}"), unread.is_empty())?;
        list("refused", format!("{refused:?}"), refused.is_empty())?;
        for Registration { id, service_name, namespace, alloc_id, tags, address, port, create_index, .. } in
            registrations
        {
            write!(f, "\n  {namespace:?}/{service_name:?} {id:?} of {alloc_id:?} at {address:?}:{port}, ")?;
            write!(f, "created {create_index}, {tags:?}")?;
        }
        Ok(())
    }
}

/// Bytes with what cannot be seen escaped, line by line.
pub fn shown(bytes: &[u8]) -> String {
    let lines = bytes.split_inclusive(|byte| *byte == b'\n');
    lines.map(|line| format!("  | {}\n", line.escape_ascii())).collect()
}
