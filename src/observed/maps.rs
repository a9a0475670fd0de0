//! What is observed of map files of ours: their lines on disk, and those in the process where it was asked.

use std::collections::BTreeMap;

use crate::desired::{Entry, FrontendName, FrontendRoutes, MapKind, Routes, routes};
use crate::haproxy::maps::MapFile;

/// The map files of ours.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Maps {
    /// The folder in which HAProxy finds them; it may not exist yet.
    pub folder: String,
    /// Their lines on disk.
    pub files: BTreeMap<MapFile, Vec<Entry>>,
    /// Their lines in the process, for those that were asked for. `None`: the process does not know the map.
    pub process: BTreeMap<MapFile, Option<Vec<Entry>>>,
    /// Whether they could not be read: then no route and no rule is changed.
    pub is_unknown: bool,
}

impl Maps {
    /// They could not be read.
    pub fn unknown() -> Self {
        Self { is_unknown: true, ..Self::default() }
    }

    /// The routes that the files have, by frontend.
    pub fn routes(&self) -> Routes {
        let of = |(file, entries): (&MapFile, &Vec<Entry>)| -> Option<(FrontendName, FrontendRoutes)> {
            (file.kind == MapKind::Routes).then(|| (file.frontend.clone(), routes::read(entries)))
        };
        self.files.iter().filter_map(of).collect()
    }
}
