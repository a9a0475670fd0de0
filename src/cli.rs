//! The command line.

use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use tokio_util::task::TaskTracker;

use crate::apply::{self, Controller, DryRun, Moment, Outcome, PassStatus};
use crate::catalog;
use crate::catalog::Source;
use crate::catalog::nomad::NomadCatalog;
use crate::config::{Config, PlaneSettings, Settings};
use crate::desired::Severity;
use crate::desired::build;
use crate::haproxy::text::ConfigText;
use crate::haproxy::version::Version;
use crate::health::Health;
use crate::http;
use crate::metrics::Metrics;
use crate::nomad::Nomad;
use crate::observed::Observed;
use crate::plan;
use crate::plan::display::Summary;
use crate::plan::review::Review;
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

impl Cli {
    /// Reads the command line, then the environment. If there is nothing to run (wrong usage, no command, the help),
    /// the message is printed and the error is the exit code: 1, or 0 if the help was requested.
    pub fn read(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, ExitCode> {
        // Shells, systemd and compose files set empty variables for settings that are not set.
        let set = |arg: clap::Arg| {
            let is_empty = arg.get_env().and_then(std::env::var_os).is_some_and(|value| value.is_empty());
            if is_empty { arg.env(None) } else { arg }
        };
        let mut command = Self::command().mut_args(set);
        let parsed = command.try_get_matches_from_mut(arguments).and_then(|matches| {
            let mut cli = Self::from_arg_matches(&matches)?;
            cli.settings.prefer_flags(|id| matches.value_source(id) == Some(ValueSource::CommandLine));
            Ok(cli)
        });
        parsed.map_err(|answer| {
            match answer.kind() {
                // clap prints the help only if no variable is set either.
                ErrorKind::MissingSubcommand => eprint!("{}", command.render_help()),
                _ => drop(answer.print()),
            }
            // clap's own code for wrong usage is 2, which `plan` uses for changes.
            if answer.use_stderr() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
        })
    }
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the controller: a pass at each change, until SIGTERM
    Run {
        /// Read the catalog from a file instead of Nomad, again for each pass
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
        /// With it: the HAProxy that the configuration is for, 3.0 or newer [default: the newest]
        #[arg(long, value_name = "X.Y", value_parser = Version::gate, requires = "haproxy_config")]
        haproxy_version: Option<Version>,
        /// Exit with 0 if nothing changes, 2 if something does, 3 if the guard would hold instances, 1 after an error
        #[arg(long)]
        detailed_exitcode: bool,
        /// How to print it
        #[arg(long, value_enum, default_value_t = Output::Text)]
        output: Output,
        /// Keep the plan in this file, for `apply --plan FILE`
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
        /// Plan to remove also the instances that the guard would hold
        #[arg(long)]
        allow_removals: bool,
    },
    /// Run one pass
    Apply {
        /// Read the catalog from a file instead of Nomad
        #[arg(long, value_name = "FILE")]
        catalog: Option<PathBuf>,
        /// Only what `plan --out FILE` kept: nothing, if the configuration or what would be written differs
        #[arg(long, value_name = "FILE")]
        plan: Option<PathBuf>,
        /// Exit with 1 also if a service, or an instance of one, is not routed as asked
        #[arg(long)]
        strict: bool,
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

/// Runs the command. The error is for people to read.
pub async fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let Cli { command, config, settings } = cli;
    let settings = match config {
        Some(path) => settings.or(Settings::from_file(&path)?),
        None => settings,
    };
    telemetry::start(&settings.log)?;
    let mut config = Config::try_from(settings)?;
    if let Command::Plan { allow_removals: true, .. } | Command::Apply { allow_removals: true, .. } = command {
        config.guard = plan::guard::Options::OFF;
    }
    match command {
        Command::Plan {
            catalog: Some(catalog),
            haproxy_config: Some(file),
            haproxy_version,
            detailed_exitcode,
            output,
            out,
            allow_removals: _,
        } => {
            let plan = offline(&config, &catalog, &file, haproxy_version)?;
            show(&plan, output, out.as_deref())?;
            Ok(exit_code(&plan.summary, detailed_exitcode))
        }
        Command::Catalog => {
            let read = source(&config, None)?.read(&std::collections::BTreeSet::new()).await?;
            print(&catalog::file::render(&read))?;
            // A file has no record of what is missing from it.
            let missing: Vec<String> = read.gaps().collect();
            anyhow::ensure!(missing.is_empty(), "this is not the whole catalog: {}", missing.join("; "));
            Ok(ExitCode::SUCCESS)
        }
        other => match config.plane.clone() {
            None => anyhow::bail!(
                "no HAProxy is configured: set haproxy.address (HAPROXY_DATAPLANE_URL) for the Data Plane API, \
                 or haproxy.config_file (HAPROXY_CONFIG_FILE) for a HAProxy on this machine"
            ),
            Some(PlaneSettings::Local(settings)) => {
                let plane = Local::new(settings, config.owner.clone());
                with_plane(other, &config, plane.validating_within(config.validation_timeout)).await
            }
            Some(PlaneSettings::Dataplane(settings, write)) => {
                let plane = Dataplane::new(settings, config.owner.clone(), write)?;
                with_plane(other, &config, plane.validating_within(config.validation_timeout)).await
            }
        },
    }
}

async fn with_plane<P: Plane + 'static>(command: Command, config: &Config, plane: P) -> anyhow::Result<ExitCode> {
    let controller = |options: apply::Options, catalog: Option<PathBuf>| {
        let source = source(config, catalog)?;
        anyhow::Ok((Controller::new(plane, source.clone(), options), source))
    };
    match command {
        Command::Run { catalog } => {
            let (controller, source) = controller(options(config), catalog)?;
            serve(controller, source, config).await
        }
        Command::Plan { catalog, detailed_exitcode, output, out, .. } => {
            let plan = controller(options(config), catalog)?.0.dry_run(Moment::now(true)).await?;
            show(&plan, output, out.as_deref())?;
            Ok(exit_code(&plan.summary, detailed_exitcode))
        }
        Command::Apply { catalog, plan, strict, allow_removals: _ } => {
            let (review, mut options) = (plan.as_deref().map(reviewed).transpose()?, options(config));
            if let Some(review) = &review
                && !options.plan.linger.is_zero()
            {
                // A backend that was to stay when the plan was made still stays.
                options.plan.linger = options.plan.linger.saturating_add(review.age(options.plan.now));
            }
            apply(controller(options, catalog)?.0, review.as_ref(), strict).await
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
    let Config { prefix, grants, owner, slots, strategy, linger, guard, reload_min_interval, .. } = config;
    apply::Options {
        // Each pass reads the version of its HAProxy.
        build: build::Options {
            prefix: prefix.clone(),
            owner: owner.clone(),
            slots: *slots,
            init_state: true,
            lingers: !linger.is_zero(),
            grants: grants.clone(),
        },
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

async fn apply<P: Plane>(
    mut controller: Controller<P>,
    review: Option<&Review>,
    strict: bool,
) -> anyhow::Result<ExitCode> {
    let status = controller.pass(Moment::now(true), review).await;
    let PassStatus { written, notes, namespaces, guard, run_time_changes, reloads, version, next, .. } = &status;
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
                "Repaired: the process agrees with its file again, {run_time_changes} run-time changes, {how}, version {version}.\n"
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
    let errors = status.notes.iter().any(|note| note.severity == Severity::Error) || !status.namespaces.is_empty();
    Ok(if strict && errors { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Reads a plan file.
fn reviewed(path: &Path) -> anyhow::Result<Review> {
    let wrong = || format!("cannot read the plan {}", path.display());
    let text = std::fs::read_to_string(path).with_context(wrong)?;
    Review::read(&text).with_context(wrong)
}

/// Writes a plan file, in one step. Only its owner may read it: a digest may be guessed.
fn keep(review: &Review, path: &Path) -> anyhow::Result<()> {
    let wrong = || format!("cannot write the plan {}", path.display());
    if std::fs::metadata(path).is_ok_and(|known| !known.is_file()) {
        return Err(anyhow::anyhow!("it is not a regular file").context(wrong()));
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // Its mode is 0600 (tempfile, "Security").
    let mut file = tempfile::NamedTempFile::new_in(folder).with_context(wrong)?;
    file.write_all(review.to_json()?.as_bytes()).with_context(wrong)?;
    file.persist(path).with_context(wrong)?;
    Ok(())
}

/// A plan from two files: without Nomad and HAProxy.
fn offline(config: &Config, catalog: &Path, file: &Path, version: Option<Version>) -> anyhow::Result<DryRun> {
    let catalog = catalog::file::read(catalog)?;
    let text = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let text = ConfigText::from_bytes(&text);
    let observed = Observed::new(text.version().unwrap_or(0), text, &config.owner);
    let apply::Options { mut build, plan, guard, .. } = options(config);
    build.init_state = version.is_none_or(Version::has_init_state);
    let mut built = build::build(&catalog, &observed.present(), &build);
    let holding = plan::guard::offline(&mut built, &observed, &guard);
    let mut draft = apply::Draft::new(&built, &observed, &plan, &plan::LeftOut::default())?;
    draft.guard = holding;
    Ok(DryRun {
        summary: draft.summary(&observed, &draft.after.text),
        version: observed.version,
        review: Review::new(&draft.plan, &observed, &config.owner, plan.now),
    })
}

/// Prints a plan, and keeps it if it can be applied.
fn show(plan: &DryRun, output: Output, out: Option<&Path>) -> anyhow::Result<()> {
    let DryRun { summary, version, review } = plan;
    match output {
        Output::Text => print(&coloured(&summary.to_string()))?,
        Output::Json => {
            let mut json = serde_json::to_value(summary)?;
            json["version"] = (*version).into();
            print(&(serde_json::to_string_pretty(&json)? + "\n"))?;
        }
    }
    let Some(path) = out.filter(|_| summary.blocked.is_none()) else { return Ok(()) };
    keep(review, path)?;
    if output == Output::Text {
        let path = path.display();
        print(&format!("The plan is kept in {path}: `nomad-haproxy apply --plan {path}` applies just that.\n"))?;
    }
    Ok(())
}

fn exit_code(summary: &Summary, detailed: bool) -> ExitCode {
    match summary {
        Summary { blocked: Some(_), .. } => ExitCode::FAILURE,
        Summary { guard: Some(_), .. } if detailed => ExitCode::from(3),
        Summary { changes: true, .. } if detailed => ExitCode::from(2),
        _ => ExitCode::SUCCESS,
    }
}

/// Red and green for a person at a terminal, unless NO_COLOR is set.
fn coloured(text: &str) -> String {
    if !std::io::stdout().is_terminal() || std::env::var_os("NO_COLOR").is_some() {
        return text.to_owned();
    }
    text.lines().map(painted).collect()
}

/// A line of a diff for a terminal. The metadata of a server is dimmed: it is for the controller.
fn painted(line: &str) -> String {
    let colour = match line.as_bytes().first() {
        Some(b'+') => "\x1b[32m",
        Some(b'-') => "\x1b[31m",
        Some(b'@') => "\x1b[36m",
        _ => "",
    };
    let is_server = line.get(1..).is_some_and(|line| line.trim_start().starts_with("server "));
    let (words, metadata) = match line.find(" # {").filter(|_| is_server) {
        Some(at) => line.split_at(at),
        None => (line, ""),
    };
    let dim = if metadata.is_empty() { "" } else { "\x1b[2m" };
    let end = if colour.is_empty() && dim.is_empty() { "" } else { "\x1b[0m" };
    format!("{colour}{words}{dim}{metadata}{end}\n")
}

fn print(text: &str) -> anyhow::Result<()> {
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        // `nomad-haproxy plan | head` is no error.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        result => Ok(result?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_a_terminal_changes_have_colours_and_metadata_is_dimmed() {
        assert_eq!(painted("Plan: nothing"), "Plan: nothing\n");
        assert_eq!(painted("+  mode http # {mine}"), "\x1b[32m+  mode http # {mine}\x1b[0m\n");
        let server = "  server api_1 10.0.0.1:80";
        assert_eq!(
            painted(&format!("-{server} # {{\"id\":\"1\"}}")),
            format!("\x1b[31m-{server}\x1b[2m # {{\"id\":\"1\"}}\x1b[0m\n")
        );
        assert_eq!(painted(&format!(" {server} # {{}}")), format!(" {server}\x1b[2m # {{}}\x1b[0m\n"));
        assert_eq!(painted(&format!(" {server}")), format!(" {server}\n"));
    }
}
