//! Settings: flags beat the environment, which beats the file; the result is validated once, here.
//!
//! Each setting is defined once: the command line, the environment and the JSON file fill [`Settings`]; the program
//! runs on [`Config`]. An unknown key is an error.

mod access;
mod settings;
mod targets;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use thiserror::Error;

use crate::breaker;
use crate::desired::{Grant, Grants};
use crate::endpoint::{Identity, Tls};
use crate::errors::chain;
use crate::http::Access;
use crate::nomad;
use crate::nomad::lock::{self, LockConfig};
use crate::plan::guard::{self, Share};

pub use settings::{
    BackendsSettings, BreakerSettings, GuardSettings, HaproxySettings, HttpSettings, LeaderSettings, LogFormat,
    LogSettings, NamespaceSettings, NomadSettings, ReconcileSettings, ReloadSettings, Settings, SlotSettings, Span,
    TagSettings,
};
pub use targets::{
    PlaneSettings, ServiceConfig, TargetConfig, TargetList, TargetOptions, TargetSettings, Targets, is_name,
};

/// Where Nomad listens by default.
pub const NOMAD_ADDRESS: &str = "http://127.0.0.1:4646";
/// All namespaces that the token may read.
pub const NOMAD_NAMESPACE: &str = "*";
/// The tag prefix that existing users have.
pub const TAG_PREFIX: &str = "haproxy.";
/// Identifies our backends, unless two controllers share one HAProxy.
pub const OWNER: &str = "nomad";
/// Spares that a backend has at least when it is written; it also gets as many as it has instances. With 4, a service
/// of one grows to five without a reload.
pub const SLOTS_MIN_FREE: u32 = 4;
/// Limits the doubling; instances beyond it are still served.
pub const SLOTS_MAX: u32 = 256;
/// Long enough to roll a job, or to stop and start it, without a reload; its backend answers 503 meanwhile.
pub const BACKEND_LINGER: Duration = Duration::from_secs(600);
/// Fewer removals than this never need proof, whatever their share: in a small cluster, one job that is rolled or
/// stopped is a large part of it.
pub const GUARD_MIN: usize = 5;
/// A HAProxy that was restarted answers again before this many passes, which are retried after 0.5, 1, 2 and 4 s.
pub const BREAKER_FAILURE_THRESHOLD: u32 = 5;
/// Short enough that a HAProxy that is back is in line soon, long enough that one that is away is left alone.
pub const BREAKER_RESET_TIMEOUT: Duration = Duration::from_secs(10);
/// Each of them asks HAProxy which it is, which takes a millisecond.
pub const BREAKER_PROBES: u32 = 1;
/// Each reload leaves an old worker running for as long as its connections last; this limits how many a stream of new
/// services can create.
pub const RELOAD_MIN_INTERVAL: Duration = Duration::from_secs(1);
/// A full read even without events: events are hints, and the file may have been edited.
pub const RESYNC_INTERVAL: Duration = Duration::from_secs(30);
/// Changes this close to each other are handled together.
pub const QUIET_PERIOD: Duration = Duration::from_millis(100);
/// A stream of changes can't delay a pass for longer.
pub const MAX_WAIT: Duration = Duration::from_secs(1);
/// The namespace of the variable that controllers lock.
pub const LEADER_NAMESPACE: &str = "default";
/// The least that Nomad takes: a leader that is killed is replaced soonest, and a renewal every 3 s costs Nomad nothing, as
/// none of its servers writes anything for it.
pub const LEADER_TTL: Duration = lock::TTL_MIN;
/// On loopback only, by default.
pub const LISTEN: &str = "127.0.0.1:9471";

/// Why the settings are not usable.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("cannot read the settings file {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        #[source]
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not valid.
    #[error("the settings file {} is wrong: {message}", path.display())]
    Form {
        /// The file.
        path: PathBuf,
        /// Where and what; never a value, for it may be a secret.
        message: String,
    },
    /// A setting is wrong or missing.
    #[error("{name}: {why}")]
    Setting {
        /// Which one: its key, and its variable.
        name: &'static str,
        /// Why, and what to do.
        why: String,
    },
    /// One of several HAProxys: which, and what is wrong with it.
    #[error("{0}")]
    Entry(String),
}

fn wrong(name: &'static str, why: impl Into<String>) -> ConfigError {
    ConfigError::Setting { name, why: why.into() }
}

