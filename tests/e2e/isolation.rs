//! One service's problem affects no other: names that do not resolve, servers that HAProxy refuses, validations that do
//! not end, changes that cannot be loaded. In each case the other services continue, and instances that are gone are
//! out at once.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::sync::Arc;

use crate::support::api::{Rig, WAYS, Way};
use crate::support::controller::{apply, apply_failing, registration, write_catalog};
use crate::support::haproxy::{Haproxy, binary, hand_written, has_backend, matrix};
use crate::support::load;
use crate::support::passes::{self, controller, dataplane, owner};
use crate::support::servers::Server;
use nomad_haproxy::apply::{Controller, Moment, PassStatus};
use nomad_haproxy::desired::Code;
use nomad_haproxy::plane::Plane;
use nomad_haproxy::plane::local::{Local, LocalConfig};
use serde_json::Value;

everywhere!(a_name_that_does_not_resolve_affects_no_other_instance, names::unresolved);
everywhere!(a_file_that_a_name_made_invalid_is_repaired, names::repaired);
everywhere!(a_bad_server_is_left_out_alone, servers::bad);
everywhere!(a_bad_server_beside_a_file_that_is_repaired, servers::bad_beside_repaired);

/// A name that does not resolve anywhere.
const NOWHERE: &str = "no.such.host.invalid";

/// With this a new service takes a reload on every HAProxy.
const STATIC: &[&str] = &["balance=source"];

/// An instance on a port, which is also its ID.
fn instance(service: &str, port: u16, tags: &[&str]) -> Value {
    let tags: Vec<&str> = ["enable=true", "check.disabled"].iter().chain(tags).copied().collect();
    registration(service, &port.to_string(), u64::from(port), port, &tags)
}

fn at(address: &str, mut instance: Value) -> Value {
    instance["Address"] = address.into();
    instance
}

/// Whether a new process would start with the file as it is.
fn loads(rig: &Rig) -> bool {
    let mut command = Command::new(&rig.haproxy.binary);
    command.args(["-c", "-f"]).arg(rig.haproxy.config()).output().unwrap().status.success()
}

/// The line of a server.
fn line(rig: &Rig, server: &str) -> String {
    let text = rig.haproxy.text();
    let line = text.lines().find(|line| line.trim_start().starts_with(&format!("server {server} ")));
    line.unwrap_or_else(|| panic!("no {server} in:\n{text}")).to_owned()
}

async fn is_out(rig: &Rig, server: &str) {
    let state = rig.haproxy.state(server).await;
    assert!(["maint", "missing"].contains(&state), "{server} is {state}, HAProxy {}", rig.series);
}

/// Nothing that is in service has this port: where servers are added at run time, another instance may have the name of
/// one that left.
async fn is_gone(rig: &Rig, port: u16) {
    let running = rig.haproxy.running().await;
    let mut there = running.values().filter(|server| server.address.ends_with(&format!(":{port}")));
    assert!(there.all(|server| server.state() == "maint"), "{port} is in service, HAProxy {}: {running:?}", rig.series);
}

mod names {
    use super::*;

    pub async fn unresolved(rig: Rig, way: Way) {
        let one = |port| instance("api", port, &[]);
        write_catalog(&rig.catalog(), &[one(2001), one(2002), one(2003)]);
        apply(&rig.env(), &rig.catalog()).await;

        // Beside other instances, one of which is gone.
        let named = || at(NOWHERE, instance("api", 2004, &[]));
        write_catalog(&rig.catalog(), &[one(2002), one(2003), named()]);
        let said = apply_failing(&rig.env(), &rig.catalog()).await;
        assert!(said.contains("service api") && said.contains(NOWHERE), "{said}");
        is_gone(&rig, 2001).await;
        let its = if way == Way::Local { "api_1" } else { "api_4" };
        assert!(line(&rig, its).contains(" init-addr last,libc,none"), "{}", line(&rig, its));
        assert!(loads(&rig));
        for sibling in ["api/api_2", "api/api_3"] {
            assert_eq!(rig.haproxy.state(sibling).await, "ready");
        }
        assert!(apply_failing(&rig.env(), &rig.catalog()).await.contains("Nothing to do"));

        // The others change without a reload, and so does the one with the name when it goes.
        let reloads = rig.haproxy.reloads().await;
        write_catalog(&rig.catalog(), &[one(2003), one(2005), named()]);
        apply_failing(&rig.env(), &rig.catalog()).await;
        is_gone(&rig, 2002).await;
        write_catalog(&rig.catalog(), &[one(2003), one(2005)]);
        apply(&rig.env(), &rig.catalog()).await;
        // Without an address it is out in any case, as HAProxy itself reports.
        let status = rig.haproxy.statuses().await.get(&format!("api/{its}")).cloned();
        assert!(status.is_none_or(|status| way == Way::Api && status.contains("MAINT")));
        assert!(!rig.haproxy.text().contains(NOWHERE), "{}", rig.haproxy.text());
        assert_eq!(rig.haproxy.reloads().await, reloads, "HAProxy {}, {way:?}", rig.series);
        assert!(apply(&rig.env(), &rig.catalog()).await.contains("Nothing to do"));

        // The process accepts no address for a server that has none: a new instance there costs a reload.
        let all: Vec<Value> = (2003..2011).filter(|port| *port != 2004).map(one).collect();
        write_catalog(&rig.catalog(), &all);
        apply(&rig.env(), &rig.catalog()).await;
        rig.agrees().await;
    }

