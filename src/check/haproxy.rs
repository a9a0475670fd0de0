//! One HAProxy: reachable, new enough, its file readable, valid and writable, its process open to changes.

use crate::config::{PlaneSettings, TargetConfig};
use crate::haproxy::version::Version;
use crate::leader::Lease;
use crate::observed::Observed;
use crate::plane::dataplane::DataplaneConfig;
use crate::plane::{AccessError, Capabilities, HaproxyInfo, Plane, Survey, Verdict};

use super::Finding;

/// Everything about one HAProxy.
pub async fn haproxy(target: &TargetConfig) -> Vec<Finding> {
    const PART: &str = "haproxy";
    // It only reads; what it has validated is the text that is there.
    let plane = match target.connect(&Lease::ALWAYS) {
        Ok(plane) => plane,
        Err(error) => return vec![Finding::of(PART, &error)],
    };
    let info = plane.info().await;
    let mut findings = vec![match &info {
        Ok(info) => Finding::ok(PART, format!("HAProxy {} answers by {}", info.release, way(target))),
        Err(error) => unanswered(target, error),
    }];
    let has_api = match &info {
        Ok(_) => true,
        Err(AccessError::NotRunning { is_connected, .. }) => *is_connected,
        Err(_) => false,
    };
    let is_local = matches!(target.plane, PlaneSettings::Local(_));
    if !is_local && !has_api {
        findings.push(Finding::skipped("configuration", "not checked, as the Data Plane API is of no use"));
        return findings;
    }
    let observed = match plane.observe().await {
        Ok(observed) => observed,
        Err(error) => {
            findings.push(Finding::of("configuration", &error));
            return findings;
        }
    };
    findings.push(Finding::ok("configuration", read(&observed)));
    let Ok(info) = info else {
        findings.push(Finding::skipped("validation", "not checked, as HAProxy does not answer"));
        return findings;
    };
    findings.push(validation(plane.as_ref(), &observed).await);
    findings.extend(rendering(plane.as_ref(), &observed).await);
    if is_local {
        findings.push(master(plane.as_ref()).await);
    }
    findings.push(run_time(plane.as_ref(), &info, target).await);
    if let Err(error) = plane.runtime(&observed).await {
        findings.push(Finding::of("servers", &error));
    }
    findings
}

/// How it is reached, for people.
fn way(target: &TargetConfig) -> String {
    match &target.plane {
        PlaneSettings::Dataplane(DataplaneConfig { address, .. }, _) => format!("the Data Plane API at {address}"),
        PlaneSettings::Local(local) => format!("its master socket {}", local.master_socket.display()),
    }
}

fn unanswered(target: &TargetConfig, error: &AccessError) -> Finding {
    let finding = Finding::of("haproxy", error);
    let is_silent = matches!(error, AccessError::Unavailable { .. } | AccessError::NotRunning { .. });
    match &target.plane {
        _ if !is_silent => finding,
        PlaneSettings::Local(_) => finding.or_hint(
            "start HAProxy with `-W -S SOCKET`, name that socket with haproxy.master_socket (HAPROXY_MASTER_SOCKET), and \
             let this user open it (`-S SOCKET,mode,660,group,GROUP`)",
        ),
        PlaneSettings::Dataplane(..) if matches!(error, AccessError::NotRunning { .. }) => finding.or_hint(
            "start HAProxy, and check that `master_runtime` of the Data Plane API, or the `stats socket` in HAProxy's \
             configuration, is a socket of it",
        ),
        PlaneSettings::Dataplane(..) => {
            finding.or_hint("check haproxy.address (HAPROXY_DATAPLANE_URL), and that the Data Plane API listens there")
        }
    }
}

fn read(observed: &Observed) -> String {
    let ours = observed.marked().count();
    let all = observed.backends.len();
    format!("read: version {}, {all} backends, {ours} of them with something of ours", observed.version)
}

/// Whether HAProxy takes its own file, without which no change is ever valid. On the local plane this also proves that a
/// file can be made beside it.
async fn validation(plane: &dyn Plane, observed: &Observed) -> Finding {
    const PART: &str = "validation";
    match plane.validate(&observed.text).await {
        Ok(Verdict::Valid) => Finding::ok(PART, "HAProxy finds its configuration valid as it is"),
        Ok(verdict @ (Verdict::Refused(_) | Verdict::TooLong(_))) => {
            Finding::failed(PART, format!("HAProxy refuses its configuration as it is: {verdict}"))
                .or_hint("correct these lines: until then no change can be written, nor HAProxy be reloaded")
        }
        Err(error) => Finding::of(PART, &error),
    }
}

/// What a write would do to what is not ours.
async fn rendering(plane: &dyn Plane, observed: &Observed) -> Option<Finding> {
    const PART: &str = "writing";
    match plane.survey(observed).await {
        Ok(Survey { harm: Some(harm), comments: _ }) => Some(Finding::failed(PART, harm.to_string())),
        Ok(Survey { harm: None, comments }) if comments.is_empty() => {
            Some(Finding::ok(PART, "a write keeps all that is not ours"))
        }
        Ok(Survey { harm: None, comments }) => Some(
            Finding::warning(
                PART,
                format!("the Data Plane API loses comments when it writes: {}", comments.join("; ")),
            )
            .or_hint("move them to lines of their own, or let the controller write the file (`haproxy.config_file`)"),
        ),
        Err(error) => Some(Finding::of(PART, &error)),
    }
}

/// The socket of the local plane.
async fn master(plane: &dyn Plane) -> Finding {
    const PART: &str = "socket";
    match plane.examine().await {
        Ok(None) => {
            Finding::ok(PART, "the master socket has the level admin, and its HAProxy was started with this file")
        }
        Ok(Some(doubt)) => Finding::warning(PART, doubt),
        Err(error) => Finding::of(PART, &error),
    }
}

/// What takes no reload.
async fn run_time(plane: &dyn Plane, info: &HaproxyInfo, target: &TargetConfig) -> Finding {
    const PART: &str = "run-time";
    let found = match plane.capabilities(info).await {
        Ok(found) => found,
        Err(error) => return Finding::of(PART, &error),
    };
    let newer = "HAProxy 3.4 makes backends without a reload, too";
    match found {
        Capabilities { servers: true, backends: true } => {
            Finding::ok(PART, "servers and backends come and go without a reload")
        }
        Capabilities { servers: true, backends: false } if info.version.has_run_time_backends() => {
            Finding::ok(PART, "servers come and go without a reload; a new backend takes one")
                .or_hint("with haproxy.write (HAPROXY_WRITE) `auto` or `text` backends take none either")
        }
        Capabilities { servers: true, backends: false } => {
            Finding::ok(PART, "servers come and go without a reload; a new backend takes one").or_hint(newer)
        }
        Capabilities { servers: false, .. } => {
            let text = "instances take spare servers without a reload; a service takes one each time it doubles, and a new \
                        backend one";
            Finding::ok(PART, text).or_hint(format!(
                "with haproxy.runtime_socket (HAPROXY_RUNTIME_SOCKET) of {:?} growth takes none{}",
                target.name,
                if Version::has_run_time_backends(info.version) { ", nor do backends" } else { "" }
            ))
        }
    }
}
