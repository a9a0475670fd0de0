//! Maps and rules: what changes in which frontend and which file, and in which order.
//!
//! No entry ever names a backend that is not there, and no rule a file that is not there. So a pass writes, in this order:
//! entries that leave, entries of backends that exist, and files that are new ([`MapEdit::first`]); then the
//! configuration, with backends and rules together; then entries of new backends, and the end of files that no rule
//! reads any more ([`MapEdit::last`]). What an interruption leaves between two of them is a plan of the next pass.

use std::collections::{BTreeMap, BTreeSet};

use crate::desired::build::Built;
use crate::desired::{BackendName, Entry, FrontendName, FrontendRoutes, HostPattern, MapKind, Routes, routes};
use crate::haproxy::maps::{self, MapFile};
use crate::haproxy::text::Directive;
use crate::observed::{Frontend, Maps, Observed, ObservedBackend};

use super::{Edit, LeftOut, Options};

/// The lines of a map.
pub type Lines = Vec<Entry>;

/// The changes of the rules of ours in one frontend.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RuleEdit {
    /// All that it should have, in their order, behind the person's own.
    pub lines: Vec<String>,
    /// The lines (from 0) of rules of haproxy-nomad-connector that go, as ours take their place.
    pub retired: BTreeSet<usize>,
}

/// The changes of one map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MapEdit {
    /// Its lines on disk. `None`: there is no such file.
    pub before: Option<Lines>,
    /// Its lines before the configuration is written. `None`: no rule reads it.
    pub first: Option<Lines>,
    /// Its lines after that. `None`: the file is deleted.
    pub last: Option<Lines>,
}

/// The changes of maps and rules.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RouteEdits {
    /// Rules, which change with a reload.
    pub rules: BTreeMap<FrontendName, RuleEdit>,
    /// Map files, which change on disk and in the process, without a reload.
    pub maps: BTreeMap<MapFile, MapEdit>,
}

impl RouteEdits {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        let Self { rules, maps } = self;
        rules.is_empty() && maps.is_empty()
    }

    /// The map files once all is done.
    pub fn after(&self, before: &Maps) -> Maps {
        let mut after = before.clone();
        for (file, edit) in &self.maps {
            after.process.remove(file);
            match &edit.last {
                Some(lines) => after.files.insert(file.clone(), lines.clone()),
                None => after.files.remove(file),
            };
        }
        after
    }

    /// Splits off the rules, which wait for a reload, with these new backends.
    pub(super) fn split(self, waiting: &BTreeMap<BackendName, Edit>) -> (Self, BTreeMap<FrontendName, RuleEdit>) {
        let Self { rules, maps } = self;
        if rules.is_empty() && waiting.is_empty() {
            return (Self { rules, maps }, BTreeMap::new());
        }
        let is_new =
            |name: &str| waiting.iter().any(|(new, edit)| new.as_str() == name && matches!(edit, Edit::Create { .. }));
        let now = |(file, edit): (MapFile, MapEdit)| {
            let MapEdit { before, first, last } = edit;
            // A file that no rule reads yet is written together with its rule.
            let first = first.filter(|_| before.is_some() || !rules.contains_key(&file.frontend))?;
            let mut last = last.unwrap_or_default();
            last.retain(|(_, value)| !is_new(value));
            (before.as_ref() != Some(&last)).then_some((file, MapEdit { before, first: Some(first), last: Some(last) }))
        };
        (Self { rules: BTreeMap::new(), maps: maps.into_iter().filter_map(now).collect() }, rules)
    }
}

/// Computes the changes, for the edits of backends.
pub(super) struct Router<'a> {
    pub(super) built: &'a Built,
    pub(super) observed: &'a Observed,
    pub(super) options: &'a Options,
    pub(super) left_out: &'a LeftOut,
}

