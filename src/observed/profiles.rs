//! Profiles: `defaults` sections of ours from which HAProxy 3.4 makes a backend at run time (`add backend … from`,
//! management guide, 9.3), each with the settings that backends have in common.
//!
//! They stand before the last `defaults` section of a person, so that no other section inherits from one by its
//! position. A backend in the file does not name its profile: it has its own settings, as on every other HAProxy. So a
//! profile that was edited or removed by hand changes no backend.
//!
//! What a backend inherits from a person's `defaults` must be in the profile, too, and a section without a name cannot
//! be named with `from`. So there is a copy of it, the base, and the profiles name that. Its name is made from its
//! content: when a person changes their `defaults`, another copy is needed, and with it a reload.

use std::collections::{BTreeMap, BTreeSet};

use sha2::{Digest, Sha256};

use crate::desired::{BackendSettings, Owner};
use crate::haproxy::parse;
use crate::haproxy::render;
use crate::haproxy::text::{ConfigText, Directive, Section};

use super::foreign::content_of;

/// The start of their names.
const PREFIX: &str = "nomad-haproxy-";
/// Hexadecimal digits of the digest at the end of a name.
const DIGITS: usize = 16;
/// The comment behind their headers.
const COMMENT: &str = "# for backends that nomad-haproxy makes without a reload";

/// The profiles of a file, and what new ones are made from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Profiles {
    base: Option<Base>,
    /// In the order of the file. A copy that a person made has the same name.
    present: Vec<Profile>,
}

/// The last `defaults` section that is not a profile.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Base {
    /// The name of its copy.
    name: String,
    content: String,
    /// Its directives as they stand.
    lines: Vec<String>,
    /// The line before which profiles are added: of the comment above its header, or of the header.
    at: usize,
}

/// A profile, or a copy of a base, as it is in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Profile {
    section: Section,
    content: String,
    /// `None`: it is no profile, or somebody edited it.
    settings: Option<BackendSettings>,
}

/// Changes of the profiles.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ProfileEdits {
    /// Those to add, in this order: the name, and all lines.
    pub add: Vec<(String, Vec<String>)>,
    /// The line before which they are added.
    pub at: usize,
    /// Those to remove first.
    pub remove: Vec<Section>,
}

impl ProfileEdits {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        let Self { add, at: _, remove } = self;
        add.is_empty() && remove.is_empty()
    }
}

/// The owner in the name of a section, if it is the name of a profile.
pub(super) fn owner_in(name: &str) -> Option<&str> {
    let (owner, digest) = name.strip_prefix(PREFIX)?.rsplit_once('-')?;
    let is_digest = digest.len() == DIGITS && digest.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    is_digest.then_some(owner)
}

/// Whether a section has servers, which HAProxy accepts in no `defaults`.
pub(super) fn has_servers(directives: &[Directive]) -> bool {
    directives.iter().any(|directive| ["server", "server-template"].contains(&directive.keyword()))
}

fn name_for(owner: &Owner, content: &str) -> String {
    let digest = format!("{:x}", Sha256::digest(content.as_bytes()));
    format!("{PREFIX}{}-{}", owner.name(), &digest[..DIGITS])
}

/// The settings without what differs between backends that share a profile.
fn shared(settings: &BackendSettings) -> BackendSettings {
    BackendSettings { description: String::new(), ..settings.clone() }
}

/// The lines of a profile without its header. The first one of [`render::settings`] is the description.
fn body(settings: &BackendSettings) -> Vec<String> {
    render::settings(settings).into_iter().skip(1).collect()
}

impl Profiles {
    /// Takes a `defaults` section that is not a profile: the last one counts. One that names another is not copied, as
    /// its content would not show a change of the other.
    pub(super) fn see_defaults(
        &mut self,
        text: &ConfigText,
        section: &Section,
        directives: &[Directive],
        owner: &Owner,
    ) {
        let content = content_of(directives);
        let lines = text.directives(section).skip(1).map(|(at, _)| text.lines()[at].trim_end().to_owned() + "\n");
        let base = Base {
            name: name_for(owner, &content),
            content,
            lines: lines.collect(),
            at: above(text, section.lines.start),
        };
        // A section with servers is an edit that is not complete yet: HAProxy refuses it.
        self.base = (section.from.is_none() && !has_servers(directives)).then_some(base);
    }

