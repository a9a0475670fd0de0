//! Names and addresses from registrations, restricted to what a configuration can contain.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::Serialize;
use thiserror::Error;

use super::owner::{decode, encode};

/// A value that a configuration must not contain.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
#[error("invalid {what} {value:?}, use {rule}")]
pub struct Invalid {
    pub(super) what: &'static str,
    pub(super) value: String,
    pub(super) rule: &'static str,
}

pub(super) fn valid(what: &'static str, rule: &'static str, value: &str, ok: bool) -> Result<String, Invalid> {
    if ok { Ok(value.to_owned()) } else { Err(Invalid { what, value: value.chars().take(120).collect(), rule }) }
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $what:literal, $longest:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl FromStr for $name {
            type Err = Invalid;

            fn from_str(value: &str) -> Result<Self, Invalid> {
                // The Data Plane API's own rule for names (`^[A-Za-z0-9-_.:]+$`, recorded 422), and no name with a
                // special meaning in the path of a URL.
                let ok = !matches!(value, "" | "." | "..")
                    && value.len() <= $longest
                    && value.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.:".contains(&b));
                let rule = concat!("letters, digits and - _ . : only, ", $longest, " at the most, and not just dots");
                valid($what, rule, value, ok).map(Self)
            }
        }

        impl $name {
            /// The name as HAProxy has it.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name!(
    /// A backend's name. 200 are enough for a namespace (128) and a service (63) as Nomad takes them.
    BackendName,
    "backend name",
    200
);
name!(
    /// A server's name. Long enough for every [slot](BackendName::slot) of every backend: a server that is written must
    /// be read back as ours.
    ServerName,
    "server name",
    211
);

name!(
    /// A frontend's name.
    FrontendName,
    "frontend name",
    200
);

impl BackendName {
    /// The name of the slot with this number, from 1.
    pub fn slot(&self, number: u32) -> ServerName {
        ServerName(format!("{}_{number}", self.0))
    }

    /// The number of a slot of this backend, if the name is one.
    pub fn slot_number(&self, server: &ServerName) -> Option<u32> {
        server.0.strip_prefix(&self.0)?.strip_prefix('_')?.parse().ok()
    }

    /// Whether the name is one that [`BackendName::slot`] makes.
    pub fn is_slot(&self, server: &ServerName) -> bool {
        self.slot_number(server).is_some_and(|number| number > 0 && self.slot(number) == *server)
    }
}

/// A service of the catalog: its namespace and its name, neither of which can be trusted.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct ServiceKey {
    /// Nomad's namespace.
    pub namespace: String,
    /// The service's name.
    pub name: String,
}

impl ServiceKey {
    /// As one word of plain characters: `namespace/name`, other characters as `%XX`.
    pub fn to_word(&self) -> String {
        format!("{}/{}", encode(&self.namespace), encode(&self.name))
    }

    /// Parses that word; `None`: it is not one.
    pub fn from_word(word: &str) -> Option<Self> {
        let (namespace, name) = word.split_once('/')?;
        Some(Self { namespace: decode(namespace), name: decode(name) })
    }
}

impl From<&str> for ServiceKey {
    /// From what a person gives: `namespace/name`, or `name` in `default`.
    fn from(text: &str) -> Self {
        let (namespace, name) = text.split_once('/').unwrap_or(("default", text));
        Self { namespace: namespace.to_owned(), name: name.to_owned() }
    }
}

impl fmt::Display for ServiceKey {
    /// `name`, or `namespace/name` outside of `default`; escaped and shortened, as it is untrusted.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace != "default" {
            write!(f, "{}/", Shown(&self.namespace))?;
        }
        Shown(&self.name).fmt(f)
    }
}

/// An untrusted text for people: without control characters, and shortened.
struct Shown<'a>(&'a str);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MAX_CHARACTERS: usize = 100;
        let mut chars = self.0.chars();
        chars.by_ref().take(MAX_CHARACTERS).try_for_each(|c| c.escape_debug().fmt(f))?;
        match chars.next() {
            Some(_) => write!(f, "… ({} bytes)", self.0.len()),
            None => Ok(()),
        }
    }
}

/// Where a server listens: an address literal or a host name that HAProxy resolves when it starts.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Address {
    /// An IP address.
    Ip(IpAddr),
    /// A host name.
    Host(String),
}

impl Address {
    /// The address of a slot without an instance: loopback, so that nothing is ever sent anywhere.
    pub const PLACEHOLDER: Self = Self::Ip(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST));
}

impl FromStr for Address {
    type Err = Invalid;

    fn from_str(value: &str) -> Result<Self, Invalid> {
        let bare = value.strip_prefix('[').and_then(|v| v.strip_suffix(']')).unwrap_or(value);
        if let Ok(ip) = bare.parse() {
            return Ok(Self::Ip(ip));
        }
        let ok = !value.is_empty()
            && value.len() <= 253
            && value.starts_with(|c: char| c.is_ascii_alphanumeric())
            && value.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
            // `127.1` and `300.1.1.1` are neither an address nor a name.
            && !value.ends_with(|c: char| c.is_ascii_digit() || c == '.');
        valid("address", "an IPv4 or IPv6 address, or a host name", value, ok).map(Self::Host)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(ip) => ip.fmt(f),
            Self::Host(host) => f.write_str(host),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_literals_or_host_names() {
        for good in ["10.0.0.1", "2001:db8::5", "[2001:db8::5]", "db.internal", "host-1.a"] {
            assert!(good.parse::<Address>().is_ok(), "{good}");
        }
        // As seen in real registrations (fixtures/nomad/address-name-tag-forms.json).
        for bad in ["", "a b\nc", "fe80::1%eth0", "127.1", "10.0.0.1:80", "x'y", "a#b", "-a.b", "host."] {
            assert!(bad.parse::<Address>().is_err(), "{bad}");
        }
        assert_eq!("[2001:db8::5]".parse::<Address>(), "2001:db8::5".parse());
    }

    #[test]
    fn every_slot_of_a_backend_has_a_name_that_is_read_back() {
        let backend: BackendName = "x".repeat(200).parse().expect("a name");
        let slot = backend.slot(u32::MAX);
        assert_eq!(slot.as_str().parse(), Ok(slot.clone()));
        assert_eq!(backend.slot_number(&slot), Some(u32::MAX));
        assert!("x".repeat(201).parse::<BackendName>().is_err());
    }

    #[test]
    fn a_name_has_no_meaning_in_a_path() {
        assert!(".".parse::<BackendName>().is_err() && "..".parse::<BackendName>().is_err());
        assert!("...".parse::<BackendName>().is_ok() && ".a".parse::<ServerName>().is_ok());
    }

    #[test]
    fn a_name_from_outside_is_shown_escaped_and_never_whole() {
        let shown = |name: &str| ServiceKey { namespace: "team-a".into(), name: name.into() }.to_string();
        assert_eq!(shown("a\nb"), "team-a/a\\nb");
        assert_eq!(shown(&"x".repeat(100)), format!("team-a/{}", "x".repeat(100)));
        assert_eq!(shown(&"x".repeat(66_000)), format!("team-a/{}… (66000 bytes)", "x".repeat(100)));
    }

    #[test]
    fn a_slot_is_numbered_by_its_name() {
        let backend: BackendName = "api_service".parse().expect("a name");
        assert_eq!(backend.slot(3).as_str(), "api_service_3");
        assert_eq!(backend.slot_number(&backend.slot(3)), Some(3));
        assert_eq!(backend.slot_number(&"api_3".parse().expect("a name")), None);
    }
}
