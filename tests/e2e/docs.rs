//! README.md, docs/ and deploy/README.md, as a reader uses them: each command is run, in order, from the text itself, on a
//! real Nomad and real HAProxys, and each block is what it says it is. What a command finds instead of the addresses and
//! paths of the documents is in `Reader::substitutions`.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use crate::support::api::{Rig, WAYS, Way};
use crate::support::controller::{self, apply, registration, stderr, stdout, write_catalog};
use crate::support::docs::{self, Page, Shell, pages};
use crate::support::haproxy::{binary, matrix};
use crate::support::machine::Machine;
use crate::support::nomad::{self, Nomad};
use crate::support::process::Group;
use crate::support::prometheus::tool;
use crate::support::reader::{Expected, Reader, in_shell, programs, submit_readme_job};
use crate::support::{load, root, wait_for};
use nomad_haproxy::config::Settings;
use reqwest::Method;
use serde_json::Value;

/// Commands that are not expected to succeed, or that have to say something: page, command, exit code, words. Every other
/// command has to end with 0. The first of a command on a page is meant.
const EXPECTED: &[(&str, &str, i32, &str)] = &[
    ("README.md", "make demo", 0, "scripts/demo.sh"),
    ("README.md", "nomad-haproxy uninstall", 1, "Nothing is removed"),
    ("README.md", "nomad-haproxy uninstall --no-lock", 1, "Nothing is removed"),
    ("README.md", "nomad-haproxy explain SERVICE", 0, "It is routed"),
    ("docs/operating.md", "nomad-haproxy check", 0, "ok       nomad          http"),
    ("docs/operating.md", "nomad-haproxy plan --detailed-exitcode --out haproxy.plan", 2, "+backend hello"),
    ("docs/operating.md", "nomad-haproxy explain SERVICE", 0, "It is routed"),
    ("docs/operating.md", "nomad-haproxy uninstall", 0, "Removed"),
    ("docs/ci.md", "nomad-haproxy plan --catalog catalog.json --haproxy-config haproxy.cfg --detailed-exitcode", 2, ""),
    ("docs/ci.md", "nomad-haproxy plan --detailed-exitcode --out haproxy.plan", 2, "+backend hello"),
    ("docs/metrics.md", "promtool test rules deploy/alerts_test.yml", 0, "SUCCESS"),
];

fn expected(command: &docs::Command, is_first: bool) -> Expected {
    let row = EXPECTED.iter().find(|(page, text, ..)| *page == command.page && command.text.starts_with(text));
    let &(.., code, says) = row.filter(|_| is_first).unwrap_or(&("", "", 0, ""));
    Expected { code, says }
}

