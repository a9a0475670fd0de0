//! The worker of a HAProxy, by a socket: the master's, where `@1` leads to the worker, or a stats socket of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::stream::{self, StreamExt, TryStreamExt};

use crate::desired::{BackendName, State};
use crate::haproxy::socket::{SocketAddress, SocketError};
use crate::leader::Lease;
use crate::observed::Observed;
use crate::plan::{Action, NewServer, Surplus};

use super::{AccessError, Runtime, RuntimeServer, WriteError};

/// Backends whose servers are read in parallel.
const CONCURRENCY: usize = 8;
/// For one command of the running process.
pub(super) const COMMAND_TIMEOUT: Duration = Duration::from_secs(10);
/// The answer to `add server` that means success.
const ADDED: &str = "New server registered.";

/// The answer for a backend that the process does not have.
const NO_BACKEND: &str = "No such backend.";
/// The answers to `del server` that mean that the process does not have the server any more.
const SERVER_GONE: &[&str] = &["Server deleted.", "No such server.", NO_BACKEND];
/// The same of `del backend`.
const BACKEND_GONE: &[&str] = &["Backend deleted.", NO_BACKEND];
/// How long HAProxy waits for a server to be free of connections. Most are within some milliseconds; for the others it is
/// tried again.
const REMOVABLE_WAIT: &str = "100ms";

/// Servers, by backend and name.
type Servers = BTreeMap<(String, String), RuntimeServer>;

/// The worker behind a socket.
#[derive(Debug, Clone)]
pub(super) struct Worker {
    socket: SocketAddress,
    /// What a command for the worker starts with.
    prefix: &'static str,
    lease: Lease,
}

/// Whether a command of a socket changes nothing. Of any other the lease is asked.
pub(super) fn is_read(command: &str) -> bool {
    ["show ", "wait "].iter().any(|reads| command.starts_with(reads))
}

impl Worker {
    /// Behind a master socket.
    pub(super) fn of_master(socket: SocketAddress, lease: Lease) -> Self {
        Self { socket, prefix: "@1 ", lease }
    }

    /// Behind a stats socket.
    pub(super) fn of_stats(socket: SocketAddress, lease: Lease) -> Self {
        Self { socket, prefix: "", lease }
    }

    /// Sends one command and reads the whole answer. [`AccessError::NotLeading`] if it is more than a read.
    pub(super) async fn command(&self, command: &str) -> Result<String, AccessError> {
        let line = format!("{}{command}", self.prefix);
        let answer = self.socket.command(&line, COMMAND_TIMEOUT);
        let answer = if is_read(command) { answer.await } else { self.lease.run(answer).await? };
        answer.map_err(|source| unanswered(&line, source))
    }

    /// The backends of the process, and the servers of those that are managed, or not published.
    pub(super) async fn runtime(&self, observed: &Observed) -> Result<Runtime, AccessError> {
        let backends = self.backends().await?;
        let hidden = backends.iter().filter(|(_, published)| !**published).map(|(name, _)| name.clone());
        let names: BTreeSet<String> = observed.managed().map(|(name, _)| name.to_string()).chain(hidden).collect();
        let asked: Vec<_> = names.into_iter().map(|name| self.servers_of(name)).collect();
        let parts: Vec<Servers> = stream::iter(asked).buffered(CONCURRENCY).try_collect().await?;
        Ok(Runtime { servers: parts.into_iter().flatten().collect(), backends: Some(backends), doubts: false })
    }

    /// The backends, each with whether it is published.
    async fn backends(&self) -> Result<BTreeMap<String, bool>, AccessError> {
        let command = "show stat -1 2 -1";
        let answer = self.command(command).await?;
        parse_backends(&answer).ok_or_else(|| AccessError::Unavailable {
            what: format!("HAProxy does not answer {command:?}"),
            source: "its answer has no header, or not the columns that it takes".into(),
        })
    }

    /// The servers of a backend; none if the process lacks it.
    ///
    /// Never those of all backends in one answer: HAProxy 3.2.26 loses its worker some time after an answer to this
    /// command that does not fit its buffer (16 kB, about 150 servers) and whose reader is gone before the end. Every
    /// reload ends the master's connections, and so does the end of this program. (HAProxy's commits 282ac06d8, which
    /// brought the fault, and 2d5ef608e, which mends it.)
    async fn servers_of(&self, backend: String) -> Result<Servers, AccessError> {
        let command = format!("show servers state {backend}");
        let answer = self.command(&command).await?;
        if answer == "Can't find backend." {
            return Ok(Servers::default());
        }
        parse_servers_state(&answer).ok_or_else(|| AccessError::Unavailable {
            what: format!("HAProxy does not answer {command:?}"),
            source: "the connection ended before the answer, as it does during a reload".into(),
        })
    }

