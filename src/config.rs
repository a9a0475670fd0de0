//! Settings: flags beat the environment, which beats the file; the result is validated once, here.
//!
//! Each setting is defined once: the command line, the environment and the JSON file fill [`Settings`]; the program
//! runs on [`Config`]. An unknown key is an error.

mod targets;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, ValueEnum};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use thiserror::Error;

use crate::desired::{Grant, Grants};
use crate::endpoint::Identity;
use crate::errors::chain;
use crate::nomad;
use crate::plan::Strategy;
use crate::plan::guard::{self, Policy, Share};
use crate::plane::dataplane::Write;

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
/// Each reload leaves an old worker running for as long as its connections last; this limits how many a stream of new
/// services can create.
pub const RELOAD_MIN_INTERVAL: Duration = Duration::from_secs(1);
/// A full read even without events: events are hints, and the file may have been edited.
pub const RESYNC_INTERVAL: Duration = Duration::from_secs(30);
/// Changes this close to each other are handled together.
pub const QUIET_PERIOD: Duration = Duration::from_millis(100);
/// A stream of changes can't delay a pass for longer.
pub const MAX_WAIT: Duration = Duration::from_secs(1);
/// Metrics and health on loopback only, by default.
pub const LISTEN: &str = "127.0.0.1:9471";

/// A time such as `30s`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Span(pub Duration);

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        humantime::parse_duration(text)
            .map(Self)
            .map_err(|error| format!("invalid time {text:?}, use one such as 500ms or 30s: {error}"))
    }
}

