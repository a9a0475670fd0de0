//! How an HTTP server is reached: Nomad and the Data Plane API have the same settings.

use std::path::{Path, PathBuf};
use std::time::Duration;

use secrecy::SecretString;
use thiserror::Error;

/// For connecting.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A client certificate and its key, each a PEM file.
pub type Identity = (PathBuf, PathBuf);

/// Why a client could not be set up.
#[derive(Debug, Error)]
#[error("{what}")]
pub struct EndpointError {
    /// Which file, and what is wrong with it.
    pub what: String,
    /// What went wrong.
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

fn wrong(what: String, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> EndpointError {
    EndpointError { what, source: source.into() }
}

/// Sets up a client for `http://…`, `https://…` or `unix:///…`, and returns the base that its paths are appended to.
/// `ca_file` is trusted in addition to the system's CAs. The files are read once, here.
pub fn client(
    address: &str,
    ca_file: Option<&Path>,
    identity: Option<&Identity>,
) -> Result<(reqwest::ClientBuilder, String), EndpointError> {
    let read = |path: &Path| std::fs::read(path).map_err(|e| wrong(format!("cannot read {}", path.display()), e));
    let mut builder = reqwest::Client::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        // A redirected write would count as done, and credentials would be sent to another host.
        .redirect(reqwest::redirect::Policy::none());
    if let Some(path) = ca_file {
        let certificates = reqwest::Certificate::from_pem_bundle(&read(path)?)
            .map_err(|e| wrong(format!("{} holds no PEM certificate", path.display()), e))?;
        builder = certificates.into_iter().fold(builder, reqwest::ClientBuilder::add_root_certificate);
    }
    if let Some((certificate, key)) = identity {
        let pem = [read(certificate)?, read(key)?].concat();
        let identity = reqwest::Identity::from_pem(&pem)
            .map_err(|e| wrong(format!("{} and {} are no PEM pair", certificate.display(), key.display()), e))?;
        builder = builder.identity(identity);
    }
    Ok(match address.strip_prefix("unix://") {
        Some(path) => (builder.unix_socket(path), "http://localhost".to_owned()),
        None => (builder, address.trim_end_matches('/').to_owned()),
    })
}

/// Reads a file that contains only a secret.
pub fn read_secret(path: &Path) -> std::io::Result<SecretString> {
    std::fs::read_to_string(path).map(|text| SecretString::from(text.trim()))
}
