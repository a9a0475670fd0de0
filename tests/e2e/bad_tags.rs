//! Wrong tags: a note for each, nothing of them in the configuration, and nobody else harmed.

use std::collections::{BTreeMap, BTreeSet};

use crate::support::api::{Rig, Way};
use crate::support::controller::{apply, registration, run, stderr, stdout, write_catalog};
use crate::support::servers::Server;
use nomad_haproxy::desired::tags::TABLE;
use nomad_haproxy::haproxy::text::ConfigText;
use serde_json::Value;

/// No tag takes any of these.
const VALUES: &[&str] = &[
    "a b",
    "x\n  server evil 127.0.0.1:9",
    "x\r\n  http-request deny",
    "\"",
    "'x",
    "#",
    "a;b\nshutdown sessions",
    "\\",
    "$HOME",
    "${HOME}",
    "%[env(HOME)]",
    "a\0b",
    "ключ",
    "数",
    "🦀",
    "\u{202e}x",
    "",
];

/// What people write, or what somebody would try.
const PICKED: &[&str] = &[
    "weight=257",
    "weight=-1",
    "weight=1.5",
    "weight=7 # seven",
    "maxconn=1e3",
    "mode=TCP",
    "mode=udp",
    "balance=round-robin",
    "balance=uri depth 3",
    "balance=hdr(a b)",
    "check.path=health",
    "check.path=/a b",
    "check.path=/\nserver evil 127.0.0.1:9",
    "check.path=/$HOME",
    "check.path=/#",
    "check.status=2xx",
    "check.status=200\nx",
    "check.method=TRACE",
    "check.method=GET / HTTP/1.1\r\nX: y",
    "check.host=a b",
    "check.port=0",
    "check.port=65536",
    "check.interval=2",
    "check.interval=-1s",
    "check.interval=25h",
    "check.rise=0",
    "check.type=grpc",
    "check.init=maybe",
    "check.disabled=yes",
    "backup=1",
    "cookie=SRV insert",
    "cookie=a;b",
    "sni=env(HAPROXY_PASSWORD)",
    "sni=str(a) verify none",
    "sni=10.0.0.1",
    "ssl=on",
    "ssl.verify=optional",
    "proxy-protocol=v3",
    "timeout.connect=0",
    "timeout.server=forever",
    "timeout.client=1s",
    "slots=-1",
    "drain=1 year",
    "checks.path=/",
    "wieght=3",
    "",
    "=",
    "x y=z",
];

/// Each with a prefix of its own, so that every service has one.
fn bad_tags() -> Vec<String> {
    let mut all: Vec<String> = PICKED.iter().map(|tag| (*tag).to_owned()).collect();
    for (number, tag) in TABLE.iter().enumerate() {
        let values = (0..6).map(|step| VALUES[(number * 5 + step * 3) % VALUES.len()]);
        all.extend(values.map(|value| format!("{}={value}", tag.name)));
        all.push(format!("{}={}", tag.name, "a ".repeat(5_000)));
    }
    all
}

/// The directives of each backend that is ours, with its name replaced.
fn sections(text: &str) -> BTreeMap<String, Vec<String>> {
    let text = ConfigText::new(text);
    let ours = text.sections().into_iter().filter(|section| section.kind == "backend" && section.name != "shop");
    ours.map(|section| {
        let line = |words: &[String]| {
            words.join(" ").replace(&section.name, "NAME").replace(&section.name.replace('_', "-"), "NAME")
        };
        let lines = text.directives(&section).skip(1).map(|(_, directive)| line(&directive.words)).collect();
        (section.name.clone(), lines)
    })
    .collect()
}

async fn harmless(rig: Rig, way: Way) {
    let bad = bad_tags();
    assert!(bad.len() >= 200, "{}", bad.len());
    let server = Server::start("plain").await;
    let one = |service: &str, id: usize, tags: &[&str]| {
        registration(service, &format!("id-{id}"), id as u64 + 1, server.port(), tags)
    };
    let mut all = vec![one("plain", 0, &["enable=true"])];
    all.extend(bad.iter().enumerate().map(|(n, tag)| one(&format!("bad-{n}"), n + 1, &["enable=true", tag])));
    write_catalog(&rig.catalog(), &all);
    let (env, foreign) = (rig.env(), rig.foreign());
    let catalog = rig.catalog();
    let output = run(&env, &["plan", "--output", "json", "--catalog", catalog.to_str().unwrap()]).await;
    assert!(output.status.success(), "{}", stderr(&output));
    let plan: Value = serde_json::from_str(&stdout(&output)).unwrap();
    let mut notes: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for note in plan["notes"].as_array().unwrap() {
        let text = note["text"].as_str().unwrap().to_owned();
        assert!(!text.contains(char::is_control) && text.len() < 1000, "{text:?}");
        notes.entry(note["service"]["name"].as_str().unwrap().to_owned()).or_default().push(text);
    }
    for (n, tag) in bad.iter().enumerate() {
        let start: String = tag.chars().take(80).collect();
        assert!(notes.contains_key(&format!("bad-{n}")), "there is no note for {start:?}");
    }
    assert!(!notes.contains_key("plain"));
    apply(&env, &catalog).await;
    rig.haproxy.is_valid();
    assert_eq!(rig.foreign(), foreign);
    // A backend is as if the tag were not there; where it is unclear whether, or under which name, there is none.
    let sections = sections(&rig.haproxy.text());
    let plain = &sections["plain"];
    let unclear: BTreeSet<&str> = ["enable", "target", "backend.name"].into();
    for (n, tag) in bad.iter().enumerate() {
        let name = tag.split('=').next().unwrap();
        match sections.get(&format!("bad_{n}")) {
            Some(lines) => assert_eq!(lines, plain, "{:?}", &tag.chars().take(80).collect::<String>()),
            None => assert!(unclear.contains(name), "{name} keeps the service out"),
        }
    }
    assert!(sections.keys().all(|name| name == "plain" || name.starts_with("bad_")), "{:?}", sections.keys());
    let get = async |service: &str| {
        let request = reqwest::Client::new().get(format!("http://127.0.0.1:{}/", rig.haproxy.port));
        let answer = request.header("Host", format!("{service}.test")).send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    };
    for service in ["plain", "bad_0", "bad_44"] {
        assert_eq!(get(service).await, (200, "plain".to_owned()), "{service}, {way:?}");
    }
}
everywhere!(a_wrong_tag_harms_nobody, harmless);
