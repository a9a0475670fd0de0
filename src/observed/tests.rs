//! What is read from a small configuration.

use super::*;
use crate::desired::ServerName;

const TEXT: &str = r#"
defaults tcp
  mode tcp
defaults web from tcp
  balance leastconn
backend theirs
  server a 127.0.0.1:1
backend ours
  description nomad-haproxy:nomad team-a/api
  mode http
  balance roundrobin
  retries 3
  option redispatch 1
  server ours_1 127.0.0.1:1 # {"owner":"nomad","id":"x","alloc":"y"}
  server ours_2 127.0.0.1:1 disabled # {"owner":"nomad","id":"x","alloc":"y"}
  server hand 127.0.0.1:3
backend other from tcp
  description nomad-haproxy:another default/api
listen both
  description nomad-haproxy:nomad default/api
"#;

#[test]
fn what_is_ours_what_is_foreign_and_what_is_inherited() {
    let observed = Observed::new(1, ConfigText::new(TEXT), &"nomad".parse().expect("an owner"));
    let ours = &observed.backends["ours"];
    assert!(ours.is_ours() && ours.settings.is_some());
    assert_eq!((ours.servers.len(), ours.drifted.len(), ours.foreign.len()), (1, 1, 1));
    let foreign = &observed.backends["theirs"];
    assert_eq!((foreign.mode.as_str(), foreign.balance.as_str(), foreign.is_managed()), ("tcp", "leastconn", false));
    assert_eq!(observed.backends["other"].balance, "roundrobin");
    assert!(!observed.backends["other"].is_ours() && !observed.backends["both"].is_ours());
    assert_eq!(observed.defaults.as_deref(), Some("web"));
    assert_eq!(observed.namespaces(), BTreeSet::from(["team-a".to_owned()]));
}

fn read(text: &str) -> Observed {
    Observed::new(1, ConfigText::new(text), &"nomad".parse().expect("an owner"))
}

#[test]
fn a_section_inherits_from_the_files_that_haproxy_reads_before() {
    let file = |text: &str| ConfigText::new(text);
    let beside = |before: &[&str], after: &str, text: &str| {
        let before: Vec<ConfigText> = before.iter().copied().map(file).collect();
        read(text).with_beside(Beside::new(&before, &[file(after)]))
    };
    let base = ["defaults web\n  mode http\n  default-server weight 7\n", "defaults from web\n  balance first\n"];
    let last = "global\n  httpclient.ssl.verify none\ndefaults\n  mode tcp\n";
    let ours = beside(&base, last, "backend a\nbackend b from web\n");
    let (a, b) = (&ours.backends["a"], &ours.backends["b"]);
    assert_eq!((a.mode.as_str(), a.balance.as_str(), a.default_weight), ("http", "first", 7));
    assert_eq!((b.mode.as_str(), b.balance.as_str(), b.default_weight), ("http", "roundrobin", 7));
    assert!(a.takes_servers() && b.takes_servers() && ours.knows_defaults && !ours.loads_system_ca);
    assert_eq!(ours.again(ours.text.clone()), ours, "a text that is written is read in the same way");
    // HAProxy's own defaults, if no file has any.
    let none = beside(&[], "", "backend a\n");
    assert!(none.backends["a"].takes_servers() && none.loads_system_ca);
    assert!(!read("backend a\n").backends["a"].takes_servers(), "of the other files nothing is known");
}

#[test]
fn other_files_matter_to_a_file_that_does_not_have_all() {
    let matters = |text: &str| read(text).needs_others;
    assert!(!matters("global\ndefaults\nfrontend a\ndefaults b from x\nbackend c from b\ndefaults x\n"));
    assert!(!matters("global\ndefaults\n"));
    for text in [
        "",
        "global\n",
        "defaults\nbackend a\n",
        "global\nbackend a\ndefaults\n",
        "global\ndefaults\nbackend a from b\n",
    ] {
        assert!(matters(text), "{text}");
    }
}

#[test]
fn a_server_line_that_is_there_twice_is_drift() {
    let line = |name: &str| format!("  server {name} 127.0.0.1:1 # {{\"owner\":\"nomad\",\"id\":\"{name}\"}}\n");
    let twice = read(&format!("backend a\n{}{}{}", line("a_1"), line("a_2"), line("a_1")));
    let backend = &twice.backends["a"];
    assert_eq!(backend.servers.iter().map(|s| s.name.as_str()).collect::<Vec<_>>(), ["a_2"]);
    assert_eq!(backend.drifted.iter().map(ServerName::as_str).collect::<Vec<_>>(), ["a_1"]);
    let foreign = read(&format!("backend a\n{}  server a_1 127.0.0.1:1\n", line("a_1")));
    assert!(foreign.backends["a"].servers.is_empty() && foreign.backends["a"].drifted.len() == 1);
}