#[test]
fn each_expectation_is_of_a_command_that_is_there() {
    let commands: Vec<docs::Command> = pages().iter().flat_map(Page::commands).collect();
    for (page, text, ..) in EXPECTED {
        assert!(commands.iter().any(|one| one.page == *page && one.text.starts_with(text)), "{page}: {text}");
    }
    assert!(commands.len() > 50, "{}", commands.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn each_command_does_what_its_page_says() {
    let nomad = Nomad::start().await;
    submit_readme_job(&nomad).await;
    let _edge = nomad.join_pool("edge-1", "edge").await;
    // connector.rs runs the commands of its page, on what the connector made.
    for page in pages().into_iter().filter(|page| page.name != "docs/connector.md") {
        for way in WAYS {
            run_page(&page, &Reader::new(way, &nomad).await).await;
            if page.name == "deploy/README.md" {
                // The next reader has not done it yet.
                nomad.stop_job("haproxy").await;
                nomad.call(Method::DELETE, "/v1/var/nomad/jobs/haproxy", None).await;
            }
        }
    }
}

async fn run_page(page: &Page, reader: &Reader) {
    let mut seen = BTreeSet::new();
    for command in page.commands() {
        let is_first = seen.insert(command.text.clone());
        reader.run(&command, expected(&command, is_first)).await;
    }
    match page.name.as_str() {
        // The tour: a request through each HAProxy.
        "README.md" => {
            for rig in [&reader.local, &reader.api] {
                let is_hello = |body: &str| body.contains("version");
                load::wait_for_answer(rig.haproxy.port, "hello.example.com", Duration::from_secs(20), is_hello).await;
            }
        }
        // It ends with the removal.
        "docs/operating.md" => {
            for rig in [&reader.local, &reader.api] {
                let text = rig.haproxy.text();
                assert!(!text.contains("nomad-haproxy:") && !text.contains("\"owner\""), "{text}");
            }
        }
        "docs/http.md" => {
            let shown = page.blocks().into_iter().find(|block| block.language == "json").unwrap();
            let answer = reader.ask("/api/health/system").await;
            is_of_the_form(&serde_json::from_str(&answer).unwrap(), &serde_json::from_str(&shown.text).unwrap(), "");
        }
        "deploy/README.md" if Machine::is_possible() => unit_runs_on(reader, page).await,
        _ => {}
    }
}

/// The user, the rights and the settings that the commands made are those that the unit needs.
async fn unit_runs_on(reader: &Reader, page: &Page) {
    let socket = page.text.split('`').find(|code| code.starts_with("-S ")).expect("how HAProxy gives its socket");
    let haproxy = format!("exec {} -W {socket} -f /etc/haproxy/haproxy.cfg", reader.local.haproxy.binary.display());
    let _haproxy = Group::spawn(reader.machine.command(&haproxy).stdout(Stdio::null()).stderr(Stdio::null()));
    let unit = fs::read_to_string(root().join("deploy/nomad-haproxy.service")).unwrap();
    let start = unit.lines().find_map(|line| line.strip_prefix("ExecStart=/usr/local/bin/nomad-haproxy ")).unwrap();
    let as_user = "setpriv --reuid=nomad-haproxy --regid=nomad-haproxy --init-groups";
    let here = controller::binary().display().to_string();
    let command = |what: &str| format!("exec {as_user} {here} {}", start.replace("run", what));
    let environment =
        [("NOMAD_ADDR", reader.nomad()), ("HAPROXY_BINARY", reader.local.haproxy.binary.to_str().unwrap())];
    let run = async |what: &str| {
        let mut process = reader.machine.command(&command(what));
        process.envs(environment);
        tokio::task::spawn_blocking(move || process.output().unwrap()).await.unwrap()
    };
    wait_for("HAProxy's socket, for the user of the unit", Duration::from_secs(20), async || {
        run("check").await.status.success().then_some(())
    })
    .await;
    let output = run("apply").await;
    assert!(output.status.success() && stdout(&output).contains("+backend hello"), "{}", stderr(&output));
}

/// An answer has all that the page shows, with values of the same types, or `null`.
fn is_of_the_form(answer: &Value, shown: &Value, at: &str) {
    match (answer, shown) {
        (Value::Object(answer), Value::Object(shown)) => {
            for (key, shown) in shown {
                let answer = answer.get(key).unwrap_or_else(|| panic!("no {at}.{key} in {answer:?}"));
                is_of_the_form(answer, shown, &format!("{at}.{key}"));
            }
        }
        (Value::String(_), Value::String(_)) | (Value::Number(_), Value::Number(_)) | (Value::Null, _) => {}
        _ => panic!("{at}: {answer}, and the page shows {shown}"),
    }
}

/// Blocks of text that are no configuration: page, beginning, what it is.
const SAMPLES: &[(&str, &str, &str)] = &[
    ("README.md", "Nomad ──►", "a drawing"),
    ("docs/operating.md", "ok       nomad", "what `check` prints; `EXPECTED` has its first line"),
    ("docs/operating.md", "It is routed", "what `explain` prints; `EXPECTED` has its first line"),
];

#[test]
fn each_block_is_what_it_says() {
    let mut samples = 0;
    for page in pages() {
        let commands = page.commands();
        for block in page.blocks() {
            let at = format!("{}:{}", page.name, block.line);
            let is_sample = |(name, text, _): &&(&str, &str, &str)| *name == page.name && block.text.starts_with(text);
            match block.language.as_str() {
                "sh" | "bash" | "console" => {
                    assert!(commands.iter().any(|one| one.line >= block.line), "{at}: no command");
                }
                "hcl" => is_a_job(&block.text, &at),
                // An answer, which `run_page` compares with a real one.
                "json" if page.name == "docs/http.md" => {}
                "json" => drop(serde_json::from_str::<Settings>(&block.text).unwrap_or_else(|e| panic!("{at}: {e}"))),
                "yaml" if block.text.contains("scrape_configs:") => is_of_prometheus(&page, &block.text),
                "yaml" => {
                    assert!(commands.iter().any(|one| one.line == block.line), "{at}: a pipeline without commands");
                }
                "text" if SAMPLES.iter().any(|sample| is_sample(&sample)) => samples += 1,
                "text" => is_a_configuration(&block.text, &at),
                "dockerfile" => is_of_the_image(&block.text, &at),
                other => panic!("{at}: what is a block of `{other}`?"),
            }
        }
    }
    assert_eq!(samples, SAMPLES.len(), "each sample is shown once");
}

fn succeeds(command: &mut Command, at: &str) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{at}: {}{}", stdout(&output), stderr(&output));
}

/// A job, or the block of a service in one.
fn is_a_job(text: &str, at: &str) {
    let job = match text.starts_with("job ") {
        true => text.to_owned(),
        false => format!(
            "job \"a\" {{\ngroup \"g\" {{\nnetwork {{\nport \"http\" {{}}\n}}\n{text}task \"t\" {{\ndriver = \"raw_exec\"\n\
             config {{\ncommand = \"/bin/true\"\n}}\n}}\n}}\n}}\n"
        ),
    };
    let file = tempfile::Builder::new().suffix(".nomad.hcl").tempfile().unwrap();
    fs::write(file.path(), job).unwrap();
    succeeds(Command::new(nomad::binary().expect("run `make tools`")).args(["job", "validate"]).arg(file.path()), at);
}

/// What it takes from our image is where deploy/Dockerfile puts it.
fn is_of_the_image(text: &str, at: &str) {
    let ours = fs::read_to_string(root().join("deploy/Dockerfile")).unwrap();
    let copy = text.lines().find(|line| line.contains("/nomad-haproxy:1 ")).unwrap_or_else(|| panic!("{at}: {text}"));
    let source = copy.split_whitespace().nth(2).unwrap();
    assert!(ours.lines().any(|line| line.starts_with("COPY ") && line.ends_with(source)), "{at}: {source}");
}

/// Debian's Prometheus is built without Nomad's service discovery: there the page's other way is looked at.
fn is_of_prometheus(page: &Page, text: &str) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("prometheus.yml");
    fs::copy(root().join("deploy/alerts.yml"), folder.path().join("alerts.yml")).unwrap();
    let check = |text: &str| {
        fs::write(&file, text).unwrap();
        Command::new(tool("promtool")).args(["check", "config"]).arg(&file).output().unwrap()
    };
    let mut output = check(text);
    if stderr(&output).contains("field nomad_sd_configs not found") {
        let other = page.text.split('`').find(|code| code.starts_with("static_configs: ")).expect("the other way");
        let discovery = text.find("nomad_sd_configs").unwrap()..text.find("rule_files").unwrap();
        let mut text = text.to_owned();
        text.replace_range(discovery, &format!("{other}\n"));
        output = check(&text);
    }
    assert!(output.status.success(), "{}{}", stdout(&output), stderr(&output));
}

