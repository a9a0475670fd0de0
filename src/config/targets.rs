//! The HAProxys of the settings: one object, a list of them, or those that a Nomad service lists.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde::de::Error as _;
use serde_json::Value;

use crate::desired::{FrontendName, Invalid, Owner, ServiceKey, SlotPolicy};
use crate::haproxy::maps;
use crate::haproxy::socket::SocketAddress;
use crate::haproxy::version::Version;
use crate::leader::Lease;
use crate::plan::Strategy;
use crate::plane::dataplane::{self, Dataplane, DataplaneConfig, Password, Write};
use crate::plane::local::{Local, LocalConfig};
use crate::plane::{AccessError, Capabilities, Plane, VALIDATION_TIMEOUT};

use super::{
    ConfigError, HaproxySettings, OWNER, SLOTS_MAX, SLOTS_MIN_FREE, SlotSettings, check_address, identity,
    settings::form, wrong,
};

/// The setting, in messages.
const RUNTIME_SOCKET: &str = "haproxy.runtime_socket (HAPROXY_RUNTIME_SOCKET)";
/// The longest name of a HAProxy, in characters: it is in each line of the log and in each metric.
const LONGEST_NAME: usize = 100;

/// One entry of `haproxy` in the settings file.
#[derive(Debug, Clone, Default)]
pub struct TargetSettings {
    /// What is said of it.
    pub haproxy: HaproxySettings,
    /// Its own `slots`.
    pub slots: SlotSettings,
}

/// `haproxy` in the settings file.
#[derive(Debug, Clone, Default)]
pub enum TargetList {
    /// It is not there.
    #[default]
    None,
    /// An object: flags and environment go over it.
    One(Box<TargetSettings>),
    /// A list: flags and environment are what its entries have in common, so each entry goes over them.
    Many(Vec<TargetSettings>),
}

impl TargetList {
    /// This one, if it says anything, else the weaker one.
    #[must_use]
    pub fn or(self, weaker: Self) -> Self {
        if let Self::None = self { weaker } else { self }
    }
}

impl<'de> Deserialize<'de> for TargetList {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::Array(entries) => {
                let read = |(at, entry)| {
                    entry_of(entry).map_err(|(name, why)| D::Error::custom(named(at, name.as_deref(), &why)))
                };
                entries.into_iter().enumerate().map(read).collect::<Result<_, _>>().map(Self::Many)
            }
            one => match entry_of(one) {
                Ok(one) => Ok(Self::One(Box::new(one))),
                Err((_, why)) => Err(D::Error::custom(format!("haproxy: {why}"))),
            },
        }
    }
}

/// An entry, or its name and what is wrong with it.
fn entry_of(entry: Value) -> Result<TargetSettings, (Option<String>, String)> {
    let name = entry["name"].as_str().map(str::to_owned);
    let wrong = |error: serde_json::Error| (name.clone(), form(&error));
    let Value::Object(mut object) = entry else {
        return Err((None, "a value has the wrong type, expected an object".to_owned()));
    };
    let slots = object.remove("slots").map(serde_json::from_value).transpose().map_err(wrong)?;
    let haproxy = serde_json::from_value(Value::Object(object)).map_err(wrong)?;
    Ok(TargetSettings { haproxy, slots: slots.unwrap_or_default() })
}

/// An entry for people: which one of the list, and its name.
fn named(at: usize, name: Option<&str>, why: &dyn fmt::Display) -> String {
    let name = name.map(|name| format!(" ({name:?})")).unwrap_or_default();
    format!("haproxy[{at}]{name}: {why}")
}

/// How HAProxy is reached.
#[derive(Debug, Clone)]
pub enum PlaneSettings {
    /// By the Data Plane API.
    Dataplane(DataplaneConfig, Write),
    /// By its file and its master socket.
    Local(LocalConfig),
}

/// What is done on a HAProxy, however it is reached.
#[derive(Debug, Clone)]
pub struct TargetOptions {
    /// The owner in the marks of what is ours.
    pub owner: Owner,
    /// How long HAProxy may take to validate a configuration.
    pub validation_timeout: Duration,
    /// What to do about names that are taken.
    pub strategy: Strategy,
    /// Spare servers.
    pub slots: SlotPolicy,
    /// The frontend of services whose tags name none.
    pub frontend: Option<FrontendName>,
}

