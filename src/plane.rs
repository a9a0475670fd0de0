//! The connection to one HAProxy: the Data Plane API, or the file and the socket of a HAProxy on this machine.
//!
//! Both make the same promises. A write names the version that it was computed from and fails if that has changed;
//! HAProxy validates it before it takes effect; a structural write is loaded when it returns, or the configuration from
//! before is back; a live write changes the file and the process together.
//!
//! Whatever changes HAProxy asks a [`Lease`](crate::leader::Lease) right before, deep inside of each plane: each request but
//! reads, each command but reads, each replacement of the file.
//!
//! There are two kinds of error. [`AccessError`]: HAProxy gave no answer, so nothing is known. [`WriteError`]: it did
//! answer, and the write was not done, or only partly.

pub mod dataplane;
pub mod local;
mod maps;
mod worker;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use async_trait::async_trait;
use thiserror::Error;

use crate::desired::{Address, BackendName, Entry, ServerName, State};
use crate::haproxy::maps::MapFile;
use crate::haproxy::stats::{Fields, Stats};
use crate::haproxy::text::ConfigText;
use crate::haproxy::version::{Version, VersionError};
use crate::leader::NotLeading;
use crate::observed::{Maps, Observed};
use crate::plan::{Action, Plan, Surplus};

/// The default time for one validation. HAProxy needs 20 to 400 ms, plus the time that its resolver takes for the host
/// names of servers: with glibc, 10 s for each name without an answer.
pub const VALIDATION_TIMEOUT: Duration = Duration::from_secs(60);

type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Why there is no answer.
#[derive(Debug, Error)]
pub enum AccessError {
    /// It may work the next time.
    #[error("{what}")]
    Unavailable {
        /// What was tried.
        what: String,
        /// What came back.
        #[source]
        source: Cause,
    },
    /// It will not work before a person changes something.
    #[error("{what}")]
    Refused {
        /// What is wrong, and what to do.
        what: String,
        /// What came back.
        #[source]
        source: Option<Cause>,
    },
    /// HAProxy does not run. It may the next time.
    #[error("{what}")]
    NotRunning {
        /// What was tried.
        what: String,
        /// Whether the Data Plane API, or HAProxy's master, answered nevertheless.
        is_connected: bool,
        /// What came back.
        #[source]
        source: Cause,
    },
    /// This HAProxy is too old.
    #[error(transparent)]
    Version(#[from] VersionError),
    /// This controller does not lead, so it sent nothing.
    #[error(transparent)]
    NotLeading(#[from] NotLeading),
}

/// Why a write was not done as requested.
#[derive(Debug, Error)]
pub enum WriteError {
    /// No answer, so it may or may not have been done.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// Another client wrote in the meantime: nothing was written.
    #[error("the configuration changed during the pass: {0}")]
    Conflict(String),
    /// HAProxy refuses the configuration: nothing was written.
    #[error("HAProxy refuses the configuration: {message}")]
    Invalid {
        /// HAProxy's message.
        message: String,
    },
    /// HAProxy did not finish validating in time: nothing was written.
    #[error("{}", Verdict::TooLong(*limit))]
    TooLong {
        /// The time-out.
        limit: Duration,
    },
    /// It was valid, but HAProxy could not load it. The file from before is back, and the process is the one from
    /// before.
    #[error("HAProxy could not load the configuration: {message}")]
    ReloadFailed {
        /// HAProxy's message.
        message: String,
    },
    /// The file was written, but the process did not take all of it.
    #[error("the file is written, but HAProxy did not take a run-time change: {message}")]
    HalfLive {
        /// HAProxy's message.
        message: String,
    },
    /// It needs a reload, for a reason of this plane: nothing was written.
    #[error("this cannot be changed at run time: {0}")]
    NotLive(&'static str),
    /// The text that would be written is not what was planned: nothing was written.
    #[error("the Data Plane API would not write what was planned: {0}; set `haproxy.write` to `text` or `auto`")]
    Distorted(String),
}

/// HAProxy's verdict on a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It accepts it.
    Valid,
    /// It refuses it, with this message. Line numbers in it are those of exactly this text.
    Refused(String),
    /// It did not finish in this time.
    TooLong(Duration),
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Valid => f.write_str("valid"),
            Self::Refused(message) => f.write_str(message),
            Self::TooLong(limit) => write!(
                f,
                "its validation takes longer than {limit:?}: host names of servers that resolve slowly or not at all \
                 take that long"
            ),
        }
    }
}

