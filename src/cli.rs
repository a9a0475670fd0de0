//! The command line.

mod apply;
mod check;
mod explain;
mod generate;
mod plan;
mod print;
mod serve;
mod targets;
mod uninstall;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};

use crate::catalog;
use crate::config::{Config, Settings};
use crate::desired::{Owner, ServiceKey};
use crate::haproxy::version::Version;
use crate::leader::Lease;
use crate::plan::guard;
use crate::telemetry;
use generate::Generate;
use plan::Plans;

/// Keeps HAProxy in line with Nomad's native service catalog.
#[derive(Debug, Parser)]
#[command(name = "nomad-haproxy", version, about, max_term_width = 110)]
pub struct Cli {
    /// What to do
    #[command(subcommand)]
    pub command: Command,
    /// Settings file (JSON); flags and variables win
    #[arg(long, short, global = true, env = "NOMAD_HAPROXY_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Only this one of several HAProxys (plan, apply, check, explain, uninstall)
    #[arg(long = "haproxy", global = true, value_name = "NAME")]
    pub haproxy: Option<String>,
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
    /// With Nomad and HAProxy, as the settings have them.
    #[command(flatten)]
    Task(Task),
    /// With the command line alone.
    #[command(flatten)]
    Generate(Generate),
}

/// What the settings are for.
#[derive(Debug, Subcommand)]
pub enum Task {
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
        /// Plan to take over what another owner marked: what `haproxy.owner` was before, or `haproxy-nomad-connector`
        #[arg(long, value_name = "OWNER")]
        adopt: Option<Owner>,
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
        /// Take over what another owner marked: what `haproxy.owner` was before, or `haproxy-nomad-connector`
        #[arg(long, value_name = "OWNER")]
        adopt: Option<Owner>,
        /// Write also while another controller has the lock of `leader.lock`
        #[arg(long)]
        no_lock: bool,
    },
    /// Remove everything of ours from HAProxy, after showing it: end the controller first
    Uninstall {
        /// Do not ask
        #[arg(long)]
        yes: bool,
        /// Remove it also while another controller has the lock of `leader.lock`
        #[arg(long)]
        no_lock: bool,
    },
    /// Prove that Nomad and each HAProxy can be worked with, or say what is in the way
    Check {
        /// How to print it
        #[arg(long, value_enum, default_value_t = Output::Text)]
        output: Output,
    },
    /// Say why a service is, or is not, routed
    Explain {
        /// The service; in another namespace than `default`: NAMESPACE/NAME
        // `service` is the setting haproxy.service.
        #[arg(id = "explained", value_name = "SERVICE")]
        service: ServiceKey,
        /// Read the catalog from a file instead of Nomad
        #[arg(long, value_name = "FILE")]
        catalog: Option<PathBuf>,
        /// How to print it
        #[arg(long, value_enum, default_value_t = Output::Text)]
        output: Output,
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
    let Cli { command, config, haproxy, settings } = cli;
    let task = match command {
        Command::Generate(what) => return what.run(),
        Command::Task(task) => task,
    };
    let settings = match config {
        Some(path) => settings.or(Settings::from_file(&path)?),
        None => settings,
    };
    let level = telemetry::start(&settings.log)?;
    let mut config = Config::try_from(settings)?;
    if config.nomad.tls.skip_verify {
        tracing::warn!(
            "Nomad's certificate is not checked (nomad.skip_verify, NOMAD_SKIP_VERIFY): anybody on the way can read the \
             token, and say what is routed where"
        );
    }
    if let Task::Plan { allow_removals: true, .. } | Task::Apply { allow_removals: true, .. } = task {
        config.guard = guard::Options::OFF;
    }
    if let Task::Plan { adopt: Some(other), .. } | Task::Apply { adopt: Some(other), .. } = &task {
        config.targets.adopt(other)?;
    }
    match task {
        Task::Catalog => {
            let read = targets::catalog(&config, None)?.source().read(&BTreeSet::new(), true).await?.catalog;
            print::print(&catalog::file::render(&read))?;
            // A file has no record of what is missing from it.
            let missing: Vec<String> = read.gaps().collect();
            anyhow::ensure!(missing.is_empty(), "this is not the whole catalog: {}", missing.join("; "));
            Ok(ExitCode::SUCCESS)
        }
        Task::Explain { service, catalog, output } => {
            explain::run(&config, haproxy.as_deref(), catalog, &service, output).await
        }
        Task::Check { output } => check::check(&config, haproxy.as_deref(), output).await,
        Task::Uninstall { yes, no_lock } => {
            let work = async |lease: &Lease| {
                uninstall::uninstall(targets::removers(&config, haproxy.as_deref(), lease).await?, yes).await
            };
            targets::with_lock(&config, no_lock, work).await
        }
        Task::Run { catalog } => {
            anyhow::ensure!(haproxy.is_none(), "`run` is for all HAProxys of the settings: it takes no --haproxy");
            serve::serve(&config, catalog, level).await
        }
        Task::Plan {
            catalog,
            haproxy_config,
            haproxy_version,
            detailed_exitcode,
            output,
            out,
            allow_removals: _,
            adopt: _,
        } => {
            let plans = match (catalog, haproxy_config) {
                (Some(catalog), Some(file)) => {
                    Plans::offline(&config, haproxy.as_deref(), &catalog, &file, haproxy_version)?
                }
                (catalog, _) => {
                    // What it stages it discards, so it takes no lock.
                    let always = Lease::ALWAYS;
                    Plans::of(targets::controllers(&config, haproxy.as_deref(), catalog, &always).await?).await
                }
            };
            plans.show(output, out.as_deref())?;
            plans.exit_code(detailed_exitcode)
        }
        Task::Apply { catalog, plan, strict, allow_removals: _, adopt: _, no_lock } => {
            let work = async |lease: &Lease| {
                let controllers = targets::controllers(&config, haproxy.as_deref(), catalog, lease).await?;
                apply::apply(controllers, haproxy.as_deref(), plan.as_deref(), strict).await
            };
            targets::with_lock(&config, no_lock, work).await
        }
    }
}
