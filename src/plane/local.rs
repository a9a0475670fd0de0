//! The configuration file and the master socket of a HAProxy on this machine.
//!
//! A structural write is: validate the new text in a file beside the old one, keep the old one as the
//! *last good*, rename, reload, and drop the last good one. Wherever that is cut short, the last good
//! file that still lies there says so, and the next start loads the new text or puts the old one back.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::process::Command;

use crate::desired::{Mark, State};
use crate::haproxy::socket;
use crate::haproxy::text::ConfigText;
use crate::haproxy::version::Version;
use crate::observed::Observed;
use crate::plan::{self, Action, Plan};

use super::{Committed, HaproxyInfo, Plane, PlaneError, Runtime, RuntimeServer, Staged};

/// For one command of the running process.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(10);
/// For a validation or a reload: HAProxy reads certificates and resolves names in it.
const LOAD_TIMEOUT: Duration = Duration::from_secs(60);

/// How this HAProxy is reached.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The file that HAProxy was started with (`-f`).
    pub config_file: PathBuf,
    /// The socket that it was started with (`-S`). Commands for the worker go through it too (`@1`).
    pub master_socket: PathBuf,
    /// The executable that validates.
    pub binary: PathBuf,
}

/// The local plane.
#[derive(Debug)]
pub struct Local {
    settings: Settings,
    mark: Mark,
}

impl Local {
    /// Takes the settings as they are; whether they are right, the first call shows.
    pub fn new(settings: Settings, mark: Mark) -> Self {
        Self { settings, mark }
    }

    /// The configuration file, links followed: a rename must replace the file, not the link.
    fn config_file(&self) -> Result<PathBuf, PlaneError> {
        let path = &self.settings.config_file;
        fs::canonicalize(path).map_err(|source| PlaneError::Refused {
            what: format!("cannot find HAProxy's configuration {}", path.display()),
            source: Some(source.into()),
        })
    }

    fn read(&self) -> Result<ConfigText, PlaneError> {
        let path = self.config_file()?;
        let text = fs::read_to_string(&path).map_err(|source| io("read", &path, source))?;
        Ok(ConfigText::new(&text))
    }

    fn last_good(config_file: &Path) -> PathBuf {
        beside(config_file, "last-good")
    }

    async fn worker(&self, command: &str) -> Result<String, PlaneError> {
        self.master(&format!("@1 {command}"), COMMAND_TIMEOUT).await
    }

    async fn master(&self, command: &str, timeout: Duration) -> Result<String, PlaneError> {
        let what = format!("HAProxy does not answer {command:?}");
        socket::command(&self.settings.master_socket, command, timeout)
            .await
            .map_err(|source| PlaneError::Unavailable { what, source: source.into() })
    }

    /// Asks the master to load the file. It answers when the new worker runs, or why there is none.
    async fn load(&self) -> Result<(), PlaneError> {
        let answer = self.master("reload", LOAD_TIMEOUT).await?;
        match answer.lines().next() {
            Some("Success=1") => Ok(()),
            _ => Err(PlaneError::ReloadFailed { message: alerts(&answer) }),
        }
    }

    /// Runs `haproxy -c` on a file.
    async fn check(&self, path: &Path) -> Result<(), PlaneError> {
        let binary = &self.settings.binary;
        let what = || format!("cannot validate with {}", binary.display());
        let run = Command::new(binary).arg("-c").arg("-f").arg(path).kill_on_drop(true).output();
        let output = tokio::time::timeout(LOAD_TIMEOUT, run)
            .await
            .map_err(|elapsed| PlaneError::Unavailable { what: what(), source: elapsed.into() })?
            .map_err(|source| PlaneError::Refused { what: what(), source: Some(source.into()) })?;
        if output.status.success() {
            return Ok(());
        }
        // The file that was checked has a name that nobody knows; its lines are those of the real one.
        let known = self.settings.config_file.to_string_lossy();
        let message = alerts(&String::from_utf8_lossy(&output.stderr)).replace(&*path.to_string_lossy(), &known);
        Err(PlaneError::Invalid { message })
    }

    /// Writes a validated text in the place of the one that was observed, at the next version.
    fn replace(&self, observed: &Observed, text: &ConfigText, keep: bool) -> Result<u64, PlaneError> {
        let path = self.config_file()?;
        let _lock = lock(&path)?;
        if self.read()?.to_string() != observed.text.to_string() {
            return Err(PlaneError::Conflict(format!("somebody else wrote {}", path.display())));
        }
        let version = observed.version + 1;
        let new = write_beside(&path, &text.clone().with_version(version))?;
        if keep {
            let last_good = Self::last_good(&path);
            write_beside(&path, &observed.text)?.persist(&last_good).map_err(|e| io("write", &last_good, e.error))?;
        }
        new.persist(&path).map_err(|error| io("replace", &path, error.error))?;
        sync_folder(&path)?;
        Ok(version)
    }

