//! A catalog from a JSON file: for CI, for air gaps, for demos. `nomad-haproxy catalog` prints one.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{Catalog, JobCheck, Registration};
use crate::desired::ServiceKey;

/// Why a catalog file can't be read.
#[derive(Debug, Error)]
pub enum FileError {
    /// It can't be opened.
    #[error("cannot read the catalog {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        #[source]
        /// What the system said.
        source: std::io::Error,
    },
    /// It is no catalog.
    #[error("{} is not a catalog file; `nomad-haproxy catalog` prints one", path.display())]
    Form {
        /// The file.
        path: PathBuf,
        #[source]
        /// Where and what.
        source: serde_json::Error,
    },
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct Document {
    #[serde(default)]
    index: u64,
    services: Vec<Registration>,
    /// What jobs say of checks; files of 0.1 have none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    checks: Vec<CheckOf>,
}

/// The check that a job has for a service.
#[derive(Deserialize, Serialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct CheckOf {
    service_name: String,
    namespace: String,
    check: JobCheck,
}

/// Reads a catalog from a file.
pub fn read(path: &Path) -> Result<Catalog, FileError> {
    let text = std::fs::read_to_string(path).map_err(|source| FileError::Read { path: path.to_owned(), source })?;
    parse(&text).map_err(|source| FileError::Form { path: path.to_owned(), source })
}

pub(crate) fn parse(text: &str) -> Result<Catalog, serde_json::Error> {
    let Document { index, services, checks } = serde_json::from_str(text)?;
    let mut catalog = Catalog { index, ..Catalog::default() };
    for registration in services {
        catalog.services.entry(registration.service()).or_default().push(registration);
    }
    for CheckOf { service_name, namespace, check } in checks {
        catalog.checks.insert(ServiceKey { namespace, name: service_name }, Ok(check));
    }
    Ok(catalog)
}

/// Renders a catalog as such a file, always in the same order.
#[allow(clippy::missing_panics_doc, reason = "strings and numbers always serialize")]
pub fn render(catalog: &Catalog) -> String {
    let mut services: Vec<Registration> = catalog.services.values().flatten().cloned().collect();
    services.sort_by(|a, b| (&a.namespace, &a.service_name, &a.id).cmp(&(&b.namespace, &b.service_name, &b.id)));
    let checks = catalog.checks.iter().filter_map(|(service, check)| {
        let ServiceKey { namespace, name } = service.clone();
        Some(CheckOf { service_name: name, namespace, check: check.clone().ok()? })
    });
    let document = Document { index: catalog.index, services, checks: checks.collect() };
    serde_json::to_string_pretty(&document).expect("strings and numbers always serialize") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"{"Index": 7, "Services": [
        {"ID": "b", "ServiceName": "api", "Namespace": "default", "Tags": ["haproxy.enable=true"], "Address": "10.0.0.2", "Port": 80},
        {"ID": "a", "ServiceName": "api", "Namespace": "default", "Tags": null, "Address": "10.0.0.1", "Port": 80}],
        "Checks": [{"ServiceName": "api", "Namespace": "default", "Check": {"Type": "http", "Path": "/health", "Header": null}}]}"#;

    #[test]
    fn what_is_printed_is_read_back() {
        let catalog = parse(FILE).expect("a catalog");
        assert_eq!((catalog.index, catalog.len(), catalog.checks.len()), (7, 2, 1));
        let printed = render(&catalog);
        assert_eq!(render(&parse(&printed).expect("a catalog")), printed);
    }

    #[test]
    fn a_wrong_key_is_named_with_its_place() {
        let error = parse(r#"{"Index": 7, "Service": []}"#).expect_err("no such key").to_string();
        assert!(error.contains("`Service`") && error.contains("line 1"), "{error}");
    }
}
