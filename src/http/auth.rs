//! Who may use the protected part of the API: whoever sends one of the bearer tokens of the settings. Each token has a
//! name, which is in the log with what was done.
//!
//! A protected handler takes [`Authorized`], or [`Admin`] where the admin key is needed, too: a request without the
//! right credentials never gets to it.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};
use thiserror::Error;

use crate::endpoint::read_secret;

use super::Shared;
use super::api::problem;
use super::audit::Trail;

/// A credential is not longer than this, in bytes: the limit of common servers for one header.
const LONGEST: usize = 8 * 1024;
/// The header of the admin key.
const ADMIN_KEY: &str = "x-admin-key";

/// A token or a key.
#[derive(Debug, Clone)]
pub enum Secret {
    /// The secret itself.
    Inline(SecretString),
    /// A file that is read for each request, so that a secret can be replaced while the controller runs.
    File(PathBuf),
}

impl Secret {
    fn read(&self) -> io::Result<SecretString> {
        match self {
            Self::Inline(secret) => Ok(secret.clone()),
            Self::File(path) => read_secret(path),
        }
    }

    /// Why its file cannot be read.
    fn unreadable(&self) -> Option<String> {
        match self {
            Self::Inline(_) => None,
            Self::File(path) => read_secret(path).err().map(|error| format!("{}: {error}", path.display())),
        }
    }

    /// Whether this is the secret. The time that it takes says nothing about the secret, not even its length. A file
    /// that is empty or cannot be read has no secret.
    fn is(&self, sent: &[u8]) -> Choice {
        let (secret, is_set) = match self.read() {
            Ok(secret) => (Sha256::digest(secret.expose_secret()), !secret.expose_secret().is_empty()),
            Err(_) => (Sha256::digest([]), false),
        };
        secret.ct_eq(&Sha256::digest(sent)) & Choice::from(u8::from(is_set))
    }
}

/// Who may use the protected part of the API. By default nobody.
#[derive(Debug, Clone, Default)]
pub struct Access {
    /// The tokens, by the names of their users.
    pub tokens: BTreeMap<String, Secret>,
    /// What a recovery of HAProxy needs in addition to a token.
    pub admin_key: Option<Secret>,
}

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(super) enum Refusal {
    /// No token is configured.
    #[error(
        "no token is configured, so nobody may use this: set `http.tokens` or `http.token_files` in the settings \
         file, or NOMAD_HAPROXY_HTTP_TOKEN or NOMAD_HAPROXY_HTTP_TOKEN_FILE, and start the controller again"
    )]
    NoTokens,
    /// The request has no token, or several, or something else.
    #[error("this needs a token: send one header `Authorization: Bearer TOKEN`")]
    NoToken,
    /// No token is this one.
    #[error("the token is wrong: use one of those in the controller's settings")]
    WrongToken,
    /// The token may be right, but no admin key is configured.
    #[error(
        "no admin key is configured, so nobody may use this: set `http.admin_key` or `http.admin_key_file` in the \
         settings file, or NOMAD_HAPROXY_HTTP_ADMIN_KEY or NOMAD_HAPROXY_HTTP_ADMIN_KEY_FILE, and start the \
         controller again"
    )]
    NoAdminKeys,
    /// The token is right, the admin key is missing or wrong.
    #[error("this needs the admin key in addition to the token: send the right one in one header `X-Admin-Key: KEY`")]
    WrongAdminKey,
    /// A header is longer than any credential.
    #[error("a token or admin key has {LONGEST} bytes at most")]
    TooLarge,
}

impl Refusal {
    /// In one phrase, for the log.
    pub(super) fn reason(self) -> &'static str {
        match self {
            Self::NoTokens => "no token is configured",
            Self::NoToken => "it has no token",
            Self::WrongToken => "its token is wrong",
            Self::NoAdminKeys => "no admin key is configured",
            Self::WrongAdminKey => "its admin key is missing or wrong",
            Self::TooLarge => "its token or admin key is too long",
        }
    }

    fn status(self) -> StatusCode {
        match self {
            Self::NoToken | Self::WrongToken => StatusCode::UNAUTHORIZED,
            Self::NoTokens | Self::NoAdminKeys | Self::WrongAdminKey => StatusCode::FORBIDDEN,
            Self::TooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = problem(self.status(), &self.to_string());
        if self.status() == StatusCode::UNAUTHORIZED {
            // RFC 6750 requires a parameter.
            let challenge = HeaderValue::from_static("Bearer realm=\"nomad-haproxy\"");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
        }
        response
    }
}

