//! Our backends and servers as configuration text.

use std::time::Duration;

use crate::desired::{
    Address, BackendName, BackendSettings, Check, HttpCheck, Occupant, Owner, Server, ServerOptions, Timing, Tls,
    Verify,
};

/// Redispatch on the first retry: an instance that Nomad has just stopped refuses the connection, and the request goes
/// to another one at once.
pub const REDISPATCH_INTERVAL: u32 = 1;
/// HAProxy's default, stated so that a `defaults` section with `retries 0` does not undo the redispatch.
pub const RETRIES: u32 = 3;
/// How HAProxy gets the address of a host name when it starts (configuration manual, `init-addr`). The last step
/// matters: without it HAProxy would refuse the whole file because of one name that does not resolve; with it that
/// server has no address.
pub const INIT_ADDR: &str = "last,libc,none";

/// What a cookie for a client does besides its name: HAProxy sets it and takes it out of requests again, so that the
/// service never sees it, and no cache keeps an answer that sets it (configuration manual, `cookie`).
pub const COOKIE_OPTIONS: [&str; 3] = ["insert", "indirect", "nocache"];
/// The file with the CAs of HAProxy's system (configuration manual, `ca-file`).
pub const SYSTEM_CA: &str = "@system-ca";

/// A backend's header line.
pub fn header(name: &BackendName, from: Option<&str>) -> String {
    match from {
        Some(defaults) => format!("backend {name} from {defaults}\n"),
        None => format!("backend {name}\n"),
    }
}

/// The directive that marks a backend as ours, without the end of its line.
pub fn description(description: &str) -> String {
    format!("  description {description}")
}

/// The directives of a backend that is ours, without its servers.
pub fn settings(settings: &BackendSettings) -> Vec<String> {
    let BackendSettings { description, mode, balance, check, cookie, timeouts } = settings;
    let mut lines = vec![
        self::description(description) + "\n",
        format!("  mode {}\n", mode.as_str()),
        format!("  balance {balance}\n"),
        format!("  retries {RETRIES}\n"),
        format!("  option redispatch {REDISPATCH_INTERVAL}\n"),
    ];
    lines.extend(cookie.as_ref().map(|name| format!("  cookie {} {}\n", name.as_str(), COOKIE_OPTIONS.join(" "))));
    lines.extend(timeouts.each().map(|(word, value)| format!("  timeout {word} {}\n", time(value))));
    match check {
        Check::Http(http, _) => lines.extend(http_check(http)),
        // Stated, so that `option httpchk` in a `defaults` section does not turn it into an HTTP check.
        Check::Tcp(_) => lines.push("  option tcp-check\n".to_owned()),
        Check::Disabled => {}
    }
    if let Some(timing) = check.timing() {
        lines.extend(timing.timeout.map(|timeout| format!("  timeout check {}\n", time(timeout))));
        lines.push(default_server(timing));
    }
    lines
}

fn http_check(check: &HttpCheck) -> Vec<String> {
    let HttpCheck { method, path, host, headers, status } = check;
    let version = if host.is_some() { " HTTP/1.1" } else { "" };
    let mut lines = vec![format!("  option httpchk {method} {path}{version}\n")];
    let host = host.iter().map(|host| ("Host", host));
    let headers = host.chain(headers.iter().map(|(name, value)| (name.as_str(), value)));
    let headers: Vec<String> = headers.map(|(name, value)| format!(" hdr {name} {value}")).collect();
    if !headers.is_empty() {
        lines.push(format!("  http-check send meth {method} uri {path}{}\n", headers.concat()));
    }
    lines.extend(status.as_ref().map(|status| format!("  http-check expect status {status}\n")));
    lines
}

fn default_server(timing: &Timing) -> String {
    let Timing { interval, timeout: _, rise, fall, port } = timing;
    let mut line = "  default-server check".to_owned();
    let mut add = |word: &str, value: Option<String>| {
        if let Some(value) = value {
            line.extend([" ", word, " ", &value]);
        }
    };
    add("fall", fall.map(|n| n.to_string()));
    add("inter", interval.map(time));
    add("port", port.map(|n| n.to_string()));
    add("rise", rise.map(|n| n.to_string()));
    line + "\n"
}

/// A server line.
pub fn server(server: &Server, owner: &Owner) -> String {
    let Server { name, address, port, check, cookie, options, gated, occupant: _ } = server;
    let ServerOptions { weight, maxconn, backup, proxy, tls } = options;
    let address = match address {
        Address::Ip(std::net::IpAddr::V6(ip)) => format!("[{ip}]"),
        other => other.to_string(),
    };
    let mut line = format!("  server {name} {address}:{port}");
    if *check {
        line.push_str(" check");
    }
    if *backup {
        line.push_str(" backup");
    }
    if !server.is_enabled() {
        line.push_str(" disabled");
    }
    if matches!(server.address, Address::Host(_)) {
        line.push_str(&format!(" init-addr {INIT_ADDR}"));
    }
    if *gated {
        line.push_str(" init-state down");
    }
    if let Some(maxconn) = maxconn {
        line.push_str(&format!(" maxconn {maxconn}"));
    }
    if let Some(weight) = weight {
        line.push_str(&format!(" weight {weight}"));
    }
    if *cookie {
        line.push_str(&format!(" cookie {name}"));
    }
    if let Some(proxy) = proxy {
        line.push_str(&format!(" {}", proxy.as_str()));
    }
    for (option, value) in tls.iter().flat_map(|tls| self::tls(tls)) {
        line.extend([" ", option]);
        line.extend(value.iter().flat_map(|value| [" ", value]));
    }
    format!("{line} # {}\n", metadata(server, owner))
}

/// The options of a server for TLS. `verify` is stated, as a setting in `global` may change what holds without it.
pub fn tls(tls: &Tls) -> Vec<(&'static str, Option<String>)> {
    let Tls { verify, sni } = tls;
    let mut options = vec![("ssl", None), ("verify", Some(verify.as_str().to_owned()))];
    if *verify == Verify::Required {
        options.push(("ca-file", Some(SYSTEM_CA.to_owned())));
    }
    if let Some(sni) = sni {
        options.push(("sni", Some(sni.to_string())));
        // `sni` is for requests only.
        options.extend(sni.host().map(|host| ("check-sni", Some(host.to_owned()))));
    }
    options
}

/// The metadata of a server: its owner and its occupant. Strings only: the Data Plane API writes it as a JSON comment
/// and reads it back.
pub fn metadata(server: &Server, owner: &Owner) -> serde_json::Value {
    let owner = owner.name();
    match &server.occupant {
        Occupant::Instance { id, alloc, service, drain } => {
            let mut data = serde_json::json!({"alloc": alloc, "id": id.as_str(), "owner": owner});
            if let Some(service) = service {
                data["service"] = service.to_word().into();
            }
            if let Some(drain) = drain {
                data["drain"] = time(*drain).into();
            }
            data
        }
        Occupant::Free { freed, drain_until } => {
            let mut data = serde_json::json!({"freed": freed.to_string(), "owner": owner});
            if let Some(until) = drain_until {
                data["drain_until"] = until.to_string().into();
            }
            data
        }
    }
}

/// A time in HAProxy's syntax: whole seconds if possible, else milliseconds.
pub fn time(duration: Duration) -> String {
    match duration.as_millis() {
        ms if ms > 0 && ms % 1000 == 0 => format!("{}s", ms / 1000),
        ms => format!("{ms}ms"),
    }
}
