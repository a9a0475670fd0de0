//! What earlier commits wrote is read, kept and converted: their files, as they wrote them on the local plane
//! (`fixtures/upgrade/COMMIT-SERIES.cfg`; only folder and port of HAProxy differ), with requests all the time.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::support::api::{Rig, Way};
use crate::support::controller::{apply, registration, write_catalog};
use crate::support::haproxy::{Haproxy, foreign_bytes, seats};
use crate::support::load::Load;
use crate::support::servers::{Plain, Server};
use crate::support::{root, wait_for};

/// The instances of the recordings: the servers that they have now, by the ports that they had.
struct Instances {
    web: [Server; 3],
    db: Plain,
}

impl Instances {
    async fn start() -> Self {
        let web = [Server::start("one").await, Server::start("two").await, Server::start("three").await];
        Self { web, db: Plain::start().await }
    }

    fn ports(&self) -> [(&'static str, u16); 3] {
        [("3001", self.web[0].port()), ("3002", self.web[1].port()), ("3003", self.db.port())]
    }

    fn text(&self, recorded: &str, folder: &Path, port: u16) -> String {
        let text = recorded.replace("/run/haproxy/", &format!("{}/", folder.display()));
        let text = text.replace("bind 127.0.0.1:8080", &format!("bind 127.0.0.1:{port}"));
        self.ports()
            .iter()
            .fold(text, |text, (old, new)| text.replace(&format!("127.0.0.1:{old} "), &format!("127.0.0.1:{new} ")))
    }

    /// With this many instances of `app`.
    fn registrations(&self, web: usize) -> Vec<Value> {
        let tags = ["enable=true", "check.path=/health"];
        let of_web = self.web.iter().zip(["1", "2", "4"]).take(web);
        let mut all: Vec<Value> =
            of_web.map(|(server, id)| registration("app", id, id.parse().unwrap(), server.port(), &tags)).collect();
        all.push(registration("db", "3", 3, self.db.port(), &["enable=true", "mode=tcp"]));
        all
    }
}

/// The first commits wrote no `option tcp-check`: a check of `defaults` then applied to backends of mode tcp. Theirs are
/// corrected with one reload; everything else is converted without any.
const WITHOUT_TCP_CHECK: &str = "d77a2a4-";

async fn is_taken_over(recorded: &Path) {
    let name = recorded.file_stem().unwrap().to_str().unwrap().to_owned();
    let series = name.rsplit_once('-').unwrap().1;
    let (instances, text) = (Instances::start().await, std::fs::read_to_string(recorded).unwrap());
    let haproxy = Haproxy::start_with(series, |folder, port| instances.text(&text, folder, port)).await;
    let rig = Rig::with(Way::Local, series, haproxy).await;
    let (before, foreign) = (seats(&rig.haproxy.text()), foreign_bytes(&rig.haproxy.text()));
    assert_eq!(before.len(), 3, "{name}: {}", rig.haproxy.text());
    for server in ["app/app_1", "app/app_2"] {
        rig.haproxy.wait_for_status(server, "UP").await;
    }
    let reloads = rig.haproxy.reloads().await;
    let load = Load::start(rig.haproxy.port, "app.test", 200);

    write_catalog(&rig.catalog(), &instances.registrations(2));
    apply(&rig.env(), &rig.catalog()).await;
    assert_eq!(seats(&rig.haproxy.text()), before, "{name}: each instance keeps its server");
    let second = apply(&rig.env(), &rig.catalog()).await;
    assert!(second.contains("Nothing to do"), "{name}: {second}");
    // And on it goes as with a file of ours.
    write_catalog(&rig.catalog(), &instances.registrations(3));
    apply(&rig.env(), &rig.catalog()).await;
    wait_for("the new instance to be asked", Duration::from_secs(20), async || {
        load.tally().by_answer.contains_key("three").then_some(())
    })
    .await;
    rig.agrees().await;
    assert_eq!(foreign_bytes(&rig.haproxy.text()), foreign, "{name}");
    let tally = load.take();
    assert_eq!(tally.failed, Vec::<String>::new(), "{name}: of {}", tally.requests);
    let expected = u64::from(name.starts_with(WITHOUT_TCP_CHECK));
    assert_eq!(rig.haproxy.reloads().await - reloads, expected, "{name}: reloads");
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_earlier_commits_are_kept_and_converted() {
    let mut recorded: Vec<_> = std::fs::read_dir(root().join("fixtures/upgrade"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "cfg"))
        .collect();
    recorded.sort();
    assert!(recorded.len() > 5, "{recorded:?}");
    for path in recorded {
        eprintln!("--- {}", path.display());
        is_taken_over(&path).await;
    }
}
