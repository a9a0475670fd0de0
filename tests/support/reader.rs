//! A reader of the documents: a machine with what a page takes for granted, on which commands are run as they are shown.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command as Process, Output, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;

use super::api::{Rig, Way};
use super::docs::{Command, Page, Shell, is_assignment};
use super::haproxy::{self, Haproxy};
use super::machine::Machine;
use super::nomad::{self, Nomad, hello_binary};
use super::process::Group;
use super::prometheus::tool;
use super::{controller, free_port, root, wait_for};

/// What a command has to do, where that is not to succeed.
#[derive(Debug, Clone, Copy)]
pub struct Expected {
    pub code: i32,
    pub says: &'static str,
}

pub struct Reader {
    /// How the pages' commands reach HAProxy, if they do not say it themselves.
    way: Way,
    pub local: Rig,
    pub api: Rig,
    /// One that is not started: for a page that starts it.
    spare: Haproxy,
    nomad: String,
    listen: String,
    folder: tempfile::TempDir,
    pub machine: Machine,
}

impl Reader {
    /// With the frontend of the README in both HAProxys.
    pub async fn new(way: Way, nomad: &Nomad) -> Self {
        let frontend =
            Page::read("README.md").blocks().into_iter().find(|block| block.text.starts_with("frontend web"));
        let frontend = frontend.expect("a frontend in the README").text;
        let config = |folder: &Path, port: u16| {
            let global = format!("global\n    stats socket {}/stats.sock mode 600 level admin\n\n", folder.display());
            let here = frontend.replace("bind :80", &format!("bind 127.0.0.1:{port}"));
            assert_ne!(here, frontend);
            format!("{global}{DEFAULTS}{here}")
        };
        let local = Rig::with(Way::Local, "3.2", Haproxy::start_with("3.2", config).await).await;
        let api = Rig::with(Way::Api, "3.2", Haproxy::start_with("3.2", config).await).await;
        let spare = Haproxy::prepare(haproxy::binary("3.2").unwrap());
        fs::write(spare.config(), config(spare.folder(), spare.port)).unwrap();
        let (nomad, listen) = (nomad.address.clone(), format!("127.0.0.1:{}", free_port()));
        let machine = Machine::new(&spare.bytes());
        let folder = tempfile::tempdir().unwrap();
        let reader = Self { way, local, api, spare, nomad, listen, folder, machine };
        reader.furnish();
        reader
    }