    /// Loads the file; if that fails, puts the last good one back.
    async fn load_or_restore(&self) -> Result<(), PlaneError> {
        let path = self.config_file()?;
        let last_good = Self::last_good(&path);
        match self.load().await {
            Ok(()) => fs::remove_file(&last_good).map_err(|source| io("remove", &last_good, source)),
            Err(error @ PlaneError::ReloadFailed { .. }) => {
                // The worker from before goes on: only the file has to go back.
                fs::rename(&last_good, &path).map_err(|source| io("restore", &last_good, source))?;
                sync_folder(&path)?;
                Err(error)
            }
            Err(error) => Err(error),
        }
    }

    async fn act(&self, action: &Action) -> Result<(), PlaneError> {
        let (command, answer_means_failure) = match action {
            Action::Address(backend, server, ip, port) => {
                (format!("set server {backend}/{server} addr {ip} port {port}"), false)
            }
            Action::State(backend, server, state) => {
                (format!("set server {backend}/{server} state {}", state.as_str()), true)
            }
            Action::Weight(backend, server, weight) => (format!("set server {backend}/{server} weight {weight}"), true),
        };
        let answer = self.worker(&command).await?;
        // A change of address is answered by what was changed; the others are answered by silence.
        let done = answer.is_empty()
            || (!answer_means_failure && (answer.contains("changed") || answer.contains("no need to change")));
        if done { Ok(()) } else { Err(PlaneError::HalfLive { message: format!("{command}: {answer}") }) }
    }
}

impl Plane for Local {
    async fn info(&self) -> Result<HaproxyInfo, PlaneError> {
        let answer = self.worker("show info").await?;
        let field = |name: &str| answer.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        let version = Version::gate(field("Version").unwrap_or(&answer))?;
        Ok(HaproxyInfo { version, pid: field("Pid").and_then(|pid| pid.parse().ok()).unwrap_or(0) })
    }

    async fn recover(&self) -> Result<(), PlaneError> {
        if !Self::last_good(&self.config_file()?).exists() {
            return Ok(());
        }
        tracing::warn!("an earlier write was cut short; loading it now");
        match self.load_or_restore().await {
            Err(error @ PlaneError::ReloadFailed { .. }) => {
                tracing::error!(error = %super::chain(&error), "put the last good configuration back");
                Ok(())
            }
            other => other,
        }
    }

    async fn observe(&self) -> Result<Observed, PlaneError> {
        let text = self.read()?;
        Ok(Observed::new(text.version().unwrap_or(0), text, &self.mark))
    }

    async fn stage(&self, observed: &Observed, plan: &Plan) -> Result<Staged, PlaneError> {
        Ok(Staged { text: plan::text::apply(plan, observed, &self.mark), transaction: None })
    }

    async fn commit(&self, observed: &Observed, staged: Staged) -> Result<Committed, PlaneError> {
        self.validate(&staged.text).await?;
        let version = self.replace(observed, &staged.text, true)?;
        self.load_or_restore().await?;
        Ok(Committed { version, reloaded: true })
    }

    async fn abort(&self, _staged: Staged) -> Result<(), PlaneError> {
        Ok(())
    }

    async fn commit_live(
        &self,
        observed: &Observed,
        text: &ConfigText,
        actions: &[Action],
    ) -> Result<Committed, PlaneError> {
        self.validate(text).await?;
        let version = self.replace(observed, text, false)?;
        for action in actions {
            self.act(action).await?;
        }
        Ok(Committed { version, reloaded: false })
    }

    async fn validate(&self, text: &ConfigText) -> Result<(), PlaneError> {
        let file = write_beside(&self.config_file()?, text)?;
        self.check(file.path()).await
    }

    async fn runtime(&self, _observed: &Observed) -> Result<Runtime, PlaneError> {
        Ok(parse_servers_state(&self.worker("show servers state").await?))
    }

    async fn reload(&self, observed: &Observed) -> Result<Committed, PlaneError> {
        self.load().await?;
        Ok(Committed { version: observed.version, reloaded: true })
    }
}

fn io(what: &str, path: &Path, source: std::io::Error) -> PlaneError {
    PlaneError::Refused { what: format!("cannot {what} {}", path.display()), source: Some(source.into()) }
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.nomad-haproxy.{suffix}"))
}

/// Keeps a second controller, or a second command, out while the file is replaced.
fn lock(path: &Path) -> Result<fs::File, PlaneError> {
    let path = beside(path, "lock");
    let file =
        fs::File::options().create(true).truncate(false).write(true).open(&path).map_err(|e| io("open", &path, e))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(PlaneError::Conflict(format!("{} is held", path.display()))),
        Err(fs::TryLockError::Error(source)) => Err(io("lock", &path, source)),
    }
}

