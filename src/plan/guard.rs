//! The guard: holds what one read would remove, if it is too much, until there is proof or a person decides. Pure.
//!
//! A Nomad that was wiped, restored from an old snapshot or queried for the wrong namespace answers like one in which
//! all jobs were stopped. The allocations show the difference: one that Nomad still knows, and that is stopping or
//! terminal, is gone for good; one that it does not know proves nothing. So below its limits the guard allows every
//! removal; above them it queries each instance that vanished, and holds those without proof.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize, Serializer};

use crate::desired::build::Built;
use crate::desired::{Code, InstanceId, Note, Occupant, ServiceKey, Severity};
use crate::observed::Observed;

/// A share of the servers in service, 1 to 100 %.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Share(u8);

impl Share {
    /// 30 %: more than a large deployment replaces at once, less than an outage removes.
    pub const DEFAULT: Self = Self(30);
    /// 100 %, which turns the guard off.
    pub const OFF: Self = Self(100);
}

impl FromStr for Share {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let percent = text.trim().strip_suffix('%').and_then(|number| number.trim_end().parse().ok());
        match percent {
            Some(percent @ 1..=100) => Ok(Self(percent)),
            _ => Err(format!("invalid share {text:?}: use 1% to 100%; 100% turns the guard off")),
        }
    }
}

impl TryFrom<String> for Share {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// Which removals need proof (`policy`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// Those above the guard's limits.
    #[default]
    Sync,
    /// All: no instance is removed before its allocation is known to be gone.
    UpsertOnly,
}

/// The settings of the guard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Removals above this share of the servers in service need proof. 100 % turns the guard off, also for a read that
    /// removes all of them.
    pub share: Share,
    /// Fewer removals than this never exceed the share; a read that removes all servers trips the guard whatever their
    /// number.
    pub min: usize,
    /// Whether every removal needs proof.
    pub policy: Policy,
}

impl Options {
    /// No removal needs proof: the guard is turned off, or a person allows the removals.
    pub const OFF: Self = Self { share: Share::OFF, min: 0, policy: Policy::Sync };
}

/// An instance that is in a server of ours, and that the catalog lacks.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Vanished {
    /// The registration.
    pub id: InstanceId,
    /// Its allocation, as in the server's metadata.
    pub alloc: String,
    /// Its service; `None` if a line of 0.1 does not name it.
    pub service: Option<ServiceKey>,
}

/// What became of an instance that vanished.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// Nomad reports that it is stopping, has ended, or was withdrawn: it is removed at once.
    Gone,
    /// Its allocation runs, and its job still has the service.
    Running,
    /// Nomad does not know its allocation.
    Unknown,
    /// There was no answer from Nomad.
    Unreadable(String),
    /// The catalog comes from a file, so there is nothing to query.
    Unasked,
}

impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gone => f.write_str("Nomad says that its allocation is gone"),
            Self::Running => f.write_str("Nomad says that its allocation runs"),
            Self::Unknown => f.write_str("Nomad does not know its allocation"),
            Self::Unreadable(why) => write!(f, "its allocation cannot be read: {why}"),
            Self::Unasked => f.write_str("a catalog file does not say what became of its allocation"),
        }
    }
}

/// Why removals need proof.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// `policy` is `upsert-only`.
    Policy,
    /// Nomad's index went back: its state was restored or wiped, or this is another cluster.
    IndexWentBack,
    /// A namespace that is watched does not exist.
    NoNamespace,
    /// The read removes every server.
    All {
        /// How many.
        seated: usize,
    },
    /// The read removes more than the share.
    Share {
        /// How many.
        vanished: usize,
        /// Of how many.
        seated: usize,
    },
    /// An earlier read was one of these, and something is still held.
    Earlier,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Policy => f.write_str("the policy is upsert-only"),
            Self::IndexWentBack => f.write_str("Nomad's index went back"),
            Self::NoNamespace => f.write_str("a namespace that is watched does not exist"),
            Self::All { seated } => write!(f, "the catalog lacks all {seated} instances in service"),
            Self::Share { vanished, seated } => {
                write!(f, "the catalog lacks {vanished} of {seated} instances in service")
            }
            Self::Earlier => f.write_str("an earlier read of the catalog lacked too many instances"),
        }
    }
}

