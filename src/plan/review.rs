//! What was reviewed: the file that `plan --out` writes and `apply --plan` reads.
//!
//! It contains digests, not the texts: of HAProxy's configuration before, and of every change that would be written.
//! Both are compared, not the version: editing the file by hand on the local plane does not change the version, and the
//! same text with another catalog leads to another plan.
//!
//! What depends only on the time is left out: when a slot was freed, and drains that are over.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::desired::{Occupant, Owner, Server};
use crate::haproxy::render;
use crate::haproxy::text::ConfigText;
use crate::observed::{Foreign, Observed};

use super::{Edit, MapEdit, Plan, Rewrite, RouteEdits, RuleEdit, ServerEdit};

/// The format of the file.
const FORMAT: u64 = 1;
/// How many names a message lists.
const NAMES: usize = 5;
/// The name for lines that are in no section, in a message.
const BETWEEN: &str = "the lines outside of all sections";

/// A reviewed plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Review {
    format: u64,
    /// The configuration's version, for messages: what is compared is its text.
    version: u64,
    /// When the plan was made, in milliseconds since 1970.
    made: u64,
    /// The digest of the configuration, without the Data Plane API's header.
    configuration: String,
    /// Digests of its sections, to report which one changed.
    sections: BTreeMap<String, String>,
    /// Digests of what would be written, by backend, frontend and map.
    backends: BTreeMap<String, String>,
}

/// What a plan file holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reviews {
    /// The plan of the only HAProxy.
    One(Box<Review>),
    /// The plans of several, by their names.
    Several(BTreeMap<String, Review>),
}

/// The file of several.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SeveralFile {
    format: u64,
    haproxys: BTreeMap<String, Review>,
}

impl Reviews {
    /// Reads a plan file.
    pub fn read(text: &str) -> Result<Self, ReviewError> {
        #[derive(Deserialize)]
        struct Head {
            format: u64,
            haproxys: Option<serde::de::IgnoredAny>,
        }
        let Head { format, haproxys } = serde_json::from_str(text).map_err(ReviewError::Form)?;
        if format != FORMAT {
            return Err(ReviewError::Format(format));
        }
        Ok(match haproxys {
            Some(_) => {
                let SeveralFile { format: _, haproxys } = serde_json::from_str(text).map_err(ReviewError::Form)?;
                Self::Several(haproxys)
            }
            None => Self::One(Box::new(serde_json::from_str(text).map_err(ReviewError::Form)?)),
        })
    }

    /// The plan file.
    pub fn to_json(&self) -> Result<String, serde_json::Error> {
        let json = match self {
            Self::One(review) => serde_json::to_string_pretty(review),
            Self::Several(haproxys) => {
                serde_json::to_string_pretty(&SeveralFile { format: FORMAT, haproxys: haproxys.clone() })
            }
        };
        json.map(|json| json + "\n")
    }
}

/// Why a plan file cannot be used.
#[derive(Debug, Error)]
pub enum ReviewError {
    /// It is not a plan file.
    #[error("this is not a plan file that `plan --out` wrote")]
    Form(#[source] serde_json::Error),
    /// It was written by another version of this program.
    #[error(
        "this plan file has the format {0}, and this nomad-haproxy reads the format {FORMAT}: make the plan with it"
    )]
    Format(u64),
}

/// The difference between what was reviewed and what is there.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Difference {
    /// The configuration has changed.
    #[error(
        "the plan is not applied, as HAProxy's configuration changed after it was made: {what} (version {reviewed} then, \
         {found} now); review a new one: `nomad-haproxy plan --out FILE`"
    )]
    Configuration {
        /// The sections that differ.
        what: String,
        /// The version at the time of the review.
        reviewed: u64,
        /// The version now.
        found: u64,
    },
    /// The configuration has changed, and there is nothing left to do.
    #[error(
        "the plan is not applied, as HAProxy's configuration changed after it was made (version {reviewed} then, {found} \
         now) and is in line with the catalog: the plan was applied already, or someone made the same change"
    )]
    Done {
        /// The version at the time of the review.
        reviewed: u64,
        /// The version now.
        found: u64,
    },
    /// Something else would be written.
    #[error(
        "the plan is not applied, as something else would be written now than was reviewed, in {what}: the catalog, a \
         setting or what HAProxy accepts changed; review a new one: `nomad-haproxy plan --out FILE`"
    )]
    Plan {
        /// The backends that differ.
        what: String,
    },
}

