//! `make soak`: services come, grow, roll and go for an hour on a real Nomad, under requests and with a database
//! connection open through HAProxy. It ends with a report, and with exit code 1 if something did not hold.
//!
//! `--plane both` runs it on two HAProxys with one controller, while each minute something is killed that is not HAProxy.
//! `--compare` runs the same churn on the local plane, through the Data Plane API with slots, and with
//! haproxy-nomad-connector where its executable is named.

#![allow(clippy::unwrap_used, unreachable_pub, reason = "it measures; what fails may panic")]

#[path = "../tests/support/mod.rs"]
mod support;

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::builder::BoolishValueParser;
use clap::{Parser, ValueEnum};
use support::api::which;
use support::soak::{Plane, Report, Sample, Settings, run};

/// A backend whose service is gone stays for this part of the churn, but no longer than by default.
const LINGER_OF_CHURN: u32 = 6;
/// How long a backend stays by default.
const LINGER: Duration = nomad_haproxy::config::BACKEND_LINGER;
/// Between two times that something is killed.
const KILL_EVERY: Duration = Duration::from_secs(60);
/// How much longer an instance answers than its `shutdown_delay` of 3 s where a killed API may keep it in service: until
/// the API answers again and the controller has asked it.
const GRACE: Duration = Duration::from_secs(12);

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Way {
    Local,
    Api,
    Slots,
    Both,
    Connector,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Text,
    Json,
}

/// Services come, grow, roll and go for a long time, under requests and with a database connection open.
#[derive(Debug, Parser)]
struct Arguments {
    /// How long the churn lasts
    #[arg(long, env = "SOAK_MINUTES", default_value_t = 60.0)]
    minutes: f64,
    /// How many services there are [default: 300, or 200 on two HAProxys]
    #[arg(long, env = "SOAK_SERVICES")]
    services: Option<usize>,
    /// The series of HAProxy: 3.0, 3.2 or 3.4
    #[arg(long, env = "SOAK_HAPROXY", default_value = "3.4")]
    haproxy: String,
    /// The local plane; the API with a run-time socket, or with slots; two HAProxys, one by each of the first two, with
    /// something killed each minute; another controller
    #[arg(long, env = "SOAK_PLANE", value_enum, default_value_t = Way::Local)]
    plane: Way,
    /// The executable of haproxy-nomad-connector
    #[arg(long, env = "CONNECTOR_BIN")]
    connector: Option<PathBuf>,
    /// The same churn on one plane after the other
    #[arg(long, env = "SOAK_COMPARE", value_parser = BoolishValueParser::new())]
    compare: bool,
    /// The form of the report; text on a terminal, else JSON
    #[arg(long, value_enum)]
    output: Option<Output>,
}

impl Arguments {
    fn planes(&self) -> Vec<Plane> {
        let connector = || self.connector.clone().map(Plane::Connector);
        if self.compare {
            return [Plane::Local, Plane::Slots].into_iter().chain(connector()).collect();
        }
        match self.plane {
            Way::Local => vec![Plane::Local],
            Way::Api => vec![Plane::Api],
            Way::Slots => vec![Plane::Slots],
            Way::Both => vec![Plane::Both],
            Way::Connector => vec![connector().expect("name the executable by --connector (CONNECTOR_BIN)")],
        }
    }
}

fn show(sample: &Sample) {
    let Sample {
        second,
        phase,
        services,
        registered,
        created,
        requests,
        failed,
        reloads,
        workers,
        haproxy_kb,
        controller_kb,
        descriptors,
        killed,
    } = sample;
    eprintln!(
        "{second:>5} s  {phase:<6}  {services:>4} services of {created:>5}, {registered:>4} in Nomad  {failed} of {requests:>7} requests failed  \
         {reloads:>4} reloads  {workers:>2} workers  HAProxy {:>4} MB  controller {:>4} MB  {descriptors:>4} descriptors  {killed} killed",
        haproxy_kb / 1024,
        controller_kb / 1024,
    );
}

/// One column for each report.
fn table(reports: &[Report]) -> String {
    let columns: Vec<_> = reports.iter().map(Report::rows).collect();
    let line = |what: &str, cells: Vec<String>| {
        let cells = cells.iter().map(|cell| format!("{cell:<28}")).collect::<Vec<_>>().concat();
        format!("{what:<36}{}", cells.trim_end())
    };
    let mut lines = vec![line("", reports.iter().map(|report| report.plane.to_owned()).collect())];
    for (at, (what, _)) in columns.first().into_iter().flatten().enumerate() {
        lines.push(line(what, columns.iter().map(|rows| rows[at].1.clone()).collect()));
    }
    for report in reports {
        lines.extend(report.broken.iter().map(|broken| format!("{}: {broken}", report.plane)));
    }
    lines.join("\n")
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let churn = Duration::from_secs_f64(arguments.minutes * 60.0);
    let mut reports = Vec::new();
    for plane in arguments.planes() {
        if plane != Plane::Local {
            eprintln!("{}", which());
        }
        // On two HAProxys: so many change at a time that it is more than five changes a second on two cores.
        let (services, peak, growing, kill_every, grace) = match plane {
            Plane::Both => (200, 4, 58, Some(KILL_EVERY), GRACE),
            _ => (300, 20, 4, None, Duration::ZERO),
        };
        let settings = Settings {
            series: arguments.haproxy.clone(),
            plane,
            services: arguments.services.unwrap_or(services),
            churn,
            linger: LINGER.min(churn / LINGER_OF_CHURN),
            peak,
            growing,
            kill_every,
            grace,
        };
        eprintln!("HAProxy {}, {}", settings.series, settings.plane.name());
        let report = run(&settings, show).await;
        // What comes after it may break off.
        eprintln!("{}", table(std::slice::from_ref(&report)));
        reports.push(report);
    }
    let default = if std::io::stdout().is_terminal() { Output::Text } else { Output::Json };
    match arguments.output.unwrap_or(default) {
        Output::Text => println!("{}", table(&reports)),
        Output::Json => println!("{}", serde_json::to_string_pretty(&reports).unwrap()),
    }
    if reports.iter().all(|report| report.broken.is_empty()) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