impl Serialize for Reason {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What the guard remembers from earlier passes.
#[derive(Debug, Clone, Copy)]
pub struct Past<'a> {
    /// The instances that the last pass held.
    pub held: &'a BTreeMap<InstanceId, Fate>,
    /// Whether the index went back, and some of the instances that vanished then are not accounted for yet.
    pub index_went_back: bool,
}

/// What one read removes, before any query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// Why it needs proof, if it does.
    reason: Option<Reason>,
    vanished: Vec<Vanished>,
}

impl Missing {
    /// Compares what HAProxy serves with the catalog. Instances that are held with their service or namespace are not
    /// counted on either side.
    pub fn new(built: &Built, observed: &Observed, options: &Options, past: Past) -> Self {
        let servers = observed.managed().flat_map(|(_, backend)| &backend.servers);
        Self::of(built, servers.map(|server| &server.occupant), options, past)
    }

    /// The same, from the occupants of all servers of ours.
    pub fn of<'a>(
        built: &Built,
        occupants: impl IntoIterator<Item = &'a Occupant>,
        options: &Options,
        past: Past,
    ) -> Self {
        let backends = built.desired.backends.values();
        let present: BTreeSet<&InstanceId> =
            backends.flat_map(|backend| &backend.instances).map(|instance| &instance.id).collect();
        let (mut vanished, mut seated) = (Vec::new(), 0);
        for occupant in occupants {
            let Occupant::Instance { id, alloc, service, drain: _ } = occupant else { continue };
            // An instance that its own tags turn off is not lost.
            if built.held.keeps(occupant) || built.declined.contains(id) {
                continue;
            }
            seated += 1;
            if !present.contains(id) {
                vanished.push(Vanished { id: id.clone(), alloc: alloc.clone(), service: service.clone() });
            }
        }
        vanished.sort();
        let is_earlier = vanished.iter().any(|one| past.held.contains_key(&one.id));
        let reason = options.reason(built, vanished.len(), seated, past.index_went_back, is_earlier);
        Self { reason, vanished }
    }

    /// The instances that are in a server, and not in the catalog.
    pub fn vanished(&self) -> &[Vanished] {
        &self.vanished
    }

    /// The instances that need proof to be removed.
    pub fn needs_proof(&self) -> &[Vanished] {
        if self.reason.is_some() { &self.vanished } else { &[] }
    }

    /// The instances that stay. One without an answer was not queried.
    pub fn verdict(self, fates: &BTreeMap<InstanceId, Fate>) -> Option<Holding> {
        let Self { reason, vanished } = self;
        let fate = |one: &Vanished| fates.get(&one.id).cloned().unwrap_or(Fate::Unasked);
        let held: Vec<_> = vanished
            .into_iter()
            .map(|one| (fate(&one), one))
            .filter(|(fate, _)| *fate != Fate::Gone)
            .map(|(fate, one)| (one, fate))
            .collect();
        reason.filter(|_| !held.is_empty()).map(|reason| Holding { reason, held })
    }
}

/// For a plan from two files, without queries and memory. Has the desired state hold the instances that stay.
pub fn offline(built: &mut Built, observed: &Observed, options: &Options) -> Option<Holding> {
    let past = Past { held: &BTreeMap::new(), index_went_back: false };
    let holding = Missing::new(built, observed, options, past).verdict(&BTreeMap::new())?;
    holding.hold(built);
    Some(holding)
}

