//! Map files of the Data Plane API: `storage/maps` is the file, `runtime/maps/NAME/entries` the process.

use futures_util::stream::{self, StreamExt, TryStreamExt};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::desired::{Entry, MapKind};
use crate::haproxy::maps::{self, MapFile};
use crate::observed::{Maps, Observed};

use super::super::maps::{MapChange, parts};
use super::super::{AccessError, WriteError};
use super::client::{Body, refused, unavailable};
use super::{Dataplane, RuntimeSocket};

const STORAGE: &str = "/v3/services/haproxy/storage/maps";
const RUNTIME: &str = "/v3/services/haproxy/runtime/maps";
/// Where the API keeps maps if nothing says otherwise (its `maps_dir`).
pub const FOLDER: &str = "/etc/haproxy/maps";
/// Bytes of entries in one request. With 8192 or more, as it counts them, the API replaces all entries instead of adding
/// these (`maxBufSize` in client-native, runtime/runtime_client.go; 3.0, 3.2 and 3.4).
const MAX_PAYLOAD: usize = 6000;
/// Requests at a time.
const CONCURRENCY: usize = 8;
/// How often the process is asked and changed before this gives up.
const ATTEMPTS: usize = 3;

impl Dataplane {
    /// Reads the map files of ours, if a rule names one or all is to be looked at.
    pub(super) async fn read_maps(&self, observed: &Observed, process: bool) -> Result<Maps, AccessError> {
        let mut folders = observed.frontends.values().flat_map(crate::observed::Frontend::folders);
        let named = folders.next();
        let folder = self.maps_dir.clone().or(named.clone()).unwrap_or_else(|| FOLDER.to_owned());
        let mut maps = Maps { folder, ..Maps::default() };
        if named.is_none() && !process {
            return Ok(maps);
        }
        let answer = self.client.send(Method::GET, STORAGE, &[], Body::default()).await?;
        if answer.status == StatusCode::NOT_FOUND {
            return Ok(maps);
        }
        if !answer.status.is_success() {
            return Err(unavailable(&format!("GET {STORAGE}"), &answer));
        }
        let listed = answer.json()?;
        let paths: Vec<&str> = listed.as_array().into_iter().flatten().filter_map(|map| map["file"].as_str()).collect();
        if let Some((folder, _)) = paths.first().and_then(|path| path.rsplit_once('/')) {
            folder.clone_into(&mut maps.folder);
        }
        for name in paths.iter().filter_map(|path| path.rsplit('/').next()) {
            let Some(file) = MapFile::from_file_name(name, &observed.owner) else { continue };
            let content = self.client.get(&format!("{STORAGE}/{name}"), &[]).await?;
            let entries = maps::from_text(&String::from_utf8_lossy(&content.body));
            if process {
                maps.process.insert(file.clone(), self.map_in_process(&maps.folder, name).await?);
            }
            maps.files.insert(file, entries);
        }
        Ok(maps)
    }

    /// Writes the file, then has the process agree with it. [`WriteError::NotLive`]: the process needs a reload for that.
    pub(super) async fn write_map(&self, folder: &str, file: &MapFile, entries: &[Entry]) -> Result<(), WriteError> {
        let name = file.file_name(&self.owner);
        self.write_file(folder, &name, maps::to_text(entries, &file.frontend)).await?;
        if let Some(worker) = self.socket.as_ref().and_then(RuntimeSocket::worker) {
            return worker.set_map(&format!("{folder}/{name}"), file.kind, entries).await;
        }
        for _ in 0..ATTEMPTS {
            let Some(now) = self.map_in_process(folder, &name).await? else { return Ok(()) };
            if file.kind.is_same(&now, entries) {
                return Ok(());
            }
            let change = MapChange::new(&now, entries).filter(|change| is_possible(file.kind, change, &now, entries));
            let Some(change) = change else {
                return Err(WriteError::NotLive("the Data Plane API cannot change the order of a map's entries"));
            };
            self.change_map(&name, change).await?;
        }
        Err(WriteError::HalfLive { message: format!("the map {name} has other entries than were set") })
    }

    /// Deletes the file. The API refuses that as long as the configuration names it.
    pub(super) async fn remove_map(&self, file: &MapFile) -> Result<(), WriteError> {
        let path = format!("{STORAGE}/{}", file.file_name(&self.owner));
        let answer = self.client.send(Method::DELETE, &path, &[], Body::default()).await?;
        match answer.status {
            status if status.is_success() || status == StatusCode::NOT_FOUND => Ok(()),
            _ => Err(refused("the end of a map", &answer)),
        }
    }

    async fn write_file(&self, folder: &str, name: &str, text: String) -> Result<(), WriteError> {
        let path = format!("{STORAGE}/{name}");
        let known = self.client.send(Method::GET, &path, &[], Body::default()).await?;
        if known.status == StatusCode::NOT_FOUND {
            return self.create_file(folder, name, text).await;
        }
        if known.status.is_success() && known.body == text.as_bytes() {
            return Ok(());
        }
        let body = Body { text: Some(text.into_bytes()), ..Body::default() };
        let answer = self.client.send(Method::PUT, &path, &[("skip_reload", "true")], body).await?;
        if answer.status.is_success() { Ok(()) } else { Err(refused("the write of a map", &answer)) }
    }

