//! Conversion of backends and servers between the API's JSON and the configuration text.

use serde_json::{Map, Value, json};

use super::render::{Config, Line, Section};
use super::{Answer, empty, error, ok};

/// A word of a server line and its key, with the format of the value.
#[derive(Clone, Copy)]
enum Form {
    Flag,
    Text,
    Number,
    Time,
}

const SERVER: &[(&str, &str, Form)] = &[
    ("check", "check", Form::Flag),
    ("backup", "backup", Form::Flag),
    ("fall", "fall", Form::Number),
    ("rise", "rise", Form::Number),
    ("inter", "inter", Form::Time),
    ("port", "health_check_port", Form::Number),
    ("maxconn", "maxconn", Form::Number),
    ("weight", "weight", Form::Number),
    ("resolvers", "resolvers", Form::Text),
    ("init-state", "init-state", Form::Text),
    ("cookie", "cookie", Form::Text),
    ("send-proxy", "send-proxy", Form::Flag),
    ("send-proxy-v2", "send-proxy-v2", Form::Flag),
    ("ssl", "ssl", Form::Flag),
    ("verify", "verify", Form::Text),
    ("ca-file", "ssl_cafile", Form::Text),
    ("sni", "sni", Form::Text),
    ("check-sni", "check-sni", Form::Text),
];

/// Timeouts of a backend: the key of `timeout X` is `X_timeout`.
const TIMEOUTS: &[&str] = &["check", "connect", "queue", "server", "tunnel"];

fn time(value: &Value) -> String {
    match value.as_u64().unwrap() {
        ms if ms > 0 && ms % 1000 == 0 => format!("{}s", ms / 1000),
        ms => format!("{ms}ms"),
    }
}

fn options(server: &Value) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    for (word, key, form) in SERVER {
        let value = &server[*key];
        match (form, value) {
            (_, Value::Null) => {}
            (Form::Flag, value) if value == "enabled" => words.push((*word).into()),
            (Form::Flag, _) => {}
            (Form::Time, value) => words.push(format!("{word} {}", time(value))),
            (Form::Text, value) => words.push(format!("{word} {}", value.as_str().unwrap())),
            (Form::Number, value) => words.push(format!("{word} {value}")),
        }
    }
    match server["maintenance"].as_str() {
        Some("enabled") => words.push("disabled".into()),
        Some("disabled") => words.push("enabled".into()),
        _ => {}
    }
    words.sort();
    words
}

fn server_line(server: &Value) -> String {
    let address = server["address"].as_str().unwrap();
    let address = if address.contains(':') { format!("[{address}]") } else { address.to_owned() };
    let mut line = format!("  server {} {address}", server["name"].as_str().unwrap());
    if let Some(port) = server["port"].as_u64() {
        line += &format!(":{port}");
    }
    for word in options(server) {
        line += &format!(" {word}");
    }
    if !server["metadata"].is_null() {
        line += &format!(" # {}", server["metadata"]);
    }
    line + "\n"
}