impl TryFrom<String> for Span {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

#[allow(clippy::unnecessary_wraps, reason = "the form that clap takes")]
fn secret(text: &str) -> Result<SecretString, std::convert::Infallible> {
    Ok(SecretString::from(text))
}

/// Declares a group of settings, and how a stronger source overrides a weaker one.
macro_rules! settings {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Default, Args, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $name { $($(#[$field_doc])* #[arg(global = true, hide_short_help = true)] pub $field: Option<$type>,)* }

        impl $name {
            fn or(self, weaker: Self) -> Self {
                Self { $($field: self.$field.or(weaker.$field),)* }
            }
        }
    };
}

settings! {
    /// How Nomad is reached.
    NomadSettings {
        /// Nomad's address: http://, https:// or unix:// [default: http://127.0.0.1:4646]
        #[arg(id = "nomad-address", long = "nomad-address", env = "NOMAD_ADDR", value_name = "URL")]
        address: String,
        /// ACL token
        #[arg(id = "nomad-token", long = "nomad-token", env = "NOMAD_TOKEN", hide_env_values = true, value_parser = secret, value_name = "TOKEN")]
        token: SecretString,
        /// File with the ACL token, read again for each request
        #[arg(id = "nomad-token-file", long = "nomad-token-file", env = "NOMAD_TOKEN_FILE", value_name = "FILE")]
        token_file: PathBuf,
        /// Region
        #[arg(id = "nomad-region", long = "nomad-region", env = "NOMAD_REGION", value_name = "NAME")]
        region: String,
        /// Namespaces to watch, with commas; * is all [default: *]
        #[arg(id = "nomad-namespace", long = "nomad-namespace", env = "NOMAD_NAMESPACE", value_name = "NAMES")]
        namespace: String,
        /// CA certificate to trust, PEM
        #[arg(id = "nomad-ca-file", long = "nomad-ca-file", env = "NOMAD_CACERT", value_name = "FILE")]
        ca_file: PathBuf,
        /// Client certificate, PEM
        #[arg(id = "nomad-cert-file", long = "nomad-cert-file", env = "NOMAD_CLIENT_CERT", value_name = "FILE")]
        cert_file: PathBuf,
        /// Key of the client certificate, PEM
        #[arg(id = "nomad-key-file", long = "nomad-key-file", env = "NOMAD_CLIENT_KEY", value_name = "FILE")]
        key_file: PathBuf,
    }
}

settings! {
    /// How HAProxy is reached, and what is done there.
    HaproxySettings {
        /// The name of this HAProxy in logs, metrics and tags [default: its host and port, or its file]
        #[arg(long = "haproxy-name", env = "HAPROXY_NAME", value_name = "NAME")]
        name: String,
        /// The address of the Data Plane API, version 3: http://, https:// or unix://
        #[arg(long = "haproxy-address", env = "HAPROXY_DATAPLANE_URL", value_name = "URL")]
        address: String,
        /// A Nomad service, NAME or NAMESPACE/NAME, whose registrations are Data Plane APIs: one HAProxy each
        #[arg(long = "haproxy-service", env = "HAPROXY_SERVICE", value_name = "SERVICE")]
        service: String,
        /// With it: whether these are reached by TLS [default: if haproxy.ca_file is set]
        #[arg(long = "haproxy-tls", env = "HAPROXY_TLS", value_name = "BOOL")]
        tls: bool,
        /// User of the Data Plane API [default: admin]
        #[arg(long = "haproxy-username", env = "HAPROXY_USERNAME", value_name = "NAME")]
        username: String,
        /// Password of the Data Plane API
        #[arg(long = "haproxy-password", env = "HAPROXY_PASSWORD", hide_env_values = true, value_parser = secret, value_name = "PASSWORD")]
        password: SecretString,
        /// File with the password, read again for each request
        #[arg(long = "haproxy-password-file", env = "HAPROXY_PASSWORD_FILE", value_name = "FILE")]
        password_file: PathBuf,
        /// CA certificate of the Data Plane API to trust, PEM
        #[arg(id = "haproxy-ca-file", long = "haproxy-ca-file", env = "HAPROXY_CA_FILE", value_name = "FILE")]
        ca_file: PathBuf,
        /// Client certificate for the Data Plane API, PEM
        #[arg(id = "haproxy-cert-file", long = "haproxy-cert-file", env = "HAPROXY_CERT_FILE", value_name = "FILE")]
        cert_file: PathBuf,
        /// Key of the client certificate, PEM
        #[arg(id = "haproxy-key-file", long = "haproxy-key-file", env = "HAPROXY_KEY_FILE", value_name = "FILE")]
        key_file: PathBuf,
        /// Without the Data Plane API: the configuration file of a HAProxy on this machine
        #[arg(long = "haproxy-config-file", env = "HAPROXY_CONFIG_FILE", value_name = "FILE")]
        config_file: PathBuf,
        /// With it: the master socket (haproxy -W -S SOCKET)
        #[arg(long = "haproxy-master-socket", env = "HAPROXY_MASTER_SOCKET", value_name = "SOCKET")]
        master_socket: PathBuf,
        /// With it: the executable that validates [default: haproxy]
        #[arg(long = "haproxy-binary", env = "HAPROXY_BINARY", value_name = "FILE")]
        binary: PathBuf,
        /// With it: the folder that HAProxy runs in, where /proc does not say it
        #[arg(long = "haproxy-working-directory", env = "HAPROXY_WORKING_DIRECTORY", value_name = "FOLDER")]
        working_directory: PathBuf,
        /// With it: lines of NAME=VALUE, HAProxy's environment, where /proc does not say it
        #[arg(long = "haproxy-environment-file", env = "HAPROXY_ENVIRONMENT_FILE", value_name = "FILE")]
        environment_file: PathBuf,
        /// With it: all files and folders of HAProxy's -f in their order, with commas, where /proc does not say them
        #[arg(long = "haproxy-files", env = "HAPROXY_FILES", value_name = "FILES", value_delimiter = ',')]
        files: Vec<PathBuf>,
        /// What to do when a service's backend exists and is not ours [default: use_existing]
        #[arg(long = "haproxy-backend-strategy", env = "HAPROXY_BACKEND_STRATEGY", value_name = "STRATEGY")]
        backend_strategy: Strategy,
        /// How the Data Plane API writes [default: auto]
        #[arg(long = "haproxy-write", env = "HAPROXY_WRITE", value_name = "HOW")]
        write: Write,
        /// How long HAProxy may take to validate a configuration; one that takes longer is refused [default: 60s]
        #[arg(long = "haproxy-validation-timeout", env = "HAPROXY_VALIDATION_TIMEOUT", value_name = "TIME")]
        validation_timeout: Span,
        /// The name under which backends are marked as ours [default: nomad]
        #[arg(long = "haproxy-owner", env = "HAPROXY_OWNER", value_name = "NAME")]
        owner: String,
    }
}

settings! {
    /// How tags are read.
    TagSettings {
        /// What our tags start with [default: haproxy.]
        #[arg(id = "tags-prefix", long = "tags-prefix", env = "NOMAD_HAPROXY_TAGS_PREFIX", value_name = "PREFIX")]
        prefix: String,
    }
}

settings! {
    /// Spare servers, so that scaling needs no reload.
    SlotSettings {
        /// Spare servers of a backend at least; 0 turns slots off [default: 4]
        #[arg(id = "slots-min-free", long = "slots-min-free", env = "NOMAD_HAPROXY_SLOTS_MIN_FREE", value_name = "N")]
        min_free: u32,
        /// Servers of a backend, spares included, at the most [default: 256]
        #[arg(id = "slots-max", long = "slots-max", env = "NOMAD_HAPROXY_SLOTS_MAX", value_name = "N")]
        max: u32,
    }
}

settings! {
    /// What one read of the catalog may take away.
    GuardSettings {
        /// Removals beyond this share of the instances in service are held, unless Nomad says that their allocations are gone; 100% turns the guard off, also for a read that lacks all instances [default: 30%]
        #[arg(id = "guard-share", long = "guard-share", env = "NOMAD_HAPROXY_GUARD_SHARE", value_name = "PERCENT")]
        share: Share,
        /// Fewer removals than this are not held for their share [default: 5]
        #[arg(id = "guard-min", long = "guard-min", env = "NOMAD_HAPROXY_GUARD_MIN", value_name = "N")]
        min: usize,
    }
}

settings! {
    /// How often HAProxy is reloaded.
    ReloadSettings {
        /// At least this long from one reload to the next; what needs no reload does not wait [default: 1s]
        #[arg(id = "reload-min-interval", long = "reload-min-interval", env = "NOMAD_HAPROXY_RELOAD_MIN_INTERVAL", value_name = "TIME")]
        min_interval: Span,
    }
}

settings! {
    /// Backends that no service needs any more.
    BackendsSettings {
        /// How long a backend stays, without instances, when its service is gone; 0s: it is deleted at once, which reloads [default: 10m]
        #[arg(id = "backend-linger", long = "backend-linger", env = "NOMAD_HAPROXY_BACKEND_LINGER", value_name = "TIME")]
        linger: Span,
    }
}

settings! {
    /// When passes run.
    ReconcileSettings {
        /// A pass at least this often [default: 30s]
        #[arg(long = "resync-interval", env = "NOMAD_HAPROXY_RESYNC_INTERVAL", value_name = "TIME")]
        resync_interval: Span,
        /// Changes this close together are taken together [default: 100ms]
        #[arg(long = "quiet-period", env = "NOMAD_HAPROXY_QUIET_PERIOD", value_name = "TIME")]
        quiet_period: Span,
        /// No change waits longer than this [default: 1s]
        #[arg(long = "max-wait", env = "NOMAD_HAPROXY_MAX_WAIT", value_name = "TIME")]
        max_wait: Span,
    }
}

settings! {
    /// Health and metrics.
    HttpSettings {
        /// Address for /healthz, /readyz and /metrics [default: 127.0.0.1:9471]
        #[arg(id = "http-listen", long = "http-listen", env = "NOMAD_HAPROXY_HTTP_LISTEN", value_name = "ADDRESS")]
        listen: SocketAddr,
    }
}

/// What the services of a namespace may do, beyond using the backend with the derived name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NamespaceSettings {
    /// Backends that they may make or share: names, or globs.
    pub backends: Vec<String>,
    /// Whether they may join backends that are not ours.
    pub join: bool,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// For programs.
    Json,
}

settings! {
    /// The log, on standard error.
    LogSettings {
        /// error, warn, info, debug or trace, or a filter of tracing-subscriber [default: info]
        #[arg(id = "log-level", long = "log-level", env = "NOMAD_HAPROXY_LOG_LEVEL", value_name = "LEVEL")]
        level: String,
        /// text or json [default: text at a terminal, json elsewhere]
        #[arg(id = "log-format", long = "log-format", env = "NOMAD_HAPROXY_LOG_FORMAT", value_name = "FORMAT")]
        format: LogFormat,
    }
}

/// All settings, as far as one source gives them.
#[derive(Debug, Clone, Default, Args, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// `nomad.*`
    #[command(flatten, next_help_heading = "Nomad")]
    pub nomad: NomadSettings,
    /// `haproxy.*` of the command line and the environment.
    #[command(flatten, next_help_heading = "HAProxy")]
    #[serde(skip)]
    pub haproxy: HaproxySettings,
    /// `haproxy` of the file: one, or a list.
    #[arg(skip)]
    #[serde(rename = "haproxy")]
    pub targets: TargetList,
    /// `tags.*`
    #[command(flatten, next_help_heading = "Tags and slots")]
    pub tags: TagSettings,
    /// `slots.*`
    #[command(flatten)]
    pub slots: SlotSettings,
    /// `backend.*`
    #[command(flatten)]
    pub backend: BackendsSettings,
    /// `guard.*`
    #[command(flatten, next_help_heading = "The guard")]
    pub guard: GuardSettings,
    /// Which removals need proof that the instance is gone: those beyond the guard's bounds (sync), or all of them (upsert-only) [default: sync]
    #[arg(long, hide_short_help = true, env = "NOMAD_HAPROXY_POLICY", value_name = "POLICY", global = true)]
    pub policy: Option<Policy>,
    /// `reload.*`
    #[command(flatten, next_help_heading = "The loop")]
    pub reload: ReloadSettings,
    /// `reconcile.*`
    #[command(flatten)]
    pub reconcile: ReconcileSettings,
    /// `http.*`
    #[command(flatten)]
    pub http: HttpSettings,
    /// `log.*`
    #[command(flatten)]
    pub log: LogSettings,
    /// `namespaces.NAME`, in the file only; the name may be a glob.
    #[arg(skip)]
    pub namespaces: BTreeMap<String, NamespaceSettings>,
}

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

impl Settings {
    /// Reads a JSON file.
    pub fn from_file(path: &Path) -> Result<Self, ConfigError> {
        let text =
            std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        serde_json::from_str(&text).map_err(|error| ConfigError::Form { path: path.to_owned(), message: form(&error) })
    }

