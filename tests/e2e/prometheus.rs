//! A real Prometheus scrapes running controllers with the rules of deploy/alerts.yml. Each alert is caused, fires, and is
//! resolved when its cause ends; with nothing wrong, none is even pending. The same Prometheus answers the queries of
//! the dashboard.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use crate::support::api::{Rig, Way};
use crate::support::controller::{Controller, Env, registration, run, stderr, write_catalog};
use crate::support::nomad::{Nomad, job};
use crate::support::prometheus::{Prometheus, check_open_metrics, check_text, promtool};
use crate::support::{free_port, root, wait_for};
use reqwest::Method;
use serde_json::{Value, json};
use yaml_rust2::{Yaml, YamlLoader};

const NAMESPACE: &str = "team";
/// The service that the HAProxy of `found` is registered under.
const EDGES: &str = "edge-api";

fn file(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap()
}

/// The rules with seconds for minutes, and nothing else changed.
fn shortened(rules: &str) -> String {
    let mut text = String::new();
    for line in rules.lines() {
        let is_for = line.trim_start().starts_with("for: ");
        let line = if is_for { line.strip_suffix('m').map(|line| format!("{line}s")) } else { None }
            .unwrap_or_else(|| line.replace("m])", "s])").replace(" * 60", " * 1"));
        text += &line;
        text.push('\n');
    }
    text
}

/// The rules of the file.
fn rules() -> Vec<Yaml> {
    let text = file("deploy/alerts.yml");
    let yaml = &YamlLoader::load_from_str(&text).unwrap()[0];
    let groups = yaml["groups"].as_vec().unwrap();
    groups.iter().flat_map(|group| group["rules"].as_vec().unwrap().clone()).collect()
}

fn name(rule: &Yaml) -> String {
    rule["alert"].as_str().unwrap().to_owned()
}

#[test]
fn the_rules_pass_promtool_and_their_unit_tests() {
    let path = |name: &str| root().join("deploy").join(name).display().to_string();
    promtool(&["check", "rules", &path("alerts.yml")], "");
    promtool(&["test", "rules", &path("alerts_test.yml")], "");
    let tests = file("deploy/alerts_test.yml");
    for rule in rules() {
        let (fires, name) =
            (format!("ALERTS{{alertname=\"{}\", alertstate=\"firing\", severity=", name(&rule)), name(&rule));
        assert_eq!(tests.matches(&fires).count(), 1, "{name}");
    }
}

#[test]
fn each_rule_says_what_it_means_and_what_to_do() {
    let documented = file("docs/metrics.md");
    for rule in rules() {
        let name = name(&rule);
        let minutes = rule["for"].as_str().unwrap().strip_suffix('m').and_then(|n| n.parse::<u32>().ok());
        assert!(minutes.is_some(), "{name}");
        let severity = rule["labels"]["severity"].as_str().unwrap();
        let (summary, text) = (&rule["annotations"]["summary"], rule["annotations"]["description"].as_str().unwrap());
        assert!(summary.as_str().unwrap().ends_with('.') && text.ends_with('.'), "{name}");
        assert!(text.contains("HAProxy") && text.matches('`').count() >= 2, "{name}: {text}");
        assert!(documented.contains(&format!("| `{name}` | {severity} |")), "{name} {severity}");
    }
    assert_eq!(documented.matches("| `NomadHaproxy").count(), rules().len());
}

#[test]
fn seconds_for_minutes_is_all_that_is_replaced() {
    let rules = file("deploy/alerts.yml");
    let short = shortened(&rules);
    assert_eq!(rules.lines().count(), short.lines().count());
    let code = |text: &str| text.lines().filter(|line| !line.trim_start().starts_with('#')).collect::<String>();
    for minutes in ["m])", "* 60"] {
        assert!(rules.contains(minutes) && !code(&short).contains(minutes), "{minutes}");
    }
    assert!(!short.lines().any(|line| line.trim_start().starts_with("for:") && line.ends_with('m')));
}

