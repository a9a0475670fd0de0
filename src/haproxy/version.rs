//! Which version of HAProxy this is, and whether it is supported.

use std::fmt;

use thiserror::Error;

/// The oldest supported HAProxy: run-time endpoints of 2.6 answer 404 for servers that were added later, which caused a
/// six-hour production outage (ADR-010 of haproxy-nomad-connector).
pub const OLDEST: Version = Version { major: 3, minor: 0 };

/// A HAProxy release series.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// 3 in 3.2.26.
    pub major: u16,
    /// 2 in 3.2.26.
    pub minor: u16,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// Why a HAProxy is refused.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum VersionError {
    /// Too old.
    #[error(
        "HAProxy {0} is too old: its run-time API answers 404 for servers that were added later; \
         install HAProxy 3.0 or newer (3.0 is in Debian 13)"
    )]
    TooOld(String),
    /// Not a version.
    #[error("not a HAProxy version: {0:?}")]
    Unreadable(String),
}

impl Version {
    /// Reads `3.2.26-1` and refuses what is older than [`OLDEST`].
    pub fn gate(text: &str) -> Result<Self, VersionError> {
        let mut parts = text.split(['.', '-']).map(str::parse::<u16>);
        let (Some(Ok(major)), Some(Ok(minor))) = (parts.next(), parts.next()) else {
            return Err(VersionError::Unreadable(text.to_owned()));
        };
        let version = Self { major, minor };
        if version < OLDEST {
            return Err(VersionError::TooOld(text.to_owned()));
        }
        Ok(version)
    }

    /// Whether servers can wait for their first passing check (`init-state`, HAProxy 3.1).
    pub fn has_init_state(self) -> bool {
        self >= Self { major: 3, minor: 1 }
    }

    /// Whether backends can be added at run time (`add backend`, HAProxy 3.4).
    pub fn has_run_time_backends(self) -> bool {
        self >= Self { major: 3, minor: 4 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gate_lets_3_0_and_newer_through() {
        assert_eq!(Version::gate("3.0.11-1+deb13u3"), Ok(OLDEST));
        assert!(Version::gate("3.4-dev2").is_ok_and(Version::has_init_state));
        assert!(Version::gate("3.0.1").is_ok_and(|version| !version.has_init_state()));
        let refusal = Version::gate("2.6.12-1+deb12u4").expect_err("2.6 is too old").to_string();
        assert!(refusal.contains("2.6.12") && refusal.contains("404") && refusal.contains("3.0 or newer"), "{refusal}");
        assert!(matches!(Version::gate("nightly"), Err(VersionError::Unreadable(_))));
    }
}