/// Sections that a person adds to a file, on each series of HAProxy.
fn is_a_configuration(text: &str, at: &str) {
    let defaults =
        "defaults\n    mode http\n    timeout connect 5s\n    timeout client 30s\n    timeout server 30s\n\n";
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), format!("{defaults}{text}")).unwrap();
    for series in matrix() {
        let at = format!("{at}, HAProxy {series}");
        succeeds(Command::new(binary(series).unwrap()).args(["-c", "-f"]).arg(file.path()), &at);
    }
}

/// What the offline plans of docs/ci.md are made of, and how `plan` ends on it.
struct Case {
    name: &'static str,
    catalog: String,
    code: i32,
}

/// A folder with the configuration of a HAProxy that has six instances, and catalogs that differ from it in all ways.
async fn cases(rig: &Rig) -> [Case; 4] {
    let api = |ports: std::ops::Range<u16>| -> Vec<Value> {
        ports.map(|port| registration("api", &port.to_string(), 1, port, &["enable=true"])).collect()
    };
    let file = |registrations: &[Value]| {
        write_catalog(&rig.catalog(), registrations);
        fs::read_to_string(rig.catalog()).unwrap()
    };
    let all = file(&api(2001..2007));
    apply(&rig.env(), &rig.catalog()).await;
    [
        Case { name: "nothing changes", catalog: all, code: 0 },
        Case { name: "one comes", catalog: file(&api(2001..2008)), code: 2 },
        Case { name: "nearly all are lacking", catalog: file(&api(2001..2002)), code: 3 },
        Case { name: "no catalog", catalog: "{".to_owned(), code: 1 },
    ]
}