    /// Merges this source over a weaker one. A secret and the file that holds it are one setting: if this source sets
    /// either of them, the weaker one sets neither.
    #[must_use]
    pub fn or(self, mut weaker: Self) -> Self {
        if self.nomad.token.is_some() || self.nomad.token_file.is_some() {
            (weaker.nomad.token, weaker.nomad.token_file) = (None, None);
        }
        let Self {
            nomad,
            haproxy,
            targets,
            tags,
            slots,
            backend,
            guard,
            policy,
            reload,
            reconcile,
            http,
            log,
            namespaces,
        } = self;
        Self {
            nomad: nomad.or(weaker.nomad),
            haproxy: haproxy.over(weaker.haproxy),
            targets: targets.or(weaker.targets),
            tags: tags.or(weaker.tags),
            slots: slots.or(weaker.slots),
            backend: backend.or(weaker.backend),
            guard: guard.or(weaker.guard),
            policy: policy.or(weaker.policy),
            reload: reload.or(weaker.reload),
            reconcile: reconcile.or(weaker.reconcile),
            http: http.or(weaker.http),
            log: log.or(weaker.log),
            namespaces: if namespaces.is_empty() { weaker.namespaces } else { namespaces },
        }
    }
}

impl Settings {
    /// The same between flags and environment, which clap returns as one source: of a secret and its file the flag
    /// wins. `is_flag` returns, by an argument's ID, whether it was given on the command line.
    pub fn prefer_flags(&mut self, is_flag: impl Fn(&str) -> bool) {
        let Self { nomad, haproxy, .. } = self;
        prefer("nomad-token", &mut nomad.token, "nomad-token-file", &mut nomad.token_file, &is_flag);
        prefer("password", &mut haproxy.password, "password_file", &mut haproxy.password_file, &is_flag);
    }
}

fn prefer<A, B>(a: &str, inline: &mut Option<A>, b: &str, file: &mut Option<B>, is_flag: impl Fn(&str) -> bool) {
    match (is_flag(a), is_flag(b)) {
        (true, false) => *file = None,
        (false, true) => *inline = None,
        // Both from one source: validation refuses that.
        (true, true) | (false, false) => {}
    }
}

/// serde quotes the value that it did not expect, which may be a password in the wrong place.
fn form(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.strip_prefix("invalid type: ").and_then(|rest| rest.split_once(", expected ")) {
        Some((_, expected)) => format!("a value has the wrong type, expected {expected}"),
        None => text,
    }
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
    /// From one reload to the next.
    pub reload_min_interval: Duration,
    /// When passes run.
    pub timings: Timings,
    /// Health and metrics.
    pub listen: SocketAddr,
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
            reload,
            reconcile,
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
            linger: backend.linger.map_or(BACKEND_LINGER, |span| span.0),
            reload_min_interval: reload.min_interval.map_or(RELOAD_MIN_INTERVAL, |span| span.0),
            timings: timings(&reconcile)?,
            listen: http.listen.map_or_else(
                || LISTEN.parse().map_err(|e: std::net::AddrParseError| wrong("http.listen", e.to_string())),
                Ok,
            )?,
        })
    }
}

