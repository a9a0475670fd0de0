//! The command line.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use clap::{Parser, Subcommand, ValueEnum};
use tokio_util::task::TaskTracker;

use crate::apply::{self, Controller, Moment, Outcome, PassStatus};
use crate::catalog;
use crate::catalog::Source;
use crate::catalog::nomad::NomadCatalog;
use crate::config::{Config, PlaneSettings, Settings};
use crate::desired::Severity;
use crate::desired::build;
use crate::haproxy::text::ConfigText;
use crate::health::Health;
use crate::http;
use crate::metrics::Metrics;
use crate::nomad::Nomad;
use crate::observed::Observed;
use crate::plan;
use crate::plan::display::Summary;
use crate::plane::Plane;
use crate::plane::dataplane::Dataplane;
use crate::plane::local::Local;
use crate::{reconcile, shutdown, telemetry};

/// Keeps HAProxy in line with Nomad's native service catalog.
#[derive(Debug, Parser)]
#[command(name = "nomad-haproxy", version, about, max_term_width = 110)]
pub struct Cli {
    /// What to do
    #[command(subcommand)]
    pub command: Command,
    /// JSON file with settings; flags and environment go over it
    #[arg(long, short, global = true, env = "NOMAD_HAPROXY_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Settings
    #[command(flatten)]
    pub settings: Settings,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the controller: a pass at each change, until SIGTERM
    Run {
        /// Read the catalog from a file instead of Nomad, anew for each pass
        #[arg(long, value_name = "FILE")]
        catalog: Option<PathBuf>,
    },
    /// Print what a pass would change, and change nothing
    Plan {
        /// Read the catalog from a file instead of Nomad
        #[arg(long, value_name = "FILE")]
        catalog: Option<PathBuf>,
        /// Work offline, on this configuration file (with --catalog)
        #[arg(long = "haproxy-config", value_name = "FILE", requires = "catalog")]
        haproxy_config: Option<PathBuf>,
        /// Exit with 0 if nothing changes, 2 if something does, 3 if the guard would hold instances, 1 after an error
        #[arg(long)]
        detailed_exitcode: bool,
        /// How to print it
        #[arg(long, value_enum, default_value_t = Output::Text)]
        output: Output,
    },
    /// Run one pass
    Apply {
        /// Read the catalog from a file instead of Nomad
        #[arg(long, value_name = "FILE")]
        catalog: Option<PathBuf>,
        /// Only on this version of HAProxy's configuration, as `plan --output json` gives it
        #[arg(long, value_name = "VERSION")]
        expect_version: Option<u64>,
        /// Remove also the instances that the guard would hold
        #[arg(long)]
        allow_removals: bool,
    },
    /// Print the live catalog, as the file that --catalog takes
    Catalog,
}

/// How a plan is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// A unified diff and a summary.
    Text,
    /// For programs.
    Json,
}

/// Runs the command. The error is for a person to read.
pub async fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let Cli { command, config, settings } = cli;
    let settings = match config {
        Some(path) => settings.or(Settings::from_file(&path)?),
        None => settings,
    };
    telemetry::start(&settings.log)?;
    let config = Config::try_from(settings)?;
    match command {
        Command::Plan { catalog: Some(catalog), haproxy_config: Some(file), detailed_exitcode, output } => {
            let (summary, version) = offline(&config, &catalog, &file)?;
            print_plan(&summary, version, output)?;
            Ok(exit_code(&summary, detailed_exitcode))
        }
        Command::Catalog => {
            let read = source(&config, None)?.read(&std::collections::BTreeSet::new()).await?;
            print(&catalog::file::render(&read))?;
            // A file cannot say what is missing from it.
            let missing: Vec<String> = read.gaps().collect();
            anyhow::ensure!(missing.is_empty(), "this is not the whole catalog: {}", missing.join("; "));
            Ok(ExitCode::SUCCESS)
        }
        other => match config.plane.clone() {
            None => anyhow::bail!(
                "HAProxy is nowhere: set haproxy.address (HAPROXY_DATAPLANE_URL) for the Data Plane API, \
                 or haproxy.config_file (HAPROXY_CONFIG_FILE) for a HAProxy on this machine"
            ),
            Some(PlaneSettings::Local(settings)) => {
                with_plane(other, &config, Local::new(settings, config.owner.clone())).await
            }
            Some(PlaneSettings::Dataplane(settings, write)) => {
                with_plane(other, &config, Dataplane::new(settings, config.owner.clone(), write)?).await
            }
        },
    }
}