impl Review {
    /// Records a plan for this configuration. `now` is since 1970.
    pub fn new(plan: &Plan, observed: &Observed, owner: &Owner, now: Duration) -> Self {
        let (configuration, sections) = digests(&observed.text);
        Self {
            format: FORMAT,
            version: observed.version,
            made: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
            configuration,
            sections,
            backends: backends(plan, owner),
        }
    }

    /// How long ago the plan was made, at `now` since 1970.
    pub fn age(&self, now: Duration) -> Duration {
        now.saturating_sub(Duration::from_millis(self.made))
    }
}

/// Allows only the reviewed plan to be applied.
#[derive(Debug)]
pub struct Permit<'a> {
    review: &'a Review,
    owner: &'a Owner,
    /// A digest of what was not ours in the first round.
    foreign: Option<Foreign>,
}

impl<'a> Permit<'a> {
    /// For one pass.
    pub fn new(review: &'a Review, owner: &'a Owner) -> Self {
        Self { review, owner, foreign: None }
    }

    /// Whether this plan for this configuration is what was reviewed. In the first round the text has to be the same.
    /// In a later one the Data Plane API may have written the file already, without a change of meaning: then the
    /// meaning of what is not ours is compared.
    pub fn check(&mut self, plan: &Plan, observed: &Observed) -> Result<(), Difference> {
        let Self { review, owner, foreign } = self;
        let now = Review::new(plan, observed, owner, Duration::ZERO);
        let is_same = match foreign {
            None => review.configuration == now.configuration,
            Some(foreign) => *foreign == observed.foreign(),
        };
        foreign.get_or_insert_with(|| observed.foreign());
        let (reviewed, found) = (review.version, now.version);
        if !is_same && now.backends.is_empty() && !review.backends.is_empty() {
            return Err(Difference::Done { reviewed, found });
        }
        if !is_same {
            let what = match different(&review.sections, &now.sections) {
                sections if sections.is_empty() => "the order of its sections".to_owned(),
                sections => listed(&sections),
            };
            return Err(Difference::Configuration { what, reviewed, found });
        }
        match different(&review.backends, &now.backends) {
            backends if backends.is_empty() => Ok(()),
            backends => Err(Difference::Plan { what: listed(&backends) }),
        }
    }
}

/// The keys at which two maps differ.
fn different<'a>(a: &'a BTreeMap<String, String>, b: &'a BTreeMap<String, String>) -> Vec<&'a str> {
    let names: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
    names.into_iter().filter(|name| a.get(*name) != b.get(*name)).map(String::as_str).collect()
}

fn listed(names: &[&str]) -> String {
    let quoted = |name: &&str| if *name == BETWEEN { (*name).to_owned() } else { format!("`{name}`") };
    let mut text = names.iter().take(NAMES).map(quoted).collect::<Vec<_>>().join(", ");
    if names.len() > NAMES {
        text += &format!(" and {} more", names.len() - NAMES);
    }
    text
}

fn hex(hasher: Sha256) -> String {
    format!("{:x}", hasher.finalize())
}

/// The digests of the whole text, and by section.
fn digests(text: &ConfigText) -> (String, BTreeMap<String, String>) {
    let mut whole = Sha256::new();
    let mut parts: BTreeMap<String, Sha256> = BTreeMap::new();
    let sections = text.sections();
    let mut sections = sections.iter().peekable();
    let header: Vec<usize> = text.api_header().collect();
    for (at, line) in text.lines().iter().enumerate().filter(|(at, _)| !header.contains(at)) {
        while sections.next_if(|section| section.lines.end <= at).is_some() {}
        let title = match sections.peek() {
            Some(section) if section.lines.start <= at => format!("{} {}", section.kind, section.name),
            _ => BETWEEN.to_owned(),
        };
        whole.update(line);
        parts.entry(title.trim_end().to_owned()).or_default().update(line);
    }
    (hex(whole), parts.into_iter().map(|(title, part)| (title, hex(part))).collect())
}

