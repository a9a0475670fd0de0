//! Keeps HAProxy in line with Nomad's native service catalog.
//!
//! ```text
//! Nomad ──► catalog ──► desired ──┐
//!  (or a file)   tags, settings     ├──► guard ──► plan (pure) ──► apply: one write ──► HAProxy
//! HAProxy ──► observed ─────────────┘
//! ```
//!
//! Every pass reads the whole catalog and HAProxy's whole configuration, computes what is missing, and
//! applies that. Events only wake it sooner: if one is lost, a process dies or somebody edits the file by
//! hand, the next pass repairs it. Only the two ends do IO; what lies between is synchronous and pure.
//!
//! What holds, always:
//!
//! 1. An error is never an empty catalog. What could not be read is held: a service holds itself, a namespace
//!    itself, the list everything. What one read takes away too much of is held, too, until Nomad says that its
//!    allocations are gone.
//! 2. What is not ours is never changed in meaning, and on the local plane not in a byte. The Data Plane API
//!    renders the whole file with each write, so a file that this would harm is not written.
//! 3. A pass over a converged system writes nothing.
//! 4. All the writes of a pass are one transaction, or one versioned write of its text.
//! 5. After a failure the file and the running process agree again within one pass.
//! 6. One service, whatever it registers, harms only itself; an instance that HAProxy refuses not even its
//!    siblings.
//! 7. An instance that is gone is out of service at once: the process is told before, and apart from, any
//!    write of the file.
//!
//! In reading order:
//!
//! - [`desired`]: the words in which desired and observed state are written; [`desired::tags`] reads
//!   tags, [`desired::build`] makes the desired state of a catalog.
//! - [`catalog`]: what Nomad reports, from [`catalog::nomad`] or [`catalog::file`]; [`nomad`] is the
//!   HTTP client.
//! - [`haproxy`]: the configuration text, lossless; our own lines rendered and read back; sockets.
//! - [`observed`]: that text in the words of [`desired`]; what of it is not ours, in meaning.
//! - [`plan::guard`]: what stays though the catalog lacks it; [`catalog::fate`] asks Nomad for the proof.
//! - [`plan`]: the difference; [`plan::slots`] seats instances, [`plan::text`] is the plan as an edit of
//!   the text, [`plan::Changes`] what the process is set to, [`plan::display`] what people read of it,
//!   [`plan::review`] what they agreed to.
//! - [`plane`]: the way to HAProxy, by [`plane::dataplane`] or [`plane::local`].
//! - [`apply`]: one pass, which always ends with a status. [`reconcile`]: the loop around it. [`report`]: what the
//!   log says of passes. [`health`]: whether the loop is alive, and HAProxy in line with the catalog.
//! - [`endpoint`]: how both HTTP servers are reached. [`errors`]: how errors are printed.
//! - [`config`], [`cli`], [`http`], [`metrics`], [`telemetry`], [`shutdown`]: what people and
//!   programs see.

pub mod apply;
pub mod catalog;
pub mod cli;
pub mod config;
pub mod desired;
pub mod discovery;
pub mod endpoint;
pub mod errors;
pub mod fleet;
pub mod haproxy;
pub mod health;
pub mod http;
pub mod metrics;
pub mod nomad;
pub mod observed;
pub mod plan;
pub mod plane;
pub mod reconcile;
pub mod report;
pub mod shutdown;
pub mod target;
pub mod telemetry;
