//! A sample of HAProxy's statistics: what its checks say of each server of ours, and what failed. The loop takes it after
//! a pass, in the background, so that it delays no change, and nothing asks HAProxy because somebody looks at a page.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::{Instant, timeout};
use tokio_util::task::AbortOnDropHandle;

use crate::breaker::State;
use crate::desired::BackendName;
use crate::errors::chain;
use crate::haproxy::stats::{Fields, Kind, Row, Stats};
use crate::plane::Plane;
use crate::status::Board;

/// The least time between two samples. At rest a pass comes with each resync, every 30 s, and so does a sample.
pub const EVERY: Duration = Duration::from_secs(10);
/// From the pass to its sample: where several HAProxys are adopted or change together, the work of the last one is over
/// by then, so that no sample competes with it.
pub const QUIET: Duration = Duration::from_secs(5);
/// A sample may keep HAProxy and its API busy for one part in this many of the time: the next one waits that many times
/// as long as the last one took. The Data Plane API has one answer for all, and needs far longer for it than HAProxy:
/// for 1000 services of 5 with as many spare servers (10,000 servers) the API 3.2 takes 4.6 s of one core and answers
/// with 5.7 MB, where HAProxy's socket takes 0.12 s for 3.5 MB. Other calls to the API do not wait meanwhile (a run-time
/// change took 4 to 27 ms as before). So small systems have a sample at each resync, and one of that size every four
/// minutes.
pub const SHARE: u32 = 50;
/// A sample that takes longer is given up.
const TIMEOUT: Duration = Duration::from_secs(20);
/// Two totals that are nearer to each other say nothing of a rate.
const RATE_OVER: Duration = Duration::from_secs(1);

/// What one look at HAProxy's statistics found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// When it was taken.
    pub taken: SystemTime,
    /// The requests and connections that failed in this worker, those of others included.
    pub errors: u64,
    /// The servers of the backends of ours, by backend and name.
    pub servers: BTreeMap<String, BTreeMap<String, ServerSample>>,
}

/// What HAProxy says of one server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerSample {
    /// Its status in HAProxy's words: `UP`, `DOWN`, `MAINT`, `no check`, `UP 1/3`, …
    pub status: String,
    /// The result of its last check, as a word: `L4CON`.
    pub check: Option<String>,
    /// The same as a sentence.
    pub description: Option<String>,
    /// What the check was answered with.
    pub answer: Option<String>,
    /// Its open sessions.
    pub connections: u64,
    /// Its failed connections and answers.
    pub errors: u64,
}

/// What HAProxy says of all servers of one backend of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackendSample {
    /// `UP`: one takes traffic; `MAINT`: all are in maintenance, as in a backend without an instance; else `DOWN`.
    pub status: &'static str,
    /// Their failed connections and answers.
    pub errors: u64,
    /// Their open sessions.
    pub connections: u64,
}

impl Sample {
    fn new(stats: &Stats, is_ours: impl Fn(&str) -> bool) -> Self {
        let mut servers: BTreeMap<String, BTreeMap<String, ServerSample>> = BTreeMap::new();
        for row in stats.of(Kind::Server) {
            if let Some(backend) = row.backend.as_deref().filter(|backend| is_ours(backend)) {
                let of_backend = match servers.get_mut(backend) {
                    Some(known) => known,
                    None => servers.entry(backend.to_owned()).or_default(),
                };
                of_backend.insert(row.name.clone(), ServerSample::new(row));
            }
        }
        Self { taken: SystemTime::now(), errors: stats.errors(), servers }
    }

    /// One server.
    pub fn server(&self, backend: &str, server: &str) -> Option<&ServerSample> {
        self.servers.get(backend)?.get(server)
    }