/// One HAProxy.
#[derive(Debug, Clone)]
pub struct TargetConfig {
    /// Unique among the HAProxys of a controller.
    pub name: String,
    /// How it is reached.
    pub plane: PlaneSettings,
    /// What is done there.
    pub options: TargetOptions,
}

impl TargetConfig {
    /// The way to it, for as long as the lease is good; nothing is sent yet.
    pub fn connect(&self, lease: &Lease) -> Result<Arc<dyn Plane>, AccessError> {
        self.plane(lease, |local| local)
    }

    /// The same, for `uninstall`.
    pub fn connect_to_uninstall(&self, lease: &Lease) -> Result<Arc<dyn Plane>, AccessError> {
        self.plane(lease, Local::without_version)
    }

    /// What is known of its HAProxy without asking: for a plan from files.
    pub fn capabilities_offline(&self, version: Option<Version>) -> Capabilities {
        let has_socket = match &self.plane {
            PlaneSettings::Local(_) => true,
            PlaneSettings::Dataplane(api, _) => api.runtime_socket.is_some(),
        };
        version
            .filter(|_| has_socket)
            .map_or(Capabilities { servers: has_socket, backends: false }, Capabilities::of_socket)
    }

    /// The folder of map files as the settings have it, or as it is by default with the Data Plane API.
    pub fn maps_folder_offline(&self) -> Option<&str> {
        match &self.plane {
            PlaneSettings::Local(local) => local.maps_dir.as_deref(),
            PlaneSettings::Dataplane(api, _) => Some(api.maps_dir.as_deref().unwrap_or(dataplane::MAPS_FOLDER)),
        }
    }

    fn plane(&self, lease: &Lease, local: impl FnOnce(Local) -> Local) -> Result<Arc<dyn Plane>, AccessError> {
        let Self { name: _, plane, options: TargetOptions { owner, validation_timeout, .. } } = self;
        Ok(match plane.clone() {
            PlaneSettings::Local(settings) => {
                let plane = Local::new(settings, owner.clone()).leased(lease.clone());
                Arc::new(local(plane.validating_within(*validation_timeout)))
            }
            PlaneSettings::Dataplane(settings, write) => {
                let plane = Dataplane::new(settings, owner.clone(), write)?.leased(lease);
                Arc::new(plane.validating_within(*validation_timeout))
            }
        })
    }
}

/// Data Plane APIs that register as a Nomad service: each is a HAProxy for as long as it is registered.
#[derive(Debug, Clone)]
pub struct ServiceConfig {
    /// The service. The credentials are sent to its addresses only.
    pub service: ServiceKey,
    /// Whether they are reached by TLS.
    pub tls: bool,
    /// How each is reached, but for its address.
    pub api: DataplaneConfig,
    /// How each is written.
    pub write: Write,
    /// What is done on each.
    pub options: TargetOptions,
}

impl ServiceConfig {
    /// The HAProxy behind one registration.
    pub fn target(&self, name: String, address: &str, port: u16) -> TargetConfig {
        let scheme = if self.tls { "https" } else { "http" };
        let host = if address.contains(':') { format!("[{address}]") } else { address.to_owned() };
        let api = DataplaneConfig { address: format!("{scheme}://{host}:{port}"), ..self.api.clone() };
        TargetConfig { name, plane: PlaneSettings::Dataplane(api, self.write), options: self.options.clone() }
    }
}

/// All HAProxys of the settings.
#[derive(Debug, Clone)]
pub struct Targets {
    /// What is done on a HAProxy that no entry is about: the configuration of an offline plan.
    pub common: TargetOptions,
    /// Those that the settings name.
    pub fixed: Vec<TargetConfig>,
    /// Those that Nomad lists.
    pub services: Vec<ServiceConfig>,
}

/// What one entry sets up.
enum Entry {
    Fixed(TargetConfig),
    Service(ServiceConfig),
}

