//! The way to HAProxy: the Data Plane API, or the file and the socket of a HAProxy on this machine.
//!
//! Both make the same promises. A write names the version that it was computed from and fails if that
//! has moved; it is validated by HAProxy before it counts; a structural write is loaded when it returns,
//! or the last good configuration is back; a live write changes the file and the process together.

pub mod dataplane;
pub mod local;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::future::Future;
use std::net::IpAddr;

use thiserror::Error;

use crate::desired::State;
use crate::haproxy::text::ConfigText;
use crate::haproxy::version::{Version, VersionError};
use crate::observed::Observed;
use crate::plan::{Action, Plan};

type Source = Box<dyn std::error::Error + Send + Sync>;

/// Why something could not be done.
#[derive(Debug, Error)]
pub enum PlaneError {
    /// It may work the next time.
    #[error("{what}")]
    Unavailable {
        /// What was tried.
        what: String,
        /// What came back.
        #[source]
        source: Source,
    },
    /// It will not work before a person changes something.
    #[error("{what}")]
    Refused {
        /// What is wrong, and what to do.
        what: String,
        /// What came back.
        #[source]
        source: Option<Source>,
    },
    /// This HAProxy will not do.
    #[error(transparent)]
    Version(#[from] VersionError),
    /// Somebody else wrote in the meantime; the next pass reads it.
    #[error("the configuration changed while the pass ran: {0}")]
    Conflict(String),
    /// HAProxy refuses the configuration; nothing was changed.
    #[error("HAProxy refuses the configuration, which stays as it was: {message}")]
    Invalid {
        /// HAProxy's words.
        message: String,
    },
    /// It was valid, but could not be loaded; the last good configuration is back.
    #[error("HAProxy could not load the configuration and goes on with the last good one: {message}")]
    ReloadFailed {
        /// HAProxy's words.
        message: String,
    },
    /// The file was written, the process did not take all of it; the next pass repairs that.
    #[error("the file is written, but HAProxy did not take a run-time change: {message}")]
    HalfLive {
        /// HAProxy's words.
        message: String,
    },
    /// It has to be a reload, for a reason that is the plane's own.
    #[error("this cannot be changed at run time: {0}")]
    NotLive(&'static str),
    /// What would be written does not say what was planned.
    #[error("what the Data Plane API would write is not what was planned ({0}); use haproxy.write = \"text\"")]
    Distorted(String),
}

impl PlaneError {
    /// Whether trying again can help.
    pub fn is_transient(&self) -> bool {
        use PlaneError::{Distorted, Invalid, NotLive, Refused, Version};
        !matches!(self, Refused { .. } | Version(_) | Invalid { .. } | NotLive(_) | Distorted(_))
    }
}

/// A plan that is ready to be committed, and the text that a commit writes.
#[derive(Debug)]
pub struct Staged {
    /// The text.
    pub text: ConfigText,
    /// The transaction that holds it, where there is one.
    pub transaction: Option<String>,
}

/// What a commit did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed {
    /// The version of the configuration now.
    pub version: u64,
    /// Whether HAProxy was reloaded.
    pub reloaded: bool,
}

/// A server as the running process has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuntimeServer {
    /// Its address; `None` where the process has none yet (a host name that was not resolved).
    pub address: Option<IpAddr>,
    /// Its port.
    pub port: u16,
    /// Its administrative state.
    pub state: State,
    /// Its weight, where the plane says.
    pub weight: Option<u16>,
}

/// The servers of the running process, by backend and name.
pub type Runtime = BTreeMap<(String, String), RuntimeServer>;

/// Which HAProxy it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HaproxyInfo {
    /// Its release series.
    pub version: Version,
    /// The worker's process ID: another one has forgotten what it was told at run time.
    pub pid: u64,
}

/// The way to one HAProxy.
pub trait Plane: Send + Sync {
    /// Which HAProxy answers, and whether it will do.
    fn info(&self) -> impl Future<Output = Result<HaproxyInfo, PlaneError>> + Send;
    /// Clears up what an earlier run left behind when it was cut short. Called before a pass that may
    /// write, when the one before was not seen to end well.
    fn recover(&self) -> impl Future<Output = Result<(), PlaneError>> + Send;
    /// Reads the configuration.
    fn observe(&self) -> impl Future<Output = Result<Observed, PlaneError>> + Send;
    /// Prepares a plan; nothing is written yet. Whoever stages commits or aborts.
    fn stage(&self, observed: &Observed, plan: &Plan) -> impl Future<Output = Result<Staged, PlaneError>> + Send;
    /// Has HAProxy validate what was staged, writes it, and loads it.
    fn commit(&self, observed: &Observed, staged: Staged)
    -> impl Future<Output = Result<Committed, PlaneError>> + Send;
    /// Drops what was staged.
    fn abort(&self, staged: Staged) -> impl Future<Output = Result<(), PlaneError>> + Send;
    /// Writes a text and tells the process the same, without a reload. [`PlaneError::NotLive`]: nothing
    /// was written.
    fn commit_live(
        &self,
        observed: &Observed,
        text: &ConfigText,
        actions: &[Action],
    ) -> impl Future<Output = Result<Committed, PlaneError>> + Send;
    /// Has HAProxy validate a text; an error names lines of just this text.
    fn validate(&self, text: &ConfigText) -> impl Future<Output = Result<(), PlaneError>> + Send;
    /// The servers of the managed backends as the process has them.
    fn runtime(&self, observed: &Observed) -> impl Future<Output = Result<Runtime, PlaneError>> + Send;
    /// Loads the configuration as it is, again.
    fn reload(&self, observed: &Observed) -> impl Future<Output = Result<Committed, PlaneError>> + Send;
}

/// An error with all its sources in one line.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let _ = write!(text, ": {cause}");
        source = cause.source();
    }
    text
}
