//! A real HAProxy in master-worker mode.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nomad_haproxy::haproxy::socket;

use super::process::Group;
use super::{free_port, root, wait_for};

/// The executable of a series, if it is installed: `make tools` does that.
pub fn binary(series: &str) -> Option<PathBuf> {
    let path = root().join(format!("target/tools/haproxy-{series}/sbin/haproxy"));
    path.exists().then_some(path)
}

/// The series that the suite runs on: 3.0 and 3.2 always, 3.4 if available.
pub fn matrix() -> Vec<&'static str> {
    for needed in ["3.0", "3.2"] {
        assert!(binary(needed).is_some(), "HAProxy {needed} is not here: run `make tools` first");
    }
    ["3.0", "3.2", "3.4"].into_iter().filter(|series| binary(series).is_some()).collect()
}

/// What a person wrote: comments, odd spacing, a backend and a rule of their own.
pub fn hand_written(folder: &Path, port: u16) -> String {
    format!(
        "# by hand, do not touch\n\
         global\n    stats socket {sock} mode 600 level admin\n    maxconn   500\n\n\
         # every section comes under this\ndefaults base\n    mode http\n    timeout connect 1s\n\
         \x20   timeout client  30s   # long\n    timeout server  30s\n\n\
         frontend web\n    bind 127.0.0.1:{port}\n    acl is_shop   path_beg /shop  # the old shop\n\
         \x20   use_backend shop if is_shop\n    use_backend %[req.hdr(host),field(1,:),field(1,.)]\n\n\
         backend shop\n    balance roundrobin\n    # one day there will be two\n    server old 127.0.0.1:9   weight 0\n\n\n\
         # the end\n",
        sock = folder.join("stats.sock").display(),
    )
}

/// `.if` blocks, odd spacing, comments in odd places: what the Data Plane API breaks.
pub fn conditional(folder: &Path, port: u16) -> String {
    let odd = "\n.if defined(NEVER)\nbackend never\n  server x 127.0.0.1:1\n.else\n#in between\n\tbackend   always   # odd\n\t\tserver y 127.0.0.1:2    backup\n.endif\n";
    format!("{}{odd}   # last words\n\n", hand_written(folder, port))
}

/// The master in an answer to `show proc`: its process ID, and how many reloads it counts, the failed ones included.
fn master_in(answer: &str) -> Option<(i32, u64)> {
    let mut words = answer.lines().find(|line| line.contains("master"))?.split_whitespace();
    Some((words.next()?.parse().ok()?, words.nth(1)?.parse().ok()?))
}

/// The same, of a master that something else started; `None`: it does not answer.
pub async fn master(socket: &Path) -> Option<(i32, u64)> {
    master_in(&socket::command(socket, "show proc", Duration::from_secs(5)).await.ok()?)
}

/// The server of each instance of ours in a file.
pub fn seats(text: &str) -> std::collections::BTreeMap<String, String> {
    let lines = text.lines().filter(|line| line.contains("\"id\":"));
    lines
        .map(|line| {
            let id = line.split("\"id\":\"").nth(1).unwrap().split('"').next().unwrap();
            (id.to_owned(), line.split_whitespace().nth(1).unwrap().to_owned())
        })
        .collect()
}

/// A server as the process has it.
#[derive(Debug, Clone)]
pub struct Running {
    /// Its administrative state, and what set it: HAProxy's `SRV_ADMF_*`.
    pub admin: u16,
    pub weight: u16,
    pub address: String,
}

impl Running {
    /// The state that was set at run time, whatever its checks report.
    pub fn state(&self) -> &'static str {
        match self.admin {
            admin if admin & 0x01 != 0 => "maint",
            admin if admin & 0x08 != 0 => "drain",
            _ => "ready",
        }
    }
}

pub struct Haproxy {
    group: Option<Group>,
    folder: tempfile::TempDir,
    pub binary: PathBuf,
    pub port: u16,
    /// The file that the controller writes.
    pub config_file: PathBuf,
    /// Its other arguments, instead of `-f` and that file.
    pub arguments: Vec<String>,
    /// Its environment, in addition to the test's.
    pub environment: Vec<(String, String)>,
    /// The options of its master socket.
    pub socket_options: String,
    /// Its working directory, if not the test's.
    pub working_directory: Option<PathBuf>,
}

