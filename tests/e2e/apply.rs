//! One pass after another on a real HAProxy, from a catalog file: what is written, what is not, and what
//! a refused change leaves behind. Each case on every series, on both planes.

use std::time::Duration;

use crate::support::api::{Rig, Way};
use crate::support::controller::{apply, registration, run, stderr, stdout, write_catalog};
use crate::support::haproxy::has_backend;
use crate::support::servers::Server;
use crate::support::{load, wait_for};

everywhere!(a_service_takes_traffic_and_goes_again, cases::routed);
everywhere!(plan_says_what_apply_does_and_a_second_apply_does_nothing, cases::plan_then_apply);
everywhere!(fifty_passes_leave_every_foreign_line_as_it_was, cases::fifty_passes);
everywhere!(a_refused_service_is_named_and_affects_no_other, cases::refused);
everywhere!(an_edit_of_our_lines_is_repaired_and_of_others_is_kept, cases::drift);
everywhere!(a_comment_outlives_the_backend_above_it, cases::comment);
everywhere!(a_backend_that_a_frontend_names_stays_without_its_instances, cases::referenced);
everywhere!(what_the_process_need_not_know_is_only_written, cases::only_written);
everywhere!(a_custom_backend_is_given_servers_only, cases::custom);

mod cases {
    use super::*;

