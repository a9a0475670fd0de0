//! What happens to each server of a plan, for programs: which instance comes in or goes out, what else changes.

use serde::Serialize;

use crate::desired::{Occupant, Server, ServerName, ServiceKey};
use crate::observed::ObservedBackend;

use super::{Edit, ServerEdit};

/// What happens to a server. The words stay the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ServerAction {
    /// An instance takes it.
    In,
    /// Its instance is gone: it drains, or is in maintenance.
    Out,
    /// The same instance, or none, with another address, weight or setting.
    Change,
    /// It is new, and waits for an instance.
    Spare,
    /// A line without an instance is removed.
    Remove,
}

/// One server of a plan. If one instance replaces another there are two entries, the old one first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ServerSummary {
    /// The server's name.
    pub name: ServerName,
    /// What happens to it.
    pub action: ServerAction,
    /// The address of the instance: an IP, or a host name. `None` if the line cannot be read.
    pub address: Option<String>,
    /// Its port.
    pub port: Option<u16>,
    /// The ID of the instance's registration, with special characters as `%XX`; `None` if there is none.
    pub instance: Option<String>,
    /// Its allocation.
    pub allocation: Option<String>,
    /// The service that it is an instance of.
    pub service: Option<ServiceKey>,
}

impl ServerSummary {
    fn new(action: ServerAction, server: &Server) -> Self {
        let (instance, allocation, service) = match &server.occupant {
            Occupant::Instance { id, alloc, service, drain: _ } => {
                (Some(id.as_str().to_owned()), Some(alloc.clone()), service.clone())
            }
            Occupant::Free { .. } => (None, None, None),
        };
        let (address, port) = (Some(server.address.to_string()), Some(server.port));
        Self { name: server.name.clone(), action, address, port, instance, allocation, service }
    }

    fn unread(action: ServerAction, name: &ServerName) -> Self {
        let (address, port, instance, allocation, service) = (None, None, None, None, None);
        Self { name: name.clone(), action, address, port, instance, allocation, service }
    }
}

/// All servers that an edit changes; `observed` is the backend as it is.
pub(super) fn servers(edit: &Edit, observed: Option<&ObservedBackend>) -> Vec<ServerSummary> {
    let known = observed.map_or(&[][..], |backend| &backend.servers);
    match edit {
        Edit::Create { servers, .. } => servers.iter().map(added).collect(),
        Edit::Delete { .. } => known.iter().map(removed).collect(),
        Edit::Change { edits, .. } | Edit::Servers(edits) => {
            edits.iter().flat_map(|edit| edited(edit, known)).collect()
        }
    }
}

fn added(server: &Server) -> ServerSummary {
    ServerSummary::new(if server.is_enabled() { ServerAction::In } else { ServerAction::Spare }, server)
}

fn removed(server: &Server) -> ServerSummary {
    ServerSummary::new(if server.is_enabled() { ServerAction::Out } else { ServerAction::Remove }, server)
}

fn edited(edit: &ServerEdit, known: &[Server]) -> Vec<ServerSummary> {
    match edit {
        ServerEdit::Add { server, is_live: _ } => vec![added(server)],
        ServerEdit::Remove { name, is_live: _ } => match known.iter().find(|server| server.name == *name) {
            Some(server) => vec![removed(server)],
            None => vec![ServerSummary::unread(ServerAction::Remove, name)],
        },
        ServerEdit::Retire { name } => vec![ServerSummary::unread(ServerAction::Remove, name)],
        ServerEdit::Set { before, after, fixed_weight: _ } => {
            let was = before.as_ref().filter(|before| before.is_enabled());
            if was.and_then(|was| was.occupant.id()) == after.occupant.id() {
                return vec![ServerSummary::new(ServerAction::Change, after)];
            }
            let out = was.map(|was| ServerSummary::new(ServerAction::Out, was));
            let into = after.is_enabled().then(|| ServerSummary::new(ServerAction::In, after));
            out.into_iter().chain(into).collect()
        }
    }
}