    async fn create_file(&self, folder: &str, name: &str, text: String) -> Result<(), WriteError> {
        let body = Body { upload: Some((name.to_owned(), text)), ..Body::default() };
        let answer = self.client.send(Method::POST, STORAGE, &[], body).await?;
        if !answer.status.is_success() {
            return Err(refused("a new map", &answer));
        }
        let created = answer.json()?;
        match created["file"].as_str() {
            // The rules that were planned name another folder; the next round knows this one.
            Some(path) if path != format!("{folder}/{name}") => {
                Err(WriteError::Conflict(format!("the Data Plane API keeps its maps elsewhere: {path}")))
            }
            _ => Ok(()),
        }
    }

    /// A map in the process; `None`: it does not know the file.
    async fn map_in_process(&self, folder: &str, name: &str) -> Result<Option<Vec<Entry>>, AccessError> {
        if let Some(worker) = self.socket.as_ref().and_then(RuntimeSocket::worker) {
            return worker.map(&format!("{folder}/{name}")).await;
        }
        let path = format!("{RUNTIME}/{name}/entries");
        let answer = self.client.send(Method::GET, &path, &[], Body::default()).await?;
        if answer.status == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        if !answer.status.is_success() {
            return Err(unavailable(&format!("GET {path}"), &answer));
        }
        let entry = |entry: &Value| {
            let text = |key: &str| entry[key].as_str().map(str::to_owned);
            Some((text("key")?, text("value")?))
        };
        Ok(Some(answer.json()?.as_array().into_iter().flatten().filter_map(entry).collect()))
    }

    /// Adds in few requests, then changes and removes one by one: the API has no request for several.
    async fn change_map(&self, name: &str, change: MapChange) -> Result<(), WriteError> {
        let MapChange { add, set, remove } = change;
        for part in parts(&add, MAX_PAYLOAD) {
            let body = Body { json: Some(to_json(part)), ..Body::default() };
            let answer = self.client.send(Method::PUT, &format!("{RUNTIME}/{name}"), &[], body).await?;
            if !answer.status.is_success() {
                return Err(half("new entries of a map", &answer.message()));
            }
        }
        let set = set.into_iter().map(|(key, value)| (Method::PUT, key, Some(json!({ "value": value }))));
        let remove = remove.into_iter().map(|key| (Method::DELETE, key, None));
        let asked: Vec<_> = set.chain(remove).map(|(method, key, json)| self.entry(name, method, key, json)).collect();
        stream::iter(asked).buffered(CONCURRENCY).try_collect::<Vec<()>>().await?;
        Ok(())
    }

    async fn entry(&self, name: &str, method: Method, key: String, json: Option<Value>) -> Result<(), WriteError> {
        let path = format!("{RUNTIME}/{name}/entries/{}", utf8_percent_encode(&key, NON_ALPHANUMERIC));
        let answer = self.client.send(method, &path, &[], Body { json, ..Body::default() }).await?;
        match answer.status {
            status if status.is_success() || status == StatusCode::NOT_FOUND => Ok(()),
            _ => Err(half(&format!("the entry {key} of a map"), &answer.message())),
        }
    }
}

/// Whether single changes lead to these entries: of a map whose order counts only at its end, and without keys that the
/// API does not take in a path.
fn is_possible(kind: MapKind, change: &MapChange, now: &[Entry], wanted: &[Entry]) -> bool {
    let MapChange { add, set, remove } = change;
    let is_key = |key: &String| !key.contains(['*', ';', '$', '#', '&', '{', '}', '"', '<', '>', '\\', '|']);
    if !remove.iter().chain(set.iter().map(|(key, _)| key)).all(is_key) {
        return false;
    }
    let left = now.iter().filter(|(key, _)| !remove.contains(key)).map(|(key, _)| key);
    !kind.is_ordered() || left.chain(add.iter().map(|(key, _)| key)).eq(wanted.iter().map(|(key, _)| key))
}

fn half(what: &str, message: &str) -> WriteError {
    WriteError::HalfLive { message: format!("{what}: {message}") }
}

/// The entries as the API takes them.
fn to_json(entries: &[Entry]) -> Value {
    entries.iter().map(|(key, value)| json!({ "key": key, "value": value })).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(keys: &[&str]) -> Vec<Entry> {
        keys.iter().map(|key| ((*key).to_owned(), "b".to_owned())).collect()
    }

    #[test]
    fn what_the_api_cannot_do_entry_by_entry_takes_a_reload() {
        let is = |kind, now: &[&str], wanted: &[&str]| {
            let (now, wanted) = (entries(now), entries(wanted));
            is_possible(kind, &MapChange::new(&now, &wanted).expect("no key is there twice"), &now, &wanted)
        };
        assert!(
            is(MapKind::Suffix, &[".b.com"], &[".b.com", ".c.d"]) && is(MapKind::Suffix, &[".b.com", ".c"], &[".c"])
        );
        assert!(!is(MapKind::Suffix, &[".b.com"], &[".a.b.com", ".b.com"]));
        assert!(is(MapKind::Routes, &["b/"], &["a/", "b/"]));
        assert!(is(MapKind::Regex, &["a"], &["a", "b$"]) && !is(MapKind::Regex, &["a$"], &[]));
    }

    #[test]
    fn entries_are_sent_in_parts_that_are_added() {
        let many: Vec<Entry> = (0..500).map(|n| (format!("h{n:04}.example.com/"), "backend".to_owned())).collect();
        let sent: Vec<Value> = parts(&many, MAX_PAYLOAD).into_iter().map(to_json).collect();
        assert_eq!(sent.iter().map(|part| part.as_array().expect("a list").len()).sum::<usize>(), 500);
        assert_eq!(sent.len(), 3);
        assert!(parts(&[], MAX_PAYLOAD).is_empty());
    }
}
