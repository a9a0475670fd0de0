//! Maps of the fake API: the files of its folder, and their entries in the process.

use std::fs;
use std::path::PathBuf;

use nomad_haproxy::haproxy::maps;
use serde_json::{Value, json};

use super::{Answer, Body, FakeApi, Request, answer, empty, error, ok};

/// The API adds the entries of a shorter request, and replaces all of them with those of a longer one.
const MAX_PAYLOAD: usize = 8192;

impl FakeApi {
    /// `maps_dir`.
    fn maps(&self) -> PathBuf {
        let folder = self.config.parent().unwrap().join("maps");
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    /// `storage/maps`.
    pub(super) fn map_files(&self, request: &Request<'_>, method: &str, path: &[&str]) -> Answer {
        let folder = self.maps();
        let missing =
            |name: &str| error(404, format!("missing object: file {name} doesn't exist in dir: {}", folder.display()));
        match (method, path) {
            ("GET", []) => {
                let mut paths: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
                paths.sort();
                let map = |path: &PathBuf| {
                    let name = path.file_name().unwrap().to_str().unwrap();
                    json!({"description": "managed map file", "file": path, "storage_name": name})
                };
                ok(200, paths.iter().map(map).collect())
            }
            ("POST", []) => {
                let form = String::from_utf8(request.body.to_vec()).unwrap();
                let name = form.split_once("filename=\"").unwrap().1.split_once('"').unwrap().0;
                let boundary = form.split_once("\r\n").unwrap().0;
                let content = form.split_once("\r\n\r\n").unwrap().1;
                let content = content.split_once(&format!("\r\n{boundary}--")).unwrap().0;
                let path = folder.join(name);
                if path.exists() {
                    return error(409, format!("object already exists: file {} already exists", path.display()));
                }
                fs::write(&path, content).unwrap();
                let description = "managed but not loaded map file (no runtime ID)";
                let size = content.len();
                ok(201, json!({"description": description, "file": path, "size": size, "storage_name": name}))
            }
            (_, [name]) if !folder.join(name).exists() => missing(name),
            ("GET", [name]) => answer(200, Body::Text(fs::read(folder.join(name)).unwrap())),
            ("PUT", [name]) if request.flag("skip_reload") => {
                fs::write(folder.join(name), request.body).unwrap();
                empty(204)
            }
            ("DELETE", [name]) => {
                let path = folder.join(name);
                if fs::read_to_string(&self.config).unwrap().contains(path.to_str().unwrap()) {
                    let what =
                        format!("rejecting attempt to delete file {} referenced in haproxy conf", path.display());
                    return error(409, what);
                }
                fs::remove_file(path).unwrap();
                empty(204)
            }
            _ => error(405, "method not allowed"),
        }
    }

    /// `runtime/maps/NAME`.
    pub(super) async fn map_entries(&self, request: &Request<'_>, method: &str, name: &str, path: &[&str]) -> Answer {
        let file = self.maps().join(name).display().to_string();
        let body: Value = serde_json::from_slice(request.body).unwrap_or_default();
        match (method, path) {
            ("GET", ["entries"]) => {
                let shown = self.command(&format!("@1 show map {file}")).await.unwrap();
                if shown.starts_with("Unknown") {
                    return error(404, format!("{}  {shown} [show map {file}] not found", self.master.display()));
                }
                let entry = |(key, value)| json!({"id": "0x1", "key": key, "value": value});
                let entries: Vec<Value> = maps::from_process(&shown).into_iter().map(entry).collect();
                ok(200, entries.into())
            }
            ("PUT", []) => {
                let line = |entry: &Value| {
                    format!("{} {}\n", entry["key"].as_str().unwrap(), entry["value"].as_str().unwrap())
                };
                let lines: String = body.as_array().unwrap().iter().map(line).collect();
                assert!(lines.len() < MAX_PAYLOAD, "the real API would replace all entries with these");
                self.done(&format!("add map {file} <<\n{lines}")).await.unwrap_or_else(|| ok(201, body))
            }
            (_, ["entries", id]) if id.contains(['*', ';', '$', '#', '&', '{', '}', '"', '<', '>']) => {
                const PATTERN: &str = "^[^\\r\\n<>*;$#&{}\"]+$";
                match self.series.as_str() {
                    "3.4" => {
                        let why = format!("id in path: string doesn't match the regular expression {PATTERN:?}");
                        ok(400, json!({"code": 400, "message": why}))
                    }
                    _ => ok(422, json!({"code": 605, "message": format!("id in path should match '{PATTERN}'")})),
                }
            }
            ("PUT", ["entries", key]) => {
                let value = body["value"].as_str().unwrap();
                let done = self.done(&format!("set map {file} {key} {value}")).await;
                done.unwrap_or_else(|| ok(200, json!({"key": key, "value": value})))
            }
            ("DELETE", ["entries", key]) => {
                self.done(&format!("del map {file} {key}")).await.unwrap_or_else(|| empty(204))
            }
            _ => error(405, "method not allowed"),
        }
    }

    /// The error of a command, if it is one.
    async fn done(&self, command: &str) -> Option<Answer> {
        let said = self.command(&format!("@1 {command}")).await.unwrap();
        (!said.is_empty()).then(|| error(404, format!("{}  {said} [{command}] not found", self.master.display())))
    }
}
