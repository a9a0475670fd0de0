//! The settings of a service: each with its value, and where that comes from.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::catalog::{Catalog, Registration};
use crate::desired::build::age;
use crate::desired::tags::{self, BackendTag, Intent, Level, TABLE, Tag};
use crate::desired::{ServiceKey, of_job};

/// One setting.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Setting<'a> {
    /// The tag that sets it.
    pub tag: String,
    /// The value: of a tag as it is written, of a default in the words of the documentation.
    pub value: String,
    /// Where it comes from.
    pub source: Source,
    /// The allocations whose tags say so, of a tag.
    pub allocations: Vec<&'a str>,
}

/// Where a setting comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// A tag: of each registration, of any, or of the newest, as the table of tags says.
    Tag,
    /// The check in the job.
    Job,
    /// Nothing states it.
    Default,
}

/// The settings of a service that these registrations are to be routed for, in the order of the documentation; none
/// without a registration.
pub(super) fn settings<'a>(
    service: &ServiceKey,
    registrations: &[&'a Registration],
    catalog: &Catalog,
    prefix: &str,
) -> Vec<Setting<'a>> {
    let Some(newest) = registrations.iter().max_by(|a, b| age(a).cmp(&age(b))) else { return Vec::new() };
    let intent = intent(newest, prefix);
    let of_job = match catalog.checks.get(service) {
        Some(Ok(job)) if intent.backend == BackendTag::Dynamic => of_job(&intent.check, job, intent.server.ssl),
        _ => Vec::new(),
    };
    let mut settings = Vec::new();
    // A section that is not ours is as its owner wrote it.
    for tag in TABLE.iter().filter(|tag| intent.backend == BackendTag::Dynamic || !tag.level.is_of_section()) {
        let said = match tag.level {
            Level::Service | Level::Backend | Level::Check => said(tag, std::slice::from_ref(newest), prefix),
            Level::Registration | Level::Route | Level::Server => said(tag, registrations, prefix),
        };
        let setting =
            |value, source, allocations| Setting { tag: format!("{prefix}{}", tag.name), value, source, allocations };
        if let Some((_, value)) = of_job.iter().find(|(name, _)| *name == tag.name) {
            settings.push(setting(value.clone(), Source::Job, Vec::new()));
        } else if said.is_empty() {
            settings.push(setting(tag.default.to_owned(), Source::Default, Vec::new()));
        }
        settings.extend(said.into_iter().map(|(value, allocations)| setting(value, Source::Tag, allocations)));
    }
    settings
}

fn intent(registration: &Registration, prefix: &str) -> Intent {
    tags::parse(prefix, registration.tags.iter().map(String::as_str)).0
}

/// The values that these registrations give a tag, each with the allocations. One that is ignored is not among them.
fn said<'a>(tag: &Tag, registrations: &[&'a Registration], prefix: &str) -> BTreeMap<String, Vec<&'a str>> {
    let mut said: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for registration in registrations {
        let mut values = values(tag, registration, prefix);
        values.sort_unstable();
        // Of a tag that is there twice the last one counts, as for the parser.
        let counted = if tag.is_repeatable() { 0 } else { values.len().saturating_sub(1) };
        if !values.is_empty() {
            said.entry(values[counted..].join(", ")).or_default().push(&registration.alloc_id);
        }
    }
    said
}

/// The values of a tag that are not ignored. How a domain is read depends on its type.
fn values<'r>(tag: &Tag, registration: &'r Registration, prefix: &str) -> Vec<&'r str> {
    let kind = format!("{prefix}domain.type=");
    let kind = registration.tags.iter().filter(|tag| tag.starts_with(&kind)).max();
    let is_taken = |whole: &str| {
        let with = kind.filter(|_| tag.name == "domain").map(String::as_str);
        tags::parse(prefix, std::iter::once(whole).chain(with)).1.is_empty()
    };
    let value = |whole: &'r String| {
        let (name, value) =
            whole.strip_prefix(prefix)?.split_once('=').unwrap_or((whole.strip_prefix(prefix)?, "true"));
        (name == tag.name && is_taken(whole)).then(|| value.trim())
    };
    registration.tags.iter().filter_map(value).collect()
}