async fn with_plane<P: Plane + 'static>(command: Command, config: &Config, plane: P) -> anyhow::Result<ExitCode> {
    let mut options = options(config);
    if let Command::Apply { allow_removals: true, .. } = command {
        options.guard = plan::guard::Options::OFF;
    }
    let controller = |catalog: Option<PathBuf>| {
        let source = source(config, catalog)?;
        anyhow::Ok((Controller::new(plane, source.clone(), options), source))
    };
    match command {
        Command::Run { catalog } => {
            let (controller, source) = controller(catalog)?;
            serve(controller, source, config).await
        }
        Command::Plan { catalog, detailed_exitcode, output, haproxy_config: _ } => {
            let (summary, version) = controller(catalog)?.0.dry_run(Moment::now(true)).await?;
            print_plan(&summary, version, output)?;
            Ok(exit_code(&summary, detailed_exitcode))
        }
        Command::Apply { catalog, expect_version, allow_removals: _ } => {
            apply(controller(catalog)?.0, expect_version).await
        }
        Command::Catalog => unreachable!("the catalog needs no plane"),
    }
}

fn source(config: &Config, catalog: Option<PathBuf>) -> anyhow::Result<Source> {
    Ok(match catalog {
        Some(path) => Source::File(path),
        None => Source::Nomad(NomadCatalog::new(
            Nomad::new(config.nomad.clone())?,
            config.namespaces.clone(),
            config.prefix.clone(),
        )),
    })
}

fn options(config: &Config) -> apply::Options {
    let Config { prefix, owner, slots, strategy, linger, guard, reload_min_interval, .. } = config;
    apply::Options {
        // Which HAProxy it is, each pass learns.
        build: build::Options { prefix: prefix.clone(), owner: owner.clone(), slots: *slots, init_state: true },
        plan: plan::Options {
            owner: owner.clone(),
            strategy: *strategy,
            linger: *linger,
            now: Moment::now(true).clock,
        },
        guard: *guard,
        reload_min_interval: *reload_min_interval,
    }
}

async fn serve<P: Plane + 'static>(
    controller: Controller<P>,
    source: Source,
    config: &Config,
) -> anyhow::Result<ExitCode> {
    let stop = shutdown::on_signal()?;
    let listen = config.listen;
    let listener = http::bind(listen).await.with_context(|| format!("cannot listen on {listen} (http.listen)"))?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), listen = %listener.local_addr()?, "started");
    let (metrics, health) = (Arc::new(Metrics::default()), Arc::new(Health::default()));
    let tasks = TaskTracker::new();
    let server = tasks.spawn(http::serve(listener, metrics.clone(), health.clone(), stop.clone()));
    reconcile::run(controller, source, config.timings, metrics, health, stop.clone()).await;
    stop.cancel();
    tasks.close();
    tasks.wait().await;
    server.await?.context("the HTTP listener failed")?;
    Ok(ExitCode::SUCCESS)
}

