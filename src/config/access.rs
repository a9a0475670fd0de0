//! `http.*`: who may use the protected part of the API.

use std::collections::BTreeMap;
use std::path::PathBuf;

use secrecy::{ExposeSecret, SecretString};

use crate::http::{Access, Secret};

use super::settings::HttpSettings;
use super::{ConfigError, is_name, wrong};

/// The user of the token that has no name of its own: `http.token`.
const ADMIN: &str = "admin";

pub(super) fn access(settings: HttpSettings) -> Result<Access, ConfigError> {
    let HttpSettings { listen: _, token, token_file, tokens, token_files, admin_key, admin_key_file } = settings;
    let mut all = BTreeMap::new();
    let single = secret("http.token (NOMAD_HAPROXY_HTTP_TOKEN)", "http.token_file", token, token_file)?;
    let single = single.map(|secret| (ADMIN.to_owned(), secret));
    let inline = tokens.into_iter().filter_map(|(name, token)| Some((name, Secret::Inline(set(token)?))));
    let files = token_files.into_iter().map(|(name, path)| (name, Secret::File(path)));
    for (name, secret) in single.into_iter().chain(inline).chain(files) {
        if !is_name(&name) {
            let why = format!("{name:?} is no name: use 1 to 100 characters without commas and spaces");
            return Err(wrong("http.tokens and http.token_files", why));
        }
        if all.contains_key(&name) {
            let why =
                format!("two tokens are called {name:?} (so is http.token, if the name is {ADMIN:?}); rename one");
            return Err(wrong("http.tokens and http.token_files", why));
        }
        all.insert(name, secret);
    }
    let admin_key =
        secret("http.admin_key (NOMAD_HAPROXY_HTTP_ADMIN_KEY)", "http.admin_key_file", admin_key, admin_key_file)?;
    Ok(Access { tokens: all, admin_key })
}

fn secret(
    name: &'static str,
    file_name: &str,
    inline: Option<SecretString>,
    file: Option<PathBuf>,
) -> Result<Option<Secret>, ConfigError> {
    match (inline.and_then(set), file) {
        (Some(_), Some(_)) => Err(wrong(name, format!("give this or {file_name}, not both"))),
        (Some(secret), None) => Ok(Some(Secret::Inline(secret))),
        (None, file) => Ok(file.map(Secret::File)),
    }
}

/// An empty secret is none, as in a shell's empty variable.
fn set(secret: SecretString) -> Option<SecretString> {
    Some(secret).filter(|secret| !secret.expose_secret().is_empty())
}
