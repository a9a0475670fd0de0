//! What is printed on standard output.

use std::io::{IsTerminal, Write};

use anyhow::anyhow;

/// Whether a person reads it at a terminal, and NO_COLOR is not set.
pub(super) fn is_coloured() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none()
}

/// Red and green for a person at a terminal.
pub(super) fn coloured(text: &str) -> String {
    if is_coloured() { text.lines().map(painted).collect() } else { text.to_owned() }
}

/// How many reloads a pass made.
pub(super) fn reloads(reloads: u32) -> String {
    match reloads {
        0 => "no reload".to_owned(),
        1 => "one reload".to_owned(),
        more => format!("{more} reloads"),
    }
}

/// The error of a command whose `errors` are each that of one of `total` HAProxys; `None`: there is none. A single one
/// without a name has its own error; others were printed where they belong, and `what` says what did not happen.
pub(super) fn failure(
    mut errors: Vec<(String, anyhow::Error)>,
    total: usize,
    are_named: bool,
    what: &str,
) -> Option<anyhow::Error> {
    let (name, error) = errors.pop()?;
    Some(match (errors.len(), are_named) {
        (0, false) => error,
        (0, true) => anyhow!("{what} the HAProxy {name} of {total}"),
        (more, _) => anyhow!("{what} {} of {total} HAProxys", more + 1),
    })
}

/// What stands above the part of the output that is about one of several HAProxys.
pub(super) fn heading(name: &str) -> String {
    format!("# HAProxy {name}\n")
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

pub(super) fn print(text: &str) -> anyhow::Result<()> {
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
