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

/// What a person should know about one service.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Note {
    /// How much it matters.
    pub severity: Severity,
    /// The service.
    pub service: ServiceKey,
    /// What, why, and what to do.
    pub text: String,
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = self.severity.as_str();
        write!(f, "{severity}: service {}: {}", self.service, self.text)
    }
}