impl Targets {
    /// Validates the entries. `common` are flags and environment, `slots` those of all.
    pub fn new(common: &HaproxySettings, list: TargetList, slots: &SlotSettings) -> Result<Self, ConfigError> {
        let one = match &list {
            TargetList::One(one) => common.clone().over(one.haproxy.clone()),
            TargetList::None | TargetList::Many(_) => common.clone(),
        };
        let options = options(&one, slots)?;
        let mut targets = Self { common: options, fixed: Vec::new(), services: Vec::new() };
        match list {
            TargetList::None => targets.extend(entry(one, slots)?),
            TargetList::One(settings) => targets.extend(entry(one, &settings.slots.or(slots.clone()))?),
            TargetList::Many(entries) if entries.is_empty() => {
                return Err(wrong("haproxy", "the list is empty: name one HAProxy at least, or leave the key out"));
            }
            TargetList::Many(entries) => {
                for (at, TargetSettings { haproxy, slots: own }) in entries.into_iter().enumerate() {
                    let name = haproxy.name.clone();
                    let in_entry = |source: ConfigError| ConfigError::Entry(named(at, name.as_deref(), &source));
                    let entry = entry(haproxy.over(common.clone()), &own.or(slots.clone())).map_err(in_entry)?;
                    let Some(entry) = entry else {
                        return Err(in_entry(wrong(
                            "address, config_file or service",
                            "give one of them: the Data Plane API, a configuration file on this machine, or the \
                             Nomad service whose registrations are Data Plane APIs",
                        )));
                    };
                    targets.refuse_twice(&entry).map_err(in_entry)?;
                    targets.extend(Some(entry));
                }
            }
        }
        Ok(targets)
    }

    fn extend(&mut self, entry: Option<Entry>) {
        match entry {
            Some(Entry::Fixed(target)) => self.fixed.push(target),
            Some(Entry::Service(service)) => self.services.push(service),
            None => {}
        }
    }

    fn refuse_twice(&self, entry: &Entry) -> Result<(), ConfigError> {
        match entry {
            Entry::Fixed(target) => {
                if let Some(other) = self.fixed.iter().find(|other| place(other) == place(target)) {
                    let why = format!("{} is the HAProxy of {:?} already", place(target), other.name);
                    return Err(wrong("address or config_file", why));
                }
                if self.fixed.iter().any(|other| other.name == target.name) {
                    return Err(wrong("name", format!("another entry is called {:?}: give each its own", target.name)));
                }
            }
            Entry::Service(service) => {
                if self.services.iter().any(|other| other.service == service.service) {
                    return Err(wrong("service", format!("another entry has {} already", service.service)));
                }
            }
        }
        Ok(())
    }

    /// Has each take over what carries the mark of another owner. The error is that there is no other.
    pub fn adopt(&mut self, other: &Owner) -> Result<(), ConfigError> {
        let options = self.fixed.iter_mut().map(|target| &mut target.options);
        let options = options.chain(self.services.iter_mut().map(|service| &mut service.options));
        let mut is_other = false;
        for TargetOptions { owner, .. } in options.chain([&mut self.common]) {
            is_other |= owner.name() != other.name();
            *owner = owner.clone().adopting(other);
        }
        if is_other {
            return Ok(());
        }
        let why =
            format!("{} is the owner in the settings: set the new one first, then take over the old one", other.name());
        Err(wrong("--adopt", why))
    }

    /// Whether there can be only one HAProxy, so that it needs no name.
    pub fn is_single(&self) -> bool {
        self.services.is_empty() && self.fixed.len() <= 1
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.fixed.is_empty() && self.services.is_empty()
    }
}

/// Where a HAProxy is.
fn place(target: &TargetConfig) -> String {
    match &target.plane {
        PlaneSettings::Dataplane(api, _) => api.address.clone(),
        PlaneSettings::Local(local) => local.config_file.display().to_string(),
    }
}

fn options(settings: &HaproxySettings, slots: &SlotSettings) -> Result<TargetOptions, ConfigError> {
    let slots = SlotPolicy { min_free: slots.min_free.unwrap_or(SLOTS_MIN_FREE), max: slots.max.unwrap_or(SLOTS_MAX) };
    if slots.max < slots.min_free {
        return Err(wrong("slots.max", format!("it is {}, below slots.min_free ({})", slots.max, slots.min_free)));
    }
    let owner = settings.owner.as_deref().unwrap_or(OWNER);
    Ok(TargetOptions {
        owner: owner.parse().map_err(|e: Invalid| wrong("haproxy.owner (HAPROXY_OWNER)", e.to_string()))?,
        validation_timeout: settings.validation_timeout.map_or(VALIDATION_TIMEOUT, |span| span.0),
        strategy: settings.backend_strategy.unwrap_or_default(),
        slots,
        frontend: settings
            .frontend
            .as_deref()
            .map(|name| name.parse().map_err(|e: Invalid| wrong("haproxy.frontend (HAPROXY_FRONTEND)", e.to_string())))
            .transpose()?,
    })
}

