//! What a plan consists of: changes of backends and of server lines, and what they ask of the running process.

use std::net::IpAddr;

use super::NewServer;
use crate::desired::{BackendName, BackendSettings, Mode, Server, ServerName, State};

/// A change of one server line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerEdit {
    /// A new line.
    Add {
        /// As it should be.
        server: Server,
        /// Whether HAProxy takes it at run time.
        is_live: bool,
    },
    /// A new content. `before` is `None` if the line was changed by a person.
    Set {
        /// As it is.
        before: Option<Server>,
        /// As it should be.
        after: Server,
        /// Whether the backend's algorithm is static, so that the weight cannot change at run time.
        fixed_weight: bool,
    },
    /// The line is removed.
    Remove {
        /// The server.
        name: ServerName,
        /// Whether HAProxy removes it at run time.
        is_live: bool,
    },
    /// A line of haproxy-nomad-connector goes, as a server of ours has its address.
    Retire {
        /// The connector's server.
        name: ServerName,
    },
}

/// How much of the settings of a backend of ours is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rewrite {
    /// Nothing: they are as they should be.
    Nothing,
    /// The description, which the process does not need. Nothing else of the settings is written.
    Description,
    /// All of them.
    Settings,
}

/// A change of one backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Edit {
    /// A backend of ours that does not exist yet.
    Create {
        /// Its settings.
        settings: BackendSettings,
        /// Its servers.
        servers: Vec<Server>,
        /// Whether HAProxy makes it at run time.
        is_live: bool,
    },
    /// A backend of ours: its settings where they change, and its servers.
    Change {
        /// The whole backend as it should be, for a plane that writes whole backends.
        settings: BackendSettings,
        /// Which of the settings differ from what is there.
        rewrite: Rewrite,
        /// All servers of ours that it should have.
        servers: Vec<Server>,
        /// Those that differ.
        edits: Vec<ServerEdit>,
    },
    /// Servers of ours in a backend that otherwise stays as it is.
    Servers(Vec<ServerEdit>),
    /// A backend of ours that no service needs any more.
    Delete {
        /// Whether HAProxy removes it at run time.
        is_live: bool,
    },
}

/// A change of the running process, which needs no reload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// `set server B/S addr IP port PORT`.
    Address(BackendName, ServerName, IpAddr, u16),
    /// `set server B/S state ready`, `drain` or `maint`.
    State(BackendName, ServerName, State),
    /// `set server B/S weight N`.
    Weight(BackendName, ServerName, u16),
    /// `add server B/S …`: it is in maintenance.
    Add(BackendName, ServerName, NewServer),
    /// `enable health B/S`: the check of a server that was added.
    Check(BackendName, ServerName),
    /// `add backend B from PROFILE mode MODE`: no request finds it yet.
    Make(BackendName, String, Mode),
    /// `publish backend B`: requests find it.
    Publish(BackendName),
}

impl Action {
    /// The backend that it changes, or in which it changes a server.
    pub fn backend(&self) -> &BackendName {
        let (Self::Address(backend, ..)
        | Self::State(backend, ..)
        | Self::Weight(backend, ..)
        | Self::Add(backend, ..)
        | Self::Check(backend, _)
        | Self::Make(backend, ..)
        | Self::Publish(backend)) = self;
        backend
    }

    /// The server that it changes; `None`: a backend.
    pub fn server(&self) -> Option<(&BackendName, &ServerName)> {
        match self {
            Self::Address(backend, server, ..)
            | Self::State(backend, server, _)
            | Self::Weight(backend, server, _)
            | Self::Add(backend, server, _)
            | Self::Check(backend, server) => Some((backend, server)),
            Self::Make(..) | Self::Publish(_) => None,
        }
    }
}

impl Edit {
    /// The servers that it edits in a backend that exists.
    pub(super) fn servers(&self) -> &[ServerEdit] {
        match self {
            Self::Change { edits, .. } | Self::Servers(edits) => edits,
            Self::Create { .. } | Self::Delete { .. } => &[],
        }
    }

    pub(super) fn size(&self) -> usize {
        match self {
            Self::Create { servers, .. } => 1 + servers.len(),
            Self::Change { rewrite, edits, .. } => usize::from(*rewrite != Rewrite::Nothing) + edits.len(),
            Self::Servers(edits) => edits.len(),
            Self::Delete { .. } => 1,
        }
    }
}

impl ServerEdit {
    /// The server's name.
    pub fn name(&self) -> &ServerName {
        match self {
            Self::Add { server, .. } | Self::Set { after: server, .. } => &server.name,
            Self::Remove { name, .. } | Self::Retire { name } => name,
        }
    }

    /// The server as it should be.
    pub(super) fn after(&self) -> Option<&Server> {
        match self {
            Self::Add { server, .. } | Self::Set { after: server, .. } => Some(server),
            Self::Remove { .. } | Self::Retire { .. } => None,
        }
    }

    /// Whether a line of haproxy-nomad-connector goes.
    pub(super) fn is_retirement(&self) -> bool {
        matches!(self, Self::Retire { .. })
    }

    /// Whether an instance comes in (`Some(true)`), goes out (`Some(false)`), or neither.
    pub(super) fn movement(&self) -> Option<bool> {
        match self {
            Self::Add { server, .. } => server.is_enabled().then_some(true),
            Self::Set { before, after, fixed_weight: _ } => {
                match (before.as_ref().is_some_and(Server::is_enabled), after.is_enabled()) {
                    (false, true) => Some(true),
                    (true, false) => Some(false),
                    _ => None,
                }
            }
            Self::Remove { .. } | Self::Retire { .. } => None,
        }
    }

    /// While it waits: it is the same change if the slot has been freed in the meantime.
    pub(super) fn waiting(self) -> Self {
        match self {
            Self::Set { before: _, after, fixed_weight } => Self::Set { before: None, after, fixed_weight },
            other => other,
        }
    }
}
