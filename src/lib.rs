//! Keeps HAProxy in line with Nomad's native service catalog.
//!
//! ```text
//! Nomad ──► catalog ──► desired ──┐
//!  (or a file)   tags, settings     ├──► plan (pure) ──► apply: one write ──► HAProxy
//! HAProxy ──► observed ─────────────┘
//! ```
//!
//! Every pass reads the whole catalog and HAProxy's whole configuration, computes what is missing, and
//! applies that. Events only wake it sooner: if one is lost, a process dies or somebody edits the file by
//! hand, the next pass repairs it. Only the two ends do IO; what lies between is synchronous and pure.
//!
//! What holds, always:
//!
//! 1. An error is never an empty catalog: a read that fails, or may be incomplete, ends the pass.
//! 2. What is not ours is never changed: there is no code that renders a foreign section.
//! 3. A pass over a converged system writes nothing.
//! 4. All the writes of a pass are one transaction, or one versioned write of its text.
//! 5. After a failure the file and the running process agree again within one pass.
//! 6. One service with a bad tag harms only itself.
//!
//! In reading order:
//!
//! - [`desired`]: the words in which desired and observed state are written; [`desired::tags`] reads
//!   tags, [`desired::build`] makes the desired state of a catalog.
//! - [`catalog`]: what Nomad reports, from [`catalog::nomad`] or [`catalog::file`]; [`nomad`] is the
//!   HTTP client.
//! - [`haproxy`]: the configuration text, lossless; our own lines rendered and read back; sockets.
//! - [`observed`]: that text in the words of [`desired`].
//! - [`plan`]: the difference; [`plan::slots`] seats instances, [`plan::text`] is the plan as an edit of
//!   the text, [`plan::display`] what people read of it.
//! - [`plane`]: the way to HAProxy, by [`plane::dataplane`] or [`plane::local`].
//! - [`apply`]: one pass. [`reconcile`]: the loop around it.
//! - [`config`], [`cli`], [`http`], [`metrics`], [`telemetry`], [`shutdown`]: the faces.

pub mod apply;
pub mod catalog;
pub mod cli;
pub mod config;
pub mod desired;
pub mod haproxy;
pub mod http;
pub mod metrics;
pub mod nomad;
pub mod observed;
pub mod plan;
pub mod plane;
pub mod reconcile;
pub mod shutdown;
pub mod telemetry;