fn maps_dir(folder: String) -> Result<String, ConfigError> {
    if !maps::is_plain_folder(&folder) {
        let why = format!("{folder:?} should be an absolute path of letters, digits and / - _ . + @ only");
        return Err(wrong("haproxy.maps_dir (HAPROXY_MAPS_DIR)", why));
    }
    Ok(folder)
}

fn entry(settings: HaproxySettings, slots: &SlotSettings) -> Result<Option<Entry>, ConfigError> {
    let options = options(&settings, slots)?;
    let given = [settings.address.is_some(), settings.config_file.is_some(), settings.service.is_some()];
    if given.iter().filter(|given| **given).count() > 1 {
        return Err(wrong(
            "haproxy.address, haproxy.config_file and haproxy.service",
            "give one of them: the Data Plane API, a configuration file on this machine, or the Nomad service whose \
             registrations are Data Plane APIs",
        ));
    }
    if let Some(service) = settings.service.clone() {
        return service_entry(&service, settings, options).map(Entry::Service).map(Some);
    }
    let name = settings.name.clone();
    let (plane, default) = match (&settings.address, &settings.config_file) {
        (Some(address), _) => {
            let address = address.clone();
            check_address("haproxy.address (HAPROXY_DATAPLANE_URL)", &address)?;
            let name = default_name(&address);
            let write = settings.write.unwrap_or_default();
            (PlaneSettings::Dataplane(api(settings, address)?, write), name)
        }
        (None, Some(file)) => {
            let name = file.display().to_string();
            (local(settings)?, name)
        }
        (None, None) => return Ok(None),
    };
    let name = name.unwrap_or(default);
    check_name(&name)?;
    Ok(Some(Entry::Fixed(TargetConfig { name, plane, options })))
}

/// Host and port; of a socket its path.
fn default_name(address: &str) -> String {
    if let Some(path) = address.strip_prefix("unix://") {
        return path.to_owned();
    }
    let url = reqwest::Url::parse(address).ok();
    let name = url.as_ref().and_then(|url| Some(format!("{}:{}", url.host_str()?, url.port_or_known_default()?)));
    name.unwrap_or_else(|| address.to_owned())
}

/// Whether a HAProxy can be called this: names are in tags, in logs and in the labels of metrics.
pub fn is_name(name: &str) -> bool {
    let is_bad = |c: char| c == ',' || c.is_whitespace() || c.is_control();
    !name.is_empty() && !name.contains(is_bad) && name.chars().count() <= LONGEST_NAME
}

fn check_name(name: &str) -> Result<(), ConfigError> {
    if !is_name(name) {
        let why = format!("{name:?} is no name: use 1 to {LONGEST_NAME} characters without commas and spaces");
        return Err(wrong("haproxy.name (HAPROXY_NAME)", why));
    }
    Ok(())
}

fn service_entry(
    service: &str,
    settings: HaproxySettings,
    options: TargetOptions,
) -> Result<ServiceConfig, ConfigError> {
    const SERVICE: &str = "haproxy.service (HAPROXY_SERVICE)";
    if settings.name.is_some() {
        return Err(wrong("haproxy.name (HAPROXY_NAME)", "HAProxys of haproxy.service are named by their nodes"));
    }
    refuse_runtime_socket(
        &settings,
        "it is the socket of one HAProxy, and haproxy.service lists several: leave it out, or give each its own entry \
         with haproxy.address",
    )?;
    let (namespace, name) = service.split_once('/').unwrap_or(("default", service));
    if namespace.is_empty() || name.is_empty() || name.contains('/') || namespace == "*" {
        return Err(wrong(SERVICE, "it should be NAME, or NAMESPACE/NAME where the namespace is not `default`"));
    }
    let tls = settings.tls.unwrap_or(settings.ca_file.is_some());
    let write = settings.write.unwrap_or_default();
    Ok(ServiceConfig {
        service: ServiceKey { namespace: namespace.to_owned(), name: name.to_owned() },
        tls,
        api: api(settings, String::new())?,
        write,
        options,
    })
}