/// Runs a command of docs/ci.md in a folder.
fn in_pipeline(command: &docs::Command, folder: &Path) -> Output {
    in_shell(command.shell, &command.text, folder, &folder.join("bin")).output().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pipelines_go_by_the_exit_code() {
    let page = Page::read("docs/ci.md");
    let rig = Rig::start(Way::Local, "3.2").await;
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    programs(&file("bin"));
    let offline: Vec<docs::Command> =
        page.commands().into_iter().filter(|command| command.text.contains("--haproxy-config haproxy.cfg")).collect();
    let shells: Vec<Shell> = offline.iter().map(|command| command.shell).collect();
    assert_eq!(shells, [Shell::Github, Shell::Gitlab, Shell::Prompt]);
    for Case { name, catalog, code } in cases(&rig).await {
        fs::write(file("haproxy.cfg"), rig.haproxy.bytes()).unwrap();
        fs::write(file("catalog.json"), &catalog).unwrap();
        assert!(page.text.contains(&format!("\n| {code} | ")), "the page does not say what {code} means");
        for command in &offline {
            let wanted = match command.shell {
                // A step has no warning, so the script itself takes changes for a success.
                Shell::Github if code == 2 => 0,
                Shell::Prompt if code != 1 => 0,
                _ => code,
            };
            let output = in_pipeline(command, folder.path());
            assert_eq!(output.status.code(), Some(wanted), "{name}: {}: {}", command.text, stderr(&output));
        }
        if code != 1 {
            let plan: Value = serde_json::from_str(&fs::read_to_string(file("plan.json")).unwrap()).unwrap();
            assert_eq!((plan["changes"] == true, plan["guard"].is_object()), (code == 2, code == 3), "{name}: {plan}");
        }
    }
    // GitLab takes just the code for changes as a warning.
    let jobs = offline.iter().filter(|command| command.shell == Shell::Gitlab).count();
    assert!(
        page.text.matches("  allow_failure:\n    exit_codes: 2\n").count() > jobs,
        "for the plan of either pipeline"
    );
}

/// A service that is not routed as asked is found in the JSON.
#[test]
fn a_pipeline_can_stop_at_errors_of_services() {
    let folder = tempfile::tempdir().unwrap();
    programs(&folder.path().join("bin"));
    fs::write(folder.path().join("haproxy.cfg"), "defaults\n  mode http\n").unwrap();
    let commands = Page::read("docs/ci.md").commands();
    let at = commands.iter().position(|command| command.text.starts_with("jq ")).unwrap();
    let twice = [("a-b", 1), ("a_b", 2)].map(|(name, at)| registration(name, name, at, 2001, &["enable=true"]));
    for (services, code) in [(&twice[..1], 0), (&twice[..], 1)] {
        write_catalog(&folder.path().join("catalog.json"), services);
        assert!(in_pipeline(&commands[at - 1], folder.path()).status.success());
        let output = in_pipeline(&commands[at], folder.path());
        assert_eq!(output.status.code(), Some(code), "{}{}", stdout(&output), stderr(&output));
    }
}