    /// Takes a profile of ours.
    pub(super) fn see_profile(&mut self, section: &Section, directives: &[Directive]) {
        let profile = Profile {
            section: section.clone(),
            content: content_of(directives),
            settings: parse::shared_settings(directives),
        };
        self.present.push(profile);
    }

    /// The one of this name.
    fn get(&self, name: &str) -> Option<&Profile> {
        let mut all = self.present.iter().filter(|profile| profile.section.name == name);
        all.next().filter(|_| all.next().is_none())
    }

    /// What is in a conditional block may or may not be in effect, so such a file gets no profiles.
    pub(super) fn without_base(&mut self) {
        self.base = None;
    }

    /// The name that the profile of these settings has. `None`: none can be made from this file.
    fn name_of(&self, settings: &BackendSettings, owner: &Owner) -> Option<String> {
        let base = self.base.as_ref()?;
        Some(name_for(owner, &format!("{}\n{}", base.name, body(settings).concat())))
    }

    /// The profile of these settings, if the file has it as we write it.
    pub fn of(&self, settings: &BackendSettings, owner: &Owner) -> Option<String> {
        let name = self.name_of(settings, owner)?;
        (self.has_base() && self.is_complete(&name, settings)).then_some(name)
    }

    /// Whether the file has a `defaults` section that can be copied.
    pub fn can_be_made(&self) -> bool {
        self.base.is_some()
    }

    fn has_base(&self) -> bool {
        self.base.as_ref().is_some_and(|base| {
            let copy = self.get(&base.name);
            copy.is_some_and(|copy| copy.section.from.is_none() && copy.content == base.content)
        })
    }

    fn is_complete(&self, name: &str, settings: &BackendSettings) -> bool {
        let base = self.base.as_ref().map(|base| &base.name);
        self.get(name).is_some_and(|profile| {
            profile.section.from.as_ref() == base && profile.settings.as_ref() == Some(&shared(settings))
        })
    }

    /// The lines of those that the file has.
    pub(super) fn has_line(&self, at: usize) -> bool {
        self.present.iter().any(|profile| profile.section.lines.contains(&at))
    }

    /// What is missing and what is too much if these settings are in use.
    pub fn edits<'a>(&self, in_use: impl IntoIterator<Item = &'a BackendSettings>, owner: &Owner) -> ProfileEdits {
        let mut wanted: BTreeMap<String, &BackendSettings> = BTreeMap::new();
        for settings in in_use {
            wanted.extend(self.name_of(settings, owner).map(|name| (name, settings)));
        }
        let base = self.base.as_ref().filter(|_| !wanted.is_empty());
        let mut edits = ProfileEdits { at: base.map_or(0, |base| base.at), ..ProfileEdits::default() };
        let mut kept: BTreeSet<&str> = BTreeSet::new();
        if let Some(base) = base {
            let Base { name, content: _, lines, at: _ } = base;
            let has_base = self.has_base();
            if has_base {
                kept.insert(name);
            } else {
                edits.add.push((name.clone(), section(name, lines.clone())));
            }
            // A section can only name one that stands above it, so they all follow a new base.
            for (profile, settings) in &wanted {
                if has_base && self.is_complete(profile, settings) {
                    kept.insert(profile);
                } else {
                    edits.add.push((profile.clone(), section(&format!("{profile} from {name}"), body(settings))));
                }
            }
        }
        let sections = self.present.iter().map(|profile| &profile.section);
        edits.remove = sections.filter(|section| !kept.contains(section.name.as_str())).cloned().collect();
        edits
    }
}

/// The first line of a comment that stands directly above a line. One at the top of the file belongs to the whole file.
fn above(text: &ConfigText, line: usize) -> usize {
    let is_comment = |line: &String| line.trim_start().starts_with('#');
    let comment = text.lines()[..line].iter().rev().take_while(|line| is_comment(line)).count();
    match text.lines()[..line - comment].iter().all(|line| line.trim().is_empty()) {
        true => line,
        false => line - comment,
    }
}

