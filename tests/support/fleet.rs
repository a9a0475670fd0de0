//! Three HAProxys with one controller.

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Value, json};

use super::api::{Rig, Way};
use super::controller::{Controller, Env, run};
use super::gate::Gate;
use super::nomad::job;

/// HAProxy 3.0 and 3.4 behind their APIs, and 3.2 on the local plane.
pub const NAMES: [&str; 3] = ["edge-a", "edge-b", "edge-c"];

pub struct Fleet {
    pub rigs: Vec<Rig>,
    /// In front of the APIs of the first two.
    pub gates: Vec<Arc<Gate>>,
    pub folder: tempfile::TempDir,
}

impl Fleet {
    pub async fn start() -> Self {
        Self::with(Rig::start(Way::Local, "3.2").await).await
    }

    pub async fn with(local: Rig) -> Self {
        let apis = [Rig::start(Way::Api, "3.0").await, Rig::start(Way::Api, "3.4").await];
        let (mut gates, mut entries) = (Vec::new(), Vec::new());
        for (rig, name) in apis.iter().zip(NAMES) {
            let (gate, url) = Gate::start(&rig.api.as_ref().unwrap().url).await;
            gates.push(gate);
            entries.push(json!({"name": name, "address": url}));
        }
        entries.push(local.local_entry(NAMES[2]));
        let fleet =
            Self { rigs: apis.into_iter().chain([local]).collect(), gates, folder: tempfile::tempdir().unwrap() };
        std::fs::write(fleet.settings(), json!({"haproxy": entries}).to_string()).unwrap();
        for (at, entry) in entries.iter().enumerate() {
            std::fs::write(fleet.settings_of(at), json!({"haproxy": entry}).to_string()).unwrap();
        }
        fleet
    }

    pub fn settings(&self) -> PathBuf {
        self.folder.path().join("settings.json")
    }

    /// Of one of them alone.
    pub fn settings_of(&self, at: usize) -> PathBuf {
        self.folder.path().join(format!("{}.json", NAMES[at]))
    }

    pub fn catalog(&self) -> PathBuf {
        self.folder.path().join("catalog.json")
    }

    pub fn env(more: &[(&str, &str)]) -> Env {
        let common = [("HAPROXY_USERNAME", "admin"), ("HAPROXY_PASSWORD", "secret")];
        common.iter().chain(more).map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    pub fn run(&self, more: &[(&str, &str)]) -> Controller {
        let (settings, catalog) = (self.settings().display().to_string(), self.catalog().display().to_string());
        Controller::start(&Self::env(more), &["--config", &settings, "--catalog", &catalog])
    }

    /// A command over all of them.
    pub async fn command(&self, arguments: &[&str]) -> std::process::Output {
        let (settings, catalog) = (self.settings().display().to_string(), self.catalog().display().to_string());
        run(&Self::env(&[]), &[arguments, &["--config", &settings, "--catalog", &catalog]].concat()).await
    }

    pub async fn agree(&self) {
        for rig in &self.rigs {
            rig.agrees().await;
        }
    }
}

/// What Nomad was asked: its lists of services and its services, the blocking query apart.
pub fn reads(gate: &Gate) -> usize {
    let calls = gate.calls();
    calls.iter().filter(|call| call.contains("/v1/service") && !call.contains("wait=")).count()
}

/// Peak resident memory of a process, in kB.
pub fn memory(pid: i32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// As many services of 5, 250 at most, in one job without processes.
pub fn services_of_five(services: u32) -> Value {
    let mut wide = job("wide", 5, &[], None);
    let service = |n: u32| {
        json!({
            "Name": format!("wide-{n:03}"), "Provider": "nomad", "PortLabel": (8000 + n).to_string(),
            "Address": format!("127.1.${{NOMAD_ALLOC_INDEX}}.{}", 1 + n),
            "Tags": ["haproxy.enable=true", "haproxy.check.disabled"],
        })
    };
    wide["TaskGroups"][0]["Services"] = (0..services).map(service).collect();
    wide["TaskGroups"][0]["Networks"] = json!([]);
    wide
}
