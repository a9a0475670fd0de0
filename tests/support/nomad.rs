//! A real Nomad: a dev agent, or a server with clients of their own.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::process::{Group, end_all_of};
use super::{free_port, root, tls, wait_for};

/// The executable: the one on the PATH, or the one that `make tools` built.
pub fn binary() -> Option<PathBuf> {
    let built = root().join("target/tools/bin/nomad");
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&paths).map(|folder| folder.join("nomad")).find(|path| path.is_file());
    on_path.or_else(|| built.is_file().then_some(built))
}

pub struct Nomad {
    group: Mutex<Option<Group>>,
    folder: tempfile::TempDir,
    ports: [u16; 3],
    pub address: String,
    kind: Kind,
    /// What tasks of the driver `exec` see of this machine, for the agent's `client` block; empty: what Nomad shows them.
    chroot: String,
    pub token: Option<String>,
    client: reqwest::Client,
}

/// What is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Server and client in one; its state is lost when it ends.
    Dev { acl: bool, tls: Option<Tls> },
    /// Only a server, with its state on disk, which soon notices that a client is lost.
    Server,
    /// The same, which gives a client Nomad's own time: 20 s at least.
    PatientServer,
}

impl Kind {
    fn is_server(self) -> bool {
        matches!(self, Self::Server | Self::PatientServer)
    }
}

const IMPATIENT: &str = " heartbeat_grace = \"500ms\"\n min_heartbeat_ttl = \"1s\"\n";

/// A server that starts reads its log from the last snapshot on before it answers. With the defaults it took none in 17
/// minutes of a soak: reading took 17 s, and a service that ended just before the kill was served for as long.
const SNAPSHOTS: &str = " raft_snapshot_interval = \"5s\"\n raft_snapshot_threshold = 512\n";

/// How its API is secured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tls {
    /// With a certificate for 127.0.0.1.
    Server,
    /// With a certificate for `server.global.nomad`; a client has to show one, too.
    MutualNamed,
}

const CLIENT: &str = "client {\n enabled = true\n network_interface = \"lo\"\n options = {\n \"fingerprint.denylist\" = \"env_aws,env_gce,env_azure,env_digitalocean\"\n }\n";
const RAW_EXEC: &str = "plugin \"raw_exec\" {\n config {\n enabled = true\n }\n}\n";
const ON_LOOPBACK: &str =
    "bind_addr = \"127.0.0.1\"\nadvertise {\n http = \"127.0.0.1\"\n rpc = \"127.0.0.1\"\n serf = \"127.0.0.1\"\n}\n";

impl Nomad {
    pub async fn start() -> Self {
        Self::start_with(Kind::Dev { acl: false, tls: None }).await
    }

    pub async fn start_with_acl() -> Self {
        Self::start_with(Kind::Dev { acl: true, tls: None }).await
    }

    /// With ACLs, and with a driver `exec` whose tasks see a shell, the libraries, the certificates and these paths.
    pub async fn start_isolating(paths: &[&Path]) -> Self {
        let libraries = format!("/usr/lib/{}-linux-gnu", std::env::consts::ARCH);
        let system = ["/bin", "/etc/ssl", "/lib", "/lib64", "/usr/bin", &libraries].map(Path::new);
        let all: BTreeSet<&Path> = system.iter().chain(paths).copied().filter(|path| path.exists()).collect();
        let lines = all.iter().map(|path| format!("  \"{0}\" = \"{0}\"", path.display())).collect::<Vec<_>>();
        let chroot = format!(" chroot_env {{\n{}\n }}\n", lines.join("\n"));
        Self::start_in(Kind::Dev { acl: true, tls: None }, chroot).await
    }

