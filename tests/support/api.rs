//! The planes that the suite runs on: the local one, and the Data Plane API: the real one if a `dataplaneapi` is on the
//! PATH (or `DATAPLANEAPI_BIN` names one), else the fake one.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use nomad_haproxy::haproxy::text::ConfigText;
use serde_json::{Value, json};

use super::controller::Env;
use super::fake_api::FakeApi;
use super::gate::Gate;
use super::haproxy::{Haproxy, foreign_bytes, foreign_meaning};
use super::process::Group;
use super::{free_port, wait_for};

/// The plane to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Local,
    Api,
}

impl Way {
    /// The state of a server whose instance is gone: where there is a socket of the process, the server is removed.
    pub fn gone(self) -> &'static str {
        match self {
            Self::Local => "missing",
            Self::Api => "maint",
        }
    }
}

pub const WAYS: [Way; 2] = [Way::Local, Way::Api];

/// A real Data Plane API, if there is one.
pub fn real() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("DATAPLANEAPI_BIN") {
        return Some(path.into());
    }
    let paths = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&paths).map(|folder| folder.join("dataplaneapi")).find(|path| path.is_file())
}

/// Which API it is, for the summary of the tests.
pub fn which() -> String {
    match real() {
        Some(path) => format!("the real Data Plane API, {}", path.display()),
        None => "the tests' fake Data Plane API (no dataplaneapi on the PATH)".to_owned(),
    }
}

enum Process {
    Real(Group),
    Fake(tokio::task::JoinHandle<()>),
    /// Killed; with what is needed to start it again.
    Gone,
}

/// How an API is started.
enum Recipe {
    Real { path: PathBuf, file: PathBuf, log: PathBuf },
    Fake(Arc<FakeApi>),
}

/// Part of the metadata of every server of ours.
const OWNER: &str = "\"owner\":\"nomad\"";

/// A running Data Plane API.
pub struct Api {
    pub url: String,
    process: Process,
    recipe: Recipe,
}

impl Api {
    pub async fn start(haproxy: &Haproxy, series: &str) -> Self {
        match real() {
            Some(path) => Self::start_real(&path, haproxy).await,
            None => {
                let fake = FakeApi::new(&haproxy.config(), &haproxy.binary, &haproxy.master(), series);
                let (url, task) = fake.serve().await;
                Self { url, process: Process::Fake(task), recipe: Recipe::Fake(fake) }
            }
        }
    }

    async fn start_real(path: &Path, haproxy: &Haproxy) -> Self {
        let folder = haproxy.folder();
        let (port, master) = (free_port(), haproxy.master());
        for name in ["tx", "maps", "ssl", "general", "storage", "spoe", "spoe-tx"] {
            fs::create_dir_all(folder.join(name)).unwrap();
        }
        let reload = folder.join("reload.sh");
        // The master answers `Success=1` once the new worker runs.
        let script = format!(
            "#!/bin/sh\necho reload | socat -t60 - UNIX-CONNECT:{} | tee /dev/stderr | grep -q Success=1\n",
            master.display()
        );
        fs::write(&reload, script).unwrap();
        Command::new("chmod").arg("+x").arg(&reload).status().unwrap();
        let config = format!(
            "config_version: 2\nname: test\ndataplaneapi:\n  host: 127.0.0.1\n  port: {port}\n  scheme:\n  - http\n  user:\n  - name: admin\n    password: secret\n    insecure: true\n\
             \x20 transaction:\n    transaction_dir: {dir}/tx\n  resources:\n    maps_dir: {dir}/maps\n    ssl_certs_dir: {dir}/ssl\n    general_storage_dir: {dir}/general\n\
             \x20   dataplane_storage_dir: {dir}/storage\n    spoe_dir: {dir}/spoe\n    spoe_transaction_dir: {dir}/spoe-tx\n\
             haproxy:\n  config_file: {config}\n  haproxy_bin: {binary}\n  master_runtime: {master}\n  master_worker_mode: true\n\
             \x20 reload:\n    reload_delay: 1\n    reload_strategy: custom\n    reload_cmd: {reload}\n    restart_cmd: {reload}\n",
            dir = folder.display(),
            config = haproxy.config().display(),
            binary = haproxy.binary.display(),
            master = master.display(),
            reload = reload.display(),
        );
        let file = folder.join("dataplaneapi.yml");
        fs::write(&file, config).unwrap();
        let url = format!("http://127.0.0.1:{port}");
        let recipe = Recipe::Real { path: path.to_owned(), file, log: folder.join("dataplaneapi.log") };
        let mut api = Self { url, process: Process::Gone, recipe };
        api.launch().await;
        api
    }

