//! The health check of a service: its tags, then what its job says, then a connection.
//!
//! Each setting comes from the first of them that has it. What the job says of a request (path, method, headers) only
//! counts where the check is a request, and the job's check is one.

use std::time::Duration;

use crate::catalog::JobCheck;

use super::tags::{self, CheckTags, CheckType};
use super::{Check, HttpCheck, Timing};

/// The check, and what is ignored of the job's.
pub(super) struct Chosen {
    pub(super) check: Check,
    /// What a person should know, each with why.
    pub(super) ignored: Vec<String>,
}

/// The kind of check that the tags ask for, if they do.
pub(super) fn kind(tags: &CheckTags) -> Option<CheckType> {
    tags.kind.or_else(|| asks_for_request(tags).then_some(CheckType::Http))
}

/// Whether any tag says something of a request.
pub(super) fn asks_for_request(tags: &CheckTags) -> bool {
    let CheckTags { kind: _, path, method, host, status, timing: _, gated: _, disabled: _ } = tags;
    path.is_some() || method.is_some() || host.is_some() || status.is_some()
}

/// Chooses; `is_tls`: HAProxy speaks TLS to the servers.
pub(super) fn choose(tags: &CheckTags, job: Option<&JobCheck>, is_tls: bool) -> Chosen {
    if tags.disabled {
        return Chosen { check: Check::Disabled, ignored: Vec::new() };
    }
    let mut ignored = Vec::new();
    let job = job.map(|job| Stated::new(job, is_tls, &mut ignored)).unwrap_or_default();
    let timing = Timing {
        interval: tags.timing.interval.or(job.interval),
        timeout: tags.timing.timeout.or(job.timeout),
        port: tags.timing.port.or(job.port),
        ..tags.timing.clone()
    };
    let is_request = match kind(tags) {
        Some(kind) => kind == CheckType::Http,
        None => job.request.is_some(),
    };
    let check = match is_request {
        false => Check::Tcp(timing),
        true => {
            let Request { method, path, host, headers } = job.request.unwrap_or_default();
            let request = HttpCheck {
                method: tags.method.clone().or(method).unwrap_or_else(|| "GET".to_owned()),
                path: tags.path.clone().or(path).unwrap_or_else(|| "/".to_owned()),
                host: tags.host.clone().or(host),
                headers,
                status: tags.status.clone(),
            };
            Check::Http(request, timing)
        }
    };
    Chosen { check, ignored }
}

/// What of a check comes from the job: the names of the tags that would set it otherwise, and the values.
pub fn of_job(tags: &CheckTags, job: &JobCheck, is_tls: bool) -> Vec<(&'static str, String)> {
    let (with, without) = (choose(tags, Some(job), is_tls).check, choose(tags, None, is_tls).check);
    let without = stated(&without);
    stated(&with).into_iter().filter(|setting| !without.contains(setting)).collect()
}

/// The settings of a check by the names of their tags, as far as it has them.
fn stated(check: &Check) -> Vec<(&'static str, String)> {
    let (kind, timing) = match check {
        Check::Disabled => return Vec::new(),
        Check::Tcp(timing) => ("tcp", timing),
        Check::Http(_, timing) => ("http", timing),
    };
    let mut all = vec![("check.type", kind.to_owned())];
    if let Check::Http(HttpCheck { method, path, host, headers: _, status: _ }, _) = check {
        all.extend([("check.method", method.clone()), ("check.path", path.clone())]);
        all.extend(host.clone().map(|host| ("check.host", host)));
    }
    let Timing { interval, timeout, port, rise: _, fall: _ } = timing;
    let time = |name, time: &Option<Duration>| time.map(|time| (name, format!("{time:?}")));
    all.extend([time("check.interval", interval), time("check.timeout", timeout)].into_iter().flatten());
    all.extend(port.map(|port| ("check.port", port.to_string())));
    all
}

/// What a job says, as far as it can be used.
#[derive(Default)]
struct Stated {
    request: Option<Request>,
    interval: Option<Duration>,
    timeout: Option<Duration>,
    port: Option<u16>,
}

#[derive(Default)]
struct Request {
    method: Option<String>,
    path: Option<String>,
    host: Option<String>,
    headers: Vec<(String, String)>,
}

impl Stated {
    fn new(job: &JobCheck, is_tls: bool, ignored: &mut Vec<String>) -> Self {
        let JobCheck { kind, path, method, protocol, header: _, interval, timeout, port_label, port } = job;
        let time = |nanoseconds: i64| u64::try_from(nanoseconds).ok().map(Duration::from_nanos).and_then(tags::whole);
        let has_port = port_label.is_empty() || port.is_some();
        if !has_port {
            ignored.push(format!(
                "the job's check has the port {:?}, which is another one for each instance, so only a connection to the \
                 service's own port is checked; a static port can be checked",
                shown(port_label)
            ));
        }
        let speaks_https = protocol.eq_ignore_ascii_case("https");
        if kind == "http" && speaks_https && !is_tls {
            ignored.push(
                "the job's check speaks https, and HAProxy does not speak TLS to the service, so only a connection is \
                 checked; the tag `ssl` changes that"
                    .to_owned(),
            );
        }
        let mut request = None;
        if kind == "http" && has_port && (is_tls || !speaks_https) {
            let mut take = |what: &str, value: &str, read: fn(&str) -> Result<String, String>| {
                let value = Some(value).filter(|value| !value.is_empty())?;
                read(value)
                    .map_err(|why| ignored.push(format!("the job's check has the {what} {:?}: {why}", shown(value))))
                    .ok()
            };
            let (path, method) = (take("path", path, tags::path), take("method", method, tags::method));
            let (host, headers) = headers(job, ignored);
            request = Some(Request { method, path, host, headers });
        }
        Self { request, interval: time(*interval), timeout: time(*timeout), port: *port }
    }
}

