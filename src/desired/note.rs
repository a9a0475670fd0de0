//! Notes: what a person should know about one service.

use std::fmt;

use serde::Serialize;

use super::ServiceKey;
use crate::catalog::Unread;

/// How much a note matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Worth knowing; the service is routed as its tags ask.
    Info,
    /// Something was ignored; the service is routed.
    Warning,
    /// The service, or an instance of it, is not routed as asked.
    Error,
}

impl Severity {
    /// For people and for metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// What a note is about, for programs: a word that stays the same when the text changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Code {
    /// A tag with the prefix that is unknown, has a bad value, or is there twice.
    BadTag,
    /// A tag that has no effect here.
    IgnoredTag,
    /// It has tags with the prefix, but none that enables it.
    NotEnabled,
    /// A tag's prefix is written in another case.
    PrefixCase,
    /// It is unclear whether the service is to be routed.
    UnclearEnable,
    /// Its tag `target` names a HAProxy that does not exist.
    UnknownTarget,
    /// A backend's name cannot be derived from the service's name.
    BadName,
    /// Another service holds the backend's name.
    NameConflict,
    /// The settings do not allow the service to use the backend that its tags name (`namespaces`).
    NotAllowed,
    /// It asks for hosts, and no frontend is named.
    NoFrontend,
    /// A frontend that cannot have its routes, or has them without effect.
    FrontendInTheWay,
    /// Another service has the route that it asks for.
    RouteConflict,
    /// It shares a backend, and its tags differ from those of the service that holds it first.
    OtherSettings,
    /// What the job says of the service's check cannot be read, or not be used.
    JobCheck,
    /// The backend is shared by as many services as its description can list.
    TooManyServices,
    /// It must not be changed any more (`backend=static`), and HAProxy has something of it.
    LeftAlone,
    /// An instance's address.
    BadAddress,
    /// An instance's port.
    BadPort,
    /// An instance's ID.
    BadInstance,
    /// One ID is registered several times.
    DuplicateInstance,
    /// The service could not be read from Nomad.
    Unreadable,
    /// This HAProxy lacks a feature that the tags need.
    UnsupportedByHaproxy,
    /// A backend that should exist does not.
    MissingBackend,
    /// Backends of another owner have instances of the service.
    LeftBehind,
    /// What another controller made for the service becomes ours.
    TakenOver,
    /// A backend that exists cannot be used.
    BackendInTheWay,
    /// `agent-check` leaves no room for spare servers.
    AgentCheck,
    /// HAProxy could not resolve an instance's host name.
    Unresolved,
    /// HAProxy refuses the change.
    Refused,
    /// HAProxy could not load the change.
    NotLoaded,
    /// The process differs from its file, and a reload does not help.
    ProcessDiffers,
    /// The catalog lacks instances, and the guard keeps them.
    GuardHeld,
    /// A namespace cannot be read.
    UnreadableNamespace,
    /// A namespace that is watched does not exist.
    MissingNamespace,
    /// The service has an enabling tag, and its namespace is not watched.
    UnwatchedNamespace,
    /// Instances are registered although their allocation has ended.
    Zombie,
}

/// What a person should know about one service.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Note {
    /// How much it matters.
    pub severity: Severity,
    /// The service.
    pub service: ServiceKey,
    /// What it is about, for programs.
    pub code: Code,
    /// What, why, and what to do.
    pub text: String,
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = self.severity.as_str();
        write!(f, "{severity}: service {}: {}", self.service, self.text)
    }
}

/// What a person should know about a namespace as a whole. It is always an error: nothing of it is read.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct NamespaceNote {
    /// The namespace.
    pub namespace: String,
    /// What it is about, for programs.
    pub code: Code,
    /// What, why, and what to do.
    pub text: String,
}

impl NamespaceNote {
    /// Explains why a namespace is missing.
    pub fn new(namespace: &str, unread: &Unread) -> Self {
        let (code, text) = match unread {
            Unread::Missing => (
                Code::MissingNamespace,
                "it does not exist, so nothing of it is routed, and no instance is removed without proof that it is \
                 gone; correct nomad.namespace (NOMAD_NAMESPACE), or make the namespace with `nomad namespace apply`"
                    .to_owned(),
            ),
            Unread::Refused(why) | Unread::Failed(why) => {
                (Code::UnreadableNamespace, format!("{why}; what HAProxy has of it stays, and the others go on"))
            }
        };
        Self { namespace: namespace.to_owned(), code, text }
    }
}

impl fmt::Display for NamespaceNote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: namespace {}: {}", self.namespace.escape_debug(), self.text)
    }
}
