//! `make demo`: a Nomad dev agent, HAProxy and the controller; a job of real HTTP servers is routed,
//! scaled up, rolled to a new version and stopped under a steady load, with the diff of each pass.
//!
//! It runs until Ctrl-C, then cleans up. `--once` ends by itself, with 0 if every request was answered.
//! `--catalog-file` does the same on a catalog file, without Nomad. With `HAPROXY_DATAPLANE_URL` set it uses that Data
//! Plane API.

#![allow(clippy::unwrap_used, unreachable_pub, reason = "it shows; what fails may panic")]

#[path = "../tests/support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use nomad_haproxy::haproxy::text::ConfigText;
use serde_json::Value;
use support::controller::{Controller, Env, registration, write_catalog};
use support::haproxy::Haproxy;
use support::load::{self, Load};
use support::nomad::{Nomad, job};
use support::servers::Server;

/// The service of the demo, and the host that HAProxy routes to it by its name.
const SERVICE: &str = "hello";
const HOST: &str = "hello.localhost";
/// Requests per second.
const LOAD: u32 = 50;

#[derive(Parser)]
struct Options {
    /// End by itself.
    #[arg(long)]
    once: bool,
    /// Use a catalog file instead of Nomad.
    #[arg(long)]
    catalog_file: bool,
    /// The HAProxy to start.
    #[arg(long)]
    haproxy: PathBuf,
}

/// The HAProxy of the demo: its own, or the one behind `HAPROXY_DATAPLANE_URL`.
enum Proxy {
    Own(Box<Haproxy>),
    External { url: String, port: u16 },
}

impl Proxy {
    async fn find(binary: PathBuf) -> Self {
        let variable = |name: &str| std::env::var(name).ok();
        let Some(url) = variable("HAPROXY_DATAPLANE_URL") else {
            return Self::Own(Box::new(Haproxy::start_binary(binary, support::haproxy::hand_written).await));
        };
        let path = format!("{}/v3/services/haproxy/configuration/raw", url.trim_end_matches('/'));
        let user = variable("HAPROXY_USERNAME").unwrap_or_else(|| "admin".to_owned());
        let request = reqwest::Client::new().get(path).basic_auth(user, variable("HAPROXY_PASSWORD"));
        let text = request.send().await.expect("the Data Plane API answers").text().await.expect("a text");
        let port = routing_port(&text);
        let port = port.expect("a frontend with `use_backend %[req.hdr(host),field(1,:),field(1,.)]` and a bind line");
        Self::External { url, port }
    }

    fn port(&self) -> u16 {
        match self {
            Self::Own(haproxy) => haproxy.port,
            Self::External { port, .. } => *port,
        }
    }

    fn describe(&self) -> String {
        match self {
            Self::Own(haproxy) => format!("configuration {}", haproxy.config().display()),
            Self::External { url, .. } => format!("Data Plane API {url}"),
        }
    }

    /// The controller's settings.
    fn env(&self) -> Env {
        let set = |key: &str, value: &std::path::Path| (key.to_owned(), value.display().to_string());
        match self {
            Self::Own(haproxy) => vec![
                set("HAPROXY_CONFIG_FILE", &haproxy.config()),
                set("HAPROXY_MASTER_SOCKET", &haproxy.master()),
                set("HAPROXY_BINARY", &haproxy.binary),
            ],
            Self::External { .. } => std::env::vars().filter(|(key, _)| key.starts_with("HAPROXY_")).collect(),
        }
    }
}

/// The port of a frontend that routes by host name.
fn routing_port(text: &str) -> Option<u16> {
    let text = ConfigText::new(text);
    let frontends = text.sections().into_iter().filter(|section| section.kind == "frontend");
    let ports = frontends.filter_map(|section| {
        let directives: Vec<_> = text.directives(&section).map(|(_, directive)| directive.words).collect();
        let routes =
            directives.iter().any(|words| words[0] == "use_backend" && words[1].starts_with("%[req.hdr(host)"));
        let bind = directives.iter().find(|words| words[0] == "bind")?;
        routes.then(|| bind.get(1)?.rsplit_once(':')?.1.parse().ok()).flatten()
    });
    ports.into_iter().next()
}

