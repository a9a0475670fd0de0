//! What was reviewed is what is applied: `plan --out` and `apply --plan` as the steps of a pipeline, on every series,
//! on both planes.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::support::api::{Rig, Way};
use crate::support::controller::{apply, registration, run, stderr, stdout, write_catalog};
use crate::support::haproxy::{Haproxy, hand_written, has_backend, matrix};
use serde_json::Value;

everywhere!(a_pipeline_applies_what_was_reviewed_and_nothing_else, pipeline);
everywhere!(what_haproxy_refuses_is_left_out_of_both, left_out);
everywhere!(a_removal_that_was_reviewed_a_while_ago_is_applied, removal);

everywhere!(a_reload_that_fails_ends_a_reviewed_pass, failed_reload);

/// With several `defaults` sections the Data Plane API writes out once what each section inherits, before the first
/// write: that must not count as a foreign change.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_api_makes_of_the_file_is_no_difference() {
    let config = |folder: &Path, port: u16| {
        let more = "\ndefaults other\n  mode tcp\n  timeout connect 1s\n  timeout client 1s\n  timeout server 1s\n";
        hand_written(folder, port) + more
    };
    for series in matrix() {
        let rig = Rig::with(Way::Api, series, Haproxy::start_with(series, config).await).await;
        write_catalog(&rig.catalog(), &[registration("api", "1", 1, 2001, &["enable=true"])]);
        review(&rig).await;
        let (applied, said) = apply_reviewed(&rig).await;
        assert!(applied && has_backend(&rig.haproxy.text(), "api"), "HAProxy {series}: {said}");
    }
}

fn file(rig: &Rig) -> PathBuf {
    rig.haproxy.folder().join("reviewed.plan")
}

/// Runs `plan --out` and returns its output.
async fn review(rig: &Rig) -> String {
    let (catalog, file) = (rig.catalog().display().to_string(), file(rig).display().to_string());
    let output = run(&rig.env(), &["plan", "--catalog", &catalog, "--out", &file]).await;
    assert!(output.status.success(), "{}{}", stdout(&output), stderr(&output));
    stdout(&output)
}

/// Runs `apply --plan` and returns whether it was applied, and its output.
async fn apply_reviewed(rig: &Rig) -> (bool, String) {
    let (catalog, file) = (rig.catalog().display().to_string(), file(rig).display().to_string());
    let output = run(&rig.env(), &["apply", "--catalog", &catalog, "--plan", &file]).await;
    (output.status.success(), stdout(&output) + &stderr(&output))
}

/// Runs `apply --plan`, which must be refused with this message, and change nothing.
async fn refused(rig: &Rig, words: &[&str]) {
    let before = (rig.haproxy.bytes(), rig.haproxy.reloads().await, rig.haproxy.running().await.len());
    let (applied, said) = apply_reviewed(rig).await;
    assert!(!applied, "{said}");
    for word in words {
        assert!(said.contains(word), "{word:?} in:\n{said}");
    }
    assert_eq!((rig.haproxy.bytes(), rig.haproxy.reloads().await, rig.haproxy.running().await.len()), before, "{said}");
}

