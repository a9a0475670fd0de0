//! Backends and servers between the API's JSON and the configuration text.

use axum::http::StatusCode;
use nomad_haproxy::haproxy::text::{ConfigText, Directive, Section};
use serde_json::{Map, Value, json};

use super::{Answer, error, ok};

/// A word of a server line and its key, with how the value is written.
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
];

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

fn backend_lines(backend: &Value, metadata: bool) -> Vec<String> {
    let text = |key: &str| backend[key].as_str();
    let mut header = format!("backend {}", text("name").unwrap());
    if let Some(from) = text("from") {
        header += &format!(" from {from}");
    }
    if metadata && !backend["metadata"].is_null() {
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
    if !backend["check_timeout"].is_null() {
        lines.push(format!("  timeout check {}", time(&backend["check_timeout"])));
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
    let mut lines: Vec<String> = lines.into_iter().map(|line| line + "\n").collect();
    // In the order of their names' numbers, as the real one keeps the order of what it is sent.
    let servers = backend["servers"].as_object().cloned().unwrap_or_default();
    lines.extend(servers.values().map(server_line));
    lines
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

fn metadata(directive: &Directive) -> Option<Value> {
    serde_json::from_str(directive.comment.as_deref()?).ok()
}

fn server_json(directive: &Directive) -> Value {
    let (address, port) = directive.words[2].rsplit_once(':').unwrap_or((&directive.words[2], ""));
    let mut server = json!({"name": directive.words[1], "address": address.trim_matches(['[', ']'])});
    if let Ok(port) = port.parse::<u16>() {
        server["port"] = json!(port);
    }
    parse_options(&directive.words[3..], &mut server);
    if let Some(metadata) = metadata(directive) {
        server["metadata"] = metadata;
    }
    server
}

fn backend_json(text: &ConfigText, section: &Section) -> Value {
    let mut backend = json!({"name": section.name});
    if let Some(from) = &section.from {
        backend["from"] = json!(from);
    }
    let (mut servers, mut rules) = (Map::new(), Vec::new());
    for (_, directive) in text.directives(section) {
        let words: Vec<&str> = directive.words.iter().map(String::as_str).collect();
        match words.as_slice() {
            ["backend", ..] => {
                if let Some(metadata) = metadata(&directive) {
                    backend["metadata"] = metadata;
                }
            }
            ["description", rest @ ..] => backend["description"] = json!(rest.join(" ")),
            ["mode", mode] => backend["mode"] = json!(mode),
            ["balance", algorithm] => backend["balance"] = json!({"algorithm": algorithm}),
            ["retries", n] => backend["retries"] = json!(n.parse::<u64>().unwrap()),
            ["option", "redispatch", n] => {
                backend["redispatch"] = json!({"enabled": "enabled", "interval": n.parse::<u64>().unwrap()});
            }
            ["option", "httpchk", rest @ ..] => {
                backend["adv_check"] = json!("httpchk");
                let keys = ["method", "uri", "version"].iter().zip(rest);
                backend["httpchk_params"] =
                    keys.map(|(key, value)| ((*key).to_owned(), json!(value))).collect::<Map<_, _>>().into();
            }
            ["http-check", "send", "meth", method, "uri", uri, "hdr", name, fmt] => {
                rules.push(
                    json!({"type": "send", "method": method, "uri": uri, "headers": [{"name": name, "fmt": fmt}]}),
                );
            }
            ["http-check", "expect", kind, pattern] => {
                rules.push(json!({"type": "expect", "match": kind, "pattern": pattern}));
            }
            ["timeout", "check", value] => {
                let time = nomad_haproxy::haproxy::parse::time(value).unwrap();
                backend["check_timeout"] = json!(u64::try_from(time.as_millis()).unwrap());
            }
            ["default-server", ..] => {
                let mut server = json!({});
                parse_options(&directive.words[1..], &mut server);
                backend["default_server"] = server;
            }
            ["server", name, ..] => {
                servers.insert((*name).to_owned(), server_json(&directive));
            }
            _ => {}
        }
    }
    if !rules.is_empty() {
        backend["http_check_list"] = json!(rules);
    }
    if !servers.is_empty() {
        backend["servers"] = json!(servers);
    }
    backend
}

fn find(text: &ConfigText, name: &str) -> Option<Section> {
    text.sections().into_iter().find(|section| section.kind == "backend" && section.name == name)
}

/// A section with the comments behind it, which go where it goes: the worst that the real one may do, as no
/// recording has any.
fn whole(text: &ConfigText, section: &Section) -> std::ops::Range<usize> {
    let next = text.sections().into_iter().map(|next| next.lines.start).find(|start| *start > section.lines.start);
    section.lines.start..next.unwrap_or(text.lines().len())
}

/// A GET of backends, a backend, or its servers.
pub fn read(text: &ConfigText, path: &[&str]) -> Answer {
    let Some((name, rest)) = path.split_first() else {
        let sections = text.sections();
        let backends = sections.iter().filter(|section| section.kind == "backend");
        return ok(200, backends.map(|section| backend_json(text, section)).collect());
    };
    match (find(text, name), rest) {
        (None, _) => error(404, format!("missing object: Backend {name} does not exist")),
        (Some(section), []) => ok(200, backend_json(text, &section)),
        (Some(section), _) => {
            let servers = backend_json(text, &section)["servers"].as_object().cloned().unwrap_or_default();
            ok(200, servers.values().cloned().collect())
        }
    }
}

/// A POST, PUT or DELETE of a backend or a server.
pub fn edit(text: &mut ConfigText, method: &str, path: &[&str], body: Value, metadata: bool) -> Answer {
    match (method, path) {
        ("POST", []) => {
            let name = body["name"].as_str().unwrap_or("");
            if !name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.:".contains(c)) || name.is_empty() {
                return invalid(605, "name in body should match '^[A-Za-z0-9-_.:]+$'");
            }
            if !["http", "tcp", "log"].contains(&body["mode"].as_str().unwrap_or("http")) {
                return invalid(606, "mode in body should be one of [http tcp log]");
            }
            if find(text, name).is_some() {
                return error(404, format!("missing object: backend {name} already exist"));
            }
            text.append(backend_lines(&body, metadata));
        }
        ("PUT", [name]) => {
            let Some(section) = find(text, name) else {
                return error(404, format!("missing object: backend {name} does not exist"));
            };
            let whole = whole(text, &section);
            text.splice(whole, backend_lines(&body, metadata));
        }
        ("DELETE", [name]) => {
            let Some(section) = find(text, name) else {
                return error(404, format!("missing object: backend {name} does not exist"));
            };
            let whole = whole(text, &section);
            text.splice(whole, []);
            return (StatusCode::ACCEPTED, None);
        }
        (_, [name, "servers", rest @ ..]) => return edit_server(text, method, name, rest, body),
        _ => return error(405, "method not allowed"),
    }
    let mut echo = body;
    if !metadata {
        echo.as_object_mut().unwrap().remove("metadata");
    }
    ok(202, echo)
}

fn invalid(code: u16, message: &str) -> Answer {
    (StatusCode::UNPROCESSABLE_ENTITY, Some(json!({"code": code, "message": message})))
}

fn edit_server(text: &mut ConfigText, method: &str, backend: &str, path: &[&str], body: Value) -> Answer {
    let Some(section) = find(text, backend) else {
        return error(404, format!("missing object: backend {backend} does not exist"));
    };
    let name = path.first().copied().or(body["name"].as_str()).unwrap_or("").to_owned();
    let line = text.directives(&section).find(|(_, d)| d.keyword() == "server" && d.words[1] == name).map(|(at, _)| at);
    match (method, line) {
        ("POST", None) => text.splice(section.lines.end..section.lines.end, [server_line(&body)]),
        ("POST", Some(_)) => {
            return error(409, format!("object already exists: server {name} already exists in {backend} backend"));
        }
        ("PUT", Some(at)) => text.splice(at..at + 1, [server_line(&body)]),
        ("DELETE", Some(at)) => {
            text.splice(at..at + 1, []);
            return (StatusCode::ACCEPTED, None);
        }
        _ => return error(404, format!("missing object: server {name} does not exist in {backend} backend")),
    }
    ok(202, body)
}
