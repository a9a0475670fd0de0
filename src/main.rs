//! Parses, runs, and maps the outcome to an exit code.

use std::process::ExitCode;

use nomad_haproxy::cli::{self, Cli};

#[tokio::main]
async fn main() -> ExitCode {
    let cli = match Cli::read(std::env::args_os()) {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    match cli::run(cli).await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {}", nomad_haproxy::errors::chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}
