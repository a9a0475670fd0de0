//! What the Go controller haproxy-nomad-connector writes, recognised by its form: it leaves no mark. Read from its
//! configuration files on the Data Plane API 3.2 (`fixtures/connector`, commit d6c7495).
//!
//! A name proves its line, as it is made of what the line says: a server's of its backend and address, an ACL's of the
//! digest of its host. Anything else in a line, a comment too, is a person's, and then the line is as well.

use sha2::{Digest, Sha256};

use crate::desired::Address;

use super::text::Directive;

/// The name by which `--adopt` takes it over.
pub const NAME: &str = "haproxy-nomad-connector";

/// A server that it made: `BACKEND_ADDRESS_PORT`, with `_` for each dot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectorServer {
    /// Its name.
    pub name: String,
    /// Where it listens.
    pub address: Address,
    /// The port.
    pub port: u16,
}

/// Reads a directive of a backend; `None`: it is not a server that the connector made.
pub fn server(backend: &str, directive: &Directive) -> Option<ConnectorServer> {
    let [keyword, name, endpoint, options @ ..] = directive.words.as_slice() else { return None };
    let is_plain = options.iter().all(|option| ["check", "no-check"].contains(&option.as_str()));
    if keyword != "server" || directive.comment.is_some() || !is_plain {
        return None;
    }
    let (host, port) = endpoint.rsplit_once(':')?;
    let plain = host.trim_start_matches('[').trim_end_matches(']').replace('.', "_");
    let is_its = *name == format!("{backend}_{plain}_{port}");
    let (address, port) = (host.parse().ok().filter(|_| is_its)?, port.parse().ok()?);
    Some(ConnectorServer { name: name.clone(), address, port })
}

/// Whether these are the directives of a backend that it made, without the servers: it replaces what a person wrote in
/// one that it uses, too, unless the service has `backend=custom`.
pub fn is_backend<'a>(directives: impl IntoIterator<Item = &'a Directive>) -> bool {
    let (mut balance, mut check) = (false, false);
    for Directive { words, comment } in directives {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        match words.as_slice() {
            _ if comment.is_some() => return false,
            ["balance", "roundrobin"] => balance = true,
            ["default-server", "check"] => check = true,
            ["mode", "http"]
            | ["option", "httpchk", _, _, "HTTP/1.1"]
            | ["http-check", "send", "meth", _, "uri", _]
            | ["http-check", "send", "meth", _, "uri", _, "hdr", "Host", _] => {}
            _ => return false,
        }
    }
    balance && check
}

/// The request of its health check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectorCheck {
    /// The method.
    pub method: String,
    /// The path.
    pub path: String,
    /// The host.
    pub host: Option<String>,
}

/// Reads the request of a health check; `None`: the directive is another one. A host may be a regular expression, of
/// which the connector makes no difference.
pub fn check(line: &str) -> Option<ConnectorCheck> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let (method, path, host) = match words.as_slice() {
        ["http-check", "send", "meth", method, "uri", path] => (method, path, None),
        ["http-check", "send", "meth", method, "uri", path, "hdr", "Host", host] => (method, path, Some(host)),
        _ => return None,
    };
    let host = host.map(|host| (*host).to_owned());
    Some(ConnectorCheck { method: (*method).to_owned(), path: (*path).to_owned(), host })
}

/// An ACL that it made for a host: its name, and the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectorAcl {
    /// `is_BACKEND_DIGEST`.
    pub name: String,
    /// The host, or the regular expression, as the service's tag has it.
    pub host: String,
    /// Whether it is a regular expression.
    pub is_regex: bool,
}

/// Reads a line, whose words HAProxy splits at spaces only: it keeps the backslashes of a regular expression.
pub fn acl(line: &str) -> Option<ConnectorAcl> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let (name, host, is_regex) = match words.as_slice() {
        ["acl", name, "hdr(host)", host] => (name, host, false),
        ["acl", name, "hdr(host)", "-m", "reg", host] => (name, host, true),
        _ => return None,
    };
    let digest = format!("{:x}", Sha256::digest(host));
    let is_its = name.strip_prefix("is_").is_some_and(|rest| rest.ends_with(&format!("_{}", &digest[..8])));
    is_its.then(|| ConnectorAcl { name: (*name).to_owned(), host: (*host).to_owned(), is_regex })
}

