//! `explain`: why a service is, or is not, routed, by one look at everything.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use futures_util::future::join_all;

use crate::apply::{Controller, Moment};
use crate::config::Config;
use crate::desired::ServiceKey;
use crate::errors::{chain, one_line};
use crate::explain::{Explanation, InBackend, InFrontend, OnTarget, Routed, Seat, Setting, Source, Unseated, explain};
use crate::leader::Lease;
use crate::reconcile::Wake;
use crate::sample;
use crate::status::Board;

use super::Output;
use super::print::{heading, is_coloured, print};
use super::targets::{Controllers, controllers};

/// Explains a service, on all HAProxys or on `only` one. Writes nothing. The exit code is 0 if it is routed as asked, else
/// 1.
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
        match &status.error {
            None => sample::take(&*controller.plane(), &board, &name).await,
            // The answer leaves out what HAProxy says, as it is for readers without credentials, too.
            Some(error) => eprintln!("error: HAProxy {name}: {}", chain(error)),
        }
    };
    join_all(all.into_iter().map(look)).await;
    let status = board.read();
    let explanation = explain(&status, &status.chosen(None)?, service, &config.prefix);
    match output {
        Output::Json => print(&(serde_json::to_string_pretty(&explanation)? + "\n"))?,
        Output::Text => print(&text(&explanation, are_named, is_coloured()))?,
    }
    Ok(if explanation.is_as_asked() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The answer, then what it rests on. What comes from Nomad is untrusted: it starts no line of its own.
fn text(explanation: &Explanation, are_named: bool, is_coloured: bool) -> String {
    let Explanation { answer, service: _, registrations: _, haproxys } = explanation;
    let is_nowhere = haproxys.iter().all(|haproxy| haproxy.routed == Routed::Not);
    let colour = match (explanation.is_as_asked(), is_nowhere) {
        (true, _) => "\x1b[32m",
        (_, true) => "\x1b[31m",
        _ => "\x1b[33m",
    };
    let painted = |colour: &str, line: &str| match is_coloured {
        true => format!("{colour}{}\x1b[0m\n", one_line(line)),
        false => format!("{}\n", one_line(line)),
    };
    let mut text = painted(colour, answer);
    for haproxy in haproxys {
        if are_named {
            text += &format!("\n{}", heading(haproxy.name));
        }
        for (title, lines) in parts(haproxy) {
            if lines.is_empty() {
                continue;
            }
            text += &format!("\n{}", painted("\x1b[1m", &title));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desired::BackendName;

    #[test]
    fn the_answer_comes_first_and_the_columns_are_as_wide_as_they_have_to_be() {
        let name: BackendName = "api".parse().expect("a name");
        let seat = |server, address: &str, check: Option<&str>| Seat {
            server,
            state: "ready",
            status: Some("UP"),
            check: check.map(str::to_owned),
            address: address.to_owned(),
            port: 80,
            allocation: "a\nb",
            id: "1",
            registration: None,
        };
        let servers = vec![seat("api_1", "10.0.0.1", None), seat("api_10", "10.0.0.100", Some("L7OK: OK"))];
        let setting =
            |tag: &str, source| Setting { tag: tag.to_owned(), value: "7".to_owned(), source, allocations: vec!["a"] };
        let haproxy = OnTarget {
            name: "edge",
            answer: String::new(),
            routed: Routed::Not,
            reason: None,
            backends: vec![InBackend { name: &name, is_ours: false, free: 0, servers }],
            unseated: Vec::new(),
            routes: vec![InFrontend { frontend: "web", route: Some("a.com/x".to_owned()), backend: &name }],
            by_hand: None,
            settings: vec![setting("haproxy.weight", Source::Tag), setting("haproxy.mode", Source::Default)],
            notes: Vec::new(),
            namespaces: Vec::new(),
        };
        let explanation = Explanation {
            answer: "It is not routed: so\nit is.".to_owned(),
            service: "api".into(),
            registrations: None,
            haproxys: vec![haproxy],
        };
        let expected = "It is not routed: so it is.\n\n# HAProxy edge\n\nBackend api, which is yours\n\
            \x20 api_1   10.0.0.1:80    ready, UP             allocation a b, which the catalog lacks\n\
            \x20 api_10  10.0.0.100:80  ready, UP (L7OK: OK)  allocation a b, which the catalog lacks\n\n\
            Routes\n  a.com/x in the frontend web, to api\n\n\
            Settings\n  haproxy.weight  tag of allocation a  7\n  haproxy.mode    default              7\n";
        assert_eq!(text(&explanation, true, false), expected);
        assert!(text(&explanation, true, true).starts_with("\x1b[31mIt is not routed: so it is.\x1b[0m\n"));
    }
}