    /// Behind TLS; the certificates are in its [`Self::folder`], as [`tls::certificates`] names them.
    pub async fn start_with_tls(acl: bool, tls: Tls) -> Self {
        Self::start_with(Kind::Dev { acl, tls: Some(tls) }).await
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A server; [`Self::join`] gives it clients.
    pub async fn start_server() -> Self {
        Self::start_with(Kind::Server).await
    }

    /// A server that does not miss a client for 20 s.
    pub async fn start_patient_server() -> Self {
        Self::start_with(Kind::PatientServer).await
    }

    async fn start_with(kind: Kind) -> Self {
        Self::start_in(kind, String::new()).await
    }

    async fn start_in(kind: Kind, chroot: String) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let ports = [free_port(), free_port(), free_port()];
        let has_tls = matches!(kind, Kind::Dev { tls: Some(_), .. });
        let address = format!("{}://127.0.0.1:{}", if has_tls { "https" } else { "http" }, ports[0]);
        let mut client = reqwest::Client::builder();
        if has_tls {
            tls::certificates(folder.path());
            let both = fs::read(folder.path().join("client.both")).unwrap();
            client = client.tls_danger_accept_invalid_certs(true).identity(reqwest::Identity::from_pem(&both).unwrap());
        }
        let client = client.build().unwrap();
        let mut nomad = Self { group: Mutex::default(), folder, ports, address, kind, chroot, token: None, client };
        nomad.launch().await;
        if kind.is_server() {
            return nomad;
        }
        if matches!(kind, Kind::Dev { acl: true, .. }) {
            let answer = nomad.call(reqwest::Method::POST, "/v1/acl/bootstrap", None).await;
            nomad.token = answer["SecretID"].as_str().map(str::to_owned);
        }
        wait_for("a node that takes allocations", Duration::from_secs(60), async || {
            let nodes = nomad.try_call(reqwest::Method::GET, "/v1/nodes", None).await?;
            (nodes[0]["Status"] == "ready").then_some(())
        })
        .await;
        nomad
    }

    /// Starts the agent; a dev agent that is restarted has no state.
    pub async fn launch(&self) {
        let [http, rpc, serf] = self.ports;
        let ports = format!("ports {{\n http = {http}\n rpc = {rpc}\n serf = {serf}\n}}\nlog_level = \"WARN\"\n");
        let config = match self.kind {
            Kind::Dev { acl, tls } => {
                let tls = tls.map(|tls| self.tls(tls)).unwrap_or_default();
                let chroot = &self.chroot;
                format!("{ports}{CLIENT}{chroot}}}\nacl {{\n enabled = {acl}\n}}\n{RAW_EXEC}{tls}")
            }
            Kind::Server | Kind::PatientServer => format!(
                "{ports}{ON_LOOPBACK}data_dir = \"{}\"\nserver {{\n enabled = true\n bootstrap_expect = 1\n{SNAPSHOTS}{}}}\n",
                self.folder.path().join("server").display(),
                if self.kind == Kind::Server { IMPATIENT } else { "" }
            ),
        };
        let agent = self.agent("agent", &config, !self.kind.is_server());
        *self.group.lock().unwrap() = Some(agent);
        wait_for("Nomad to have a leader", Duration::from_secs(60), async || {
            let leader = self.client.get(format!("{}/v1/status/leader", self.address)).send().await.ok()?;
            leader.text().await.ok()?.contains(':').then_some(())
        })
        .await;
    }

    fn tls(&self, tls: Tls) -> String {
        let (certificate, asks) = match tls {
            Tls::Server => ("server", false),
            Tls::MutualNamed => ("named", true),
        };
        let folder = self.folder.path().display();
        format!(
            "tls {{\n http = true\n verify_https_client = {asks}\n ca_file = \"{folder}/ca.pem\"\n \
             cert_file = \"{folder}/{certificate}.pem\"\n key_file = \"{folder}/{certificate}.key\"\n}}\n"
        )
    }

    fn agent(&self, name: &str, config: &str, dev: bool) -> Group {
        let file = self.folder.path().join(format!("{name}.hcl"));
        fs::write(&file, config).unwrap();
        let log = fs::File::options().create(true).append(true).open(self.folder.path().join("log")).unwrap();
        let mut command = Command::new(binary().expect("Nomad is not here: run `make tools`"));
        command.arg("agent").args(dev.then_some("-dev")).arg("-config").arg(&file).env_remove("AWS_CA_BUNDLE");
        command.env("NOMAD_HAPROXY_TEST", self.folder.path()).env("TMPDIR", self.folder.path());
        Group::spawn(command.stdout(log.try_clone().unwrap()).stderr(log))
    }

    /// Starts a separate client; jobs select it by its name (`${node.unique.name}`).
    pub async fn join(&self, name: &str) -> Group {
        self.join_pool(name, "default").await
    }

