//! The configuration file and the master socket of a HAProxy on this machine.
//!
//! A structural write is: validate the new text in a file beside the old one, keep the old one as the *last good*,
//! rename, reload, and delete the last good one. If that is interrupted anywhere, the last good file is still there,
//! and the next start loads the new text or restores the old one.

mod file;
mod launch;
mod maps;
mod process;
mod unfinished;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;

use crate::desired::{BackendName, Entry, Owner};
use crate::haproxy::maps::MapFile;
use crate::haproxy::socket::{self, SocketAddress};
use crate::haproxy::stats::{Fields, Stats};
use crate::haproxy::text::ConfigText;
use crate::haproxy::version::Version;
use crate::leader::Lease;
use crate::observed::{Maps, Observed};
use crate::plan::{self, Action, Plan, Surplus};

use self::file::{lock, rename, sync_folder, write_beside};
use self::launch::Launch;
pub use self::maps::maps_in;
use self::process::Process;
use self::unfinished::Unfinished;
use super::worker::{COMMAND_TIMEOUT, Worker, is_read, unanswered};
use super::{
    AccessError, Capabilities, HaproxyInfo, Plane, Runtime, Staged, StateChange, Survey, Traffic, VALIDATION_TIMEOUT,
    Verdict, WriteError,
};

/// How this HAProxy is reached.
#[derive(Debug, Clone)]
pub struct LocalConfig {
    /// The file that HAProxy was started with (`-f`).
    pub config_file: PathBuf,
    /// The socket that it was started with (`-S`). Commands for the worker use it too (`@1`).
    pub master_socket: PathBuf,
    /// The executable that validates.
    pub binary: PathBuf,
    /// HAProxy's working directory; `None`: read it from /proc.
    pub working_directory: Option<PathBuf>,
    /// Lines of `NAME=VALUE` that override HAProxy's environment, as far as /proc shows it.
    pub environment_file: Option<PathBuf>,
    /// All files and folders that HAProxy was started with, in its order; empty: read them from /proc.
    pub files: Vec<PathBuf>,
    /// The folder of map files; `None`: that of the configuration file.
    pub maps_dir: Option<String>,
}

/// The local plane.
#[derive(Debug)]
pub struct Local {
    settings: LocalConfig,
    owner: Owner,
    validation_timeout: Duration,
    /// Whether the version is removed from a file in which nothing is ours any more.
    without_version: bool,
    lease: Lease,
}

impl Local {
    /// Accepts the settings as they are; the first call shows whether they are correct.
    pub fn new(settings: LocalConfig, owner: Owner) -> Self {
        let (validation_timeout, lease) = (VALIDATION_TIMEOUT, Lease::ALWAYS);
        Self { settings, owner, validation_timeout, without_version: false, lease }
    }

    /// Writes for as long as this is good, instead of always.
    #[must_use]
    pub fn leased(self, lease: Lease) -> Self {
        Self { lease, ..self }
    }

    /// Leaves a file in which nothing is ours as it was before the first write: without the version that this plane
    /// added. The Data Plane API needs its own, and has a comment in the files that it writes.
    #[must_use]
    pub fn without_version(self) -> Self {
        Self { without_version: true, ..self }
    }

    /// What is written: the text at the next version.
    fn versioned(&self, observed: &Observed, text: &ConfigText) -> ConfigText {
        let is_ours_alone = || {
            let after = observed.again(text.clone());
            !text.is_the_apis() && after.marked().next().is_none()
        };
        let text = text.clone();
        if self.without_version && is_ours_alone() {
            text.without_version()
        } else {
            text.with_version(observed.version + 1)
        }
    }

    /// Sets how long one validation may take.
    #[must_use]
    pub fn validating_within(self, validation_timeout: Duration) -> Self {
        Self { validation_timeout, ..self }
    }

    /// The configuration file, with links resolved: a rename must replace the file, not the link.
    fn config_file(&self) -> Result<PathBuf, AccessError> {
        let path = &self.settings.config_file;
        fs::canonicalize(path).map_err(|source| AccessError::Refused {
            what: format!("cannot find HAProxy's configuration {}", path.display()),
            source: Some(source.into()),
        })
    }

    fn read(&self) -> Result<ConfigText, AccessError> {
        file::read(&self.config_file()?)
    }

