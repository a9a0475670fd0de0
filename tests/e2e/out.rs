//! An instance that is gone gets no more traffic at once, whatever else fails; and one that drains does so until its
//! time is over, even if another client reloads in the meantime.

use std::sync::Arc;
use std::time::Duration;

use crate::support::api::{Rig, Way};
use crate::support::controller::{Controller, apply, apply_failing, registration, run, stderr, stdout, write_catalog};
use crate::support::gate::{Gate, Point, SocketGate};
use crate::support::haproxy::{has_backend, matrix};
use crate::support::wait_for;
use serde_json::Value;

everywhere!(an_invalid_file_keeps_no_gone_instance_in_service, gone::invalid);
everywhere!(a_sibling_with_a_bad_address_keeps_no_gone_instance_in_service, gone::bad_sibling);
everywhere!(a_reload_that_waits_keeps_no_gone_instance_in_service, gone::waits);
everywhere!(a_reload_that_failed_keeps_no_gone_instance_in_service, gone::failed);
everywhere!(a_foreign_backend_that_is_no_longer_compatible_keeps_no_gone_instance_in_service, gone::incompatible);
everywhere!(who_leaves_while_a_pass_waits_for_a_reload_is_out_before_its_end, gone::meanwhile);
everywhere!(a_reload_for_another_service_leaves_a_drain_as_it_is, drains::reload);
everywhere!(a_server_that_drains_is_not_removed, drains::rewrite);
everywhere!(a_reload_by_another_client_is_followed_by_the_drain, drains::foreign_reload);

/// An instance on a port, which is also its ID.
fn instance(service: &str, port: u16, tags: &[&str]) -> Value {
    let tags: Vec<&str> = ["enable=true", "check.disabled"].iter().chain(tags).copied().collect();
    registration(service, &port.to_string(), u64::from(port), port, &tags)
}

fn api(ports: &[u16]) -> Vec<Value> {
    ports.iter().map(|port| instance("api", *port, &[])).collect()
}

fn running(rig: &Rig, more: &[(&str, &str)]) -> Controller {
    Controller::start(&rig.env_with(more), &["--catalog", &rig.catalog().display().to_string()])
}

/// The line of a server.
fn line(rig: &Rig, server: &str) -> String {
    let text = rig.haproxy.text();
    let line = text.lines().find(|line| line.trim_start().starts_with(&format!("server {server} ")));
    line.unwrap_or_else(|| panic!("no {server} in:\n{text}")).to_owned()
}

/// The line of a server whose instance is gone: it is a free slot, or it is not there any more.
fn is_out(rig: &Rig, way: Way, server: &str) {
    match way {
        Way::Local => assert!(!rig.haproxy.text().contains(&format!("server {server} ")), "{}", rig.haproxy.text()),
        Way::Api => assert!(line(rig, server).contains(" disabled"), "{}", line(rig, server)),
    }
}

mod gone {
    use super::*;

    pub async fn invalid(rig: Rig, way: Way) {
        write_catalog(&rig.catalog(), &api(&[2001, 2002]));
        apply(&rig.env(), &rig.catalog()).await;
        let reloads = rig.haproxy.reloads().await;
        rig.edit_by_hand(|text| text.replacen("acl is_shop", "frobnicate yes\n    acl is_shop", 1)).await;
        let edited = rig.haproxy.bytes();

        write_catalog(&rig.catalog(), &api(&[2002]));
        let said = apply_failing(&rig.env(), &rig.catalog()).await;
        assert!(said.contains("refuses its own configuration") && said.contains("frobnicate"), "{said}");
        assert_eq!(rig.haproxy.state("api/api_1").await, "maint");
        assert_eq!(rig.haproxy.state("api/api_2").await, "ready", "who is still there stays");
        assert_eq!(rig.haproxy.bytes(), edited, "nothing is written");

        rig.edit_by_hand(|text| text.replacen("frobnicate yes", "", 1)).await;
        apply(&rig.env(), &rig.catalog()).await;
        rig.agrees().await;
        is_out(&rig, way, "api_1");
        assert_eq!(rig.haproxy.reloads().await, reloads);
    }

    pub async fn bad_sibling(rig: Rig, way: Way) {
        write_catalog(&rig.catalog(), &api(&[2001, 2002]));
        apply(&rig.env(), &rig.catalog()).await;
        let mut bad = instance("api", 2003, &[]);
        bad["Address"] = "no..name.invalid".into();
        write_catalog(&rig.catalog(), &[instance("api", 2002, &[]), bad]);
        let said = apply_failing(&rig.env(), &rig.catalog()).await;
        assert!(said.contains("instance 2003 is left as it was"), "{said}");
        assert_eq!(rig.haproxy.state("api/api_1").await, way.gone());
        is_out(&rig, way, "api_1");
        assert_eq!(rig.haproxy.state("api/api_2").await, "ready");
        rig.agrees().await;
        assert_eq!(rig.haproxy.reloads().await, 1);
    }