/// When passes run.
#[derive(Debug, Clone, Copy)]
pub struct Timings {
    /// A pass at least this often.
    pub resync_interval: Duration,
    /// Changes this close together are taken together.
    pub quiet_period: Duration,
    /// No change waits longer.
    pub max_wait: Duration,
}

/// Validated settings.
#[derive(Debug, Clone)]
pub struct Config {
    /// Nomad.
    pub nomad: nomad::NomadConfig,
    /// The namespaces that are watched.
    pub namespaces: Vec<String>,
    /// How old the answers of servers other than the leader may be; `None`: they do not count.
    pub max_stale: Option<Duration>,
    /// The HAProxys; offline commands can do without.
    pub targets: Targets,
    /// The prefix of our tags.
    pub prefix: String,
    /// Which namespace may use which backend.
    pub grants: Grants,
    /// How long a backend stays, without instances, when its service is gone.
    pub linger: Duration,
    /// What one read of the catalog may remove.
    pub guard: guard::Options,
    /// When a HAProxy that gives no answer is left alone.
    pub breaker: breaker::Options,
    /// From one reload to the next.
    pub reload_min_interval: Duration,
    /// When passes run.
    pub timings: Timings,
    /// The lock that the leader holds; `None`: this controller always leads.
    pub leader: Option<LockConfig>,
    /// Where health, metrics and the API are served.
    pub listen: SocketAddr,
    /// Who may use what is protected there.
    pub access: Access,
}

impl TryFrom<Settings> for Config {
    type Error = ConfigError;

    fn try_from(settings: Settings) -> Result<Self, ConfigError> {
        let Settings {
            nomad,
            haproxy,
            targets,
            tags,
            slots,
            backend,
            guard,
            policy,
            breaker,
            reload,
            reconcile,
            leader,
            http,
            log: _,
            namespaces: granted,
        } = settings;
        let namespaces: Vec<String> = nomad
            .namespace
            .as_deref()
            .unwrap_or(NOMAD_NAMESPACE)
            .split(',')
            .map(|name| name.trim().to_owned())
            .filter(|name| !name.is_empty())
            .collect();
        if namespaces.is_empty() {
            return Err(wrong("nomad.namespace (NOMAD_NAMESPACE)", "name at least one namespace, or * for all"));
        }
        let prefix = tags.prefix.unwrap_or_else(|| TAG_PREFIX.to_owned());
        if prefix.is_empty() {
            return Err(wrong("tags.prefix", "it may not be empty: every tag would be ours"));
        }
        Ok(Self {
            max_stale: nomad.max_stale.map(|span| span.0),
            nomad: nomad_settings(nomad)?,
            namespaces,
            targets: Targets::new(&haproxy, targets, &slots)?,
            prefix,
            grants: grants(granted)?,
            guard: guard::Options {
                share: guard.share.unwrap_or(Share::DEFAULT),
                min: guard.min.unwrap_or(GUARD_MIN),
                policy: policy.unwrap_or_default(),
            },
            breaker: breaker_options(&breaker)?,
            linger: backend.linger.map_or(BACKEND_LINGER, |span| span.0),
            reload_min_interval: reload.min_interval.map_or(RELOAD_MIN_INTERVAL, |span| span.0),
            timings: timings(&reconcile)?,
            leader: lock_config(leader)?,
            listen: http.listen.map_or_else(
                || LISTEN.parse().map_err(|e: std::net::AddrParseError| wrong("http.listen", e.to_string())),
                Ok,
            )?,
            access: access::access(http)?,
        })
    }
}

fn grants(namespaces: BTreeMap<String, NamespaceSettings>) -> Result<Grants, ConfigError> {
    let grant = |NamespaceSettings { backends, join, domains }| Grant { backends, join, domains };
    let entries = namespaces.into_iter().map(|(name, entry)| (name, grant(entry))).collect();
    Grants::new(&entries).map_err(|error| wrong("namespaces", chain(&error)))
}

