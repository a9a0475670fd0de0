//! What HAProxy should have: the words in which desired and observed state are both written.
//!
//! Everything here is validated at construction: a name, an address or a value of these types can stand
//! in the configuration text as it is.

mod backend;
pub mod build;
mod grants;
mod held;
mod name;
mod note;
mod owner;
mod present;
mod server;
mod settle;
pub mod tags;

pub use backend::{
    Backend, BackendKind, BackendSettings, Balance, Check, Desired, HttpCheck, Mode, SlotPolicy, Timing,
};
pub use grants::{BadGlob, Grant, Grants};
pub use held::Held;
pub use name::{Address, BackendName, Invalid, ServerName, ServiceKey};
pub use note::{Code, NamespaceNote, Note, Severity};
pub use owner::{Described, Owner, encode};
pub use present::{Place, Present};
pub use server::{DEFAULT_WEIGHT, Instance, InstanceId, Server, ServerOptions, State, Tenant};