/// What the demo controls: Nomad's jobs, or the same in a file.
enum Cluster {
    Nomad(Box<Nomad>),
    File { path: PathBuf, servers: Vec<(Server, u64)>, next: u64 },
}

impl Cluster {
    async fn run(&mut self, count: u32, version: &str) {
        match self {
            Self::Nomad(nomad) => {
                nomad.submit(job(SERVICE, count, &["enable=true", "check.interval=200ms"], Some(version))).await;
            }
            Self::File { path, servers, next } => {
                let keep: Vec<(Server, u64)> = std::mem::take(servers);
                // Keeps those of this version, starts what is missing, and stops the others last.
                let (mut stay, go): (Vec<_>, Vec<_>) =
                    keep.into_iter().partition(|(_, id)| *id / 100 == version.parse::<u64>().unwrap());
                while stay.len() < count as usize {
                    *next += 1;
                    let id = version.parse::<u64>().unwrap() * 100 + *next;
                    stay.push((Server::start(&format!("server{id} version {version}")).await, id));
                }
                stay.truncate(count as usize);
                let one = |(server, id): &(Server, u64)| {
                    registration(SERVICE, &id.to_string(), *id, server.port(), &["enable=true", "check.interval=200ms"])
                };
                write_catalog(path, &stay.iter().map(one).collect::<Vec<_>>());
                // Like `shutdown_delay` in Nomad: deregistered first, stopped a while later.
                tokio::time::sleep(Duration::from_secs(2)).await;
                drop(go);
                *servers = stay;
            }
        }
    }

    async fn stop(&mut self) {
        match self {
            Self::Nomad(nomad) => nomad.stop_job(SERVICE).await,
            Self::File { path, servers, .. } => {
                write_catalog(path, &[]);
                tokio::time::sleep(Duration::from_secs(2)).await;
                servers.clear();
            }
        }
    }
}

fn title(text: &str) {
    if std::io::stdout().is_terminal() { println!("\n\x1b[1m▶ {text}\x1b[0m") } else { println!("\n== {text}") }
}

fn painted(diff: &str) -> String {
    let colour = std::io::stdout().is_terminal();
    let paint = |line: &str| match (colour, line.as_bytes().first()) {
        (true, Some(b'+')) => format!("   \x1b[32m{line}\x1b[0m\n"),
        (true, Some(b'-')) => format!("   \x1b[31m{line}\x1b[0m\n"),
        _ => format!("   {line}\n"),
    };
    diff.lines().map(paint).collect()
}

struct Demo {
    controller: Controller,
    shown: usize,
    failed: usize,
    requests: usize,
    reloads: usize,
}

impl Demo {
    /// Prints the diff of each pass since the last look.
    fn show_passes(&mut self) {
        let events: Vec<Value> = self.controller.events();
        for event in &events[self.shown.min(events.len())..] {
            match event["message"].as_str() {
                Some("applied") => {
                    let reloads = event["reloads"].as_u64().unwrap_or(0);
                    self.reloads += usize::try_from(reloads).unwrap();
                    let how = if reloads > 0 { "one reload" } else { "no reload" };
                    println!("\n   pass: version {}, {how}", event["version"]);
                }
                Some("configuration written") => println!("{}", painted(event["diff"].as_str().unwrap_or(""))),
                Some("problem with a service" | "the pass failed") => println!("   {event}"),
                _ => {}
            }
        }
        self.shown = events.len();
    }

    fn print_load(&mut self, load: &Load) {
        let tally = load.take();
        self.requests += tally.requests;
        self.failed += tally.failed.len();
        let spread: BTreeMap<_, _> = tally.by_answer;
        println!("   {} requests, {} failed, spread over:", tally.requests, tally.failed.len());
        for (answer, count) in spread {
            println!("     {count:>5}  {answer}");
        }
        for failure in tally.failed.iter().take(3) {
            println!("     failed: {failure}");
        }
    }

