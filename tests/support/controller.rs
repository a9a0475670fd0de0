//! The controller as its users run it: the executable with settings in its environment.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::process::Group;
use super::{root, wait_for};

/// The executable, beside this test or this example.
pub fn binary() -> PathBuf {
    option_env!("CARGO_BIN_EXE_nomad-haproxy").map_or_else(
        || {
            let here = std::env::current_exe().unwrap();
            let folder = here.ancestors().find(|folder| folder.join("nomad-haproxy").is_file());
            folder.unwrap_or(&root()).join("nomad-haproxy")
        },
        PathBuf::from,
    )
}

pub type Env = Vec<(String, String)>;

/// A command of the controller, with these settings and no others.
pub fn command(env: &Env, arguments: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command.args(arguments).env_clear();
    // Most cases are about what is written, not how long a backend stays without its service.
    command.env("NOMAD_HAPROXY_BACKEND_LINGER", "0s");
    if arguments.contains(&"--catalog") {
        // A catalog file proves nothing, so the guard would hold what a case removes from it.
        command.env("NOMAD_HAPROXY_GUARD_SHARE", "100%");
    }
    command.envs(env.iter().cloned());
    command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.env("NOMAD_HAPROXY_HTTP_LISTEN", "127.0.0.1:0").env("NOMAD_HAPROXY_LOG_FORMAT", "json");
    command
}

/// Runs a command to its end without blocking this thread's tasks.
pub async fn run(env: &Env, arguments: &[&str]) -> Output {
    let mut command = command(env, arguments);
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

/// Runs a command as another user, who is nobody else, in this group. `None`: this user may not become another one, or
/// that one may not run the controller.
pub fn run_as(user: u32, group: u32, env: &Env, arguments: &[&str]) -> Option<Output> {
    let run = |arguments: &[&str]| {
        let inner = command(env, arguments);
        let mut outer = Command::new("setpriv");
        outer.args([format!("--reuid={user}"), format!("--regid={user}"), format!("--groups={group}")]);
        // By a shell, as the first program is still found with the rights of this user.
        outer.args(["--no-new-privs", "--bounding-set=-all", "sh", "-c", "exec \"$0\" \"$@\""]);
        outer.arg(inner.get_program()).args(inner.get_args());
        outer.env_clear().envs(inner.get_envs().filter_map(|(key, value)| Some((key, value?)))).output().unwrap()
    };
    if !nix::unistd::geteuid().is_root() || !run(&["--version"]).status.success() {
        eprintln!("skipped: another user may not run {}", binary().display());
        return None;
    }
    Some(run(arguments))
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Runs one pass that must succeed.
pub async fn apply(env: &Env, catalog: &Path) -> String {
    let output = run(env, &["apply", "--catalog", catalog.to_str().unwrap()]).await;
    assert!(output.status.success(), "{}{}", stdout(&output), stderr(&output));
    stdout(&output)
}

/// Runs one pass that must fail, for HAProxy or for a service, and returns its output.
pub async fn apply_failing(env: &Env, catalog: &Path) -> String {
    let output = run(env, &["apply", "--strict", "--catalog", catalog.to_str().unwrap()]).await;
    assert!(!output.status.success(), "{}{}", stdout(&output), stderr(&output));
    stdout(&output) + &stderr(&output)
}

/// A running controller.
pub struct Controller {
    group: Group,
    log: PathBuf,
    _folder: tempfile::TempDir,
}

impl Controller {
    pub fn start(env: &Env, arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let file = std::fs::File::create(&log).unwrap();
        let mut all = vec!["run"];
        all.extend(arguments);
        let group = Group::spawn(command(env, &all).stdout(Stdio::null()).stderr(file));
        Self { group, log, _folder: folder }
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// The log's lines.
    pub fn events(&self) -> Vec<Value> {
        self.log().lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Where it serves health and metrics.
    pub async fn listen(&self) -> String {
        wait_for("the controller to start", Duration::from_secs(10), async || {
            self.events().iter().find_map(|event| event["listen"].as_str().map(str::to_owned))
        })
        .await
    }

    pub async fn http(&self, path: &str) -> (u16, String) {
        let response = reqwest::get(format!("http://{}{path}", self.listen().await)).await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    }

    pub async fn wait_until_ready(&self) {
        wait_for("the controller to be ready", Duration::from_secs(20), async || {
            (self.http("/readyz").await.0 == 200).then_some(())
        })
        .await;
    }

    /// The value of a sample by its name and, in braces, some of its labels: the only HAProxy need not be named.
    pub async fn metric(&self, sample: &str) -> f64 {
        let text = self.http("/metrics").await.1;
        let (name, wanted) = sample.trim_end_matches('}').split_once('{').unwrap_or((sample, ""));
        let value = |line: &str| {
            let (found, value) = line.rsplit_once(' ')?;
            let (found, labels) = found.trim_end_matches('}').split_once('{').unwrap_or((found, ""));
            let has = |label: &str| label.is_empty() || labels.split(',').any(|other| other == label);
            (found == name && wanted.split(',').all(has)).then(|| value.parse().unwrap())
        };
        text.lines().find_map(value).unwrap_or_else(|| panic!("no {sample} in:\n{text}"))
    }

    /// How many passes it has made with labels that contain this, whatever their results.
    pub async fn passes(&self, label: &str) -> f64 {
        let text = self.http("/metrics").await.1;
        let passes =
            text.lines().filter(|line| line.starts_with("nomad_haproxy_passes_total{") && line.contains(label));
        passes.map(|line| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap()).sum()
    }

    async fn wait_for(&self, more: u32, label: &str) {
        // The one that runs at this moment may have begun before.
        let enough = self.passes(label).await + f64::from(more) + 1.0;
        wait_for(&format!("{more} passes {label}"), Duration::from_secs(60), async || {
            (self.passes(label).await >= enough).then_some(())
        })
        .await;
    }

    /// Waits until it has made this many more complete passes.
    pub async fn wait_for_passes(&self, more: u32) {
        self.wait_for(more, "").await;
    }

    /// Waits until it has made this many more complete resyncs.
    pub async fn wait_for_resyncs(&self, more: u32) {
        self.wait_for(more, "reason=\"resync\"").await;
    }

    pub fn pid(&self) -> i32 {
        self.group.pid()
    }

    pub fn exited(&mut self) -> Option<std::process::ExitStatus> {
        self.group.exited()
    }

    /// Ends it as an operator would, and returns its exit status.
    pub async fn stop(&mut self) -> std::process::ExitStatus {
        self.group.signal(Signal::SIGTERM);
        let group = &mut self.group;
        for _ in 0..1000 {
            if let Some(status) = group.exited() {
                return status;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the controller does not stop");
    }

    pub fn kill(&mut self) {
        self.group.kill();
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the controller's log\n{}", self.log());
        }
    }
}

/// A registration for a catalog file.
pub fn registration(service: &str, id: &str, created: u64, port: u16, tags: &[&str]) -> Value {
    let tags: Vec<String> = tags.iter().map(|tag| format!("haproxy.{tag}")).collect();
    json!({
        "ID": id, "ServiceName": service, "Namespace": "default", "AllocID": format!("alloc-{id}"), "Tags": tags,
        "Address": "127.0.0.1", "Port": port, "CreateIndex": created, "ModifyIndex": created,
    })
}

/// Writes a catalog file in one step, as it may be read at the same time.
pub fn write_catalog(path: &Path, registrations: &[Value]) {
    let text = json!({"Index": 1, "Services": registrations}).to_string();
    let new = path.with_extension("new");
    std::fs::write(&new, text).unwrap();
    std::fs::rename(new, path).unwrap();
}