fn backend_text(backend: &Value) -> String {
    let text = |key: &str| backend[key].as_str();
    let mut header = format!("backend {}", text("name").unwrap());
    if let Some(from) = text("from") {
        header += &format!(" from {from}");
    }
    if !backend["metadata"].is_null() {
        header += &format!(" # {}", backend["metadata"]);
    }
    let mut lines = vec![header];
    lines.extend(text("description").map(|words| format!("  description {words}")));
    lines.extend(text("mode").map(|mode| format!("  mode {mode}")));
    let balance = &backend["balance"];
    if let Some(algorithm) = balance["algorithm"].as_str() {
        let argument = match algorithm {
            "hdr" => format!("({})", balance["hdr_name"].as_str().unwrap()),
            "url_param" => format!(" {}", balance["url_param"].as_str().unwrap()),
            "random" if !balance["random_draws"].is_null() => format!("({})", balance["random_draws"]),
            _ => String::new(),
        };
        lines.push(format!("  balance {algorithm}{argument}"));
    }
    if text("adv_check") == Some("tcp-check") {
        lines.push("  option tcp-check".to_owned());
    }
    if text("adv_check") == Some("httpchk") {
        let params = &backend["httpchk_params"];
        let words = ["method", "uri", "version"].iter().filter_map(|key| params[*key].as_str());
        lines.push(format!("  option httpchk {}", words.collect::<Vec<_>>().join(" ")).trim_end().to_owned());
    }
    if backend["redispatch"]["enabled"] == "enabled" {
        lines.push(format!("  option redispatch {}", backend["redispatch"]["interval"]));
    }
    if let Some(retries) = backend["retries"].as_u64() {
        lines.push(format!("  retries {retries}"));
    }
    for word in TIMEOUTS {
        let value = &backend[format!("{word}_timeout")];
        lines.extend((!value.is_null()).then(|| format!("  timeout {word} {}", time(value))));
    }
    let cookie = &backend["cookie"];
    if let Some(name) = cookie["name"].as_str() {
        let flags = ["indirect", "nocache"].into_iter().filter(|flag| cookie[*flag] == true);
        let words = flags.chain(cookie["type"].as_str()).collect::<Vec<_>>();
        lines.push(format!("  cookie {name} {}", words.join(" ")));
    }
    for rule in backend["http_check_list"].as_array().into_iter().flatten() {
        lines.push(match rule["type"].as_str() {
            Some("send") => {
                let mut line = "  http-check send".to_owned();
                for (word, key) in [("meth", "method"), ("uri", "uri"), ("ver", "version")] {
                    if let Some(value) = rule[key].as_str() {
                        line += &format!(" {word} {value}");
                    }
                }
                for header in rule["headers"].as_array().into_iter().flatten() {
                    line += &format!(" hdr {} {}", header["name"].as_str().unwrap(), header["fmt"].as_str().unwrap());
                }
                line
            }
            _ => {
                format!("  http-check expect {} {}", rule["match"].as_str().unwrap(), rule["pattern"].as_str().unwrap())
            }
        });
    }
    if !backend["default_server"].is_null() {
        lines.push(format!("  default-server {}", options(&backend["default_server"]).join(" ")));
    }
    let mut text = lines.join("\n") + "\n";
    // In the order of the numbers in their names, as the real one keeps the order in which it received them.
    let servers = backend["servers"].as_object().cloned().unwrap_or_default();
    text.extend(servers.values().map(server_line));
    text
}

fn parse_options(words: &[String], server: &mut Value) {
    let mut words = words.iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "enabled" => server["maintenance"] = json!("disabled"),
            "disabled" => server["maintenance"] = json!("enabled"),
            word => {
                let Some((_, key, form)) = SERVER.iter().find(|(known, ..)| *known == word) else { continue };
                server[*key] = match form {
                    Form::Flag => json!("enabled"),
                    Form::Text => json!(words.next().unwrap()),
                    Form::Number => json!(words.next().unwrap().parse::<u64>().unwrap()),
                    Form::Time => {
                        let time = nomad_haproxy::haproxy::parse::time(words.next().unwrap()).unwrap();
                        json!(u64::try_from(time.as_millis()).unwrap())
                    }
                };
            }
        }
    }
}

/// A comment that is not JSON is returned as an object with the key `comment`.
fn metadata(comment: Option<&Vec<u8>>) -> Option<Value> {
    let comment = comment?;
    let text = || json!({"comment": String::from_utf8_lossy(comment)});
    Some(serde_json::from_slice(comment).ok().filter(Value::is_object).unwrap_or_else(text))
}

fn server_json(line: &Line) -> Value {
    let (address, port) = line.words[2].rsplit_once(':').unwrap_or((&line.words[2], ""));
    let mut server = json!({"name": line.words[1], "address": address.trim_matches(['[', ']'])});
    if let Ok(port) = port.parse::<u16>() {
        server["port"] = json!(port);
    }
    parse_options(&line.words[3..], &mut server);
    if let Some(metadata) = metadata(line.comment.as_ref()) {
        server["metadata"] = metadata;
    }
    server
}

fn bind_json(line: &Line) -> Value {
    let (address, port) = line.words[1].rsplit_once(':').unwrap();
    let name = line.words.iter().skip_while(|word| *word != "name").nth(1).unwrap_or(&line.words[1]);
    json!({"name": name, "address": address, "port": port.parse::<u16>().unwrap()})
}

