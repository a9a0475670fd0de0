//! Our backends and servers as the Data Plane API's JSON (v3; fixtures/dataplane has the exchanges).

use serde_json::{Map, Value, json};

use crate::desired::{
    Address, BackendName, BackendSettings, Check, HttpCheck, Owner, ProxyProtocol, Server, ServerOptions, Timing,
};
use crate::haproxy::render::{self, INIT_ADDR, REDISPATCH_INTERVAL, RETRIES};

/// A whole backend, as `full_section=true` takes it. `others` are the servers in it that are not ours, as the API
/// returned them.
pub(super) fn backend(
    name: &BackendName,
    from: Option<&str>,
    settings: &BackendSettings,
    servers: &[Server],
    others: Map<String, Value>,
    owner: &Owner,
) -> Value {
    let BackendSettings { description, mode, balance, check, cookie, timeouts } = settings;
    let mut all = others;
    all.extend(servers.iter().map(|one| (one.name.to_string(), server(one, owner))));
    let mut body = json!({
        "name": name,
        "description": description,
        "mode": mode.as_str(),
        "balance": balance_of(balance),
        "retries": RETRIES,
        "redispatch": {"enabled": "enabled", "interval": REDISPATCH_INTERVAL},
        "servers": all,
    });
    if let Some(from) = from {
        body["from"] = json!(from);
    }
    if let Some(cookie) = cookie {
        body["cookie"] = json!({"name": cookie.as_str(), "type": "insert", "indirect": true, "nocache": true});
    }
    for (word, time) in timeouts.each() {
        body[format!("{word}_timeout")] = json!(time.as_millis());
    }
    match check {
        Check::Http(http, _) => http_check(&mut body, http),
        Check::Tcp(_) => body["adv_check"] = json!("tcp-check"),
        Check::Disabled => {}
    }
    if let Some(timing) = check.timing() {
        if let Some(timeout) = timing.timeout {
            body["check_timeout"] = json!(timeout.as_millis());
        }
        body["default_server"] = default_server(timing);
    }
    body
}

fn balance_of(balance: &crate::desired::Balance) -> Value {
    let algorithm = balance.algorithm();
    match (algorithm, balance.argument()) {
        ("hdr", Some(name)) => json!({"algorithm": algorithm, "hdr_name": name}),
        ("url_param", Some(name)) => json!({"algorithm": algorithm, "url_param": name}),
        ("random", Some(draws)) => json!({"algorithm": algorithm, "random_draws": draws.parse::<u16>().unwrap_or(2)}),
        _ => json!({"algorithm": algorithm}),
    }
}

fn http_check(body: &mut Value, check: &HttpCheck) {
    let HttpCheck { method, path, host, headers, status } = check;
    body["adv_check"] = json!("httpchk");
    body["httpchk_params"] = json!({"method": method, "uri": path});
    let mut rules = Vec::new();
    if host.is_some() {
        body["httpchk_params"]["version"] = json!("HTTP/1.1");
    }
    let host = host.iter().map(|host| ("Host", host));
    let headers = host.chain(headers.iter().map(|(name, value)| (name.as_str(), value)));
    let headers: Vec<Value> = headers.map(|(name, value)| json!({"name": name, "fmt": value})).collect();
    if !headers.is_empty() {
        rules.push(json!({"type": "send", "method": method, "uri": path, "headers": headers}));
    }
    if let Some(status) = status {
        rules.push(json!({"type": "expect", "match": "status", "pattern": status}));
    }
    if !rules.is_empty() {
        body["http_check_list"] = Value::Array(rules);
    }
}

fn default_server(timing: &Timing) -> Value {
    let Timing { interval, timeout: _, rise, fall, port } = timing;
    let mut server = json!({"check": "enabled"});
    let mut set = |key: &str, value: Option<Value>| {
        if let Some(value) = value {
            server[key] = value;
        }
    };
    set("inter", interval.map(|time| json!(time.as_millis())));
    set("rise", rise.map(Value::from));
    set("fall", fall.map(Value::from));
    set("health_check_port", port.map(Value::from));
    server
}

/// One server.
pub(super) fn server(server: &Server, owner: &Owner) -> Value {
    let ServerOptions { weight, maxconn, backup, proxy, tls } = &server.options;
    let mut body = json!({
        "name": server.name,
        "address": server.address.to_string(),
        "port": server.port,
        "maintenance": if server.is_enabled() { "disabled" } else { "enabled" },
        "metadata": render::metadata(server, owner),
    });
    if server.check {
        body["check"] = json!("enabled");
    }
    if matches!(server.address, Address::Host(_)) {
        body["init-addr"] = json!(INIT_ADDR);
    }
    if server.gated {
        body["init-state"] = json!("down");
    }
    if *backup {
        body["backup"] = json!("enabled");
    }
    if let Some(weight) = weight {
        body["weight"] = json!(weight);
    }
    if let Some(maxconn) = maxconn {
        body["maxconn"] = json!(maxconn);
    }
    if server.cookie {
        body["cookie"] = json!(server.name);
    }
    if let Some(flag) = proxy.map(ProxyProtocol::as_str) {
        body[flag] = json!("enabled");
    }
    for (option, value) in tls.iter().flat_map(|tls| render::tls(tls)) {
        let key = if option == "ca-file" { "ssl_cafile" } else { option };
        body[key] = json!(value.as_deref().unwrap_or("enabled"));
    }
    body
}
/// A rule of a frontend, from its line: `use_backend NAME if CONDITION`.
pub(super) fn rule(line: &str) -> Value {
    let rest = line.strip_prefix("use_backend ").unwrap_or(line);
    let (name, condition) = rest.split_once(" if ").unwrap_or((rest, ""));
    json!({ "name": name, "cond": "if", "cond_test": condition })
}
