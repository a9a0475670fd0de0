//! Why a change takes a reload: what `plan/live.rs` decided, in words.

use std::collections::BTreeMap;
use std::fmt;

use crate::desired::{Address, BackendName, BackendSettings, FrontendName, Server};
use crate::observed::{Observed, ObservedBackend, is_static};

use super::{Edit, Options, Plan, Rewrite, ServerEdit, Surplus};

/// Why one backend takes a reload.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// The Data Plane API alone adds no servers that are checked.
    NoSocket,
    /// Backends are made and removed from HAProxy 3.4.
    NoBackends,
    /// The process has no section to make such a backend from.
    NewSettings,
    /// The file has no `defaults` from which HAProxy could make it at run time.
    NoDefaults,
    /// Settings of a backend that stays.
    ChangedSettings,
    /// The process still has a backend of this name.
    Taken,
    /// HAProxy takes no servers, and no weights, with this algorithm.
    Algorithm(String),
    /// HAProxy resolves host names when it is reloaded.
    HostName,
    /// It is not known what `default-server` gives, or an agent is on.
    Inherited,
    /// HAProxy does not have the CAs of its system.
    Certificates,
    /// A server of an instance that stays.
    Options,
    /// A server of ours was edited by hand.
    Edited,
    /// What haproxy-nomad-connector made is taken over.
    TakenOver,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoSocket => {
                "backends, and servers beyond the spare ones, come and go without a reload only with \
                 `haproxy.runtime_socket`"
            }
            Self::NoBackends => {
                "backends come and go without a reload from HAProxy 3.4, unless `haproxy.write` is `transaction`"
            }
            Self::NewSettings => "no backend had these settings, and this `defaults`, at the last reload",
            Self::NoDefaults => {
                "HAProxy makes a backend at run time from a copy of the last `defaults`, and this file has none that \
                 can be copied: it is in another file, or has `from`, or the file has `.if`"
            }
            Self::ChangedSettings => "settings of a backend that exists change",
            Self::Taken => "the process still has a backend of this name, which somebody is connected to",
            Self::Algorithm(balance) => {
                return write!(f, "HAProxy changes no servers and weights at run time with `balance {balance}`");
            }
            Self::HostName => "a reload resolves the host name of an instance",
            Self::Inherited => {
                "it is not known what `default-server` gives to a server that is added at run time, or it has \
                 `agent-check`"
            }
            Self::Certificates => {
                "HAProxy loads the CAs of its system for `ssl.verify` with a reload, as the file has `httpclient.ssl.…`"
            }
            Self::Options => "what HAProxy reads when it starts changes for an instance that stays: `maxconn`, `backup`, `ssl`, `sni`, \
                 `proxy-protocol` or its check",
            Self::Edited => "a server line was edited by hand",
            Self::TakenOver => "servers of haproxy-nomad-connector are replaced by ours at the same addresses",
        })
    }
}

/// For each backend that takes a reload, why. One that goes because there is a reload anyway has no reason of its own.
pub fn reasons(plan: &Plan, observed: &Observed, options: &Options) -> BTreeMap<BackendName, Reason> {
    let reason = |(name, edit): (&BackendName, &Edit)| Some((name.clone(), reason(name, edit, observed, options)?));
    plan.edits.iter().filter_map(reason).collect()
}

fn reason(name: &BackendName, edit: &Edit, observed: &Observed, options: &Options) -> Option<Reason> {
    let section = observed.backend(name);
    match edit {
        whole if whole.is_live() => None,
        Edit::Create { settings, servers, is_live: _ } => Some(creation(name, settings, servers, observed, options)),
        Edit::Change { edits, .. } | Edit::Servers(edits) if edits.iter().any(ServerEdit::is_retirement) => {
            Some(Reason::TakenOver)
        }
        Edit::Change { rewrite: Rewrite::Settings, .. } => Some(Reason::ChangedSettings),
        Edit::Change { edits, .. } | Edit::Servers(edits) => {
            let edit = edits.iter().find(|edit| !edit.is_live())?;
            Some(of_server(edit, section, options))
        }
        Edit::Delete { .. } => {
            let capabilities = options.capabilities;
            let at_run_time = if capabilities.servers { Reason::NoBackends } else { Reason::NoSocket };
            (!capabilities.backends).then_some(at_run_time)
        }
    }
}

