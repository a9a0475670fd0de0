//! What a soak runs against: one HAProxy or two, and a controller of them.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use nomad_haproxy::haproxy::text::ConfigText;
use procfs::process::Process;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::Mutex;

use crate::support::api::{Api, Rig, Way};
use crate::support::controller::{Controller, Env};
use crate::support::fleet::Fleet;
use crate::support::free_port;
use crate::support::haproxy::{Haproxy, hand_written};
use crate::support::process::Group;

/// How HAProxy is reached, and by which controller.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Plane {
    /// The local plane.
    Local,
    /// The Data Plane API with a socket of the process beside it.
    Api,
    /// The Data Plane API alone: servers are provisioned ahead.
    Slots,
    /// Two HAProxys with one controller: the first one by the local plane, the second one as with [`Plane::Api`].
    Both,
    /// Another controller, haproxy-nomad-connector, on the Data Plane API.
    Connector(PathBuf),
}

/// From this series on HAProxy makes and deletes backends at run time (management guide 3.4, `add backend`).
const BACKENDS_SINCE: &str = "3.4";

/// What a target does without a reload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Without {
    /// New services, instances of theirs, and their end.
    Everything,
    /// Instances only: each batch of new services takes a reload.
    Servers,
    /// Nothing that can be relied on.
    Nothing,
}

impl Plane {
    pub fn without_reload(&self, series: &str) -> Without {
        match self {
            Self::Local | Self::Api | Self::Both if series >= BACKENDS_SINCE => Without::Everything,
            Self::Local | Self::Api | Self::Both => Without::Servers,
            Self::Slots | Self::Connector(_) => Without::Nothing,
        }
    }

    pub fn name(&self) -> &'static str {
        match self {
            Self::Local => "local plane",
            Self::Api => "API with socket",
            Self::Slots => "API with slots",
            Self::Both => "local plane and API with socket",
            Self::Connector(_) => "haproxy-nomad-connector",
        }
    }

    /// The way to each of its HAProxys.
    fn ways(&self) -> &'static [Way] {
        match self {
            Self::Local => &[Way::Local],
            Self::Both => &[Way::Local, Way::Api],
            Self::Api | Self::Slots | Self::Connector(_) => &[Way::Api],
        }
    }
}

enum Driver {
    Ours(Box<Ours>),
    Connector { group: Group, _port: Option<TcpListener> },
}

/// Our controller, and what it is started with.
struct Ours {
    controller: Controller,
    env: Env,
    settings: PathBuf,
    /// The passes of those that were killed.
    passes: Vec<Pass>,
}

impl Ours {
    async fn start(env: Env, settings: PathBuf) -> Self {
        let controller = Self::run(&env, &settings);
        controller.wait_until_ready().await;
        Self { controller, env, settings, passes: Vec::new() }
    }

    fn run(env: &Env, settings: &Path) -> Controller {
        Controller::start(env, &["--config", settings.to_str().expect("a path that is text")])
    }

    /// Of the one that runs; those that changed something.
    fn running(&self) -> Vec<Pass> {
        let number = |event: &Value, name: &str| event[name].as_u64().expect("a number in each line of a pass");
        let pass = |event: &Value| Pass {
            took: Duration::from_millis(number(event, "took_ms")),
            reloads: number(event, "reloads"),
        };
        self.controller.events().iter().filter(|event| event["message"] == "applied").map(pass).collect()
    }
}

/// A HAProxy of a target.
pub struct Edge {
    pub haproxy: Haproxy,
    /// The port behind which the database is.
    pub database: u16,
}

pub struct Target {
    pub edges: Vec<Edge>,
    apis: Mutex<Vec<Api>>,
    driver: Mutex<Driver>,
    /// It has the settings file.
    _folder: tempfile::TempDir,
}

/// Memory and processes at one time.
#[derive(Debug, Clone, Copy)]
pub struct Measured {
    pub reloads: u64,
    pub workers: usize,
    /// Resident memory of the master and of all workers, in kB.
    pub haproxy: u64,
    /// Resident memory of the controller, in kB.
    pub controller: u64,
    /// Open descriptors of all of these processes.
    pub descriptors: usize,
}

/// A pass that changed something.
#[derive(Debug, Clone, Copy)]
pub struct Pass {
    pub took: Duration,
    pub reloads: u64,
}

