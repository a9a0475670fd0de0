//! Whether the running process has what its file says, for the servers that are ours.

use crate::desired::Address;
use crate::observed::Observed;
use crate::plan::Action;
use crate::plane::Runtime;

/// What the comparison came to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Finding {
    /// They agree.
    Agree,
    /// They differ in what can be set at run time.
    Live(Vec<Action>),
    /// The process lacks a server: it has not loaded this file.
    Reload(String),
}

/// Compares. Checks and health are not looked at: those are HAProxy's to say.
pub(super) fn compare(observed: &Observed, runtime: &Runtime) -> Finding {
    let mut actions = Vec::new();
    for (backend, section) in observed.managed() {
        for server in &section.servers {
            let key = (backend.to_string(), server.name.to_string());
            let Some(running) = runtime.get(&key) else {
                return Finding::Reload(format!("the process has no server {backend}/{}", server.name));
            };
            let name = || (backend.clone(), server.name.clone());
            if let Address::Ip(ip) = server.address
                && (running.address, running.port) != (Some(ip), server.port)
            {
                let (backend, name) = name();
                actions.push(Action::Address(backend, name, ip, server.port));
            }
            let weight = server.options.weight.unwrap_or(1);
            if running.weight.is_some_and(|running| running != weight) {
                let (backend, name) = name();
                actions.push(Action::Weight(backend, name, weight));
            }
            if running.state != server.state() {
                let (backend, name) = name();
                actions.push(Action::State(backend, name, server.state()));
            }
        }
    }
    if actions.is_empty() { Finding::Agree } else { Finding::Live(actions) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desired::State;
    use crate::haproxy::text::ConfigText;
    use crate::plane::RuntimeServer;

    const TEXT: &str = "backend api\n  server api_1 10.0.0.1:80 weight 5 # {\"owner\":\"nomad\",\"id\":\"x\",\"alloc\":\"y\"}\n  server hand 10.0.0.9:80\n";

    fn found(server: Option<RuntimeServer>) -> Finding {
        let observed = Observed::new(1, ConfigText::new(TEXT), &"nomad".parse().expect("an owner"));
        compare(&observed, &server.map(|s| (("api".to_owned(), "api_1".to_owned()), s)).into_iter().collect())
    }

    #[test]
    fn only_what_differs_is_set_right() {
        let good = RuntimeServer { address: "10.0.0.1".parse().ok(), port: 80, state: State::Ready, weight: Some(5) };
        assert_eq!(found(Some(good.clone())), Finding::Agree);
        assert_eq!(found(Some(RuntimeServer { weight: None, ..good.clone() })), Finding::Agree);
        let Finding::Live(actions) =
            found(Some(RuntimeServer { state: State::Maint, port: 81, weight: Some(1), ..good }))
        else {
            panic!("three differences")
        };
        assert_eq!(actions.len(), 3);
        assert!(matches!(found(None), Finding::Reload(_)));
    }
}
