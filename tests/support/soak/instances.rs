//! The instances of a soak: addresses of the loopback network that one listener serves for as long as Nomad has them.
//! Nomad runs no process for them, so that thousands of them fit on one machine.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::connect_info::{ConnectInfo, Connected};
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::serve::IncomingStream;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpSocket};
use tokio::task::JoinHandle;

use crate::support::nomad::job;

/// Between an instance's deregistration and its end, as the README has it.
const SHUTDOWN_DELAY: Duration = Duration::from_secs(3);
/// How long Nomad waits with the next instances of a roll once these run: longer than their first health check takes.
const MIN_HEALTHY: Duration = Duration::from_secs(3);
/// Nomad's own deadlines of a deployment.
const HEALTHY: Duration = Duration::from_secs(300);
const PROGRESS: Duration = Duration::from_secs(600);
/// How long Nomad waits before it replaces an instance that failed. It fails each one that it is about to register when
/// its server is killed (seen on 1.11.3).
const RESCHEDULE: Duration = Duration::from_secs(5);
/// Settings with which people run services; all of a soak have the same.
const TAGS: [&str; 2] = ["enable=true", "check.path=/health"];

/// A version of a service: a roll makes another. It determines the addresses of its instances.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Version(u16);

impl Version {
    /// The second and the third byte of its addresses.
    fn bytes(self) -> [u8; 2] {
        // Without 127.0, which other things on the machine use, and without 0 and 255, which mean more than an address.
        let byte = |n: u16| u8::try_from(1 + n % 250).expect("1 to 250");
        [byte(self.0 / 250), byte(self.0)]
    }

    /// The version that an address is of.
    fn at(address: Ipv4Addr) -> Option<Self> {
        let [_, second, third, _] = address.octets().map(u16::from);
        Some(Self(second.checked_sub(1)? * 250 + third.checked_sub(1)?))
    }

    /// What all its addresses begin with.
    pub fn prefix(self) -> String {
        let [second, third] = self.bytes();
        format!("127.{second}.{third}.")
    }

    /// The job of a service in this version. At most a quarter of its instances are replaced at the same time.
    pub fn job(self, service: &str, count: u32, port: u16) -> Value {
        let mut job = job(service, count, &TAGS, None);
        job["Update"]["MaxParallel"] = count.div_ceil(4).into();
        job["Update"]["MinHealthyTime"] = nanoseconds(MIN_HEALTHY).into();
        job["Update"]["HealthyDeadline"] = nanoseconds(HEALTHY).into();
        job["Update"]["ProgressDeadline"] = nanoseconds(PROGRESS).into();
        let group = &mut job["TaskGroups"][0];
        group["Networks"] = json!([]);
        group["ReschedulePolicy"] =
            json!({"Delay": nanoseconds(RESCHEDULE), "DelayFunction": "constant", "Unlimited": true});
        group["ShutdownDelay"] = nanoseconds(SHUTDOWN_DELAY).into();
        group["Services"][0]["Address"] = format!("{}${{NOMAD_ALLOC_INDEX}}", self.prefix()).into();
        group["Services"][0]["PortLabel"] = port.to_string().into();
        // Nomad replaces instances when their task changes; a service alone is rewritten in place.
        group["Tasks"][0]["Env"] = json!({"VERSION": self.0.to_string()});
        job
    }
}

/// As Nomad's API takes times.
fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).expect("seconds")
}

/// The allocation that has an address.
#[derive(Debug, Clone)]
struct Holder {
    allocation: String,
    /// It answers for a while after Nomad has deregistered it.
    is_registered: bool,
}

#[derive(Default)]
struct Known {
    /// The service of each version.
    services: Vec<String>,
    held: HashMap<Ipv4Addr, Holder>,
    /// Addresses where nothing runs any more.
    gone: HashSet<Ipv4Addr>,
    /// When Nomad reported a service for the first time.
    registered: HashMap<String, Instant>,
}