impl Target {
    /// With a database that is reachable through each HAProxy, behind the backend `db`.
    pub async fn start(plane: &Plane, series: &str, nomad: &str, database: u16, linger: Duration) -> Self {
        let (mut edges, mut rigs) = (Vec::new(), Vec::new());
        for way in plane.ways() {
            let frontend = free_port();
            let haproxy = Haproxy::start_with(series, |folder, port| config(plane, folder, port, frontend, database));
            rigs.push(Rig::with(*way, series, haproxy.await).await);
            edges.push(frontend);
        }
        let folder = tempfile::tempdir().unwrap();
        let driver = match plane {
            Plane::Connector(binary) => connector(binary, &rigs[0], nomad),
            _ => {
                let settings = folder.path().join("settings.json");
                let entries: Vec<Value> = rigs.iter().map(|rig| entry(plane, rig)).collect();
                std::fs::write(&settings, json!({"haproxy": entries}).to_string()).unwrap();
                let linger = humantime::format_duration(linger).to_string();
                let env = Fleet::env(&[("NOMAD_ADDR", nomad), ("NOMAD_HAPROXY_BACKEND_LINGER", &linger)]);
                Driver::Ours(Box::new(Ours::start(env, settings).await))
            }
        };
        let apis = rigs.iter_mut().filter_map(|rig| rig.api.take()).collect();
        let edge = |(rig, database): (Rig, u16)| Edge { haproxy: rig.haproxy, database };
        let edges = rigs.into_iter().zip(edges).map(edge).collect();
        Self { edges, apis: Mutex::new(apis), driver: Mutex::new(driver), _folder: folder }
    }

    /// Kills our controller, and starts another one.
    pub async fn kill_controller(&self) {
        if let Driver::Ours(ours) = &mut *self.driver.lock().await {
            ours.controller.kill();
            ours.passes.extend(ours.running());
            ours.controller = Ours::run(&ours.env, &ours.settings);
        }
    }

    /// Kills the Data Plane APIs, and starts them again.
    pub async fn kill_apis(&self) {
        for api in &mut *self.apis.lock().await {
            api.kill();
            api.launch().await;
        }
    }

    pub async fn measure(&self) -> Measured {
        let controller = match &*self.driver.lock().await {
            Driver::Ours(ours) => ours.controller.pid(),
            Driver::Connector { group, .. } => group.pid(),
        };
        let mut processes = Vec::new();
        let mut workers = 0;
        for Edge { haproxy, .. } in &self.edges {
            processes.extend(haproxy.processes().await);
            workers += haproxy.workers().await;
        }
        Measured {
            reloads: self.reloads().await,
            workers,
            // A worker may end in between, or a controller be killed.
            haproxy: processes.iter().filter_map(|pid| resident(*pid)).sum(),
            controller: resident(controller).unwrap_or_default(),
            descriptors: processes.iter().chain([&controller]).filter_map(|pid| descriptors(*pid)).sum(),
        }
    }

    /// Of all HAProxys.
    pub async fn reloads(&self) -> u64 {
        join_all(self.edges.iter().map(|edge| edge.haproxy.reloads())).await.into_iter().sum()
    }

    /// The process of each HAProxy.
    pub async fn workers(&self) -> Vec<u64> {
        join_all(self.edges.iter().map(|edge| edge.haproxy.worker())).await
    }

    /// The passes of our controller that changed something.
    pub async fn passes(&self) -> Vec<Pass> {
        match &*self.driver.lock().await {
            Driver::Ours(ours) => ours.passes.iter().copied().chain(ours.running()).collect(),
            Driver::Connector { .. } => Vec::new(),
        }
    }
}

impl Edge {
    /// The addresses of a backend's servers that take traffic: those in service whose checks pass.
    pub async fn serving(&self, backend: &str) -> Vec<String> {
        let csv = self.haproxy.command(&format!("@1 show stat {backend} 4 -1")).await;
        let mut rows = csv.lines().map(|line| line.split(',').collect::<Vec<_>>());
        let header = rows.next().unwrap_or_default();
        let column = |name: &str| header.iter().position(|column| *column == name);
        // A worker that a reload ends cuts its answer short, anywhere.
        let Some((status, address)) = column("status").zip(column("addr")) else { return Vec::new() };
        let serving = rows.filter(|row| row.get(status).is_some_and(|s| s.starts_with("UP") || *s == "no check"));
        serving.filter_map(|row| row.get(address).map(|address| (*address).to_owned())).collect()
    }