    /// Lets no more requests find a backend. One that the process lacks is not an error.
    pub(super) async fn unpublish(&self, backend: &BackendName) -> Result<(), AccessError> {
        let command = format!("unpublish backend {backend}");
        let answer = self.command(&command).await?;
        if ["Backend unpublished.", NO_BACKEND].contains(&answer.as_str()) {
            return Ok(());
        }
        Err(AccessError::Unavailable { what: format!("HAProxy refuses {command:?}"), source: answer.into() })
    }

    /// Removes a server that is in maintenance, or a backend that is not published. `false`: HAProxy does not, as
    /// somebody is connected to it. A server's idle connections are closed meanwhile.
    pub(super) async fn remove(&self, surplus: &Surplus) -> Result<bool, AccessError> {
        let (command, gone) = match surplus {
            Surplus::Server(backend, server) => {
                self.command(&format!("wait {REMOVABLE_WAIT} srv-removable {backend}/{server}")).await?;
                (format!("del server {backend}/{server}"), SERVER_GONE)
            }
            Surplus::Backend(backend) => {
                self.unpublish(backend).await?;
                (format!("del backend {backend}"), BACKEND_GONE)
            }
        };
        let answer = self.command(&command).await?;
        // Events of the servers may come before the answer.
        let is_gone = answer.lines().last().is_some_and(|line| gone.contains(&line));
        if !is_gone {
            tracing::debug!(command, answer, "the process keeps this for now");
        }
        Ok(is_gone)
    }

    /// Makes the changes: those of one backend in their order up to the first one that is refused, several backends in
    /// parallel.
    pub(super) async fn act(&self, actions: &[Action]) -> Result<(), WriteError> {
        let mut backends: BTreeMap<&BackendName, Vec<&Action>> = BTreeMap::new();
        for action in actions {
            backends.entry(action.backend()).or_default().push(action);
        }
        let asked: Vec<_> = backends.into_values().map(|actions| self.act_on_one(actions)).collect();
        let results: Vec<Result<(), WriteError>> = stream::iter(asked).buffered(CONCURRENCY).collect().await;
        results.into_iter().collect()
    }

    async fn act_on_one(&self, actions: Vec<&Action>) -> Result<(), WriteError> {
        for action in actions {
            let (command, is_done) = order(action);
            let answer = self.command(&command).await?;
            if !is_done(&answer) {
                return Err(WriteError::HalfLive { message: format!("{command}: {answer}") });
            }
        }
        Ok(())
    }
}

/// Why a socket did not answer: HAProxy does not run if nobody listens.
pub(super) fn unanswered(command: &str, source: SocketError) -> AccessError {
    let what = format!("HAProxy does not answer {command:?}");
    match source.nobody_listens() {
        true => AccessError::NotRunning { what, is_connected: false, source: source.into() },
        false => AccessError::Unavailable { what, source: source.into() },
    }
}

/// The command for a change, and whether its answer means success: a refusal is text without any code (management
/// guide, 9.3; seen on 3.0, 3.2 and 3.4).
fn order(action: &Action) -> (String, fn(&str) -> bool) {
    match action {
        // Answered with what was changed.
        Action::Address(backend, server, ip, port) => {
            (format!("set server {backend}/{server} addr {ip} port {port}"), |answer| {
                answer.is_empty() || answer.contains("changed") || answer.contains("no need to change")
            })
        }
        Action::State(backend, server, state) => {
            (format!("set server {backend}/{server} state {}", state.as_str()), str::is_empty)
        }
        Action::Weight(backend, server, weight) => {
            (format!("set server {backend}/{server} weight {weight}"), str::is_empty)
        }
        Action::Add(backend, server, new) => {
            let NewServer { address, port, checked: _, gated, options } = new;
            let gate = if *gated { " init-state down" } else { "" };
            let address = match address {
                std::net::IpAddr::V4(ip) => ip.to_string(),
                std::net::IpAddr::V6(ip) => format!("[{ip}]"),
            };
            (format!("add server {backend}/{server} {address}:{port} {options}{gate}"), |answer| answer == ADDED)
        }
        Action::Check(backend, server) => (format!("enable health {backend}/{server}"), str::is_empty),
        Action::Make(backend, profile, mode) => {
            let mode = mode.as_str();
            (format!("add backend {backend} from {profile} mode {mode}"), |answer| answer == "New backend registered.")
        }
        Action::Publish(backend) => (format!("publish backend {backend}"), |answer| answer == "Backend published."),
    }
}

