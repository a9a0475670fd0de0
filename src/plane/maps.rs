//! Maps in the running process, by a socket.
//!
//! What is asked first and again afterwards is what the process has: a reload in between has loaded the file, which is
//! written before. So the same call makes both agree, whatever came before it.

use std::collections::BTreeMap;

use crate::desired::{Entry, MapKind};
use crate::haproxy::maps;

use super::worker::Worker;
use super::{AccessError, WriteError};

/// Bytes of entries in one command. HAProxy takes as many as its buffer holds (`tune.bufsize`, 16 kB by default).
const MAX_PAYLOAD: usize = 4000;
/// Entries that are removed or changed one by one; more are replaced as a whole.
const MAX_SINGLE: usize = 32;
/// How often the process is asked and changed before this gives up: a reload, or another client, is in between.
const ATTEMPTS: usize = 4;

/// What leads from one map to another, where the order of entries does not count.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct MapChange {
    /// Entries that are new.
    pub(super) add: Vec<Entry>,
    /// Entries with another value.
    pub(super) set: Vec<Entry>,
    /// Keys that go.
    pub(super) remove: Vec<String>,
}

impl MapChange {
    /// `None`: a key is there twice, so that no single change of it has a defined result.
    pub(super) fn new(now: &[Entry], wanted: &[Entry]) -> Option<Self> {
        let known: BTreeMap<&String, &String> = now.iter().map(|(key, value)| (key, value)).collect();
        let target: BTreeMap<&String, &String> = wanted.iter().map(|(key, value)| (key, value)).collect();
        if known.len() != now.len() {
            return None;
        }
        let mut change = Self::default();
        for entry @ (key, value) in wanted {
            match known.get(key) {
                None => change.add.push(entry.clone()),
                Some(was) if *was != value => change.set.push(entry.clone()),
                Some(_) => {}
            }
        }
        change.remove = known.into_keys().filter(|key| !target.contains_key(key)).cloned().collect();
        Some(change)
    }
}

impl Worker {
    /// A map in the process; `None`: it does not know the file, as no rule that it has loaded names it.
    pub(super) async fn map(&self, path: &str) -> Result<Option<Vec<Entry>>, AccessError> {
        let answer = self.command(&format!("show map {path}")).await?;
        Ok((!answer.starts_with("Unknown map identifier")).then(|| maps::from_process(&answer)))
    }

    /// Makes the process have these entries, if it has the map. An entry that stays is there all the time.
    pub(super) async fn set_map(&self, path: &str, kind: MapKind, wanted: &[Entry]) -> Result<(), WriteError> {
        for attempt in 0..ATTEMPTS {
            let Some(now) = self.map(path).await? else { return Ok(()) };
            if kind.is_same(&now, wanted) {
                return Ok(());
            }
            let change = MapChange::new(&now, wanted)
                .filter(|change| !kind.is_ordered() && change.set.len() + change.remove.len() <= MAX_SINGLE)
                .filter(|_| attempt == 0);
            match change {
                Some(change) => self.change_map(path, &change).await?,
                None => self.replace_map(path, wanted).await?,
            }
        }
        Err(WriteError::HalfLive { message: format!("the map {path} has other entries than were set") })
    }

    async fn change_map(&self, path: &str, change: &MapChange) -> Result<(), WriteError> {
        let MapChange { add, set, remove } = change;
        self.add_entries(path, "", add).await?;
        for (key, value) in set {
            self.order(&format!("set map {path} {key} {value}"), &["", "entry not found."]).await?;
        }
        for key in remove {
            self.order(&format!("del map {path} {key}"), &["", "Key not found."]).await?;
        }
        Ok(())
    }

    /// In one step: lookups find the old entries until all of the new ones are there (management guide, 9.3, `prepare
    /// map`, `commit map`).
    async fn replace_map(&self, path: &str, wanted: &[Entry]) -> Result<(), WriteError> {
        let command = format!("prepare map {path}");
        let answer = self.command(&command).await?;
        let Some(version) = answer.strip_prefix("New version created: ").and_then(|v| v.trim().parse::<u32>().ok())
        else {
            return Err(WriteError::HalfLive { message: format!("{command}: {answer}") });
        };
        self.add_entries(path, &format!("@{version} "), wanted).await?;
        self.order(&format!("commit map @{version} {path}"), &[""]).await
    }

    async fn add_entries(&self, path: &str, version: &str, entries: &[Entry]) -> Result<(), WriteError> {
        for part in parts(entries, MAX_PAYLOAD) {
            self.order(&format!("add map {version}{path} <<\n{}", maps::to_lines(part)), &[""]).await?;
        }
        Ok(())
    }

    async fn order(&self, command: &str, done: &[&str]) -> Result<(), WriteError> {
        let answer = self.command(command).await?;
        if done.contains(&answer.as_str()) {
            return Ok(());
        }
        let command = command.lines().next().unwrap_or_default();
        Err(WriteError::HalfLive { message: format!("{command}: {answer}") })
    }
}

/// The entries in parts of this many bytes at the most, as lines `KEY VALUE`; a longer one is a part of its own.
pub(super) fn parts(entries: &[Entry], longest: usize) -> Vec<&[Entry]> {
    let length = |(key, value): &Entry| key.len() + value.len() + 2;
    let (mut parts, mut start, mut sum) = (Vec::new(), 0, 0);
    for (at, entry) in entries.iter().enumerate() {
        if at > start && sum + length(entry) > longest {
            parts.push(&entries[start..at]);
            (start, sum) = (at, 0);
        }
        sum += length(entry);
    }
    parts.extend((start < entries.len()).then(|| &entries[start..]));
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(all: &[(&str, &str)]) -> Vec<Entry> {
        all.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn only_what_differs_is_changed() {
        let now = entries(&[("a/", "x"), ("b/", "x"), ("c/", "x")]);
        let wanted = entries(&[("b/", "y"), ("c/", "x"), ("d/", "z")]);
        let change = MapChange::new(&now, &wanted).expect("no key is there twice");
        assert_eq!((change.add, change.set), (entries(&[("d/", "z")]), entries(&[("b/", "y")])));
        assert_eq!(change.remove, ["a/"]);
        assert_eq!(MapChange::new(&now, &now), Some(MapChange::default()));
        assert_eq!(MapChange::new(&entries(&[("a/", "x"), ("a/", "y")]), &wanted), None);
    }

    #[test]
    fn many_entries_take_several_commands() {
        let all = entries(&[("a", "1"), ("b", "2"), ("c", "3")]);
        assert_eq!(parts(&all, 8), [&all[..2], &all[2..]]);
        assert_eq!(parts(&all, 1).len(), 3);
        assert!(parts(&[], 8).is_empty());
    }
}
