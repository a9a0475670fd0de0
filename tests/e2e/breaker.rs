//! A HAProxy that does not answer is left alone, and comes back by itself.

use std::time::Duration;

use crate::support::api::{Rig, Way};
use crate::support::controller::{Controller, Env, registration, write_catalog};
use crate::support::gate::Gate;
use crate::support::haproxy::matrix;
use crate::support::wait_for;
use serde_json::Value;

const ASKS_WHO_IT_IS: &str = "GET /v3/services/haproxy/runtime/info";
/// Longer than the fault lasts, so that what happens meanwhile is not a probe that was due.
const LONG: &str = "1h";
/// For HAProxy to serve what it should.
const SOON: Duration = Duration::from_secs(30);

/// One HAProxy behind its API, behind a gate.
struct Broken {
    rig: Rig,
    gate: std::sync::Arc<Gate>,
    env: Env,
}

impl Broken {
    async fn start(series: &str, reset_timeout: &str) -> Self {
        let rig = Rig::start(Way::Api, series).await;
        let (gate, mut env) = rig.gated().await;
        let more = [
            ("NOMAD_HAPROXY_BREAKER_FAILURE_THRESHOLD", "3"),
            ("NOMAD_HAPROXY_BREAKER_RESET_TIMEOUT", reset_timeout),
            ("NOMAD_HAPROXY_RESYNC_INTERVAL", "1h"),
        ];
        env.extend(more.map(|(key, value)| (key.to_owned(), value.to_owned())));
        Self { rig, gate, env }
    }

    fn write(&self, ports: std::ops::Range<u16>) {
        let one =
            |port: u16| registration("api", &port.to_string(), port.into(), port, &["enable=true", "check.disabled"]);
        write_catalog(&self.rig.catalog(), &ports.map(one).collect::<Vec<_>>());
    }

    async fn run(&self) -> Controller {
        let controller = Controller::start(&self.env, &["--catalog", self.rig.catalog().to_str().unwrap()]);
        controller.wait_until_ready().await;
        controller
    }
}

async fn breaker(controller: &Controller) -> Value {
    let status: Value = serde_json::from_str(&controller.http("/api/v1/status").await.1).unwrap();
    status["haproxys"][0]["breaker"].clone()
}

async fn is(controller: &Controller, state: &str) {
    wait_for(&format!("the breaker to be {state}"), Duration::from_secs(30), async || {
        (breaker(controller).await["state"] == state).then_some(())
    })
    .await;
}

/// The metrics and the health API agree with `/api/v1/status`.
async fn all_say(controller: &Controller, state: &str) {
    let wanted = state.to_uppercase();
    wait_for(&format!("all views to say {state}"), Duration::from_secs(10), async || {
        let sample = format!("nomad_haproxy_breaker_state{{state=\"{state}\"}}");
        let health: Value = serde_json::from_str(&controller.http("/api/health/haproxy").await.1).unwrap();
        let is_so = (controller.metric(&sample).await - 1.0).abs() < f64::EPSILON;
        (is_so && health["health"]["circuitState"] == wanted).then_some(())
    })
    .await;
}

fn out_of_order(gate: &Gate) {
    gate.interfere(Some(Box::new(|_, _| Some((500, "out of order".to_owned())))));
}

#[tokio::test(flavor = "multi_thread")]
async fn while_it_is_open_only_probes_are_sent_and_then_everything_is_caught_up() {
    for series in matrix() {
        let mut broken = Broken::start(series, "2s").await;
        broken.write(2001..2003);
        let controller = broken.run().await;
        assert_eq!(breaker(&controller).await["state"], "closed");
        let reloads = broken.rig.haproxy.reloads().await;

        broken.rig.api.as_mut().unwrap().kill();
        // Nobody leaves, so nothing is urgent.
        for last in 2004..2007 {
            broken.write(2001..last);
        }
        is(&controller, "open").await;
        all_say(&controller, "open").await;
        broken.gate.hold(None);
        let before = breaker(&controller).await["probes"].as_u64().unwrap();
        for last in (2004..2012).chain(2004..2012) {
            broken.write(2001..last);
            tokio::task::yield_now().await;
        }
        wait_for("three probes", Duration::from_secs(30), async || {
            (breaker(&controller).await["probes"].as_u64().unwrap() >= before + 3).then_some(())
        })
        .await;
        let (calls, now) = (broken.gate.calls(), breaker(&controller).await);
        assert!(calls.iter().all(|call| call == ASKS_WHO_IT_IS), "{calls:#?}");
        let probes = usize::try_from(now["probes"].as_u64().unwrap() - before).unwrap();
        assert!(calls.len() <= probes + 1, "{probes} probes: {calls:#?}");
        assert_eq!((&now["state"], now["failures"].as_u64() >= Some(6)), (&"open".into(), true), "{now}");

        // It answers who it is, and nothing else: half-open, and open again.
        broken.gate.interfere(Some(Box::new(|_, uri| {
            (uri.path() != "/v3/services/haproxy/runtime/info").then(|| (500, "out of order".to_owned()))
        })));
        let opened = now["opened"].as_u64().unwrap();
        broken.rig.api.as_mut().unwrap().launch().await;
        wait_for("it to open again", Duration::from_secs(30), async || {
            (breaker(&controller).await["opened"].as_u64().unwrap() > opened).then_some(())
        })
        .await;

        broken.gate.interfere(None);
        is(&controller, "closed").await;
        broken.rig.serves(2001..2011, SOON).await;
        broken.rig.agrees().await;
        let more = broken.rig.haproxy.reloads().await - reloads;
        assert!(more <= 1, "{more} reloads for ten instances and six slots");
        assert_eq!(breaker(&controller).await["failures"], 0);
        all_say(&controller, "closed").await;
        assert!(controller.passes("reason=\"probe\"").await >= 1.0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_leaves_while_it_is_open_is_out_as_soon_as_haproxy_answers() {
    let broken = Broken::start("3.2", LONG).await;
    broken.write(2001..2004);
    let controller = broken.run().await;
    broken.rig.serves(2001..2004, SOON).await;
    out_of_order(&broken.gate);
    for last in [2005, 2006, 2007] {
        broken.write(2001..last);
    }
    is(&controller, "open").await;
    broken.gate.interfere(None);
    // The next probe is due in an hour; that one is gone is the reason for one now.
    broken.write(2002..2005);
    broken.rig.serves(2002..2005, SOON).await;
    is(&controller, "closed").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nomad_or_haproxy_refuse_does_not_open_it() {
    let broken = Broken::start("3.2", LONG).await;
    broken.write(2001..2003);
    let controller = broken.run().await;
    // A catalog that cannot be read.
    std::fs::write(broken.rig.catalog(), "{").unwrap();
    wait_for("passes that fail", Duration::from_secs(30), async || {
        (controller.metric("nomad_haproxy_pass_failures_total{stage=\"catalog\"}").await >= 5.0).then_some(())
    })
    .await;
    let now = breaker(&controller).await;
    assert_eq!((&now["state"], &now["failures"]), (&"closed".into(), &0.into()));
    broken.write(2001..2004);
    broken.rig.serves(2001..2004, SOON).await;
}