pub struct Instances {
    pub port: u16,
    known: Arc<Mutex<Known>>,
    tasks: [JoinHandle<()>; 2],
}

impl Instances {
    /// Serves what this Nomad has. Who is gone answers until `grace` after its `shutdown_delay`.
    pub fn start(nomad: &str, grace: Duration) -> Self {
        let known = Arc::new(Mutex::new(Known::default()));
        let listener = on_loopback();
        let port = listener.local_addr().unwrap().port();
        let router = Router::new().fallback(answer).with_state(known.clone());
        let service = router.into_make_service_with_connect_info::<Here>();
        let serving = tokio::spawn(async move { axum::serve(listener, service).await.unwrap() });
        let (nomad, delay) = (nomad.to_owned(), SHUTDOWN_DELAY + grace);
        let follower = Follower { client: reqwest::Client::new(), nomad, known: known.clone(), delay, index: 0 };
        let following = tokio::spawn(follower.run());
        Self { port, known, tasks: [serving, following] }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap()
    }

    /// A new version of a service.
    pub fn version(&self, service: &str) -> Version {
        let mut known = self.known();
        let version = Version(u16::try_from(known.services.len()).expect("fewer versions than addresses"));
        known.services.push(service.to_owned());
        version
    }

    /// Where Nomad has instances of a service, as far as its events say.
    pub fn addresses(&self, service: &str) -> Vec<String> {
        let known = self.known();
        let of_service = |address: &Ipv4Addr| {
            let version = Version::at(*address)?;
            known.services.get(usize::from(version.0)).filter(|name| *name == service)
        };
        let registered = known.held.iter().filter(|(_, holder)| holder.is_registered).map(|(address, _)| address);
        registered.filter(|address| of_service(address).is_some()).map(Ipv4Addr::to_string).collect()
    }

    /// When Nomad reported this service for the first time.
    pub fn registered(&self, service: &str) -> Option<Instant> {
        self.known().registered.get(service).copied()
    }
}

impl Drop for Instances {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// A listener for every address of the loopback network, and for no other.
fn on_loopback() -> TcpListener {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind_device(Some(b"lo")).unwrap();
    socket.bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))).unwrap();
    socket.listen(1024).unwrap()
}

/// The address that a connection was made to.
#[derive(Clone)]
struct Here(IpAddr);

impl Connected<IncomingStream<'_, TcpListener>> for Here {
    fn connect_info(stream: IncomingStream<'_, TcpListener>) -> Self {
        Self(stream.io().local_addr().map_or(Ipv4Addr::UNSPECIFIED.into(), |address| address.ip()))
    }
}

/// An instance answers requests for its own service only, and not when it is gone.
async fn answer(
    ConnectInfo(Here(here)): ConnectInfo<Here>,
    State(known): State<Arc<Mutex<Known>>>,
    request: Request,
) -> (StatusCode, String) {
    let known = known.lock().unwrap();
    let IpAddr::V4(here) = here else { return (StatusCode::NOT_FOUND, String::new()) };
    let service = Version::at(here).and_then(|version| known.services.get(usize::from(version.0)));
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    match service {
        Some(_) if known.gone.contains(&here) => (StatusCode::SERVICE_UNAVAILABLE, "gone".to_owned()),
        Some(_) if request.uri().path() == "/health" => (StatusCode::OK, String::new()),
        Some(service) if host.split('.').next() == Some(service) => (StatusCode::OK, service.clone()),
        _ => (StatusCode::MISDIRECTED_REQUEST, format!("{here} is not of {host}")),
    }
}

/// Follows Nomad's registrations.
struct Follower {
    client: reqwest::Client,
    nomad: String,
    known: Arc<Mutex<Known>>,
    /// Between an instance's deregistration and its last answer.
    delay: Duration,
    /// Of the next event.
    index: u64,
}