    /// What cannot be removed without a reload is taken out of service without one: a service's last instance, one
    /// without slots, and one whose slot is taken by an instance with other settings.
    fn before() -> Vec<Value> {
        vec![
            instance("last", 2001, &[]),
            instance("bare", 2002, &["slots=0"]),
            instance("bare", 2003, &["slots=0"]),
            instance("taken", 2004, &["slots=1"]),
            instance("taken", 2005, &["slots=1"]),
            instance("grows", 2006, &["slots=1"]),
        ]
    }

    fn after() -> Vec<Value> {
        let mut after = vec![
            instance("new", 2010, &["balance=source"]),
            instance("bare", 2003, &["slots=0"]),
            instance("taken", 2005, &["slots=1"]),
        ];
        after.extend((2011..2015).map(|port| instance("taken", port, &["slots=1", "maxconn=7"])));
        after.extend((2021..2025).map(|port| instance("grows", port, &["slots=1"])));
        after
    }

    const GONE: [&str; 3] = ["last/last_1", "bare/bare_1", "taken/taken_1"];

    /// The backend of a service that is gone waits for the reload, with its server, where it takes one.
    fn state_of(gone: &str, rig: &Rig, way: Way) -> &'static str {
        if gone.starts_with("last/") && !rig.makes_backends() { "maint" } else { way.gone() }
    }

    pub async fn waits(rig: Rig, way: Way) {
        write_catalog(&rig.catalog(), &[]);
        let controller =
            running(&rig, &[("NOMAD_HAPROXY_RELOAD_MIN_INTERVAL", "1h"), ("NOMAD_HAPROXY_RESYNC_INTERVAL", "1s")]);
        controller.wait_until_ready().await;
        write_catalog(&rig.catalog(), &before());
        wait_for("the first", Duration::from_secs(15), async || {
            (rig.haproxy.state("last/last_1").await == "ready").then_some(())
        })
        .await;
        write_catalog(&rig.catalog(), &after());
        for gone in GONE {
            rig.haproxy.wait_for_state(gone, state_of(gone, &rig, way)).await;
        }
        // The file records it, too: otherwise the next comparison with the process would undo it.
        controller.wait_for_resyncs(2).await;
        for gone in GONE {
            assert_eq!(rig.haproxy.state(gone).await, state_of(gone, &rig, way), "{gone}");
        }
        for stays in ["bare/bare_2", "taken/taken_2"] {
            assert_eq!(rig.haproxy.state(stays).await, "ready", "{stays}");
        }
        let running = rig.haproxy.running().await;
        assert!(!running.values().any(|server| server.address.ends_with(":2006")), "its slot has another instance");
        rig.agrees().await;
        assert!(!has_backend(&rig.haproxy.text(), "new"));
        assert_eq!(rig.haproxy.reloads().await, 1);
    }

    pub async fn failed(rig: Rig, way: Way) {
        write_catalog(&rig.catalog(), &before());
        apply(&rig.env(), &rig.catalog()).await;
        let (taken, bind) = taken_port();
        rig.edit(|text| text.replacen("acl is_shop", &bind, 1)).await;
        write_catalog(&rig.catalog(), &after());
        let said = apply_failing(&rig.env(), &rig.catalog()).await;
        assert!(said.contains("could not load"), "{said}");
        for gone in GONE {
            assert_eq!(rig.haproxy.state(gone).await, state_of(gone, &rig, way), "{gone}");
        }
        let running = rig.haproxy.running().await;
        assert!(!running.values().any(|server| server.address.ends_with(":2006")), "its slot has another instance");
        rig.agrees().await;
        assert!(!has_backend(&rig.haproxy.text(), "new"));
        drop(taken);
        apply(&rig.env(), &rig.catalog()).await;
        rig.agrees().await;
        assert!(has_backend(&rig.haproxy.text(), "new") && !has_backend(&rig.haproxy.text(), "last"));
    }

    /// Holds up a reload of HAProxy.
    enum Held {
        Master(Arc<SocketGate>),
        Api(Arc<Gate>),
    }

    impl Held {
        async fn new(rig: &Rig) -> (Self, Vec<(String, String)>) {
            if rig.api.is_some() {
                let (gate, env) = rig.gated().await;
                gate.hold(Some(Point::First("force_reload=true")));
                return (Self::Api(gate), env);
            }
            let gate = SocketGate::start(&rig.haproxy.master());
            gate.hold(Some(Point::First("reload")));
            let env = rig.env_with(&[("HAPROXY_MASTER_SOCKET", &gate.path.display().to_string())]);
            (Self::Master(gate), env)
        }

        fn is_holding(&self) -> bool {
            match self {
                Self::Master(gate) => gate.is_holding(),
                Self::Api(gate) => gate.is_holding(),
            }
        }

        fn release(&self) {
            match self {
                Self::Master(gate) => gate.release(),
                Self::Api(gate) => gate.release(),
            }
        }
    }

    pub async fn meanwhile(rig: Rig, way: Way) {
        let all = |ports: &[u16]| {
            let single = instance("single", 2011, &[]);
            api(ports).into_iter().chain([single]).collect::<Vec<_>>()
        };
        write_catalog(&rig.catalog(), &all(&[2001, 2002, 2003]));
        apply(&rig.env(), &rig.catalog()).await;
        let (held, mut env) = Held::new(&rig).await;
        env.push(("NOMAD_HAPROXY_RESYNC_INTERVAL".to_owned(), "1s".to_owned()));
        let controller = Controller::start(&env, &["--catalog", &rig.catalog().display().to_string()]);
        controller.wait_until_ready().await;
        let with_new = |mut services: Vec<Value>| {
            services.push(instance("new", 2010, &["balance=source"]));
            services
        };
        write_catalog(&rig.catalog(), &with_new(all(&[2001, 2002, 2003])));
        wait_for("the reload", Duration::from_secs(20), async || held.is_holding().then_some(())).await;

        // One of three leaves; and the only one of another service, which nobody could stand in for.
        write_catalog(&rig.catalog(), &with_new(api(&[2002, 2003])));
        rig.haproxy.wait_for_state("api/api_1", "maint").await;
        assert!(held.is_holding(), "the pass still runs");
        for stays in ["api/api_2", "api/api_3", "single/single_1"] {
            assert_eq!(rig.haproxy.state(stays).await, "ready", "{stays}");
        }
        held.release();
        rig.haproxy.wait_for_state("new/new_1", "ready").await;
        rig.haproxy.wait_for_state("api/api_1", way.gone()).await;
        let single = if rig.makes_backends() { way.gone() } else { "maint" };
        rig.haproxy.wait_for_state("single/single_1", single).await;
        controller.wait_for_resyncs(1).await;
        rig.agrees().await;
        is_out(&rig, way, "api_1");
    }

    /// A port that is in use, and a listener on it in place of `acl is_shop`: valid, but it cannot be loaded.
    fn taken_port() -> (std::net::TcpListener, String) {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let bind = format!("bind 127.0.0.1:{}\n    acl is_shop", taken.local_addr().unwrap().port());
        (taken, bind)
    }

    pub async fn incompatible(rig: Rig, way: Way) {
        let shop = |ports: &[u16]| ports.iter().map(|port| instance("shop", *port, &[])).collect::<Vec<_>>();
        write_catalog(&rig.catalog(), &shop(&[2001, 2002]));
        apply(&rig.env(), &rig.catalog()).await;
        rig.edit(|text| text.replacen("balance roundrobin\n", "balance leastconn\n", 1)).await;
        write_catalog(&rig.catalog(), &shop(&[2002]));
        let said = apply_failing(&rig.env(), &rig.catalog()).await;
        assert!(said.contains("balance leastconn in the way"), "{said}");
        assert_eq!(rig.haproxy.state("shop/shop_1").await, "maint");
        assert!(line(&rig, "shop_1").contains(" disabled"));
        rig.agrees().await;
        // The one that brought the servers in.
        assert_eq!(rig.haproxy.reloads().await, u64::from(way == Way::Api));
    }
}

