//! What `uninstall` removes of one backend: everything that carries our mark and is as a controller wrote it. What a
//! person wrote stays, and so does the part of ours that it needs.
//!
//! An edit by hand is seen where the result is something that no controller writes. A line that could be ours is ours:
//! what it was before is not recorded.

use std::fmt;

use crate::desired::{BackendName, Occupant, Server};
use crate::observed::{Observed, ObservedBackend, Ownership};
use crate::plane::Capabilities;

use super::{Edit, Plan, ServerEdit, differences, slots};

/// Something of ours that stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// The backend that it is, or is in.
    pub backend: BackendName,
    /// Why, and what to do.
    pub why: String,
}

impl Kept {
    /// HAProxy refuses the file without it, with this message.
    pub fn refused(&mut self, message: &str) {
        self.why =
            format!("HAProxy refuses the file without it: {message}; remove what refers to it, then run this again");
    }
}

impl fmt::Display for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: backend {} is not removed completely: {}", self.backend, self.why)
    }
}

impl Plan {
    /// The plan that removes everything of ours, and what stays. HAProxy refuses to lose the backends for which
    /// `is_refused` holds.
    pub(super) fn uninstall(
        observed: &Observed,
        now: std::time::Duration,
        is_refused: impl Fn(&BackendName) -> bool,
    ) -> (Self, Vec<Kept>) {
        let (mut plan, mut kept) = (Self::default(), Vec::new());
        for (backend, section) in observed.marked() {
            let (edit, why) = if is_refused(&backend) {
                let why = "HAProxy refuses the file without it; remove what refers to it, then run this again";
                (emptied(section, now), Some(why.to_owned()))
            } else {
                match why_it_stays(section) {
                    None if section.is_ours() => (Some(Edit::Delete { is_live: false }), None),
                    why => (servers(section), why),
                }
            };
            plan.edits.extend(edit.map(|edit| (backend.clone(), edit)));
            kept.extend(why.map(|why| Kept { backend, why }));
        }
        plan.profiles = observed.profiles.edits([], &observed.owner);
        (plan, kept)
    }
}

/// What a person wrote or edited in it, if anything.
fn why_it_stays(section: &ObservedBackend) -> Option<String> {
    let is_ours = section.ownership != Ownership::Foreign;
    let edited: Vec<&str> = section.drifted.iter().map(crate::desired::ServerName::as_str).collect();
    let added: Vec<&str> = section.foreign.iter().map(String::as_str).collect();
    let what = if !edited.is_empty() {
        format!("these servers of ours were edited by hand: {}", edited.join(", "))
    } else if !is_ours {
        return None;
    } else if !added.is_empty() {
        format!("it has servers that are not ours: {}", added.join(", "))
    } else if let Ownership::Unclear(_) = section.ownership {
        "it is unclear whether what follows it is part of it".to_owned()
    } else if section.settings.is_none() {
        "its settings were edited by hand".to_owned()
    } else {
        return None;
    };
    let hint = if is_ours {
        "delete the section yourself, or remove our `description` from it to keep it as your own"
    } else {
        "delete them yourself, or remove the comments behind them to keep them as your own"
    };
    Some(format!("{what}; {hint}"))
}

/// Without the servers of ours. Those that were edited by hand stay.
fn servers(section: &ObservedBackend) -> Option<Edit> {
    let edits: Vec<_> =
        section.servers.iter().map(|server| ServerEdit::Remove { name: server.name.clone(), is_live: false }).collect();
    (!edits.is_empty()).then_some(Edit::Servers(edits))
}

/// Without instances, and without a drain: nobody would end it. The server lines stay, as something may refer to them.
fn emptied(section: &ObservedBackend, now: std::time::Duration) -> Option<Edit> {
    let undrained = |server: &Server| {
        let mut server = server.clone();
        match &mut server.occupant {
            Occupant::Free { drain_until: drain, .. } => *drain = None,
            Occupant::Instance { drain, .. } => *drain = None,
        }
        server
    };
    let servers: Vec<_> = section.servers.iter().map(undrained).collect();
    let mut edits = differences(section, &slots::vacate(&servers, |_| false, now), Capabilities::default());
    edits.retain(|edit| matches!(edit, ServerEdit::Set { before: Some(_), .. }));
    (!edits.is_empty()).then_some(Edit::Servers(edits))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::haproxy::text::ConfigText;

    const OURS: &str = "backend a\n  description nomad-haproxy:nomad a default/a\n  mode http\n  balance first\n  \
                        retries 3\n  option redispatch 1\n";

    /// What goes and what stays, with a server of ours in each.
    fn uninstalled(text: &str) -> (Vec<&'static str>, Vec<String>) {
        let observed = Observed::new(1, ConfigText::new(text), &"nomad".parse().expect("an owner"));
        let (plan, kept) = Plan::uninstall(&observed, std::time::Duration::ZERO, |_| false);
        let word = |edit: &Edit| if matches!(edit, Edit::Delete { .. }) { "delete" } else { "servers" };
        (plan.edits.values().map(word).collect(), kept.into_iter().map(|kept| kept.why).collect())
    }

    #[test]
    fn a_section_goes_only_if_all_of_it_is_ours() {
        let server = |more: &str| format!("  server a_1 127.0.0.1:1{more} # {{\"owner\":\"nomad\",\"id\":\"x\"}}\n");
        let line = server("");
        assert_eq!(uninstalled(&format!("{OURS}{line}")), (vec!["delete"], vec![]));
        assert_eq!(uninstalled(&format!("backend a\n{line}  server hand h:1\n")), (vec!["servers"], vec![]));
        for (text, edits, why) in [
            (format!("{OURS}{line}  server hand h:1\n"), vec!["servers"], "servers that are not ours: hand"),
            (format!("{OURS}{}", server(" track x")), vec![], "edited by hand: a_1"),
            (format!("{OURS}  http-request deny\n{line}"), vec!["servers"], "its settings were edited"),
            (format!("{OURS}{line}future_section x\n{line}"), vec!["servers"], "unclear"),
            (format!("backend a\n{}", server(" disabled")), vec![], "remove the comments"),
        ] {
            let (found, kept) = uninstalled(&text);
            assert_eq!((found, kept.len()), (edits, 1), "{text}");
            assert!(kept[0].contains(why), "{kept:?}");
        }
        assert_eq!(uninstalled(&format!("{OURS}{line}{OURS}{line}")), (vec![], vec![]), "copies are not ours");
        assert_eq!(uninstalled(&OURS.replace(":nomad", ":other")), (vec![], vec![]));
    }
}