    /// Whether file and process have the same backends and servers; if not, the first difference.
    pub async fn same(&self) -> Result<(), String> {
        let text = ConfigText::new(&self.haproxy.text());
        let mut file = BTreeMap::new();
        for section in text.sections().into_iter().filter(|section| section.kind == "backend") {
            file.insert(section.name.clone(), "backend".to_owned());
            for (_, directive) in text.directives(&section).filter(|(_, d)| d.keyword() == "server") {
                let words = directive.words;
                let state = if words.iter().any(|word| word == "disabled") { "out" } else { "in" };
                file.insert(format!("{}/{}", section.name, words[1]), format!("{} {state}", words[2]));
            }
        }
        let state = |state| if state == "ready" { "in" } else { "out" };
        let running = self.haproxy.running().await.into_iter();
        let mut process: BTreeMap<String, String> =
            running.map(|(name, server)| (name, format!("{} {}", server.address, state(server.state())))).collect();
        let backends = self.haproxy.command("@1 show backend").await;
        let backends = backends.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
        process.extend(backends.map(|name| (name.to_owned(), "backend".to_owned())));
        let names = file.keys().chain(process.keys());
        let different = names.filter(|name| file.get(*name) != process.get(*name));
        let differences = different.map(|name| {
            let said =
                |side: &BTreeMap<String, String>| side.get(name).cloned().unwrap_or_else(|| "nothing".to_owned());
            format!("{name}: {} in the file, {} in the process", said(&file), said(&process))
        });
        differences.into_iter().next().map_or(Ok(()), Err)
    }

    /// How long HAProxy takes to validate its file; if it refuses it, why.
    pub async fn validate(&self) -> Result<Duration, String> {
        let mut command = tokio::process::Command::new(&self.haproxy.binary);
        let start = Instant::now();
        let output = command.args(["-c", "-f"]).arg(self.haproxy.config()).output().await.unwrap();
        match output.status.success() {
            true => Ok(start.elapsed()),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    }
}

/// The entry of the settings for one HAProxy.
fn entry(plane: &Plane, rig: &Rig) -> Value {
    let Some(api) = &rig.api else { return rig.local_entry("local") };
    let socket = (*plane != Plane::Slots).then(|| rig.haproxy.folder().join("stats.sock"));
    json!({"name": "api", "address": api.url, "runtime_socket": socket})
}

/// What a person has written: the frontends of the services and of the database.
fn config(plane: &Plane, folder: &Path, port: u16, frontend: u16, database: u16) -> String {
    // The connector makes no backends of mode tcp, so here this one is a person's.
    let by_hand = match plane {
        Plane::Connector(_) => format!("\nbackend db\n    mode tcp\n    server db 127.0.0.1:{database}\n"),
        _ => String::new(),
    };
    let base = hand_written(folder, port);
    format!(
        "{base}\nfrontend database\n    mode tcp\n    bind 127.0.0.1:{frontend}\n    use_backend %[str(db)]\n{by_hand}"
    )
}

/// Starts the other controller, with the names of its settings.
fn connector(binary: &Path, rig: &Rig, nomad: &str) -> Driver {
    // It serves its health on this port of every address; where the port is taken it goes on without.
    let port = TcpListener::bind("127.0.0.1:8080").ok();
    let mut env: Env = rig.env();
    env.extend([("NOMAD_ADDR".into(), nomad.into()), ("HAPROXY_FRONTEND".into(), "web".into())]);
    let log = std::fs::File::create(rig.haproxy.folder().join("connector.log")).unwrap();
    let mut command = Command::new(binary);
    command.env_clear().envs(env).stdout(Stdio::null()).stderr(log);
    Driver::Connector { group: Group::spawn(&mut command), _port: port }
}

/// Resident memory of a process, in kB.
fn resident(pid: i32) -> Option<u64> {
    Process::new(pid).ok()?.status().ok()?.vmrss
}

fn descriptors(pid: i32) -> Option<usize> {
    Process::new(pid).ok()?.fd_count().ok()
}