impl Access {
    /// Whose token the request has.
    fn user(&self, headers: &HeaderMap) -> Result<&str, Refusal> {
        if self.tokens.is_empty() {
            return Err(Refusal::NoTokens);
        }
        let sent = bearer(single(headers, header::AUTHORIZATION.as_str())?).ok_or(Refusal::NoToken)?;
        let mut found = None;
        // All of them, so that the time does not say which ones were compared.
        for (name, secret) in &self.tokens {
            if bool::from(secret.is(sent)) {
                found = Some(name.as_str());
            }
        }
        found.ok_or(Refusal::WrongToken)
    }

    /// Leaves the result of a check for the log.
    fn record(&self, parts: &Parts, checked: Result<&str, Refusal>) {
        let Some(trail) = parts.extensions.get::<Trail>() else { return };
        match checked {
            Ok(who) => trail.accepted(who),
            Err(refusal) => {
                let secrets = self.tokens.values().chain(&self.admin_key);
                let unreadable: Vec<String> = secrets.filter_map(Secret::unreadable).collect();
                trail.refused(refusal, (!unreadable.is_empty()).then(|| unreadable.join("; ")));
            }
        }
    }

    /// Whether the request has the admin key.
    fn has_admin_key(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        let key = self.admin_key.as_ref().ok_or(Refusal::NoAdminKeys)?;
        let sent = single(headers, ADMIN_KEY)?.ok_or(Refusal::WrongAdminKey)?;
        if bool::from(key.is(sent)) { Ok(()) } else { Err(Refusal::WrongAdminKey) }
    }
}

/// The value of a header that occurs once.
fn single<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a [u8]>, Refusal> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (Some(value), None) if value.len() > LONGEST => Err(Refusal::TooLarge),
        (Some(value), None) => Ok(Some(value.as_bytes())),
        _ => Ok(None),
    }
}

/// The token of `Bearer TOKEN`; the scheme in any case (RFC 9110).
fn bearer(value: Option<&[u8]>) -> Option<&[u8]> {
    const SCHEME: &[u8] = b"bearer ";
    let (scheme, token) = value?.split_at_checked(SCHEME.len())?;
    let token = token.trim_ascii();
    (scheme.eq_ignore_ascii_case(SCHEME) && !token.is_empty()).then_some(token)
}

/// A request with the right token.
#[derive(Debug, Clone)]
pub(super) struct Authorized;

impl FromRequestParts<Shared> for Authorized {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, shared: &Shared) -> Result<Self, Refusal> {
        let checked = shared.access.user(&parts.headers);
        shared.access.record(parts, checked);
        checked.map(|_| Self)
    }
}

/// A request with the right token and the right admin key.
#[derive(Debug, Clone)]
pub(super) struct Admin;

