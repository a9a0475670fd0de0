//! Which backend of a plan HAProxy refuses: it names it, or a line of it; else the plan is halved.

use crate::desired::{BackendName, Owner};
use crate::haproxy::text::ConfigText;
use crate::observed::Observed;
use crate::plan::{self, Plan};
use crate::plane::{AccessError, Plane, Verdict};

/// Finds the backend and HAProxy's words about it. `None`: the configuration is refused without us, too.
pub(super) async fn find<P: Plane>(
    plane: &P,
    observed: &Observed,
    plan: &Plan,
    owner: &Owner,
    message: &str,
) -> Result<Option<(BackendName, String)>, AccessError> {
    if refusal(plane, &observed.text).await?.is_some() {
        return Ok(None);
    }
    let mut suspects: Vec<BackendName> = plan.edits.keys().cloned().collect();
    let mut words = message.to_owned();
    loop {
        // A message about just this text: the lines that it names are the lines of it.
        let text = plan::text::apply(&subset(plan, &suspects), observed, owner);
        if let Some(precise) = refusal(plane, &text).await? {
            words = precise;
            // A backend may be called like a word of the message: only one that is refused alone is it.
            if let Some(name) = named(&words, &text, &suspects) {
                let alone = plan::text::apply(&subset(plan, std::slice::from_ref(&name)), observed, owner);
                if refusal(plane, &alone).await?.is_some() {
                    return Ok(Some((name, words)));
                }
            }
        }
        if suspects.len() <= 1 {
            return Ok(suspects.pop().map(|name| (name, words)));
        }
        let second = suspects.split_off(suspects.len() / 2);
        let first_text = plan::text::apply(&subset(plan, &suspects), observed, owner);
        if refusal(plane, &first_text).await?.is_none() {
            suspects = second;
        }
    }
}

async fn refusal<P: Plane>(plane: &P, text: &ConfigText) -> Result<Option<String>, AccessError> {
    Ok(match plane.validate(text).await? {
        Verdict::Valid => None,
        Verdict::Refused(message) => Some(message),
    })
}

fn subset(plan: &Plan, names: &[BackendName]) -> Plan {
    Plan {
        edits: plan
            .edits
            .iter()
            .filter(|(name, _)| names.contains(name))
            .map(|(n, e)| (n.clone(), e.clone()))
            .collect(),
    }
}

/// The suspect that the message names: as `[file:LINE]`, as `backend 'NAME'`, or as `NAME/server`.
fn named(message: &str, text: &ConfigText, suspects: &[BackendName]) -> Option<BackendName> {
    let suspect = |name: &str| suspects.iter().find(|suspect| suspect.as_str() == name).cloned();
    let lines =
        message.match_indices(']').filter_map(|(at, _)| message[..at].rsplit_once(':')?.1.parse::<usize>().ok());
    let by_line =
        lines.filter_map(|line| text.section_at(line.checked_sub(1)?)).find_map(|section| suspect(&section.name));
    let words = message.split(|c: char| !(c.is_ascii_alphanumeric() || "-_.:".contains(c)));
    by_line.or_else(|| words.map(|word| word.trim_matches([':', '.'])).find_map(suspect))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn haproxy_names_a_backend_in_several_ways() {
        let text = ConfigText::new("global\nbackend a\n  mode http\nbackend b\n  mode http\n  balance nope\n");
        let suspects: Vec<BackendName> = ["a", "b"].iter().map(|n| n.parse().expect("a name")).collect();
        let found = |message: &str| named(message, &text, &suspects).map(|name| name.to_string());
        assert_eq!(found("config : parsing [/tmp/x.cfg:6] : balance only supports …").as_deref(), Some("b"));
        assert_eq!(found("backend 'a', server 'x': unable to find required resolvers").as_deref(), Some("a"));
        assert_eq!(found("config : a/a_1: could not resolve address 'x'").as_deref(), Some("a"));
        assert_eq!(found("out of memory"), None);
    }
}
