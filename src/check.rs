//! `check`: proves part by part that the controller can do its work, or names what is in the way and what to do about it.
//!
//! It reads, and has HAProxy validate the configuration that it has. It takes no lock, writes nothing to HAProxy, and
//! nothing to Nomad.

pub mod haproxy;
pub mod nomad;

use std::fmt;

use serde::Serialize;

use crate::errors::{chain, one_line};

/// What precedes the advice in a message that has one.
const HINT: &str = "; hint: ";

/// How a part is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it has to be.
    Ok,
    /// It works, and is not as it should be.
    Warning,
    /// The controller cannot do its work.
    Failed,
    /// Not examined, as something before it failed.
    Skipped,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Failed => "FAILED",
            Self::Skipped => "skipped",
        })
    }
}

/// What was found out about one part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Which part, such as `token`.
    pub part: &'static str,
    /// How it is.
    pub verdict: Verdict,
    /// One sentence.
    pub text: String,
    /// What to do.
    pub hint: Option<String>,
}

impl Finding {
    /// With the advice that the text has at its end, if it has one.
    fn new(part: &'static str, verdict: Verdict, text: impl AsRef<str>) -> Self {
        let text = one_line(text.as_ref());
        let (text, hint) = match text.split_once(HINT) {
            Some((text, hint)) => (text.to_owned(), Some(hint.to_owned())),
            None => (text, None),
        };
        Self { part, verdict, text, hint }
    }

    fn ok(part: &'static str, text: impl AsRef<str>) -> Self {
        Self::new(part, Verdict::Ok, text)
    }

    fn warning(part: &'static str, text: impl AsRef<str>) -> Self {
        Self::new(part, Verdict::Warning, text)
    }

    /// It failed, with this message.
    pub fn failed(part: &'static str, text: impl AsRef<str>) -> Self {
        Self::new(part, Verdict::Failed, text)
    }

    /// It failed, with this error and its sources.
    fn of(part: &'static str, error: &(dyn std::error::Error + 'static)) -> Self {
        let own = error.to_string();
        let sources = chain(error).split_off(own.len());
        let mut finding = Self::failed(part, own);
        finding.text.push_str(&one_line(&sources));
        finding
    }

    fn skipped(part: &'static str, text: impl AsRef<str>) -> Self {
        Self::new(part, Verdict::Skipped, text)
    }

    /// With this advice, unless its text had one.
    #[must_use]
    pub fn or_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint.get_or_insert_with(|| hint.into());
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("it is broken; hint: mend it")]
    struct Broken(#[source] std::io::Error);

    #[test]
    fn the_advice_of_an_error_is_apart_from_it_and_from_its_sources() {
        let finding = Finding::of("a", &Broken(std::io::Error::other("rust")));
        assert_eq!((finding.text.as_str(), finding.hint.as_deref()), ("it is broken: rust", Some("mend it")));
    }

    #[test]
    fn the_advice_of_a_message_is_apart_from_it() {
        let finding = Finding::failed("a", "it is\nbroken; hint: mend it").or_hint("throw it away");
        assert_eq!((finding.text.as_str(), finding.hint.as_deref()), ("it is broken", Some("mend it")));
        assert_eq!(Finding::ok("a", "good").or_hint("go on").hint.as_deref(), Some("go on"));
    }
}