    /// As a release before 0.2 wrote it.
    pub async fn repaired(rig: Rig, _way: Way) {
        let services = |ports: &[u16]| -> Vec<Value> { ports.iter().map(|port| instance("api", *port, &[])).collect() };
        let named = || at(NOWHERE, instance("named", 2009, &[]));
        write_catalog(&rig.catalog(), &[services(&[2001, 2002]), vec![named()]].concat());
        apply_failing(&rig.env(), &rig.catalog()).await;
        rig.edit_by_hand(|text| text.replace(" init-addr last,libc,none", "")).await;
        assert!(!loads(&rig));
        write_catalog(&rig.catalog(), &[services(&[2002]), vec![named()]].concat());
        apply_failing(&rig.env(), &rig.catalog()).await;
        is_out(&rig, "api/api_1").await;
        assert!(loads(&rig));

        rig.edit_by_hand(|text| text.replace(" init-addr last,libc,none", "")).await;
        write_catalog(&rig.catalog(), &services(&[2003]));
        apply(&rig.env(), &rig.catalog()).await;
        is_out(&rig, "api/api_2").await;
        assert!(loads(&rig) && !has_backend(&rig.haproxy.text(), "named"));
        rig.agrees().await;
    }
}

mod servers {
    use super::*;

    /// An empty label is not a valid DNS name, so HAProxy refuses the line.
    fn unnameable(service: &str, port: u16, tags: &[&str]) -> Value {
        at(&format!("a..b{port}.test"), instance(service, port, tags))
    }

    pub async fn bad(rig: Rig, _way: Way) {
        const SHARED: &[&str] = &["backend.name=api"];
        let good = |ports: &[u16]| -> Vec<Value> { ports.iter().map(|port| instance("api", *port, SHARED)).collect() };
        let other = |port| instance("other", port, SHARED);
        write_catalog(&rig.catalog(), &[good(&[2001, 2002]), vec![other(2003)]].concat());
        apply(&rig.env(), &rig.catalog()).await;
        assert_eq!(rig.haproxy.reloads().await, 1);

        // Ten instances of two services, in three backends; something else changes in each of them.
        let mut services = [good(&[2002, 2004]), vec![other(2003), instance("alone", 2050, STATIC)]].concat();
        services.extend((2010..2014).map(|port| unnameable("api", port, SHARED)));
        services.extend((2014..2017).map(|port| unnameable("other", port, SHARED)));
        services.extend((2017..2020).map(|port| unnameable("only-bad", port, &[])));
        services.push(unnameable("alone", 2051, STATIC));
        write_catalog(&rig.catalog(), &services);
        let said = apply_failing(&rig.env(), &rig.catalog()).await;
        is_gone(&rig, 2001).await;
        let running = rig.haproxy.running().await;
        let in_service = |port: u16| {
            running.values().any(|server| server.address == format!("127.0.0.1:{port}") && server.state() == "ready")
        };
        for port in [2002, 2003, 2004, 2050] {
            assert!(in_service(port), "{port}: {running:?}");
        }
        for (service, port) in [("api", 2010), ("api", 2013), ("other", 2014), ("only-bad", 2019), ("alone", 2051)] {
            let note = format!("error: service {service}: instance {port} is left as it was");
            assert!(said.contains(&note), "{note} in: {said}");
        }
        assert!(!said.contains("service api: instance 2014"), "a note is about its own service: {said}");
        let text = rig.haproxy.text();
        assert!(!text.contains("a..b") && !has_backend(&text, "only_bad"), "{text}");
        rig.agrees().await;
        assert_eq!(rig.haproxy.reloads().await, 2);

        // An instance in a slot stays as it is when its new address is refused.
        write_catalog(&rig.catalog(), &[good(&[2002]), vec![unnameable("api", 2004, SHARED), other(2003)]].concat());
        apply_failing(&rig.env(), &rig.catalog()).await;
        let running = rig.haproxy.running().await;
        assert!(running.values().any(|server| server.address == "127.0.0.1:2004" && server.state() == "ready"));
        rig.agrees().await;
        // And it is removed when it is gone.
        write_catalog(&rig.catalog(), &[unnameable("api", 2002, SHARED), other(2003)]);
        apply_failing(&rig.env(), &rig.catalog()).await;
        let running = rig.haproxy.running().await;
        let seats = running.iter().filter(|(name, server)| name.starts_with("api/") && server.state() == "ready");
        assert_eq!(seats.count(), 2, "{running:?}");
    }

