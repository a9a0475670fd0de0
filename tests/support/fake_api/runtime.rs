//! The run-time part of the fake API: commands for the process, and the state of its servers.

use std::time::Duration;

use nomad_haproxy::haproxy::socket;
use serde_json::{Value, json};

use super::{Answer, FakeApi, Request, empty, error, ok};

/// How long the API waits for an answer on the socket.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Of `runtime/info`: the API's names and HAProxy's.
const FIGURES: [(&str, &str); 6] = [
    ("uptime", "Uptime_sec"),
    ("curr_conns", "CurrConns"),
    ("cum_conns", "CumConns"),
    ("conn_rate", "ConnRate"),
    ("max_conn", "Maxconn"),
    ("cum_req", "CumReq"),
];
/// The columns of `show stat` after these are not in the answer.
const LAST_STAT: &str = "dses";
/// Nor are these.
const NO_STATS: [&str; 3] = ["pxname", "svname", "type"];
/// The columns with words.
const WORDS: [&str; 13] = [
    "status",
    "tracked",
    "check_status",
    "last_chk",
    "last_agt",
    "agent_status",
    "check_desc",
    "agent_desc",
    "addr",
    "cookie",
    "mode",
    "algo",
    "hanafail",
];

/// One row of the statistics.
fn stat(columns: &[&str], row: &[&str]) -> Value {
    let last = columns.iter().position(|column| *column == LAST_STAT).unwrap();
    let all = columns.iter().zip(row).take(last + 1);
    let stats = all.filter(|(column, value)| !value.is_empty() && !NO_STATS.contains(column)).map(|(column, value)| {
        let value = if WORDS.contains(column) { json!(value) } else { json!(value.parse::<i64>().unwrap()) };
        ((*column).to_owned(), value)
    });
    let stats: Value = stats.collect::<serde_json::Map<_, _>>().into();
    let kind = columns.iter().position(|column| *column == "type").map(|at| row[at]);
    match kind {
        Some("0" | "1") => json!({"name": row[0], "type": row[1].to_lowercase(), "stats": stats}),
        Some("2") => json!({"name": row[1], "backend_name": row[0], "type": "server", "stats": stats}),
        _ => json!({"stats": stats}),
    }
}

impl FakeApi {
    /// One command. The API has one lock for all of them, so they wait for each other, and for a reload.
    pub(super) async fn command(&self, command: &str) -> Result<String, String> {
        let _one = self.commands.lock().await;
        socket::command(&self.master, command, TIMEOUT).await.map_err(|error| error.to_string())
    }

    /// A command for the worker. HAProxy returns the severity of a message; a mere notice is not an error.
    async fn execute(&self, command: &str) -> Result<(), String> {
        let answer = self.command(&format!("set severity-output number;@1 {command}")).await?;
        match answer.strip_prefix('[').and_then(|answer| answer.split_once("]:")) {
            Some((severity @ ("0" | "1" | "2" | "3"), message)) => {
                Err(format!("{} [{severity}] {message} [{command}]", self.master.display()))
            }
            _ => Ok(()),
        }
    }

    pub(super) async fn info(&self) -> Answer {
        let answer = self.command("@1 show info").await;
        let field = |name: &str| {
            let text = answer.as_ref().ok()?;
            text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")).map(str::to_owned)
        };
        match (field("Version"), field("Pid")) {
            (Some(version), Some(pid)) => {
                let mut info = json!({"version": version, "pid": pid.parse::<u64>().unwrap()});
                for (name, theirs) in FIGURES {
                    info[name] = json!(field(theirs).unwrap().parse::<u64>().unwrap());
                }
                ok(200, json!({"info": info, "runtimeAPI": self.master}))
            }
            _ => {
                let error = format!("dial unix {}: connection refused", self.master.display());
                ok(200, json!({"error": error, "runtimeAPI": self.master}))
            }
        }
    }