    pub async fn routed(rig: Rig, _way: Way) {
        let (one, two) = (Server::start("one").await, Server::start("two").await);
        let tags = ["enable=true", "check.path=/health", "check.interval=100ms"];
        let both = [
            registration("api-service", "1", 1, one.port(), &tags),
            registration("api-service", "2", 2, two.port(), &tags),
        ];
        write_catalog(&rig.catalog(), &both);
        apply(&rig.env(), &rig.catalog()).await;
        let client = reqwest::Client::new();
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..10 {
            seen.insert(load::get(&client, rig.haproxy.port, "api_service.test").await.unwrap());
        }
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), [(200, "one".to_owned()), (200, "two".to_owned())]);

        // Its check works: a server that fails it goes DOWN, and comes back.
        let status = async |wanted: &str| {
            wait_for(&format!("api_service_1 {wanted}"), Duration::from_secs(10), async || {
                rig.haproxy
                    .statuses()
                    .await
                    .get("api_service/api_service_1")
                    .filter(|status| status.starts_with(wanted))
                    .map(drop)
            })
            .await;
        };
        one.healthy.store(false, std::sync::atomic::Ordering::Relaxed);
        status("DOWN").await;
        one.healthy.store(true, std::sync::atomic::Ordering::Relaxed);
        status("UP").await;

        write_catalog(&rig.catalog(), &[]);
        apply(&rig.env(), &rig.catalog()).await;
        // On a new connection: the old worker still serves connections that were kept alive.
        let client = reqwest::Client::new();
        assert_eq!(load::get(&client, rig.haproxy.port, "api_service.test").await.unwrap().0, 503);
        assert!(!rig.haproxy.text().contains("api_service"), "{}", rig.haproxy.text());
    }

    pub async fn plan_then_apply(rig: Rig, _way: Way) {
        let catalog = rig.catalog().display().to_string();
        let plan = ["plan", "--detailed-exitcode", "--catalog", &catalog];
        write_catalog(&rig.catalog(), &[registration("api", "1", 1, 9, &["enable=true", "wieght=3"])]);
        let before = rig.haproxy.text();
        let planned = run(&rig.env(), &plan).await;
        assert_eq!(planned.status.code(), Some(2), "{}", stderr(&planned));
        let text = stdout(&planned);
        for line in ["+backend api", "did you mean haproxy.weight?", "1 backends to create", "one reload"] {
            assert!(text.contains(line), "{line} in:\n{text}");
        }
        assert_eq!(rig.haproxy.text(), before, "a plan writes nothing");
        let json = run(&rig.env(), &["plan", "--output", "json", "--catalog", &catalog]).await;
        let json: serde_json::Value = serde_json::from_str(&stdout(&json)).unwrap();
        assert_eq!((&json["changes"], &json["backends"][0]["action"]), (&true.into(), &"create".into()));

        apply(&rig.env(), &rig.catalog()).await;
        let (text, reloads) = (rig.haproxy.text(), rig.haproxy.reloads().await);
        assert_eq!(reloads, 1);
        let said = apply(&rig.env(), &rig.catalog()).await;
        assert!(said.contains("Nothing to do"), "{said}");
        assert_eq!((rig.haproxy.text(), rig.haproxy.reloads().await), (text, reloads));
        let planned = run(&rig.env(), &plan).await;
        assert_eq!(planned.status.code(), Some(0));
        assert!(stdout(&planned).contains("No changes"), "{}", stdout(&planned));
    }

    pub async fn fifty_passes(rig: Rig, _way: Way) {
        let foreign = rig.foreign();
        for pass in 0..50_u16 {
            let service = format!("svc-{}", pass % 3);
            let balance = if pass % 2 == 0 { "balance=leastconn" } else { "balance=roundrobin" };
            let instances: Vec<_> = (0..pass % 7)
                .map(|n| registration(&service, &format!("{n}"), u64::from(n), 1000 + n, &["enable=true", balance]))
                .collect();
            write_catalog(&rig.catalog(), &instances);
            apply(&rig.env(), &rig.catalog()).await;
        }
        write_catalog(&rig.catalog(), &[registration("last", "1", 1, 1, &["enable=true"])]);
        apply(&rig.env(), &rig.catalog()).await;
        assert_eq!(rig.foreign(), foreign);
    }

    pub async fn refused(rig: Rig, _way: Way) {
        let mut bad = registration("bad-one", "1", 1, 80, &["enable=true"]);
        bad["Address"] = "no..name.invalid".into();
        write_catalog(&rig.catalog(), std::slice::from_ref(&bad));
        let (before, worker) = (rig.haproxy.text(), rig.haproxy.worker().await);
        let catalog = rig.catalog().display().to_string();
        let output = run(&rig.env(), &["apply", "--catalog", &catalog]).await;
        assert_eq!(output.status.code(), Some(0), "it did what the plan says: nothing");
        let strict = run(&rig.env(), &["apply", "--strict", "--catalog", &catalog]).await;
        assert_eq!(strict.status.code(), Some(1), "{}", stdout(&strict));
        let said = stdout(&output);
        assert!(said.contains("bad-one") && said.contains("HAProxy refuses its server"), "{said}{}", stderr(&output));
        assert_eq!((rig.haproxy.text(), rig.haproxy.worker().await), (before, worker), "file and process as they were");

        let good = Server::start("good").await;
        write_catalog(&rig.catalog(), &[bad, registration("good", "2", 2, good.port(), &["enable=true"])]);
        let output = run(&rig.env(), &["apply", "--catalog", &catalog]).await;
        assert!(stdout(&output).contains("bad-one"), "{}", stdout(&output));
        let answer = load::get(&reqwest::Client::new(), rig.haproxy.port, "good.test").await.unwrap();
        assert_eq!(answer, (200, "good".to_owned()));
        assert!(!rig.haproxy.text().contains("bad_one"));
    }

    pub async fn drift(rig: Rig, _way: Way) {
        write_catalog(&rig.catalog(), &[registration("api", "1", 1, 1234, &["enable=true", "balance=leastconn"])]);
        apply(&rig.env(), &rig.catalog()).await;
        rig.edit(|text| {
            let text = text.replace("balance leastconn", "balance first").replace("127.0.0.1:1234", "127.0.0.1:4321");
            text.replace("server api_1 ", "server by_hand 127.0.0.1:5\n  server api_1 ")
        })
        .await;
        apply(&rig.env(), &rig.catalog()).await;
        let repaired = rig.haproxy.text();
        assert!(!repaired.contains("balance first") && repaired.contains("127.0.0.1:1234"), "{repaired}");
        assert!(repaired.contains("server by_hand 127.0.0.1:5"), "a person's server in our backend stays: {repaired}");
        // A state that was set by hand in the process is set back to that of the file.
        rig.haproxy.command("@1 set server api/api_1 state maint").await;
        let said = apply(&rig.env(), &rig.catalog()).await;
        assert!(said.contains("Repaired") && said.contains("no reload"), "{said}");
        assert!(!rig.haproxy.statuses().await["api/api_1"].contains("MAINT"));
    }

    pub async fn referenced(rig: Rig, _way: Way) {
        write_catalog(&rig.catalog(), &[registration("api", "1", 1, 1234, &["enable=true"])]);
        apply(&rig.env(), &rig.catalog()).await;
        let rule = "use_backend api if { path_beg /api }\n    use_backend shop if";
        rig.edit(|text| text.replace("use_backend shop if", rule)).await;
        write_catalog(&rig.catalog(), &[registration("other", "1", 1, 1235, &["enable=true"])]);
        let catalog = rig.catalog().display().to_string();
        let output = run(&rig.env(), &["apply", "--catalog", &catalog]).await;
        let said = stdout(&output);
        assert!(said.contains("service api") && said.contains("backend api stays"), "{said}{}", stderr(&output));
        let text = rig.haproxy.text();
        assert!(
            has_backend(&text, "api") && !text.contains("\"id\":\"1\",\"owner\":\"nomad\"}\n  server api_2"),
            "{text}"
        );
        assert!(rig.haproxy.statuses().await["api/api_1"].contains("MAINT"));
        let published = rig.haproxy.command("@1 show stat").await;
        assert!(!published.contains("UNPUB"), "its rule would have no effect: {published}");
        assert!(has_backend(&text, "other"), "the others go on: {text}");
    }

    pub async fn comment(rig: Rig, _way: Way) {
        // Also the last section of a file that the API has sorted.
        let (zoo, last) =
            (registration("zoo", "1", 1, 1, &["enable=true"]), registration("last", "1", 1, 1, &["enable=true"]));
        write_catalog(&rig.catalog(), std::slice::from_ref(&zoo));
        apply(&rig.env(), &rig.catalog()).await;
        rig.edit(|text| text + "\n# the old ones, until spring\nbackend old # none left\n  server a 127.0.0.1:9\n")
            .await;
        let foreign = rig.foreign();
        write_catalog(&rig.catalog(), &[zoo, last]);
        apply(&rig.env(), &rig.catalog()).await;
        assert_eq!(rig.foreign(), foreign);
        write_catalog(&rig.catalog(), &[]);
        apply(&rig.env(), &rig.catalog()).await;
        assert_eq!(rig.foreign(), foreign);
    }

    pub async fn only_written(rig: Rig, _way: Way) {
        let catalog = rig.catalog().display().to_string();
        for drain in ["drain=5s", "drain=9s"] {
            write_catalog(&rig.catalog(), &[registration("api", "1", 1, 1, &["enable=true", drain])]);
            let output = run(&rig.env(), &["apply", "--catalog", &catalog]).await;
            assert!(output.status.success() && !stderr(&output).contains("repairing"), "{}", stderr(&output));
        }
        assert!(rig.haproxy.text().contains("\"drain\":\"9s\""), "{}", rig.haproxy.text());
        assert_eq!(rig.haproxy.reloads().await, 1);
    }

    pub async fn custom(rig: Rig, _way: Way) {
        let mine = Server::start("mine").await;
        let foreign = rig.foreign();
        let tags = ["enable=true", "backend=custom", "balance=first"];
        write_catalog(&rig.catalog(), &[registration("shop", "1", 1, mine.port(), &tags)]);
        let said = apply(&rig.env(), &rig.catalog()).await;
        assert!(said.contains("haproxy.balance"), "a tag for the whole backend is said to be ignored: {said}");
        let client = reqwest::Client::new();
        wait_for("an answer through the person's own backend", Duration::from_secs(5), async || {
            let response = client.get(format!("http://127.0.0.1:{}/shop", rig.haproxy.port)).send().await.ok()?;
            (response.status() == 200).then_some(())
        })
        .await;
        assert_eq!(rig.foreign(), foreign);
        write_catalog(&rig.catalog(), &[]);
        apply(&rig.env(), &rig.catalog()).await;
        assert!(!rig.haproxy.text().contains("shop_1"), "{}", rig.haproxy.text());
        assert_eq!(rig.foreign(), foreign);
    }
}
