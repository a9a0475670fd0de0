//! docker-compose.yml without containers: its form, and what its services run, from its own text with other ports and
//! folders.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use yaml_rust2::Yaml;

use crate::support::api::{self, Rig, Way};
use crate::support::controller::{Controller, registration, write_catalog};
use crate::support::haproxy::{self, Haproxy};
use crate::support::mariadb::MariaDb;
use crate::support::nomad::{self, Nomad};
use crate::support::process::Group;
use crate::support::{free_port, load, prometheus, root, wait_for};

const SOON: Duration = Duration::from_secs(60);

fn compose() -> Yaml {
    let text = std::fs::read_to_string(root().join("docker-compose.yml")).unwrap();
    yaml_rust2::YamlLoader::load_from_str(&text).unwrap().remove(0)
}

fn strings(list: &Yaml) -> Vec<&str> {
    list.as_vec().unwrap_or_else(|| panic!("{list:?} is a list")).iter().map(|one| one.as_str().unwrap()).collect()
}

/// What a service mounts from the repository: the file here, and its path in the container.
fn mounts(service: &Yaml) -> Vec<(PathBuf, &str)> {
    let volumes = service["volumes"].as_vec().into_iter().flatten().map(|volume| volume.as_str().unwrap());
    let files = volumes.filter(|volume| volume.starts_with("./"));
    files
        .map(|volume| volume.split_once(':').unwrap())
        .map(|(from, to)| (root().join(from), to.trim_end_matches(":ro")))
        .collect()
}

