//! Finds the parts of a plan that HAProxy refuses: by the lines that it names, else by halving the plan.

use crate::desired::{Address, BackendName, Server};
use crate::haproxy::render::INIT_ADDR;
use crate::haproxy::text::{ConfigText, Directive};
use crate::observed::Observed;
use crate::plan::Part;
use crate::plane::{AccessError, Plane, Verdict};

/// The most validations of one search. After that it leaves out everything that is still suspect, rather than hold up
/// the rest. One validation takes 20 to 400 ms.
const MAX_VALIDATIONS: usize = 40;

/// A part to leave out, with HAProxy's message about it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Culprit {
    pub(super) part: Part,
    pub(super) message: String,
    /// Its host name is one of those that take too long to resolve.
    pub(super) is_slow: bool,
}

/// The result of a search.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Without these HAProxy accepts the rest. Empty: it accepts all of it.
    Culprits(Vec<Culprit>),
    /// It refuses the configuration whatever is left out, with this message.
    Unrelated(String),
}

/// Finds which of the `parts` must be left out. `without` is the configuration after the plan without some parts,
/// `known` is HAProxy's verdict on all of it, if it was given for exactly this text.
///
/// HAProxy reports all the lines that it refuses at once, so most searches take two validations, however many instances
/// are bad. What it does not name takes as many as it takes to halve the parts.
pub(super) async fn find(
    plane: &dyn Plane,
    parts: &[Part],
    without: impl Fn(Vec<Part>) -> Observed + Sync,
    mut known: Option<Verdict>,
) -> Result<Found, AccessError> {
    let mut search = Search { plane, without, validations: 0 };
    let mut culprits: Vec<Culprit> = Vec::new();
    loop {
        let left_out: Vec<Part> = culprits.iter().map(|culprit| culprit.part.clone()).collect();
        let after = (search.without)(left_out.clone());
        let verdict = match known.take() {
            Some(verdict) => verdict,
            None => search.verdict(&after).await?,
        };
        let (message, is_slow) = match verdict {
            Verdict::Valid => return Ok(Found::Culprits(culprits)),
            Verdict::Refused(message) => (message, false),
            slow @ Verdict::TooLong(_) => (slow.to_string(), true),
        };
        let suspects: Vec<Part> = parts.iter().filter(|part| !left_out.contains(part)).cloned().collect();
        let named = named(&message, &after, &suspects);
        if !named.is_empty() {
            culprits.extend(named);
            continue;
        }
        let is_likely =
            |part: &Part| if is_slow { has_name(part, &after) } else { is_mentioned(part, &message, &after) };
        let (likely, others): (Vec<Part>, Vec<Part>) = suspects.into_iter().partition(is_likely);
        let found = search.halve(left_out, likely, others, is_slow).await?;
        if found.is_empty() {
            return Ok(Found::Unrelated(message));
        }
        culprits.extend(found.into_iter().map(|part| Culprit { part, message: message.clone(), is_slow }));
    }
}

struct Search<'a, W> {
    plane: &'a dyn Plane,
    without: W,
    validations: usize,
}

impl<W: Fn(Vec<Part>) -> Observed + Sync> Search<'_, W> {
    async fn verdict(&mut self, after: &Observed) -> Result<Verdict, AccessError> {
        self.validations += 1;
        self.plane.validate(&after.text).await
    }

    /// Whether HAProxy accepts the rest.
    async fn is_valid(&mut self, left_out: &[Part], more: &[Part]) -> Result<bool, AccessError> {
        let after = (self.without)([left_out, more].concat());
        Ok(self.verdict(&after).await? == Verdict::Valid)
    }

    /// Returns the last of those that must be left out beside the others; none: the search is stuck. Names that are
    /// slow only together have no last one, so they are left out together.
    async fn halve(
        &mut self,
        left_out: Vec<Part>,
        likely: Vec<Part>,
        others: Vec<Part>,
        all_likely: bool,
    ) -> Result<Vec<Part>, AccessError> {
        let (mut refused, mut valid) = (0, likely.len());
        let all = [likely, others].concat();
        if valid == 0 || !self.is_valid(&left_out, &all[..valid]).await? {
            (refused, valid) = (valid, all.len());
            if refused == valid || !self.is_valid(&left_out, &all).await? {
                return Ok(Vec::new());
            }
        } else if all_likely {
            return Ok(all[..valid].to_vec());
        }
        while valid - refused > 1 && self.validations < MAX_VALIDATIONS {
            let middle = usize::midpoint(refused, valid);
            if self.is_valid(&left_out, &all[..middle]).await? {
                valid = middle;
            } else {
                refused = middle;
            }
        }
        let is_over = self.validations >= MAX_VALIDATIONS;
        Ok(if is_over { all[..valid].to_vec() } else { all[valid - 1..valid].to_vec() })
    }
}