fn section(header: &str, body: Vec<String>) -> Vec<String> {
    let header = format!("defaults {header} {COMMENT}\n");
    std::iter::once(header).chain(body).chain(["\n".to_owned()]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    use crate::desired::{Balance, Check, Mode, Timeouts};
    use crate::observed::{Observed, harm};

    const FILE: &str =
        "global\n  maxconn 9\n\n# shop\ndefaults\n  mode http\n  timeout client 30s # long\nfrontend f\n  bind :1\n";

    fn owner() -> Owner {
        "nomad".parse().expect("an owner")
    }

    fn observed(text: &str) -> Observed {
        Observed::new(1, ConfigText::new(text), &owner())
    }

    fn settings(balance: &str) -> BackendSettings {
        BackendSettings {
            description: "nomad-haproxy:nomad a default/a".into(),
            mode: Mode::Http,
            balance: balance.parse().unwrap_or_else(|_| Balance::roundrobin()),
            check: Check::Disabled,
            cookie: "SRV".parse().ok(),
            timeouts: Timeouts { queue: Some(Duration::from_millis(1500)), ..Timeouts::default() },
        }
    }

    /// The text once these settings are in use.
    fn applied(text: &str, in_use: &[BackendSettings]) -> String {
        let observed = observed(text);
        let plan =
            crate::plan::Plan { profiles: observed.profiles.edits(in_use, &owner()), ..crate::plan::Plan::default() };
        crate::plan::text::apply(&plan, &observed, &owner()).to_string()
    }

    #[test]
    fn a_file_has_what_is_in_use_and_is_as_before_without_it() {
        let (one, two) = (settings("roundrobin"), settings("leastconn"));
        let first = applied(FILE, std::slice::from_ref(&one));
        assert!(first.contains("maxconn 9\n\ndefaults nomad-haproxy-nomad-"), "{first}");
        assert!(first.contains("\n\n# shop\ndefaults\n"), "{first}");
        let has = |text: &str, settings: &BackendSettings| observed(text).profile(settings).is_some();
        assert_eq!((has(&first, &one), has(&first, &two)), (true, false));
        let both = applied(&first, &[one.clone(), two.clone()]);
        assert!(has(&both, &one) && has(&both, &two), "{both}");
        assert!(observed(&both).profiles.edits([&one, &two], &owner()).is_empty());
        let last = applied(&both, std::slice::from_ref(&two));
        assert_eq!((has(&last, &one), has(&last, &two)), (false, true));
        assert_eq!(applied(&last, &[]), FILE);
        assert_eq!(harm(&observed(FILE), &observed(&both)), Vec::<String>::new(), "nothing of a person's changes");
    }

    #[test]
    fn no_section_inherits_from_one_by_its_position() {
        let text = applied(FILE, &[settings("first")]);
        let found = observed(&format!("{text}backend theirs\n  server a 127.0.0.1:1\n"));
        assert_eq!((found.backends["theirs"].balance.as_str(), found.defaults), ("roundrobin", None));
    }

    #[test]
    fn what_was_edited_is_written_again() {
        let one = settings("first");
        let text = applied(FILE, std::slice::from_ref(&one));
        let edits = [
            ("  timeout client 30s # long\n\n", "  timeout client 31s\n\n"),
            ("  balance first\n", "  balance random\n"),
            ("  retries 3\n", ""),
        ];
        for (from, to) in edits {
            assert!(text.contains(from), "{text}");
            let edited = text.replacen(from, to, 1);
            assert_eq!(observed(&edited).profile(&one), None, "{edited}");
            assert_eq!(applied(&edited, std::slice::from_ref(&one)), text);
        }
        // Another owner's are not ours.
        let other = text.replace("nomad-haproxy-nomad-", "nomad-haproxy-other-");
        assert_eq!(observed(&other).profiles.present.len(), 0);
        assert!(applied(&other, &[]).contains("nomad-haproxy-other-"));
    }

    #[test]
    fn some_files_get_none() {
        for (from, to) in [
            ("defaults\n", "defaults a from b\n"),
            ("frontend", ".if true\n.endif\nfrontend"),
            ("defaults\n", "listen x\n"),
        ] {
            let text = FILE.replacen(from, to, 1);
            assert!(observed(&text).profiles.edits([&settings("first")], &owner()).is_empty(), "{text}");
        }
    }
}
