//! What the kernel reports about a running HAProxy: its arguments, its folder and its environment (proc(5)).

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// Variables that a master sets for itself when it re-executes itself for a reload. The command that validates must not
/// mistake itself for that master, wait for its workers or write to its descriptors (seen on 3.0, 3.2 and 3.4;
/// `mworker_reexec` in src/haproxy.c and src/mworker.c).
const OF_THE_MASTER: &[&str] = &[
    "HAPROXY_LOAD_SUCCESS",
    "HAPROXY_MWORKER_REEXEC",
    "HAPROXY_MWORKER_WAIT_ONLY",
    "HAPROXY_PROCESSES",
    "HAPROXY_STARTUPLOGS_FD",
    "NOTIFY_SOCKET",
];

/// One variable.
pub(super) type Variable = (OsString, OsString);

/// A process, as far as this user may read it.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) arguments: Arguments,
    /// Its working directory. `None`: it is another user's.
    pub(super) folder: Option<PathBuf>,
    /// Its environment. `None`: it is another user's.
    pub(super) environment: Option<Vec<Variable>>,
}

/// The part of a command line that affects how the configuration is read.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Arguments {
    /// The files and folders of `-f` and after `--`, as they were given.
    pub(super) files: Vec<PathBuf>,
    /// The folder that `-C` changes to before it reads them.
    pub(super) change_to: Option<PathBuf>,
    /// The other options, to be passed on.
    pub(super) options: Vec<OsString>,
}

impl Process {
    /// Reads `/proc/PID`. `None`: no such process is visible here, or it is just executing another program.
    pub(super) fn read(folder: &Path) -> Option<Self> {
        let cmdline = fs::read(folder.join("cmdline")).ok().filter(|cmdline| !cmdline.is_empty())?;
        let arguments = Arguments::parse(&cmdline);
        let working = fs::read_link(folder.join("cwd")).ok().filter(|path| path.is_dir());
        let environment = fs::read(folder.join("environ")).ok().map(|bytes| variables(&bytes));
        Some(Self { arguments, folder: working, environment })
    }
}

/// The process ID of the master, from its answer to `show proc` (management guide, 9.4.1).
pub(super) fn master(answer: &str) -> Option<u32> {
    answer.lines().find_map(|line| {
        let mut words = line.split_ascii_whitespace();
        let pid = words.next()?.parse().ok()?;
        (words.next()? == "master").then_some(pid)
    })
}

impl Arguments {
    /// Reads a command line as HAProxy does (`haproxy_init_args` in src/haproxy.c): an option is recognised by its
    /// first letters. After a reload there are also `-sf PIDS` and `-x SOCKET`, which are skipped, like those that only
    /// determine where the process runs, what it prints, and which sockets it opens.
    fn parse(cmdline: &[u8]) -> Self {
        let mut words = cmdline.split(|byte| *byte == 0).filter(|word| !word.is_empty()).skip(1).map(OsStr::from_bytes);
        let mut arguments = Self::default();
        while let Some(word) = words.next() {
            match word.as_bytes() {
                b"--" => arguments.files.extend(words.by_ref().map(PathBuf::from)),
                [b'-', b'f', ..] => arguments.files.extend(words.next().map(PathBuf::from)),
                [b'-', b'C', ..] => arguments.change_to = words.next().map(PathBuf::from),
                [b'-', b'L' | b'm' | b'n' | b'N', ..] => {
                    arguments.options.push(word.to_owned());
                    arguments.options.extend(words.next().map(OsStr::to_owned));
                }
                // Their values may begin with a dash.
                [b'-', b'S' | b'p' | b'x', ..] => drop(words.next()),
                // Names that are not resolved, certificates that are not verified, warnings that count, no
                // getaddrinfo(), forks allowed; IPv4 only.
                [b'-', b'd', b'r' | b'V' | b'W' | b'G' | b'I', ..] | [b'-', b'4', ..] => {
                    arguments.options.push(word.to_owned());
                }
                _ => {}
            }
        }
        arguments
    }
}

fn variables(environ: &[u8]) -> Vec<Variable> {
    let variable = |entry: &[u8]| {
        let at = entry.iter().position(|byte| *byte == b'=')?;
        let (name, value) = (&entry[..at], &entry[at + 1..]);
        let of_the_master = OF_THE_MASTER.iter().any(|master| master.as_bytes() == name);
        (!of_the_master).then(|| (OsString::from_vec(name.to_vec()), OsString::from_vec(value.to_vec())))
    };
    environ.split(|byte| *byte == 0).filter_map(variable).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(line: &str) -> (Vec<String>, Option<String>, Vec<String>) {
        let parsed = Arguments::parse(format!("{}\0", line.replace(' ', "\0")).as_bytes());
        let shown = |path: PathBuf| path.display().to_string();
        (
            parsed.files.into_iter().map(shown).collect(),
            parsed.change_to.map(shown),
            parsed.options.into_iter().map(|option| option.into_string().expect("UTF-8")).collect(),
        )
    }

    #[test]
    fn the_arguments_are_read_as_haproxy_reads_them() {
        // As a master of 3.4 has them after a reload.
        let (files, change_to, options) = arguments(
            "/usr/sbin/haproxy -sf 23519 23 -x sockpair@5 -Ws -S /run/m.sock,mode,600 -f a.cfg -dr -p -x -L me \
             -C /etc/haproxy -n 100 -q -db -dKcfg -4 -- b.cfg -f",
        );
        assert_eq!(files, ["a.cfg", "b.cfg", "-f"]);
        assert_eq!(change_to.as_deref(), Some("/etc/haproxy"));
        assert_eq!(options, ["-dr", "-L", "me", "-n", "100", "-4"]);
    }

    #[test]
    fn what_the_master_sets_for_itself_is_left_out() {
        let environ = b"MAXC=5\0HAPROXY_MWORKER_REEXEC=1\0EMPTY=\0HAPROXY_PROCESSES=|type=m;fd=6\0A=b=\xe9\0";
        let names: Vec<_> = variables(environ).into_iter().map(|(name, value)| [name, value]).collect();
        let word = |bytes: &[u8]| OsStr::from_bytes(bytes).to_owned();
        assert_eq!(names, [[word(b"MAXC"), word(b"5")], [word(b"EMPTY"), word(b"")], [word(b"A"), word(b"b=\xe9")]]);
    }

    #[test]
    fn the_master_is_found_in_show_proc() {
        let answer = "#<PID>          <type>          <reloads>       <uptime>        <version>\n\
                      23376           master          0 [failed: 0]   0d00h00m01s     3.0.11\n# workers\n\
                      23379           worker          0               0d00h00m01s     3.0.11\n";
        assert_eq!(master(answer), Some(23376));
        assert_eq!(master(""), None);
    }

    #[test]
    fn this_process_can_be_read_and_an_unknown_one_cannot() {
        let process = Process::read(Path::new("/proc/self")).expect("this process");
        assert!(process.folder.is_some() && process.environment.is_some());
        assert!(Process::read(Path::new("/proc/0")).is_none());
    }
}