    pub async fn bad_beside_repaired(rig: Rig, way: Way) {
        let named = || at(NOWHERE, instance("named", 2009, &[]));
        write_catalog(&rig.catalog(), &[instance("api", 2001, &[]), instance("api", 2002, &[]), named()]);
        apply_failing(&rig.env(), &rig.catalog()).await;
        rig.edit_by_hand(|text| text.replace(" init-addr last,libc,none", "")).await;
        write_catalog(&rig.catalog(), &[instance("api", 2002, &[]), unnameable("api", 2003, &[]), named()]);
        let said = apply_failing(&rig.env(), &rig.catalog()).await;
        assert!(said.contains("service api: instance 2003 is left as it was"), "{said}");
        is_out(&rig, "api/api_1").await;
        assert!(loads(&rig), "{}", rig.haproxy.text());
        match way {
            Way::Local => assert!(!rig.haproxy.text().contains("server api_1 "), "{}", rig.haproxy.text()),
            Way::Api => assert!(line(&rig, "api_1").contains(" disabled"), "{}", rig.haproxy.text()),
        }
    }
}

/// A HAProxy whose executable first runs some lines of shell, with `$check` set when it validates `$file`.
async fn rig_with_script(way: Way, series: &str, script: &str) -> Rig {
    let mut haproxy = Haproxy::prepare(binary(series).unwrap());
    let wrapper = haproxy.folder().join("haproxy.sh");
    let real = std::mem::replace(&mut haproxy.binary, wrapper.clone());
    let text = format!(
        "#!/bin/sh\nfor word in \"$@\"; do\n  [ \"$word\" = -c ] && check=1\n  [ -f \"$word\" ] && file=$word\ndone\n\
         cd {}\n{script}\nexec {} \"$@\"\n",
        haproxy.folder().display(),
        real.display()
    );
    fs::write(&wrapper, text).unwrap();
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(haproxy.config(), hand_written(haproxy.folder(), haproxy.port)).unwrap();
    haproxy.launch().await;
    Rig::with(way, series, haproxy).await
}

fn everywhere() -> impl Iterator<Item = (&'static str, Way)> {
    matrix().into_iter().flat_map(|series| WAYS.map(|way| (series, way)))
}

