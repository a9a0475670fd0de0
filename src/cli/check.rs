//! `check`: whether the controller can do its work, one line for each part.

use std::collections::BTreeSet;
use std::process::ExitCode;

use anyhow::ensure;
use futures_util::future::join_all;
use serde::Serialize;

use crate::check::{self, Finding, Verdict};
use crate::config::{Config, TargetConfig};
use crate::errors::chain;

use super::Output;
use super::print::{is_coloured, print};
use super::targets::{NONE, discoveries};

/// What is printed for programs.
#[derive(Serialize)]
struct Report {
    ok: bool,
    checks: Vec<Line>,
}

/// A finding, and the HAProxy that it is about.
#[derive(Serialize)]
struct Line {
    haproxy: Option<String>,
    #[serde(flatten)]
    finding: Finding,
}

/// Checks everything, or with `only` Nomad and this HAProxy. The exit code is 1 if anything failed.
pub(super) async fn check(config: &Config, only: Option<&str>, output: Output) -> anyhow::Result<ExitCode> {
    let (nomad, haproxys) = futures_util::join!(check::nomad::nomad(config), haproxys(config, only));
    let mut lines: Vec<Line> = nomad.into_iter().map(|finding| Line { haproxy: None, finding }).collect();
    lines.extend(haproxys?);
    let ok = lines.iter().all(|line| line.finding.verdict != Verdict::Failed);
    let report = Report { ok, checks: lines };
    match output {
        Output::Json => print(&(serde_json::to_string_pretty(&report)? + "\n"))?,
        Output::Text => {
            print(&table(&report, !config.targets.is_single(), is_coloured()))?;
        }
    }
    Ok(if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What is found out about each HAProxy, and about each service that lists some.
async fn haproxys(config: &Config, only: Option<&str>) -> anyhow::Result<Vec<Line>> {
    let mut lines = Vec::new();
    let mut targets: Vec<TargetConfig> = config.targets.fixed.clone();
    if config.targets.is_empty() {
        lines.push(Line { haproxy: None, finding: Finding::failed("haproxy", NONE) });
    }
    for mut discovery in discoveries(config)? {
        let taken: BTreeSet<String> = targets.iter().map(|target| target.name.clone()).collect();
        let service = discovery.service().clone();
        let failed = |text: String| Line { haproxy: None, finding: Finding::failed("haproxy", text) };
        match discovery.list(&taken).await {
            Ok(found) if found.is_empty() => {
                let line = failed(format!("no HAProxy is registered under the service {service}"));
                let hint = "check haproxy.service (HAPROXY_SERVICE), and that the job with the Data Plane APIs runs";
                lines.push(Line { finding: line.finding.or_hint(hint), ..line });
            }
            Ok(found) => targets.extend(found),
            Err(error) => {
                lines.push(failed(format!("cannot read the HAProxys of the service {service}: {}", chain(&error))));
            }
        }
    }
    if let Some(only) = only {
        let known: Vec<String> = targets.iter().map(|target| target.name.clone()).collect();
        targets.retain(|target| target.name == only);
        ensure!(!targets.is_empty(), "no HAProxy is called {only:?} (--haproxy); there are: {}", known.join(", "));
    }
    targets.sort_by(|a, b| a.name.cmp(&b.name));
    let found = join_all(targets.iter().map(check::haproxy::haproxy)).await;
    for (target, findings) in targets.iter().zip(found) {
        lines.extend(findings.into_iter().map(|finding| Line { haproxy: Some(target.name.clone()), finding }));
    }
    Ok(lines)
}

/// A line for each finding, in columns; the advice stands below. A HAProxy is named if there may be others.
fn table(report: &Report, are_named: bool, is_coloured: bool) -> String {
    let about = |line: &Line| match line.haproxy.as_ref().filter(|_| are_named) {
        Some(name) => format!("{name} {}", line.finding.part),
        None => line.finding.part.to_owned(),
    };
    let width = report.checks.iter().map(|line| about(line).chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    for line in &report.checks {
        let Finding { part: _, verdict, text: said, hint } = &line.finding;
        let (colour, end) = if is_coloured { (colour(*verdict), "\x1b[0m") } else { ("", "") };
        text += &format!("{colour}{verdict:7}{end}  {:width$}  {said}\n", about(line));
        if let Some(hint) = hint {
            text += &format!("{:width$}  hint: {hint}\n", "", width = width + 9);
        }
    }
    let count = |verdict| report.checks.iter().filter(|line| line.finding.verdict == verdict).count();
    text + &match (count(Verdict::Failed), count(Verdict::Warning)) {
        (0, 0) => "All is well.\n".to_owned(),
        (0, warnings) => format!("It works, with {warnings} {}.\n", if warnings == 1 { "warning" } else { "warnings" }),
        (failed, _) => format!("{failed} of {} checks failed.\n", report.checks.len()),
    }
}

fn colour(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Ok => "\x1b[32m",
        Verdict::Warning => "\x1b[33m",
        Verdict::Failed => "\x1b[31m",
        Verdict::Skipped => "\x1b[2m",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_a_line_for_each_part_and_the_advice_below_it() {
        let finding = |part, verdict, hint: Option<&str>| Finding {
            part,
            verdict,
            text: "said".to_owned(),
            hint: hint.map(str::to_owned),
        };
        let line = |haproxy: Option<&str>, finding| Line { haproxy: haproxy.map(str::to_owned), finding };
        let mut report = Report {
            ok: true,
            checks: vec![
                line(None, finding("nomad", Verdict::Ok, None)),
                line(Some("edge"), finding("socket", Verdict::Warning, Some("do"))),
            ],
        };
        let plain = "ok       nomad        said\nwarning  edge socket  said\n                      hint: do\n";
        assert_eq!(table(&report, true, false), format!("{plain}It works, with 1 warning.\n"));
        assert!(table(&report, true, true).starts_with("\x1b[32mok     \x1b[0m  nomad"));
        report.checks.push(line(None, finding("token", Verdict::Failed, None)));
        assert!(table(&report, true, false).ends_with("1 of 3 checks failed.\n"));
    }
}