    /// The programs that the pages call, and the files that they name.
    fn furnish(&self) {
        let (bin, work) = (self.bin(), self.work());
        programs(&bin);
        fs::create_dir(&work).unwrap();
        symlink(root().join("deploy"), work.join("deploy")).unwrap();
        symlink(root().join("Makefile"), work.join("Makefile")).unwrap();
        fs::write(work.join("haproxy.cfg"), self.local.haproxy.bytes()).unwrap();
        fs::write(work.join("password"), "secret\n").unwrap();
        fs::write(work.join("forward"), self.forwarder()).unwrap();
        fs::set_permissions(work.join("forward"), fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// In place of a Data Plane API in a Nomad job: the one that runs here, at the job's address.
    fn forwarder(&self) -> String {
        let api = self.api.api.as_ref().unwrap().url.trim_start_matches("http://");
        format!(
            "#!/bin/sh\ncat > \"$NOMAD_TASK_DIR/forward.cfg\" <<END\n{}listen api\n    mode tcp\n    \
             bind $NOMAD_ADDR_api\n    server api {api}\nEND\nexec {} -db -f \"$NOMAD_TASK_DIR/forward.cfg\"\n",
            DEFAULTS.replace("http", "tcp"),
            self.local.haproxy.binary.display()
        )
    }

    fn bin(&self) -> PathBuf {
        self.folder.path().join("bin")
    }

    /// Where the commands run.
    pub fn work(&self) -> PathBuf {
        self.folder.path().join("work")
    }

    /// Nomad's address.
    pub fn nomad(&self) -> &str {
        &self.nomad
    }

    fn rig(&self) -> &Rig {
        match self.way {
            Way::Local => &self.local,
            Way::Api => &self.api,
        }
    }

    /// Everything in the pages that is another one here: addresses, paths, and names that a reader fills in.
    fn substitutions(&self) -> Vec<(&'static str, String)> {
        let (local, work) = (&self.local.haproxy, self.work());
        let path = |path: &Path| path.display().to_string();
        let started = format!("-S {} -f {}", path(&self.spare.master()), path(&self.spare.config()));
        let job = format!(
            "-var driver=raw_exec -var bind=127.0.0.1 -var http_port=0 -var haproxy={} -var dataplaneapi={}",
            path(&local.binary),
            path(&work.join("forward"))
        );
        vec![
            ("-S /run/haproxy-master.sock -f …", started),
            ("haproxy -c -f …", format!("haproxy -c -f {}", path(&self.rig().haproxy.config()))),
            ("/etc/haproxy/haproxy.cfg", path(&local.config())),
            ("/run/haproxy-master.sock", path(&local.master())),
            ("http://10.0.0.5:5555", self.api.api.as_ref().unwrap().url.clone()),
            ("/etc/nomad-haproxy/password", path(&work.join("password"))),
            ("http://127.0.0.1:5555", self.api.api.as_ref().unwrap().url.clone()),
            ("http://127.0.0.1:9471", format!("http://{}", self.listen)),
            ("HAPROXY_PASSWORD=…", "HAPROXY_PASSWORD=secret".to_owned()),
            ("password=PASSWORD", "password=secret".to_owned()),
            ("Bearer TOKEN", format!("Bearer {TOKEN}")),
            ("deploy/haproxy.nomad.hcl", format!("{job} deploy/haproxy.nomad.hcl")),
            ("explain SERVICE", "explain hello".to_owned()),
            ("service info NAME", "service info hello".to_owned()),
            ("namespace apply NAME", "namespace apply team-a".to_owned()),
            ("var get PATH", "var get nomad/jobs/nomad-haproxy/lock".to_owned()),
            ("--out FILE", "--out kept.plan".to_owned()),
            ("--plan FILE", "--plan kept.plan".to_owned()),
            ("--adopt OWNER", "--adopt another".to_owned()),
            ("--adopt OLD", "--adopt another".to_owned()),
        ]
    }

    /// The command as it is run here. What is left of another machine is an error.
    fn here(&self, command: &Command) -> String {
        let mut text = command.text.clone();
        for (from, to) in self.substitutions() {
            text = text.replace(from, &to);
        }
        let ours = [self.nomad.clone(), format!("http://{}", self.listen), self.api.api.as_ref().unwrap().url.clone()];
        let commands = text.lines().filter_map(|line| line.split(" #").next());
        for word in commands.flat_map(|line| line.split([' ', '"', '\'', ','])) {
            let is_url_of_ours = ours.iter().any(|url| word.contains(url.as_str()));
            assert!(
                is_url_of_ours || !is_of_another_machine(word),
                "{}:{}: `{word}` in `{text}` is not replaced by what the test started: see `substitutions`",
                command.page,
                command.line
            );
        }
        text
    }

    /// What a reader has in the environment: where Nomad is, and HAProxy, if the command does not say it.
    fn environment(&self, text: &str) -> BTreeMap<String, String> {
        let set = |key: &str, value: String| (key.to_owned(), value);
        let mut all = BTreeMap::from([
            set("NOMAD_ADDR", self.nomad.clone()),
            set("NOMAD_HAPROXY_HTTP_LISTEN", self.listen.clone()),
            set("NOMAD_HAPROXY_HTTP_TOKEN", TOKEN.to_owned()),
            set("NOMAD_HAPROXY_LOG_FORMAT", "json".to_owned()),
            // What `make` would do: these take longer than the suite, or are the suite.
            set("MAKEFLAGS", "--dry-run".to_owned()),
        ]);
        let names_a_way = text.split_whitespace().any(|word| is_assignment(word) && word.starts_with("HAPROXY_"));
        if !names_a_way {
            all.extend(self.rig().env().into_iter().filter(|(key, _)| key != "HAPROXY_BINARY"));
        }
        all
    }

    fn shell(&self, shell: Shell, text: &str) -> Process {
        let mut process = in_shell(shell, text, &self.work(), &self.bin());
        process.envs(self.environment(text));
        process
    }

    /// Runs a command as it is shown, which must do what is expected of it.
    pub async fn run(&self, command: &Command, expected: Expected) {
        let at = format!("{}:{}: `{}` ({:?})", command.page, command.line, command.text, self.way);
        eprintln!("--- {at}");
        if is_of_a_controllers_job(&command.text) {
            assert!(run_by_jobs().contains(&command.text), "{at}: no job file in deploy/ begins with it");
            return;
        }
        let text = if changes_the_machine(&command.text) { command.text.clone() } else { self.here(command) };
        let words: Vec<&str> = text.split_whitespace().skip_while(|word| is_assignment(word)).collect();
        let output = match words[..] {
            ["nomad-haproxy", "run", ..] => return self.until_ready(&text, &at).await,
            ["haproxy", "-W", ..] => return self.until_haproxy_answers(&text).await,
            ["cargo", "test", "--test", "e2e", module] => return is_a_test(module, &at),
            ["docker", ..] => return eprintln!("not run: it takes a container engine"),
            ["nomad", "job", "run", "-var", "driver=docker", ..] => {
                self.once(command.shell, &text.replace("job run", "job validate")).await
            }
            _ if changes_the_machine(&text) && !Machine::is_possible() => {
                return eprintln!("skipped: this user may not have a machine of its own to change");
            }
            _ if changes_the_machine(&text) => self.machine.once(&text).await,
            ["nomad-haproxy", "uninstall", ..] => self.at_a_terminal(&text, expected).await,
            ["curl", ..] => {
                let mut controller = self.start("nomad-haproxy run");
                self.wait_until_ready(&at).await;
                let output = self.once(command.shell, &text).await;
                end(&mut controller, &at);
                output
            }
            _ => self.once(command.shell, &text).await,
        };
        let said = controller::stdout(&output) + &controller::stderr(&output);
        assert_eq!(output.status.code(), Some(expected.code), "{at}: {said}");
        assert!(said.contains(expected.says), "{at}: {} in: {said}", expected.says);
    }

    /// What the controller answers once it is ready.
    pub async fn ask(&self, path: &str) -> String {
        let mut controller = self.start("nomad-haproxy run");
        self.wait_until_ready(path).await;
        let answer = reqwest::get(format!("http://{}{path}", self.listen)).await.unwrap().text().await.unwrap();
        end(&mut controller, path);
        answer
    }

    async fn once(&self, shell: Shell, text: &str) -> Output {
        let mut process = self.shell(shell, text);
        tokio::task::spawn_blocking(move || process.output().unwrap()).await.unwrap()
    }

    /// It asks there, and is answered with yes if it is expected to succeed.
    async fn at_a_terminal(&self, text: &str, expected: Expected) -> Output {
        let answer = if expected.code == 0 { "yes" } else { "no" };
        let asked = "echo \"$ANSWER\" | script --quiet --return --command \"$COMMAND\" /dev/null";
        let mut process = self.shell(Shell::Prompt, asked);
        process.env("ANSWER", answer).env("COMMAND", text).env("SHELL", "/bin/bash");
        tokio::task::spawn_blocking(move || process.output().unwrap()).await.unwrap()
    }

    fn start(&self, text: &str) -> Group {
        let log = fs::File::create(self.work().join("log")).unwrap();
        Group::spawn(self.shell(Shell::Prompt, &exec(text)).stdout(Stdio::null()).stderr(log))
    }

    async fn wait_until_ready(&self, at: &str) {
        let url = format!("http://{}/readyz", self.listen);
        wait_for(&format!("{at} to be ready"), Duration::from_secs(90), async || {
            let answer = reqwest::get(&url).await.ok()?.text().await.ok()?;
            (answer == "ok\n").then_some(())
        })
        .await;
    }

    async fn until_ready(&self, text: &str, at: &str) {
        let mut controller = self.start(text);
        self.wait_until_ready(at).await;
        end(&mut controller, at);
    }

    async fn until_haproxy_answers(&self, text: &str) {
        let mut haproxy = self.start(text);
        wait_for("HAProxy to answer", Duration::from_secs(20), async || {
            self.spare.try_command("@1 show info").await.filter(|answer| answer.contains("Version"))
        })
        .await;
        haproxy.kill();
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = fs::read_to_string(self.work().join("log")).unwrap_or_default();
            eprintln!("--- the log of the last process that a page started\n{log}");
        }
    }
}

/// The programs that the documents call.
pub fn programs(folder: &Path) {
    fs::create_dir(folder).unwrap();
    for (name, path) in [
        ("nomad-haproxy", controller::binary()),
        ("nomad", nomad::binary().expect("run `make tools`")),
        ("haproxy", haproxy::binary("3.2").expect("run `make tools`")),
        ("promtool", tool("promtool")),
    ] {
        symlink(path, folder.join(name)).unwrap();
    }
}

fn path_with(bin: &Path) -> String {
    format!("{}:{}", bin.display(), std::env::var("PATH").unwrap())
}

/// A command in the shell of a person, or of a pipeline with what that sets.
pub fn in_shell(shell: Shell, text: &str, folder: &Path, bin: &Path) -> Process {
    let options: &[&str] = match shell {
        Shell::Prompt | Shell::Github => &["-e", "-c"],
        Shell::Gitlab => &["-eo", "pipefail", "-c"],
    };
    let mut process = Process::new("bash");
    process.args(options).arg(text).current_dir(folder).env_clear().stdin(Stdio::null());
    process.env("PATH", path_with(bin)).env("HOME", folder);
    process.env("GITHUB_STEP_SUMMARY", folder.join("summary")).env("GITHUB_OUTPUT", folder.join("output"));
    process
}

const DEFAULTS: &str =
    "defaults base\n    mode http\n    timeout connect 5s\n    timeout client 30s\n    timeout server 30s\n\n";
const TOKEN: &str = "reader";

/// Whether a word is an address, a path, or a name that a reader fills in (`FILE`, `TOKEN-FILE`).
fn is_of_another_machine(word: &str) -> bool {
    let value = word.split_once('=').map_or(word, |(_, value)| value);
    let is_path = ["/etc/", "/run/", "/usr/", "/var/"].iter().any(|folder| value.starts_with(folder));
    let is_name = value.len() > 1
        && value.starts_with(|c: char| c.is_ascii_uppercase())
        && value.chars().all(|c| c.is_ascii_uppercase() || c == '-');
    let is_method = ["POST", "PUT", "GET"].contains(&value);
    word.contains('…') || is_path || value.contains("://") || (is_name && !is_method)
}

/// Whether it is of a job that runs the controller: those run in jobs.rs, with ACLs, from the first lines of the files.
fn is_of_a_controllers_job(text: &str) -> bool {
    let is_about = |name: &&str| text.contains(name);
    text.starts_with("nomad ")
        && !text.contains("driver=docker")
        && ["nomad-haproxy.nomad.hcl", "haproxy-local.nomad.hcl", "deploy/policy", "nomad/jobs/nomad-haproxy password"]
            .iter()
            .any(is_about)
}

/// The commands that the job files begin with.
fn run_by_jobs() -> Vec<String> {
    let files = fs::read_dir(root().join("deploy")).unwrap().map(|entry| entry.unwrap().path());
    let jobs = files.filter(|path| path.extension().is_some_and(|name| name == "hcl"));
    let lines = jobs.flat_map(|path| fs::read_to_string(path).unwrap().lines().map(str::to_owned).collect::<Vec<_>>());
    lines.filter_map(|line| line.strip_prefix("#   ").map(str::to_owned)).collect()
}

/// Whether it is about users, and files of the whole machine.
fn changes_the_machine(text: &str) -> bool {
    ["useradd ", "chown ", "install "].iter().any(|program| text.starts_with(program))
}

/// Runs it in the place of the shell, so that a signal reaches it.
fn exec(text: &str) -> String {
    format!("exec env {text}")
}

fn end(controller: &mut Group, at: &str) {
    controller.signal(Signal::SIGTERM);
    assert_eq!(controller.wait().code(), Some(0), "{at}");
}

/// `cargo test` cannot run inside itself; the module has to be there.
fn is_a_test(module: &str, at: &str) {
    let modules = fs::read_to_string(root().join("tests/e2e/main.rs")).unwrap();
    assert!(modules.lines().any(|line| line == format!("mod {module};")), "{at}");
}

/// Submits the job that the README shows.
pub async fn submit_readme_job(nomad: &Nomad) {
    let blocks = Page::read("README.md").blocks();
    let job = blocks.iter().find(|block| block.text.starts_with("job \"hello\"")).expect("a job in the README");
    let text = job.text.replace("/usr/local/bin/hello", &hello_binary().display().to_string());
    assert_ne!(text, job.text);
    let file = nomad.folder().join("hello.nomad.hcl");
    fs::write(&file, text).unwrap();
    let mut run = Process::new(nomad::binary().unwrap());
    run.args(["job", "run", "-detach"]).arg(file).env("NOMAD_ADDR", &nomad.address);
    tokio::task::spawn_blocking(move || haproxy::output(&mut run)).await.unwrap();
    nomad.wait_for_instances("hello", 1).await;
}
