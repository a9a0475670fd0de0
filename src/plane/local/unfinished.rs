//! A write that HAProxy has not loaded yet: the *last good* text, kept until it has.
//!
//! If a write is interrupted, the last good text is still beside the file. Its name contains a digest of the text that
//! replaced it: only that text, which is our own, may be replaced with the last good one. Anything else was written by
//! a person after the crash.

use std::fs;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::file::{beside, failed, folder, lock, rename, sync_folder, write_beside};
use crate::plane::{AccessError, WriteError};

const SUFFIX: &str = "last-good.";

/// A text that replaced the last good one, and may not be loaded.
#[derive(Debug)]
pub(super) struct Unfinished {
    /// The configuration file.
    file: PathBuf,
    /// The last good text.
    last_good: PathBuf,
    /// The digest of the text that replaced it.
    digest: String,
}

impl Unfinished {
    /// Keeps the text that is about to be replaced. It is synced to disk when this returns.
    pub(super) fn begin(file: &Path, last_good: &[u8], new: &[u8]) -> Result<Self, AccessError> {
        let digest = digest(new);
        let path = beside(file, &format!("{SUFFIX}{digest}"));
        rename(write_beside(file, last_good)?, &path)?;
        let unfinished = Self { file: file.to_owned(), last_good: path, digest };
        sync_folder(file).inspect_err(|_| unfinished.forget())?;
        Ok(unfinished)
    }

    /// The writes to this file that were interrupted: one, or none.
    pub(super) fn find(file: &Path) -> Result<Vec<Self>, AccessError> {
        let prefix = beside(file, SUFFIX);
        let prefix = prefix.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let entries = fs::read_dir(folder(file)).map_err(|source| failed("read", folder(file), source))?;
        let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
        let unfinished = paths.filter_map(|last_good| {
            let digest = last_good.file_name()?.to_str()?.strip_prefix(&prefix)?.to_owned();
            Some(Self { file: file.to_owned(), last_good, digest })
        });
        Ok(unfinished.collect())
    }

    /// Whether the file is exactly what we wrote, so that HAProxy may load it. If not, it stays as it is and the last
    /// good text is deleted.
    pub(super) fn is_in_place(&self) -> Result<bool, AccessError> {
        let read = |path: &Path| fs::read(path).map_err(|source| failed("read", path, source));
        let current = read(&self.file)?;
        if digest(&current) == self.digest {
            return Ok(true);
        }
        // Interrupted before the new text was in place: there is nothing to report.
        if current != read(&self.last_good)? {
            tracing::warn!(
                file = %self.file.display(),
                "an earlier write was cut short, and the file was edited since then: it stays as it is"
            );
        }
        self.forget();
        Ok(false)
    }

    /// Restores the last good text, unless the file was edited in the meantime.
    pub(super) fn put_back(&self) -> Result<(), WriteError> {
        let _lock = lock(&self.file)?;
        if self.is_in_place()? {
            let renamed = fs::rename(&self.last_good, &self.file);
            renamed.map_err(|source| failed("put the last good text back into", &self.file, source))?;
            sync_folder(&self.file)?;
        }
        Ok(())
    }

    /// The new text is loaded, or was never written: the last good one is no longer needed.
    pub(super) fn forget(&self) {
        // What is left is cleaned up at the next start.
        if let Err(error) = fs::remove_file(&self.last_good) {
            tracing::warn!(file = %self.last_good.display(), %error, "cannot remove the last good configuration");
        }
    }
}

fn digest(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Case {
        folder: tempfile::TempDir,
    }

    impl Case {
        fn new(text: &str) -> Self {
            let case = Self { folder: tempfile::tempdir().expect("a folder") };
            fs::write(case.file(), text).expect("written");
            case
        }

        fn file(&self) -> PathBuf {
            self.folder.path().join("haproxy.cfg")
        }

        fn text(&self) -> String {
            fs::read_to_string(self.file()).expect("read")
        }

        fn files(&self) -> usize {
            let names = fs::read_dir(self.folder.path()).expect("a folder").flatten().map(|entry| entry.file_name());
            names.filter(|name| !name.to_string_lossy().contains(".lock")).count()
        }

        /// What the next start finds.
        fn found(&self) -> Unfinished {
            let mut found = Unfinished::find(&self.file()).expect("a folder");
            assert_eq!(found.len(), 1);
            found.remove(0)
        }
    }

    #[test]
    fn our_own_text_goes_back_to_the_last_good_one() {
        let case = Case::new("old");
        Unfinished::begin(&case.file(), b"old", b"new").expect("kept");
        fs::write(case.file(), "new").expect("written");
        assert!(case.found().is_in_place().expect("read"));
        case.found().put_back().expect("put back");
        assert_eq!((case.text().as_str(), case.files()), ("old", 1));
    }

    #[test]
    fn an_edit_by_another_writer_is_kept() {
        for text in ["new, and a line of mine", "old, and a line of mine", ""] {
            let case = Case::new("old");
            Unfinished::begin(&case.file(), b"old", b"new").expect("kept");
            fs::write(case.file(), text).expect("written");
            case.found().put_back().expect("left");
            assert_eq!((case.text().as_str(), case.files()), (text, 1));
        }
    }

    #[test]
    fn a_write_that_never_took_place_is_forgotten() {
        let case = Case::new("old");
        Unfinished::begin(&case.file(), b"old", b"new").expect("kept");
        assert!(!case.found().is_in_place().expect("read"));
        assert_eq!((case.text().as_str(), case.files()), ("old", 1));
        // The files of another configuration in the same folder are not ours to delete.
        Unfinished::begin(&case.file(), b"old", b"new").expect("kept");
        let other = case.folder.path().join("other.cfg");
        fs::write(&other, "").expect("written");
        assert!(Unfinished::find(&other).expect("a folder").is_empty());
    }
}