impl Follower {
    async fn run(mut self) {
        loop {
            // A server that was killed has no events from before.
            if self.index == 0 || self.catch_up().await.is_some() {
                // The stream ends with the server.
                let _ = self.follow().await;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Takes Nomad's events until their stream ends.
    async fn follow(&mut self) -> reqwest::Result<()> {
        let url = format!("{}/v1/event/stream?topic=Service&index={}", self.nomad, self.index);
        let (mut buffer, mut stream) = (Vec::new(), self.client.get(url).send().await?);
        while let Some(chunk) = stream.chunk().await? {
            buffer.extend_from_slice(&chunk);
            while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = buffer.drain(..=end).collect();
                let Ok(entry) = serde_json::from_slice::<Value>(&line) else { continue };
                self.index = entry["Index"].as_u64().map_or(self.index, |seen| seen + 1);
                for event in entry["Events"].as_array().into_iter().flatten() {
                    let service = &event["Payload"]["Service"];
                    match event["Type"].as_str() {
                        Some("ServiceRegistration") => self.registered(service),
                        _ => self.deregistered(service),
                    }
                }
            }
        }
        Ok(())
    }

    /// Takes what Nomad has now for events that were missed. `None`: it does not answer, or has not yet read all of its
    /// log again.
    async fn catch_up(&self) -> Option<()> {
        let (at, lists) = self.read("/v1/services").await?;
        if at + 1 < self.index {
            return None;
        }
        let mut now = HashSet::new();
        for name in names(&lists) {
            let (_, Value::Array(instances)) = self.read(&format!("/v1/service/{name}")).await? else { return None };
            for service in instances {
                now.insert(text(&service, "AllocID"));
                self.registered(&service);
            }
        }
        let held: Vec<_> = self.known.lock().unwrap().held.clone().into_iter().collect();
        for (address, holder) in held.into_iter().filter(|(_, holder)| !now.contains(&holder.allocation)) {
            self.deregistered(&json!({"Address": address.to_string(), "AllocID": holder.allocation}));
        }
        Some(())
    }

    /// What Nomad answers, and the index that it is of.
    async fn read(&self, path: &str) -> Option<(u64, Value)> {
        let answer = self.client.get(format!("{}{path}", self.nomad)).send().await.ok()?;
        let at = answer.headers().get("X-Nomad-Index")?.to_str().ok()?.parse().ok()?;
        Some((at, answer.json().await.ok()?))
    }

    fn registered(&self, service: &Value) {
        let Ok(address) = text(service, "Address").parse() else { return };
        let mut known = self.known.lock().unwrap();
        known.registered.entry(text(service, "ServiceName")).or_insert_with(Instant::now);
        known.gone.remove(&address);
        known.held.insert(address, Holder { allocation: text(service, "AllocID"), is_registered: true });
    }

    fn deregistered(&self, service: &Value) {
        let Ok(address) = text(service, "Address").parse() else { return };
        let (known, delay, allocation) = (self.known.clone(), self.delay, text(service, "AllocID"));
        if let Some(holder) = known.lock().unwrap().held.get_mut(&address).filter(|one| one.allocation == allocation) {
            holder.is_registered = false;
        }
        tokio::spawn(async move {
            tokio::time::sleep(delay).await;
            let mut known = known.lock().unwrap();
            // Another one may have its address by now.
            if known.held.get(&address).is_some_and(|holder| holder.allocation == allocation) {
                known.held.remove(&address);
                known.gone.insert(address);
            }
        });
    }
}

fn text(service: &Value, field: &str) -> String {
    service[field].as_str().unwrap_or_default().to_owned()
}

/// The services of Nomad's answer, in all namespaces.
pub fn names(lists: &Value) -> Vec<String> {
    let services = lists.as_array().into_iter().flatten().filter_map(|list| list["Services"].as_array()).flatten();
    services.filter_map(|service| Some(service["ServiceName"].as_str()?.to_owned())).collect()
}
