//! What a machine has of its own, for commands that change it: a copy of `/etc`, and empty folders of logs and of sockets,
//! which a mount namespace puts in the place of the real ones.

use std::fs;
use std::process::{Command, Output, Stdio};

use super::root;

pub struct Machine {
    folder: tempfile::TempDir,
}

/// Runs `$COMMAND` in the namespace. Only mounts are its own.
const ENTER: &str = r#"
    mount --bind "$MACHINE/etc" /etc
    mount -t tmpfs tmpfs /var/log
    mount -t tmpfs tmpfs /run
    mkdir /run/haproxy
    mount --bind "$MACHINE/haproxy" /run/haproxy
    exec sh -ec "$COMMAND"
"#;

impl Machine {
    /// With a HAProxy as Debian has it: its group, and its configuration.
    pub fn new(config: &[u8]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in ["haproxy", "etc"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        let copied = Command::new("cp").args(["--archive", "/etc/.", "--"]).arg(folder.path().join("etc")).output();
        // What this user may not read is not needed.
        drop(copied.unwrap());
        fs::create_dir_all(folder.path().join("etc/haproxy")).unwrap();
        fs::write(folder.path().join("etc/haproxy/haproxy.cfg"), config).unwrap();
        fs::write(folder.path().join("token"), "a token\n").unwrap();
        let machine = Self { folder };
        if Self::is_possible() {
            let output = machine.command("getent group haproxy || groupadd --system haproxy").output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
        machine
    }

    /// Whether this user may have one.
    pub fn is_possible() -> bool {
        Command::new("unshare").args(["--mount", "true"]).output().is_ok_and(|output| output.status.success())
    }

    /// A command that runs there, in the repository.
    pub fn command(&self, text: &str) -> Command {
        let text = text.replace("TOKEN-FILE", &self.folder.path().join("token").display().to_string());
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-ec", ENTER]).env("MACHINE", self.folder.path()).env("COMMAND", text);
        command.current_dir(root()).stdin(Stdio::null());
        command
    }

    pub async fn once(&self, text: &str) -> Output {
        let mut command = self.command(text);
        tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
    }
}