    /// HAProxy's CSV as JSON. The real API splits its lines at each comma, and leaves out a row that does not fit then.
    pub(super) async fn stats(&self, request: &Request<'_>) -> Answer {
        let csv = match self.command("@1 show stat").await {
            Ok(csv) if csv.starts_with("# ") => csv,
            _ => {
                let error = format!("dial unix {}: connect: connection refused [show stat]", self.master.display());
                let asked = format!("{}@1", self.master.display());
                return ok(500, json!({"error": error, "runtimeAPI": asked}));
            }
        };
        let mut lines = csv.trim_start_matches("# ").lines();
        let columns: Vec<&str> = lines.next().unwrap().split(',').collect();
        let rows = lines.map(|line| line.split(',').collect::<Vec<_>>()).filter(|row| row.len() >= columns.len());
        let wanted = |name: &str, row: &Value| request.query.get(name).is_none_or(|wanted| row[name] == **wanted);
        let rows = rows.map(|row| stat(&columns, &row)).filter(|row| {
            let parent = request.query.get("parent").is_none_or(|parent| row["backend_name"] == **parent);
            wanted("type", row) && wanted("name", row) && parent
        });
        ok(200, json!({"runtimeAPI": format!("{}@1", self.master.display()), "stats": rows.collect::<Vec<_>>()}))
    }

    /// Runs the actions of a header up to the first that fails. Those that the API does not know are skipped.
    pub(super) async fn act(&self, actions: &str) -> Result<(), String> {
        for action in actions.split(';') {
            let words: Vec<&str> = action.split(' ').collect();
            let bad = || Err(format!("{} bad request", self.master.display()));
            let result = match words.as_slice() {
                ["SetServerAddr", b, s, ip, port, ..] => match port.parse::<i64>() {
                    Ok(port) => self.execute(&format!("set server {b}/{s} addr {ip} port {port}")).await,
                    Err(_) => Err(format!("strconv.ParseInt: parsing \"{port}\": invalid syntax")),
                },
                ["SetServerState", b, s, state @ ("ready" | "maint" | "drain"), ..] => {
                    self.execute(&format!("set server {b}/{s} state {state}")).await
                }
                ["SetServerWeight", b, s, weight, ..] if is_weight(weight) => {
                    self.execute(&format!("set server {b}/{s} weight {weight}")).await
                }
                ["SetServerState" | "SetServerWeight", _, _, _, ..] => bad(),
                ["SetServerAddr" | "SetServerState" | "SetServerWeight", ..] => Err("not enough parameters".into()),
                _ => Ok(()),
            };
            result.map_err(|why| format!("cannot execute {}: {why}", words[0]))?;
        }
        Ok(())
    }

    pub(super) async fn servers(&self, request: &Request<'_>, backend: &str, path: &[&str]) -> Answer {
        let missing = |name: &str, status: u16| error(status, format!("no data for {name}: not found"));
        // 3.0 returns 404 only for the GET of one server and the DELETE.
        let status = if self.series == "3.0" { 500 } else { 404 };
        let body: Value = serde_json::from_slice(request.body).unwrap_or_default();
        let name = path.first().copied().or(body["name"].as_str()).unwrap_or_default();
        let full = format!("{backend}/{name}");
        let find = async || self.state(backend).await.into_iter().find(|server| server["name"] == name);
        match (request.method.as_str(), path) {
            ("GET", []) => match self.state(backend).await {
                servers if servers.is_empty() => missing(backend, status),
                servers => ok(200, json!(servers)),
            },
            ("GET", [_]) => find().await.map_or_else(|| missing(&full, 404), |server| ok(200, server)),
            ("PUT", [_]) => {
                if !matches!(body["admin_state"].as_str(), None | Some("ready" | "maint" | "drain")) {
                    let code = if self.series == "3.4" { 422 } else { 606 };
                    let message = "admin_state in body should be one of [ready maint drain]";
                    return ok(422, json!({"code": code, "message": message}));
                }
                let Some(server) = find().await else { return missing(&full, status) };
                match self.change(&full, &server, &body).await {
                    Ok(()) => find().await.map_or_else(|| missing(&full, 404), |server| ok(200, server)),
                    Err(why) => error(500, why),
                }
            }
            ("POST", []) => {
                let (address, port) = (body["address"].as_str().unwrap(), body["port"].as_u64().unwrap());
                let check = if body["check"] == "enabled" { " check" } else { "" };
                match self.execute(&format!("add server {full} {address}:{port}{check}")).await {
                    Ok(()) => ok(201, body),
                    Err(why) if why.contains("Already exists") => error(409, why),
                    Err(why) => error(500, why),
                }
            }
            ("DELETE", [_]) => {
                if find().await.is_none() {
                    return missing(&full, 404);
                }
                let maintained = self.execute(&format!("set server {full} state maint")).await;
                match maintained.and(self.execute(&format!("del server {full}")).await) {
                    Ok(()) => empty(204),
                    Err(why) => error(500, why),
                }
            }
            _ => error(405, "method not allowed"),
        }
    }

