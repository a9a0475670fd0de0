//! The files of deploy/, checked by the programs that read them. What the documents show is in docs.rs.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use crate::support::api::{Rig, Way};
use crate::support::controller::{registration, write_catalog};
use crate::support::haproxy::{Haproxy, hand_written};
use crate::support::root;
use serde_json::Value;

/// Every key that the program knows is in the example, and no other.
#[test]
fn the_example_has_every_setting() {
    let text = std::fs::read_to_string(root().join("deploy/config.example.json")).unwrap();
    let example: Value = serde_json::from_str(&text).unwrap();
    let settings: nomad_haproxy::config::Settings = serde_json::from_str(&text).unwrap();
    // `namespaces` is by name, and has its own types.
    let sections: Vec<(&String, &Value)> =
        example.as_object().unwrap().iter().filter(|(section, _)| *section != "namespaces").collect();
    let entry: Vec<&String> = example["namespaces"]["team-*"].as_object().unwrap().keys().collect();
    assert_eq!(entry, ["backends", "domains", "join"]);
    // The names of the fields, as in the program's debug output, under the names of their sections.
    let without = nomad_haproxy::config::Settings { namespaces: BTreeMap::new(), ..settings.clone() };
    let printed = format!("{without:#?}");
    let mut section = "";
    let mut known: BTreeSet<String> = BTreeSet::new();
    for line in printed.lines().filter(|line| !line.starts_with("            ")) {
        let Some((key, _)) = line.trim().split_once(": ") else { continue };
        if line.starts_with("        ") {
            known.insert(format!("{section}.{key}"));
        } else {
            section = key;
        }
    }
    let shown: BTreeSet<String> = sections
        .iter()
        .filter_map(|(section, keys)| Some((section, keys.as_object()?)))
        .flat_map(|(section, keys)| keys.keys().map(move |key| format!("{section}.{key}")))
        .collect();
    assert_eq!(known, shown);
    let page = std::fs::read_to_string(root().join("docs/settings.md")).unwrap();
    assert!(page.contains("`namespaces.NAME.backends`") && page.contains("`namespaces.NAME.join`"));
    for (section, keys) in sections {
        let names = match keys.as_object() {
            Some(keys) => keys.keys().map(|key| format!("{section}.{key}")).collect(),
            None => vec![section.clone()],
        };
        for name in names {
            assert!(page.contains(&format!("`{name}`")), "docs/settings.md does not mention {name}");
        }
    }
}

/// The anchor of a heading, as GitHub makes it.
fn anchor(heading: &str) -> String {
    let kept = heading.trim_start_matches('#').trim().to_lowercase();
    kept.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c)).collect::<String>().replace(' ', "-")
}

/// Every link of the documents leads to a file that is there, and to a heading in it.
#[test]
fn the_links_of_the_documents_lead_somewhere() {
    let mut pages = vec![root().join("README.md"), root().join("CHANGELOG.md"), root().join("deploy/README.md")];
    pages.extend(std::fs::read_dir(root().join("docs")).unwrap().map(|entry| entry.unwrap().path()));
    let mut followed = 0;
    for page in pages {
        let text = std::fs::read_to_string(&page).unwrap();
        let links = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        for link in links.filter(|link| !link.starts_with("http")) {
            let (file, heading) = link.split_once('#').map_or((link, None), |(file, heading)| (file, Some(heading)));
            let target = if file.is_empty() { page.clone() } else { page.parent().unwrap().join(file) };
            assert!(target.exists(), "{}: {link}", page.display());
            if let Some(heading) = heading {
                let text = std::fs::read_to_string(&target).unwrap();
                let found = text.lines().any(|line| line.starts_with('#') && anchor(line) == heading);
                assert!(found, "{}: {link}", page.display());
            }
            followed += 1;
        }
    }
    assert!(followed > 30, "{followed}");
}

/// The examples pass validation as they are shipped: the files that they name are only read when they are needed.
#[test]
fn the_examples_start_as_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let (catalog, config) = (folder.path().join("catalog.json"), folder.path().join("haproxy.cfg"));
    write_catalog(&catalog, &[registration("api", "1", 1, 80, &["enable=true"])]);
    std::fs::write(&config, "defaults\n  mode http\n").unwrap();
    let plan = |example: &str, arguments: &[&str]| {
        let mut command = Command::new(crate::support::controller::binary());
        command.env_clear().args(["plan", "--config"]).arg(root().join("deploy").join(example));
        command.arg("--catalog").arg(&catalog).args(arguments).output().unwrap()
    };
    let said = |example: &str, more: &[&str]| String::from_utf8(plan(example, more).stderr).unwrap();
    for example in ["config.example.json", "config.local.example.json"] {
        let output = plan(example, &["--haproxy-config", config.to_str().unwrap()]);
        assert!(output.status.success(), "{example}: {}", String::from_utf8_lossy(&output.stderr));
    }
    let api = said("config.example.json", &["--haproxy-address", "http://127.0.0.1:1"]);
    assert!(api.contains("the Data Plane API at http://127.0.0.1:1 does not answer"), "{api}");
    let socket = folder.path().join("no.sock");
    let local = said("config.local.example.json", &["--haproxy-master-socket", socket.to_str().unwrap()]);
    assert!(local.contains("HAProxy does not answer"), "{local}");
}