/// Reads `show servers state` by its own header (management guide, 9.3). `None`: it has no header, so it was cut short.
fn parse_servers_state(answer: &str) -> Option<Servers> {
    let mut columns: Vec<&str> = Vec::new();
    let mut servers = BTreeMap::new();
    for line in answer.lines() {
        if let Some(header) = line.strip_prefix("# ") {
            columns = header.split(' ').collect();
            continue;
        }
        let values: Vec<&str> = line.split(' ').collect();
        let field =
            |name: &str| columns.iter().position(|column| *column == name).and_then(|at| values.get(at).copied());
        let number = |name: &str| field(name).and_then(|value| value.parse::<u16>().ok());
        let (Some(backend), Some(server)) = (field("be_name"), field("srv_name")) else { continue };
        let Some(admin) = number("srv_admin_state") else { continue };
        // Only maintenance and drain that were requested. What is inherited from a tracked server, and what DNS does,
        // belongs to the process; 0x04 only shows what the file had at the start (include/haproxy/server-t.h,
        // SRV_ADMF_*).
        let state = match admin {
            admin if admin & 0x01 != 0 => State::Maint,
            admin if admin & 0x08 != 0 => State::Drain,
            _ => State::Ready,
        };
        // Of a health check the second bit says that there is one, the third that it is on (include/haproxy/check-t.h,
        // CHK_ST_*).
        let check = number("srv_check_state").unwrap_or(0);
        servers.insert(
            (backend.to_owned(), server.to_owned()),
            RuntimeServer {
                address: field("srv_addr").and_then(|address| address.parse().ok()),
                port: number("srv_port").unwrap_or(0),
                state,
                weight: number("srv_uweight"),
                unchecked: check & 0x02 != 0 && check & 0x04 == 0,
            },
        );
    }
    (!columns.is_empty()).then_some(servers)
}

/// Reads the rows of `show stat` for backends, by its own header. `None`: it lacks a column.
fn parse_backends(answer: &str) -> Option<BTreeMap<String, bool>> {
    let mut lines = answer.lines();
    let columns: Vec<&str> = lines.next()?.strip_prefix("# ")?.split(',').collect();
    let column = |name: &str| columns.iter().position(|column| *column == name);
    let (name, status) = (column("pxname")?, column("status")?);
    let row = |line: &str| {
        let values: Vec<&str> = line.split(',').collect();
        // As HAProxy 3.4.7 marks it: `UP (UNPUB)`.
        Some(((*values.get(name)?).to_owned(), !values.get(status)?.contains("(UNPUB)")))
    };
    Some(lines.filter_map(row).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_that_is_not_known_to_read_is_a_change() {
        for reads in ["show info", "show servers state api", "wait 100ms srv-removable api/api_1"] {
            assert!(is_read(reads), "{reads}");
        }
        for changes in
            ["set server a/b state maint", "add server a/b", "del server a/b", "enable health a/b", "reload", ""]
        {
            assert!(!is_read(changes), "{changes}");
        }
    }

    #[test]
    fn the_servers_state_is_read_by_its_header() {
        // As HAProxy 3.2.26 answered after `set server api/api_1 state ready`.
        let answer = "1\n# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight srv_iweight srv_time_since_last_change srv_check_status srv_check_result srv_check_health srv_check_state srv_agent_state bk_f_forced_id srv_f_forced_id srv_fqdn srv_port srvrecord srv_use_ssl srv_check_port srv_check_addr srv_agent_addr srv_agent_port\n3 api 1 api_1 127.0.0.1 0 4 9 100 1 1 0 2 6 0 0 0 - 9010 - 0 0 - - 0\n3 api 2 api_2 127.0.0.1 0 5 5 5 0 1 0 1 6 0 0 0 - 9008 - 0 0 - - 0";
        let servers = parse_servers_state(answer).expect("a header");
        let server = |name: &str| servers[&("api".to_owned(), name.to_owned())].clone();
        assert_eq!(
            server("api_1"),
            RuntimeServer {
                address: "127.0.0.1".parse().ok(),
                port: 9010,
                state: State::Ready,
                weight: Some(9),
                unchecked: false
            }
        );
        assert_eq!(server("api_2").state, State::Maint);
        assert_eq!(parse_servers_state(""), None);
    }

    #[test]
    fn a_backend_that_is_not_published_is_marked() {
        // As HAProxy 3.4.7 answers, without most columns.
        let answer = "# pxname,svname,qcur,status,weight\napi,BACKEND,0,UP,1\nshop,BACKEND,0,UP (UNPUB),1\n";
        let backends = parse_backends(answer).expect("a header");
        assert_eq!(backends, BTreeMap::from([("api".to_owned(), true), ("shop".to_owned(), false)]));
        assert_eq!((parse_backends(""), parse_backends("# pxname,svname\n")), (None, None));
    }
}
