//! The catalog: every service registration that Nomad reports, at one index.

mod events;
pub mod fate;
pub mod file;
mod hints;
mod job;
pub mod ledger;
pub mod nomad;
pub mod shared;
pub mod watch;
mod zombies;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::desired::{InstanceId, ServiceKey};
use crate::plan::guard::Fate;

pub use hints::Reads;
pub use job::JobCheck;

/// One registration, field for field as `GET /v1/service/NAME` answers it. Nothing in it can be trusted.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Registration {
    /// Identifies the registration for its lifetime, also when its tags and address change.
    #[serde(rename = "ID")]
    pub id: String,
    /// The service.
    pub service_name: String,
    /// Its namespace.
    pub namespace: String,
    /// The node that the allocation runs on.
    #[serde(rename = "NodeID", default)]
    pub node_id: String,
    /// That node's datacenter.
    #[serde(default)]
    pub datacenter: String,
    /// The job.
    #[serde(rename = "JobID", default)]
    pub job_id: String,
    /// The allocation.
    #[serde(rename = "AllocID", default)]
    pub alloc_id: String,
    /// This instance's own tags; `null` where the job gives none.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub tags: Vec<String>,
    /// A literal that nothing has validated.
    pub address: String,
    /// 0, −1 and 99999 have been seen.
    pub port: i64,
    /// Nomad's index when it was registered.
    #[serde(default)]
    pub create_index: u64,
    /// Nomad's index when it was last changed.
    #[serde(default)]
    pub modify_index: u64,
}

fn null_is_empty<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

impl Registration {
    /// The service that it belongs to.
    pub fn service(&self) -> ServiceKey {
        ServiceKey { namespace: self.namespace.clone(), name: self.service_name.clone() }
    }
}

/// Every registration of every service that is to be routed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Catalog {
    /// Nomad's index for the whole table; 0 where the catalog comes from a file without one.
    pub index: u64,
    /// The registrations by service. A service without any has just lost its last one.
    pub services: BTreeMap<ServiceKey, Vec<Registration>>,
    /// What the jobs say of the checks of services, or why it is not known. A service whose tags ask for no check, or
    /// whose job has none for it, is not in it.
    pub checks: BTreeMap<ServiceKey, Result<JobCheck, String>>,
    /// Services that Nomad lists but that could not be read, and why: what HAProxy has of them stays.
    pub unreadable: BTreeMap<ServiceKey, String>,
    /// Namespaces that could not be read.
    pub namespaces: BTreeMap<String, Unread>,
    /// Services with an enabling tag whose namespaces are not watched: each gets a note, and nothing else.
    pub unwatched: BTreeSet<ServiceKey>,
    /// How many registrations of a service are left out, as their allocation has ended: each service gets a note.
    pub zombies: BTreeMap<ServiceKey, usize>,
}

/// Why a namespace is missing from the catalog.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unread {
    /// It is named in the settings, and Nomad does not have it.
    Missing,
    /// It cannot be read, and why: it is tried again at the next resync. What HAProxy has of it stays.
    Refused(String),
    /// The same after a failure that may pass soon.
    Failed(String),
}

impl Catalog {
    /// How many registrations there are.
    pub fn len(&self) -> usize {
        self.services.values().map(Vec::len).sum()
    }

    /// What could not be read, as text.
    pub fn gaps(&self) -> impl Iterator<Item = String> + '_ {
        let namespaces = self.namespaces.iter().map(|(namespace, unread)| match unread {
            Unread::Missing => format!("the namespace {} does not exist", namespace.escape_debug()),
            Unread::Refused(why) | Unread::Failed(why) => format!("namespace {}: {why}", namespace.escape_debug()),
        });
        let services = self.unreadable.iter().map(|(service, why)| {
            let name: String = service.to_string().chars().take(200).collect();
            format!("service {name}: {why}")
        });
        namespaces.chain(services)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Where the catalog comes from.
#[derive(Debug, Clone)]
pub enum Source {
    /// From Nomad.
    Nomad(Box<nomad::NomadCatalog>),
    /// From a file, which each pass reads again.
    File(PathBuf),
    /// There is none: to remove what is ours needs none.
    Nothing,
}

/// Why there is no catalog.
#[derive(Debug, Error)]
pub enum SourceError {
    /// Nomad could not be read.
    #[error(transparent)]
    Nomad(#[from] crate::nomad::NomadError),
    /// The file could not be read.
    #[error(transparent)]
    File(#[from] file::FileError),
}

/// The catalog after a read.
#[derive(Debug, Clone)]
pub struct Fetched {
    /// All of it.
    pub catalog: Arc<Catalog>,
    /// Whether all of it was read just now; else only what has changed.
    pub is_full: bool,
}

impl Source {
    /// Brings the catalog up to date; all of it is read at a resync, and whenever it is not known what has changed.
    /// `served` are the namespaces that HAProxy serves.
    pub async fn read(&self, served: &BTreeSet<String>, is_resync: bool) -> Result<Fetched, SourceError> {
        let whole = |catalog| Fetched { catalog: Arc::new(catalog), is_full: true };
        match self {
            Self::Nomad(nomad) => Ok(nomad.read_next(served, is_resync).await?),
            Self::File(path) => Ok(whole(file::read(path)?)),
            Self::Nothing => Ok(whole(Catalog::default())),
        }
    }

    /// The services for [`Catalog::unwatched`]. A file has none.
    pub async fn unwatched(&self) -> Result<BTreeSet<ServiceKey>, SourceError> {
        match self {
            Self::Nomad(nomad) => Ok(nomad.unwatched().await?),
            Self::File(_) | Self::Nothing => Ok(BTreeSet::new()),
        }
    }

    /// What became of instances that the catalog lacks. A file cannot say.
    pub async fn fates(&self, asked: Vec<fate::Question>) -> BTreeMap<InstanceId, Fate> {
        match self {
            Self::Nomad(nomad) => nomad.fates(asked).await,
            Self::File(_) | Self::Nothing => BTreeMap::new(),
        }
    }
}
