//! What HAProxy should have: the words in which desired and observed state are both written.
//!
//! Everything here is validated at construction: a name, an address or a value of these types can stand
//! in the configuration text as it is.

pub mod build;
pub mod tags;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use serde::Serialize;
use thiserror::Error;

/// A value that may not stand in a configuration.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
#[error("{value:?} is no {what}: {rule}")]
pub struct Invalid {
    what: &'static str,
    value: String,
    rule: &'static str,
}

fn valid(what: &'static str, rule: &'static str, value: &str, ok: bool) -> Result<String, Invalid> {
    if ok { Ok(value.to_owned()) } else { Err(Invalid { what, value: value.chars().take(120).collect(), rule }) }
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl FromStr for $name {
            type Err = Invalid;

            fn from_str(value: &str) -> Result<Self, Invalid> {
                // The Data Plane API's own rule for names (`^[A-Za-z0-9-_.:]+$`, recorded 422).
                let ok = !value.is_empty()
                    && value.len() <= 200
                    && value.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.:".contains(&b));
                valid($what, "letters, digits and - _ . : only, 200 at the most", value, ok).map(Self)
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
    /// A backend's name.
    BackendName,
    "backend name"
);
name!(
    /// A server's name.
    ServerName,
    "server name"
);

impl BackendName {
    /// The name of the slot with this number, from 1.
    pub fn slot(&self, number: u32) -> ServerName {
        ServerName(format!("{}_{number}", self.0))
    }

    /// The number of a slot of this backend, where the name is one.
    pub fn slot_number(&self, server: &ServerName) -> Option<u32> {
        server.0.strip_prefix(&self.0)?.strip_prefix('_')?.parse().ok()
    }
}

/// A service of the catalog: its namespace and its name, neither of which is to be trusted.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct ServiceKey {
    /// Nomad's namespace.
    pub namespace: String,
    /// The service's name.
    pub name: String,
}

impl fmt::Display for ServiceKey {
    /// `name`, or `namespace/name` outside of `default`; escaped, as it comes from outside.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace != "default" {
            write!(f, "{}/", self.namespace.escape_debug())?;
        }
        write!(f, "{}", self.name.escape_debug())
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
    /// The address of a slot that nobody sits in yet: loopback, so that nothing is ever sent anywhere.
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

/// The protocol that a backend speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// `mode http`.
    Http,
    /// `mode tcp`.
    Tcp,
}

impl Mode {
    /// HAProxy's keyword.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Tcp => "tcp",
        }
    }
}

impl FromStr for Mode {
    type Err = Invalid;

    fn from_str(value: &str) -> Result<Self, Invalid> {
        match value {
            "http" => Ok(Self::Http),
            "tcp" => Ok(Self::Tcp),
            _ => Err(Invalid { what: "mode", value: value.to_owned(), rule: "http or tcp" }),
        }
    }
}

/// A load-balancing algorithm (configuration manual, `balance`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Balance {
    algorithm: String,
    argument: Option<String>,
}

impl Balance {
    const RULE: &str = "roundrobin, static-rr, leastconn, first, source, random, uri, hdr(NAME) or url_param NAME";

    /// HAProxy's own default.
    pub fn roundrobin() -> Self {
        Self { algorithm: "roundrobin".to_owned(), argument: None }
    }

    /// The algorithm without its argument.
    pub fn algorithm(&self) -> &str {
        &self.algorithm
    }

    /// The header of `hdr`, the parameter of `url_param`, the draws of `random`.
    pub fn argument(&self) -> Option<&str> {
        self.argument.as_deref()
    }
}

impl FromStr for Balance {
    type Err = Invalid;

    fn from_str(value: &str) -> Result<Self, Invalid> {
        let token = |text: &str| {
            !text.is_empty()
                && text.len() <= 100
                && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
        };
        let (algorithm, argument) = match (value.split_once('('), value.split_once(' ')) {
            (Some((algorithm, rest)), _) => (algorithm, rest.strip_suffix(')')),
            (_, Some((algorithm, argument))) => (algorithm, Some(argument.trim())),
            _ => (value, None),
        };
        let ok = match (algorithm, argument) {
            ("roundrobin" | "static-rr" | "leastconn" | "first" | "source" | "random" | "uri", None) => {
                value == algorithm
            }
            ("hdr" | "url_param", Some(name)) => token(name),
            ("random", Some(draws)) => draws.parse::<u16>().is_ok_and(|draws| draws > 0),
            _ => false,
        };
        valid("balance", Self::RULE, value, ok)?;
        Ok(Self { algorithm: algorithm.to_owned(), argument: argument.map(str::to_owned) })
    }
}

impl fmt::Display for Balance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.algorithm.as_str(), &self.argument) {
            (algorithm, None) => f.write_str(algorithm),
            ("url_param", Some(name)) => write!(f, "url_param {name}"),
            (algorithm, Some(argument)) => write!(f, "{algorithm}({argument})"),
        }
    }
}

