//! Map files on this machine.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::desired::{Entry, Owner};
use crate::haproxy::maps::{self, MapFile};
use crate::observed::{Maps, Observed};
use crate::plane::{AccessError, WriteError};

use super::Local;
use super::file::{failed, rename, sync_folder, write_like};

/// The map files of ours in a folder. One that does not exist has none.
pub fn maps_in(folder: &Path, owner: &Owner) -> Result<Maps, AccessError> {
    let mut maps = Maps { folder: folder.display().to_string(), ..Maps::default() };
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(maps),
        Err(error) => return Err(failed("read", folder, error)),
    };
    for entry in entries {
        let entry = entry.map_err(|error| failed("read", folder, error))?;
        let name = entry.file_name();
        let Some(file) = name.to_str().and_then(|name| MapFile::from_file_name(name, owner)) else { continue };
        let bytes = fs::read(entry.path()).map_err(|error| failed("read", &entry.path(), error))?;
        maps.files.insert(file, maps::from_text(&String::from_utf8_lossy(&bytes)));
    }
    Ok(maps)
}

impl Local {
    /// The folder of map files: that of the setting, else that of the configuration.
    fn maps_folder(&self) -> Result<PathBuf, AccessError> {
        match &self.settings.maps_dir {
            Some(folder) => Ok(folder.into()),
            None => Ok(self.config_file()?.parent().unwrap_or(Path::new("/")).to_owned()),
        }
    }

    /// Reads the map files of ours; with `process` also what HAProxy has of them.
    pub(super) async fn read_maps(&self, observed: &Observed, process: bool) -> Result<Maps, AccessError> {
        let folder = self.maps_folder()?;
        let mut maps = maps_in(&folder, &observed.owner)?;
        if process {
            let mut loaded = BTreeMap::new();
            for file in maps.files.keys() {
                let path = folder.join(file.file_name(&observed.owner));
                loaded.insert(file.clone(), self.process().map(&path.display().to_string()).await?);
            }
            maps.process = loaded;
        }
        Ok(maps)
    }

    /// Replaces the file, then has the process agree with it.
    pub(super) async fn write_map(&self, file: &MapFile, entries: &[Entry]) -> Result<(), WriteError> {
        let folder = self.maps_folder()?;
        let shown = folder.display().to_string();
        if !maps::is_plain_folder(&shown) {
            let what = format!(
                "no map can be in {shown}, as a rule cannot name it: set haproxy.maps_dir (HAPROXY_MAPS_DIR) to a \
                 folder whose path has letters, digits and / - _ . + @ only"
            );
            return Err(AccessError::Refused { what, source: None }.into());
        }
        self.lease.check().await.map_err(AccessError::from)?;
        let path = folder.join(file.file_name(&self.owner));
        let bytes = maps::to_text(entries, &file.frontend).into_bytes();
        if fs::read(&path).ok().as_ref() != Some(&bytes) {
            rename(write_like(&self.config_file()?, &folder, &bytes)?, &path)?;
            sync_folder(&path)?;
        }
        self.process().set_map(&path.display().to_string(), file.kind, entries).await
    }

    /// Deletes the file.
    pub(super) async fn remove_map(&self, file: &MapFile) -> Result<(), WriteError> {
        self.lease.check().await.map_err(AccessError::from)?;
        let path = self.maps_folder()?.join(file.file_name(&self.owner));
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("delete", &path, error).into()),
            _ => Ok(()),
        }
    }
}