fn timings(settings: &ReconcileSettings) -> Result<Timings, ConfigError> {
    let span = |value: Option<Span>, default: Duration| value.map_or(default, |span| span.0);
    let timings = Timings {
        resync_interval: span(settings.resync_interval, RESYNC_INTERVAL),
        quiet_period: span(settings.quiet_period, QUIET_PERIOD),
        max_wait: span(settings.max_wait, MAX_WAIT),
    };
    if timings.resync_interval < Duration::from_secs(1) {
        return Err(wrong("reconcile.resync_interval", "one second at least"));
    }
    if timings.max_wait < timings.quiet_period {
        return Err(wrong("reconcile.max_wait", "it may not be below reconcile.quiet_period"));
    }
    Ok(timings)
}

fn breaker_options(settings: &BreakerSettings) -> Result<breaker::Options, ConfigError> {
    let BreakerSettings { failure_threshold, reset_timeout, probes } = settings;
    let options = breaker::Options {
        threshold: failure_threshold.unwrap_or(BREAKER_FAILURE_THRESHOLD),
        reset_after: reset_timeout.map_or(BREAKER_RESET_TIMEOUT, |span| span.0),
        probes: probes.unwrap_or(BREAKER_PROBES),
    };
    if options.threshold == 0 || options.probes == 0 {
        return Err(wrong("breaker.failure_threshold and breaker.probes", "one at least"));
    }
    if options.reset_after < breaker::PROBE_PAUSE {
        return Err(wrong("breaker.reset_timeout", "one second at least"));
    }
    Ok(options)
}

fn lock_config(settings: LeaderSettings) -> Result<Option<LockConfig>, ConfigError> {
    const LOCK: &str = "leader.lock (NOMAD_HAPROXY_LEADER_LOCK)";
    const NAMESPACE: &str = "leader.namespace (NOMAD_HAPROXY_LEADER_NAMESPACE)";
    let LeaderSettings { lock, namespace, ttl } = settings;
    let ttl = ttl.map_or(LEADER_TTL, |span| span.0);
    if !(lock::TTL_MIN..=lock::TTL_MAX).contains(&ttl) {
        return Err(wrong("leader.ttl (NOMAD_HAPROXY_LEADER_TTL)", "Nomad takes 10s to 24h"));
    }
    let namespace = namespace.unwrap_or_else(|| LEADER_NAMESPACE.to_owned());
    if namespace.is_empty() || namespace.contains(['*', ',']) {
        return Err(wrong(NAMESPACE, "name the one namespace that the variable is in"));
    }
    // An empty path is none, as in a shell's empty variable.
    let Some(path) = lock.filter(|path| !path.is_empty()) else { return Ok(None) };
    Ok(Some(LockConfig { path: path.parse().map_err(|why| wrong(LOCK, why))?, namespace, ttl }))
}

fn nomad_settings(settings: NomadSettings) -> Result<nomad::NomadConfig, ConfigError> {
    let NomadSettings {
        address,
        unix_address,
        token,
        token_file,
        region,
        namespace: _,
        max_stale: _,
        ca_file,
        cert_file,
        key_file,
        tls_server_name,
        skip_verify,
        http_auth,
    } = settings;
    // An empty token is no token, as in existing configuration files and in a shell's empty variable.
    let token = match (token.filter(is_set), token_file) {
        (Some(_), Some(_)) => return Err(wrong("nomad.token", "give the token or nomad.token_file, not both")),
        (Some(token), None) => nomad::Token::Inline(token),
        (None, Some(path)) => nomad::Token::File(path),
        (None, None) => nomad::Token::None,
    };
    // Nomad names the socket to each task, and answers there only who has a token.
    let task_api = unix_address.filter(|_| !matches!(token, nomad::Token::None));
    let (name, address) = match (address, task_api) {
        (Some(address), _) => ("nomad.address (NOMAD_ADDR)", address),
        (None, Some(socket)) => ("nomad.unix_address (NOMAD_UNIX_ADDR)", socket),
        (None, None) => ("nomad.address (NOMAD_ADDR)", NOMAD_ADDRESS.to_owned()),
    };
    check_address(name, &address)?;
    let tls = Tls {
        ca_file,
        identity: identity("nomad.cert_file and nomad.key_file", cert_file, key_file)?,
        server_name: tls_server_name.map(server_name).transpose()?,
        skip_verify: skip_verify.unwrap_or(false),
    };
    let http_auth = http_auth.filter(is_set).as_ref().map(credentials);
    Ok(nomad::NomadConfig { address, token, region, tls, http_auth })
}

/// An empty secret is none.
fn is_set(secret: &SecretString) -> bool {
    !secret.expose_secret().is_empty()
}

