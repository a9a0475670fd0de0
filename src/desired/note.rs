//! What a person should know about one service.

use std::fmt;

use serde::Serialize;

use super::ServiceKey;

/// How much a note matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Something was ignored; the service is routed.
    Warning,
    /// The service, or an instance of it, is not routed as asked.
    Error,
}

impl Severity {
    /// For people and for metrics.
    pub fn as_str(self) -> &'static str {
        match self {
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
    /// It is unclear whether the service asks to be routed.
    UnclearEnable,
    /// The service's name makes no backend's name.
    BadName,
    /// Another service holds the backend's name.
    NameConflict,
    /// The settings do not let the service use the backend that it asks for (`namespaces`).
    NotAllowed,
    /// It shares a backend, and asks for other settings than the service that holds it first.
    OtherSettings,
    /// The backend is shared by as many services as its description can list.
    TooManyServices,
    /// It is not to be touched any more (`backend=static`), and HAProxy has something of it.
    LeftAlone,
    /// An instance's address.
    BadAddress,
    /// An instance's port.
    BadPort,
    /// An instance's ID.
    BadInstance,
    /// One ID is registered several times.
    DuplicateInstance,
    /// Nomad could not be asked for the service.
    Unreadable,
    /// This HAProxy lacks something that was asked for.
    UnsupportedByHaproxy,
    /// A backend that should exist does not.
    MissingBackend,
    /// A backend that exists cannot be used.
    BackendInTheWay,
    /// `agent-check` leaves no room for spare servers.
    AgentCheck,
    /// HAProxy refuses the change.
    Refused,
    /// HAProxy could not load the change.
    NotLoaded,
    /// The process differs from its file, and a reload does not help.
    ProcessDiffers,
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
