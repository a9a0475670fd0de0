//! Services that come, grow, roll and go for a long time on a real Nomad, under requests and with a database connection
//! open through HAProxy: what it costs, and whether all holds.

mod instances;
mod report;
mod target;
mod traffic;
mod watch;

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use futures_util::{StreamExt, stream};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

use super::load;
use super::mariadb::{Client, MariaDb};
use super::nomad::{Nomad, job};
use super::process::Group;
use super::wait_for;

use instances::{Instances, Version};
pub use report::{Report, Sample, Times, Trend};
pub use target::Plane;
use target::{Edge, Target};
use traffic::{Hosts, host};

/// Services that are created in a second, until all are there.
const CREATED_PER_SECOND: u32 = 3;
/// Services that are created, and stopped, in a second of churn.
const REPLACED_PER_SECOND: u32 = 1;
/// Services that are created at the same time at most: a slow target is not given more.
const CREATING: usize = 64;
const REQUESTS_PER_SECOND: u32 = 200;
/// One of this many services grows before the churn begins.
const GROWN_OF: usize = 10;
/// After Nomad has what it was asked for.
const LATE_AFTER: Duration = Duration::from_secs(120);
/// Nomad may leave undone what it was asked around the time that its server was killed: then it is asked again.
const STALLED_AFTER: Duration = Duration::from_secs(120);
/// How often at most.
const STALLS: usize = 10;

#[derive(Debug, Clone)]
pub struct Settings {
    pub series: String,
    pub plane: Plane,
    pub services: usize,
    /// How long the churn lasts, after all services are there and some have grown.
    pub churn: Duration,
    /// The size to which a service grows.
    pub peak: u32,
    /// Services that grow at the same time.
    pub growing: usize,
    /// How long a backend stays when its service is gone: short enough that most are deleted before the end.
    pub linger: Duration,
    /// Between two times that something is killed: the controller, the APIs, or Nomad's server, in turn. Never HAProxy.
    pub kill_every: Option<Duration>,
    /// How much longer than its `shutdown_delay` an instance answers: a machine that runs other tests has no time limits.
    pub grace: Duration,
}

/// A service that is routed.
#[derive(Debug)]
struct Service {
    name: String,
    version: Version,
    count: u32,
}

impl Service {
    /// Whether its instances, and no others, are at these addresses.
    fn is_at(&self, addresses: &[String]) -> bool {
        let prefix = self.version.prefix();
        addresses.len() == self.count as usize && addresses.iter().all(|address| address.starts_with(&prefix))
    }
}

struct Soak<'a> {
    settings: &'a Settings,
    nomad: Nomad,
    target: Target,
    instances: Instances,
    client: reqwest::Client,
    next: AtomicUsize,
    /// Those that nothing else is done with at this time, the oldest first.
    idle: Mutex<VecDeque<Service>>,
    /// The hosts that requests are sent to.
    hosts: Hosts,
    routed: Mutex<Vec<Duration>>,
    unrouted: Mutex<Vec<String>>,
    late: Mutex<Vec<String>>,
    /// How often Nomad was asked again.
    stalled: AtomicUsize,
    stopped: AtomicUsize,
    grown: AtomicUsize,
    /// What Nomad was asked to change.
    changes: AtomicUsize,
    killed: AtomicUsize,
    phase: Mutex<&'static str>,
}

