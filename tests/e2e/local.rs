//! The local plane on real HAProxy: what is not ours in the file stays, byte by byte, and what a person wrote there is
//! never lost.

use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::support::api::{Rig, Way};
use crate::support::controller::{Env, apply, command, registration, run, stderr, stdout, write_catalog};
use crate::support::haproxy::{Haproxy, cutting_master, deaf_master, hand_written, matrix};
use crate::support::process::Group;
use crate::support::wait_for;

fn api(instances: u16) -> Vec<serde_json::Value> {
    let one = |n: u16| registration("api", &format!("{n}"), u64::from(n), 2000 + n, &["enable=true"]);
    (1..=instances).map(one).collect()
}

/// A backend without a service is deleted at once.
fn env(rig: &Rig) -> Env {
    rig.env_with(&[("NOMAD_HAPROXY_BACKEND_LINGER", "0s")])
}

async fn apply_catalog(rig: &Rig, registrations: &[serde_json::Value]) {
    write_catalog(&rig.catalog(), registrations);
    apply(&env(rig), &rig.catalog()).await;
}

/// The file without the version line at the top.
fn below_version(bytes: &[u8]) -> &[u8] {
    let end = bytes.iter().position(|byte| *byte == b'\n').unwrap() + 1;
    assert!(bytes.starts_with(b"# _version="));
    &bytes[end..]
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_not_utf_8_stay_as_they_are() {
    for series in matrix() {
        let config = |folder: &Path, port| {
            let text = hand_written(folder, port).replace("# the end", "# caf\u{e9}, \u{10ff80}");
            let rule = "    http-request set-header X-A \"caf\u{e9}\"\n    acl is_shop";
            let text = text.replace("    acl is_shop", rule);
            // Latin-1, as an old editor writes it; the second character of the comment stays UTF-8.
            let bytes = text.chars().flat_map(|c| match c {
                '\u{e9}' => vec![0xe9],
                c => c.to_string().into_bytes(),
            });
            bytes.collect::<Vec<u8>>()
        };
        let rig = Rig::with(Way::Local, series, Haproxy::start_with(series, config).await).await;
        let before = rig.haproxy.bytes();
        assert_eq!(before.split(|byte| *byte == 0xe9).count(), 3, "two bytes that are not UTF-8");
        for instances in [1, 2, 9, 3] {
            apply_catalog(&rig, &api(instances)).await;
            let after = rig.haproxy.bytes();
            // HAProxy 3.4 has profiles of ours between them.
            let end = before.windows(7).position(|words| words == b"# every").unwrap();
            let below = below_version(&after);
            assert!(below.starts_with(&before[..end]), "{}", String::from_utf8_lossy(&after));
            let rest = below.windows(before.len() - end).any(|part| *part == before[end..]);
            assert!(rest, "{}", String::from_utf8_lossy(&after));
        }
        assert!(run(&env(&rig), &["uninstall", "--yes"]).await.status.success());
        assert_eq!(rig.haproxy.bytes(), before);
    }
}

/// A section directly after ours, of a kind that the parser has to know.
#[tokio::test(flavor = "multi_thread")]
async fn a_section_behind_ours_outlives_it() {
    for series in matrix() {
        let rig = Rig::start(Way::Local, series).await;
        apply_catalog(&rig, &api(1)).await;
        let section = "namespace_list\n    # none yet\n";
        rig.edit(|text| text + section).await;
        let foreign = rig.foreign();
        // Written completely, then only its servers, then removed.
        let leastconn = [registration("api", "1", 1, 2001, &["enable=true", "balance=leastconn"])];
        for registrations in [&leastconn[..], &api(9), &[]] {
            apply_catalog(&rig, registrations).await;
            assert!(rig.haproxy.text().ends_with(section), "{}", rig.haproxy.text());
        }
        assert_eq!(rig.foreign(), foreign);
    }
}

/// A keyword that this release registers for a `listen` section does not start another section.
#[test]
fn the_keywords_of_a_proxy_section_are_known() {
    use nomad_haproxy::haproxy::section::PROXY_KEYWORDS;
    for series in matrix() {
        let mut command = std::process::Command::new(crate::support::haproxy::binary(series).unwrap());
        let output = command.args(["-dKcfg", "-c", "-f", "/dev/null"]).output().unwrap();
        let printed = String::from_utf8(output.stdout).unwrap();
        let listen = printed.lines().skip_while(|line| *line != "listen").skip(1);
        let keywords: Vec<&str> = listen.map_while(|line| line.strip_prefix('\t')?.split_whitespace().next()).collect();
        assert!(keywords.len() > 30, "{printed}");
        for keyword in keywords {
            assert!(PROXY_KEYWORDS.split(' ').any(|known| known == keyword), "{series}: {keyword}");
        }
    }
}

/// Writes a catalog that takes a reload, and kills the controller when its text is in place, but HAProxy has not loaded it.
async fn cut_short(rig: &Rig, registrations: &[serde_json::Value]) {
    let silent = rig.haproxy.folder().join("silent.sock");
    let deaf = deaf_master(&silent, &rig.haproxy.master(), "reload");
    write_catalog(&rig.catalog(), registrations);
    let before = rig.haproxy.bytes();
    let mut env = env(rig);
    env.push(("HAPROXY_MASTER_SOCKET".into(), silent.display().to_string()));
    let mut group = Group::spawn(&mut command(&env, &["apply", "--catalog", rig.catalog().to_str().unwrap()]));
    wait_for("the new text", Duration::from_secs(20), async || (rig.haproxy.bytes() != before).then_some(())).await;
    group.kill();
    deaf.abort();
    fs::remove_file(silent).unwrap();
    assert_eq!(leftovers(rig).len(), 1);
}

/// The files that our own writes left in HAProxy's folder.
fn leftovers(rig: &Rig) -> Vec<String> {
    let names = fs::read_dir(rig.haproxy.config_file.parent().unwrap())
        .unwrap()
        .flatten()
        .map(|e| e.file_name().into_string().unwrap());
    names.filter(|name| name.contains("nomad-haproxy") && !name.contains(".lock")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_s_edit_after_a_crash_is_kept() {
    for series in matrix() {
        let rig = Rig::start(Way::Local, series).await;
        apply_catalog(&rig, &api(1)).await;
        cut_short(&rig, &[registration("other", "other", 1, 2009, &["enable=true", "balance=source"])]).await;
        // Not finished yet: HAProxy would refuse it.
        rig.edit(|text| text.replace("# the end", "backend mine\n    blance first # typo")).await;
        let edited = rig.haproxy.text();
        let output = run(&env(&rig), &["apply", "--catalog", rig.catalog().to_str().unwrap()]).await;
        assert_eq!(rig.haproxy.text(), edited, "{}", stderr(&output));
        assert_eq!(leftovers(&rig), [""; 0], "{}", stderr(&output));
        assert!(stderr(&output).contains("stays as it is"), "{}", stderr(&output));
        // Once it is valid, the pass continues from there.
        rig.edit(|text| text.replace("blance first # typo", "balance first # mine")).await;
        apply_catalog(&rig, &api(2)).await;
        assert!(rig.haproxy.text().contains("balance first # mine"), "{}", rig.haproxy.text());
        rig.agrees().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_text_that_a_crash_left_and_haproxy_cannot_load_goes_back() {
    for series in matrix() {
        let page = |folder: &Path| folder.join("503.http");
        let config = |folder: &Path, port| {
            fs::write(page(folder), "HTTP/1.0 503 Service Unavailable\r\n\r\n").unwrap();
            let text = hand_written(folder, port);
            text.replace("    mode http\n", &format!("    mode http\n    errorfile 503 {}\n", page(folder).display()))
        };
        let rig = Rig::with(Way::Local, series, Haproxy::start_with(series, config).await).await;
        apply_catalog(&rig, &api(1)).await;
        let good = rig.haproxy.text();
        cut_short(&rig, &[registration("other", "other", 1, 2009, &["enable=true", "balance=source"])]).await;
        fs::rename(page(rig.haproxy.folder()), rig.haproxy.folder().join("away")).unwrap();
        let output = run(&env(&rig), &["apply", "--catalog", rig.catalog().to_str().unwrap()]).await;
        assert!(!output.status.success(), "{}", stdout(&output));
        assert_eq!(rig.haproxy.text(), good, "{}", stderr(&output));
        assert_eq!(leftovers(&rig), [""; 0]);
        fs::rename(rig.haproxy.folder().join("away"), page(rig.haproxy.folder())).unwrap();
        apply_catalog(&rig, &[]).await;
        assert!(!rig.haproxy.text().contains("backend api"));
    }
}

/// A mount for a test, which is removed with it.
struct Mount(std::path::PathBuf);

impl Mount {
    /// `None` if this user may not mount; the reason is printed.
    fn new(arguments: &[&str], on: &Path) -> Option<Self> {
        let output = std::process::Command::new("mount").args(arguments).arg(on).output().unwrap();
        if !output.status.success() {
            eprintln!("skipped: this user may not mount: {}", String::from_utf8_lossy(&output.stderr));
            return None;
        }
        Some(Self(on.to_owned()))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

/// Runs a pass that cannot write: it must report that, and change nothing.
async fn refused(rig: &Rig, registrations: &[serde_json::Value], cause: &str) {
    let (before, reloads) = (rig.haproxy.text(), rig.haproxy.reloads().await);
    write_catalog(&rig.catalog(), registrations);
    let output = run(&env(rig), &["apply", "--catalog", rig.catalog().to_str().unwrap()]).await;
    let said = stderr(&output);
    assert!(!output.status.success() && said.contains(cause), "{said}");
    assert!(said.contains(rig.haproxy.config_file.to_str().unwrap()) && said.contains("nothing was changed"), "{said}");
    assert_eq!((rig.haproxy.text(), rig.haproxy.reloads().await), (before, reloads));
    assert_eq!(leftovers(rig), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_loses_nothing() {
    let mut haproxy = Haproxy::prepare(crate::support::haproxy::binary("3.2").unwrap());
    let small = haproxy.folder().join("small");
    fs::create_dir(&small).unwrap();
    let Some(mount) = Mount::new(&["-t", "tmpfs", "-o", "size=64k", "none"], &small) else { return };
    haproxy.config_file = small.join("haproxy.cfg");
    haproxy.arguments = vec!["-f".into(), haproxy.config_file.display().to_string()];
    // Three pages, so that the copy for validation, the new text and the last good one fill the disk in turn.
    let comment = "# a long story\n".repeat(600);
    fs::write(&haproxy.config_file, hand_written(haproxy.folder(), haproxy.port) + &comment).unwrap();
    haproxy.launch().await;
    let rig = Rig::with(Way::Local, "3.2", haproxy).await;
    apply_catalog(&rig, &api(1)).await;
    let filler = small.join("filler");
    let mut refusals = 0;
    for pages in (1..16).rev() {
        let _ = fs::write(&filler, vec![0; pages * 4096]);
        write_catalog(&rig.catalog(), &[]);
        let before = rig.haproxy.text();
        let output = run(&env(&rig), &["apply", "--catalog", rig.catalog().to_str().unwrap()]).await;
        if output.status.success() {
            break;
        }
        assert_eq!(rig.haproxy.text(), before);
        refused(&rig, &[], "No space left on device").await;
        refusals += 1;
    }
    assert!(refusals > 6, "the disk was never too small for a second copy: {refusals}");
    assert!(!rig.haproxy.text().contains("backend api") && rig.haproxy.text().ends_with(&comment));
    drop(mount);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_cannot_be_replaced_stays() {
    let rig = Rig::start(Way::Local, "3.2").await;
    apply_catalog(&rig, &api(1)).await;
    let file = rig.haproxy.config();
    // As in a container that has only the file mounted.
    let Some(mount) = Mount::new(&["--bind", file.to_str().unwrap()], &file) else { return };
    refused(&rig, &[], "mount its folder").await;
    drop(mount);
    apply_catalog(&rig, &[]).await;
    assert!(!rig.haproxy.text().contains("backend api"));
}

/// Reads that end after the first bytes, as they do if whoever else reloads HAProxy; with a process of so many servers
/// that it cannot send the state of all of them without waiting for the reader.
#[tokio::test(flavor = "multi_thread")]
async fn a_read_of_the_process_that_is_cut_short_changes_nothing() {
    for series in matrix() {
        let config = |folder: &Path, port| {
            let server = |n| format!("    server many-{n} 127.0.0.1:9\n");
            hand_written(folder, port) + "\nbackend many\n" + &(0..2000).map(server).collect::<String>()
        };
        let rig = Rig::with(Way::Local, series, Haproxy::start_with(series, config).await).await;
        apply_catalog(&rig, &api(1)).await;
        let before = (rig.haproxy.worker().await, rig.haproxy.reloads().await, rig.haproxy.text());

        let cut = rig.haproxy.folder().join("cut.sock");
        let cutting = cutting_master(&cut, &rig.haproxy.master(), "show servers state", 10);
        let env = rig.env_with(&[("HAPROXY_MASTER_SOCKET", cut.to_str().unwrap())]);
        let catalog = rig.catalog().display().to_string();
        for _ in 0..10 {
            let output = run(&env, &["apply", "--catalog", &catalog]).await;
            let said = stdout(&output) + &stderr(&output);
            assert!(!output.status.success() && said.contains("does not answer"), "{series}: {said}");
        }
        for _ in 0..2 {
            let said = apply(&env, &rig.catalog()).await;
            assert!(said.contains("Nothing to do"), "{series}: {said}");
        }
        cutting.abort();
        let after = (rig.haproxy.worker().await, rig.haproxy.reloads().await, rig.haproxy.text());
        assert_eq!(after, before, "{series}");
    }
}