/// The backend of a rule `use_backend BACKEND if ACL`, if the ACL's name is made of it.
pub fn rule<'a>(directive: &'a Directive, acl: &str) -> Option<&'a str> {
    let [keyword, backend, condition, named] = directive.words.as_slice() else { return None };
    let is_its = keyword == "use_backend" && condition == "if" && named == acl && directive.comment.is_none();
    let made_of = acl.strip_prefix("is_")?.rsplit_once('_')?.0;
    (is_its && made_of == backend.replace('-', "_")).then_some(backend.as_str())
}

/// Whether a line looks like one of its rules or ACLs, for showing what is removed: such a line has no secrets.
pub fn is_rule_or_acl(line: &str) -> bool {
    let words: Vec<&str> = line.split_whitespace().collect();
    let is_rule =
        matches!(words.as_slice(), ["use_backend", _, "if", acl] if rule(&Directive::parse(line), acl).is_some());
    is_rule || acl(line).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Option<String> {
        server("api_service", &Directive::parse(line)).map(|one| format!("{}:{}", one.address, one.port))
    }

    #[test]
    fn a_server_is_the_connectors_if_its_name_says_its_address() {
        let line = "  server api_service_10_0_0_7_29909 10.0.0.7:29909 check";
        assert_eq!(parsed(line).as_deref(), Some("10.0.0.7:29909"));
        assert!(parsed(&line.replace("check", "no-check")).is_some());
        assert!(parsed("server api_service_node-1_lan_80 node-1.lan:80 check").is_some());
        // Another address, port or backend; a person's option or comment.
        for other in [
            line.replace("10.0.0.7:", "10.0.0.8:"),
            line.replace(":29909", ":29910"),
            line.replace("api_service", "api"),
            format!("{line} weight 3"),
            format!("{line} # mine"),
            "server api_service_1 10.0.0.7:29909 check".to_owned(),
        ] {
            assert_eq!(parsed(&other), None, "{other}");
        }
    }

    #[test]
    fn a_backend_with_a_directive_of_a_person_is_not_the_connectors() {
        let is_its = |lines: &str| is_backend(&lines.lines().map(Directive::parse).collect::<Vec<_>>());
        let plain = "balance roundrobin\ndefault-server check";
        let checked = "mode http\noption httpchk GET /health HTTP/1.1\nhttp-check send meth GET uri /health hdr Host a.example.com";
        assert!(is_its(plain) && is_its(&format!("{plain}\n{checked}")));
        assert!(!is_its("balance roundrobin") && !is_its("default-server check"));
        for more in ["timeout server 5s", "mode tcp", "balance leastconn", "mode http # mine", "http-request deny"] {
            assert!(!is_its(&format!("{plain}\n{more}")), "{more}");
        }
    }

    #[test]
    fn an_acl_is_the_connectors_if_its_name_has_the_digest_of_its_host() {
        let one = acl("  acl is_api_service_d0c43d38 hdr(host) api.example.com\n").expect("the connector's");
        assert_eq!((one.host.as_str(), one.is_regex), ("api.example.com", false));
        let regex = acl("acl is_regex_4831936e hdr(host) -m reg ^r[0-9]\\.example\\.com$").expect("the connector's");
        assert_eq!((regex.host.as_str(), regex.is_regex), ("^r[0-9]\\.example\\.com$", true));
        assert_eq!(acl("acl is_api_service_d0c43d38 hdr(host) other.example.com"), None);
        assert_eq!(acl("acl is_api_service_d0c43d38 hdr(host) -i api.example.com"), None);
        let backend = |line: &str| rule(&Directive::parse(line), &one.name).map(str::to_owned);
        assert_eq!(backend("use_backend api_service if is_api_service_d0c43d38").as_deref(), Some("api_service"));
        assert_eq!(backend("use_backend other if is_api_service_d0c43d38"), None);
        assert_eq!(backend("use_backend api_service unless is_api_service_d0c43d38"), None);
    }
}
