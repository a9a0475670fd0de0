//! Nomad's event stream, one line for each Raft entry that changed a service. It is lossy, and says so nowhere: a burst
//! ends it, what fell out of Nomad's buffer is skipped, and after a restore it may stay open without a word (seen).

use std::time::Duration;

use serde::Deserialize;

use crate::desired::ServiceKey;
use crate::nomad::{Lines, NomadError};

use super::job::JobKey;
use super::ledger::Line;

/// A stream that is open begins with a line at once. One that is denied has none, and may stay open (seen).
const FIRST_LINE: Duration = Duration::from_secs(5);
/// Nomad sends a line at least each 30 s.
const SILENCE: Duration = Duration::from_secs(45);

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[derive(Default)]
struct Document {
    index: u64,
    events: Vec<Event>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Event {
    topic: String,
    #[serde(default)]
    payload: Option<Payload>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Payload {
    #[serde(default)]
    service: Option<Named>,
    #[serde(default)]
    job: Option<NamedJob>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct NamedJob {
    #[serde(rename = "ID")]
    id: String,
    namespace: String,
}

/// What a line says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Said {
    /// The index of what happened.
    pub(super) index: u64,
    /// Of services, if it does.
    pub(super) services: Option<Line>,
    /// The jobs that were registered or deregistered.
    pub(super) jobs: Vec<JobKey>,
}

/// Nothing else of a registration is taken from an event.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Named {
    service_name: String,
    namespace: String,
}

/// An open stream.
#[derive(Debug)]
pub(super) struct Events {
    lines: Lines,
    first: Option<Vec<u8>>,
}

impl Events {
    /// Waits for the first line: only then Nomad has looked at the token, and no later event is missed.
    pub(super) async fn open(mut lines: Lines) -> Result<Self, NomadError> {
        let first = Some(lines.next(FIRST_LINE).await?);
        Ok(Self { lines, first })
    }

    /// The next line that is no heartbeat.
    pub(super) async fn next(&mut self) -> Result<Said, NomadError> {
        loop {
            let line = match self.first.take() {
                Some(line) => line,
                None => self.lines.next(SILENCE).await?,
            };
            match parse(&line) {
                Ok(Some(said)) => return Ok(said),
                Ok(None) => {}
                Err(source) => return Err(NomadError::Form { path: "/v1/event/stream".to_owned(), source }),
            }
        }
    }
}

/// `None`: a heartbeat, or nothing about services and jobs. The type of an event does not tell what it is about: that of a
/// deregistration is `PlanResult` if its node is down (seen).
fn parse(line: &[u8]) -> Result<Option<Said>, serde_json::Error> {
    let Document { index, events } = serde_json::from_slice(line)?;
    let (of_services, others): (Vec<_>, Vec<_>) = events.into_iter().partition(|event| event.topic == "Service");
    let of_jobs = others.into_iter().filter(|event| event.topic == "Job");
    let named = of_jobs.filter_map(|event| event.payload?.job);
    let jobs: Vec<JobKey> = named.map(|NamedJob { id, namespace }| (namespace, id)).collect();
    let services: Vec<Option<ServiceKey>> = of_services
        .into_iter()
        .map(|event| {
            let Named { service_name, namespace } = event.payload?.service?;
            Some(ServiceKey { namespace, name: service_name })
        })
        .collect();
    let services = (!services.is_empty()).then_some(Line { index, services });
    Ok((services.is_some() || !jobs.is_empty()).then_some(Said { index, services, jobs }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Option<Line> {
        parse(line.as_bytes()).expect("a line").and_then(|said| said.services)
    }

    #[test]
    fn a_job_that_was_registered_is_named() {
        let line = r#"{"Index": 7, "Events": [{"Topic": "Job", "Type": "JobRegistered", "Payload": {"Job": {"ID": "web/a", "Namespace": "team-a"}}}]}"#;
        let said = parse(line.as_bytes()).expect("a line").expect("no heartbeat");
        assert_eq!(said, Said { index: 7, services: None, jobs: vec![("team-a".into(), "web/a".into())] });
    }

    #[test]
    fn a_line_names_services_whatever_the_types_of_its_events() {
        let event = |kind: &str, name: &str| {
            format!(
                r#"{{"Topic": "Service", "Type": "{kind}", "Key": "x", "FilterKeys": null, "Index": 7, "Namespace": "default",
                "Payload": {{"Service": {{"ID": "x", "ServiceName": "{name}", "Namespace": "team-a", "Tags": null}}}}}}"#
            )
        };
        let line = format!(
            r#"{{"Index": 7, "Events": [{}, {}, {{"Topic": "Node", "Payload": {{"Node": {{}}}}}}]}}"#,
            event("ServiceRegistration", "a"),
            event("PlanResult", "b")
        );
        let named = |name: &str| Some(ServiceKey { namespace: "team-a".into(), name: name.into() });
        assert_eq!(parsed(&line), Some(Line { index: 7, services: vec![named("a"), named("b")] }));
    }

    #[test]
    fn a_heartbeat_says_nothing_and_an_event_without_a_name_something() {
        assert_eq!(parsed("{}\n"), None);
        assert_eq!(parsed(r#"{"Index": 7, "Events": [{"Topic": "Node", "Payload": {}}]}"#), None);
        let unnamed = parsed(r#"{"Index": 7, "Events": [{"Topic": "Service", "Payload": null}]}"#);
        assert_eq!(unnamed, Some(Line { index: 7, services: vec![None] }));
        assert!(parse(b"half a li").is_err());
    }
}