fn grants(namespaces: BTreeMap<String, NamespaceSettings>) -> Result<Grants, ConfigError> {
    let grant = |NamespaceSettings { backends, join }| Grant { backends, join };
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

fn nomad_settings(settings: NomadSettings) -> Result<nomad::NomadConfig, ConfigError> {
    const ADDRESS: &str = "nomad.address (NOMAD_ADDR)";
    let address = settings.address.unwrap_or_else(|| NOMAD_ADDRESS.to_owned());
    check_address(ADDRESS, &address)?;
    // An empty token is no token, as in existing configuration files and in a shell's empty variable.
    let token = settings.token.filter(|token| !token.expose_secret().is_empty());
    let token = match (token, settings.token_file) {
        (Some(_), Some(_)) => return Err(wrong("nomad.token", "give the token or nomad.token_file, not both")),
        (Some(token), None) => nomad::Token::Inline(token),
        (None, Some(path)) => nomad::Token::File(path),
        (None, None) => nomad::Token::None,
    };
    let identity = identity("nomad.cert_file and nomad.key_file", settings.cert_file, settings.key_file)?;
    Ok(nomad::NomadConfig { address, token, region: settings.region, ca_file: settings.ca_file, identity })
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
    use super::*;

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
            (r#"{"haproxy": {"address": "http://h:5555"}}"#, "HAPROXY_PASSWORD"),
            (r#"{"haproxy": {"config_file": "/etc/h.cfg"}}"#, "master_socket"),
            (r#"{"haproxy": {"config_file": "/a", "address": "http://h"}}"#, "one of them"),
            (r#"{"haproxy": {"backend_strategy": "mine"}}"#, "use_existing"),
            (r#"{"slots": {"min_free": 9, "max": 3}}"#, "slots.max"),
            (r#"{"guard": {"share": "0.3"}}"#, "1% to 100%"),
            (r#"{"policy": "never"}"#, "upsert-only"),
            (r#"{"reconcile": {"resync_interval": "soon"}}"#, "500ms"),
            (r#"{"tags": {"prefix": ""}}"#, "tags.prefix"),
            (r#"{"namespaces": {"team-*": {"backend": ["x"]}}}"#, "unknown field `backend`"),
            (r#"{"namespaces": {"team-*": {"backends": ["x", "a["]}}}"#, "invalid glob \"a[\""),
            (r#"{"namespaces": {"team-*": {"join": "yes"}}}"#, "expected a boolean"),
        ] {
            let error = parse(json).expect_err(json);
            assert!(error.contains(words), "{json}: {error}");
        }
    }

    #[test]
    fn secrets_are_in_no_debug_print_and_no_error() {
        let json =
            r#"{"nomad": {"token": "s3cret-a"}, "haproxy": {"address": "http://h:5555", "password": "s3cret-b"}}"#;
        let settings: Settings = serde_json::from_str(json).expect("good settings");
        let printed = format!("{settings:?} {:?}", Config::try_from(settings.clone()));
        assert!(!printed.contains("s3cret"), "{printed}");
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
