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

/// What kind of error it is: the error with its first source. The sources below that say how it showed this time: one
/// and the same server that is down resets a connection first, and then refuses it.
pub fn kind(error: &(dyn std::error::Error + 'static)) -> String {
    error.source().map_or_else(|| error.to_string(), |source| format!("{error}: {source}"))
}

/// A text as one line: what others wrote must not begin a line of its own in a log.
pub fn one_line(text: &str) -> String {
    let lines: Vec<&str> = text.split(char::is_control).map(str::trim).filter(|part| !part.is_empty()).collect();
    lines.join(" ")
}
