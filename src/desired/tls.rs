//! What a connection to a server starts with: TLS, and the PROXY protocol.

use std::fmt;
use std::str::FromStr;

use super::Invalid;
use super::name::valid;

/// The version of the PROXY protocol in which a server gets the client's address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyProtocol {
    /// Text.
    V1,
    /// Binary.
    V2,
}

impl ProxyProtocol {
    /// HAProxy's option of a server.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V1 => "send-proxy",
            Self::V2 => "send-proxy-v2",
        }
    }
}

/// What is asked of a server's certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Verify {
    /// That a CA of HAProxy's system has signed it; with a server name also that it is for that.
    #[default]
    Required,
    /// Nothing.
    None,
}

impl Verify {
    /// HAProxy's value of `verify`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Required => "required",
            Self::None => "none",
        }
    }
}

/// The server name that HAProxy sends when it starts TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sni {
    /// Always this one, to requests and checks.
    Host(SniHost),
    /// One that HAProxy takes from each request; checks send none.
    Fetch(SniFetch),
}

/// A host name for [`Sni`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SniHost(String);

/// A sample expression for [`Sni`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SniFetch(String);

/// TLS to a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// What is asked of its certificate.
    pub verify: Verify,
    /// The server name.
    pub sni: Option<Sni>,
}

/// The longest name of a host (RFC 1035, 2.3.4).
const MAX_HOST_LENGTH: usize = 253;

impl Sni {
    const RULE: &str = "a host name, or req.hdr(NAME) or ssl_fc_sni, with ,lower ,host_only or ,field(1,:) behind it";

    /// Whether only a request of HTTP has it.
    pub fn needs_http(&self) -> bool {
        matches!(self, Self::Fetch(SniFetch(fetch)) if fetch.starts_with("req.hdr("))
    }

    /// The host, if it is always the same.
    pub fn host(&self) -> Option<&str> {
        match self {
            Self::Host(SniHost(host)) => Some(host),
            Self::Fetch(_) => None,
        }
    }
}

/// Only expressions that are about the request itself: others could send what is in HAProxy's environment, or in its
/// files, to a server of anybody.
impl FromStr for Sni {
    type Err = Invalid;

    fn from_str(value: &str) -> Result<Self, Invalid> {
        let host = value.strip_prefix("str(").and_then(|rest| rest.strip_suffix(')')).unwrap_or(value);
        if is_host(host) && host != "ssl_fc_sni" {
            return Ok(Self::Host(SniHost(host.to_owned())));
        }
        Ok(Self::Fetch(SniFetch(valid("server name", Self::RULE, value, is_fetch(value))?)))
    }
}

impl fmt::Display for Sni {
    /// HAProxy's value of `sni`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(SniHost(host)) => write!(f, "str({host})"),
            Self::Fetch(SniFetch(fetch)) => f.write_str(fetch),
        }
    }
}

fn is_token(text: &str) -> bool {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"-_".contains(&b);
    (1..=63).contains(&text.len()) && text.bytes().all(is_plain)
}

/// An address is none: TLS has no server name for it (RFC 6066, 3).
fn is_host(text: &str) -> bool {
    text.len() <= MAX_HOST_LENGTH && text.split('.').all(is_token) && text.bytes().any(|b| b.is_ascii_alphabetic())
}

fn is_fetch(text: &str) -> bool {
    let mut left = text;
    // A comma in brackets separates no converter.
    while let Some(rest) = [",lower", ",host_only", ",field(1,:)"].iter().find_map(|end| left.strip_suffix(end)) {
        left = rest;
    }
    left == "ssl_fc_sni" || left.strip_prefix("req.hdr(").and_then(|rest| rest.strip_suffix(')')).is_some_and(is_token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_name_is_a_host_or_comes_from_the_request() {
        for (text, written, needs_http) in [
            ("shop.example.com", "str(shop.example.com)", false),
            ("str(shop.example.com)", "str(shop.example.com)", false),
            ("db", "str(db)", false),
            ("ssl_fc_sni", "ssl_fc_sni", false),
            ("req.hdr(host)", "req.hdr(host)", true),
            ("req.hdr(Host),field(1,:),lower", "req.hdr(Host),field(1,:),lower", true),
        ] {
            let sni: Sni = text.parse().expect("a server name");
            assert_eq!((sni.to_string().as_str(), sni.needs_http()), (written, needs_http));
            assert_eq!(written.parse::<Sni>(), Ok(sni));
        }
    }

    #[test]
    fn nothing_of_haproxy_itself_is_sent() {
        for bad in [
            "env(HAPROXY_PASSWORD)",
            "str(a b)",
            "str(a),map(/etc/passwd)",
            "req.hdr(host),map_str(/etc/passwd)",
            "var(proc.secret)",
            "10.0.0.1",
            "req.hdr()",
            "req.hdr(host) verify none",
            "a..b",
            "*.example.com",
            "bücher.example",
            "",
        ] {
            assert!(bad.parse::<Sni>().is_err(), "{bad:?}");
        }
    }
}
