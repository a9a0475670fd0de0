//! What one source of settings may give: the command line and the environment, or the JSON file; and how a stronger
//! source overrides a weaker one.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, ValueEnum};
use secrecy::SecretString;
use serde::Deserialize;

use crate::plan::Strategy;
use crate::plan::guard::{Policy, Share};
use crate::plane::dataplane::Write;

use super::{ConfigError, TargetList};

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
            pub(super) fn or(self, weaker: Self) -> Self {
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
        /// The socket of the Task API, which Nomad names to its tasks: used if there is a token, and no nomad.address
        #[arg(id = "nomad-unix-address", long = "nomad-unix-address", env = "NOMAD_UNIX_ADDR", value_name = "URL")]
        unix_address: String,
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
        /// Takes answers of any Nomad server that has heard from the leader within this time, for what was added or changed [default: only the leader's]
        #[arg(id = "nomad-max-stale", long = "nomad-max-stale", env = "NOMAD_HAPROXY_MAX_STALE", value_name = "TIME")]
        max_stale: Span,
        /// CA certificate to trust, PEM
        #[arg(id = "nomad-ca-file", long = "nomad-ca-file", env = "NOMAD_CACERT", value_name = "FILE")]
        ca_file: PathBuf,
        /// Client certificate, PEM
        #[arg(id = "nomad-cert-file", long = "nomad-cert-file", env = "NOMAD_CLIENT_CERT", value_name = "FILE")]
        cert_file: PathBuf,
        /// Key of the client certificate, PEM
        #[arg(id = "nomad-key-file", long = "nomad-key-file", env = "NOMAD_CLIENT_KEY", value_name = "FILE")]
        key_file: PathBuf,
        /// The name that Nomad's certificate is for, where it is not the host in its address, such as server.global.nomad
        #[arg(id = "nomad-tls-server-name", long = "nomad-tls-server-name", env = "NOMAD_TLS_SERVER_NAME", value_name = "NAME")]
        tls_server_name: String,
        /// Takes any certificate of Nomad: anybody on the way can read the token, and say what is routed where [default: false]
        #[arg(id = "nomad-skip-verify", long = "nomad-skip-verify", env = "NOMAD_SKIP_VERIFY", value_parser = clap::builder::BoolishValueParser::new(), value_name = "BOOL")]
        skip_verify: bool,
        /// USER:PASSWORD for a proxy in front of Nomad
        #[arg(id = "nomad-http-auth", long = "nomad-http-auth", env = "NOMAD_HTTP_AUTH", hide_env_values = true, value_parser = secret, value_name = "USER:PASSWORD")]
        http_auth: SecretString,
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
        /// With haproxy.address: a stats socket of the same HAProxy, of level admin: a path, or HOST:PORT; then servers are added without a reload
        #[arg(long = "haproxy-runtime-socket", env = "HAPROXY_RUNTIME_SOCKET", value_name = "SOCKET")]
        runtime_socket: String,
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
        /// The frontend that routes to services whose tags name hosts and no frontend
        #[arg(id = "haproxy-frontend", long = "haproxy-frontend", env = "HAPROXY_FRONTEND", value_name = "NAME")]
        frontend: String,
        /// The folder of map files, as HAProxy finds it [default: that of haproxy.config_file; with the Data Plane API its maps_dir]
        #[arg(long = "haproxy-maps-dir", env = "HAPROXY_MAPS_DIR", value_name = "FOLDER")]
        maps_dir: String,
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
    /// When a HAProxy that gives no answer is left alone.
    BreakerSettings {
        /// After this many passes in a row without an answer, only probes are sent [default: 5]
        #[arg(id = "breaker-failure-threshold", long = "breaker-failure-threshold", env = "NOMAD_HAPROXY_BREAKER_FAILURE_THRESHOLD", value_name = "N")]
        failure_threshold: u32,
        /// From there to the first probe, and from one to the next [default: 10s]
        #[arg(id = "breaker-reset-timeout", long = "breaker-reset-timeout", env = "NOMAD_HAPROXY_BREAKER_RESET_TIMEOUT", value_name = "TIME")]
        reset_timeout: Span,
        /// Probes in a row that must be answered before the next pass [default: 1]
        #[arg(id = "breaker-probes", long = "breaker-probes", env = "NOMAD_HAPROXY_BREAKER_PROBES", value_name = "N")]
        probes: u32,
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
    /// Which of several controllers acts.
    LeaderSettings {
        /// A Nomad variable: of the controllers that name it, the one that holds its lock acts [default: none, and each acts]
        #[arg(id = "leader-lock", long = "leader-lock", env = "NOMAD_HAPROXY_LEADER_LOCK", value_name = "PATH")]
        lock: String,
        /// The variable's namespace [default: default]
        #[arg(id = "leader-namespace", long = "leader-namespace", env = "NOMAD_HAPROXY_LEADER_NAMESPACE", value_name = "NAME")]
        namespace: String,
        /// How long the leader may write after its last contact with Nomad; a killed one is replaced after twice this time and 5s [default: 10s]
        #[arg(id = "leader-ttl", long = "leader-ttl", env = "NOMAD_HAPROXY_LEADER_TTL", value_name = "TIME")]
        ttl: Span,
    }
}

/// The HTTP listener, and who may use what is protected there.
#[derive(Debug, Clone, Default, Args, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HttpSettings {
    /// Address for health, metrics and the API [default: 127.0.0.1:9471]
    #[arg(global = true, hide_short_help = true)]
    #[arg(id = "http-listen", long = "http-listen", env = "NOMAD_HAPROXY_HTTP_LISTEN", value_name = "ADDRESS")]
    pub listen: Option<SocketAddr>,
    /// Bearer token for the protected part of the API; in the log its user is called admin
    #[arg(global = true, hide_short_help = true)]
    #[arg(id = "http-token", long = "http-token", env = "NOMAD_HAPROXY_HTTP_TOKEN", hide_env_values = true, value_parser = secret, value_name = "TOKEN")]
    pub token: Option<SecretString>,
    /// File with that token, read again for each request
    #[arg(global = true, hide_short_help = true)]
    #[arg(
        id = "http-token-file",
        long = "http-token-file",
        env = "NOMAD_HAPROXY_HTTP_TOKEN_FILE",
        value_name = "FILE"
    )]
    pub token_file: Option<PathBuf>,
    /// Tokens by the names of their users, in the file only.
    #[arg(skip)]
    pub tokens: BTreeMap<String, SecretString>,
    /// Files with such tokens, in the file only.
    #[arg(skip)]
    pub token_files: BTreeMap<String, PathBuf>,
    /// Key for X-Admin-Key, which a recovery of HAProxy needs in addition to a token
    #[arg(global = true, hide_short_help = true)]
    #[arg(id = "http-admin-key", long = "http-admin-key", env = "NOMAD_HAPROXY_HTTP_ADMIN_KEY", hide_env_values = true, value_parser = secret, value_name = "KEY")]
    pub admin_key: Option<SecretString>,
    /// File with that key, read again for each request
    #[arg(global = true, hide_short_help = true)]
    #[arg(
        id = "http-admin-key-file",
        long = "http-admin-key-file",
        env = "NOMAD_HAPROXY_HTTP_ADMIN_KEY_FILE",
        value_name = "FILE"
    )]
    pub admin_key_file: Option<PathBuf>,
}