/// HAProxy resolves names while it reads a file, one after another.
#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_resolves_slowly_is_left_out() {
    const SLOW: &str = "[ \"$check\" ] && grep -q 'slow.*\\.test' \"$file\" && exec sleep 20";
    for (series, way) in everywhere() {
        eprintln!("--- HAProxy {series}, {way:?}");
        let rig = rig_with_script(way, series, SLOW).await;
        let env = rig.env_with(&[("HAPROXY_VALIDATION_TIMEOUT", "4s")]);
        let one = |port| instance("api", port, &[]);
        write_catalog(&rig.catalog(), &[one(2001), one(2002)]);
        apply(&env, &rig.catalog()).await;
        let named = |name: &str, port| at(name, instance("named", port, &[]));
        let mut services = vec![one(2002), one(2003), at("slow1.test", one(2004)), instance("other", 2005, &[])];
        services.extend([named("slow2.test", 2006), named("slow3.test", 2007)]);
        write_catalog(&rig.catalog(), &services);
        let pass = tokio::spawn({
            let (env, catalog) = (env.clone(), rig.catalog());
            async move { apply_failing(&env, &catalog).await }
        });
        rig.haproxy.wait_for_state("api/api_1", "maint").await;
        assert!(!pass.is_finished(), "who is gone does not wait for a validation");
        let said = pass.await.unwrap();
        for (service, port) in [("api", 2004), ("named", 2006), ("named", 2007)] {
            let note = format!("error: service {service}: instance {port} is left as it was");
            assert!(said.contains(&note) && said.contains("takes longer than 4s"), "{note} in: {said}");
        }
        let text = rig.haproxy.text();
        assert!(has_backend(&text, "other") && !text.contains("slow") && text.contains(":2003"), "{text}");
        assert_eq!(rig.haproxy.state("api/api_2").await, "ready");
        rig.agrees().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_refusal_does_not_name_is_found_by_halving() {
    const UNNAMED: &str = "if [ \"$check\" ]; then\n  echo >> validations\n  if grep -q ':20[56]7 ' \"$file\"; then\n\
                           \x20   echo '[ALERT]    (1) : bad luck.' >&2\n    exit 1\n  fi\nfi";
    for (series, way) in everywhere() {
        eprintln!("--- HAProxy {series}, {way:?}");
        let rig = rig_with_script(way, series, UNNAMED).await;
        let services: Vec<Value> = ["one", "two", "three"]
            .iter()
            .zip([2000, 2040, 2080])
            .flat_map(|(name, first)| (first..first + 40).map(|port| instance(name, port, &[])))
            .collect();
        let validations = || fs::read_to_string(rig.haproxy.folder().join("validations")).unwrap().len();
        write_catalog(&rig.catalog(), &services);
        let said = apply_failing(&rig.env(), &rig.catalog()).await;
        // Finding each of the two takes as many validations as it takes to halve 123 parts, and one to check that those
        // were all.
        assert!(validations() <= 2 * (7 + 3) + 4, "{} validations", validations());
        for port in 2000..2120 {
            let is_bad = [2057, 2067].contains(&port);
            let note = format!("service two: instance {port} is left as it was");
            assert_eq!(said.contains(&note), is_bad, "{port}: {said}");
            assert_eq!(rig.haproxy.text().contains(&format!(":{port} ")), !is_bad, "{port}");
        }
        rig.agrees().await;
        // Everything that follows is valid without the two, too.
        let left: Vec<Value> = services.into_iter().filter(|one| one["Port"] != 2000).collect();
        write_catalog(&rig.catalog(), &left);
        apply_failing(&rig.env(), &rig.catalog()).await;
        is_out(&rig, "one/one_1").await;
    }
}

fn local(rig: &Rig) -> Local {
    let settings = LocalConfig {
        config_file: rig.haproxy.config(),
        master_socket: rig.haproxy.master(),
        binary: rig.haproxy.binary.clone(),
        working_directory: None,
        environment_file: None,
        files: Vec::new(),
        maps_dir: None,
    };
    Local::new(settings, owner())
}

/// One that fails in nothing.
async fn pass(controller: &mut Controller, start: Moment, seconds: u64) -> PassStatus {
    let status = passes::pass(controller, start, seconds).await;
    assert!(status.error.is_none(), "{:?}", status.error);
    status
}

/// A name that starts to resolve: HAProxy has its own hosts file.
#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_resolves_again_is_back_by_itself() {
    // HAProxy's environment is also that of its validations, so it must not show the change.
    const HOSTS: &str = "[ \"$inside\" ] || exec unshare --mount env inside=1 \"$0\" \"$@\"\n\
                         unset inside\nmount --bind hosts /etc/hosts || exit 1";
    let possible = Command::new("unshare").args(["--mount", "true"]).output().unwrap();
    if !possible.status.success() {
        eprintln!("skipped: no mount namespaces for this user: {}", String::from_utf8_lossy(&possible.stderr));
        return;
    }
    for (series, way) in everywhere() {
        eprintln!("--- HAProxy {series}, {way:?}");
        let rig = rig_with_script(way, series, &format!("[ -f hosts ] || echo > hosts\n{HOSTS}")).await;
        match way {
            Way::Local => comes_back(&rig, Arc::new(local(&rig))).await,
            Way::Api => comes_back(&rig, Arc::new(dataplane(&rig))).await,
        }
    }
}

