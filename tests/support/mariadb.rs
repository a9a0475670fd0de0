//! A real MariaDB, and a client that would notice if its one connection broke.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use mysql_async::prelude::Queryable;
use mysql_async::{Conn, OptsBuilder};
use tokio::task::JoinHandle;

use super::process::Group;
use super::{free_port, wait_for};

/// Where Debian's mariadb-server-core installs it, if it is installed.
pub fn binary() -> Option<PathBuf> {
    let path = Path::new("/usr/sbin/mariadbd");
    path.exists().then(|| path.to_owned())
}

pub struct MariaDb {
    pub port: u16,
    _group: Group,
    _folder: tempfile::TempDir,
}

impl MariaDb {
    pub async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (data, port) = (folder.path().join("data"), free_port());
        let user = if nix::unistd::geteuid().is_root() { "--user=root" } else { "--loose-skip-symbolic-links" };
        let install = Command::new("mariadb-install-db")
            .args(["--no-defaults", "--auth-root-authentication-method=normal", "--skip-test-db", user])
            .arg(format!("--datadir={}", data.display()))
            .stdout(Stdio::null())
            .status();
        assert!(install.unwrap().success(), "mariadb-install-db");
        let log = std::fs::File::create(folder.path().join("log")).unwrap();
        let mut command = Command::new(binary().expect("MariaDB is not here: run `make tools`"));
        command.args(["--no-defaults", "--bind-address=127.0.0.1", "--skip-grant-tables", "--skip-networking=0", user]);
        command.arg(format!("--datadir={}", data.display())).arg(format!("--port={port}"));
        command.arg(format!("--socket={}", folder.path().join("sock").display()));
        let group = Group::spawn(command.stdout(log.try_clone().unwrap()).stderr(log));
        let what = format!("MariaDB; its log is in {}", folder.path().join("log").display());
        wait_for(&what, Duration::from_secs(60), async || connect(port).await.ok()).await;
        Self { port, _group: group, _folder: folder }
    }
}

async fn connect(port: u16) -> mysql_async::Result<Conn> {
    let options =
        OptsBuilder::default().ip_or_hostname("127.0.0.1").tcp_port(port).user(Some("root")).prefer_socket(false);
    Conn::new(options).await
}

/// One connection with a query every 100 ms, which is never reopened.
pub struct Client {
    pub queries: Arc<AtomicU64>,
    task: JoinHandle<String>,
}

impl Client {
    pub async fn start(port: u16) -> Self {
        let mut connection =
            wait_for("a connection through HAProxy", Duration::from_secs(20), async || connect(port).await.ok()).await;
        let queries = Arc::new(AtomicU64::new(0));
        let counted = queries.clone();
        let task = tokio::spawn(async move {
            loop {
                match connection.query_first::<String, _>("SELECT NOW(6)").await {
                    Ok(Some(_)) => counted.fetch_add(1, Ordering::Relaxed),
                    other => return format!("{other:?}"),
                };
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
        Self { queries, task }
    }

    /// Whether it is open: one more query is answered.
    pub async fn answers(&self) -> bool {
        let before = self.queries.load(Ordering::Relaxed);
        let more = async || (self.queries.load(Ordering::Relaxed) > before || self.task.is_finished()).then_some(());
        wait_for("one more query", Duration::from_secs(20), more).await;
        !self.task.is_finished()
    }

    /// Panics if the connection has broken.
    pub fn still_there(&self) {
        assert!(
            !self.task.is_finished(),
            "the connection broke after {} queries",
            self.queries.load(Ordering::Relaxed)
        );
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.task.abort();
    }
}