fn creation(
    name: &BackendName,
    settings: &BackendSettings,
    servers: &[Server],
    observed: &Observed,
    options: &Options,
) -> Reason {
    let is_named = servers.iter().any(|server| matches!(server.address, Address::Host(_)));
    let balance = settings.balance.algorithm();
    match options.capabilities {
        all if !all.servers => Reason::NoSocket,
        all if !all.backends => Reason::NoBackends,
        _ if options.taken.contains(&Surplus::Backend(name.clone())) => Reason::Taken,
        _ if is_static(balance) => Reason::Algorithm(balance.to_owned()),
        _ if !observed.knows_defaults || observed.default_agent_check => Reason::Inherited,
        _ if is_named => Reason::HostName,
        _ if !observed.loads_system_ca && servers.iter().any(Server::verifies) => Reason::Certificates,
        _ if !observed.profiles.can_be_made() => Reason::NoDefaults,
        _ => Reason::NewSettings,
    }
}

fn of_server(edit: &ServerEdit, section: Option<&ObservedBackend>, options: &Options) -> Reason {
    let fixed = section.filter(|section| section.has_static_algorithm());
    let algorithm = fixed.map(|section| Reason::Algorithm(section.balance.clone()));
    match edit {
        ServerEdit::Set { before: None, .. } => Reason::Edited,
        ServerEdit::Retire { .. } => Reason::TakenOver,
        ServerEdit::Set { before: Some(before), after, fixed_weight: _ } => match (before, after) {
            _ if before.fixed() != after.fixed() => Reason::Options,
            _ if before.address != after.address => Reason::HostName,
            _ => algorithm.unwrap_or(Reason::Options),
        },
        ServerEdit::Add { .. } | ServerEdit::Remove { .. } if !options.capabilities.servers => Reason::NoSocket,
        ServerEdit::Add { server, .. } if matches!(server.address, Address::Host(_)) => Reason::HostName,
        ServerEdit::Add { server, .. }
            if server.verifies() && section.is_some_and(|section| !section.loads_system_ca) =>
        {
            Reason::Certificates
        }
        ServerEdit::Add { .. } | ServerEdit::Remove { .. } => algorithm.unwrap_or(Reason::Inherited),
    }
}

/// The line for frontends whose rules change.
pub fn of_rules<'a>(frontends: impl IntoIterator<Item = &'a FrontendName>) -> Option<String> {
    let names: Vec<&str> = frontends.into_iter().map(FrontendName::as_str).collect();
    (!names.is_empty()).then(|| {
        format!("reload: the rules of a frontend that read its maps come, change or go ({})", names.join(", "))
    })
}

/// One line for each reason, with the first backends that it holds for.
pub fn lines(reasons: &BTreeMap<BackendName, Reason>) -> Vec<String> {
    /// How many names a line has.
    const NAMES: usize = 5;
    let mut backends: BTreeMap<&Reason, Vec<&str>> = BTreeMap::new();
    for (name, reason) in reasons {
        backends.entry(reason).or_default().push(name.as_str());
    }
    let line = |(reason, names): (&Reason, Vec<&str>)| {
        let more = match names.len().saturating_sub(NAMES) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        format!("reload: {reason} ({}{more})", names[..names.len().min(NAMES)].join(", "))
    };
    backends.into_iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_said_once_with_the_first_backends() {
        let name = |n: u8| format!("b{n}").parse().expect("a name");
        let mut reasons: BTreeMap<BackendName, Reason> = (1..=7).map(|n| (name(n), Reason::NewSettings)).collect();
        reasons.insert(name(0), Reason::HostName);
        let lines = lines(&reasons);
        assert_eq!(lines.len(), 2);
        assert!(lines[0].ends_with("at the last reload (b1, b2, b3, b4, b5 and 2 more)"), "{lines:?}");
        assert_eq!(lines[1], "reload: a reload resolves the host name of an instance (b0)");
    }
}
