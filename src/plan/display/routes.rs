//! What a person or a program reads of the routes of a plan.

use serde::Serialize;
use similar::TextDiff;

use crate::desired::{BackendName, FrontendName, FrontendRoutes, MapKind, routes};
use crate::haproxy::maps::{self, MapFile};
use crate::plan::{Lines, MapEdit, RouteEdits};

/// What happens to a route. The words stay the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RouteAction {
    /// It is new.
    Add,
    /// It goes to another backend.
    Change,
    /// It is removed.
    Remove,
}

/// One route of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RouteSummary {
    /// The frontend.
    pub frontend: FrontendName,
    /// The hosts: a name, `*.example.com`, the beginning with `*` behind it, or a regular expression with `~` before it.
    pub host: String,
    /// The beginning of the path.
    pub path: String,
    /// The backend after the plan; of a route that is removed, before it.
    pub backend: BackendName,
    /// What happens to it.
    pub action: RouteAction,
}

/// The routes that change.
pub(super) fn summaries(edits: &RouteEdits) -> Vec<RouteSummary> {
    let of_routes = edits.maps.iter().filter(|(file, _)| file.kind == MapKind::Routes);
    of_routes.flat_map(|(file, edit)| changed(file, edit)).collect()
}

fn changed(file: &MapFile, edit: &MapEdit) -> Vec<RouteSummary> {
    let read = |lines: &Option<Lines>| lines.as_deref().map(routes::read).unwrap_or_default();
    let (before, after): (FrontendRoutes, FrontendRoutes) = (read(&edit.before), read(&edit.last));
    let summary = |(route, backend): (&crate::desired::Route, &BackendName), action| RouteSummary {
        frontend: file.frontend.clone(),
        host: route.host.to_string(),
        path: route.path.to_string(),
        backend: backend.clone(),
        action,
    };
    let come = after.iter().filter_map(|(route, backend)| match before.get(route) {
        None => Some(summary((route, backend), RouteAction::Add)),
        Some(was) if was != backend => Some(summary((route, backend), RouteAction::Change)),
        Some(_) => None,
    });
    let go = before.iter().filter(|(route, _)| !after.contains_key(route));
    come.chain(go.map(|one| summary(one, RouteAction::Remove))).collect()
}

/// The unified diffs of the map files.
pub(super) fn diff(edits: &RouteEdits) -> String {
    let one = |(file, edit): (&MapFile, &MapEdit)| {
        let text = |lines: &Option<Lines>| lines.as_ref().map(|lines| maps::to_text(lines, &file.frontend));
        let (before, after) = (text(&edit.before).unwrap_or_default(), text(&edit.last).unwrap_or_default());
        let name = format!("{} map of {}", file.kind.as_str(), file.frontend);
        let diff = TextDiff::from_lines(&before, &after);
        diff.unified_diff().context_radius(1).header(&name, &format!("{name} (planned)")).to_string()
    };
    edits.maps.iter().map(one).collect()
}

/// How many routes are added, and how many are removed, as a part of the last line.
pub(super) fn count(routes: &[RouteSummary]) -> String {
    if routes.is_empty() {
        return String::new();
    }
    let of = |action| routes.iter().filter(|route| route.action == action).count();
    let changed = of(RouteAction::Change);
    let changed = if changed == 0 { String::new() } else { format!(" ~{changed}") };
    format!("routes +{} -{}{changed}; ", of(RouteAction::Add), of(RouteAction::Remove))
}
