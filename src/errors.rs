//! How errors are printed.

use std::fmt::Write as _;

/// An error with all its sources in one line.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let _ = write!(text, ": {cause}");
        source = cause.source();
    }
    text
}

/// The kind of an error: the error with its first source. The sources below that vary: a server that is down first
/// resets connections, then refuses them.
pub fn kind(error: &(dyn std::error::Error + 'static)) -> String {
    error.source().map_or_else(|| error.to_string(), |source| format!("{error}: {source}"))
}

/// A text as one line: text from outside must not start a line of its own in a log.
pub fn one_line(text: &str) -> String {
    let lines: Vec<&str> = text.split(char::is_control).map(str::trim).filter(|part| !part.is_empty()).collect();
    lines.join(" ")
}
