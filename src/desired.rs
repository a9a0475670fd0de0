//! What HAProxy should have: the types in which both the desired and the observed state are expressed.
//!
//! Everything here is validated at construction: a name, an address or a value of these types can be written to the
//! configuration text as it is.

mod backend;
pub mod build;
mod checks;
mod claims;
mod grants;
mod held;
mod name;
mod note;
mod owner;
mod present;
pub mod routes;
mod server;
mod settle;
pub mod tags;
mod tls;

pub use backend::{
    Backend, BackendKind, BackendSettings, Balance, Check, CookieName, Desired, HttpCheck, Mode, SlotPolicy, Timeouts,
    Timing,
};
pub use checks::of_job;
pub use grants::{BadGlob, Grant, Grants};
pub use held::Held;
pub use name::{Address, BackendName, FrontendName, Invalid, ServerName, ServiceKey};
pub use note::{Code, NamespaceNote, Note, Severity};
pub use owner::{Described, Owner, encode};
pub use present::{Door, Place, Present};
pub use routes::{DomainType, Entry, FrontendRoutes, HostPattern, MapKind, Route, RoutePath, Routes};
pub use server::{DEFAULT_WEIGHT, Instance, InstanceId, Occupant, Server, ServerOptions, State};
pub use tls::{ProxyProtocol, Sni, SniFetch, SniHost, Tls, Verify};