/// The expressions of the dashboard, with the titles of their panels.
fn expressions() -> Vec<(String, String)> {
    let dashboard: Value = serde_json::from_str(&file("deploy/grafana-dashboard.json")).unwrap();
    let mut all = Vec::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        let title = panel["title"].as_str().unwrap().to_owned();
        for target in panel["targets"].as_array().into_iter().flatten() {
            assert_eq!(target["datasource"]["uid"], "${datasource}", "{title}");
            all.push((title.clone(), target["expr"].as_str().unwrap().to_owned()));
        }
        assert!(panel["type"] == "row" || panel["targets"].is_array(), "{title}");
    }
    for annotation in dashboard["annotations"]["list"].as_array().unwrap() {
        all.extend(annotation["expr"].as_str().map(|expr| ("annotation".to_owned(), expr.to_owned())));
    }
    all
}

#[test]
fn the_dashboard_can_be_imported() {
    let dashboard: Value = serde_json::from_str(&file("deploy/grafana-dashboard.json")).unwrap();
    assert!(dashboard["schemaVersion"].as_u64().unwrap() >= 38 && dashboard["id"].is_null());
    let variables: Vec<&str> =
        dashboard["templating"]["list"].as_array().unwrap().iter().filter_map(|one| one["name"].as_str()).collect();
    assert_eq!(variables, ["datasource", "job", "instance", "haproxy"]);
    let panels = dashboard["panels"].as_array().unwrap();
    let ids: BTreeSet<u64> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), panels.len());
    let rows: Vec<&str> =
        panels.iter().filter(|panel| panel["type"] == "row").filter_map(|row| row["title"].as_str()).collect();
    assert_eq!(
        rows,
        [
            "Overview",
            "Passes and stages",
            "Reloads and live changes",
            "Backends, servers and slots",
            "Notes",
            "Nomad and the catalog",
            "Process"
        ]
    );
    // No two panels lie over each other.
    let mut cells = BTreeSet::new();
    for panel in panels {
        let at = |key: &str| panel["gridPos"][key].as_u64().unwrap();
        assert!(at("x") + at("w") <= 24, "{panel}");
        for y in at("y")..at("y") + at("h") {
            assert!((at("x")..at("x") + at("w")).all(|x| cells.insert((x, y))), "{}", panel["title"]);
        }
    }
}

/// The names of metrics in a text.
fn metrics_in(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let ours = words.filter(|word| word.starts_with("nomad_haproxy_") || word.starts_with("process_"));
    let family = |word: &str| {
        let of_histogram = ["_bucket", "_sum", "_count"].iter().find_map(|end| word.strip_suffix(end));
        of_histogram.unwrap_or(word).to_owned()
    };
    ours.map(family).collect()
}

/// A scrape has each documented metric, and no other; the rules and the dashboard use no other either.
async fn metrics_are_those_that_are_documented(controller: &Controller) {
    let (_, text) = controller.http("/metrics").await;
    check_text(&text);
    let request = reqwest::Client::new().get(format!("http://{}/metrics", controller.listen().await));
    let open = request.header("Accept", "application/openmetrics-text").send().await.unwrap().text().await.unwrap();
    assert!(open.ends_with("# EOF\n"), "{open}");
    check_open_metrics(&open);
    let scraped: BTreeSet<String> =
        text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).map(str::to_owned).collect();
    let table = file("docs/metrics.md");
    let documented: BTreeSet<String> = table
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split('`').next())
        .filter(|name| !name.starts_with("Nomad"))
        .map(str::to_owned)
        .collect();
    assert_eq!(scraped, documented);
    let expressions: String = expressions().into_iter().map(|(_, expression)| expression + "\n").collect();
    let used = metrics_in(&(expressions + &file("deploy/alerts.yml").replace(".yml", "")));
    assert!(used.is_subset(&scraped), "{:?}", used.difference(&scraped));
}