fn api(settings: HaproxySettings, address: String) -> Result<DataplaneConfig, ConfigError> {
    let password = match (settings.password, settings.password_file) {
        (Some(_), Some(_)) => {
            return Err(wrong("haproxy.password", "give the password or haproxy.password_file, not both"));
        }
        (Some(password), None) => Password::Inline(password),
        (None, Some(path)) => Password::File(path),
        (None, None) => {
            return Err(wrong(
                "haproxy.password (HAPROXY_PASSWORD)",
                "the Data Plane API needs one; or haproxy.password_file",
            ));
        }
    };
    Ok(DataplaneConfig {
        address,
        username: settings.username.unwrap_or_else(|| "admin".to_owned()),
        password,
        ca_file: settings.ca_file,
        identity: identity("haproxy.cert_file and haproxy.key_file", settings.cert_file, settings.key_file)?,
        runtime_socket: settings.runtime_socket.as_deref().map(runtime_socket).transpose()?,
        maps_dir: settings.maps_dir.map(maps_dir).transpose()?,
    })
}

fn runtime_socket(text: &str) -> Result<SocketAddress, ConfigError> {
    match text.parse() {
        Ok(address) if !text.is_empty() && !text.contains("://") => Ok(address),
        _ => Err(wrong(RUNTIME_SOCKET, "name a path, or HOST:PORT")),
    }
}

/// A run-time socket belongs to one HAProxy that is reached by the Data Plane API.
fn refuse_runtime_socket(settings: &HaproxySettings, why: &str) -> Result<(), ConfigError> {
    settings.runtime_socket.as_ref().map_or(Ok(()), |_| Err(wrong(RUNTIME_SOCKET, why)))
}

fn local(settings: HaproxySettings) -> Result<PlaneSettings, ConfigError> {
    refuse_runtime_socket(
        &settings,
        "leave it out where haproxy.config_file is set: there the master socket does the same",
    )?;
    let Some(master_socket) = settings.master_socket else {
        return Err(wrong(
            "haproxy.master_socket (HAPROXY_MASTER_SOCKET)",
            "haproxy.config_file needs it: start HAProxy with -W -S SOCKET and name the socket here",
        ));
    };
    Ok(PlaneSettings::Local(LocalConfig {
        config_file: settings.config_file.unwrap_or_default(),
        master_socket,
        binary: settings.binary.unwrap_or_else(|| PathBuf::from("haproxy")),
        working_directory: settings.working_directory,
        environment_file: settings.environment_file,
        files: settings.files.unwrap_or_default(),
        maps_dir: settings.maps_dir.map(maps_dir).transpose()?,
    }))
}

impl HaproxySettings {
    /// What this source says, over what a weaker one says. The ways to reach HAProxy are one setting, and so are a
    /// password and the file that holds it: where this source gives one of them, the weaker one gives none.
    #[must_use]
    pub fn over(self, mut weaker: Self) -> Self {
        if self.address.is_some() || self.config_file.is_some() || self.service.is_some() {
            (weaker.address, weaker.config_file, weaker.service) = (None, None, None);
        }
        if self.password.is_some() || self.password_file.is_some() {
            (weaker.password, weaker.password_file) = (None, None);
        }
        self.or(weaker)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Settings};

    fn targets(haproxy: &str, flags: &str) -> Result<Targets, String> {
        let file = format!("{{\"haproxy\": {haproxy}}}");
        let file: Settings = serde_json::from_str(&file).map_err(|error| form(&error))?;
        let haproxy = serde_json::from_str(flags).expect("good flags");
        let flags = Settings { haproxy, ..Settings::default() };
        Config::try_from(flags.or(file)).map(|config| config.targets).map_err(|error| error.to_string())
    }

    fn names(targets: &Targets) -> Vec<&str> {
        targets.fixed.iter().map(|target| target.name.as_str()).collect()
    }

