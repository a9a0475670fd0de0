//! Parses, runs, and maps the outcome to an exit code.

use std::process::ExitCode;

use nomad_haproxy::cli::{self, Cli};

fn main() -> ExitCode {
    let cli = match Cli::read(std::env::args_os()) {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: cannot start the asynchronous runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(run(cli));
    // Do not wait for blocked threads, such as one in a name lookup that gets no answer.
    runtime.shutdown_background();
    code
}

async fn run(cli: Cli) -> ExitCode {
    match cli::run(cli).await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {}", nomad_haproxy::errors::chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}
