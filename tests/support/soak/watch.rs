//! What is done, killed and measured in a soak, and its report.

use std::sync::Mutex;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::join_all;
use reqwest::Method;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::instances::names;
use super::target::Edge;
use super::traffic::Requests;
use super::{LATE_AFTER, REQUESTS_PER_SECOND, Report, Sample, Soak, Times, Trend};
use crate::support::load::Load;
use crate::support::mariadb::Client;

/// Between two times that Nomad is to remove what is left of ended allocations.
const COLLECT_EVERY: Duration = Duration::from_secs(20);
const SAMPLE_EVERY: Duration = Duration::from_secs(5);

impl Soak<'_> {
    /// For ever.
    async fn collect_garbage(&self) {
        loop {
            sleep(COLLECT_EVERY).await;
            self.nomad.collect_garbage().await;
        }
    }

    /// One thing after the other is killed and started again, until the churn is over.
    async fn kill_in_turn(&self, is_over: &CancellationToken) {
        let Some(every) = self.settings.kill_every else { return };
        for turn in (0..3).cycle() {
            if timeout(every, is_over.cancelled()).await.is_ok() {
                return;
            }
            match turn {
                0 => self.target.kill_controller().await,
                1 => self.target.kill_apis().await,
                _ => {
                    self.nomad.crash();
                    self.nomad.launch().await;
                }
            }
            self.killed.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Returns how many reloads growth alone has cost, and how many changes there were in a second of churn.
    async fn phases(&self) -> (u64, f64) {
        self.phase("create");
        self.create_all().await;
        let before = self.target.reloads().await;
        self.phase("grow");
        self.grow_some().await;
        let of_growth = self.target.reloads().await - before;
        self.phase("churn");
        let (before, start, is_over) = (self.changes.load(Ordering::Relaxed), Instant::now(), CancellationToken::new());
        let churn = async {
            self.churn().await;
            is_over.cancel();
        };
        tokio::join!(churn, self.kill_in_turn(&is_over));
        let changes = self.changes.load(Ordering::Relaxed) - before;
        let changes = f64::from(u32::try_from(changes).expect("thousands"));
        (of_growth, changes / start.elapsed().as_secs_f64())
    }

    /// All phases, while it is measured.
    pub(super) async fn watch(&self, connections: &[Client], show: impl Fn(&Sample)) -> Report {
        let target = &self.target;
        let (first, workers) = (target.measure().await, target.workers().await);
        let first_passes = target.passes().await.len();
        let edges = u32::try_from(target.edges.len()).expect("a few");
        let load = |edge: &Edge| {
            let hosts = self.hosts.clone();
            Load::over(edge.haproxy.port, REQUESTS_PER_SECOND / edges, move || hosts.next())
        };
        let loads: Vec<Load> = target.edges.iter().map(load).collect();
        let (samples, requests) = (Mutex::new(Vec::<Sample>::new()), Mutex::new(Requests::default()));
        let start = Instant::now();
        let sample = async || {
            let (measured, registered) = (target.measure().await, self.registered().await);
            let (mut requests, second) = (requests.lock().unwrap(), start.elapsed().as_secs());
            for load in &loads {
                requests.add(second, load.take());
            }
            let sample = Sample {
                second,
                phase: *self.phase.lock().unwrap(),
                services: self.hosts.len(),
                registered,
                created: self.next.load(Ordering::Relaxed),
                requests: requests.sent,
                failed: requests.failed,
                reloads: measured.reloads - first.reloads,
                workers: measured.workers,
                haproxy_kb: measured.haproxy,
                controller_kb: measured.controller,
                descriptors: measured.descriptors,
                killed: self.killed.load(Ordering::Relaxed),
            };
            show(&sample);
            samples.lock().unwrap().push(sample);
        };
        let sampling = async {
            let mut ticks = interval(SAMPLE_EVERY);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                sample().await;
            }
        };
        let (reloads_of_growth, changes_per_second) = tokio::select! {
            done = self.phases() => done,
            () = sampling => unreachable!(),
            () = self.collect_garbage() => unreachable!(),
        };
        self.phase("end");
        let difference = self.settled().await;
        sample().await;
        drop(loads);
        let (samples, requests) = (samples.into_inner().unwrap(), requests.into_inner().unwrap());
        // From when on as many backends go as come.
        let mut churn = samples.iter().filter(|sample| sample.phase == "churn");
        let warm = churn.next().map_or(0, |first| first.second + self.settings.linger.as_secs());
        let warmed: Vec<&Sample> = churn.filter(|sample| sample.second > warm).collect();
        let trend = |of: fn(&Sample) -> u64| Trend::of(&warmed.iter().map(|sample| of(sample)).collect::<Vec<_>>());
        let passes = target.passes().await.split_off(first_passes);
        let (validation, last) = (self.validated().await, samples.last().expect("the last sample"));
        let mut report = Report {
            haproxy: self.settings.series.clone(),
            plane: self.settings.plane.name(),
            minutes: self.settings.churn.as_secs_f64() / 60.0,
            created: last.created,
            stopped: self.stopped.load(Ordering::Relaxed),
            grown: self.grown.load(Ordering::Relaxed),
            requests: requests.sent,
            failed: requests.failed,
            failures: requests.failures,
            changes_per_second,
            killed: last.killed,
            queries: connections.iter().map(|one| one.queries.load(Ordering::Relaxed)).sum(),
            is_connection_open: join_all(connections.iter().map(Client::answers)).await.into_iter().all(|open| open),
            reloads: last.reloads,
            reloads_of_growth,
            is_same_worker: target.workers().await == workers,
            workers_at_start: first.workers,
            workers_at_most: samples.iter().map(|sample| sample.workers).max().unwrap_or_default(),
            workers_at_end: last.workers,
            routed_ms: Times::of(&self.routed.lock().unwrap()),
            pass_ms: Times::of(&passes.iter().map(|pass| pass.took).collect::<Vec<_>>()),
            reloads_of_passes: passes.iter().map(|pass| pass.reloads).sum(),
            reloads_of_a_pass: passes.iter().map(|pass| pass.reloads).max().unwrap_or_default(),
            stalled: self.stalled.load(Ordering::Relaxed),
            unrouted: self.unrouted.lock().unwrap().clone(),
            late: self.late.lock().unwrap().clone(),
            validation_ms: validation.as_ref().ok().map(|time| time.as_secs_f64() * 1000.0),
            refusal: validation.err(),
            difference,
            haproxy_kb: trend(|sample| sample.haproxy_kb),
            controller_kb: trend(|sample| sample.controller_kb),
            descriptors: trend(|sample| sample.descriptors as u64),
            broken: Vec::new(),
            samples: samples.clone(),
        };
        report.judge(self.settings);
        report
    }

    /// How many services Nomad has.
    async fn registered(&self) -> usize {
        let lists = self.nomad.try_call(Method::GET, "/v1/services?namespace=*", None).await.unwrap_or_default();
        names(&lists).len()
    }

    /// How long the slowest validation of a HAProxy's file takes.
    async fn validated(&self) -> Result<Duration, String> {
        let mut slowest = Duration::ZERO;
        for edge in &self.target.edges {
            slowest = slowest.max(edge.validate().await?);
        }
        Ok(slowest)
    }

    /// The first difference between file and process, once nothing changes any more.
    async fn settled(&self) -> Option<String> {
        let end = Instant::now() + LATE_AFTER;
        loop {
            let same: Result<Vec<()>, String> =
                join_all(self.target.edges.iter().map(Edge::same)).await.into_iter().collect();
            if same.is_ok() || Instant::now() >= end {
                return same.err();
            }
            sleep(Duration::from_millis(500)).await;
        }
    }
}