fn backend_json(section: &Section) -> Value {
    let mut backend = json!({"name": section.name});
    if let Some(from) = &section.from {
        backend["from"] = json!(from);
    }
    if let Some(metadata) = metadata(section.comment.as_ref()) {
        backend["metadata"] = metadata;
    }
    let (mut servers, mut rules, mut acls) = (Map::new(), Vec::new(), Vec::new());
    for line in section.lines() {
        let words: Vec<&str> = line.words.iter().map(String::as_str).collect();
        match words.as_slice() {
            ["description", rest @ ..] => backend["description"] = json!(rest.join(" ")),
            ["mode", mode] => backend["mode"] = json!(mode),
            ["balance", algorithm] => backend["balance"] = json!({"algorithm": algorithm}),
            ["fullconn", n] => backend["fullconn"] = json!(n.parse::<u64>().unwrap()),
            ["acl", name, criterion, value @ ..] => {
                acls.push(json!({"acl_name": name, "criterion": criterion, "value": value.join(" ")}));
            }
            ["retries", n] => backend["retries"] = json!(n.parse::<u64>().unwrap()),
            ["option", "redispatch", n] => {
                backend["redispatch"] = json!({"enabled": "enabled", "interval": n.parse::<u64>().unwrap()});
            }
            ["option", "tcp-check"] => backend["adv_check"] = json!("tcp-check"),
            ["option", "httpchk", rest @ ..] => {
                backend["adv_check"] = json!("httpchk");
                let keys = ["method", "uri", "version"].iter().zip(rest);
                backend["httpchk_params"] =
                    keys.map(|(key, value)| ((*key).to_owned(), json!(value))).collect::<Map<_, _>>().into();
            }
            ["http-check", "send", "meth", method, "uri", uri, headers @ ..] => {
                let headers: Vec<Value> =
                    headers.chunks(3).map(|header| json!({"name": header[1], "fmt": header[2]})).collect();
                rules.push(json!({"type": "send", "method": method, "uri": uri, "headers": headers}));
            }
            ["http-check", "expect", kind, pattern] => {
                rules.push(json!({"type": "expect", "match": kind, "pattern": pattern}));
            }
            ["cookie", name, words @ ..] => {
                let has = |word: &str| words.contains(&word);
                backend["cookie"] = json!({"name": name, "indirect": has("indirect"), "nocache": has("nocache")});
                let kind = ["rewrite", "insert", "prefix"].into_iter().find(|kind| has(kind));
                backend["cookie"]["type"] = json!(kind);
            }
            ["timeout", word, value] if TIMEOUTS.contains(word) => {
                let time = nomad_haproxy::haproxy::parse::time(value).unwrap();
                backend[format!("{word}_timeout")] = json!(u64::try_from(time.as_millis()).unwrap());
            }
            ["default-server", ..] => {
                let mut server = json!({});
                parse_options(&line.words[1..], &mut server);
                backend["default_server"] = server;
            }
            ["server", name, ..] => {
                servers.insert((*name).to_owned(), server_json(line));
            }
            _ => {}
        }
    }
    if !acls.is_empty() {
        backend["acl_list"] = json!(acls);
    }
    if !rules.is_empty() {
        backend["http_check_list"] = json!(rules);
    }
    if !servers.is_empty() {
        backend["servers"] = json!(servers);
    }
    backend
}

/// A GET of backends, a backend or its servers, or of a frontend's listeners.
pub fn read(config: &Config, kind: &str, path: &[&str]) -> Answer {
    match (kind, path) {
        ("backends", []) => ok(200, config.sections("backend").map(backend_json).collect()),
        ("backends", [name, rest @ ..]) => match config.section("backend", name).map(backend_json) {
            None => error(404, format!("missing object: Backend {name} does not exist")),
            Some(backend) if rest.is_empty() => ok(200, backend),
            Some(backend) => {
                let servers = backend["servers"].as_object().cloned().unwrap_or_default();
                ok(200, servers.values().cloned().collect())
            }
        },
        ("frontends", [name, "binds"]) => {
            let lines = config.section("frontend", name).into_iter().flat_map(Section::lines);
            ok(200, lines.filter(|line| line.words[0] == "bind").map(bind_json).collect())
        }
        ("frontends", [name, "backend_switching_rules"]) => match config.section("frontend", name) {
            None => error(404, format!("missing object: frontend {name} does not exist")),
            Some(frontend) => {
                let lines = frontend.lines().filter(|line| line.words[0] == "use_backend");
                ok(200, lines.map(|line| rule_json(&line.words)).collect())
            }
        },
        _ => error(405, "method not allowed"),
    }
}

