//! What is made from the definition of the command line itself: shell completions and man pages.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use clap::CommandFactory;
use clap_complete::Shell;

use super::Cli;
use super::print::print;

/// Prints what this shell sources.
pub(super) fn completions(shell: Shell) -> anyhow::Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), env!("CARGO_PKG_NAME"), &mut script);
    print(&String::from_utf8(script).context("the script is not text")?)?;
    Ok(ExitCode::SUCCESS)
}

/// Writes a page for the program and one for each command. The settings, which the short help leaves out, are in it.
pub(super) fn man(folder: &Path) -> anyhow::Result<ExitCode> {
    let write = || {
        std::fs::create_dir_all(folder)?;
        clap_mangen::generate_to(Cli::command().mut_args(|arg| arg.hide_short_help(false)), folder)
    };
    write().with_context(|| format!("cannot write the man pages to {}", folder.display()))?;
    Ok(ExitCode::SUCCESS)
}