/// When a server counts as up or down. `None` leaves HAProxy's default: every 2 s, 3 failures down,
/// 2 passes up.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Timing {
    /// Between two checks, in whole milliseconds.
    pub interval: Option<Duration>,
    /// For the answer, in whole milliseconds.
    pub timeout: Option<Duration>,
    /// Passing checks until it is up.
    pub rise: Option<u32>,
    /// Failing checks until it is down.
    pub fall: Option<u32>,
    /// Another port than the server's own.
    pub port: Option<u16>,
}

/// What is asked of a server in an HTTP check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpCheck {
    /// `GET`, `HEAD`, `OPTIONS`, …
    pub method: String,
    /// The path, with its query.
    pub path: String,
    /// The Host header; with it the check speaks HTTP/1.1, without it HTTP/1.0.
    pub host: Option<String>,
    /// The statuses that pass (`200`, `200-299`); without it 2xx and 3xx do.
    pub status: Option<String>,
}

/// A backend's health check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Check {
    /// None: every server counts as up.
    Disabled,
    /// A connection is enough.
    Tcp(Timing),
    /// A request must be answered.
    Http(HttpCheck, Timing),
}

impl Check {
    /// Its timing, where there is a check.
    pub fn timing(&self) -> Option<&Timing> {
        match self {
            Self::Disabled => None,
            Self::Tcp(timing) | Self::Http(_, timing) => Some(timing),
        }
    }
}

/// The settings of a backend that we make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The mark and what it is for; see [`Mark`].
    pub description: String,
    /// The protocol.
    pub mode: Mode,
    /// The algorithm.
    pub balance: Balance,
    /// The health check.
    pub check: Check,
}

/// Whose a backend or a server is: the `owner` setting of the controller that wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark(String);

impl FromStr for Mark {
    type Err = Invalid;

    fn from_str(value: &str) -> Result<Self, Invalid> {
        let ok = !value.is_empty()
            && value.len() <= 64
            && value.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
        valid("owner", "letters, digits and - _ . only, 64 at the most", value, ok).map(Self)
    }
}

impl Mark {
    const PREFIX: &str = "nomad-haproxy:";

    /// The owner's name.
    pub fn owner(&self) -> &str {
        &self.0
    }

    /// The description of a backend that we make: the mark first, then whom it serves.
    pub fn describe<'a>(&self, services: impl IntoIterator<Item = &'a ServiceKey>) -> String {
        let mut text = format!("{}{}", Self::PREFIX, self.0);
        for service in services {
            text.push(' ');
            text.push_str(&encode(&service.namespace));
            text.push('/');
            text.push_str(&encode(&service.name));
        }
        text
    }

    /// The services in a description that carries this mark; `None`: it does not.
    pub fn services(&self, description: &str) -> Option<BTreeSet<ServiceKey>> {
        let mut words = description.split_ascii_whitespace();
        if words.next()?.strip_prefix(Self::PREFIX)? != self.0 {
            return None;
        }
        let service = |word: &str| {
            let (namespace, name) = word.split_once('/')?;
            Some(ServiceKey { namespace: decode(namespace), name: decode(name) })
        };
        Some(words.filter_map(service).collect())
    }
}

/// What is not plain in a name from outside, as `%XX`: one word, whatever it held.
pub fn encode(text: &str) -> String {
    use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
    const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');
    utf8_percent_encode(text, PLAIN).to_string()
}

fn decode(text: &str) -> String {
    percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned()
}

/// Which registration sits in a slot: its ID, in one word.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct InstanceId(String);

impl InstanceId {
    /// Takes a registration's ID, which may hold anything.
    pub fn new(registration: &str) -> Self {
        Self(encode(registration))
    }

    /// Takes the word back from a server's metadata.
    pub fn from_metadata(word: &str) -> Self {
        Self(word.to_owned())
    }

    /// The word.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The settings of one server that its own tags give.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ServerOptions {
    /// 0 to 256; HAProxy's default is 1.
    pub weight: Option<u16>,
    /// Connections at a time; the others queue.
    pub maxconn: Option<u32>,
    /// Used only when no other server is up.
    pub backup: bool,
}

/// One instance of a service, as HAProxy needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    /// Which registration this is.
    pub id: InstanceId,
    /// The allocation, for people who read the file.
    pub alloc: String,
    /// The service.
    pub service: ServiceKey,
    /// Where it listens.
    pub address: Address,
    /// The port that it listens on.
    pub port: u16,
    /// From its own tags.
    pub options: ServerOptions,
    /// How long it drains when it is gone; without it, it is in maintenance at once.
    pub drain: Option<Duration>,
    /// Nomad's CreateIndex: the order in which instances take slots.
    pub created: u64,
}

/// Who sits in a server line of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tenant {
    /// An instance.
    Instance {
        /// Which registration.
        id: InstanceId,
        /// Its allocation.
        alloc: String,
        /// How long it drains when it is gone.
        drain: Option<Duration>,
    },
    /// Nobody. The number orders the slots by when they were freed; 0 was never used.
    Free {
        /// Higher was freed later.
        freed: u64,
        /// Until when the process drains it, in seconds since 1970; then it is put in maintenance.
        drain_until: Option<u64>,
    },
}