/// The suspects on the lines that the message names, as `[file:LINE]` or as `line LINE`.
fn named(message: &str, after: &Observed, suspects: &[Part]) -> Vec<Culprit> {
    let mut culprits: Vec<Culprit> = Vec::new();
    for words in message.split("; ") {
        let Some(part) = line(words).and_then(|line| part_at(line, after, suspects)) else { continue };
        if !culprits.iter().any(|culprit| culprit.part == part) {
            culprits.push(Culprit { part, message: words.to_owned(), is_slow: false });
        }
    }
    culprits
}

/// The line number in the message, from 1.
fn line(words: &str) -> Option<usize> {
    let bracketed = || words.split(']').find_map(|before| before.rsplit_once(':')?.1.parse().ok());
    let stated = || words.strip_prefix("line ")?.split_once(':')?.0.parse().ok();
    stated().or_else(bracketed)
}

/// What is on that line: a rule of ours, an instance's server, or something else in a backend.
fn part_at(line: usize, after: &Observed, suspects: &[Part]) -> Option<Part> {
    let at = line.checked_sub(1)?;
    let section = after.text.section_at(at)?;
    if after.is_our_rule(at) {
        return Some(Part::Rules(section.name.parse().ok()?)).filter(|part| suspects.contains(part));
    }
    if section.kind != "backend" {
        return None;
    }
    let name = section.name.parse().ok()?;
    let backend = after.backend(&name)?;
    let (_, directive) = after.text.directives(&section).find(|(line, _)| *line == at)?;
    let server = backend.servers.iter().find(|server| {
        backend.is_our_server(at) && directive.words.get(1).is_some_and(|word| word == server.name.as_str())
    });
    let instance = server.and_then(|server| server.occupant.id()).map(|id| Part::Instance(name.clone(), id.clone()));
    instance.into_iter().chain([Part::Backend(name)]).find(|part| suspects.contains(part))
}

/// The configuration in which HAProxy must not start without the addresses of these servers.
pub(super) fn with_addresses(observed: &Observed, servers: &[(BackendName, Server)]) -> ConfigText {
    let mut text = observed.text.clone();
    for (name, server) in servers {
        let Some(backend) = observed.backend(name) else { continue };
        let mut lines = observed.text.directives(&backend.section);
        let is_it = |at: usize, directive: &Directive| {
            backend.is_our_server(at) && directive.words.get(1).is_some_and(|word| word == server.name.as_str())
        };
        if let Some((at, _)) = lines.find(|(at, directive)| is_it(*at, directive)) {
            text.splice(at..at + 1, [observed.text.lines()[at].replace(INIT_ADDR, "libc")]);
        }
    }
    text
}

/// How many of these servers a message names.
pub(super) fn named_servers(message: &str, observed: &Observed, servers: &[(BackendName, Server)]) -> usize {
    let part =
        |(name, server): &(BackendName, Server)| Some(Part::Instance(name.clone(), server.occupant.id()?.clone()));
    let suspects: Vec<Part> = servers.iter().filter_map(part).collect();
    named(message, observed, &suspects).len()
}

fn server<'o>(part: &Part, after: &'o Observed) -> Option<&'o Server> {
    let Part::Instance(backend, id) = part else { return None };
    after.backend(backend)?.servers.iter().find(|server| server.occupant.id() == Some(id))
}