impl Options {
    fn reason(self, built: &Built, vanished: usize, seated: usize, went_back: bool, earlier: bool) -> Option<Reason> {
        let Self { share, min, policy } = self;
        let no_namespace = || built.namespaces.iter().any(|note| note.code == Code::MissingNamespace);
        match (vanished, policy) {
            (0, _) => None,
            (_, Policy::UpsertOnly) => Some(Reason::Policy),
            _ if share == Share::OFF => None,
            _ if went_back => Some(Reason::IndexWentBack),
            _ if no_namespace() => Some(Reason::NoNamespace),
            _ if vanished == seated => Some(Reason::All { seated }),
            _ if vanished >= min && vanished * 100 > seated * usize::from(share.0) => {
                Some(Reason::Share { vanished, seated })
            }
            _ if earlier => Some(Reason::Earlier),
            _ => None,
        }
    }
}

/// The instances that stay although the catalog lacks them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holding {
    reason: Reason,
    /// At least one; sorted.
    held: Vec<(Vanished, Fate)>,
}

/// What a person can do to have what is held removed.
pub const RELEASE: &str = "nomad-haproxy apply --allow-removals";
/// The same, at a controller that runs.
pub const RELEASE_BY_API: &str = "POST /api/v1/guard/release";

impl Holding {
    /// Why.
    pub fn reason(&self) -> Reason {
        self.reason
    }

    /// How many instances are held.
    pub fn instances(&self) -> usize {
        self.held.len()
    }

    /// The instances that are held, and what is known about them.
    pub fn fates(&self) -> impl Iterator<Item = (&InstanceId, &Fate)> {
        self.held.iter().map(|(one, fate)| (&one.id, fate))
    }

    /// Has the desired state hold them, with a note for each service.
    pub fn hold(&self, built: &mut Built) {
        built.held.instances.extend(self.fates().map(|(id, _)| id.clone()));
        built.notes.extend(self.notes());
        built.notes.sort();
    }

    /// By service: how many instances, and what is known about the first.
    fn services(&self) -> BTreeMap<Option<&ServiceKey>, (usize, &Fate)> {
        let mut services = BTreeMap::new();
        for (one, fate) in &self.held {
            services.entry(one.service.as_ref()).or_insert((0, fate)).0 += 1;
        }
        services
    }

    /// A note for each service.
    fn notes(&self) -> Vec<Note> {
        let note = |(service, (count, fate)): (Option<&ServiceKey>, (usize, &Fate))| {
            let instances = counted(count);
            let text = format!(
                "the guard holds {instances} that the catalog lacks: {fate}; what is held stays until it is registered \
                 again or its allocation is known to have ended; `{RELEASE}`, or `{RELEASE_BY_API}` where a controller \
                 runs, removes it now"
            );
            Some(Note { severity: Severity::Error, service: service?.clone(), code: Code::GuardHeld, text })
        };
        self.services().into_iter().filter_map(note).collect()
    }
}

fn counted(instances: usize) -> String {
    match instances {
        1 => "1 instance".to_owned(),
        more => format!("{more} instances"),
    }
}

impl Serialize for Holding {
    /// `reason`, `instances`, and by service what is held and why.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Part<'a> {
            /// `null`: a server line that does not name it.
            service: Option<&'a ServiceKey>,
            instances: usize,
            why: String,
        }
        #[derive(Serialize)]
        struct Printed<'a> {
            reason: Reason,
            instances: usize,
            services: Vec<Part<'a>>,
        }
        let services = self.services().into_iter();
        let services = services.map(|(service, (instances, fate))| Part { service, instances, why: fate.to_string() });
        Printed { reason: self.reason, instances: self.instances(), services: services.collect() }.serialize(serializer)
    }
}

impl fmt::Display for Holding {
    /// One line for people; the held instances are in the notes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (services, instances) = (self.services().len(), counted(self.instances()));
        let services = if services == 1 { "1 service".to_owned() } else { format!("{services} services") };
        write!(
            f,
            "The guard holds {instances} of {services}: {}. `{RELEASE}`, or `{RELEASE_BY_API}` where a controller runs, \
             removes them.",
            self.reason
        )
    }
}

#[cfg(test)]
mod tests;