    /// The same, in a node pool.
    pub async fn join_pool(&self, name: &str, pool: &str) -> Group {
        let folder = self.folder.path().join(name).display().to_string();
        let config = format!(
            "name = \"{name}\"\nports {{\n http = {}\n rpc = {}\n serf = {}\n}}\nlog_level = \"WARN\"\n{ON_LOOPBACK}\
             data_dir = \"{folder}\"\n{CLIENT} node_pool = \"{pool}\"\n servers = [\"127.0.0.1:{}\"]\n}}\nacl {{\n enabled = {}\n}}\n{RAW_EXEC}",
            free_port(),
            free_port(),
            free_port(),
            self.ports[1],
            matches!(self.kind, Kind::Dev { acl: true, .. })
        );
        let client = self.agent(name, &config, false);
        wait_for(&format!("the node {name}"), Duration::from_secs(60), async || {
            let nodes = self.try_call(reqwest::Method::GET, "/v1/nodes", None).await?;
            let is_it = |node: &Value| node["Name"] == name && node["Status"] == "ready";
            nodes.as_array()?.iter().any(is_it).then_some(())
        })
        .await;
        client
    }

    /// The whole state, as saved by `nomad operator snapshot save`.
    pub async fn snapshot(&self) -> Vec<u8> {
        let answer = reqwest::get(format!("{}/v1/operator/snapshot", self.address)).await.unwrap();
        answer.error_for_status().unwrap().bytes().await.unwrap().to_vec()
    }

    /// Restores a state.
    pub async fn restore(&self, snapshot: Vec<u8>) {
        let request = reqwest::Client::new().put(format!("{}/v1/operator/snapshot", self.address)).body(snapshot);
        request.send().await.unwrap().error_for_status().unwrap();
    }

    /// Ends the agent alone: of a server, its clients and their tasks go on.
    pub fn crash(&self) {
        *self.group.lock().unwrap() = None;
    }

    /// Ends the agent, and its tasks with it.
    pub fn kill(&self) {
        self.crash();
        end_all_of(&self.folder.path().display().to_string());
        self.unmount();
    }

    /// An agent that is killed leaves the folders of its tasks' secrets mounted, and they could not be removed.
    fn unmount(&self) {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let points = mounts.lines().filter_map(|line| line.split(' ').nth(1));
        for point in points.filter(|point| Path::new(point).starts_with(self.folder.path())) {
            let _ = Command::new("umount").args(["--lazy", point]).status();
        }
    }

    pub fn freeze(&self) {
        self.signal(Signal::SIGSTOP);
    }

    pub fn thaw(&self) {
        self.signal(Signal::SIGCONT);
    }

    fn signal(&self, signal: Signal) {
        self.group.lock().unwrap().as_ref().expect("a running agent").signal(signal);
    }