impl Haproxy {
    /// Starts one with [`hand_written`].
    pub async fn start(series: &str) -> Self {
        Self::start_with(series, hand_written).await
    }

    pub async fn start_with<C: AsRef<[u8]>>(series: &str, config: impl Fn(&Path, u16) -> C) -> Self {
        let binary = binary(series).unwrap_or_else(|| panic!("HAProxy {series} is not here: run `make tools`"));
        Self::start_binary(binary, config).await
    }

    pub async fn start_binary<C: AsRef<[u8]>>(binary: PathBuf, config: impl Fn(&Path, u16) -> C) -> Self {
        let mut haproxy = Self::prepare(binary);
        fs::write(haproxy.config(), config(haproxy.folder(), haproxy.port)).unwrap();
        haproxy.launch().await;
        haproxy
    }

    /// A folder and a port for a HAProxy that is started later.
    pub fn prepare(binary: PathBuf) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config_file = folder.path().join("haproxy.cfg");
        Self {
            group: None,
            folder,
            binary,
            port: free_port(),
            arguments: vec!["-f".to_owned(), config_file.display().to_string()],
            config_file,
            environment: Vec::new(),
            socket_options: "mode,600".to_owned(),
            working_directory: None,
        }
    }

    /// Starts the process, for the first time or after [`Self::kill`].
    pub async fn launch(&mut self) {
        let log = fs::File::options().create(true).append(true).open(self.folder().join("log")).unwrap();
        let mut command = Command::new(&self.binary);
        command
            .arg("-W")
            .arg("-S")
            .arg(format!("{},{}", self.master().display(), self.socket_options))
            .args(&self.arguments);
        command.envs(self.environment.iter().cloned()).stdout(log.try_clone().unwrap()).stderr(log);
        if let Some(folder) = &self.working_directory {
            command.current_dir(folder);
        }
        self.group = Some(Group::spawn(&mut command));
        let what = format!("HAProxy to answer; its log is in {}", self.folder().join("log").display());
        wait_for(&what, Duration::from_secs(20), async || {
            self.try_command("@1 show info").await.filter(|a| a.contains("Version"))
        })
        .await;
    }

    pub fn kill(&mut self) {
        self.group = None;
        let _ = fs::remove_file(self.master());
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn config(&self) -> PathBuf {
        self.config_file.clone()
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.bytes()).unwrap()
    }

    /// HAProxy takes its file as it stands.
    pub fn is_valid(&self) {
        let output = std::process::Command::new(&self.binary).args(["-c", "-f"]).arg(self.config()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    pub fn bytes(&self) -> Vec<u8> {
        fs::read(self.config()).unwrap()
    }

    pub fn master(&self) -> PathBuf {
        self.folder().join("master.sock")
    }

    pub async fn try_command(&self, command: &str) -> Option<String> {
        socket::command(&self.master(), command, Duration::from_secs(5)).await.ok()
    }

    /// An answer; the master gives none while it replaces itself.
    pub async fn command(&self, command: &str) -> String {
        let what = format!("HAProxy to answer {command}");
        wait_for(&what, Duration::from_secs(5), async || {
            self.try_command(command).await.filter(|a| !a.is_empty() || command.contains("set "))
        })
        .await
    }

    /// Waits until a backend has just so many servers in service.
    pub async fn wait_for_in_service(&self, backend: &str, count: usize, within: Duration) {
        wait_for(&format!("{count} of {backend} in service"), within, async || {
            let running = self.running_in(backend).await;
            (running.values().filter(|server| server.state() == "ready").count() == count).then_some(())
        })
        .await;
    }

    async fn proc(&self) -> Vec<String> {
        self.command("show proc").await.lines().map(str::to_owned).collect()
    }

    /// How many reloads the master counts, the failed ones included.
    pub async fn reloads(&self) -> u64 {
        let answer = self.command("show proc").await;
        master_in(&answer).unwrap_or_else(|| panic!("{answer}")).1
    }

    /// The process ID of the current worker.
    pub async fn worker(&self) -> u64 {
        let info = self.command("@1 show info").await;
        info.lines().find_map(|line| line.strip_prefix("Pid: ")).unwrap().parse().unwrap()
    }

    /// How many workers are alive, the old ones included.
    pub async fn workers(&self) -> usize {
        self.proc().await.iter().filter(|line| line.contains(" worker ")).count()
    }

    /// The process IDs of the master and of all workers, the old ones included.
    pub async fn processes(&self) -> Vec<i32> {
        let lines = self.proc().await;
        let processes = lines.iter().filter(|line| line.contains(" worker ") || line.contains(" master "));
        processes.map(|line| line.split_whitespace().next().unwrap().parse().unwrap()).collect()
    }

    /// `backend/server` → (operational state, administrative state, address:port), as the process has them.
    pub async fn servers(&self) -> std::collections::BTreeMap<String, (String, String, String)> {
        let state = self.command("@1 show servers state").await;
        let fields =
            state.lines().map(|line| line.split(' ').collect::<Vec<_>>()).filter(|f| f.len() > 18 && f[0] != "#");
        fields
            .map(|f| (format!("{}/{}", f[1], f[3]), (f[5].into(), f[6].into(), format!("{}:{}", f[4], f[18]))))
            .collect()
    }

    /// `backend/server` → the server as the process has it. With many servers only while nobody reloads HAProxy: see
    /// [`Self::running_in`].
    pub async fn running(&self) -> std::collections::BTreeMap<String, Running> {
        running(&self.command("@1 show servers state").await)
    }

    /// The servers of one backend. HAProxy 3.2.26 loses its worker after a long answer that a reload cuts short.
    pub async fn running_in(&self, backend: &str) -> std::collections::BTreeMap<String, Running> {
        running(&self.command(&format!("@1 show servers state {backend}")).await)
    }

    /// The state that was set for a server: `ready`, `drain` or `maint`; `missing` if the process lacks it.
    pub async fn state(&self, server: &str) -> &'static str {
        let backend = server.split_once('/').unwrap().0;
        self.running_in(backend).await.get(server).map_or("missing", Running::state)
    }

    /// Waits until a server has a state.
    pub async fn wait_for_state(&self, server: &str, wanted: &str) {
        wait_for(&format!("{server} in {wanted}"), Duration::from_secs(15), async || {
            (self.state(server).await == wanted).then_some(())
        })
        .await;
    }

    /// Waits until the checks of a server report this: `UP`, `DOWN`, `MAINT`, …
    pub async fn wait_for_status(&self, server: &str, wanted: &str) {
        wait_for(&format!("{server} {wanted}"), Duration::from_secs(15), async || {
            self.statuses().await.get(server).filter(|status| status.starts_with(wanted)).map(drop)
        })
        .await;
    }

    /// `backend/server` → UP, DOWN, MAINT, …
    pub async fn statuses(&self) -> std::collections::BTreeMap<String, String> {
        let csv = self.command("@1 show stat -1 4 -1").await;
        let fields = csv
            .lines()
            .map(|line| line.split(',').collect::<Vec<_>>())
            .filter(|f| f.len() > 17 && !f[0].starts_with('#'));
        fields.map(|f| (format!("{}/{}", f[0], f[1]), f[17].to_owned())).collect()
    }
}