    /// Waits until exactly this many instances, all of this version, answer.
    async fn settled(&mut self, port: u16, count: usize, version: &str) {
        let client = reqwest::Client::new();
        support::wait_for(&format!("{count} instances of version {version}"), Duration::from_secs(90), async || {
            let mut seen = BTreeMap::new();
            for _ in 0..count * 4 {
                let (_, body) = load::get(&client, port, HOST).await.ok().filter(|(status, _)| *status == 200)?;
                *seen.entry(body).or_insert(0) += 1;
            }
            let all = seen.keys().all(|body| body.ends_with(&format!("version {version}")));
            (all && seen.len() == count).then_some(())
        })
        .await;
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let options = Options::parse();
    let demo = show(&options);
    // Everything that was started ends when it is dropped, here and at the end.
    let failed = tokio::select! {
        failed = demo => failed,
        _ = tokio::signal::ctrl_c() => {
            println!("\ncleaning up");
            return ExitCode::SUCCESS;
        }
    };
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn show(options: &Options) -> usize {
    title("Starting HAProxy, the controller, and a cluster");
    let proxy = Proxy::find(options.haproxy.clone()).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("catalog.json");
    let mut cluster = if options.catalog_file {
        write_catalog(&file, &[]);
        Cluster::File { path: file.clone(), servers: Vec::new(), next: 0 }
    } else {
        Cluster::Nomad(Box::new(Nomad::start().await))
    };
    let set = |key: &str, value: String| (key.to_owned(), value);
    let port = proxy.port();
    let mut env = proxy.env();
    env.push(set("NOMAD_HAPROXY_RESYNC_INTERVAL", "1s".into()));
    // The diffs are for debugging.
    env.push(set("NOMAD_HAPROXY_LOG_LEVEL", "info,nomad_haproxy::report=debug".into()));
    let mut arguments = Vec::new();
    match &cluster {
        Cluster::Nomad(nomad) => {
            println!("   Nomad    {}", nomad.address);
            env.push(set("NOMAD_ADDR", nomad.address.clone()));
        }
        Cluster::File { path, .. } => {
            println!("   catalog  {}", path.display());
            arguments.extend(["--catalog", path.to_str().unwrap()]);
        }
    }
    println!("   HAProxy  http://127.0.0.1:{port} ({})", proxy.describe());
    let controller = Controller::start(&env, &arguments);
    controller.wait_until_ready().await;
    println!("   metrics  http://{}/metrics", controller.listen().await);
    let mut demo = Demo { controller, shown: 0, failed: 0, requests: 0, reloads: 0 };

    title("A job with haproxy.enable=true, two instances");
    cluster.run(2, "1").await;
    demo.settled(port, 2, "1").await;
    demo.show_passes();
    println!("   try it: curl -H 'Host: {HOST}' http://127.0.0.1:{port}/");

    let load = Load::start(port, HOST, LOAD);
    title("Scaled up to four");
    cluster.run(4, "1").await;
    demo.settled(port, 4, "1").await;
    demo.show_passes();
    demo.print_load(&load);

    title("Rolled to version 2");
    cluster.run(4, "2").await;
    demo.settled(port, 4, "2").await;
    demo.show_passes();
    demo.print_load(&load);
    if !options.once {
        title("Running; Ctrl-C stops the job and cleans up");
        let _ = tokio::signal::ctrl_c().await;
    }
    drop(load);

    title("Stopped");
    cluster.stop().await;
    support::wait_for("the backend to be gone", Duration::from_secs(30), async || {
        let (status, _) = load::get(&reqwest::Client::new(), port, HOST).await.ok()?;
        (status == 503).then_some(())
    })
    .await;
    // The pass is in the log once it is over.
    support::wait_for("the last pass", Duration::from_secs(10), async || {
        demo.controller.log().contains("-backend hello").then_some(())
    })
    .await;
    demo.show_passes();
    title(&format!("{} requests, {} failed, {} reloads", demo.requests, demo.failed, demo.reloads));
    demo.failed
}