fn rule_json(words: &[String]) -> Value {
    match words {
        [_, name] => json!({"name": name}),
        [_, name, cond, test @ ..] => json!({"name": name, "cond": cond, "cond_test": test.join(" ")}),
        _ => Value::Null,
    }
}

/// A POST, PUT or DELETE of a backend or a server, or a POST of a listener.
pub fn edit(config: &mut Config, method: &str, kind: &str, path: &[&str], mut body: Value) -> Answer {
    // 3.0 does not know metadata of a backend.
    if kind == "backends" && path.len() < 2 && !config.has_header_comments() && body.is_object() {
        body.as_object_mut().unwrap().remove("metadata");
    }
    match (method, kind, path) {
        ("POST", "backends", []) => {
            let name = body["name"].as_str().unwrap_or("");
            if !name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.:".contains(c)) || name.is_empty() {
                return invalid(605, "name in body should match '^[A-Za-z0-9-_.:]+$'");
            }
            if !["http", "tcp", "log"].contains(&body["mode"].as_str().unwrap_or("http")) {
                return invalid(606, "mode in body should be one of [http tcp log]");
            }
            if config.section("backend", name).is_some() {
                return error(404, format!("missing object: backend {name} already exist"));
            }
            config.insert(&backend_text(&body));
        }
        (_, "backends", [name, ..]) if config.section("backend", name).is_none() => {
            return error(404, format!("missing object: backend {name} does not exist"));
        }
        ("PUT", "backends", [_]) => config.insert(&backend_text(&body)),
        ("DELETE", "backends", [name]) => {
            config.remove("backend", name);
            return empty(202);
        }
        (_, "backends", [name, "servers", rest @ ..]) => {
            return edit_server(config.section_mut("backend", name).unwrap(), method, rest, body);
        }
        ("POST", "frontends", [name, "binds"]) => {
            let Some(frontend) = config.section_mut("frontend", name) else {
                return error(404, format!("missing object: frontend {name} does not exist"));
            };
            let (address, name) = (body["address"].as_str().unwrap(), body["name"].as_str().unwrap());
            frontend.push(format!("bind {address}:{} name {name}", body["port"]).as_bytes());
        }
        (_, "frontends", [name, "backend_switching_rules", at]) => {
            let Some(frontend) = config.section_mut("frontend", name) else {
                return error(404, format!("missing object: frontend {name} does not exist"));
            };
            let at: usize = at.parse().unwrap();
            let text = |key: &str| body[key].as_str().unwrap_or_default();
            let line = format!("use_backend {} {} {}", text("name"), text("cond"), text("cond_test"));
            let is_there = match method {
                "POST" => frontend.insert_line("use_backend", at, line.trim_end().as_bytes()),
                "DELETE" => frontend.remove_line("use_backend", at),
                _ => return error(405, "method not allowed"),
            };
            if !is_there {
                return error(404, format!("missing object: index {at} out of range"));
            }
            if method == "DELETE" {
                return empty(202);
            }
        }
        _ => return error(405, "method not allowed"),
    }
    ok(202, body)
}

fn invalid(code: u16, message: &str) -> Answer {
    ok(422, json!({"code": code, "message": message}))
}

fn edit_server(backend: &mut Section, method: &str, path: &[&str], body: Value) -> Answer {
    let name = path.first().copied().or(body["name"].as_str()).unwrap_or("").to_owned();
    let exists = backend.lines().any(|line| line.words[0] == "server" && line.words[1] == name);
    match method {
        "POST" if exists => {
            let message = format!("object already exists: server {name} already exists in {} backend", backend.name);
            return error(409, message);
        }
        "POST" => backend.push(server_line(&body).as_bytes()),
        _ if !exists => {
            let message = format!("missing object: server {name} does not exist in {} backend", backend.name);
            return error(404, message);
        }
        "PUT" => backend.replace_server(&name, server_line(&body).as_bytes()),
        "DELETE" => {
            backend.remove_server(&name);
            return empty(202);
        }
        _ => return error(405, "method not allowed"),
    }
    ok(202, body)
}
