//! A candidate is validated as the running HAProxy would read it: in its environment and its folder, with its other
//! files and the options that it was started with.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::support::api::{Rig, Way};
use crate::support::controller::{Env, apply, command, registration, run, stderr, stdout, write_catalog};
use crate::support::haproxy::{Haproxy, binary, matrix};
use crate::support::routes::ask;
use crate::support::servers::Server;

const DEFAULTS: &str = "defaults base\n    mode http\n    timeout connect 1s\n    timeout client 30s\n    timeout server 30s\n    errorfile 503 errors/503.http\n";

fn global(folder: &Path) -> String {
    let socket = folder.join("stats.sock");
    format!("global\n    stats socket {} mode 600 level admin\n    maxconn \"${{MAXC}}\"\n", socket.display())
}

fn frontend(port: u16) -> String {
    format!(
        "frontend web from base\n    bind 127.0.0.1:{port}\n    use_backend %[req.hdr(host),field(1,:),field(1,.)]\n"
    )
}

/// One that needs its environment and its folder; the rest depends on the case.
fn prepare(series: &str) -> Haproxy {
    let mut haproxy = Haproxy::prepare(binary(series).unwrap());
    let folder = haproxy.folder().to_owned();
    fs::create_dir(folder.join("errors")).unwrap();
    fs::write(folder.join("errors/503.http"), "HTTP/1.0 503 Service Unavailable\r\n\r\n").unwrap();
    haproxy.environment = vec![("MAXC".into(), "50".into())];
    haproxy.working_directory = Some(folder);
    haproxy
}

/// Everything in one file.
fn write_one_file(haproxy: &Haproxy) {
    let text = format!("{}\n{DEFAULTS}\n{}", global(haproxy.folder()), frontend(haproxy.port));
    fs::write(&haproxy.config_file, text).unwrap();
}

async fn start(series: &str, mut haproxy: Haproxy) -> Rig {
    haproxy.launch().await;
    Rig::with(Way::Local, series, haproxy).await
}

fn instances(balance: &str) -> [serde_json::Value; 1] {
    [registration("api", "1", 1, 2001, &["enable=true", balance])]
}

/// Before and after a reload, which changes the master's arguments.
async fn takes_changes(rig: &Rig) {
    for balance in ["balance=leastconn", "balance=first", "balance=source"] {
        write_catalog(&rig.catalog(), &instances(balance));
        apply(&rig.env(), &rig.catalog()).await;
    }
    rig.agrees().await;
}

async fn refusal(rig: &Rig, env: &Env) -> String {
    let output = run(env, &["apply", "--catalog", rig.catalog().to_str().unwrap()]).await;
    assert!(!output.status.success(), "{}", stdout(&output));
    stdout(&output) + &stderr(&output)
}

/// The `global` and `defaults` sections in a separate file, which is read first.
fn write_two_files(haproxy: &mut Haproxy) {
    fs::write(haproxy.folder().join("global.cfg"), global(haproxy.folder()) + DEFAULTS).unwrap();
    fs::write(&haproxy.config_file, frontend(haproxy.port)).unwrap();
    haproxy.arguments = ["-f", "global.cfg", "-f", "haproxy.cfg"].map(str::to_owned).to_vec();
}