impl HttpSettings {
    pub(super) fn or(self, weaker: Self) -> Self {
        let Self { listen, token, token_file, tokens, token_files, admin_key, admin_key_file } = self;
        let has_token = token.is_some() || token_file.is_some();
        let has_key = admin_key.is_some() || admin_key_file.is_some();
        Self {
            listen: listen.or(weaker.listen),
            token: token.or(weaker.token.filter(|_| !has_token)),
            token_file: token_file.or(weaker.token_file.filter(|_| !has_token)),
            tokens: if tokens.is_empty() { weaker.tokens } else { tokens },
            token_files: if token_files.is_empty() { weaker.token_files } else { token_files },
            admin_key: admin_key.or(weaker.admin_key.filter(|_| !has_key)),
            admin_key_file: admin_key_file.or(weaker.admin_key_file.filter(|_| !has_key)),
        }
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
    /// Hosts that they may claim: names, or globs.
    pub domains: Option<Vec<String>>,
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
    /// `breaker.*`
    #[command(flatten, next_help_heading = "The loop")]
    pub breaker: BreakerSettings,
    /// `reload.*`
    #[command(flatten)]
    pub reload: ReloadSettings,
    /// `reconcile.*`
    #[command(flatten)]
    pub reconcile: ReconcileSettings,
    /// `leader.*`
    #[command(flatten)]
    pub leader: LeaderSettings,
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
            breaker,
            reload,
            reconcile,
            leader,
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
            breaker: breaker.or(weaker.breaker),
            reload: reload.or(weaker.reload),
            reconcile: reconcile.or(weaker.reconcile),
            leader: leader.or(weaker.leader),
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
        let Self { nomad, haproxy, http, .. } = self;
        prefer("nomad-token", &mut nomad.token, "nomad-token-file", &mut nomad.token_file, &is_flag);
        prefer("password", &mut haproxy.password, "password_file", &mut haproxy.password_file, &is_flag);
        prefer("http-token", &mut http.token, "http-token-file", &mut http.token_file, &is_flag);
        prefer("http-admin-key", &mut http.admin_key, "http-admin-key-file", &mut http.admin_key_file, &is_flag);
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
pub(super) fn form(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.strip_prefix("invalid type: ").and_then(|rest| rest.split_once(", expected ")) {
        Some((_, expected)) => format!("a value has the wrong type, expected {expected}"),
        None => text,
    }
}