impl Soak<'_> {
    /// Submits a service as it is to be.
    async fn submit(&self, Service { name, version, count }: &Service) {
        let job = version.job(name, *count, self.instances.port);
        self.ask(Method::POST, "/v1/jobs", Some(json!({"Job": job}))).await;
        self.changes.fetch_add(1, Ordering::Relaxed);
    }

    /// A call to Nomad, repeated until it is taken: in an hour one may fail.
    async fn ask(&self, method: Method, path: &str, body: Option<Value>) {
        wait_for(&format!("Nomad to take {path}"), Duration::from_secs(30), async || {
            self.nomad.try_call(method.clone(), path, body.clone()).await
        })
        .await;
    }

    /// Not purged: Nomad then forgets the allocations at once, and its client ends them two at a time, minutes later.
    async fn end(&self, service: &str) {
        self.ask(Method::DELETE, &format!("/v1/job/{service}"), None).await;
        self.changes.fetch_add(1, Ordering::Relaxed);
    }

    /// Creates a service and waits until a request is routed to it, by each HAProxy.
    async fn create(&self) {
        let name = format!("s{}", self.next.fetch_add(1, Ordering::Relaxed));
        let mut service = Service { version: self.instances.version(&name), name: name.clone(), count: 1 };
        self.submit(&service).await;
        let is_late = async {
            self.until_nomad_has(&mut service).await;
            sleep(LATE_AFTER).await;
        };
        let after = tokio::select! {
            after = self.first_answer(&name) => Some(after),
            () = is_late => None,
        };
        if let Some(after) = after {
            self.routed.lock().unwrap().push(after);
            self.hosts.add(&name);
            self.idle.lock().unwrap().push_back(service);
        } else {
            eprintln!("not routed: {name}: {}", self.situation(&name).await);
            self.end(&name).await;
            self.unrouted.lock().unwrap().push(name);
        }
    }

    /// Returns once Nomad has exactly the instances of a service that it was asked for.
    async fn until_nomad_has(&self, service: &mut Service) {
        let has = async |service: &Service| {
            while !service.is_at(&self.instances.addresses(&service.name)) {
                sleep(Duration::from_millis(100)).await;
            }
        };
        for _ in 0..STALLS {
            // An event may have been lost.
            if timeout(STALLED_AFTER, has(service)).await.is_ok() || service.is_at(&self.addresses(&service.name).await)
            {
                return;
            }
            eprintln!("Nomad is asked again for {}: {}", service.name, self.situation(&service.name).await);
            self.stalled.fetch_add(1, Ordering::Relaxed);
            // A deployment that failed is not continued, another version is. A single instance would be gone meanwhile.
            if service.count > 1 {
                service.version = self.instances.version(&service.name);
            }
            self.submit(service).await;
        }
        panic!("Nomad does not do what it is asked for {}", service.name);
    }

    /// Where Nomad has instances of a service, as it says when it is asked.
    async fn addresses(&self, service: &str) -> Vec<String> {
        let registered = self.nomad.try_call(Method::GET, &format!("/v1/service/{service}"), None).await;
        let registered = registered.iter().filter_map(Value::as_array).flatten();
        registered.map(|one| one["Address"].as_str().unwrap_or_default().to_owned()).collect()
    }

    /// From the registration of a service to the first answer.
    async fn first_answer(&self, service: &str) -> Duration {
        let (host, start) = (host(service), Instant::now());
        for edge in &self.target.edges {
            while !load::get(&self.client, edge.haproxy.port, &host).await.is_ok_and(|(status, _)| status == 200) {
                // Fine enough for what is measured, and no load of its own on a target that is slow.
                sleep((start.elapsed() / 20).max(Duration::from_millis(20))).await;
            }
        }
        let answered = std::time::Instant::now();
        // Nomad's event may arrive after the answer.
        let registered = wait_for(&format!("the registration of {service}"), LATE_AFTER, async || {
            self.instances.registered(service)
        })
        .await;
        answered.saturating_duration_since(registered)
    }

    async fn stop(&self, service: Service) {
        self.hosts.remove(&service.name).await;
        self.end(&service.name).await;
        self.stopped.fetch_add(1, Ordering::Relaxed);
    }

    /// Scales a service to the peak, rolls it there, and scales it back, under requests.
    async fn grow(&self, mut service: Service) {
        service.count = self.settings.peak;
        self.reach(&mut service).await;
        service.version = self.instances.version(&service.name);
        self.reach(&mut service).await;
        service.count = 1;
        self.reach(&mut service).await;
        self.grown.fetch_add(1, Ordering::Relaxed);
        self.idle.lock().unwrap().push_back(service);
    }

    /// Submits a service and waits until exactly its instances take traffic in each HAProxy.
    async fn reach(&self, service: &mut Service) {
        self.submit(service).await;
        self.until_nomad_has(service).await;
        let service = &*service;
        let is_reached = async |edge: &Edge| service.is_at(&edge.serving(&service.name).await);
        let reached = async {
            for edge in &self.target.edges {
                while !is_reached(edge).await {
                    sleep(Duration::from_millis(200)).await;
                }
            }
        };
        if timeout(LATE_AFTER, reached).await.is_err() {
            let Service { name, version, count } = service;
            let late = format!("{name}: {count} at {}", version.prefix());
            eprintln!("late: {late}: {}", self.situation(name).await);
            self.late.lock().unwrap().push(late);
        }
    }

    /// What Nomad and each HAProxy have of a service: it tells which of them hangs.
    async fn situation(&self, service: &str) -> Value {
        let nomad = async |path: &str| self.nomad.try_call(Method::GET, path, None).await.unwrap_or_default();
        let path = format!("/v1/job/{service}");
        let part = async |part: &str| nomad(&format!("{path}/{part}")).await;
        let told = |all: Value, keys: &[&str]| -> Vec<Value> {
            let one = |one: &Value| keys.iter().map(|key| ((*key).to_owned(), one[*key].clone())).collect();
            all.as_array().into_iter().flatten().map(one).collect()
        };
        let allocations = ["Name", "JobVersion", "DesiredStatus", "ClientStatus", "DeploymentStatus"];
        let evaluations = ["CreateIndex", "TriggeredBy", "Status", "StatusDescription", "WaitUntil"];
        let (job, deployment) = (nomad(&path).await, part("deployment").await);
        let serving = join_all(self.target.edges.iter().map(|edge| edge.serving(service))).await;
        json!({
            "version": [job["Version"], job["JobModifyIndex"]],
            "deployment": [deployment["JobVersion"], deployment["Status"], deployment["StatusDescription"]],
            "allocations": told(part("allocations").await, &allocations),
            "evaluations": told(part("evaluations").await, &evaluations),
            "registered": self.addresses(service).await,
            "serving": serving,
        })
    }

    fn oldest(&self) -> Option<Service> {
        self.idle.lock().unwrap().pop_front()
    }

    fn phase(&self, phase: &'static str) {
        *self.phase.lock().unwrap() = phase;
    }

    /// Numbers that come so often in a second.
    fn ticks(per_second: u32) -> impl stream::Stream<Item = ()> {
        let mut ticks = interval(Duration::from_secs(1) / per_second);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        stream::unfold(ticks, async |mut ticks| {
            ticks.tick().await;
            Some(((), ticks))
        })
    }

    /// All services, one after the other.
    async fn create_all(&self) {
        let ticks = Self::ticks(CREATED_PER_SECOND).take(self.settings.services);
        ticks.for_each_concurrent(CREATING, |()| self.create()).await;
    }

    /// Some of them grow, and nothing else happens.
    async fn grow_some(&self) {
        let some = (0..self.settings.services.div_ceil(GROWN_OF)).filter_map(|_| self.oldest());
        let some: Vec<_> = some.collect();
        stream::iter(some).for_each_concurrent(self.settings.growing, |service| self.grow(service)).await;
    }

    /// A new service, and the end of the oldest one.
    async fn replace(&self) {
        self.create().await;
        // With fewer, the oldest one has only just come.
        let is_enough = self.idle.lock().unwrap().len() > self.settings.services / 2;
        if let Some(service) = is_enough.then(|| self.oldest()).flatten() {
            self.stop(service).await;
        }
    }

    /// New services take the place of old ones, and others grow.
    async fn churn(&self) {
        let end = Instant::now() + self.settings.churn;
        let is_over = || Instant::now() >= end;
        let replaced = Self::ticks(REPLACED_PER_SECOND)
            .take_while(|()| std::future::ready(!is_over()))
            .for_each_concurrent(CREATING, |()| self.replace());
        let growing = self.settings.growing;
        let growing = stream::iter(0..growing).for_each_concurrent(growing, |_| async {
            while !is_over() {
                match self.oldest() {
                    Some(service) => self.grow(service).await,
                    None => sleep(Duration::from_millis(100)).await,
                }
            }
        });
        tokio::join!(replaced, growing);
    }
}