/// The Host, and the other headers. They are written as they are, so only values without a space are taken.
fn headers(job: &JobCheck, ignored: &mut Vec<String>) -> (Option<String>, Vec<(String, String)>) {
    let (mut host, mut headers) = (None, Vec::new());
    for (name, values) in &job.header {
        for value in values {
            match tags::header(name, value) {
                Ok(()) if name.eq_ignore_ascii_case("host") => host = Some(value.clone()),
                Ok(()) => headers.push((name.clone(), value.clone())),
                Err(why) => ignored.push(format!("the job's check has the header {:?}: {why}", shown(name))),
            }
        }
    }
    (host, headers)
}

fn shown(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job() -> JobCheck {
        JobCheck {
            kind: "http".into(),
            path: "/health".into(),
            method: "HEAD".into(),
            header: [("Host".into(), vec!["app.test".into()]), ("X-A".into(), vec!["b".into(), "c".into()])].into(),
            interval: 1_500_000_000,
            timeout: 1_000_000_000,
            ..JobCheck::default()
        }
    }

    fn chosen(tags: &CheckTags, job: &JobCheck) -> (Check, usize) {
        let Chosen { check, ignored } = choose(tags, Some(job), false);
        (check, ignored.len())
    }

    #[test]
    fn a_tag_beats_the_job_which_beats_the_default() {
        let (Check::Http(http, timing), 0) = chosen(&CheckTags::default(), &job()) else { panic!("a request") };
        assert_eq!(
            (http.method.as_str(), http.path.as_str(), http.host.as_deref()),
            ("HEAD", "/health", Some("app.test"))
        );
        assert_eq!(http.headers, [("X-A".to_owned(), "b".to_owned()), ("X-A".to_owned(), "c".to_owned())]);
        assert_eq!(timing.interval, Some(Duration::from_millis(1500)));
        let tags = CheckTags {
            path: Some("/tag".into()),
            timing: Timing { interval: Some(Duration::from_secs(9)), rise: Some(4), ..Timing::default() },
            ..CheckTags::default()
        };
        let (Check::Http(http, timing), 0) = chosen(&tags, &job()) else { panic!("a request") };
        assert_eq!((http.method.as_str(), http.path.as_str()), ("HEAD", "/tag"));
        assert_eq!(
            (timing.interval, timing.timeout, timing.rise),
            (tags.timing.interval, Some(Duration::from_secs(1)), Some(4))
        );
        let tcp = CheckTags { kind: Some(CheckType::Tcp), ..CheckTags::default() };
        assert!(matches!(chosen(&tcp, &job()), (Check::Tcp(timing), 0) if timing.interval.is_some()));
        let off = CheckTags { disabled: true, ..CheckTags::default() };
        assert_eq!(chosen(&off, &job()), (Check::Disabled, 0));
        assert_eq!(choose(&CheckTags::default(), None, false).check, Check::Tcp(Timing::default()));
    }

    #[test]
    fn what_cannot_be_written_is_ignored_and_said() {
        let odd = JobCheck {
            path: "/a b".into(),
            method: "BREW".into(),
            header: [("X Y".into(), vec!["z".into()]), ("A".into(), vec!["b\nserver x".into(), "%[env(HOME)]".into()])]
                .into(),
            interval: -1,
            ..job()
        };
        let (Check::Http(http, timing), 5) = chosen(&CheckTags::default(), &odd) else { panic!("a request") };
        assert_eq!((http.method.as_str(), http.path.as_str(), http.headers.len()), ("GET", "/", 0));
        assert_eq!(timing.interval, None);
        let https = JobCheck { protocol: "https".into(), ..job() };
        assert!(matches!(chosen(&CheckTags::default(), &https), (Check::Tcp(_), 1)));
        assert!(matches!(choose(&CheckTags::default(), Some(&https), true).check, Check::Http(..)));
        let elsewhere = JobCheck { port_label: "admin".into(), ..job() };
        assert!(matches!(chosen(&CheckTags::default(), &elsewhere), (Check::Tcp(_), 1)));
        let at = JobCheck { port: Some(81), ..elsewhere };
        assert!(matches!(chosen(&CheckTags::default(), &at), (Check::Http(_, timing), 0) if timing.port == Some(81)));
    }
}