    pub async fn try_call(&self, method: reqwest::Method, path: &str, body: Option<Value>) -> Option<Value> {
        let mut request = self.client.request(method, format!("{}{path}", self.address));
        if let Some(token) = &self.token {
            request = request.header("X-Nomad-Token", token);
        }
        if let Some(body) = body {
            request = request.json(&body);
        }
        let response = request.send().await.ok()?;
        let (status, text) = (response.status(), response.text().await.ok()?);
        if !status.is_success() {
            if !text.contains("blocked due to active deployment") {
                eprintln!("Nomad {path}: {status} {text}");
            }
            return None;
        }
        Some(serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    pub async fn call(&self, method: reqwest::Method, path: &str, body: Option<Value>) -> Value {
        self.try_call(method, path, body).await.unwrap_or_else(|| panic!("Nomad refuses {path}"))
    }

    /// Submits a job.
    pub async fn submit(&self, job: Value) {
        self.call(reqwest::Method::POST, "/v1/jobs", Some(json!({"Job": job}))).await;
    }

    pub async fn stop_job(&self, job: &str) {
        self.call(reqwest::Method::DELETE, &format!("/v1/job/{job}?purge=true"), None).await;
    }

    /// Scales a job, once Nomad lets it: not while a deployment is active.
    pub async fn scale(&self, job: &str, count: u32) {
        let path = format!("/v1/job/{job}/scale");
        wait_for(&format!("{job} to take {count}"), Duration::from_secs(60), async || {
            let body = json!({"Count": count, "Target": {"Group": "g"}});
            self.try_call(reqwest::Method::POST, &path, Some(body)).await
        })
        .await;
    }

    /// Has Nomad forget what has ended, on the server and on the client. It does so by itself much later: an agent of
    /// `-dev` has 13,000 mounts and 6 GB of memory after half an hour of soak, and takes both cores.
    pub async fn collect_garbage(&self) {
        let nodes = self.try_call(reqwest::Method::GET, "/v1/nodes", None).await.unwrap_or_default();
        let nodes = nodes.as_array().into_iter().flatten();
        let clients = nodes.map(|node| format!("/v1/client/gc?node_id={}", node["ID"].as_str().unwrap_or_default()));
        for of in std::iter::once("/v1/system/gc".to_owned()).chain(clients) {
            // It may not be there at this time: there is a next one.
            self.try_call(reqwest::Method::PUT, &of, None).await;
        }
    }

    /// The registrations of a service.
    pub async fn service(&self, name: &str) -> Vec<Value> {
        self.call(reqwest::Method::GET, &format!("/v1/service/{name}"), None)
            .await
            .as_array()
            .cloned()
            .unwrap_or_default()
    }

    pub async fn wait_for_instances(&self, name: &str, count: usize) {
        wait_for(&format!("{count} instances of {name}"), Duration::from_secs(60), async || {
            (self.service(name).await.len() == count).then_some(())
        })
        .await;
    }

    /// A token with this policy.
    pub async fn token_with(&self, rules: &str) -> String {
        self.call(reqwest::Method::POST, "/v1/acl/policy/test", Some(json!({"Name": "test", "Rules": rules}))).await;
        let body = json!({"Name": "test", "Type": "client", "Policies": ["test"]});
        self.call(reqwest::Method::POST, "/v1/acl/token", Some(body)).await["SecretID"].as_str().unwrap().to_owned()
    }
}

impl Drop for Nomad {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- Nomad's log\n{}", fs::read_to_string(self.folder.path().join("log")).unwrap_or_default());
        }
        self.kill();
    }
}

/// A job with one group service on a dynamic port. With `hello` there are real HTTP servers; without it there is only a
/// registration (mock_driver).
pub fn job(name: &str, count: u32, tags: &[&str], hello: Option<&str>) -> Value {
    let tags: Vec<String> = tags.iter().map(|tag| format!("haproxy.{tag}")).collect();
    let task = match hello {
        Some(version) => json!({
            "Name": "t", "Driver": "raw_exec", "Config": {"command": hello_binary()}, "Env": {"VERSION": version},
            "Resources": {"CPU": 20, "MemoryMB": 32}, "LogConfig": {"MaxFiles": 1, "MaxFileSizeMB": 1}, "KillTimeout": 5_000_000_000_u64,
        }),
        None => json!({
            "Name": "t", "Driver": "mock_driver", "Config": {"run_for": "10000h"}, "Resources": {"CPU": 1, "MemoryMB": 10}, "LogConfig": {"Disabled": true, "MaxFiles": 1, "MaxFileSizeMB": 1},
        }),
    };
    // Without processes there is no need for a careful deployment, and scaling need not wait for the last one.
    let parallel = u32::from(hello.is_some());
    json!({
        "ID": name, "Name": name, "Type": "service", "Datacenters": ["*"],
        "Update": {"MaxParallel": parallel, "MinHealthyTime": 100_000_000_u64, "HealthyDeadline": 30_000_000_000_u64,
                   "ProgressDeadline": 60_000_000_000_u64, "HealthCheck": "task_states"},
        "TaskGroups": [{
            "Name": "g", "Count": count, "ShutdownDelay": if hello.is_some() { 1_500_000_000_u64 } else { 0 },
            "RestartPolicy": {"Attempts": 3, "Interval": 60_000_000_000_u64, "Delay": 500_000_000, "Mode": "delay"},
            "Networks": [{"Mode": "host", "DynamicPorts": [{"Label": "http"}]}],
            "Services": [{"Name": name, "Provider": "nomad", "PortLabel": "http", "Tags": tags}],
            "EphemeralDisk": {"SizeMB": 10},
            "Tasks": [task],
        }],
    })
}

/// The HTTP server of `examples/hello.rs`, beside this test's own executable.
pub fn hello_binary() -> PathBuf {
    let here = std::env::current_exe().unwrap();
    let candidates = here.ancestors().flat_map(|folder| [folder.join("examples/hello"), folder.join("hello")]);
    let found = candidates.into_iter().find(|path| path.is_file());
    found.expect("examples/hello is not built: run `cargo build --examples`")
}