/// A new file in the same folder, with the same owner and mode, its bytes on the disk. It is gone when
/// it is dropped.
fn write_beside(path: &Path, text: &ConfigText) -> Result<tempfile::NamedTempFile, PlaneError> {
    use std::os::unix::fs::{MetadataExt, chown};
    let write = || {
        let folder = path.parent().unwrap_or(Path::new("/"));
        let mut file = tempfile::Builder::new().prefix(".nomad-haproxy.").suffix(".cfg").tempfile_in(folder)?;
        let old = fs::metadata(path)?;
        let new = file.as_file().metadata()?;
        if (old.uid(), old.gid()) != (new.uid(), new.gid()) {
            chown(file.path(), Some(old.uid()), Some(old.gid()))?;
        }
        file.as_file().set_permissions(old.permissions())?;
        file.write_all(text.to_string().as_bytes())?;
        file.as_file().sync_all()?;
        Ok(file)
    };
    write().map_err(|source| io("write beside", path, source))
}

fn sync_folder(path: &Path) -> Result<(), PlaneError> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    fs::File::open(folder).and_then(|folder| folder.sync_all()).map_err(|source| io("sync", folder, source))
}

/// HAProxy's words, without what is only its log's form.
fn alerts(log: &str) -> String {
    let alert = |line: &str| Some(line.strip_prefix("[ALERT]")?.split_once(" : ")?.1.trim().to_owned());
    let alerts: Vec<String> = log.lines().filter_map(alert).collect();
    if alerts.is_empty() { log.trim().to_owned() } else { alerts.join("; ") }
}

/// Reads `show servers state` by its own header (management guide, 9.3).
fn parse_servers_state(answer: &str) -> Runtime {
    let mut columns: Vec<&str> = Vec::new();
    let mut servers = Runtime::new();
    for line in answer.lines() {
        if let Some(header) = line.strip_prefix("# ") {
            columns = header.split(' ').collect();
            continue;
        }
        let values: Vec<&str> = line.split(' ').collect();
        let field =
            |name: &str| columns.iter().position(|column| *column == name).and_then(|at| values.get(at).copied());
        let number = |name: &str| field(name).and_then(|value| value.parse::<u16>().ok());
        let (Some(backend), Some(server)) = (field("be_name"), field("srv_name")) else { continue };
        let Some(admin) = number("srv_admin_state") else { continue };
        // Forced or inherited maintenance, or by DNS; forced or inherited drain. 0x04 only says what the
        // file had at the start (include/haproxy/server-t.h, SRV_ADMF_*).
        let state = match admin {
            admin if admin & (0x01 | 0x02 | 0x20) != 0 => State::Maint,
            admin if admin & (0x08 | 0x10) != 0 => State::Drain,
            _ => State::Ready,
        };
        servers.insert(
            (backend.to_owned(), server.to_owned()),
            RuntimeServer {
                address: field("srv_addr").and_then(|address| address.parse().ok()),
                port: number("srv_port").unwrap_or(0),
                state,
                weight: number("srv_uweight"),
            },
        );
    }
    servers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_servers_state_is_read_by_its_header() {
        // As HAProxy 3.2.26 answered after `set server api/api_1 state ready`.
        let answer = "1\n# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight srv_iweight srv_time_since_last_change srv_check_status srv_check_result srv_check_health srv_check_state srv_agent_state bk_f_forced_id srv_f_forced_id srv_fqdn srv_port srvrecord srv_use_ssl srv_check_port srv_check_addr srv_agent_addr srv_agent_port\n3 api 1 api_1 127.0.0.1 0 4 9 100 1 1 0 2 6 0 0 0 - 9010 - 0 0 - - 0\n3 api 2 api_2 127.0.0.1 0 5 5 5 0 1 0 1 6 0 0 0 - 9008 - 0 0 - - 0";
        let runtime = parse_servers_state(answer);
        let server = |name: &str| runtime[&("api".to_owned(), name.to_owned())].clone();
        assert_eq!(
            server("api_1"),
            RuntimeServer { address: "127.0.0.1".parse().ok(), port: 9010, state: State::Ready, weight: Some(9) }
        );
        assert_eq!(server("api_2").state, State::Maint);
    }

    #[test]
    fn alerts_are_haproxys_words() {
        let log = "[NOTICE]   (1) : haproxy version is 3.0\n[ALERT]    (1) : config : [/a.cfg:3] : 'server x' : bad.\n";
        assert_eq!(alerts(log), "config : [/a.cfg:3] : 'server x' : bad.");
        assert_eq!(alerts("odd"), "odd");
    }
}
