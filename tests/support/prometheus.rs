//! A real Prometheus, and its promtool.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::process::Group;
use super::{free_port, root, wait_for};

/// The scrape job that the rules go by.
pub const JOB: &str = "nomad-haproxy";

/// `prometheus` or `promtool`: on the PATH, or where `make tools` unpacked it.
pub fn tool(name: &str) -> PathBuf {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let unpacked = root().join("target/tools/prometheus/usr/bin");
    let found = std::env::split_paths(&paths).chain([unpacked]).map(|folder| folder.join(name));
    found.into_iter().find(|path| path.is_file()).unwrap_or_else(|| panic!("{name} is not here: run `make tools`"))
}

/// Runs promtool, which must succeed and complain of nothing.
pub fn promtool(arguments: &[&str], input: &str) {
    let mut command = Command::new(tool("promtool"));
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let (out, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && said.trim().is_empty(), "promtool {arguments:?}: {out}{said}\n{input}");
}

/// Has promtool check names, units and help of a scrape in the text format.
pub fn check_text(text: &str) {
    promtool(&["check", "metrics"], text);
}

/// Has promtool read a scrape in OpenMetrics: `check metrics` does not know it, the import does, with a time for each
/// sample.
pub fn check_open_metrics(text: &str) {
    let timed = |line: &str| if line.starts_with('#') { format!("{line}\n") } else { format!("{line} 1\n") };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("metrics");
    std::fs::write(&file, text.lines().map(timed).collect::<String>()).unwrap();
    let to = folder.path().join("blocks");
    let paths = [file, to].map(|path| path.display().to_string());
    promtool(&["tsdb", "create-blocks-from", "openmetrics", &paths[0], &paths[1]], "");
}

/// Of an alert that is pending or fires.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Alert {
    pub name: String,
    /// Empty for an alert that is not about one controller.
    pub instance: String,
    pub fires: bool,
}

/// A server that scrapes each half second, and evaluates its rules twice as often.
pub struct Prometheus {
    url: String,
    folder: tempfile::TempDir,
    group: Group,
    started: Instant,
}

impl Prometheus {
    /// With these rules, and no target yet.
    pub async fn start(rules: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        let config = json!({
            "global": {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "250ms"},
            "rule_files": [path("rules.yml")],
            "scrape_configs": [
                {"job_name": JOB, "file_sd_configs": [{"files": [path("targets.json")], "refresh_interval": "1s"}]},
            ],
        });
        // JSON is YAML.
        std::fs::write(folder.path().join("prometheus.yml"), config.to_string()).unwrap();
        std::fs::write(folder.path().join("rules.yml"), rules).unwrap();
        std::fs::write(folder.path().join("targets.json"), "[]").unwrap();
        let log = std::fs::File::create(folder.path().join("log")).unwrap();
        let address = format!("127.0.0.1:{}", free_port());
        let mut command = Command::new(tool("prometheus"));
        command.arg(format!("--config.file={}", path("prometheus.yml")));
        command.arg(format!("--storage.tsdb.path={}", path("data"))).arg(format!("--web.listen-address={address}"));
        command.current_dir(folder.path()).stdout(log.try_clone().unwrap()).stderr(log);
        let prometheus = Self {
            url: format!("http://{address}"),
            group: Group::spawn(&mut command),
            folder,
            started: Instant::now(),
        };
        wait_for("Prometheus", Duration::from_secs(30), async || {
            let answer = reqwest::get(format!("{}/-/ready", prometheus.url)).await.ok()?;
            answer.status().is_success().then_some(())
        })
        .await;
        prometheus
    }

    /// What it scrapes from now on (within some seconds): addresses by instance.
    pub fn scrape(&self, targets: &BTreeMap<&str, String>) {
        let all: Vec<Value> = targets
            .iter()
            .map(|(instance, address)| json!({"targets": [address], "labels": {"instance": instance}}))
            .collect();
        let (file, new) = (self.folder.path().join("targets.json"), self.folder.path().join("targets.new"));
        std::fs::write(&new, json!(all).to_string()).unwrap();
        std::fs::rename(new, file).unwrap();
    }

    /// The data of an answer, or its error.
    async fn get(&self, path: &str, query: &[(&str, &str)]) -> Result<Value, String> {
        let request = reqwest::Client::new().get(format!("{}/api/v1/{path}", self.url)).query(query);
        let answer: Value = request.send().await.map_err(|error| error.to_string())?.json().await.unwrap();
        match answer["status"].as_str() {
            Some("success") => Ok(answer["data"].clone()),
            _ => Err(answer["error"].to_string()),
        }
    }

    /// The series that an expression has now.
    pub async fn query(&self, expression: &str) -> Result<Vec<Value>, String> {
        let data = self.get("query", &[("query", expression)]).await?;
        Ok(data["result"].as_array().cloned().unwrap_or_default())
    }

    /// The value of the only series.
    pub async fn value(&self, expression: &str) -> Option<String> {
        let series = self.query(expression).await.unwrap();
        series.first().and_then(|one| Some(one["value"][1].as_str()?.to_owned()))
    }

    /// The active alerts.
    pub async fn alerts(&self) -> BTreeSet<Alert> {
        let data = self.get("alerts", &[]).await.unwrap();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let alert = |alert: &Value| Alert {
            name: text(&alert["labels"]["alertname"]),
            instance: text(&alert["labels"]["instance"]),
            fires: alert["state"] == "firing",
        };
        data["alerts"].as_array().into_iter().flatten().map(alert).collect()
    }

    /// The rules, as `/api/v1/rules` has them.
    pub async fn rules(&self) -> Vec<Value> {
        let data = self.get("rules", &[]).await.unwrap();
        let groups = data["groups"].as_array().cloned().unwrap_or_default();
        groups.iter().flat_map(|group| group["rules"].as_array().cloned().unwrap_or_default()).collect()
    }

    /// The errors of the last scrapes, by instance; of one that succeeded, it is empty.
    pub async fn scrapes(&self) -> BTreeMap<String, String> {
        let data = self.get("targets", &[]).await.unwrap();
        let active = data["activeTargets"].as_array().cloned().unwrap_or_default();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let scraped = active.iter().filter(|target| target["health"] != "unknown");
        scraped.map(|target| (text(&target["labels"]["instance"]), text(&target["lastError"]))).collect()
    }

    /// Waits until this alert fires; `instance` is empty for one that is not about a controller.
    pub async fn fires(&self, name: &str, instance: &str) {
        wait_for(&format!("{name} of {instance:?} to fire"), Duration::from_secs(60), async || {
            let alert = Alert { name: name.to_owned(), instance: instance.to_owned(), fires: true };
            self.alerts().await.contains(&alert).then_some(())
        })
        .await;
        eprintln!("{:.1} s: {name} of {instance:?} fires", self.started.elapsed().as_secs_f64());
    }

    /// Waits until it does not.
    pub async fn resolves(&self, name: &str, instance: &str) {
        wait_for(&format!("{name} of {instance:?} to be resolved"), Duration::from_secs(60), async || {
            let alerts = self.alerts().await;
            (!alerts.iter().any(|alert| alert.name == name && alert.instance == instance)).then_some(())
        })
        .await;
        eprintln!("{:.1} s: {name} of {instance:?} is resolved", self.started.elapsed().as_secs_f64());
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
            eprintln!("--- the log of Prometheus\n{log}");
        }
        self.group.kill();
    }
}