async fn apply<P: Plane>(mut controller: Controller<P>, expect: Option<u64>) -> anyhow::Result<ExitCode> {
    let status = controller.pass(Moment::now(true), expect).await;
    let PassStatus { written, notes, namespaces, guard, told, reloads, version, next, .. } = &status;
    let mut text = match written.as_slice() {
        [] => {
            let notes = notes.iter().map(ToString::to_string).chain(namespaces.iter().map(ToString::to_string));
            notes.chain(guard.iter().map(ToString::to_string)).fold(String::new(), |text, line| text + &line + "\n")
        }
        written => written.iter().map(|summary| coloured(&summary.to_string())).collect(),
    };
    let how = match reloads {
        0 => "no reload".to_owned(),
        1 => "one reload".to_owned(),
        more => format!("{more} reloads"),
    };
    text += &match status.outcome() {
        Outcome::Unchanged => format!("Nothing to do: HAProxy is in line with the catalog (version {version}).\n"),
        Outcome::Applied => format!("Applied: {how}, version {version}.\n"),
        Outcome::Repaired => {
            format!(
                "Repaired: the process agrees with its file again, {told} run-time changes, {how}, version {version}.\n"
            )
        }
        Outcome::Failed => format!("Not all was done; {}.\n", status.done()),
    };
    if let Some(at) = next.filter(|_| status.error.is_none()) {
        let wait = std::time::Duration::from_secs(at.saturating_duration_since(std::time::Instant::now()).as_secs());
        text += &format!("More is due in {}: run this again then.\n", humantime::format_duration(wait));
    }
    print(&text)?;
    if let Some(error) = status.error {
        return Err(error.into());
    }
    // Whoever runs one pass wants to know that a service is not routed as asked.
    let errors = status.notes.iter().any(|note| note.severity == Severity::Error) || !status.namespaces.is_empty();
    Ok(if errors { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// A plan from two files: no Nomad, no HAProxy.
fn offline(config: &Config, catalog: &std::path::Path, file: &std::path::Path) -> anyhow::Result<(Summary, u64)> {
    let catalog = catalog::file::read(catalog)?;
    let text = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let text = ConfigText::from_bytes(&text);
    let observed = Observed::new(text.version().unwrap_or(0), text, &config.owner);
    let apply::Options { build, plan, guard, .. } = options(config);
    let mut built = build::build(&catalog, &build);
    let holding = plan::guard::offline(&mut built, &observed, &guard);
    let mut draft = apply::Draft::new(&built, &observed, &plan, &std::collections::BTreeSet::new())?;
    draft.guard = holding;
    Ok((draft.summary(&observed, &draft.after.text), observed.version))
}

fn print_plan(summary: &Summary, version: u64, output: Output) -> anyhow::Result<()> {
    match output {
        Output::Text => print(&coloured(&summary.to_string())),
        Output::Json => {
            let mut json = serde_json::to_value(summary)?;
            json["version"] = version.into();
            print(&(serde_json::to_string_pretty(&json)? + "\n"))
        }
    }
}

fn exit_code(summary: &Summary, detailed: bool) -> ExitCode {
    match summary {
        Summary { blocked: Some(_), .. } => ExitCode::FAILURE,
        Summary { guard: Some(_), .. } if detailed => ExitCode::from(3),
        Summary { changes: true, .. } if detailed => ExitCode::from(2),
        _ => ExitCode::SUCCESS,
    }
}

/// Red and green for a person at a terminal, who has not said NO_COLOR.
fn coloured(text: &str) -> String {
    if !std::io::stdout().is_terminal() || std::env::var_os("NO_COLOR").is_some() {
        return text.to_owned();
    }
    let paint = |line: &str| match line.as_bytes().first() {
        Some(b'+') => format!("\x1b[32m{line}\x1b[0m\n"),
        Some(b'-') => format!("\x1b[31m{line}\x1b[0m\n"),
        Some(b'@') => format!("\x1b[36m{line}\x1b[0m\n"),
        _ => format!("{line}\n"),
    };
    text.lines().map(paint).collect()
}

fn print(text: &str) -> anyhow::Result<()> {
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        // `nomad-haproxy plan | head` is no error.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        result => Ok(result?),
    }
}