    fn process(&self) -> Worker {
        Worker::of_master(SocketAddress::Path(self.settings.master_socket.clone()), self.lease.clone())
    }

    async fn worker(&self, command: &str) -> Result<String, AccessError> {
        self.process().command(command).await
    }

    async fn master(&self, command: &str, timeout: Duration) -> Result<String, AccessError> {
        if !is_read(command) {
            self.lease.check().await?;
        }
        let answer = socket::command(&self.settings.master_socket, command, timeout).await;
        answer.map_err(|source| unanswered(command, source))
    }

    /// Has the master load the file. It answers when the new worker runs, or with the reason why there is none.
    async fn load(&self) -> Result<(), WriteError> {
        // A new worker does everything that a validation does, and more.
        let answer = self.master("reload", self.validation_timeout * 2).await?;
        match answer.lines().next() {
            Some("Success=1") => Ok(()),
            // A reload by somebody else ends all connections to the master (management guide, 9.4).
            None => Err(AccessError::Unavailable {
                what: "HAProxy's master did not say whether it has loaded the configuration".to_owned(),
                source: std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into(),
            }
            .into()),
            Some(_) => Err(WriteError::ReloadFailed { message: alerts(&answer) }),
        }
    }

    /// How HAProxy was started, from the settings and /proc.
    async fn launch(&self) -> Result<Launch, AccessError> {
        // While the master executes itself anew for a reload, the kernel shows no arguments of it. The new one answers.
        let process = match self.seen_process().await? {
            None => self.seen_process().await?,
            seen => seen,
        };
        Launch::read(&self.settings, &self.config_file()?, process)
    }

    /// HAProxy's master, if it is visible here.
    async fn seen_process(&self) -> Result<Option<Process>, AccessError> {
        let answer = self.master("show proc", COMMAND_TIMEOUT).await?;
        let folder = process::master(&answer).map(|pid| Path::new("/proc").join(pid.to_string()));
        Ok(folder.and_then(|folder| Process::read(&folder)))
    }

    /// Runs `haproxy -c` on a file, as if it were the configuration.
    async fn check(&self, path: &Path) -> Result<Verdict, AccessError> {
        let binary = &self.settings.binary;
        let what = || format!("cannot validate with {}", binary.display());
        let launch = self.launch().await?;
        let hint = launch.hint();
        let run = launch.command(binary, path).kill_on_drop(true).output();
        let Ok(output) = tokio::time::timeout(self.validation_timeout, run).await else {
            return Ok(Verdict::TooLong(self.validation_timeout));
        };
        let output = output.map_err(|source| AccessError::Refused { what: what(), source: Some(source.into()) })?;
        if output.status.success() {
            return Ok(Verdict::Valid);
        }
        // The checked file has a temporary name; its line numbers are those of the real one.
        let (known, path) = (self.settings.config_file.to_string_lossy(), path.to_string_lossy());
        let message = lines_of(&alerts(&String::from_utf8_lossy(&output.stderr)), &path).replace(&*path, &known);
        Ok(Verdict::Refused(std::iter::once(message).chain(hint).collect::<Vec<_>>().join("; ")))
    }

    /// Replaces the text that was observed with a validated one, at the next version. If it is to be loaded, the text
    /// from before is kept until then.
    async fn replace(
        &self,
        observed: &Observed,
        text: &ConfigText,
        load: bool,
    ) -> Result<Option<Unfinished>, WriteError> {
        // The validation before may have taken a minute. From here to the rename nothing is waited for.
        self.lease.check().await.map_err(AccessError::from)?;
        let path = self.config_file()?;
        let _lock = lock(&path)?;
        if self.read()? != observed.text {
            return Err(WriteError::Conflict(format!("another program wrote {}", path.display())));
        }
        let bytes = self.versioned(observed, text).to_bytes();
        let new = write_beside(&path, &bytes)?;
        let unfinished = load.then(|| Unfinished::begin(&path, &observed.text.to_bytes(), &bytes)).transpose()?;
        let renamed = rename(new, &path);
        if let (Err(_), Some(unfinished)) = (&renamed, &unfinished) {
            unfinished.forget();
        }
        renamed?;
        sync_folder(&path)?;
        Ok(unfinished)
    }