/// Why a file must not be written through the Data Plane API, which renders all of it with each write.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Harm {
    /// Conditional blocks would be broken: what is inside would end up outside, or the other way round.
    #[error(
        "the configuration is not written: line {line} has `{word}`, and the Data Plane API tears conditional blocks \
         apart when it renders the file; hint: let the controller write the file itself (`haproxy.config_file`, \
         `haproxy.master_socket`), or take the conditionals out: `${{VAR}}` and several files do the same"
    )]
    Conditional {
        /// The first line with one, from 1.
        line: usize,
        /// The directive.
        word: String,
    },
    /// Lines that are not ours would be lost, changed or moved.
    #[error(
        "the configuration is not written, as the Data Plane API would change what is not ours when it renders the \
         file: {}; hint: write these lines in a way that the API keeps, or let the controller write the file itself \
         (`haproxy.config_file`, `haproxy.master_socket`)",
        .lines.join("; ")
    )]
    Rendering {
        /// Each line with its number and what would happen to it, without its values.
        lines: Vec<String>,
    },
}

/// What any write would do to the part of the file that is not ours.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Survey {
    /// Why it must not be written.
    pub harm: Option<Harm>,
    /// The lines of the comments that would be lost.
    pub comments: Vec<String>,
}

/// A plan that is ready to be committed, and the text that a commit writes.
#[derive(Debug)]
pub struct Staged {
    /// The text.
    pub text: ConfigText,
    /// The transaction that holds it, where there is one.
    pub transaction: Option<String>,
}

/// A server as the running process has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuntimeServer {
    /// Its address; `None` if the process has none yet (a host name that was not resolved).
    pub address: Option<IpAddr>,
    /// Its port.
    pub port: u16,
    /// Its administrative state, whatever its checks or DNS say.
    pub state: State,
    /// Its weight, if the plane reports it.
    pub weight: Option<u16>,
    /// Whether it has a health check that is not turned on, as of a server that was added at run time and is not
    /// complete yet. `false` if the plane does not report it.
    pub unchecked: bool,
}

/// What a process has of the managed backends.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Runtime {
    /// Its servers, by backend and name.
    pub servers: BTreeMap<(String, String), RuntimeServer>,
    /// Its backends, each with whether it is published: requests find no other (`publish backend`, HAProxy 3.4). `None`
    /// if the plane does not report them.
    pub backends: Option<BTreeMap<String, bool>>,
    /// Whether a change of it failed, so that what the plane does not report may be anything.
    pub doubts: bool,
}

impl Runtime {
    /// A process that agrees with this file.
    pub fn of(observed: &Observed) -> Self {
        Self::from_file(observed, |state| state)
    }

    /// A process that has just loaded this file. The file cannot express `drain`: a server that drains is `disabled`
    /// there, and starts in maintenance.
    pub fn loaded(observed: &Observed) -> Self {
        Self::from_file(observed, |state| if state == State::Drain { State::Maint } else { state })
    }

    fn from_file(observed: &Observed, state: fn(State) -> State) -> Self {
        let mut servers = BTreeMap::new();
        let backends = observed.backends.keys().map(|name| (name.clone(), true)).collect();
        for (backend, section) in observed.managed() {
            for server in &section.servers {
                let address = match server.address {
                    Address::Ip(ip) => Some(ip),
                    Address::Host(_) => None,
                };
                let running = RuntimeServer {
                    address,
                    port: server.port,
                    state: state(server.state()),
                    weight: server.options.weight,
                    unchecked: false,
                };
                servers.insert((backend.to_string(), server.name.to_string()), running);
            }
        }
        Self { servers, backends: Some(backends), doubts: false }
    }

    /// Whether it is known to lack a backend.
    pub fn lacks(&self, backend: &BackendName) -> bool {
        self.backends.as_ref().is_some_and(|backends| !backends.contains_key(backend.as_str()))
    }

    /// Whether it is known to have a backend that is, or is not, published.
    pub fn has(&self, backend: &BackendName, published: bool) -> bool {
        let backends = self.backends.as_ref();
        backends.is_some_and(|backends| backends.get(backend.as_str()) == Some(&published))
    }

    /// The backends that this file does not have and that are not published: that is how we leave one that is to be
    /// removed. One with a server that is not named by us is somebody else's.
    pub fn unknown_backends(&self, observed: &Observed) -> Vec<BackendName> {
        let hidden = self.backends.iter().flatten().filter(|(_, published)| !**published).map(|(name, _)| name);
        let unknown = hidden.filter(|name| !observed.backends.contains_key(*name));
        let names = unknown.filter_map(|name| name.parse::<BackendName>().ok());
        let is_ours = |name: &BackendName, server: &str| server.parse().is_ok_and(|server| name.is_slot(&server));
        names.filter(|name| self.servers_of(name).all(|(server, _)| is_ours(name, server))).collect()
    }

