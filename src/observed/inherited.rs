//! What sections inherit from `defaults`.

use crate::haproxy::default_server::ServerDefaults;
use crate::haproxy::text::Directive;

/// What a section inherits. The default is that of a section whose `defaults` are not in this file.
#[derive(Clone, Default)]
pub(super) struct Inherited {
    pub(super) mode: Option<String>,
    pub(super) balance: Option<String>,
    pub(super) default_backend: Option<String>,
    pub(super) weight: Option<u16>,
    pub(super) agent_check: bool,
    pub(super) servers: Option<ServerDefaults>,
}

pub(super) fn inherit(above: Inherited, directives: &[Directive]) -> Inherited {
    directives.iter().fold(above, |mut inherited, directive| {
        match directive.keyword() {
            "mode" => inherited.mode = directive.words.get(1).cloned(),
            "default_backend" => inherited.default_backend = directive.words.get(1).cloned(),
            "balance" => inherited.balance = Some(directive.words[1..].join(" ")),
            // What is in a conditional block may or may not be in effect.
            keyword if keyword.starts_with('.') => inherited.servers = None,
            "default-server" => {
                inherited.servers = inherited.servers.and_then(|servers| servers.with(&directive.words[1..]));
                let mut words = directive.words.iter().map(String::as_str);
                while let Some(word) = words.next() {
                    match word {
                        "agent-check" => inherited.agent_check = true,
                        "no-agent-check" => inherited.agent_check = false,
                        "weight" => inherited.weight = words.next().and_then(|weight| weight.parse().ok()),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
        inherited
    })
}