    #[test]
    fn a_list_takes_from_the_flags_what_its_entries_leave_out() {
        let list = r#"[
            {"name": "a", "address": "http://a:5555"},
            {"address": "https://b.test", "password_file": "/b", "slots": {"min_free": 0}, "owner": "b"},
            {"config_file": "/c.cfg", "master_socket": "/c.sock"},
            {"service": "edge/api"}
        ]"#;
        let flags = r#"{"password": "p", "address": "http://flag:1", "owner": "flag"}"#;
        let all = targets(list, flags).expect("good settings");
        assert_eq!(names(&all), ["a", "b.test:443", "/c.cfg"]);
        let owners: Vec<_> = all.fixed.iter().map(|target| target.options.owner.clone()).collect();
        assert_eq!(owners, ["flag", "b", "flag"].map(|owner| owner.parse().expect("an owner")));
        let slots: Vec<_> = all.fixed.iter().map(|target| target.options.slots.min_free).collect();
        assert_eq!(slots, [4, 0, 4]);
        assert!(
            matches!(&all.fixed[1].plane, PlaneSettings::Dataplane(api, _) if matches!(api.password, Password::File(_)))
        );
        assert_eq!(all.services[0].service.to_string(), "edge/api");
        assert!(!all.is_single());
    }

    #[test]
    fn of_one_object_the_flags_win() {
        let one = targets(r#"{"address": "http://a:5555", "password": "p"}"#, r#"{"owner": "flag"}"#).expect("good");
        assert_eq!((names(&one), one.is_single()), (vec!["a:5555"], true));
        let one = targets(
            r#"{"address": "http://a:5555", "password": "p"}"#,
            r#"{"config_file": "/c.cfg", "master_socket": "/c.sock"}"#,
        );
        assert_eq!(names(&one.expect("good")), ["/c.cfg"]);
        assert!(targets("{}", "{}").expect("good").is_empty());
    }

    #[test]
    fn a_fault_names_its_entry() {
        let password = r#"{"password": "s3cret"}"#;
        for (list, words) in [
            ("[]", "the list is empty"),
            (
                r#"[{"name": "a", "address": "http://a"}, {"name": "a", "address": "http://b"}]"#,
                r#"haproxy[1] ("a"): name: another entry is called "a""#,
            ),
            (
                r#"[{"name": "a", "address": "http://a"}, {"name": "b", "address": "http://a"}]"#,
                r#"haproxy[1] ("b"): address or config_file: http://a is the HAProxy of "a" already"#,
            ),
            (
                r#"[{"address": "http://a"}, {"name": "b"}]"#,
                r#"haproxy[1] ("b"): address, config_file or service: give one of them"#,
            ),
            (
                r#"[{"address": "http://a", "config_file": "/c"}]"#,
                "haproxy[0]: haproxy.address, haproxy.config_file and haproxy.service: give one",
            ),
            (r#"[{"name": "a", "adress": "http://a"}]"#, r#"haproxy[0] ("a"): unknown field `adress`"#),
            (r#"[{"name": "a", "slots": {"min": 1}}]"#, r#"haproxy[0] ("a"): unknown field `min`"#),
            (r#"[{"address": "http://a", "slots": {"min_free": 9, "max": 3}}]"#, "haproxy[0]: slots.max: it is 3"),
            (r#"["http://a"]"#, "haproxy[0]: a value has the wrong type, expected an object"),
            (r#"[{"name": "a", "password": 7}]"#, r#"haproxy[0] ("a"): a value has the wrong type"#),
            (r#"[{"name": "a b", "address": "http://a"}]"#, "without commas and spaces"),
            (r#"[{"config_file": "/c"}]"#, "haproxy[0]: haproxy.master_socket"),
            (
                r#"[{"config_file": "/c", "master_socket": "/m", "runtime_socket": "/s"}]"#,
                "haproxy[0]: haproxy.runtime_socket (HAPROXY_RUNTIME_SOCKET)",
            ),
            (r#"[{"service": "a", "runtime_socket": "/s"}]"#, "give each its own entry"),
            (r#"[{"address": "http://a", "runtime_socket": "unix:///s"}]"#, "name a path, or HOST:PORT"),
            (r#"[{"service": "a/b/c"}]"#, "NAMESPACE/NAME"),
            (r#"[{"service": "a", "name": "b"}]"#, "named by their nodes"),
            (r#"[{"service": "a"}, {"service": "default/a"}]"#, "haproxy[1]: service: another entry has a already"),
        ] {
            let error = targets(list, password).expect_err(list);
            assert!(error.contains(words) && !error.contains("s3cret"), "{list}: {error}");
        }
        let error = targets(r#"[{"name": "a", "address": "http://a"}]"#, "{}").expect_err("no password");
        assert!(error.starts_with(r#"haproxy[0] ("a"): haproxy.password"#), "{error}");
    }
}
