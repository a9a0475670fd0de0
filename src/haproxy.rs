//! HAProxy's own interfaces: its configuration text, its sockets, its version.

pub mod bytes;
pub mod connector;
pub mod default_server;
pub mod maps;
pub mod parse;
pub mod render;
pub mod section;
pub mod socket;
pub mod stats;
pub mod text;
pub mod version;
