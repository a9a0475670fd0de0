//! What a soak runs against: a HAProxy, and a controller of it.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nomad_haproxy::haproxy::text::ConfigText;
use procfs::process::Process;
use serde::Serialize;
use serde_json::Value;

use crate::support::api::{Rig, Way};
use crate::support::controller::{Controller, Env};
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
            Self::Local | Self::Api if series >= BACKENDS_SINCE => Without::Everything,
            Self::Local | Self::Api => Without::Servers,
            Self::Slots | Self::Connector(_) => Without::Nothing,
        }
    }

    pub fn name(&self) -> &'static str {
        match self {
            Self::Local => "local plane",
            Self::Api => "API with socket",
            Self::Slots => "API with slots",
            Self::Connector(_) => "haproxy-nomad-connector",
        }
    }
}

enum Driver {
    Ours(Controller),
    Connector { group: Group, _port: Option<TcpListener> },
}

pub struct Target {
    pub rig: Rig,
    /// The port of HAProxy behind which the database is.
    pub database: u16,
    driver: Driver,
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
}

/// A pass that changed something.
pub struct Pass {
    pub took: Duration,
    pub reloads: u64,
}

impl Target {
    /// With a database that is reachable through HAProxy at `database`, behind the backend `db`.
    pub async fn start(plane: &Plane, series: &str, nomad: &str, database: u16, linger: Duration) -> Self {
        let frontend = free_port();
        // The connector makes no backends of mode tcp, so here this one is a person's.
        let by_hand = match plane {
            Plane::Connector(_) => format!("\nbackend db\n    mode tcp\n    server db 127.0.0.1:{database}\n"),
            _ => String::new(),
        };
        let config = |folder: &Path, port| {
            let base = hand_written(folder, port);
            format!(
                "{base}\nfrontend database\n    mode tcp\n    bind 127.0.0.1:{frontend}\n    use_backend %[str(db)]\n{by_hand}"
            )
        };
        let haproxy = Haproxy::start_with(series, config).await;
        let way = if *plane == Plane::Local { Way::Local } else { Way::Api };
        let rig = Rig::with(way, series, haproxy).await;
        let driver = match plane {
            Plane::Connector(binary) => connector(binary, &rig, nomad),
            Plane::Local | Plane::Api | Plane::Slots => {
                let linger = humantime::format_duration(linger).to_string();
                let mut env = rig.env_with(&[("NOMAD_ADDR", nomad), ("NOMAD_HAPROXY_BACKEND_LINGER", &linger)]);
                if *plane == Plane::Api {
                    let socket = rig.haproxy.folder().join("stats.sock");
                    env.push(("HAPROXY_RUNTIME_SOCKET".to_owned(), socket.display().to_string()));
                }
                let controller = Controller::start(&env, &[]);
                controller.wait_until_ready().await;
                Driver::Ours(controller)
            }
        };
        Self { rig, database: frontend, driver }
    }

    pub async fn measure(&self) -> Measured {
        let controller = match &self.driver {
            Driver::Ours(controller) => controller.pid(),
            Driver::Connector { group, .. } => group.pid(),
        };
        let haproxy = &self.rig.haproxy;
        Measured {
            reloads: haproxy.reloads().await,
            workers: haproxy.workers().await,
            // A worker may end in between.
            haproxy: haproxy.processes().await.into_iter().filter_map(resident).sum(),
            controller: resident(controller).expect("the controller runs"),
        }
    }

    /// The passes of our controller that changed something.
    pub fn passes(&self) -> Vec<Pass> {
        let Driver::Ours(controller) = &self.driver else { return Vec::new() };
        let number = |event: &Value, name: &str| event[name].as_u64().expect("a number in each line of a pass");
        let pass = |event: &Value| Pass {
            took: Duration::from_millis(number(event, "took_ms")),
            reloads: number(event, "reloads"),
        };
        controller.events().iter().filter(|event| event["message"] == "applied").map(pass).collect()
    }

    /// The addresses of a backend's servers that take traffic: those in service whose checks pass.
    pub async fn serving(&self, backend: &str) -> Vec<String> {
        let csv = self.rig.haproxy.command(&format!("@1 show stat {backend} 4 -1")).await;
        let mut rows = csv.lines().map(|line| line.split(',').collect::<Vec<_>>());
        let header = rows.next().unwrap_or_default();
        let column = |name: &str| header.iter().position(|column| *column == name).expect("as HAProxy documents it");
        let (status, address) = (column("status"), column("addr"));
        let serving = rows.filter(|row| row.get(status).is_some_and(|s| s.starts_with("UP") || *s == "no check"));
        serving.map(|row| row[address].to_owned()).collect()
    }

    /// Whether file and process have the same backends and servers; if not, the first difference.
    pub async fn same(&self) -> Result<(), String> {
        let text = ConfigText::new(&self.rig.haproxy.text());
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
        let running = self.rig.haproxy.running().await.into_iter();
        let mut process: BTreeMap<String, String> =
            running.map(|(name, server)| (name, format!("{} {}", server.address, state(server.state())))).collect();
        let backends = self.rig.haproxy.command("@1 show backend").await;
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
        let mut command = tokio::process::Command::new(&self.rig.haproxy.binary);
        let start = Instant::now();
        let output = command.args(["-c", "-f"]).arg(self.rig.haproxy.config()).output().await.unwrap();
        match output.status.success() {
            true => Ok(start.elapsed()),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    }
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
