//! How an HTTP server is reached: Nomad and the Data Plane API have the same settings.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use secrecy::SecretString;
use thiserror::Error;

use crate::errors::chain;

/// For connecting.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Why a client cannot be built with the CAs of the system: it has none. Reading them takes a while, so it is done once.
static NO_SYSTEM_CA: LazyLock<Option<Arc<reqwest::Error>>> =
    LazyLock::new(|| reqwest::Client::builder().build().err().map(Arc::new));

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

/// How `https://…` is secured.
#[derive(Debug, Clone, Default)]
pub struct Tls {
    /// A CA to trust beside the system's, PEM.
    pub ca_file: Option<PathBuf>,
    /// What the server may ask for.
    pub identity: Option<Identity>,
    /// The host name that the certificate must be for, if not the one in the address.
    pub server_name: Option<String>,
    /// Takes any certificate, so anybody on the way can read and change everything.
    pub skip_verify: bool,
}

/// What is wrong with a connection by TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsFault {
    /// The server's certificate is not trusted here, or is for another host.
    Untrusted,
    /// The server ends the connection: it may want a client certificate.
    Refused,
    /// The server does not speak TLS.
    NoTls,
}

impl TlsFault {
    /// From the error of a request; `None`: it has another reason.
    pub fn of(error: &reqwest::Error) -> Option<Self> {
        // rustls' own message: its error is nested in others, which do not print it.
        let cause = chain(error);
        let faults = [
            ("invalid peer certificate", Self::Untrusted),
            ("received fatal alert", Self::Refused),
            ("received corrupt message", Self::NoTls),
        ];
        faults.into_iter().find(|(words, _)| cause.contains(words)).map(|(_, fault)| fault)
    }
}

/// Resolves every name to the host of the address, as requests are for the name in its certificate.
struct Redirected(String);

impl Resolve for Redirected {
    fn resolve(&self, _name: Name) -> Resolving {
        let host = self.0.clone();
        Box::pin(async move {
            let found: Vec<_> = tokio::net::lookup_host((host, 0)).await?.collect();
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

/// Sets up a client for `http://…`, `https://…` or `unix:///…`, and returns the base that its paths are appended to.
/// The files are read once, here.
pub fn client(address: &str, tls: &Tls) -> Result<(reqwest::ClientBuilder, String), EndpointError> {
    let Tls { ca_file, identity, server_name, skip_verify } = tls;
    let read = |path: &Path| std::fs::read(path).map_err(|e| wrong(format!("cannot read {}", path.display()), e));
    let mut builder = reqwest::Client::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        // A redirected write would count as done, and credentials would be sent to another host.
        .redirect(reqwest::redirect::Policy::none());
    // A proxy would take it for its own host, as Nomad's own client has it, too (Go's net/http).
    if is_loopback(address) {
        builder = builder.no_proxy();
    }
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
    // Plain HTTP needs none.
    if ca_file.is_none()
        && !skip_verify
        && let Some(source) = &*NO_SYSTEM_CA
    {
        if address.starts_with("https://") {
            let what = format!("cannot trust {address}: install the package ca-certificates, or name a CA file");
            return Err(wrong(what, source.clone()));
        }
        builder = builder.tls_certs_only([]);
    }
    if *skip_verify {
        builder = builder.tls_danger_accept_invalid_certs(true);
    }
    if let Some(path) = address.strip_prefix("unix://") {
        return Ok((builder.unix_socket(path), "http://localhost".to_owned()));
    }
    let named = server_name.as_deref().and_then(|name| named(address, name));
    Ok(match named {
        // A proxy would look for the name itself.
        Some((base, host)) => (builder.dns_resolver(Redirected(host)).no_proxy(), base),
        None => (builder, address.trim_end_matches('/').to_owned()),
    })
}

fn is_loopback(address: &str) -> bool {
    let url = reqwest::Url::parse(address).ok();
    url.as_ref().and_then(reqwest::Url::host_str).is_some_and(|host| {
        let host = host.trim_matches(['[', ']']);
        host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback())
    })
}

/// An `https://` address with the name of the certificate in place of its host, and that host.
fn named(address: &str, name: &str) -> Option<(String, String)> {
    let mut url = reqwest::Url::parse(address).ok().filter(|url| url.scheme() == "https")?;
    let host = url.host_str()?.trim_matches(['[', ']']).to_owned();
    url.set_host(Some(name)).ok()?;
    Some((url.as_str().trim_end_matches('/').to_owned(), host))
}

/// Reads a file that contains only a secret.
pub fn read_secret(path: &Path) -> std::io::Result<SecretString> {
    std::fs::read_to_string(path).map(|text| SecretString::from(text.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_reached_without_a_proxy() {
        for address in ["http://127.0.0.1:4646", "https://localhost:5555/", "http://[::1]", "http://127.9.9.9"] {
            assert!(is_loopback(address), "{address}");
        }
        for address in ["http://10.0.0.5:4646", "https://localhost.example.com", "unix:///run/api.sock", "x"] {
            assert!(!is_loopback(address), "{address}");
        }
    }

    #[test]
    fn the_name_of_the_certificate_replaces_the_host() {
        let is = |address: &str| named(address, "server.global.nomad").map(|(base, host)| format!("{base} {host}"));
        assert_eq!(is("https://10.0.0.5:4646").as_deref(), Some("https://server.global.nomad:4646 10.0.0.5"));
        assert_eq!(is("https://[::1]:4646/v1/").as_deref(), Some("https://server.global.nomad:4646/v1 ::1"));
        assert_eq!(is("http://10.0.0.5:4646"), None, "without TLS there is no certificate");
    }
}
