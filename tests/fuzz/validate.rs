//! HAProxy's own verdict on a file: `haproxy -c`.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use nomad_haproxy::desired::Owner;
use nomad_haproxy::haproxy::maps::to_text;
use nomad_haproxy::observed::Maps;

/// The installed series, with their executables.
pub fn series() -> &'static [(&'static str, PathBuf)] {
    static FOUND: OnceLock<Vec<(&str, PathBuf)>> = OnceLock::new();
    FOUND.get_or_init(|| {
        let tools = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/tools");
        let path = |series| (series, tools.join(format!("haproxy-{series}/sbin/haproxy")));
        ["3.0", "3.2", "3.4"].map(path).into_iter().filter(|(_, path)| path.exists()).collect()
    })
}

/// Whether it knows `init-state`.
pub fn has_init_state(at: usize) -> bool {
    series()[at].0 != "3.0"
}

/// A HAProxy that validates files.
pub struct Haproxy {
    executable: &'static PathBuf,
    folder: tempfile::TempDir,
}

impl Haproxy {
    pub fn new(at: usize) -> Self {
        Self { executable: &series()[at].1, folder: tempfile::tempdir().expect("a folder") }
    }

    /// Where it finds map files.
    pub fn folder(&self) -> String {
        self.folder.path().display().to_string()
    }

    /// Its message, if it refuses the file with these maps.
    pub fn refusal(&self, file: &[u8], maps: &Maps, owner: &Owner) -> Option<String> {
        for (map, entries) in &maps.files {
            let path = self.folder.path().join(map.file_name(owner));
            std::fs::write(path, to_text(entries, &map.frontend)).expect("the file can be written");
        }
        let path = self.folder.path().join("haproxy.cfg");
        std::fs::write(&path, file).expect("the file can be written");
        let mut command = Command::new(self.executable);
        command.arg("-c").arg("-f").arg(&path).stdin(Stdio::null()).env_remove("NOMAD");
        let output = command.output().expect("haproxy runs");
        // 2: valid, but without a listener.
        let is_taken = matches!(output.status.code(), Some(0 | 2));
        (!is_taken).then(|| String::from_utf8_lossy(&output.stderr).into_owned())
    }
}
