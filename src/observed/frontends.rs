//! Frontends, and `listen` sections as far as they are one: what our rules depend on, and which rules are ours.

use std::collections::{BTreeMap, BTreeSet};

use crate::desired::{Door, Mode, Owner};
use crate::haproxy::maps;
use crate::haproxy::text::{Blocks, Directive, Section};

use super::inherited::Inherited;
use super::{ConnectorRule, profiles};

/// One frontend of the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frontend {
    /// Where it is.
    pub section: Section,
    /// What the desired state depends on.
    pub door: Door,
    /// The words of the rules of ours, by their lines, from 0.
    pub rules: BTreeMap<usize, Vec<String>>,
    /// What it sends requests to by rules that are not ours, or by default: names, and expressions that give one.
    pub by_hand: BTreeSet<String>,
    /// Whether the rules of ours are where they belong: behind all others, and in no conditional block.
    pub is_in_order: bool,
    /// The rules that haproxy-nomad-connector made.
    pub by_connector: Vec<ConnectorRule>,
}

impl Frontend {
    /// Reads one; `effective` is stated or inherited.
    pub(super) fn new(
        section: Section,
        lines: &[usize],
        directives: &[Directive],
        effective: Inherited,
        owner: &Owner,
    ) -> Self {
        let mut door = Door::new(match effective.mode.as_deref() {
            Some("http") => Some(Mode::Http),
            Some("tcp") | None => Some(Mode::Tcp),
            Some(_) => None,
        });
        let is_listen = section.kind == "listen";
        door.has_default = effective.default_backend.is_some() || (is_listen && profiles::has_servers(directives));
        let itself = is_listen.then(|| section.name.clone());
        let mut by_hand: BTreeSet<String> = effective.default_backend.into_iter().chain(itself).collect();
        let (mut rules, mut is_in_order, mut blocks) = (BTreeMap::new(), true, Blocks::default());
        for (line, directive) in lines.iter().zip(directives) {
            blocks.pass(directive.keyword());
            match directive.keyword() {
                "use_backend" if is_ours(directive, owner) => {
                    is_in_order &= !blocks.is_inside();
                    rules.insert(*line, directive.words.clone());
                }
                "use_backend" => {
                    by_hand.extend(directive.words.get(1).cloned());
                    is_in_order &= rules.is_empty();
                    if directive.words.len() == 2 && !blocks.is_inside() {
                        door.always.get_or_insert(line + 1);
                    }
                }
                "tcp-request" if directive.words.get(1).is_some_and(|word| word == "inspect-delay") => {
                    door.inspects = true;
                }
                _ => {}
            }
        }
        Self { section, door, rules, by_hand, is_in_order, by_connector: Vec::new() }
    }

    /// The folders of the maps that the rules of ours name.
    pub fn folders(&self) -> BTreeSet<String> {
        self.rules.values().filter_map(|words| maps::folder_of(words)).collect()
    }
}

/// Whether a rule of a frontend names a map file of ours, or of the owner that is taken over.
pub(super) fn is_ours(directive: &Directive, owner: &Owner) -> bool {
    directive.keyword() == "use_backend" && maps::owner_of(&directive.words).is_some_and(|name| owner.has(&name))
}

#[cfg(test)]
mod tests {
    use super::super::Observed;
    use super::*;
    use crate::haproxy::text::ConfigText;

    fn read(text: &str) -> Observed {
        Observed::new(1, ConfigText::new(text), &"nomad".parse().expect("an owner"))
    }

    const RULE: &str = "  use_backend %[x,map(/m/nomad-haproxy__nomad__web__routes.map)] if { x -m found }\n";

    #[test]
    fn a_rule_that_names_a_map_of_ours_is_ours_and_any_other_is_not() {
        let other = RULE.replace("__nomad__", "__other__");
        let text = format!("defaults\n mode http\nfrontend web\n  acl a path /\n  use_backend b if a\n{other}{RULE}");
        let observed = read(&text);
        let web = &observed.frontends["web"];
        assert_eq!((web.rules.keys().copied().collect::<Vec<_>>(), web.is_in_order), (vec![6], true));
        assert_eq!((web.door.mode, web.door.always, web.door.has_default), (Some(Mode::Http), None, false));
        assert_eq!(web.folders(), BTreeSet::from(["/m".to_owned()]));
        // It is not among what is not ours.
        let without = read(&text.replace(RULE, ""));
        assert_eq!(observed.foreign(), without.foreign());
        assert_ne!(observed.foreign(), read(&text.replace(&other, "")).foreign());
    }

    #[test]
    fn rules_of_ours_belong_behind_the_others_and_outside_of_blocks() {
        let is_in_order = |rules: &str| read(&format!("frontend web\n{rules}")).frontends["web"].is_in_order;
        assert!(is_in_order(RULE) && is_in_order(&format!("  use_backend a\n{RULE}  default_backend b\n")));
        assert!(!is_in_order(&format!("{RULE}  use_backend a if b\n")));
        assert!(!is_in_order(&format!(".if true\n{RULE}.endif\n")));
    }

    #[test]
    fn what_our_rules_depend_on_is_read() {
        let door = |text: &str| read(text).frontends["f"].door.clone();
        assert_eq!(door("frontend f\n").mode, Some(Mode::Tcp));
        assert_eq!(door("listen f\n mode health\n").mode, None);
        let tcp = door("frontend f\n mode tcp\n tcp-request inspect-delay 5s\n default_backend b\n");
        assert!(tcp.inspects && tcp.has_default);
        assert!(door("defaults\n default_backend b\nfrontend f\n").has_default, "it is inherited");
        assert!(door("listen f\n server a 127.0.0.1:1\n").has_default && !door("listen f\n").has_default);
        assert_eq!(door("frontend f\n use_backend a if b\n use_backend %[x]\n").always, Some(3));
        assert!(door("frontend f\nfrontend f\n").trouble.is_some());
        assert!(door("frontend f\nbind :1\nfuture x\n").trouble.is_some());
    }
}