impl Router<'_> {
    /// The rules that have to change. `all`: there is a reload anyway, so that rules that nothing needs go, too.
    pub(super) fn rules(&self, edits: &BTreeMap<BackendName, Edit>, all: bool) -> BTreeMap<FrontendName, RuleEdit> {
        if self.observed.maps.is_unknown {
            return BTreeMap::new();
        }
        let wanted = self.wanted(edits);
        let nothing = FrontendRoutes::default();
        let edit = |(name, frontend): (&String, &Frontend)| {
            let name: FrontendName = name.parse().ok()?;
            if self.left_out.has_rules(&name) {
                return None;
            }
            let routes = wanted.get(&name).unwrap_or(&nothing);
            let lines = self.lines(&name, frontend, routes, all);
            let retired = match self.options.owner.adopts_connector() && !lines.is_empty() {
                true => super::connector::retired_rules(frontend, routes),
                false => BTreeSet::new(),
            };
            let words: Vec<Vec<String>> = lines.iter().map(|line| Directive::parse(line).words).collect();
            let is_current = words.iter().eq(frontend.rules.values()) && (frontend.is_in_order || words.is_empty());
            (!is_current || !retired.is_empty()).then_some((name, RuleEdit { lines, retired }))
        };
        self.observed.frontends.iter().filter_map(edit).collect()
    }

    /// The rules that a frontend should have.
    fn lines(&self, name: &FrontendName, frontend: &Frontend, routes: &FrontendRoutes, all: bool) -> Vec<String> {
        let (Some(mode), None, false) = (frontend.door.mode, frontend.door.trouble, routes.is_empty()) else {
            return Vec::new();
        };
        let (folder, owner) = (&self.observed.maps.folder, &self.options.owner);
        let for_any = maps::rule_for_any(name, folder, owner);
        let (mut kinds, mut has_any) = needed(routes);
        if !all {
            kinds.extend(read(frontend, self.observed));
            let words = Directive::parse(&for_any).words;
            has_any |= frontend.rules.values().any(|known| *known == words);
        }
        let mut lines: Vec<String> =
            kinds.into_iter().map(|kind| maps::rule(kind, name, mode, folder, owner)).collect();
        lines.extend(has_any.then_some(for_any));
        lines
    }

    /// The changes of map files, given those of rules.
    pub(super) fn maps(
        &self,
        edits: &BTreeMap<BackendName, Edit>,
        rules: &BTreeMap<FrontendName, RuleEdit>,
    ) -> BTreeMap<MapFile, MapEdit> {
        let Self { observed, options, .. } = self;
        if observed.maps.is_unknown {
            return BTreeMap::new();
        }
        let wanted = self.wanted(edits);
        let is_there = |name: &BackendName| observed.backend(name).is_some();
        let is_there_after = |name: &BackendName| match edits.get(name) {
            Some(Edit::Create { .. }) => true,
            Some(Edit::Delete { .. }) => false,
            Some(Edit::Change { .. } | Edit::Servers(_)) | None => is_there(name),
        };
        let first = lines(&wanted, |name| is_there(name) && is_there_after(name));
        let last = lines(&wanted, is_there_after);
        let (mut read_now, mut read_then) = (BTreeSet::new(), BTreeSet::new());
        for (name, frontend) in &observed.frontends {
            let Ok(name) = name.parse::<FrontendName>() else { continue };
            let file = |kind| MapFile { frontend: name.clone(), kind };
            read_now.extend(read(frontend, observed).into_iter().map(file));
            match rules.get(&name) {
                Some(RuleEdit { lines, retired: _ }) => {
                    let words = lines.iter().map(|line| Directive::parse(line).words);
                    read_then.extend(words.filter_map(|words| maps::kind_of(&words, &options.owner)).map(file));
                }
                None => read_then.extend(read(frontend, observed).into_iter().map(file)),
            }
        }
        let content = |lines: &BTreeMap<MapFile, Lines>, file: &MapFile| lines.get(file).cloned().unwrap_or_default();
        let files: BTreeSet<&MapFile> = observed.maps.files.keys().chain(&read_then).collect();
        let edit = |file: &MapFile| {
            let before = observed.maps.files.get(file).cloned();
            let last = read_then.contains(file).then(|| content(&last, file));
            let first = (last.is_some() || read_now.contains(file)).then(|| content(&first, file));
            let is_same = |known: &Lines| last.as_ref().is_some_and(|last| file.kind.is_same(known, last));
            let process = observed.maps.process.get(file).and_then(Option::as_ref);
            let is_done = before.as_ref().map_or(last.is_none(), is_same) && process.is_none_or(is_same);
            (!is_done).then(|| (file.clone(), MapEdit { before, first, last }))
        };
        files.into_iter().filter_map(edit).collect()
    }

    /// The routes that services ask for, and those of backends that stay although no service asks for them.
    fn wanted(&self, edits: &BTreeMap<BackendName, Edit>) -> Routes {
        if self.options.uninstall {
            return Routes::default();
        }
        let mut wanted = self.built.desired.routes.clone();
        for (frontend, routes) in self.observed.maps.routes() {
            let kept = routes.into_iter().filter(|(_, backend)| self.keeps(backend, edits.get(backend)));
            let known = wanted.entry(frontend).or_default();
            for (route, backend) in kept {
                known.entry(route).or_insert(backend);
            }
        }
        wanted
    }

    /// Whether a backend has the routes that it had, although no service asks for them.
    fn keeps(&self, name: &BackendName, edit: Option<&Edit>) -> bool {
        let Some(section) = self.observed.backend(name) else { return false };
        let (built, services) = (self.built, section.ownership.services());
        if matches!(edit, Some(Edit::Delete { .. })) {
            return false;
        }
        let is_held = || {
            services.iter().any(|service| built.held.holds(service))
                || section.servers.iter().any(|server| {
                    let service = server.occupant.service();
                    service.is_some_and(|service| built.held.holds(service))
                })
        };
        let is_idle = ObservedBackend::is_ours(section) && !built.desired.backends.contains_key(name);
        (is_idle && built.keeps_routes(services)) || is_held()
    }
}

/// The maps that rules of a frontend have to ask for these routes, and whether there is a route for any connection.
fn needed(wanted: &FrontendRoutes) -> (BTreeSet<MapKind>, bool) {
    let kinds = routes::maps(wanted).into_keys().collect();
    (kinds, wanted.keys().any(|route| route.host == HostPattern::Any))
}

/// The maps that rules of a frontend ask.
fn read(frontend: &Frontend, observed: &Observed) -> BTreeSet<MapKind> {
    frontend.rules.values().filter_map(|words| maps::kind_of(words, &observed.owner)).collect()
}

/// The lines of all maps, with these backends only.
fn lines(wanted: &Routes, has: impl Fn(&BackendName) -> bool) -> BTreeMap<MapFile, Lines> {
    let mut all = BTreeMap::new();
    for (frontend, wanted) in wanted {
        let there: FrontendRoutes =
            wanted.iter().filter(|(_, backend)| has(backend)).map(|(r, b)| (r.clone(), b.clone())).collect();
        let file = |kind| MapFile { frontend: frontend.clone(), kind };
        all.extend(routes::maps(&there).into_iter().map(|(kind, lines)| (file(kind), lines)));
    }
    all
}