fn server_name(name: String) -> Result<String, ConfigError> {
    match name.parse::<std::net::IpAddr>() {
        Err(_) if reqwest::Url::parse(&format!("https://{name}/")).is_ok_and(|url| url.host_str() == Some(&name)) => {
            Ok(name)
        }
        _ => {
            let why =
                format!("{name:?} is no host name; it is the one in Nomad's certificate, such as server.global.nomad");
            Err(wrong("nomad.tls_server_name (NOMAD_TLS_SERVER_NAME)", why))
        }
    }
}

/// User and password; without a colon it is the user alone, as Nomad's own commands have it.
fn credentials(text: &SecretString) -> (String, SecretString) {
    let text = text.expose_secret();
    let (user, password) = text.split_once(':').unwrap_or((text, ""));
    (user.to_owned(), SecretString::from(password))
}

fn identity(
    names: &'static str,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
) -> Result<Option<Identity>, ConfigError> {
    match (certificate, key) {
        (Some(certificate), Some(key)) => Ok(Some((certificate, key))),
        (None, None) => Ok(None),
        _ => Err(wrong(names, "one is of no use without the other")),
    }
}

fn check_address(name: &'static str, text: &str) -> Result<(), ConfigError> {
    if let Some(path) = text.strip_prefix("unix://") {
        let why = "a unix socket is named by its full path, unix:///…";
        return if path.starts_with('/') { Ok(()) } else { Err(wrong(name, why)) };
    }
    let url =
        reqwest::Url::parse(text).map_err(|error| wrong(name, format!("{error}; it should be http://HOST:PORT")))?;
    if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
        return Err(wrong(name, "it should be http://HOST:PORT, https://HOST:PORT or unix:///…"));
    }
    if url.password().is_some() {
        return Err(wrong(name, "no password in an address, which ends up in logs: it has a setting of its own"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::settings::form;
    use super::*;
    use crate::plan::Strategy;

    fn parse(json: &str) -> Result<Config, String> {
        let settings: Settings = serde_json::from_str(json).map_err(|error| form(&error))?;
        Config::try_from(settings).map_err(|error| error.to_string())
    }

    #[test]
    fn the_settings_file_of_existing_users_is_read() {
        let config = parse(
            r#"{"nomad": {"address": "http://localhost:4646", "token": "", "region": "global"},
                "haproxy": {"address": "http://localhost:5555", "username": "admin", "password": "adminpwd", "backend_strategy": "use_existing"}}"#,
        )
        .expect("good settings");
        let target = &config.targets.fixed[0];
        assert!(matches!(target.plane, PlaneSettings::Dataplane(..)));
        assert_eq!((target.name.as_str(), target.options.strategy), ("localhost:5555", Strategy::UseExisting));
    }

    #[test]
    fn a_wrong_setting_is_named() {
        for (json, words) in [
            (r#"{"nomad": {"adress": "x"}}"#, "adress"),
            (r#"{"nomad": {"address": "localhost:4646"}}"#, "NOMAD_ADDR"),
            (r#"{"nomad": {"address": "unix://api.sock"}}"#, "full path"),
            (r#"{"nomad": {"token": "a", "token_file": "b"}}"#, "not both"),
            (r#"{"nomad": {"token": "a", "unix_address": "api.sock"}}"#, "NOMAD_UNIX_ADDR"),
            (r#"{"nomad": {"tls_server_name": "https://nomad"}}"#, "is no host name"),
            (r#"{"nomad": {"tls_server_name": "10.0.0.5"}}"#, "is no host name"),
            (r#"{"haproxy": {"address": "http://h:5555"}}"#, "HAPROXY_PASSWORD"),
            (r#"{"haproxy": {"config_file": "/etc/h.cfg"}}"#, "master_socket"),
            (r#"{"haproxy": {"config_file": "/a", "address": "http://h"}}"#, "one of them"),
            (r#"{"haproxy": {"backend_strategy": "mine"}}"#, "use_existing"),
            (r#"{"slots": {"min_free": 9, "max": 3}}"#, "slots.max"),
            (r#"{"guard": {"share": "0.3"}}"#, "1% to 100%"),
            (r#"{"policy": "never"}"#, "upsert-only"),
            (r#"{"reconcile": {"resync_interval": "soon"}}"#, "500ms"),
            (r#"{"breaker": {"probes": 0}}"#, "one at least"),
            (r#"{"breaker": {"reset_timeout": "10ms"}}"#, "one second"),
            (r#"{"tags": {"prefix": ""}}"#, "tags.prefix"),
            (r#"{"leader": {"lock": "nomad/lock"}}"#, "nomad/jobs/"),
            (r#"{"leader": {"lock": "a", "ttl": "9s"}}"#, "10s to 24h"),
            (r#"{"leader": {"lock": "a", "namespace": "*"}}"#, "the one namespace"),
            (r#"{"http": {"token": "a", "token_file": "b"}}"#, "not both"),
            (r#"{"http": {"admin_key": "a", "admin_key_file": "b"}}"#, "not both"),
            (r#"{"http": {"tokens": {"ci": "a"}, "token_files": {"ci": "b"}}}"#, "two tokens are called \"ci\""),
            (r#"{"http": {"token": "a", "tokens": {"admin": "b"}}}"#, "two tokens are called \"admin\""),
            (r#"{"http": {"tokens": {"a b": "c"}}}"#, "\"a b\" is no name"),
            (r#"{"namespaces": {"team-*": {"backend": ["x"]}}}"#, "unknown field `backend`"),
            (r#"{"namespaces": {"team-*": {"backends": ["x", "a["]}}}"#, "invalid glob \"a[\""),
            (r#"{"namespaces": {"team-*": {"join": "yes"}}}"#, "expected a boolean"),
        ] {
            let error = parse(json).expect_err(json);
            assert!(error.contains(words), "{json}: {error}");
        }
    }

    #[test]
    fn the_task_api_is_used_where_nothing_else_is_said_and_there_is_a_token() {
        let address = |json: &str| parse(json).expect("good settings").nomad.address;
        let socket = r#""unix_address": "unix:///secrets/api.sock""#;
        assert_eq!(address(&format!(r#"{{"nomad": {{{socket}, "token": "t"}}}}"#)), "unix:///secrets/api.sock");
        assert_eq!(address(&format!(r#"{{"nomad": {{{socket}}}}}"#)), NOMAD_ADDRESS);
        assert_eq!(
            address(&format!(r#"{{"nomad": {{{socket}, "token": "t", "address": "http://n:4646"}}}}"#)),
            "http://n:4646"
        );
    }

    #[test]
    fn secrets_are_in_no_debug_print_and_no_error() {
        let json = r#"{"nomad": {"token": "s3cret-a", "http_auth": "u:s3cret-e"}, "haproxy": {"address": "http://h:5555", "password": "s3cret-b"}}"#;
        let settings: Settings = serde_json::from_str(json).expect("good settings");
        let printed = format!("{settings:?} {:?}", Config::try_from(settings.clone()));
        assert!(!printed.contains("s3cret"), "{printed}");
        let json = r#"{"http": {"token": "s3cret-a", "tokens": {"ci": "s3cret-b"}, "admin_key": "s3cret-c"}}"#;
        let settings: Settings = serde_json::from_str(json).expect("good settings");
        let printed = format!("{settings:?} {:?}", Config::try_from(settings.clone()));
        assert!(!printed.contains("s3cret") && printed.contains("\"ci\""), "{printed}");
        let error = parse(r#"{"http": {"tokens": "s3cret-d"}}"#).expect_err("not an object");
        assert!(!error.contains("s3cret"), "{error}");
        let error = parse(r#"{"nomad": "s3cret-c"}"#).expect_err("not an object");
        assert!(!error.contains("s3cret") && error.contains("line 1"), "{error}");
        let error =
            parse(r#"{"haproxy": {"address": "http://u:s3cret@h:1", "password": "x"}}"#).expect_err("a password in it");
        assert!(!error.contains("s3cret"), "{error}");
    }

    #[test]
    fn the_stronger_source_wins() {
        let settings = |json: &str| serde_json::from_str::<Settings>(json).expect("good settings");
        let flags = settings(r#"{"nomad": {"region": "flag"}}"#);
        let file = settings(r#"{"nomad": {"region": "file", "namespace": "file"}}"#);
        let merged = flags.or(file);
        assert_eq!((merged.nomad.region.as_deref(), merged.nomad.namespace.as_deref()), (Some("flag"), Some("file")));
    }
}