/// Prometheus understands each query of the dashboard, and has data for all but those that need a fault or a reload.
async fn the_dashboard_has_data(prometheus: &Prometheus) {
    let needs_a_cause = ["Alerts", "annotation"];
    for (title, expression) in expressions() {
        let mut query = expression.clone();
        for (variable, value) in [("$__rate_interval", "10s"), ("$job", ".*"), ("$instance", ".*"), ("$haproxy", ".*")]
        {
            query = query.replace(variable, value);
        }
        assert!(!query.contains('$'), "{title}: {query}");
        let series = prometheus.query(&query).await.unwrap_or_else(|error| panic!("{title}: {error}: {query}"));
        assert!(needs_a_cause.contains(&title.as_str()) || !series.is_empty(), "{title} is empty: {query}");
    }
}

/// A controller that keeps its address when it is started again.
struct Scraped {
    address: String,
    env: Env,
    arguments: Vec<String>,
    controller: Controller,
}

impl Scraped {
    fn start(rig_env: Env, more: &[(&str, &str)], catalog: Option<&Path>) -> Self {
        let mut env = rig_env;
        // The least that is allowed.
        let common = [("NOMAD_HAPROXY_RESYNC_INTERVAL", "1s"), ("NOMAD_HAPROXY_BREAKER_RESET_TIMEOUT", "1s")];
        env.extend(common.iter().chain(more).map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
        let address = format!("127.0.0.1:{}", free_port());
        let mut arguments = vec!["--http-listen".to_owned(), address.clone()];
        if let Some(catalog) = catalog {
            arguments.extend(["--catalog".to_owned(), catalog.display().to_string()]);
        }
        let controller = Self::run(&env, &arguments);
        Self { address, env, arguments, controller }
    }

    fn run(env: &Env, arguments: &[String]) -> Controller {
        Controller::start(env, &arguments.iter().map(String::as_str).collect::<Vec<_>>())
    }

    async fn restart(&mut self) {
        self.controller.kill();
        self.controller = Self::run(&self.env, &self.arguments);
        self.controller.wait_until_ready().await;
    }
}

/// Waits until exactly these are scraped, without an error.
async fn wait_until_scraped(prometheus: &Prometheus, targets: &BTreeMap<&str, String>) {
    wait_for("each controller to be scraped", Duration::from_secs(40), async || {
        let scrapes = prometheus.scrapes().await;
        let all = targets.keys().all(|instance| scrapes.get(*instance).is_some_and(String::is_empty));
        (all && scrapes.len() == targets.len()).then_some(())
    })
    .await;
}

/// Waits until no alert is pending or fires.
async fn wait_until_quiet(prometheus: &Prometheus) {
    wait_for("no alert", Duration::from_secs(60), async || {
        let alerts = prometheus.alerts().await;
        alerts.is_empty().then_some(())
    })
    .await;
}

fn instance(service: &str, port: u16, tags: &[&str]) -> Value {
    let tags: Vec<&str> = ["enable=true", "check.disabled"].iter().chain(tags).copied().collect();
    registration(service, &format!("{service}-{port}"), port.into(), port, &tags)
}

/// Registers the API of a rig in Nomad.
async fn register(nomad: &Nomad, rig: &Rig) {
    let port = rig.api.as_ref().unwrap().url.rsplit_once(':').unwrap().1;
    let mut job = job("edge", 1, &[], None);
    let service = json!({"Name": EDGES, "Provider": "nomad", "Address": "127.0.0.1", "PortLabel": port});
    job["TaskGroups"][0]["Services"] = json!([service]);
    job["TaskGroups"][0]["Networks"] = json!([]);
    nomad.submit(job).await;
}

async fn create_namespace(nomad: &Nomad) {
    let path = format!("/v1/namespace/{NAMESPACE}");
    nomad.call(Method::POST, &path, Some(json!({"Name": NAMESPACE}))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_alert_fires_when_it_is_caused_and_only_then() {
    // No controller is there yet.
    let prometheus = Prometheus::start(&shortened(&file("deploy/alerts.yml"))).await;
    let nomad = Nomad::start().await;
    create_namespace(&nomad).await;
    nomad.submit(job("steady", 6, &["enable=true", "check.disabled"], None)).await;
    nomad.wait_for_instances("steady", 6).await;
    let rigs = [Way::Api, Way::Local, Way::Local, Way::Local, Way::Api];
    let mut started = Vec::new();
    for way in rigs {
        started.push(Rig::start(way, "3.2").await);
    }
    let [mut edge, broken, local, beside, found] = <[Rig; 5]>::try_from(started).ok().unwrap();
    register(&nomad, &found).await;
    for rig in [&edge, &broken, &local] {
        write_catalog(&rig.catalog(), &[instance("api", 2001, &[])]);
    }
    let address = nomad.address.clone();
    let nomad_settings = [("NOMAD_ADDR", address.as_str())];
    let namespaces = format!("default,{NAMESPACE}");
    let with_nomad = [nomad_settings[0], ("NOMAD_NAMESPACE", namespaces.as_str())];
    let by_service = [nomad_settings[0], ("HAPROXY_SERVICE", EDGES), ("HAPROXY_PASSWORD", "secret")];
    let on_edge = [("HAPROXY_NAME", "edge")];
    // It is known to Prometheus before it runs.
    let mut on_edge_too = Scraped::start(edge.env(), &on_edge, Some(&edge.catalog()));
    on_edge_too.controller.wait_until_ready().await;
    on_edge_too.controller.kill();
    let controllers = BTreeMap::from([
        ("edge", Scraped::start(edge.env(), &on_edge, Some(&edge.catalog()))),
        ("broken", Scraped::start(broken.env(), &[], Some(&broken.catalog()))),
        ("local", Scraped::start(local.env(), &[("NOMAD_HAPROXY_RELOAD_MIN_INTERVAL", "0s")], Some(&local.catalog()))),
        ("nomad", Scraped::start(beside.env(), &with_nomad, None)),
        ("found", Scraped::start(Vec::new(), &by_service, None)),
    ]);
    for scraped in controllers.values() {
        scraped.controller.wait_until_ready().await;
    }
    prometheus.fires("NomadHaproxyAbsent", "").await;

    let mut targets: BTreeMap<&str, String> =
        controllers.iter().map(|(name, scraped)| (*name, scraped.address.clone())).collect();
    prometheus.scrape(&targets);
    wait_until_scraped(&prometheus, &targets).await;
    wait_until_quiet(&prometheus).await;
    metrics_are_those_that_are_documented(&controllers["nomad"].controller).await;
    // Two scrapes make a rate.
    wait_for("rates", Duration::from_secs(20), async || {
        prometheus.value("sum(rate(nomad_haproxy_passes_total[10s]))").await.filter(|rate| rate != "0").map(drop)
    })
    .await;
    the_dashboard_has_data(&prometheus).await;
    assert_eq!(prometheus.alerts().await, BTreeSet::new(), "nothing is wrong");

    targets.insert("second", on_edge_too.address.clone());
    prometheus.scrape(&targets);
    let before = targets.clone();
    let edges = on_the_edge(&prometheus, &mut edge, on_edge_too, before);
    let by_service: Env = by_service.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let nomads = with_nomad_gone(&prometheus, &nomad, [beside.env_with(&with_nomad), by_service], &found);
    tokio::join!(edges, a_broken_file(&prometheus, &broken), reloads(&prometheus, &local), nomads);

    wait_until_quiet(&prometheus).await;
    nobody_leads(&prometheus, &nomad, &beside).await;
    wait_until_quiet(&prometheus).await;
    let all: BTreeSet<String> = rules().iter().map(name).collect();
    for rule in prometheus.rules().await {
        assert_eq!((&rule["health"], &rule["lastError"]), (&json!("ok"), &Value::Null), "{rule}");
    }
    let fired =
        prometheus.query("count by (alertname) (last_over_time(ALERTS{alertstate=\"firing\"}[1h]))").await.unwrap();
    let fired: BTreeSet<String> =
        fired.iter().map(|one| one["metric"]["alertname"].as_str().unwrap().to_owned()).collect();
    assert_eq!(all, fired);
}

/// The only controller stands by, as the lock is held by something that is none.
async fn nobody_leads(prometheus: &Prometheus, nomad: &Nomad, rig: &Rig) {
    const LOCK: &str = "locks/edge";
    let lock = json!({"Lock": {"TTL": "1h", "LockDelay": "1s"}, "Items": {"holder": "a test"}});
    let held = nomad.call(Method::PUT, &format!("/v1/var/{LOCK}?lock-acquire"), Some(lock)).await;
    let settings = [("NOMAD_ADDR", nomad.address.as_str()), ("NOMAD_HAPROXY_LEADER_LOCK", LOCK)];
    let standby = Scraped::start(rig.env(), &settings, None);
    standby.controller.wait_until_ready().await;
    prometheus.scrape(&BTreeMap::from([("standby", standby.address.clone())]));
    prometheus.fires("NomadHaproxyNoLeader", "").await;
    let id = json!({"Lock": {"ID": held["Lock"]["ID"]}});
    nomad.call(Method::PUT, &format!("/v1/var/{LOCK}?lock-release"), Some(id)).await;
    prometheus.resolves("NomadHaproxyNoLeader", "").await;
}

/// Two controllers on one HAProxy, one that dies, and one that restarts again and again; then the API is killed.
async fn on_the_edge(
    prometheus: &Prometheus,
    edge: &mut Rig,
    mut second: Scraped,
    mut targets: BTreeMap<&'static str, String>,
) {
    prometheus.fires("NomadHaproxyDown", "second").await;
    second.restart().await;
    prometheus.resolves("NomadHaproxyDown", "second").await;
    prometheus.fires("NomadHaproxyTwoLeaders", "").await;
    let started = "process_start_time_seconds{instance=\"second\"}";
    for _ in 0..3 {
        let before = prometheus.value(started).await;
        second.restart().await;
        wait_for("a scrape after the restart", Duration::from_secs(20), async || {
            let now = prometheus.value(started).await;
            (now.is_some() && now != before).then_some(())
        })
        .await;
    }
    prometheus.fires("NomadHaproxyRestarts", "second").await;
    second.controller.stop().await;
    targets.remove("second");
    prometheus.scrape(&targets);
    prometheus.resolves("NomadHaproxyTwoLeaders", "").await;

    edge.api.as_mut().unwrap().kill();
    for name in ["NomadHaproxyHaproxyDown", "NomadHaproxyBreakerOpen", "NomadHaproxyNotReady"] {
        prometheus.fires(name, "edge").await;
    }
    edge.api.as_mut().unwrap().launch().await;
    for name in ["NomadHaproxyHaproxyDown", "NomadHaproxyBreakerOpen", "NomadHaproxyNotReady"] {
        prometheus.resolves(name, "edge").await;
    }
}

/// A person breaks the file: no change can be written.
async fn a_broken_file(prometheus: &Prometheus, rig: &Rig) {
    let bad = "    no-such-keyword here\n    acl is_shop";
    rig.edit_by_hand(|text| text.replacen("    acl is_shop", bad, 1)).await;
    write_catalog(&rig.catalog(), &[instance("api", 2001, &[]), instance("other", 2002, &[])]);
    for name in ["NomadHaproxyPassesFail", "NomadHaproxyNotReady"] {
        prometheus.fires(name, "broken").await;
    }
    rig.edit_by_hand(|text| text.replacen(bad, "    acl is_shop", 1)).await;
    for name in ["NomadHaproxyPassesFail", "NomadHaproxyNotReady"] {
        prometheus.resolves(name, "broken").await;
    }
}

/// Reloads: too many as a backend has no slots, and one that fails. Meanwhile a service asks for what cannot be.
async fn reloads(prometheus: &Prometheus, rig: &Rig) {
    let write = |tags: &[&str], more: &[Value]| {
        let all: Vec<Value> = [instance("api", 2001, tags)].iter().chain(more).cloned().collect();
        write_catalog(&rig.catalog(), &all);
    };
    let nowhere = [instance("lost", 2003, &["target=nowhere"])];
    let firing = async |name: &str| {
        let alerts = prometheus.alerts().await;
        alerts.iter().any(|alert| alert.name == name && alert.instance == "local" && alert.fires)
    };
    let algorithms = ["balance=leastconn", "balance=roundrobin"];
    let mut changes = 0;
    while !(firing("NomadHaproxyReloadsTooOften").await && firing("NomadHaproxySlotsUsedUp").await) {
        assert!(changes < 400, "{:?}", prometheus.alerts().await);
        let reloads = rig.haproxy.reloads().await;
        write(&["slots=0", algorithms[changes % 2]], &nowhere);
        wait_for("a reload", Duration::from_secs(20), async || (rig.haproxy.reloads().await > reloads).then_some(()))
            .await;
        changes += 1;
    }
    prometheus.fires("NomadHaproxyServiceErrors", "local").await;
    // One more takes a reload, which adds free slots.
    write(&[], &[instance("api", 2002, &[])]);
    for name in ["NomadHaproxySlotsUsedUp", "NomadHaproxyServiceErrors"] {
        prometheus.resolves(name, "local").await;
    }

    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let bind = format!("    bind {}\n    acl is_shop", taken.local_addr().unwrap());
    rig.edit(|text| text.replacen("    acl is_shop", &bind, 1)).await;
    write(&["balance=leastconn"], &[]);
    prometheus.fires("NomadHaproxyReloadFailed", "local").await;
    drop(taken);
    rig.edit(|text| text.replacen(&bind, "    acl is_shop", 1)).await;
    prometheus.resolves("NomadHaproxyReloadFailed", "local").await;
    prometheus.resolves("NomadHaproxyReloadsTooOften", "local").await;
}

/// Nomad ends, and comes back without its state.
async fn with_nomad_gone(prometheus: &Prometheus, nomad: &Nomad, settings: [Env; 2], found: &Rig) {
    nomad.kill();
    for name in ["NomadHaproxyNomadUnreachable", "NomadHaproxyCatalogOld"] {
        prometheus.fires(name, "nomad").await;
    }
    nomad.launch().await;
    for name in ["NomadHaproxyNomadUnreachable", "NomadHaproxyCatalogOld"] {
        prometheus.resolves(name, "nomad").await;
    }
    for (name, instance) in [
        ("NomadHaproxyGuardHolds", "nomad"),
        ("NomadHaproxyNamespaceUnread", "nomad"),
        ("NomadHaproxyNoTarget", "found"),
    ] {
        prometheus.fires(name, instance).await;
    }
    create_namespace(nomad).await;
    wait_for("a node that takes allocations", Duration::from_secs(60), async || {
        let nodes = nomad.try_call(Method::GET, "/v1/nodes", None).await?;
        (nodes[0]["Status"] == "ready").then_some(())
    })
    .await;
    register(nomad, found).await;
    prometheus.resolves("NomadHaproxyNoTarget", "found").await;
    prometheus.resolves("NomadHaproxyNamespaceUnread", "nomad").await;
    for env in settings {
        let output = run(&env, &["apply", "--allow-removals"]).await;
        assert!(output.status.success(), "{}", stderr(&output));
    }
    prometheus.resolves("NomadHaproxyGuardHolds", "nomad").await;
}
