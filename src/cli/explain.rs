//! `explain`: why a service is, or is not, routed, by one look at everything.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use futures_util::future::join_all;

use crate::apply::{Controller, Moment};
use crate::config::Config;
use crate::desired::ServiceKey;
use crate::errors::one_line;
use crate::explain::{Explanation, InBackend, InFrontend, OnTarget, Routed, Seat, Setting, Source, Unseated, explain};
use crate::leader::Lease;
use crate::reconcile::Wake;
use crate::sample;
use crate::status::Board;

use super::Output;
use super::print::{heading, print};
use super::targets::{Controllers, controllers};

/// Explains a service, on all HAProxys or on `only` one. Writes nothing. The exit code is 0 if it is routed as asked on
/// each, else 1.
pub(super) async fn run(
    config: &Config,
    only: Option<&str>,
    catalog: Option<PathBuf>,
    service: &ServiceKey,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let Controllers { all, are_named } = controllers(config, only, catalog, &Lease::ALWAYS).await?;
    let (board, moment) = (Board::default(), Moment::now(true));
    let look = async |(name, mut controller): (String, Controller)| {
        let started = Instant::now();
        board.add(&name);
        let status = controller.look_on(moment).await;
        board.passed(&name, &status, started.elapsed(), Wake::Asked);
        if status.error.is_none() {
            sample::take(&*controller.plane(), &board, &name).await;
        }
    };
    join_all(all.into_iter().map(look)).await;
    let status = board.read();
    let explanation = explain(&status, &status.chosen(None)?, service, &config.prefix);
    match output {
        Output::Json => print(&(serde_json::to_string_pretty(&explanation)? + "\n"))?,
        Output::Text => print(&text(&explanation, are_named))?,
    }
    let is_routed = explanation.haproxys.iter().all(|haproxy| haproxy.routed == Routed::Fully);
    Ok(if is_routed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The answer, then what it rests on. What comes from Nomad is escaped: it is untrusted.
fn text(explanation: &Explanation, are_named: bool) -> String {
    let Explanation { answer, service: _, registrations: _, haproxys } = explanation;
    let mut text = format!("{}\n", one_line(answer));
    for haproxy in haproxys {
        if are_named {
            text += &format!("\n{}", heading(haproxy.name));
        }
        for (title, lines) in parts(haproxy) {
            if lines.is_empty() {
                continue;
            }
            text += &format!("\n{}\n", one_line(&title));
            for line in &lines {
                text += &format!("  {}\n", one_line(line));
            }
        }
    }
    text
}

/// What there is to say of one HAProxy, each part with a title.
fn parts(haproxy: &OnTarget) -> Vec<(String, Vec<String>)> {
    let OnTarget {
        name: _,
        answer: _,
        routed: _,
        reason: _,
        backends,
        unseated,
        routes,
        by_hand,
        settings,
        notes,
        namespaces,
    } = haproxy;
    let mut parts = Vec::new();
    for InBackend { name, is_ours, free: _, servers } in backends {
        let whose = if *is_ours { "" } else { ", which is yours" };
        parts.push((format!("Backend {name}{whose}"), columns(servers.iter().map(seat))));
    }
    parts.push(("Without a server".to_owned(), columns(unseated.iter().map(without_server))));
    parts.push(("Routes".to_owned(), routes.iter().map(route).chain(by_hand.clone()).collect()));
    let notes = notes.iter().map(|note| format!("{}: {}", note.severity.as_str(), note.text));
    parts.push(("Notes".to_owned(), notes.chain(namespaces.iter().map(ToString::to_string)).collect()));
    parts.push(("Settings".to_owned(), columns(settings.iter().map(setting))));
    parts
}

fn seat(seat: &Seat) -> Vec<String> {
    let Seat { server, state, status, check, address, port, allocation, id: _, registration } = seat;
    let status = status.map_or_else(String::new, |status| format!(", {status}"));
    let check = check.as_ref().map_or_else(String::new, |check| format!(" ({check})"));
    let known = if registration.is_some() { "" } else { ", which the catalog lacks" };
    vec![
        (*server).to_owned(),
        format!("{address}:{port}"),
        format!("{state}{status}{check}"),
        format!("allocation {allocation}{known}"),
    ]
}

fn without_server(unseated: &Unseated) -> Vec<String> {
    let Unseated { why, registration } = unseated;
    let place = format!("{}:{}", registration.address, registration.port);
    vec![place, format!("allocation {}", registration.alloc_id), why.clone().unwrap_or_default()]
}

fn route(route: &InFrontend) -> String {
    let InFrontend { frontend, route, backend } = route;
    match route {
        Some(route) => format!("{route} in the frontend {frontend}, to {backend}"),
        None => format!("a rule of yours in the frontend {frontend}, to {backend}"),
    }
}

fn setting(setting: &Setting) -> Vec<String> {
    let Setting { tag, value, source, allocations } = setting;
    let source = match source {
        Source::Tag => format!("tag of {}", counted(allocations)),
        Source::Job => "the check in the job".to_owned(),
        Source::Default => "default".to_owned(),
    };
    vec![tag.clone(), source, value.clone()]
}

fn counted(allocations: &[&str]) -> String {
    match allocations {
        [one] => format!("allocation {one}"),
        more => format!("{} allocations", more.len()),
    }
}

/// Rows with all columns but the last one as wide as their widest cell.
fn columns(rows: impl Iterator<Item = Vec<String>>) -> Vec<String> {
    let rows: Vec<Vec<String>> = rows.collect();
    let width = |at: usize| rows.iter().filter_map(|row| Some(row.get(at)?.chars().count())).max().unwrap_or_default();
    let line = |row: &Vec<String>| {
        let cells = row.iter().enumerate().map(|(at, cell)| format!("{cell:<width$}  ", width = width(at)));
        cells.collect::<String>().trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}
