//! The log, on standard error: text for people, JSON for programs. Its level can be changed while the controller runs.

use std::fmt;
use std::io::IsTerminal;
use std::sync::{Arc, Mutex, PoisonError};

use thiserror::Error;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::reload;

use crate::config::{ConfigError, LogFormat, LogSettings};

/// The level without a setting for it.
const DEFAULT: &str = "info";
/// What SIGUSR1 sets.
const DEBUG: &str = "debug";
/// The words for a level without a filter.
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// A level, or a filter, that is none.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{why}; use error, warn, info, debug or trace, or a filter such as `info,nomad_haproxy=debug`")]
pub struct BadLevel {
    why: String,
}

/// To tracing-subscriber a word that is no level is a target, all of whose lines are logged. Here it is a level with a
/// typing error.
fn filter(text: &str) -> Result<EnvFilter, BadLevel> {
    let is_level = |part: &str| LEVELS.iter().any(|level| level.eq_ignore_ascii_case(part.trim()));
    if let Some(part) = text.split(',').find(|part| !is_level(part) && !part.contains(['=', '[', ']'])) {
        return Err(BadLevel { why: format!("{part:?} is not a level") });
    }
    EnvFilter::try_new(text).map_err(|error| BadLevel { why: error.to_string() })
}

type Reload = dyn Fn(EnvFilter) -> Result<(), reload::Error> + Send + Sync;

/// The level of the log that runs.
#[derive(Clone)]
pub struct LogLevel(Arc<Inner>);

struct Inner {
    /// That of the settings.
    configured: String,
    now: Mutex<String>,
    reload: Box<Reload>,
}

impl fmt::Debug for LogLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LogLevel").field(&self.get()).finish()
    }
}

impl LogLevel {
    fn new(configured: &str, reload: impl Fn(EnvFilter) -> Result<(), reload::Error> + Send + Sync + 'static) -> Self {
        let now = Mutex::new(configured.to_owned());
        Self(Arc::new(Inner { configured: configured.to_owned(), now, reload: Box::new(reload) }))
    }

    /// The level, or the filter, as it was given.
    pub fn get(&self) -> String {
        self.0.now.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sets another one, and returns the one before.
    pub fn set(&self, level: &str) -> Result<String, BadLevel> {
        let filter = filter(level)?;
        let mut now = self.0.now.lock().unwrap_or_else(PoisonError::into_inner);
        // The line is written while the log takes it: before a change to a quieter level, after one to a more verbose one.
        let is_seen = tracing::enabled!(tracing::Level::INFO);
        let log = |before: &str| tracing::info!(level, before, "the level of the log changes");
        if is_seen {
            log(&now);
        }
        (self.0.reload)(filter).map_err(|error| BadLevel { why: error.to_string() })?;
        if !is_seen {
            log(&now);
        }
        Ok(std::mem::replace(&mut *now, level.to_owned()))
    }

    /// To `debug`, and from there to that of the settings.
    fn toggle(&self) {
        let level = match self.get().as_str() {
            DEBUG if self.0.configured == DEBUG => DEFAULT,
            DEBUG => &self.0.configured,
            _ => DEBUG,
        };
        if let Err(error) = self.set(level) {
            tracing::warn!(%error, "cannot change the level of the log");
        }
    }

    /// From now on each SIGUSR1 sets `debug`, and the next one the level of the settings again.
    pub fn toggle_on_signal(&self) -> std::io::Result<()> {
        let (level, mut signals) = (self.clone(), signal(SignalKind::user_defined1())?);
        tokio::spawn(async move {
            while signals.recv().await.is_some() {
                level.toggle();
            }
        });
        Ok(())
    }
}

/// Starts logging.
pub fn start(settings: &LogSettings) -> Result<LogLevel, ConfigError> {
    let level = settings.level.as_deref().unwrap_or(DEFAULT);
    let filter = filter(level).map_err(|error| ConfigError::Setting {
        name: "log.level (NOMAD_HAPROXY_LOG_LEVEL)",
        why: error.to_string(),
    })?;
    let terminal = std::io::stderr().is_terminal();
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(terminal);
    Ok(match settings.format.unwrap_or(if terminal { LogFormat::Text } else { LogFormat::Json }) {
        LogFormat::Text => {
            let builder = builder.with_target(false).with_filter_reloading();
            let handle = builder.reload_handle();
            builder.init();
            LogLevel::new(level, move |filter| handle.reload(filter))
        }
        LogFormat::Json => {
            // There is one span, the pass's; a list of spans would repeat each of its fields.
            let builder = builder.json().flatten_event(true).with_span_list(false).with_filter_reloading();
            let handle = builder.reload_handle();
            builder.init();
            LogLevel::new(level, move |filter| handle.reload(filter))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A level whose filters are only recorded.
    fn level(configured: &str) -> (LogLevel, Arc<Mutex<Vec<String>>>) {
        let set = Arc::new(Mutex::new(Vec::new()));
        let seen = set.clone();
        let reload = move |filter: EnvFilter| {
            set.lock().expect("no panic").push(filter.to_string());
            Ok(())
        };
        (LogLevel::new(configured, reload), seen)
    }

    #[test]
    fn a_level_or_a_filter_is_set_and_anything_else_changes_nothing() {
        let (level, set) = level("info");
        assert_eq!(level.set("warn").as_deref(), Ok("info"));
        assert_eq!(level.set("info,nomad_haproxy=debug").as_deref(), Ok("warn"));
        for bad in ["debgu", "", "info,", "nomad_haproxy", "a=b=c"] {
            let error = level.set(bad).expect_err(bad).to_string();
            assert!(error.contains("use error, warn, info, debug or trace"), "{error}");
        }
        assert_eq!(level.get(), "info,nomad_haproxy=debug");
        assert_eq!(set.lock().expect("no panic").len(), 2);
    }

    #[test]
    fn the_signal_changes_to_debug_and_back() {
        for (configured, expected) in [("warn", ["debug", "warn", "debug"]), ("debug", ["info", "debug", "info"])] {
            let (level, _) = level(configured);
            let seen = expected.map(|_| {
                level.toggle();
                level.get()
            });
            assert_eq!(seen, expected);
        }
        let (level, _) = level("info");
        level.set("error").expect("a level");
        level.toggle();
        assert_eq!(level.get(), "debug");
    }
}