/// `backend/server` → the server, from `show servers state`.
fn running(state: &str) -> std::collections::BTreeMap<String, Running> {
    let rows = state.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let running = |f: &[&str]| Running {
        admin: f[6].parse().unwrap(),
        weight: f[7].parse().unwrap(),
        address: format!("{}:{}", f[4], f[18]),
    };
    rows.filter(|f| f.len() > 18 && f[0] != "#").map(|f| (format!("{}/{}", f[1], f[3]), running(&f))).collect()
}

/// The bytes of a file that are not ours: everything except the version header and our own sections.
pub fn foreign_bytes(text: &str) -> String {
    use nomad_haproxy::haproxy::text::{ConfigText, Section};
    let mut text = ConfigText::new(text);
    loop {
        let is_profile = |section: &Section| section.kind == "defaults" && section.name.starts_with("nomad-haproxy-");
        let ours = text.sections().into_iter().find(|section| {
            is_profile(section)
                || text.directives(section).any(|(_, d)| {
                    d.keyword() == "description" && d.words.get(1).is_some_and(|w| w.starts_with("nomad-haproxy:"))
                })
        });
        match ours {
            Some(section) if is_profile(&section) => text.remove_profile(&section),
            Some(section) => text.remove_section(&section),
            None => break,
        }
    }
    let lines = text.lines().iter().filter(|line| {
        !line.starts_with("# _") && !line.contains("\"owner\":\"nomad\"") && !line.contains("/nomad-haproxy__nomad__")
    });
    lines.map(String::as_str).collect()
}