async fn comes_back(rig: &Rig, plane: Arc<dyn Plane>) {
    let server = Server::start("back").await;
    let hosts = |text: &str| fs::write(rig.haproxy.folder().join("hosts"), text).unwrap();
    let answer = async || load::get(&reqwest::Client::new(), rig.haproxy.port, "named.test").await.unwrap().0;
    let named = || at("back.test", instance("named", server.port(), &[]));
    let is_noted = |status: &PassStatus| status.notes.iter().any(|note| note.code == Code::Unresolved);
    let (mut controller, start) = (controller(rig, plane), Moment::now(true));
    hosts("127.0.0.1 back.test\n");
    write_catalog(&rig.catalog(), &[named(), instance("api", 2001, &[])]);
    assert!(!is_noted(&pass(&mut controller, start, 0).await));
    assert_eq!(answer().await, 200);

    // A reload by another client, at a bad moment; and an instance is gone.
    hosts("\n");
    write_catalog(&rig.catalog(), &[named(), instance("api", 2002, &[]), instance("new", 2003, STATIC)]);
    let status = pass(&mut controller, start, 1).await;
    assert!(is_noted(&status) && status.reloads == 1, "{status:?}");
    is_gone(rig, 2001).await;
    assert_eq!(answer().await, 503);

    // While it does not resolve there is no reload.
    for seconds in [2, 32] {
        let status = pass(&mut controller, start, seconds).await;
        assert!(is_noted(&status) && status.reloads == 0, "{status:?}");
    }
    hosts("127.0.0.1 back.test\n");
    let status = pass(&mut controller, start, 100).await;
    assert!(!is_noted(&status) && status.reloads == 1, "{status:?}");
    assert_eq!(answer().await, 200);
    let status = pass(&mut controller, start, 1000).await;
    assert_eq!((status.reloads, status.notes), (0, Vec::new()));
}

/// Each health check needs a file descriptor, and a process starts with a limit: a configuration with too many is
/// valid, but cannot be loaded.
async fn rig_with_few_files(way: Way, series: &str) -> Rig {
    rig_with_script(way, series, "ulimit -n 1100").await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_loaded_is_left_out_alone() {
    for (series, way) in everywhere() {
        eprintln!("--- HAProxy {series}, {way:?}");
        let rig = rig_with_few_files(way, series).await;
        match way {
            Way::Local => left_out(&rig, Arc::new(local(&rig))).await,
            Way::Api => left_out(&rig, Arc::new(dataplane(&rig))).await,
        }
    }
}

async fn left_out(rig: &Rig, plane: Arc<dyn Plane>) {
    let (mut controller, start) = (controller(rig, plane), Moment::now(true));
    let checked =
        |service: &str, port: u16| registration(service, &port.to_string(), port.into(), port, &["enable=true"]);
    let one = |port| instance("api", port, &[]);
    write_catalog(&rig.catalog(), &[one(2001), one(2002)]);
    pass(&mut controller, start, 0).await;

    let mut services = vec![one(2002), one(2003)];
    services.extend((2100..2200).map(|port| checked("huge", port)));
    services.extend(
        ["a", "b", "c", "m", "n", "x", "y", "z"].iter().zip(2010..).map(|(name, port)| instance(name, port, &[])),
    );
    write_catalog(&rig.catalog(), &services);
    let status = pass(&mut controller, start, 1).await;
    // Of nine backends, halved.
    assert!((1..=5).contains(&status.failed_reloads), "{status:?}");
    let noted: BTreeSet<&str> = status.notes.iter().map(|note| note.service.name.as_str()).collect();
    assert_eq!(noted, BTreeSet::from(["huge"]));
    assert!(
        status.notes.iter().all(|note| note.code == Code::NotLoaded && note.text.contains("FD limit")),
        "{status:?}"
    );
    is_gone(rig, 2001).await;
    let text = rig.haproxy.text();
    for name in ["a", "b", "c", "m", "n", "x", "y", "z"] {
        assert!(has_backend(&text, name), "{name}: {text}");
    }
    assert!(!has_backend(&text, "huge") && loads(rig));
    rig.agrees().await;

    // It is retried when it is due, at no cost to the others; nor do others wait for it.
    let worker = rig.haproxy.worker().await;
    let status = pass(&mut controller, start, 2).await;
    assert_eq!((status.failed_reloads, status.reloads, rig.haproxy.worker().await), (0, 0, worker));
    services.push(instance("later", 2030, STATIC));
    write_catalog(&rig.catalog(), &services);
    let status = pass(&mut controller, start, 3).await;
    assert_eq!((status.failed_reloads, status.reloads), (0, 1));
    assert!(has_backend(&rig.haproxy.text(), "later"));
    let status = pass(&mut controller, start, 40).await;
    assert_eq!(status.failed_reloads, 1, "{status:?}");
    rig.agrees().await;
}