/// The image is built from exactly the files that the Dockerfile copies.
#[test]
fn the_dockerfile_copies_all_that_the_build_needs() {
    let dockerfile = std::fs::read_to_string(root().join("deploy/Dockerfile")).unwrap();
    let ignored = std::fs::read_to_string(root().join(".dockerignore")).unwrap();
    // Always the same folder, so that cargo rebuilds only what has changed.
    let folder = root().join("target/image");
    let _ = std::fs::remove_dir_all(&folder);
    let copies: Vec<Vec<&str>> = dockerfile
        .lines()
        .filter_map(|line| line.strip_prefix("COPY "))
        .filter(|arguments| !arguments.starts_with("--from"))
        .map(|arguments| arguments.split_whitespace().collect())
        .collect();
    assert!(copies.len() > 1, "{copies:?}");
    for arguments in copies {
        let (to, from) = arguments.split_last().unwrap();
        for name in from {
            assert!(!ignored.lines().any(|line| line == *name), ".dockerignore leaves {name} out");
            let to = if from.len() > 1 || *to == "./" { folder.join(to).join(name) } else { folder.join(to) };
            copy(&root().join(name), &to);
        }
    }
    let build = dockerfile.lines().find_map(|line| line.strip_prefix("RUN cargo build --release ")).unwrap();
    // For the target of this machine's toolchain: `make image` builds for the other one.
    let build = build.replace(" --target \"$(uname -m)-unknown-linux-musl\"", "");
    // With the bench, so that the dependencies have the same features as with `cargo clippy --all-targets`.
    let mut check = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    check.args(["check", "--quiet", "--offline", "--benches"]).args(build.split_whitespace()).current_dir(&folder);
    let output = check.env("CARGO_TARGET_DIR", root().join("target")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn copy(from: &Path, to: &Path) {
    if from.is_dir() {
        for entry in std::fs::read_dir(from).unwrap() {
            let name = entry.unwrap().file_name();
            copy(&from.join(&name), &to.join(&name));
        }
        return;
    }
    std::fs::create_dir_all(to.parent().unwrap()).unwrap();
    std::fs::copy(from, to).unwrap();
    let changed = std::fs::metadata(from).unwrap().modified().unwrap();
    std::fs::File::options().write(true).open(to).unwrap().set_modified(changed).unwrap();
}

#[test]
fn the_unit_is_in_form_and_needs_no_root() {
    let unit = std::fs::read_to_string(root().join("deploy/nomad-haproxy.service")).unwrap();
    let value = |key: &str| unit.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('=')).unwrap_or("");
    assert!(!["", "root", "0"].contains(&value("User")), "it has a user of its own");
    assert_eq!(value("SupplementaryGroups"), "haproxy");
    let paths: Vec<&str> = value("ReadWritePaths").split(' ').collect();
    let text = std::fs::read_to_string(root().join("deploy/config.local.example.json")).unwrap();
    let example: Value = serde_json::from_str(&text).unwrap();
    let folder = |key: &str| Path::new(example["haproxy"][key].as_str().unwrap()).parent().unwrap().to_owned();
    assert_eq!(paths[0], folder("config_file").to_str().unwrap());
    // The unit may start before HAProxy has created the folder of its socket.
    assert_eq!(paths[1].strip_prefix('-').unwrap(), folder("master_socket").to_str().unwrap());

    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        eprintln!("skipped: there is no systemd-analyze here");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("nomad-haproxy.service");
    let here = crate::support::controller::binary().display().to_string();
    std::fs::write(&file, unit.replace("/usr/local/bin/nomad-haproxy", &here)).unwrap();
    let output = Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&file).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && !said.contains("nomad-haproxy.service"), "{said}");
}

/// As the unit and its README describe it: a separate user that owns the folder of the configuration, and whose group
/// may use HAProxy's master socket.
#[tokio::test(flavor = "multi_thread")]
async fn the_local_plane_needs_no_root() {
    // IDs that no account has.
    const USER: u32 = 61_001;
    const GROUP: u32 = 61_002;
    let mut haproxy = Haproxy::prepare(crate::support::haproxy::binary("3.2").unwrap());
    haproxy.socket_options = format!("mode,660,gid,{GROUP}");
    std::fs::write(haproxy.config(), hand_written(haproxy.folder(), haproxy.port)).unwrap();
    haproxy.launch().await;
    let rig = Rig::with(Way::Local, "3.2", haproxy).await;
    let own = |path: &Path, mode: u32| {
        std::os::unix::fs::chown(path, Some(USER), Some(GROUP)).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    own(rig.haproxy.folder(), 0o755);
    own(&rig.haproxy.config(), 0o644);
    let mut env = rig.env();
    env.push(("HAPROXY_WORKING_DIRECTORY".to_owned(), "/".to_owned()));
    env.push(("HAPROXY_FILES".to_owned(), rig.haproxy.config().display().to_string()));
    // A reload, then a live change.
    for weight in ["weight=1", "weight=2"] {
        write_catalog(&rig.catalog(), &[registration("api", "1", 1, 2001, &["enable=true", weight])]);
        own(&rig.catalog(), 0o600);
        let catalog = rig.catalog().display().to_string();
        let arguments = ["apply", "--catalog", &catalog];
        let Some(output) = crate::support::controller::run_as(USER, GROUP, &env, &arguments) else { return };
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        rig.agrees().await;
    }
    assert_eq!(std::fs::metadata(rig.haproxy.config()).unwrap().uid(), USER);
}
