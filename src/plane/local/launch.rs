//! How HAProxy was started, so that a text is validated as HAProxy itself would read it at a reload.
//!
//! `"${MAXCONN}"` in the file, a relative `errorfile`, a `defaults` section in another file: what `haproxy -c -f FILE`
//! says about a text depends on the environment, the folder and the arguments that it runs with. The settings give
//! them, else /proc does, for the process behind the master socket. What neither gives is as for this process, and a
//! refusal comes with a [hint](Launch::hint).

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use tokio::process::Command;

use super::LocalConfig;
use super::file::failed;
use super::process::{Process, Variable};
use crate::observed::Beside;
use crate::plane::AccessError;

const FILES: &str = "haproxy.files";
const WORKING_DIRECTORY: &str = "haproxy.working_directory";
const ENVIRONMENT_FILE: &str = "haproxy.environment_file";

/// How HAProxy was started, as far as it is known.
#[derive(Debug)]
pub(super) struct Launch {
    /// The files in HAProxy's order, with folders expanded. `None` is the one that we write.
    files: Vec<Option<PathBuf>>,
    /// Where relative paths among them start.
    base: PathBuf,
    options: Vec<OsString>,
    folder: Option<PathBuf>,
    environment: Option<Vec<Variable>>,
    /// From the settings; they override the environment.
    variables: Vec<Variable>,
    /// The settings that would give what is not known.
    unknown: Vec<&'static str>,
}

impl Launch {
    /// Reads the settings and the process. `file` is the configuration file, with links followed.
    pub(super) fn read(settings: &LocalConfig, file: &Path, process: Option<Process>) -> Result<Self, AccessError> {
        let LocalConfig { working_directory, environment_file, files, .. } = settings;
        if let Some(folder) = working_directory.as_ref().filter(|folder| !folder.is_dir()) {
            return Err(wrong(WORKING_DIRECTORY, &format!("{} is not a folder", folder.display())));
        }
        // A process is HAProxy if its arguments name this very file. In another PID namespace its ID may be another
        // process's.
        let seen = process.and_then(|process| {
            let files = expand(&process.arguments.files, &base(settings, Some(&process)), file).ok()?;
            files.contains(&None).then_some((files, process))
        });
        let (seen_files, seen) = seen.map_or((None, None), |(files, process)| (Some(files), Some(process)));
        let variables = environment_file.as_deref().map(read_environment).transpose()?;
        let base = base(settings, seen.as_ref());
        let set_files = (!files.is_empty()).then(|| set_files(settings, file, &base)).transpose()?;
        let files = set_files.or(seen_files);
        let mut launch = Self {
            unknown: files.is_none().then_some(FILES).into_iter().collect(),
            files: files.unwrap_or_else(|| vec![None]),
            base,
            options: Vec::new(),
            folder: working_directory.clone(),
            environment: None,
            variables: Vec::new(),
        };
        if let Some(Process { arguments, folder, environment }) = seen {
            launch.options = arguments.options;
            if launch.folder.is_none() {
                launch.folder = folder;
                launch.options.extend(arguments.change_to.into_iter().flat_map(|to| ["-C".into(), to.into()]));
            }
            launch.environment = environment;
        }
        launch.unknown.extend(launch.folder.is_none().then_some(WORKING_DIRECTORY));
        launch.unknown.extend((launch.environment.is_none() && variables.is_none()).then_some(ENVIRONMENT_FILE));
        launch.variables = variables.unwrap_or_default();
        Ok(launch)
    }

    /// Whether HAProxy reads other files beside ours, or may.
    pub(super) fn has_other_files(&self) -> bool {
        self.files.len() > 1 || self.unknown.contains(&FILES)
    }