    /// The servers of this backend that have one of these names, together. `None`: it has none of them.
    pub fn backend<'a>(&self, backend: &str, names: impl IntoIterator<Item = &'a str>) -> Option<BackendSample> {
        let known = self.servers.get(backend)?;
        let mut found = names.into_iter().filter_map(|name| known.get(name)).peekable();
        found.peek()?;
        let start = BackendSample { status: "MAINT", errors: 0, connections: 0 };
        Some(found.fold(start, |sum, server| BackendSample {
            status: match (sum.status, server) {
                ("UP", _) => "UP",
                (_, server) if server.is_up() => "UP",
                ("MAINT", server) if server.status.starts_with("MAINT") => "MAINT",
                _ => "DOWN",
            },
            errors: sum.errors + server.errors,
            connections: sum.connections + server.connections,
        }))
    }
}

impl ServerSample {
    fn new(row: &Row) -> Self {
        let owned = |words: Option<&str>| words.map(str::to_owned);
        Self {
            status: row.status().unwrap_or_default().to_owned(),
            check: owned(row.check_status()),
            description: owned(row.check_description()),
            answer: owned(row.last_check()),
            connections: row.sessions().unwrap_or(0),
            errors: row.errors(),
        }
    }

    /// The result of its last check in a few words.
    pub fn checked(&self) -> Option<String> {
        let check = self.check.as_ref()?;
        let more = self.answer.as_ref().or(self.description.as_ref()).filter(|text| !text.is_empty());
        Some(more.map_or_else(|| check.clone(), |more| format!("{check}: {more}")))
    }

    /// Whether it takes traffic.
    pub fn is_up(&self) -> bool {
        self.status.starts_with("UP") || self.status == "no check"
    }
}

/// The mean per second of a total that HAProxy counts, between the last two looks at the same worker.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Rate {
    last: Option<(Instant, u64, u64)>,
    /// `None`: there are no two looks yet.
    pub per_second: Option<f64>,
}

impl Rate {
    /// A look at the total of a worker. Another worker starts at zero, as does one whose total is less than before.
    pub fn saw(&mut self, now: Instant, pid: u64, total: u64) {
        match self.last {
            Some((at, worker, before)) if worker == pid && before <= total => {
                let over = now.saturating_duration_since(at);
                if over < RATE_OVER {
                    return;
                }
                #[allow(clippy::cast_precision_loss, reason = "a count of 2^52 takes longer than HAProxy lives")]
                let more = (total - before) as f64;
                self.per_second = Some(more / over.as_secs_f64());
            }
            _ => self.per_second = None,
        }
        self.last = Some((now, pid, total));
    }
}

/// Takes the samples of one HAProxy, one at a time.
#[derive(Debug, Default)]
pub struct Sampler {
    /// Ends with the time before which there is no next one.
    running: Option<AbortOnDropHandle<Instant>>,
    due: Option<Instant>,
}

impl Sampler {
    /// A pass has ended, to which HAProxy gave an answer: takes a sample in the background after [`QUIET`], if one is
    /// due.
    pub async fn after_pass(&mut self, plane: Arc<dyn Plane>, board: Arc<Board>, name: &str) {
        if let Some(finished) = self.running.take_if(|running| running.is_finished()) {
            // It has ended; one that panicked is not waited for.
            self.due = finished.await.ok();
        }
        if self.running.is_some() || self.due.is_some_and(|due| due > Instant::now()) {
            return;
        }
        let name = name.to_owned();
        self.running = Some(AbortOnDropHandle::new(tokio::spawn(async move {
            tokio::time::sleep(QUIET).await;
            let started = Instant::now();
            if !is_closed(&board, &name) {
                return started + EVERY;
            }
            take(&*plane, &board, &name).await;
            Instant::now() + EVERY.max(started.elapsed() * SHARE)
        })));
    }
}

/// Whether the circuit breaker lets anything but a probe through.
fn is_closed(board: &Board, name: &str) -> bool {
    let breaker = board.read().targets.get(name).and_then(|target| target.breaker);
    breaker.is_some_and(|breaker| breaker.state == State::Closed)
}

