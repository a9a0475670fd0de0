//! The demo itself, on a catalog file: on the local plane, and through a Data Plane API.

use std::process::Command;

use crate::support::api::{Rig, WAYS, Way};

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_ends_by_itself_with_every_request_answered() {
    for way in WAYS {
        let rig = Rig::start(way, "3.2").await;
        let demo = crate::support::nomad::hello_binary().with_file_name("demo");
        let mut command = Command::new(demo);
        command.args(["--once", "--catalog-file", "--haproxy"]).arg(&rig.haproxy.binary);
        if way == Way::Api {
            command.envs(rig.env());
        }
        let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
        for words in ["-backend hello", "version 2", ", 0 failed, 2 reloads"] {
            assert!(said.contains(words), "{words} in:\n{said}");
        }
    }
}