impl FromRequestParts<Shared> for Admin {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, shared: &Shared) -> Result<Self, Refusal> {
        Authorized::from_request_parts(parts, shared).await?;
        let checked = shared.access.has_admin_key(&parts.headers);
        shared.access.record(parts, checked.map(|()| ""));
        checked.map(|()| Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(all: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in all {
            let name: header::HeaderName = name.parse().expect("a name");
            headers.append(name, value.parse().expect("a value"));
        }
        headers
    }

    fn access(tokens: &[(&str, &str)], admin_key: Option<&str>) -> Access {
        let secret = |value: &str| Secret::Inline(SecretString::from(value));
        let tokens = tokens.iter().map(|(name, value)| ((*name).to_owned(), secret(value))).collect();
        Access { tokens, admin_key: admin_key.map(secret) }
    }

    #[test]
    fn a_token_is_known_by_its_name() {
        let access = access(&[("ci", "aaa"), ("ops", "bbb")], None);
        for (value, user) in [
            ("Bearer aaa", Ok("ci")),
            ("bearer  bbb", Ok("ops")),
            ("BEARER aaa ", Ok("ci")),
            ("Bearer aa", Err(Refusal::WrongToken)),
            ("Bearer aaab", Err(Refusal::WrongToken)),
            ("Bearer AAA", Err(Refusal::WrongToken)),
            ("Bearer ci", Err(Refusal::WrongToken)),
            ("Bearer", Err(Refusal::NoToken)),
            ("Bearer ", Err(Refusal::NoToken)),
            ("Beareraaa", Err(Refusal::NoToken)),
            ("Basic aaa", Err(Refusal::NoToken)),
            ("aaa", Err(Refusal::NoToken)),
            ("", Err(Refusal::NoToken)),
        ] {
            assert_eq!(access.user(&headers(&[("authorization", value)])), user, "{value:?}");
        }
        assert_eq!(access.user(&HeaderMap::new()), Err(Refusal::NoToken));
        let twice = headers(&[("authorization", "Bearer aaa"), ("authorization", "Bearer aaa")]);
        assert_eq!(access.user(&twice), Err(Refusal::NoToken));
        let long = |length| headers(&[("authorization", &format!("Bearer {}", "a".repeat(length)))]);
        assert_eq!(access.user(&long(LONGEST - 7)), Err(Refusal::WrongToken));
        assert_eq!(access.user(&long(LONGEST - 6)), Err(Refusal::TooLarge));
    }

    #[test]
    fn without_a_token_in_the_settings_nobody_is_let_in() {
        let access = access(&[], Some("key"));
        for value in ["Bearer ", "Bearer x", "x"] {
            assert_eq!(access.user(&headers(&[("authorization", value)])), Err(Refusal::NoTokens), "{value}");
        }
    }

    #[test]
    fn the_admin_key_is_checked_in_the_same_way() {
        let with = access(&[("ci", "aaa")], Some("key"));
        let sent = |value: &str| with.has_admin_key(&headers(&[("X-Admin-Key", value)]));
        assert_eq!(
            (sent("key"), sent("kex"), sent("")),
            (Ok(()), Err(Refusal::WrongAdminKey), Err(Refusal::WrongAdminKey))
        );
        assert_eq!(with.has_admin_key(&HeaderMap::new()), Err(Refusal::WrongAdminKey));
        let without = access(&[("ci", "aaa")], None);
        assert_eq!(without.has_admin_key(&headers(&[("X-Admin-Key", "key")])), Err(Refusal::NoAdminKeys));
    }

    #[test]
    fn a_file_is_read_again_for_each_request_and_an_empty_one_lets_nobody_in() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("token");
        let tokens = BTreeMap::from([("ci".to_owned(), Secret::File(path.clone()))]);
        let access = Access { tokens, admin_key: None };
        let user = |token: &str| access.user(&headers(&[("authorization", &format!("Bearer {token}"))])).ok();
        assert_eq!(user("one"), None, "there is no file");
        for (content, sent, is_right) in [
            ("one\n", "one", true),
            ("two", "one", false),
            ("two", "two", true),
            ("", "two", false),
            ("\n", "\n", false),
        ] {
            std::fs::write(&path, content).expect("a file");
            assert_eq!(user(sent.trim()).is_some(), is_right, "{content:?} {sent:?}");
        }
    }

    #[test]
    fn each_refusal_has_its_status_and_says_what_to_do() {
        for (refusal, status, words) in [
            (Refusal::NoTokens, 403, "NOMAD_HAPROXY_HTTP_TOKEN"),
            (Refusal::NoToken, 401, "Authorization: Bearer"),
            (Refusal::WrongToken, 401, "wrong"),
            (Refusal::NoAdminKeys, 403, "http.admin_key"),
            (Refusal::WrongAdminKey, 403, "X-Admin-Key"),
            (Refusal::TooLarge, 431, "8192"),
        ] {
            assert!(refusal.to_string().contains(words), "{refusal}");
            let response = refusal.into_response();
            let challenge = response.headers().get(header::WWW_AUTHENTICATE).map(HeaderValue::as_bytes);
            assert_eq!(response.status().as_u16(), status);
            assert_eq!(challenge.is_some_and(|value| value.starts_with(b"Bearer ")), status == 401, "{refusal}");
        }
    }
}
