//! Parses, runs, and maps the outcome to an exit code.

use std::process::ExitCode;

use clap::Parser;
use nomad_haproxy::cli::{self, Cli};

#[tokio::main]
async fn main() -> ExitCode {
    match cli::run(Cli::parse()).await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {}", nomad_haproxy::errors::chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}