    /// What the other files say, as far as they are known.
    pub(super) fn beside(&self) -> Result<Beside, AccessError> {
        if self.unknown.contains(&FILES) {
            return Ok(Beside::default());
        }
        let read = |file: &PathBuf| super::file::read(&self.base.join(file));
        let mut parts = self.files.split(Option::is_none);
        let mut texts = || parts.next().unwrap_or_default().iter().flatten().map(read).collect::<Result<Vec<_>, _>>();
        Ok(Beside::new(&texts()?, &texts()?))
    }

    /// The command that validates a candidate in place of our file.
    pub(super) fn command(self, binary: &Path, candidate: &Path) -> Command {
        // A path with a folder in it must not depend on the folder that the command runs in.
        let is_path = binary.components().count() > 1;
        let binary = is_path.then(|| std::path::absolute(binary).ok()).flatten().unwrap_or_else(|| binary.to_owned());
        let mut command = Command::new(binary);
        command.arg("-c").args(self.options);
        for file in &self.files {
            command.arg("-f").arg(file.as_deref().unwrap_or(candidate));
        }
        if let Some(folder) = self.folder {
            command.current_dir(folder);
        }
        if let Some(environment) = self.environment {
            command.env_clear().envs(environment);
            // The executable is searched for where this process would find it.
            command.envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
        }
        // Every reload reads the file with this set, whatever -c does by itself (seen on 3.0, 3.2 and 3.4): a file may
        // have `.if defined(HAPROXY_MWORKER)`.
        command.env("HAPROXY_MWORKER", "1").envs(self.variables);
        command
    }

    /// The settings that say what is not visible; `None`: everything is.
    pub(super) fn unknown(&self) -> Option<String> {
        let settings: Vec<String> = self.unknown.iter().map(|setting| format!("`{setting}`")).collect();
        (!settings.is_empty()).then(|| settings.join(", "))
    }

    /// What to set, if a refusal may only be caused by what is not known.
    pub(super) fn hint(&self) -> Option<String> {
        self.unknown().map(|settings| {
            format!(
                "hint: it is not visible here how HAProxy was started; if that makes the difference, set {settings}"
            )
        })
    }
}

/// The files in the settings; ours must be one of them.
fn set_files(settings: &LocalConfig, file: &Path, base: &Path) -> Result<Vec<Option<PathBuf>>, AccessError> {
    let files = expand(&settings.files, base, file).map_err(|source| AccessError::Refused {
        what: format!("{FILES}: cannot read what it names, from the folder {:?}", base.display()),
        source: Some(source.into()),
    })?;
    if files.contains(&None) {
        return Ok(files);
    }
    Err(wrong(FILES, &format!("it does not name {}, the file to write", settings.config_file.display())))
}

/// The folder that relative paths start from: from the settings, else where the process is, after its `-C`.
fn base(settings: &LocalConfig, process: Option<&Process>) -> PathBuf {
    if let Some(folder) = &settings.working_directory {
        return folder.clone();
    }
    let folder = process.and_then(|process| process.folder.clone()).unwrap_or_default();
    match process.and_then(|process| process.arguments.change_to.as_ref()) {
        Some(to) => folder.join(to),
        None => folder,
    }
}

/// Expands folders as HAProxy does (`cfgfiles_expand_directories` in src/haproxy.c): regular files that do not begin
/// with a dot and whose first `.cfg` is their end, sorted by bytes.
fn expand(files: &[PathBuf], base: &Path, ours: &Path) -> io::Result<Vec<Option<PathBuf>>> {
    let mut expanded = Vec::new();
    for file in files {
        if !fs::metadata(base.join(file))?.is_dir() {
            expanded.push(file.clone());
            continue;
        }
        let names = fs::read_dir(base.join(file))?.map(|entry| Ok(entry?.file_name()));
        let mut names = names.collect::<io::Result<Vec<OsString>>>()?;
        names.retain(|name| is_configuration(name.as_bytes()) && base.join(file).join(name).is_file());
        names.sort();
        expanded.extend(names.into_iter().map(|name| file.join(name)));
    }
    let is_ours = |path: &PathBuf| fs::canonicalize(base.join(path)).is_ok_and(|path| path == ours);
    Ok(expanded.into_iter().map(|path| (!is_ours(&path)).then_some(path)).collect())
}