#[test]
fn what_is_ours_in_a_conditional_block_is_drift() {
    let observed = |inside: &str, behind: &str| {
        let base = "backend a\n  description nomad-haproxy:nomad default/a\n  mode http\n  balance first\n  retries 3\n  option redispatch 1\n";
        read(&format!("{base}.if true\n{inside}.endif\n{behind}"))
    };
    let is_as_written = |observed: &Observed| observed.backends["a"].settings.is_some();
    let line = "  server a_1 127.0.0.1:1 # {\"owner\":\"nomad\",\"id\":\"x\"}\n";
    let outside = observed("  server hand 127.0.0.1:2\n", line);
    assert!(is_as_written(&outside) && outside.backends["a"].drifted.is_empty());
    let inside = observed(line, "");
    assert!(is_as_written(&inside) && inside.backends["a"].drifted.len() == 1);
    assert!(!is_as_written(&observed("  mode http\n", line)) && is_as_written(&observed(".notice x\n", line)));
}

#[test]
fn a_name_of_several_sections_belongs_to_no_service() {
    let ours = "backend a\n  description nomad-haproxy:nomad default/a\n  server a_1 127.0.0.1:1 # {\"owner\":\"nomad\",\"id\":\"x\"}\n";
    assert!(read(ours).backends["a"].is_managed());
    for text in [format!("{ours}{ours}"), format!("{ours}listen a\n"), format!("backend a\n{ours}")] {
        let observed = read(&text);
        let backend = &observed.backends["a"];
        assert!(backend.is_repeated && !backend.is_managed(), "{text}");
    }
}

#[test]
fn a_copy_made_by_hand_is_not_ours() {
    let section = |name: &str, described: &str, server: &str| {
        format!(
            "backend {name}\n  description nomad-haproxy:nomad {described}\n  \
             server {server} 127.0.0.1:1 # {{\"owner\":\"nomad\",\"id\":\"x\"}}\n"
        )
    };
    let is_ours = |described: &str, server: &str| {
        let observed = read(&section("copy", described, server));
        let backend = &observed.backends["copy"];
        let found = (backend.is_ours(), backend.servers.len(), backend.foreign.len());
        assert_eq!(observed.live_lines().count(), if found.0 { 2 } else { found.1 });
        found
    };
    assert_eq!(is_ours("copy default/api", "copy_1"), (true, 1, 0));
    assert_eq!(is_ours("api default/api", "api_1"), (false, 0, 1));
    // A server of ours in a person's copy is still ours.
    assert_eq!(is_ours("api default/api", "copy_1"), (false, 1, 0));
    // What 0.1 wrote does not name its backend.
    assert_eq!(is_ours("default/api", "copy_1"), (true, 1, 0));
    assert_eq!(is_ours("default/api", "api_1"), (false, 0, 1));
    let original = section("api", "api default/api", "api_1");
    let both = read(&format!("{original}{}", original.replacen("api", "copy", 1)));
    assert!(both.backends["api"].is_ours() && !both.backends["copy"].is_managed());
}

#[test]
fn the_servers_of_a_template_have_names() {
    let foreign =
        |range: &str| read(&format!("backend a\n  server-template a_ {range} h:1\n")).backends["a"].foreign.clone();
    assert_eq!(foreign("2-3"), BTreeSet::from(["a_2".to_owned(), "a_3".to_owned()]));
    assert_eq!(foreign("2"), BTreeSet::from(["a_1".to_owned(), "a_2".to_owned()]));
    assert_eq!((foreign("x").len(), foreign("5-1").len()), (0, 0));
    assert!(foreign("1-4294967295").len() <= 10_001);
}

#[test]
fn a_backend_whose_end_is_unclear_is_not_ours() {
    let is_ours = |body: &str| {
        let text = format!("backend api\n  description nomad-haproxy:nomad default/api\n{body}\n");
        let observed = Observed::new(1, ConfigText::new(&text), &"nomad".parse().expect("an owner"));
        observed.backends["api"].is_ours()
    };
    let ours = "  server api_1 127.0.0.1:1 # {\"owner\":\"nomad\",\"freed\":\"0\"}";
    assert!(is_ours(ours) && is_ours(&format!("{ours}\nfuture_section x\n  server a 127.0.0.1:1")));
    // A directive that is newer than this program, with a server of ours below it.
    assert!(!is_ours(&format!("future-directive x\n{ours}")));
    assert!(!is_ours("mode http\nfuture_section x"));
}