#[tokio::test(flavor = "multi_thread")]
async fn in_its_environment_and_its_folder() {
    for series in matrix() {
        let haproxy = prepare(series);
        write_one_file(&haproxy);
        takes_changes(&start(series, haproxy).await).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_its_other_files() {
    for series in matrix() {
        let mut haproxy = prepare(series);
        write_two_files(&mut haproxy);
        takes_changes(&start(series, haproxy).await).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_folder_of_files_in_its_order() {
    for series in matrix() {
        let mut haproxy = prepare(series);
        let folder = haproxy.folder().join("conf.d");
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("10-base.cfg"), global(haproxy.folder()) + DEFAULTS).unwrap();
        haproxy.config_file = folder.join("50-ours.cfg");
        fs::write(&haproxy.config_file, frontend(haproxy.port)).unwrap();
        // A defaults section without a name applies to those below it.
        fs::write(folder.join("90-end.cfg"), "defaults from base\n    mode tcp\n").unwrap();
        for ignored in ["notes.txt", ".hidden.cfg", "old.cfg.cfg"] {
            fs::write(folder.join(ignored), "no configuration\n").unwrap();
        }
        haproxy.arguments = ["-f", "conf.d"].map(str::to_owned).to_vec();
        takes_changes(&start(series, haproxy).await).await;
    }
}

/// What a section of our file inherits from another one decides which mode its frontend is in, and what a server that
/// is added at run time is given.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_inherited_from_another_file_counts() {
    for series in matrix() {
        let mut haproxy = prepare(series);
        let defaults = DEFAULTS.replacen("defaults base", "defaults", 1) + "    default-server inter 1s weight 7\n";
        fs::write(haproxy.folder().join("base.cfg"), global(haproxy.folder()) + &defaults).unwrap();
        fs::write(&haproxy.config_file, format!("frontend web\n    bind 127.0.0.1:{}\n", haproxy.port)).unwrap();
        haproxy.arguments = ["-f", "base.cfg", "-f", "haproxy.cfg"].map(str::to_owned).to_vec();
        let (rig, server) = (start(series, haproxy).await, Server::start("api").await);
        let one = |n: u16, port: u16| {
            let tags = ["enable=true", "frontend=web", "domain=a.test"];
            registration("api", &n.to_string(), u64::from(n), port, &tags)
        };
        write_catalog(&rig.catalog(), &[one(1, server.port())]);
        let said = apply(&rig.env(), &rig.catalog()).await;
        assert_eq!(ask(&rig, "a.test", "/").await, "api", "HAProxy {series}: {said}");

        let reloads = rig.haproxy.reloads().await;
        let more: Vec<_> = std::iter::once(one(1, server.port())).chain((2..=20).map(|n| one(n, 2000 + n))).collect();
        write_catalog(&rig.catalog(), &more);
        let said = apply(&rig.env(), &rig.catalog()).await;
        assert_eq!(rig.haproxy.reloads().await, reloads, "HAProxy {series}: {said}");
        rig.agrees().await;
        let running = rig.haproxy.running_in("api").await;
        assert!(running.len() == 20 && running.values().all(|server| server.weight == 7), "{running:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_its_options() {
    for series in matrix() {
        let mut haproxy = prepare(series);
        write_one_file(&haproxy);
        let text = fs::read_to_string(&haproxy.config_file).unwrap();
        let more = "    default_backend far\n.if !defined(HAPROXY_MWORKER)\n    nosuchdirective\n.endif\n\
                    backend far from base\n    server a no.such.host.invalid:80\n";
        // At its first start 3.0 does not report that it has a master; validation has to be as for a reload.
        let more = if series == "3.0" { more.replace("nosuchdirective", "maxconn 7") } else { more.to_owned() };
        fs::write(&haproxy.config_file, text + &more).unwrap();
        haproxy.working_directory = Some("/".into());
        let folder = haproxy.folder().display().to_string();
        haproxy.arguments = ["-dr", "-C", &folder, "-L", "me", "--", "haproxy.cfg"].map(str::to_owned).to_vec();
        takes_changes(&start(series, haproxy).await).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_names_the_file_and_not_the_copy_that_was_validated() {
    for series in matrix() {
        let mut haproxy = prepare(series);
        write_two_files(&mut haproxy);
        let rig = start(series, haproxy).await;
        rig.edit(|text| text + "    blance first\n").await;
        write_catalog(&rig.catalog(), &instances("balance=first"));
        let said = refusal(&rig, &rig.env()).await;
        let line = format!("[{}:4]", rig.haproxy.config_file.display());
        assert!(said.contains(&line) && said.contains("blance"), "{said}");
        assert!(!said.contains(".nomad-haproxy") && !said.contains("hint"), "{said}");
    }
}

/// Runs the controller in its own process namespace, as in a container: /proc shows nothing of HAProxy.
async fn run_apart(env: &Env, rig: &Rig) -> std::process::Output {
    let inside = command(env, &["apply", "--catalog", rig.catalog().to_str().unwrap()]);
    let mut outside = Command::new("unshare");
    outside.args(["--pid", "--fork", "--mount-proc"]).arg(inside.get_program()).args(inside.get_args()).env_clear();
    outside.envs(inside.get_envs().filter_map(|(key, value)| Some((key, value?))));
    tokio::task::spawn_blocking(move || outside.output().unwrap()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn without_proc_the_settings_are_used() {
    let possible = Command::new("unshare").args(["--pid", "--fork", "--mount-proc", "true"]).output().unwrap();
    if !possible.status.success() {
        eprintln!("skipped: no process namespaces for this user: {}", String::from_utf8_lossy(&possible.stderr));
        return;
    }
    for series in matrix() {
        let mut haproxy = prepare(series);
        write_two_files(&mut haproxy);
        let rig = start(series, haproxy).await;
        write_catalog(&rig.catalog(), &instances("balance=first"));
        let output = run_apart(&rig.env(), &rig).await;
        let said = stdout(&output) + &stderr(&output);
        assert!(!output.status.success() && said.contains("hint: "), "{said}");
        for setting in ["haproxy.files", "haproxy.working_directory", "haproxy.environment_file"] {
            assert!(said.contains(setting), "{setting} in {said}");
        }

        let environment = rig.haproxy.folder().join("environment");
        fs::write(&environment, "# of HAProxy\nMAXC=\"50\"\n").unwrap();
        let folder = rig.haproxy.folder().display().to_string();
        let env = rig.env_with(&[
            ("HAPROXY_FILES", "global.cfg,haproxy.cfg"),
            ("HAPROXY_WORKING_DIRECTORY", &folder),
            ("HAPROXY_ENVIRONMENT_FILE", environment.to_str().unwrap()),
        ]);
        let output = run_apart(&env, &rig).await;
        assert!(output.status.success(), "{}{}", stdout(&output), stderr(&output));

        // They override /proc.
        write_catalog(&rig.catalog(), &instances("balance=source"));
        let wrong = rig.env_with(&[("HAPROXY_FILES", "haproxy.cfg")]);
        assert!(refusal(&rig, &wrong).await.contains("base"));
        let none = rig.env_with(&[("HAPROXY_FILES", "global.cfg")]);
        assert!(refusal(&rig, &none).await.contains("haproxy.files"));
    }
}
