//! Keeps HAProxy in line with Nomad's native service catalog.
//!
//! ```text
//! Nomad ──► catalog ──► desired ──┐
//!  (or a file)   tags, settings     ├──► guard ──► plan (pure) ──► apply: one write ──► HAProxy
//! HAProxy ──► observed ─────────────┘
//! ```
//!
//! Every pass takes the whole catalog and HAProxy's whole configuration, computes what is missing, and applies that.
//! Events only wake it sooner: if one is lost, a process dies or the file is edited by hand, the next pass repairs it.
//! Only the two ends do IO; what is between them is synchronous and pure.
//!
//! What holds, always:
//!
//! 1. An error is never an empty catalog. What could not be read is held: a service on its own, a namespace on its
//!    own, everything if it is the list. If one read would remove too much, that is held, too, until Nomad reports
//!    that the allocations are gone.
//! 2. What is not ours is never changed in meaning, and on the local plane not in a byte. The Data Plane API
//!    renders the whole file with each write, so a file that this would harm is not written.
//! 3. A pass over a converged system writes nothing.
//! 4. All the writes of a pass are one transaction, or one versioned write of its text.
//! 5. After a failure the file and the running process agree again within one pass.
//! 6. One service, whatever it registers, harms only itself; an instance that HAProxy refuses not even its
//!    siblings.
//! 7. An instance that is gone is out of service at once: the process is changed before, and independently
//!    of, any write of the file; also while a pass runs that began before.
//! 8. One HAProxy's trouble is its own: they share the catalog, and nothing else.
//!
//! In reading order:
//!
//! - [`desired`]: the types in which desired and observed state are expressed; [`desired::tags`] parses
//!   tags (one table of them), [`desired::build`] builds the desired state from a catalog; `desired/checks.rs` chooses
//!   the check: tags, the job's, the default. [`desired::routes`]: which requests go where, and the maps that say so;
//!   `desired/claims.rs` decides who gets a route.
//! - [`catalog`]: what Nomad reports, from [`catalog::nomad`] or [`catalog::file`]; [`catalog::shared`] reads it once
//!   for all HAProxys, [`catalog::watch`] wakes them, [`catalog::ledger`] says how much is to be read, `catalog/zombies.rs`
//!   leaves out what has ended, `catalog/job.rs` reads what jobs say of checks; [`nomad`] is the HTTP client.
//! - [`haproxy`]: the configuration text, lossless; our own lines rendered and read back; sockets; statistics;
//!   [`haproxy::maps`], the map files of ours and the rules that read them.
//! - [`observed`]: that text in the types of [`desired`], and the meaning of what is not ours; [`observed::Others`] is
//!   what other owners marked, [`observed::Profiles`] what HAProxy 3.4 makes backends from at run time.
//! - [`plan::guard`]: what stays although the catalog lacks it; [`catalog::fate`] asks Nomad for the proof.
//! - [`plan`]: the difference, sorted by what needs a reload (`plan/live.rs`, the only place that decides it, by
//!   [`plane::Capabilities`]); [`plan::slots`] assigns slots to instances, [`plan::text`] is the plan as an edit
//!   of the text, [`plan::Changes`] as changes of the process, [`plan::display`] as a summary, [`plan::review`] as
//!   a file for review, [`plan::Kept`] as what `uninstall` leaves. [`plan::RouteEdits`] are the maps and rules that change,
//!   and the order in which they do.
//! - [`plane`]: the connection to HAProxy, by [`plane::dataplane`] or [`plane::local`].
//! - [`leader`]: of several controllers one writes, the one that holds a lock in Nomad ([`nomad::lock`]); every write asks
//!   for it.
//! - [`apply`]: one pass, which always ends with a status. [`reconcile`]: the loop around it; [`breaker`]: when it
//!   leaves HAProxy alone; [`command`]: what a person asks of it. [`report`]: the log of passes.
//! - [`sample`]: what HAProxy's own statistics say of our servers, now and then.
//! - [`status`]: the state of the controller as one value, which the loops publish. [`health`]: whether the loops are
//!   alive, and each HAProxy in line with the catalog. [`explain`]: why a service is, or is not, routed.
//! - [`check`]: whether the controller can do its work: Nomad, its rights there, and each HAProxy.
//! - [`target`]: the controller of one HAProxy. [`fleet`]: the loops of all, over one catalog
//!   ([`catalog::shared`]). [`discovery`]: HAProxys that register in Nomad, and come and go.
//! - [`endpoint`]: how both HTTP servers are reached. [`errors`]: how errors are printed.
//! - [`config`], [`cli`], [`http`], [`metrics`], [`telemetry`], [`shutdown`]: the interface for people and
//!   programs.

pub mod apply;
pub mod breaker;
pub mod catalog;
pub mod check;
pub mod cli;
pub mod command;
pub mod config;
pub mod desired;
pub mod discovery;
pub mod endpoint;
pub mod errors;
pub mod explain;
pub mod fleet;
pub mod haproxy;
pub mod health;
pub mod http;
pub mod leader;
pub mod metrics;
pub mod nomad;
pub mod observed;
pub mod plan;
pub mod plane;
pub mod reconcile;
pub mod report;
pub mod sample;
pub mod shutdown;
pub mod status;
pub mod target;
pub mod telemetry;