    /// Loads the file; if that fails, restores the last good one.
    async fn load_or_put_back(&self, unfinished: &Unfinished) -> Result<(), WriteError> {
        let loaded = self.load().await;
        match &loaded {
            Ok(()) => unfinished.forget(),
            // The old worker keeps running: only the file has to be restored.
            Err(WriteError::ReloadFailed { .. }) => unfinished.put_back()?,
            // It may still be loaded: the next pass finds out.
            Err(_) => {}
        }
        loaded
    }
}

#[async_trait]
impl Plane for Local {
    async fn info(&self) -> Result<HaproxyInfo, AccessError> {
        let answer = self.worker("show info").await?;
        let field = |name: &str| answer.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        let figure = |name: &str| field(name).and_then(|figure| figure.parse::<u64>().ok());
        let Some(release) = field("Version") else {
            // The master answers for a worker that is not there.
            return Err(AccessError::NotRunning {
                what: "HAProxy's master answers, but its worker does not".to_owned(),
                is_connected: true,
                source: answer.into(),
            });
        };
        Ok(HaproxyInfo {
            version: Version::gate(release)?,
            release: release.to_owned(),
            pid: figure("Pid").unwrap_or(0),
            uptime: figure("Uptime_sec").map(Duration::from_secs),
            traffic: Traffic {
                connections: figure("CurrConns"),
                connections_total: figure("CumConns"),
                connection_rate: figure("ConnRate"),
                connection_limit: figure("Maxconn"),
                requests_total: figure("CumReq"),
            },
        })
    }

    async fn capabilities(&self, info: &HaproxyInfo) -> Result<Capabilities, AccessError> {
        // A master socket that can reload can do everything.
        Ok(Capabilities::of_socket(info.version))
    }

    async fn examine(&self) -> Result<Option<String>, AccessError> {
        let level = self.worker("show cli level").await?;
        if level != "admin" {
            let what = format!(
                "haproxy.master_socket (HAPROXY_MASTER_SOCKET): {socket} has the level {level}, and it takes admin to \
                 change servers; hint: start HAProxy with `-S {socket}` without `level,{level}`",
                socket = self.settings.master_socket.display()
            );
            return Err(AccessError::Refused { what, source: None });
        }
        Ok(self.launch().await?.unknown().map(|settings| {
            format!(
                "it is not visible here how HAProxy was started, so it may read its files in another way than a \
                 validation does; hint: set {settings}"
            )
        }))
    }

    async fn stats(&self, fields: Fields) -> Result<Stats, AccessError> {
        Stats::from_csv(&self.process().command("show stat").await?, fields).map_err(|source| {
            AccessError::Unavailable { what: "HAProxy does not say what it counts".to_owned(), source: source.into() }
        })
    }

    async fn recover(&self) -> Result<(), WriteError> {
        for unfinished in Unfinished::find(&self.config_file()?)? {
            if !unfinished.is_in_place()? {
                continue;
            }
            tracing::warn!("an earlier write was cut short; loading it now");
            match self.load_or_put_back(&unfinished).await {
                Err(error @ WriteError::ReloadFailed { .. }) => {
                    tracing::error!(error = %crate::errors::chain(&error), "put the last good configuration back");
                }
                other => other?,
            }
        }
        Ok(())
    }

    async fn observe(&self) -> Result<Observed, AccessError> {
        let text = self.read()?;
        let observed = Observed::new(text.version().unwrap_or(0), text, &self.owner);
        if !observed.needs_others {
            return Ok(observed);
        }
        Ok(observed.with_beside(self.launch().await?.beside()?))
    }

    async fn maps(&self, observed: &Observed, process: bool) -> Result<Maps, AccessError> {
        self.read_maps(observed, process).await
    }

    async fn put_map(&self, _folder: &str, file: &MapFile, entries: &[Entry]) -> Result<(), WriteError> {
        self.write_map(file, entries).await
    }

    async fn delete_map(&self, file: &MapFile) -> Result<(), WriteError> {
        self.remove_map(file).await
    }

    async fn stage(&self, observed: &Observed, plan: &Plan) -> Result<Staged, WriteError> {
        Ok(Staged { text: plan::text::apply(plan, observed, &self.owner), transaction: None })
    }

    async fn survey(&self, _observed: &Observed) -> Result<Survey, WriteError> {
        // Only our own lines are written.
        Ok(Survey::default())
    }

