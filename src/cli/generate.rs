//! What is made from the definition of the command line itself: shell completions and man pages.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{CommandFactory, Subcommand};
use clap_complete::Shell;

use super::Cli;
use super::print::print;

/// What packages hold beside the executable.
#[derive(Debug, Subcommand)]
pub enum Generate {
    /// Print the completions for a shell
    #[command(hide = true)]
    Completions {
        /// The shell that sources them
        shell: Shell,
    },
    /// Write the man pages
    #[command(hide = true)]
    Man {
        /// Where to
        folder: PathBuf,
    },
}

impl Generate {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Self::Completions { shell } => completions(shell)?,
            Self::Man { folder } => man(&folder)?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Prints what this shell sources.
fn completions(shell: Shell) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), env!("CARGO_PKG_NAME"), &mut script);
    print(&String::from_utf8(script).context("the script is not text")?)
}

/// Writes a page for the program and one for each command. The settings, which the short help leaves out, are in it.
fn man(folder: &Path) -> anyhow::Result<()> {
    let write = || {
        std::fs::create_dir_all(folder)?;
        clap_mangen::generate_to(Cli::command().mut_args(|arg| arg.hide_short_help(false)), folder)
    };
    write().with_context(|| format!("cannot write the man pages to {}", folder.display()))
}