async fn pipeline(rig: Rig, _way: Way) {
    let api = |ports: &[u16]| -> Vec<Value> {
        ports.iter().map(|port| registration("api", &port.to_string(), 1, *port, &["enable=true"])).collect()
    };
    write_catalog(&rig.catalog(), &api(&[2001]));
    let said = review(&rig).await;
    assert!(said.contains("+backend api") && said.contains("apply --plan"), "{said}");
    let kept = std::fs::read_to_string(file(&rig)).unwrap();
    assert_eq!(std::fs::metadata(file(&rig)).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(kept.contains("\"format\": 1") && !kept.contains("is_shop"), "digests, not the text: {kept}");

    // A person edits the file by hand. On the local plane that does not change its version.
    rig.edit_by_hand(|text| text.replacen("acl is_shop   path_beg /shop", "acl is_shop   path_beg /store", 1)).await;
    refused(&rig, &["frontend web", "plan --out"]).await;
    rig.edit_by_hand(|text| text.replacen("path_beg /store", "path_beg /shop", 1)).await;

    // The catalog changes.
    review(&rig).await;
    let mut more = api(&[2001]);
    more.push(registration("new", "n", 2, 2009, &["enable=true"]));
    write_catalog(&rig.catalog(), &more);
    refused(&rig, &["`new`", "catalog", "plan --out"]).await;

    // Nothing changes.
    write_catalog(&rig.catalog(), &api(&[2001]));
    let (applied, said) = apply_reviewed(&rig).await;
    assert!(applied && said.contains("Applied: one reload"), "{said}");
    assert!(has_backend(&rig.haproxy.text(), "api") && rig.haproxy.reloads().await == 1);
    rig.agrees().await;
    refused(&rig, &["applied already"]).await;

    // A live change, and a plan without changes.
    write_catalog(&rig.catalog(), &api(&[2001, 2002]));
    assert!(review(&rig).await.contains("no reload"));
    let (applied, said) = apply_reviewed(&rig).await;
    assert!(applied && said.contains("Applied: no reload"), "{said}");
    rig.agrees().await;
    assert!(review(&rig).await.contains("No changes"));
    for _ in 0..2 {
        let (applied, said) = apply_reviewed(&rig).await;
        assert!(applied && said.contains("Nothing to do"), "{said}");
    }

    std::fs::write(file(&rig), kept.replace("\"format\": 1", "\"format\": 2")).unwrap();
    refused(&rig, &["format 2", "reviewed.plan"]).await;
    std::fs::write(file(&rig), "{}").unwrap();
    refused(&rig, &["not a plan file", "reviewed.plan"]).await;
}

/// HAProxy refuses one of two services when the plan is made, and again when it is applied.
async fn left_out(rig: Rig, _way: Way) {
    let mut bad = registration("bad", "1", 1, 80, &["enable=true"]);
    bad["Address"] = "no.such.host.invalid".into();
    write_catalog(&rig.catalog(), &[bad, registration("good", "2", 2, 2001, &["enable=true"])]);
    let said = review(&rig).await;
    assert!(said.contains("+backend good"), "{said}");
    let (applied, said) = apply_reviewed(&rig).await;
    assert!(applied, "{said}");
    assert!(has_backend(&rig.haproxy.text(), "good"));
}

/// A plan that frees slots, one of them to drain, contains times, which have passed when it is applied.
async fn removal(rig: Rig, way: Way) {
    let tags = ["enable=true", "drain=1m"];
    let all = [
        registration("api", "1", 1, 2001, &["enable=true"]),
        registration("api", "2", 2, 2002, &tags),
        registration("api", "3", 3, 2003, &["enable=true"]),
    ];
    write_catalog(&rig.catalog(), &all);
    apply(&rig.env(), &rig.catalog()).await;
    write_catalog(&rig.catalog(), &all[2..]);
    review(&rig).await;
    let (applied, said) = apply_reviewed(&rig).await;
    assert!(applied && said.contains("no reload"), "{said}");
    rig.agrees().await;
    assert_eq!((rig.haproxy.state("api/api_1").await, rig.haproxy.state("api/api_2").await), (way.gone(), "drain"));
}

/// It is valid, but cannot be loaded: nothing other than what was reviewed is tried instead.
async fn failed_reload(rig: Rig, _way: Way) {
    let first = registration("first", "1", 1, 2002, &["enable=true"]);
    write_catalog(&rig.catalog(), std::slice::from_ref(&first));
    apply(&rig.env(), &rig.catalog()).await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let bind = format!("bind 127.0.0.1:{}\n    acl is_shop", taken.local_addr().unwrap().port());
    rig.edit(|text| text.replacen("acl is_shop", &bind, 1)).await;
    write_catalog(&rig.catalog(), &[first, registration("api", "1", 1, 2001, &["enable=true", "balance=source"])]);
    review(&rig).await;
    let foreign = rig.foreign();
    let (applied, said) = apply_reviewed(&rig).await;
    assert!(!applied && said.contains("could not load") && !said.contains("reviewed"), "{said}");
    assert!(!has_backend(&rig.haproxy.text(), "api") && rig.foreign() == foreign);
    // The text is the one from before again, so the review is still valid.
    drop(taken);
    let (applied, said) = apply_reviewed(&rig).await;
    assert!(applied && has_backend(&rig.haproxy.text(), "api"), "{said}");
}