    async fn commit(&self, observed: &Observed, staged: Staged) -> Result<(), WriteError> {
        self.must_be_valid(&staged.text).await?;
        if let Some(unfinished) = self.replace(observed, &staged.text, true).await? {
            self.load_or_put_back(&unfinished).await?;
        }
        Ok(())
    }

    async fn abort(&self, _staged: Staged) -> Result<(), AccessError> {
        Ok(())
    }

    async fn commit_live(&self, observed: &Observed, text: &ConfigText, actions: &[Action]) -> Result<(), WriteError> {
        if *text != observed.text {
            self.must_be_valid(text).await?;
            self.replace(observed, text, false).await?;
        }
        self.process().act(actions).await
    }

    async fn validate(&self, text: &ConfigText) -> Result<Verdict, AccessError> {
        self.verdict(&text.without_maps()).await
    }

    async fn runtime(&self, observed: &Observed) -> Result<Runtime, AccessError> {
        let mut runtime = self.process().runtime(observed).await?;
        // What this file lacks may be in another one.
        if !runtime.unknown_backends(observed).is_empty() && self.launch().await?.has_other_files() {
            runtime.backends.iter_mut().for_each(|all| all.retain(|name, _| observed.backends.contains_key(name)));
        }
        Ok(runtime)
    }

    async fn set_state(&self, change: &StateChange) -> Result<(), AccessError> {
        let StateChange { backend, server, state } = change;
        let command = format!("set server {backend}/{server} state {}", state.as_str());
        let answer = self.worker(&command).await?;
        // A server or a backend that the process lacks is out anyway.
        if answer.is_empty() || answer.starts_with("No such") {
            return Ok(());
        }
        Err(AccessError::Unavailable { what: format!("HAProxy refuses {command:?}"), source: answer.into() })
    }

    async fn unpublish(&self, backend: &BackendName) -> Result<(), AccessError> {
        self.process().unpublish(backend).await
    }

    async fn remove(&self, surplus: &Surplus) -> Result<bool, AccessError> {
        self.process().remove(surplus).await
    }

    async fn reload(&self, _observed: &Observed) -> Result<(), WriteError> {
        self.load().await
    }
}

impl Local {
    async fn verdict(&self, text: &ConfigText) -> Result<Verdict, AccessError> {
        let file = write_beside(&self.config_file()?, &text.to_bytes())?;
        self.check(file.path()).await
    }

    async fn must_be_valid(&self, text: &ConfigText) -> Result<(), WriteError> {
        match self.verdict(text).await? {
            Verdict::Valid => Ok(()),
            Verdict::Refused(message) => Err(WriteError::Invalid { message }),
            Verdict::TooLong(limit) => Err(WriteError::TooLong { limit }),
        }
    }
}

/// Spells `[FILE:LINE]` out for all files but this one: only lines of this one are looked up by their numbers.
fn lines_of(message: &str, file: &str) -> String {
    let mut parts = message.split('[');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| {
        let place = part.split_once(']').and_then(|(place, rest)| Some((place.rsplit_once(':')?, rest)));
        match place {
            Some(((other, line), rest)) if other != file && line.parse::<usize>().is_ok() => {
                text + &format!("[{other}, line {line}]{rest}")
            }
            _ => text + "[" + part,
        }
    })
}

/// HAProxy's message, without the formatting of its log.
fn alerts(log: &str) -> String {
    let alert = |line: &str| Some(line.strip_prefix("[ALERT]")?.split_once(" : ")?.1.trim().to_owned());
    let alerts: Vec<String> = log.lines().filter_map(alert).collect();
    if alerts.is_empty() { log.trim().to_owned() } else { alerts.join("; ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alerts_are_haproxys_words() {
        let log = "[NOTICE]   (1) : haproxy version is 3.0\n[ALERT]    (1) : config : [/a.cfg:3] : 'server x' : bad.\n";
        assert_eq!(alerts(log), "config : [/a.cfg:3] : 'server x' : bad.");
        assert_eq!(alerts("odd"), "odd");
    }

    #[test]
    fn only_lines_of_the_checked_file_are_named_by_their_numbers() {
        let said = "Parsing [/conf.d/90.cfg:12]: 'api' has the same name as the one at [/conf.d/.new:40], [x]";
        let expected =
            "Parsing [/conf.d/90.cfg, line 12]: 'api' has the same name as the one at [/conf.d/.new:40], [x]";
        assert_eq!(lines_of(said, "/conf.d/.new"), expected);
    }
}