/// Whether HAProxy resolves a host name for it: nothing else takes long.
fn has_name(part: &Part, after: &Observed) -> bool {
    server(part, after).is_some_and(|server| matches!(server.address, Address::Host(_)))
}

/// Whether the message mentions it, as `BACKEND/SERVER` or as a word. A backend may have the same name as any word of
/// the message, so this only decides where to look first.
fn is_mentioned(part: &Part, message: &str, after: &Observed) -> bool {
    match part {
        Part::Instance(backend, _) => {
            server(part, after).is_some_and(|server| message.contains(&format!("{backend}/{}", server.name)))
        }
        Part::Backend(name) => has_word(message, name.as_str()),
        Part::Rules(frontend) => has_word(message, frontend.as_str()),
    }
}

fn has_word(message: &str, name: &str) -> bool {
    let mut words = message.split(|c: char| !(c.is_ascii_alphanumeric() || "-_.:".contains(c)));
    words.any(|word| word.trim_matches([':', '.']) == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desired::InstanceId;

    const TEXT: &str = "global\nbackend a\n  description nomad-haproxy:nomad default/a\n  mode http\n\
                        \x20 server a_1 10.0.0.1:80 # {\"owner\":\"nomad\",\"id\":\"x\"}\nbackend b\n  balance nope\n\
                        \x20 server theirs 10.0.0.1:80\nfrontend c\n  bind :1\n";

    fn after() -> Observed {
        Observed::new(1, ConfigText::new(TEXT), &"nomad".parse().expect("an owner"))
    }

    fn backend(name: &str) -> Part {
        Part::Backend(name.parse().expect("a name"))
    }

    fn instance(name: &str, id: &str) -> Part {
        Part::Instance(name.parse().expect("a name"), InstanceId::new(id))
    }

    #[test]
    fn all_lines_that_haproxy_names_are_found() {
        let suspects = [instance("a", "x"), backend("a"), backend("b"), backend("c")];
        let parts = |message: &str| -> Vec<Part> {
            named(message, &after(), &suspects).into_iter().map(|culprit| culprit.part).collect()
        };
        let [ax, a, b, _] = suspects.clone();
        let bad_name = "[/tmp/x.cfg:5] : 'server a/a_1' : Can't create DNS resolution for server 'a_1'";
        assert_eq!(parts(&format!("config : {bad_name}; {bad_name}; line 7: unknown algorithm")), [ax, b.clone()]);
        assert_eq!(parts("config : parsing [/tmp/x.cfg:4] : unknown mode"), [a]);
        assert_eq!(parts("[/tmp/x.cfg:8] : of a server of theirs"), [b]);
        assert_eq!(parts("[/tmp/x.cfg:10] : a frontend that is called like a backend"), []);
        assert_eq!(parts("[/tmp/x.cfg:99] : out of memory; a/a_1; line 0: x; [x]"), []);
    }

    #[test]
    fn a_rule_of_ours_is_found_by_its_line() {
        let rule = "  use_backend %[x,map(/m/nomad-haproxy__nomad__c__routes.map)] if { x -m found }\n";
        let text = ConfigText::new(&format!("{TEXT}  use_backend theirs if x\n{rule}"));
        let after = Observed::new(1, text, &"nomad".parse().expect("an owner"));
        let rules = Part::Rules("c".parse().expect("a name"));
        let found = |line: usize| part_at(line, &after, std::slice::from_ref(&rules));
        assert_eq!([9, 10, 11, 12].map(found), [None, None, None, Some(rules.clone())]);
    }

    #[test]
    fn haproxy_mentions_parts_in_several_ways() {
        let (message, after) = ("backend 'b', server a/a_1: unable to find: 'c'.", after());
        for part in [instance("a", "x"), backend("b"), backend("c"), backend("a")] {
            assert!(is_mentioned(&part, message, &after), "{part:?}");
        }
        for part in [instance("b", "x"), backend("unabl"), backend("d")] {
            assert!(!is_mentioned(&part, message, &after), "{part:?}");
        }
    }
}