/// The administrative state of a server in the process (management guide, `set server … state`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It takes traffic, as its check allows.
    Ready,
    /// No new traffic but for clients that are bound to it; connections live on.
    Drain,
    /// No new traffic and no checks; connections live on.
    Maint,
}

impl State {
    /// HAProxy's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Drain => "drain",
            Self::Maint => "maint",
        }
    }
}

impl Tenant {
    /// The registration that sits there.
    pub fn id(&self) -> Option<&InstanceId> {
        match self {
            Self::Instance { id, .. } => Some(id),
            Self::Free { .. } => None,
        }
    }
}

/// A server line of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// `<backend>_<n>`.
    pub name: ServerName,
    /// Where it listens; of a free slot, where the last instance did.
    pub address: Address,
    /// The port.
    pub port: u16,
    /// Whether the line itself turns the check on, as it must in a backend that is not ours.
    pub check: bool,
    /// Weight, connections, backup.
    pub options: ServerOptions,
    /// Of a free slot: whoever takes it gets no traffic before the first passing check (`init-state
    /// down`, HAProxy 3.1). A server that is in service never has it, for after a reload it would be
    /// down until it is checked: up to 2 s on 3.2 and 3.4 (measured).
    pub gated: bool,
    /// Who sits there.
    pub tenant: Tenant,
}

impl Server {
    /// The state that the process should have it in.
    pub fn state(&self) -> State {
        match self.tenant {
            Tenant::Instance { .. } => State::Ready,
            Tenant::Free { drain_until: Some(_), .. } => State::Drain,
            Tenant::Free { drain_until: None, .. } => State::Maint,
        }
    }

    /// Whether an instance sits there.
    pub fn is_enabled(&self) -> bool {
        matches!(self.tenant, Tenant::Instance { .. })
    }
}

/// Whose the backend is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Ours: made, changed and deleted.
    Dynamic,
    /// Theirs: we add only servers.
    Custom,
}

/// How many servers a backend is given ahead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotPolicy {
    /// Spare slots that a backend has when it is written. 0: none, every change reloads.
    pub min_free: u32,
    /// The most slots of a backend; instances beyond them are still served, each by a reload.
    pub max: u32,
}

/// One backend that catalog and settings call for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backend {
    /// The services that come to it; one, unless several name the same backend.
    pub services: BTreeSet<ServiceKey>,
    /// Whose it is.
    pub kind: Kind,
    /// Its settings; of a custom backend only what concerns servers counts.
    pub settings: Settings,
    /// The tags that its settings come from, which are in vain where the backend is somebody else's.
    pub tags: Vec<String>,
    /// Its instances, in no order.
    pub instances: Vec<Instance>,
    /// Its spare servers.
    pub slots: SlotPolicy,
    /// Whether they are [gated](Server::gated).
    pub gated: bool,
}

/// Everything that HAProxy should have of ours.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Desired {
    /// By name.
    pub backends: BTreeMap<BackendName, Backend>,
}

/// How much a note matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Worth knowing.
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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
    fn algorithms_are_haproxys_with_their_arguments() {
        for good in ["roundrobin", "leastconn", "hdr(X-User)", "random(3)", "url_param id", "uri"] {
            assert_eq!(good.parse::<Balance>().map(|b| b.to_string()), Ok(good.to_owned()));
        }
        for bad in ["", "nope", "hdr", "hdr()", "hdr(a b)", "random(0)", "roundrobin(1)", "hdr(x", "uri\nmode tcp"] {
            assert!(bad.parse::<Balance>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_slot_is_numbered_by_its_name() {
        let backend: BackendName = "api_service".parse().expect("a name");
        assert_eq!(backend.slot(3).as_str(), "api_service_3");
        assert_eq!(backend.slot_number(&backend.slot(3)), Some(3));
        assert_eq!(backend.slot_number(&"api_3".parse().expect("a name")), None);
    }

    #[test]
    fn another_owners_mark_is_not_ours() {
        let mark: Mark = "nomad".parse().expect("an owner");
        let key = ServiceKey { namespace: "default".into(), name: "api".into() };
        let text = mark.describe([&key]);
        assert_eq!(text, "nomad-haproxy:nomad default/api");
        assert!("nomad2".parse::<Mark>().expect("an owner").services(&text).is_none());
        assert!(mark.services("my own words").is_none());
        assert!(mark.services("").is_none());
    }

    proptest! {
        #[test]
        fn whatever_a_service_is_called_its_description_is_read_back(namespace in ".{1,40}", name in ".{1,40}") {
            let mark: Mark = "nomad".parse().expect("an owner");
            let key = ServiceKey { namespace, name };
            let text = mark.describe([&key]);
            prop_assert!(text.bytes().all(|b| b.is_ascii_graphic() || b == b' '));
            prop_assert!(!text.contains(['"', '\'', '\\', '#', '$']));
            prop_assert_eq!(mark.services(&text), Some(BTreeSet::from([key])));
        }
    }
}