fn is_configuration(name: &[u8]) -> bool {
    let first = name.windows(4).position(|part| part == b".cfg");
    !name.starts_with(b".") && first == name.len().checked_sub(4)
}

/// Lines of `NAME=VALUE`, as in systemd's `EnvironmentFile=`: blank lines and comments are skipped, quotes around a
/// value are removed. A message refers to a line by its number, as it may contain a secret.
fn read_environment(path: &Path) -> Result<Vec<Variable>, AccessError> {
    let bytes = fs::read(path).map_err(|source| failed(&format!("read the {ENVIRONMENT_FILE}"), path, source))?;
    let lines = bytes.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii).zip(1..);
    let lines = lines.filter(|(line, _)| !line.is_empty() && !line.starts_with(b"#") && !line.starts_with(b";"));
    let variable = |(line, number): (&[u8], usize)| {
        let wrong = || wrong(ENVIRONMENT_FILE, &format!("line {number} of {} is not NAME=VALUE", path.display()));
        let at = line.iter().position(|byte| *byte == b'=').filter(|at| *at > 0).ok_or_else(wrong)?;
        let value = match line[at + 1..].trim_ascii() {
            [b'"', value @ .., b'"'] | [b'\'', value @ .., b'\''] | value => value,
        };
        Ok((OsString::from_vec(line[..at].trim_ascii().to_vec()), OsString::from_vec(value.to_vec())))
    };
    lines.map(variable).collect()
}

fn wrong(setting: &str, why: &str) -> AccessError {
    AccessError::Refused { what: format!("{setting}: {why}"), source: None }
}

#[cfg(test)]
mod tests {
    use super::super::process::Arguments;
    use super::*;

    struct Case {
        folder: tempfile::TempDir,
        settings: LocalConfig,
    }

    impl Case {
        fn new(files: &[&str]) -> Self {
            let folder = tempfile::tempdir().expect("a folder");
            for file in files {
                let path = folder.path().join(file);
                fs::create_dir_all(path.parent().expect("a folder")).expect("made");
                fs::write(path, "").expect("written");
            }
            let settings = LocalConfig {
                config_file: folder.path().join(files[0]),
                master_socket: PathBuf::new(),
                binary: "haproxy".into(),
                working_directory: None,
                environment_file: None,
                files: Vec::new(),
                maps_dir: None,
            };
            Self { folder, settings }
        }

        fn process(&self, files: &[&str]) -> Process {
            let files = files.iter().map(PathBuf::from).collect();
            let options = vec!["-dr".into()];
            let folder = Some(self.folder.path().to_owned());
            let environment = Some(vec![("A".into(), "1".into())]);
            Process { arguments: Arguments { files, change_to: None, options }, folder, environment }
        }

        fn read(&self, process: Option<Process>) -> Result<Launch, AccessError> {
            let file = fs::canonicalize(&self.settings.config_file).expect("a file");
            Launch::read(&self.settings, &file, process)
        }

        /// The arguments of the command, and the variables that it sets.
        fn command(&self, process: Option<Process>) -> (Vec<String>, Vec<String>) {
            let command = self.read(process).expect("a launch").command(Path::new("haproxy"), Path::new("/new"));
            let text = |text: &std::ffi::OsStr| text.to_str().expect("UTF-8").to_owned();
            let variables = command.as_std().get_envs().filter(|(name, _)| *name != "PATH");
            let variables = variables.filter_map(|(name, value)| Some(format!("{}={}", text(name), text(value?))));
            (command.as_std().get_args().map(text).collect(), variables.collect())
        }
    }