    /// Ends it at once.
    pub fn kill(&mut self) {
        match std::mem::replace(&mut self.process, Process::Gone) {
            Process::Real(mut group) => group.kill(),
            Process::Fake(task) => task.abort(),
            Process::Gone => {}
        }
    }

    /// Starts it, for the first time or after [`Self::kill`].
    pub async fn launch(&mut self) {
        self.process = match &self.recipe {
            Recipe::Real { path, file, log } => {
                let log = fs::File::options().create(true).append(true).open(log).unwrap();
                Process::Real(Group::spawn(
                    Command::new(path).arg("-f").arg(file).stdout(log.try_clone().unwrap()).stderr(log),
                ))
            }
            Recipe::Fake(fake) => Process::Fake(fake.serve_at(self.url.trim_start_matches("http://")).await.1),
        };
        let url = &self.url;
        wait_for("the Data Plane API to answer", Duration::from_secs(120), async || {
            let request = reqwest::Client::new().get(format!("{url}/v3/info")).basic_auth("admin", Some("secret"));
            request.send().await.ok().filter(|response| response.status().is_success()).map(drop)
        })
        .await;
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A HAProxy and a plane.
pub struct Rig {
    pub haproxy: Haproxy,
    pub api: Option<Api>,
    pub series: String,
}

impl Rig {
    pub async fn start(way: Way, series: &str) -> Self {
        Self::with(way, series, Haproxy::start(series).await).await
    }

    pub async fn with(way: Way, series: &str, haproxy: Haproxy) -> Self {
        let api = match way {
            Way::Local => None,
            Way::Api => Some(Api::start(&haproxy, series).await),
        };
        Self { haproxy, api, series: series.to_owned() }
    }

    /// A foreign edit, which is not loaded: in the file, or through the API.
    pub async fn edit(&self, change: impl Fn(String) -> String) {
        let before = self.haproxy.text();
        let after = change(before.clone());
        assert_ne!(before, after, "the edit has something to change");
        let Some(api) = &self.api else { return fs::write(self.haproxy.config(), after).unwrap() };
        let version = ConfigText::new(&before).version().unwrap();
        let url = format!("{}/v3/services/haproxy/configuration/raw?skip_reload=true&version={version}", api.url);
        let request = reqwest::Client::new().post(url).basic_auth("admin", Some("secret"));
        let response = request.header("Content-Type", "text/plain").body(after).send().await.unwrap();
        assert_eq!(response.status(), 201, "{}", response.text().await.unwrap());
    }

    /// An edit of the file by hand, which is not loaded; also if there is an API, which is bypassed.
    pub async fn edit_by_hand(&self, change: impl Fn(String) -> String) {
        let before = self.haproxy.text();
        let after = change(before.clone());
        assert_ne!(before, after, "the edit has something to change");
        fs::write(self.haproxy.config(), &after).unwrap();
        if let Some(api) = &self.api {
            // It watches the file, and writes what it has read once more, at the next version.
            wait_for("the API to have read the file", Duration::from_secs(20), async || {
                let request = reqwest::Client::new().get(format!("{}/v3/info", api.url));
                let asked = request.basic_auth("admin", Some("secret")).send().await;
                (asked.is_ok() && self.haproxy.text() != after).then_some(())
            })
            .await;
        }
    }

    /// What must stay as it is: to the byte, or in meaning on the API, which renders the file with every write.
    pub fn foreign(&self) -> Vec<String> {
        match self.api {
            None => vec![foreign_bytes(&self.haproxy.text())],
            Some(_) => foreign_meaning(&self.haproxy.text()),
        }
    }

    /// File and process agree on every server of ours, of which there is at least one.
    pub async fn agrees(&self) {
        let compared = self.compare().await;
        assert!(compared > 0, "no server of ours to compare in:\n{}", self.haproxy.text());
    }

    /// There is no server of ours in the file.
    pub fn has_none(&self) {
        assert!(!self.haproxy.text().contains(OWNER), "{}", self.haproxy.text());
    }

    /// How many servers of ours the file has; each is in the process as in the file.
    async fn compare(&self) -> usize {
        let (text, running) = (ConfigText::new(&self.haproxy.text()), self.haproxy.running().await);
        let mut compared = 0;
        for section in text.sections() {
            for (at, directive) in text.directives(&section) {
                let Some(metadata) = directive.comment.filter(|comment| comment.contains(OWNER)) else { continue };
                let (line, words) = (&text.lines()[at], &directive.words);
                let server = format!("{}/{}", section.name, words[1]);
                let process = running.get(&server).unwrap_or_else(|| panic!("the process lacks {server}: {line}"));
                assert_eq!(process.address, words[2], "{line}");
                let state = match words.iter().any(|word| word == "disabled") {
                    true if metadata.contains("\"drain_until\"") => "drain",
                    true => "maint",
                    false => "ready",
                };
                assert_eq!(process.state(), state, "{line}");
                let weight = words.iter().skip_while(|word| *word != "weight").nth(1);
                // A line that does not state its weight inherits it.
                assert!(weight.is_none_or(|weight| *weight == process.weight.to_string()), "{process:?}: {line}");
                compared += 1;
            }
        }
        compared
    }

    /// Settings for the controller.
    pub fn env(&self) -> Env {
        let set = |key: &str, value: &dyn std::fmt::Display| (key.to_owned(), value.to_string());
        match &self.api {
            Some(api) => vec![
                set("HAPROXY_DATAPLANE_URL", &api.url),
                set("HAPROXY_USERNAME", &"admin"),
                set("HAPROXY_PASSWORD", &"secret"),
            ],
            None => vec![
                set("HAPROXY_CONFIG_FILE", &self.haproxy.config().display()),
                set("HAPROXY_MASTER_SOCKET", &self.haproxy.master().display()),
                set("HAPROXY_BINARY", &self.haproxy.binary.display()),
            ],
        }
    }

    /// Settings for the controller with a gate in front of the API.
    pub async fn gated(&self) -> (Arc<Gate>, Env) {
        let (gate, url) = Gate::start(&self.api.as_ref().unwrap().url).await;
        let mut env = self.env();
        env.iter_mut().find(|(key, _)| key == "HAPROXY_DATAPLANE_URL").unwrap().1 = url;
        (gate, env)
    }

    /// Waits until the process has just these servers of the backend `api` in service.
    pub async fn serves(&self, ports: std::ops::Range<u16>, within: Duration) {
        let wanted: Vec<String> = ports.map(|port| format!("127.0.0.1:{port}")).collect();
        wait_for(&format!("HAProxy {} to serve {wanted:?}", self.series), within, async || {
            let running = self.haproxy.running().await;
            let ready = running.iter().filter(|(name, server)| name.starts_with("api/") && server.state() == "ready");
            let mut found: Vec<String> = ready.map(|(_, server)| server.address.clone()).collect();
            found.sort();
            (found == wanted).then_some(())
        })
        .await;
    }

    /// The same, with the run-time socket beside the API; on the local plane the master's is used.
    pub fn env_with_socket(&self) -> Env {
        let socket = self.haproxy.folder().join("stats.sock").display().to_string();
        match self.api {
            Some(_) => self.env_with(&[("HAPROXY_RUNTIME_SOCKET", &socket)]),
            None => self.env(),
        }
    }

    /// Whether backends come and go without a reload, with [`Rig::env`].
    pub fn makes_backends(&self) -> bool {
        self.series == "3.4" && self.api.is_none()
    }

    /// Its entry in a settings file, by the local plane.
    pub fn local_entry(&self, name: &str) -> Value {
        let Haproxy { binary, .. } = &self.haproxy;
        json!({
            "name": name, "config_file": self.haproxy.config(), "master_socket": self.haproxy.master(), "binary": binary,
        })
    }

    pub fn env_with(&self, more: &[(&str, &str)]) -> Env {
        let mut env = self.env();
        env.extend(more.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
        env
    }

    pub fn catalog(&self) -> PathBuf {
        self.haproxy.folder().join("catalog.json")
    }
}