    /// The servers of one backend.
    pub fn servers_of<'a>(&'a self, backend: &'a BackendName) -> impl Iterator<Item = (&'a str, &'a RuntimeServer)> {
        let from = (backend.to_string(), String::new());
        let servers = self.servers.range(from..).take_while(|((name, _), _)| name == backend.as_str());
        servers.map(|((_, server), running)| (server.as_str(), running))
    }

    /// The servers in backends of this file that the file does not have, whoever added them.
    pub fn unknown_to(&self, observed: &Observed) -> Vec<(BackendName, ServerName)> {
        let mut unknown = Vec::new();
        for (name, section) in &observed.backends {
            let Ok(backend) = name.parse::<BackendName>() else { continue };
            let ours: BTreeSet<&str> = section
                .servers
                .iter()
                .map(|server| &server.name)
                .chain(&section.drifted)
                .map(ServerName::as_str)
                .collect();
            let others = self.servers_of(&backend).map(|(server, _)| server);
            let others = others.filter(|server| !ours.contains(server) && !section.foreign.contains(*server));
            unknown.extend(others.filter_map(|server| Some((backend.clone(), server.parse().ok()?))));
        }
        unknown
    }

    /// What the process has and this file does not.
    pub fn surplus(&self, observed: &Observed, capabilities: Capabilities) -> impl Iterator<Item = Surplus> {
        let Capabilities { servers, backends } = capabilities;
        let unknown = self.unknown_to(observed).into_iter().filter(move |_| servers);
        let hidden = self.unknown_backends(observed).into_iter().filter(move |_| backends);
        unknown.map(|(backend, server)| Surplus::Server(backend, server)).chain(hidden.map(Surplus::Backend))
    }

    /// Adds what is not in the file: servers that are in maintenance, and backends that are not published.
    #[must_use]
    pub fn with_leaving<'a>(mut self, leaving: impl Iterator<Item = &'a Surplus>) -> Self {
        let state = State::Maint;
        let running = RuntimeServer { address: None, port: 0, state, weight: None, unchecked: false };
        for leaving in leaving {
            match leaving {
                Surplus::Server(backend, server) => {
                    self.servers.insert((backend.to_string(), server.to_string()), running.clone());
                }
                Surplus::Backend(backend) => {
                    self.backends.get_or_insert_default().insert(backend.to_string(), false);
                }
            }
        }
        self
    }

    /// One server; `None`: the process lacks it.
    pub fn server(&self, backend: &BackendName, server: &ServerName) -> Option<&RuntimeServer> {
        self.servers.get(&(backend.to_string(), server.to_string()))
    }
}

/// What a target can do at run time beside changing the address, the state and the weight of a server. It is found out,
/// not configured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Capabilities {
    /// Servers are added (`add server`, management guide, 9.3). That needs a socket of the process: the Data Plane API
    /// can add a server, but not turn on its health check.
    pub servers: bool,
    /// Backends are made and removed (`add backend`, HAProxy 3.4). That needs a socket of the process, too.
    pub backends: bool,
}

impl Capabilities {
    /// Those of a target with a socket of the process.
    pub fn of_socket(version: Version) -> Self {
        Self { servers: true, backends: version.has_run_time_backends() }
    }
}

/// A new state of one server in the process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateChange {
    /// The backend.
    pub backend: BackendName,
    /// The server.
    pub server: ServerName,
    /// The state.
    pub state: State,
}

/// What HAProxy's worker reports about itself (`show info`, management guide, 9.3).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HaproxyInfo {
    /// Its release series.
    pub version: Version,
    /// Its version as it writes it, such as `3.2.26-1`.
    pub release: String,
    /// The worker's process ID: another worker does not have the run-time changes of this one.
    pub pid: u64,
    /// Since the worker started.
    pub uptime: Option<Duration>,
    /// Its connections and requests.
    pub traffic: Traffic,
}

/// Connections and requests of a worker since it started. `None`: HAProxy did not report it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Traffic {
    /// Connections that are open (`CurrConns`).
    pub connections: Option<u64>,
    /// Connections so far (`CumConns`).
    pub connections_total: Option<u64>,
    /// Connections in the last second (`ConnRate`).
    pub connection_rate: Option<u64>,
    /// Connections that may be open (`Maxconn`).
    pub connection_limit: Option<u64>,
    /// Requests so far (`CumReq`).
    pub requests_total: Option<u64>,
}