/// Runs a soak; each sample is shown as it is taken.
pub async fn run(settings: &Settings, show: impl Fn(&Sample)) -> Report {
    let database = MariaDb::start().await;
    let (nomad, _node) = start_nomad(settings).await;
    let instances = Instances::start(&nomad.address, settings.grace);
    let Settings { series, plane, linger, .. } = settings;
    let target = Target::start(plane, series, &nomad.address, database.port, *linger).await;
    if !matches!(plane, Plane::Connector(_)) {
        nomad.submit(database_job(database.port)).await;
    }
    let soak = Soak {
        settings,
        nomad,
        target,
        instances,
        client: reqwest::Client::builder().pool_max_idle_per_host(0).build().unwrap(),
        next: AtomicUsize::new(0),
        idle: Mutex::default(),
        hosts: Hosts::default(),
        routed: Mutex::default(),
        unrouted: Mutex::default(),
        late: Mutex::default(),
        stalled: AtomicUsize::new(0),
        stopped: AtomicUsize::new(0),
        grown: AtomicUsize::new(0),
        changes: AtomicUsize::new(0),
        killed: AtomicUsize::new(0),
        phase: Mutex::new("start"),
    };
    // The first services of their settings may take a reload on any target. The connection comes after it, so that it
    // is in the worker that stays.
    soak.create().await;
    soak.routed.lock().unwrap().clear();
    let connections = join_all(soak.target.edges.iter().map(|edge| Client::start(edge.database))).await;
    // A Data Plane API may keep a connection to an old one open.
    let is_alone = *plane == Plane::Local;
    wait_for("the first workers to end", Duration::from_secs(60), async || {
        (!is_alone || soak.target.measure().await.workers == 1).then_some(())
    })
    .await;
    soak.watch(&connections, show).await
}

/// An agent that is server and client; or, if the server is killed, one for each, so that the client stays.
async fn start_nomad(settings: &Settings) -> (Nomad, Option<Group>) {
    if settings.kill_every.is_none() {
        return (Nomad::start().await, None);
    }
    let nomad = Nomad::start_patient_server().await;
    let node = nomad.join("node").await;
    (nomad, Some(node))
}

/// The database as a service.
fn database_job(port: u16) -> Value {
    let mut job = job("db", 1, &["enable=true", "mode=tcp"], None);
    let group = &mut job["TaskGroups"][0];
    group["Networks"] = json!([]);
    group["Services"][0]["Address"] = "127.0.0.1".into();
    group["Services"][0]["PortLabel"] = port.to_string().into();
    job
}
