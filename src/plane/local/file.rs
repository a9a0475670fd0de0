//! The configuration file is replaced in one step: a new file is written beside it, completely and synced to disk, and
//! renamed over it. A failure before the rename changes nothing.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::haproxy::text::ConfigText;
use crate::plane::{AccessError, WriteError};

/// The names of our own files beside the configuration. They begin with a dot: HAProxy skips such files when it reads a
/// folder (`-f FOLDER`).
pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.nomad-haproxy.{suffix}"))
}

/// The folder that a file is in.
pub(super) fn folder(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}

/// Locks out a second controller, or a second command, while the file is replaced.
pub(super) fn lock(path: &Path) -> Result<fs::File, WriteError> {
    let path = beside(path, "lock");
    let file = fs::File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(|source| unchanged("open", &path, source))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(WriteError::Conflict(format!("{} is held", path.display()))),
        Err(fs::TryLockError::Error(source)) => Err(unchanged("lock", &path, source).into()),
    }
}

/// A new file in the same folder, with the same owner and mode, synced to disk. It is removed when it is dropped.
pub(super) fn write_beside(path: &Path, bytes: &[u8]) -> Result<NamedTempFile, AccessError> {
    write_like(path, folder(path), bytes)
}

/// A new file in a folder, with the owner and mode of another file, synced to disk. It is removed when it is dropped.
pub(super) fn write_like(path: &Path, into: &Path, bytes: &[u8]) -> Result<NamedTempFile, AccessError> {
    let write = || {
        let mut file = tempfile::Builder::new().prefix(".nomad-haproxy.").suffix(".cfg").tempfile_in(into)?;
        let old = fs::metadata(path)?;
        let new = file.as_file().metadata()?;
        if (old.uid(), old.gid()) != (new.uid(), new.gid()) {
            chown(file.path(), Some(old.uid()), Some(old.gid()))?;
        }
        file.as_file().set_permissions(old.permissions())?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        Ok(file)
    };
    write().map_err(|source| match into == folder(path) {
        true => unchanged("write a new file beside", path, source),
        false => unchanged("write a new file in", into, source),
    })
}

/// Renames a new file to the name of another, or to a free name.
pub(super) fn rename(new: NamedTempFile, path: &Path) -> Result<(), AccessError> {
    new.persist(path).map(drop).map_err(|error| unchanged("replace", path, error.error))
}

/// Syncs the folder of the file to disk.
pub(super) fn sync_folder(path: &Path) -> Result<(), AccessError> {
    let synced = fs::File::open(folder(path)).and_then(|folder| folder.sync_all());
    synced.map_err(|source| failed("sync", folder(path), source))
}

/// Reads one file of HAProxy's configuration.
pub(super) fn read(path: &Path) -> Result<ConfigText, AccessError> {
    let bytes = fs::read(path).map_err(|source| failed("read", path, source))?;
    Ok(ConfigText::from_bytes(&bytes))
}

/// What could not be done with which file.
pub(super) fn failed(what: &str, path: &Path, source: io::Error) -> AccessError {
    AccessError::Refused { what: format!("cannot {what} {}", path.display()), source: Some(source.into()) }
}

/// The same, for a step before the file is replaced.
fn unchanged(what: &str, path: &Path, source: io::Error) -> AccessError {
    let hint = match source.kind() {
        io::ErrorKind::ResourceBusy => "; hint: a file that is a mount of its own cannot be replaced: mount its folder",
        _ => "",
    };
    let what = format!("cannot {what} {}; nothing was changed{hint}", path.display());
    AccessError::Refused { what, source: Some(source.into()) }
}