    /// Applies the differences. Only 3.4 applies an address, a port or a weight.
    async fn change(&self, name: &str, server: &Value, body: &Value) -> Result<(), String> {
        let set = |key: &str| body[key].as_str().filter(|value| server[key] != *value);
        if let Some(health) = set("operational_state") {
            self.execute(&format!("set server {name} health {health}")).await?;
        }
        if let Some(state) = set("admin_state") {
            self.execute(&format!("set server {name} state {state}")).await?;
        }
        if self.series != "3.4" {
            return Ok(());
        }
        let given = |key: &str| Some(&body[key]).filter(|value| !value.is_null());
        if given("address").or(given("port")).is_some() {
            let address = given("address").unwrap_or(&server["address"]).as_str().unwrap();
            let port = given("port").unwrap_or(&server["port"]);
            self.execute(&format!("set server {name} addr {address} port {port}")).await?;
        }
        match given("weight") {
            Some(weight) => self.execute(&format!("set server {name} weight {weight}")).await,
            None => Ok(()),
        }
    }

    /// The servers of a backend as the API returns them.
    async fn state(&self, backend: &str) -> Vec<Value> {
        let state = self.command(&format!("@1 show servers state {backend}")).await.unwrap_or_default();
        let rows = state.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        rows.filter(|fields| fields.len() > 24 && fields[0] != "#").map(|fields| self.server(&fields)).collect()
    }

    fn server(&self, fields: &[&str]) -> Value {
        // HAProxy writes the number in decimal; the API reads it as hexadecimal.
        let state = match u16::from_str_radix(fields[6], 16).unwrap() {
            bits if bits & 0x23 != 0 => "maint",
            bits if bits & 0x18 != 0 => "drain",
            _ => "ready",
        };
        let health = ["down", "up", "up", "stopping"][fields[5].parse::<usize>().unwrap()];
        let number = |at: usize| json!(fields[at].parse::<u64>().unwrap());
        let mut server = json!({
            "address": fields[4], "admin_state": state, "id": fields[2], "name": fields[3],
            "operational_state": health, "port": number(18),
        });
        if self.series == "3.4" {
            let numbers = [
                ("backend_id", 0),
                ("weight", 7),
                ("uweight", 7),
                ("iweight", 8),
                ("last_time_change", 9),
                ("check_status", 10),
                ("check_result", 11),
                ("check_health", 12),
                ("check_state", 13),
                ("agent_state", 14),
                ("backend_forced_id", 15),
                ("forced_id", 16),
                ("check_port", 21),
                ("agent_port", 24),
            ];
            for (key, at) in numbers {
                server[key] = number(at);
            }
            let words = [("backend_name", 1), ("fqdn", 17), ("srvrecord", 19), ("check_addr", 22), ("agent_addr", 23)];
            for (key, at) in words {
                server[key] = json!(fields[at]);
            }
            server["use_ssl"] = json!(fields[20] == "1");
        }
        server
    }
}

fn is_weight(weight: &str) -> bool {
    match weight.strip_suffix('%') {
        Some(percent) => percent.parse::<u16>().is_ok_and(|percent| percent <= 100),
        None => weight.parse::<u16>().is_ok_and(|weight| weight <= 256),
    }
}