/// Takes one now, for the status of a single look.
pub async fn take(plane: &dyn Plane, board: &Board, name: &str) {
    match timeout(TIMEOUT, plane.stats(Fields::Checks)).await {
        Ok(Ok(stats)) => sampled(board, name, &stats),
        Ok(Err(error)) => tracing::debug!(error = %chain(&error), "no sample of HAProxy's statistics"),
        Err(_) => tracing::debug!("no sample of HAProxy's statistics within {TIMEOUT:?}"),
    }
}

/// Publishes what concerns the backends of ours.
fn sampled(board: &Board, name: &str, stats: &Stats) {
    let now = Instant::now();
    let all = board.read();
    let Some(target) = all.targets.get(name) else { return };
    let ours: BTreeSet<&str> = target.seats.backends.keys().map(BackendName::as_str).collect();
    let sample = Arc::new(Sample::new(stats, |backend| ours.contains(backend)));
    board.update_target(name, |target| {
        if let Some(haproxy) = &target.haproxy {
            target.error_rate.saw(now, haproxy.pid, sample.errors);
        }
        target.sample = Some(sample);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stats(rows: &[(&str, &str, &str, u64)]) -> Stats {
        let header = "# pxname,svname,type,scur,econ,status\n".to_owned();
        let rows = rows.iter().map(|(backend, server, status, n)| format!("{backend},{server},2,{n},{n},{status}\n"));
        Stats::from_csv(&rows.fold(header, |text, row| text + &row), Fields::All).expect("it is good")
    }

    #[test]
    fn a_backend_is_up_while_one_of_its_servers_takes_traffic() {
        let cases: [(&[&str], &str); 7] = [
            (&["DOWN", "UP 2/3"], "UP"),
            (&["no check", "MAINT"], "UP"),
            (&["UP", "DOWN 1/2"], "UP"),
            (&["DOWN", "MAINT"], "DOWN"),
            (&["MAINT", "DRAIN"], "DOWN"),
            (&["MAINT", "MAINT (resolution)"], "MAINT"),
            (&["NOLB"], "DOWN"),
        ];
        for (states, wanted) in cases {
            let names: Vec<String> = (0..states.len()).map(|n| format!("api_{n}")).collect();
            let rows: Vec<_> =
                names.iter().zip(states).map(|(name, state)| ("api", name.as_str(), *state, 2)).collect();
            let sample = Sample::new(&stats(&rows), |backend| backend == "api");
            let found = sample.backend("api", names.iter().map(String::as_str)).expect("it is there");
            let all = 2 * u64::try_from(states.len()).expect("few");
            assert_eq!(found, BackendSample { status: wanted, errors: all, connections: all }, "{states:?}");
        }
    }

    #[test]
    fn only_servers_of_ours_count() {
        let sample = Sample::new(
            &stats(&[("shop", "old", "UP", 9), ("shop", "shop_1", "DOWN", 1), ("other", "x", "UP", 1)]),
            |backend| backend == "shop",
        );
        assert!(sample.server("other", "x").is_none());
        let found = sample.backend("shop", ["shop_1"]).expect("it is there");
        assert_eq!(found, BackendSample { status: "DOWN", errors: 1, connections: 1 });
        assert_eq!((sample.backend("shop", ["shop_2"]), sample.backend("other", ["x"])), (None, None));
    }

    #[test]
    fn a_rate_is_between_two_looks_at_one_worker() {
        let (mut rate, start) = (Rate::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs_f64(seconds);
        let mut saw = |seconds, pid, total| {
            rate.saw(at(seconds), pid, total);
            rate.per_second
        };
        assert_eq!(saw(0.0, 1, 100), None);
        assert_eq!(saw(0.1, 1, 200), None, "too near");
        assert_eq!(saw(2.0, 1, 200), Some(50.0));
        assert_eq!(saw(2.1, 1, 900), Some(50.0), "the last one stays");
        assert_eq!(saw(3.0, 2, 1000), None, "another worker");
        assert_eq!(saw(5.0, 2, 1000), Some(0.0));
        assert_eq!(saw(6.0, 2, 10), None, "a worker that starts at zero");
    }
}