#[test]
fn the_compose_file_is_in_form_and_names_files_that_exist() {
    let compose = &compose();
    let services = compose["services"].as_hash().unwrap();
    let profile = |service: &Yaml| service["profiles"].as_vec().map(|_| strings(&service["profiles"]).join(","));
    let names: Vec<(&str, Option<String>)> =
        services.iter().map(|(name, service)| (name.as_str().unwrap(), profile(service))).collect();
    let always = ["nomad", "haproxy", "nomad-haproxy", "job", "prometheus"].map(|name| (name, None));
    let mysql = ["mysql", "mysql-job", "mysql-client"].map(|name| (name, Some("mysql".to_owned())));
    assert_eq!(names, [&always[..], &mysql].concat());
    for (name, service) in services {
        assert!(!service["image"].is_badvalue() || !service["build"].is_badvalue(), "{name:?}");
        // A tag is pinned, so that the commands and paths are those of the image that they were written for.
        assert!(service["image"].as_str().is_none_or(|image| image.contains(':')), "{name:?}");
        assert_eq!(service["network_mode"].as_str(), Some("host"), "{name:?}");
        for (file, _) in mounts(service) {
            assert!(file.is_file(), "{}", file.display());
        }
        for (needed, until) in service["depends_on"].as_hash().into_iter().flatten() {
            assert_eq!(until["condition"].as_str(), Some("service_healthy"));
            let needed = &compose["services"][needed.as_str().unwrap()];
            assert!(!needed["healthcheck"].is_badvalue(), "{needed:?} does not say when it is healthy");
            assert!(
                profile(needed).is_none_or(|one| profile(service) == Some(one)),
                "{name:?} starts without {needed:?}"
            );
        }
    }
    assert!(root().join(compose["services"]["nomad-haproxy"]["build"]["dockerfile"].as_str().unwrap()).exists());
    // HAProxy itself reads the configuration, if it still knows the `program` section (until 3.3).
    let config = root().join("deploy/compose/haproxy.cfg");
    let output = Command::new(haproxy::binary("3.2").unwrap()).args(["-c", "-f"]).arg(config).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Other words in the place of those of the compose file, in this order.
type Words = Vec<(String, String)>;

fn words<const N: usize>(list: [(&str, String); N]) -> Words {
    list.map(|(word, with)| (word.to_owned(), with)).to_vec()
}

fn replaced(text: &str, words: &Words) -> String {
    words.iter().fold(text.to_owned(), |text, (word, with)| text.replace(word, with))
}

/// The files that a service mounts, with other words, below another root; those who name them get its path.
fn mounted(service: &Yaml, below: &Path, words: &mut Words) {
    let before = words.clone();
    for (file, inside) in mounts(service) {
        let to = below.join(inside.trim_start_matches('/'));
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::write(&to, replaced(&std::fs::read_to_string(file).unwrap(), &before)).unwrap();
    }
    let folders = mounts(service).into_iter().map(|(_, inside)| Path::new(inside).parent().unwrap().to_str().unwrap());
    let mut folders: Vec<String> = folders.map(str::to_owned).collect();
    folders.dedup();
    words.extend(folders.into_iter().map(|folder| (format!("{folder}/"), format!("{}{folder}/", below.display()))));
}

/// The configuration, but for the API, which is started beside it.
async fn start_haproxy(database: u16) -> Rig {
    let text = std::fs::read_to_string(root().join("deploy/compose/haproxy.cfg")).unwrap();
    let (text, program) = text.split_once("program dataplaneapi").unwrap();
    assert!(!program.contains("\nfrontend"), "the last section");
    let config = |folder: &Path, port: u16| {
        let words = words([
            ("/run/haproxy.sock", folder.join("stats.sock").display().to_string()),
            ("127.0.0.1:8080", format!("127.0.0.1:{port}")),
            ("127.0.0.1:13306", format!("127.0.0.1:{database}")),
        ]);
        replaced(text, &words)
    };
    Rig::with(Way::Api, "3.2", Haproxy::start_with("3.2", config).await).await
}

/// Runs `nomad job run` as a service does.
async fn run_job(service: &Yaml, below: &Path, words: &Words) {
    let mut words = words.clone();
    mounted(service, below, &mut words);
    let entrypoint = strings(&service["entrypoint"]);
    assert_eq!(entrypoint[0], "nomad");
    let mut command = Command::new(nomad::binary().unwrap());
    command.args(entrypoint[1..].iter().map(|word| replaced(word, &words))).env_remove("NOMAD_TOKEN");
    command.env("NOMAD_ADDR", replaced(service["environment"]["NOMAD_ADDR"].as_str().unwrap(), &words));
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// The sample job, the database with its client, and Prometheus, around a real Nomad and a real HAProxy.
#[tokio::test(flavor = "multi_thread")]
async fn the_services_work_together() {
    let compose = &compose()["services"];
    let folder = tempfile::tempdir().unwrap();
    let (nomad, database) = (Nomad::start().await, MariaDb::start().await);
    let frontend = free_port();
    let rig = start_haproxy(frontend).await;
    let (nomad_haproxy, web) = (free_port(), free_port());
    let words = words([
        ("http://127.0.0.1:4646", nomad.address.clone()),
        ("http://127.0.0.1:5555", rig.api.as_ref().unwrap().url.clone()),
        ("adminpwd", "secret".to_owned()),
        ("127.0.0.1:9471", format!("127.0.0.1:{nomad_haproxy}")),
        ("127.0.0.1:9090", format!("127.0.0.1:{web}")),
        ("13306", frontend.to_string()),
        ("\"3306\"", format!("\"{}\"", database.port)),
    ]);

    let environment = compose["nomad-haproxy"]["environment"].as_hash().unwrap();
    let text = |value: &Yaml| replaced(value.as_str().unwrap(), &words);
    let env = environment.iter().map(|(name, value)| (name.as_str().unwrap().to_owned(), text(value))).collect();
    // An argument, as the tests' own environment has another address.
    let listen = format!("127.0.0.1:{nomad_haproxy}");
    let controller = Controller::start(&env, &["--http-listen", &listen]);
    run_job(&compose["job"], folder.path(), &words).await;
    run_job(&compose["mysql-job"], folder.path(), &words).await;

    let is_it = |body: &str| body.starts_with("hello from ");
    let answered = async || load::wait_for_answer(rig.haproxy.port, "hello.localhost", SOON, is_it).await;
    answered().await;

    let mut connection = Connection::start(&compose["mysql-client"], folder.path(), &words);
    connection.answers(2).await;
    nomad.scale("hello", 4).await;
    rig.haproxy.wait_for_in_service("hello", 4, SOON).await;
    answered().await;
    connection.answers(2).await;
    controller.wait_until_ready().await;

    let prometheus = start_prometheus(&compose["prometheus"], folder.path(), &words);
    wait_for("Prometheus to scrape the controller", SOON, async || {
        let url = format!("http://127.0.0.1:{web}/api/v1/query?query=up{{job=\"{}\"}}", prometheus::JOB);
        let answer: serde_json::Value = reqwest::get(url).await.ok()?.json().await.ok()?;
        (answer["data"]["result"][0]["value"][1] == "1").then_some(())
    })
    .await;
    let rules = reqwest::get(format!("http://127.0.0.1:{web}/api/v1/rules")).await.unwrap().text().await.unwrap();
    assert!(rules.contains("NomadHaproxyTwoLeaders"), "{rules}");
    drop(prometheus);

    // A connection that breaks is not opened again.
    drop(database);
    let ended = wait_for("the client to end", SOON, || std::future::ready(connection.group.exited())).await;
    assert!(!ended.success());
}

/// The client of the database, as its service runs it.
struct Connection {
    group: Group,
    output: PathBuf,
}

impl Connection {
    fn start(service: &Yaml, below: &Path, words: &Words) -> Self {
        let mut words = words.clone();
        mounted(service, below, &mut words);
        let entrypoint = strings(&service["entrypoint"]);
        let output = below.join("queries");
        let file = std::fs::File::create(&output).unwrap();
        let mut command = Command::new(entrypoint[0]);
        command.args(entrypoint[1..].iter().map(|word| replaced(word, &words)));
        command.env("MYSQL_PWD", service["environment"]["MYSQL_PWD"].as_str().unwrap());
        Self { group: Group::spawn(command.stdout(file).stderr(Stdio::inherit())), output }
    }

    /// Waits for more answers, which come by the one connection that was opened at first.
    async fn answers(&mut self, more: usize) {
        let lines = || std::fs::read_to_string(&self.output).unwrap().lines().map(str::to_owned).collect::<Vec<_>>();
        let before = lines().len();
        wait_for("more answers of the database", SOON, async || (lines().len() >= before + more).then_some(())).await;
        let lines = lines();
        let mut connections: Vec<&str> = lines.iter().filter_map(|line| line.split_whitespace().next()).collect();
        connections.dedup();
        assert_eq!(connections.len(), 1, "{lines:?}");
        assert!(self.group.exited().is_none(), "the connection broke after {lines:?}");
    }
}

/// With the configuration and the rules that it mounts, which promtool has accepted.
fn start_prometheus(service: &Yaml, below: &Path, words: &Words) -> Group {
    let mut words = words.clone();
    mounted(service, below, &mut words);
    words.push(("path=/prometheus".to_owned(), format!("path={}", below.join("prometheus").display())));
    let config = below.join("etc/prometheus/prometheus.yml");
    prometheus::promtool(&["check", "config", config.to_str().unwrap()], "");
    let log = std::fs::File::create(below.join("prometheus.log")).unwrap();
    let mut command = Command::new(prometheus::tool("prometheus"));
    command.args(strings(&service["command"]).iter().map(|word| replaced(word, &words)));
    Group::spawn(command.stdout(log.try_clone().unwrap()).stderr(log))
}

/// HAProxy starts the API by its `program` section, and the API has HAProxy reload.
#[tokio::test(flavor = "multi_thread")]
async fn the_haproxy_service_has_its_api() {
    let Some(dataplaneapi) = api::real() else {
        eprintln!("not looked at: the service starts a real Data Plane API (DATAPLANEAPI_BIN)");
        return;
    };
    let service = &compose()["services"]["haproxy"];
    let (folder, binary) = (tempfile::tempdir().unwrap(), haproxy::binary("3.2").unwrap());
    let below = folder.path().display();
    let (api, web) = (free_port(), free_port());
    std::fs::create_dir_all(folder.path().join("etc")).unwrap();
    let mut words = words([
        ("5555", api.to_string()),
        ("127.0.0.1:8080", format!("127.0.0.1:{web}")),
        ("13306", free_port().to_string()),
        ("/usr/local/etc/haproxy", format!("{below}/etc")),
        ("/usr/local/bin/dataplaneapi", dataplaneapi.display().to_string()),
        ("/usr/local/sbin/haproxy", binary.display().to_string()),
        ("/run/haproxy", format!("{below}/haproxy")),
        // The first process here is another one.
        ("kill -SIGUSR2 1", format!("{below}/reload")),
        ("exec haproxy", format!("echo $$ > {below}/pid; exec haproxy")),
    ]);
    mounted(service, folder.path(), &mut words);
    let reload = folder.path().join("reload");
    std::fs::write(&reload, format!("#!/bin/sh\nkill -USR2 \"$(cat {below}/pid)\"\n")).unwrap();
    std::fs::set_permissions(&reload, std::fs::Permissions::from_mode(0o755)).unwrap();
    let entrypoint = strings(&service["entrypoint"]);
    let path = format!("{}:{}", binary.parent().unwrap().display(), std::env::var("PATH").unwrap());
    let log = std::fs::File::create(folder.path().join("log")).unwrap();
    let mut command = Command::new(entrypoint[0]);
    command.args(entrypoint[1..].iter().map(|word| replaced(word, &words))).env("PATH", path);
    let _group = Group::spawn(command.stdout(log.try_clone().unwrap()).stderr(log));
    let check = strings(&service["healthcheck"]["test"]);
    assert_eq!(check[0], "CMD");
    let what = format!("the service to be healthy; its log is in {below}/log");
    wait_for(&what, SOON, async || {
        let mut command = Command::new(check[1]);
        command.args(check[2..].iter().map(|word| replaced(word, &words)));
        tokio::task::spawn_blocking(move || command.status().unwrap().success()).await.unwrap().then_some(())
    })
    .await;

    let catalog = folder.path().join("catalog.json");
    write_catalog(&catalog, &[registration("hello", "1", 1, 9, &["enable=true"])]);
    let env =
        [("HAPROXY_DATAPLANE_URL", format!("http://127.0.0.1:{api}")), ("HAPROXY_PASSWORD", "adminpwd".to_owned())];
    let env = env.map(|(name, value)| (name.to_owned(), value)).to_vec();
    let before = reloads(folder.path()).await;
    crate::support::controller::apply(&env, &catalog).await;
    wait_for("a reload", SOON, async || (reloads(folder.path()).await > before).then_some(())).await;
    assert!(std::fs::read_to_string(folder.path().join("etc/haproxy.cfg")).unwrap().contains("backend hello"));
}

/// How many reloads the master counts.
async fn reloads(folder: &Path) -> u64 {
    wait_for("the master to answer", SOON, async || Some(haproxy::master(&folder.join("haproxy-master.sock")).await?.1))
        .await
}