/// The connection to one HAProxy.
#[async_trait]
pub trait Plane: fmt::Debug + Send + Sync {
    /// Which HAProxy answers, and whether it is new enough.
    async fn info(&self) -> Result<HaproxyInfo, AccessError>;
    /// What HAProxy counts for each frontend, backend and server. Asks for all of it: see [`crate::sample::SHARE`] for
    /// what it costs.
    async fn stats(&self, fields: Fields) -> Result<Stats, AccessError>;
    /// What this process can do at run time.
    async fn capabilities(&self, info: &HaproxyInfo) -> Result<Capabilities, AccessError>;
    /// Looks closer at the way to the process, for `check`: a doubt that does not keep anything from working, if there
    /// is one.
    async fn examine(&self) -> Result<Option<String>, AccessError> {
        Ok(None)
    }
    /// Cleans up what an interrupted run left behind. Called before a pass that may write, if the last one did not end
    /// well. [`WriteError::Access`], [`WriteError::Conflict`].
    async fn recover(&self) -> Result<(), WriteError>;
    /// Reads the configuration.
    async fn observe(&self) -> Result<Observed, AccessError>;
    /// The map files of ours. With `process` also what HAProxy has of them.
    async fn maps(&self, observed: &Observed, process: bool) -> Result<Maps, AccessError>;
    /// Writes a map file, in one step, and makes the same changes in the process, if that has the map.
    /// [`WriteError::Access`], [`WriteError::Conflict`], [`WriteError::HalfLive`], and [`WriteError::NotLive`]: the file is
    /// written, and the process needs a reload to have it.
    async fn put_map(&self, folder: &str, file: &MapFile, entries: &[Entry]) -> Result<(), WriteError>;
    /// Deletes a map file that no rule names any more. [`WriteError::Access`], [`WriteError::Conflict`].
    async fn delete_map(&self, file: &MapFile) -> Result<(), WriteError>;
    /// What a write would do to what is not ours. Called before a write; cached as long as what is not ours stays the
    /// same. [`WriteError::Access`], [`WriteError::Conflict`].
    async fn survey(&self, observed: &Observed) -> Result<Survey, WriteError>;
    /// Prepares a plan; nothing is written yet. The caller has to commit or abort it. [`WriteError::Access`],
    /// [`WriteError::Conflict`], [`WriteError::Invalid`], [`WriteError::Distorted`].
    async fn stage(&self, observed: &Observed, plan: &Plan) -> Result<Staged, WriteError>;
    /// Has HAProxy validate what was staged, writes it, and loads it. [`WriteError::Access`], [`WriteError::Conflict`],
    /// [`WriteError::Invalid`], [`WriteError::TooLong`], [`WriteError::ReloadFailed`].
    async fn commit(&self, observed: &Observed, staged: Staged) -> Result<(), WriteError>;
    /// Discards what was staged.
    async fn abort(&self, staged: Staged) -> Result<(), AccessError>;
    /// Writes a text and makes the same changes in the process, without a reload. A plane with a socket of the process
    /// does not write the text that is there already. [`WriteError::Access`],
    /// [`WriteError::Conflict`], [`WriteError::Invalid`], [`WriteError::TooLong`], [`WriteError::HalfLive`],
    /// [`WriteError::NotLive`].
    async fn commit_live(&self, observed: &Observed, text: &ConfigText, actions: &[Action]) -> Result<(), WriteError>;
    /// Has HAProxy validate a text, with empty maps of ours: they may not exist yet.
    async fn validate(&self, text: &ConfigText) -> Result<Verdict, AccessError>;
    /// The servers of the managed backends as the process has them.
    async fn runtime(&self, observed: &Observed) -> Result<Runtime, AccessError>;
    /// Sets one state in the process, not in the file. A server that the process lacks is not an error.
    async fn set_state(&self, change: &StateChange) -> Result<(), AccessError>;
    /// Lets no more requests find a backend, in the process only. Where [`Capabilities::backends`] is set.
    async fn unpublish(&self, backend: &BackendName) -> Result<(), AccessError>;
    /// Removes a server, which is in maintenance, or a backend, which is not published, from the process. `false`: not
    /// now, as somebody is still connected to the server, the backend still has one, or something refers to it. Only
    /// where [`Capabilities::servers`] is set.
    async fn remove(&self, surplus: &Surplus) -> Result<bool, AccessError>;
    /// Loads the configuration as it is, again. [`WriteError::Access`], [`WriteError::Conflict`],
    /// [`WriteError::Invalid`], [`WriteError::ReloadFailed`].
    async fn reload(&self, observed: &Observed) -> Result<(), WriteError>;
}
