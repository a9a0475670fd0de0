//! A disk that can be filled.

/// A folder on a full disk. `None`: this user may not mount one.
pub struct FullDisk(tempfile::TempDir);

impl FullDisk {
    pub fn mount() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let mut mount = std::process::Command::new("mount");
        let done = mount.args(["-t", "tmpfs", "-o", "size=64k", "tmpfs"]).arg(folder.path()).output().unwrap();
        done.status.success().then(|| Self(folder))
    }

    pub fn path(&self) -> &std::path::Path {
        self.0.path()
    }

    pub fn fill(&self) {
        let (mut size, mut files) = (1 << 16, 0);
        while size > 0 {
            files += 1;
            let file = self.0.path().join(format!("filler-{files}"));
            if std::fs::write(&file, vec![0; size]).is_err() {
                let _ = std::fs::remove_file(&file);
                size /= 2;
            }
        }
    }

    pub fn clear(&self) {
        for entry in std::fs::read_dir(self.0.path()).unwrap().flatten() {
            if entry.file_name().to_string_lossy().starts_with("filler-") {
                std::fs::remove_file(entry.path()).unwrap();
            }
        }
    }
}

impl Drop for FullDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}