/// The Data Plane API breaks conditional blocks, so such a file is not written through it. An instance that is gone is
/// out all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_with_conditionals_keeps_no_gone_instance_in_service() {
    const BLOCK: &str = "\n.if defined(NEVER)\nbackend extra\n    server a 127.0.0.1:9\n.endif\n";
    for series in matrix() {
        for write in ["auto", "transaction", "text"] {
            let rig = Rig::start(Way::Api, series).await;
            let env = rig.env_with(&[("HAPROXY_WRITE", write)]);
            write_catalog(&rig.catalog(), &api(&[2001, 2002, 2003, 2004, 2005]));
            apply(&env, &rig.catalog()).await;
            let adopted = rig.haproxy.text();
            for (slot, block) in (1..).zip([BLOCK, "\n.elif defined(A)\n", "\n.else\n", "\n.endif\n"]) {
                rig.edit_by_hand(|_| adopted.clone() + block).await;
                let edited = rig.haproxy.bytes();
                // The real API has broken the block already, as it writes what it reads.
                let text = rig.haproxy.text();
                let mut lines = (1..).zip(text.lines().map(str::trim_start));
                let (line, word) = lines.find(|(_, line)| line.starts_with('.')).unwrap();
                let place = format!("line {line} has `{}", word.split(' ').next().unwrap());
                write_catalog(&rig.catalog(), &api(&(2001 + slot..2006).collect::<Vec<_>>()));
                let planned = run(&env, &["plan", "--catalog", &rig.catalog().display().to_string()]).await;
                let planned = stdout(&planned) + &stderr(&planned);
                assert!(planned.contains(&place), "HAProxy {series}, write={write}: {place} in: {planned}");
                let said = apply_failing(&env, &rig.catalog()).await;
                assert!(said.contains(&place), "HAProxy {series}, write={write}: {place} in: {said}");
                assert_eq!(rig.haproxy.state(&format!("api/api_{slot}")).await, "maint", "{word}");
                assert_eq!(rig.haproxy.state("api/api_5").await, "ready");
                assert_eq!(rig.haproxy.bytes(), edited, "HAProxy {series}, write={write}: nothing is written");
            }
            assert_eq!(rig.haproxy.reloads().await, 1);
        }
    }
}

