//! Transactions that an earlier run left open when it was killed. The API keeps them until it restarts,
//! and has room for 20.

use std::collections::{BTreeMap, BTreeSet};

use crate::desired::{BackendName, Mark, Server, ServerName, Settings};
use crate::haproxy::text::{ConfigText, Directive};
use crate::observed::{Observed, ObservedBackend};

use super::super::PlaneError;
use super::{Dataplane, RAW, TRANSACTIONS, meaning};

/// Open transactions beyond which empty ones go too: half of what the API has room for. An empty one
/// holds nobody's work, but somebody may just have opened it.
const CROWDED: usize = 10;

/// Everything in a text that is not ours, without looks: by section, its directives as sorted words.
/// The API renders directives in an order of its own and writes `from` out; comments move along.
pub(super) fn foreign(text: &ConfigText, mark: &Mark) -> BTreeMap<(String, String), Vec<String>> {
    let observed = Observed::new(0, text.clone(), mark);
    let mut sections: BTreeMap<(String, String), Vec<String>> = BTreeMap::new();
    for section in text.sections() {
        let backend = observed.backends.get(&section.name).filter(|backend| backend.section == section);
        let ours = |name: &str| {
            backend.is_some_and(|backend| {
                backend.servers.iter().any(|server| server.name.as_str() == name)
                    || backend.drifted.iter().any(|server| server.as_str() == name)
            })
        };
        let all_ours = backend.is_some_and(ObservedBackend::is_ours);
        let lines = text.directives(&section).skip(1).filter(|(_, directive)| match directive.keyword() {
            "server" => !ours(directive.words.get(1).map_or("", String::as_str)),
            _ => !all_ours,
        });
        let mut lines: Vec<String> = lines.filter_map(|(at, _)| meaning(&text.lines()[at])).collect();
        lines.sort_unstable();
        if !(all_ours && lines.is_empty()) {
            // The API gives a defaults section without a name one of its own.
            let name = if section.name.starts_with("unnamed_defaults_") { String::new() } else { section.name };
            sections.entry((section.kind, name)).or_default().extend(lines);
        }
    }
    sections
}

/// The comments that stand in no section of ours, each as often as it is there. The API keeps one that
/// precedes a section with the section above it, and drops it with that.
pub(super) fn comments(text: &ConfigText, mark: &Mark) -> BTreeMap<String, usize> {
    let observed = Observed::new(0, text.clone(), mark);
    let ours: Vec<_> = observed.backends.values().filter(|backend| backend.is_ours()).collect();
    let mut comments = BTreeMap::new();
    for (at, line) in text.lines().iter().enumerate() {
        // Metadata stays with its line.
        let comment = Directive::parse(line).comment.filter(|comment| !comment.starts_with(['_', '{']));
        if let Some(comment) = comment
            && !ours.iter().any(|backend| backend.section.lines.contains(&at))
        {
            *comments.entry(comment).or_default() += 1;
        }
    }
    comments
}

/// What an open transaction is to us.
#[derive(Debug, PartialEq, Eq)]
enum Kind {
    /// It can never be committed, or differs from the file only in what carries our mark.
    Ours,
    /// It says what the file says.
    Empty,
    /// It may be another tool's live work.
    Theirs,
}

impl Dataplane {
    /// Drops the transactions that are certainly leftovers, and the empty ones where it gets crowded.
    pub(super) async fn clear_leftovers(&self) -> Result<(), PlaneError> {
        let body = self.client.get(TRANSACTIONS, &[]).await?.json()?;
        let open: Vec<_> = body.as_array().into_iter().flatten().collect();
        if open.is_empty() {
            return Ok(());
        }
        let observed = super::super::Plane::observe(self).await?;
        let crowded = open.len() > CROWDED;
        for transaction in open {
            let Some(id) = transaction["id"].as_str() else { continue };
            let outdated = transaction["_version"].as_u64().is_some_and(|version| version < observed.version);
            let kind = if outdated || transaction["status"] == "failed" {
                Kind::Ours
            } else {
                self.kind(id, &observed).await?
            };
            if kind == Kind::Ours || (kind == Kind::Empty && crowded) {
                self.drop_transaction(id).await?;
                tracing::info!(id, "dropped a transaction that was left behind");
            }
        }
        Ok(())
    }

    async fn kind(&self, id: &str, observed: &Observed) -> Result<Kind, PlaneError> {
        let answer =
            self.client.send(reqwest::Method::GET, RAW, &[("transaction_id", id)], super::Body::default()).await?;
        if !answer.status.is_success() {
            return Ok(Kind::Theirs);
        }
        let text = ConfigText::new(&answer.body);
        Ok(if foreign(&text, &self.mark) != foreign(&observed.text, &self.mark) {
            Kind::Theirs
        } else if managed(&text, &self.mark) == managed(&observed.text, &self.mark) {
            Kind::Empty
        } else {
            Kind::Ours
        })
    }
}

/// What of a backend is ours, whatever the order of its lines; with or without its gates.
pub(super) fn ours(
    backend: &ObservedBackend,
    gates: bool,
) -> (Option<Settings>, BTreeMap<ServerName, Server>, BTreeSet<ServerName>) {
    let seen = |server: &Server| Server { gated: server.gated && gates, ..server.clone() };
    let servers = backend.servers.iter().map(|server| (server.name.clone(), seen(server))).collect();
    (backend.settings.clone(), servers, backend.drifted.clone())
}

fn managed(text: &ConfigText, mark: &Mark) -> Vec<(BackendName, impl PartialEq)> {
    let observed = Observed::new(0, text.clone(), mark);
    observed.managed().map(|(name, backend)| (name, ours(backend, true))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark() -> Mark {
        "nomad".parse().expect("an owner")
    }

    #[test]
    fn what_the_api_renders_anew_is_the_same_in_meaning() {
        let by_hand = "# shop\nglobal\n   maxconn 100\ndefaults\n mode http\n timeout   client 30000\nbackend theirs\n  server a 127.0.0.1:1 weight 3 check\n";
        let rendered = "global\n  maxconn 100\n\ndefaults unnamed_defaults_1\n  timeout client 30s\n  mode http\n\nbackend theirs\n  server a 127.0.0.1:1 check weight 3 # shop\n";
        assert_eq!(foreign(&ConfigText::new(by_hand), &mark()), foreign(&ConfigText::new(rendered), &mark()));
    }

    #[test]
    fn a_foreign_line_that_is_lost_is_seen_and_ours_do_not_count() {
        let base = "backend theirs\n  server a 127.0.0.1:1\n";
        let with_ours = format!(
            "{base}  server b 127.0.0.1:2 # {{\"owner\":\"nomad\",\"freed\":\"1\"}}\nbackend ours\n  description nomad-haproxy:nomad\n  mode http\n"
        );
        assert_eq!(foreign(&ConfigText::new(base), &mark()), foreign(&ConfigText::new(&with_ours), &mark()));
        assert_ne!(foreign(&ConfigText::new(base), &mark()), foreign(&ConfigText::new("backend theirs\n"), &mark()));
    }
}
