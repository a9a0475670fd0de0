//! The log, on standard error: text for people, JSON for programs.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::config::{ConfigError, LogFormat, LogSettings};

/// Starts logging.
pub fn start(settings: &LogSettings) -> Result<(), ConfigError> {
    let level = settings.level.as_deref().unwrap_or("info");
    let filter = EnvFilter::try_new(level).map_err(|error| ConfigError::Setting {
        name: "log.level (NOMAD_HAPROXY_LOG_LEVEL)",
        why: format!("{error}; error, warn, info, debug or trace"),
    })?;
    let terminal = std::io::stderr().is_terminal();
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(terminal);
    match settings.format.unwrap_or(if terminal { LogFormat::Text } else { LogFormat::Json }) {
        LogFormat::Text => builder.with_target(false).init(),
        // There is one span, the pass's; a list of spans would repeat each of its fields.
        LogFormat::Json => builder.json().flatten_event(true).with_span_list(false).init(),
    }
    Ok(())
}