    #[test]
    fn our_file_is_replaced_in_its_position() {
        let case = Case::new(&["conf.d/b.cfg", "global.cfg", "conf.d/a.cfg", "conf.d/.c.cfg", "conf.d/d.cfg.cfg"]);
        let (arguments, variables) = case.command(Some(case.process(&["global.cfg", "conf.d"])));
        assert_eq!(arguments, ["-c", "-dr", "-f", "global.cfg", "-f", "conf.d/a.cfg", "-f", "/new"]);
        assert_eq!(variables, ["A=1", "HAPROXY_MWORKER=1"]);
        assert_eq!(case.read(Some(case.process(&["conf.d"]))).expect("a launch").hint(), None);
    }

    #[test]
    fn a_process_that_does_not_have_our_file_is_not_haproxy() {
        let case = Case::new(&["haproxy.cfg", "other.cfg"]);
        for process in [None, Some(case.process(&["other.cfg"])), Some(case.process(&["no-such.cfg"]))] {
            let (arguments, variables) = case.command(process);
            assert_eq!((arguments.join(" ").as_str(), variables.len()), ("-c -f /new", 1));
        }
        let hint = case.read(None).expect("a launch").hint().expect("a hint");
        assert!([FILES, WORKING_DIRECTORY, ENVIRONMENT_FILE].iter().all(|setting| hint.contains(setting)), "{hint}");
    }

    #[test]
    fn another_user_s_process_shows_its_arguments_only() {
        let mut case = Case::new(&["haproxy.cfg"]);
        let file = case.settings.config_file.display().to_string();
        let process = |folder| Process { folder, environment: None, ..case.process(&[&file]) };
        let hint = case.read(Some(process(None))).expect("a launch").hint().expect("a hint");
        assert!(hint.contains(WORKING_DIRECTORY) && hint.contains(ENVIRONMENT_FILE) && !hint.contains(FILES), "{hint}");
        case.settings.working_directory = Some("/".into());
        let (arguments, _) = case.command(Some(Process { environment: None, ..case.process(&[&file]) }));
        assert_eq!(arguments, ["-c", "-dr", "-f", "/new"]);
    }

    #[test]
    fn the_settings_go_before_the_process() {
        let mut case = Case::new(&["haproxy.cfg", "environment", "more/x.cfg"]);
        let environment = case.folder.path().join("environment");
        fs::write(&environment, "# mine\n\nA = \"2 3\"\n; more\nB=\n").expect("written");
        case.settings.environment_file = Some(environment.clone());
        case.settings.files = vec!["x.cfg".into(), "../haproxy.cfg".into()];
        case.settings.working_directory = Some(case.folder.path().join("more"));
        let mut process = case.process(&["haproxy.cfg"]);
        process.arguments.change_to = Some("/".into());
        // The process is identified by its own folder; with another one set its arguments would lead nowhere.
        process.arguments.files = vec![case.settings.config_file.clone()];
        let (arguments, variables) = case.command(Some(process));
        assert_eq!(arguments, ["-c", "-dr", "-f", "x.cfg", "-f", "/new"]);
        assert_eq!(variables, ["A=2 3", "B=", "HAPROXY_MWORKER=1"]);
        fs::write(&environment, "A=1\ns3cret\n").expect("written");
        let error = case.read(None).expect_err("no such form").to_string();
        assert!(error.contains("line 2") && !error.contains("s3cret"), "{error}");
    }

    #[test]
    fn a_setting_that_cannot_be_right_is_named() {
        let mut case = Case::new(&["haproxy.cfg", "other.cfg"]);
        case.settings.files = vec![case.folder.path().join("other.cfg")];
        assert!(case.read(None).expect_err("ours is not there").to_string().contains("does not name"));
        case.settings.files = vec!["no-such.cfg".into()];
        assert!(case.read(None).expect_err("not there").to_string().starts_with(FILES));
        case.settings.working_directory = Some("/no/such/folder".into());
        assert!(case.read(None).expect_err("not there").to_string().starts_with(WORKING_DIRECTORY));
    }
}
