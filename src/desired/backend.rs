//! A backend: its settings, its health check, its instances.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use super::name::valid;
use super::{BackendName, Instance, Invalid, Routes, ServiceKey};

/// The protocol that a backend speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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

    /// Whether it looks at the request (configuration manual, `balance`: only in mode http).
    pub fn needs_http(&self) -> bool {
        ["uri", "hdr", "url_param"].contains(&self.algorithm())
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

/// The request of an HTTP check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpCheck {
    /// `GET`, `HEAD`, `OPTIONS`, …
    pub method: String,
    /// The path, with its query.
    pub path: String,
    /// The Host header; with it the check speaks HTTP/1.1, without it HTTP/1.0.
    pub host: Option<String>,
    /// The other headers; a name may come several times.
    pub headers: Vec<(String, String)>,
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

/// The name of a cookie by which a client stays with its server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CookieName(String);

impl CookieName {
    const RULE: &str = "1 to 64 letters, digits, `-`, `_` and `.`";

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for CookieName {
    type Err = Invalid;

    fn from_str(value: &str) -> Result<Self, Invalid> {
        let ok =
            (1..=64).contains(&value.len()) && value.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
        valid("name of a cookie", Self::RULE, value, ok).map(Self)
    }
}

/// How long HAProxy waits (configuration manual, `timeout …`). `None` leaves what `defaults` gives.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Timeouts {
    /// For a connection to a server, in whole milliseconds, as all of these.
    pub connect: Option<Duration>,
    /// For data from a server.
    pub server: Option<Duration>,
    /// For a place at a server, where `maxconn` limits them.
    pub queue: Option<Duration>,
    /// For data in either direction, once a connection is a tunnel.
    pub tunnel: Option<Duration>,
}

impl Timeouts {
    /// Each that is set, with its word in HAProxy.
    pub fn each(&self) -> impl Iterator<Item = (&'static str, Duration)> {
        let Self { connect, server, queue, tunnel } = *self;
        let all = [("connect", connect), ("server", server), ("queue", queue), ("tunnel", tunnel)];
        all.into_iter().filter_map(|(word, time)| Some((word, time?)))
    }

    /// The place of the one with this word.
    pub fn get_mut(&mut self, word: &str) -> Option<&mut Option<Duration>> {
        Some(match word {
            "connect" => &mut self.connect,
            "server" => &mut self.server,
            "queue" => &mut self.queue,
            "tunnel" => &mut self.tunnel,
            _ => return None,
        })
    }
}

/// The settings of a backend that we make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendSettings {
    /// The mark; see [`Owner`](super::Owner).
    pub description: String,
    /// The protocol.
    pub mode: Mode,
    /// The algorithm.
    pub balance: Balance,
    /// The health check.
    pub check: Check,
    /// By which cookie a client stays with its server; only in [`Mode::Http`].
    pub cookie: Option<CookieName>,
    /// How long HAProxy waits.
    pub timeouts: Timeouts,
}

/// Who manages the backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackendKind {
    /// Ours: made, changed and deleted.
    Dynamic,
    /// An existing one: we add only servers.
    Custom,
}

/// How many spare servers a backend gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotPolicy {
    /// Spare slots that a backend has when it is written. 0: none, every change reloads.
    pub min_free: u32,
    /// The most slots of a backend; more instances are still served, each by a reload.
    pub max: u32,
}

/// One backend that the catalog and the settings call for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backend {
    /// The services that use it, the one that holds it first at the front; one, unless several name the same backend.
    pub services: Vec<ServiceKey>,
    /// Who manages it.
    pub kind: BackendKind,
    /// Its settings; of a custom backend only what concerns servers counts.
    pub settings: BackendSettings,
    /// The tags of each service that configure a backend; they have no effect if the backend is not ours.
    pub tags: BTreeMap<ServiceKey, Vec<String>>,
    /// Its instances, in no order.
    pub instances: Vec<Instance>,
    /// Its spare servers.
    pub slots: SlotPolicy,
    /// Whether they are [gated](super::Server::gated).
    pub gated: bool,
}

/// Everything of ours that HAProxy should have.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Desired {
    /// By name.
    pub backends: BTreeMap<BackendName, Backend>,
    /// The routes that services ask for, as far as they get them.
    pub routes: Routes,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn algorithms_are_haproxys_with_their_arguments() {
        for good in ["roundrobin", "leastconn", "hdr(X-User)", "random(3)", "url_param id", "uri"] {
            assert_eq!(good.parse::<Balance>().map(|b| b.to_string()), Ok(good.to_owned()));
        }
        for bad in ["", "nope", "hdr", "hdr()", "hdr(a b)", "random(0)", "roundrobin(1)", "hdr(x", "uri\nmode tcp"] {
            assert!(bad.parse::<Balance>().is_err(), "{bad:?}");
        }
    }
}