fn backends(plan: &Plan, owner: &Owner) -> BTreeMap<String, String> {
    let digest = |lines: Vec<String>| {
        let mut hasher = Sha256::new();
        for line in lines {
            hasher.update(line);
        }
        hex(hasher)
    };
    let Plan { edits, profiles, routes: RouteEdits { rules, maps } } = plan;
    let edits = edits.iter().filter_map(|(name, edit)| Some((name.to_string(), digest(written(edit, owner)?))));
    let removed = profiles.remove.iter().map(|section| (section.name.clone(), digest(vec!["delete\n".to_owned()])));
    let added = profiles.add.iter().map(|(name, lines)| (name.clone(), digest(lines.clone())));
    let rules = rules.iter().map(|(name, RuleEdit { lines, retired })| {
        let retired = retired.iter().map(|line| format!("retire {line}\n"));
        (format!("frontend {name}"), digest(lines.iter().cloned().chain(retired).collect()))
    });
    let lines = |edit: &MapEdit| match &edit.last {
        Some(lines) => lines.iter().map(|(key, value)| format!("{key} {value}\n")).collect(),
        None => vec!["delete\n".to_owned()],
    };
    let maps = maps
        .iter()
        .map(|(file, edit)| (format!("{} map of {}", file.kind.as_str(), file.frontend), digest(lines(edit))));
    edits.chain(removed).chain(added).chain(rules).chain(maps).collect()
}

/// What an edit writes, as lines; `None`: only the ends of drains.
fn written(edit: &Edit, owner: &Owner) -> Option<Vec<String>> {
    let line = |server: &Server| render::server(&without_times(server), owner);
    let servers = |edits: &[ServerEdit]| -> Vec<String> {
        let edits = edits.iter().filter(|edit| !is_end_of_drain(edit));
        let written = edits.map(|edit| match edit {
            ServerEdit::Add { server, is_live: _ } => format!("add {}", line(server)),
            ServerEdit::Set { after, .. } => format!("set {}", line(after)),
            ServerEdit::Remove { name, is_live: _ } => format!("remove {name}\n"),
            ServerEdit::Retire { name } => format!("retire {name}\n"),
        });
        written.collect()
    };
    let mut lines = Vec::new();
    match edit {
        Edit::Create { settings, servers, is_live: _ } => {
            lines.push("create\n".to_owned());
            lines.extend(render::settings(settings));
            lines.extend(servers.iter().map(line));
        }
        Edit::Change { settings, rewrite, servers: _, edits } => {
            let edits = servers(edits);
            if *rewrite == Rewrite::Nothing && edits.is_empty() {
                return None;
            }
            lines.push("change\n".to_owned());
            match rewrite {
                Rewrite::Nothing => {}
                Rewrite::Description => lines.push(format!("description {}\n", settings.description)),
                Rewrite::Settings => lines.extend(render::settings(settings)),
            }
            lines.extend(edits);
        }
        Edit::Servers(edits) => {
            let edits = servers(edits);
            if edits.is_empty() {
                return None;
            }
            lines.push("servers\n".to_owned());
            lines.extend(edits);
        }
        Edit::Delete { .. } => lines.push("delete\n".to_owned()),
    }
    Some(lines)
}

/// The server without the times of a free slot.
fn without_times(server: &Server) -> Server {
    let occupant = match &server.occupant {
        Occupant::Free { freed, drain_until } => {
            Occupant::Free { freed: (*freed).min(1), drain_until: drain_until.map(|_| 1) }
        }
        instance @ Occupant::Instance { .. } => instance.clone(),
    };
    Server { occupant, ..server.clone() }
}

fn is_end_of_drain(edit: &ServerEdit) -> bool {
    let ServerEdit::Set { before: Some(before), after, .. } = edit else { return false };
    let Occupant::Free { freed, drain_until: Some(_) } = before.occupant else { return false };
    *after == Server { occupant: Occupant::Free { freed, drain_until: None }, ..before.clone() }
}