/// What is not ours, independent of formatting: each section's directives, and all comments.
pub fn foreign_meaning(text: &str) -> Vec<String> {
    use nomad_haproxy::haproxy::text::{ConfigText, Directive};
    let text = ConfigText::new(&foreign_bytes(text));
    let mut meaning = Vec::new();
    for section in text.sections() {
        for (_, directive) in text.directives(&section).skip(1) {
            let mut words = directive.words;
            words.sort();
            meaning.push(format!("{} {}: {}", section.kind, section.name, words.join(" ")));
        }
    }
    // API 3.4 keeps a comment after a directive as metadata.
    let unwrapped = |comment: String| match serde_json::from_str::<serde_json::Value>(&comment) {
        Ok(metadata) => metadata["comment"].as_str().map_or(comment, str::to_owned),
        Err(_) => comment,
    };
    let comments = text.lines().iter().filter_map(|line| Directive::parse(line).comment).map(unwrapped);
    let api = ["Dataplaneapi managed File", "changing file directly can cause a conflict"];
    meaning.extend(comments.filter(|comment| !api.iter().any(|words| comment.starts_with(words))));
    meaning.sort();
    meaning
}

impl Drop for Haproxy {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for (whose, log) in [("HAProxy", "log"), ("the Data Plane API", "dataplaneapi.log")] {
                if let Ok(log) = fs::read_to_string(self.folder().join(log)) {
                    eprintln!("--- the log of {whose}\n{log}");
                }
            }
            eprintln!("--- HAProxy's configuration\n{}", String::from_utf8_lossy(&self.bytes()));
        }
        drop(self.group.take());
    }
}

/// Whether a text has a backend of this name, in any formatting.
pub fn has_backend(text: &str, name: &str) -> bool {
    use nomad_haproxy::haproxy::text::ConfigText;
    ConfigText::new(text).sections().iter().any(|section| section.kind == "backend" && section.name == name)
}

/// The standard output of a command that must succeed.
pub fn output(command: &mut Command) -> String {
    let output = command.stderr(Stdio::inherit()).output().unwrap();
    assert!(output.status.success(), "{command:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// A master socket that forwards everything, but hangs up on both ends after the first bytes of its first answers to
/// commands with this word in them, as a master that re-executes itself for a reload does.
pub fn cutting_master(path: &Path, master: &Path, word: &'static str, mut cuts: usize) -> tokio::task::JoinHandle<()> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::UnixListener::bind(path).unwrap();
    let master = master.to_owned();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut command = String::new();
            stream.read_to_string(&mut command).await.unwrap();
            if cuts > 0 && command.contains(word) {
                cuts -= 1;
                let mut haproxy = tokio::net::UnixStream::connect(&master).await.unwrap();
                haproxy.write_all(command.as_bytes()).await.unwrap();
                haproxy.shutdown().await.unwrap();
                let _ = haproxy.read(&mut [0; 64]).await;
                continue;
            }
            let answer = socket::command(&master, command.trim(), Duration::from_secs(60)).await;
            let _ = stream.write_all(format!("{}\n", answer.unwrap_or_default()).as_bytes()).await;
        }
    })
}

/// A master socket that forwards everything except commands with this word in them, which it never answers.
pub fn deaf_master(path: &Path, master: &Path, word: &'static str) -> tokio::task::JoinHandle<()> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::UnixListener::bind(path).unwrap();
    let master = master.to_owned();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let master = master.clone();
            tokio::spawn(async move {
                let mut command = String::new();
                stream.read_to_string(&mut command).await.unwrap();
                if command.contains(word) {
                    std::future::pending::<()>().await;
                }
                let answer = socket::command(&master, command.trim(), Duration::from_secs(60)).await.unwrap();
                let _ = stream.write_all(format!("{answer}\n").as_bytes()).await;
            });
        }
    })
}