mod drains {
    use super::*;

    const LONG: &str = "drain=1h";

    /// Two instances, of which the first is draining.
    async fn draining(rig: &Rig, tags: &[&str]) -> Vec<Value> {
        let tags: Vec<&str> = [LONG].iter().chain(tags).copied().collect();
        let one = |port| instance("api", port, &tags);
        write_catalog(&rig.catalog(), &[one(2001), one(2002)]);
        apply(&rig.env(), &rig.catalog()).await;
        write_catalog(&rig.catalog(), &[one(2002)]);
        apply(&rig.env(), &rig.catalog()).await;
        assert_eq!(rig.haproxy.state("api/api_1").await, "drain");
        vec![one(2002)]
    }

    pub async fn reload(rig: Rig, _way: Way) {
        let mut left = draining(&rig, &[]).await;
        let (worker, reloads) = (rig.haproxy.worker().await, rig.haproxy.reloads().await);
        left.push(instance("new", 2009, &["balance=source"]));
        write_catalog(&rig.catalog(), &left);
        apply(&rig.env(), &rig.catalog()).await;
        assert_ne!(rig.haproxy.worker().await, worker);
        assert_eq!(rig.haproxy.state("api/api_1").await, "drain");
        rig.agrees().await;
        // Also if the whole service is gone.
        write_catalog(&rig.catalog(), &[instance("other", 2010, &["balance=source"])]);
        apply(&rig.env(), &rig.catalog()).await;
        for server in ["api/api_1", "api/api_2"] {
            assert_eq!(rig.haproxy.state(server).await, "drain", "{server}");
        }
        rig.agrees().await;
        assert_eq!(rig.haproxy.reloads().await, reloads + 2);
    }

    pub async fn rewrite(rig: Rig, way: Way) {
        // Ten spares: one instance gets two, so the rewrite removes them.
        draining(&rig, &["slots=10"]).await;
        let servers = || rig.haproxy.text().lines().filter(|line| line.trim_start().starts_with("server api_")).count();
        // Where servers are added at run time there are no spares, so there are two servers all the time.
        let with_spares = |servers| if way == Way::Local { 2 } else { servers };
        assert_eq!(servers(), with_spares(12));
        for (tags, left) in [(["slots=2", "balance=leastconn"], 3), (["slots=0", "balance=first"], 2)] {
            let tags: Vec<&str> = [LONG].iter().chain(&tags).copied().collect();
            write_catalog(&rig.catalog(), &[instance("api", 2002, &tags)]);
            apply(&rig.env(), &rig.catalog()).await;
            assert!(rig.haproxy.text().contains(tags[2].replace('=', " ").as_str()), "{}", rig.haproxy.text());
            assert_eq!((servers(), rig.haproxy.state("api/api_1").await), (with_spares(left), "drain"), "{tags:?}");
            rig.agrees().await;
        }
    }

    pub async fn foreign_reload(rig: Rig, _way: Way) {
        draining(&rig, &[]).await;
        let worker = rig.haproxy.worker().await;
        let answer = rig.haproxy.command("reload").await;
        assert!(answer.starts_with("Success=1"), "{answer}");
        assert_ne!(rig.haproxy.worker().await, worker);
        assert_eq!(rig.haproxy.state("api/api_1").await, "maint", "the file cannot say that it drains");
        let (reloads, text) = (rig.haproxy.reloads().await, rig.haproxy.bytes());
        let said = apply(&rig.env(), &rig.catalog()).await;
        assert!(said.contains("Repaired") && said.contains("no reload"), "{said}");
        assert_eq!(rig.haproxy.state("api/api_1").await, "drain");
        assert_eq!((rig.haproxy.reloads().await, rig.haproxy.bytes()), (reloads, text));
        rig.agrees().await;
    }
}
